"""Optional packages: a missing one is named with its extra, and no other error of an import is hidden."""

import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

from foldax import rl
from foldax.errors import ConfigError, FoldaxError
from foldax.extras import import_extra
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(FoldaxError, match=r"^nowhere is not installed: pip install 'foldax\[rl\]'$"):
        import_extra("nowhere.at_all", "rl")


@pytest.mark.parametrize("source", ["import missing_dependency", "from jax import no_such_name"])
def test_other_errors_of_an_import_are_not_hidden(source: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "broken_package.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"missing_dependency|no_such_name"):
        import_extra("broken_package", "rl")


@pytest.mark.parametrize(("version", "install"), [((0, 11, 2), "'$"), ((0, 12, 0), r"' 'jax<0\.12' \(gymnax 1\.0 ")])
def test_gymnax_needs_an_older_jax(version: tuple[int, ...], install: str, monkeypatch) -> None:
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ConfigError, match=r"^gymnax is not installed: pip install 'foldax\[rl\]" + install):
        rl.gymnax("CartPole-v1")


def test_each_extra_that_a_message_names_exists() -> None:
    sources = [path.read_text() for folder in ("lib", "experiments", "docs") for path in (ROOT / folder).rglob("*.*")
               if path.suffix in (".py", ".md")]  # fmt: skip
    named = {
        name
        for text in sources
        for names in re.findall(r"(?:foldax|\.)\[([a-z0-9,]+)\]", text)
        for name in names.split(",")
    }
    called = {name for text in sources for name in re.findall(r'import_extra\("[\w.]+", "(\w+)"', text)}
    assert named | called <= PROJECT["optional-dependencies"].keys()


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = [PROJECT["optional-dependencies"][name] for name in ("rl", "gymnasium", "equinox")]
    for requirement in [*PROJECT["dependencies"], *itertools.chain(*extras)]:
        name, bound = re.sub(r"\[.*\]", "", requirement).split(">=")
        assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", pins[name]), f"{name}: {pins[name]} is not {bound}"


WITHOUT_FCNTL = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None
from pathlib import Path
import foldax
from foldax import cli, data
from foldax.runs import folder
folder.lock(Path(sys.argv[1]) / "run").close()
print(data.disk_cached("one", lambda: 1))
"""


def test_foldax_works_where_files_cannot_be_locked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FOLDAX_CACHE", str(tmp_path / "cache"))
    done = subprocess.run([sys.executable, "-c", WITHOUT_FCNTL, tmp_path], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
    assert "run cannot be locked (this platform has no locks of files): let no other process write to it" in done.stderr
