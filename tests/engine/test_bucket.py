"""Checkpoints in a bucket: written, read, damaged and out of reach, as of a local server of Google's JSON API."""

import contextlib
import logging

import jax.numpy as jnp
import numpy as np
import pytest

from foldax.engine.checkpoint import Checkpoints, checkpoint_steps, read_arrays
from foldax.engine.checkpoint_folder import check_writable, checkpoint_location, remove_folder
from foldax.errors import RunError

pytest.importorskip("gcsfs", reason="gcsfs, of the extra gcs, is not installed")
from tests.bucket_server import BucketServer, bucket_of_tests

TREE = {"w": jnp.arange(6.0).reshape(2, 3), "empty": jnp.zeros((0, 2)), "n": np.arange(3)}
PLACE = "gs://models/digits/checkpoints"


@pytest.fixture
def bucket():
    with bucket_of_tests("models") as server:
        yield server


def save(*steps: int, place: str = PLACE) -> None:
    with contextlib.closing(Checkpoints(checkpoint_location(place))) as checkpoints:
        for step in steps:
            checkpoints.save(step, TREE, {"note": step})
        checkpoints.wait()


def restored(warn=pytest.fail):
    with contextlib.closing(Checkpoints(checkpoint_location(PLACE), warn)) as checkpoints:
        return checkpoints.restore(TREE)


def test_what_is_saved_in_a_bucket_is_restored_and_two_are_kept(bucket):
    save(1, 2, 3)
    tree, meta = restored()
    for name, array in TREE.items():
        np.testing.assert_array_equal(tree[name], array)
    assert meta["note"] == meta["step"] == 3
    assert checkpoint_steps(checkpoint_location(PLACE)) == [2, 3]
    arrays, _ = read_arrays(checkpoint_location(PLACE), lambda name: name == "w")
    np.testing.assert_array_equal(arrays["w"], TREE["w"])
    assert all(name.startswith("digits/checkpoints/") for name in bucket.objects)
    remove_folder(checkpoint_location(PLACE))
    assert not bucket.objects
    assert restored() is None


def test_damage_in_a_bucket_is_detected_and_the_checkpoint_before_is_used(bucket):
    save(1, 2)
    flip_a_byte(bucket, "digits/checkpoints/2/arrays/")
    warnings: list[str] = []
    assert restored(warnings.append)[1]["step"] == 1
    assert "gs://models/digits/checkpoints/2 is damaged and was set aside" in warnings[0]
    assert checkpoint_steps(checkpoint_location(PLACE)) == [1]
    flip_a_byte(bucket, "digits/checkpoints/1/arrays/")
    with pytest.raises(RunError, match="none of the checkpoints in gs://models/digits/checkpoints can be read"):
        restored()


def test_a_checkpoint_that_was_only_partly_uploaded_does_not_count(bucket):
    save(1, 2)
    bucket.delete("digits/checkpoints/2/commit_success.txt")
    assert checkpoint_steps(checkpoint_location(PLACE)) == [1]
    assert restored()[1]["step"] == 1


@pytest.mark.parametrize(
    ("place", "refusal", "message"),
    [
        ("gs://nowhere/x", None, "cannot write to gs://nowhere/x: there is no bucket 'nowhere', or these credentials"),
        ("gs://models/x", (401, "Invalid Credentials"), "are not accepted: `gcloud auth application-default login`"),
        ("gs://models/x", (403, "Forbidden"), "these credentials do not allow it"),
        ("gs://models/x", (0, ""), "the network or the server does not answer"),
    ],
)
def test_a_bucket_out_of_reach_is_an_error_before_training(bucket: BucketServer, place, refusal, message):
    bucket.refusal = refusal
    with pytest.raises(RunError) as caught:
        check_writable(checkpoint_location(place))
    assert message in str(caught.value)
    with pytest.raises(RunError, match="cannot write to"):
        Checkpoints(checkpoint_location(place))


def test_a_network_that_is_gone_is_no_damage(bucket):
    save(1)
    bucket.refusal = (403, "Forbidden")
    with pytest.raises(RunError, match="cannot read gs://models.*do not allow it"):
        read_arrays(checkpoint_location(PLACE), lambda name: True)
    bucket.refusal = None
    assert restored()[1]["step"] == 1


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(RunError, match=r"gcsfs is not installed: pip install 'foldax\[gcs\]', which gs://models"):
        checkpoint_location("gs://models/runs")


def flip_a_byte(bucket: BucketServer, prefix: str) -> None:
    """Changes the last byte of each file of data below a prefix."""
    for name in [name for name in bucket.objects if name.startswith(prefix) and "/d/" in name]:
        content = bucket.objects[name][0]
        bucket.put(name, content[:-1] + bytes([content[-1] ^ 1]))


def test_the_libraries_print_nothing_of_what_they_raise(bucket, caplog):
    bucket.refusal = (403, "Forbidden")
    with caplog.at_level(logging.WARNING), pytest.raises(RunError):
        check_writable(checkpoint_location("gs://models/x"))
    assert not caplog.records
