"""The log in memory: its lines come back as they were, and a million of them need little room."""

import math
import tracemalloc

from foldax.engine.history import History

LINES = [
    {"step": 4, "split": "train", "loss": 0.1, "return": -math.inf},
    {"step": 4, "split": "validation", "loss": 1e-300},
    {"step": 2**31 - 1, "split": "train", "loss": 0.3},
]


def test_lines_come_back_as_they_were() -> None:
    history = History(iter(LINES))
    assert history == LINES == list(history)
    assert [list(line) for line in history] == [list(line) for line in LINES]
    assert (history[-1], history[:2], len(history)) == (LINES[-1], LINES[:2], 3)
    assert not History()


def test_a_line_takes_the_room_of_its_numbers() -> None:
    tracemalloc.start()
    history = History({"step": step, "split": "train", "loss": 0.5 * step, "accuracy": 0.1} for step in range(50_000))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(history) < 60  # 5 numbers of 8 bytes
