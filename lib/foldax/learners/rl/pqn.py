"""Parallelised Q-learning (PQN: Gallici et al., 2024): no memory of old steps, and no target network.

An update plays `rollout_steps` steps in `num_envs` copies of the environment, mostly the best actions; of what was seen
it makes lambda-returns, which it works through `epochs` times, in `minibatches` parts. What keeps this from diverging
are many copies and a network with layer normalisation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from foldax import rl
from foldax.errors import ConfigError, check_counts
from foldax.learner import Acts, Learner
from foldax.learners import gradients
from foldax.learners.gradients import TrainState
from foldax.learners.rl import on_policy
from foldax.learners.rl.distributions import epsilon_greedy, exploration


class PQNState(NamedTuple):
    """The network and the world.

    Attributes:
      network: what learns.
      actors: copies of the environment; None where they are on the host.
      environment_steps: int32 [], of all copies.
    """

    network: TrainState
    actors: Any
    environment_steps: jax.Array


def pqn(
    environment: rl.World,
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 128,
    rollout_steps: int = 32,
    epochs: int = 2,
    minibatches: int = 32,
    discount: Any = 0.99,
    trace_decay: Any = 0.65,
    epsilon: Any = 0.05,
    epsilon_steps: Any = 1_000_000.0,
    evaluation_episodes: int = 16,
    evaluation_steps: int = 1000,
) -> Learner:
    """Returns a learner of what actions are worth.

    `update` reports "loss", "value" (mean of the chosen actions'), "epsilon", "gradient_norm" and, of the episodes that
    ended, "return" and "length". `evaluate` plays `evaluation_episodes` greedily and reports "return", "length" and
    "finished" of each: 0 if it was left off after `evaluation_steps`. `predict` gives the best actions of observations
    `[B, ...]`, and explores those of `rl.Explore`.

    Args:
      environment: where; or the facts of one on the host, so that a batch is `rl.Played`. Its actions are discrete.
      model: observations `[B, ...]` to `[B, A, 1]`, such as `models.QNetwork(..., normalization="layer")`.
      optimizer: of optax (the paper takes RAdam); takes `epochs * minibatches` steps an update; rates may be traced.
      num_envs: copies of the environment.
      rollout_steps: that each takes in an update.
      epochs: how often an update's steps are worked through.
      minibatches: parts of them, which must divide their number.
      discount: of a reward one step later; may be traced.
      trace_decay: lambda of the returns; 0 is one step, 1 all that follow; may be traced.
      epsilon: probability of a random action in the end; may be traced.
      epsilon_steps: of the environment, in which it falls from 1 in a straight line; may be traced.
      evaluation_episodes: played at once.
      evaluation_steps: most of each.

    Raises:
      ConfigError: the environment is none, actions are no choices, a number is below 1 or not the host's, or the
        minibatches do not divide the steps.
    """
    rl.check_world(environment, num_envs, rollout_steps)
    check_counts(epochs=epochs, minibatches=minibatches, evaluation_episodes=evaluation_episodes)
    on_policy.check_parts(minibatches, num_envs, rollout_steps)
    if not isinstance(environment.actions, rl.Discrete):
        raise ConfigError(f"pqn: actions of {environment.name} are numbers, not choices; take ppo, sac or td3")
    descend = loss(model)

    def policy_of(state: PQNState, chance: Any) -> rl.Policy:
        def act(observation: jax.Array, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return epsilon_greedy(worth(model, state.network.params, observation), chance, key), {}

        return act

    def init(key: jax.Array, examples: Any) -> PQNState:
        state = on_policy.begin(environment, model, optimizer, key, num_envs, examples)
        return PQNState(state.network, state.actors, jnp.int32(0))

    def update(state: PQNState, batch: Any, key: jax.Array) -> tuple[PQNState, dict[str, Any]]:
        of_play, of_order = jax.random.split(key)
        chance = exploration(state.environment_steps, epsilon, epsilon_steps)
        act = policy_of(state, chance)
        actors, seen, ended = on_policy.played(environment, act, state.actors, batch, of_play, rollout_steps)
        rows = targets(model, state.network.params, seen, discount, trace_decay)
        network, metrics = on_policy.worked_through(
            state.network, descend, optimizer, rows, of_order, epochs, minibatches
        )
        steps = state.environment_steps + num_envs * rollout_steps
        return PQNState(network, actors, steps), metrics | ended | {"epsilon": chance}

    def predict(state: PQNState, inputs: Any, key: jax.Array) -> jax.Array:
        if isinstance(inputs, rl.Explore):
            chance = exploration(state.environment_steps, epsilon, epsilon_steps)
            return policy_of(state, chance)(inputs.observation, key)[0]
        return worth(model, state.network.params, jnp.asarray(inputs)).argmax(axis=-1).astype(jnp.int32)

    def evaluate(state: PQNState, batch: Any, key: jax.Array) -> dict[str, Any]:
        def act(observation: jax.Array, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return predict(state, observation, key), {}

        return on_policy.evaluated(environment, act, batch, key, evaluation_episodes, evaluation_steps)

    return Learner(init, update, evaluate, predict, Acts(0, num_envs * rollout_steps))


def worth(model: Any, params: Any, observation: jax.Array) -> jax.Array:
    """Returns what the network says of all actions, `[B, A]`."""
    return model.apply({"params": params}, observation)[..., 0]


def targets(model: Any, params: Any, seen: rl.Transition, discount: Any, trace_decay: Any) -> dict[str, jax.Array]:
    """Returns what was seen `[T, N, ...]`, and lambda-returns of its actions, as rows `[T * N, ...]`."""
    nexts = jax.vmap(lambda observation: worth(model, params, observation).max(axis=-1))(seen.next_observation)
    returns = rl.lambda_returns(seen.reward, nexts, seen.terminated, seen.truncated, discount, trace_decay)
    return on_policy.in_rows({"observation": seen.observation, "action": seen.action, "target": returns})


def loss(model: Any) -> gradients.Loss:
    """Returns the loss of rows `[B]`: half the squared error of the chosen actions' values."""

    def total(params: Any, model_state: Any, rows: Any, key: jax.Array) -> Any:
        values = worth(model, params, rows["observation"])
        chosen = jnp.take_along_axis(values, rows["action"][:, None], axis=1)[:, 0]
        value = 0.5 * jnp.square(chosen - rows["target"]).mean()
        return value, (model_state, {"loss": value, "value": chosen.mean()})

    return total
