"""Statistics of agents over seeds: against SciPy, closed forms, and the coverage that intervals promise."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from foldax.errors import ConfigError
from foldax.evaluation import agents

RANDOM = np.random.RandomState(0)
SCORES = RANDOM.randn(8, 3) + np.arange(3)
scores_with_ties = st.integers(-3, 3).map(float)
score_pairs = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3)).flatmap(
    lambda n: st.tuples(
        *(st.lists(st.lists(scores_with_ties, min_size=n[2], max_size=n[2]), min_size=k, max_size=k) for k in n[:2])
    )
)


@given(score_pairs)
@settings(max_examples=60, deadline=None)
def test_interquartile_mean_and_probability_of_improvement_equal_scipys(pair) -> None:
    x, y = map(np.array, pair)
    assert agents.interquartile_mean(x) == pytest.approx(stats.trim_mean(x, 0.25, axis=None))
    expected = np.mean([stats.mannwhitneyu(x[:, t], y[:, t])[0] / (len(x) * len(y)) for t in range(x.shape[1])])
    assert agents.probability_of_improvement(x, y) == pytest.approx(expected)
    assert agents.probability_of_improvement(y, x) == pytest.approx(1 - expected)


def test_the_best_and_worst_quarters_are_excluded() -> None:
    assert agents.interquartile_mean([-1e9, 1.0, 3.0, 1e9]) == 2.0
    assert agents.interquartile_mean([[1.0, 2.0], [3.0, 6.0]]) == 2.5
    assert agents.interquartile_mean([5.0]) == 5.0
    assert agents.optimality_gap([0.25, 3.0]) == 0.375


def test_leading_axes_give_separate_statistics() -> None:
    many = RANDOM.randn(4, 6, 2)
    np.testing.assert_allclose(agents.interquartile_mean(many), [agents.interquartile_mean(one) for one in many])
    interval = agents.bootstrap_interval(many, resamples=200)
    np.testing.assert_allclose(interval.low, [agents.bootstrap_interval(one, resamples=200).low for one in many])


def test_intervals_contain_their_estimate_narrow_with_less_confidence_and_are_reproducible() -> None:
    wide, narrow = (agents.bootstrap_interval(SCORES, confidence=c, resamples=500) for c in (0.95, 0.5))
    assert wide.low < narrow.low < wide.estimate < narrow.high < wide.high
    assert wide == agents.bootstrap_interval(SCORES, confidence=0.95, resamples=500)
    assert wide != agents.bootstrap_interval(SCORES, confidence=0.95, resamples=500, seed=1)
    same = agents.bootstrap_interval(np.full((4, 2), 7.0), resamples=50)
    assert same == (7.0, 7.0, 7.0)


def test_seeds_are_resampled_within_tasks() -> None:
    """Tasks with different scores and equal seeds have no variance, unless seeds were resampled across tasks."""
    assert agents.bootstrap_interval(np.array([[0.0, 100.0]] * 5), lambda s: s.mean(axis=(-2, -1)), resamples=100) == (
        50,
        50,
        50,
    )
    # Of two tasks of independent seeds, the mean's variance is half of the mean variance of each task's mean.
    scores = RANDOM.randn(400, 2)
    interval = agents.bootstrap_interval(scores, lambda s: s.mean(axis=(-2, -1)), resamples=4000)
    half_width = stats.norm.ppf(0.975) * np.sqrt(scores.var(axis=0).mean() / 800)
    assert (interval.high - interval.low) / 2 == pytest.approx(half_width, rel=0.05)


def test_intervals_have_about_their_nominal_coverage() -> None:
    runs = np.random.RandomState(1).randn(300, 20, 1)
    covered = 0
    for number, scores in enumerate(runs):
        _, low, high = agents.bootstrap_interval(scores, confidence=0.9, resamples=400, seed=number)
        covered += low <= 0.0 <= high
    # A percentile bootstrap of 20 runs is a little narrow; below 0.8 or above 0.96 is not chance (p < 1e-6).
    assert 0.8 <= covered / len(runs) <= 0.96


def test_the_probability_of_improvement_has_an_interval() -> None:
    better = agents.improvement_interval(SCORES + 10, SCORES, resamples=100)
    assert better == (1.0, 1.0, 1.0)
    interval = agents.improvement_interval(SCORES + 0.5, SCORES[:5], resamples=500)
    assert 0 < interval.low < interval.estimate < interval.high < 1
    assert interval.estimate == agents.probability_of_improvement(SCORES + 0.5, SCORES[:5])


def test_profiles_are_fractions_of_runs_above_thresholds() -> None:
    scores = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
    profile = agents.performance_profile(scores, [-1.0, 0.0, 1.0, 2.5, 3.0], resamples=300)
    np.testing.assert_allclose(profile.estimate, [1, 5 / 6, 3 / 6, 1 / 6, 0])
    assert (profile.low <= profile.estimate).all()
    assert (profile.high >= profile.estimate).all()
    np.testing.assert_array_equal([profile.low[0], profile.high[0], profile.low[-1], profile.high[-1]], [1, 1, 0, 0])


def test_a_table_has_a_row_per_agent() -> None:
    table = agents.summary_table({"dqn": SCORES, "ppo": [1.0, 2.0, 3.0]}, resamples=200)
    assert table.index.tolist() == ["dqn", "ppo"]
    assert table.loc["dqn", "interquartile mean"] == agents.interquartile_mean(SCORES)
    assert table.loc["dqn", ["seeds", "tasks"]].tolist() == [8, 3]
    assert table.loc["ppo", ["mean", "standard deviation", "seeds", "tasks"]].tolist() == [2.0, 1.0, 3, 1]
    with pytest.raises(ConfigError, match="sac: scores: an interval needs at least two seeds"):
        agents.summary_table({"sac": [1.0]})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (functools.partial(agents.interquartile_mean, [[1.0, 2.0], [np.nan, 3.0]]), "seed 1 of task 0 has nan"),
        (functools.partial(agents.interquartile_mean, []), r"with at least one run, got \[0, 1\]"),
        (functools.partial(agents.interquartile_mean, 3.0), r"must be \[seeds, tasks\] or \[seeds\]"),
        (functools.partial(agents.interquartile_mean, [[1.0], [2.0, 3.0]]), "do all tasks have as many seeds"),
        (functools.partial(agents.bootstrap_interval, [[1.0, 2.0]]), "needs at least two seeds, and there is one"),
        (functools.partial(agents.bootstrap_interval, SCORES, confidence=95), "confidence: 95 must be above 0 and below 1"),
        (functools.partial(agents.bootstrap_interval, SCORES, resamples=0), "resamples: 0 must be 1 or more"),
        (functools.partial(agents.probability_of_improvement, SCORES, SCORES[:, :2]), "both must be of the same tasks"),
        (functools.partial(agents.improvement_interval, SCORES, SCORES[:1]), "needs at least two seeds"),
        (functools.partial(agents.performance_profile, SCORES, [np.inf]), r"thresholds: must be finite numbers \[K\]"),
    ],
)  # fmt: skip
def test_invalid_scores_and_options_are_refused(call, message) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
