"""Deep Q-networks (Mnih et al., 2015) with their extensions as options; all of them together are Rainbow.

Double Q-learning, n-step returns and prioritised replay are settings, distributional returns are an argument, dueling
and noisy networks are options of `models.QNetwork`. `off_policy` collects, stores and samples transitions.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from foldax import models, rl
from foldax.configuration import check_at_least, config
from foldax.learner import Batch, Key, Learner, Metrics, Model, Params, State
from foldax.learners.gradients import LossAndAux, TrainState, gradient_step, init_params, init_train_state
from foldax.learners.rl import off_policy, return_distributions
from foldax.learners.rl.exploration import epsilon_greedy, epsilon_schedule
from foldax.learners.rl.networks import apply_q_network
from foldax.learners.rl.off_policy import LossAndErrors, OffPolicySettings, ReplaySettings, ReplayState, ScalarMetrics
from foldax.learners.rl.return_distributions import ReturnDistribution, greedy_actions, outputs_of_actions
from foldax.rl.environment import Observation
from foldax.rl.replay import ReplayBatch


@config
class DQNSettings(OffPolicySettings):
    """Hyperparameters of `dqn`; nest them in an experiment's config.

    >>> DQNSettings(double=True, replay=ReplaySettings(n_steps=3)).replay.n_steps
    3
    """

    batch_size: int = 128
    """Transitions sampled for the gradient step of an update."""
    target_update_period: int = 500
    """Environment steps between two copies of the network to the target network."""
    double: bool = False
    """Whether the online network selects the next action that the target evaluates (van Hasselt et al., 2016)."""
    exploration_fraction: float = 0.5
    """Fraction of all environment steps over which epsilon falls linearly from 1 to `final_epsilon`."""
    final_epsilon: float = 0.05
    """Probability of a random action after that; 0 for noisy networks."""
    replay: ReplaySettings = ReplaySettings()
    """The replay buffer."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1, target_update_period=1, evaluation_episodes=1)


class DQNState(NamedTuple):
    """State of `dqn`.

    Attributes:
      network: online Q-network and its optimizer.
      target_params: parameters of the target network.
      replay: environments and replay buffer.
    """

    network: TrainState
    target_params: Params
    replay: ReplayState


class DQNOutput(NamedTuple):
    """Network outputs that a loss of `dqn` receives: K numbers per return (see `return_distributions`).

    Attributes:
      outputs: online network for all actions in the sampled observations, `[B, A, K]`.
      action_outputs: those of the sampled actions, `[B, K]`.
      next_action_outputs: target network for the selected next actions, `[B, K]`.
    """

    outputs: jax.Array
    action_outputs: jax.Array
    next_action_outputs: jax.Array


Loss = Callable[[DQNOutput, ReplayBatch, ReturnDistribution], LossAndErrors]
"""`(output, batch, return_distribution) -> (loss [], td_errors [B], metrics)`."""

Exploration = Callable[..., jax.Array]
"""`(q_values [N, A], epsilon [], key) -> actions int32 [N]`, with `legal_actions=` bool `[N, A]` where some are not."""


def dqn_loss(output: DQNOutput, batch: ReplayBatch, return_distribution: ReturnDistribution) -> LossAndErrors:
    """Distance of Q(s, a) from its Bellman target r + gamma max_a' Q_target(s', a') (Mnih et al., 2015).

    Args:
      output: outputs of the networks for the sampled transitions.
      batch: B transitions with their importance weights.
      return_distribution: measures the distance: squared error, divergence or quantile loss.

    Returns:
      The scalar loss, TD errors `[B]` for prioritised replay, and the metrics "loss" and "q_value".

    >>> batch = ReplayBatch(None, None, jnp.ones(1), None, jnp.full(1, 0.5), jnp.ones(1), None, None)
    >>> output = DQNOutput(jnp.zeros((1, 2, 1)), jnp.zeros((1, 1)), jnp.full((1, 1), 4.0))
    >>> loss, td_errors, _ = dqn_loss(output, batch, return_distributions.expectation())
    >>> float(loss), float(td_errors[0])  # the target is 1 + 0.5 * 4
    (4.5, 3.0)
    """
    # `batch.discounts`: gamma^n, 0 where the episode terminated; `batch.rewards`: n-step sums.
    _, action_outputs, next_action_outputs = output
    losses, td_errors = return_distribution.loss(action_outputs, next_action_outputs, batch.rewards, batch.discounts)
    loss = (batch.weights * losses).mean()
    return loss, td_errors, {"loss": loss, "q_value": return_distribution.mean(action_outputs).mean()}


def dqn(
    environment: rl.EnvironmentLike,
    model: Model,
    optimizer: optax.GradientTransformation,
    settings: DQNSettings = DQNSettings(),
    *,
    environment_steps: int,
    num_envs: int = 1,
    rollout_steps: int = 10,
    learning_starts: int = 10_000,
    return_distribution: ReturnDistribution | None = None,
    loss: Loss = dqn_loss,
    exploration: Exploration = epsilon_greedy,
) -> Learner:
    """Deep Q-learning (Mnih et al., 2015), and with all options Rainbow (Hessel et al., 2018).

    An update takes `rollout_steps` steps in every environment and one gradient step on a batch from the replay buffer.
    It reports "loss", "q_value" (mean of the sampled actions), "epsilon", "gradient_norm", "replay_size" (transitions
    that can be sampled) and, over the episodes that ended, "return" and "length". `evaluate` plays greedy episodes and
    reports "return", "length" and "finished" (0 if `evaluation_steps` cut an episode short). `predict` returns the
    greedy actions of observations `[B, ...]`, and exploratory ones of an `rl.ExplorationRequest`.

    Args:
      environment: the environment to act in, or a `HostSpec` when it runs on the host; its actions are discrete.
      model: Q-network, observations `[B, ...]` to outputs `[B, A, K]`, such as `models.QNetwork`.
      optimizer: any Optax optimizer; its rates may be traced.
      settings: hyperparameters; their floats may be traced.
      environment_steps: length of the whole training, over which epsilon and importance exponents are annealed.
      num_envs: N, the number of parallel environments.
      rollout_steps: steps of every environment in an update.
      learning_starts: transitions of random actions before the first update, at least a batch and a multiple of
        `num_envs`. On the host the first updates collect them, and `learning_starts` of the config is 0.
      return_distribution: what the K outputs of an action represent; None: `return_distributions.expectation()`.
      loss: `(output: DQNOutput, batch: ReplayBatch, return_distribution) -> (loss [], td_errors [B], metrics)`.
      exploration: `(q_values [N, A], epsilon [], key) -> actions int32 [N]`; epsilon follows `epsilon_schedule`. Where
        the environment has illegal actions, their Q-values are -1e9, and the mask comes as `legal_actions=`.

    Returns:
      The learner, whose state is a `DQNState`.

    Raises:
      ConfigError: `environment` is not an environment, its actions are not discrete, or numbers do not fit each other
        or the host.

    >>> from foldax import models
    >>> learner = dqn(rl.cartpole(), models.QNetwork(2, hidden=(4,)), optax.adam(1e-3),
    ...               DQNSettings(batch_size=8), environment_steps=1_000, rollout_steps=2, learning_starts=16)
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), None)
    >>> jax.eval_shape(learner.predict, state, jnp.zeros((3, 4)), jax.random.key(0)).shape
    (3,)
    """
    setup = off_policy.ReplaySetup(environment, settings, num_envs, rollout_steps, learning_starts, environment_steps)
    off_policy.check_settings(setup)
    rl.check_discrete_actions("dqn", environment)
    setup = setup._replace(environment=rl.observe_legal_actions(environment))
    return_distribution = return_distribution or return_distributions.expectation()
    decay_steps = settings.exploration_fraction * environment_steps

    def init(key: Key, examples: Batch) -> DQNState:
        init_key, environment_key = jax.random.split(key)
        replay_state, observation = off_policy.init_replay(setup, environment_key, examples)
        example, _ = rl.split_mask(rl.first_row(observation))
        params = init_params(init_key, model, example)
        rl.check_network(environment, jax.eval_shape(model.apply, {"params": params}, example))
        # The target network starts as a copy; donated states must not share buffers.
        return DQNState(init_train_state(params, optimizer), jax.tree.map(jnp.copy, params), replay_state)

    def update(state: DQNState, batch: Batch, key: Key) -> tuple[DQNState, Metrics]:
        action_key, sample_key, loss_key = jax.random.split(key, 3)
        steps_before = state.replay.environment_steps

        # `batch`: None for an environment on the device, an `rl.HostRollout` from a host.
        # 1. Act: every environment takes `rollout_steps` exploratory steps, which are stored.
        policy = functools.partial(explore, state.network.params)
        replay_state, episode_metrics = off_policy.collect_transitions(setup, state.replay, policy, action_key, batch)
        steps_after = replay_state.environment_steps

        def train(state: DQNState) -> tuple[DQNState, ScalarMetrics]:
            # 2. Sample a batch of transitions.
            sample = off_policy.sample_batch(setup, state.replay, sample_key)
            # 3. Gradient step towards the Bellman target.
            network, metrics = gradient_step(state.network, loss_fn, optimizer, (sample, state.target_params), loss_key)
            # 4. New priorities of the sampled transitions.
            replay_state = off_policy.update_priorities(settings.replay, state.replay, sample, metrics.pop("td_errors"))
            # 5. Copy the network to the target network once per period.
            due = steps_before // settings.target_update_period < steps_after // settings.target_update_period
            target_params = jax.tree.map(lambda new, old: jnp.where(due, new, old), network.params, state.target_params)
            return DQNState(network, target_params, replay_state), metrics

        state, metrics = off_policy.train_steps(setup, train, state._replace(replay=replay_state))
        epsilon = epsilon_schedule(steps_after, settings.final_epsilon, decay_steps)
        return state, metrics | episode_metrics | {"epsilon": epsilon}

    def loss_fn(params: Params, model_state: State, batch: Batch, key: Key) -> LossAndAux:
        # `batch`: `(ReplayBatch, target_params)`; the metrics include "td_errors" `[B]`, for `update_priorities`.
        sample, target_params = batch
        output = apply_networks(model, params, target_params, sample, return_distribution, settings.double, key)
        value, td_errors, metrics = loss(output, sample, return_distribution)
        return value, (model_state, {**metrics, "td_errors": td_errors})

    def explore(params: Params, observation: Observation, steps: jax.Array, key: Key) -> jax.Array:
        # `exploration` may draw the bits of `warmup_key` too, which is harmless: warm-up actions replace its own.
        _, warmup_key, noise_key = jax.random.split(jax.random.clone(key), 3)
        q_values = return_distribution.mean(apply_q_network(model, params, observation, noise_key))
        _, legal_actions = rl.split_mask(observation)
        mask = {} if legal_actions is None else {"legal_actions": legal_actions}
        epsilon = epsilon_schedule(steps, settings.final_epsilon, decay_steps)
        actions = exploration(models.mask_values(q_values, legal_actions), epsilon, key, **mask)
        return off_policy.warmup_actions(setup, steps, actions, warmup_key)

    def predict(state: DQNState, inputs: jax.Array | rl.ExplorationRequest, key: Key) -> jax.Array:
        if isinstance(inputs, rl.ExplorationRequest):
            return explore(state.network.params, inputs.observation, state.replay.environment_steps, key)
        observation = rl.as_observation(inputs)
        outputs = apply_q_network(model, state.network.params, observation)
        return greedy_actions(return_distribution, outputs, rl.split_mask(observation)[1])

    def evaluate(state: DQNState, batch: Batch, key: Key) -> ScalarMetrics:
        episodes, max_steps = settings.evaluation_episodes, settings.evaluation_steps
        policy = functools.partial(predict, state)
        return rl.evaluate_policy(setup.environment, policy, key, episodes, max_steps, batch)

    inputs = rl.observation_inputs(environment)
    learner = Learner(init, update, evaluate, predict, off_policy.count_environment_steps(setup), inputs)
    return learner._replace(inference_state=off_policy.inference_state)


def apply_networks(
    model: Model,
    params: Params,
    target_params: Params,
    batch: ReplayBatch,
    return_distribution: ReturnDistribution,
    double: bool,
    key: Key,
) -> DQNOutput:
    """Applies the online and the target network to a batch, with the next actions chosen among the legal ones.

    Args:
      model: Q-network.
      params: of the online network.
      target_params: of the target network.
      batch: B transitions.
      return_distribution: what the K outputs of an action represent.
      double: whether the online network selects the next actions.
      key: of noisy layers.
    """
    online_key, selection_key, target_key = jax.random.split(key, 3)
    # Q(s, a)
    outputs = apply_q_network(model, params, batch.observations, online_key)
    action_outputs = outputs_of_actions(outputs, batch.actions)
    # Q_target(s', a') with a' = argmax Q_target(s', .), or for double Q-learning argmax Q(s', .), among legal actions
    next_outputs = apply_q_network(model, target_params, batch.next_observations, target_key)
    selection_outputs = next_outputs
    if double:
        selection_outputs = apply_q_network(model, params, batch.next_observations, selection_key)
    next_actions = greedy_actions(return_distribution, selection_outputs, rl.split_mask(batch.next_observations)[1])
    return DQNOutput(outputs, action_outputs, outputs_of_actions(next_outputs, next_actions))
