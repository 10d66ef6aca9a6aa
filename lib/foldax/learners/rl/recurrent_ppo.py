"""PPO with a recurrent policy, for environments that are partially observed (Hausknecht & Stone, 2015).

The recurrent state, here called memory, is carried through each episode beside the observation (see
`rl.with_policy_memory`). The loss runs the network over whole sequences of the rollout, from the memory with which
each began; at the start of an episode the memory is reset. Minibatches are of environments, so that sequences stay
whole. The loss is that of `ppo`.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from foldax import models, rl
from foldax.errors import ConfigError, check_positive
from foldax.learner import Batch, EnvironmentSteps, Key, Learner, Metrics, Model, Params, State
from foldax.learners import gradients
from foldax.learners.rl import on_policy
from foldax.learners.rl.ppo import PPOSettings, ppo_loss
from foldax.models.adapters.checks import check_model
from foldax.rl.environment import Observation


class RecurrentAgentState(NamedTuple):
    """State of `recurrent_ppo`.

    Attributes:
      network: parameters of the actor-critic, with the state of their optimizer.
      environment_state: state of the N parallel environments, with the memories of their policies.
    """

    network: gradients.TrainState
    environment_state: rl.EnvironmentState


class SequenceBatch(NamedTuple):
    """Sequences of a rollout.

    Attributes:
      rollout: transitions with their advantages, `[N, T, ...]`.
      episode_starts: bool `[N, T]`, true at the first step of an episode; the first column is false.
      memory: recurrent states before the first step, `[N, ...]`.
    """

    rollout: on_policy.RolloutBatch
    episode_starts: jax.Array
    memory: chex.ArrayTree


def recurrent_ppo(
    environment: rl.Environment,
    model: models.RecurrentActorCritic,
    optimizer: optax.GradientTransformation,
    settings: PPOSettings = PPOSettings(),
    *,
    num_envs: int = 8,
    rollout_steps: int = 128,
    loss: on_policy.ActorCriticLoss = ppo_loss,
    advantages: on_policy.AdvantageFunction = on_policy.gae_targets,
) -> Learner:
    """PPO with a recurrent policy, for discrete and continuous actions.

    It reports and evaluates as `ppo` does. `predict` receives an episode's observations so far, `[B, T, ...]` from its
    first one on, and returns the most probable action at each of these steps, `[B, T, ...]`.

    Args:
      environment: the environment to act in, on the device.
      model: sequences `[B, T, ...]` to `(models.ActorCriticOutput [B, T], memory)`, such as
        `models.RecurrentActorCritic`.
      optimizer: Optax optimizer; takes `num_epochs * num_minibatches` steps an update; its rates may be traced.
      settings: as of `ppo`, without normalisation of observations and rewards; its floats may be traced.
      num_envs: number of parallel environments, which `num_minibatches` divides.
      rollout_steps: steps of each environment in an update; gradients reach no further back.
      loss: as in `ppo`.
      advantages: estimator, as in `ppo`.

    Raises:
      ConfigError: `environment` is not an environment on the device, a number is below 1, `num_minibatches` does not
        divide `num_envs`, or the settings ask for normalisation.

    >>> model = models.RecurrentActorCritic(2, hidden=(8,), width=8)
    >>> learner = recurrent_ppo(rl.cartpole(), model, optax.adam(1e-3))
    >>> state = jax.eval_shape(learner.init, jax.random.key(0), None)
    >>> jax.eval_shape(learner.predict, state, jnp.zeros((5, 7, 4)), jax.random.key(0)).shape
    (5, 7)
    """
    check_model(model)
    rl.check_device_environment("recurrent_ppo", environment)
    check_positive(num_envs=num_envs, rollout_steps=rollout_steps)
    if num_envs % settings.num_minibatches:
        environments = f"{num_envs} environments, whose sequences stay whole"
        raise ConfigError(f"num_minibatches: {settings.num_minibatches} does not divide {environments}")
    if settings.normalize_observations or settings.normalize_rewards:
        raise ConfigError("recurrent_ppo: normalize_observations and normalize_rewards must be False; take ppo")
    # Of one environment: `with_policy_memory` adds no batch axis.
    initial_memory = jax.tree.map(lambda x: x[0], model.initial_memory(1))
    # A new name: `predict` needs the true bounds of `environment`.
    memory_environment = rl.with_policy_memory(on_policy.for_policy(environment), initial_memory)

    def policy_of(params: Params, greedy: bool = False) -> rl.Policy:
        def select_action(observation: Any, key: Key) -> tuple[Any, dict[str, jax.Array]]:
            (distribution, value), memory = _step(model, params, observation)
            action = distribution.mode() if greedy else distribution.sample(key)
            return (action, memory), {"log_prob": distribution.log_prob(action), "value": value}

        return select_action

    def init(key: Key, examples: Batch) -> RecurrentAgentState:
        init_key, environment_key = jax.random.split(key)
        environment_state = rl.reset_environments(memory_environment, environment_key, num_envs)
        observation = jax.tree.map(lambda x: x[:1, None], rl.split_mask(environment_state.observation[0])[0])
        params = gradients.init_params(init_key, model, observation)
        rl.check_network(environment, jax.eval_shape(model.apply, {"params": params}, observation)[0].distribution)
        return RecurrentAgentState(gradients.init_train_state(params, optimizer), environment_state)

    def update(state: RecurrentAgentState, batch: Batch, key: Key) -> tuple[RecurrentAgentState, Metrics]:
        rollout_key, shuffle_key = jax.random.split(key)
        params = state.network.params
        # 1. Rollout: every environment takes `rollout_steps` steps with the current policy and its memory.
        environment_state, transitions, episode_metrics = on_policy.collect_rollout(
            memory_environment, policy_of(params), state.environment_state, None, rollout_key, rollout_steps
        )
        # 2. Advantages
        # The next observation holds the memory after the action, also where the episode ended.
        next_values = jax.vmap(lambda x: _step(model, params, x)[0].value)(transitions.next_observation)
        estimates, value_targets = advantages(transitions, next_values, settings.discount, settings.gae_lambda)
        sequences = as_sequences(transitions, estimates, value_targets)
        # 3. Optimisation: `num_epochs` passes over shuffled minibatches of whole sequences.
        network, metrics = gradients.minibatch_epochs(
            state.network, loss_fn, optimizer, sequences, shuffle_key, settings.num_epochs, settings.num_minibatches
        )
        metrics["explained_variance"] = rl.explained_variance(transitions.extras["value"], value_targets)
        return RecurrentAgentState(network, environment_state), metrics | episode_metrics

    def loss_fn(params: Params, model_state: State, sequences: SequenceBatch, key: Key) -> gradients.LossAndAux:
        observations = sequences.rollout.observations
        output, _ = _apply(model, params, observations, sequences.memory, sequences.episode_starts)
        # Once the network has run over time, the loss treats all steps alike.
        value, metrics = loss(*on_policy.flatten_rollout((output, sequences.rollout)), settings)
        return value, (model_state, metrics)

    def evaluate(state: RecurrentAgentState, batch: Batch, key: Key) -> dict[str, jax.Array]:
        policy = policy_of(state.network.params, settings.greedy_evaluation)
        episodes, max_steps = settings.evaluation_episodes, settings.evaluation_steps
        return rl.evaluate_policy(memory_environment, lambda *args: policy(*args)[0], key, episodes, max_steps, batch)

    def predict(state: RecurrentAgentState, inputs: jax.Array, key: Key) -> jax.Array:
        output, _ = _apply(model, state.network.params, rl.as_observation(inputs))
        return rl.clip_action(environment.action_space, output.distribution.mode())

    inputs = rl.observation_inputs(environment, "time")
    return Learner(init, update, evaluate, predict, EnvironmentSteps(0, num_envs * rollout_steps), inputs)


def _step(model: Model, params: Params, observation: Any) -> tuple[models.ActorCriticOutput, chex.ArrayTree]:
    """Applies the network to one step `(observation [N, ...], memory)`: outputs `[N]`, and the memory after it."""
    observation, memory = observation
    output, memory = _apply(model, params, jax.tree.map(lambda x: x[:, None], observation), memory)
    return jax.tree.map(lambda x: x[:, 0], output), memory


def _apply(
    model: Model, params: Params, observations: Observation, *memory: Any
) -> tuple[models.ActorCriticOutput, chex.ArrayTree]:
    """Applies the network to sequences `[N, T, ...]`; illegal actions get probability 0."""
    inputs, legal_actions = rl.split_mask(observations)
    output, memory_after = model.apply({"params": params}, inputs, *memory)
    distribution = models.mask_distribution(output.distribution, legal_actions)
    return output._replace(distribution=distribution), memory_after


def as_sequences(transitions: rl.Transition, advantages: jax.Array, value_targets: jax.Array) -> SequenceBatch:
    """Turns a rollout `[T, N, ...]` with pairs of observation and memory into sequences `[N, T, ...]`."""
    # The memories inside the sequence are dropped: the loss recomputes them from the first one.
    (observation, memory), (action, _) = transitions.observation, transitions.action
    transitions = transitions._replace(observation=observation, action=action)
    # An episode starts at the step after the end of another one.
    done = transitions.terminated | transitions.truncated
    episode_starts = jnp.concatenate([jnp.zeros_like(done[:1]), done[:-1]])
    rollout = on_policy.rollout_batch(transitions, advantages, value_targets)
    rollout, episode_starts = jax.tree.map(lambda x: x.swapaxes(0, 1), (rollout, episode_starts))
    return SequenceBatch(rollout, episode_starts, jax.tree.map(lambda x: x[0], memory))
