"""Tokenizers: text to integers and back; and the English text that comes with Python.

A tokenizer has `encode(text)`, int32 `[T]`; `decode(tokens)`, the text; `vocabulary_size`, V; and `token_bytes`, int32
`[V]`, the length of each token in bytes of UTF-8 (0 for special tokens), by which losses are converted to bits per
byte. `decode(encode(text)) == text` for every text that `encode` accepts.
"""

import dataclasses
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from foldax.data.conversion import as_array
from foldax.errors import DataError, did_you_mean
from foldax.extras import import_extra

PROBE = "Two  Words, na\u00efve \u4e2d\n"  # a text that only a byte-level tokenizer gives back unchanged
REPLACEMENT_CHARACTER = "\ufffd"  # Unicode's mark for bytes that are not a character


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Byte-level tokenizer: tokens 0 to 255 are the bytes of UTF-8; special tokens follow from 256 on.

    Attributes:
      special_tokens: names of special tokens, such as ("begin", "end"); `encode` never produces them and `decode` skips
        them.

    >>> tokenizer = Bytes(("end",))
    >>> tokenizer.encode("aß").tolist(), tokenizer.token("end")
    ([97, 195, 159], 256)
    >>> tokenizer.decode([97, 195, 159, 256])
    'aß'
    """

    special_tokens: tuple[str, ...] = ()

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens: 256 bytes and the special tokens."""
        return 256 + len(self.special_tokens)

    @property
    def token_bytes(self) -> np.ndarray:
        """Length of each token in bytes, int32 `[V]`: 1 for bytes, 0 for special tokens."""
        return (np.arange(self.vocabulary_size) < 256).astype(np.int32)

    def token(self, name: str) -> int:
        """Looks up a special token by name; raises a DataError if it is unknown."""
        return 256 + _special_index(name, self.special_tokens)

    def encode(self, text: str) -> np.ndarray:
        """Encodes a text as its bytes, int32 `[T]`.

        Raises:
          DataError: the text holds half a surrogate pair, which has no UTF-8.
        """
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)

    def decode(self, tokens: ArrayLike) -> str:
        """Decodes tokens `[T]`; bytes that are not valid UTF-8 become the replacement character.

        Raises:
          DataError: a token is not in the vocabulary.
        """
        # Special tokens have no text.
        checked = _checked_tokens(tokens, self.vocabulary_size)
        return checked[checked < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")


@dataclasses.dataclass(frozen=True)
class Characters:
    """Character-level tokenizer: one token for each character of an alphabet.

    Attributes:
      characters: the alphabet, in the order of the tokens.
      unknown: adds a last token for all other characters; it decodes to the replacement character and counts 0 bytes.

    >>> tokenizer = Characters.from_text("hello")
    >>> tokenizer.characters, tokenizer.encode("hole").tolist()
    ('ehlo', [1, 3, 2, 0])
    """

    characters: str
    unknown: bool = False

    @staticmethod
    def from_text(text: str, *, unknown: bool = False) -> "Characters":
        """Builds the tokenizer of all characters of a text, ordered by code point."""
        return Characters("".join(sorted(set(text))), unknown)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens: the alphabet, and the unknown token if there is one."""
        return len(self.characters) + self.unknown

    @property
    def token_bytes(self) -> np.ndarray:
        """Length of each token in bytes of UTF-8, int32 `[V]`."""
        return np.array([len(_utf8(character)) for character in self.characters] + [0] * self.unknown, np.int32)

    @cached_property
    def _tokens(self) -> dict[str, int]:
        return {character: token for token, character in enumerate(self.characters)}

    def encode(self, text: str) -> np.ndarray:
        """Encodes a text, int32 `[T]`.

        Raises:
          DataError: a character is not in the alphabet, and there is no unknown token.
        """
        # -1 marks characters outside the alphabet.
        tokens = [self._tokens.get(character, -1) for character in text]
        if not self.unknown and -1 in tokens:
            position = tokens.index(-1)
            known = f"the {len(self.characters)} that this tokenizer knows"
            remedy = "build it from more text, or with unknown=True"
            raise DataError(f"character {text[position]!r} at position {position} is none of {known}; {remedy}")
        # The unknown token comes last.
        array = np.array(tokens, np.int32)
        return np.where(array < 0, np.int32(len(self.characters)), array)

    def decode(self, tokens: ArrayLike) -> str:
        """Decodes tokens `[T]`.

        Raises:
          DataError: a token is not in the vocabulary.
        """
        table = self.characters + REPLACEMENT_CHARACTER * self.unknown
        return "".join(table[token] for token in _checked_tokens(tokens, self.vocabulary_size))


@dataclasses.dataclass(frozen=True)
class BPE:
    """Byte-level byte-pair encoding (Sennrich et al., 2016; Radford et al., 2019), by Hugging Face `tokenizers`.

    It encodes any text, because single bytes are tokens.

    Attributes:
      json: the tokenizer, serialised by `tokenizers`.
      special_tokens: names of special tokens, which come first in the vocabulary; `encode` never produces them and
        `decode` skips them.
    """

    json: str
    special_tokens: tuple[str, ...] = ()

    @staticmethod
    def train(texts: str | Iterable[str], vocabulary_size: int, special_tokens: tuple[str, ...] = ()) -> "BPE":
        """Learns the merges from one or several texts; the same texts give the same tokenizer.

        Args:
          texts: training text or texts.
          vocabulary_size: number of tokens: special ones, 256 bytes, and merged pairs; fewer if the texts have no more
            pairs to merge.
          special_tokens: names of special tokens.

        Returns:
          The tokenizer.

        Raises:
          DataError: the vocabulary has no room for the bytes, a special token has the name of a merged word, or
            `tokenizers` is not installed.
        """
        smallest = 256 + len(special_tokens)
        if vocabulary_size < smallest:
            raise DataError(f"vocabulary_size={vocabulary_size} is too small; bytes and special tokens need {smallest}")
        tokenizers = import_extra("tokenizers", "text", DataError)
        # As GPT-2: words are split first, and every byte is in the initial alphabet, so that no text is unknown.
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=list(special_tokens),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        # Text without UTF-8 would fail inside `tokenizers` with a less helpful error.
        corpus = [texts] if isinstance(texts, str) else list(texts)
        for text in corpus:
            _utf8(text)
        tokenizer.train_from_iterator(corpus, trainer, length=len(corpus))
        trained = BPE(tokenizer.to_str(), tuple(special_tokens))
        for name in special_tokens:
            if trained.encode(name).tolist() == [trained.token(name)]:
                remedy = f"put signs around its letters, as in '<|{name}|>'"
                raise DataError(f"special_tokens: {name!r} is also a word of the texts; {remedy}")
        return trained

    @staticmethod
    def load(path: str | Path) -> "BPE":
        """Reads a JSON file written by `save`, or another byte-level tokenizer saved by `tokenizers`.

        Raises:
          DataError: the file is missing, or is no tokenizer from which every text comes back.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")  # without the byte order mark of some editors
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        # Only by using it can a file be recognised as a tokenizer.
        tokenizer = BPE(text)
        try:
            added = tokenizer._tokenizer.get_added_tokens_decoder()
        except DataError:
            raise
        except Exception as error:  # `tokenizers` raises a bare Exception
            raise DataError(f"{path} is not a tokenizer: {error}") from error
        tokenizer = BPE(text, tuple(added[token].content for token in sorted(added)))
        # Others (WordPiece, Unigram, with lower case or a space put first) lose text, and their bytes are not counted.
        tokens = tokenizer.encode(PROBE)
        if tokenizer.decode(tokens) != PROBE or tokenizer.token_bytes[tokens].sum() != len(_utf8(PROBE)):
            problem = f"{PROBE!r} comes back as {tokenizer.decode(tokens)!r}"
            raise DataError(f"{path} is not a byte-level tokenizer without normalisation or a prefix space: {problem}")
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Writes a JSON file that `load`, and `tokenizers` itself, can read."""
        Path(path).write_text(self.json, encoding="utf-8")

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = import_extra("tokenizers", "text", DataError).Tokenizer.from_str(self.json)
        tokenizer.encode_special_tokens = True  # the name of a special token in a text is encoded as text
        return tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, including special ones."""
        return int(self._tokenizer.get_vocab_size())

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Length of each token in bytes, int32 `[V]`; 0 for special tokens."""
        lengths = np.zeros(self.vocabulary_size, np.int32)
        for text, token in self._tokenizer.get_vocab().items():
            # A byte-level token is spelled with one character per byte.
            lengths[token] = 0 if text in self.special_tokens else len(text)
        return lengths

    def token(self, name: str) -> int:
        """Looks up a special token by name; raises a DataError if it is unknown."""
        return int(self._tokenizer.token_to_id(self.special_tokens[_special_index(name, self.special_tokens)]))

    def encode(self, text: str) -> np.ndarray:
        """Encodes a text, int32 `[T]`.

        Raises:
          DataError: the text holds half a surrogate pair, which has no UTF-8.
        """
        _utf8(text)
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: ArrayLike) -> str:
        """Decodes tokens `[T]`; bytes that are not valid UTF-8 become the replacement character.

        Raises:
          DataError: a token is not in the vocabulary.
        """
        return str(self._tokenizer.decode(_checked_tokens(tokens, self.vocabulary_size).tolist()))


def python_help_topics() -> dict[str, str]:
    """Loads the help topics of Python (`pydoc_data.topics`): texts by name, sorted by name.

    About 466 kB of English in every CPython; it differs a little between versions of Python.

    >>> python_help_topics()["assert"][:22]
    'The "assert" statement'
    """
    from pydoc_data.topics import topics

    return {name: topics[name] for name in sorted(topics)}


def python_help_text() -> str:
    """Loads the help topics of Python as one text: each name and its text, sorted by name.

    >>> python_help_text().splitlines()[:2]
    ['assert', 'The "assert" statement']
    """
    return "".join(f"{name}\n{text}\n" for name, text in python_help_topics().items())


def hold_out(text: str, fraction: float = 0.1) -> tuple[str, str]:
    """Splits a text in two, in order: a training text, and the end of the text for testing.

    Args:
      text: the whole text.
      fraction: length of the held-out text as a fraction of all bytes, rounded to a whole character.

    Returns:
      The training text and the held-out text.

    Raises:
      DataError: one of them would be empty.

    >>> hold_out("0123456789", 0.2)
    ('01234567', '89')
    """
    content = _utf8(text)
    cut = len(content) - round(len(content) * fraction)
    # UTF-8 continuation bytes are 0b10xxxxxx: step back to the start of the character.
    while 0 < cut < len(content) and content[cut] & 0xC0 == 0x80:
        cut -= 1
    if not 0 < cut < len(content):
        raise DataError(f"fraction={fraction!r} of {len(content)} bytes leaves one of the two texts empty")
    return content[:cut].decode("utf-8"), content[cut:].decode("utf-8")


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"character {text[error.start]!r} at position {error.start} has no UTF-8") from error


def _special_index(name: str, special_tokens: tuple[str, ...]) -> int:
    if name not in special_tokens:
        hint = did_you_mean(name, special_tokens)
        raise DataError(f"there is no special token {name!r}{hint}; there are {special_tokens}")
    return special_tokens.index(name)


def _checked_tokens(tokens: ArrayLike, vocabulary_size: int) -> np.ndarray:
    """Returns tokens as int64 `[T]`, or raises a DataError if one is not in the vocabulary."""
    array = as_array(tokens, "tokens", unit="position").reshape(-1)
    if array.size and array.dtype.kind not in "iu":
        raise DataError(f"tokens must be integers, not {array.dtype}")
    unknown = np.flatnonzero((array < 0) | (array >= vocabulary_size))
    if len(unknown):
        first = unknown[0]
        raise DataError(f"there is no token {array[first]} (position {first}); there are 0 to {vocabulary_size - 1}")
    return array.astype(np.int64)
