"""Learning from what was just done, which is then forgotten: what policy gradients and PQN do alike.

They act in copies of an environment, learn from these steps, and act anew. The copies, in the midst of their episodes,
are part of the state. Where the environment is on the host, its steps come as the batch.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from foldax import rl
from foldax.errors import ConfigError
from foldax.learner import Average
from foldax.learners import gradients
from foldax.learners.gradients import TrainState
from foldax.learners.rl.distributions import policy
from foldax.learners.rl.normalization import begun, no_scales, observed, scaled


class AgentState(NamedTuple):
    """The network and the world.

    Attributes:
      network: what learns.
      actors: copies of the environment; None where they are on the host, or begin anew with each update.
      scales: of observations and rewards, see `scales`; None in `recurrent_ppo`, which has none.
    """

    network: TrainState
    actors: Any
    scales: Any = None


def begin(
    environment: rl.World,
    model: Any,
    optimizer: Any,
    key: jax.Array,
    num_envs: int,
    examples: Any,
    scale_observations: bool = False,
    scale_rewards: bool = False,
) -> AgentState:
    """Returns the state before the first step; of a host, whose copies see `examples` `[N, ...]`."""
    of_network, of_world = jax.random.split(key)
    actors = rl.begin(environment, of_world, num_envs) if isinstance(environment, rl.Environment) else None
    observation = examples if actors is None else actors.observation
    params = model.init({"params": of_network}, observation[:1])["params"]
    scales = no_scales(observation, scale_observations, scale_rewards)
    return AgentState(gradients.create(params, optimizer), actors, scales)


def within(environment: rl.World) -> Any:
    """Returns the environment that brings actions within its bounds, as a host does: a policy may say any number."""
    if isinstance(environment, rl.Environment) and isinstance(environment.actions, rl.Box):
        return rl.wrappers.clip_actions(environment)
    return environment


def acting(
    model: Any, state: AgentState, observation: jax.Array, key: jax.Array, greedy: bool = False
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns actions for observations `[N, ...]`, drawn or the likeliest, and what the network says of them."""
    said = model.apply({"params": state.network.params}, observed(state.scales, observation))
    chances = policy(said.policy, said.log_std)
    action = chances.mode() if greedy else chances.sample(key)
    return action, {"log_probability": chances.log_probability(action), "value": said.value}


def predicted(space: rl.Discrete | rl.Box, model: Any, state: AgentState, inputs: Any, key: jax.Array) -> jax.Array:
    """Returns the likeliest actions of observations `[B, ...]` within their bounds, and drawn ones of `rl.Explore`.

    The latter are what is learned from, and so as the policy says them; the host brings them within bounds.
    """
    if isinstance(inputs, rl.Explore):
        return acting(model, state, inputs.observation, key)[0]
    return bounded(space, acting(model, state, jnp.asarray(inputs), key, greedy=True)[0])


def bounded(space: rl.Discrete | rl.Box, actions: jax.Array) -> jax.Array:
    """Returns actions `[..., A]` within their bounds, if they are numbers."""
    if isinstance(space, rl.Discrete):
        return actions
    return jnp.clip(actions, *(np.broadcast_to(bound, actions.shape) for bound in space))


def played(
    environment: rl.World, act: rl.Policy, actors: Any, batch: Any, key: jax.Array, steps: int
) -> tuple[Any, rl.Transition, dict[str, Average]]:
    """Returns the copies after `steps` steps, these `[T, N, ...]`, and "return" and "length" of ended episodes.

    Of a host it is the batch that has them, `rl.Played`.
    """
    if isinstance(environment, rl.Environment):
        actors, seen, finished = rl.rollout(environment, act, actors, key, steps)
    else:
        actors, seen, finished = None, batch.seen, batch.finished
    return actors, seen, rl.ended(finished)


def experienced(
    environment: rl.World, model: Any, state: AgentState, batch: Any, key: jax.Array, steps: int, discount: Any
) -> tuple[AgentState, rl.Transition, dict[str, Average]]:
    """Returns the state after `steps` steps, these `[T, N, ...]` in scale and `judged`, and what `played` reports."""
    act = functools.partial(acting, model, state)
    actors, seen, ended = played(environment, act, state.actors, batch, key, steps)
    on_host = isinstance(environment, rl.HostFacts)
    before = begun(state.scales, batch.begun[0]) if on_host else state.scales
    scales, seen = scaled(before, seen, discount)
    if on_host:
        seen = judged(model, state.network.params, seen)
    return AgentState(state.network, actors, scales), seen, ended


def judged(model: Any, params: Any, seen: rl.Transition) -> rl.Transition:
    """Adds to actions `[T, N, ...]` what the network says of them; it must be the one that took them."""

    def one(observation: jax.Array, action: jax.Array) -> dict[str, jax.Array]:
        said = model.apply({"params": params}, observation)
        return {"log_probability": policy(said.policy, said.log_std).log_probability(action), "value": said.value}

    return seen._replace(extras=jax.vmap(one)(seen.observation, seen.action))


def targets(model: Any, params: Any, seen: rl.Transition, discount: Any, trace_decay: Any) -> dict[str, jax.Array]:
    """Returns what was seen and `judged`, with advantages and the values' targets, as rows `[T * N, ...]`."""
    # Values of what came next are asked for anew: at an episode's end it is not the next row's observation.
    nexts = jax.vmap(lambda observation: model.apply({"params": params}, observation).value)
    rows = advantages(seen, nexts(seen.next_observation), discount, trace_decay)
    return in_rows({"observation": seen.observation, "action": seen.action, **rows})


def advantages(seen: rl.Transition, next_values: jax.Array, discount: Any, trace_decay: Any) -> dict[str, jax.Array]:
    """Returns "log_probability" and "value" of what was seen, its "advantage" (GAE), and the "target" of its value."""
    values, ends = seen.extras["value"], (seen.terminated, seen.truncated)
    better = rl.generalized_advantages(seen.reward, values, next_values, *ends, discount, trace_decay)
    return {**seen.extras, "advantage": better, "target": better + values}


def in_rows(tree: Any) -> Any:
    """Returns `[T, N, ...]` as `[T * N, ...]`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def policy_gradient(model: Any, entropy_weight: Any, value_weight: Any) -> gradients.Loss:
    """Returns the loss whose gradient is the policy gradient (Sutton et al., 2000), with that of the values.

    Its rows `[B]` are "observation", "action", "advantage", "target" and, where not all of them count, "weight" >= 0.
    """

    def total(params: Any, model_state: Any, rows: Any, key: jax.Array) -> Any:
        said = model.apply({"params": params}, rows["observation"])
        chances = policy(said.policy, said.log_std)
        weights = rows.get("weight", jnp.ones_like(rows["advantage"]))
        scale = jnp.reciprocal(jnp.maximum(weights.sum(), 1e-8))

        def mean(x: jax.Array) -> jax.Array:
            return (weights * x).sum() * scale

        policy_loss = -mean(chances.log_probability(rows["action"]) * rows["advantage"])
        value_loss = mean(0.5 * jnp.square(said.value - rows["target"]))
        entropy = mean(chances.entropy())
        value = policy_loss + value_weight * value_loss - entropy_weight * entropy
        metrics = {"loss": value, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        return value, (model_state, metrics)

    return total


def worked_through(
    network: TrainState,
    loss: gradients.Loss,
    optimizer: optax.GradientTransformation,
    rows: Any,
    key: jax.Array,
    epochs: int,
    minibatches: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Descends the loss of rows `[R, ...]`, in `epochs` random orders, in parts; returns also the mean metrics."""
    count = len(jax.tree.leaves(rows)[0])

    def epoch(network: TrainState, key: jax.Array) -> tuple[TrainState, Any]:
        order = jax.random.permutation(key, count).reshape(minibatches, -1)

        def one(network: TrainState, chosen: jax.Array) -> tuple[TrainState, Any]:
            part = jax.tree.map(lambda x: x[chosen], rows)
            return gradients.step(network, loss, optimizer, part, key)

        return jax.lax.scan(one, network, order)

    network, metrics = jax.lax.scan(epoch, network, jax.random.split(key, epochs))
    return network, {name: value.mean() for name, value in metrics.items()}


def evaluated(
    environment: rl.World, act: rl.Policy, batch: Any, key: jax.Array, episodes: int, most_steps: int
) -> dict[str, Any]:
    """Returns "return", "length" and "finished" of episodes; of a host the batch, which has them."""
    if isinstance(environment, rl.Environment):
        return rl.evaluated(environment, act, key, episodes, most_steps)
    return batch


def check_parts(minibatches: int, num_envs: int, rollout_steps: int) -> None:
    """Raises a ConfigError if the minibatches do not divide an update's steps."""
    steps = num_envs * rollout_steps
    if steps % minibatches:
        raise ConfigError(f"minibatches: {minibatches} do not divide {num_envs} x {rollout_steps} = {steps} steps")
