"""Checkpoints outside of the run folder, in a local folder or a bucket: all that reads them finds them by the folder."""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import foldax
from foldax import cli
from foldax.errors import ConfigError, Interrupted, RunError
from foldax.runs import folder
from foldax.runs.load import load_run
from foldax.runs.transfer import parameters
from foldax.sweeps.catalog import read_entry
from foldax.sweeps.records import MemberCheckpoints
from tests.conftest import Config, tiny


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path):
    """An address for `checkpoints`, and a function that lists the files there."""
    if request.param == "folder":
        elsewhere = tmp_path / "elsewhere"
        yield str(elsewhere), lambda: [path for path in elsewhere.rglob("*") if path.is_file()]
        return
    pytest.importorskip("gcsfs", reason="gcsfs, of the extra gcs, is not installed")
    from tests.bucket_server import bucket_of_tests

    with bucket_of_tests("models") as server:
        yield "gs://models/runs", lambda: list(server.objects)


def train(path: Path, **arguments: Any) -> foldax.Result:
    config = Config(checkpoint_every=4, **arguments.pop("fields", {}))
    return foldax.train(tiny, config, run_dir=path, verbose=False, **arguments)


def test_all_that_reads_checkpoints_finds_them_through_the_run_folder(place, tmp_path: Path, capsys) -> None:
    address, files = place
    run, fields = tmp_path / "run", {"checkpoints": address}
    # 1. Interrupted, and resumed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foldax.runs.train.stop_on_signals", stop_after_a_chunk)
        with pytest.raises(Interrupted):
            train(run, fields=fields)
    assert not (run / "checkpoints").exists()
    assert files()
    assert folder.has_progress(run)
    assert read_entry(run).step == 1
    with pytest.raises(ConfigError, match="checkpoints"):
        train(run, resume=True, fields={"checkpoints": str(tmp_path / "other")})
    result = train(run, resume=True, fields=fields)
    # 2. Read: `load_run`, as for `predict` and `export`, and `init_from`, as for `pretrained`
    for loaded, saved in zip(*(jax.tree.leaves(one.state) for one in (load_run(run, tiny), result)), strict=True):
        np.testing.assert_array_equal(loaded, saved)
    assert parameters.read(run).provenance["step"] == load_run(run, tiny).best_step
    assert read_entry(run).step == 12
    # 3. The same result as in the run folder
    assert train(tmp_path / "local").metrics == result.metrics
    # 4. Removed with the run, and nothing else
    train(tmp_path / "two/run", fields=fields)
    assert cli.main(["rm", str(run), "--yes"]) == 0
    assert address in capsys.readouterr().out
    assert not run.exists()
    assert files(), "the checkpoints of the other run of this name"
    assert cli.main(["rm", str(tmp_path / "two/run"), "--yes"]) == 0
    assert not files()


def test_members_of_a_sweep_have_a_folder_each_there_while_they_train(place, tmp_path: Path, monkeypatch) -> None:
    address, files = place
    seen: list[str] = []
    delete = MemberCheckpoints.delete

    def delete_seen(checkpoints: MemberCheckpoints) -> None:
        checkpoints.wait()
        seen.append(str(files()))
        delete(checkpoints)

    monkeypatch.setattr(MemberCheckpoints, "delete", delete_seen)
    sweep = tmp_path / "sweep"
    config = Config(checkpoint_every=2, checkpoints=address)
    foldax.sweep(tiny, config=config, execution="exact", sweep_dir=sweep, verbose=False)
    recorded = json.loads((sweep / "sweep.json").read_text())["checkpoints"]
    assert recorded.startswith(f"{address}/sweep-")
    assert f"{recorded.rpartition('/')[2]}/0/" in seen[0]
    assert not (sweep / "members").exists()
    assert not files(), "members that have ended need them no longer"


@pytest.mark.parametrize("wrong", ["runs", "s3://bucket/x", "gs://"])
def test_an_address_that_is_none_is_a_config_error(wrong: str) -> None:
    with pytest.raises(ConfigError, match="is not an absolute path, an address such as 'gs://bucket/folder'"):
        Config(checkpoints=wrong)


def test_a_place_that_cannot_be_written_makes_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write to .*file/x: Not a directory"):
        train(tmp_path / "run", fields={"checkpoints": str(tmp_path / "file/x")})
    assert not (tmp_path / "run").exists()


def test_a_manifest_cannot_make_rm_remove_another_folder(tmp_path: Path, monkeypatch) -> None:
    (precious := tmp_path / "precious").mkdir()
    (run := tmp_path / "run").mkdir()
    for name in ("config.json", "lock"):
        (run / name).write_text("{}")
    (run / "manifest.json").write_text(json.dumps({"checkpoints": str(precious)}))
    assert cli.main(["rm", str(run), "--yes"]) == 0
    assert precious.exists()


@contextlib.contextmanager
def stop_after_a_chunk(unsaved: str):
    asked: list[int] = []
    yield lambda: bool(asked) or asked.append(1)
