"""Soft actor-critic (SAC): off-policy learning of a policy that maximises return and entropy (Haarnoja et al., 2018).

The version of "Soft Actor-Critic Algorithms and Applications" (arXiv:1812.05905): twin critics, and a learned
temperature with a target entropy. `off_policy` collects, stores and samples transitions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from foldax import models, rl
from foldax.configuration import check_at_least, config
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
from foldax.rl import replay
from foldax.rl.replay import ReplayBatch


@config
class SACSettings(off_policy.OffPolicySettings):
    """Hyperparameters of `sac`; nest them in an experiment's config.

    >>> SACSettings(tau=0.01).discount
    0.99
    """

    gradient_steps: int = 1
    """Gradient steps of critics, actor and temperature in an update."""
    tau: float = 0.005
    """Fraction by which target critics move towards the critics in every gradient step, in (0, 1]."""
    initial_temperature: float = 1.0
    """Weight of the entropy at the start, alpha; above 0."""
    target_entropy: float | None = None
    """Entropy in nats that the temperature is adapted to hold; None: minus the number of action dimensions."""
    learn_temperature: bool = True
    """Whether the temperature is adapted; otherwise it stays `initial_temperature`."""
    greedy_evaluation: bool = True
    """Whether evaluation takes the mode of the policy instead of samples; on a host, the host decides."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1, gradient_steps=1, evaluation_episodes=1)


class SACState(NamedTuple):
    """State of `sac`.

    Attributes:
      actor: policy network and its optimizer.
      critic: twin Q-networks and their optimizer.
      target_critic_params: parameters of the target critics.
      temperature: log alpha as float32 [], and its optimizer.
      replay: environments and replay buffer.
    """

    actor: TrainState
    critic: TrainState
    target_critic_params: Params
    temperature: TrainState
    replay: off_policy.ReplayState


class SACActorOutput(NamedTuple):
    """Network outputs that the actor's loss receives.

    Attributes:
      actions: sampled from the policy for each observation, in (-1, 1), `[B, A]`.
      log_probs: their log-densities in nats, `[B]`.
      q_values: of both critics, `[B, 2]`.
      temperature: alpha, [].
    """

    actions: jax.Array
    log_probs: jax.Array
    q_values: jax.Array
    temperature: jax.Array


ActorLoss = Callable[[SACActorOutput, ReplayBatch], tuple[jax.Array, off_policy.ScalarMetrics]]
"""`(output, batch) -> (loss [], metrics)`."""


def sac_actor_loss(output: SACActorOutput, batch: ReplayBatch) -> tuple[jax.Array, off_policy.ScalarMetrics]:
    """Policy loss E[alpha log pi(a|s) - min_i Q_i(s, a)] of reparameterised actions (arXiv:1812.05905, equation 9).

    Args:
      output: sampled actions and their values.
      batch: the B transitions whose observations were used; an own loss may need their actions.

    Returns:
      The scalar loss, and the metric "actor_loss".

    >>> output = SACActorOutput(jnp.zeros((1, 1)), jnp.array([-1.0]), jnp.array([[2.0, 3.0]]), jnp.array(0.5))
    >>> float(sac_actor_loss(output, None)[0])
    -2.5
    """
    chex.assert_rank([output.actions, output.log_probs, output.q_values], [2, 1, 2])
    loss = (output.temperature * output.log_probs - output.q_values.min(axis=-1)).mean()
    return loss, {"actor_loss": loss}


def temperature_loss(log_temperature: jax.Array, entropy: jax.Array, target_entropy: chex.Numeric) -> jax.Array:
    """Loss whose descent raises alpha while the entropy is below its target (equation 18 of arXiv:1812.05905).

    As in the authors' code it is linear in log alpha, not in alpha.

    >>> float(temperature_loss(jnp.array(2.0), entropy=jnp.array(-3.0), target_entropy=-1.0))
    -4.0
    """
    return log_temperature * (entropy - target_entropy)


def soft_rewards(
    policy: Callable[[jax.Array], models.SquashedNormal],
    temperature: jax.Array,
    batch: ReplayBatch,
    buffer: replay.ReplayBuffer,
    settings: SACSettings,
    keys: Sequence[Key],
) -> jax.Array:
    """Adds the entropy of the steps between to n-step rewards: gamma^k (-alpha log pi(a_k|s_k)) with a_k ~ pi(s_k).

    Args:
      policy: observations `[B, ...]` to the distribution over actions.
      temperature: alpha, [].
      batch: the sampled transitions, with their n-step rewards.
      buffer: where the steps between are read.
      settings: discount and frame stack.
      keys: one for each of the n - 1 steps between; without any, the rewards stay.

    Returns:
      float32 `[B]`.
    """
    rewards = batch.rewards
    for offset, key in enumerate(keys, start=1):
        start = buffer, batch.rows, batch.environments
        observations, weights = replay.observations_after(
            *start, offset, settings.discount, settings.replay.frame_stack
        )
        rewards = rewards - weights * temperature * policy(observations).sample_and_log_prob(key)[1]
    return rewards


def sac(
    environment: rl.EnvironmentLike,
    actor: Model,
    critic: Model,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    settings: SACSettings = SACSettings(),
    *,
    num_envs: int = 1,
    rollout_steps: int = 1,
    learning_starts: int = 1_000,
    environment_steps: int | None = None,
    loss: off_policy.CriticLoss = off_policy.twin_q_loss,
    actor_loss: ActorLoss = sac_actor_loss,
    temperature_optimizer: optax.GradientTransformation | None = None,
) -> Learner:
    """Soft actor-critic (Haarnoja et al., 2018) for bounded continuous actions.

    An update takes `rollout_steps` steps in every environment and `gradient_steps` gradient steps, each on its own
    batch. It reports "loss" (critics), "q_value", "actor_loss", "entropy" (in nats, estimated, of actions in [-1, 1]),
    "temperature", "gradient_norm" (critics), "replay_size" (transitions that can be sampled) and, over the episodes
    that ended, "return" and "length". `evaluate` plays episodes and reports "return", "length" and "finished" (0 if
    `evaluation_steps` cut an episode short). `predict` returns the mode of the policy for observations `[B, ...]`, and
    samples for an `rl.ExplorationRequest`. With `replay.n_steps` above 1 the targets hold the entropy of the present
    policy at the steps between, too.

    Args:
      environment: the environment to act in, or a `HostSpec` when it runs on the host; its actions `[A]` are bounded.
      actor: observations `[B, ...]` to a `models.SquashedNormal` `[B, A]`, such as `models.GaussianActor`.
      critic: observations and actions `[B, A]` in [-1, 1] to `[B, 2]`, such as `models.TwinCritic`.
      actor_optimizer: any Optax optimizer; its rates may be traced.
      critic_optimizer: of the critics.
      settings: hyperparameters; their floats may be traced.
      num_envs: N, the number of parallel environments.
      rollout_steps: steps of every environment in an update.
      learning_starts: transitions of random actions before the first update, at least a batch and a multiple of
        `num_envs`. On the host the first updates collect them, and `learning_starts` of the config is 0.
      environment_steps: length of the whole training; needed only to anneal the importance weights of priorities.
      loss: of the critics, `(q_values [B, 2], td_target [B], batch) -> (loss [], td_errors [B], metrics)`.
      actor_loss: `(output: SACActorOutput, batch: ReplayBatch) -> (loss [], metrics)`.
      temperature_optimizer: of the log temperature; None: `critic_optimizer`, with a state of its own.

    Returns:
      The learner, whose state is a `SACState`.

    Raises:
      ConfigError: `environment` is not an environment, its actions are discrete or unbounded, or numbers do not fit
        each other or the host.

    >>> networks = models.GaussianActor(1, (4,)), models.TwinCritic((4,))
    >>> learner = sac(rl.pendulum(), *networks, optax.adam(1e-3), optax.adam(1e-3),
    ...               SACSettings(batch_size=8, replay=off_policy.ReplaySettings(capacity=100)), learning_starts=16)
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), None)
    >>> jax.eval_shape(learner.predict, state, jnp.zeros((3, 3)), jax.random.key(0)).shape
    (3, 1)
    """
    setup = off_policy.ReplaySetup(environment, settings, num_envs, rollout_steps, learning_starts, environment_steps)
    off_policy.check_settings(setup)
    action_space = rl.bounded_action_space("sac", environment)
    rl.check_environment(environment, num_envs, rollout_steps, settings.greedy_evaluation)
    # The networks and the replay buffer hold actions in [-1, 1]; `predict` and evaluation use the true bounds.
    setup = setup._replace(environment=rl.wrappers.rescale_actions(environment))
    critic_loss_fn = off_policy.critic_loss_fn(critic, loss)
    alpha_optimizer = temperature_optimizer or critic_optimizer
    # The heuristic of the paper: minus the number of action dimensions
    target_entropy = -float(action_space.shape[0]) if settings.target_entropy is None else settings.target_entropy

    def init(key: Key, examples: Batch) -> SACState:
        actor_key, critic_key, environment_key = jax.random.split(key, 3)
        replay_state, observation = off_policy.init_replay(setup, environment_key, examples)
        example = rl.first_row(observation)
        action = jnp.zeros((1, *action_space.shape))
        critic_params = init_params(critic_key, critic, example, action)
        critic_state = init_train_state(critic_params, critic_optimizer)
        actor_params = init_params(actor_key, actor, example)
        rl.check_network(environment, jax.eval_shape(actor.apply, {"params": actor_params}, example))
        actor_state = init_train_state(actor_params, actor_optimizer)
        # The target critics start as copies; donated states must not share buffers.
        target_critic_params = jax.tree.map(jnp.copy, critic_params)
        log_temperature = jnp.log(jnp.float32(settings.initial_temperature))
        temperature = init_train_state(log_temperature, alpha_optimizer)
        return SACState(actor_state, critic_state, target_critic_params, temperature, replay_state)

    def update(state: SACState, batch: Batch, key: Key) -> tuple[SACState, Metrics]:
        action_key, gradient_key = jax.random.split(key)
        # `batch`: None for an environment on the device, an `rl.HostRollout` from a host.
        # 1. Act: every environment takes `rollout_steps` sampled actions, which are stored.
        policy = functools.partial(explore, state.actor.params)
        rollout = off_policy.scale_rollout_actions(action_space, batch)
        replay_state, episode_metrics = off_policy.collect_transitions(setup, state.replay, policy, action_key, rollout)
        keys = jax.random.split(gradient_key, settings.gradient_steps)

        train = functools.partial(off_policy.scan_gradient_steps, step, keys)
        state, metrics = off_policy.train_steps(setup, train, state._replace(replay=replay_state))
        return state, metrics | episode_metrics

    def step(state: SACState, key: Key) -> tuple[SACState, off_policy.ScalarMetrics]:
        sample_key, next_action_key, actor_key, *entropy_keys = jax.random.split(key, 2 + settings.replay.n_steps)
        temperature = jnp.exp(state.temperature.params)

        # 2. Sample a batch of transitions.
        batch = off_policy.sample_batch(setup, state.replay, sample_key)

        # 3. Critics: soft Bellman target r + gamma (min_i Q_target_i(s', a') - alpha log pi(a'|s')) with a' ~ pi(s').
        policy = actor.apply({"params": state.actor.params}, batch.next_observations)
        next_actions, next_log_probs = policy.sample_and_log_prob(next_action_key)
        next_q_values = critic.apply({"params": state.target_critic_params}, batch.next_observations, next_actions)
        next_values = next_q_values.min(axis=-1) - temperature * next_log_probs
        # `batch.discounts`: gamma^n, 0 where the episode terminated; `batch.rewards`: n-step sums.
        policy_of = functools.partial(actor.apply, {"params": state.actor.params})
        rewards = soft_rewards(policy_of, temperature, batch, state.replay.buffer, settings, entropy_keys)
        td_target = jax.lax.stop_gradient(rewards + batch.discounts * next_values)
        inputs: Batch = (batch, td_target)
        critic_state, metrics = gradient_step(state.critic, critic_loss_fn, critic_optimizer, inputs, next_action_key)
        replay_state = off_policy.update_priorities(settings.replay, state.replay, batch, metrics.pop("td_errors"))

        # 4. Actor, with the updated critics.
        inputs = (batch, critic_state.params, temperature)
        actor_state, actor_metrics = gradient_step(state.actor, actor_loss_fn, actor_optimizer, inputs, actor_key)
        actor_metrics.pop("gradient_norm")  # "gradient_norm" is the critics'

        # 5. Temperature.
        entropy = actor_metrics["entropy"]
        alpha_state = state.temperature
        if settings.learn_temperature:
            alpha_state, _ = gradient_step(alpha_state, alpha_loss_fn, alpha_optimizer, entropy, actor_key)

        # 6. Target critics: exponential moving average.
        target = critic_state.params, state.target_critic_params, settings.tau
        target_critic_params = moving_average(*target, critic_state.optimizer_state)
        state = SACState(actor_state, critic_state, target_critic_params, alpha_state, replay_state)
        return state, metrics | actor_metrics | {"temperature": temperature}

    def actor_loss_fn(params: Params, model_state: State, inputs: Batch, key: Key) -> LossAndAux:
        batch, critic_params, temperature = inputs
        actions, log_probs = actor.apply({"params": params}, batch.observations).sample_and_log_prob(key)
        q_values = critic.apply({"params": critic_params}, batch.observations, actions)
        value, metrics = actor_loss(SACActorOutput(actions, log_probs, q_values, temperature), batch)
        # The temperature needs the entropy, whatever the loss reports.
        return value, (model_state, {**metrics, "entropy": -log_probs.mean()})

    def alpha_loss_fn(params: Params, model_state: State, entropy: Batch, key: Key) -> LossAndAux:
        return temperature_loss(params, entropy, target_entropy), (model_state, {})

    def explore(params: Params, observation: jax.Array, steps: jax.Array, key: Key) -> jax.Array:
        actions = actor.apply({"params": params}, observation).sample(key)
        return off_policy.warmup_actions(setup, steps, actions, jax.random.clone(key))

    def predict(state: SACState, inputs: jax.Array | rl.ExplorationRequest, key: Key) -> jax.Array:
        if isinstance(inputs, rl.ExplorationRequest):
            actions = explore(state.actor.params, inputs.observation, state.replay.environment_steps, key)
        else:
            actions = actor.apply({"params": state.actor.params}, rl.as_observation(inputs)).mode()
        return rl.wrappers.from_unit_range(action_space, actions)

    def evaluate(state: SACState, batch: Batch, key: Key) -> off_policy.ScalarMetrics:
        def policy(observation: jax.Array, key: Key) -> jax.Array:
            inputs = observation if settings.greedy_evaluation else rl.ExplorationRequest(observation)
            return predict(state, inputs, key)

        episodes, max_steps = settings.evaluation_episodes, settings.evaluation_steps
        return rl.evaluate_policy(environment, policy, key, episodes, max_steps, batch)

    inputs = rl.observation_inputs(environment)
    learner = Learner(init, update, evaluate, predict, off_policy.count_environment_steps(setup), inputs)
    return learner._replace(inference_state=off_policy.inference_state)
