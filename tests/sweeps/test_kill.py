"""Sweeps killed with SIGKILL at random moments and resumed until done end with the table of an uninterrupted one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
from pandas.testing import assert_frame_equal

from foldax import load_experiment, sweep

KILLS = int(os.environ.get("FOLDAX_SWEEP_KILLS", "1"))  # of each sweep; `make kill` has 10

FILE = '''
"""Members of several programs that take a second or so and save often; some stop early, some are not finite."""
import foldax, optax
import numpy as np
from foldax import data, learners, models

@foldax.config
class Config(foldax.Training):
    steps: int = 1_000
    log_every = 50
    evaluate_every = 100
    checkpoint_every = 350
    patience = 4
    hidden: tuple[int, ...] = (8,)
    learning_rate: float = 3e-3
    dropout: float = 0.1

def dataset(config):
    random = np.random.RandomState(0)
    targets = random.randint(0, 10, 400)
    inputs = random.randint(0, 17, (400, 8, 8, 1)) + targets[:, None, None, None]
    return data.from_arrays({"inputs": inputs.astype(np.uint8), "targets": targets}, batch_size=32)

def learner(config, info):
    model = models.MLP((*config.hidden, 10), dropout=config.dropout)
    return learners.classifier(model, optax.adam(config.learning_rate), preprocess=info.standardize)

experiment = foldax.Experiment(Config, learner, dataset)
'''
PROGRAMS = [(8,), (), (8, 8), (9,)][: 2 if KILLS == 1 else 4]
SPACE = {"hidden": PROGRAMS, "learning_rate": [1e-4, 1e-2, 1e38]}
ARGUMENTS = [text for name, values in SPACE.items() for text in (f"--{name}", *map(str, values))]
CACHED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # so that going on is quick


def foldax(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "foldax.cli", *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=os.environ | CACHED, start_new_session=True, **pipes)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "damaged" not in err, err
    return out


def files(path: Path) -> set[tuple[str, int]]:
    names_and_sizes = set()
    for folder, _, names in os.walk(path):  # files that vanish meanwhile are skipped
        names_and_sizes |= {(os.path.join(folder, name), 0) for name in names}
    lines = path / "members.jsonl"
    return names_and_sizes | {("members.jsonl", lines.stat().st_size if lines.exists() else 0)}


def kill_at_a_random_moment(process: subprocess.Popen, path: Path, chance: random.Random) -> bool:
    """Kills the sweep at a random time after its first write; returns whether it was still running."""
    until, before = time.monotonic() + 240, files(path / "members") | files(path)
    while process.poll() is None and time.monotonic() < until:
        now = files(path / "members") | files(path)
        if any("members" in name for name, _ in now - before):
            break
        time.sleep(0.002)
    try:
        process.wait(timeout=chance.choice([0, 0.05, chance.uniform(0, 6 / (KILLS + 1))]))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def check_readable(path: Path) -> None:
    """Metadata, tables and `foldax show` work at any time."""
    assert json.loads((path / "sweep.json").read_text())["status"] == "running"
    for name in ("results", "curves"):
        if (path / f"{name}.parquet").exists():
            pandas.read_parquet(path / f"{name}.parquet")
    finish(foldax("show", path))


@pytest.mark.parametrize("execution", ["exact", "fast"])
def test_killed_sweeps_resume_to_the_same_table(tmp_path: Path, execution: str) -> None:
    file, path = tmp_path / "killed.py", tmp_path / "killed"
    file.write_text(FILE)
    running = foldax("sweep", file, *ARGUMENTS, f"--{execution}", "--sweep-dir", path)
    kills, chance = 0, random.Random(execution)
    for moment in range(KILLS):
        killed = kill_at_a_random_moment(running, path, chance)
        kills += killed
        if not killed:
            break
        if moment % 5 == 0:
            check_readable(path)
        running = foldax("resume", path)
    finish(running)
    whole = sweep(load_experiment(file), SPACE, execution=execution, save=False, verbose=False)
    results, curves = (pandas.read_parquet(path / f"{name}.parquet") for name in ("results", "curves"))
    assert_frame_equal(results.drop(columns="seconds"), whole.results.drop(columns="seconds"), check_exact=True)
    assert_frame_equal(curves, whole.curves, check_exact=True)
    assert len(results) == 3 * len(PROGRAMS)
    assert results["group"].nunique() == len(PROGRAMS)
    assert {"finished", "stopped early", "not finite"} == set(results["status"])
    assert json.loads((path / "sweep.json").read_text())["status"] == "finished"
    print(f"{execution}: {kills} kills, all {len(results)} members bit-identical")
    assert kills >= min(KILLS, 1)
