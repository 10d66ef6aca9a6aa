"""The learner as it is now, for data that depends on it: who acts on the host asks it what to do."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from foldax.engine import fold as folds
from foldax.engine.fold import Program
from foldax.errors import ExperimentError


@functools.partial(jax.jit, static_argnames=("program", "stream"))
def _predict(program: Program, config: Any, seed: Any, state: Any, inputs: Any, number: Any, stream: str) -> Any:
    predict = folds.make_learner(program, config).predict
    if predict is None:
        raise ExperimentError("this learner has no `predict`, which its data needs")
    return predict(state, inputs, jax.random.fold_in(getattr(folds.streams(seed), stream), number))


class Newest(NamedTuple):
    """A learner and its newest state; holds no copy, so ask it only until the next update.

    Attributes:
      program: what is static.
      config: the traced config.
      seed: uint32 [], of the run.
      state: the learner's.
      stream: which of the run's key streams `predict` is given keys of.
    """

    program: Program
    config: Any
    seed: Any
    state: Any
    stream: str

    def __call__(self, inputs: Any, number: int) -> Any:
        """Returns what `predict` says of inputs, on the device; each `number` is another key."""
        which = np.uint32(number % 2**32)
        return _predict(self.program, self.config, self.seed, self.state, inputs, which, self.stream)
