"""Advantage actor-critic, A2C: the synchronous form of A3C (Mnih et al., 2016).

An update collects `rollout_steps` steps in each of `num_envs` parallel environments and takes one gradient step on
them. Advantages are discounted rewards up to the end of the rollout, plus the value of the last observation, minus the
value of the first.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from foldax import models, rl
from foldax.configuration import config
from foldax.learner import Batch, EnvironmentSteps, Key, Learner, Metrics, Model
from foldax.learners import gradients
from foldax.learners.rl import on_policy


@config
class A2CSettings(on_policy.NormalizingSettings):
    """Hyperparameters of `a2c`; nest them in an experiment's config.

    Discount, coefficients of the loss, evaluation and normalisation are those of `on_policy.ActorCriticSettings` and
    `on_policy.NormalizingSettings`.

    >>> A2CSettings(gae_lambda=0.95).discount
    0.99
    """

    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation; 1 is the paper's n-step return."""


def policy_gradient_loss(
    output: models.ActorCriticOutput, rollout: on_policy.RolloutBatch, settings: on_policy.ActorCriticSettings
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss whose gradient is the policy gradient, plus value loss minus entropy bonus (Sutton et al., 2000).

    Args:
      output: distribution over actions and value of each observation, `[B]`.
      rollout: transitions `[B]`; where they have weights, all means are weighted.
      settings: coefficients of value loss and entropy.

    Returns:
      The scalar loss, and "loss", "policy_loss", "value_loss" and "entropy" (nats).
    """
    weights = jnp.ones_like(rollout.advantages) if rollout.weights is None else rollout.weights
    # Multiplied by a reciprocal, not divided: XLA rewrites traced divisions differently in a sweep.
    scale = jnp.reciprocal(jnp.maximum(weights.sum(), 1e-8))

    def mean(x: jax.Array) -> jax.Array:
        return (weights * x).sum() * scale

    # Policy: -E[A log pi(a | s)]
    policy_loss = -mean(output.distribution.log_prob(rollout.actions) * rollout.advantages)
    # Value: squared error to the value targets
    value_loss = mean(0.5 * jnp.square(output.value - rollout.value_targets))
    # Entropy bonus
    entropy = mean(output.distribution.entropy())
    loss = policy_loss + settings.value_coefficient * value_loss - settings.entropy_coefficient * entropy
    return loss, {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}


def a2c(
    environment: rl.EnvironmentLike,
    model: Model,
    optimizer: optax.GradientTransformation,
    settings: A2CSettings = A2CSettings(),
    *,
    num_envs: int = 16,
    rollout_steps: int = 5,
    loss: on_policy.ActorCriticLoss = policy_gradient_loss,
    advantages: on_policy.AdvantageFunction = on_policy.gae_targets,
) -> Learner:
    """Advantage actor-critic for discrete and continuous actions (Mnih et al., 2016).

    `update` reports the metrics of the loss, "gradient_norm", and "return" and "length" of episodes that ended.
    `evaluate` and `predict` are those of `ppo`.

    Args:
      environment: the environment to act in, or an `rl.HostSpec` when it runs on the host, whose batches are
        `rl.HostRollout`s.
      model: observations `[B, ...]` to `models.ActorCriticOutput`, such as `models.ActorCritic`.
      optimizer: Optax optimizer (RMSProp in the paper), one step an update; its rates may be traced.
      settings: hyperparameters; their floats may be traced.
      num_envs: number of parallel environments.
      rollout_steps: steps of each environment in an update.
      loss: `(output, rollout, settings) -> (loss, metrics)`; `policy_gradient_loss`, or an own one.
      advantages: estimator, as in `ppo`.

    Raises:
      ConfigError: `environment` is not an environment, or a number is below 1 or differs from the host's.

    >>> from foldax import models
    >>> learner = a2c(rl.cartpole(), models.ActorCritic(2), optax.rmsprop(7e-4), num_envs=8)
    >>> learner.environment_steps.per_update
    40
    """
    rl.check_environment(environment, num_envs, rollout_steps, settings.greedy_evaluation)
    predict = functools.partial(on_policy.predict_action, environment.action_space, model)
    # A new name: `predict` needs the true bounds, which the clipped environment no longer shows.
    clipped_environment = on_policy.for_policy(environment)
    loss_fn = on_policy.actor_critic_loss_fn(model, loss, settings)

    def init(key: Key, examples: Batch) -> on_policy.AgentState:
        return on_policy.init_agent(clipped_environment, model, optimizer, key, num_envs, examples, settings)

    def update(state: on_policy.AgentState, batch: Batch, key: Key) -> tuple[on_policy.AgentState, Metrics]:
        # 1. Rollout with the current policy; `batch` holds that of a host, and is None on the device.
        state, transitions, episode_metrics = on_policy.collect_normalized_rollout(
            clipped_environment, model, rollout_steps, settings.discount, state, batch, key
        )
        # 2. Advantages
        rollout = on_policy.estimate_advantages(
            model, state.network.params, transitions, advantages, settings.discount, settings.gae_lambda
        )
        # 3. One gradient step on the whole rollout
        network, metrics = gradients.gradient_step(state.network, loss_fn, optimizer, rollout, key)
        return state._replace(network=network), metrics | episode_metrics

    evaluate = functools.partial(on_policy.evaluate_agent, clipped_environment, model, settings)
    inputs = rl.observation_inputs(environment)
    return Learner(init, update, evaluate, predict, EnvironmentSteps(0, num_envs * rollout_steps), inputs)
