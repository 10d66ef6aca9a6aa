"""Errors: every mistake of a user gets a message that names it and an exit code, never a traceback of the library."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foldax import cli
from foldax.errors import did_you_mean

PARTS = {
    "head": "import foldax\nimport jax\nimport jax.numpy as jnp\nimport numpy as np\nfrom foldax import data\n",
    "fields": "",
    "dataset": """
    inputs = np.linspace(-1, 1, 100, dtype=np.float32)[:, None]
    return data.from_arrays({"inputs": inputs, "targets": inputs[:, 0] * 2}, batch_size=config.batch_size)
""",
    "learner": "",
    "update": "",
    "loss": "loss",
    "size": "64",
    "evaluate": "",
    "tail": "",
    "experiment": "foldax.Experiment(Config, learner, dataset)",
}

FILE = '''"""A line through the origin."""
{head}

@foldax.config
class Config(foldax.Training):
    steps: int = 12
    log_every: int = foldax.driver(4)
    evaluate_every: int = foldax.driver(6)
    batch_size: int = 16
    """Examples per step."""
    learning_rate: float = 0.1
    dropout: float = 0.0
    {fields}


def dataset(config):{dataset}

def learner(config, info):
    {learner}
    def errors(state, batch):
        return (batch["inputs"][:, 0] * state["w"] - batch["targets"]) ** 2

    def init(key, examples):
        return {{"w": jnp.float32(0.0), "noise": jnp.zeros({size}), "count": jnp.int32(0)}}

    def update(state, batch, key):
        {update}
        loss, gradient = jax.value_and_grad(lambda w: errors({{"w": w}}, batch).mean())(state["w"])
        noise = state["noise"] + jax.random.normal(key, ({size},)) * config.dropout
        w, count = state["w"] - config.learning_rate * gradient, state["count"] + 1
        return {{"w": w, "noise": noise, "count": count}}, {{"loss": {loss}}}

    def evaluate(state, batch, key):
        {evaluate}
        return {{"loss": errors(state, batch)}}

    return foldax.Learner(init, update, evaluate)

{tail}
experiment = {experiment}
'''


@pytest.fixture
def write(tmp_path: Path):
    """Writes an experiment file with some of its parts changed."""

    def write(name: str = "line.py", **parts: str) -> str:
        path = tmp_path / name
        path.write_text(FILE.format(**(PARTS | parts)))
        return str(path)

    return write


@pytest.fixture
def foldax(capsys, monkeypatch, tmp_path):
    """Runs a command in `tmp_path`; returns its exit code and what it printed on stderr, without progress."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FOLDAX_TRACEBACK", raising=False)

    def run(*arguments: object) -> tuple[int, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if not re.match(r"\S+: \d+/\d+ ", line)]
        if code:
            assert lines[0].startswith(("foldax: ", "usage: "))
            assert "Traceback" not in printed.err + printed.out
        return code, "\n".join(lines)

    return run


def expect_message(answer: tuple[int, str], code: int, *words: str, lines: int = 2) -> None:
    assert answer[0] == code, answer
    assert len(answer[1].splitlines()) <= lines, answer[1]
    for word in words:
        assert word in answer[1]


def test_the_nearest_spelling_is_suggested() -> None:
    assert did_you_mean("lerning_rate", ["steps", "learning_rate"]) == "; did you mean 'learning_rate'?"
    assert did_you_mean("zzz", ["steps", "learning_rate"]) == ""


# On the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lerning-rate", "1"], ["--lerning-rate", "did you mean '--learning-rate'?"]),
        (["--lerning_rate=1"], ["--lerning_rate", "did you mean '--learning-rate'?"]),
        (["--learning-rate", "fast"], ["--learning-rate", "'fast'", "float"]),
        (["--learning-rate", "True"], ["--learning-rate", "got True", "float"]),
        (["--learning-rate"], ["no value", "--learning-rate"]),
        (["--steps", "0"], ["Config.steps", "0", "at least 1"]),
        (["--steps", "-3"], ["steps", "-3"]),
        (["--steps", "1.5"], ["--steps", "got 1.5", "int"]),
        (["--mode", "maximum"], ["--mode", "maximum", "min"]),
        (["--checkpoint-every", "often"], ["checkpoint_every", "'often'", "'30s'"]),
        (["--seed", "4294967296"], ["Config.seed", "4294967296", "2**32"]),
        (["7"], ["'7'", "--field"]),
        (["--steps", "3", "4"], ["'4'", "--steps", "a value too many"]),
        (["--run-dir"], ["--run-dir"]),
        (["--monitor", "los"], ["monitor", "'los'", "did you mean 'loss'?", "there are: loss"]),
        (["--mesh", "data=4096"], ["mesh", "4096", "this machine has 2"]),
        (["--mesh", "data=2", "--batch-size", "15"], ["mesh", "data (2)", "batch size, 15"]),
        (["--mesh", "fspd=2"], ["mesh", "fspd", "did you mean 'fsdp'?"]),
        (["--mesh", "data=two"], ["mesh", "'two'", "-1 for all that the other axes leave"]),
    ],
    ids=str,
)
def test_bad_usage_exits_2_and_names_field_value_and_what_is_allowed(write, foldax, arguments, words) -> None:
    expect_message(foldax("run", write(), *arguments), 2, *words)


def test_a_batch_larger_than_the_training_split_is_refused(write, foldax) -> None:
    expect_message(foldax("run", write(), "--batch-size", 71), 1, "batch_size=71", "training split", "70 examples")


def test_a_batch_larger_than_the_validation_split_is_allowed(write, foldax) -> None:
    assert foldax("run", write(), "--batch-size", 64, "--run-dir", "r")[0] == 0  # validation has 10 examples
    assert json.loads(Path("r/result.json").read_text())["steps"] == 12


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["rum", "x.py"], 2, ["'rum'"]),
        (["run"], 2, ["FILE"]),
        (["run", "gone.py"], 1, ["no experiment file", "gone.py", "foldax list"]),
        (["run", "."], 1, ["no experiment file", "'.'"]),
        (["show", "gone"], 1, ["no run folder", "'gone'"]),
        (["resume", "gone"], 1, ["no run folder", "'gone'"]),
        (["reproduce", "gone"], 1, ["no run folder", "'gone'"]),
        (["list", "gone"], 1, ["no folder", "'gone'"]),
        (["new", "my-experiment"], 2, ["'my-experiment'", "letters, digits and underscores"]),
        (["new", "gone/there"], 1, ["gone/there.py"]),
        (["show", ".", "--steps", "3"], 2, ["--steps"]),
    ],
    ids=str,
)
def test_a_command_names_the_missing_argument_file_or_folder(foldax, command, code, words) -> None:
    expect_message(foldax(*command), code, *words, lines=3)


@pytest.mark.parametrize("command", ["show", "resume", "reproduce"])
def test_a_folder_without_a_run_is_refused(foldax, tmp_path, command) -> None:
    (tmp_path / "other").mkdir()
    expect_message(foldax(command, "other"), 1, "other is not a run folder", "manifest.json")


def test_a_missing_file_names_its_neighbours(write, foldax) -> None:
    write("line.py")
    expect_message(foldax("run", "lime.py"), 1, "'lime.py'", "line.py")


# In the experiment file


def test_a_file_without_an_experiment_is_refused(foldax, tmp_path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    expect_message(foldax("run", "empty.py"), 1, "empty.py has no `experiment`", "foldax.Experiment(")


def test_a_file_that_is_not_python_is_refused(foldax, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("x = 1\n")
    expect_message(foldax("run", "notes.txt"), 1, "notes.txt", "must end in .py")


def test_a_syntax_error_shows_the_line(foldax, tmp_path) -> None:
    (tmp_path / "typo.py").write_text("x = 1\ndef f(:\n")
    expect_message(foldax("run", "typo.py"), 1, "typo.py", "line 2", "def f(:", "SyntaxError", lines=6)


def test_an_import_error_shows_the_line(write, foldax) -> None:
    answer = foldax("run", write(head="import foldaks"))
    expect_message(
        answer, 1, "line.py failed while it was imported", "import foldaks", "No module named 'foldaks'", lines=5
    )
    assert "lib/foldax" not in answer[1]


def test_a_bad_default_is_found_when_the_config_is_made(write, foldax) -> None:
    expect_message(foldax("run", write(fields="width: int = 1.5")), 2, "Config.width", "int", "1.5 (float)")


def test_a_bool_in_a_float_field_is_refused(write, foldax) -> None:
    expect_message(foldax("run", write(fields="decay: float = True")), 2, "Config.decay", "float", "True (bool)")


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("learner", "unknown_name"),
        ("update", "unknown_name"),
        ("update", "batch['inptus']"),
        ("evaluate", "unknown_name"),
        ("update", "jnp.zeros(3) + jnp.zeros(4)"),
        ("dataset", "\n    return unknown_name\n"),
    ],
)
def test_an_error_in_the_users_functions_shows_their_lines_only(write, foldax, where, code) -> None:
    exit_code, stderr = foldax("run", write(**{where: code}))
    assert exit_code == 1
    assert "the experiment's own code failed" in stderr
    assert code.strip() in stderr
    assert "line.py" in stderr
    assert "lib/foldax" not in stderr
    assert "site-packages" not in stderr
    assert "Error" in stderr.splitlines()[-1]


@pytest.mark.parametrize(("function", "code"), [("summarize", 1), ("figures", 0)])
def test_an_error_in_summarize_or_figures_shows_its_line(write, foldax, function, code) -> None:
    tail = f"def {function}(argument):\n    return argument.unknown_name\n"
    file = write(tail=tail, experiment=f"foldax.Experiment(Config, learner, dataset, {function}={function})")
    exit_code, stderr = foldax("run", file, "--run-dir", "r")
    assert exit_code == code
    assert "the experiment's own code failed" in stderr
    assert "return argument.unknown_name" in stderr
    assert "lib/foldax" not in stderr
    assert Path("r/result.json").exists() == (function == "figures")  # figures come after the result


def test_a_function_that_returns_no_learner_is_refused(write, foldax) -> None:
    expect_message(foldax("run", write(learner="return 3")), 1, "`learner` returned int, not a foldax.Learner", lines=3)


def test_a_branch_on_a_traced_field_names_it_and_what_to_do(write, foldax) -> None:
    answer = foldax("run", write(learner="if config.dropout > 0:\n        pass"))
    expect_message(answer, 1, "`dropout`", "dropout: float = foldax.structural(...)", "jnp.where", "line.py", lines=3)
    assert "`learning_rate`" not in answer[1]


def test_the_same_branch_on_a_structural_field_is_allowed(write, foldax) -> None:
    file = write(fields="rate: float = foldax.structural(0.5)", learner="if config.rate > 0:\n        pass")
    assert foldax("run", file, "--run-dir", "r")[0] == 0


def test_a_loss_that_is_not_finite_names_step_and_metric_and_keeps_the_checkpoint(write, foldax) -> None:
    file = write(loss="jnp.where(state['count'] == 9, jnp.nan, loss)")
    answer = foldax("run", file, "--checkpoint-every", 3, "--run-dir", "r")
    expect_message(answer, 1, "'loss'", "at step 9", "NaN or infinite", "checkpoint of step", "learning rate")
    step = int(re.search(r"checkpoint of step (\d+) is kept", answer[1]).group(1))
    assert 0 < step <= 9
    assert (Path("r/checkpoints") / str(step)).is_dir()
    assert json.loads(Path("r/manifest.json").read_text())["status"].startswith("failed: training metric 'loss'")
    assert not Path("r/result.json").exists()


def test_a_dataset_that_needs_a_network_says_so(write, foldax, monkeypatch, tmp_path) -> None:
    def unknown_host(host: str, *rest: object) -> None:
        raise OSError(f"{host} is not known")

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FOLDAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.getaddrinfo", unknown_host)
    code = "\n    return data.load('mnist', batch_size=16)\n"
    answer = foldax("run", write(dataset=code))
    expect_message(answer, 1, "'mnist'", "must be downloaded", "no connection", "digits", lines=1)


# In the run folder


@pytest.fixture
def finished(write, foldax):
    """A finished run of twelve steps with checkpoints of steps 8 and 12, and its folder."""
    assert foldax("run", write(), "--checkpoint-every", 4, "--dropout", "0.5", "--run-dir", "r")[0] == 0
    return Path("r")


def remove_result(run: Path) -> dict:
    """Turns it into a run that was killed after its last checkpoint; returns its result."""
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").unlink()
    return result


def test_a_folder_that_another_process_uses_is_refused(finished, foldax) -> None:
    remove_result(finished)
    hold = "import sys; from pathlib import Path; from foldax.runs import folder; f = folder.lock(Path('r'));"
    hold += "print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        expect_message(foldax("resume", "r"), 1, "r is in use by process", str(other.pid))
        other.stdin.close()
    assert foldax("resume", "r")[0] == 0


def test_a_folder_that_holds_a_run_is_refused(finished, write, foldax) -> None:
    expect_message(foldax("run", write(), "--run-dir", "r"), 1, "r holds a run already", "foldax resume r")


def test_a_folder_of_another_experiment_is_refused(finished, write, foldax) -> None:
    expect_message(foldax("run", write("plane.py"), "--run-dir", "r"), 1, "r is a run of another experiment, 'line'")


def test_a_run_dir_that_cannot_be_created_is_named(write, foldax, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    expect_message(foldax("run", write(), "--run-dir", "file/r"), 1, "cannot write to file/r", "Not a directory")


def test_a_platform_without_devices_is_named(write, tmp_path) -> None:
    command = [sys.executable, "-m", "foldax.cli", "run", write(), "--run-dir", str(tmp_path / "r")]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "nonsense"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "foldax: JAX cannot start (JAX_PLATFORMS=nonsense): " in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_is_no_run_dir(write, foldax) -> None:
    address = "gs://bucket/r"
    for arguments in (("run", write(), "--run-dir", address), ("sweep", write(), "--sweep-dir", address)):
        expect_message(foldax(*arguments), 1, "gs:/bucket/r is an address", "mount it")
        assert not Path("gs:").exists()


def test_a_missing_experiment_file_of_a_run_is_named(finished, foldax) -> None:
    remove_result(finished)
    Path("line.py").unlink()
    expect_message(foldax("resume", "r"), 1, "no experiment file", "line.py")


def test_an_unknown_field_in_the_config_of_a_run_is_named(finished, write, foldax) -> None:
    remove_result(finished)
    config = json.loads((finished / "config.json").read_text())
    (finished / "config.json").write_text(json.dumps(config | {"widht": 3}))
    expect_message(
        foldax("resume", "r"), 0, "made with fields that Config no longer has; they are ignored: widht", lines=1
    )


@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
def test_a_damaged_file_of_the_run_folder_is_named(finished, foldax, name) -> None:
    remove_result(finished)
    (finished / name).write_text('{"steps": ')
    expect_message(foldax("resume", "r"), 1, f"r/{name} cannot be read")


def array_files(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint that hold arrays, the largest first."""
    files = [path for path in (checkpoint / "arrays").rglob("*") if path.is_file() and path.parent.name == "d"]
    return sorted(files, key=lambda path: -path.stat().st_size)


def truncate(checkpoint: Path) -> None:
    for path in array_files(checkpoint):
        os.truncate(path, path.stat().st_size // 2)


def tamper(checkpoint: Path) -> None:
    changed = 0
    for path in array_files(checkpoint):
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle] ^= 0xFF
        path.write_bytes(content)
        changed += 1
    assert changed


def lose_meta(checkpoint: Path) -> None:
    next((checkpoint / "meta").rglob("metadata")).write_text("{")


def assert_same_result(before: dict, after: dict) -> None:
    for key in ("state_sha256", "train", "validation", "test", "steps", "best_step"):
        assert after[key] == before[key]


@pytest.mark.parametrize("damage", [truncate, tamper, lose_meta])
def test_a_damaged_checkpoint_is_named_and_the_earlier_one_gives_the_same_result(finished, foldax, damage) -> None:
    before = remove_result(finished)
    damage(finished / "checkpoints" / "12")
    expect_message(foldax("resume", "r"), 0, "checkpoint r/checkpoints/12 is damaged and was set aside", lines=1)
    assert_same_result(before, json.loads((finished / "result.json").read_text()))
    assert (finished / "checkpoints" / "12").is_dir()
    assert (finished / "checkpoints" / "damaged-12").is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(finished) -> None:
    remove_result(finished)
    for step in (8, 12):
        truncate(finished / "checkpoints" / str(step))
    done = subprocess.run([*FOLDAX, "resume", "r"], capture_output=True, text=True)  # a process: nothing hides threads
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    message = done.stderr.splitlines()[-1]
    assert message.startswith("foldax: none of the checkpoints in r/checkpoints can be read (12: ")
    assert message.endswith("; start the run anew")
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"8", "12"}  # nothing was renamed


# From the operating system


FOLDAX = [sys.executable, "-c", "import sys; from foldax.cli import main; sys.exit(main())"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount command")
def test_a_full_disk_keeps_the_earlier_checkpoints(write, foldax, tmp_path) -> None:
    disk, file = tmp_path / "disk", write(size="100_000")  # a checkpoint takes 800 kB, so the third does not fit
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine does not allow mounting a small disk")
    try:
        arguments = ("--checkpoint-every", 4, "--dropout", 0.5)
        answer = foldax("run", file, *arguments, "--run-dir", "disk/r")
        expect_message(answer, 1, "cannot write", "disk/r", "disk is full", "checkpoints kept: 4, 8", lines=1)
        shutil.copytree(disk / "r", tmp_path / "moved")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert foldax("resume", "moved")[0] == 0
    assert foldax("run", file, *arguments, "--run-dir", "whole")[0] == 0
    assert_same_result(*(json.loads(Path(run, "result.json").read_text()) for run in ("whole", "moved")))


def test_a_file_size_limit_keeps_the_earlier_checkpoint(write, foldax) -> None:
    file = write(size="100_000")
    assert foldax("run", file, "--checkpoint-every", 4, "--dropout", 0.5, "--run-dir", "r")[0] == 0
    before = remove_result(Path("r"))
    shutil.rmtree("r/checkpoints/12")
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); " + FOLDAX[2]
    done = subprocess.run([*FOLDAX[:2], limited, "resume", "r"], capture_output=True, text=True)
    messages = [line for line in done.stderr.splitlines() if line.startswith("foldax: ")]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot write a checkpoint to r/checkpoints: the disk is full" in messages[-1]
    assert "checkpoints kept: 8" in messages[-1]
    assert foldax("resume", "r")[0] == 0
    assert_same_result(before, json.loads(Path("r/result.json").read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_saves_and_the_resumed_run_has_the_same_result(write, foldax, number) -> None:
    long = ("--steps", "8000", "--log-every", "50", "--evaluate-every", "2000", "--dropout", "0.5")
    file = write()
    with subprocess.Popen([*FOLDAX, "run", file, *long, "--run-dir", "r"], stderr=subprocess.PIPE, text=True) as run:
        while not Path("r/metrics.jsonl").exists() or not Path("r/metrics.jsonl").stat().st_size:
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.01)
        run.send_signal(number)
        messages = run.stderr.read().splitlines()
        assert run.wait() == 1
    step = int(re.match(r"foldax: stopped at step (\d+) of 8000; go on with: foldax resume r$", messages[-1]).group(1))
    assert 0 < step < 8_000
    assert json.loads(Path("r/manifest.json").read_text())["status"] == "interrupted"
    assert not Path("r/result.json").exists()
    assert foldax("resume", "r")[0] == 0
    assert foldax("run", file, *long, "--run-dir", "whole")[0] == 0
    assert_same_result(*(json.loads(Path(run, "result.json").read_text()) for run in ("whole", "r")))
    assert Path("r/metrics.jsonl").read_text() == Path("whole/metrics.jsonl").read_text()
