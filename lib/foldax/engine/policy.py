"""The current policy: a learner's `predict` with its state of this moment, for data that depends on the learner."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from foldax.engine import fold as folds
from foldax.engine.fold import Program
from foldax.errors import ExperimentError
from foldax.learner import State


@functools.partial(jax.jit, static_argnames=("program", "stream"))
def _predict(
    program: Program, config: Any, seed: jax.Array, state: State, inputs: Any, call: Any, stream: str
) -> jax.Array:
    predict = folds.make_learner(program, config).predict
    if predict is None:
        raise ExperimentError("this learner has no `predict`, which its data needs")
    with program.activate():
        return predict(state, inputs, jax.random.fold_in(getattr(folds.key_streams(seed), stream), call))


class CurrentPolicy(NamedTuple):
    """A learner and its current state, as a function of inputs.

    Borrows the state: invalid after the next update.

    Attributes:
      program: the static part of the run.
      config: the traced config.
      seed: uint32 [], of the run.
      state: the learner's state.
      stream: the key stream from which `predict` gets its keys: "data" or "evaluate".
    """

    program: Program
    config: Any
    seed: Any
    state: State
    stream: str

    def __call__(self, inputs: Any, number: int) -> jax.Array:
        """Computes `predict` of a batch of inputs, on the device; each `number` of a call has its own random key."""
        call = np.uint32(number % 2**32)
        return _predict(self.program, self.config, self.seed, self.state, inputs, call, self.stream)
