"""Proximal policy optimisation, PPO (Schulman et al., 2017).

An update collects `rollout_steps` steps in each of `num_envs` parallel environments, estimates advantages, and takes
`num_epochs * num_minibatches` gradient steps on the clipped surrogate objective.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from foldax import models, rl
from foldax.configuration import check_at_least, config
from foldax.learner import Batch, EnvironmentSteps, Key, Learner, Metrics, Model
from foldax.learners import gradients
from foldax.learners.rl import on_policy
from foldax.learners.rl.on_policy import ActorCriticLoss, AdvantageFunction, AgentState, RolloutBatch


@config
class PPOSettings(on_policy.NormalizingSettings):
    """Hyperparameters of `ppo` and `recurrent_ppo`; nest them in an experiment's config.

    Discount, coefficients of the loss, evaluation and normalisation are those of `on_policy.ActorCriticSettings` and
    `on_policy.NormalizingSettings`.

    >>> PPOSettings(num_epochs=10).clip_range
    0.2
    """

    num_epochs: int = 4
    """Passes over each rollout."""
    num_minibatches: int = 4
    """Gradient steps in each pass; must divide `num_envs * rollout_steps`."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation: 0 is the one-step TD error, 1 the Monte Carlo return."""
    clip_range: float = 0.2
    """Epsilon: the probability ratio is clipped to [1 - epsilon, 1 + epsilon]."""
    value_clip_range: float | None = 0.2
    """The value loss clips values to within this distance of the old ones; None: no clipping."""
    normalize_advantages: bool = True
    """Normalise the advantages of each minibatch to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        check_at_least(self, num_epochs=1, num_minibatches=1)


def ppo_loss(
    output: models.ActorCriticOutput, minibatch: RolloutBatch, settings: PPOSettings
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped surrogate objective plus value loss minus entropy bonus (Schulman et al., 2017, equation 9).

    Args:
      output: distribution over actions and value of each observation, `[B]`.
      minibatch: transitions `[B]`, with log-probabilities and values of the policy that acted.
      settings: clip ranges and coefficients.

    Returns:
      The scalar loss, and "loss", "policy_loss", "value_loss", "entropy", "approx_kl" and "clip_fraction"; entropy and
      approx_kl in nats.

    >>> output = models.ActorCriticOutput(models.Categorical(jnp.zeros((2, 2))), jnp.zeros(2))
    >>> log_probs = output.distribution.log_prob(jnp.array([0, 1]))
    >>> minibatch = RolloutBatch(None, jnp.array([0, 1]), log_probs, jnp.zeros(2), jnp.array([1.0, 3.0]), jnp.ones(2))
    >>> loss, metrics = ppo_loss(output, minibatch, PPOSettings(entropy_coefficient=0.0))
    >>> print(loss, metrics["value_loss"], metrics["clip_fraction"])
    0.25 0.5 0.0
    """
    advantages = minibatch.advantages
    if settings.normalize_advantages:
        # The population's standard deviation, which divides by B; CleanRL's divides by B - 1.
        # Multiplied by a reciprocal, not divided: XLA rewrites traced divisions differently in a sweep.
        advantages = (advantages - advantages.mean()) * jnp.reciprocal(advantages.std() + 1e-8)

    # Policy: E[min(r A, clip(r, 1 - eps, 1 + eps) A)]  (equation 7)
    log_ratio = output.distribution.log_prob(minibatch.actions) - minibatch.log_probs
    ratio = jnp.exp(log_ratio)
    clipped_ratio = jnp.clip(ratio, 1 - settings.clip_range, 1 + settings.clip_range)
    policy_loss = -jnp.minimum(ratio * advantages, clipped_ratio * advantages).mean()

    # Value: squared error to the value targets, clipped around the old values as in the authors' code
    value_errors = jnp.square(output.value - minibatch.value_targets)
    if settings.value_clip_range is not None:
        change = jnp.clip(output.value - minibatch.values, -settings.value_clip_range, settings.value_clip_range)
        value_errors = jnp.maximum(value_errors, jnp.square(minibatch.values + change - minibatch.value_targets))
    value_loss = 0.5 * value_errors.mean()

    # Entropy bonus
    entropy = output.distribution.entropy().mean()
    loss = policy_loss + settings.value_coefficient * value_loss - settings.entropy_coefficient * entropy
    metrics = {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    metrics["approx_kl"] = (ratio - 1 - log_ratio).mean()  # Schulman's k3 estimator, never negative
    return loss, {**metrics, "clip_fraction": (jnp.abs(ratio - 1) > settings.clip_range).mean()}


def ppo(
    environment: rl.EnvironmentLike,
    model: Model,
    optimizer: optax.GradientTransformation,
    settings: PPOSettings = PPOSettings(),
    *,
    num_envs: int = 4,
    rollout_steps: int = 128,
    loss: ActorCriticLoss = ppo_loss,
    advantages: AdvantageFunction = on_policy.gae_targets,
) -> Learner:
    """Proximal policy optimisation for discrete and continuous actions (Schulman et al., 2017).

    `update` reports the metrics of the loss, "gradient_norm", "explained_variance" (of the value targets by the values
    before the update) and "return" and "length" of episodes that ended. Metrics of the loss are means over all epochs
    and minibatches; CleanRL logs "approx_kl" of the last minibatch. `evaluate` reports "return", "length" and
    "finished" of `evaluation_episodes` episodes; finished is 0 for one that was stopped after `evaluation_steps`.
    `predict` returns the most probable actions of observations `[B, ...]`, and samples those of an
    `rl.ExplorationRequest`.

    Args:
      environment: the environment to act in, or an `rl.HostSpec` when it runs on the host, whose batches are
        `rl.HostRollout`s.
      model: observations `[B, ...]` to `models.ActorCriticOutput`, such as `models.ActorCritic`.
      optimizer: Optax optimizer; takes `num_epochs * num_minibatches` steps an update; its rates may be traced.
      settings: hyperparameters; their floats may be traced.
      num_envs: number of parallel environments.
      rollout_steps: steps of each environment in an update.
      loss: `(output, minibatch, settings) -> (loss, metrics)`; `ppo_loss`, or an own one.
      advantages: estimator, `(transitions, next_values, discount, gae_lambda) -> (advantages, value_targets)`,
        `[T, N]`; `on_policy.gae_targets`, or an own one.

    Raises:
      ConfigError: `environment` is not an environment, a number is below 1 or differs from the host's, or
        `num_minibatches` does not divide `num_envs * rollout_steps`.

    >>> learner = ppo(rl.cartpole(), models.ActorCritic(2), optax.adam(1e-3), PPOSettings(num_epochs=10))
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), None)
    >>> state, metrics = jax.eval_shape(learner.update, state, None, jax.random.key(0))
    >>> sorted(metrics)[:4]
    ['approx_kl', 'clip_fraction', 'entropy', 'explained_variance']
    """
    rl.check_environment(environment, num_envs, rollout_steps, settings.greedy_evaluation)
    rl.check_minibatches(settings.num_minibatches, num_envs, rollout_steps)
    predict = functools.partial(on_policy.predict_action, environment.action_space, model)
    # A new name: `predict` needs the true bounds, which the clipped environment no longer shows.
    clipped_environment = on_policy.for_policy(environment)
    loss_fn = on_policy.actor_critic_loss_fn(model, loss, settings)

    def init(key: Key, examples: Batch) -> AgentState:
        return on_policy.init_agent(clipped_environment, model, optimizer, key, num_envs, examples, settings)

    def update(state: AgentState, batch: Batch, key: Key) -> tuple[AgentState, Metrics]:
        # `batch`: None for an environment on the device, an `rl.HostRollout` from a host.
        rollout_key, shuffle_key = jax.random.split(key)
        # 1. Rollout: every environment takes `rollout_steps` steps with the current policy.
        state, transitions, episode_metrics = on_policy.collect_normalized_rollout(
            clipped_environment, model, rollout_steps, settings.discount, state, batch, rollout_key
        )
        # 2. Advantages: by default GAE; truncated episodes bootstrap from the value of their last observation.
        rollout = on_policy.estimate_advantages(
            model, state.network.params, transitions, advantages, settings.discount, settings.gae_lambda
        )
        # 3. Optimisation: `num_epochs` passes over shuffled minibatches.
        network, metrics = gradients.minibatch_epochs(
            state.network, loss_fn, optimizer, rollout, shuffle_key, settings.num_epochs, settings.num_minibatches
        )
        metrics["explained_variance"] = rl.explained_variance(rollout.values, rollout.value_targets)
        return state._replace(network=network), metrics | episode_metrics

    evaluate = functools.partial(on_policy.evaluate_agent, clipped_environment, model, settings)
    inputs = rl.observation_inputs(environment)
    return Learner(init, update, evaluate, predict, EnvironmentSteps(0, num_envs * rollout_steps), inputs)
