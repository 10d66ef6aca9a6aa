"""What is said of agents over seeds: against SciPy's statistics, closed forms, and what intervals promise."""

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
whole = st.integers(-3, 3).map(float)  # so that there are ties
tables = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3)).flatmap(
    lambda n: st.tuples(
        *(st.lists(st.lists(whole, min_size=n[2], max_size=n[2]), min_size=k, max_size=k) for k in n[:2])
    )
)


@given(tables)
@settings(max_examples=60, deadline=None)
def test_interquartile_mean_and_improvement_are_scipys(pair) -> None:
    x, y = map(np.array, pair)
    assert agents.interquartile_mean(x) == pytest.approx(stats.trim_mean(x, 0.25, axis=None))
    expected = np.mean([stats.mannwhitneyu(x[:, t], y[:, t])[0] / (len(x) * len(y)) for t in range(x.shape[1])])
    assert agents.probability_of_improvement(x, y) == pytest.approx(expected)
    assert agents.probability_of_improvement(y, x) == pytest.approx(1 - expected)


def test_quarters_are_left_out() -> None:
    assert agents.interquartile_mean([-1e9, 1.0, 3.0, 1e9]) == 2.0
    assert agents.interquartile_mean([[1.0, 2.0], [3.0, 6.0]]) == 2.5
    assert agents.interquartile_mean([5.0]) == 5.0
    assert agents.optimality_gap([0.25, 3.0]) == 0.375


def test_leading_axes_are_separate_statistics() -> None:
    many = RANDOM.randn(4, 6, 2)
    np.testing.assert_allclose(agents.interquartile_mean(many), [agents.interquartile_mean(one) for one in many])
    found = agents.interval(many, resamples=200)
    np.testing.assert_allclose(found.low, [agents.interval(one, resamples=200).low for one in many])


def test_intervals_hold_their_estimate_narrow_with_less_confidence_and_come_again() -> None:
    wide, narrow = (agents.interval(SCORES, confidence=c, resamples=500) for c in (0.95, 0.5))
    assert wide.low < narrow.low < wide.estimate < narrow.high < wide.high
    assert wide == agents.interval(SCORES, confidence=0.95, resamples=500)
    assert wide != agents.interval(SCORES, confidence=0.95, resamples=500, seed=1)
    same = agents.interval(np.full((4, 2), 7.0), resamples=50)
    assert same == (7.0, 7.0, 7.0)


def test_seeds_are_drawn_within_tasks() -> None:
    """Tasks apart from each other, of equal seeds, leave nothing to chance; drawn from all alike there would be much."""
    assert agents.interval(np.array([[0.0, 100.0]] * 5), lambda s: s.mean(axis=(-2, -1)), resamples=100) == (50, 50, 50)
    # Of two tasks of independent seeds, the mean's variance is half of the mean variance of each task's mean.
    drawn = RANDOM.randn(400, 2)
    found = agents.interval(drawn, lambda s: s.mean(axis=(-2, -1)), resamples=4000)
    reach = stats.norm.ppf(0.975) * np.sqrt(drawn.var(axis=0).mean() / 800)
    assert (found.high - found.low) / 2 == pytest.approx(reach, rel=0.05)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    runs = np.random.RandomState(1).randn(300, 20, 1)
    inside = 0
    for number, scores in enumerate(runs):
        _, low, high = agents.interval(scores, confidence=0.9, resamples=400, seed=number)
        inside += low <= 0.0 <= high
    # A percentile bootstrap of 20 runs is a little narrow; below 0.8 or above 0.96 is not chance (p < 1e-6).
    assert 0.8 <= inside / len(runs) <= 0.96


def test_improvement_has_an_interval() -> None:
    better = agents.improvement(SCORES + 10, SCORES, resamples=100)
    assert better == (1.0, 1.0, 1.0)
    found = agents.improvement(SCORES + 0.5, SCORES[:5], resamples=500)
    assert 0 < found.low < found.estimate < found.high < 1
    assert found.estimate == agents.probability_of_improvement(SCORES + 0.5, SCORES[:5])


def test_profiles_are_shares_of_runs_above_thresholds() -> None:
    scores = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
    found = agents.performance_profile(scores, [-1.0, 0.0, 1.0, 2.5, 3.0], resamples=300)
    np.testing.assert_allclose(found.estimate, [1, 5 / 6, 3 / 6, 1 / 6, 0])
    assert (found.low <= found.estimate).all()
    assert (found.high >= found.estimate).all()
    np.testing.assert_array_equal([found.low[0], found.high[0], found.low[-1], found.high[-1]], [1, 1, 0, 0])


def test_a_table_has_a_row_per_agent() -> None:
    shown = agents.table({"dqn": SCORES, "ppo": [1.0, 2.0, 3.0]}, resamples=200)
    assert shown.index.tolist() == ["dqn", "ppo"]
    assert shown.loc["dqn", "interquartile mean"] == agents.interquartile_mean(SCORES)
    assert shown.loc["dqn", ["seeds", "tasks"]].tolist() == [8, 3]
    assert shown.loc["ppo", ["mean", "standard deviation", "seeds", "tasks"]].tolist() == [2.0, 1.0, 3, 1]
    with pytest.raises(ConfigError, match="sac: scores: an interval needs two seeds"):
        agents.table({"sac": [1.0]})


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (functools.partial(agents.interquartile_mean, [[1.0, 2.0], [np.nan, 3.0]]), "seed 1 of task 0 has nan"),
        (functools.partial(agents.interquartile_mean, []), r"with a run at least, got \[0, 1\]"),
        (functools.partial(agents.interquartile_mean, 3.0), r"must be \[seeds, tasks\] or \[seeds\]"),
        (functools.partial(agents.interquartile_mean, [[1.0], [2.0, 3.0]]), "do all tasks have as many seeds"),
        (functools.partial(agents.interval, [[1.0, 2.0]]), "needs two seeds or more, and there is one"),
        (functools.partial(agents.interval, SCORES, confidence=95), "confidence: 95 must be above 0 and below 1"),
        (functools.partial(agents.interval, SCORES, resamples=0), "resamples: 0 must be 1 or more"),
        (functools.partial(agents.probability_of_improvement, SCORES, SCORES[:, :2]), "both must be of the same tasks"),
        (functools.partial(agents.improvement, SCORES, SCORES[:1]), "needs two seeds or more"),
        (functools.partial(agents.performance_profile, SCORES, [np.inf]), r"thresholds: must be finite numbers \[K\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(call, told) -> None:
    with pytest.raises(ConfigError, match=told):
        call()
