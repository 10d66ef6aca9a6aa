"""The language model of bytes: its splits, and the baselines it is compared to."""

import dataclasses
import lzma
import sys
from collections import Counter

import numpy as np
import pytest

from foldax import data
from tests.conftest import ROOT, shrunk

FILE = ROOT / "experiments" / "supervised" / "text_bytes.py"
EXPERIMENT, CONFIG = shrunk(FILE)
MODULE = sys.modules[EXPERIMENT.learner.__module__]


def plain_witten_bell(before: bytes, after: bytes, order: int) -> np.ndarray:
    """Returns the bits of the same n-gram model from dictionaries, byte by byte."""
    counts: Counter = Counter()
    for length in range(1, order + 1):
        counts.update(before[i : i + length] for i in range(len(before) - length + 1))
    followers: dict[bytes, dict[bytes, int]] = {}
    for gram, count in counts.items():
        followers.setdefault(gram[:-1], {})[gram[-1:]] = count
    bits = []
    for place in range(len(before), len(before) + len(after)):
        history, probability = (before + after)[:place], 1 / 256
        for length in range(order):
            counts_after = followers.get(history[len(history) - length :], {})
            if counts_after:
                count = counts_after.get(after[place - len(before)].to_bytes(), 0)
                probability = (count + len(counts_after) * probability) / (
                    sum(counts_after.values()) + len(counts_after)
                )
        bits.append(-np.log2(probability))
    return np.array(bits)


def tokens(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8).astype(np.int32)


@pytest.mark.parametrize("order", [1, 2, 5, 7])
def test_witten_bell_equals_a_plain_implementation(order: int) -> None:
    text = data.python_help_text().encode()
    before, after = text[:3000], text[3000:3400]
    bits = MODULE.witten_bell(tokens(before), tokens(after), order)
    np.testing.assert_allclose(bits, plain_witten_bell(before, after, order), rtol=1e-12)


def test_witten_bell_of_three_bytes_by_hand() -> None:
    # "aab": a is 2 of 3, of two kinds; nothing follows "b", so the shorter context decides.
    bits = MODULE.witten_bell(tokens(b"aab"), tokens(b"a"), 2)
    np.testing.assert_allclose(bits, -np.log2((2 + 2 / 256) / 5))


def test_witten_bell_is_a_distribution() -> None:
    before = tokens(data.python_help_text().encode()[:5000])
    bits = [MODULE.witten_bell(before, np.array([byte]), 5)[0] for byte in range(256)]
    np.testing.assert_allclose(np.exp2(-np.array(bits)).sum(), 1.0)


def test_xz_bits_are_those_that_are_added_to_the_file() -> None:
    before, after = b"some words, and others" * 20, b"and others, some words"
    size = len(lzma.compress(before + after, preset=9 | lzma.PRESET_EXTREME))
    size -= len(lzma.compress(before, preset=9 | lzma.PRESET_EXTREME))
    assert MODULE.xz_bits(tokens(before), tokens(after)) == pytest.approx(8 * size / len(after))


def test_last_tenth_is_predicted_once_and_never_trained_on() -> None:
    config = dataclasses.replace(CONFIG, context_length=64)
    text = tokens(data.python_help_text().encode())
    _, test = data.hold_out(data.python_help_text())
    pieces = MODULE.split_bytes()
    size = len(test.encode())
    assert abs(size / len(text) - 0.1) < 1e-4
    train, validation = pieces["train"], pieces["validation"][0]
    held_out = np.concatenate([train[0], validation[1:], train[1], pieces["test"][0][1:]])
    np.testing.assert_array_equal(held_out, text)  # every byte in one split, besides the byte that predicts the first

    dataset = MODULE.experiment.dataset(config)
    for split, count in (("validation", len(validation) - 1), ("test", size)):
        weights = [np.asarray(b.batches["weights"])[np.asarray(b.mask)] for b in dataset.splits[split].blocks()]
        assert sum(w[:, 1:].sum() for w in weights) == count
    rows = np.asarray(dataset.train.examples()["inputs"])
    known = {bytes(piece[i : i + 65].astype(np.uint8)) for piece in train for i in range(0, len(piece), 16)}
    assert {bytes(row.astype(np.uint8)) for row in rows} <= known
