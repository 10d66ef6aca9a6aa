"""`foldax play`: an episode is what the agent does, its pictures are of its states, and errors are a line."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import foldax
from foldax import cli, rl
from foldax.engine.result import Result
from foldax.errors import ConfigError, ExperimentError, RunError
from foldax.inference.play import play
from tests.rl.environments import counter, recall

FILE = '''"""An agent that learns nothing in a world that only counts."""
import foldax
import jax
import numpy as np
import optax
from foldax import learners, models, rl
from tests.rl.environments import counter


@foldax.config
class Config(foldax.Interaction):
    environment_steps: int = 32
    num_envs: int = 2
    rollout_steps: int = 8
    log_every: int = 1
    length: int = 5


def environment(config):
    world = counter(config.length)
    return world._replace(render=lambda state: np.full((6, 8, 3), 40 * state, np.uint8))


def learner(config, info):
    model = models.ActorCritic(2, hidden=(4,))
    return learners.ppo(environment(config), model, optax.adam(1e-3), num_envs=2, rollout_steps=8, minibatches=1,
                        epochs=1, evaluation_episodes=2, evaluation_steps=8)


experiment = foldax.Experiment(Config, learner, environment=environment)
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two updates."""
    folder = tmp_path_factory.mktemp("play")
    (folder / "counting.py").write_text(FILE)
    experiment = foldax.load_experiment(folder / "counting.py")
    foldax.train(experiment, experiment.config(), run_dir=folder / "run", verbose=False)
    return folder / "run"


def agent(world, predict=None) -> Result:
    """A run whose state is nothing and which acts as `predict` says; by default it always takes 0."""

    def learner(config, info):
        takes = predict or (lambda state, seen, key: jnp.zeros(len(seen), jnp.int32))
        return foldax.Learner(lambda key, examples: {}, lambda s, b, k: (s, {}), lambda s, b, k: {}, takes)

    experiment = foldax.Experiment(foldax.Interaction, learner, name="agent", environment=lambda config: world)
    config = foldax.Interaction(environment_steps=512)
    return Result(experiment, config, None, None, {}, {}, 0, None, "finished", {}, {}, [], 0.0, 0.0, 0.0)


def shown(state) -> np.ndarray:
    return np.full((6, 8, 3), 40 * state, np.uint8)


def frames(path) -> list[int]:
    """Returns the grey levels of a GIF's frames."""
    with Image.open(path) as image:
        levels = []
        for number in range(image.n_frames):
            image.seek(number)
            levels.append(int(np.asarray(image.convert("RGB")).mean().round()))
        return levels


def test_a_run_is_played_from_its_folder(run, capsys) -> None:
    assert cli.main(["play", str(run), "--episodes", "2", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "counter, episode 1: return 15, 5 steps\n" in out
    assert "2 episodes: return 15 ± 0, 5.0 ± 0.0 steps" in out
    assert out.splitlines()[-2].endswith("play.gif")
    assert frames(run / "play.gif") == pytest.approx([0, 40, 80, 120, 160, 200] * 2, abs=4)
    with Image.open(run / "play_strip.png") as strip:
        assert strip.width > 4 * strip.height


def test_an_episode_is_what_was_done(tmp_path) -> None:
    """Actions are of what was seen, in worlds of their own, and the same with the same seed."""

    def reset(key):
        start = jax.random.uniform(key)
        return start, start[None]

    def step(key, state, action):
        after = state + action[0]
        return after, rl.Step(after[None], -state, after > 1.5, jnp.bool_(False))

    bounds = rl.Box(np.zeros(1, np.float32), np.full(1, 2, np.float32))
    world = rl.Environment(reset, step, bounds, bounds, render=lambda state: shown(0))
    halves = agent(world, lambda state, seen, key: seen / 2)
    options = dict(episodes=3, out=tmp_path / "x.gif", verbose=False)
    played, again, other = (play(halves, seed=seed, **options) for seed in (1, 1, 2))
    assert len({episode.total for episode in (*played, *other)}) == 6
    for episode, same in zip(played, again, strict=True):
        np.testing.assert_array_equal(episode.observations, same.observations)
        np.testing.assert_allclose(episode.observations[1:], 1.5 * episode.observations[:-1], rtol=1e-6)
        np.testing.assert_array_equal(episode.rewards, -episode.observations[:-1, 0])
        assert (episode.observations[:-1] <= 1.5).all()
        assert episode.observations[-1] > 1.5
        assert episode.ended


def test_long_episodes_are_left_off_and_drawn_in_part(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("foldax.inference.play.MOST_FRAMES", 50)
    world = counter(10**6)._replace(render=lambda state: np.full((4, 4, 3), state, np.uint8))
    (episode,) = play(agent(world), steps=100, out=tmp_path / "new" / "long.gif", fps=50)
    assert (episode.length, episode.ended, episode.broken) == (100, False, False)
    out = capsys.readouterr().out
    assert "100 steps (left off there)" in out
    assert "every 3 steps are a frame" in out
    levels = frames(tmp_path / "new" / "long.gif")
    assert levels == pytest.approx([*range(0, 100, 3), 100], abs=8)


def test_what_has_no_pictures_is_drawn_as_numbers(tmp_path, capsys) -> None:
    play(agent(counter(4)), out=tmp_path / "play.gif")
    out = capsys.readouterr().out
    assert "counter has no pictures" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["play_observations.png"]
    assert (tmp_path / "play_observations.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("where", ["observation", "reward"])
def test_what_is_not_finite_ends_an_episode(tmp_path, capsys, where) -> None:
    def step(key, state, action):
        after, answer = counter(9).step(key, state, action)
        value = getattr(answer, where)
        return after, answer._replace(**{where: jnp.where(after == 3, jnp.nan, value)})

    world = counter(9)._replace(step=step, render=shown)
    (episode,) = play(agent(world), out=tmp_path / "play.gif")
    assert (episode.length, episode.total, episode.broken, episode.ended) == (2, 3.0, True, False)
    assert "return 3, 2 steps (step 3: an observation, a reward or the state is not finite)" in capsys.readouterr().out
    assert len(frames(tmp_path / "play.gif")) == 3


def test_nothing_is_played_from_what_is_not_finite(tmp_path) -> None:
    world = counter()._replace(reset=lambda key: (jnp.int32(0), jnp.full(1, jnp.nan)))
    with pytest.raises(ExperimentError, match="its first observation is not finite"):
        play(agent(world), out=tmp_path / "play.gif", verbose=False)


@pytest.mark.skipif(
    importlib.util.find_spec("gymnax") is None, reason="gymnax is not installed: pip install 'foldax[rl]' (Python 3.11)"
)
def test_cart_pole_is_seen_to_fall(tmp_path) -> None:
    (episode,) = play(agent(rl.gymnax("CartPole-v1")), out=tmp_path / "play.gif", verbose=False)
    assert 5 < episode.length < 15  # always pushed to the left
    with Image.open(tmp_path / "play.gif") as image:
        assert (image.size, image.n_frames) == ((240, 240), episode.length + 1)


@pytest.mark.skipif(
    importlib.util.find_spec("imageio_ffmpeg") is None,
    reason="imageio-ffmpeg is not installed: pip install imageio-ffmpeg",
)
def test_a_film(tmp_path) -> None:
    world = counter(5)._replace(render=lambda state: np.full((33, 35, 3), 40 * state, np.uint8))
    play(agent(world), out=tmp_path / "play.mp4", verbose=False)
    assert b"ftyp" in (tmp_path / "play.mp4").read_bytes()[:12]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--episodes", "0"], "--episodes: 0 must be 1 or more"),
        (["--steps", "-1"], "--steps: -1 must be 1 or more"),
        (["--seed", "-1"], "--seed: -1 must be from 0 to"),
        (["--fps", "60"], "--fps: 60 must be from 1 to 50 for a .gif file"),
        (["--out", "x.webm"], "--out: 'x.webm' is of no known kind; allowed are .gif, .mp4"),
        (["extra"], "'extra' is not understood here"),
    ],
)
def test_bad_options_are_told_in_a_line(run, capsys, options, told) -> None:
    assert cli.main(["play", str(run), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"foldax: {told}")
    assert error.count("\n") == 1


def test_a_film_needs_what_writes_it(run, capsys, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["play", str(run), "--out", "x.mp4"]) == 2
    assert "pip install imageio-ffmpeg" in capsys.readouterr().err


@pytest.mark.parametrize("length", [3, 70])
def test_a_policy_that_remembers_is_given_episodes_so_far(tmp_path, length) -> None:
    """It answers at each time with the sign that was shown at the first one, also beyond a chunk of steps."""

    def predict(state, episodes, key):
        sign, _ = episodes[:, 0].T  # of single steps there is no such thing
        return jnp.broadcast_to(jnp.int32(sign > 0)[:, None], episodes.shape[:2])

    played = play(agent(recall(length), predict), episodes=5, out=tmp_path / "play.gif", verbose=False)
    assert [episode.total for episode in played] == [1.0] * 5
    assert [episode.length for episode in played] == [length] * 5


def test_other_errors_are_a_line_too(tmp_path, capsys) -> None:
    assert cli.main(["play", str(tmp_path / "none")]) == 1
    assert "there is no run folder" in capsys.readouterr().err
    options = dict(out=tmp_path / "play.gif", verbose=False)
    without = agent(counter())
    homeless = Result(**{**vars(without), "experiment": without.experiment._replace(environment=None)})
    with pytest.raises(ConfigError, match="says no `environment` to play in"):
        play(homeless, **options)
    with pytest.raises(ExperimentError, match=r"`environment` must return an rl.Environment, got int"):
        play(agent(3), **options)
    with pytest.raises(ExperimentError, match=r"must return uint8 \[H, W, 3\], all of one size, got float64 \[2, 2\]"):
        play(agent(counter()._replace(render=lambda state: np.zeros((2, 2)))), **options)
    with pytest.raises(ExperimentError, match="own code failed"):
        play(agent(counter()._replace(render=lambda state: 1 / 0)), **options)
    with pytest.raises(ConfigError, match="the run has no folder"):
        play(without, verbose=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        play(without, out=tmp_path / "file" / "play.gif", verbose=False)
