"""The pages: links, tables, the site's list of pages, and Python that runs; `test_commands.py` has their commands."""

import functools
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from foldax import cli, data
from tests.conftest import EXTRAS, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "research").rglob("*.md")])
PROGRAMS = [page for page in (ROOT / "docs").rglob("*.md") if "```python" in page.read_text()]


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    for link in links + re.findall(r'<(?:source|img)\b[^>]* (?:src|srcset)="([^"]+)"', text):
        assert (page.parent / link).exists(), link


def test_the_reference_lists_the_commands_that_exist(capsys) -> None:
    assert cli.main([]) == 0
    commands = set(re.findall(r"^    (\w+)\s", capsys.readouterr().out, re.M))
    assert set(re.findall(r"^\| `foldax (\w+)", (ROOT / "docs/reference/commands.md").read_text(), re.M)) == commands


def test_the_site_lists_every_page() -> None:
    nav = json.dumps(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    assert set(re.findall(r'"([^"]+\.md)"', nav)) == {page_name(page) for page in PAGES}


def test_one_line_names_the_address_of_the_repository() -> None:
    texts = [*PAGES, *ROOT.glob("*.toml"), *ROOT.glob("experiments/*.ipynb"), *ROOT.glob("lib/foldax/**/*.py")]
    named = [page_name(path) for path in texts for _ in re.findall(r"github\.com/\w+/foldax\b", path.read_text())]
    assert named == ["docs/how-to/install.md"]


def test_the_reference_lists_every_experiment() -> None:
    page = (ROOT / "docs/reference/experiments.md").read_text()
    for path in (ROOT / "experiments").rglob("*.py"):
        assert f"{path.relative_to(ROOT)})" in page, path.name


def test_rows_name_the_extra_that_an_experiment_needs() -> None:
    rows = [
        row for page in ("README.md", "docs/reference/experiments.md") for row in (ROOT / page).read_text().splitlines()
    ]
    for name, (_, extra) in EXTRAS.items():
        named = [f"extra `{extra}`" in row for row in rows if row.startswith(f"| [{name}]")]
        assert named, name
        assert all(named), name


def load_small(load: Callable, name: str, **options: Any) -> data.Dataset:
    """Digits in the size of Fashion-MNIST's images, which not every machine has; else what `data.load` loads."""
    if name != "fashion_mnist":
        return load(name, **options)
    digits = load_digits()
    images = np.pad(np.kron(digits.images, np.full((3, 3), 15)), ((0, 0), (2, 2), (2, 2)))[..., None]
    return data.from_arrays({"inputs": images.astype(np.uint8), "targets": digits.target}, **options)


@pytest.mark.parametrize("page", PROGRAMS, ids=page_name)
def test_python_of_a_page_runs(page: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", functools.partial(load_small, data.load))
    source = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
    exec(compile(source, page.name, "exec"), {"__name__": "page"})  # the blocks of a page build on one another
