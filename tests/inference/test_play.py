"""`foldax play`: episodes, animations of their states, and errors."""

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
from tests.rl.environments import counter, masked, recall, two_parts

FILE = '''"""An agent in an environment that counts its steps."""
import foldax
import jax
import numpy as np
import optax
from foldax import learners, models, rl
from tests.rl.environments import counter


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 32
    num_envs: int = 2
    rollout_steps: int = 8
    log_every: int = 1
    length: int = 5


def environment(config):
    base = counter(config.length)
    return base._replace(render=lambda state: np.full((6, 8, 3), 40 * state, np.uint8))


def learner(config, info):
    model = models.ActorCritic(2, hidden=(4,))
    settings = learners.PPOSettings(num_epochs=1, num_minibatches=1, evaluation_episodes=2, evaluation_steps=8)
    return learners.ppo(environment(config), model, optax.adam(1e-3), settings, num_envs=2, rollout_steps=8)


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


def agent(environment, predict=None) -> Result:
    """A run with an empty state and this `predict`; by default the action is always 0."""

    def learner(config, info):
        act = predict or (lambda state, observations, key: jnp.zeros(len(observations), jnp.int32))
        return foldax.Learner(lambda key, examples: {}, lambda s, b, k: (s, {}), lambda s, b, k: {}, act)

    experiment = foldax.Experiment(foldax.RLTraining, learner, name="agent", environment=lambda config: environment)
    config = foldax.RLTraining(environment_steps=512)
    return Result(experiment, config, None, None, {}, {}, 0, None, "finished", {}, {}, [], 0.0, 0.0, 0.0)


def render(state) -> np.ndarray:
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


def test_episodes_hold_actions_on_observations_and_repeat_with_the_seed(tmp_path) -> None:
    """Actions depend on observations; environments differ from each other, and repeat with the same seed."""

    def reset(key):
        start = jax.random.uniform(key)
        return start, start[None]

    def step(key, state, action):
        after = state + action[0]
        return after, rl.Step(after[None], -state, after > 1.5, jnp.bool_(False))

    bounds = rl.Box(np.zeros(1, np.float32), np.full(1, 2, np.float32))
    environment = rl.Environment(reset, step, bounds, bounds, render=lambda state: render(0))
    halves = agent(environment, lambda state, observations, key: observations / 2)
    options = dict(episodes=3, out=tmp_path / "x.gif", verbose=False)
    played, again, other = (play(halves, seed=seed, **options) for seed in (1, 1, 2))
    assert len({episode.episode_return for episode in (*played, *other)}) == 6
    for episode, same in zip(played, again, strict=True):
        np.testing.assert_array_equal(episode.observations, same.observations)
        np.testing.assert_allclose(episode.observations[1:], 1.5 * episode.observations[:-1], rtol=1e-6)
        np.testing.assert_array_equal(episode.rewards, -episode.observations[:-1, 0])
        assert (episode.observations[:-1] <= 1.5).all()
        assert episode.observations[-1] > 1.5
        assert episode.is_done


def test_long_episodes_are_cut_and_animated_in_part(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("foldax.inference.play.MAX_FRAMES", 50)
    environment = counter(10**6)._replace(render=lambda state: np.full((4, 4, 3), state, np.uint8))
    (episode,) = play(agent(environment), steps=100, out=tmp_path / "new" / "long.gif", fps=50)
    assert (episode.length, episode.is_done, episode.non_finite) == (100, False, False)
    out = capsys.readouterr().out
    assert "100 steps (maximum length)" in out
    assert "the animation shows one of 3 steps" in out
    levels = frames(tmp_path / "new" / "long.gif")
    assert levels == pytest.approx([*range(0, 100, 3), 100], abs=8)


def test_an_environment_without_render_gives_a_plot_of_observations(tmp_path, capsys) -> None:
    play(agent(counter(4)), out=tmp_path / "play.gif")
    out = capsys.readouterr().out
    assert "counter cannot be rendered" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["play_observations.png"]
    assert (tmp_path / "play_observations.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("where", ["observation", "reward"])
def test_a_value_that_is_not_finite_ends_an_episode(tmp_path, capsys, where) -> None:
    def step(key, state, action):
        after, answer = counter(9).step(key, state, action)
        value = getattr(answer, where)
        return after, answer._replace(**{where: jnp.where(after == 3, jnp.nan, value)})

    environment = counter(9)._replace(step=step, render=render)
    (episode,) = play(agent(environment), out=tmp_path / "play.gif")
    assert (episode.length, episode.episode_return, episode.non_finite, episode.is_done) == (2, 3.0, True, False)
    assert "return 3, 2 steps (step 3: an observation, a reward or the state is not finite)" in capsys.readouterr().out
    assert len(frames(tmp_path / "play.gif")) == 3


def test_a_first_observation_that_is_not_finite_is_an_error(tmp_path) -> None:
    environment = counter()._replace(reset=lambda key: (jnp.int32(0), jnp.full(1, jnp.nan)))
    with pytest.raises(ExperimentError, match="its first observation is not finite"):
        play(agent(environment), out=tmp_path / "play.gif", verbose=False)


def test_an_animation_of_cart_pole(tmp_path) -> None:
    (episode,) = play(agent(rl.cartpole()), out=tmp_path / "play.gif", verbose=False)
    assert 5 < episode.length < 15  # always pushed to the left
    with Image.open(tmp_path / "play.gif") as image:
        assert (image.size, image.n_frames) == ((240, 240), episode.length + 1)


@pytest.mark.skipif(
    importlib.util.find_spec("imageio_ffmpeg") is None,
    reason="imageio-ffmpeg is not installed: pip install imageio-ffmpeg",
)
def test_an_mp4_file(tmp_path) -> None:
    environment = counter(5)._replace(render=lambda state: np.full((33, 35, 3), 40 * state, np.uint8))
    play(agent(environment), out=tmp_path / "play.mp4", verbose=False)
    assert b"ftyp" in (tmp_path / "play.mp4").read_bytes()[:12]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--episodes", "0"], "--episodes: 0 must be 1 or more"),
        (["--steps", "-1"], "--steps: -1 must be 1 or more"),
        (["--seed", "-1"], "--seed: -1 must be from 0 to"),
        (["--fps", "60"], "--fps: 60 must be from 1 to 50 for a .gif file"),
        (["--out", "x.webm"], "--out: 'x.webm' is of no known kind; allowed are .gif, .mp4"),
        (["extra"], "'extra' is no option of this command"),
    ],
)
def test_bad_options_are_errors_of_one_line(run, capsys, options, message) -> None:
    assert cli.main(["play", str(run), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"foldax: {message}")
    assert error.count("\n") == 1


def test_an_mp4_file_needs_imageio_ffmpeg(run, capsys, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["play", str(run), "--out", "x.mp4"]) == 2
    assert "pip install imageio-ffmpeg" in capsys.readouterr().err


@pytest.mark.parametrize("length", [3, 70])
def test_a_policy_with_memory_gets_the_episodes_so_far(tmp_path, length) -> None:
    """The action of each step is the sign of the first observation, also beyond a chunk of steps."""

    def predict(state, episodes, key):
        sign, _ = episodes[:, 0].T  # single steps have another shape
        return jnp.broadcast_to(jnp.int32(sign > 0)[:, None], episodes.shape[:2])

    played = play(agent(recall(length), predict), episodes=5, out=tmp_path / "play.gif", verbose=False)
    assert [episode.episode_return for episode in played] == [1.0] * 5
    assert [episode.length for episode in played] == [length] * 5


def test_other_errors_of_play(tmp_path, capsys) -> None:
    assert cli.main(["play", str(tmp_path / "none")]) == 1
    assert "there is no run folder" in capsys.readouterr().err
    options = dict(out=tmp_path / "play.gif", verbose=False)
    without = agent(counter())
    no_environment = Result(**{**vars(without), "experiment": without.experiment._replace(environment=None)})
    with pytest.raises(ConfigError, match="has no `environment` to play in"):
        play(no_environment, **options)
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


def test_a_policy_gets_the_legal_actions_and_the_episode_holds_the_observations(tmp_path):
    """An illegal action has reward -100."""

    def predict(state, inputs, key):
        return inputs.legal_actions.argmax(axis=-1).astype(jnp.int32)

    episodes = play(agent(masked(), predict), episodes=3, out=tmp_path / "play.gif", verbose=False)
    assert [episode.length for episode in episodes] == [3, 3, 3]
    assert min(episode.episode_return for episode in episodes) >= 0
    assert episodes[0].observations.shape == (4, 4)


def test_observations_of_several_parts_are_played_and_plotted(tmp_path):
    def predict(state, inputs, key):
        column = inputs["image"][:, 0, :, 0].argmax(axis=-1)
        return (2 * column + (inputs["vector"][:, 0] > 0)).astype(jnp.int32)

    episodes = play(agent(two_parts(), predict), episodes=3, out=tmp_path / "play.gif", verbose=False)
    assert [episode.episode_return for episode in episodes] == [1, 1, 1]
    assert episodes[0].observations["image"].shape == (2, 3, 3, 1)
    assert (tmp_path / "play_observations.png").is_file()
