"""The command line: every command, its exit code, and what it prints."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from foldax import cli
from foldax.runs import folder

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("list", "run", "resume", "reproduce", "show", "check", "new", "runs", "compare", "tag", "rm")

NESTED = '''"""A line with every kind of config field.

More about it.
"""
import jax
import jax.numpy as jnp
import numpy as np

import foldax
from foldax import data


@foldax.config
class Optimizer:
    learning_rate: float = 0.1
    """Step size."""
    momentum: float | None = None
    """Of heavy-ball momentum."""


@foldax.config
class Config(foldax.Training):
    steps: int = 6
    log_every: int = foldax.driver(3)
    optimizer: Optimizer = Optimizer()
    hidden: tuple[int, ...] = (8,)
    """Widths of the hidden layers."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    bias: bool = True


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

    return foldax.Learner(lambda key, examples: jnp.float32(0), update, evaluate)


experiment = foldax.Experiment(Config, learner, dataset)

if __name__ == "__main__":
    foldax.main(experiment)
'''


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    """A working directory with the experiment `line.py`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line.py").write_text(NESTED)
    return tmp_path


@pytest.fixture
def foldax(capsys):
    """Runs a command; returns its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


def parsed(workdir: Path, *arguments: str):
    experiment = cli.load_experiment(workdir / "line.py")
    return cli.parse_config(experiment, arguments), experiment.config


# Help


def test_without_a_command_all_commands_are_listed(foldax) -> None:
    code, out, _ = foldax()
    assert code == 0
    for command in COMMANDS:
        assert re.search(rf"^ +{command}( |$)", out, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(foldax, command) -> None:
    code, out, err = foldax(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: foldax {command}")


@pytest.mark.parametrize("command", ["run", "check", "plan", "sweep"])
def test_help_of_a_file_is_that_of_the_command(foldax, workdir, command) -> None:
    code, out, err = foldax(command, "line.py", "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: foldax {command} line.py")
    assert "Number of updates" in out
    assert ("--run-dir" in out) == (command == "run")


def test_help_of_a_file_lists_every_field_with_type_default_and_documentation(foldax, workdir) -> None:
    code, out, err = foldax("run", "line.py", "--help")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "A line with every kind" in text
    for part in (
        "--run-dir DIR",
        "--steps int Number of updates; each consumes one batch. (default: 6)",
        "--seed int Seed of all randomness",
        "--patience int | None",
        "--mode 'min' or 'max'",
        "--hidden tuple[int, ...] Widths of the hidden layers. (default: (8,))",
        "--betas tuple[float, float]",
        "--clip float | None",
        "--bias, --no-bias",
        "--optimizer.learning-rate float Step size. (default: 0.1)",
        "--optimizer.momentum float | None Of heavy-ball momentum.",
    ):
        assert part in text


# Fields


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--steps", "7"], "steps", 7),
        (["--log_every", "2"], "log_every", 2),
        (["--seed=5"], "seed", 5),
        (["--hidden", "64", "32"], "hidden", (64, 32)),
        (["--hidden", "(64, 32)"], "hidden", (64, 32)),
        (["--hidden", "(64,)"], "hidden", (64,)),
        (["--hidden", "()"], "hidden", ()),
        (["--hidden"], "hidden", ()),
        (["--betas", "0.5", "1"], "betas", (0.5, 1.0)),
        (["--betas", "(0.5, 0.25)"], "betas", (0.5, 0.25)),
        (["--clip", "1"], "clip", 1.0),
        (["--clip", "None"], "clip", None),
        (["--clip", "1e-3"], "clip", 1e-3),
        (["--no-bias"], "bias", False),
        (["--bias"], "bias", True),
        (["--mode", "max"], "mode", "max"),
        (["--checkpoint-every", "500"], "checkpoint_every", 500),
        (["--checkpoint-every", "5m"], "checkpoint_every", "5m"),
        (["--patience", "3"], "patience", 3),
        (["--profile"], "profile", True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_kind_of_field_has_an_option(workdir, arguments, field, value) -> None:
    config, cls = parsed(workdir, *arguments)
    assert getattr(config, field) == value
    assert type(getattr(config, field)) is type(value)
    assert {name: v for name, v in vars(config).items() if name != field} == {
        name: v for name, v in vars(cls()).items() if name != field
    }


def test_fields_of_nested_configs(workdir) -> None:
    config, _ = parsed(workdir, "--optimizer.learning-rate", "0.5", "--optimizer.momentum", "0.9")
    assert (config.optimizer.learning_rate, config.optimizer.momentum) == (0.5, 0.9)
    config, cls = parsed(workdir)
    assert config == cls()


def test_a_misspelt_field_of_a_nested_config(foldax, workdir) -> None:
    code, _, err = foldax("run", "line.py", "--optimizer.lerning-rate", "1")
    assert code == 2
    assert "--optimizer.lerning-rate" in err
    assert "did you mean '--optimizer.learning-rate'?" in err


# Commands


def test_list_looks_below_folders_of_any_name(foldax, workdir) -> None:
    folder = workdir / "lib" / ".hidden"
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text('"""Mine."""\nexperiment = 3\n')
    assert foldax("list", str(folder)) == (0, f"{folder}/mine.py  Mine.\n", "")


def test_list_names_each_experiment_with_its_first_line(foldax, workdir) -> None:
    (workdir / "sub").mkdir()
    (workdir / "sub" / "other.py").write_text('"""Another one."""\nexperiment = 3\n')
    (workdir / "sub" / "helper.py").write_text("x = 1\n")
    (workdir / "broken.py").write_text("def f(:\n")
    (workdir / ".hidden").mkdir()
    (workdir / ".hidden" / "old.py").write_text("experiment = 1\n")
    (workdir / "dangling.py").symlink_to("/nowhere/old.py")
    (workdir / "folder.py").mkdir()
    (workdir / "sub" / "bom.py").write_bytes(b'\xef\xbb\xbf"""With a mark."""\nexperiment = 3\n')
    code, out, err = foldax("list", "sub")
    assert (code, err) == (0, "")
    assert out.splitlines() == ["sub/bom.py  With a mark.", "sub/other.py  Another one."]
    (workdir / "sub" / "bom.py").unlink()
    code, out, err = foldax("list")
    assert code == 0
    assert err.splitlines() == [
        "foldax: broken.py cannot be read: invalid syntax (broken.py, line 1)",
        "foldax: dangling.py cannot be read: No such file or directory",
    ]
    assert out.splitlines() == ["line.py  A line with every kind of config field.", "sub/other.py  Another one."]
    assert foldax("list", "sub")[1] == "sub/other.py  Another one.\n"


def test_list_finds_annotated_experiments(foldax, workdir) -> None:
    (workdir / "typed.py").write_text('"""Typed."""\nexperiment: object = 3\n')
    assert "typed.py  Typed." in foldax("list")[1]


def test_list_of_a_folder_without_experiments_advises_foldax_new(foldax, tmp_path) -> None:
    code, out, err = foldax("list", tmp_path)
    assert (code, out) == (0, "")
    assert "foldax new NAME" in err


TINY = ("--batch-size", 16, "--log-every", 1)
FEW_STEPS = {
    "supervised": ("--steps", 3, "--hidden", 8, *TINY),
    "generative": ("--steps", 3, "--hidden", 8, "--latent-size", 2, *TINY),
    "rl": (
        "--environment-steps", 64, "--num-envs", 2, "--rollout-steps", 8, "--hidden", 8, "--ppo.evaluation-episodes", 2,
        "--ppo.evaluation-steps", 20,
    ),
    "custom": ("--steps", 3, *TINY),
}  # fmt: skip


@pytest.mark.parametrize("kind", cli.KINDS)
def test_every_template_runs_as_written(foldax, workdir, kind) -> None:
    assert foldax("new", "mine", "--kind", kind)[:2] == (0, "wrote mine.py; try: foldax run mine.py\n")
    text = Path("mine.py").read_text()
    assert text.startswith('"""mine: ')
    assert "FILE" not in text.split('"""')[1]
    assert "NAME" not in text
    code, out, err = foldax("run", "mine.py", *FEW_STEPS[kind], "--run-dir", "r")
    assert code == 0, err
    assert "mine: finished after" in out
    assert set(json.loads(Path("r/result.json").read_text())) >= {"train", "test"}


@pytest.mark.parametrize("kind", ["supervised", "custom"])
def test_templates_satisfy_the_laws(foldax, workdir, kind) -> None:
    assert foldax("new", "mine", "--kind", kind)[0] == 0
    code, out, err = foldax("check", "mine.py", *FEW_STEPS[kind])
    assert (code, err) == (0, ""), out
    assert "BROKEN" not in out


def test_an_unknown_kind_of_template_is_bad_usage(foldax, workdir) -> None:
    code, _, err = foldax("new", "mine", "--kind", "quantum")
    assert code == 2
    assert "quantum" in err
    assert all(kind in err for kind in cli.KINDS)
    assert not Path("mine.py").exists()


def test_new_writes_a_supervised_experiment_by_default(foldax, workdir) -> None:
    code, out, _ = foldax("new", "mine")
    assert code == 0
    assert out == "wrote mine.py; try: foldax run mine.py\n"
    text = Path("mine.py").read_text()
    assert text.startswith('"""mine: ')
    assert "FILE" not in text.split('"""')[1]
    assert "NAME" not in text
    code, out, err = foldax("run", "mine.py", "--steps", 3, "--hidden", 8, "--run-dir", "r")
    assert code == 0
    assert "accuracy" in out
    assert "mine.py  mine: " in foldax("list")[1]
    code, _, err = foldax("new", "mine")
    assert (code, err) == (1, "foldax: mine.py exists already; choose another name\n")


def test_new_takes_names_of_modules_that_hide_no_other(foldax, workdir) -> None:
    assert foldax("new", "PROFILE")[:2] == (0, "wrote PROFILE.py; try: foldax run PROFILE.py\n")
    assert Path("PROFILE.py").read_text().split("\n")[:3:2] == [
        '"""PROFILE: say here what is trained on what, and which score it reaches.', "foldax run PROFILE.py"
    ]  # fmt: skip
    for name, words in {
        "class": "no word of the language", "3d": "cannot be a Python module's name", "a-b": "letters, digits",
        "jax": "a module that the file would hide", "profile": "a module that the file would hide",
    }.items():  # fmt: skip
        code, _, err = foldax("new", name)
        assert code == 2
        assert repr(name) in err
        assert words in err
        assert not Path(f"{name}.py").exists()


def test_new_leaves_nothing_on_a_full_disk(foldax, workdir, monkeypatch) -> None:
    def full(self: Path, *arguments: object, **options: object) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert foldax("new", "mine") == (1, "", "foldax: cannot write to mine.py: No space left on device\n")
    assert not Path("mine.py").exists()


def test_run_show_resume_and_reproduce(foldax, workdir) -> None:
    code, out, err = foldax("run", "line.py", "--seed", 3, "--optimizer.learning-rate", 0.2, "--run-dir", "r")
    assert code == 0
    for part in ("Model", "parameters", "line: finished after 6 steps", "loss", "learning_curves: r/figures", "r\n"):
        assert part in out
    assert "line: 6/6" in err

    code, out, err = foldax("show", "r")
    assert (code, err) == (0, "")
    for part in ("line", "finished", "seed=3", "learning_rate", "validation", "test", "learning_curves.png"):
        assert part in out

    code, out, err = foldax("resume", "r")
    assert (code, out, err) == (0, "r is finished; `foldax show r` shows it\n", "")

    code, out, _ = foldax("reproduce", "r")
    assert code == 0
    assert "state_sha256" in out
    assert "train/loss" in out
    assert "DIFFERS" not in out
    assert out.endswith("reproduced: all bits are the same\n")

    code, out, _ = foldax("reproduce", "r", "--log-every", 2, "--checkpoint-every", 1)
    assert code == 0
    assert "train/loss" not in out
    assert out.endswith("reproduced: all bits are the same\n")

    result = json.loads(Path("r/result.json").read_text())
    result["test"]["loss"] *= 1 + 1e-15
    result["test"]["loss"] += 1e-17
    Path("r/result.json").write_text(json.dumps(result | {"state_sha256": "0"}))
    code, out, _ = foldax("reproduce", "r")
    assert code == 1
    assert "state_sha256                     DIFFERS: '0' then" in out
    assert "validation/loss                  identical" in out
    assert out.endswith("NOT reproduced\n")


def test_show_and_reproduce_of_an_unfinished_run(foldax, workdir) -> None:
    assert foldax("run", "line.py", "--run-dir", "r")[0] == 0
    Path("r/result.json").unlink()
    code, out, _ = foldax("show", "r")
    assert code == 0
    assert "newest metrics, step 6" in " ".join(out.split())
    assert "foldax resume" in " ".join(out.split())
    code, _, err = foldax("reproduce", "r")
    assert (code, err) == (1, "foldax: r is not finished; `foldax resume r` goes on with it\n")
    Path("r/metrics.jsonl").unlink()
    assert foldax("show", "r")[0] == 0


def test_reproduce_notes_changes_since_the_run(foldax, workdir) -> None:
    assert foldax("run", "line.py", "--run-dir", "r")[0] == 0
    Path("line.py").write_text(NESTED + "\n# changed\n")
    manifest = json.loads(Path("r/manifest.json").read_text())
    manifest["versions"]["numpy"] = "1.0"
    Path("r/manifest.json").write_text(json.dumps(manifest))
    code, out, _ = foldax("reproduce", "r")
    assert code == 0
    assert "note: numpy was 1.0, is " in out
    assert "note: line.py has changed since" in out


def test_quiet_prints_the_folder_only(foldax, workdir) -> None:
    assert foldax("run", "line.py", "--steps", 4, "--quiet", "--run-dir", "runs/a") == (0, "runs/a\n", "")
    assert foldax("run", "line.py", "--steps", 4, "--quiet", "--run-dir", "runs/a", "--or-resume") == (
        0,
        "runs/a\n",
        "",
    )
    assert foldax("resume", "runs/a", "--steps", 6, "--quiet") == (0, "runs/a\n", "")
    assert foldax("resume", "runs/a", "--quiet") == (0, "runs/a\n", "")


def test_overwrite_replaces_a_run_and_nothing_else(foldax, workdir) -> None:
    words = ("run", "line.py", "--steps", 4, "--quiet", "--run-dir", "runs/a", "--overwrite")
    for seed in (1, 2):  # the folder is new, then it holds a run
        assert foldax(*words, "--seed", seed)[:2] == (0, "runs/a\n")
    assert json.loads((workdir / "runs/a/config.json").read_text())["seed"] == 2
    with folder.lock(workdir / "runs/a"):
        code, _, err = foldax(*words)
        assert (code, "is in use by process" in err) == (1, True)
    # What could not begin does not cost the earlier run.
    for option in (("--tracker", "wandbb"), ("--init-from", "nowhere")):
        assert foldax(*words, *option)[0] != 0
    assert (workdir / "runs/a/result.json").exists()
    (workdir / "runs/a/manifest.json").unlink()
    code, _, err = foldax(*words)
    assert (code, "is not the folder of a run" in err) == (1, True)
    assert (workdir / "runs/a/checkpoints").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "it needs --run-dir"),
        (["--run-dir", "a", "--or-resume"], "--or-resume goes on with the run instead"),
        (["--run-dir", "a", "--init-from", "a/b:encoder"], "would remove a/b, with whose parameters the run begins"),
    ],
)
def test_overwrite_is_refused_where_it_makes_no_sense(foldax, workdir, options, message) -> None:
    code, _, err = foldax("run", "line.py", "--overwrite", *options)
    assert code == 2
    assert message in err


def test_completion_is_a_script_with_all_commands(foldax) -> None:
    pytest.importorskip("shtab", reason="shtab is not installed: pip install 'foldax[completion]'")
    code, out, _ = foldax("completion", "bash")
    assert code == 0
    for word in ("compare", "--where", "--allow-other-data", "_shtab_compgen_files"):
        assert word in out, word
    assert subprocess.run(["bash", "-n"], input=out, text=True).returncode == 0
    assert foldax("completion", "fish")[0] == 2


def test_completion_says_what_to_install(foldax, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, _, err = foldax("completion", "bash")
    assert (code, err) == (1, "foldax: shtab is not installed: pip install 'foldax[completion]'\n")


def test_the_version_is_printed(foldax) -> None:
    code, out, _ = foldax("--version")
    assert code == 0
    assert re.fullmatch(rf"foldax \d+\.\d+\.\d+\S*, jax {re.escape(jax.__version__)}\n", out)


def test_run_without_a_folder_makes_one_under_runs(foldax, workdir) -> None:
    assert foldax("run", "line.py")[0] == 0
    (run,) = Path("runs/line").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", run.name)


def test_check_of_an_experiment_that_satisfies_the_laws(foldax, tiny_file) -> None:
    code, out, err = foldax("check", tiny_file)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if not line.startswith("note: ")]
    assert [words[0] for words in lines] == [
        "purity", "chunking", "resume", "sweep", "sharding", "tracing", "coverage", "learning", "finishes",
    ]  # fmt: skip
    assert all(words[1:] == ["holds"] for words in lines)


def test_check_of_a_broken_experiment_says_which_law_and_why(foldax, workdir) -> None:
    Path("wrong.py").write_text(NESTED.replace("w - config.optimizer", "w + config.optimizer"))
    code, out, err = foldax("check", "wrong.py")
    assert (code, err) == (1, "")
    assert re.search(r"^purity +holds$", out, re.MULTILINE)
    assert re.search(r"^learning +BROKEN: the loss on one batch went from .* it does not learn", out, re.MULTILINE)


def test_a_file_runs_by_itself_and_the_module_starts_quickly(workdir) -> None:
    run = subprocess.run([sys.executable, "line.py", "--steps", "0"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (2, "foldax: Config.steps: 0 is too small; it must be at least 1\n")


CTRL_C_IN_A_COMPILED_MODULE = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt as error:
    raise ImportError("a compiled module could not be loaded") from error
"""


# Tests that run in the background ignore Ctrl-C, and so would their programs.
MAIN = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
MAIN += "import foldax_command; sys.exit(foldax_command.main())"


@pytest.mark.parametrize("code", ["raise KeyboardInterrupt", CTRL_C_IN_A_COMPILED_MODULE], ids=["python", "compiled"])
def test_an_interrupt_is_one_line_also_while_the_command_line_is_imported(tmp_path, code) -> None:
    (tmp_path / "jax.py").write_text(code)  # the first that foldax imports
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT / 'lib'}"}
    done = subprocess.run([sys.executable, "-c", MAIN], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "foldax: stopped\n")


def test_an_interrupt_after_a_command_prints_nothing(tmp_path) -> None:
    """As a third Ctrl-C, while threads and exit functions end."""
    (tmp_path / "foldax").mkdir()
    (tmp_path / "foldax" / "__init__.py").touch()
    (tmp_path / "foldax" / "cli.py").write_text(
        "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\ndef main():\n    return 1\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT / 'lib'}"}
    done = subprocess.run([sys.executable, "-c", MAIN], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_interrupt_of_a_command_is_one_line(foldax, workdir, monkeypatch) -> None:
    def interrupt(folder: Path, pattern: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rglob", interrupt)
    assert foldax("list") == (130, "", "foldax: stopped\n")


def test_starting_the_command_line_imports_nothing_heavy() -> None:
    heavy = ("tensorflow", "tensorflow_datasets", "grain", "sklearn", "matplotlib", "orbax.checkpoint", "flax")
    code = f"import sys, foldax.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_traceback_is_printed_on_request(foldax, workdir, monkeypatch) -> None:
    monkeypatch.setenv("FOLDAX_TRACEBACK", "1")
    code, _, err = foldax("run", "line.py", "--steps", "0")
    assert code == 2
    assert "Traceback" in err


def test_experiments_of_the_checkout_are_listed(foldax, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    code, out, _ = foldax("list", "experiments")
    assert code == 0
    assert "experiments/supervised/digits.py  Handwritten digits" in out
