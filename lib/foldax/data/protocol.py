"""What a source of data gives the driver: blocks of batches, to train on and to evaluate."""

from __future__ import annotations

from typing import Any, NamedTuple


class Block(NamedTuple):
    """Data of some training steps; by default what stands in for it where there is no dataset.

    Attributes:
      data: pytree of device arrays, the first argument of the source's `feed.batch`.
      start: its first step.
      end: the step after its last one; None if it serves for ever.
      cursor: JSON-able state of the source's iterator at the start of the block; None if there is none.
    """

    data: Any = None
    start: int = 0
    end: int | None = None
    cursor: dict[str, Any] | None = None


class EvalBlock(NamedTuple):
    """Examples of an evaluation split.

    Attributes:
      batches: arrays `[K, B, ...]` by key.
      mask: bool `[K, B]`, False for padding.
    """

    batches: dict[str, Any]
    mask: Any
