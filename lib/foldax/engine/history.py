"""The log of a run in memory."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from foldax.engine.contracts import LOG_FIELDS

Line = dict[str, Any]


class History(Sequence[Line]):
    """The lines of a log, `{"step": ..., "split": ..., name: value}`, kept as numbers: a run may log a million of them.

    Args:
      lines: the first lines.

    >>> history = History([{"step": 5, "split": "train", "loss": 0.5}])
    >>> history.extend([{"step": 9, "split": "train", "loss": 0.25}])
    >>> history[-1], len(history)
    ({'step': 9, 'split': 'train', 'loss': 0.25}, 2)
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self._kinds: list[tuple[str, ...]] = []  # split and names of the metrics of a line
        self._lines, self._values = array("q"), array("d")  # kind, step and first value of each line; all values
        self.extend(lines)

    def extend(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines at the end."""
        for line in lines:
            names = [name for name in line if name not in LOG_FIELDS]
            kind = (line["split"], *names)
            if kind not in self._kinds:
                self._kinds.append(kind)
            self._lines.extend((self._kinds.index(kind), line["step"], len(self._values)))
            self._values.extend(line[name] for name in names)

    def __len__(self) -> int:
        return len(self._lines) // 3

    @overload
    def __getitem__(self, index: int) -> Line: ...

    @overload
    def __getitem__(self, index: slice) -> list[Line]: ...

    def __getitem__(self, index: int | slice) -> Line | list[Line]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = 3 * range(len(self))[index]
        kind, step, first = self._lines[start : start + 3]
        split, *names = self._kinds[kind]
        return {"step": step, "split": split, **dict(zip(names, self._values[first : first + len(names)]))}

    def __iter__(self) -> Iterator[Line]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))
