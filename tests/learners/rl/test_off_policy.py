"""Off-policy learners: which transitions are sampled and how often, and learning where the optimum is known."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

import foldax
from foldax import learners, models, rl
from foldax.errors import ConfigError, NonFiniteError
from foldax.learners import ReplaySettings
from foldax.learners.rl import dqn, exploration, off_policy, return_distributions, sac, td3
from foldax.models.distributions import SquashedNormal
from foldax.rl import priorities, replay, wrappers
from foldax.rl.replay import FrameStack
from tests.rl.environments import choice, continuous, continuous_and_late, counter

KEY = jax.random.key(0)
SMALL = dict(batch_size=64, evaluation_episodes=4, evaluation_steps=20)
LEARNING_STARTS = 64
RING = ReplaySettings(capacity=13, prioritized=True, importance_steps=np.inf)


def make_learner(learner, settings_class, *arguments, settings, options):
    """Calls a learner; those of the options that are no fields of its settings are keywords of its own."""
    names = set(settings_class.__dataclass_fields__)
    settings = {**SMALL, **settings, **{name: value for name, value in options.items() if name in names}}
    keywords = {name: value for name, value in options.items() if name not in names}
    keywords = {"num_envs": 4, "learning_starts": LEARNING_STARTS, **keywords}
    return learner(*arguments, settings_class(**settings), **keywords)


def make_sac(environment, **options):
    networks = models.GaussianActor(1, (16,)), models.TwinCritic((16,)), optax.adam(1e-2), optax.adam(1e-2)
    settings = dict(replay=ReplaySettings(capacity=1000), initial_temperature=0.1, tau=0.05, discount=0.9)
    return make_learner(learners.sac, learners.SACSettings, environment, *networks, settings=settings, options=options)


def make_td3(environment, **options):
    networks = models.DeterministicActor(1, (16,)), models.TwinCritic((16,)), optax.adam(1e-2), optax.adam(1e-2)
    settings = dict(replay=ReplaySettings(capacity=1000), tau=0.05, discount=0.9)
    return make_learner(learners.td3, learners.TD3Settings, environment, *networks, settings=settings, options=options)


def make_dqn(environment, **options):
    arguments = environment, models.QNetwork(2, hidden=(8,)), optax.adam(1e-2)
    settings = dict(replay=ReplaySettings(capacity=1000), final_epsilon=0.1, exploration_fraction=1.0)
    options = {"environment_steps": 200, **options}
    return make_learner(learners.dqn, learners.DQNSettings, *arguments, settings=settings, options=options)


PRIORITIZED = ReplaySettings(capacity=200, n_steps=2, prioritized=True, importance_steps=np.inf)
AGENTS = {
    "sac": (make_sac, 300),
    "td3": (make_td3, 150),
    "td3, n-step, prioritized": (functools.partial(make_td3, replay=PRIORITIZED), 150),
}


def train(learner, updates):
    """Returns the state after these updates, and the metrics of each."""

    @jax.jit
    def fold(state):
        return jax.lax.scan(lambda s, step: learner.update(s, None, jax.random.fold_in(KEY, step)), state, steps)

    steps = jnp.arange(updates)
    return fold(jax.jit(lambda key: learner.init(key, None))(KEY))


@pytest.mark.parametrize("name", AGENTS)
def test_continuous_actions_that_depend_on_the_observation_are_learned(name):
    make, updates = AGENTS[name]
    learner = make(continuous())
    state, metrics = train(learner, updates)
    observations = jnp.array([[1.0], [-1.0]])
    np.testing.assert_allclose(learner.predict(state, observations, KEY)[:, 0], [0.5, -0.5], atol=0.15)
    assert jax.jit(learner.evaluate)(state, None, KEY)["return"].min() > -0.03
    if name == "sac":
        assert float(metrics["entropy"][-50:].mean()) == pytest.approx(-1.0, abs=0.3)  # the target of one dimension


def test_evaluation_actions_are_greedy_or_sampled():
    """There is one return for each of two observations if actions are greedy, and many if they are sampled."""
    for greedy in (True, False):
        learner = make_sac(continuous(), evaluation_episodes=64, greedy_evaluation=greedy)
        metrics = jax.jit(learner.evaluate)(jax.jit(lambda: learner.init(KEY, None))(), None, KEY)  # noqa: B023
        assert (len(np.unique(np.round(metrics["return"], 5))) <= 2) == greedy


@pytest.mark.parametrize("name", AGENTS)
def test_continuous_actions_are_learned_from_rewards_one_step_later(name):
    make, updates = AGENTS[name]
    learner = make(continuous_and_late(), discount=0.9)
    state, _ = train(learner, 2 * updates)
    actions = learner.predict(state, jnp.array([[1.0, 0.0], [-1.0, 0.0]]), KEY)
    np.testing.assert_allclose(actions[:, 0], [0.5, -0.5], atol=0.2)


@pytest.mark.parametrize("truncates", [False, True])
@pytest.mark.parametrize(
    "make", [make_td3, functools.partial(make_sac, initial_temperature=1e-4, target_entropy=-50.0)]
)
def test_critics_bootstrap_after_truncation_and_not_after_termination(make, truncates):
    """Every reward is 1. Terminated after two steps, the first one's value is 1.9; truncated there, it is more."""
    environment = counter(2, truncates, reward=1.0)._replace(action_space=continuous().action_space)
    state, _ = train(make(environment), 300)
    critic = functools.partial(models.TwinCritic((16,)).apply, {"params": state.critic.params})
    q_values = critic(jnp.array([[0.0], [1.0]]), jnp.zeros((2, 1)))
    if truncates:
        assert q_values.min() > 3.0
    else:
        np.testing.assert_allclose(q_values, [[1.9, 1.9], [1.0, 1.0]], atol=0.15)


def test_rescaled_actions_reach_from_bound_to_bound():
    taken = []

    def step(key, state, action):
        taken.append(action)
        return continuous().step(key, state, action)

    space = rl.Box(np.float32([-2, 0]), np.float32([2, 10]))
    environment = wrappers.rescale_actions(continuous()._replace(step=step, action_space=space))
    for action in ([-1.0, -1.0], [1.0, 1.0], [0.0, 0.5]):
        environment.step(KEY, jnp.float32(1), jnp.array(action))
    np.testing.assert_allclose(taken, [[-2, 0], [2, 10], [0, 7.5]])
    np.testing.assert_array_equal(environment.action_space.low, [-1, -1])


def test_rescaled_observations_reach_from_minus_one_to_one():
    space = rl.Box(np.float32([-2]), np.float32([6]))
    environment = wrappers.rescale_observations(counter(5, start=-2)._replace(observation_space=space))
    state, observation = environment.reset(KEY)
    observations = [float(observation[0])]
    for _ in range(5):
        state, step = environment.step(KEY, state, jnp.int32(0))
        observations.append(float(step.observation[0]))
    np.testing.assert_allclose(observations, [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25])
    np.testing.assert_array_equal(environment.observation_space, [[-1], [1]])
    with pytest.raises(ConfigError, match="rescale_observations: counter has the observation space .* finite bounds"):
        wrappers.rescale_observations(counter())
    largest = np.full(1, np.finfo(np.float32).max, np.float32)  # as gymnax declares where there are no bounds
    with pytest.raises(ConfigError, match="(?s)counter has the observation space .* finite bounds"):
        wrappers.rescale_observations(counter()._replace(observation_space=rl.Box(-largest, largest)))
    np.testing.assert_array_equal(
        wrappers.to_unit_range(rl.Box(np.float32([1]), np.float32([1])), jnp.ones((2, 1))), [[0], [0]]
    )


def test_squashed_densities_follow_from_the_change_of_variables():
    distribution = SquashedNormal(jnp.array([[0.3]]), jnp.array([[-0.4]]))
    repeated = SquashedNormal(*(jnp.broadcast_to(x, (4000, 1)) for x in distribution))
    actions, log_probs = repeated.sample_and_log_prob(KEY)
    unsquashed = np.arctanh(np.asarray(actions[:, 0], np.float64))
    expected = stats.norm(0.3, np.exp(-0.4)).logpdf(unsquashed) - np.log(1 - np.tanh(unsquashed) ** 2)
    np.testing.assert_allclose(log_probs, expected, atol=2e-3)
    np.testing.assert_array_equal(actions, repeated.sample(KEY))

    def entropy_integrand(x):
        log_prob = stats.norm(0.3, np.exp(-0.4)).logpdf(x) - 2 * (np.log(2) - x - np.logaddexp(0, -2 * x))
        return -log_prob * stats.norm(0.3, np.exp(-0.4)).pdf(x)

    assert float(-log_probs.mean()) == pytest.approx(integrate.quad(entropy_integrand, -6, 6)[0], abs=0.05)
    saturated = SquashedNormal(jnp.full((1, 1), 30.0), jnp.zeros((1, 1))).sample_and_log_prob(KEY)[1]
    assert np.isfinite(saturated).all()


def replay_setup(replay_settings, environment=None, num_envs=2, batch_size=64, environment_steps=None):
    settings = off_policy.OffPolicySettings(batch_size=batch_size, discount=0.9, replay=replay_settings)
    return off_policy.ReplaySetup(environment, settings, num_envs, 1, num_envs, environment_steps)


@functools.partial(jax.jit, static_argnames=("settings", "num_envs"))
def init_replay(settings, num_envs):
    num_frames = settings.frame_stack.num_frames
    environment = wrappers.frame_stack(counter(5)._replace(action_space=rl.Discrete(2)), num_frames)
    return off_policy.init_replay(replay_setup(settings, environment, num_envs), KEY, None)[0]


@functools.partial(jax.jit, static_argnames="settings")
def add_step(settings, state, terminated):
    """Adds a step whose frames are numbered by environment and step, and whose episodes end as given."""
    num_envs = len(terminated)
    number = state.buffer.num_rows * 10.0 + jnp.arange(num_envs)
    observation = jnp.repeat(number[:, None], settings.frame_stack.num_frames, axis=1)
    values = (state.environment_state.observation, jnp.zeros(num_envs, jnp.int32), number, observation)
    transition = rl.Transition(*values, terminated, jnp.zeros(num_envs, bool), {})
    return off_policy.add_transitions(settings, state, transition, observation + 0.5)


ENDS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=25)
RINGS = st.sampled_from([(4, 1, 1), (7, 2, 1), (13, 3, 1), (20, 1, 4)])  # each compiles anew


@given(ENDS, RINGS)
@settings(max_examples=25, deadline=None)
def test_exactly_the_transitions_that_can_be_sampled_have_a_priority(ends, ring):
    """Never a row without its n steps or with overwritten frames; N need not divide the capacity."""
    capacity, n_steps, num_frames = ring
    stack = FrameStack(num_frames=num_frames)
    replay_settings = ReplaySettings(capacity=capacity, n_steps=n_steps, prioritized=True, frame_stack=stack)
    state = init_replay(replay_settings, 2)
    for terminated in ends:
        state = add_step(replay_settings, state, jnp.array(terminated))
    buffer, num_rows, tree = state.buffer, capacity // 2, state.priority_tree
    leaves = np.asarray(tree[len(tree) // 2 :])
    rows = range(int(buffer.oldest_row), int(buffer.num_rows) - n_steps + 1)
    expected = {(row % num_rows) * 2 + environment for row in rows for environment in range(2)}
    assert set(np.flatnonzero(leaves)) == expected
    assert int(replay.num_transitions(buffer, n_steps)) == len(expected)
    assert float(tree[1]) == pytest.approx(leaves.sum(), rel=1e-5)


def set_priorities(settings, state, indices, td_errors):
    """Sets the priorities of leaves, which are those of the row and environment at `indices`."""
    rows, environments = indices // 2, indices % 2
    batch = replay.transitions_at(state.buffer, rows, environments, 1.0)
    return off_policy.update_priorities(settings, state, batch, td_errors)


@jax.jit
def update_and_sample(state, indices, td_errors, priority_exponent, importance_exponent, key):
    exponents = dict(priority_exponent=priority_exponent, importance_exponent=importance_exponent)
    replay_settings = ReplaySettings(capacity=13, prioritized=True, importance_steps=np.inf, **exponents)
    state = set_priorities(replay_settings, state, indices, td_errors)
    return state, off_policy.sample_batch(replay_setup(replay_settings, batch_size=20_000), state, key)


@given(st.integers(0, 10_000), st.floats(0.2, 1.0), st.floats(0.1, 1.0))
@settings(max_examples=8, deadline=None)
def test_transitions_are_sampled_in_proportion_to_priorities_and_weighted_for_it(seed, exponent, importance_exponent):
    rng = np.random.RandomState(seed)
    state = init_replay(RING, 2)
    for terminated in rng.rand(20, 2) < 0.1:
        state = add_step(RING, state, jnp.array(terminated))
    leaves = np.asarray(state.priority_tree[len(state.priority_tree) // 2 :])[:12]
    valid, indices, td_errors = leaves > 0, np.arange(12), rng.rand(12).astype(np.float32) + 0.05
    td_errors[~valid] = td_errors[valid][0]
    indices[~valid] = indices[valid][0]  # repeated, so that all examples have the same shapes
    exponents = (jnp.float32(exponent), jnp.float32(importance_exponent))
    state, batch = update_and_sample(
        state, jnp.asarray(indices), jnp.asarray(td_errors), *exponents, jax.random.key(seed)
    )
    expected_priorities = (td_errors + 1e-6) ** exponent
    probabilities = expected_priorities[valid].astype(np.float64)
    probabilities /= probabilities.sum()
    sampled = np.asarray(batch.rows % 6 * 2 + batch.environments)
    counts = np.bincount(sampled, minlength=12)
    assert not counts[~valid].any()
    # Stratified samples: counts vary less around their expectation than those of independent samples.
    assert stats.chisquare(counts[valid], 20_000 * probabilities).pvalue > 1e-4
    weights = (probabilities * valid.sum()) ** -importance_exponent
    weight_of = dict(zip(sampled.tolist(), np.asarray(batch.weights), strict=True))
    np.testing.assert_allclose(
        [weight_of[index] for index in np.flatnonzero(valid)], weights / weights.max(), rtol=1e-3
    )
    assert float(state.max_priority) == pytest.approx(max(1.0, expected_priorities.max()), rel=1e-5)


def test_the_importance_exponent_rises_to_one():
    state = init_replay(RING, 2)
    for terminated in np.zeros((6, 2), bool):
        state = add_step(RING, state, jnp.array(terminated))
    state = set_priorities(RING, state, jnp.arange(12), jnp.arange(12) + 1.0)
    weights = {}
    for exponent, steps in ((0.4, np.inf), (0.7, np.inf), (1.0, np.inf), (0.4, 28), (0.4, 10)):
        replay_settings = ReplaySettings(
            capacity=13, prioritized=True, importance_exponent=exponent, importance_steps=steps
        )
        weights[exponent, steps] = off_policy.sample_batch(replay_setup(replay_settings), state, KEY).weights
    assert int(state.environment_steps) == 14
    np.testing.assert_allclose(weights[0.4, 28], weights[0.7, np.inf], rtol=1e-5)  # half the way
    np.testing.assert_allclose(weights[0.4, 10], weights[1.0, np.inf], rtol=1e-5)  # and no further
    assert not np.allclose(weights[0.4, np.inf], weights[0.7, np.inf])
    whole_training = ReplaySettings(capacity=13, prioritized=True)
    sampled = off_policy.sample_batch(replay_setup(whole_training, environment_steps=28), state, KEY)
    np.testing.assert_allclose(sampled.weights, weights[0.7, np.inf], rtol=1e-5)


def test_priorities_are_powers_of_td_errors():
    """Of all transitions sampled in an update that changes nothing (Schaul et al., 2016, equation 1)."""
    replay_settings = ReplaySettings(capacity=100, prioritized=True, priority_exponent=0.6)
    model = models.QNetwork(2, hidden=(8,))
    dqn_settings = learners.DQNSettings(replay=replay_settings, **SMALL)
    options = dict(environment_steps=500_000, num_envs=4, rollout_steps=1, learning_starts=LEARNING_STARTS)
    learner = learners.dqn(choice(), model, optax.sgd(0.0), dqn_settings, **options)
    state, _ = jax.jit(learner.update)(jax.jit(lambda: learner.init(KEY, None))(), None, KEY)
    buffer, tree = state.replay.buffer, state.replay.priority_tree
    rows = jnp.repeat(jnp.arange(int(buffer.oldest_row), int(buffer.num_rows)), 4)
    batch = replay.transitions_at(buffer, rows, jnp.tile(jnp.arange(4), len(rows) // 4), 0.99)
    q_values, next_q_values = (
        model.apply({"params": state.target_params}, x)[..., 0] for x in (batch.observations, batch.next_observations)
    )
    td_target = batch.rewards + batch.discounts * next_q_values.max(axis=1)
    td_errors = q_values[jnp.arange(len(rows)), batch.actions] - td_target
    leaves = np.asarray(tree[len(tree) // 2 :])[: len(rows)]
    sampled = leaves != 1  # all others have the highest priority so far
    assert sampled.sum() > 20
    np.testing.assert_allclose(leaves[sampled], (np.abs(td_errors)[sampled] + 1e-6) ** 0.6, rtol=1e-3)


def test_sum_trees_of_one_and_of_many_leaves_keep_their_sums():
    tree = priorities.update(priorities.init(1), jnp.array([0]), jnp.ones(1))
    assert int(priorities.sample(tree, KEY, 1)[0]) == 0
    tree = priorities.update(priorities.init(1000), jnp.arange(1000), jnp.ones(1000))
    assert float(tree[1]) == 1000


def test_leaves_that_float32_cannot_tell_apart_are_sampled_alike():
    leaves = 2**14
    priorities_ = jnp.ones(leaves).at[0].set(1000.0 * leaves)  # all others lie between 2^24 and 2^24 + 2^14
    tree = priorities.update(priorities.init(leaves), jnp.arange(leaves), priorities_)
    samples = jax.jit(jax.vmap(lambda key: priorities.sample(tree, key, 2**16)))(jax.random.split(KEY, 64))
    low = np.asarray(samples)[np.asarray(samples) > 0]
    assert len(low) == pytest.approx(samples.size / 1001, rel=0.1)
    for part in (low % 2 == 0, low < leaves // 2):
        assert part.mean() == pytest.approx(0.5, abs=0.04)


def test_the_number_of_transitions_that_can_be_sampled_is_a_metric():
    learner = make_dqn(counter(), replay=ReplaySettings(capacity=100))
    state = jax.jit(learner.init)(KEY, None)
    for step in range(10):
        state, metrics = jax.jit(learner.update)(state, None, jax.random.key(step))
    assert metrics["replay_size"] == replay.num_transitions(state.replay.buffer)
    assert replay.min_sampled_rows(100, 4) * 4 <= metrics["replay_size"] <= 100


def test_the_targets_of_n_steps_of_sac_hold_the_entropy_between():
    def loss(q_values, td_target, batch):
        return q_values.sum(), td_target, {"td_target": td_target.mean()}

    options = dict(replay=ReplaySettings(capacity=1000, n_steps=2), initial_temperature=0.5, loss=loss)
    learner = make_sac(continuous_and_late(), learn_temperature=False, **options)
    state = jax.jit(learner.init)(KEY, None)
    _, metrics = jax.jit(learner.update)(state, None, KEY)
    assert metrics["temperature"] == 0.5
    # The same sample, whose rows follow from the batch of the update.
    settings_ = learners.SACSettings(**SMALL, replay=options["replay"], discount=0.9)
    environment = wrappers.rescale_actions(continuous_and_late())
    setup = off_policy.ReplaySetup(environment, settings_, 4, 1, LEARNING_STARTS, None)
    action_key, gradient_key = jax.random.split(KEY)
    actor, critic = models.GaussianActor(1, (16,)), models.TwinCritic((16,))

    def sample(observation, key):
        return actor.apply({"params": state.actor.params}, observation).sample_and_log_prob(key)

    after, _ = off_policy.collect_transitions(
        setup, state.replay, lambda x, steps, key: sample(x, key)[0], action_key, None
    )
    keys = jax.random.split(jax.random.split(gradient_key, 1)[0], 4)
    batch = off_policy.sample_batch(setup, after, keys[0])
    actions, log_probs = sample(batch.next_observations, keys[1])
    q_values = critic.apply({"params": state.target_critic_params}, batch.next_observations, actions)
    expected = batch.rewards + batch.discounts * (q_values.min(axis=-1) - 0.5 * log_probs)
    alive = np.asarray(after.buffer.rows[batch.rows, batch.environments, 3]) == 0
    observation = replay.transitions_at(after.buffer, batch.rows + 1, batch.environments, 0.9).observations
    expected -= 0.9 * alive * 0.5 * sample(observation, keys[3])[1]
    assert 0 < np.mean(alive) < 1
    assert metrics["td_target"] == pytest.approx(float(expected.mean()), rel=1e-4)


def test_the_temperature_may_have_an_optimizer_of_its_own_or_be_fixed():
    for options, moves in (({}, True), (dict(temperature_optimizer=optax.sgd(0.0)), False)):
        learner = make_sac(continuous(), **options)
        state = jax.jit(learner.init)(KEY, None)
        after, _ = jax.jit(learner.update)(state, None, KEY)
        assert (after.temperature.params != state.temperature.params) == moves


def test_a_divergence_below_zero_by_rounding_counts_as_zero():
    state = set_priorities(RING, init_replay(RING, 2), jnp.arange(2), -jnp.ones(2))
    assert float(state.priority_tree[1]) == pytest.approx(2 * 1e-6**0.6, rel=1e-4)
    distribution = return_distributions.categorical()
    outputs = 3 * jax.random.normal(KEY, (1000, 51))
    rewards, zeros = jax.random.uniform(KEY, (1000,), minval=-12, maxval=12), jnp.zeros(1000)
    gradient = jax.grad(lambda x: distribution.loss(x, outputs, rewards, zeros)[0].sum())(outputs)
    # Logits of the target itself, whose loss and gradient are 0.
    target = jnp.log(jnp.maximum(jax.nn.softmax(outputs) - gradient, 1e-30))
    _, td_errors = distribution.loss(target, outputs, rewards, zeros)
    np.testing.assert_allclose(td_errors, 0.0, atol=1e-4)
    assert float(td_errors.min()) < 0  # it does happen


def test_a_buffer_of_single_frames_trains_like_one_of_stacked_observations():
    environment, params = wrappers.frame_stack(choice(), 3), []
    for stack in (FrameStack(), FrameStack(num_frames=3)):
        replay_settings = ReplaySettings(
            capacity=600, n_steps=2, prioritized=True, importance_steps=np.inf, frame_stack=stack
        )
        state, _ = train(make_dqn(environment, replay=replay_settings, rollout_steps=2), 40)
        assert state.replay.buffer.frames.shape[1:] == ((3,) if stack.num_frames == 3 else (9,))
        params.append(state.network.params)
    chex.assert_trees_all_close(*params, rtol=1e-5, atol=1e-7)  # two programs, which round differently


def test_epsilon_counts_the_steps_before_the_first_update():
    _, metrics = train(make_dqn(choice(), rollout_steps=5), 10)
    steps = LEARNING_STARTS + 20 * np.arange(1, 11)
    np.testing.assert_allclose(metrics["epsilon"], np.maximum(1 - 0.9 * steps / 200, 0.1), rtol=1e-5)


def test_the_target_network_is_copied_once_a_period():
    learner = make_dqn(choice(), rollout_steps=1, target_update_period=12)  # 4 environment steps an update
    state = jax.jit(lambda: learner.init(KEY, None))()
    update, equal = jax.jit(learner.update), []
    for step in range(6):
        state, _ = update(state, None, jax.random.fold_in(KEY, step))
        pairs = zip(jax.tree.leaves(state.target_params), jax.tree.leaves(state.network.params), strict=True)
        equal.append(all(np.array_equal(*pair) for pair in pairs))
    steps = LEARNING_STARTS + 4 * np.arange(7)
    assert equal == [before // 12 < after // 12 for before, after in itertools.pairwise(steps)]


def test_target_networks_move_with_steps_of_the_optimizer_not_with_each_accumulated_batch():
    optimizer = optax.MultiSteps(optax.sgd(1e-2), 2).gradient_transformation()
    networks = continuous(), models.DeterministicActor(1, (4,)), models.TwinCritic((4,)), optimizer, optimizer
    settings = dict(replay=ReplaySettings(capacity=1000), policy_delay=1, gradient_steps=1)
    learner = make_learner(learners.td3, learners.TD3Settings, *networks, settings=settings, options={})
    state, targets = jax.jit(lambda: learner.init(KEY, None))(), []
    update = jax.jit(learner.update)
    for step in range(3):
        targets.append(state.target_params)
        state, _ = update(state, None, jax.random.fold_in(KEY, step))
    chex.assert_trees_all_equal(targets[0], targets[1])
    assert not all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, targets[1:]), strict=True))


# -- own losses and exploration --------------------------------------------------------------------


DEFAULTS = {
    "dqn": (make_dqn, choice(), dict(loss=dqn.dqn_loss, exploration=exploration.epsilon_greedy)),
    "sac": (make_sac, continuous(), dict(loss=off_policy.twin_q_loss, actor_loss=sac.sac_actor_loss)),
    "td3": (make_td3, continuous(), dict(loss=off_policy.twin_q_loss, actor_loss=td3.td3_actor_loss)),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_default_losses_and_exploration_passed_explicitly_give_the_same_bits(name):
    make, environment, defaults = DEFAULTS[name]
    chex.assert_trees_all_equal(train(make(environment), 5), train(make(environment, **defaults), 5))


@pytest.mark.parametrize("name", DEFAULTS)
def test_no_random_key_is_used_twice(name):
    make, environment, _ = DEFAULTS[name]
    learner = make(environment)
    with jax.debug_key_reuse(True):
        state = jax.jit(lambda key: learner.init(key, None))(jax.random.key(1))
        jax.jit(learner.update)(state, None, jax.random.key(2))


def test_dqn_minimises_its_own_loss():
    def loss(output, batch, return_distribution):
        """Regresses the values of all actions to 7, whatever the rewards."""
        errors = output.outputs[..., 0] - 7.0
        return jnp.square(errors).mean(), jnp.abs(errors).mean(axis=1), {"loss": jnp.square(errors).mean()}

    state, metrics = train(make_dqn(choice(), loss=loss), 300)
    assert set(metrics) == {"loss", "gradient_norm", "epsilon", "replay_size", "return", "length"}
    observations = jnp.array([[1.0, -1.0, 0.0], [-1.0, -1.0, 0.0]])
    q_values = models.QNetwork(2, hidden=(8,)).apply({"params": state.network.params}, observations)
    np.testing.assert_allclose(q_values, 7.0, atol=0.5)


def test_dqn_explores_by_its_own_rule():
    def always_second(q_values, epsilon, key):
        return jnp.ones(len(q_values), jnp.int32)

    learner = make_dqn(choice(), exploration=always_second, rollout_steps=5)
    state, _ = train(learner, 4)
    buffer = state.replay.buffer
    actions = np.asarray(buffer.rows[: int(buffer.num_rows), :, 4])
    warmup = LEARNING_STARTS // 4
    assert set(np.unique(actions[:warmup])) == {0, 1}
    assert (actions[warmup:] == 1).all()
    request = rl.ExplorationRequest(jnp.zeros((3, 3)))
    np.testing.assert_array_equal(learner.predict(state, request, KEY), [1, 1, 1])


@pytest.mark.parametrize("make", [make_sac, make_td3])
def test_actor_critics_minimise_their_own_losses(make):
    def loss(q_values, td_target, batch):
        """Regresses the values to 2, whatever the target."""
        errors = q_values - 2.0
        return jnp.square(errors).mean(), jnp.abs(errors).mean(axis=-1), {"loss": jnp.square(errors).mean()}

    def actor_loss(output, batch):
        """Imitates actions of 0.25, whatever their values."""
        value = jnp.square(output.actions - 0.25).mean()
        return value, {"actor_loss": value}

    learner = make(continuous(), loss=loss, actor_loss=actor_loss)
    state, metrics = train(learner, 300)
    assert float(metrics["loss"][-1]) < 0.01
    np.testing.assert_allclose(learner.predict(state, jnp.array([[1.0], [-1.0]]), KEY), 0.25, atol=0.1)


def with_nan_at_the_fifth_step(field, action_space):
    environment = counter(9)

    def step(key, state, action):
        state, result = environment.step(key, state, 0)
        value = getattr(result, field)
        return state, result._replace(**{field: jnp.where(state == 5, jnp.nan, value)})

    return environment._replace(step=step, action_space=action_space)


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 2_000
    learning_starts: int = LEARNING_STARTS
    rollout_steps: int = 4
    log_every = 20


@pytest.mark.parametrize("field", ["observation", "reward"])
@pytest.mark.parametrize("make", [make_dqn, make_sac, make_td3])
def test_nan_from_the_environment_makes_the_loss_nan(make, field):
    space = rl.Discrete(2) if make is make_dqn else continuous().action_space
    replay_settings = ReplaySettings(capacity=200, prioritized=make is make_dqn)
    learner = make(with_nan_at_the_fifth_step(field, space), replay=replay_settings, rollout_steps=4)
    _, metrics = train(learner, 20)
    assert np.isnan(metrics["loss"][-1])


def test_nan_from_the_environment_stops_the_run(tmp_path):
    def learner(config, info):
        return make_dqn(with_nan_at_the_fifth_step("reward", rl.Discrete(2)), rollout_steps=4)

    with pytest.raises(NonFiniteError, match="step"):
        foldax.train(foldax.Experiment(Config, learner), Config(), run_dir=tmp_path / "run", verbose=False)


def test_a_learner_must_take_as_many_environment_steps_as_its_config_counts():
    def learner(config, info):
        return make_dqn(choice(), rollout_steps=2)

    with pytest.raises(ConfigError, match=r"takes 8 environment steps per update and 64 before .* counts 16 .* and 64"):
        foldax.train(foldax.Experiment(Config, learner), Config(), save=False, verbose=False)


def test_settings_that_do_not_fit_are_refused():
    for make, name in ((make_sac, "SACSettings"), (make_td3, "TD3Settings")):
        with pytest.raises(ConfigError, match="counter has 2 discrete actions; take dqn or ppo"):
            make(counter())
        with pytest.raises(ConfigError, match=r"replay\.capacity: 16 transitions are fewer than a batch of 64"):
            make(continuous(), replay=ReplaySettings(capacity=16))
        unbounded = rl.Box(np.full(1, -np.inf, np.float32), np.full(1, np.inf, np.float32))
        with pytest.raises(ConfigError, match="actions of continuous have no finite bounds"):
            make(continuous()._replace(action_space=unbounded))
        with pytest.raises(ConfigError, match=rf"{name}\.gradient_steps: 0 .*at least 1"):
            make(continuous(), gradient_steps=0)
        with pytest.raises(ConfigError, match=r"replay\.importance_steps: .*environment_steps"):
            make(continuous(), replay=ReplaySettings(prioritized=True))
    with pytest.raises(ConfigError, match="learning_starts: 66 must be a multiple of num_envs, 4; for example 68"):
        make_sac(continuous(), learning_starts=66)
    with pytest.raises(ConfigError, match=r"greedy_evaluation: a host plays .*rl\.gymnasium\(\.\.\., greedy"):
        make_sac(host_spec(continuous(), num_envs=4, rollout_steps=1), greedy_evaluation=False)
    with pytest.raises(ConfigError, match="gradient_steps: 3 must be a multiple of policy_delay, 2"):
        make_td3(continuous(), gradient_steps=3)
    with pytest.raises(ConfigError, match="rescale_actions: counter has the action space .* finite bounds"):
        wrappers.rescale_actions(counter())
    with pytest.raises(ConfigError, match=r"replay\.capacity: 64 must hold 20 steps of 4 environments.*one step"):
        make_sac(continuous(), replay=ReplaySettings(capacity=64, n_steps=20))


# -- on the host -----------------------------------------------------------------------------------


def host_spec(environment, **sizes):
    """The spec of an environment as if it ran on the host."""
    spaces = environment.observation_space, environment.action_space
    return rl.HostSpec(environment.name, *spaces, np.dtype(np.float32), **sizes)


def no_episodes(steps):
    return rl.EpisodeStatistics(*[foldax.Average(jnp.zeros(steps), jnp.zeros(steps))] * 2)


@pytest.mark.parametrize(
    ("make", "environment"), [(make_dqn, choice()), (make_sac, continuous()), (make_td3, continuous())]
)
def test_a_host_rollout_trains_like_the_same_steps_on_the_device(make, environment):
    """Steps taken on the device, as batches of a host: buffer and networks become the same."""
    steps, num_envs, updates = 2, 4, 3
    device = make(environment, rollout_steps=steps)
    host = make(host_spec(environment, num_envs=num_envs, rollout_steps=steps), rollout_steps=steps)
    state = jax.jit(lambda key: device.init(key, None))(KEY)
    host_state = state._replace(replay=state.replay._replace(environment_state=None))
    for number in range(updates):
        key = jax.random.fold_in(KEY, number)
        before = state.replay.environment_state
        state, _ = jax.jit(device.update)(state, None, key)
        buffer, rows = state.replay.buffer, np.arange(steps) + int(state.replay.buffer.num_rows) - steps
        stored = jax.vmap(
            lambda row: replay.transitions_at(buffer, jnp.full(num_envs, row), jnp.arange(num_envs), 1.0)  # noqa: B023
        )(rows)
        flags = buffer.rows[rows % len(buffer.rows), :, 3]
        action = (
            stored.actions
            if make is make_dqn
            else jax.vmap(lambda a: wrappers.from_unit_range(environment.action_space, a))(stored.actions)
        )
        transitions = rl.Transition(
            stored.observations, action, stored.rewards, stored.next_observations, flags % 2 == 1, flags >= 2, {}
        )
        np.testing.assert_array_equal(transitions.observation[0], before.observation)
        current = state.replay.environment_state.observation[None]
        current = jnp.concatenate([transitions.observation[1:], current])
        batch = rl.HostRollout(transitions, no_episodes(steps), current, jnp.zeros(steps, bool))
        host_state, metrics = jax.jit(host.update)(host_state, batch, key)
        assert float(metrics["loss"].count) == 1
    chex.assert_trees_all_close(host_state._replace(replay=None), state._replace(replay=None), rtol=1e-7, atol=1e-5)
    chex.assert_trees_all_equal(host_state.replay.buffer, state.replay.buffer)


def test_on_the_host_random_actions_fill_the_buffer_before_the_first_gradient_step():
    num_envs, steps = 4, 4
    spec = host_spec(choice(), num_envs=num_envs, rollout_steps=steps)
    learner = make_dqn(spec, rollout_steps=steps, final_epsilon=0.0, environment_steps=1)
    state = jax.jit(learner.init)(KEY, jnp.zeros((num_envs, 3)))
    false = jnp.zeros((steps, num_envs), bool)
    observations = jnp.zeros((steps, num_envs, 3))
    transitions = rl.Transition(
        observations,
        jnp.zeros((steps, num_envs), jnp.int32),
        jnp.ones((steps, num_envs)),
        observations,
        false,
        false,
        {},
    )
    request = rl.ExplorationRequest(jnp.zeros((200, 3)))
    for number in range(5):
        before, actions = state, np.asarray(jax.jit(learner.predict)(state, request, KEY))
        batch = rl.HostRollout(transitions, no_episodes(steps), observations, jnp.zeros(steps, bool))
        state, metrics = jax.jit(learner.update)(state, batch, KEY)
        ready = (number + 1) * num_envs * steps >= LEARNING_STARTS
        assert float(metrics["loss"].count) == ready
        moved = jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), state.network.params, before.network.params))
        assert any(moved) == ready
        assert (len(np.unique(actions)) == 2) == (number < 4)


def test_a_restarted_host_truncates_the_episodes_before():
    """No sampled transition joins steps from before and after the restart of a resumed run."""
    num_envs, steps = 2, 3
    replay_settings = ReplaySettings(capacity=20, n_steps=3)
    spec = host_spec(counter(100), num_envs=num_envs, rollout_steps=steps)
    state, _ = off_policy.init_replay(replay_setup(replay_settings, spec, num_envs), KEY, jnp.zeros((num_envs, 1)))

    def rollout(start, restarted):
        number = jnp.broadcast_to(start + jnp.arange(steps + 1.0)[:, None, None], (steps + 1, num_envs, 1))
        false = jnp.zeros((steps, num_envs), bool)
        actions, rewards = jnp.zeros((steps, num_envs), jnp.int32), jnp.ones((steps, num_envs))
        transitions = rl.Transition(number[:-1], actions, rewards, number[1:], false, false, {})
        return rl.HostRollout(transitions, no_episodes(steps), number[1:], jnp.arange(steps) < restarted)

    store_rollout = jax.jit(functools.partial(off_policy.store_rollout, replay_settings))
    for start, restarted in ((0, True), (3, False), (50, True), (53, False)):
        state, _ = store_rollout(state, rollout(start, restarted))
    buffer = state.buffer
    rows = jnp.arange(int(buffer.oldest_row), int(buffer.num_rows) - 2)
    batch = replay.transitions_at(buffer, rows, jnp.zeros(len(rows), jnp.int32), 1.0, 3)
    np.testing.assert_array_equal(batch.observations[:, 0], [2, 3, 4, 5, 50, 51, 52, 53])
    np.testing.assert_array_equal(batch.next_observations[:, 0], [5, 6, 6, 6, 53, 54, 55, 56])
    np.testing.assert_array_equal(batch.rewards, [3, 3, 2, 1, 3, 3, 3, 3])
    assert (batch.discounts > 0).all()  # truncated, not terminated


@pytest.mark.parametrize(
    "make", [lambda: make_dqn(choice()), lambda: make_sac(continuous()), lambda: make_td3(continuous())]
)
def test_policies_need_no_stored_transitions(make):
    learner = make()
    state = jax.eval_shape(lambda: learner.init(KEY, None))
    kept = learner.inference_state(state)
    assert (kept.replay.buffer, kept.replay.priority_tree) == (None, None)
    request = rl.ExplorationRequest(state.replay.environment_state.observation)
    for inputs in (request, request.observation):
        actions = jax.eval_shape(learner.predict, kept, inputs, KEY)
        assert actions == jax.eval_shape(learner.predict, state, inputs, KEY)
    assert jax.eval_shape(learner.evaluate, kept, None, KEY)["return"].shape == (4,)
