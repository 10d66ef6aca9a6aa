"""Where episodes start: at each reset, in a pool of fresh starts, or in a cached set; and metrics of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from foldax import Average, learners, models, rl
from foldax.errors import ConfigError
from foldax.rl import Box, Discrete, Environment, Step, wrappers

KEY = jax.random.key(0)


def numbered() -> Environment:
    """Each reset has a number, which is observed; an episode has two steps. Counts as metric how often 1 was chosen."""

    def reset(key):
        number = jax.random.uniform(key)
        return (number, jnp.int32(0)), number[None]

    def step(key, state, action):
        number, time = state
        info = {"ones": action == 1, "late": Average(jnp.float32(10) * (time == 1), (time == 1).astype(jnp.float32))}
        return (number, time + 1), Step(number[None], jnp.float32(1), time >= 1, jnp.bool_(False), info)

    ones = np.ones(1, np.float32)
    return Environment(reset, step, Box(0 * ones, ones), Discrete(2), "numbered")


def policy(observation, key):
    return jnp.ones(len(observation), jnp.int32), {}


def collect(environment, num_rollouts: int):
    """Numbers of the starts `[rollouts, T, N]`, the metrics of each rollout, and the state after the last."""

    def rollout(state, key):
        state, transitions, episodes = rl.rollout(environment, policy, state, key, 6)
        return state, (transitions.observation[..., 0], rl.episode_metrics(episodes))

    state = rl.reset_environments(environment, KEY, 4)
    state, (numbers, metrics) = jax.lax.scan(rollout, state, jax.random.split(KEY, num_rollouts))
    return np.asarray(numbers), metrics, state


def test_a_pool_has_new_starts_in_each_rollout_and_its_use_is_a_metric():
    numbers, metrics, state = collect(wrappers.pool_resets(numbered(), 3), 2)
    # The first two steps are of the episodes that went on, or of the first resets.
    pools = [set(rollout[2:].ravel().tolist()) for rollout in numbers]
    assert all(len(pool) <= 3 for pool in pools)
    assert not pools[0] & pools[1]
    # 4 environments end 3 episodes each in 6 steps.
    np.testing.assert_allclose(metrics["episodes_per_start"].total / metrics["episodes_per_start"].count, 12 / 3)
    assert state.starts is None


def test_cached_starts_stay_the_same_and_every_reset_differs():
    numbers, metrics, state = collect(wrappers.cache_resets(numbered(), 3), 2)
    assert set(numbers[:, 2:].ravel().tolist()) == set(np.asarray(state.starts[1]).ravel().tolist())
    assert "episodes_per_start" not in metrics
    numbers, _, state = collect(numbered(), 2)
    assert len(set(numbers.ravel().tolist())) == 4 * 2 * 3
    assert state.starts is None


def test_metrics_of_steps_are_means_over_all_steps_or_those_that_they_count():
    _, metrics, _ = collect(numbered(), 1)
    assert float(metrics["info/ones"].total[0] / metrics["info/ones"].count[0]) == 1.0
    assert float(metrics["info/late"].total[0] / metrics["info/late"].count[0]) == 10.0
    assert float(metrics["info/late"].count[0]) == 12


def test_an_evaluation_resets_each_environment_once():
    """Further episodes are not counted, so they need no starts of their own."""
    resets = []

    def reset(key):
        resets.append(key)
        return numbered().reset(key)

    environment = wrappers.pool_resets(numbered()._replace(reset=reset), 100)
    episodes = rl.play_episodes(environment, lambda *inputs: policy(*inputs)[0], KEY, 5, 9)
    assert len(resets) == 1
    assert episodes["length"].tolist() == [2] * 5


@pytest.mark.parametrize("wrapper", [wrappers.pool_resets, wrappers.cache_resets])
def test_agents_keep_their_state_with_other_resets(wrapper):
    """The pool is keyed by the update, so that chunks of any length have the same bits."""
    environment = wrapper(numbered(), 8)
    sizes = dict(environment_steps=99, learning_starts=8, num_envs=4)
    settings = learners.DQNSettings(batch_size=8)
    agents = [
        learners.ppo(environment, models.ActorCritic(2), optax.sgd(0.1)),
        learners.dqn(environment, models.QNetwork(2), optax.sgd(0.1), settings, **sizes),
    ]
    for learner in agents:
        state = jax.eval_shape(lambda key, learner=learner: learner.init(key, None), KEY)
        after, metrics = jax.eval_shape(learner.update, state, None, KEY)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
        assert ("episodes_per_start" in metrics) == (wrapper is wrappers.pool_resets)


def test_a_pool_needs_a_start():
    with pytest.raises(ConfigError, match="num_states"):
        wrappers.pool_resets(numbered(), 0)
