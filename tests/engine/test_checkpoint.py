"""Checkpoints: what comes back has the bits that went in, and only whole checkpoints come back."""

import contextlib
import errno
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foldax.engine.checkpoint import Checkpoints, checkpoint_steps, read_arrays
from foldax.engine.state_leaves import host_arrays, leaves_by_path, tree_from_arrays
from foldax.errors import ExperimentError, NonFiniteError, RunError


class State(NamedTuple):
    params: dict
    extra: tuple
    none: None = None


def state_of_all_dtypes(scale: float = 1.0) -> State:
    """A pytree with a leaf of every kind that a learner may keep."""
    odd = np.array([np.nan, -0.0, 0.0, np.inf, -np.inf, 1e-45, scale], np.float32)
    odd_nan = np.array([0x7FC00001, 0xFFC12345], np.uint32).view(np.float32)  # NaNs with other bits
    return State(
        params={
            "dense": {"kernel": jnp.arange(6.0).reshape(2, 3) * scale, "bias": jnp.zeros(0)},
            "half": jnp.asarray(odd).astype(jnp.bfloat16),
            "float16": jnp.asarray(odd).astype(jnp.float16),
            "odd": jnp.asarray(odd),
            "odd_nan": jax.device_put(odd_nan),
            "empty": {},
        },
        extra=(
            jnp.int32(-7),
            jnp.uint32(2**32 - 1),
            jnp.int8([-128, 127]),
            jnp.bool_([True, False]),
            jnp.bool_(True),
            jnp.float32(3.0),
            jax.random.key(3),
            jax.random.split(jax.random.key(4, impl="rbg"), 2),
            jax.random.PRNGKey(5),
            (),
            [],
        ),
    )


def assert_same_bits(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
    first, second = host_arrays(one), host_arrays(other)
    assert list(first) == list(second)
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name


@pytest.fixture
def checkpoints(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints")
    yield store
    store.close()


def test_leaves_are_named_by_their_path() -> None:
    names = set(leaves_by_path(state_of_all_dtypes()))
    assert {"params.dense.kernel", "params.half", "extra.0", "extra.7"} <= names


def test_host_arrays_are_restored_to_the_same_tree() -> None:
    assert_same_bits(
        tree_from_arrays(host_arrays(state_of_all_dtypes()), state_of_all_dtypes(2.0)), state_of_all_dtypes()
    )


def test_every_bit_is_restored_with_its_dtype(checkpoints) -> None:
    checkpoints.save(5, state_of_all_dtypes(), {"times": {"seconds": 1.5, "names": ["a"], "none": None}})
    checkpoints.wait()
    tree, meta = checkpoints.restore(state_of_all_dtypes(2.0))
    assert_same_bits(tree, state_of_all_dtypes())
    assert meta["step"] == 5
    assert meta["times"] == {"seconds": 1.5, "names": ["a"], "none": None}
    key = tree.extra[6]
    assert jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    np.testing.assert_array_equal(jax.random.bits(key), jax.random.bits(jax.random.key(3)))


arrays = st.one_of(
    st.builds(
        lambda bits, dtype: np.array(bits, np.uint32).view(dtype),
        st.lists(st.integers(0, 2**32 - 1), max_size=4),
        st.sampled_from([np.float32, np.int32, np.uint32, np.float16, jnp.bfloat16, np.uint8]),
    ),
    st.booleans().map(np.bool_),
    st.integers(-(2**31), 2**31 - 1).map(np.int32),
)
trees = st.recursive(
    arrays,
    lambda inner: (
        st.dictionaries(st.sampled_from(["a", "b", "with space", "with/slash"]), inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=5,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees)
def test_any_pytree_is_restored(tmp_path_factory, tree) -> None:
    checkpoints = Checkpoints(tmp_path_factory.mktemp("any") / "checkpoints")
    try:
        tree = jax.device_put({"step": np.int32(1), "tree": tree})
        checkpoints.save(1, tree, {})
        checkpoints.wait()
        assert_same_bits(checkpoints.restore(tree)[0], tree)
    finally:
        checkpoints.close()


def test_the_two_newest_are_kept(checkpoints) -> None:
    for step in (1, 2, 3, 10):
        checkpoints.save(step, {"x": jnp.float32(step)}, {})
    checkpoints.wait()
    assert sorted(int(path.name) for path in checkpoints.folder.iterdir()) == [3, 10]
    assert checkpoints.restore({"x": jnp.float32(0)})[0]["x"] == 10.0
    assert not checkpoints.is_saving()


@pytest.mark.parametrize(("max_to_keep", "kept"), [(1, [4, 8, 9]), (3, [4, 7, 8, 9])])
def test_so_many_and_the_milestones_are_kept(tmp_path, max_to_keep: int, kept: list[int]) -> None:
    with contextlib.closing(Checkpoints(tmp_path, max_to_keep=max_to_keep, keep_period=4)) as store:
        for step in (1, 3, 4, 6, 7, 8, 9):
            store.save(step, {"w": np.full(2, step)}, {})
        store.wait()
        assert checkpoint_steps(tmp_path) == kept
    for step in kept:
        np.testing.assert_array_equal(read_arrays(tmp_path, lambda name: True, step)[0]["w"], [step, step])
    with pytest.raises(RunError, match="has no checkpoint of step 5; kept are 4, "):
        read_arrays(tmp_path, lambda name: True, 5)


def test_the_only_checkpoint_is_replaced_by_one_that_can_be_read(tmp_path, monkeypatch) -> None:
    with contextlib.closing(Checkpoints(tmp_path, max_to_keep=1)) as store:
        store.save(1, {"w": np.ones(2)}, {})
        store.wait()
        with monkeypatch.context() as patch:
            patch.setattr("foldax.engine.checkpoint.checksums", lambda arrays: dict.fromkeys(arrays, 0))
            store.save(2, {"w": np.ones(2)}, {})
            with pytest.raises(RunError, match="cannot write a checkpoint|damaged|does not fit|checksum"):
                store.wait()
        assert checkpoint_steps(tmp_path) == [1, 2]
        warnings: list[str] = []
        store._warn = warnings.append
        assert store.restore({"w": np.ones(2)})[1]["step"] == 1
        assert "2 is damaged" in warnings[0]


def test_a_step_is_saved_once(checkpoints) -> None:
    for value in (1.0, 2.0):
        checkpoints.save(4, {"x": jnp.float32(value)}, {})
    checkpoints.wait()
    assert checkpoints.restore({"x": jnp.float32(0)})[0]["x"] == 1.0


def test_an_empty_folder_restores_none(checkpoints) -> None:
    assert checkpoints.restore({"x": jnp.float32(0)}) is None


def test_a_saved_state_can_be_saved_again(checkpoints) -> None:
    state = {"x": np.zeros(3, np.float32)}
    checkpoints.save(1, jax.device_put(state), {})
    checkpoints.wait()
    assert_same_bits(checkpoints.restore(jax.device_put(state))[0], jax.device_put(state))


def test_half_written_checkpoints_are_ignored(checkpoints) -> None:
    state = {"x": jnp.arange(5.0)}
    checkpoints.save(1, state, {})
    checkpoints.wait()
    folder = checkpoints.folder
    # A killed process leaves the folder under its temporary name, with some of its files.
    half = folder / "2.orbax-checkpoint-tmp"
    shutil.copytree(folder / "1", half)
    shutil.rmtree(half / "meta")
    again = Checkpoints(folder)
    try:
        tree, meta = again.restore(state)
        assert meta["step"] == 1
        assert_same_bits(tree, state)
        again.save(2, {"x": state["x"] + 1}, {})
        again.wait()
        assert again.restore(state)[1]["step"] == 2
    finally:
        again.close()


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"x": jnp.zeros(3), "y": jnp.zeros(3)}, "other arrays than this experiment's state .y."),
        ({"x": jnp.zeros(4)}, r"`x` is float32\(3,\), not float32\(4,\)"),
        ({"x": jnp.zeros(3, jnp.int32)}, r"`x` is float32\(3,\), not int32\(3,\)"),
    ],
)
def test_a_checkpoint_of_another_state_is_refused_with_the_array_that_differs_and_kept(checkpoints, like, words):
    checkpoints.save(7, {"x": jnp.ones(3)}, {})
    checkpoints.wait()
    with pytest.raises(RunError, match=rf"checkpoint .*checkpoints/7 .*{words}"):
        checkpoints.restore(like)
    assert checkpoints.restore({"x": jnp.zeros(3)})[0]["x"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), ValueError("x: Permission denied")])
def test_a_checkpoint_that_the_system_does_not_read_now_is_not_set_aside(checkpoints, monkeypatch, error) -> None:
    checkpoints.save(7, {"x": jnp.ones(3)}, {})
    checkpoints.wait()

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(type(checkpoints._manager), "restore", fail)
        with pytest.raises(RunError, match="cannot be read now, and is left as it is: "):
            checkpoints.restore({"x": jnp.zeros(3)})
        with pytest.raises(RunError, match=r"checkpoints/7 cannot be read now"):
            read_arrays(checkpoints.folder, lambda path: True)
    assert checkpoints.restore({"x": jnp.zeros(3)})[1]["step"] == 7


@pytest.mark.parametrize("name", ["thesis [2026]", "a\\b", "a*b", "a?b"])
def test_a_folder_may_hold_characters_of_patterns(tmp_path, name) -> None:
    (tmp_path / "aXb" / "checkpoints" / "1").mkdir(parents=True)
    folder = tmp_path / name / "checkpoints"
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(3)}, {})
        checkpoints.wait()
        assert checkpoints.restore({"x": jnp.zeros(3)})[1]["step"] == 1
    arrays, _ = read_arrays(folder, lambda path: True)
    np.testing.assert_array_equal(arrays["x"], 1)
    assert not list((tmp_path / "aXb" / "checkpoints" / "1").iterdir())


def test_the_first_checkpoint_is_read_back(checkpoints, monkeypatch) -> None:
    checksums = iter((1, 2))  # as written, as read
    monkeypatch.setattr("foldax.engine.checksums._piece_checksum", lambda piece: next(checksums))
    checkpoints.save(1, {"x": jnp.ones(3)}, {})
    with pytest.raises(RunError, match="checksum of `x`"):
        checkpoints.wait()


def test_a_state_with_nan_is_not_saved(checkpoints) -> None:
    params = r"^params\."
    checkpoints.save(3, {"params": {"kernel": jnp.ones(2)}, "other": jnp.array(jnp.nan)}, {}, finite=params)
    checkpoints.save(4, {"params": {"kernel": jnp.array([1.0, jnp.nan])}, "other": jnp.array(0.0)}, {}, params)
    with pytest.raises(NonFiniteError, match=r"`params.kernel` holds NaN at step 4, .*; checkpoints kept: 3$"):
        checkpoints.wait()


def test_two_arrays_of_one_path_are_refused() -> None:
    with pytest.raises(ExperimentError, match=r"two arrays of the state have the path `a\.b`: rename"):
        leaves_by_path({"a.b": 1, "a": {"b": 2}})


def test_a_failed_write_names_the_folder_and_the_kept_checkpoints(checkpoints, monkeypatch) -> None:
    checkpoints.save(3, {"x": jnp.ones(3)}, {})
    checkpoints.wait()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    checkpoints.save(4, {"x": jnp.ones(3)}, {})
    with pytest.raises(RunError, match=r"cannot write a checkpoint to .*: the disk is full; checkpoints kept: 3"):
        checkpoints.wait()
