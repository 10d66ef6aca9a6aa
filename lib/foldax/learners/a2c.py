"""Advantage actor-critic (Mnih et al., 2016), with all actors in step.

An update plays `rollout_steps` steps in `num_envs` copies of the environment, and takes one step up the policy gradient
with advantages over what was expected: discounted rewards up to the last of the steps, then its value.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from foldax import rl
from foldax.errors import check_counts
from foldax.learner import Learner
from foldax.learners import gradients, on_policy
from foldax.learners.on_policy import AgentState


def a2c(
    environment: rl.Environment | None,
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 16,
    rollout_steps: int = 5,
    discount: Any = 0.99,
    trace_decay: Any = 1.0,
    entropy_weight: Any = 0.01,
    value_weight: Any = 0.5,
    evaluation_episodes: int = 16,
    evaluation_steps: int = 1000,
) -> Learner:
    """Returns a learner of a policy, for choices and for numbers.

    `update` reports "loss", "policy_loss", "value_loss", "entropy", "gradient_norm" and, of episodes that ended,
    "return" and "length". `evaluate` plays `evaluation_episodes` greedily and reports "return" and "length" of each;
    those that take longer than `evaluation_steps` are left off there. `predict` gives the likeliest actions of
    observations `[B, ...]`, and draws those of `rl.Explore`.

    Args:
      environment: where; None: on the host, so that a batch is `rl.Played`, and evaluation's is finished episodes.
      model: `(observations [B, ...]) -> models.Opinion`, such as `models.ActorCritic`.
      optimizer: of optax (the paper takes RMSProp); its rates may be traced.
      num_envs: copies of the environment.
      rollout_steps: that each takes in an update.
      discount: of a reward one step later; may be traced.
      trace_decay: lambda of the advantages' estimates (GAE); 1 is the paper's; may be traced.
      entropy_weight: of the policy's entropy, which is ascended; may be traced.
      value_weight: of half the squared error of the values; may be traced.
      evaluation_episodes: played at once.
      evaluation_steps: most of each.

    Raises:
      ConfigError: a number is below 1.
    """
    check_counts(num_envs=num_envs, rollout_steps=rollout_steps, evaluation_episodes=evaluation_episodes)
    descend = on_policy.policy_gradient(model, entropy_weight, value_weight)

    def policy_of(state: AgentState, greedy: bool = False) -> rl.Policy:
        return lambda observation, key: on_policy.acting(model, state.network.params, observation, key, greedy)

    def init(key: jax.Array, examples: Any) -> AgentState:
        return on_policy.begin(environment, model, optimizer, key, num_envs, examples)[0]

    def update(state: AgentState, batch: Any, key: jax.Array) -> tuple[AgentState, dict[str, Any]]:
        params = state.network.params
        actors, seen, ended = on_policy.played(environment, policy_of(state), state.actors, batch, key, rollout_steps)
        if environment is None:
            seen = on_policy.judged(model, params, seen)
        rows = on_policy.targets(model, params, seen, discount, trace_decay)
        network, metrics = gradients.step(state.network, descend, optimizer, rows, key)
        return AgentState(network, actors), metrics | ended

    def evaluate(state: AgentState, batch: Any, key: jax.Array) -> dict[str, Any]:
        act = policy_of(state, greedy=True)
        return on_policy.evaluated(environment, act, batch, key, evaluation_episodes, evaluation_steps)

    def predict(state: AgentState, inputs: Any, key: jax.Array) -> jax.Array:
        if isinstance(inputs, rl.Explore):
            return policy_of(state)(inputs.observation, key)[0]
        return policy_of(state, greedy=True)(jnp.asarray(inputs), key)[0]

    return Learner(init, update, evaluate, predict)
