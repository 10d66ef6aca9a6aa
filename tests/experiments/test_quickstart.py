"""The notebooks: stored clean, they run from the first cell to the last, and cells can be changed and run again."""

import copy
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = [ROOT / "experiments" / f"quickstart{name}.ipynb" for name in ("", "_agents", "_sweeps")]
NOTEBOOK, AGENTS, SWEEPS = NOTEBOOKS
SMALLER = {"steps: int = 300": "steps: int = 20", "(64, 64)": "(8,)"}
PROBE = """
import json, sys
shape = lambda trained: trained.state.params["Dense_0"]["kernel"].shape
facts = dict(
    python=sys.executable, devices=jax.device_count(), runs=len(sweep.results), finished=set(sweep.results["status"]),
    groups=len(sweep.metadata["groups"]), best=tested["mean"].max(), rows=tested["n"].tolist(), again=shape(result),
    sharp=shape(sharp_result), folders=[str(result.run_dir), str(sweep.path)])
print(json.dumps(facts, default=list))
"""


def read(path: Path = NOTEBOOK) -> tuple[nbformat.NotebookNode, dict[str, nbformat.NotebookNode]]:
    """Returns a notebook and its code cells by id."""
    notebook = nbformat.read(path, 4)
    return notebook, {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def smaller(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Returns the cell as someone might edit it to run it again."""
    changed = copy.deepcopy(cell)
    changed.id += "-again"
    for before, after in SMALLER.items():
        changed.source = changed.source.replace(before, after)
    return changed


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[nbformat.NotebookNode], str]:
    """Runs a notebook in the folder `work`, with nothing of the user's own, and returns what it printed."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    work = tmp_path / "work"
    work.mkdir()

    def run(notebook: nbformat.NotebookNode) -> str:
        kernels = KernelSpecManager(kernel_dirs=[])  # only ipykernel's own, of this very interpreter
        manager = KernelManager(kernel_name="python3", kernel_spec_manager=kernels)
        client = NotebookClient(notebook, km=manager, timeout=900, resources={"metadata": {"path": str(work)}})
        client.execute(cleanup_kc=True)
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        return "".join(output.text for output in outputs if output.output_type == "stream")

    return run


def test_every_cell_runs_and_can_be_changed_and_run_again(tmp_path: Path, execute) -> None:
    notebook, cells = read()
    probe, work = nbformat.v4.new_code_cell(PROBE), tmp_path / "work"
    notebook.cells += [cells["kept"], smaller(cells["train"]), smaller(cells["change"]), probe]
    printed = execute(notebook)

    assert "Warning" not in printed
    assert f"foldax {metadata.version('foldax')}" in printed
    assert "kept is finished already" in printed  # the same cell, run again
    for name in ("curves", "change", "plot"):
        assert any("image/png" in output.get("data", {}) for output in cells[name].outputs)
    facts = json.loads(next(output.text for output in probe.outputs))
    assert facts["python"] == sys.executable
    assert (facts["runs"], facts["finished"], facts["groups"], facts["rows"]) == (64, ["finished"], 1, [8] * 8)
    assert facts["best"] > 0.95
    assert facts["again"] == facts["sharp"] == [64, 8]  # what was defined last is what was trained
    assert [path.name for path in work.iterdir()] == ["runs"]
    for folder, name in zip(facts["folders"], ("manifest.json", "sweep.json"), strict=True):
        assert json.loads((work / folder / name).read_text())["file"] is None


def test_the_notebook_of_agents_runs(execute) -> None:
    notebook, cells = read(AGENTS)
    for cell in cells.values():
        for before, after in {"100_000": "2_560", "seeds=8": "seeds=2", "steps=200": "steps=5"}.items():
            cell.source = cell.source.replace(before, after)
    assert "Warning" not in execute(notebook)
    for name in ("curves", "plot"):
        assert any("image/png" in output.get("data", {}) for output in cells[name].outputs)
    assert any("image/gif" in output.get("data", {}) for output in cells["play"].outputs)


def test_the_notebook_of_sweeps_runs(tmp_path: Path, execute) -> None:
    notebook, cells = read(SWEEPS)
    smaller = {"steps: int = 500": "steps: int = 4", "log_every = 50": "log_every = 4", "seeds=8": "seeds=2"}
    smaller |= {"[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]": "[1e-3, 1e-2]"}
    smaller |= {"[(32,), (128, 128)]": "[(4,)]", "hidden=(128, 128)": "hidden=(4,)"}  # one program
    for cell in cells.values():
        for before, after in smaller.items():
            cell.source = cell.source.replace(before, after)
    probe = nbformat.v4.new_code_cell("print(len(again.results), len(sweep.results))")
    notebook.cells += [cells["sweep"], probe]  # the cell of the sweep again, as in the next session
    printed = execute(notebook)
    assert "Warning" not in printed
    assert printed.endswith("\n2 8\n")
    assert any("image/png" in output.get("data", {}) for output in cells["plot"].outputs)
    assert "learning_rate" in cells["table"].outputs[0].data["text/html"]
    assert "srcdoc" in cells["report"].outputs[0].data["text/html"]
    assert sorted(path.name for path in (tmp_path / "work" / "runs").iterdir()) == ["again", "sweep"]


def test_notebooks_install_alike() -> None:
    assert len({read(path)[1]["install"].source for path in NOTEBOOKS}) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs_and_machine_paths(path: Path) -> None:
    notebook, cells = read(path)
    nbformat.validate(notebook)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook.metadata == {"kernelspec": kernel, "language_info": {"name": "python"}}
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells.values())
    assert all(not cell.metadata for cell in notebook.cells)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert re.findall(r"(?<![\w./:<>])[/~]\w+|[A-Z]:\\|file:|index-url|pypi", text) == []


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Hides foldax from the notebook, and notes what pip would have been asked."""
    asked: list[dict[str, Any]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        pins = Path(command[command.index("--constraint") + 1]).read_text().split()
        asked.append({"command": command, "pins": pins})
        return SimpleNamespace(returncode=int("broken" in command[-1]), stdout="", stderr="no such repository")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    return asked


def install(source: str = "") -> None:
    exec(read()[1]["install"].source.replace('FOLDAX = ""', f"FOLDAX = {source!r}"), {})


def test_installing_keeps_the_jax_that_is_there(pip: list[dict[str, Any]]) -> None:
    install("git+https://example.org/foldax")
    (asked,) = pip
    assert asked["command"][:4] == [sys.executable, "-m", "pip", "install"]
    assert asked["command"][-1] == "git+https://example.org/foldax"
    assert {f"{name}=={metadata.version(name)}" for name in ("jax", "jaxlib")} <= set(asked["pins"])


def test_inside_a_checkout_that_is_what_is_installed(
    pip: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)
    install()
    assert pip[0]["command"][-1] == str(ROOT)


def test_what_cannot_be_installed_is_explained(pip: list[dict[str, Any]]) -> None:
    with pytest.raises(RuntimeError, match="set FOLDAX"):
        install()
    with pytest.raises(RuntimeError, match=f"beside jax=={metadata.version('jax')}.*\nno such repository"):
        install("git+https://example.org/broken")


def test_where_foldax_is_nothing_is_installed(pip: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    install()
    assert pip == []
