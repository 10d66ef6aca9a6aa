"""The result of a run: the trained state and its metrics."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from foldax import processes
from foldax.engine.current_program import inputs_of
from foldax.errors import ExperimentError
from foldax.experiment import Experiment
from foldax.learner import Learner, State
from foldax.mesh import fetch

HOST_BYTES = 8 << 30  # of the largest state that each of several processes gets as a whole


def to_one_process(state: State, final_state: State, dataset: Any) -> tuple[State, State, Any]:
    """Frees the results of a run of several processes from the others; returns those of one process as they are.

    States come to the host of each process, as NumPy, unless they are too large: those stay divided. Data are read
    again, by each process all of them, where they are used.

    Args:
      state: the learner's state to keep.
      final_state: its state after the last step, which may be the same.
      dataset: the data, or None.
    """
    if processes.number_of_processes() == 1:
        return state, final_state, dataset
    if dataset is not None:
        dataset = dataset.to(jax.local_devices()[0])
    if sum(leaf.nbytes for leaf in jax.tree.leaves(final_state)) > HOST_BYTES:
        return state, final_state, dataset
    final = fetch(final_state)
    return final if state is final_state else fetch(state), final, dataset


def is_divided(state: State) -> bool:
    """Whether some arrays of a state are divided over processes, so that none can read all of them.

    >>> is_divided({"kernel": np.zeros(3)})
    False
    """
    arrays = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    return not all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in arrays)


@dataclasses.dataclass(frozen=True)
class Result:
    """The trained state of a run, its metrics and its log; `foldax.train` returns it.

    Attributes:
      experiment: the experiment.
      config: its config.
      info: static facts of the training split, or None.
      dataset: the data, or None.
      state: the learner's state, of the best evaluation (its `inference_state`) or of the last step, as `config.keep`
        says.
      final_state: the learner's state after the last step.
      step: number of updates done.
      best_step: step of the best evaluation; None if `state` is the last one.
      status: "finished", "stopped early" or "interrupted"; metrics of evaluations that were NaN or infinite follow in
        parentheses.
      metrics: metrics of `state` by split: {"train": ..., "validation": ..., "test": ..., NAME: ...}.
      values: metrics and outputs of `evaluate` for every example, by split, as NumPy arrays `[N, ...]`; only where the
        experiment has `summarize` or `figures`.
      history: the log lines: {"step": ..., "split": ..., metrics...}.
      seconds: wall time, with loading the data and compiling.
      compile_seconds: the part of it spent on tracing and compiling.
      steps_per_second: of the loop, with evaluations and checkpoints, but without its first chunk and without
        compiling; 0 if there was no other chunk.
      performance: speeds of this session over chunks of steps without evaluations, and memory, as in
        `performance.jsonl`; empty where they were not measured.
      run_dir: the run folder, or None.
      figures: paths of the figures by name.
    """

    experiment: Experiment
    config: Any
    info: Any
    dataset: Any
    state: State
    final_state: State
    step: int
    best_step: int | None
    status: str
    metrics: dict[str, dict[str, float]]
    values: dict[str, dict[str, np.ndarray]]
    history: Sequence[dict[str, Any]]
    seconds: float
    compile_seconds: float
    steps_per_second: float
    performance: dict[str, float] = dataclasses.field(default_factory=dict)
    run_dir: Path | None = None
    figures: dict[str, Path] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        metrics = "  ".join(f"{s}/{k} {v:.4g}" for s, values in self.metrics.items() for k, v in values.items())
        return f"<Result: {self.status} after {self.step} steps  {metrics}  run_dir={self.run_dir or None!s}>"

    @property
    def learner(self) -> Learner:
        """The learner, built from the config."""
        with inputs_of(self.experiment, self.config):
            return self.experiment.learner(self.config, self.info)

    def examples(self, split: str) -> dict[str, np.ndarray]:
        """Reads the examples of an evaluation split, `[N, ...]` by key, in the order of `values`."""
        return self.dataset.splits[split].examples()

    def predict(self, inputs: Any, seed: int = 0) -> Any:
        """Computes the learner's `predict` with `state`.

        Args:
          inputs: `[B, ...]`, as `Learner.predict` takes them.
          seed: of the random key, for predictions that are sampled.

        Raises:
          ExperimentError: the learner has no `predict`.
        """
        return self._predict(self.state, inputs, jax.random.key(seed))

    @functools.cached_property
    def _predict(self) -> Callable[..., Any]:
        """`Learner.predict`, compiled once for all calls."""
        predict = self.learner.predict
        if predict is None:
            raise ExperimentError("this learner has no `predict`")
        return jax.jit(predict)
