"""Proximal policy optimisation (Schulman et al., 2017).

An update plays `rollout_steps` steps in `num_envs` copies of the environment, then works through what was seen
`epochs` times, in `minibatches` parts. The copies, in the midst of their episodes, are part of the state. Where the
environment is on the host, its steps come as the batch, played by the same policy.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from foldax import rl
from foldax.errors import check_counts
from foldax.learner import Acts, Learner
from foldax.learners import gradients
from foldax.learners.rl import on_policy
from foldax.learners.rl.distributions import policy
from foldax.learners.rl.on_policy import AgentState


class Surrogate(NamedTuple):
    """What is descended, in the words of the paper; all floats may be traced.

    Attributes:
      clip: how far a step may change an action's probability, as a share, to any gain.
      value_clip: how far it may change a value, to any gain; None: as far as it likes.
      entropy_weight: of the policy's entropy, which is ascended.
      value_weight: of half the squared error of the values.
      standardize: whether advantages of a minibatch are centred, and divided by their deviation.
    """

    clip: Any = 0.2
    value_clip: Any = 0.2
    entropy_weight: Any = 0.01
    value_weight: Any = 0.5
    standardize: bool = True


def ppo(
    environment: rl.World,
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 4,
    rollout_steps: int = 128,
    epochs: int = 4,
    minibatches: int = 4,
    discount: Any = 0.99,
    trace_decay: Any = 0.95,
    surrogate: Surrogate = Surrogate(),
    scale_observations: bool = False,
    scale_rewards: bool = False,
    evaluation_episodes: int = 16,
    evaluation_steps: int = 1000,
    greedy_evaluation: bool = True,
) -> Learner:
    """Returns a learner of a policy, for choices and for numbers.

    `update` reports "loss", "policy_loss", "value_loss", "entropy", "clipped" (share of actions), "divergence" (from
    the policy that played, estimated in nats), "gradient_norm" and, of episodes that ended, "return" and "length".
    `evaluate` plays `evaluation_episodes` and reports "return", "length" and "finished" of each: 0 if it was left off
    after `evaluation_steps`. `predict` gives the likeliest actions of observations `[B, ...]`, and draws those of
    `rl.Explore`.

    Args:
      environment: where; or the facts of one on the host, so that a batch is `rl.Played`.
      model: `(observations [B, ...]) -> models.Opinion`, such as `models.ActorCritic`.
      optimizer: of optax; takes `epochs * minibatches` steps an update; its rates may be traced.
      num_envs: copies of the environment.
      rollout_steps: that each takes in an update.
      epochs: how often an update's steps are worked through.
      minibatches: parts of them, which must divide their number.
      discount: of a reward one step later; may be traced.
      trace_decay: lambda of the advantages' estimates (GAE); may be traced.
      surrogate: the loss.
      scale_observations: whether the network sees them in deviations from the mean of all that were seen before.
      scale_rewards: whether it learns from rewards over the deviation of the discounted return so far.
      evaluation_episodes: played at once.
      evaluation_steps: most of each.
      greedy_evaluation: whether they are played by the likeliest actions, or by drawn ones; a host says it itself.

    Raises:
      ConfigError: the environment is none, a number is below 1 or not the host's, or the minibatches do not divide the
        steps.
    """
    rl.check_world(environment, num_envs, rollout_steps, greedy_evaluation)
    check_counts(epochs=epochs, minibatches=minibatches, evaluation_episodes=evaluation_episodes)
    on_policy.check_parts(minibatches, num_envs, rollout_steps)
    world, descend = on_policy.within(environment), loss(model, surrogate)

    def init(key: jax.Array, examples: Any) -> AgentState:
        scale = (scale_observations, scale_rewards)
        return on_policy.begin(world, model, optimizer, key, num_envs, examples, *scale)

    def update(state: AgentState, batch: Any, key: jax.Array) -> tuple[AgentState, dict[str, Any]]:
        of_play, of_order = jax.random.split(key)
        state, seen, ended = on_policy.experienced(world, model, state, batch, of_play, rollout_steps, discount)
        rows = on_policy.targets(model, state.network.params, seen, discount, trace_decay)
        network, metrics = on_policy.worked_through(
            state.network, descend, optimizer, rows, of_order, epochs, minibatches
        )
        return state._replace(network=network), metrics | ended

    def evaluate(state: AgentState, batch: Any, key: jax.Array) -> dict[str, Any]:
        act = functools.partial(on_policy.acting, model, state, greedy=greedy_evaluation)
        return on_policy.evaluated(world, act, batch, key, evaluation_episodes, evaluation_steps)

    predict = functools.partial(on_policy.predicted, environment.actions, model)
    return Learner(init, update, evaluate, predict, Acts(0, num_envs * rollout_steps))


def loss(model: Any, surrogate: Surrogate) -> gradients.Loss:
    """Returns the loss of rows `[B]`: "observation", "action", "log_probability" and "value" of the policy that played,
    "advantage" and "target"."""

    def total(params: Any, model_state: Any, rows: Any, key: jax.Array) -> Any:
        said = model.apply({"params": params}, rows["observation"])
        value, metrics = judge(said, rows, surrogate)
        return value, (model_state, metrics)

    return total


def judge(said: Any, rows: dict[str, jax.Array], surrogate: Surrogate) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of `models.Opinion`s `[B]` about rows `[B]`, and its parts by name."""
    chances, advantages = policy(said.policy, said.log_std), rows["advantage"]
    if surrogate.standardize:
        advantages = (advantages - advantages.mean()) * jnp.reciprocal(advantages.std() + 1e-8)
    change = chances.log_probability(rows["action"]) - rows["log_probability"]
    ratio = jnp.exp(change)
    bounded = jnp.clip(ratio, 1 - surrogate.clip, 1 + surrogate.clip)
    policy_loss = -jnp.minimum(ratio * advantages, bounded * advantages).mean()
    errors = jnp.square(said.value - rows["target"])
    if surrogate.value_clip is not None:
        near = rows["value"] + jnp.clip(said.value - rows["value"], -surrogate.value_clip, surrogate.value_clip)
        errors = jnp.maximum(errors, jnp.square(near - rows["target"]))
    value_loss, entropy = 0.5 * errors.mean(), chances.entropy().mean()
    value = policy_loss + surrogate.value_weight * value_loss - surrogate.entropy_weight * entropy
    metrics = {"loss": value, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    metrics |= {"clipped": (jnp.abs(ratio - 1) > surrogate.clip).mean(), "divergence": (ratio - 1 - change).mean()}
    return value, metrics
