"""Soft actor-critic (Haarnoja et al., 2018): a policy that earns much and stays as random as it is told to.

An update acts `rollout_steps` times in `num_envs` copies of the environment, remembers it (see `off_policy`), and takes
`descents` steps of descent, each on a batch of its own: of the critics, of the actor, and of the temperature.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from foldax import rl
from foldax.learner import Learner
from foldax.learners import gradients
from foldax.learners.gradients import TrainState
from foldax.learners.rl import off_policy
from foldax.learners.rl.distributions import Squashed
from foldax.learners.rl.off_policy import Experience, Memory
from foldax.rl import wrappers


class SACState(NamedTuple):
    """The networks and the world.

    Attributes:
      actor: what acts.
      critic: two opinions of what actions are worth.
      target: parameters of a critic that follows slowly.
      temperature: what a nat of entropy is worth, as its logarithm float32 [].
      experience: copies of the environment and the memory of what they did.
    """

    actor: TrainState
    critic: TrainState
    target: Any
    temperature: TrainState
    experience: Experience


def sac(
    environment: rl.World,
    actor: Any,
    critic: Any,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    *,
    memory: Memory = Memory(1_000_000),
    num_envs: int = 1,
    rollout_steps: int = 1,
    descents: int = 1,
    start: int = 1_000,
    batch_size: int = 256,
    discount: Any = 0.99,
    target_rate: Any = 0.005,
    temperature: float = 1.0,
    target_entropy: Any = None,
    evaluation_episodes: int = 16,
    evaluation_steps: int = 1000,
    greedy_evaluation: bool = True,
) -> Learner:
    """Returns a learner of a policy for actions that are numbers between bounds.

    `update` reports "loss" (the critics'), "value", "actor_loss", "entropy" (estimated in nats, of actions from -1 to
    1), "temperature", "gradient_norm" (the critics') and, of the episodes that ended, "return" and "length". `evaluate`
    plays `evaluation_episodes` and reports "return", "length" and "finished" of each: 0 if it was left off after
    `evaluation_steps`. `predict` gives the likeliest actions of observations `[B, ...]`, and draws those of
    `rl.Explore`.

    Args:
      environment: where; or the facts of one on the host, so that a batch is `rl.Played`. Its actions are numbers
        between finite bounds.
      actor: observations `[B, ...]` to means and log deviations `[B, A]`, such as `models.GaussianActor`.
      critic: observations and actions `[B, A]` from -1 to 1 to `[B, 2]`, such as `models.TwinCritic`.
      actor_optimizer: of optax; its rates may be traced.
      critic_optimizer: that of the critics and, for itself, of the temperature.
      memory: how it remembers.
      num_envs: copies of the environment.
      rollout_steps: of each in an update.
      descents: in an update.
      start: transitions of random actions before the first update, at least a batch, in whole steps of all copies; on
        a host they are those of the first updates, which do not learn, and a config's start_steps are 0.
      batch_size: transitions in a descent.
      discount: of a reward one step later; may be traced.
      target_rate: share of the critics in the next target's parameters, in (0, 1]; may be traced.
      temperature: at first, above 0.
      target_entropy: in nats, that the temperature is moved to hold; -A if None; may be traced.
      evaluation_episodes: played at once.
      evaluation_steps: most of each.
      greedy_evaluation: whether they are played by the likeliest actions, or by drawn ones; a host says it itself.

    Raises:
      ConfigError: the environment is none, actions are choices or have no bounds, or a number does not fit the others
        or the host's.
    """
    counts = dict(descents=descents, evaluation_episodes=evaluation_episodes)
    off_policy.check(environment, memory, num_envs, rollout_steps, start, batch_size, **counts)
    off_policy.check_bounded("sac", environment)
    rl.check_world(environment, num_envs, rollout_steps, greedy_evaluation)
    world = off_policy.in_units(environment)
    wanted = -float(world.actions.shape[0]) if target_entropy is None else target_entropy  # type: ignore[union-attr]

    def init(key: jax.Array, examples: Any) -> SACState:
        of_actor, of_critic, of_world = jax.random.split(key, 3)
        experience, seen = off_policy.begin(world, memory, of_world, num_envs, start, examples)
        observation = seen[:1]
        action = off_policy.random_actions(world.actions, key, 1)
        judge = gradients.create(critic.init({"params": of_critic}, observation, action)["params"], critic_optimizer)
        act = gradients.create(actor.init({"params": of_actor}, observation)["params"], actor_optimizer)
        target, heat = jax.tree.map(jnp.copy, judge.params), jnp.log(jnp.float32(temperature))
        return SACState(act, judge, target, gradients.create(heat, critic_optimizer), experience)

    def update(state: SACState, batch: Any, key: jax.Array) -> tuple[SACState, dict[str, Any]]:
        act = functools.partial(explore, state.actor.params)
        of_actions, of_descents = jax.random.split(key)
        batch = off_policy.units_of(environment, batch)
        played = (world, memory, state.experience, act, of_actions, rollout_steps, batch)
        experience, ended = off_policy.play(*played)
        keys = jax.random.split(of_descents, descents)

        def learn(state: SACState) -> tuple[SACState, dict[str, jax.Array]]:
            state, metrics = jax.lax.scan(descend, state, keys)
            return state, {name: value.mean() for name, value in metrics.items()}

        state, metrics = off_policy.learned(environment, start, learn, state._replace(experience=experience))
        return state, metrics | ended

    def descend(state: SACState, key: jax.Array) -> tuple[SACState, dict[str, jax.Array]]:
        of_draw, of_critic, of_actor = jax.random.split(key, 3)
        drawn = off_policy.draw(memory, state.experience, of_draw, batch_size, discount)
        heat = jnp.exp(state.temperature.params)
        seen = (drawn, state.target, state.actor.params, heat)
        judge, metrics = gradients.step(state.critic, critic_loss(actor, critic), critic_optimizer, seen, of_critic)
        experience = off_policy.surprised(memory, state.experience, drawn.places, metrics.pop("surprise"))
        judged = (drawn.sample.observation, judge.params, heat)
        act, of_act = gradients.step(state.actor, actor_loss(actor, critic), actor_optimizer, judged, of_actor)
        entropy = (of_act["entropy"], wanted)
        warm, _ = gradients.step(state.temperature, temperature_loss, critic_optimizer, entropy, of_actor)
        target = optax.incremental_update(judge.params, state.target, target_rate)
        metrics |= {"actor_loss": of_act["loss"], "entropy": of_act["entropy"], "temperature": heat}
        return SACState(act, judge, target, warm, experience), metrics

    def explore(params: Any, observation: jax.Array, steps: jax.Array, key: jax.Array) -> jax.Array:
        drawn = policy(actor, params, observation).sample(key)
        return off_policy.at_first(world, start, steps, drawn, key)

    def predict(state: SACState, inputs: Any, key: jax.Array) -> jax.Array:
        if isinstance(inputs, rl.Explore):
            action = explore(state.actor.params, inputs.observation, state.experience.environment_steps, key)
            return wrappers.from_unit(environment.actions, action)
        action = policy(actor, state.actor.params, jnp.asarray(inputs)).mode()
        return wrappers.from_unit(environment.actions, action)

    def evaluate(state: SACState, batch: Any, key: jax.Array) -> dict[str, Any]:
        def act(observation: jax.Array, key: jax.Array) -> jax.Array:
            return predict(state, observation if greedy_evaluation else rl.Explore(observation), key)

        return off_policy.evaluated(environment, act, batch, key, evaluation_episodes, evaluation_steps)

    return Learner(init, update, evaluate, predict, off_policy.acts(environment, num_envs, rollout_steps, start))


def policy(actor: Any, params: Any, observation: jax.Array) -> Squashed:
    """Returns the distribution of actions from -1 to 1."""
    return Squashed(*actor.apply({"params": params}, observation))


def critic_loss(actor: Any, critic: Any) -> gradients.Loss:
    """Returns the loss of `(off_policy.Drawn [B], target's parameters, actor's parameters, temperature)`."""

    def total(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        drawn, target, acting, heat = batch
        sample = drawn.sample
        action, log_probability = policy(actor, acting, sample.next_observation).sampled(key)
        # The less favourable opinion: the better one is often an error (Fujimoto et al., 2018).
        worth = critic.apply({"params": target}, sample.next_observation, action).min(axis=-1)
        wanted = sample.reward + sample.discount * (worth - heat * log_probability)
        values = critic.apply({"params": params}, sample.observation, sample.action)
        return off_policy.twin_loss(values, jax.lax.stop_gradient(wanted), drawn.weights, model_state)

    return total


def actor_loss(actor: Any, critic: Any) -> gradients.Loss:
    """Returns the loss of `(observations [B, ...], critics' parameters, temperature)`."""

    def total(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        observation, judging, heat = batch
        action, log_probability = policy(actor, params, observation).sampled(key)
        worth = critic.apply({"params": judging}, observation, action).min(axis=-1)
        value = (heat * log_probability - worth).mean()
        return value, (model_state, {"loss": value, "entropy": -log_probability.mean()})

    return total


def temperature_loss(log_temperature: jax.Array, model_state: Any, batch: Any, key: jax.Array) -> Any:
    """Is lower for a higher temperature if the entropy is below what is wanted, of `(entropy, wanted entropy)`."""
    entropy, wanted = batch
    return log_temperature * (entropy - wanted), (model_state, {})
