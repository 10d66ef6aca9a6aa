"""A run that is killed with SIGKILL at random moments and resumed ends with the bits of an uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foldax import cli
from tests.conftest import ROOT

KILLS = int(os.environ.get("FOLDAX_KILLS", "1"))  # runs; `make kill` has 20
MOMENTS = 2  # kills of each run
CACHED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # so that going on is quick

FILE = '''
"""A run of a second or two that saves often."""
import foldax, optax
from foldax import data, learners, models

@foldax.config
class Config(foldax.Training):
    steps: int = STEPS
    log_every = 50
    evaluate_every = 250
    checkpoint_every = 200
    learning_rate: float = 3e-3
    dropout: float = 0.1

def dataset(config):
    return data.load("digits", batch_size=32, source="SOURCE")

def learner(config, info):
    return learners.classifier(models.MLP((64, 64, 10), dropout=config.dropout), optax.adam(config.learning_rate))

experiment = foldax.Experiment(Config, learner, dataset)
'''


def foldax(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "foldax.cli", *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=os.environ | CACHED, start_new_session=True, **pipes)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return out


def kill_at_a_random_moment(process: subprocess.Popen, run: Path, rng: random.Random) -> bool:
    """Kills the run some time after it has begun to log; whether it was still going."""
    until = time.monotonic() + 120
    before = (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").exists() else 0
    while process.poll() is None and time.monotonic() < until:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size != before:
            break
        time.sleep(0.005)
    try:
        process.wait(timeout=rng.uniform(0, 0.5))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def command(kind: str, folder: Path) -> list[object]:
    """Returns file and options of a run of this kind, some seconds long."""
    if kind in ("device", "stream"):
        file = folder / "killed.py"
        file.write_text(FILE.replace("SOURCE", kind).replace("STEPS", "2_000" if kind == "device" else "500"))
        return [file]
    pytest.importorskip("gymnax", reason="gymnax is not installed: pip install 'foldax[rl]' (Python 3.11)")
    # Steps of environments, and updates between checkpoints.
    steps, every = {"ppo": (40_000, 10), "dqn": (16_000, 200)}[kind]
    file = ROOT / "experiments" / "rl" / f"{kind}_cartpole.py"
    return [file, "--environment-steps", steps, "--checkpoint-every", every, "--log-every", every // 2]


@pytest.mark.parametrize("kind", ["device", "stream", "ppo", "dqn"])
def test_killed_runs_end_with_the_same_bits(tmp_path: Path, kind: str) -> None:
    run_it = ["run", *command(kind, tmp_path)]
    assert cli.main([*map(str, run_it), "--run-dir", str(tmp_path / "whole")]) == 0
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    kills = 0
    for index in range(KILLS):
        rng, run = random.Random(index), tmp_path / f"run{index}"
        kills += kill_at_a_random_moment(foldax(*run_it, "--run-dir", run), run, rng)
        for _ in range(MOMENTS - 1):
            if kind == "device":
                finish(foldax("show", run))
            kills += kill_at_a_random_moment(foldax("resume", run), run, rng)
        finish(foldax("resume", run))
        result = json.loads((run / "result.json").read_text())
        for key in ("state_sha256", "train", "validation", "test", "best_step", "steps"):
            assert result[key] == whole[key], (index, key)
        assert (run / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    print(f"{kind}: {KILLS} runs, {kills} kills, all {KILLS} bit-identical")
    assert kills >= KILLS
