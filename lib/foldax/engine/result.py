"""What a run gives back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from foldax.errors import ExperimentError
from foldax.experiment import Experiment
from foldax.learner import Learner


@dataclasses.dataclass(frozen=True)
class Result:
    """A trained state and how it got there.

    Attributes:
      experiment: what was run.
      config: with which config.
      info: facts of the training split, or None.
      dataset: the data, or None.
      state: the learner's state: of the best evaluation or the last, as `config.keep` says.
      final: the learner's state after the last step.
      step: steps done.
      best_step: step of the best evaluation, or None if none was kept.
      status: "finished", "stopped early" or "interrupted".
      metrics: final metrics by split: {"train": ..., "validation": ..., "test": ...}.
      values: what `evaluate` returned for every example, by split, as NumPy arrays `[N, ...]`; only
        where the experiment has `summarize` or `figures`.
      history: the lines of the log: {"step": ..., "split": ..., metrics...}.
      seconds: wall time, loading the data and compiling included.
      compile_seconds: of these, tracing and compiling.
      steps_per_second: of the loop, evaluations and checkpoints included, its first chunk and all
        compiling left out; 0 if there was no other chunk.
      run_dir: the run folder, or None.
      figures: paths of the figures by name.
    """

    experiment: Experiment
    config: Any
    info: Any
    dataset: Any
    state: Any
    final: Any
    step: int
    best_step: int | None
    status: str
    metrics: dict[str, dict[str, float]]
    values: dict[str, dict[str, np.ndarray]]
    history: list[dict[str, Any]]
    seconds: float
    compile_seconds: float
    steps_per_second: float
    run_dir: Path | None = None
    figures: dict[str, Path] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        metrics = "  ".join(f"{s}/{k} {v:.4g}" for s, values in self.metrics.items() for k, v in values.items())
        return f"<Result: {self.status} after {self.step} steps  {metrics}  run_dir={self.run_dir or None!s}>"

    @property
    def learner(self) -> Learner:
        """The learner, built from the config."""
        return self.experiment.learner(self.config, self.info)

    def examples(self, split: str) -> dict[str, np.ndarray]:
        """Returns the examples of an evaluation split, `[N, ...]` by key, in the order of `values`."""
        return self.dataset.splits[split].examples()

    def predict(self, inputs: Any, seed: int = 0) -> Any:
        """Returns the learner's `predict` of `inputs` `[B, ...]` with the final state.

        Raises:
          ExperimentError: the learner has no `predict`.
        """
        predict = self.learner.predict
        if predict is None:
            raise ExperimentError("this learner has no `predict`")
        return jax.jit(predict)(self.state, inputs, jax.random.key(seed))
