"""Tests of signals that stop a run."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import foldax
from foldax.errors import Interrupted
from foldax.runs import folder
from foldax.runs.signals import stop_on_signals
from tests.conftest import Config, tiny

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def noticed_hangup() -> Iterator[None]:
    """Handles SIGHUP as without `nohup`, under which the tests may run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("first", "second"), list(zip(NUMBERS, NUMBERS[1:] + NUMBERS[:1])))
def test_the_first_signal_asks_to_stop_and_a_second_one_of_any_kind_stops_at_once(first, second) -> None:
    before = signal.getsignal(first), signal.getsignal(second)
    with stop_on_signals() as stop_requested:
        assert not stop_requested()
        signal.raise_signal(first)
        assert stop_requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
    assert (signal.getsignal(first), signal.getsignal(second)) == before


def test_nohup_is_respected() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signals() as stop_requested:
        signal.raise_signal(signal.SIGHUP)
        assert not stop_requested()


DEAF = """
import os, signal, threading, time
from foldax.runs import signals
signals.SECONDS_TO_END = 0.0
with signals.stop_on_signals():
    # As in XLA's compiler: no handler runs in the main thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    def kill_twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
    threading.Thread(target=kill_twice).start()
    time.sleep(60)
"""


def test_a_second_signal_ends_a_process_that_runs_no_handlers() -> None:
    assert subprocess.run([sys.executable, "-c", DEAF], timeout=50).returncode == 128 + signal.SIGTERM


def test_a_signal_while_data_load_ends_the_run_at_once(tmp_path: Path) -> None:
    def dataset(config: Config) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the signal did not end the loading of data")

    path = tmp_path / "r"
    with pytest.raises(Interrupted, match="stopped before its first step; go on with: foldax resume"):
        foldax.train(tiny._replace(dataset=dataset), run_dir=path, verbose=False)
    assert folder.read_json(path / "manifest.json")["status"] == "interrupted"
