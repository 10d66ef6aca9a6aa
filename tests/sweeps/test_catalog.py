"""`foldax runs`: reads, filters, sorts and shows folders of runs and sweeps, of which some are damaged."""

import json
from pathlib import Path

import pytest

from foldax import cli
from foldax.errors import ConfigError
from foldax.runs import folder
from foldax.runs.terminal import print_table
from foldax.sweeps import catalog
from foldax.sweeps.catalog import read_entries, select, sort_entries

RATES = (0.1, 0.001234567, 0.01)


def write_run(path: Path, accuracy: float | None, status: str = "finished", **fields) -> Path:
    """Writes the small files of a run, without a result if it has no accuracy."""
    (path / "checkpoints/7").mkdir(parents=True)
    (path / "checkpoints/7/array").write_bytes(b"0" * 2_000)
    (path / "lock").touch()
    config = {"steps": 9, "seed": 0, "monitor": "loss", "mode": "min", "optimizer": {"learning_rate": 0.1}}
    folder.write_json(path / "config.json", config | fields)
    started = f"2026-01-{1 + len(list(path.parent.iterdir())):02}T10:00:00+00:00"
    folder.write_json(path / "manifest.json", {"experiment": "digits", "status": status, "started": started})
    if accuracy is not None:
        metrics = {"validation": {"loss": 1 - accuracy, "accuracy": accuracy}, "test": {"loss": 1 - accuracy}}
        folder.write_json(path / "result.json", {"status": status, "steps": 9} | metrics)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, (rate, accuracy) in enumerate(zip(RATES, (0.5, 0.923456, float("nan")))):
        write_run(tmp_path / f"runs/{number}", accuracy, optimizer={"learning_rate": rate}, hidden=[8, number])
    write_run(tmp_path / "runs/3", None, "running", optimizer={"learning_rate": 0.5}, hidden=[8])
    write_run(tmp_path / "runs/4", None, "failed: it is gone", optimizer={"learning_rate": 0.5}, hidden=[8])
    return tmp_path / "runs"


def names(entries) -> str:
    return "".join(entry.path.name for entry in entries)


def test_an_entry_has_what_the_files_say(root) -> None:
    entries = read_entries(root)
    assert names(entries) == "01234"
    first, unfinished = entries[0], entries[3]
    assert (first.kind, first.experiment, first.status, first.step) == ("run", "digits", "finished", 9)
    assert first.config["optimizer.learning_rate"] == 0.1
    assert first.metrics == {"validation/loss": 0.5, "validation/accuracy": 0.5, "test/loss": 0.5}
    assert first.size == sum(file.stat().st_size for file in (root / "0").rglob("*") if file.is_file())
    assert (unfinished.step, unfinished.metrics) == (7, {})


def test_a_running_run_is_killed_unless_a_process_holds_its_lock(root) -> None:
    assert catalog.read_entry(root / "3").status == "killed"
    with folder.lock(root / "3"):
        assert catalog.read_entry(root / "3").status == "running"


def test_damaged_folders_are_named_and_left_out(root, capsys) -> None:
    (root / "0/config.json").unlink()
    (root / "1/manifest.json").write_text("{")
    (root / "2/manifest.json").write_text("[]")
    (root / "3/manifest.json").unlink()
    (root / "3/metrics.jsonl").touch()
    assert names(read_entries(root)) == "4"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(f"left out: {root / str(number)}" in lines[number] for number in range(4))


def test_links_are_not_followed(root) -> None:
    (root / "loop").symlink_to(root)
    assert names(read_entries(root)) == "01234"


@pytest.mark.parametrize(
    ("conditions", "selected"),
    [
        (["optimizer.learning_rate=1e-1"], "0"),
        (["--optimizer.learning-rate>=0.1"], "034"),
        (["optimizer.learning_rate<0.1", "accuracy>0.9"], "1"),
        (["hidden=(8, 1)"], "1"),
        (["hidden=(8,)"], "34"),
        (["status=failed"], "4"),
        (["status!=finished"], "34"),
        (["test/loss<0.2"], "1"),
        (["accuracy!=0.5"], "1234"),
    ],
)
def test_conditions_select_runs(root, conditions: list[str], selected: str) -> None:
    assert names(select(read_entries(root), conditions)) == selected


@pytest.mark.parametrize(
    ("condition", "message"), [("seed", "write FIELD=VALUE"), ("accurcy=1", "did you mean 'validation/accuracy'")]
)
def test_a_wrong_condition_says_what_is_allowed(root, condition: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(read_entries(root), [condition])


def test_metrics_sort_from_best_to_worst_and_missing_ones_come_last(root) -> None:
    entries = read_entries(root)
    assert names(sort_entries(entries, "validation/accuracy")) == "10234"
    assert names(sort_entries(entries, "validation/loss")) == "10234"
    assert names(sort_entries(entries, "optimizer.learning_rate")) == "12034"
    assert names(sort_entries(entries, "started")) == "43210"


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_no_field_is_dropped_at_any_width(root, capsys, monkeypatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(catalog.entries_table(read_entries(root), ["validation/accuracy"]))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    for text in ("learning", "hidden", "0.001235", "(8, 1)", "0.9235", "failed ..."):
        assert text in shown, text
    assert "monitor" not in shown


def test_a_field_with_the_name_of_a_column_is_another_column(tmp_path) -> None:
    entry = catalog.read_entry(write_run(tmp_path / "r", 0.5, size=42))
    assert catalog.column_values(entry)["config.size"] == 42
    assert catalog.column_values(entry)["size"] > 2_000


def test_the_command_prints_rows_or_json(root, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = ["runs", str(root), "--where", "status=finished", "--sort", "accuracy"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "3 of 5 under" in out
    assert cli.main([*words, "--json"]) == 0
    objects = json.loads(capsys.readouterr().out)
    assert [Path(values["path"]).name for values in objects] == ["1", "0", "2"]
    assert objects[2]["metrics"]["validation/accuracy"] == "nan"
    assert objects[0]["config"]["hidden"] == [8, 1]


def test_the_command_says_if_there_is_nothing(tmp_path, capsys) -> None:
    assert cli.main(["runs", str(tmp_path / "gone")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert "no run under" in capsys.readouterr().err
