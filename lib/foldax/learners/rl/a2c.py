"""Advantage actor-critic (Mnih et al., 2016), with all actors in step.

An update plays `rollout_steps` steps in `num_envs` copies of the environment, and takes one step up the policy gradient
with advantages over what was expected: discounted rewards up to the last of the steps, then its value.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import optax

from foldax import rl
from foldax.errors import check_counts
from foldax.learner import Acts, Learner
from foldax.learners import gradients
from foldax.learners.rl import on_policy
from foldax.learners.rl.on_policy import AgentState


def a2c(
    environment: rl.World,
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 16,
    rollout_steps: int = 5,
    discount: Any = 0.99,
    trace_decay: Any = 1.0,
    entropy_weight: Any = 0.01,
    value_weight: Any = 0.5,
    scale_observations: bool = False,
    scale_rewards: bool = False,
    evaluation_episodes: int = 16,
    evaluation_steps: int = 1000,
    greedy_evaluation: bool = True,
) -> Learner:
    """Returns a learner of a policy, for choices and for numbers.

    `update` reports "loss", "policy_loss", "value_loss", "entropy", "gradient_norm" and, of episodes that ended,
    "return" and "length". `evaluate` plays `evaluation_episodes` and reports "return", "length" and "finished" of each:
    0 if it was left off after `evaluation_steps`. `predict` gives the likeliest actions of observations `[B, ...]`, and
    draws those of `rl.Explore`.

    Args:
      environment: where; or the facts of one on the host, so that a batch is `rl.Played`.
      model: `(observations [B, ...]) -> models.Opinion`, such as `models.ActorCritic`.
      optimizer: of optax (the paper takes RMSProp); its rates may be traced.
      num_envs: copies of the environment.
      rollout_steps: that each takes in an update.
      discount: of a reward one step later; may be traced.
      trace_decay: lambda of the advantages' estimates (GAE); 1 is the paper's; may be traced.
      entropy_weight: of the policy's entropy, which is ascended; may be traced.
      value_weight: of half the squared error of the values; may be traced.
      scale_observations: whether the network sees them in deviations from the mean of all that were seen before.
      scale_rewards: whether it learns from rewards over the deviation of the discounted return so far.
      evaluation_episodes: played at once.
      evaluation_steps: most of each.
      greedy_evaluation: whether they are played by the likeliest actions, or by drawn ones; a host says it itself.

    Raises:
      ConfigError: the environment is none, or a number is below 1 or not the host's.
    """
    rl.check_world(environment, num_envs, rollout_steps, greedy_evaluation)
    check_counts(evaluation_episodes=evaluation_episodes)
    world, descend = on_policy.within(environment), on_policy.policy_gradient(model, entropy_weight, value_weight)

    def init(key: jax.Array, examples: Any) -> AgentState:
        scale = (scale_observations, scale_rewards)
        return on_policy.begin(world, model, optimizer, key, num_envs, examples, *scale)

    def update(state: AgentState, batch: Any, key: jax.Array) -> tuple[AgentState, dict[str, Any]]:
        state, seen, ended = on_policy.experienced(world, model, state, batch, key, rollout_steps, discount)
        rows = on_policy.targets(model, state.network.params, seen, discount, trace_decay)
        network, metrics = gradients.step(state.network, descend, optimizer, rows, key)
        return state._replace(network=network), metrics | ended

    def evaluate(state: AgentState, batch: Any, key: jax.Array) -> dict[str, Any]:
        act = functools.partial(on_policy.acting, model, state, greedy=greedy_evaluation)
        return on_policy.evaluated(world, act, batch, key, evaluation_episodes, evaluation_steps)

    predict = functools.partial(on_policy.predicted, environment.actions, model)
    return Learner(init, update, evaluate, predict, Acts(0, num_envs * rollout_steps))
