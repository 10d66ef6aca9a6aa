"""The package as a whole: it imports quickly, and its README is true."""

import re
import subprocess
import sys

import pytest

import foldax
from tests.conftest import ROOT

HEAVY = ("flax", "optax", "orbax", "grain", "tensorflow_datasets", "tensorflow", "sklearn", "matplotlib", "rich")
README = (ROOT / "README.md").read_text()


def test_import_is_light() -> None:
    code = f"import sys, foldax; print([name for name in {HEAVY} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_public_names_are_there() -> None:
    for name in foldax.__all__:
        assert getattr(foldax, name) is not None
    assert callable(foldax.train)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = foldax.trian


def test_names_that_are_loaded_at_first_use_are_listed(monkeypatch) -> None:
    for name in foldax._LAZY:
        monkeypatch.delitem(vars(foldax), name, raising=False)
    assert set(foldax.__all__) <= set(dir(foldax))


def test_readme_experiment_runs(tmp_path) -> None:
    source = next(code for code in re.findall(r"```python\n(.*?)```", README, re.S) if "experiment =" in code)
    path = tmp_path / "from_readme.py"
    path.write_text(source)
    experiment = foldax.load_experiment(path)
    result = foldax.train(experiment, experiment.config(steps=10, hidden=(8,)), save=False, verbose=False)
    assert result.metrics["test"].keys() == {"loss", "accuracy"}


def test_readme_is_short_and_names_only_commands_that_exist() -> None:
    assert len(README.splitlines()) <= 200
    commands = set(re.findall(r"^\$ foldax (\w+)", README, re.M))
    assert commands <= set(re.findall(r"^\| `foldax (\w+)", (ROOT / "docs/reference/commands.md").read_text(), re.M))
