"""`foldax sweep` and the other commands on sweeps: exit codes and output."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas
import pytest
from pandas.testing import assert_frame_equal

from foldax import cli

FILE = '''"""A line through the origin."""
import jax
import jax.numpy as jnp
import numpy as np

import foldax
from foldax import data


@foldax.config
class Optimizer:
    learning_rate: float = 0.1
    name: str = "sgd"


@foldax.config
class Config(foldax.Training):
    steps: int = 6
    log_every: int = foldax.driver(3)
    optimizer: Optimizer = Optimizer()
    hidden: tuple[int, ...] = (8,)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    bias: bool = True
    label: str = "a"
FIELDS

def dataset(config):
    inputs = np.linspace(-1, 1, 100, dtype=np.float32)[:, None]
    return data.from_arrays({"inputs": inputs, "targets": inputs[:, 0] * 2}, batch_size=10)


def learner(config, info):
    def errors(w, batch):
        return (batch["inputs"][:, 0] * w - batch["targets"]) ** 2

    def update(w, batch, key):
        loss, gradient = jax.value_and_grad(lambda w: errors(w, batch).mean())(w)
        return w - config.optimizer.learning_rate * gradient, {"loss": loss}

    def evaluate(w, batch, key):
        return {"loss": errors(w, batch)}

    return foldax.Learner(lambda key, examples: jax.random.normal(key), update, evaluate)


experiment = foldax.Experiment(Config, learner, dataset)
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the experiment `line.py`."""
    path = tmp_path_factory.mktemp("home")
    (path / "line.py").write_text(FILE.replace("FIELDS", ""))
    return path


@pytest.fixture
def foldax(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command in `home`; returns its exit code, stdout, and stderr without progress."""
    monkeypatch.chdir(home)
    monkeypatch.delenv("FOLDAX_TRACEBACK", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        lines = [text for text in err.splitlines(keepends=True) if not re.match(r".*: [\d,]+/[\d,]+ ", text)]
        assert "Traceback" not in out + err
        return code, out, "".join(lines)

    return run


def test_quiet_prints_the_folder_only(foldax) -> None:
    assert foldax("sweep", "line.py", "--seeds", 2, "--quiet", "--sweep-dir", "quiet") == (0, "quiet\n", "")
    assert foldax("resume", "quiet", "--quiet") == (0, "quiet\n", "")
    again = ("sweep", "line.py", "--seeds", 2, "--quiet", "--sweep-dir", "quiet", "--or-resume")
    assert foldax(*again) == (0, "quiet\n", "")


def test_an_unknown_tracker_of_a_sweep_is_a_usage_error(foldax) -> None:
    code, _, err = foldax("sweep", "line.py", "--tracker", "wandbb", "--sweep-dir", "untracked")
    assert (code, err.startswith("foldax: tracker: there is no 'wandbb'; did you mean 'wandb'?")) == (2, True)
    assert not Path("untracked").exists()


def plan_output(foldax: Any, *arguments: object) -> str:
    """Output of `--plan`, on one line."""
    code, out, err = foldax("sweep", "line.py", *arguments, "--plan")
    assert (code, err) == (0, "")
    return " ".join(out.split())


def results(path: Path) -> Any:
    return pandas.read_parquet(path / "results.parquet")


# Plans


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["1 members, 1 programs", "swept: the seed alone"]),
        (["--seeds", 3], ["3 members, 1 programs", "18 member-steps", "swept: the seed alone"]),
        (["--optimizer.learning-rate", "0.1", "0.2", "--seeds=4"], ["8 members", "learning_rate (2 values)"]),
        (["--optimizer.learning_rate=0.1", "0.2"], ["2 members", "optimizer.learning_rate (2 values)"]),
        (["--optimizer.learning-rate", "-1e-3", "-2", "-.5"], ["3 members", "optimizer.learning_rate (3 values)"]),
        (["--hidden", "(8,)", "(4, 4)", "()", "--bias", "True", "false"], ["6 members, 6 programs", "hidden, bias"]),
        (["--hidden", "8,", "8,8"], ["2 members, 2 programs", "hidden (2 values)"]),
        (["--clip", "None", "1", "2"], ["3 members, 2 programs", "clip (3 values)"]),
        (["--betas", "0.5", "0.9", "--no-bias"], ["1 members", "swept: the seed alone"]),
        (["--label", "a", "b", "c d"], ["3 members, 3 programs", "label (3 values)"]),
        (["--log-every", "1", "2", "--steps", "4"], ["1 programs", "8 member-steps", "log_every (2 values)"]),
        (["--steps", "4", "5", "--patience", "None", "2"], ["4 members, 2 programs", "18 member-steps"]),
        (["--betas", "(0.9, 0.99)", "(0.5, 0.9)"], ["2 members, 1 programs", "betas (2 values)"]),
        (["--samples", 5, "--optimizer.learning-rate", "log:1e-5:1"], ["5 members, 1 programs", "(5 values)"]),
        (["--samples", 2, "--seeds", 3, "--clip", "uniform:0:1"], ["6 members, 1 programs", "clip (2 values)"]),
        (["--fast", "--max-concurrent", 3, "--seeds", 4], ["4 members", "fast", " 3 "]),
        (["--mesh", "data=2", "--seeds", 3], ["3 members", "exact", "devices per member"]),
        (["--optimizer.learning-rate", "0.1", "0.1"], ["1 members", "swept: the seed alone"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if value and not isinstance(value[0], list) else "",
)  # fmt: skip
def test_plan_prints_members_and_programs_and_writes_nothing(foldax, home, arguments, parts) -> None:
    before = sorted(home.rglob("*.*"))
    out = plan_output(foldax, *arguments)
    for part in parts:
        assert part in out
    assert [path for path in sorted(home.rglob("*.*")) if path.suffix != ".pyc"] == [
        path for path in before if path.suffix != ".pyc"
    ]
    assert not (home / "runs").exists()


def test_plan_does_not_create_the_sweep_folder(foldax, home) -> None:
    plan_output(foldax, "--sweep-dir", "planned", "--seeds", 2)
    assert not (home / "planned").exists()


def test_help_lists_options_and_fields(foldax) -> None:
    for arguments in (["--help"], ["--seeds", 3, "-h"]):
        code, out, err = foldax("sweep", "line.py", *arguments)
        assert (code, err) == (0, "")
        printed = " ".join(out.split())
        for words in (
            "usage: foldax sweep line.py",
            "--seeds",
            "--samples",
            "--plan",
            "--exact",
            "--fast",
            "--max-concurrent",
            "--sweep-dir",
            "--space",
            "log:1e-5:1e-1",
            "--optimizer.learning-rate float (traced; default: 0.1)",
            "--hidden tuple[int, ...] (structural; default: (8,))",
            "--patience int | None Stop early",
        ):
            assert words in printed, words
    assert foldax("sweep", "--help")[0] == 0


# Space files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("space.json", '{"optimizer.learning_rate": [0.1, 0.2], "hidden": [[8], [4, 4]], "steps": 3}'),
        (
            "space.py",
            "import numpy as np\n"
            "space = {'optimizer.learning_rate': np.array([0.1, 0.2]), 'hidden': [(8,), (4, 4)], 'steps': [3]}\n",
        ),
    ],
)
def test_space_file_in_json_or_python(foldax, home, name, text) -> None:
    (home / name).write_text(text)
    printed = plan_output(foldax, "--space", name)
    assert "4 members, 2 programs" in printed
    assert "12 member-steps" in printed
    printed = plan_output(foldax, "--space", name, "--steps", 2, "--hidden", "()", "--clip", 1, 2)
    assert "4 members, 1 programs" in printed
    assert "8 member-steps" in printed
    code, _out, _ = foldax("sweep", "line.py", "--space", name, "--hidden", "(8,)", "--sweep-dir", f"from-{name}")
    assert code == 0
    assert list(results(home / f"from-{name}")["optimizer.learning_rate"]) == [0.1, 0.2]


def test_space_file_with_ranges_and_a_first_seed(foldax, home) -> None:
    (home / "ranges.json").write_text('{"optimizer.learning_rate": "log:1e-3:1e-1", "clip": ["uniform:0:1"]}')
    assert "3 members, 1 programs" in plan_output(foldax, "--space", "ranges.json", "--samples", 3)
    for seed in ("3", "[3]"):
        (home / "seed.json").write_text(f'{{"seed": {seed}, "steps": [2, 3]}}')
        assert "4 members, 2 programs" in plan_output(foldax, "--space", "seed.json", "--seeds", 2)


# Errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lerning-rate", "1"], ["no option --lerning-rate", "(all: --help)"]),
        (["--optimizer.lerning-rate", "1", "2"], ["lerning-rate", "did you mean '--optimizer.learning-rate'?"]),
        (["--hiden", "(8,)"], ["--hiden", "did you mean '--hidden'?"]),
        (["--optimizer."], ["optimizer."]),
        (["--optimizer.", "1"], ["optimizer."]),
        (["--steps.", "5"], ["steps."]),
        (["--", "5"], ["option --"]),
        (["5"], ["'5' belongs to no option: write --field before its values"]),
        (["-x", "5"], ["'-x'"]),
        (["--steps"], ["--steps: no value is given"]),
        (["--optimizer.learning-rate", "--seeds", "2"], ["--optimizer.learning-rate: no value is given"]),
        (["--optimizer.learning-rate", "fast"], ["learning-rate", "expected float", "'fast'"]),
        (["--optimizer.learning-rate", "0.1", "fast"], ["learning-rate", "expected float", "'fast'"]),
        (["--steps", "1.5"], ["steps", "expected int", "1.5"]),
        (["--steps", "0", "1"], ["Config.steps: 0 is too small"]),
        (["--steps", "0"], ["Config.steps: 0 is too small"]),
        (["--hidden", "8", "8"], ['--hidden: write one tuple as "(8, 8)", several as']),
        (["--hidden", "(8"], ["hidden", "'(8'"]),
        (["--hidden", "(8.5,)"], ["hidden[0]", "8.5"]),
        (["--mode", "maximum", "max"], ["mode", "'min' or 'max'", "'maximum'"]),
        (["--bias", "maybe"], ["bias", "expected bool", "'maybe'"]),
        (["--seed", "1", "2"], ["--seed: give one, the first; --seeds 2"]),
        (["--seed", "one"], ["seed", "expected int", "'one'"]),
        (["--seed", "-1"], ["seed", "-1", "at least 0"]),
        (["--seed"], ["--seed"]),
        (["--seeds", "0"], ["seeds: 0 is too small; it must be at least 1"]),
        (["--seeds", "-2"], ["seeds", "-2"]),
        (["--seeds", "two"], ["--seeds", "'two'"]),
        (["--seeds"], ["--seeds"]),
        (["--seeds", "1", "2"], ["'2'"]),
        (["--samples", "0"], ["samples: 0 is too small"]),
        (["--samples", "few"], ["--samples", "'few'"]),
        (["--plan=3"], ["--plan"]),
        (["--clip", "log:1e-3:1"], ["clip: a range needs the number of samples", "--samples 20"]),
        (["--clip", "log:1e-3:1", "uniform:0:1", "--samples", "3"], ["clip", "expected float"]),
        (["--clip", "log:0:1", "--samples", "3"], ["clip", "log:0", "is no range", "above 0"]),
        (["--clip", "log:1e-3", "--samples", "3"], ["clip", "log:1e-3", "is no range"]),
        (["--steps", "uniform:1:9", "--samples", "3"], ["steps: a range needs a traced float", "structural"]),
        (["--exact", "--fast"], ["--exact", "--fast"]),
        (["--max-concurrent", "0"], ["max_concurrent: 0 is too small"]),
        (["--max-concurrent", "all"], ["--max-concurrent", "'all'"]),
        (["--mesh", "data=2", "--fast"], ["mesh: 'data=2' divides each member", "--exact trains members"]),
        (["--search", "halvin"], ["--search", "halvin"]),
        (["--workers", "2"], ["--workers goes with --launcher ray or --launcher slurm"]),
        (["--search", "pbt", "--halving-reduction-factor", "2"], ["--halving-reduction-factor goes with --search halving"]),
        (["--launcher", "slurm", "--ray-address", "a:1"], ["--ray-address goes with --launcher ray"]),
        (["--space", "gone.json"], ["--space: there is no file 'gone.json'"]),
        (["--space", "."], ["--space: there is no file '.'"]),
        (["--space"], ["--space"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
@pytest.mark.parametrize("plan", [["--plan"], []], ids=["plan", "run"])
def test_wrong_arguments_exit_with_2_and_a_one_line_message(foldax, home, arguments, words, plan) -> None:
    code, out, err = foldax("sweep", "line.py", *plan, *arguments)
    assert (code, out) == (2, ""), err
    assert err.startswith("foldax: ")
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("bad.json", "{", ["--space", "bad.json", "cannot be read"]),
        ("bad.json", "[1, 2]", ["--space: bad.json must hold an object of values by field"]),
        ("bad.json", "\x00\xff", ["--space", "bad.json"]),
        ("bad.json", '{"steps": []}', ["steps: the list of values is empty"]),
        ("bad.json", '{"hiden": [[8]]}', ["'hiden'", "did you mean 'hidden'?"]),
        ("bad.json", '{"hidden": [8, 8]}', ["hidden", "expected tuple", "8"]),
        ("bad.json", '{"optimizer": {"learning_rate": [0.1, 0.2]}}', ["learning_rate", "expected float"]),
        ("bad.json", '{"seed": [1, 2]}', ["seed: give one", "--seeds 2"]),
        ("bad.json", '{"seed": "one"}', ["seed", "expected int", "'one'"]),
        ("bad.json", '{"seed": []}', ["seed"]),
        ("bad.json", '{"seed": {"a": 1}}', ["seed"]),
        ("bad.json", '{"": [1]}', ["no field ''"]),
        ("bad.py", "spaces = {}", ["--space: bad.py must hold"]),
        ("bad.py", "space = [", ["--space: bad.py failed: SyntaxError"]),
        ("bad.py", "space = {'steps': 1 / 0}", ["--space: bad.py failed: ZeroDivisionError: division by zero"]),
        ("bad.py", "space = {1: [2]}", ["1"]),
        ("bad.py", "space = {'steps': range(0)}", ["steps"]),
        ("bad.py", "space = {'steps': {1, 2}}", ["steps"]),
        ("bad.py", "space = {'steps': (n for n in [])}", ["steps"]),
        ("bad.py", "space = {'label': [['a']]}", ["label", "expected str"]),
    ],
)
def test_wrong_space_files_exit_with_2_and_a_one_line_message(foldax, home, name, text, words) -> None:
    (home / name).write_bytes(text.encode("latin-1"))
    for plan in (["--plan"], []):
        code, out, err = foldax("sweep", "line.py", "--space", name, *plan)
        assert (code, out) == (2, ""), err
        assert err.startswith("foldax: ")
        assert len(err.splitlines()) == 1
        for word in words:
            assert word in err


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["sweep"], 2, ["FILE"]),
        (["sweep", "gone.py"], 1, ["no experiment file", "gone.py"]),
        (["resume", "gone"], 1, ["gone"]),
        (["show", "gone"], 1, ["gone"]),
        (["reproduce", "gone", "--member", "0"], 1, ["gone"]),
        (["reproduce", ".", "--member", "0"], 1, ["sweep.json"]),
        (["sweep", "line.py", "--sweep-dir", "line.py"], 1, ["cannot write to line.py"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_missing_files_and_folders_are_named(foldax, command, code, words) -> None:
    exit_code, _, err = foldax(*command)
    assert exit_code == code
    assert len(err.splitlines()) <= 3
    for word in words:
        assert word in err


def test_field_with_the_name_of_an_option_is_swept_or_explained(foldax, home) -> None:
    fields = {"cpus": "float = 0.5", "workers": "int = 3", "search": "int = 2", "samples": "int = 4"}
    fields |= {"execution": "str = 'a'"}
    lines = "".join(f"    {name}: {rest}\n" for name, rest in fields.items())
    (home / "named.py").write_text(FILE.replace("FIELDS", lines))
    values_by_field = {"cpus": "0.1 0.2", "workers": "1 2", "search": "1 2", "samples": "1 2", "execution": "b c"}
    for name, values in values_by_field.items():
        code, out, err = foldax("sweep", "named.py", f"--{name}", *values.split(), "--plan")
        if code == 0:
            assert f"swept: {name} (2 values)" in out
        else:
            assert code == 2
            assert f"'{name}'" in err
            assert "--space" in err


# Sweeps that run


def test_fields_of_every_type_are_swept_shown_and_restored(foldax, home) -> None:
    fields = """
    rule: Rule = Rule.SGD
    weights: pathlib.Path = pathlib.Path("a.npz")
    dtype: np.dtype | None = None
    frozen: bool = False
"""
    source = FILE.replace("FIELDS", fields).replace("import jax\n", "import enum\nimport pathlib\n\nimport jax\n", 1)
    source = source.replace(
        "@foldax.config", "class Rule(enum.Enum):\n    SGD = 1\n    ADAM = 2\n\n\n@foldax.config", 1
    )
    (home / "typed.py").write_text(source)
    (home / "typed.json").write_text('{"dtype": [null, "float32"], "weights": ["a.npz", "b c.npz"]}')
    arguments = ("--rule", "ADAM", "SGD", "--space", "typed.json", "--dtype", "int8", "--frozen", "--no-bias")
    code, out, err = foldax("sweep", "typed.py", *arguments, "--steps", 2, "--sweep-dir", "typed")
    assert (code, err) == (0, "")
    table = results(home / "typed")
    assert list(table["rule"]) == ["ADAM", "SGD"] * 2
    assert list(table["weights"]) == ["a.npz"] * 2 + ["b c.npz"] * 2
    assert set(table["dtype"]) == {"int8"}
    assert "ADAM" in out
    assert "b c.npz" in out
    metadata = json.loads((home / "typed" / "sweep.json").read_text())
    assert metadata["space"] == {"weights": ["a.npz", "b c.npz"], "rule": ["ADAM", "SGD"]}
    assert (metadata["config"]["dtype"], metadata["config"]["frozen"], metadata["config"]["bias"]) == (
        "int8",
        True,
        False,
    )
    code, out, err = foldax("reproduce", "typed", "--member", 3)
    assert (code, err) == (0, "")
    assert out.endswith("reproduced: all bits are the same\n")
    # The hint for the best member is a command that trains it.
    options = shlex.split(metadata["best_member"]["options"])
    assert {"--frozen", "--no-bias", "--dtype"} < set(options)
    code, out, err = foldax("run", "typed.py", *options, "--run-dir", "best")
    assert code == 0
    assert json.loads((home / "best" / "config.json").read_text())["dtype"] == "int8"
    assert "dtype=int8" in foldax("show", "best")[1]


@pytest.fixture(scope="module")
def sweep_folder(home: Path) -> Path:
    """A finished sweep, run by a separate process."""
    running = process(home, "--optimizer.learning-rate", "0.1", "0.3", "1e30", "--seed", "5", "--seeds", "2")
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert "Traceback" not in err
    for words in ("line", "members: 6", "validation", "learning", "0.3"):
        assert words in out + err, words
    return home / "swept"


def process(home: Path, *arguments: str, path: str = "swept", command: str = "sweep") -> subprocess.Popen:
    command_line = ["sweep", "line.py", *arguments, "--sweep-dir", path] if command == "sweep" else [command, path]
    line = [sys.executable, "-W", "error", "-m", "foldax.cli", *command_line]
    return subprocess.Popen(line, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_sweep_writes_metadata_and_results(sweep_folder) -> None:
    table = results(sweep_folder)
    assert list(table["optimizer.learning_rate"]) == [0.1, 0.1, 0.3, 0.3, 1e30, 1e30]
    assert list(table["seed"]) == [5, 6] * 3
    assert list(table["status"]) == ["finished"] * 4 + ["not finite"] * 2
    metadata = json.loads((sweep_folder / "sweep.json").read_text())
    assert (metadata["experiment"], metadata["status"], metadata["seeds"], metadata["search"]) == (
        "line",
        "finished",
        2,
        "grid",
    )
    assert metadata["file"] == str(sweep_folder.parent / "line.py")
    assert metadata["space"] == {"optimizer.learning_rate": [0.1, 0.3, 1e30]}
    assert metadata["config"]["seed"] == 5
    assert "--seeds 2" in metadata["command"]


def test_show_prints_a_sweep(foldax, sweep_folder) -> None:
    code, out, err = foldax("show", sweep_folder)
    assert (code, err) == (0, "")
    for words in ("line", "finished", "learning", "validation", "0.3", "not finite", "results.parquet"):
        assert words in out, words
    assert foldax("show", sweep_folder, "--steps", "3")[0] == 2


def test_resuming_a_finished_sweep_changes_nothing(foldax, sweep_folder) -> None:
    before = (sweep_folder / "sweep.json").read_bytes()
    code, out, err = foldax("resume", "swept")
    assert (code, out, err) == (0, "swept is finished; `foldax show swept` shows it\n", "")
    code, _, err = foldax("resume", "swept", "--seeds", "3")
    problem = "--seeds: swept is a sweep, whose members keep the fields that they have"
    assert (code, err) == (2, f"foldax: {problem}; start another sweep with --seeds 3, or leave them out\n")
    assert (sweep_folder / "sweep.json").read_bytes() == before


def test_folder_of_another_sweep_is_refused(foldax, sweep_folder) -> None:
    before = (sweep_folder / "sweep.json").read_bytes()
    code, out, err = foldax("sweep", "line.py", "--seeds", 2, "--sweep-dir", "swept")
    assert (code, out) == (1, "")
    remedy = 'choose another --sweep-dir, or `foldax resume swept`, or --or-resume (resume="auto")'
    assert err == f"foldax: swept holds a run already; {remedy}\n"
    assert (sweep_folder / "sweep.json").read_bytes() == before


def test_reproduce_finds_members_identical(foldax, sweep_folder) -> None:
    for number in (0, 3):
        code, out, err = foldax("reproduce", "swept", "--member", number)
        assert (code, err) == (0, "")
        assert out.endswith("reproduced: all bits are the same\n")
        assert "DIFFERS" not in out
    code, _, err = foldax("reproduce", "swept", "--member", 4)
    assert (code, err) == (1, "foldax: member 4 of swept became not finite at step 1: nothing to compare\n")
    for arguments in (["--member", 6], ["--member", -1], ["--member", "two"], ["--member"], []):
        code, out, err = foldax("reproduce", "swept", *arguments)
        assert (code, out) == (2, "")
        assert "--member" in err


def test_reproduce_reports_a_member_that_differs(foldax, home, sweep_folder) -> None:
    copy = home / "changed"
    copy.mkdir()
    (copy / "sweep.json").write_text((sweep_folder / "sweep.json").read_text())
    lines = [json.loads(text) for text in (sweep_folder / "members.jsonl").read_text().splitlines()]
    for one in lines:
        one["state_sha256"] = "0"
    (copy / "members.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    code, out, _ = foldax("reproduce", "changed", "--member", 1)
    assert code == 1
    assert "state_sha256                     DIFFERS: '0' then" in out
    assert out.endswith("NOT reproduced\n")


def test_reproduce_of_a_fast_sweep_warns_that_members_drift(foldax, home) -> None:
    code, _, err = foldax("sweep", "line.py", "--fast", "--optimizer.learning-rate", 0.1, 0.3, "--sweep-dir", "fast")
    assert (code, err) == (0, "")
    assert json.loads((home / "fast" / "sweep.json").read_text())["groups"][0]["execution"] == "fast"
    assert "drift" in foldax("reproduce", "fast", "--member", 1)[1]


def test_sweep_dir_defaults_to_a_new_folder_under_runs(foldax, home) -> None:
    try:
        code, out, _ = foldax("sweep", "line.py", "--seeds", 2, "--steps", 2)
        assert code == 0
        (path,) = (home / "runs" / "line").iterdir()
        assert str(path.relative_to(home)) in out
    finally:
        for path in sorted((home / "runs").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (home / "runs").rmdir()


@pytest.mark.parametrize("execution", ["--exact", "--fast"])
def test_sweep_stopped_by_sigterm_resumes_to_the_same_table(foldax, home, execution) -> None:
    arguments = (execution, "--optimizer.learning-rate", "1e-5", "2e-5", "--seeds", "2", "--steps", "400_000")
    arguments += ("--checkpoint-every", "50000", "--log-every", "5000", "--evaluate-every", "20000")
    path = home / f"stopped{execution}"
    running = process(home, *arguments, path=path.name)
    until = time.monotonic() + 240
    while running.poll() is None and time.monotonic() < until and not (path / "members").exists():
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=240)
    assert "Traceback" not in err
    assert running.returncode == 1, err
    last = err.splitlines()[-1]
    assert re.fullmatch(rf"foldax: stopped with [0-3] of 4 members done; go on with: foldax resume {path.name}", last)
    assert json.loads((path / "sweep.json").read_text())["status"] == "interrupted"
    for command in ("show", "resume"):
        code, _, err = foldax(command, path.name)
        assert (code, err) == (0, ""), command
    code, _, err = foldax("sweep", "line.py", *arguments, "--sweep-dir", f"whole{execution}")
    assert (code, err) == (0, "")
    tables = [results(folder).drop(columns="seconds") for folder in (home / f"whole{execution}", path)]
    assert_frame_equal(*tables, check_exact=True)
    curves = [pandas.read_parquet(folder / "curves.parquet") for folder in (home / f"whole{execution}", path)]
    assert_frame_equal(*curves, check_exact=True)
