"""Parallelised Q-network, PQN (Gallici et al., 2024): Q-learning without replay buffer and target network.

An update collects `rollout_steps` epsilon-greedy steps in each of `num_envs` parallel environments, computes their
lambda-returns, and takes `num_epochs * num_minibatches` gradient steps towards them. Many environments and a network
with layer normalisation keep this from diverging.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from foldax import models, rl
from foldax.configuration import check_at_least, config
from foldax.learner import Batch, EnvironmentSteps, Key, Learner, Metrics, Model, Params, State
from foldax.learners import gradients
from foldax.learners.rl import on_policy
from foldax.learners.rl.exploration import add_steps, epsilon_greedy, epsilon_schedule
from foldax.learners.rl.networks import apply_q_network
from foldax.rl.environment import Observation


@config
class PQNSettings:
    """Hyperparameters of `pqn`; nest them in an experiment's config.

    >>> PQNSettings(lambda_=0.9).num_minibatches
    32
    """

    num_epochs: int = 2
    """Passes over each rollout."""
    num_minibatches: int = 32
    """Gradient steps in each pass; must divide `num_envs * rollout_steps`."""
    discount: float = 0.99
    """Discount of a reward one environment step later, the paper's gamma."""
    lambda_: float = 0.65
    """Lambda of the returns: 0 is the one-step target, 1 the Monte Carlo return."""
    exploration_fraction: float = 0.5
    """Fraction of all environment steps over which epsilon falls linearly from 1 to `final_epsilon`."""
    final_epsilon: float = 0.05
    """Probability of a random action after that."""
    evaluation_episodes: int = 16
    """Greedy episodes of an evaluation, played in parallel."""
    evaluation_steps: int = 1000
    """Maximum length of an evaluation episode."""

    def __post_init__(self) -> None:
        check_at_least(self, num_epochs=1, num_minibatches=1, evaluation_episodes=1)


class PQNState(NamedTuple):
    """State of `pqn`.

    Attributes:
      network: parameters of the Q-network, with the state of their optimizer.
      environment_state: state of the N parallel environments; None where they run on the host.
      environment_steps: steps so far, summed over the environments, int32 [].
    """

    network: gradients.TrainState
    environment_state: rl.EnvironmentState | None
    environment_steps: jax.Array


class QBatch(NamedTuple):
    """Transitions of a rollout as the loss receives them.

    Attributes:
      observations: `[B, ...]`.
      actions: int32 `[B]`.
      targets: lambda-returns, float `[B]`.
    """

    observations: jax.Array
    actions: jax.Array
    targets: jax.Array


def pqn(
    environment: rl.EnvironmentLike,
    model: Model,
    optimizer: optax.GradientTransformation,
    settings: PQNSettings = PQNSettings(),
    *,
    environment_steps: int,
    num_envs: int = 128,
    rollout_steps: int = 32,
) -> Learner:
    """Parallelised Q-network for discrete actions (Gallici et al., 2024).

    `update` reports "loss", "q_value" (mean of the chosen actions), "epsilon", "gradient_norm", and "return" and
    "length" of episodes that ended. `evaluate` plays greedy episodes and reports "return", "length" and "finished" (0
    if `evaluation_steps` cut an episode short). `predict` returns the greedy actions of observations `[B, ...]`, and
    epsilon-greedy ones of an `rl.ExplorationRequest`.

    Args:
      environment: the environment to act in, or an `rl.HostSpec` when it runs on the host; its actions are discrete.
      model: observations `[B, ...]` to Q-values `[B, A, 1]`, such as `models.QNetwork(..., normalization="layer")`.
      optimizer: Optax optimizer (RAdam in the paper); takes `num_epochs * num_minibatches` steps an update; its rates
        may be traced.
      settings: hyperparameters; their floats may be traced.
      environment_steps: length of the whole training, over which epsilon is annealed.
      num_envs: number of parallel environments.
      rollout_steps: steps of each environment in an update.

    Raises:
      ConfigError: `environment` is not an environment, its actions are not discrete, a number is below 1 or differs
        from the host's, or `num_minibatches` does not divide `num_envs * rollout_steps`.

    >>> from foldax import models
    >>> model = models.QNetwork(2, hidden=(8,), normalization="layer")
    >>> learner = pqn(rl.cartpole(), model, optax.radam(1e-3), environment_steps=500_000)
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), None)
    >>> jax.eval_shape(learner.predict, state, jnp.zeros((3, 4)), jax.random.key(0)).shape
    (3,)
    """
    rl.check_environment(environment, num_envs, rollout_steps)
    rl.check_minibatches(settings.num_minibatches, num_envs, rollout_steps)
    rl.check_discrete_actions("pqn", environment)
    # A new name: `predict_inputs` state the mask separately.
    masked_environment = rl.observe_legal_actions(environment)

    def epsilon_of(state: PQNState) -> jax.Array:
        decay_steps = settings.exploration_fraction * environment_steps
        return epsilon_schedule(state.environment_steps, settings.final_epsilon, decay_steps)

    def init(key: Key, examples: Batch) -> PQNState:
        state = on_policy.init_agent(masked_environment, model, optimizer, key, num_envs, examples)
        return PQNState(state.network, state.environment_state, jnp.int32(0))

    def update(state: PQNState, batch: Batch, key: Key) -> tuple[PQNState, Metrics]:
        rollout_key, shuffle_key = jax.random.split(key)
        params, epsilon = state.network.params, epsilon_of(state)

        def policy(observation: Observation, key: Key) -> tuple[jax.Array, dict[str, jax.Array]]:
            return explore(params, observation, epsilon, key), {}

        # 1. Rollout: every environment takes `rollout_steps` epsilon-greedy steps.
        environment_state, transitions, episode_metrics = on_policy.collect_rollout(
            masked_environment, policy, state.environment_state, batch, rollout_key, rollout_steps
        )
        # 2. Targets: lambda-returns that bootstrap from the greedy actions' values, Peng's Q(lambda).
        rollout = with_lambda_returns(model, params, transitions, settings.discount, settings.lambda_)
        # 3. Optimisation: `num_epochs` passes over shuffled minibatches.
        network, metrics = gradients.minibatch_epochs(
            state.network, loss_fn, optimizer, rollout, shuffle_key, settings.num_epochs, settings.num_minibatches
        )
        steps = add_steps(state.environment_steps, num_envs * rollout_steps)
        return PQNState(network, environment_state, steps), metrics | episode_metrics | {"epsilon": epsilon}

    def explore(params: Params, observation: Observation, epsilon: jax.Array, key: Key) -> jax.Array:
        legal_actions = rl.split_mask(observation)[1]
        return epsilon_greedy(_q_values(model, params, observation), epsilon, key, legal_actions)

    def loss_fn(params: Params, model_state: State, minibatch: QBatch, key: Key) -> gradients.LossAndAux:
        # Half the mean squared error between Q(s, a) of the actions that were taken and its lambda-return
        q_values = _q_values(model, params, minibatch.observations)
        action_values = jnp.take_along_axis(q_values, minibatch.actions[:, None], axis=1)[:, 0]
        value = 0.5 * jnp.square(action_values - minibatch.targets).mean()
        return value, (model_state, {"loss": value, "q_value": action_values.mean()})

    def predict(state: PQNState, inputs: jax.Array | rl.ExplorationRequest, key: Key) -> jax.Array:
        if isinstance(inputs, rl.ExplorationRequest):
            return explore(state.network.params, inputs.observation, epsilon_of(state), key)
        return _q_values(model, state.network.params, rl.as_observation(inputs)).argmax(axis=-1).astype(jnp.int32)

    def evaluate(state: PQNState, batch: Batch, key: Key) -> dict[str, jax.Array]:
        episodes, max_steps = settings.evaluation_episodes, settings.evaluation_steps
        policy = functools.partial(predict, state)
        return rl.evaluate_policy(masked_environment, policy, key, episodes, max_steps, batch)

    inputs = rl.observation_inputs(environment)
    return Learner(init, update, evaluate, predict, EnvironmentSteps(0, num_envs * rollout_steps), inputs)


def with_lambda_returns(
    model: Model, params: Params, transitions: rl.Transition, discount: chex.Numeric, lambda_: chex.Numeric
) -> QBatch:
    """Computes the lambda-returns of a rollout `[T, N, ...]` and flattens both to rows `[T * N, ...]`."""
    # max_a Q(s', a) of the legal a, by the network itself: there is no target network.
    next_values = jax.vmap(lambda x: _q_values(model, params, x).max(axis=-1))(transitions.next_observation)
    targets = rl.lambda_returns(
        transitions.reward, next_values, transitions.terminated, transitions.truncated, discount, lambda_
    )
    return on_policy.flatten_rollout(QBatch(transitions.observation, transitions.action, targets))


def _q_values(model: Model, params: Params, observation: Observation) -> jax.Array:
    """Q-values of all actions, `[B, A]`, -1e9 for those that are not legal."""
    q_values = apply_q_network(model, params, observation)[..., 0]
    return models.mask_values(q_values, rl.split_mask(observation)[1])
