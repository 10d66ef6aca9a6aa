"""Deep Q-networks (Mnih et al., 2015) and what came after, each a switch; all of them together are Rainbow.

An update acts `rollout_steps` times in `num_envs` copies of the environment, remembers it, and takes one step of descent on
a batch of what it remembers. The memory and the copies are part of the state; it begins with `start` transitions of
random actions, so that every update learns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from foldax import rl
from foldax.errors import ConfigError
from foldax.learner import Learner
from foldax.learners import gradients, returns
from foldax.learners.gradients import TrainState
from foldax.rl import priorities, replay
from foldax.rl.replay import Replay


class Memory(NamedTuple):
    """How it remembers.

    Attributes:
      capacity: transitions.
      steps: rewards that are summed before the next value is asked for (Sutton, 1988).
      prioritized: whether surprising transitions are drawn more often (Schaul et al., 2016).
      exponent: of priorities; 0 is uniform; may be traced.
      correction: of the weights that make up for it; 1 wholly; may be traced.
    """

    capacity: int = 10_000
    steps: int = 1
    prioritized: bool = False
    exponent: Any = 0.6
    correction: Any = 0.4


class DQNState(NamedTuple):
    """The networks, the world and the memory.

    Attributes:
      network: what learns.
      target: parameters that are asked for the values of what came next.
      actors: copies of the environment.
      replay: what they did.
      tree: priorities, or None.
      highest: the largest priority so far, which new transitions have.
      environment_steps: int32 [], of all copies.
    """

    network: TrainState
    target: Any
    actors: rl.Actors
    replay: Replay
    tree: Any
    highest: jax.Array
    environment_steps: jax.Array


def dqn(
    environment: rl.Environment,
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    described: returns.Returns | None = None,
    memory: Memory = Memory(),
    num_envs: int = 1,
    rollout_steps: int = 10,
    start: int = 10_000,
    batch_size: int = 128,
    discount: Any = 0.99,
    epsilon: Any = 0.05,
    epsilon_steps: Any = 250_000.0,
    target_period: int = 500,
    double: bool = False,
    evaluation_episodes: int = 16,
    evaluation_steps: int = 1000,
) -> Learner:
    """Returns a learner of what actions are worth.

    `update` reports "loss", "value" (mean of the chosen actions'), "epsilon", "gradient_norm" and, of the episodes that
    ended, "return" and "length". `evaluate` plays `evaluation_episodes` greedily and reports "return" and "length" of
    each; those that take longer than `evaluation_steps` are left off there. `predict` gives the best actions of
    observations `[B, ...]`.

    Args:
      environment: where; its actions are discrete.
      model: observations `[B, ...]` to `[B, A, width]`, such as `models.QNetwork`; dueling and noisy are its switches.
      optimizer: of optax; its rates may be traced.
      described: how `width` numbers describe a return; `returns.expected()` if None.
      memory: how it remembers.
      num_envs: copies of the environment.
      rollout_steps: of each in an update.
      start: transitions of random actions before the first update, and at least a batch.
      batch_size: transitions in an update's descent.
      discount: of a reward one step later; may be traced.
      epsilon: probability of a random action in the end; may be traced.
      epsilon_steps: of the environment, in which it falls from 1 in a straight line; may be traced; 0 for noisy models.
      target_period: steps of the environment between copies of the network to the target.
      double: whether the network chooses the next action that the target judges (van Hasselt et al., 2016).
      evaluation_episodes: played at once.
      evaluation_steps: most of each.

    Raises:
      ConfigError: actions are no choices, or a number does not fit the others.
    """
    described = returns.expected() if described is None else described
    _check(environment, memory, num_envs, rollout_steps, start, batch_size, target_period)
    num_actions = environment.actions.num  # type: ignore[union-attr]

    def worth(params: Any, observation: jax.Array, key: jax.Array | None = None) -> jax.Array:
        streams = {} if key is None else {"dropout": key}
        return model.apply({"params": params}, observation, train=key is not None, rngs=streams)

    def exploration(steps: jax.Array) -> jax.Array:
        share = jnp.clip(steps * jnp.reciprocal(jnp.maximum(epsilon_steps, 1.0)), 0.0, 1.0)
        return 1.0 + share * (epsilon - 1.0)

    def act(state: DQNState, random: jax.Array, key: jax.Array) -> tuple[DQNState, rl.Finished]:
        """Takes one step with every copy, each at random with this probability, and remembers it."""
        coin, choice, noise, world = jax.random.split(key, 4)
        greedy = returns.best(described, worth(state.network.params, state.actors.observation, noise))
        anything = jax.random.randint(choice, (num_envs,), 0, num_actions)
        action = jnp.where(jax.random.bernoulli(coin, random, (num_envs,)), anything, greedy)
        actors, seen, finished = rl.act(environment, state.actors, action, world)
        kept = replay.add(state.replay, seen, actors.observation)
        state = state._replace(actors=actors, replay=kept, environment_steps=state.environment_steps + num_envs)
        return (_prioritize(state, memory) if memory.prioritized else state), finished

    def acted(state: DQNState, random: Any, key: jax.Array, steps: int) -> tuple[DQNState, Any]:
        def one(state: DQNState, key: jax.Array) -> tuple[DQNState, rl.Finished]:
            return act(state, exploration(state.environment_steps) if random is None else random, key)

        state, finished = jax.lax.scan(one, state, jax.random.split(key, steps))
        return state, jax.tree.map(lambda x: x.sum(axis=0), finished)

    def init(key: jax.Array, examples: Any) -> DQNState:
        of_network, of_world, of_actions = jax.random.split(key, 3)
        actors = rl.begin(environment, of_world, num_envs)
        params = model.init({"params": of_network}, actors.observation[:1])["params"]
        empty = replay.empty(actors.observation, jnp.zeros(num_envs, jnp.int32), memory.capacity)
        tree = priorities.empty(empty.before.size) if memory.prioritized else None
        network, target = gradients.create(params, optimizer), jax.tree.map(jnp.copy, params)
        state = DQNState(network, target, actors, empty, tree, jnp.ones(()), jnp.int32(0))
        return acted(state, 1.0, of_actions, -(-start // num_envs))[0]

    def update(state: DQNState, batch: Any, key: jax.Array) -> tuple[DQNState, dict[str, Any]]:
        of_actions, of_draws, own = jax.random.split(key, 3)
        before = state.environment_steps
        state, finished = acted(state, None, of_actions, rollout_steps)
        drawn, weights, places = _drawn(state, memory, of_draws, batch_size, discount)
        descend = loss(worth, described, double)
        network, metrics = gradients.step(state.network, descend, optimizer, (drawn, state.target, weights), own)
        surprise = metrics.pop("surprise")
        if memory.prioritized:
            fresh = (surprise + 1e-6) ** memory.exponent
            tree, highest = priorities.changed(state.tree, places, fresh), jnp.maximum(state.highest, fresh.max())
            state = state._replace(tree=tree, highest=highest)
        copied = before // target_period < state.environment_steps // target_period
        target = jax.tree.map(lambda new, old: jnp.where(copied, new, old), network.params, state.target)
        ended = {"return": finished.episode_return, "length": finished.episode_length}
        metrics |= ended | {"epsilon": exploration(state.environment_steps)}
        return state._replace(network=network, target=target), metrics

    def evaluate(state: DQNState, batch: Any, key: jax.Array) -> dict[str, Any]:
        def greedy(observation: jax.Array, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return returns.best(described, worth(state.network.params, observation)), {}

        found = rl.episodes(environment, greedy, key, evaluation_episodes, evaluation_steps)
        return {"return": found["return"], "length": found["length"].astype(jnp.float32)}

    def predict(state: DQNState, inputs: Any, key: jax.Array) -> jax.Array:
        return returns.best(described, worth(state.network.params, jnp.asarray(inputs)))

    return Learner(init, update, evaluate, predict)


def loss(worth: Any, described: returns.Returns, double: bool) -> gradients.Loss:
    """Returns the loss of what was drawn: `(sample [B], target's parameters, weights [B])`.

    `worth` gives `(params, observations, key) -> [B, A, width]`.
    """

    def total(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        drawn, target, weights = batch
        now, choosing, judging = jax.random.split(key, 3)
        outputs = returns.chosen(worth(params, drawn.observation, now), drawn.action)
        after = worth(target, drawn.next_observation, judging)
        chooser = worth(params, drawn.next_observation, choosing) if double else after
        following = returns.chosen(after, returns.best(described, chooser))
        surprise = described.loss(outputs, following, drawn.reward, drawn.discount)
        value = (weights * surprise).mean()
        return value, (model_state, {"loss": value, "value": described.mean(outputs).mean(), "surprise": surprise})

    return total


def _prioritize(state: DQNState, memory: Memory) -> DQNState:
    """Returns the state whose tree can draw the row that now has n steps, and none that is gone."""
    rows, copies = state.replay.before.shape
    columns, number = jnp.arange(copies), state.replay.num_rows
    begun = number - memory.steps  # the newest row that begins a transition of n steps
    places = (begun % rows) * copies + columns
    tree = priorities.changed(state.tree, places, jnp.where(begun >= 0, state.highest, 0.0) * jnp.ones(copies))
    if memory.steps > 1:  # rows that were overwritten, and begin nothing yet
        places = ((number - 1) % rows) * copies + columns
        tree = priorities.changed(tree, places, jnp.zeros(copies))
    # Rows out of reach before they are overwritten, since their frames are gone: at most the two oldest at a time.
    for offset in (1, 2):
        old = state.replay.oldest - offset
        gone = (old >= 0) & (old >= number - rows) & (old < begun)
        places = (old % rows) * copies + columns
        kept = tree[places + len(tree) // 2]
        tree = priorities.changed(tree, places, jnp.where(gone, 0.0, kept))
    return state._replace(tree=tree)


def _drawn(
    state: DQNState, memory: Memory, key: jax.Array, batch_size: int, discount: Any
) -> tuple[replay.Sample, jax.Array, jax.Array]:
    """Returns transitions, their weights `[B]` in the loss, and their places in the tree."""
    if not memory.prioritized:
        drawn = replay.sample(state.replay, key, batch_size, discount, memory.steps)
        return drawn, jnp.ones(batch_size), jnp.zeros(batch_size, jnp.int32)
    rows, copies = state.replay.before.shape
    places = priorities.draw(state.tree, key, batch_size)
    place, column = places // copies, places % copies
    newest = state.replay.num_rows - 1
    row = newest - (newest - place) % rows  # the number of the newest row at this place
    drawn = replay.at(state.replay, row, column, discount, memory.steps)
    chances = priorities.probabilities(state.tree, places)
    count = replay.num_transitions(state.replay, memory.steps).astype(jnp.float32)
    weights = jnp.power(jnp.maximum(chances * count, 1e-8), -memory.correction)
    return drawn, weights * jnp.reciprocal(weights.max()), places


def _check(
    environment: rl.Environment,
    memory: Memory,
    num_envs: int,
    rollout_steps: int,
    start: int,
    batch_size: int,
    target_period: int,
) -> None:
    if not isinstance(environment.actions, rl.Discrete):
        raise ConfigError(f"dqn: actions of {environment.name} are numbers, not choices; take ppo, sac or td3")
    counts = dict(num_envs=num_envs, rollout_steps=rollout_steps, batch_size=batch_size, target_period=target_period)
    for name, value in (counts | {"memory.steps": memory.steps}).items():
        if value < 1:
            raise ConfigError(f"{name}: {value} must be 1 or more")
    least = max(batch_size, memory.steps * num_envs)
    if memory.capacity < least:
        raise ConfigError(f"memory: capacity {memory.capacity} is smaller than a batch of {batch_size}")
    if start < least:
        raise ConfigError(f"start: {start} transitions must be {least} or more, so that there is a batch of them")
