"""On-policy learners: policy gradients, PQN, recurrent policies and normalisation, in environments with known optima."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import explained_variance_score

from foldax import Average, learners, models, rl
from foldax.errors import ConfigError
from foldax.learners import on_policy
from foldax.learners.rl import exploration, normalization
from foldax.learners.rl.reinforce import first_episodes
from tests.learners.rl.test_learning import EVALUATION, KEY, trained
from tests.rl.environments import choice, continuous, counter, recall


def actor_critic(environment):
    is_discrete = isinstance(environment.action_space, rl.Discrete)
    return models.ActorCritic(2 if is_discrete else 1, not is_discrete, (16,))


def split(options, *names):
    """Splits options into those of these names, which are the learner's, and its settings."""
    learner = {name: options[name] for name in (*names, "loss", "advantages") if name in options}
    return learner, {name: value for name, value in options.items() if name not in learner}


def ppo(environment, **options):
    sizes, settings = split({"num_envs": 8, "rollout_steps": 8, **options}, "num_envs", "rollout_steps")
    settings = learners.PPOSettings(**{"num_minibatches": 2, **EVALUATION, **settings})
    return learners.ppo(environment, actor_critic(environment), optax.adam(1e-2), settings, **sizes)


def a2c(environment, **options):
    sizes, settings = split({"num_envs": 16, **options}, "num_envs", "rollout_steps")
    settings = learners.A2CSettings(**{**EVALUATION, **settings})
    return learners.a2c(environment, actor_critic(environment), optax.rmsprop(1e-2, 0.99), settings, **sizes)


def reinforce(environment, **options):
    sizes, settings = split({"num_envs": 16, "episode_steps": 5, **options}, "num_envs", "episode_steps")
    settings = learners.ReinforceSettings(**{**EVALUATION, **settings})
    return learners.reinforce(environment, actor_critic(environment), optax.adam(1e-2), settings, **sizes)


def pqn(environment, **options):
    sizes, settings = split({"num_envs": 8, "rollout_steps": 8, **options}, "num_envs", "rollout_steps")
    model = models.QNetwork(environment.action_space.num, hidden=(16,), normalization="layer")
    settings = learners.PQNSettings(**{"num_minibatches": 4, "final_epsilon": 0.1, **EVALUATION, **settings})
    return learners.pqn(environment, model, optax.radam(1e-2), settings, environment_steps=4_000, **sizes)


def recurrent_ppo(environment, **options):
    sizes, settings = split({"num_envs": 16, "rollout_steps": 9, **options}, "num_envs", "rollout_steps")
    model = models.RecurrentActorCritic(environment.action_space.num, hidden=(), width=8)
    settings = learners.PPOSettings(**{"num_epochs": 2, "num_minibatches": 2, **EVALUATION, **settings})
    return learners.recurrent_ppo(environment, model, optax.adam(2e-2), settings, **sizes)


NORMALIZED = dict(normalize_observations=True, normalize_rewards=True)
AGENTS = {"ppo, normalised": lambda environment: ppo(environment, **NORMALIZED)}
AGENTS |= {"a2c": a2c, "a2c, normalised": lambda environment: a2c(environment, **NORMALIZED)}
AGENTS |= {"reinforce": reinforce, "pqn": pqn, "recurrent_ppo": recurrent_ppo}


def initial(learner):
    return jax.jit(lambda key: learner.init(key, None))(KEY)


@pytest.mark.parametrize("name", AGENTS)
def test_agents_solve_a_task_of_observation_action_and_time(name):
    """Three times in a row the requested action has reward 1; the last reward comes a step late."""
    learner = AGENTS[name](choice())
    state, metrics = trained(learner, 300)
    episodes = jax.jit(learner.evaluate)(state, None, KEY)
    np.testing.assert_allclose(episodes["return"], 3.0)
    np.testing.assert_array_equal(episodes["length"], 4.0)
    assert float(metrics["length"].total) == 4 * float(metrics["length"].count) > 0


@pytest.mark.parametrize("make", [a2c, reinforce])
def test_continuous_actions_are_learned(make):
    learner = make(continuous(), discount=0.0, entropy_coefficient=0.0)
    state, _ = trained(learner, 600)
    actions = learner.predict(state, jnp.array([[1.0], [-1.0]]), KEY)
    np.testing.assert_allclose(actions[:, 0], [0.5, -0.5], atol=0.2)


@pytest.mark.parametrize("truncates", [False, True])
@pytest.mark.parametrize("make", [a2c, reinforce, pqn, recurrent_ppo])
def test_values_distinguish_terminated_from_truncated_episodes(make, truncates):
    """Every step has reward 1. Terminated after two, the first has value 1.9; truncated there, more."""
    environment = counter(2, truncates, reward=1.0)
    state, _ = trained(make(environment, discount=0.9), 500)
    states = jnp.array([[0.0], [1.0]])
    if make is pqn:
        model = models.QNetwork(2, hidden=(16,), normalization="layer")
        values = model.apply({"params": state.network.params}, states).max(axis=(1, 2))
    elif make is recurrent_ppo:
        model = models.RecurrentActorCritic(2, hidden=(), width=8)
        values = model.apply({"params": state.network.params}, states[None])[0].value[0]
    else:
        values = actor_critic(environment).apply({"params": state.network.params}, states).value
    if truncates:
        assert values[0] > 2.5
    else:
        np.testing.assert_allclose(values, [1.9, 1.0], atol=0.2)


# -- losses and advantages -------------------------------------------------------------------------


def test_ppo_loss_is_equation_9_of_the_paper():
    rng = np.random.RandomState(0)
    logits, actions = rng.randn(40, 3), rng.randint(0, 3, 40)
    value, old_value, target, advantage = rng.randn(4, 40)
    log_probs = np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    old_log_probs = log_probs[np.arange(40), actions] + 0.3 * rng.randn(40)
    settings = learners.PPOSettings(
        clip_range=0.2, value_clip_range=0.1, entropy_coefficient=0.3, normalize_advantages=False
    )
    output = models.ActorCriticOutput(models.Categorical(jnp.asarray(logits)), jnp.asarray(value))
    arrays = map(jnp.asarray, (np.zeros(40), actions, old_log_probs, old_value, advantage, target))
    loss, metrics = learners.ppo_loss(output, on_policy.RolloutBatch(*arrays), settings)

    ratio = np.exp(log_probs[np.arange(40), actions] - old_log_probs)
    policy_loss = -np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage).mean()
    clipped_value = old_value + np.clip(value - old_value, -0.1, 0.1)
    value_loss = 0.5 * np.maximum((value - target) ** 2, (clipped_value - target) ** 2).mean()
    entropy = -(np.exp(log_probs) * log_probs).sum(axis=1).mean()
    np.testing.assert_allclose(loss, policy_loss + 0.5 * value_loss - 0.3 * entropy, rtol=1e-5)
    np.testing.assert_allclose(metrics["clip_fraction"], ((ratio < 0.8) | (ratio > 1.2)).mean(), rtol=1e-6)
    assert 0 < metrics["clip_fraction"] < 1
    np.testing.assert_allclose(metrics["approx_kl"], (ratio - 1 - np.log(ratio)).mean(), rtol=1e-4)


def test_policy_gradient_is_that_of_its_definition():
    """The gradient of the logits is minus the weighted mean of advantage times (one-hot minus probabilities)."""
    logits, values = jnp.array([[0.3, -0.2], [1.0, 0.0], [0.0, 0.0]]), jnp.array([0.5, 1.0, 9.0])
    actions, advantages = jnp.array([0, 1, 0]), jnp.array([1.0, -2.0, 5.0])
    weights, targets = jnp.array([1.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 0.0])
    rollout = on_policy.RolloutBatch(jnp.arange(3), actions, None, None, advantages, targets, weights)
    settings = learners.A2CSettings(entropy_coefficient=0.0, value_coefficient=0.5)

    def loss(logits, values):
        output = models.ActorCriticOutput(models.Categorical(logits), values)
        return learners.policy_gradient_loss(output, rollout, settings)[0]

    logits_gradient, values_gradient = jax.grad(loss, argnums=(0, 1))(logits, values)
    expected = -0.5 * advantages[:2, None] * (jnp.eye(2)[actions[:2]] - jax.nn.softmax(logits)[:2])
    np.testing.assert_allclose(logits_gradient[:2], expected, rtol=1e-5)
    np.testing.assert_allclose(values_gradient, [0.5 * 0.5 * -0.5, 0.5 * 0.5 * 1.0, 0.0], rtol=1e-5)
    np.testing.assert_array_equal(logits_gradient[2], 0.0)


@pytest.mark.parametrize(("make", "default"), [(ppo, learners.ppo_loss), (a2c, learners.policy_gradient_loss)])
def test_an_own_loss_that_calls_the_default_has_the_same_bits(make, default):
    def loss(output, rollout, settings):
        value, metrics = default(output, rollout, settings)
        return value, {**metrics, "advantage": rollout.advantages.mean()}

    states, metrics = zip(*(trained(make(choice(), **options), 3) for options in ({}, {"loss": loss})))
    chex.assert_trees_all_equal(*states)
    assert metrics[1].keys() - metrics[0].keys() == {"advantage"}


@pytest.mark.parametrize("make", [ppo, recurrent_ppo])
def test_a_kl_penalty_as_an_own_loss_keeps_the_policy_close(make):
    """The penalty of Schulman et al. (2017), section 4, in place of clipping."""

    def penalized(coefficient):
        def loss(output, minibatch, settings):
            _, metrics = learners.ppo_loss(output, minibatch, settings)
            log_ratio = output.distribution.log_prob(minibatch.actions) - minibatch.log_probs
            policy_loss = -(jnp.exp(log_ratio) * minibatch.advantages).mean()
            return policy_loss + coefficient * metrics["approx_kl"], metrics

        return loss

    divergences = []
    for coefficient in (0.0, 100.0):
        learner = make(choice(), loss=penalized(coefficient), num_epochs=8)
        _, metrics = jax.jit(learner.update)(initial(learner), None, KEY)
        divergences.append(float(metrics["approx_kl"]))
    assert 0 < divergences[1] < 0.5 * divergences[0]


@pytest.mark.parametrize("make", [ppo, a2c, reinforce, recurrent_ppo])
def test_own_advantages_of_zero_leave_the_policy_as_it_is(make):
    seen = []

    def advantages(transitions, next_values, discount, gae_lambda):
        seen.append((transitions.reward.shape, next_values.shape))
        return jnp.zeros_like(transitions.reward), transitions.extras["value"]

    learner = make(choice(), advantages=advantages, entropy_coefficient=0.0)
    state = initial(learner)
    after, metrics = jax.jit(learner.update)(state, None, KEY)
    np.testing.assert_allclose([metrics["policy_loss"], metrics["value_loss"]], 0.0, atol=1e-6)
    if make is not recurrent_ppo:  # whose values are rounded differently step by step and over a sequence
        chex.assert_trees_all_equal(after.network.params, state.network.params)
    assert seen[0][0] == seen[0][1]
    default, _ = jax.jit(make(choice(), entropy_coefficient=0.0).update)(state, None, KEY)
    assert not np.allclose(*(jax.tree.leaves(x.network.params)[1] for x in (default, state)))


def test_explained_variance_is_scikit_learns():
    rng = np.random.RandomState(0)
    values, targets = rng.randn(2, 50)
    explained = rl.explained_variance(jnp.asarray(values), jnp.asarray(targets))
    np.testing.assert_allclose(explained, explained_variance_score(targets, values), rtol=1e-5)
    assert float(rl.explained_variance(jnp.asarray(values), jnp.ones(50))) == 0.0


# -- recurrent policies ----------------------------------------------------------------------------


def test_only_a_recurrent_policy_remembers_the_first_observation():
    """A cue is shown once, and asked for two steps later: without memory half of the answers are wrong."""
    learner = recurrent_ppo(recall(3), entropy_coefficient=0.003)
    state, _ = trained(learner, 200)
    episodes = jax.jit(learner.evaluate)(state, None, KEY)
    np.testing.assert_allclose(episodes["return"], 1.0)
    memoryless, _ = trained(ppo(recall(3)), 200)
    episodes = jax.jit(ppo(recall(3), evaluation_episodes=64).evaluate)(memoryless, None, KEY)
    assert abs(float(episodes["return"].mean())) < 0.5
    sequences = jnp.array([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_array_equal(learner.predict(state, sequences, KEY)[:, -1], [1, 0])


def test_a_rollout_continues_from_the_memory_of_the_last_one():
    """The policy is the same step by step and over the sequence, so before any gradient step all ratios are 1."""
    learner = recurrent_ppo(recall(4), num_epochs=1, num_minibatches=1, rollout_steps=6)
    state, update = initial(learner), jax.jit(learner.update)
    for step in range(3):
        state, metrics = update(state, None, jax.random.fold_in(KEY, step))
        np.testing.assert_allclose(metrics["approx_kl"], 0.0, atol=1e-6)
        assert float(metrics["clip_fraction"]) == 0.0


def test_reinforce_counts_only_whole_first_episodes():
    done = jnp.array([[0, 0], [1, 0], [0, 0], [1, 0]], bool)
    transitions = rl.Transition(None, None, jnp.arange(8.0).reshape(4, 2), None, done, jnp.zeros_like(done), {})
    in_first_episode, metrics = first_episodes(transitions)
    np.testing.assert_array_equal(in_first_episode, [[1, 1], [1, 1], [0, 1], [0, 1]])
    assert metrics["return"] == Average(0.0 + 2.0, 1.0)
    assert metrics["length"] == Average(2.0, 1.0)


# -- normalisation ---------------------------------------------------------------------------------


def test_running_statistics_are_those_of_the_whole_history():
    """Compared with NumPy, over parts of a history of episodes that end at random."""
    random, length, num_envs, discount = np.random.RandomState(0), 24, 3, 0.9
    observation = random.randn(length, num_envs, 2) * [1.0, 7.0] + [3.0, 0.0]
    reward, ends = 5 * random.randn(length, num_envs), random.rand(2, length, num_envs) < 0.1
    running_return, returns = np.zeros(num_envs), []
    for t in range(length):
        running_return = discount * running_return + reward[t]
        returns.append(running_return)
        running_return = np.where(ends[:, t].any(axis=0), 0.0, running_return)
    statistics = normalization.init_statistics(jnp.zeros((num_envs, 2)), True, True)
    zeros = jnp.zeros((8, num_envs), jnp.int32)
    for part in (slice(0, 8), slice(8, 16), slice(16, 24)):
        arrays = [jnp.asarray(x[part], jnp.float32) for x in (observation, reward)]
        flags = [jnp.asarray(x[part]) for x in ends]
        before = statistics
        transitions = rl.Transition(arrays[0], zeros, arrays[1], arrays[0] + 1, *flags, {})
        statistics, normalized = normalization.normalize_rollout(statistics, transitions, discount)
    moments = statistics.observations
    np.testing.assert_allclose(moments.mean, observation.mean(axis=(0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.variance, observation.var(axis=(0, 1)), rtol=1e-4)
    np.testing.assert_allclose(statistics.returns.variance, np.var(returns), rtol=1e-4)
    np.testing.assert_allclose(statistics.running_return, running_return, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(normalized.reward, reward[16:] / np.std(returns), rtol=1e-3)
    earlier = observation[:16].reshape(-1, 2)
    expected = (observation[16:] - earlier.mean(axis=0)) / earlier.std(axis=0)
    np.testing.assert_allclose(normalized.observation, expected, rtol=1e-3, atol=1e-4)
    one_step = normalization.normalize_observations(before, arrays[0][0])
    np.testing.assert_allclose(normalized.observation[0], one_step, rtol=1e-5)


def test_evaluation_uses_the_statistics_of_training_and_leaves_them():
    """The counter shows 0, 1 and 2, over and over: their moments are known, and acting greedily adds none."""
    learner = ppo(counter(3), normalize_observations=True, rollout_steps=6)
    state, _ = trained(learner, 5)
    moments = state.statistics.observations
    assert float(moments.count) == 5 * 6 * 8
    np.testing.assert_allclose([moments.mean[0], moments.variance[0]], [1.0, 2 / 3], rtol=1e-5)
    normalized = (jnp.array([[0.0], [2.0]]) - 1.0) * np.sqrt(1.5)
    output = actor_critic(counter(3)).apply({"params": state.network.params}, normalized)
    predicted = learner.predict(state, jnp.array([[0.0], [2.0]]), KEY)
    np.testing.assert_array_equal(predicted, output.distribution.logits.argmax(axis=-1))


def test_running_returns_are_reset_with_the_environments():
    statistics = normalization.init_statistics(jnp.zeros((2, 1)), False, True)
    statistics = statistics._replace(running_return=jnp.array([3.0, 4.0]))
    for restarted, expected in ((True, [0.0, 0.0]), (False, [3.0, 4.0])):
        reset = normalization.reset_running_returns(statistics, jnp.bool_(restarted))
        np.testing.assert_array_equal(reset.running_return, expected)


# -- acting ----------------------------------------------------------------------------------------


def spec_of(environment, **sizes):
    spaces = environment.observation_space, environment.action_space
    return rl.HostSpec(environment.name, *spaces, np.dtype(np.float32), **sizes)


@pytest.mark.parametrize("make", [ppo, a2c, pqn])
def test_a_rollout_of_the_host_teaches_the_same_as_one_of_the_device(make):
    """The same transitions as a batch, without log-probabilities and values, lead to the same parameters."""
    num_steps, num_envs = (5, 16) if make is a2c else (8, 8)
    environment = choice()
    on_host = make(spec_of(environment, num_envs=num_envs, rollout_steps=num_steps))
    on_device = make(environment)
    state = initial(on_device)
    rollout_key = KEY if make is a2c else jax.random.split(KEY)[0]

    def policy(observation, key):
        if make is pqn:
            return on_device.predict(state, rl.ExplorationRequest(observation), key), {}
        return on_policy.select_action(actor_critic(environment), state, observation, key)

    collect = jax.jit(lambda: rl.rollout(choice(), policy, state.environment_state, rollout_key, num_steps))
    _, transitions, episodes = collect()
    batch = rl.HostRollout(
        transitions._replace(extras={}), episodes, transitions.next_observation, jnp.zeros(num_steps, bool)
    )
    expected, _ = jax.jit(on_device.update)(state, None, KEY)
    after, metrics = jax.jit(on_host.update)(state._replace(environment_state=None), batch, KEY)
    chex.assert_trees_all_close(after.network.params, expected.network.params, atol=1e-5)
    assert float(metrics["return"].count) == float(episodes.episode_return.count)


def test_the_environment_receives_clipped_actions_and_the_learner_the_sampled_ones():
    def step(key, state, action):
        after, result = continuous().step(key, state, action)
        return after, result._replace(reward=action[0])

    for make in (ppo, a2c, reinforce):
        learner = make(continuous()._replace(step=step))
        state = initial(learner)
        params = jax.tree.map(lambda x: x, state.network.params)
        params["actor_output"]["bias"] = jnp.full(1, 5.0)
        state = state._replace(network=state.network._replace(params=params))
        _, metrics = jax.jit(learner.update)(state, None, KEY)
        assert float(metrics["return"].total / metrics["return"].count) == pytest.approx(1.0, abs=1e-3)
        assert float(learner.predict(state, rl.ExplorationRequest(jnp.ones((1, 1))), KEY)[0, 0]) > 1
        assert float(learner.predict(state, jnp.ones((1, 1)), KEY)[0, 0]) == 1.0


def test_evaluation_acts_greedily_or_samples():
    for make in (ppo, a2c, reinforce, recurrent_ppo):
        episodes = {}
        for greedy in (True, False):
            learner = make(choice(), evaluation_episodes=64, greedy_evaluation=greedy)
            episodes[greedy] = jax.jit(learner.evaluate)(initial(learner), None, KEY)
            np.testing.assert_array_equal(episodes[greedy]["finished"], 1.0)
        assert abs(float(episodes[False]["return"].mean()) - 1.5) < 0.5  # the return of random actions
        assert not np.array_equal(episodes[True]["return"], episodes[False]["return"])


def test_episodes_that_were_stopped_are_not_finished():
    learner = ppo(choice(), evaluation_steps=3)
    episodes = jax.jit(learner.evaluate)(initial(learner), None, KEY)
    np.testing.assert_array_equal([episodes["finished"], episodes["length"]], [[0.0] * 4, [3.0] * 4])


def test_epsilon_falls_linearly_and_then_stays():
    epsilons = exploration.epsilon_schedule(jnp.array([0, 50, 100, 1000]), 0.2, 100.0)
    np.testing.assert_allclose(epsilons, [1.0, 0.6, 0.2, 0.2], rtol=1e-6)
    # Beyond 31 bits the count stays where it is, so epsilon does too.
    steps = exploration.add_steps(exploration.add_steps(jnp.int32(2**31 - 2), 4096), 4096)
    assert int(steps) == 2**31 - 1
    assert float(exploration.epsilon_schedule(steps, 0.2, 100.0)) == pytest.approx(0.2)
    q_values = jnp.tile(jnp.array([[0.0, 1.0, 0.5, 0.2]]), (8000, 1))
    np.testing.assert_array_equal(exploration.epsilon_greedy(q_values, 0.0, KEY), 1)
    frequencies = np.bincount(exploration.epsilon_greedy(q_values, 0.4, KEY), minlength=4) / 8000
    np.testing.assert_allclose(frequencies, [0.1, 0.7, 0.1, 0.1], atol=0.02)


# -- errors ----------------------------------------------------------------------------------------


def test_learners_of_the_device_refuse_a_host():
    spec = spec_of(choice(), num_envs=8, rollout_steps=8)
    for make in (reinforce, recurrent_ppo):
        with pytest.raises(ConfigError, match="choice runs on the host, where only ppo, a2c, pqn"):
            make(spec)
    with pytest.raises(ConfigError, match="rollout_steps: the learner has 9, the host environment 8"):
        ppo(spec, rollout_steps=9)


def test_errors_name_the_wrong_setting():
    with pytest.raises(ConfigError, match="the actions of continuous are continuous"):
        learners.pqn(continuous(), models.QNetwork(1), optax.adam(1e-3), environment_steps=1)
    with pytest.raises(ConfigError, match="num_minibatches: 3 does not divide the 8 x 8 = 64 steps"):
        pqn(choice(), num_minibatches=3)
    with pytest.raises(
        ConfigError, match="num_minibatches: 3 does not divide 16 environments, whose sequences stay whole"
    ):
        recurrent_ppo(recall(3), num_minibatches=3)
    with pytest.raises(ConfigError, match="recurrent_ppo: normalize_observations and normalize_rewards must be False"):
        recurrent_ppo(recall(3), normalize_rewards=True)
    with pytest.raises(ConfigError, match="episode_steps: 0 must be 1 or more"):
        reinforce(choice(), episode_steps=0)
    with pytest.raises(ConfigError, match="rollout_steps: 0 must be 1 or more"):
        a2c(choice(), rollout_steps=0)
