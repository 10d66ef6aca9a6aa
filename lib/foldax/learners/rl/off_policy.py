"""Learning from a memory: what deep Q-networks, soft actor-critics and TD3 do alike.

They act in copies of an environment, remember each step, and draw from all that they remember. The copies and the
memory are part of the state, which begins with steps of random actions, so that every update learns. Where the
environment is on the host, its steps come as the batch, and updates learn once there are as many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax import rl
from foldax.errors import ConfigError, check_counts
from foldax.learner import Acts, Average
from foldax.rl import priorities, replay, wrappers
from foldax.rl.replay import Replay

Act = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(observation [N, ...], steps of the environment so far, key) -> action [N, ...]`."""


class Memory(NamedTuple):
    """How it remembers.

    Attributes:
      capacity: transitions.
      steps: rewards that are summed before the next value is asked for (Sutton, 1988).
      prioritized: whether surprising transitions are drawn more often (Schaul et al., 2016).
      exponent: of priorities; 0 is uniform; may be traced.
      correction: of the weights that make up for it, at first; 1 wholly; may be traced.
      correction_steps: of the environment, in which it rises to 1 in a straight line; infinite: it stays; may be
        traced.
      stack: how frames make an observation, each of which is kept once; by default observations are kept as they are.
    """

    capacity: int = 10_000
    steps: int = 1
    prioritized: bool = False
    exponent: Any = 0.6
    correction: Any = 0.4
    correction_steps: Any = np.inf
    stack: replay.Stack = replay.UNSTACKED


class Experience(NamedTuple):
    """The world, and what was seen of it.

    Attributes:
      actors: copies of the environment; None where they are on the host.
      replay: what they did.
      tree: priorities, or None.
      highest: the largest priority so far, which new transitions have.
      environment_steps: int32 [], of all copies.
    """

    actors: Any
    replay: Replay
    tree: Any
    highest: jax.Array
    environment_steps: jax.Array


class Drawn(NamedTuple):
    """Transitions from the memory.

    Attributes:
      sample: `[B, ...]`.
      weights: `[B]`, in the loss, at most 1.
      places: int32 `[B]`, in the tree of priorities.
    """

    sample: replay.Sample
    weights: jax.Array
    places: jax.Array


def begin(
    environment: rl.World, memory: Memory, key: jax.Array, num_envs: int, start: int, examples: Any
) -> tuple[Experience, jax.Array]:
    """Returns the experience of `start` transitions, and what the copies saw at first.

    Actions are random. Of a host it is that of none, whose copies see `examples` `[N, ...]`.
    """
    of_world, of_actions = jax.random.split(key)
    actors = rl.begin(environment, of_world, num_envs) if isinstance(environment, rl.Environment) else None
    observation = examples if actors is None else actors.observation
    empty = replay.empty(
        replay.newest(observation, memory.stack), random_actions(environment.actions, key, num_envs), memory.capacity
    )
    tree = priorities.empty(empty.rows[..., 0].size) if memory.prioritized else None
    experience = Experience(actors, empty, tree, jnp.ones(()), jnp.int32(0))
    if isinstance(environment, rl.HostFacts):
        return experience, observation

    def anything(observation: jax.Array, steps: jax.Array, key: jax.Array) -> jax.Array:
        return random_actions(environment.actions, key, num_envs)

    return play(environment, memory, experience, anything, of_actions, start // num_envs, None)[0], observation


def acts(environment: rl.World, num_envs: int, rollout_steps: int, start: int) -> Acts:
    """Returns how much a learner acts; on a host the random steps are those of its first updates."""
    return Acts(0 if isinstance(environment, rl.HostFacts) else start, num_envs * rollout_steps)


def random_actions(space: rl.Discrete | rl.Box, key: jax.Array, count: int) -> jax.Array:
    """Returns actions `[count, ...]`, all equally likely."""
    if isinstance(space, rl.Discrete):
        return jax.random.randint(key, (count,), 0, space.num)
    return jax.random.uniform(key, (count, *space.shape), minval=space.low[None], maxval=space.high[None])


def at_first(environment: rl.World, start: int, steps: jax.Array, action: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the action `[N, ...]`; of a host a random one while there are less than `start` transitions."""
    if isinstance(environment, rl.Environment):
        return action
    return jnp.where(steps < start, random_actions(environment.actions, key, len(action)), action)


def play(
    environment: rl.World, memory: Memory, experience: Experience, act: Act, key: jax.Array, steps: int, batch: Any
) -> tuple[Experience, dict[str, Any]]:
    """Takes `steps` steps with every copy and remembers them; also gives "return" and "length" of ended episodes.

    Of a host it is the batch that has them, `rl.Played`.
    """
    if isinstance(environment, rl.HostFacts):
        return listened(memory, experience, batch)

    def one(experience: Experience, key: jax.Array) -> tuple[Experience, rl.Finished]:
        of_action, of_world = jax.random.split(key)
        action = act(experience.actors.observation, experience.environment_steps, of_action)
        actors, seen, finished = rl.act(environment, experience.actors, action, of_world)
        experience = remember(memory, experience, seen, actors.observation)
        return experience._replace(actors=actors), finished

    experience, finished = jax.lax.scan(one, experience, jax.random.split(key, steps))
    return experience, rl.ended(finished)


def listened(memory: Memory, experience: Experience, batch: rl.Played) -> tuple[Experience, dict[str, Any]]:
    """Remembers what was played on the host; see `play`."""

    def one(experience: Experience, step: tuple[rl.Transition, jax.Array, jax.Array]) -> tuple[Experience, None]:
        seen, observation, begun = step
        kept = replay.begun(experience.replay, replay.newest(seen.observation, memory.stack), begun)
        return remember(memory, experience._replace(replay=kept), seen, observation), None

    experience, _ = jax.lax.scan(one, experience, (batch.seen, batch.observation, batch.begun))
    return experience, rl.ended(batch.finished)


def learned(
    environment: rl.World, start: int, learn: Callable[[Any], tuple[Any, dict[str, Any]]], state: Any
) -> tuple[Any, dict[str, Any]]:
    """Returns `learn(state)`; of a host only once there are `start` transitions, until when its metrics are absent."""
    if isinstance(environment, rl.Environment):
        return learn(state)
    ready = state.experience.environment_steps >= start
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(learn, state)[1])
    # A branch, which runs one side only: environments on the host are not under `vmap`.
    state, metrics = jax.lax.cond(ready, learn, lambda state: (state, nothing), state)
    count = ready.astype(jnp.float32)
    return state, {name: Average(value * count, count) for name, value in metrics.items()}


def remember(memory: Memory, experience: Experience, seen: rl.Transition, observation: jax.Array) -> Experience:
    """Returns the experience with one step of all copies more, which now see `observation` `[N, ...]`."""
    now = replay.newest(observation, memory.stack)
    seen = seen._replace(next_observation=replay.newest(seen.next_observation, memory.stack))
    experience = experience._replace(
        replay=replay.add(experience.replay, seen, now, memory.stack),
        environment_steps=experience.environment_steps + len(observation),
    )
    return _with_newest(memory, experience) if memory.prioritized else experience


def draw(memory: Memory, experience: Experience, key: jax.Array, batch_size: int, discount: Any) -> Drawn:
    """Returns transitions of `memory.steps` steps, in proportion to their priorities if they have some."""
    kept = experience.replay
    if not memory.prioritized:
        drawn = replay.sample(kept, key, batch_size, discount, memory.steps, memory.stack)
        return Drawn(drawn, jnp.ones(batch_size), jnp.zeros(batch_size, jnp.int32))
    copies = kept.rows.shape[1]
    places = priorities.draw(experience.tree, key, batch_size)
    row = _number(kept, places // copies)
    drawn = replay.at(kept, row, places % copies, discount, memory.steps, memory.stack)
    chances = priorities.probabilities(experience.tree, places)
    count = replay.num_transitions(kept, memory.steps).astype(jnp.float32)
    risen = jnp.minimum(experience.environment_steps / memory.correction_steps, 1.0)
    correction = memory.correction + (1 - memory.correction) * risen
    weights = jnp.power(jnp.maximum(chances * count, 1e-8), -correction)
    return Drawn(drawn, weights * jnp.reciprocal(weights.max()), places)


def surprised(memory: Memory, experience: Experience, places: jax.Array, surprise: jax.Array) -> Experience:
    """Returns the experience whose places int `[B]` have priorities by how much they surprised, `[B]`.

    What is below 0, as a divergence may be by rounding, counts as 0.
    """
    if not memory.prioritized:
        return experience
    fresh = (jnp.maximum(surprise, 0.0) + 1e-6) ** memory.exponent
    tree = priorities.changed(experience.tree, places, fresh)
    return experience._replace(tree=tree, highest=jnp.maximum(experience.highest, fresh.max()))


def evaluated(
    environment: rl.World,
    act: Callable[[jax.Array, jax.Array], jax.Array],
    batch: Any,
    key: jax.Array,
    episodes: int,
    most_steps: int,
) -> dict[str, jax.Array]:
    """Plays episodes by `(observation [N, ...], key) -> action [N, ...]`; see `rl.evaluated`.

    Of a host it is the batch that has what was found.
    """
    if isinstance(environment, rl.HostFacts):
        return batch
    return rl.evaluated(environment, lambda *seen: (act(*seen), {}), key, episodes, most_steps)


def twin_loss(values: jax.Array, target: jax.Array, weights: jax.Array, model_state: Any) -> Any:
    """Returns what a `gradients.Loss` does, for opinions `[B, 2]` that are to meet targets `[B]`, weighted `[B]`."""
    errors = values - target[:, None]
    loss = 0.5 * (weights[:, None] * jnp.square(errors)).sum(axis=-1).mean()
    return loss, (model_state, {"loss": loss, "value": values.mean(), "surprise": jnp.abs(errors).mean(axis=-1)})


def in_units(environment: rl.World) -> rl.World:
    """Returns the environment whose actions are numbers from -1 to 1; of a host see `units_of`."""
    if isinstance(environment, rl.Environment):
        return wrappers.unit_actions(environment)
    ones = np.ones(environment.actions.shape, np.float32)  # type: ignore[union-attr]  # see `check_bounded`
    return dataclasses.replace(environment, actions=rl.Box(-ones, ones))


def units_of(environment: rl.World, batch: Any) -> Any:
    """Returns what was played on a host with actions as numbers from -1 to 1; elsewhere the batch as it is."""
    if isinstance(environment, rl.Environment):
        return batch
    action = jax.vmap(lambda action: wrappers.to_unit(environment.actions, action))(batch.seen.action)
    return batch._replace(seen=batch.seen._replace(action=action))


def check_bounded(learner: str, environment: rl.World) -> None:
    """Checks that actions are numbers between finite bounds.

    Raises:
      ConfigError: they are not.
    """
    actions = environment.actions
    if isinstance(actions, rl.Discrete):
        raise ConfigError(f"{learner}: {environment.name} has {actions.num} discrete actions; take dqn or ppo")
    if not np.isfinite([actions.low, actions.high]).all():
        raise ConfigError(
            f"{learner}: actions of {environment.name} have no bounds (from {actions.low} to {actions.high}), which "
            "it needs; take ppo, or give the environment finite ones"
        )


def check(
    environment: rl.World, memory: Memory, num_envs: int, rollout_steps: int, start: int, batch_size: int, **counts: int
) -> None:
    """Checks what a learner from memory is told; all of `counts`, by name, must be 1 or more.

    Raises:
      ConfigError: the environment is none, or a number does not fit the others, or the host's.
    """
    rl.check_world(environment, num_envs, rollout_steps)
    check_counts(**counts, **{"batch_size": batch_size, "memory.steps": memory.steps})
    least = max(batch_size, memory.steps * num_envs)
    if memory.capacity < least:
        raise ConfigError(
            f"memory: capacity {memory.capacity} is smaller than a batch of {batch_size}"
            if memory.capacity < batch_size
            else f"memory: capacity {memory.capacity} must hold {memory.steps} steps of {num_envs} copies"
        )
    if start < least:
        raise ConfigError(f"start: {start} transitions must be {least} or more, so that there is a batch of them")
    if isinstance(environment, rl.Environment) and start % num_envs:
        more = -(-start // num_envs) * num_envs
        raise ConfigError(f"start: {start} transitions are no whole steps of {num_envs} copies; {more} are")


def _number(kept: Replay, place: jax.Array) -> jax.Array:
    """Returns the number of the newest row at a place; below 0 where there is none yet."""
    newest = kept.num_rows - 1
    return newest - (newest - place) % len(kept.rows)


def _with_newest(memory: Memory, experience: Experience) -> Experience:
    """Returns the experience whose tree can draw the row that now has n steps, and none that is gone.

    A step of all copies changes these rows at most: the one that now has n steps, the newest, which has none yet and
    lies where an old one did, and three whose frames were overwritten before they were (by a step's frames, by new
    episodes' first ones, and by those of a host that began anew), with as many as are stacked on one frame of theirs.
    Some may lie at one place, so each place's priorities follow from what lies there, not from why it is looked at.
    """
    kept, tree = experience.replay, experience.tree
    rows, copies = kept.rows.shape[:2]
    newest, begun = kept.num_rows - 1, kept.num_rows - memory.steps
    place = jnp.stack([begun, newest, *(kept.oldest - ago for ago in range(1, 3 + memory.stack.count))]) % rows
    number = _number(kept, place)[:, None]
    places = place[:, None] * copies + jnp.arange(copies)[None, :]
    worth = jnp.where(number == begun, experience.highest, tree[places + len(tree) // 2])
    worth = jnp.where((number < kept.oldest) | (number > begun), 0.0, worth)
    return experience._replace(tree=priorities.changed(tree, places.ravel(), worth.ravel()))
