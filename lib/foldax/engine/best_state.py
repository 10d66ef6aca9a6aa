"""The best evaluation of a run, which decides what state is kept and when a run stops early; traced like the fold."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from foldax.engine.fold import Fold, Program, inference_state
from foldax.learner import State


class BestState(NamedTuple):
    """The best evaluation so far, for model selection and early stopping.

    Attributes:
      value: float32 [], of the monitored metric.
      step: int32 [], when it was reached, or -1.
      evaluations_without_improvement: int32 [], number of evaluations since.
      stopped: bool [], whether patience ran out: from then on `advance` does nothing.
      state: `inference_state` of the learner's state at that step; None where it is not kept.
    """

    value: jax.Array
    step: jax.Array
    evaluations_without_improvement: jax.Array
    stopped: jax.Array
    state: State | None


def initial_best(state: State | None) -> BestState:
    """Creates the `BestState` before any evaluation, on the host; with a state, the best state will be kept."""
    return BestState(np.array(0, np.float32), np.array(-1, np.int32), np.array(0, np.int32), np.array(False), state)  # type: ignore[arg-type]


def update_best(
    program: Program, config: Any, best: BestState, fold: Fold, value: jax.Array, sign: jax.Array, patience: jax.Array
) -> tuple[BestState, jax.Array]:
    """Compares an evaluation with the best one so far, and stops early when patience runs out.

    Args:
      program: the static part of the run.
      config: the experiment's traced config.
      best: the best evaluation so far.
      fold: the fold that was evaluated.
      value: float [], the monitored metric.
      sign: float [], 1 if larger is better, -1 if smaller is.
      patience: int32 [], number of evaluations without improvement after which the run stops.

    Returns:
      `(best, stopped)`; the host reads the second while the first goes on.
    """
    chex.assert_rank([value, sign, patience], 0)
    value = jnp.asarray(value, jnp.float32)
    nonfinite = fold.nonfinite_step.values()
    # A state after a non-finite update is never the best, even if its evaluation looks good.
    finite = jnp.stack([step < 0 for step in nonfinite]).all() if nonfinite else jnp.bool_(True)
    better = jnp.isfinite(value) & ((best.step < 0) | (sign * value > sign * best.value)) & ~best.stopped & finite
    evaluations = best.evaluations_without_improvement + jnp.where(best.stopped, 0, 1)
    evaluations = jnp.where(better, 0, evaluations)
    # Selected, not branched: the same program serves vmapped members, of which some improve.
    state = best.state
    if state is not None:
        new_state = inference_state(program, config, fold.state)
        state = jax.tree.map(lambda new, old: jnp.where(better, new, old), new_state, state)
    stopped = best.stopped | (evaluations >= patience) | ~finite
    value, step = jnp.where(better, value, best.value), jnp.where(better, fold.step, best.step)
    return BestState(value, step, evaluations, stopped, state), stopped
