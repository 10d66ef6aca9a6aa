"""Environments on the host: whose steps are told apart rightly, and which a learner is trained in as in any other."""

import functools
import importlib.util
import json
import signal
import sys
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import foldax
from foldax import laws, learners, models, rl
from foldax.configuration import with_steps
from foldax.errors import ConfigError, Interrupted, NonFiniteError
from foldax.inference.play import play as play_run
from foldax.inference.rollout import unpacked
from foldax.rl.host_environment import Stage, play

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'foldax[gymnasium]'")
from gymnasium import spaces  # noqa: E402
from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402


class Numbered(gymnasium.Env):
    """Sees 100 times its episode, plus the step in it; the episode ends after 3 steps. Copies end at different times."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(2, start=5)

    def __init__(self, truncates=False, late=0):
        self.truncates, self.late, self.episode, self.taken = truncates, late, 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._seen(), {}

    def step(self, action):
        self.taken.append(action)
        self.time += 1
        over = self.time >= 3 + self.late
        return self._seen(), float(self.time), over and not self.truncates, over and self.truncates, {}

    def _seen(self):
        return np.array([100.0 * self.episode + self.time])


class Asked(gymnasium.Env):
    """Shows a number, and is worth 1 where the action is its sign; four times, then the episode is over."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)
    metadata: ClassVar = {"render_modes": ["rgb_array"]}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 4
        return self._ask(), {}

    def step(self, action):
        reward, self.left = float(action == (self.asked > 0)), self.left - 1
        return self._ask(), reward, self.left == 0, False, {}

    def _ask(self):
        self.asked = self.np_random.choice([-1.0, 1.0])
        return np.array([self.asked], np.float32)


def vector(world, mode=AutoresetMode.SAME_STEP, **options):
    return lambda count: SyncVectorEnv([lambda: world(**options)] * count, autoreset_mode=mode)


def numbered(mode=AutoresetMode.SAME_STEP, truncates=False, steps=4):
    def make(count):
        each = [lambda late=late: Numbered(truncates, late) for late in range(count)]
        return SyncVectorEnv(each, autoreset_mode=mode)

    return rl.host(make, "numbered", num_envs=2, rollout_steps=steps)


def blocks(host, count, act=lambda inputs, number: np.zeros(len(inputs.observation), np.int32), seed=0, step=0):
    """Returns the first blocks' batches on the host."""
    source = host.train.blocks(seed, step)
    next(source)
    return [source.send(act).data for _ in range(count)]


@pytest.mark.parametrize("truncates", [False, True])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED], ids=lambda mode: mode.name)
def test_an_episode_ends_with_its_own_last_observation(mode, truncates):
    first, second = (batch.seen for batch in blocks(numbered(mode, truncates), 2))
    seen, after = (
        np.concatenate([getattr(b, name) for b in (first, second)])[..., 0]
        for name in ("observation", "next_observation")
    )
    over = np.concatenate([b.truncated if truncates else b.terminated for b in (first, second)])
    np.testing.assert_array_equal(after, seen + 1)  # never the next episode's, which would be near 100 more
    np.testing.assert_array_equal(seen[1:][~over[:-1]], after[:-1][~over[:-1]])
    np.testing.assert_array_equal(seen[1:][over[:-1]] % 100, 0)
    np.testing.assert_array_equal(over[:, 0], [0, 0, 1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(over[:, 1], [0, 0, 0, 1, 0, 0, 0, 1])
    assert not np.any([b.terminated if truncates else b.truncated for b in (first, second)])


def test_episodes_are_counted_when_they_end_across_blocks():
    first, second = (batch.finished for batch in blocks(numbered(), 2))
    np.testing.assert_array_equal(first.episode_return.total, [0, 0, 6, 10])
    np.testing.assert_array_equal(first.episode_return.count, [0, 0, 1, 1])
    np.testing.assert_array_equal(second.episode_return.total, [0, 6, 0, 10])  # begun in the first block
    np.testing.assert_array_equal(second.episode_length.total, [0, 3, 0, 4])


def test_a_limit_of_time_cuts_off_and_does_not_end():
    host = rl.gymnasium("CartPole-v1", num_envs=2, rollout_steps=12, max_episode_steps=5)
    (batch,) = blocks(host, 1, lambda inputs, number: np.full(2, number % 2))
    np.testing.assert_array_equal(np.flatnonzero(batch.seen.truncated[:, 0]), [4, 9])
    assert not np.any(batch.seen.terminated)
    assert host.info.actions == rl.Discrete(2)
    assert host.info.observations.shape == (4,)


def test_actions_count_from_the_spaces_start_and_stay_in_its_bounds():
    stage = Stage(SyncVectorEnv([Numbered], autoreset_mode=AutoresetMode.SAME_STEP), "numbered", 0)
    stage.step(np.array([1], np.int32))
    assert stage.environments.envs[0].taken == [6]
    host = rl.gymnasium("Pendulum-v1", num_envs=1, rollout_steps=1)
    given = []

    def make(count):
        made = host.train.make(count)
        step = made.step
        made.step = lambda action: given.append(action) or step(action)
        return made

    bold = rl.host(make, "bold", num_envs=1, rollout_steps=2)
    (batch,) = blocks(bold, 1, lambda inputs, number: np.array([[7.0]], np.float32))
    np.testing.assert_array_equal(given[0], [[2.0]])
    np.testing.assert_array_equal(batch.seen.action[0], [[7.0]])  # what was drawn, whose probability is known


def test_blocks_follow_from_the_seed_and_go_on_with_new_episodes():
    host = rl.gymnasium("CartPole-v1", num_envs=2, rollout_steps=3)
    begin = {
        (seed, step): np.asarray(blocks(host, 1, seed=seed, step=step)[0].seen.observation)
        for seed in (0, 1)
        for step in (0, 5)
    }
    np.testing.assert_array_equal(begin[0, 0], blocks(host, 1)[0].seen.observation)
    starts = [copy for batch in begin.values() for copy in batch[0].tolist()]
    assert len(np.unique(starts, axis=0)) == 8  # seeds, steps and copies all differ


def test_calls_are_numbered_over_the_run():
    numbers = []
    host = numbered(steps=3)
    blocks(host, 2, lambda inputs, number: numbers.append(number) or np.zeros(2, np.int32), step=4)
    assert numbers == [12, 13, 14, 15, 16, 17]


# -- runs ------------------------------------------------------------------------------------------


@foldax.config
class Config(foldax.Interaction):
    environment_steps: int = 12 * 16
    num_envs: int = 4
    rollout_steps: int = 4
    log_every: int = 4
    checkpoint_every: int = 2
    learning_rate: float = 1e-2


def learner(config, info):
    model = models.ActorCritic(info.actions.num, hidden=(8,))
    options = dict(num_envs=config.num_envs, rollout_steps=config.rollout_steps, minibatches=2)
    surrogate = learners.Surrogate(entropy_weight=0.0, value_clip=None)
    return learners.ppo(info, model, optax.adam(config.learning_rate), surrogate=surrogate, **options)


def asked(config):
    sizes = dict(num_envs=config.num_envs, rollout_steps=config.rollout_steps, evaluation_episodes=6)
    return rl.host(vector(Asked), "asked", **sizes)


experiment = foldax.Experiment(Config, learner, asked, name="asked")


def test_a_world_on_the_host_is_solved():
    result = foldax.train(experiment, with_steps(Config(checkpoint_every=0), 80), save=False, verbose=False)
    assert result.metrics["test"] == {"return": 4.0, "length": 4.0, "finished": 1.0}
    assert result.metrics["train"]["length"] == 4.0


def test_a_run_that_was_stopped_goes_on_and_says_what_is_lost(tmp_path, capsys):
    class Stops(Asked):
        steps = 0

        def step(self, action):
            Stops.steps += 1
            if Stops.steps == 70:
                signal.raise_signal(signal.SIGTERM)
            return super().step(action)

    stops = experiment._replace(
        dataset=lambda config: asked(config)._replace(
            train=rl.host(vector(Stops), "asked", num_envs=4, rollout_steps=4).train
        )
    )
    run, lost = tmp_path / "run", "asked is on the host, where episodes cannot be saved"
    with pytest.raises(Interrupted, match=f"stopped at step [1-9].*of 12; go on with: foldax resume.*{lost}"):
        foldax.train(stops, Config(), run_dir=run, verbose=False)
    assert lost in json.loads((run / "manifest.json").read_text())["unsaved"]
    result = foldax.train(stops, Config(), run_dir=run, resume=True, verbose=False)
    assert lost in capsys.readouterr().err
    assert result.status == "finished"
    assert [line["step"] for line in result.history if line["split"] == "train"] == [4, 8, 12]
    assert lost in json.loads((run / "result.json").read_text())["unsaved"]


def test_a_world_that_gives_nan_ends_the_run():
    class Broken(Asked):
        def step(self, action):
            observation, _, *ends = super().step(action)
            return observation, float("nan"), *ends

    broken = experiment._replace(dataset=lambda config: rl.host(vector(Broken), "broken", num_envs=4, rollout_steps=4))
    with pytest.raises(NonFiniteError, match="'loss' became NaN or infinite at step 0"):
        foldax.train(broken, Config(checkpoint_every=0), save=False, verbose=False)


def test_copies_in_processes_of_their_own_answer_alike():
    sizes = dict(num_envs=2, rollout_steps=3)
    together, apart = (blocks(rl.gymnasium("CartPole-v1", mode=mode, **sizes), 1)[0] for mode in ("sync", "async"))
    np.testing.assert_array_equal(together.seen.next_observation, apart.seen.next_observation)


def test_members_of_a_sweep_play_in_worlds_of_their_own():
    table = foldax.sweep(experiment, seeds=2, config=Config(checkpoint_every=0), save=False, verbose=False).results
    assert (table["status"] == "finished").all()
    assert table["train/loss"].nunique() == 2


def remembering(config, info):
    memory = learners.Memory(200, steps=2, prioritized=True)
    return learners.dqn(
        info,
        models.QNetwork(info.actions.num, hidden=(8,)),
        optax.adam(config.learning_rate),
        memory=memory,
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        start=32,
        batch_size=32,
        epsilon_steps=500.0,
        target_period=50,
    )


def test_a_memory_fills_from_a_host_over_a_stop_too(tmp_path):
    remembers = experiment._replace(learner=remembering)
    run = tmp_path / "run"
    foldax.train(remembers, with_steps(Config(), 10), run_dir=run, verbose=False)
    config = with_steps(Config(log_every=10, checkpoint_every=0), 120)
    result = foldax.train(remembers, config, save=False, verbose=False)
    assert result.metrics["test"] == {"return": 4.0, "length": 4.0, "finished": 1.0}
    assert result.state.experience.environment_steps == 120 * 16
    assert [line.get("loss") is None for line in result.history if line["split"] == "train"] == [False] * 12


@pytest.mark.parametrize("drawn", [False, True])
def test_an_agent_is_played_where_it_learned(tmp_path, drawn):
    class Drawn(Asked):
        render_mode = "rgb_array"

        def render(self):
            return np.full((8, 8, 3), 50 * self.left, np.uint8)

    pictured = vector(Drawn) if drawn else None
    sizes = dict(num_envs=4, rollout_steps=4, evaluation_episodes=6, pictured=pictured)
    shown = experiment._replace(dataset=lambda config: rl.host(vector(Asked), "asked", **sizes))
    result = foldax.train(shown, with_steps(Config(checkpoint_every=0), 80), save=False, verbose=False)
    first, second = played = play_run(result, episodes=2, out=tmp_path / "play.gif", verbose=False)
    assert [(one.total, one.length, one.ended) for one in played] == [(4.0, 4, True)] * 2
    assert (first.observations != second.observations).any()
    assert (tmp_path / ("play_strip.png" if drawn else "play_observations.png")).exists()
    if drawn:  # the environments begin anew with the last step, so the last picture is of the step before
        assert [int(unpacked(state)[0, 0, 0]) for state in first.states] == [200, 150, 100, 50, 50]


@pytest.mark.parametrize("law", laws.LAWS)
def test_laws_hold_or_are_said_not_to(law):
    skipped = laws.LAWS[law](laws.subject(experiment, Config()))
    why = dict.fromkeys(("resume", "sweep", "chunking"), "asked is on the host") | {"learning": "no batch to repeat"}
    assert (skipped is not None) == (law in why), skipped
    assert why.get(law, "") in (skipped or "")


# -- what cannot be --------------------------------------------------------------------------------


def test_what_does_not_fit_the_host_is_told():
    info = asked(Config()).info
    make = functools.partial(learners.dqn, info, models.QNetwork(2), optax.adam(1e-3), batch_size=8, start=64)
    with pytest.raises(ConfigError, match="num_envs: 3 must be the host's, 4"):
        make(num_envs=3, rollout_steps=4)
    with pytest.raises(ConfigError, match="rollout_steps: 1 must be the host's, 4"):
        make(num_envs=4, rollout_steps=1)
    with pytest.raises(ConfigError, match="start_steps: 32 must be 0 where environments are on the host"):
        foldax.train(experiment, Config(start_steps=32), save=False, verbose=False)


def test_what_cannot_be_played_in_is_told(monkeypatch):
    sizes = dict(num_envs=1, rollout_steps=1)
    with pytest.raises(ConfigError, match="no environment 'CartPoal-v1'; did you mean 'CartPole-v1'"):
        rl.gymnasium("CartPoal-v1", **sizes)
    with pytest.raises(ConfigError, match="cannot make 'CartPole-v1': .*gravitation"):
        rl.gymnasium("CartPole-v1", gravitation=3, **sizes)
    with pytest.raises(ConfigError, match="cannot make 'nowhere:Game-v5'.*foldax\\[atari\\], MuJoCo's worlds"):
        rl.gymnasium("nowhere:Game-v5", **sizes)
    with pytest.raises(ConfigError, match="CartPole-v1: mode 'vector_entry_point' takes no wrappers"):
        rl.gymnasium("CartPole-v1", mode="vector_entry_point", wrappers=[lambda world: world], **sizes)
    with pytest.raises(ConfigError, match="FrozenLake-v1: observations are Discrete.*FlattenObservation"):
        rl.gymnasium("FrozenLake-v1", **sizes)
    with pytest.raises(ConfigError, match="Blackjack-v1: observations are Tuple.*only Box and Discrete"):
        rl.gymnasium("Blackjack-v1", **sizes)
    with pytest.raises(ConfigError, match="numbered: autoreset mode NEXT_STEP loses steps.*SAME_STEP"):
        numbered(AutoresetMode.NEXT_STEP)
    with pytest.raises(ConfigError, match="rollout_steps: 0 must be 1 or more"):
        rl.gymnasium("CartPole-v1", num_envs=1, rollout_steps=0)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match="pip install 'foldax\\[gymnasium\\]'"):
        rl.gymnasium("CartPole-v1", **sizes)


def test_whole_episodes_are_counted_once_each():
    class Learner:
        seed = np.uint32(3)

        def __call__(self, observation, number):
            return np.zeros(len(observation), np.int32)

    (block,) = numbered().splits["test"].blocks(Learner())
    assert block.mask.all()
    lengths = 3 + np.arange(16)  # the first episode of every copy, also of those that end before the last
    np.testing.assert_array_equal(block.batches["length"][0], lengths)
    np.testing.assert_array_equal(block.batches["return"][0], lengths * (lengths + 1) / 2)


def test_episodes_are_played_by_the_best_actions_or_by_draws():
    shown = []

    class Learner:
        seed = np.uint32(3)

        def __call__(self, inputs, number):
            shown.append(type(inputs))
            return np.zeros(6, np.int32)

    for greedy in (True, False):
        sizes = dict(num_envs=2, rollout_steps=2, evaluation_episodes=6, evaluation_steps=2)
        host = rl.host(vector(Asked), "asked", greedy_evaluation=greedy, **sizes)
        (block,) = host.splits["test"].blocks(Learner())
        np.testing.assert_array_equal(block.batches["finished"], np.zeros((1, 6)))  # two steps of four
    assert shown == [np.ndarray, np.ndarray, rl.Explore, rl.Explore]


@pytest.mark.skipif(
    importlib.util.find_spec("ale_py") is None, reason="Atari's games are not installed: pip install 'foldax[atari]'"
)
def test_of_atari_each_frame_is_kept_once():
    """Over the ends of games: what the memory makes of its frames is what the games showed."""
    options = dict(mode="vector_entry_point", img_height=16, img_width=12)
    host = rl.gymnasium("ale_py:ALE/Pong-v5", num_envs=2, rollout_steps=1_100, **options)
    stack, rng = rl.replay.Stack(4, axis=0, blank=True), np.random.RandomState(0)
    (played,) = blocks(host, 1, lambda inputs, number: rng.randint(0, 6, 2).astype(np.int32))
    seen = jax.tree.map(np.asarray, played.seen)
    assert seen.observation.shape[1:] == (2, 4, 16, 12)
    assert (seen.terminated | seen.truncated).any(axis=0).all()
    memory = rl.replay.empty(rl.replay.newest(seen.observation[0], stack), np.zeros(2, np.int32), 2_200)
    assert memory.frames.nbytes < 1.2 * seen.observation.nbytes / 4

    @jax.jit
    def kept(memory, played):
        def one(memory, step):
            seen, after = step
            return rl.replay.add(
                memory, seen._replace(next_observation=newest(seen.next_observation)), newest(after), stack
            ), None

        return jax.lax.scan(one, memory, (played.seen, played.observation))[0]

    newest = functools.partial(rl.replay.newest, stack=stack)
    rows = np.repeat(np.arange(1_100), 2), np.tile(np.arange(2), 1_100)
    found = jax.jit(lambda memory: rl.replay.at(memory, *map(jnp.asarray, rows), 0.99, 1, stack))(kept(memory, played))
    np.testing.assert_array_equal(found.observation, seen.observation.reshape(-1, 4, 16, 12))
    np.testing.assert_array_equal(found.next_observation, seen.next_observation.reshape(-1, 4, 16, 12))


def test_images_stay_small_and_numbers_become_float32():
    class Image(Asked):
        observation_space = spaces.Box(0, 255, (2, 2, 1), np.uint8)

        def _ask(self):
            super()._ask()
            return np.zeros((2, 2, 1), np.uint8)

    stage = Stage(vector(Image)(2), "image", 0)
    host = rl.host(vector(Image), "image", num_envs=2, rollout_steps=2)
    played = play(stage, lambda inputs, number: np.zeros(2, np.int32), host.info, 0)
    assert played.seen.observation.dtype == np.uint8
    assert blocks(numbered(), 1)[0].seen.observation.dtype == np.float32
