"""Environments on the host: episodes end with their own observations, and learners train in them as in any other."""

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
from foldax.experiment import load_experiment
from foldax.inference.play import play as play_run
from foldax.inference.rollout import decompress_image
from foldax.rl.host_environment import VectorEnvironment, collect_host_rollout

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'foldax[gymnasium]'")
from gymnasium import spaces  # noqa: E402
from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402


class Numbered(gymnasium.Env):
    """Shows 100 times the number of its episode plus the step in it; an episode has 3 steps, or `late` more."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(2, start=5)

    def __init__(self, truncates=False, late=0):
        self.truncates, self.late, self.episode, self.actions = truncates, late, 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action):
        self.actions.append(action)
        self.time += 1
        done = self.time >= 3 + self.late
        return self._observe(), float(self.time), done and not self.truncates, done and self.truncates, {}

    def _observe(self):
        return np.array([100.0 * self.episode + self.time])


class NamedParts(Numbered):
    """Its observations have names."""

    observation_space = spaces.Dict({"number": Numbered.observation_space})

    def _observe(self):
        return {"number": super()._observe()}


class TwoButtons(Numbered):
    """Its actions are several bits."""

    action_space = spaces.MultiBinary(2)


class Priceless(Numbered):
    """Its second reward is not a number, long before the episode ends."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, np.nan if self.time == 2 else reward, *rest


def vector_of(environment, count):
    return SyncVectorEnv([environment] * count, autoreset_mode=AutoresetMode.SAME_STEP)


def test_a_reward_that_is_not_finite_shows_in_the_return_at_once():
    environments = VectorEnvironment(vector_of(functools.partial(Priceless, late=5), 2), "priceless", seed=0)
    actions = np.zeros(2, np.int32)
    assert environments.step(actions)[1].episode_return == (0, 0)
    total, count = environments.step(actions)[1].episode_return
    assert np.isnan(total)
    assert count == 0


class SignTask(gymnasium.Env):
    """Shows a number, four times in an episode; the reward is 1 if the action is its sign."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)
    metadata: ClassVar = {"render_modes": ["rgb_array"]}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.remaining = 4
        return self._show(), {}

    def step(self, action):
        reward, self.remaining = float(action == (self.number > 0)), self.remaining - 1
        return self._show(), reward, self.remaining == 0, False, {}

    def _show(self):
        self.number = self.np_random.choice([-1.0, 1.0])
        return np.array([self.number], np.float32)


def vector(make_env, mode=AutoresetMode.SAME_STEP, **options):
    return lambda count: SyncVectorEnv([lambda: make_env(**options)] * count, autoreset_mode=mode)


def numbered(mode=AutoresetMode.SAME_STEP, truncates=False, steps=4):
    def make(count):
        each = [lambda late=late: Numbered(truncates, late) for late in range(count)]
        return SyncVectorEnv(each, autoreset_mode=mode)

    return rl.from_vector_env(make, "numbered", num_envs=2, rollout_steps=steps)


def batches(host, count, policy=lambda inputs, call: np.zeros(len(inputs.observation), np.int32), seed=0, step=0):
    """The batches of the first blocks, as NumPy arrays."""
    source = host.train.blocks(seed, step)
    next(source)
    return [source.send(policy).data for _ in range(count)]


@pytest.mark.parametrize("truncates", [False, True])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED], ids=lambda mode: mode.name)
def test_an_episode_ends_with_its_own_last_observation(mode, truncates):
    first, second = (batch.transitions for batch in batches(numbered(mode, truncates), 2))
    observation, next_observation = (
        np.concatenate([getattr(b, name) for b in (first, second)])[..., 0]
        for name in ("observation", "next_observation")
    )
    done = np.concatenate([b.truncated if truncates else b.terminated for b in (first, second)])
    np.testing.assert_array_equal(next_observation, observation + 1)  # the next episode's would be near 100 more
    np.testing.assert_array_equal(observation[1:][~done[:-1]], next_observation[:-1][~done[:-1]])
    np.testing.assert_array_equal(observation[1:][done[:-1]] % 100, 0)
    np.testing.assert_array_equal(done[:, 0], [0, 0, 1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(done[:, 1], [0, 0, 0, 1, 0, 0, 0, 1])
    assert not np.any([b.terminated if truncates else b.truncated for b in (first, second)])


def test_episodes_are_counted_when_they_end_across_blocks():
    first, second = (batch.episodes for batch in batches(numbered(), 2))
    np.testing.assert_array_equal(first.episode_return.total, [0, 0, 6, 10])
    np.testing.assert_array_equal(first.episode_return.count, [0, 0, 1, 1])
    np.testing.assert_array_equal(second.episode_return.total, [0, 6, 0, 10])  # started in the first block
    np.testing.assert_array_equal(second.episode_length.total, [0, 3, 0, 4])


def test_a_time_limit_truncates_and_does_not_terminate():
    host = rl.gymnasium("CartPole-v1", num_envs=2, rollout_steps=12, max_episode_steps=5)
    (batch,) = batches(host, 1, lambda inputs, call: np.full(2, call % 2))
    np.testing.assert_array_equal(np.flatnonzero(batch.transitions.truncated[:, 0]), [4, 9])
    assert not np.any(batch.transitions.terminated)
    assert host.info.action_space == rl.Discrete(2)
    assert host.info.observation_space.shape == (4,)


def test_actions_start_at_the_spaces_start_and_stay_in_its_bounds():
    environments = VectorEnvironment(SyncVectorEnv([Numbered], autoreset_mode=AutoresetMode.SAME_STEP), "numbered", 0)
    environments.step(np.array([1], np.int32))
    assert environments.vector_env.envs[0].actions == [6]
    host = rl.gymnasium("Pendulum-v1", num_envs=1, rollout_steps=1)
    received = []

    def make(count):
        vector_env = host.train.make(count)
        step = vector_env.step
        vector_env.step = lambda action: received.append(action) or step(action)
        return vector_env

    bold = rl.from_vector_env(make, "bold", num_envs=1, rollout_steps=2)
    (batch,) = batches(bold, 1, lambda inputs, call: np.array([[7.0]], np.float32))
    np.testing.assert_array_equal(received[0], [[2.0]])
    np.testing.assert_array_equal(
        batch.transitions.action[0], [[7.0]]
    )  # the sampled action, whose log-probability is known


def test_blocks_depend_on_the_seed_and_resume_with_new_episodes():
    host = rl.gymnasium("CartPole-v1", num_envs=2, rollout_steps=3)
    first = {
        (seed, step): np.asarray(batches(host, 1, seed=seed, step=step)[0].transitions.observation)
        for seed in (0, 1)
        for step in (0, 5)
    }
    np.testing.assert_array_equal(first[0, 0], batches(host, 1)[0].transitions.observation)
    starts = [observation for batch in first.values() for observation in batch[0].tolist()]
    assert len(np.unique(starts, axis=0)) == 8  # seeds, steps and environments all differ


def test_calls_of_the_policy_are_numbered_over_the_run():
    calls = []
    host = numbered(steps=3)
    batches(host, 2, lambda inputs, call: calls.append(call) or np.zeros(2, np.int32), step=4)
    assert calls == [12, 13, 14, 15, 16, 17]


# -- runs ------------------------------------------------------------------------------------------


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 12 * 16
    num_envs: int = 4
    rollout_steps: int = 4
    log_every: int = 4
    checkpoint_every: int = 2
    learning_rate: float = 1e-2


def learner(config, info):
    model = models.ActorCritic(info.action_space.num, hidden=(8,))
    sizes = dict(num_envs=config.num_envs, rollout_steps=config.rollout_steps)
    settings = learners.PPOSettings(num_minibatches=2, entropy_coefficient=0.0, value_clip_range=None)
    return learners.ppo(info, model, optax.adam(config.learning_rate), settings, **sizes)


def sign_task(config):
    sizes = dict(num_envs=config.num_envs, rollout_steps=config.rollout_steps, evaluation_episodes=6)
    return rl.from_vector_env(vector(SignTask), "sign_task", **sizes)


experiment = foldax.Experiment(Config, learner, sign_task, name="sign_task")


def test_a_host_environment_is_solved():
    result = foldax.train(experiment, with_steps(Config(checkpoint_every=0), 80), save=False, verbose=False)
    assert result.metrics["test"] == {"return": 4.0, "length": 4.0, "finished": 1.0}
    assert result.metrics["train"]["length"] == 4.0


def test_a_stopped_run_resumes_and_says_what_is_lost(tmp_path, capsys):
    class Stops(SignTask):
        steps = 0

        def step(self, action):
            Stops.steps += 1
            if Stops.steps == 70:
                signal.raise_signal(signal.SIGTERM)
            return super().step(action)

    stops = experiment._replace(
        dataset=lambda config: sign_task(config)._replace(
            train=rl.from_vector_env(vector(Stops), "sign_task", num_envs=4, rollout_steps=4).train
        )
    )
    run, lost = tmp_path / "run", "sign_task runs on the host, where episodes cannot be saved"
    with pytest.raises(Interrupted, match=f"stopped at step [1-9].*of 12; go on with: foldax resume.*{lost}"):
        foldax.train(stops, Config(), run_dir=run, verbose=False)
    assert lost in json.loads((run / "manifest.json").read_text())["nonresumable_reason"]
    result = foldax.train(stops, Config(), run_dir=run, resume=True, verbose=False)
    assert lost in capsys.readouterr().err
    assert result.status == "finished"
    assert [line["step"] for line in result.history if line["split"] == "train"] == [4, 8, 12]
    assert lost in json.loads((run / "result.json").read_text())["nonresumable_reason"]


def test_a_reward_of_nan_ends_the_run():
    class Broken(SignTask):
        def step(self, action):
            observation, _, *ends = super().step(action)
            return observation, float("nan"), *ends

    broken = experiment._replace(
        dataset=lambda config: rl.from_vector_env(vector(Broken), "broken", num_envs=4, rollout_steps=4)
    )
    with pytest.raises(NonFiniteError, match="'loss' became NaN or infinite at step 0"):
        foldax.train(broken, Config(checkpoint_every=0), save=False, verbose=False)


OWN = """
import numpy as np, gymnasium as gym
class Own(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.float32(self.np_random.uniform(size=1)), {}
    def step(self, action):
        return np.float32(self.np_random.uniform(size=1)), 1.0, False, False, {}
gym.register("Own-v0", Own)
experiment = foldax.Experiment(foldax.RLTraining, print)
"""


def test_environments_in_their_own_processes_have_the_same_observations(tmp_path):
    """Their class is that of an experiment's file, which the processes cannot import."""
    (tmp_path / "own.py").write_text("import foldax\n" + OWN)
    load_experiment(tmp_path / "own.py")
    sizes = dict(num_envs=2, rollout_steps=3)
    sync, parallel = (batches(rl.gymnasium("Own-v0", mode=mode, **sizes), 1)[0] for mode in ("sync", "async"))
    np.testing.assert_array_equal(sync.transitions.next_observation, parallel.transitions.next_observation)


def test_members_of_a_sweep_act_in_environments_of_their_own():
    table = foldax.sweep(experiment, seeds=2, config=Config(checkpoint_every=0), save=False, verbose=False).results
    assert (table["status"] == "finished").all()
    assert table["train/loss"].nunique() == 2


def dqn(config, info):
    replay = learners.ReplaySettings(capacity=200, n_steps=2, prioritized=True, importance_steps=1e30)
    settings = learners.DQNSettings(batch_size=32, target_update_period=50, replay=replay)
    return learners.dqn(
        info,
        models.QNetwork(info.action_space.num, hidden=(8,)),
        optax.adam(config.learning_rate),
        settings,
        environment_steps=1_000,
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        learning_starts=32,
    )


def test_a_replay_buffer_fills_from_a_host_also_over_a_stop(tmp_path):
    replaying = experiment._replace(learner=dqn)
    run = tmp_path / "run"
    foldax.train(replaying, with_steps(Config(), 10), run_dir=run, verbose=False)
    config = with_steps(Config(log_every=10, checkpoint_every=0), 120)
    result = foldax.train(replaying, config, save=False, verbose=False)
    assert result.metrics["test"] == {"return": 4.0, "length": 4.0, "finished": 1.0}
    assert result.state.replay.environment_steps == 120 * 16
    assert [line.get("loss") is None for line in result.history if line["split"] == "train"] == [False] * 12


@pytest.mark.parametrize("rendered", [False, True])
def test_an_agent_plays_where_it_learned(tmp_path, rendered):
    class Rendered(SignTask):
        render_mode = "rgb_array"

        def render(self):
            return np.full((8, 8, 3), 50 * self.remaining, np.uint8)

    make_for_rendering = vector(Rendered) if rendered else None
    sizes = dict(num_envs=4, rollout_steps=4, evaluation_episodes=6, make_for_rendering=make_for_rendering)
    shown = experiment._replace(dataset=lambda config: rl.from_vector_env(vector(SignTask), "sign_task", **sizes))
    result = foldax.train(shown, with_steps(Config(checkpoint_every=0), 80), save=False, verbose=False)
    first, second = played = play_run(result, episodes=2, out=tmp_path / "play.gif", verbose=False)
    assert [(one.episode_return, one.length, one.is_done) for one in played] == [(4.0, 4, True)] * 2
    assert (first.observations != second.observations).any()
    assert (tmp_path / ("play_strip.png" if rendered else "play_observations.png")).exists()
    if rendered:  # the environments reset with the last step, so the last image is of the step before
        assert [int(decompress_image(state)[0, 0, 0]) for state in first.states] == [200, 150, 100, 50, 50]


@pytest.mark.parametrize("law", laws.LAWS)
def test_laws_hold_or_say_why_not(law):
    skipped = laws.LAWS[law](laws.make_subject(experiment, Config()))
    reasons = dict.fromkeys(("resume", "sweep", "chunking"), "sign_task runs on the host") | {
        "learning": "no batch to repeat"
    }
    assert (skipped is not None) == (law in reasons), skipped
    assert reasons.get(law, "") in (skipped or "")


# -- errors ----------------------------------------------------------------------------------------


def test_numbers_must_be_those_of_the_host():
    info = sign_task(Config()).info
    sizes = dict(environment_steps=100, learning_starts=128)
    make = functools.partial(learners.dqn, info, models.QNetwork(2), optax.adam(1e-3), **sizes)
    with pytest.raises(ConfigError, match="num_envs: the learner has 3, the host environment 4"):
        make(num_envs=3, rollout_steps=4)
    with pytest.raises(ConfigError, match="rollout_steps: the learner has 1, the host environment 4"):
        make(num_envs=4, rollout_steps=1)
    with pytest.raises(ConfigError, match="learning_starts: 32 must be 0 where environments are on the host"):
        foldax.train(experiment, Config(learning_starts=32), save=False, verbose=False)


def test_errors_name_what_gymnasium_lacks(monkeypatch):
    sizes = dict(num_envs=1, rollout_steps=1)
    with pytest.raises(ConfigError, match="no environment 'CartPoal-v1'; did you mean 'CartPole-v1'"):
        rl.gymnasium("CartPoal-v1", **sizes)
    with pytest.raises(ConfigError, match="cannot make 'CartPole-v1': .*gravitation"):
        rl.gymnasium("CartPole-v1", gravitation=3, **sizes)
    with pytest.raises(ConfigError, match="cannot make 'nowhere:Game-v5'.*foldax\\[atari\\], MuJoCo environments"):
        rl.gymnasium("nowhere:Game-v5", **sizes)
    with pytest.raises(ConfigError, match="CartPole-v1: mode 'vector_entry_point' takes no wrappers"):
        rl.gymnasium("CartPole-v1", mode="vector_entry_point", wrappers=[lambda env: env], **sizes)
    with pytest.raises(ConfigError, match="FrozenLake-v1: observations are Discrete.*FlattenObservation"):
        rl.gymnasium("FrozenLake-v1", **sizes)
    with pytest.raises(ConfigError, match="Blackjack-v1: observations are Tuple.*must be a Box"):
        rl.gymnasium("Blackjack-v1", **sizes)
    with pytest.raises(ConfigError, match="named parts: observations are Dict.*must be a Box.*FlattenObservation"):
        rl.from_vector_env(lambda count: vector_of(NamedParts, count), "named parts", **sizes)
    with pytest.raises(ConfigError, match="two buttons: actions are MultiBinary.*must be Box or Discrete"):
        rl.from_vector_env(lambda count: vector_of(TwoButtons, count), "two buttons", **sizes)
    with pytest.raises(ConfigError, match="numbered: autoreset mode NEXT_STEP loses steps.*SAME_STEP"):
        numbered(AutoresetMode.NEXT_STEP)
    with pytest.raises(ConfigError, match="rollout_steps: 0 must be 1 or more"):
        rl.gymnasium("CartPole-v1", num_envs=1, rollout_steps=0)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match="pip install 'foldax\\[gymnasium\\]'"):
        rl.gymnasium("CartPole-v1", **sizes)


def test_whole_episodes_are_counted_once_each():
    class Policy:
        seed = np.uint32(3)

        def __call__(self, observation, call):
            return np.zeros(len(observation), np.int32)

    (block,) = numbered().splits["test"].blocks(Policy())
    assert block.mask.all()
    lengths = 3 + np.arange(16)  # the first episode of every environment, also of those that end before the last
    np.testing.assert_array_equal(block.batches["length"][0], lengths)
    np.testing.assert_array_equal(block.batches["return"][0], lengths * (lengths + 1) / 2)


def test_evaluation_acts_greedily_or_explores():
    received = []

    class Policy:
        seed = np.uint32(3)

        def __call__(self, inputs, call):
            received.append(type(inputs))
            return np.zeros(6, np.int32)

    for greedy in (True, False):
        sizes = dict(num_envs=2, rollout_steps=2, evaluation_episodes=6, evaluation_steps=2)
        host = rl.from_vector_env(vector(SignTask), "sign_task", greedy_evaluation=greedy, **sizes)
        (block,) = host.splits["test"].blocks(Policy())
        np.testing.assert_array_equal(block.batches["finished"], np.zeros((1, 6)))  # two steps of four
    assert received == [np.ndarray, np.ndarray, rl.ExplorationRequest, rl.ExplorationRequest]


@pytest.mark.skipif(
    importlib.util.find_spec("ale_py") is None, reason="Atari's games are not installed: pip install 'foldax[atari]'"
)
def test_each_atari_frame_is_stored_once():
    """Also over the ends of games, the buffer stacks its frames to the observations of the games."""
    options = dict(mode="vector_entry_point", img_height=16, img_width=12)
    host = rl.gymnasium("ale_py:ALE/Pong-v5", num_envs=2, rollout_steps=1_100, **options)
    stack, rng = rl.frames.FrameStack(num_frames=4, axis=0, zero_padding=True), np.random.RandomState(0)
    newest_frame = functools.partial(rl.frames.newest_frame, stack=stack)
    (rollout,) = batches(host, 1, lambda inputs, call: rng.randint(0, 6, 2).astype(np.int32))
    transitions = jax.tree.map(np.asarray, rollout.transitions)
    assert transitions.observation.shape[1:] == (2, 4, 16, 12)
    assert (transitions.terminated | transitions.truncated).any(axis=0).all()
    buffer = rl.replay.init(newest_frame(transitions.observation[0]), np.zeros(2, np.int32), 2_200)
    assert buffer.frames.nbytes < 1.2 * transitions.observation.nbytes / 4

    @jax.jit
    def fill(buffer, rollout):
        def add(buffer, step):
            transition, current = step
            transition = transition._replace(next_observation=newest_frame(transition.next_observation))
            return rl.replay.add(buffer, transition, newest_frame(current), stack), None

        return jax.lax.scan(add, buffer, (rollout.transitions, rollout.current_observation))[0]

    rows = map(jnp.asarray, (np.repeat(np.arange(1_100), 2), np.tile(np.arange(2), 1_100)))
    read = jax.jit(lambda buffer, *rows: rl.replay.transitions_at(buffer, *rows, 0.99, 1, stack))
    stored = read(fill(buffer, rollout), *rows)
    np.testing.assert_array_equal(stored.observations, transitions.observation.reshape(-1, 4, 16, 12))
    np.testing.assert_array_equal(stored.next_observations, transitions.next_observation.reshape(-1, 4, 16, 12))


def test_images_stay_uint8_and_other_observations_become_float32():
    class Image(SignTask):
        observation_space = spaces.Box(0, 255, (2, 2, 1), np.uint8)

        def _show(self):
            super()._show()
            return np.zeros((2, 2, 1), np.uint8)

    environments = VectorEnvironment(vector(Image)(2), "image", 0)
    host = rl.from_vector_env(vector(Image), "image", num_envs=2, rollout_steps=2)
    rollout = collect_host_rollout(environments, lambda inputs, call: np.zeros(2, np.int32), host.info, 0)
    assert rollout.transitions.observation.dtype == np.uint8
    assert batches(numbered(), 1)[0].transitions.observation.dtype == np.float32
