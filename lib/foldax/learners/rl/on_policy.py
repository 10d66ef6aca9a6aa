"""The phases that on-policy learners share: collect a rollout, estimate advantages, run epochs of minibatches.

On-policy learners learn from a rollout of their own policy and then discard it. The environments, in the middle of
their episodes, are part of the learner's state. Where the environment runs on the host, it collects the rollout with
the learner's policy, and the rollout is the batch of `update`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import chex
import jax
import optax

from foldax import models, rl
from foldax.configuration import check_at_least, config
from foldax.learner import Average, Batch, Key, Model, Params, State
from foldax.learners.gradients import LossAndAux, LossFunction, TrainState, init_params, init_train_state
from foldax.learners.rl import normalization
from foldax.learners.rl.networks import apply_actor_critic
from foldax.rl import EnvironmentLike

Tree = TypeVar("Tree")
E = TypeVar("E", bound=EnvironmentLike)


@config
class ActorCriticSettings:
    """Hyperparameters that `ppo`, `a2c` and `reinforce` share; theirs inherit from it.

    >>> ActorCriticSettings(evaluation_episodes=100).discount
    0.99
    """

    discount: float = 0.99
    """Discount of a reward one environment step later, the papers' gamma."""
    entropy_coefficient: float = 0.01
    """Weight of the policy's entropy, which is maximised."""
    value_coefficient: float = 0.5
    """Weight of the value loss, which is half the mean squared error."""
    evaluation_episodes: int = 16
    """Episodes of an evaluation, played in parallel."""
    evaluation_steps: int = 1000
    """Maximum length of an evaluation episode."""
    greedy_evaluation: bool = True
    """Evaluate the most probable actions instead of sampled ones."""

    def __post_init__(self) -> None:
        check_at_least(self, evaluation_episodes=1)


@config
class NormalizingSettings(ActorCriticSettings):
    """Hyperparameters that `ppo` and `a2c` share; theirs inherit from it.

    >>> NormalizingSettings(normalize_rewards=True).normalize_observations
    False
    """

    normalize_observations: bool = False
    """Normalise observations by their running mean and variance."""
    normalize_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""


class AgentState(NamedTuple):
    """State of an on-policy learner.

    Attributes:
      network: parameters of the actor-critic, with the state of their optimizer.
      environment_state: state of the N parallel environments; None where they run on the host, or where every update
        resets them.
      statistics: running statistics of observations and rewards.
    """

    network: TrainState
    environment_state: rl.EnvironmentState | None
    statistics: normalization.RunningStatistics


class RolloutBatch(NamedTuple):
    """Transitions of a rollout as a loss receives them, `[B, ...]`.

    Attributes:
      observations: `[B, ...]`, normalised if the learner normalises them.
      actions: `[B, ...]`.
      log_probs: log-probabilities of the actions under the policy that acted, float `[B]`.
      values: value estimates of the network that acted, float `[B]`.
      advantages: float `[B]`.
      value_targets: float `[B]`, what the values should become.
      weights: float >= 0 `[B]`, weights of the transitions in the loss; None: all count alike.
    """

    observations: jax.Array
    actions: jax.Array
    log_probs: jax.Array
    values: jax.Array
    advantages: jax.Array
    value_targets: jax.Array
    weights: jax.Array | None = None


AdvantageFunction = Callable[[rl.Transition, jax.Array, chex.Numeric, chex.Numeric], tuple[jax.Array, jax.Array]]
"""`(transitions [T, N, ...], next_values [T, N], discount, gae_lambda) -> (advantages [T, N], value_targets [T, N])`.

`transitions.extras` holds "value" and "log_prob" `[T, N]` of the network that acted; `next_values` are the values of
`transitions.next_observation`. See `gae_targets`, the default.
"""

ScalarMetrics: TypeAlias = dict[str, jax.Array]
ActorCriticLoss = Callable[[models.ActorCriticOutput, RolloutBatch, Any], tuple[jax.Array, ScalarMetrics]]
"""`(output [B], minibatch [B], settings of the learner) -> (scalar loss, metrics by name)`; see `ppo_loss`."""


# -- state -----------------------------------------------------------------------------------------


def init_agent(
    environment: EnvironmentLike,
    model: Model,
    optimizer: optax.GradientTransformation,
    key: Key,
    num_envs: int,
    examples: Batch,
    settings: NormalizingSettings = NormalizingSettings(),
) -> AgentState:
    """Creates the state of an agent before its first step.

    Args:
      environment: the environment to act in, or a `HostSpec` when it runs on the host.
      model: actor-critic network.
      optimizer: optimizer of the network.
      key: randomness of the parameters and of the first episodes.
      num_envs: number N of parallel environments.
      examples: first observations `[N, ...]` of a host; None for an environment on the device.
      settings: whether to keep running statistics of observations, and of discounted returns.

    Raises:
      ConfigError: the network does not fit the actions of the environment.
    """
    init_key, environment_key = jax.random.split(key)
    environment_state, observation = None, examples
    if isinstance(environment, rl.Environment):
        environment_state = rl.reset_environments(environment, environment_key, num_envs)
        observation = environment_state.observation
    # One observation is enough: only its shape matters.
    example, _ = rl.split_mask(rl.first_row(observation))
    params = init_params(init_key, model, example)
    output = jax.eval_shape(model.apply, {"params": params}, example)
    rl.check_network(environment, getattr(output, "distribution", output))
    statistics = normalization.init_statistics(observation, settings.normalize_observations, settings.normalize_rewards)
    return AgentState(init_train_state(params, optimizer), environment_state, statistics)


# -- 1. rollout ------------------------------------------------------------------------------------


def select_action(
    model: Model, state: AgentState, observation: jax.Array, key: Key, greedy: bool = False
) -> tuple[jax.Array, ScalarMetrics]:
    """Samples actions for observations `[N, ...]`, or takes the most probable ones.

    Args:
      model: actor-critic network.
      state: the agent, with statistics that normalise observations.
      observation: unnormalised observations, `[N, ...]`.
      key: randomness of sampled actions.
      greedy: take the mode of each distribution instead of a sample.

    Returns:
      Actions `[N, ...]`, and their "log_prob" with the "value" of the observations, both `[N]`.
    """
    observation = normalization.normalize_observations(state.statistics, observation)
    distribution, value = apply_actor_critic(model, state.network.params, observation)
    action = distribution.mode() if greedy else distribution.sample(key)
    return action, {"log_prob": distribution.log_prob(action), "value": value}


def predict_action(
    action_space: rl.Space, model: Model, state: AgentState, inputs: Any, key: Key
) -> rl.environment.Action:
    """Most probable actions of observations `[B, ...]`, clipped to their bounds; samples for an `ExplorationRequest`.

    Sampled actions are learned from, so they stay as the policy sampled them; the host clips them before it steps.

    Args:
      action_space: space of one action; actions of a `Box` are clipped to it.
      model: actor-critic network.
      state: the agent.
      inputs: observations `[B, ...]` as `rl.as_observation` takes them, or an `ExplorationRequest` that holds them.
      key: randomness of sampled actions.
    """
    # A request for exploration comes from the host, which collects a rollout to learn from.
    if isinstance(inputs, rl.ExplorationRequest):
        return select_action(model, state, inputs.observation, key)[0]
    return rl.clip_action(action_space, select_action(model, state, rl.as_observation(inputs), key, greedy=True)[0])


def for_policy(environment: E) -> E:
    """Lets an environment clip continuous actions, as a host does (a `Normal` is not bounded), and show legal ones."""
    if isinstance(environment, rl.Environment) and isinstance(environment.action_space, (rl.Box, rl.Tuple)):
        environment = rl.wrappers.clip_actions(environment)  # type: ignore[assignment]  # E is an Environment here
    return rl.observe_legal_actions(environment)


def collect_rollout(
    environment: EnvironmentLike, policy: rl.Policy, environment_state: State, batch: Batch, key: Key, num_steps: int
) -> tuple[State, rl.Transition, dict[str, Average]]:
    """Takes `num_steps` steps in all N environments, or those of `batch`, the rollout that a host collected.

    Args:
      environment: the environment to act in, or a `HostSpec` when it runs on the host.
      policy: `(observation [N, ...], key) -> (action [N, ...], extras)`.
      environment_state: states of the N environments; None on the host.
      batch: the host's rollout; None for an environment on the device.
      key: randomness of the policy and of the environments.
      num_steps: steps T of each environment.

    Returns:
      The state of the environments, the transitions `[T, N, ...]`, and "return" and "length" of episodes that ended.
    """
    if isinstance(environment, rl.HostSpec):
        return None, batch.transitions, rl.episode_metrics(batch.episodes)
    environment_state, transitions, episodes = rl.rollout(environment, policy, environment_state, key, num_steps)
    return environment_state, transitions, rl.episode_metrics(episodes)


def collect_normalized_rollout(
    environment: EnvironmentLike,
    model: Model,
    num_steps: int,
    discount: chex.Numeric,
    state: AgentState,
    batch: Batch,
    key: Key,
) -> tuple[AgentState, rl.Transition, dict[str, Average]]:
    """Collects a rollout with the current policy, and normalises it if the learner normalises.

    Args:
      environment: the environment to act in, or a `HostSpec` when it runs on the host.
      model: actor-critic network.
      num_steps: steps T of each environment.
      discount: gamma, for the scale of returns by which rewards are normalised.
      state: the agent, with the states of its N environments.
      batch: the host's rollout; None for an environment on the device.
      key: randomness of the policy and of the environments.

    Returns:
      The state with the environments after the rollout, the transitions `[T, N, ...]` whose `extras` are "log_prob" and
      "value", and "return" and "length" of episodes that ended, in unnormalised rewards.
    """
    policy = functools.partial(select_action, model, state)
    environment_state, transitions, episode_metrics = collect_rollout(
        environment, policy, state.environment_state, batch, key, num_steps
    )
    on_host, statistics = isinstance(environment, rl.HostSpec), state.statistics
    if on_host:
        statistics = normalization.reset_running_returns(statistics, batch.restarted[0])
    # Observations: normalised by the statistics before this rollout, with which the policy acted. Rewards: by those
    # after it.
    statistics, transitions = normalization.normalize_rollout(statistics, transitions, discount)
    if on_host:
        # The host returns only actions; the network is still the one that chose them.
        transitions = evaluate_actions(model, state.network.params, transitions)
    return AgentState(state.network, environment_state, statistics), transitions, episode_metrics


def evaluate_actions(model: Model, params: Params, transitions: rl.Transition) -> rl.Transition:
    """Adds "log_prob" and "value" `[T, N]` of the network that chose the actions to a rollout `[T, N, ...]`.

    Args:
      model: actor-critic network.
      params: parameters of the policy that took the actions.
      transitions: the rollout, `[T, N, ...]`.
    """

    def evaluate(observation: jax.Array, action: jax.Array) -> ScalarMetrics:
        distribution, value = apply_actor_critic(model, params, observation)
        return {"log_prob": distribution.log_prob(action), "value": value}

    return transitions._replace(extras=jax.vmap(evaluate)(transitions.observation, transitions.action))


# -- 2. advantages ---------------------------------------------------------------------------------


def gae_targets(
    transitions: rl.Transition, next_values: jax.Array, discount: chex.Numeric, gae_lambda: chex.Numeric
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates, and the TD(lambda) targets of the values (Schulman et al., 2016).

    The default `advantages` of the on-policy learners; an own one has the same arguments and results.

    Args:
      transitions: rollout `[T, N, ...]` whose `extras["value"]` are the values of `observation`.
      next_values: values of `next_observation`, float `[T, N]`.
      discount: gamma, in [0, 1]; may be traced.
      gae_lambda: lambda, in [0, 1]: 0 is the one-step TD error, 1 the return minus the value; may be traced.

    Returns:
      Advantages and value targets, both `[T, N]`.

    >>> ones, never = jax.numpy.ones((2, 1)), jax.numpy.zeros((2, 1), bool)
    >>> transitions = rl.Transition(ones, ones, ones, ones, never, never, {"value": 0 * ones})
    >>> advantages, value_targets = gae_targets(transitions, 0 * ones, discount=0.5, gae_lambda=1.0)
    >>> print(advantages[:, 0], value_targets[:, 0])
    [1.5 1. ] [1.5 1. ]
    """
    values = transitions.extras["value"]
    advantages = rl.generalized_advantages(
        transitions.reward, values, next_values, transitions.terminated, transitions.truncated, discount, gae_lambda
    )
    return advantages, advantages + values


def estimate_advantages(
    model: Model,
    params: Params,
    transitions: rl.Transition,
    estimator: AdvantageFunction,
    discount: chex.Numeric,
    gae_lambda: chex.Numeric,
) -> RolloutBatch:
    """Estimates the advantages of a rollout `[T, N, ...]` and flattens both to rows `[T * N, ...]`.

    Args:
      model: actor-critic network.
      params: parameters that estimate the values of the last observations.
      transitions: the rollout, with "log_prob" and "value" `[T, N]` in its extras.
      estimator: estimates advantages and value targets, such as `gae_targets`.
      discount: gamma, in [0, 1]; may be traced.
      gae_lambda: lambda of the estimator, in [0, 1]; may be traced.
    """
    # Not `values[1:]`: after an episode's end the next row belongs to the next episode.
    next_values = jax.vmap(lambda x: apply_actor_critic(model, params, x).value)(transitions.next_observation)
    advantages, value_targets = estimator(transitions, next_values, discount, gae_lambda)
    return flatten_rollout(rollout_batch(transitions, advantages, value_targets))


def rollout_batch(transitions: rl.Transition, advantages: jax.Array, value_targets: jax.Array) -> RolloutBatch:
    """Brings transitions `[T, N, ...]` and their targets `[T, N]` together, with both axes as they are.

    Args:
      transitions: the rollout, with "log_prob" and "value" `[T, N]` in its extras.
      advantages: float `[T, N]`.
      value_targets: targets of the value function, `[T, N]`.
    """
    chex.assert_equal_shape([advantages, value_targets, transitions.reward])
    log_probs, values = transitions.extras["log_prob"], transitions.extras["value"]
    return RolloutBatch(transitions.observation, transitions.action, log_probs, values, advantages, value_targets)


def flatten_rollout(rollout: Tree) -> Tree:
    """Merges the first two axes of all arrays: `[T, N, ...]` to `[T * N, ...]`.

    >>> flatten_rollout({"reward": jax.numpy.zeros((5, 2))})["reward"].shape
    (10,)
    """
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)


# -- 3. optimisation -------------------------------------------------------------------------------


def actor_critic_loss_fn(model: Model, loss: ActorCriticLoss, settings: ActorCriticSettings) -> LossFunction:
    """Turns `loss(output, minibatch, settings)` into a `LossFunction` of the parameters by applying the model.

    Args:
      model: actor-critic network.
      loss: `(output [B], minibatch [B], settings) -> (loss [], metrics)`.
      settings: hyperparameters that the loss reads.
    """

    def loss_fn(params: Params, model_state: State, minibatch: RolloutBatch, key: Key) -> LossAndAux:
        value, metrics = loss(apply_actor_critic(model, params, minibatch.observations), minibatch, settings)
        return value, (model_state, metrics)

    return loss_fn


# -- evaluation ------------------------------------------------------------------------------------


def evaluate_agent(
    environment: EnvironmentLike, model: Model, settings: ActorCriticSettings, state: AgentState, batch: Batch, key: Key
) -> ScalarMetrics:
    """Evaluates the policy of `select_action` as `rl.evaluate_policy` does.

    Args:
      environment: the environment to act in, or a `HostSpec` when it runs on the host.
      model: actor-critic network.
      settings: number and length of the episodes, and whether they are greedy.
      state: the agent.
      batch: the episodes that a host played, `[B]`; None for an environment on the device.
      key: randomness of the policy and of the environments.
    """
    select = functools.partial(select_action, model, state, greedy=settings.greedy_evaluation)
    episodes, max_steps = settings.evaluation_episodes, settings.evaluation_steps
    return rl.evaluate_policy(environment, lambda *inputs: select(*inputs)[0], key, episodes, max_steps, batch)
