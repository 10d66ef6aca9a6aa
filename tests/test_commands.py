"""Every command that pages, docstrings and messages show has options that exist; those of pages are executed, too.

Commands of pages are executed with few steps. Of the others, which name an experiment or a study, the options are
parsed and the configs made: `tests/experiments` trains every experiment file, and `tests/research` runs the studies.
"""

import argparse
import ast
import functools
import importlib.util
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sklearn.decomposition import PCA

import foldax
from foldax import cli, laws
from foldax.experiment import load_experiment
from foldax.options import format_options, parse_options
from foldax.sweeps import space as spaces
from tests.conftest import ROOT, shrunk

PAGES = [page for page in sorted(ROOT.glob("*.md")) if page.name != "CHANGELOG.md"]  # it names commands of old versions
PAGES += [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "research").rglob("*.md"))]
SOURCES = [*PAGES, ROOT / "Makefile", *sorted((ROOT / "experiments").rglob("*.ipynb"))]
SOURCES += [path for folder in ("lib", "experiments", "research") for path in sorted((ROOT / folder).rglob("*.py"))]

COMMAND = r"((?:[A-Z_]+=\S+ )*(?:foldax [a-z]+|make [a-z]+|python \S+\.py)\b"
DIGITS = ROOT / "experiments/supervised/digits.py"
STUDIES = [path.parent.name for path in sorted((ROOT / "research").glob("*/study.py"))]
POSITIONALS = {"list": [], "new": ["NAME"], "run": ["FILE"], "check": ["FILE"], "sweep": ["FILE"], "plan": ["FILE"]}
POSITIONALS |= {
    "completion": ["bash"],
    "predict": ["RUN", "INPUT"],
    "runs": [],
    "compare": ["A", "B"],
}  # of other commands: RUN
# Files that only a reader has.
USER_FILES = {"FILE", "FILE.py", "my_idea.py", "first.py", "second.py", "first_year.py", "second_year.py"}
VALUES = {"K": "0", "INPUT": "test", "NAME": "my_idea"}

# Words of commands that are only parsed here, and why.
NOT_EXECUTED = {
    "ray": "needs the Ray cluster of its address",
    "slurm": "needs Slurm",
    "wandb": "needs the package; tests/runs/test_trackers.py sends a run to it",
    "check": "tests/test_cli.py runs it, on a smaller experiment: the laws compile for ten seconds",
    "plan": "needs the compilers of plan-tpu and plan-gpu; tests/engine/test_plan.py runs it where they are",
    "--checkpoints": "needs a bucket; tests/runs/test_checkpoint_places.py writes to a local one",
    "completion": "needs the package shtab; tests/test_cli.py runs it",
    "rm": "tests/runs/test_removal.py removes a run that no other test needs",
    "--against": "asks for input, in a game; tests/inference/test_play_game.py plays",
    "--prompt": "tests/inference/test_sample.py calls its function, on a smaller model",
}


def find_commands(source: Path) -> list[list[str]]:
    """The commands that a file shows, as words: in its text, or in the docstrings and messages of a program."""
    text = source.read_text()
    if source.suffix == ".py":
        text = "\n\n".join(strings(ast.parse(text)))
    elif source.suffix == ".ipynb":
        text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    elif source.name == "Makefile":
        text = text.replace("\t$(BIN)/", "$ ")
    text = re.sub(r"\\\n\s*", " ", text)
    shown = re.findall(rf"^(?:\$ | {{4,}}){COMMAND}.*)$", text, re.M) + re.findall(rf"`{COMMAND}[^`]*)`", text)
    return [words for line in shown for words in spelled_out(line)]


def strings(tree: ast.AST) -> Iterator[str]:
    """All texts of a program; a value in an f-string is taken to be a run folder."""
    parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "RUN" for part in node.values)


def spelled_out(line: str) -> Iterator[list[str]]:
    """The commands that a line abbreviates: with all optional parts, with each alternative, for each study."""
    line = re.sub(r"\[--field[^\]]*\]", "", line)
    line = re.sub(r"\[(.*?)\]", r"\1", line)
    for study in STUDIES if "<study>" in line else [""]:
        words = shlex.split(line.replace("<study>", study), comments=True)
        words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
        yield from map(list, itertools.product(*(word.split("|") for word in words)))


def with_positionals(words: list[str]) -> list[str]:
    """The words after `foldax`, with the positional arguments that the text leaves out."""
    name, *rest = words
    positionals = POSITIONALS.get(name, ["RUN"])
    given = len(list(itertools.takewhile(lambda word: not word.startswith("-"), rest)))
    rest = [*rest[:given], *positionals[given:], *rest[given:]]
    return [name, *(VALUES.get(word, word) for word in rest)]


class Parsed(Exception):
    """A program would begin its work now."""


@pytest.fixture
def without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands parse all their options, make their configs, and do nothing."""

    def sweep(experiment, space, seeds, config, samples=None, **options) -> None:
        members = spaces.member_configs(config, spaces.enumerate_overrides(space, samples, config.seed), seeds)
        assert len(members) >= seeds

    monkeypatch.setattr("foldax.runs.train.train", lambda experiment, config, **options: config)
    monkeypatch.setattr("foldax.sweeps.command.sweep", sweep)
    monkeypatch.setattr(laws, "make_subject", lambda experiment, config: None)
    monkeypatch.setattr(laws, "LAWS", {})
    monkeypatch.setattr(laws, "faster_dispatch", lambda subject: None)


@pytest.mark.parametrize("source", [s for s in SOURCES if find_commands(s)], ids=lambda s: str(s.relative_to(ROOT)))
def test_commands_of_a_file_exist(source: Path, without_work: None, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    for program, *words in find_commands(source):
        if program == "make":
            check_make(words)
        elif program == "foldax":
            check_options(source, with_positionals(words))
        elif words[0].startswith("experiments") or words[0] in USER_FILES:
            check_options(source, ["run", *words])
        elif program == "python":
            check_program(ROOT / words[0], words[1:], monkeypatch)


def check_make(words: list[str]) -> None:
    make = shutil.which("make")
    assert make is None or subprocess.run([make, "-n", *words], cwd=ROOT, capture_output=True).returncode == 0, words


def check_options(source: Path, words: list[str]) -> None:
    name, *rest = words
    if name not in ("run", "check", "sweep"):
        parsed, unknown = cli._parser().parse_known_args(words)
        assert parsed.name == name
        if parsed.takes_options:
            file = Path(rest[0]) if Path(rest[0]).is_file() else DIGITS
            unknown = [] if parse_options(load_experiment(file).config, unknown) else unknown
        assert not unknown, words
        return
    if rest[0] in USER_FILES | {"RUN"}:
        rest[0] = str(source if "templates" in source.parts else DIGITS)
    try:
        assert cli.main([name, *rest]) == 0, words
    except SystemExit as end:  # of --help
        assert end.code == 0, words


def check_program(path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a program of a study parse its command line; sections, which it has names for, must be among them."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_end(parser, arguments=None, namespace=None) -> None:
        options = parse_args(parser, arguments, namespace)
        sections = re.search(r"some of ([^;]*);", " ".join(parser.format_help().split()))
        unknown = set(getattr(options, "sections", [])) - set(sections[1].split(", ") if sections else [])
        raise Parsed if not unknown else AssertionError(f"{path.name} has no {unknown}")

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
        numbers = [re.sub("^N$", "1", word) for word in words]
        patch.setattr(sys, "argv", [str(path), *numbers])
        patch.syspath_prepend(path.parent)  # as Python does; its programs import one another
        with pytest.raises(Parsed):
            load_program(path).main()


@functools.cache
def load_program(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Runs of other kinds that commands are shown for: folder, experiment and options.
OTHER_RUNS = [
    ("images", "generative/vae_digits.py", "--conditional --steps 2 --importance-samples 0 --context-radius 0"),
    ("agent", "rl/ppo_cartpole.py", "--environment-steps 32"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tutorial's experiment, and with a short run of each kind and a sweep."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["new", "my_idea"]) == 0
        for name in ("first.py", "second.py"):
            shutil.copy("my_idea.py", name)
        patch.setattr(cli, "load_experiment", without_figures)
        assert cli.main(["run", "first.py", "--steps", "2", "--run-dir", "runs/first"]) == 0
        assert cli.main(["sweep", "my_idea.py", "--steps", "2", "--seeds", "1", "--sweep-dir", "sweep"]) == 0
        for kind, file, options in OTHER_RUNS:
            _, config = shrunk(ROOT / "experiments" / file)
            words = [*format_options(config), *options.split(), "--run-dir", kind]
            assert cli.main(["run", str(ROOT / "experiments" / file), *words]) == 0
    return folder


def without_figures(file: Path) -> foldax.Experiment:
    """The experiment of a file without its figures, which take seconds; `tests/experiments` draws them."""
    return load_experiment(file)._replace(figures=None)


def executed_commands() -> list[list[str]]:
    """The distinct commands of all pages, shrunk, but those of `NOT_EXECUTED` and those that name an experiment."""
    found = {
        tuple(shrink(with_positionals(words)))
        for page in PAGES
        for program, *words in find_commands(page)
        if program == "foldax" and not NOT_EXECUTED.keys() & set(words) and "experiments/" not in "".join(words)
    }
    # What only begins another command is executed with it.
    return [list(words) for words in sorted(found) if not any(set(words) < set(longer) for longer in found)]


def shrink(words: list[str]) -> list[str]:
    """A command with few steps, of files and runs of the fixture `project`."""
    name = words[0]
    kind = {"play": "agent", "sample": "images", "cluster": "images", "report": "sweep"}.get(name, "runs/first")
    values = {"RUN": kind, "SWEEP": "sweep", "FOLDER": "sweep", "FILE": "my_idea.py", "A": "sweep", "B": "images"}
    words = [name, *(values.get(word, word) for word in words[1:])]
    if "--run-dir" in words:
        words[words.index("--run-dir") + 1] = f"runs/again/{Path(words[1]).stem}"
    # Of several equal options the last counts.
    small = {
        "run": ["--steps", "2"],
        "resume": ["--steps", "2"] if "--steps" in words else [],
        "sweep": ["--steps", "2", "--seeds", "1"],
        "play": ["--episodes", "1", "--steps", "9"],
    }
    words += small.get(name, [])
    for option, value in {"--samples": "2", "--count": "2", "--mesh": "data=2"}.items():
        words += [option, value] if option in words else []
    return words


@pytest.mark.parametrize("words", executed_commands(), ids=" ".join)
def test_command_of_a_page_runs(
    words: list[str], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path if words[0] == "new" else project)
    monkeypatch.setattr(cli, "load_experiment", without_figures)
    monkeypatch.setattr("sklearn.manifold.TSNE", lambda *_, **__: PCA(2))  # seconds faster
    try:
        assert cli.main(words) == 0
    except SystemExit as end:  # of --help
        assert end.code == 0
    assert capsys.readouterr().out
