"""Agents in worlds so small that the best is known: what they must learn, and what they must never mix up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from foldax import learners, models, rl
from foldax.errors import ConfigError
from foldax.learners import Memory
from foldax.learners.rl import return_distributions
from foldax.learners.rl.distributions import Categorical, Normal
from tests.rl.environments import choice, continuous, counter

KEY = jax.random.key(0)


def trained(learner, updates):
    """Returns the state after these updates, and what the last one reported."""

    @jax.jit
    def fold(state):
        def one(state, step):
            return learner.update(state, None, jax.random.fold_in(KEY, step))

        return jax.lax.scan(one, state, jnp.arange(updates))

    state, metrics = fold(jax.jit(lambda key: learner.init(key, None))(KEY))
    return state, jax.tree.map(lambda x: x[-1], metrics)


def actor_critic(world, learning_rate=1e-2, **options):
    model = models.ActorCritic(
        2 if isinstance(world.actions, rl.Discrete) else 1, not isinstance(world.actions, rl.Discrete), (16,)
    )
    settings = dict(num_envs=8, rollout_steps=8, minibatches=2, evaluation_episodes=4, evaluation_steps=20)
    return learners.ppo(world, model, optax.adam(learning_rate), **{**settings, **options})


def q_learner(world, **options):
    head = options.pop("head", return_distributions.expected())
    shape = dict(dueling=options.pop("dueling", False), noisy=options.pop("noisy", False))
    model = models.QNetwork(2, head.width, (16, 16), **shape)
    settings = dict(head=head, memory=Memory(1000), num_envs=4, rollout_steps=2, start=64, batch_size=64)
    settings |= dict(epsilon=0.1, epsilon_steps=400.0, target_period=40, evaluation_episodes=4, evaluation_steps=20)
    return learners.dqn(world, model, optax.adam(1e-2), **{**settings, **options})


AGENTS = {
    "ppo": (actor_critic, {}),
    "dqn": (q_learner, {}),
    "double, dueling, n-step": (q_learner, dict(double=True, dueling=True, memory=Memory(1000, steps=3))),
    "rainbow": (
        q_learner,
        dict(double=True, dueling=True, noisy=True, memory=Memory(1000, 3, True), head=return_distributions.categorical(21, -1, 4), epsilon=0.0, epsilon_steps=0.0),
    ),
    "quantiles": (q_learner, dict(head=return_distributions.quantiles(8))),
}  # fmt: skip


@pytest.mark.parametrize("name", AGENTS)
def test_agents_learn_what_depends_on_observation_action_and_time(name):
    """Worth 1 is the action that is asked for, three times in a row; the last reward comes a step late."""
    make, options = AGENTS[name]
    learner = make(choice(), **options)
    state, _ = trained(learner, 400)
    played = jax.jit(learner.evaluate)(state, None, KEY)
    np.testing.assert_allclose(played["return"], 3.0)
    np.testing.assert_array_equal(played["length"], 4.0)


def test_numbers_are_learned_as_actions():
    surrogate = learners.Surrogate(entropy_weight=0.0)
    learner = actor_critic(continuous(), learning_rate=3e-3, surrogate=surrogate, discount=0.0)
    state, _ = trained(learner, 200)
    actions = learner.predict(state, jnp.array([[1.0], [-1.0]]), KEY)
    np.testing.assert_allclose(actions[:, 0], [0.5, -0.5], atol=0.15)


@pytest.mark.parametrize("truncates", [False, True])
def test_values_tell_an_episode_that_is_over_from_one_that_is_cut_off(truncates):
    """Each step is worth 1. Over after two, its first step is worth 1.9; cut off there, it would go on forever: 10."""
    world = counter(2, truncates, reward=1.0)
    values = {}
    learner = actor_critic(world, discount=0.9, trace_decay=0.9, surrogate=learners.Surrogate(value_clip=None))
    state, _ = trained(learner, 400)
    model = models.ActorCritic(2, False, (16,))
    values["ppo"] = model.apply({"params": state.network.params}, jnp.array([[0.0], [1.0], [2.0]])).value
    rainbow = {**AGENTS["rainbow"][1], "head": return_distributions.categorical(41, 0, 10)}
    for name, options in {"dqn": {}, "rainbow": rainbow}.items():
        head, switches = (
            options.get("head", return_distributions.expected()),
            {k: options.get(k, False) for k in ("dueling", "noisy")},
        )
        state, _ = trained(q_learner(world, discount=0.9, **options), 1500)
        model = models.QNetwork(2, head.width, (16, 16), **switches)
        outputs = model.apply({"params": state.network.params}, jnp.array([[0.0], [1.0], [2.0]]))
        values[name] = head.mean(outputs).max(axis=1)
    for name, found in values.items():
        # What follows the cut is state 2, whose own value nothing pins but its likeness: it is never acted from.
        if truncates:
            assert found[0] > 3.0, name
        else:
            np.testing.assert_allclose(found[:2], [1.9, 1.0], atol=0.15, err_msg=name)


def test_members_of_a_sweep_have_worlds_of_their_own():
    learner = actor_critic(choice())
    first, second = (learner.init(jax.random.key(seed), None) for seed in (0, 1))
    assert not np.array_equal(first.actors.observation, second.actors.observation)
    assert not np.allclose(*(state.network.params["actor_0"]["kernel"] for state in (first, second)))


def test_distributions_are_scipys():
    from scipy import stats

    logits, actions = jax.random.normal(KEY, (4, 3)), jnp.array([0, 2, 1, 0])
    shares = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(
        Categorical(logits).log_probability(actions), np.log(shares[np.arange(4), actions]), rtol=1e-5
    )
    np.testing.assert_allclose(Categorical(logits).entropy(), stats.entropy(shares, axis=1), rtol=1e-5)
    mean, log_std, numbers = jax.random.normal(KEY, (3, 5, 2))
    normal = stats.norm(np.asarray(mean), np.exp(log_std))
    np.testing.assert_allclose(
        Normal(mean, log_std).log_probability(numbers), normal.logpdf(numbers).sum(axis=1), rtol=1e-4
    )
    np.testing.assert_allclose(Normal(mean, log_std).entropy(), normal.entropy().sum(axis=1), rtol=1e-4)


def test_bad_settings_are_told():
    with pytest.raises(ConfigError, match="actions of continuous are numbers, not choices"):
        q_learner(continuous())
    with pytest.raises(ConfigError, match="capacity 16 is smaller than a batch of 64"):
        q_learner(choice(), memory=Memory(16))
    for hidden, encoder in (((16,), None), ((), models.MLP((4,)))):
        with pytest.raises(ConfigError, match="must have a layer for each stream"):
            models.QNetwork(2, hidden=hidden, dueling=True, encoder=encoder).init(KEY, jnp.zeros((1, 3)))
    with pytest.raises(ConfigError, match="environment: NoneType must be an rl.Environment"):
        learners.ppo(None, models.ActorCritic(2), optax.adam(1e-2))
    with pytest.raises(ConfigError, match="start: 8 transitions must be 64 or more"):
        q_learner(choice(), start=8)
    with pytest.raises(ConfigError, match="minibatches: 3 do not divide 8 x 8 = 64 steps"):
        actor_critic(choice(), minibatches=3)
    with pytest.raises(ConfigError, match="epochs: 0 must be 1 or more"):
        actor_critic(choice(), epochs=0)
