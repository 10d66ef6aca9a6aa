"""Learning from a memory: what may be drawn and how often, and actors of numbers in worlds whose best is known."""

import functools
import itertools

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
from foldax.learners import Memory
from foldax.learners.rl import off_policy, return_distributions
from foldax.learners.rl.distributions import Squashed
from foldax.rl import priorities, replay, wrappers
from tests.rl.environments import choice, continuous, continuous_and_late, counter

KEY = jax.random.key(0)
SMALL = dict(num_envs=4, start=64, batch_size=64, evaluation_episodes=4, evaluation_steps=20)


def soft(world, **options):
    networks = models.GaussianActor(1, (16,)), models.TwinCritic((16,)), optax.adam(1e-2), optax.adam(1e-2)
    settings = dict(memory=Memory(1000), temperature=0.1, target_rate=0.05, discount=0.9, **SMALL)
    return learners.sac(world, *networks, **{**settings, **options})


def delayed(world, **options):
    networks = models.Actor(1, (16,)), models.TwinCritic((16,)), optax.adam(1e-2), optax.adam(1e-2)
    settings = dict(memory=Memory(1000), target_rate=0.05, discount=0.9, **SMALL)
    return learners.td3(world, *networks, **{**settings, **options})


def q_learner(world, **options):
    settings = dict(memory=Memory(1000), epsilon=0.1, epsilon_steps=200.0, **SMALL)
    return learners.dqn(world, models.QNetwork(2, hidden=(8,)), optax.adam(1e-2), **{**settings, **options})


AGENTS = {
    "sac": (soft, 300),
    "td3": (delayed, 150),
    "td3, n-step, prioritised": (functools.partial(delayed, memory=Memory(200, 2, True)), 150),
}


def trained(learner, updates):
    """Returns the state after these updates, and what each reported."""

    @jax.jit
    def fold(state):
        return jax.lax.scan(lambda s, step: learner.update(s, None, jax.random.fold_in(KEY, step)), state, steps)

    steps = jnp.arange(updates)
    return fold(jax.jit(lambda key: learner.init(key, None))(KEY))


@pytest.mark.parametrize("name", AGENTS)
def test_numbers_are_learned_that_depend_on_what_is_seen(name):
    make, updates = AGENTS[name]
    learner = make(continuous())
    state, metrics = trained(learner, updates)
    seen = jnp.array([[1.0], [-1.0]])
    np.testing.assert_allclose(learner.predict(state, seen, KEY)[:, 0], [0.5, -0.5], atol=0.15)
    assert jax.jit(learner.evaluate)(state, None, KEY)["return"].min() > -0.03
    if name == "sac":
        assert float(metrics["entropy"][-50:].mean()) == pytest.approx(-1.0, abs=0.3)  # as is wanted of one number


def test_evaluations_are_greedy_or_drawn():
    """One reward a sign by the likeliest actions, and many by drawn ones."""
    for greedy in (True, False):
        learner = soft(continuous(), evaluation_episodes=64, greedy_evaluation=greedy)
        found = jax.jit(learner.evaluate)(jax.jit(lambda: learner.init(KEY, None))(), None, KEY)  # noqa: B023
        assert (len(np.unique(np.round(found["return"], 5))) <= 2) == greedy


@pytest.mark.parametrize("name", AGENTS)
def test_numbers_are_learned_that_are_paid_a_step_late(name):
    make, updates = AGENTS[name]
    learner = make(continuous_and_late(), discount=0.9)
    state, _ = trained(learner, 2 * updates)
    found = learner.predict(state, jnp.array([[1.0, 0.0], [-1.0, 0.0]]), KEY)
    np.testing.assert_allclose(found[:, 0], [0.5, -0.5], atol=0.2)


@pytest.mark.parametrize("truncates", [False, True])
@pytest.mark.parametrize("make", [delayed, functools.partial(soft, temperature=1e-4, target_entropy=-50.0)])
def test_critics_tell_an_episode_that_is_over_from_one_that_is_cut_off(make, truncates):
    """Each step is worth 1. Over after two, its first step is worth 1.9; cut off there, it would go on: more."""
    world = counter(2, truncates, reward=1.0)._replace(actions=continuous().actions)
    state, _ = trained(make(world), 300)
    critic = functools.partial(models.TwinCritic((16,)).apply, {"params": state.critic.params})
    found = critic(jnp.array([[0.0], [1.0]]), jnp.zeros((2, 1)))
    if truncates:
        assert found.min() > 3.0
    else:
        np.testing.assert_allclose(found, [[1.9, 1.9], [1.0, 1.0]], atol=0.15)


def test_actions_reach_from_bound_to_bound():
    taken = []

    def step(key, state, action):
        taken.append(action)
        return continuous().step(key, state, action)

    space = rl.Box(np.float32([-2, 0]), np.float32([2, 10]))
    world = wrappers.unit_actions(continuous()._replace(step=step, actions=space))
    for action in ([-1.0, -1.0], [1.0, 1.0], [0.0, 0.5]):
        world.step(KEY, jnp.float32(1), jnp.array(action))
    np.testing.assert_allclose(taken, [[-2, 0], [2, 10], [0, 7.5]])
    np.testing.assert_array_equal(world.actions.low, [-1, -1])


def test_observations_reach_from_minus_one_to_one_between_their_bounds():
    space = rl.Box(np.float32([-2]), np.float32([6]))
    world = wrappers.unit_observations(counter(5, start=-2)._replace(observations=space))
    state, seen = world.reset(KEY)
    found = [float(seen[0])]
    for _ in range(5):
        state, answer = world.step(KEY, state, jnp.int32(0))
        found.append(float(answer.observation[0]))
    np.testing.assert_allclose(found, [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25])
    np.testing.assert_array_equal(world.observations, [[-1], [1]])
    with pytest.raises(ConfigError, match="unit_observations: counter has no observations between finite bounds"):
        wrappers.unit_observations(counter())
    with pytest.raises(ConfigError, match="CartPole-v1 has no observations between finite bounds"):
        wrappers.unit_observations(rl.gymnax("CartPole-v1"))  # whose bounds are the largest numbers that there are
    np.testing.assert_array_equal(
        wrappers.to_unit(rl.Box(np.float32([1]), np.float32([1])), jnp.ones((2, 1))), [[0], [0]]
    )


def test_squashed_densities_are_those_of_the_change_of_variables():
    chances = Squashed(jnp.array([[0.3]]), jnp.array([[-0.4]]))
    many = Squashed(*(jnp.broadcast_to(x, (4000, 1)) for x in chances))
    actions, logs = many.sampled(KEY)
    free = np.arctanh(np.asarray(actions[:, 0], np.float64))
    expected = stats.norm(0.3, np.exp(-0.4)).logpdf(free) - np.log(1 - np.tanh(free) ** 2)
    np.testing.assert_allclose(logs, expected, atol=2e-3)
    np.testing.assert_array_equal(actions, many.sample(KEY))

    def surprise(x):
        log = stats.norm(0.3, np.exp(-0.4)).logpdf(x) - 2 * (np.log(2) - x - np.logaddexp(0, -2 * x))
        return -log * stats.norm(0.3, np.exp(-0.4)).pdf(x)

    assert float(-logs.mean()) == pytest.approx(integrate.quad(surprise, -6, 6)[0], abs=0.05)
    far = Squashed(jnp.full((1, 1), 30.0), jnp.zeros((1, 1))).sampled(KEY)[1]
    assert np.isfinite(far).all()


@functools.partial(jax.jit, static_argnames=("memory", "copies"))
def begun(memory, copies):
    world = wrappers.frame_stack(counter(5)._replace(actions=rl.Discrete(2)), memory.stack.count)
    return off_policy.begin(world, memory, KEY, copies, copies, None)[0]


@functools.partial(jax.jit, static_argnames="memory")
def remembered(memory, experience, ends):
    """Returns the experience with a step more: frames are numbered by copy and step, episodes end as told."""
    copies = len(ends)
    number = experience.replay.num_rows * 10.0 + jnp.arange(copies)
    shown = jnp.repeat(number[:, None], memory.stack.count, axis=1)
    seen = (experience.actors.observation, jnp.zeros(copies, jnp.int32), number, shown)
    step = rl.Transition(*seen, ends, jnp.zeros(copies, bool), {})
    return off_policy.remember(memory, experience, step, shown + 0.5)


ENDS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=25)
RINGS = st.sampled_from([(4, 1, 1), (7, 2, 1), (13, 3, 1), (20, 1, 4)])  # each compiles anew


@given(ENDS, RINGS)
@settings(max_examples=25, deadline=None)
def test_what_has_a_priority_is_what_can_be_drawn(ends, ring):
    """Of a ring whose size copies need not divide: never a row that has not its n steps yet, or whose frames are gone."""
    capacity, steps, frames = ring
    memory = Memory(capacity, steps, True, stack=replay.Stack(frames, -1))
    experience = begun(memory, 2)
    for row in ends:
        experience = remembered(memory, experience, jnp.array(row))
    kept, rows = experience.replay, capacity // 2
    leaves = np.asarray(experience.tree[len(experience.tree) // 2 :])
    reach = range(int(kept.oldest), int(kept.num_rows) - steps + 1)
    expected = {(row % rows) * 2 + column for row in reach for column in range(2)}
    assert set(np.flatnonzero(leaves)) == expected
    assert int(replay.num_transitions(kept, steps)) == len(expected)
    assert float(experience.tree[1]) == pytest.approx(leaves.sum(), rel=1e-5)


@jax.jit
def surprised_and_drawn(experience, places, surprise, exponent, correction, key):
    memory = Memory(13, 1, True, exponent, correction)
    experience = off_policy.surprised(memory, experience, places, surprise)
    return experience, off_policy.draw(memory, experience, key, 20_000, 0.9)


@given(st.integers(0, 10_000), st.floats(0.2, 1.0), st.floats(0.1, 1.0))
@settings(max_examples=8, deadline=None)
def test_surprises_are_drawn_in_proportion_and_weighted_for_it(seed, exponent, correction):
    rng, memory = np.random.RandomState(seed), Memory(13, 1, True)
    experience = begun(memory, 2)
    for row in rng.rand(20, 2) < 0.1:
        experience = remembered(memory, experience, jnp.array(row))
    leaves = np.asarray(experience.tree[len(experience.tree) // 2 :])[:12]
    reach, places, surprise = leaves > 0, np.arange(12), rng.rand(12).astype(np.float32) + 0.05
    surprise[~reach] = surprise[reach][0]
    places[~reach] = places[reach][0]  # the same again, so that shapes are the same in all examples
    settings = (jnp.float32(exponent), jnp.float32(correction), jax.random.key(seed))
    experience, drawn = surprised_and_drawn(experience, jnp.asarray(places), jnp.asarray(surprise), *settings)
    highest = (surprise + 1e-6) ** exponent
    shares = highest[reach].astype(np.float64)
    shares /= shares.sum()
    counts = np.bincount(np.asarray(drawn.places), minlength=12)
    assert not counts[~reach].any()
    # Each draw is from its own share of the sum: counts differ less from what is expected than independent ones would.
    assert stats.chisquare(counts[reach], 20_000 * shares).pvalue > 1e-4
    weights = (shares * reach.sum()) ** -correction
    found = dict(zip(np.asarray(drawn.places).tolist(), np.asarray(drawn.weights), strict=True))
    np.testing.assert_allclose([found[place] for place in np.flatnonzero(reach)], weights / weights.max(), rtol=1e-3)
    assert float(experience.highest) == pytest.approx(max(1.0, highest.max()), rel=1e-5)


def test_the_correction_rises_to_one():
    experience = begun(Memory(13, 1, True), 2)
    for row in np.zeros((6, 2), bool):
        experience = remembered(Memory(13, 1, True), experience, jnp.array(row))
    experience = off_policy.surprised(Memory(13, 1, True), experience, jnp.arange(12), jnp.arange(12) + 1.0)
    weights = {}
    for correction, steps in ((0.4, np.inf), (0.7, np.inf), (1.0, np.inf), (0.4, 28), (0.4, 10)):
        memory = Memory(13, 1, True, correction=correction, correction_steps=steps)
        weights[correction, steps] = off_policy.draw(memory, experience, KEY, 64, 0.9).weights
    assert int(experience.environment_steps) == 14
    np.testing.assert_allclose(weights[0.4, 28], weights[0.7, np.inf], rtol=1e-5)  # half the way
    np.testing.assert_allclose(weights[0.4, 10], weights[1.0, np.inf], rtol=1e-5)  # and no further
    assert not np.allclose(weights[0.4, np.inf], weights[0.7, np.inf])


def test_a_q_learner_s_priorities_are_powers_of_its_errors():
    """Of all that was drawn in an update that changes nothing (Schaul et al., 2016, equation 1)."""
    memory = Memory(100, prioritized=True, exponent=0.6)
    model = models.QNetwork(2, hidden=(8,))
    learner = learners.dqn(choice(), model, optax.sgd(0.0), memory=memory, rollout_steps=1, **SMALL)
    state, _ = jax.jit(learner.update)(jax.jit(lambda: learner.init(KEY, None))(), None, KEY)
    kept = state.experience.replay
    row = jnp.repeat(jnp.arange(int(kept.oldest), int(kept.num_rows)), 4)
    seen = replay.at(kept, row, jnp.tile(jnp.arange(4), len(row) // 4), 0.99)
    worth = [model.apply({"params": state.target}, x)[..., 0] for x in (seen.observation, seen.next_observation)]
    errors = worth[0][jnp.arange(len(row)), seen.action] - (seen.reward + seen.discount * worth[1].max(axis=1))
    leaves = np.asarray(state.experience.tree[len(state.experience.tree) // 2 :])[: len(row)]
    drawn = leaves != 1  # others have the highest so far
    assert drawn.sum() > 20
    np.testing.assert_allclose(leaves[drawn], (np.abs(errors)[drawn] + 1e-6) ** 0.6, rtol=1e-3)


def test_trees_of_one_place_and_of_many_keep_their_sums():
    assert int(priorities.draw(priorities.changed(priorities.empty(1), jnp.array([0]), jnp.ones(1)), KEY, 1)[0]) == 0
    tree = priorities.changed(priorities.empty(1000), jnp.arange(1000), jnp.ones(1000))
    assert float(tree[1]) == 1000


def test_a_divergence_that_rounding_makes_negative_is_no_surprise():
    experience = off_policy.surprised(Memory(13, 1, True), begun(Memory(13, 1, True), 2), jnp.arange(2), -jnp.ones(2))
    assert float(experience.tree[1]) == pytest.approx(2 * 1e-6**0.6, rel=1e-4)
    head = return_distributions.categorical()
    after = 3 * jax.random.normal(KEY, (1000, 51))
    reward, zero = jax.random.uniform(KEY, (1000,), minval=-12, maxval=12), jnp.zeros(1000)
    target = jax.grad(lambda x: head.loss(x, after, reward, zero)[0].sum())(after)
    known = jnp.log(jnp.maximum(jax.nn.softmax(after) - target, 1e-30))  # of which the loss is 0, and its gradient too
    _, surprise = head.loss(known, after, reward, zero)
    np.testing.assert_allclose(surprise, 0.0, atol=1e-4)
    assert float(surprise.min()) < 0  # it does happen


def test_a_memory_of_frames_teaches_as_one_of_what_was_seen():
    world, found = wrappers.frame_stack(choice(), 3), []
    for stack in (replay.UNSTACKED, replay.Stack(3, -1)):
        learner = q_learner(world, memory=Memory(600, 2, True, stack=stack), rollout_steps=2)
        state, _ = trained(learner, 40)
        assert state.experience.replay.frames.shape[1:] == ((3,) if stack.count == 3 else (9,))
        found.append(state.network.params)
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_exploration_counts_the_steps_at_the_start():
    _, metrics = trained(q_learner(choice(), rollout_steps=5), 10)
    steps = 64 + 20 * np.arange(1, 11)
    np.testing.assert_allclose(metrics["epsilon"], np.maximum(1 - 0.9 * steps / 200, 0.1), rtol=1e-5)


def test_targets_are_the_network_s_of_each_period():
    learner = q_learner(choice(), rollout_steps=1, target_period=12)  # a step of all copies is 4
    state = jax.jit(lambda: learner.init(KEY, None))()
    update, equal = jax.jit(learner.update), []
    for step in range(6):
        state, _ = update(state, None, jax.random.fold_in(KEY, step))
        pairs = zip(jax.tree.leaves(state.target), jax.tree.leaves(state.network.params), strict=True)
        equal.append(all(np.array_equal(*pair) for pair in pairs))
    steps = 64 + 4 * np.arange(7)
    assert equal == [before // 12 < after // 12 for before, after in itertools.pairwise(steps)]


def poisoned(where, actions):
    """A world whose fifth step gives no number."""
    world = counter(9)

    def step(key, state, action):
        after, answer = world.step(key, state, 0)
        value = getattr(answer, where)
        return after, answer._replace(**{where: jnp.where(after == 5, jnp.nan, value)})

    return world._replace(step=step, actions=actions)


@foldax.config
class Config(foldax.Interaction):
    environment_steps: int = 2_000
    start_steps: int = 64
    rollout_steps: int = 4
    log_every = 20


@pytest.mark.parametrize("where", ["observation", "reward"])
@pytest.mark.parametrize("make", [q_learner, soft, delayed])
def test_a_world_that_gives_no_number_makes_of_the_loss_none(make, where):
    actions = rl.Discrete(2) if make is q_learner else continuous().actions
    memory = Memory(200, prioritized=make is q_learner)
    _, metrics = trained(make(poisoned(where, actions), memory=memory, rollout_steps=4), 20)
    assert np.isnan(metrics["loss"][-1])


def test_a_world_that_gives_no_number_stops_the_run(tmp_path):
    def learner(config, info):
        return q_learner(poisoned("reward", rl.Discrete(2)), rollout_steps=4)

    with pytest.raises(NonFiniteError, match="step"):
        foldax.train(foldax.Experiment(Config, learner), Config(), run_dir=tmp_path / "run", verbose=False)


def test_a_run_counts_what_its_agent_acts():
    def learner(config, info):
        return q_learner(choice(), rollout_steps=2)

    with pytest.raises(ConfigError, match=r"acts 8 steps in an update and 64 before .* counts 16 .* and 64"):
        foldax.train(foldax.Experiment(Config, learner), Config(), save=False, verbose=False)


def test_bad_settings_are_told():
    for make in (soft, delayed):
        with pytest.raises(ConfigError, match="counter has 2 discrete actions; take dqn or ppo"):
            make(counter())
        with pytest.raises(ConfigError, match="capacity 16 is smaller than a batch of 64"):
            make(continuous(), memory=Memory(16))
        free = rl.Box(np.full(1, -np.inf, np.float32), np.full(1, np.inf, np.float32))
        with pytest.raises(ConfigError, match="actions of continuous have no bounds"):
            make(continuous()._replace(actions=free))
        with pytest.raises(ConfigError, match="descents: 0 must be 1 or more"):
            make(continuous(), descents=0)
    with pytest.raises(ConfigError, match="start: 66 transitions are no whole steps of 4 copies; 68 are"):
        soft(continuous(), start=66)
    with pytest.raises(ConfigError, match=r"greedy_evaluation: on a host.*rl\.gymnasium\(\.\.\., greedy"):
        soft(facts(continuous(), num_envs=4, rollout_steps=1), greedy_evaluation=False)
    with pytest.raises(ConfigError, match="descents: 3 must be a multiple of policy_delay, 2"):
        delayed(continuous(), descents=3)
    with pytest.raises(ConfigError, match="unit_actions: counter has no actions between finite bounds"):
        wrappers.unit_actions(counter())
    with pytest.raises(ConfigError, match="capacity 64 must hold 20 steps of 4 copies"):
        soft(continuous(), memory=Memory(64, 20))


# -- on the host -----------------------------------------------------------------------------------


def facts(world, **sizes):
    """What is known of a world, as if it were on the host."""
    return rl.HostFacts(world.name, world.observations, world.actions, np.dtype(np.float32), **sizes)


@pytest.mark.parametrize(("make", "world"), [(q_learner, choice()), (soft, continuous()), (delayed, continuous())])
def test_what_a_host_played_teaches_as_what_was_played_here(make, world):
    """Steps that were played here, as batches: the memory is the same, and so is what is learned from it."""
    steps, copies, updates = 2, 4, 3
    here = make(world, rollout_steps=steps)
    there = make(facts(world, num_envs=copies, rollout_steps=steps), rollout_steps=steps)
    state = jax.jit(lambda key: here.init(key, None))(KEY)
    other = state._replace(experience=state.experience._replace(actors=None))
    for number in range(updates):
        key = jax.random.fold_in(KEY, number)
        before = state.experience.actors
        state, _ = jax.jit(here.update)(state, None, key)
        kept, rows = state.experience.replay, np.arange(steps) + int(state.experience.replay.num_rows) - steps
        found = jax.vmap(lambda row: replay.at(kept, jnp.full(copies, row), jnp.arange(copies), 1.0))(rows)  # noqa: B023
        ends = kept.rows[rows % len(kept.rows), :, 3]
        action = (
            found.action
            if make is q_learner
            else jax.vmap(lambda a: wrappers.from_unit(world.actions, a))(found.action)
        )
        seen = rl.Transition(
            found.observation, action, found.reward, found.next_observation, ends % 2 == 1, ends >= 2, {}
        )
        np.testing.assert_array_equal(seen.observation[0], before.observation)
        none = rl.Finished(*[foldax.Average(jnp.zeros(steps), jnp.zeros(steps))] * 2)
        after = jnp.concatenate([seen.observation[1:], state.experience.actors.observation[None]])
        batch = rl.Played(seen, none, after, jnp.zeros(steps, bool))
        other, metrics = jax.jit(there.update)(other, batch, key)
        assert float(metrics["loss"].count) == 1
    for one, same in zip(
        jax.tree.leaves(other._replace(experience=None)), jax.tree.leaves(state._replace(experience=None))
    ):
        np.testing.assert_allclose(one, same, atol=1e-5)
    for one, same in zip(jax.tree.leaves(other.experience.replay), jax.tree.leaves(state.experience.replay)):
        np.testing.assert_array_equal(one, same)


def test_a_host_teaches_only_once_there_are_enough_steps_and_acts_at_random_until_then():
    copies, steps = 4, 4
    learner = q_learner(
        facts(choice(), num_envs=copies, rollout_steps=steps), rollout_steps=steps, epsilon=0.0, epsilon_steps=1.0
    )
    state = jax.jit(learner.init)(KEY, jnp.zeros((copies, 3)))
    nothing = jnp.zeros((steps, copies), bool)
    shown = jnp.zeros((steps, copies, 3))
    none = rl.Finished(*[foldax.Average(jnp.zeros(steps), jnp.zeros(steps))] * 2)
    seen = rl.Transition(
        shown, jnp.zeros((steps, copies), jnp.int32), jnp.ones((steps, copies)), shown, nothing, nothing, {}
    )
    many = rl.Explore(jnp.zeros((200, 3)))
    for number in range(5):
        before, chosen = state, np.asarray(jax.jit(learner.predict)(state, many, KEY))
        state, metrics = jax.jit(learner.update)(state, rl.Played(seen, none, shown, jnp.zeros(steps, bool)), KEY)
        ready = (number + 1) * copies * steps >= SMALL["start"]
        assert float(metrics["loss"].count) == ready
        moved = jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), state.network.params, before.network.params))
        assert any(moved) == ready
        assert (len(np.unique(chosen)) == 2) == (number < 4)


def test_a_host_that_began_anew_cuts_off_what_was_before():
    """Nothing that is drawn joins steps from before a resumed run's new episodes with steps of these."""
    copies, steps = 2, 3
    world = counter(100)
    memory = Memory(20, steps=3)
    of = facts(world, num_envs=copies, rollout_steps=steps)
    experience, _ = off_policy.begin(of, memory, KEY, copies, 0, jnp.zeros((copies, 1)))

    def batch(start, begun):
        number = jnp.broadcast_to(start + jnp.arange(steps + 1.0)[:, None, None], (steps + 1, copies, 1))
        none = rl.Finished(*[foldax.Average(jnp.zeros(steps), jnp.zeros(steps))] * 2)
        over = jnp.zeros((steps, copies), bool)
        seen = rl.Transition(
            number[:-1], jnp.zeros((steps, copies), jnp.int32), jnp.ones((steps, copies)), number[1:], over, over, {}
        )
        return rl.Played(seen, none, number[1:], jnp.arange(steps) < begun)

    listen = jax.jit(functools.partial(off_policy.listened, memory))
    for start, begun in ((0, True), (3, False), (50, True), (53, False)):
        experience, _ = listen(experience, batch(start, begun))
    kept = experience.replay
    rows = jnp.arange(int(kept.oldest), int(kept.num_rows) - 2)
    found = replay.at(kept, rows, jnp.zeros(len(rows), jnp.int32), 1.0, 3)
    number, after = found.observation[:, 0], found.next_observation[:, 0]
    np.testing.assert_array_equal(number, [2, 3, 4, 5, 50, 51, 52, 53])
    np.testing.assert_array_equal(after, [5, 6, 6, 6, 53, 54, 55, 56])
    np.testing.assert_array_equal(found.reward, [3, 3, 2, 1, 3, 3, 3, 3])
    assert (found.discount > 0).all()  # cut off, not over
