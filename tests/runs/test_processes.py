"""Runs of several processes: one run, whoever is slow, ends or is killed."""

import collections
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from foldax import processes
from foldax.runs.transfer import parameters
from tests.conftest import ROOT

KILLS = int(os.environ.get("FOLDAX_PROCESS_KILLS", "2"))  # of all runs; `make kill` has 100
MOMENTS = 2 if KILLS < 10 else 5  # ends of each run
ENDINGS = ["SIGKILL 1", "SIGTERM 0", "SIGKILL 0", "SIGTERM 1"]  # of that process
DEVICES = int(os.environ.get("FOLDAX_PROCESS_DEVICES", "2"))  # of each process
SECONDS = 120  # until the others know of a process that is lost
CACHED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # so that going on is quick
MAIN = "import sys; from foldax.cli import main; sys.exit(main())"
FILE = f'''
"""A classifier with arrays that are divided; `SLOW` is the number of a process that computes more on the host."""
import os
import sys

import jax

sys.path.insert(0, "{ROOT}")
from tests.conftest import tiny, tiny_dataset, tiny_learner

from foldax import errors

def dataset(config):
    if os.environ.get("FAILS") == str(jax.process_index()):
        raise errors.DataError("this host has no such file")
    return tiny_dataset(config, source=os.environ.get("SOURCE", "device"))

def summarize(values):
    if os.environ.get("SLOW") == str(jax.process_index()):
        sum(range(10_000_000))
    return {{"mean_loss": float(values["loss"].mean())}}

def learner(config, info):
    rules = (("kernel", (None, "fsdp")),)
    return tiny_learner(config, info)._replace(sharding_rules=rules)

experiment = tiny._replace(dataset=dataset, learner=learner, summarize=summarize)
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes") / "divided.py"
    path.write_text(FILE)
    return path


class Pair:
    """Two connected processes that run the same command, and what they print."""

    def __init__(self, folder: Path, *arguments: object, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        several = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": str(DEVICES)}
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.processes = []
        for i in range(2):
            variables = os.environ | CACHED | several | {"JAX_PROCESS_ID": str(i)} | environment
            with (folder / f"out{i}").open("w") as out, (folder / f"err{i}").open("w") as err:
                command = [sys.executable, "-c", MAIN, *map(str, arguments)]
                self.processes.append(subprocess.Popen(command, env=variables, stdout=out, stderr=err))

    def wait(self) -> list[int]:
        """Returns the exit codes; both are killed if one takes too long."""
        try:
            return [process.wait(timeout=SECONDS) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def text(self, name: str) -> str:
        """What one wrote on a stream, without the lines of its communication library."""
        lines = (self.folder / name).read_text().splitlines()
        return "\n".join(line for line in lines if "peer ranks" not in line and line.strip())


def run_options(file: Path, run_dir: Path, *options: object) -> list[object]:
    often = ["--steps", 40, "--log-every", 2, "--evaluate-every", 10, "--checkpoint-every", 4]
    return ["run", file, "--mesh", "data=-1,fsdp=2", "--run-dir", run_dir, *often, *options]


@pytest.fixture(scope="module")
def uninterrupted(file: Path) -> Callable[[str], Path]:
    """By source of the data: the folder of a run of two processes that nothing has ended."""

    @functools.cache
    def whole(source: str) -> Path:
        run_dir = file.parent / source
        pair = Pair(file.parent / f"screens of {source}", *run_options(file, run_dir), SOURCE=source)
        assert pair.wait() == [0, 0], pair.text("err0") + pair.text("err1")
        # Only the first one prints and writes.
        assert "run folder" in pair.text("out0")
        assert pair.text("out1") == pair.text("err1") == ""
        return run_dir

    return whole


def digest(run_dir: Path) -> str:
    return json.loads((run_dir / "result.json").read_text())["state_sha256"]


def end_after_lines(pair: Pair, log: Path, lines: int, ending: str) -> bool:
    """Ends one of two processes once the log has grown by some lines; returns whether they were still going."""
    name, number = ending.split()
    before, until = count_lines(log), time.monotonic() + SECONDS
    while pair.processes[0].poll() is None and count_lines(log) < before + lines and time.monotonic() < until:
        with contextlib.suppress(subprocess.TimeoutExpired):
            pair.processes[0].wait(timeout=0.05)
    going = pair.processes[int(number)].poll() is None
    pair.processes[int(number)].send_signal(getattr(signal, name))
    return going


def count_lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.parametrize("number", range(-(-KILLS // MOMENTS)))
def test_ended_processes_end_the_others_and_the_run_resumes_to_the_same_bits(
    file: Path, uninterrupted: Callable[[str], Path], number: int
) -> None:
    rng, run_dir = random.Random(number), file.parent / f"ended{number}"
    # Slow hosts, other chunks and data that are read in parts change nothing.
    environment = {"SLOW": str(number % 2), "SOURCE": "stream" if number % 2 else "device"}
    for moment in range(MOMENTS):
        ending = ENDINGS[(number + moment) % len(ENDINGS)]
        command = run_options(file, run_dir, "--or-resume") if moment == 0 else ["resume", run_dir]
        pair = Pair(file.parent / f"screens{number}.{moment}", *command, **environment)
        going = end_after_lines(pair, run_dir / "metrics.jsonl", 1 + rng.randrange(8), ending)
        codes = pair.wait()
        texts = [pair.text(f"err{i}") for i in range(2)]
        if going and not (run_dir / "result.json").exists():
            assert 0 not in codes, (ending, texts)
            print(f"{ending}: {codes}")
            if ending.startswith("SIGTERM") and "before its first step" not in "".join(texts):
                stops = {text.split("stopped at ")[1].split(";")[0] for text in texts}
                assert len(stops) == 1, texts  # both at the same step
            else:
                other = texts[1 - int(ending[-1])]
                assert "go on with: foldax resume" in other or "JAX distributed service" in other, other
    pair = Pair(file.parent / f"screens{number}", "resume", run_dir, **environment)
    assert pair.wait() == [0, 0], pair.text("err0") + pair.text("err1")
    assert digest(run_dir) == digest(uninterrupted(environment["SOURCE"]))


def test_a_damaged_checkpoint_of_several_processes_is_named_and_the_one_before_is_used(
    file: Path, uninterrupted: Callable[[str], Path]
) -> None:
    run_dir = file.parent / "damaged"
    shutil.copytree(uninterrupted("device"), run_dir)
    arrays = [path for path in (run_dir / "checkpoints" / "40" / "arrays").rglob("*") if path.is_file()]
    largest = max((path for path in arrays if "/d/" in str(path)), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    pair = Pair(file.parent / "screens of damaged", "resume", run_dir, "--steps", 44)
    assert pair.wait() == [0, 0], pair.text("err0") + pair.text("err1")
    assert "is damaged and was set aside" in pair.text("err0")
    assert json.loads((run_dir / "result.json").read_text())["steps"] == 44


def test_one_process_goes_on_with_what_two_have_trained(file: Path, uninterrupted: Callable[[str], Path]) -> None:
    run_dir = file.parent / "stopped"
    pair = Pair(file.parent / "first part", *run_options(file, run_dir, "--steps", 20))
    assert pair.wait() == [0, 0], pair.text("err0") + pair.text("err1")
    alone = ["resume", str(run_dir), "--steps", "40", "--mesh", "data=1", "--quiet"]
    subprocess.run([sys.executable, "-c", MAIN, *alone], env=os.environ | CACHED, check=True, capture_output=True)
    two, one = (parameters.read(path) for path in (uninterrupted("device"), run_dir))
    for name, array in two.arrays.items():
        np.testing.assert_allclose(one.arrays[name], array, atol=1e-6, err_msg=name)


SCRIPT = """
import os

import jax

jax.distributed.initialize(num_processes=2, process_id=int(os.environ["JAX_PROCESS_ID"]))
import numpy as np

import foldax
from tests.conftest import Config, tiny

config = Config(mesh="data=-1", init_from="INITIAL", keep="best")
hook = foldax.Every(6, lambda step, state, context: print("hook", step, jax.process_index(), flush=True))
result = foldax.train(tiny, config, run_dir="RUN", hooks=hook, verbose=False)
assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(result.state))
assert result.predict(result.examples("test")["inputs"]).shape == (32, 2)
again = foldax.train(tiny, config, run_dir="RUN", resume="auto", verbose=False)
assert again.metrics["test"] == result.metrics["test"]
try:
    foldax.train(tiny, Config(mesh="data=1"), save=False, verbose=False)
except foldax.errors.ConfigError:
    print("goes on", foldax.train(tiny, config, save=False, verbose=False).status, flush=True)
"""


def test_a_script_of_two_processes_trains_loads_and_goes_on_after_an_error(
    file: Path, uninterrupted: Callable[[str], Path], tmp_path: Path, monkeypatch
) -> None:
    text = SCRIPT.replace("INITIAL", str(uninterrupted("device"))).replace("RUN", str(tmp_path / "run"))
    monkeypatch.setattr(f"{__name__}.MAIN", f"import sys; sys.path.insert(0, {str(ROOT)!r}){text}")
    pair = Pair(tmp_path)
    assert pair.wait() == [0, 0], pair.text("err0") + pair.text("err1")
    for i in range(2):
        assert pair.text(f"out{i}").splitlines() == [f"hook 6 {i}", f"hook 12 {i}", "goes on finished"]


@pytest.mark.parametrize(
    ("options", "environment", "text"),
    [
        (["--mesh", "data=2"], {}, "takes 2 of the 4 devices of 2 processes; a run needs all of them"),
        ([], {"FAILS": "1"}, "this host has no such file"),
    ],
)
def test_an_error_of_one_process_ends_all(
    file: Path, options: list[str], environment: dict[str, str], text: str, tmp_path: Path
) -> None:
    pair = Pair(tmp_path, *run_options(file, tmp_path / "run", *options), **environment)
    assert 0 not in pair.wait()
    assert text in pair.text("err0")
    assert text in pair.text("err1")
    assert "Traceback" not in pair.text("err0") + pair.text("err1")


class Service(dict):
    """JAX's coordination service, for two threads that are the processes of a test."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        assert allow_overwrite or key not in self
        self[key] = value

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        if key not in self:
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
        return self[key]

    def key_value_delete(self, key: str) -> None:
        self.pop(key, None)

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        return [(key, value) for key, value in self.copy().items() if key.startswith(f"{folder}/")]


@pytest.fixture
def service(monkeypatch) -> Service:
    service, here = Service(), threading.local()

    def state() -> SimpleNamespace:
        name = threading.current_thread().name
        number = int(name.removeprefix("process")) if name.startswith("process") else 0
        return SimpleNamespace(client=service, num_processes=2, process_id=number)

    def count_call(name: str) -> int:
        here.calls = getattr(here, "calls", collections.Counter())
        here.calls[name] += 1
        return here.calls[name] - 1

    monkeypatch.setattr(processes, "_state", state)
    monkeypatch.setattr(processes, "_count_call", count_call)
    monkeypatch.setattr(processes, "number_of_processes", lambda: 2)
    return service


def in_two_processes(function: Callable[[], object]) -> list[Exception | object]:
    """Calls a function in two threads, and returns what each one got."""
    found: list[Exception | object] = [None, None]

    def call(i: int) -> None:
        try:
            found[i] = function()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=call, args=(i,), name=f"process{i}") for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("error", [ValueError("no such host"), processes.errors.DataError("no such host")])
def test_no_process_waits_for_a_decision_that_failed(service: Service, error: Exception) -> None:
    def fail() -> None:
        raise error

    expected = processes.errors.RunError if isinstance(error, ValueError) else processes.errors.DataError
    for call in (processes.agree, processes.together):
        first, second = in_two_processes(lambda call=call: call("chunk", fail))
        assert first is error
        assert second is error or type(second) is expected
        assert "no such host" in str(second)


def test_a_process_that_has_not_come_to_a_block_is_not_lost(service: Service, monkeypatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(processes, "BEAT_SECONDS", 0.001)
    monkeypatch.setattr(processes, "LOST_SECONDS", -1.0)
    monkeypatch.setattr(processes, "_end", lambda problem, advice: ended.set())
    with processes.watch():
        beat = f"{processes.PREFIX}/watch/0/beat"
        while int(service.get(f"{beat}/0", 0)) < 5:
            assert not ended.is_set()
        service[f"{beat}/1"] = "1"  # it comes, and then is silent
        assert ended.wait(SECONDS)


def test_a_process_that_leaves_before_a_block_ends_the_others(service: Service, monkeypatch) -> None:
    problems: list[str] = []
    ended = threading.Event()
    monkeypatch.setattr(processes, "BEAT_SECONDS", 0.001)
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.001)
    monkeypatch.setattr(processes, "_end", lambda problem, advice: (problems.append(problem), ended.set()))
    service[f"{processes.PREFIX}/leaving/1"] = "2"
    with processes.watch():
        assert ended.wait(SECONDS)
    assert problems[0] == "process 1 of this run failed (exit code 2)"


def test_processes_that_cannot_be_connected_are_an_error(monkeypatch) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(processes.errors.ConfigError, match="FOLDAX_DISTRIBUTED=0"):
        processes.connect(is_wanted=False)
    monkeypatch.setenv("FOLDAX_DISTRIBUTED", "0")
    processes.connect(is_wanted=True)
    monkeypatch.setenv("FOLDAX_DISTRIBUTED", "yes")
    with pytest.raises(processes.errors.ConfigError, match="neither 0 nor 1"):
        processes.connect(is_wanted=True)
