"""Runs that end at random moments, in any way, and are resumed end with the bits of an uninterrupted run."""

import contextlib
import functools
import io
import itertools
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foldax import cli
from foldax.runs.transfer import parameters
from tests.conftest import ROOT
from tests.laws.test_laws import LEARNERS

KILLS = int(os.environ.get("FOLDAX_KILLS", "8"))  # of all runs; `make kill` has 200
MOMENTS = 2  # ends of each run
CACHED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # so that going on is quick
OPTIONS = ["--log-every", "3", "--evaluate-every", "30", "--checkpoint-every", "6"]

FILE = '''
"""An experiment of the laws."""
import sys
from unittest import mock

sys.path.insert(0, "ROOT")
from foldax import data
from tests.laws.test_laws import LEARNERS

from_arrays = data.from_arrays

def streamed(*arguments, **options):
    return from_arrays(*arguments, **(options | {"source": "stream"}))

def dataset(config):
    with mock.patch.object(data, "from_arrays", streamed):
        return LEARNERS["NAME"].dataset(config)

experiment = LEARNERS["NAME"]
'''
HOST = ROOT / "experiments" / "rl" / "gymnasium_cartpole.py"
# `learners.subset` selects rows on the device, so it refuses streams.
STREAMED = [
    f"{name}, streamed" for name, experiment in LEARNERS.items() if experiment.dataset is not None and name != "subset"
]
# The first four are those of the suite: among them a stream, an agent, and environments that cannot be saved.
FIRST = ["classifier, streamed", "ppo", "kmeans", "gymnasium"]
OTHERS = sorted({*LEARNERS, *STREAMED} - {*FIRST, "streaming"})  # that one is the first
KINDS = FIRST + random.Random(0).sample(OTHERS, len(OTHERS))
# The terminal controls the process, so that its end is a SIGHUP.
ON_TERMINAL = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
ON_TERMINAL += "; from foldax.cli import main; sys.exit(main())"
ENDINGS = ["SIGKILL", "full disk", "closed terminal", "SIGTERM"]
RUNS = list(enumerate(itertools.islice(itertools.cycle(KINDS), -(-KILLS // MOMENTS))))


def command(kind: str, folder: Path) -> list[str]:
    """Returns file and options of a run of this kind, which saves often in its two or three seconds."""
    if kind == "gymnasium":
        pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'foldax[gymnasium]'")
        small = {"environment-steps": 960, "num-envs": 2, "rollout-steps": 8, "ppo.evaluation-episodes": 2}
        return [str(HOST), *OPTIONS, *(text for name, value in small.items() for text in (f"--{name}", str(value)))]
    name, _, streamed = kind.partition(", ")
    file = folder / "killed.py"
    text = FILE.replace("ROOT", str(ROOT)).replace("NAME", name)
    file.write_text(text + "experiment = experiment._replace(dataset=dataset)\n" * bool(streamed))
    return [str(file), "--steps", "60", *OPTIONS]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[str], Path]]:
    """By kind: the command of a run, and its folder when nothing has ended it."""

    @functools.cache
    def whole(kind: str) -> tuple[list[str], Path]:
        folder = tmp_path_factory.mktemp("whole")
        run_it = ["run", *command(kind, folder)]
        foldax(*run_it, "--run-dir", folder / "run")
        return run_it, folder / "run"

    return whole


def end_at_a_random_moment(arguments: list[str], ending: str, log: Path, lines: int, rng: random.Random) -> bool:
    """Runs foldax on a terminal, ends it after some lines of its log, and returns whether it was still going."""
    terminal, slave = os.openpty()
    before = log.stat().st_mtime_ns if log.exists() else None
    streams = dict(stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=os.environ | CACHED)
    process = subprocess.Popen([sys.executable, "-c", ON_TERMINAL, *arguments], **streams)
    os.close(slave)
    screen, lines_until_kill, until = "", rng.randrange(lines), time.monotonic() + 240
    while process.poll() is None and time.monotonic() < until:
        screen += drain(terminal)
        if log.exists() and log.stat().st_mtime_ns != before and log.read_bytes().count(b"\n") >= lines_until_kill:
            break
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=rng.choice([0, rng.uniform(0, 0.2)]))
    with contextlib.suppress(ProcessLookupError):
        if ending == "full disk":
            limit = rng.choice([0, rng.randrange(4_000)])
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        elif ending != "closed terminal":
            os.killpg(process.pid, getattr(signal, ending))
    if ending == "closed terminal":
        os.close(terminal)
    while process.poll() is None and time.monotonic() < until:
        screen += drain(terminal) if ending != "closed terminal" else ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)
    assert process.returncode is not None, f"after {ending} it did not end: {screen}"
    if ending != "closed terminal":
        screen += drain(terminal)
        os.close(terminal)
    assert "Traceback" not in screen, screen
    assert "damaged" not in screen, screen
    if process.returncode == 0:
        return False
    assert process.returncode == (-signal.SIGKILL if ending == "SIGKILL" else 1), (ending, screen)
    message = {"SIGTERM": "go on with: foldax resume", "full disk": "cannot write"}.get(ending, "")
    assert message in screen, screen
    return True


def drain(terminal: int) -> str:
    """Reads all that is written to a terminal, which would fill up otherwise."""
    written = b""
    with contextlib.suppress(OSError):  # it is closed on the other side
        while select.select([terminal], [], [], 0.005)[0]:
            written += os.read(terminal, 1 << 16)
    return written.decode(errors="replace")


def foldax(*arguments: object) -> str:
    """Runs a command that must succeed in this process; returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = cli.main(list(map(str, arguments)))
    assert code == 0, out.getvalue()
    assert "damaged" not in out.getvalue()
    return out.getvalue()


@pytest.mark.parametrize(("index", "kind"), RUNS, ids=[f"{index}-{kind}" for index, kind in RUNS])
def test_ended_runs_resume_to_the_same_bits(tmp_path: Path, uninterrupted: Any, index: int, kind: str) -> None:
    run_it, whole = uninterrupted(kind)
    run, rng, lines = tmp_path / "run", random.Random(index), (whole / "metrics.jsonl").read_bytes().count(b"\n")
    endings = []
    for moment in range(MOMENTS):
        ending = ENDINGS[(MOMENTS * index + moment + index // len(KINDS)) % len(ENDINGS)]
        arguments = [*run_it, "--run-dir", str(run)] if moment == 0 else ["resume", str(run)]
        if not end_at_a_random_moment(arguments, ending, run / "metrics.jsonl", lines - 1, rng):
            break  # too late
        endings.append(ending)
        # Its folder can be read, and so can its parameters where there is a checkpoint.
        foldax("show", run)
        if any(path.name.isdigit() for path in (run / "checkpoints").iterdir()):
            assert parameters.read(run).arrays or kind == "bandit"
    out = "" if (run / "result.json").exists() else foldax("resume", run)
    before, after = (json.loads((path / "result.json").read_text()) for path in (whole, run))
    if kind == "gymnasium":
        assert after["steps"] == before["steps"]
        assert not out or "a resumed run starts new ones" in out
        outcome = "resumed with new episodes, as it says"
    else:
        outcome = "all bits identical"
        for key in ("state_sha256", "train", "validation", "test", "best_step", "steps"):
            assert after.get(key) == before.get(key), key
        assert (run / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    print(f"{kind}: ended by {' and '.join(endings) or 'nothing'}, then {outcome}")
