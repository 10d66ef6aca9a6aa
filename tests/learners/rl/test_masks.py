"""Illegal actions: agents never take them, and learn as if there were only the legal ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from foldax import learners, models, rl
from foldax.errors import ConfigError
from foldax.learners import on_policy
from foldax.learners.rl import dqn, exploration
from foldax.learners.rl.ppo import PPOSettings, ppo_loss
from foldax.learners.rl.return_distributions import expectation
from foldax.rl.replay import ReplayBatch
from tests.rl.environments import choice, masked

KEY = jax.random.key(0)
ROWS, FEATURES, ACTIONS = 6, 3, 5


def random_masks(seed: int) -> np.ndarray:
    """Masks `[ROWS, ACTIONS]` with one legal action or more in each row, and all in the last one."""
    masks = np.random.RandomState(seed).random_sample((ROWS, ACTIONS)) < 0.5
    masks[np.arange(ROWS), np.arange(ROWS) % ACTIONS] = True
    masks[-1] = True
    return masks


def random_arrays(seed: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
    generator = np.random.RandomState(seed)
    return [jnp.asarray(generator.standard_normal(shape), jnp.float32) for shape in shapes]


class LegalOnly:
    """Categorical distributions over the legal actions alone, whose numbers differ from row to row."""

    def __init__(self, logits: jax.Array, masks: np.ndarray) -> None:
        self.parts = [models.Categorical(row[np.flatnonzero(mask)][None]) for row, mask in zip(logits, masks)]
        self.numbers = np.cumsum(masks, axis=1) - 1  # of each action among the legal ones

    def log_prob(self, actions: jax.Array) -> jax.Array:
        numbers = jnp.asarray(self.numbers[np.arange(ROWS), actions])
        return jnp.concatenate([part.log_prob(number[None]) for part, number in zip(self.parts, numbers)])

    def entropy(self) -> jax.Array:
        return jnp.concatenate([part.entropy() for part in self.parts])


class Linear:
    """Actor-critic whose logits and value are linear in the observation."""

    def apply(self, variables, x):
        params = variables["params"]
        return models.ActorCriticOutput(models.Categorical(x @ params["actor"]), x @ params["critic"])


def legal_choices(masks: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.RandomState(seed)
    return np.array([generator.choice(np.flatnonzero(mask)) for mask in masks])


@pytest.mark.parametrize("seed", range(2))
def test_gradients_of_ppo_are_those_of_the_same_problem_with_only_the_legal_actions(seed):
    masks = random_masks(seed)
    observations, actor, critic, log_probs, values, advantages, targets = random_arrays(
        seed, (ROWS, FEATURES), (FEATURES, ACTIONS), (FEATURES,), *[(ROWS,)] * 4
    )
    params, actions = {"actor": 2 * actor, "critic": critic}, legal_choices(masks, seed)
    settings = PPOSettings(entropy_coefficient=0.5)
    batch = on_policy.RolloutBatch(None, jnp.asarray(actions), log_probs - 1.5, values, advantages, targets)

    def masked_loss(params):
        inputs = batch._replace(observations=rl.MaskedObservation(observations, jnp.asarray(masks)))
        return on_policy.actor_critic_loss_fn(Linear(), ppo_loss, settings)(params, {}, inputs, KEY)[0]

    def legal_loss(params):
        output = Linear().apply({"params": params}, observations)
        legal = output._replace(distribution=LegalOnly(output.distribution.logits, masks))
        return ppo_loss(legal, batch._replace(actions=actions), settings)[0]

    loss, gradients = jax.value_and_grad(masked_loss)(params)
    expected_loss, expected = jax.value_and_grad(legal_loss)(params)
    np.testing.assert_allclose(loss, expected_loss, atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), gradients, expected)
    assert np.abs(expected["actor"]).max() > 0.01


@pytest.mark.parametrize("double", [False, True])
def test_gradients_of_dqn_are_those_of_the_same_problem_with_only_the_legal_actions(double):
    masks, next_masks = random_masks(1), random_masks(2)
    observations, next_observations, weights, target_weights, rewards = random_arrays(
        1, (ROWS, FEATURES), (ROWS, FEATURES), (FEATURES, ACTIONS), (FEATURES, ACTIONS), (ROWS,)
    )
    actions, discounts = legal_choices(masks, 1), jnp.array([0.9, 0.9, 0.0, 0.9, 0.9, 0.9])

    class LinearQ:
        def apply(self, variables, x, train, rngs):
            return (x @ variables["params"])[..., None]

    batch = ReplayBatch(
        rl.MaskedObservation(observations, jnp.asarray(masks)), jnp.asarray(actions), rewards,
        rl.MaskedObservation(next_observations, jnp.asarray(next_masks)), discounts, jnp.ones(ROWS), None, None,
    )  # fmt: skip

    def masked_loss(params):
        output = dqn.apply_networks(LinearQ(), params, target_weights, batch, expectation(), double, KEY)
        return dqn.dqn_loss(output, batch, expectation())[0]

    def legal_loss(params):
        total = 0.0
        for row in range(ROWS):
            legal = np.flatnonzero(next_masks[row])
            next_q = next_observations[row] @ target_weights[:, legal]
            chosen = (next_observations[row] @ params[:, legal] if double else next_q).argmax()
            target = jax.lax.stop_gradient(rewards[row] + discounts[row] * next_q[chosen])
            total += 0.5 * jnp.square(observations[row] @ params[:, actions[row]] - target) / ROWS
        return total

    np.testing.assert_allclose(jax.grad(masked_loss)(weights), jax.grad(legal_loss)(weights), atol=1e-6)


def test_a_row_without_legal_actions_has_finite_gradients_and_values():
    """Such rows are terminated states, whose values have discount 0."""
    none = jnp.zeros((1, 3), bool)

    def entropy(logits):
        distribution = models.mask_distribution(models.Categorical(logits), none)
        return (distribution.entropy() + distribution.log_prob(jnp.array([1]))).sum()

    np.testing.assert_array_equal(jax.grad(entropy)(jnp.ones((1, 3))), 0.0)
    assert float(0.0 * models.mask_values(jnp.ones((1, 3)), none).max()) == 0.0
    assert models.mask_values(jnp.ones((1, 3), jnp.bfloat16), none).dtype == jnp.float32


def test_random_and_greedy_actions_are_legal_and_the_random_ones_uniform():
    masks = jnp.asarray(random_masks(0))
    q_values = models.mask_values(jnp.where(masks, 0.0, 9.0), masks)
    keys = jax.random.split(KEY, 2_000)
    for epsilon in (0.0, 1.0):
        select = functools.partial(exploration.epsilon_greedy, q_values, epsilon, legal_actions=masks)
        actions = jax.vmap(select)(keys)
        counts = np.asarray(jax.nn.one_hot(actions, ACTIONS).sum(axis=0))
        assert (counts[~np.asarray(masks)] == 0).all()
    np.testing.assert_allclose(counts / 2_000, masks / masks.sum(axis=1, keepdims=True), atol=0.05)


EVALUATION = dict(evaluation_episodes=32, evaluation_steps=5)


def ppo():
    settings = learners.PPOSettings(num_minibatches=2, normalize_observations=True, **EVALUATION)
    model = models.ActorCritic(4, hidden=(8,))
    return learners.ppo(masked(), model, optax.adam(1e-2), settings, num_envs=8, rollout_steps=4)


def deep_q_learning():
    replay = learners.ReplaySettings(capacity=200, prioritized=True)
    settings = learners.DQNSettings(batch_size=16, double=True, replay=replay, **EVALUATION)
    sizes = dict(environment_steps=9_999, learning_starts=64, num_envs=8, rollout_steps=4)
    return learners.dqn(masked(), models.QNetwork(4, hidden=(8,)), optax.adam(1e-2), settings, **sizes)


@pytest.mark.parametrize("make", [ppo, deep_q_learning])
def test_no_illegal_action_is_taken_stored_or_evaluated(make):
    """An illegal action has reward -100, and episodes have three steps."""
    learner = make()
    state = jax.jit(lambda key: learner.init(key, None))(KEY)
    state, metrics = jax.jit(learner.update)(state, None, KEY)
    episodes = jax.jit(learner.evaluate)(state, None, KEY)
    assert float(metrics["return"].count) > 0
    assert float(metrics["return"].total) >= 0
    assert episodes["return"].min() >= 0
    # `predict` takes both by name, as `foldax predict` and an export give them.
    assert learner.predict_inputs["legal_actions"].shape == (4,)
    inputs = {"inputs": jnp.zeros((4, 4)), "legal_actions": jnp.eye(4, dtype=bool)}
    np.testing.assert_array_equal(learner.predict(state, inputs, KEY), range(4))
    if make is deep_q_learning:
        buffer = state.replay.buffer
        count = int(buffer.num_rows)
        frame, action = buffer.rows[:count, :, 0], buffer.rows[:count, :, 4]
        legal = buffer.frames.legal_actions[frame]
        assert jnp.take_along_axis(legal, action[..., None], axis=-1).all()


AGENTS = {
    "a2c": lambda: learners.a2c(masked(), models.ActorCritic(4), optax.sgd(0.1)),
    "reinforce": lambda: learners.reinforce(masked(), models.ActorCritic(4), optax.sgd(0.1), episode_steps=3),
    "recurrent_ppo": lambda: learners.recurrent_ppo(masked(), models.RecurrentActorCritic(4), optax.sgd(0.1)),
    "pqn": lambda: learners.pqn(masked(), models.QNetwork(4), optax.sgd(0.1), environment_steps=999),
}


@pytest.mark.parametrize("name", AGENTS)
def test_the_other_agents_mask_their_actions_too(name):
    learner = AGENTS[name]()
    state = jax.eval_shape(lambda key: learner.init(key, None), KEY)
    after, _ = jax.eval_shape(learner.update, state, None, KEY)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.eval_shape(learner.evaluate, state, None, KEY)["return"].ndim == 1
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.network)
    shape = (4, 1) if name == "recurrent_ppo" else (4,)
    inputs = {"inputs": jnp.zeros((*shape, 4)), "legal_actions": jnp.eye(4, dtype=bool).reshape(*shape, 4)}
    actions = learner.predict(state._replace(network=zeros), inputs, KEY)
    np.testing.assert_array_equal(actions.ravel(), range(4))


def test_a_mask_that_does_not_fit_is_an_error_when_the_learner_is_made():
    wrong = choice()._replace(legal_actions=lambda state: jnp.ones(3, bool))
    with pytest.raises(ConfigError, match=r"choice: legal_actions returns bool\[3\]; its actions need bool\[2\]"):
        learners.a2c(wrong, models.ActorCritic(2), optax.sgd(0.1))


def test_only_distributions_with_logits_can_be_masked():
    normal = models.Normal(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    with pytest.raises(ConfigError, match="Normal has no logits to mask"):
        models.mask_distribution(normal, jnp.ones((1, 2), bool))


def test_a_mask_fits_inside_a_program_of_several_devices_too():
    """There shapes have a sharding, as in the program of a sweep."""
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("members",))
    spec = jax.sharding.PartitionSpec("members")

    def reset(keys):
        return jax.vmap(rl.observe_legal_actions(masked()).reset)(keys)[1].legal_actions

    shape = jax.eval_shape(jax.shard_map(reset, mesh=mesh, in_specs=spec, out_specs=spec), jax.random.split(KEY, 2))
    assert shape.shape == (2, 4)
