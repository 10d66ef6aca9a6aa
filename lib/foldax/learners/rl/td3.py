"""Twin delayed deep deterministic policy gradient (TD3: Fujimoto et al., 2018).

Twin critics, target policy smoothing and delayed policy updates. An update takes `gradient_steps` gradient steps of the
critics; after every `policy_delay` of them the actor takes one and all targets follow. `off_policy` collects, stores
and samples transitions.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from foldax import rl
from foldax.configuration import check_at_least, config
from foldax.errors import ConfigError
from foldax.learner import Batch, Key, Learner, Metrics, Model, Params, State
from foldax.learners.gradients import (
    LossAndAux,
    TrainState,
    gradient_step,
    init_params,
    init_train_state,
    moving_average,
)
from foldax.learners.rl import off_policy
from foldax.rl.replay import ReplayBatch


@config
class TD3Settings(off_policy.OffPolicySettings):
    """Hyperparameters of `td3`; nest them in an experiment's config.

    Noise refers to actions scaled to [-1, 1].

    Raises:
      ConfigError: a count is below 1, or `gradient_steps` is no multiple of `policy_delay`.

    >>> TD3Settings(exploration_noise=0.2).policy_delay
    2
    """

    gradient_steps: int = 2
    """Gradient steps of the critics in an update, a multiple of `policy_delay`."""
    policy_delay: int = 2
    """Gradient steps of the critics for each of the actor, the paper's d."""
    tau: float = 0.005
    """Fraction by which target networks move towards the networks after each step of the actor, in (0, 1]."""
    exploration_noise: float = 0.1
    """Standard deviation of the Gaussian noise added to the policy's actions while training."""
    target_policy_noise: float = 0.2
    """Standard deviation of the noise that smooths the target policy."""
    target_noise_clip: float = 0.5
    """Bound of the absolute value of that noise, the paper's c."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1, gradient_steps=1, policy_delay=1, evaluation_episodes=1)
        if self.gradient_steps % self.policy_delay:
            multiple = f"a multiple of policy_delay, {self.policy_delay}"
            raise ConfigError(f"TD3Settings.gradient_steps: {self.gradient_steps} must be {multiple}")


class TD3State(NamedTuple):
    """State of `td3`.

    Attributes:
      actor: deterministic policy network and its optimizer.
      critic: twin Q-networks and their optimizer.
      target_params: parameters of the target actor and of the target critics.
      replay: environments and replay buffer.
    """

    actor: TrainState
    critic: TrainState
    target_params: tuple[Params, Params]
    replay: off_policy.ReplayState


class TD3ActorOutput(NamedTuple):
    """Network outputs that the actor's loss receives.

    Attributes:
      actions: of the policy for each observation, in [-1, 1], `[B, A]`.
      q_values: of both critics, `[B, 2]`.
    """

    actions: jax.Array
    q_values: jax.Array


ActorLoss = Callable[[TD3ActorOutput, ReplayBatch], tuple[jax.Array, off_policy.ScalarMetrics]]
"""`(output, batch) -> (loss [], metrics)`."""


def td3_actor_loss(output: TD3ActorOutput, batch: ReplayBatch) -> tuple[jax.Array, off_policy.ScalarMetrics]:
    """Deterministic policy gradient loss -E[Q_1(s, pi(s))] (Silver et al., 2014; Fujimoto et al., 2018, algorithm 1).

    Args:
      output: actions of the policy and their values.
      batch: the B transitions whose observations were used; an own loss, as of TD3+BC, may need their actions.

    Returns:
      The scalar loss, and the metric "actor_loss".

    >>> float(td3_actor_loss(TD3ActorOutput(jnp.zeros((1, 1)), jnp.array([[2.0, 3.0]])), None)[0])
    -2.0
    """
    chex.assert_rank([output.actions, output.q_values], 2)
    loss = -output.q_values[:, 0].mean()
    return loss, {"actor_loss": loss}


def td3(
    environment: rl.EnvironmentLike,
    actor: Model,
    critic: Model,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    settings: TD3Settings = TD3Settings(),
    *,
    num_envs: int = 1,
    rollout_steps: int = 2,
    learning_starts: int = 1_000,
    environment_steps: int | None = None,
    loss: off_policy.CriticLoss = off_policy.twin_q_loss,
    actor_loss: ActorLoss = td3_actor_loss,
) -> Learner:
    """Twin delayed deep deterministic policy gradient (Fujimoto et al., 2018) for bounded continuous actions.

    An update reports "loss" (critics), "q_value", "actor_loss", "gradient_norm" (critics), "replay_size" (transitions
    that can be sampled) and, over the episodes that ended, "return" and "length". `evaluate` plays episodes without
    noise and reports "return", "length" and "finished" (0 if `evaluation_steps` cut an episode short). `predict`
    returns the actions of the policy for observations `[B, ...]`, with exploration noise for an
    `rl.ExplorationRequest`.

    Args:
      environment: the environment to act in, or a `HostSpec` when it runs on the host; its actions `[A]` are bounded.
      actor: observations `[B, ...]` to actions `[B, A]` in [-1, 1], such as `models.DeterministicActor`.
      critic: observations and such actions to `[B, 2]`, such as `models.TwinCritic`.
      actor_optimizer: any Optax optimizer; its rates may be traced.
      critic_optimizer: of the critics.
      settings: hyperparameters; their floats may be traced.
      num_envs: N, the number of parallel environments.
      rollout_steps: steps of every environment in an update.
      learning_starts: transitions of random actions before the first update, at least a batch and a multiple of
        `num_envs`. On the host the first updates collect them, and `learning_starts` of the config is 0.
      environment_steps: length of the whole training; needed only to anneal the importance weights of priorities.
      loss: of the critics, `(q_values [B, 2], td_target [B], batch) -> (loss [], td_errors [B], metrics)`.
      actor_loss: `(output: TD3ActorOutput, batch: ReplayBatch) -> (loss [], metrics)`.

    Returns:
      The learner, whose state is a `TD3State`.

    Raises:
      ConfigError: `environment` is not an environment, its actions are discrete or unbounded, or numbers do not fit
        each other or the host.

    >>> from foldax import models
    >>> networks = models.DeterministicActor(1, (4,)), models.TwinCritic((4,))
    >>> learner = td3(rl.pendulum(), *networks, optax.adam(1e-3), optax.adam(1e-3),
    ...               TD3Settings(batch_size=8, replay=off_policy.ReplaySettings(capacity=100)), learning_starts=16)
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), None)
    >>> jax.eval_shape(learner.predict, state, jnp.zeros((3, 3)), jax.random.key(0)).shape
    (3, 1)
    """
    setup = off_policy.ReplaySetup(environment, settings, num_envs, rollout_steps, learning_starts, environment_steps)
    off_policy.check_settings(setup)
    action_space = rl.bounded_action_space("td3", environment)
    # The networks and the replay buffer hold actions in [-1, 1]; `predict` and evaluation use the true bounds.
    setup = setup._replace(environment=rl.wrappers.rescale_actions(environment))
    critic_loss_fn = off_policy.critic_loss_fn(critic, loss)

    def init(key: Key, examples: Batch) -> TD3State:
        actor_key, critic_key, environment_key = jax.random.split(key, 3)
        replay_state, observation = off_policy.init_replay(setup, environment_key, examples)
        example = rl.first_row(observation)
        action = jnp.zeros((1, *action_space.shape))
        critic_params = init_params(critic_key, critic, example, action)
        actor_params = init_params(actor_key, actor, example)
        rl.check_network(environment, jax.eval_shape(actor.apply, {"params": actor_params}, example))
        # The target networks start as copies; donated states must not share buffers.
        target_params = jax.tree.map(jnp.copy, (actor_params, critic_params))
        actor_state = init_train_state(actor_params, actor_optimizer)
        critic_state = init_train_state(critic_params, critic_optimizer)
        return TD3State(actor_state, critic_state, target_params, replay_state)

    def update(state: TD3State, batch: Batch, key: Key) -> tuple[TD3State, Metrics]:
        action_key, gradient_key = jax.random.split(key)
        # 1. Act: every environment takes `rollout_steps` noisy actions, which are stored.
        policy = functools.partial(explore, state.actor.params)
        rollout = off_policy.scale_rollout_actions(action_space, batch)
        replay_state, episode_metrics = off_policy.collect_transitions(setup, state.replay, policy, action_key, rollout)
        delay = settings.policy_delay
        keys = jax.random.split(gradient_key, (settings.gradient_steps // delay, delay))

        train = functools.partial(off_policy.scan_gradient_steps, delayed_steps, keys)
        state, metrics = off_policy.train_steps(setup, train, state._replace(replay=replay_state))
        return state, metrics | episode_metrics

    def delayed_steps(state: TD3State, keys: Key) -> tuple[TD3State, off_policy.ScalarMetrics]:
        # The delayed step follows an inner loop: a branch on a counter would run both sides under `vmap`.
        state, (metrics, batches) = jax.lax.scan(critic_step, state, keys)

        # 4. Actor, on the last batch, with the updated critics.
        batch = jax.tree.map(lambda x: x[-1], batches)
        inputs, key = (batch, state.critic.params), jax.random.clone(keys)[-1]
        actor_state, actor_metrics = gradient_step(state.actor, actor_loss_fn, actor_optimizer, inputs, key)
        actor_metrics.pop("gradient_norm")  # "gradient_norm" is the critics'

        # 5. Targets: exponential moving average.
        def track(network: TrainState, target_params: Params) -> Params:
            return moving_average(network.params, target_params, settings.tau, network.optimizer_state)

        target_params = track(actor_state, state.target_params[0]), track(state.critic, state.target_params[1])
        return state._replace(actor=actor_state, target_params=target_params), metrics | actor_metrics

    def critic_step(state: TD3State, key: Key) -> tuple[TD3State, tuple[off_policy.ScalarMetrics, ReplayBatch]]:
        sample_key, noise_key = jax.random.split(key)
        # 2. Sample a batch of transitions.
        batch = off_policy.sample_batch(setup, state.replay, sample_key)
        # 3. Critics: Bellman target r + gamma min_i Q_target_i(s', a') with a' = clip(pi_target(s') + clipped noise).
        target_actor_params, target_critic_params = state.target_params
        next_actions = actor.apply({"params": target_actor_params}, batch.next_observations)
        noise = settings.target_policy_noise * jax.random.normal(noise_key, next_actions.shape)
        noise = jnp.clip(noise, -settings.target_noise_clip, settings.target_noise_clip)
        next_actions = jnp.clip(next_actions + noise, -1.0, 1.0)
        next_q_values = critic.apply({"params": target_critic_params}, batch.next_observations, next_actions)
        # `batch.discounts`: gamma^n, 0 where the episode terminated; `batch.rewards`: n-step sums.
        td_target = jax.lax.stop_gradient(batch.rewards + batch.discounts * next_q_values.min(axis=-1))
        inputs = (batch, td_target)
        critic_state, metrics = gradient_step(state.critic, critic_loss_fn, critic_optimizer, inputs, noise_key)
        replay_state = off_policy.update_priorities(settings.replay, state.replay, batch, metrics.pop("td_errors"))
        return state._replace(critic=critic_state, replay=replay_state), (metrics, batch)

    def actor_loss_fn(params: Params, model_state: State, inputs: Batch, key: Key) -> LossAndAux:
        batch, critic_params = inputs
        actions = actor.apply({"params": params}, batch.observations)
        q_values = critic.apply({"params": critic_params}, batch.observations, actions)
        value, metrics = actor_loss(TD3ActorOutput(actions, q_values), batch)
        return value, (model_state, metrics)

    def explore(params: Params, observation: jax.Array, steps: jax.Array, key: Key) -> jax.Array:
        actions = actor.apply({"params": params}, observation)
        actions = jnp.clip(actions + settings.exploration_noise * jax.random.normal(key, actions.shape), -1.0, 1.0)
        return off_policy.warmup_actions(setup, steps, actions, jax.random.clone(key))

    def predict(state: TD3State, inputs: jax.Array | rl.ExplorationRequest, key: Key) -> jax.Array:
        if isinstance(inputs, rl.ExplorationRequest):
            actions = explore(state.actor.params, inputs.observation, state.replay.environment_steps, key)
        else:
            actions = actor.apply({"params": state.actor.params}, rl.as_observation(inputs))
        return rl.wrappers.from_unit_range(action_space, actions)

    def evaluate(state: TD3State, batch: Batch, key: Key) -> off_policy.ScalarMetrics:
        episodes, max_steps = settings.evaluation_episodes, settings.evaluation_steps
        policy = functools.partial(predict, state)
        return rl.evaluate_policy(environment, policy, key, episodes, max_steps, batch)

    inputs = rl.observation_inputs(environment)
    learner = Learner(init, update, evaluate, predict, off_policy.count_environment_steps(setup), inputs)
    return learner._replace(inference_state=off_policy.inference_state)
