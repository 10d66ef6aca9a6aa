"""Figures of agents: they show the right statistics at the right steps, and all of them render, narrow ones too."""

import numpy as np
import pytest
from PIL import Image

from foldax import plots
from foldax.errors import ConfigError
from foldax.evaluation import agents
from foldax.evaluation.agents import Interval

RANDOM = np.random.RandomState(0)


def make_history(values, every=2, start=2, metric="return"):
    return [{"step": start + every * i, "split": "train", metric: value} for i, value in enumerate(values)]


STRAIGHT = [make_history([k, k + 10.0, k + 20.0]) for k in range(4)]
BARS = {"PPO": Interval(0.5, 0.25, 1.0), "a long name of an agent": Interval(-1.0, -2.0, 0.0)}
FIGURES = {
    "curves": lambda: plots.returns_by_seed({"PPO": STRAIGHT, "DQN": STRAIGHT[:1]}, reference=7.0, resamples=50),
    "narrow curves": lambda: plots.returns_by_seed({"PPO": STRAIGHT}, width=2.0, height=1.6, resamples=50),
    "profiles": lambda: plots.performance_profiles({"PPO": RANDOM.randn(5, 2), "DQN": RANDOM.randn(5)}, resamples=50),
    "equal scores": lambda: plots.performance_profiles({"PPO": np.ones(3)}, width=2.0, height=1.6, resamples=50),
    "bars": lambda: plots.interval_bars(BARS, reference=0.5),
    "groups of bars": lambda: plots.interval_bars({"one": BARS, "other": {"PPO": BARS["PPO"]}}, width=1.5),
    "few components": lambda: plots.episode_curves(RANDOM.randn(10, 2), np.arange(9)),
    "many components": lambda: plots.episode_curves(RANDOM.randn(10, 4, 4), np.arange(9), "an episode"),
    "not finite": lambda: plots.episode_curves(np.full((2, 3), np.nan), np.ones(1)),
    "no step": lambda: plots.episode_curves(np.ones((1, 3)), np.ones(0)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_renders(name, tmp_path) -> None:
    FIGURES[name]().savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG\r\n")


def lines_of(axis) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_xydata()) for line in axis.get_lines()}


def test_curves_are_interquartile_means_over_environment_steps() -> None:
    steps = {"PPO": lambda step: 100 * step, "one": lambda step: 7 * step}
    axis = plots.returns_by_seed({"PPO": STRAIGHT, "one": STRAIGHT[:1]}, environment_steps=steps, resamples=50).axes[0]
    lines = lines_of(axis)
    np.testing.assert_allclose(lines["PPO (4 seeds)"], [[200, 1.5], [400, 11.5], [600, 21.5]])
    np.testing.assert_allclose(lines["one (1 seed)"][:, 0], [14, 28, 42])
    assert len(axis.collections) == 1  # one seed has no interval
    assert axis.get_xlabel() == "environment steps"
    interval = agents.bootstrap_interval([0.0, 1.0, 2.0, 3.0], resamples=50)
    vertices = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (vertices.min(), vertices.max()) == pytest.approx((interval.low, interval.high + 20))


def test_runs_with_different_log_steps_are_interpolated_over_their_common_steps() -> None:
    runs = [make_history([0.0, 10.0], every=10, start=0), make_history([4.0, 8.0, 0.0], every=4, start=4)]
    line = lines_of(plots.returns_by_seed({"PPO": runs}, resamples=20).axes[0])["PPO (2 seeds)"]
    np.testing.assert_allclose(line, [[4, 4.0], [8, 8.0], [10, 7.0]])


def test_bars_span_the_intervals() -> None:
    axis = plots.interval_bars(BARS).axes[0]
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axis.patches]
    assert bars == [(0.25, 1.0), (-2.0, 0.0)]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(BARS)


def test_a_film_strip_keeps_the_pixels_of_its_images(tmp_path) -> None:
    images = np.arange(3 * 20 * 30 * 3).astype(np.uint8).reshape(3, 20, 30, 3)
    plots.film_strip(images, ["a", "b", "c"], "title").savefig(tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == 3 * 30 + 2 * 4
    for index in range(3):
        np.testing.assert_array_equal(pixels[-20:, 34 * index : 34 * index + 30], images[index])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.returns_by_seed({}), "there is none to draw"),
        (lambda: plots.returns_by_seed({"PPO": []}), "PPO: there is no run to draw"),
        (lambda: plots.returns_by_seed({"PPO": STRAIGHT}, metric="reward"), "PPO, run 0: its history has no 'reward'"),
        (lambda: plots.returns_by_seed({"PPO": [*STRAIGHT, make_history([1.0], start=99)]}), "no steps in common"),
        (lambda: plots.returns_by_seed({"PPO": [make_history([np.nan])] * 2}), "seed 0 of task 0 has nan"),
        (lambda: plots.performance_profiles({}), "there is none to draw"),
        (lambda: plots.performance_profiles({"PPO": [1.0, np.nan]}), "has nan"),
        (lambda: plots.interval_bars({}), "there is none to draw"),
    ],
)
def test_impossible_figures_are_refused(draw, message) -> None:
    with pytest.raises(ConfigError, match=message):
        draw()
