"""REINFORCE with a learned baseline (Williams, 1992).

An update plays one whole episode in each of `num_envs` copies of the environment, and takes one step up the policy
gradient, each action weighted by the return that followed it, less what was expected. Episodes are whole so that the
returns are what was got, not what a critic believes: the baseline then changes the gradient's variance alone, which is
what tells REINFORCE from an actor-critic. Only where an episode is cut off does the value of its last observation stand
for what would have followed.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from foldax import rl
from foldax.errors import check_counts
from foldax.learner import Acts, Average, Learner
from foldax.learners import gradients
from foldax.learners.rl import on_policy
from foldax.learners.rl.on_policy import AgentState


def reinforce(
    environment: rl.Environment,
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 8,
    episode_steps: int = 500,
    discount: Any = 0.99,
    entropy_weight: Any = 0.0,
    value_weight: Any = 0.5,
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
      environment: where.
      model: `(observations [B, ...]) -> models.Opinion`, such as `models.ActorCritic`.
      optimizer: of optax; its rates may be traced.
      num_envs: episodes of an update.
      episode_steps: most of each, after which it is cut off; copies whose episode was shorter act on to no effect.
      discount: of a reward one step later; may be traced.
      entropy_weight: of the policy's entropy, which is ascended; may be traced.
      value_weight: of half the squared error of the baseline; may be traced.
      evaluation_episodes: played at once.
      evaluation_steps: most of each.
      greedy_evaluation: whether they are played by the likeliest actions, or by drawn ones.

    Raises:
      ConfigError: the environment is none, or on the host, or a number is below 1.
    """
    rl.check_device("reinforce", environment)
    check_counts(num_envs=num_envs, episode_steps=episode_steps, evaluation_episodes=evaluation_episodes)
    world, descend = on_policy.within(environment), on_policy.policy_gradient(model, entropy_weight, value_weight)

    def init(key: jax.Array, examples: Any) -> AgentState:
        state = on_policy.begin(world, model, optimizer, key, 1, examples)
        return state._replace(actors=None)  # episodes are whole: no copy goes on into the next update

    def update(state: AgentState, batch: Any, key: jax.Array) -> tuple[AgentState, dict[str, Any]]:
        of_world, of_play = jax.random.split(key)
        actors, act = rl.begin(world, of_world, num_envs), functools.partial(on_policy.acting, model, state)
        _, seen, _ = rl.rollout(world, act, actors, of_play, episode_steps)
        first, ended = first_episodes(seen)
        # With lambda 1 the targets are the discounted rewards up to the episode's end.
        rows = on_policy.targets(model, state.network.params, seen, discount, 1.0)
        rows["weight"] = first.reshape(-1)
        network, metrics = gradients.step(state.network, descend, optimizer, rows, key)
        return state._replace(network=network), metrics | ended

    def evaluate(state: AgentState, batch: Any, key: jax.Array) -> dict[str, Any]:
        act = functools.partial(on_policy.acting, model, state, greedy=greedy_evaluation)
        return on_policy.evaluated(world, act, batch, key, evaluation_episodes, evaluation_steps)

    predict = functools.partial(on_policy.predicted, environment.actions, model)
    return Learner(init, update, evaluate, predict, Acts(0, num_envs * episode_steps))


def first_episodes(seen: rl.Transition) -> tuple[jax.Array, dict[str, Average]]:
    """Returns which steps `[T, N]` are of a copy's first episode, 1 or 0, and "return" and "length" of ended ones."""
    over = (seen.terminated | seen.truncated).astype(jnp.float32)
    first = (jnp.cumsum(over, axis=0) - over < 0.5).astype(jnp.float32)
    ended = over.max(axis=0)
    totals = {"return": (first * seen.reward).sum(axis=0), "length": first.sum(axis=0)}
    return first, {name: Average((total * ended).sum(), ended.sum()) for name, total in totals.items()}
