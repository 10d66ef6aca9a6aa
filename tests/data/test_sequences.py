"""Windows, padding and packing lose no token, count none twice, and keep their order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax import data
from foldax.errors import DataError

many = settings(max_examples=100, deadline=None)
lengths = st.lists(st.integers(1, 12), min_size=1, max_size=20)


def sequences_of(sizes, *shape):
    """Sequences of distinct steps."""
    ends = np.cumsum(sizes)
    steps = 1 + np.arange(ends[-1] * int(np.prod(shape))).reshape(-1, *shape)
    return [steps[end - size : end] for size, end in zip(sizes, ends)]


class TestWindows:
    @many
    @given(count=st.integers(2, 80), length=st.integers(1, 20), stride=st.integers(1, 20))
    def test_every_token_but_the_first_is_predicted_once(self, count, length, stride):
        stride = min(stride, length)
        tokens = np.arange(100, 100 + count)
        rows = data.token_windows(tokens, length, stride)
        inputs, weights = rows["inputs"], rows["weights"]
        assert inputs.dtype == np.int32
        assert weights.dtype == np.float32
        assert inputs.shape == weights.shape
        assert inputs.shape[1] == length + 1
        assert np.array_equal(inputs[weights > 0], tokens[1:])
        assert not weights[:, 0].any()
        for row, start in zip(inputs, range(0, count, stride)):
            real = row[row > 0]
            assert np.array_equal(real, tokens[start : start + length + 1])
            assert not row[len(real) :].any()
        assert np.all(weights.sum(axis=1) > 0)
        context = weights.argmax(axis=1)[1:]
        assert np.all(context >= length - stride + 1)

    def test_rows_of_small_examples(self):
        rows = data.token_windows([5, 6, 7, 8, 9, 10], 3, 2)
        assert rows["inputs"].tolist() == [[5, 6, 7, 8], [7, 8, 9, 10]]
        assert rows["weights"].tolist() == [[0, 1, 1, 1], [0, 0, 1, 1]]
        rows = data.token_windows(np.array([5, 6, 7, 8, 9], np.uint8), 3)
        assert rows["inputs"].tolist() == [[5, 6, 7, 8], [8, 9, 0, 0]]
        assert rows["weights"].tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]
        assert rows["inputs"].dtype == np.uint8

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([1], 4), r"at least 2, one to predict the other, not \[1\]"),
            (([], 4), "tokens must be integers, not float32"),
            (([[1, 2]], 4), r"not \[1, 2\]"),
            (([1.5, 2.5], 4), "must be integers, not float32"),
            ((["a", "b"], 4), "array of numbers"),
            (([1, 2, 3], 0), "length=0 is too small"),
            (([1, 2, 3], 2, 3), "stride=3 must be 1 to length=2"),
            (([1, 2, 3], 2, 0), "stride=0 must be 1 to length=2"),
        ],
    )
    def test_invalid_arguments_raise_helpful_errors(self, arguments, message):
        with pytest.raises(DataError, match=message):
            data.token_windows(*arguments)


@many
@given(sizes=lengths, shape=st.sampled_from([(), (3,)]), more=st.integers(0, 3))
def test_padding_keeps_every_step(sizes, shape, more):
    sequences = sequences_of(sizes, *shape)
    arrays = data.pad_sequences(sequences, max(sizes) + more)
    assert arrays["inputs"].shape == (len(sizes), max(sizes) + more, *shape)
    assert arrays["mask"].sum(axis=1).tolist() == sizes
    assert np.array_equal(arrays["inputs"][arrays["mask"] == 1], np.concatenate(sequences))
    assert not arrays["inputs"][arrays["mask"] == 0].any()
    assert np.all(np.diff(arrays["mask"], axis=1) <= 0)
    assert data.pad_sequences(sequences)["inputs"].shape[1] == max(sizes)


@many
@given(sizes=lengths, shape=st.sampled_from([(), (3,)]), length=st.integers(12, 30))
def test_packing_keeps_every_step_together_and_in_order(sizes, shape, length):
    sequences = sequences_of(sizes, *shape)
    packed = data.pack_sequences(sequences, length)
    inputs, mask = packed.arrays["inputs"], packed.arrays["mask"]
    assert inputs.shape == (*mask.shape, *shape)
    assert mask.shape[1] == length
    assert (mask > 0).sum() == sum(sizes)
    assert not inputs[mask == 0].any()
    for sequence, row, start in zip(sequences, packed.rows, packed.starts):
        end = start + len(sequence)
        assert np.array_equal(inputs[row, start:end], sequence)
        assert len(set(mask[row, start:end])) == 1
        assert (mask[row] == mask[row, start]).sum() == len(sequence)
    for row in mask:
        real = row[row > 0]
        assert set(np.diff(real, prepend=0)) <= {0, 1}  # 1, 2, ... from left to right
        assert real[0] == 1
        assert not row[len(real) :].any()
    assert packed.packing_efficiency == pytest.approx(sum(sizes) / mask.size)
    assert packed.padding_efficiency == pytest.approx(sum(sizes) / (len(sizes) * length))


@many
@given(sizes=lengths, length=st.integers(1, 12))
def test_long_sequences_are_split_or_truncated_on_request(sizes, length):
    sequences = sequences_of(sizes)
    packed = data.pack_sequences(sequences, length, too_long="split")
    packed_steps = packed.arrays["inputs"][packed.arrays["mask"] > 0]
    assert np.array_equal(np.sort(packed_steps), np.concatenate(sequences))
    starts = [sequence[:length] for sequence in sequences]
    cut = data.pad_sequences(sequences, length, too_long="truncate")
    assert np.array_equal(cut["inputs"][cut["mask"] > 0], np.concatenate(starts))
    packed = data.pack_sequences(sequences, length, too_long="truncate").arrays
    assert np.array_equal(np.sort(packed["inputs"][packed["mask"] > 0]), np.concatenate(starts))


def test_packing_is_first_fit():
    packed = data.pack_sequences(sequences_of([3, 3, 2, 1, 1]), 5)
    assert packed.rows.tolist() == [0, 1, 0, 1, 1]
    assert packed.starts.tolist() == [0, 0, 3, 3, 4]
    assert packed.arrays["mask"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 2, 3]]
    assert (packed.packing_efficiency, packed.padding_efficiency) == (1.0, 0.4)


def test_dtypes_are_32_bits_wide():
    assert data.pad_sequences([[1, 2], [3]])["inputs"].dtype == np.int32
    assert data.pad_sequences([[1, 2], [3.5]])["inputs"].dtype == np.float32
    assert data.pack_sequences([np.ones((2, 3))], 4).arrays["inputs"].dtype == np.float32


@pytest.mark.parametrize("function", [data.pad_sequences, data.pack_sequences])
@pytest.mark.parametrize(
    ("sequences", "options", "message"),
    [
        ([], {}, "there are no sequences"),
        ([[1], []], {}, "sequence 1 is empty"),
        ([[1], [[1.0, 2.0]]], {}, r"sequence 1 has the shape \[1, 2\], but sequence 0 has \[1\]"),
        ([np.ones((2, 3)), np.ones((2, 4))], {}, r"sequence 1 has the shape \[2, 4\]"),
        ([1], {}, r"sequence 0 has the shape \[\]"),
        (["text"], {}, "sequence 0 must be an array of numbers"),
        ([[[1], [1, 2]]], {}, "sequence 0 must be an array of numbers"),
        ([[1, 2], [1] * 9, [1] * 6], {}, r"sequence 1 has 9 steps, but length=5 \(2 of 3 are too long\)"),
        ([[1]], {"length": 0}, "length=0 is too small"),
        ([[1]], {"too_long": "ignore"}, "too_long='ignore' is none of"),
    ],
)
def test_invalid_sequences_raise_helpful_errors(function, sequences, options, message):
    with pytest.raises(DataError, match=message):
        function(sequences, **{"length": 5, **options})
