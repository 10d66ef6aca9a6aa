"""Learning from what was just done: policy gradients, PQN, memories and scales, in worlds whose best is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from foldax import Average, learners, models, rl
from foldax.errors import ConfigError
from foldax.learners.rl import distributions, normalization, on_policy
from foldax.learners.rl.reinforce import first_episodes
from tests.learners.rl.test_learning import KEY, trained
from tests.rl.environments import choice, continuous, counter, recall

EVALUATION = dict(evaluation_episodes=4, evaluation_steps=20)


def actor_critic(world):
    numbers = not isinstance(world.actions, rl.Discrete)
    return models.ActorCritic(1 if numbers else 2, numbers, (16,))


def ppo(world, **options):
    settings = dict(num_envs=8, rollout_steps=8, minibatches=2, **EVALUATION)
    return learners.ppo(world, actor_critic(world), optax.adam(1e-2), **{**settings, **options})


def a2c(world, **options):
    options = {"num_envs": 16, **EVALUATION, **options}
    return learners.a2c(world, actor_critic(world), optax.rmsprop(1e-2, 0.99), **options)


def reinforce(world, **options):
    settings = dict(num_envs=16, episode_steps=5, **EVALUATION)
    return learners.reinforce(world, actor_critic(world), optax.adam(1e-2), **{**settings, **options})


def pqn(world, **options):
    model = models.QNetwork(world.actions.num, hidden=(16,), normalization="layer")
    settings = dict(num_envs=8, rollout_steps=8, minibatches=4, epsilon=0.1, epsilon_steps=2000.0, **EVALUATION)
    return learners.pqn(world, model, optax.radam(1e-2), **{**settings, **options})


def recurrent_ppo(world, **options):
    model = models.RecurrentActorCritic(world.actions.num, hidden=(), width=8)
    settings = dict(num_envs=16, rollout_steps=9, epochs=2, minibatches=2, **EVALUATION)
    return learners.recurrent_ppo(world, model, optax.adam(2e-2), **{**settings, **options})


AGENTS = {"ppo, scaled": lambda world: ppo(world, scale_observations=True, scale_rewards=True)}
AGENTS |= {"a2c": a2c, "a2c, scaled": lambda world: a2c(world, scale_observations=True, scale_rewards=True)}
AGENTS |= {"reinforce": reinforce, "pqn": pqn, "recurrent_ppo": recurrent_ppo}


@pytest.mark.parametrize("name", AGENTS)
def test_agents_learn_what_depends_on_observation_action_and_time(name):
    """Worth 1 is the action that is asked for, three times in a row; the last reward comes a step late."""
    learner = AGENTS[name](choice())
    state, metrics = trained(learner, 300)
    played = jax.jit(learner.evaluate)(state, None, KEY)
    np.testing.assert_allclose(played["return"], 3.0)
    np.testing.assert_array_equal(played["length"], 4.0)
    assert float(metrics["length"].total) == 4 * float(metrics["length"].count) > 0


@pytest.mark.parametrize("make", [a2c, reinforce])
def test_numbers_are_learned_as_actions(make):
    learner = make(continuous(), discount=0.0, entropy_weight=0.0)
    state, _ = trained(learner, 600)
    actions = learner.predict(state, jnp.array([[1.0], [-1.0]]), KEY)
    np.testing.assert_allclose(actions[:, 0], [0.5, -0.5], atol=0.2)


@pytest.mark.parametrize("truncates", [False, True])
@pytest.mark.parametrize("make", [a2c, reinforce, pqn, recurrent_ppo])
def test_values_tell_an_episode_that_is_over_from_one_that_is_cut_off(make, truncates):
    """Each step is worth 1. Over after two, its first step is worth 1.9; cut off there, more: it would go on."""
    world = counter(2, truncates, reward=1.0)
    learner = make(world, discount=0.9)
    state, _ = trained(learner, 500)
    states = jnp.array([[0.0], [1.0]])
    if make is pqn:
        model = models.QNetwork(2, hidden=(16,), normalization="layer")
        found = model.apply({"params": state.network.params}, states).max(axis=(1, 2))
    elif make is recurrent_ppo:
        model = models.RecurrentActorCritic(2, hidden=(), width=8)
        found = model.apply({"params": state.network.params}, states[None])[0].value[0]
    else:
        found = actor_critic(world).apply({"params": state.network.params}, states).value
    if truncates:
        assert found[0] > 2.5
    else:
        np.testing.assert_allclose(found, [1.9, 1.0], atol=0.2)


def test_only_a_memory_knows_what_was_shown_at_first():
    """A sign is shown once, and asked for two steps later: without a memory half of the answers are wrong."""
    learner = recurrent_ppo(recall(3), surrogate=learners.Surrogate(entropy_weight=0.003))
    state, _ = trained(learner, 200)
    played = jax.jit(learner.evaluate)(state, None, KEY)
    np.testing.assert_allclose(played["return"], 1.0)
    blind, _ = trained(ppo(recall(3)), 200)
    found = jax.jit(ppo(recall(3), evaluation_episodes=64).evaluate)(blind, None, KEY)
    assert abs(float(found["return"].mean())) < 0.5
    shown = jnp.array([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_array_equal(learner.predict(state, shown, KEY)[:, -1], [1, 0])


def test_a_rollout_begins_with_the_memory_it_was_left_with():
    """What the policy said step by step is what it says of the sequence, so that no ratio is other than 1 at first."""
    learner = recurrent_ppo(recall(4), epochs=1, minibatches=1, rollout_steps=6)
    state = jax.jit(lambda key: learner.init(key, None))(KEY)
    update = jax.jit(learner.update)
    for step in range(3):
        state, metrics = update(state, None, jax.random.fold_in(KEY, step))
        np.testing.assert_allclose(metrics["divergence"], 0.0, atol=1e-6)
        assert float(metrics["clipped"]) == 0.0


def test_whole_episodes_alone_count():
    ends = jnp.array([[0, 0], [1, 0], [0, 0], [1, 0]], bool)
    seen = rl.Transition(None, None, jnp.arange(8.0).reshape(4, 2), None, ends, jnp.zeros_like(ends), {})
    first, ended = first_episodes(seen)
    np.testing.assert_array_equal(first, [[1, 1], [1, 1], [0, 1], [0, 1]])
    assert ended["return"] == Average(0.0 + 2.0, 1.0)
    assert ended["length"] == Average(2.0, 1.0)


def test_scales_are_those_of_all_that_was_seen():
    """Against NumPy, over parts of a history of episodes that end at random."""
    random, length, copies, discount = np.random.RandomState(0), 24, 3, 0.9
    observation = random.randn(length, copies, 2) * [1.0, 7.0] + [3.0, 0.0]
    reward, ends = 5 * random.randn(length, copies), random.rand(2, length, copies) < 0.1
    running, returns = np.zeros(copies), []
    for t in range(length):
        running = discount * running + reward[t]
        returns.append(running)
        running = np.where(ends[:, t].any(axis=0), 0.0, running)
    state = normalization.no_scales(jnp.zeros((copies, 2)), True, True)
    zeros = jnp.zeros(copies, jnp.int32)
    for part in (slice(0, 8), slice(8, 16), slice(16, 24)):
        arrays = [jnp.asarray(x[part], jnp.float32) for x in (observation, reward)]
        flags = [jnp.asarray(x[part]) for x in ends]
        before = state
        state, shown = normalization.scaled(
            state, rl.Transition(arrays[0], zeros, arrays[1], arrays[0] + 1, *flags, {}), discount
        )
    np.testing.assert_allclose(state.observations.mean, observation.mean(axis=(0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.observations.variance, observation.var(axis=(0, 1)), rtol=1e-4)
    np.testing.assert_allclose(state.returns.variance, np.var(returns), rtol=1e-4)
    np.testing.assert_allclose(state.running, running, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown.reward, reward[16:] / np.std(returns), rtol=1e-3)
    earlier = observation[:16].reshape(-1, 2)
    expected = (observation[16:] - earlier.mean(axis=0)) / earlier.std(axis=0)
    np.testing.assert_allclose(shown.observation, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(shown.observation[0], normalization.observed(before, arrays[0][0]), rtol=1e-5)


def test_evaluation_uses_the_scales_of_training_and_leaves_them():
    """The counter sees 0, 1 and 2, over and over: their moments are known, and acting greedily adds none."""
    learner = ppo(counter(3), scale_observations=True, rollout_steps=6)
    state, _ = trained(learner, 5)
    moments = state.scales.observations
    assert float(moments.count) == 5 * 6 * 8
    np.testing.assert_allclose([moments.mean[0], moments.variance[0]], [1.0, 2 / 3], rtol=1e-5)
    shown = (jnp.array([[0.0], [2.0]]) - 1.0) * np.sqrt(1.5)
    model = actor_critic(counter(3))
    expected = model.apply({"params": state.network.params}, shown).policy.argmax(axis=-1)
    np.testing.assert_array_equal(learner.predict(state, jnp.array([[0.0], [2.0]]), KEY), expected)


@pytest.mark.parametrize("make", [ppo, a2c, pqn])
def test_what_a_host_played_teaches_as_what_was_played_here(make):
    """The same steps as a batch, without what the network said of them, lead to the same parameters."""
    steps, copies = (5, 16) if make is a2c else (8, 8)
    world = choice()
    sizes = dict(num_envs=copies, rollout_steps=steps)
    there = make(rl.HostFacts(world.name, world.observations, world.actions, np.dtype(np.float32), **sizes))
    here = make(world)
    state = jax.jit(lambda key: here.init(key, None))(KEY)
    of_play = KEY if make is a2c else jax.random.split(KEY)[0]

    def act(observation, key):
        if make is pqn:
            return here.predict(state, rl.Explore(observation), key), {}
        return on_policy.acting(actor_critic(world), state, observation, key)

    _, seen, finished = jax.jit(lambda: rl.rollout(choice(), act, state.actors, of_play, steps))()
    batch = rl.Played(seen._replace(extras={}), finished, seen.next_observation, jnp.zeros(steps, bool))
    expected, _ = jax.jit(here.update)(state, None, KEY)
    found, metrics = jax.jit(there.update)(state._replace(actors=None), batch, KEY)
    for one, other in zip(jax.tree.leaves(found.network.params), jax.tree.leaves(expected.network.params)):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert float(metrics["return"].count) == float(finished.episode_return.count)


def test_actions_reach_a_world_within_its_bounds():
    """A policy may say any number, and learns from what it said; a world gets what its bounds allow."""

    def step(key, state, action):
        after, answer = continuous().step(key, state, action)
        return after, answer._replace(reward=action[0])

    for make in (ppo, a2c, reinforce):
        learner = make(continuous()._replace(step=step))
        state = jax.jit(lambda key: learner.init(key, None))(KEY)  # noqa: B023
        params = jax.tree.map(lambda x: x, state.network.params)
        params["actor_output"]["bias"] = jnp.full(1, 5.0)
        state = state._replace(network=state.network._replace(params=params))
        _, metrics = jax.jit(learner.update)(state, None, KEY)
        assert float(metrics["return"].total / metrics["return"].count) == pytest.approx(1.0, abs=1e-3)
        assert float(learner.predict(state, rl.Explore(jnp.ones((1, 1))), KEY)[0, 0]) > 1
        assert float(learner.predict(state, jnp.ones((1, 1)), KEY)[0, 0]) == 1.0


def test_evaluations_are_greedy_or_drawn():
    for make in (ppo, a2c, reinforce, recurrent_ppo):
        found = {}
        for greedy in (True, False):
            learner = make(choice(), evaluation_episodes=64, greedy_evaluation=greedy)
            state = jax.jit(lambda key: learner.init(key, None))(KEY)  # noqa: B023
            found[greedy] = jax.jit(learner.evaluate)(state, None, KEY)
            np.testing.assert_array_equal(found[greedy]["finished"], 1.0)
        assert abs(float(found[False]["return"].mean()) - 1.5) < 0.5  # as good as chance, before it has learned
        assert not np.array_equal(found[True]["return"], found[False]["return"])


def test_episodes_that_are_left_off_are_told():
    learner = ppo(choice(), evaluation_steps=3)
    played = jax.jit(learner.evaluate)(jax.jit(lambda key: learner.init(key, None))(KEY), None, KEY)
    np.testing.assert_array_equal([played["finished"], played["length"]], [[0.0] * 4, [3.0] * 4])


def test_running_returns_begin_anew_with_new_episodes():
    state = normalization.no_scales(jnp.zeros((2, 1)), False, True)._replace(running=jnp.array([3.0, 4.0]))
    np.testing.assert_array_equal(normalization.begun(state, jnp.bool_(True)).running, [0.0, 0.0])
    np.testing.assert_array_equal(normalization.begun(state, jnp.bool_(False)).running, [3.0, 4.0])


def test_what_learns_on_the_device_alone_says_so():
    world = choice()
    facts = rl.HostFacts(world.name, world.observations, world.actions, np.dtype(np.float32), 8, 8)
    for make in (reinforce, recurrent_ppo):
        with pytest.raises(ConfigError, match="choice is on the host, where ppo, a2c, pqn"):
            make(facts)
    with pytest.raises(ConfigError, match="rollout_steps: 9 must be the host's, 8"):
        ppo(facts, rollout_steps=9)


def test_exploration_falls_in_a_straight_line_and_no_further():
    found = distributions.exploration(jnp.array([0, 50, 100, 1000]), 0.2, 100.0)
    np.testing.assert_allclose(found, [1.0, 0.6, 0.2, 0.2], rtol=1e-6)
    values = jnp.tile(jnp.array([[0.0, 1.0, 0.5, 0.2]]), (8000, 1))
    np.testing.assert_array_equal(distributions.epsilon_greedy(values, 0.0, KEY), 1)
    shares = np.bincount(distributions.epsilon_greedy(values, 0.4, KEY), minlength=4) / 8000
    np.testing.assert_allclose(shares, [0.1, 0.7, 0.1, 0.1], atol=0.02)


def test_bad_settings_are_told():
    with pytest.raises(ConfigError, match="actions of continuous are numbers, not choices"):
        learners.pqn(continuous(), models.QNetwork(1), optax.adam(1e-3))
    with pytest.raises(ConfigError, match="minibatches: 3 do not divide 8 x 8 = 64 steps"):
        pqn(choice(), minibatches=3)
    with pytest.raises(ConfigError, match="minibatches: 3 do not divide 16 copies, whose sequences stay whole"):
        recurrent_ppo(recall(3), minibatches=3)
    with pytest.raises(ConfigError, match="episode_steps: 0 must be 1 or more"):
        reinforce(choice(), episode_steps=0)
    with pytest.raises(ConfigError, match="rollout_steps: 0 must be 1 or more"):
        a2c(choice(), rollout_steps=0)


def test_policy_gradient_is_that_of_its_definition():
    """The gradient of logits is minus the mean of advantage times (one-hot minus probabilities), over what counts."""
    logits, values = jnp.array([[0.3, -0.2], [1.0, 0.0], [0.0, 0.0]]), jnp.array([0.5, 1.0, 9.0])
    rows = {"observation": jnp.arange(3), "action": jnp.array([0, 1, 0]), "advantage": jnp.array([1.0, -2.0, 5.0])}
    rows |= {"target": jnp.array([1.0, 0.0, 0.0]), "weight": jnp.array([1.0, 1.0, 0.0])}

    class Table:
        def apply(self, variables, observation):
            return models.Opinion(variables["params"][0][observation], None, variables["params"][1][observation])

    total = on_policy.policy_gradient(Table(), 0.0, 0.5)
    found = jax.grad(lambda params: total(params, {}, rows, KEY)[0])((logits, values))
    shares = jax.nn.softmax(logits)
    of_logits = -0.5 * rows["advantage"][:2, None] * (jnp.eye(2)[rows["action"][:2]] - shares[:2])
    np.testing.assert_allclose(found[0][:2], of_logits, rtol=1e-5)
    np.testing.assert_allclose(found[1], [0.5 * 0.5 * -0.5, 0.5 * 0.5 * 1.0, 0.0], rtol=1e-5)
    np.testing.assert_array_equal(found[0][2], 0.0)
