"""PPO and DQN in environments so small that the best policy and its values are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from foldax import learners, models, rl
from foldax.errors import ConfigError
from foldax.learners import DQNSettings, PPOSettings, ReplaySettings, return_distributions
from foldax.models import Categorical, Normal
from tests.rl.environments import choice, continuous, counter

KEY = jax.random.key(0)
EVALUATION = dict(evaluation_episodes=4, evaluation_steps=20)


def trained(learner, updates):
    """Runs updates in one compiled loop; returns the state after them, and the metrics of the last one."""

    @jax.jit
    def train(state):
        def update(state, step):
            return learner.update(state, None, jax.random.fold_in(KEY, step))

        return jax.lax.scan(update, state, jnp.arange(updates))

    state, metrics = train(jax.jit(lambda key: learner.init(key, None))(KEY))
    return state, jax.tree.map(lambda x: x[-1], metrics)


def ppo(environment, learning_rate=1e-2, **settings):
    is_discrete = isinstance(environment.action_space, rl.Discrete)
    model = models.ActorCritic(2 if is_discrete else 1, not is_discrete, (16,))
    settings = PPOSettings(**{"num_minibatches": 2, **EVALUATION, **settings})
    return learners.ppo(environment, model, optax.adam(learning_rate), settings, num_envs=8, rollout_steps=8)


def dqn(environment, returns=None, dueling=False, noisy=False, learning_starts=64, **settings):
    returns = return_distributions.expectation() if returns is None else returns
    model = models.QNetwork(2, returns.num_outputs, (16, 16), dueling=dueling, noisy=noisy)
    defaults = dict(batch_size=64, final_epsilon=0.1, target_update_period=40, replay=ReplaySettings(capacity=1000))
    options = dict(environment_steps=800, num_envs=4, rollout_steps=2, learning_starts=learning_starts)
    settings = DQNSettings(**{**defaults, **EVALUATION, **settings})
    return learners.dqn(environment, model, optax.adam(1e-2), settings, return_distribution=returns, **options)


RAINBOW = dict(
    double=True,
    dueling=True,
    noisy=True,
    replay=ReplaySettings(capacity=1000, n_steps=3, prioritized=True, importance_exponent=0.4),
    final_epsilon=0.0,
    exploration_fraction=0.0,
)
AGENTS = {
    "ppo": (ppo, {}),
    "dqn": (dqn, {}),
    "double, dueling, n-step": (dqn, dict(double=True, dueling=True, replay=ReplaySettings(capacity=1000, n_steps=3))),
    "rainbow": (dqn, dict(returns=return_distributions.categorical(21, -1, 4), **RAINBOW)),
    "quantiles": (dqn, dict(returns=return_distributions.quantiles(8))),
}


@pytest.mark.parametrize("name", AGENTS)
def test_agents_solve_a_task_of_observation_action_and_time(name):
    """Three times in a row the requested action has reward 1; the last reward comes a step late."""
    make, options = AGENTS[name]
    learner = make(choice(), **options)
    state, _ = trained(learner, 400)
    episodes = jax.jit(learner.evaluate)(state, None, KEY)
    np.testing.assert_allclose(episodes["return"], 3.0)
    np.testing.assert_array_equal(episodes["length"], 4.0)


def test_continuous_actions_are_learned():
    learner = ppo(continuous(), learning_rate=3e-3, entropy_coefficient=0.0, discount=0.0)
    state, _ = trained(learner, 200)
    actions = learner.predict(state, jnp.array([[1.0], [-1.0]]), KEY)
    np.testing.assert_allclose(actions[:, 0], [0.5, -0.5], atol=0.15)


@pytest.mark.parametrize("truncates", [False, True])
def test_values_distinguish_terminated_from_truncated_episodes(truncates):
    """Every step has reward 1. Terminated after two, the first has value 1.9; truncated there, 10: rewards would go on."""
    environment = counter(2, truncates, reward=1.0)
    states = jnp.array([[0.0], [1.0], [2.0]])
    values = {}
    learner = ppo(environment, discount=0.9, gae_lambda=0.9, value_clip_range=None)
    state, metrics = trained(learner, 400)
    assert 0.9 < float(metrics["explained_variance"]) <= 1 or truncates
    values["ppo"] = models.ActorCritic(2, False, (16,)).apply({"params": state.network.params}, states).value
    rainbow = {**AGENTS["rainbow"][1], "returns": return_distributions.categorical(41, 0, 10)}
    for name, options in {"dqn": {}, "rainbow": rainbow}.items():
        returns = options.get("returns", return_distributions.expectation())
        switches = {switch: options.get(switch, False) for switch in ("dueling", "noisy")}
        state, _ = trained(dqn(environment, discount=0.9, **options), 1500)
        outputs = models.QNetwork(2, returns.num_outputs, (16, 16), **switches).apply(
            {"params": state.network.params}, states
        )
        values[name] = returns.mean(outputs).max(axis=1)
    for name, value in values.items():
        # The truncated episode's last observation is state 2, which is never acted from: only generalisation sets its
        # value.
        if truncates:
            assert value[0] > 3.0, name
        else:
            np.testing.assert_allclose(value[:2], [1.9, 1.0], atol=0.15, err_msg=name)


def test_members_of_a_sweep_have_environments_of_their_own():
    learner = ppo(choice())
    first, second = (learner.init(jax.random.key(seed), None) for seed in (0, 1))
    assert not np.array_equal(first.environment_state.observation, second.environment_state.observation)
    assert not np.allclose(*(state.network.params["actor_0"]["kernel"] for state in (first, second)))


def test_distributions_are_scipys():
    logits, actions = jax.random.normal(KEY, (4, 3)), jnp.array([0, 2, 1, 0])
    probabilities = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(
        Categorical(logits).log_prob(actions), np.log(probabilities[np.arange(4), actions]), rtol=1e-5
    )
    np.testing.assert_allclose(Categorical(logits).entropy(), stats.entropy(probabilities, axis=1), rtol=1e-5)
    mean, log_std, actions = jax.random.normal(KEY, (3, 5, 2))
    normal = stats.norm(np.asarray(mean), np.exp(log_std))
    log_probs = Normal(mean, log_std).log_prob(actions)
    np.testing.assert_allclose(log_probs, normal.logpdf(actions).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(Normal(mean, log_std).entropy(), normal.entropy().sum(axis=1), rtol=1e-4)


def test_squashed_log_probs_are_those_of_its_samples():
    distribution = models.SquashedNormal(jnp.zeros((50, 2)), jnp.zeros((50, 2)))
    actions, log_probs = distribution.sample_and_log_prob(KEY)
    np.testing.assert_allclose(distribution.log_prob(actions), log_probs, atol=1e-3)
    np.testing.assert_array_equal(distribution.sample(KEY), actions)


def test_errors_name_the_wrong_setting():
    with pytest.raises(ConfigError, match="the actions of continuous are continuous"):
        dqn(continuous())
    with pytest.raises(ConfigError, match="16 transitions are fewer than a batch of 64"):
        dqn(choice(), replay=ReplaySettings(capacity=16))
    for hidden, encoder in (((16,), None), ((), models.MLP((4,)))):
        with pytest.raises(ConfigError, match="must have a layer for each stream"):
            models.QNetwork(2, hidden=hidden, dueling=True, encoder=encoder).init(KEY, jnp.zeros((1, 3)))
    with pytest.raises(ConfigError, match=r"environment: expected an rl.Environment.*got NoneType"):
        learners.ppo(None, models.ActorCritic(2), optax.adam(1e-2))
    with pytest.raises(ConfigError, match="learning_starts: 8 must be at least 64"):
        dqn(choice(), learning_starts=8)
    with pytest.raises(ConfigError, match="num_minibatches: 3 does not divide the 8 x 8 = 64 steps of a rollout"):
        ppo(choice(), num_minibatches=3)
    with pytest.raises(ConfigError, match=r"PPOSettings.num_epochs: 0 is too small; it must be at least 1"):
        ppo(choice(), num_epochs=0)
