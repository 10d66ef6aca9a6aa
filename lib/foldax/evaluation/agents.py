"""Statistics of agents over a few seeds, with bootstrap intervals, as Agarwal et al. (2021) recommend.

Scores are `[seeds, tasks]`, or `[seeds]` of one task; larger is better. Scores of several tasks should be on one scale,
for example 0 for random actions and 1 for a human. Intervals are percentile intervals of a stratified bootstrap: the
seeds of every task are resampled with replacement, independently of other tasks. They are reproducible for the same
`seed`, and too narrow for fewer than about five seeds.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from foldax.errors import ConfigError, check_positive

if TYPE_CHECKING:
    import pandas

RESAMPLES = 2000
CONFIDENCE = 0.95
MAX_BATCH_VALUES = 2_000_000  # scores resampled at a time, which bounds the memory

Statistic = Callable[[np.ndarray], Any]
"""`scores [..., seeds, tasks] -> [...]`."""


class Interval(NamedTuple):
    """An estimate with its confidence interval.

    Attributes:
      estimate: float, or an array of them.
      low: lower bound, of the same shape.
      high: upper bound.
    """

    estimate: Any
    low: Any
    high: Any


def interquartile_mean(scores: ArrayLike) -> Any:
    """Computes the mean of the middle half of all runs, `[..., seeds, tasks] -> [...]`.

    The excluded quarters are rounded down, so that fewer than four runs give their mean.

    Raises:
      ConfigError: there is no run, or a score is not finite.

    >>> float(interquartile_mean([0.0, 1.0, 3.0, 100.0]))
    2.0
    """
    from scipy import stats

    scores = _scores(scores)
    return stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def optimality_gap(scores: ArrayLike, goal: float = 1.0) -> Any:
    """Computes by how much runs miss a goal on average, `[..., seeds, tasks] -> [...]`; scores above it count as it.

    Raises:
      ConfigError: there is no run, or a score is not finite.

    >>> float(optimality_gap([0.5, 2.0], goal=1.0))
    0.25
    """
    return np.maximum(goal - _scores(scores), 0.0).mean(axis=(-2, -1))


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Statistic = interquartile_mean,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Computes a statistic of runs with its stratified bootstrap interval.

    Args:
      scores: `[..., seeds, tasks]` or `[seeds]`. Leading axes hold several scores of the same runs, as the points of a
        curve; seeds are resampled once for all of them.
      statistic: `scores [..., seeds, tasks] -> [...]`.
      confidence: coverage of the interval, between 0 and 1.
      resamples: bootstrap samples.
      seed: randomness of the bootstrap.

    Returns:
      The statistic and its interval, `[...]`.

    Raises:
      ConfigError: a score is not finite, there are fewer than two seeds, or an option is out of its range.

    >>> interval = bootstrap_interval([1.0, 2.0, 3.0, 4.0, 5.0], resamples=100)
    >>> bool(1.0 <= interval.low < interval.estimate < interval.high <= 5.0)
    True
    """
    scores = _scores(scores)
    _check_seeds(scores)
    # Every task is a sample of its own: the bootstrap is stratified by task.
    columns = [scores[..., task] for task in range(scores.shape[-1])]
    low, high = _bootstrap(columns, lambda *sample: statistic(np.stack(sample, axis=-1)), confidence, resamples, seed)
    return Interval(statistic(scores), low, high)


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """Computes how likely a run of X scores higher than one of Y on the same task, averaged over tasks.

    For one task it is the Mann-Whitney U statistic divided by the number of pairs: a tie counts as half.

    Args:
      x: scores of X, `[seeds, tasks]` or `[seeds]`.
      y: scores of Y on the same tasks; the number of seeds may differ.

    Raises:
      ConfigError: there is no run, a score is not finite, or the tasks differ.

    >>> probability_of_improvement([2.0, 3.0], [1.0, 2.0])
    0.875
    """
    x, y = _pair(x, y)
    return float(np.mean([_win_rate(x[:, task], y[:, task]) for task in range(x.shape[1])]))


def improvement_interval(
    x: ArrayLike, y: ArrayLike, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Computes `probability_of_improvement` with its stratified bootstrap interval.

    Args:
      x: scores of X, `[seeds, tasks]` or `[seeds]`.
      y: scores of Y on the same tasks; the number of seeds may differ.
      confidence: as in `bootstrap_interval`.
      resamples: as in `bootstrap_interval`.
      seed: as in `bootstrap_interval`.

    Returns:
      The probability of improvement and its interval, all scalars.

    Raises:
      ConfigError: as in `probability_of_improvement` and `bootstrap_interval`.

    >>> interval = improvement_interval([2.0, 3.0, 4.0], [1.0, 2.0, 3.0], resamples=50)
    >>> interval.low <= interval.estimate <= interval.high
    True
    """
    x, y = _pair(x, y)
    for scores in (x, y):
        _check_seeds(scores)
    tasks = x.shape[1]

    def mean_win_rate(*sample: np.ndarray) -> np.ndarray:
        return np.mean([_win_rate(sample[task], sample[tasks + task]) for task in range(tasks)], axis=0)

    # X and Y are resampled independently, each task by itself.
    low, high = _bootstrap([*x.T, *y.T], mean_win_rate, confidence, resamples, seed)
    return Interval(probability_of_improvement(x, y), float(low), float(high))


def performance_profile(
    scores: ArrayLike,
    thresholds: ArrayLike,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Computes the fraction of runs that score above each threshold, with pointwise bootstrap intervals.

    Args:
      scores: `[seeds, tasks]` or `[seeds]`.
      thresholds: `[K]`.
      confidence: as in `bootstrap_interval`.
      resamples: as in `bootstrap_interval`.
      seed: as in `bootstrap_interval`.

    Returns:
      Fractions `[K]`.

    Raises:
      ConfigError: as in `bootstrap_interval`; or thresholds are no list of finite numbers.

    >>> performance_profile([1.0, 2.0, 3.0, 4.0], [0.0, 2.5], resamples=50).estimate.tolist()
    [1.0, 0.5]
    """
    scores, thresholds = _scores(scores), np.asarray(thresholds, np.float64)
    if thresholds.ndim != 1 or not thresholds.size or not np.isfinite(thresholds).all():
        raise ConfigError(f"thresholds: must be finite numbers [K], got {thresholds.tolist()}")
    # One indicator per threshold; seeds are resampled once for all thresholds.
    above = scores[None] > thresholds[:, None, None]
    options: dict[str, Any] = dict(confidence=confidence, resamples=resamples, seed=seed)
    return bootstrap_interval(above, lambda above: above.mean(axis=(-2, -1)), **options)


def summary_table(agents: Mapping[str, ArrayLike], **options: Any) -> "pandas.DataFrame":
    """Tabulates agents, a row each: interquartile mean and interval, mean, standard deviation, seeds and tasks.

    Args:
      agents: scores `[seeds, tasks]` or `[seeds]` by name.
      **options: of `bootstrap_interval`.

    Raises:
      ConfigError: as in `bootstrap_interval`, naming the agent.

    >>> summary_table({"dqn": [1.0, 3.0]}, resamples=50).loc["dqn", ["mean", "seeds"]].tolist()
    [2.0, 2.0]
    """
    import pandas as pd

    rows = []
    for name, values in agents.items():
        try:
            scores = _scores(values)
            iqm, low, high = bootstrap_interval(scores, **options)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
        shape = dict(zip(("seeds", "tasks"), scores.shape))
        # Over seeds, of the mean over tasks.
        std = float(scores.mean(axis=1).std(ddof=1))
        row = {"interquartile mean": float(iqm), "low": float(low), "high": float(high), "mean": float(scores.mean())}
        rows.append({"agent": name, **row, "standard deviation": std, **shape})
    return pd.DataFrame(rows).set_index("agent")


def _scores(scores: ArrayLike) -> np.ndarray:
    try:
        array = np.asarray(scores, np.float64)
    except (TypeError, ValueError):
        raise ConfigError("scores: must be numbers [seeds, tasks]; do all tasks have as many seeds?") from None
    # [seeds] means one task.
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim < 2 or not array.size:
        raise ConfigError(f"scores: must be [seeds, tasks] or [seeds] with at least one run, got {list(array.shape)}")
    if not np.isfinite(array).all():
        seed, task = np.argwhere(~np.isfinite(array))[0][-2:]
        value = array[~np.isfinite(array)][0]
        remedy = "leave the run out, or give it a finite score"
        raise ConfigError(f"scores: seed {seed} of task {task} has {value}; {remedy}")
    return array


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = _scores(x), _scores(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        got = f"[seeds, tasks] {list(x.shape)}, {list(y.shape)}"
        raise ConfigError(f"scores: both must be of the same tasks, got {got}")
    return x, y


def _check_seeds(scores: np.ndarray) -> None:
    if scores.shape[-2] < 2:
        raise ConfigError("scores: an interval needs at least two seeds, and there is one")


def _win_rate(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fraction of the pairs of `[..., N]` and `[..., M]` that X wins, ties as halves, `[...]`."""
    # All pairs, [..., N, M].
    x, y = x[..., :, None], y[..., None, :]
    return ((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1))


def _bootstrap(
    samples: list[np.ndarray], statistic: Callable[..., Any], confidence: float, resamples: int, seed: int
) -> tuple[Any, Any]:
    """Bounds of the percentile interval; samples `[..., seeds]` are resampled independently of each other."""
    from scipy import stats

    if not 0 < confidence < 1:
        raise ConfigError(f"confidence: {confidence} must be above 0 and below 1")
    check_positive(resamples=resamples)
    # Resamples are evaluated many at a time, in batches of bounded memory.
    batch = min(resamples, max(1, MAX_BATCH_VALUES // sum(sample.size for sample in samples)))
    options: dict[str, Any] = dict(confidence_level=confidence, n_resamples=resamples, batch=batch)
    options |= dict(vectorized=True, axis=-1, paired=False, method="percentile", rng=np.random.default_rng(seed))
    result = stats.bootstrap(samples, lambda *sample, axis: statistic(*sample), **options)
    return result.confidence_interval.low, result.confidence_interval.high
