"""Tokenizers: text to integers and back; and the English text that comes with Python.

All have `encode(text)`, int32 `[T]`; `decode(tokens)`, the text; `vocabulary_size`, V; and `token_bytes`, int32 `[V]`,
how many bytes of UTF-8 each token stands for (special ones for none), which bits per byte are measured with.
`decode(encode(text)) == text` for every text that `encode` takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foldax.data.extras import optional
from foldax.errors import DataError, nearest

REPLACEMENT = "\ufffd"  # what stands for what is no character


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Tokens are the bytes of UTF-8, 0 to 255, and special tokens from 256 on.

    Attributes:
      special: names of the special tokens, such as ("begin", "end"); `encode` makes none of them, `decode` skips them.
    """

    special: tuple[str, ...] = ()

    @property
    def vocabulary_size(self) -> int:
        """256, and one for each special token."""
        return 256 + len(self.special)

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 `[V]`: 1 for bytes, 0 for special tokens."""
        return (np.arange(self.vocabulary_size) < 256).astype(np.int32)

    def token(self, name: str) -> int:
        """Returns the special token of that name.

        Raises:
          DataError: if there is none.
        """
        return 256 + _position(name, self.special)

    def encode(self, text: str) -> np.ndarray:
        """Returns the bytes of a text, int32 `[T]`.

        Raises:
          DataError: if the text has half a surrogate pair, which has no UTF-8.
        """
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)

    def decode(self, tokens: Any) -> str:
        """Returns the text of tokens `[T]`; bytes that are no UTF-8 become the replacement character.

        Raises:
          DataError: if there is no such token.
        """
        checked = _checked_tokens(tokens, self.vocabulary_size)
        return checked[checked < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")


@dataclasses.dataclass(frozen=True)
class Characters:
    """Tokens are the characters that a text has.

    Attributes:
      characters: the characters, in the order of their tokens.
      unknown: whether there is one more token, the last, for all other characters. It decodes to the replacement
        character and counts as no byte.
    """

    characters: str
    unknown: bool = False

    @staticmethod
    def of(text: str, *, unknown: bool = False) -> Characters:
        """Returns the tokenizer of all characters in a text, in the order of their code points."""
        return Characters("".join(sorted(set(text))), unknown)

    @property
    def vocabulary_size(self) -> int:
        """One for each character, and one for those that are unknown, if chosen."""
        return len(self.characters) + self.unknown

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 `[V]`, bytes of each character in UTF-8."""
        return np.array([len(_utf8(character)) for character in self.characters] + [0] * self.unknown, np.int32)

    @cached_property
    def _tokens(self) -> dict[str, int]:
        return {character: token for token, character in enumerate(self.characters)}

    def encode(self, text: str) -> np.ndarray:
        """Returns the tokens of a text, int32 `[T]`.

        Raises:
          DataError: if a character is not known, unless there is a token for these.
        """
        tokens = [self._tokens.get(character, -1) for character in text]
        if not self.unknown and -1 in tokens:
            position = tokens.index(-1)
            raise DataError(
                f"character {text[position]!r} at position {position} is none of the {len(self.characters)} that this "
                "tokenizer knows; make it of more text, or with unknown=True"
            )
        array = np.array(tokens, np.int32)
        return np.where(array < 0, np.int32(len(self.characters)), array)

    def decode(self, tokens: Any) -> str:
        """Returns the text of tokens `[T]`.

        Raises:
          DataError: if there is no such token.
        """
        table = self.characters + REPLACEMENT * self.unknown
        return "".join(table[token] for token in _checked_tokens(tokens, self.vocabulary_size))


@dataclasses.dataclass(frozen=True)
class BPE:
    """Byte-pair encoding of bytes (Sennrich, Haddow & Birch, 2016; Radford et al., 2019), by Hugging Face `tokenizers`.

    Any text has tokens, since single bytes are among them.

    Attributes:
      json: the whole tokenizer, as `tokenizers` writes it.
      special: names of the special tokens, the first of the vocabulary; `encode` makes none, `decode` skips them.
    """

    json: str
    special: tuple[str, ...] = ()

    @staticmethod
    def train(texts: str | Iterable[str], vocabulary_size: int, special: tuple[str, ...] = ()) -> BPE:
        """Learns the pairs of a text, or of several; the same texts give the same tokenizer.

        Args:
          texts: what to learn from.
          vocabulary_size: number of tokens: special ones, 256 bytes, and pairs; fewer where the text has no more pairs.
          special: names of special tokens.

        Raises:
          DataError: if the vocabulary has no room for the bytes, or `tokenizers` is not installed.
        """
        least = 256 + len(special)
        if vocabulary_size < least:
            raise DataError(f"vocabulary_size={vocabulary_size} is too small; bytes and special tokens need {least}")
        tokenizers = optional("tokenizers", "text")
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=list(special),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        listed = [texts] if isinstance(texts, str) else list(texts)
        for text in listed:
            _utf8(text)
        tokenizer.train_from_iterator(listed, trainer, length=len(listed))
        return BPE(tokenizer.to_str(), tuple(special))

    @staticmethod
    def load(path: str | Path) -> BPE:
        """Reads the JSON file that `save` wrote, or another byte-level tokenizer's of `tokenizers`.

        Raises:
          DataError: if it is not there, or no such tokenizer.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        tokenizer = BPE(text)
        try:
            added = tokenizer._tokenizer.get_added_tokens_decoder()
        except DataError:
            raise
        except Exception as error:  # of a kind that `tokenizers` does not name
            raise DataError(f"{path} is no tokenizer: {error}") from error
        return BPE(text, tuple(added[token].content for token in sorted(added)))

    def save(self, path: str | Path) -> None:
        """Writes a JSON file that `load`, and `tokenizers` itself, can read."""
        Path(path).write_text(self.json, encoding="utf-8")

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = optional("tokenizers", "text").Tokenizer.from_str(self.json)
        tokenizer.encode_special_tokens = True  # a special token's name in a text is text
        return tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, special ones included."""
        return int(self._tokenizer.get_vocab_size())

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 `[V]`, bytes of each token, 0 for special ones."""
        sizes = np.zeros(self.vocabulary_size, np.int32)
        for text, token in self._tokenizer.get_vocab().items():
            sizes[token] = 0 if text in self.special else len(text)  # a byte-level token has a character for each byte
        return sizes

    def token(self, name: str) -> int:
        """Returns the special token of that name.

        Raises:
          DataError: if there is none.
        """
        return int(self._tokenizer.token_to_id(self.special[_position(name, self.special)]))

    def encode(self, text: str) -> np.ndarray:
        """Returns the tokens of a text, int32 `[T]`.

        Raises:
          DataError: if the text has half a surrogate pair, which has no UTF-8.
        """
        _utf8(text)
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: Any) -> str:
        """Returns the text of tokens `[T]`; bytes that are no UTF-8 become the replacement character.

        Raises:
          DataError: if there is no such token.
        """
        return str(self._tokenizer.decode(_checked_tokens(tokens, self.vocabulary_size).tolist()))


def topics() -> dict[str, str]:
    """Returns the help topics of Python, `pydoc_data.topics`, texts by name in the order of their names.

    English of about 466 kB in every CPython; which, differs a little from one version of Python to the next.
    """
    from pydoc_data.topics import topics as texts

    return {name: texts[name] for name in sorted(texts)}


def topics_text() -> str:
    """Returns the help topics of Python as one text: each one's name and text, in the order of the names."""
    return "".join(f"{name}\n{text}\n" for name, text in topics().items())


def hold_out(text: str, fraction: float = 0.1) -> tuple[str, str]:
    """Cuts off the end of a text: what comes before, and about that fraction of its bytes, from a whole character on.

    Raises:
      DataError: if one of them would be empty.
    """
    content = _utf8(text)
    cut = len(content) - round(len(content) * fraction)
    while 0 < cut < len(content) and content[cut] & 0xC0 == 0x80:  # inside a character
        cut -= 1
    if not 0 < cut < len(content):
        raise DataError(f"fraction={fraction!r} of {len(content)} bytes leaves one of the two texts empty")
    return content[:cut].decode("utf-8"), content[cut:].decode("utf-8")


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"character {text[error.start]!r} at position {error.start} has no UTF-8") from error


def _position(name: str, special: tuple[str, ...]) -> int:
    if name not in special:
        raise DataError(f"there is no special token {name!r}{nearest(name, special)}; there are {special}")
    return special.index(name)


def _checked_tokens(tokens: Any, vocabulary_size: int) -> np.ndarray:
    """Returns tokens `[T]` as int64, if all are in the vocabulary."""
    array = np.asarray(tokens).reshape(-1)
    if array.size and array.dtype.kind not in "iu":
        raise DataError(f"tokens must be integers, not {array.dtype}")
    bad = np.flatnonzero((array < 0) | (array >= vocabulary_size))
    if len(bad):
        raise DataError(f"there is no token {array[bad[0]]} (position {bad[0]}); there are 0 to {vocabulary_size - 1}")
    return array.astype(np.int64)
