"""Tokenizers decode every text they encode, and count every byte."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax import data
from foldax.errors import DataError

SPECIAL = ("<|begin|>", "<|end|>")
CORPUS = "the cat sat on the mat; the dog sat on the log. Größe, 日本語, 🙂 <|end|>\r\n\tthe end" * 3
tokenizers = pytest.importorskip("tokenizers")
TRAINED_BPE = data.BPE.train(CORPUS, 300, SPECIAL)


@settings(max_examples=200, deadline=None)
@given(st.text())
@pytest.mark.parametrize(
    "make_tokenizer", [lambda _: data.Bytes(SPECIAL), data.Characters.from_text, lambda _: TRAINED_BPE]
)
def test_every_text_is_recovered_and_its_bytes_are_counted(make_tokenizer, text):
    tokenizer = make_tokenizer(text)
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32
    assert tokens.ndim == 1
    assert tokenizer.decode(tokens) == text
    assert tokenizer.token_bytes.shape == (tokenizer.vocabulary_size,)
    assert tokenizer.token_bytes[tokens].sum() == len(text.encode())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, TRAINED_BPE.vocabulary_size - 1)))
def test_any_tokens_decode_to_some_text(tokens):
    assert isinstance(TRAINED_BPE.decode(tokens), str)
    assert isinstance(data.Bytes().decode([token % 256 for token in tokens]), str)


def test_byte_tokenizer():
    tokenizer = data.Bytes(SPECIAL)
    assert tokenizer.vocabulary_size == 258
    assert tokenizer.encode("aß").tolist() == [97, 195, 159]
    assert (tokenizer.token("<|begin|>"), tokenizer.token("<|end|>")) == (256, 257)
    assert tokenizer.decode([256, 97, 257]) == "a"
    assert tokenizer.decode([195]) == "\ufffd"
    assert tokenizer.token_bytes.tolist() == [1] * 256 + [0, 0]
    assert data.Bytes().vocabulary_size == 256


def test_character_tokenizer():
    tokenizer = data.Characters.from_text("hello ß")
    assert tokenizer.characters == " ehloß"
    assert tokenizer.encode("oh").tolist() == [4, 2]
    assert tokenizer.token_bytes.tolist() == [1, 1, 1, 1, 1, 2]
    with pytest.raises(DataError, match="character 'x' at position 2 is none of the 6"):
        tokenizer.encode("hex")
    lenient = data.Characters.from_text("hello ß", unknown=True)
    assert lenient.encode("hex").tolist() == [2, 1, 6]
    assert lenient.decode([2, 1, 6]) == "he\ufffd"
    assert lenient.token_bytes.tolist() == [1, 1, 1, 1, 1, 2, 0]


def test_the_most_frequent_pairs_are_merged():
    tokenizer = data.BPE.train(["low low low low", "lower newest newest"], 259)
    # "lo" and "low" come 5 times each; then "Ġlow" (3), before "ne", "ew", "es", "st" (2).
    assert [tokenizer.decode([token]) for token in range(256, 259)] == ["lo", "low", " low"]
    assert tokenizer.encode("low low").tolist() == [257, 258]
    assert tokenizer.token_bytes[256:].tolist() == [2, 3, 4]


def test_special_tokens_are_not_text():
    tokenizer = data.BPE.train(CORPUS, 300, ("<|end|>",))
    end = tokenizer.token("<|end|>")
    tokens = tokenizer.encode("a<|end|>")
    assert end not in tokens
    assert tokenizer.decode(tokens) == "a<|end|>"
    assert tokenizer.decode([*tokens, end]) == "a<|end|>"
    assert tokenizer.token_bytes[end] == 0


def test_the_vocabulary_is_smaller_when_there_are_no_more_pairs():
    assert data.BPE.train("ab", 1000).vocabulary_size == 257


def test_training_is_deterministic_across_processes():
    code = f"from foldax import data; print(data.BPE.train({CORPUS!r}, 300, {SPECIAL!r}).json, end='')"
    environment = {"PYTHONHASHSEED": "1", "PYTHONUTF8": "1", "RAYON_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert result.stdout.decode() == TRAINED_BPE.json


def test_saved_tokenizer_can_be_loaded(tmp_path):
    TRAINED_BPE.save(tmp_path / "bpe.json")
    again = data.BPE.load(tmp_path / "bpe.json")
    assert again == TRAINED_BPE
    assert again.encode(CORPUS).tolist() == TRAINED_BPE.encode(CORPUS).tolist()
    (tmp_path / "bad.json").write_text('{"model": 1}')
    with pytest.raises(DataError, match=r"bad\.json is not a tokenizer"):
        data.BPE.load(tmp_path / "bad.json")
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        data.BPE.load(tmp_path / "none.json")
    (tmp_path / "marked.json").write_text(TRAINED_BPE.json, encoding="utf-8-sig")  # with a byte order mark
    assert data.BPE.load(tmp_path / "marked.json") == TRAINED_BPE


@pytest.mark.parametrize("kind", ["words", "prefix space", "lower case"])
def test_a_tokenizer_that_loses_text_is_refused(tmp_path, kind):
    tokenizer = tokenizers.Tokenizer.from_str(TRAINED_BPE.json)
    if kind == "words":
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    elif kind == "prefix space":
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "other.json"))
    with pytest.raises(DataError, match=r"other\.json is not a byte-level tokenizer .*: 'Two  Words.* comes back as"):
        data.BPE.load(tmp_path / "other.json")


@pytest.mark.parametrize("tokenizer", [data.Bytes(SPECIAL), data.Characters("abc"), TRAINED_BPE])
def test_unknown_tokens_raise_helpful_errors(tokenizer):
    size = tokenizer.vocabulary_size
    for bad in (-1, size):
        with pytest.raises(DataError, match=rf"no token {bad} \(position 1\); there are 0 to {size - 1}"):
            tokenizer.decode(np.array([0, bad]))
    with pytest.raises(DataError, match="tokens must be integers, not float32"):
        tokenizer.decode([0.5])
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("tokenizer", [data.Bytes(SPECIAL), TRAINED_BPE])
def test_text_without_utf8_raises_a_helpful_error(tokenizer):
    with pytest.raises(DataError, match=r"character '\\ud800' at position 1 has no UTF-8"):
        tokenizer.encode("a\ud800")
    with pytest.raises(DataError, match=r"no special token '<end>'; did you mean '<\|end\|>'\?"):
        tokenizer.token("<end>")


def test_a_vocabulary_smaller_than_the_bytes_is_an_error():
    with pytest.raises(DataError, match="vocabulary_size=257 is too small; bytes and special tokens need 258"):
        data.BPE.train("text", 257, SPECIAL)


def test_a_special_token_that_is_a_word_of_the_texts_is_an_error():
    with pytest.raises(DataError, match=r"'end' is also a word of the texts; .* '<\|end\|>'"):
        data.BPE.train("tend bend send " * 9, 300, ("end",))


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"tokenizers is not installed: pip install 'foldax\[text\]'"):
        data.BPE.train("text", 300)
    with pytest.raises(DataError, match=r"pip install 'foldax\[text\]'"):
        dataclasses.replace(TRAINED_BPE).encode("text")


def test_python_help_topics():
    topics = data.python_help_topics()
    assert list(topics) == sorted(topics)
    assert 'The "assert" statement' in topics["assert"]
    text = data.python_help_text()
    assert text.startswith('assert\nThe "assert" statement')
    assert len(text) == sum(len(name) + len(topic) + 2 for name, topic in topics.items()) > 400_000


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=2), st.sampled_from([0.1, 0.5, 0.9]))
def test_the_end_of_the_text_is_held_out(text, fraction):
    size = len(text.encode())
    try:
        train, held_out = data.hold_out(text, fraction)
    except DataError:
        assert size * min(fraction, 1 - fraction) < 4
        return
    assert train + held_out == text
    assert train
    assert held_out
    assert abs(len(held_out.encode()) - fraction * size) < 4


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.0])
def test_an_empty_split_is_an_error(fraction):
    with pytest.raises(DataError, match="leaves one of the two texts empty"):
        data.hold_out("text", fraction)
