"""Observations with several parts, and actions with several: agents learn from trees of arrays as from arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from foldax import learners, models, rl
from foldax.errors import ConfigError
from tests.learners.rl.test_learning import trained
from tests.rl.environments import choice, two_parts

KEY = jax.random.key(0)
ENCODER = models.MultiInputEncoder({"image": None, "vector": None})
ONES = np.ones(1, np.float32)
SPACES = {
    "MultiDiscrete": (rl.MultiDiscrete((3, 2)), (3, 2), False),
    "Tuple": (rl.Tuple((rl.Discrete(3), rl.Box(-ONES, ONES))), (3, 1), (False, True)),
}


def ppo(environment, model, **options):
    settings = learners.PPOSettings(num_minibatches=2, evaluation_episodes=32, evaluation_steps=3, **options)
    return learners.ppo(environment, model, optax.adam(2e-2), settings, num_envs=32, rollout_steps=2)


@pytest.mark.parametrize("name", SPACES)
def test_ppo_learns_actions_of_several_parts_from_an_image_and_a_vector(name):
    space, num_actions, continuous = SPACES[name]
    model = models.ActorCritic(num_actions, continuous, hidden=(16,), encoder=ENCODER)
    learner = ppo(two_parts(space), model, normalize_observations=True)
    state, _ = trained(learner, 120)
    assert jax.jit(learner.evaluate)(state, None, KEY)["return"].mean() > 1.6
    assert {name: spec.shape for name, spec in learner.predict_inputs.items()} == {"image": (3, 3, 1), "vector": (1,)}


def test_dqn_stores_and_learns_from_an_image_and_a_vector():
    """Images stay uint8 in the replay buffer."""
    model = models.QNetwork(6, hidden=(16,), encoder=ENCODER)
    replay = learners.ReplaySettings(capacity=1_000)
    settings = learners.DQNSettings(batch_size=64, replay=replay, evaluation_episodes=32, evaluation_steps=3)
    sizes = dict(environment_steps=2_000, learning_starts=64, num_envs=8, rollout_steps=1)
    learner = learners.dqn(two_parts(), model, optax.adam(1e-2), settings, **sizes)
    state, metrics = trained(learner, 250)
    assert state.replay.buffer.frames["image"].dtype == jnp.uint8
    assert jax.jit(learner.evaluate)(state, None, KEY)["return"].min() == 1.0
    assert "info/column" in metrics


def test_product_distributions_are_sums_over_their_parts():
    logits = jnp.array([[0.5, -1.0, 2.0]]), jnp.array([[0.0, 1.0]])
    mean, log_std = jnp.array([[0.3]]), jnp.array([[-0.5]])
    several = models.MultiCategorical(logits)
    mixed = models.Joint((models.Categorical(logits[0]), models.Normal(mean, log_std)))
    first, second = (np.asarray(jax.nn.softmax(part))[0] for part in logits)
    expected = np.log(first[2]) + np.log(second[0])
    np.testing.assert_allclose(several.log_prob(jnp.array([[2, 0]])), expected, rtol=1e-5)
    np.testing.assert_allclose(several.entropy(), stats.entropy(first) + stats.entropy(second), rtol=1e-5)
    normal = stats.norm(0.3, np.exp(-0.5))
    log_prob = mixed.log_prob((jnp.array([2]), jnp.array([[0.9]])))
    np.testing.assert_allclose(log_prob, np.log(first[2]) + normal.logpdf(0.9), rtol=1e-5)
    np.testing.assert_allclose(mixed.entropy(), stats.entropy(first) + normal.entropy(), rtol=1e-5)
    assert several.mode().tolist() == [[2, 1]]
    masked = models.mask_distribution(several, (jnp.array([[True, True, False]]), jnp.array([[True, False]])))
    assert masked.mode().tolist() == [[0, 0]]


def never_made(make, *arguments, **options):
    return functools.partial(make, *arguments, optax.sgd(0.1), **options)


SLIPS = {
    "a dict and an MLP": (
        never_made(learners.ppo, two_parts(), models.ActorCritic(6)),
        r"observations are \{'image': \[3, 3, 1\], 'vector': \[1\]\}, and this network takes one array; give it encoder=",
    ),
    "another dict": (
        never_made(learners.ppo, two_parts(), models.ActorCritic(6, encoder=models.MultiInputEncoder({"x": None}))),
        r"observations are \['image', 'vector'\], the encoders are for \['x'\]",
    ),
    "another product": (
        never_made(learners.ppo, two_parts(SPACES["MultiDiscrete"][0]), models.ActorCritic((3, 3), encoder=ENCODER)),
        r"has discrete actions with \[3, 2\] choices at once, the network has outputs for discrete actions with \[3, 3\]",
    ),
    "another tuple": (
        never_made(
            learners.ppo, two_parts(SPACES["Tuple"][0]), models.ActorCritic((3, 1), (True, False), encoder=ENCODER)
        ),
        r"has tuples of \(3 discrete actions, continuous actions of shape \[1\]\), the network has outputs for tuples",
    ),
    "several actions for DQN": (
        never_made(learners.pqn, two_parts(SPACES["MultiDiscrete"][0]), models.QNetwork(6), environment_steps=9),
        r"pqn: two parts has discrete actions with \[3, 2\] choices at once; take ppo",
    ),
    "a game for two": (
        never_made(learners.ppo, choice()._replace(num_players=2), models.ActorCritic(2)),
        "choice has 2 players; this learner is for one",
    ),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_model_or_learner_that_does_not_fit_is_an_error_of_one_line(name):
    make, message = SLIPS[name]
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(make().init, KEY, None)


def test_a_reward_for_each_player_is_an_error_of_one_line():
    environment = choice()
    pair = environment._replace(
        step=lambda *arguments: ((stepped := environment.step(*arguments))[0], stepped[1]._replace(reward=jnp.zeros(2)))
    )
    learner = ppo(pair, models.ActorCritic(2))
    state = jax.eval_shape(lambda key: learner.init(key, None), KEY)
    with pytest.raises(ConfigError, match=r"choice: reward has the shape \[2\]; it must be a scalar"):
        jax.eval_shape(learner.update, state, None, KEY)


def test_frames_of_several_parts_cannot_be_stacked():
    with pytest.raises(ConfigError, match="frame_stack: observations of two parts are .*; they must be one array"):
        rl.wrappers.frame_stack(two_parts(), 3)
    with pytest.raises(ConfigError, match="frame_stack needs observations that are one array"):
        rl.frames.newest_frame({"image": jnp.zeros((1, 3))}, rl.frames.FrameStack(num_frames=3))
