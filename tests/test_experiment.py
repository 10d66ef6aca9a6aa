"""Experiments: each is found in its own file, with the modules beside it."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import foldax
from foldax.errors import ExperimentError
from foldax.experiment import experiment_file, experiment_name
from foldax.runs import provenance

FILE = """
import functools
import foldax
from helper import learner, NAME

experiment = foldax.Experiment(foldax.Training, {learner})
"""
HELPER = "NAME = {name!r}\ndef learner(config, info, size=1): return NAME\n"


def write(folder: Path, learner: str = "learner") -> Path:
    folder.mkdir()
    (folder / "helper.py").write_text(HELPER.format(name=folder.name))
    (folder / "exp.py").write_text(FILE.format(learner=learner))
    return folder / "exp.py"


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        del sys.modules[name]


def test_experiments_import_the_modules_of_their_own_folders(tmp_path: Path) -> None:
    first, second = write(tmp_path / "first"), write(tmp_path / "second")
    experiments = [foldax.load_experiment(path) for path in (first, second, first)]
    assert [experiment.learner(None, None) for experiment in experiments] == ["first", "second", "first"]
    assert [experiment_file(experiment) for experiment in experiments[1:]] == [second, first]
    folders = [path for path in sys.path if path in (str(tmp_path / "first"), str(tmp_path / "second"))]
    assert folders == [str(tmp_path / "first"), str(tmp_path / "second")]


@pytest.mark.parametrize("learner", ["learner", "functools.partial(learner, size=2)"])
def test_an_experiment_belongs_to_its_file_not_to_that_of_its_learner(tmp_path: Path, learner: str) -> None:
    path = write(tmp_path / "folder", learner)
    experiment = foldax.load_experiment(path)
    assert experiment_file(experiment) == path
    assert experiment_name(experiment) == "exp"
    recorded = provenance.collect(experiment)
    assert (recorded["file"], recorded["file_sha256"]) == (str(path), provenance.file_sha256(path))
    # One that no module holds belongs to its learner.
    other = foldax.Experiment(foldax.Training, functools.partial(experiment.learner, size=3))
    assert experiment_file(other) == path.with_name("helper.py")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "folder")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ExperimentError, match=r"exp.py' cannot be read: Permission denied"):
        foldax.load_experiment(path)
    assert provenance.edited_file({"file": str(path), "file_sha256": "1f3a"}) is None


def test_a_script_that_loads_its_run_while_it_is_imported_is_one_error(tmp_path: Path) -> None:
    """Without a `__main__` guard its code runs when the run's experiment is imported, and would load the run again."""
    path = tmp_path / "script.py"
    path.write_text(
        "import foldax\nexperiment = foldax.Experiment(foldax.Training, print)\nfoldax.load_experiment(__file__)\n"
    )
    with pytest.raises(ExperimentError, match=r'^script.py would import itself .* below `if __name__ == "__main__":`'):
        foldax.load_experiment(path)
    path.write_text(path.read_text().replace("foldax.load_experiment(__file__)", ""))
    assert foldax.load_experiment(path).config is foldax.Training
