"""REINFORCE with a learned baseline (Williams, 1992).

An update plays one whole episode in each of `num_envs` parallel environments and takes one gradient step, in which
each action is weighted by the return that followed it minus the baseline. Because the episodes are whole, the returns
are observed, not estimated by a critic: the baseline changes the variance of the gradient and not its expectation,
which distinguishes REINFORCE from an actor-critic. Only where an episode is truncated does the value of its last
observation stand for the rewards that would have followed.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from foldax import rl
from foldax.configuration import config
from foldax.errors import check_positive
from foldax.learner import Average, Batch, EnvironmentSteps, Key, Learner, Metrics, Model
from foldax.learners import gradients
from foldax.learners.rl import on_policy
from foldax.learners.rl.a2c import policy_gradient_loss


@config
class ReinforceSettings(on_policy.ActorCriticSettings):
    """Hyperparameters of `reinforce`; nest them in an experiment's config.

    Discount, coefficient of the baseline's loss and evaluation are those of `on_policy.ActorCriticSettings`.

    >>> ReinforceSettings(discount=1.0).entropy_coefficient
    0.0
    """

    entropy_coefficient: float = 0.0
    """Weight of the policy's entropy, which is maximised."""


def reinforce(
    environment: rl.Environment,
    model: Model,
    optimizer: optax.GradientTransformation,
    settings: ReinforceSettings = ReinforceSettings(),
    *,
    num_envs: int = 8,
    episode_steps: int = 500,
    advantages: on_policy.AdvantageFunction = on_policy.gae_targets,
) -> Learner:
    """REINFORCE with a learned baseline, for discrete and continuous actions (Williams, 1992).

    `update` reports "loss", "policy_loss", "value_loss", "entropy", "gradient_norm", and "return" and "length" of
    episodes that ended. `evaluate` and `predict` are those of `ppo`.

    Args:
      environment: the environment to act in, on the device.
      model: observations `[B, ...]` to `models.ActorCriticOutput`, such as `models.ActorCritic`.
      optimizer: Optax optimizer, one step an update; its rates may be traced.
      settings: hyperparameters; their floats may be traced.
      num_envs: episodes in an update, played in parallel.
      episode_steps: maximum length of an episode, after which it is truncated. All environments take so many steps;
        steps after the end of the first episode have no weight.
      advantages: estimator, as in `ppo`; called with lambda 1.

    Raises:
      ConfigError: `environment` is not an environment on the device, or a number is below 1.

    >>> from foldax import models
    >>> learner = reinforce(rl.cartpole(), models.ActorCritic(2), optax.adam(1e-3), episode_steps=100)
    >>> learner.environment_steps.per_update
    800
    """
    rl.check_device_environment("reinforce", environment)
    check_positive(num_envs=num_envs, episode_steps=episode_steps)
    predict = functools.partial(on_policy.predict_action, environment.action_space, model)
    # A new name: `predict` needs the true bounds, which the clipped environment no longer shows.
    clipped_environment = on_policy.for_policy(environment)
    loss_fn = on_policy.actor_critic_loss_fn(model, policy_gradient_loss, settings)

    def init(key: Key, examples: Batch) -> on_policy.AgentState:
        state = on_policy.init_agent(clipped_environment, model, optimizer, key, 1, examples)
        return state._replace(environment_state=None)  # every update resets the environments

    def update(state: on_policy.AgentState, batch: Batch, key: Key) -> tuple[on_policy.AgentState, Metrics]:
        reset_key, rollout_key = jax.random.split(key)
        # 1. Whole episodes with the current policy
        environment_state = rl.reset_environments(clipped_environment, reset_key, num_envs)
        policy = functools.partial(on_policy.select_action, model, state)
        _, transitions, statistics = rl.rollout(
            clipped_environment, policy, environment_state, rollout_key, episode_steps
        )
        in_first_episode, episode_metrics = first_episodes(transitions)
        episode_metrics = rl.episode_metrics(statistics) | episode_metrics
        # 2. Returns minus the baseline, which are the advantages of lambda 1
        rollout = on_policy.estimate_advantages(
            model, state.network.params, transitions, advantages, settings.discount, gae_lambda=1.0
        )
        # 3. One gradient step on the first episode of every environment
        rollout = rollout._replace(weights=in_first_episode.reshape(-1))
        network, metrics = gradients.gradient_step(state.network, loss_fn, optimizer, rollout, key)
        return state._replace(network=network), metrics | episode_metrics

    evaluate = functools.partial(on_policy.evaluate_agent, clipped_environment, model, settings)
    inputs = rl.observation_inputs(environment)
    return Learner(init, update, evaluate, predict, EnvironmentSteps(0, num_envs * episode_steps), inputs)


def first_episodes(transitions: rl.Transition) -> tuple[jax.Array, dict[str, Average]]:
    """Finds the steps of every environment's first episode in `[T, N, ...]`.

    Returns:
      A mask float `[T, N]`, 1 in the first episode and 0 after it, and "return" and "length" of those that ended.
    """
    done = (transitions.terminated | transitions.truncated).astype(jnp.float32)
    # The ends before a step are counted exclusively: the step that ends the first episode belongs to it.
    in_first_episode = (jnp.cumsum(done, axis=0) - done < 0.5).astype(jnp.float32)
    # Environments whose first episode is longer than the rollout count in no metric.
    ended = done.max(axis=0)
    totals = {"return": (in_first_episode * transitions.reward).sum(axis=0), "length": in_first_episode.sum(axis=0)}
    return in_first_episode, {name: Average((total * ended).sum(), ended.sum()) for name, total in totals.items()}
