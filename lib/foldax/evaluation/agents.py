"""What runs with a few seeds say of agents, and how sure that is (Agarwal et al., 2021).

Scores are `[seeds, tasks]`, or `[seeds]` of one task; larger is better. Those of several tasks should be on one scale,
such as 0 for acting at random and 1 for a human. Intervals come from a stratified bootstrap: the seeds of every task
are drawn anew, with replacement, and independently of other tasks (percentile method). They are the same for the same
`seed`, and too narrow for fewer than about five seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from foldax.errors import ConfigError

RESAMPLES = 2000
CONFIDENCE = 0.95
NUMBERS = 2_000_000  # that resamples may take at a time

Statistic = Callable[[np.ndarray], Any]
"""`scores [..., seeds, tasks] -> [...]`."""


class Interval(NamedTuple):
    """An estimate, and what it may be.

    Attributes:
      estimate: float, or an array of them.
      low: where the interval begins, of the same shape.
      high: where it ends.
    """

    estimate: Any
    low: Any
    high: Any


def interquartile_mean(scores: Any) -> Any:
    """Returns the mean of runs without the best and the worst quarter of them, of `[..., seeds, tasks]`.

    The quarters are rounded down: of fewer than four runs it is the mean.

    Raises:
      ConfigError: there is no run, or a score is not finite.
    """
    from scipy import stats

    scores = _scores(scores)
    return stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def optimality_gap(scores: Any, goal: float = 1.0) -> Any:
    """Returns by how much runs `[..., seeds, tasks]` miss the goal, in the mean; more than the goal counts as it.

    Raises:
      ConfigError: there is no run, or a score is not finite.
    """
    return np.maximum(goal - _scores(scores), 0.0).mean(axis=(-2, -1))


def interval(
    scores: Any,
    statistic: Statistic = interquartile_mean,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Returns a statistic of scores `[..., seeds, tasks]` or `[seeds]` with its bootstrap interval.

    Args:
      scores: with leading axes many of them, of the same runs: seeds are drawn once for all, as for curves.
      statistic: see `Statistic`.
      confidence: of the interval, above 0 and below 1.
      resamples: of the bootstrap.
      seed: of its randomness.

    Raises:
      ConfigError: a score is not finite, there are fewer than two seeds, or an option is out of its range.
    """
    scores = _scores(scores)
    _check_seeds(scores)
    columns = [scores[..., task] for task in range(scores.shape[-1])]
    low, high = _bootstrap(columns, lambda *drawn: statistic(np.stack(drawn, axis=-1)), confidence, resamples, seed)
    return Interval(statistic(scores), low, high)


def probability_of_improvement(x: Any, y: Any) -> float:
    """Returns how likely a run of X has a higher score than one of Y of the same task, in the mean over tasks.

    Of one task it is Mann and Whitney's U as a share of all pairs: a tie is half of an improvement.

    Args:
      x: scores of X, `[seeds, tasks]` or `[seeds]`.
      y: scores of Y, of the same tasks; the number of seeds may be another.

    Raises:
      ConfigError: there is no run, a score is not finite, or tasks differ.
    """
    x, y = _pair(x, y)
    return float(np.mean([_wins(x[:, task], y[:, task]) for task in range(x.shape[1])]))


def improvement(
    x: Any, y: Any, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Returns `probability_of_improvement` with its bootstrap interval; arguments and errors as of both functions."""
    x, y = _pair(x, y)
    for scores in (x, y):
        _check_seeds(scores)
    tasks = x.shape[1]

    def mean(*drawn: np.ndarray) -> np.ndarray:
        return np.mean([_wins(drawn[task], drawn[tasks + task]) for task in range(tasks)], axis=0)

    low, high = _bootstrap([*x.T, *y.T], mean, confidence, resamples, seed)
    return Interval(probability_of_improvement(x, y), float(low), float(high))


def performance_profile(
    scores: Any, thresholds: Any, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Returns the share of runs that score more than each threshold, with pointwise bootstrap intervals.

    Args:
      scores: `[seeds, tasks]` or `[seeds]`.
      thresholds: `[K]`.
      confidence: as in `interval`.
      resamples: as in `interval`.
      seed: as in `interval`.

    Returns:
      Arrays `[K]`.

    Raises:
      ConfigError: as `interval`; or thresholds are no list of finite numbers.
    """
    scores, thresholds = _scores(scores), np.asarray(thresholds, np.float64)
    if thresholds.ndim != 1 or not thresholds.size or not np.isfinite(thresholds).all():
        raise ConfigError(f"thresholds: must be finite numbers [K], got {thresholds.tolist()}")
    above = scores[None] > thresholds[:, None, None]
    options: dict[str, Any] = dict(confidence=confidence, resamples=resamples, seed=seed)
    return interval(above, lambda share: share.mean(axis=(-2, -1)), **options)


def table(agents: Mapping[str, Any], **options: Any) -> Any:
    """Returns a data frame with a row per agent: IQM, its interval, mean, standard deviation, seeds and tasks.

    Args:
      agents: scores by name.
      **options: of `interval`.

    Raises:
      ConfigError: as `interval`, naming the agent.
    """
    import pandas as pd

    rows = []
    for name, given in agents.items():
        try:
            scores = _scores(given)
            iqm, low, high = interval(scores, **options)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
        shape = dict(zip(("seeds", "tasks"), scores.shape))
        spread = float(scores.mean(axis=1).std(ddof=1))
        row = {"interquartile mean": float(iqm), "low": float(low), "high": float(high), "mean": float(scores.mean())}
        rows.append({"agent": name, **row, "standard deviation": spread, **shape})
    return pd.DataFrame(rows).set_index("agent")


def _scores(scores: Any) -> np.ndarray:
    try:
        found = np.asarray(scores, np.float64)
    except (TypeError, ValueError):
        raise ConfigError("scores: must be numbers [seeds, tasks]; do all tasks have as many seeds?") from None
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim < 2 or not found.size:
        raise ConfigError(f"scores: must be [seeds, tasks] or [seeds] with a run at least, got {list(found.shape)}")
    if not np.isfinite(found).all():
        seed, task = np.argwhere(~np.isfinite(found))[0][-2:]
        raise ConfigError(
            f"scores: seed {seed} of task {task} has {found[~np.isfinite(found)][0]}; leave that run out, or say what "
            "it is worth"
        )
    return found


def _pair(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = _scores(x), _scores(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ConfigError(
            f"scores: both must be of the same tasks, got [seeds, tasks] {list(x.shape)}, {list(y.shape)}"
        )
    return x, y


def _check_seeds(scores: np.ndarray) -> None:
    if scores.shape[-2] < 2:
        raise ConfigError("scores: an interval needs two seeds or more, and there is one")


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the share of pairs of `[..., N]` and `[..., M]` that X wins, ties as halves, `[...]`."""
    x, y = x[..., :, None], y[..., None, :]
    return ((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1))


def _bootstrap(
    samples: list[np.ndarray], statistic: Callable[..., Any], confidence: float, resamples: int, seed: int
) -> tuple[Any, Any]:
    """Returns where the interval begins and ends; samples `[..., seeds]` are drawn independently of each other."""
    from scipy import stats

    if not 0 < confidence < 1:
        raise ConfigError(f"confidence: {confidence} must be above 0 and below 1")
    if resamples < 1:
        raise ConfigError(f"resamples: {resamples} must be 1 or more")
    found = stats.bootstrap(
        samples,
        lambda *drawn, axis: statistic(*drawn),
        vectorized=True,
        axis=-1,
        paired=False,
        method="percentile",
        confidence_level=confidence,
        n_resamples=resamples,
        batch=min(resamples, max(1, NUMBERS // sum(sample.size for sample in samples))),
        rng=np.random.default_rng(seed),
    )
    return found.confidence_interval.low, found.confidence_interval.high
