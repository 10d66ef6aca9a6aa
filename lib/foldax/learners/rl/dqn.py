"""Deep Q-networks (Mnih et al., 2015) and what came after, each a switch; all of them together are Rainbow.

An update acts `rollout_steps` times in `num_envs` copies of the environment, remembers it, and takes one step of
descent on a batch of what it remembers; see `off_policy` for what is not of this paper alone.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from foldax import rl
from foldax.errors import ConfigError
from foldax.learner import Learner
from foldax.learners import gradients
from foldax.learners.gradients import TrainState
from foldax.learners.rl import off_policy, return_distributions
from foldax.learners.rl.distributions import exploration
from foldax.learners.rl.off_policy import Experience, Memory


class DQNState(NamedTuple):
    """The networks and the world.

    Attributes:
      network: what learns.
      target: parameters that are asked for the values of what came next.
      experience: copies of the environment and the memory of what they did.
    """

    network: TrainState
    target: Any
    experience: Experience


def dqn(
    environment: rl.World,
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    head: return_distributions.Head | None = None,
    memory: Memory = Memory(),
    num_envs: int = 1,
    rollout_steps: int = 10,
    start: int = 10_000,
    batch_size: int = 128,
    discount: Any = 0.99,
    epsilon: Any = 0.05,
    epsilon_steps: Any = 250_000.0,
    target_period: int = 500,
    double: bool = False,
    evaluation_episodes: int = 16,
    evaluation_steps: int = 1000,
) -> Learner:
    """Returns a learner of what actions are worth.

    `update` reports "loss", "value" (mean of the chosen actions'), "epsilon", "gradient_norm" and, of the episodes that
    ended, "return" and "length". `evaluate` plays `evaluation_episodes` greedily and reports "return", "length" and
    "finished" of each: 0 if it was left off after `evaluation_steps`. `predict` gives the best actions of observations
    `[B, ...]`, and explores those of `rl.Explore`.

    Args:
      environment: where; or the facts of one on the host, so that a batch is `rl.Played`. Its actions are discrete.
      model: observations `[B, ...]` to `[B, A, width]`, such as `models.QNetwork`; dueling and noisy are its switches.
      optimizer: of optax; its rates may be traced.
      head: how `width` numbers describe a return; `heads.expected()` if None.
      memory: how it remembers.
      num_envs: copies of the environment.
      rollout_steps: of each in an update.
      start: transitions of random actions before the first update, at least a batch, in whole steps of all copies; on
        a host they are those of the first updates, which do not learn, and a config's start_steps are 0.
      batch_size: transitions in an update's descent.
      discount: of a reward one step later; may be traced.
      epsilon: probability of a random action in the end; may be traced.
      epsilon_steps: of the environment, in which it falls from 1 in a straight line; may be traced; 0 for noisy models.
      target_period: steps of the environment between copies of the network to the target.
      double: whether the network chooses the next action that the target judges (van Hasselt et al., 2016).
      evaluation_episodes: played at once.
      evaluation_steps: most of each.

    Raises:
      ConfigError: the environment is none, actions are no choices, or a number does not fit the others or the host's.
    """
    head = return_distributions.expected() if head is None else head
    counts = dict(target_period=target_period, evaluation_episodes=evaluation_episodes)
    off_policy.check(environment, memory, num_envs, rollout_steps, start, batch_size, **counts)
    if not isinstance(environment.actions, rl.Discrete):
        raise ConfigError(f"dqn: actions of {environment.name} are numbers, not choices; take ppo, sac or td3")
    descend = loss(model, head, double)

    def init(key: jax.Array, examples: Any) -> DQNState:
        of_network, of_world = jax.random.split(key)
        experience, seen = off_policy.begin(environment, memory, of_world, num_envs, start, examples)
        params = model.init({"params": of_network}, seen[:1])["params"]
        return DQNState(gradients.create(params, optimizer), jax.tree.map(jnp.copy, params), experience)

    def update(state: DQNState, batch: Any, key: jax.Array) -> tuple[DQNState, dict[str, Any]]:
        of_actions, of_draws, of_loss = jax.random.split(key, 3)
        act = functools.partial(explore, state.network.params)
        before = state.experience.environment_steps
        played = (environment, memory, state.experience, act, of_actions, rollout_steps, batch)
        experience, ended = off_policy.play(*played)
        after = experience.environment_steps

        def learn(state: DQNState) -> tuple[DQNState, dict[str, jax.Array]]:
            drawn = off_policy.draw(memory, state.experience, of_draws, batch_size, discount)
            batch = (drawn.sample, state.target, drawn.weights)
            network, metrics = gradients.step(state.network, descend, optimizer, batch, of_loss)
            experience = off_policy.surprised(memory, state.experience, drawn.places, metrics.pop("surprise"))
            copied = before // target_period < after // target_period
            target = jax.tree.map(lambda new, old: jnp.where(copied, new, old), network.params, state.target)
            return DQNState(network, target, experience), metrics

        state, metrics = off_policy.learned(environment, start, learn, state._replace(experience=experience))
        return state, metrics | ended | {"epsilon": exploration(after, epsilon, epsilon_steps)}

    def explore(params: Any, observation: jax.Array, steps: jax.Array, key: jax.Array) -> jax.Array:
        coin, choice, noise = jax.random.split(key, 3)
        best = return_distributions.best(head, worth(model, params, observation, noise))
        anything = off_policy.random_actions(environment.actions, choice, len(observation))
        chance = exploration(steps, epsilon, epsilon_steps)
        action = jnp.where(jax.random.bernoulli(coin, chance, (len(observation),)), anything, best)
        return off_policy.at_first(environment, start, steps, action, choice)

    def predict(state: DQNState, inputs: Any, key: jax.Array) -> jax.Array:
        if isinstance(inputs, rl.Explore):
            return explore(state.network.params, inputs.observation, state.experience.environment_steps, key)
        return return_distributions.best(head, worth(model, state.network.params, jnp.asarray(inputs)))

    def evaluate(state: DQNState, batch: Any, key: jax.Array) -> dict[str, Any]:
        act = functools.partial(predict, state)
        return off_policy.evaluated(environment, act, batch, key, evaluation_episodes, evaluation_steps)

    return Learner(init, update, evaluate, predict, off_policy.acts(environment, num_envs, rollout_steps, start))


def worth(model: Any, params: Any, observation: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Returns what the network says of all actions, `[B, A, width]`; with a key, its noisy layers are disturbed."""
    streams = {} if key is None else {"dropout": key}
    return model.apply({"params": params}, observation, train=key is not None, rngs=streams)


def loss(model: Any, head: return_distributions.Head, double: bool) -> gradients.Loss:
    """Returns the loss of what was drawn: `(sample [B], target's parameters, weights [B])`."""

    def total(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        drawn, target, weights = batch
        now, choosing, judging = jax.random.split(key, 3)
        outputs = return_distributions.chosen(worth(model, params, drawn.observation, now), drawn.action)
        after = worth(model, target, drawn.next_observation, judging)
        chooser = worth(model, params, drawn.next_observation, choosing) if double else after
        following = return_distributions.chosen(after, return_distributions.best(head, chooser))
        losses, surprise = head.loss(outputs, following, drawn.reward, drawn.discount)
        value = (weights * losses).mean()
        return value, (model_state, {"loss": value, "value": head.mean(outputs).mean(), "surprise": surprise})

    return total
