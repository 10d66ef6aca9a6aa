"""Twin delayed deep deterministic policy gradients (Fujimoto et al., 2018).

An update acts `rollout_steps` times in `num_envs` copies of the environment, remembers it (see `off_policy`), and takes
`descents` steps of descent of the critics, each on a batch of its own; after every `policy_delay` of them the actor
takes one, and all targets follow. So the actor's is no branch, of which a `vmap` would run both sides.
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
from foldax.learners.rl import off_policy
from foldax.learners.rl.off_policy import Experience, Memory
from foldax.rl import wrappers


class TD3State(NamedTuple):
    """The networks and the world.

    Attributes:
      actor: what acts.
      critic: two opinions of what actions are worth.
      target: parameters of an actor and a critic that follow slowly.
      experience: copies of the environment and the memory of what they did.
    """

    actor: TrainState
    critic: TrainState
    target: tuple[Any, Any]
    experience: Experience


class Noise(NamedTuple):
    """What disturbs actions from -1 to 1; all may be traced.

    Attributes:
      exploration: deviation of the noise in what is done.
      target: deviation of the noise in what targets suppose to be done next, which smooths them.
      most: of the latter.
    """

    exploration: Any = 0.1
    target: Any = 0.2
    most: Any = 0.5


def td3(
    environment: rl.World,
    actor: Any,
    critic: Any,
    actor_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
    *,
    memory: Memory = Memory(1_000_000),
    num_envs: int = 1,
    rollout_steps: int = 2,
    descents: int = 2,
    policy_delay: int = 2,
    start: int = 1_000,
    batch_size: int = 256,
    discount: Any = 0.99,
    target_rate: Any = 0.005,
    noise: Noise = Noise(),
    evaluation_episodes: int = 16,
    evaluation_steps: int = 1000,
) -> Learner:
    """Returns a learner of a policy for actions that are numbers between bounds.

    `update` reports "loss" (the critics'), "value", "actor_loss", "gradient_norm" (the critics') and, of the episodes
    that ended, "return" and "length". `evaluate` plays `evaluation_episodes` without noise and reports "return",
    "length" and "finished" of each: 0 if it was left off after `evaluation_steps`. `predict` gives actions for
    observations `[B, ...]`, and disturbs those of `rl.Explore`.

    Args:
      environment: where; or the facts of one on the host, so that a batch is `rl.Played`. Its actions are numbers
        between finite bounds.
      actor: observations `[B, ...]` to actions `[B, A]` from -1 to 1, such as `models.Actor`.
      critic: observations and such actions to `[B, 2]`, such as `models.TwinCritic`.
      actor_optimizer: of optax; its rates may be traced.
      critic_optimizer: that of the critics.
      memory: how it remembers.
      num_envs: copies of the environment.
      rollout_steps: of each in an update.
      descents: of the critics in an update, a multiple of `policy_delay`.
      policy_delay: descents of the critics for one of the actor.
      start: transitions of random actions before the first update, at least a batch, in whole steps of all copies; on
        a host they are those of the first updates, which do not learn, and a config's start_steps are 0.
      batch_size: transitions in a descent.
      discount: of a reward one step later; may be traced.
      target_rate: share of the networks in the next targets' parameters, in (0, 1]; may be traced.
      noise: in actions.
      evaluation_episodes: played at once.
      evaluation_steps: most of each.

    Raises:
      ConfigError: the environment is none, actions are choices or have no bounds, or a number does not fit the others
        or the host's.
    """
    counts = dict(descents=descents, policy_delay=policy_delay, evaluation_episodes=evaluation_episodes)
    off_policy.check(environment, memory, num_envs, rollout_steps, start, batch_size, **counts)
    off_policy.check_bounded("td3", environment)
    if descents % policy_delay:
        raise ConfigError(f"descents: {descents} must be a multiple of policy_delay, {policy_delay}")
    world = off_policy.in_units(environment)

    def init(key: jax.Array, examples: Any) -> TD3State:
        of_actor, of_critic, of_world = jax.random.split(key, 3)
        experience, seen = off_policy.begin(world, memory, of_world, num_envs, start, examples)
        observation = seen[:1]
        action = off_policy.random_actions(world.actions, key, 1)
        judge = gradients.create(critic.init({"params": of_critic}, observation, action)["params"], critic_optimizer)
        act = gradients.create(actor.init({"params": of_actor}, observation)["params"], actor_optimizer)
        return TD3State(act, judge, jax.tree.map(jnp.copy, (act.params, judge.params)), experience)

    def update(state: TD3State, batch: Any, key: jax.Array) -> tuple[TD3State, dict[str, Any]]:
        act = functools.partial(explore, state.actor.params)
        of_actions, of_descents = jax.random.split(key)
        batch = off_policy.units_of(environment, batch)
        played = (world, memory, state.experience, act, of_actions, rollout_steps, batch)
        experience, ended = off_policy.play(*played)
        keys = jax.random.split(of_descents, (descents // policy_delay, policy_delay))

        def learn(state: TD3State) -> tuple[TD3State, dict[str, jax.Array]]:
            state, metrics = jax.lax.scan(descend, state, keys)
            return state, {name: value.mean() for name, value in metrics.items()}

        state, metrics = off_policy.learned(environment, start, learn, state._replace(experience=experience))
        return state, metrics | ended

    def descend(state: TD3State, keys: jax.Array) -> tuple[TD3State, dict[str, jax.Array]]:
        """Takes a step of the critics with each of the keys, then one of the actor on the last batch."""
        state, (metrics, seen) = jax.lax.scan(judge, state, keys)
        batch = (seen[-1], state.critic.params)
        act, of_act = gradients.step(state.actor, actor_loss(actor, critic), actor_optimizer, batch, keys[-1])
        target = optax.incremental_update((act.params, state.critic.params), state.target, target_rate)
        return state._replace(actor=act, target=target), metrics | {"actor_loss": of_act["loss"]}

    def judge(state: TD3State, key: jax.Array) -> tuple[TD3State, tuple[dict[str, jax.Array], jax.Array]]:
        of_draw, of_loss = jax.random.split(key)
        drawn = off_policy.draw(memory, state.experience, of_draw, batch_size, discount)
        descent = critic_loss(actor, critic, noise)
        network, metrics = gradients.step(state.critic, descent, critic_optimizer, (drawn, state.target), of_loss)
        experience = off_policy.surprised(memory, state.experience, drawn.places, metrics.pop("surprise"))
        return state._replace(critic=network, experience=experience), (metrics, drawn.sample.observation)

    def explore(params: Any, observation: jax.Array, steps: jax.Array, key: jax.Array) -> jax.Array:
        action = actor.apply({"params": params}, observation)
        action = jnp.clip(action + noise.exploration * jax.random.normal(key, action.shape), -1.0, 1.0)
        return off_policy.at_first(world, start, steps, action, key)

    def predict(state: TD3State, inputs: Any, key: jax.Array) -> jax.Array:
        if isinstance(inputs, rl.Explore):
            action = explore(state.actor.params, inputs.observation, state.experience.environment_steps, key)
            return wrappers.from_unit(environment.actions, action)
        action = actor.apply({"params": state.actor.params}, jnp.asarray(inputs))
        return wrappers.from_unit(environment.actions, action)

    def evaluate(state: TD3State, batch: Any, key: jax.Array) -> dict[str, Any]:
        act = functools.partial(predict, state)
        return off_policy.evaluated(environment, act, batch, key, evaluation_episodes, evaluation_steps)

    return Learner(init, update, evaluate, predict, off_policy.acts(environment, num_envs, rollout_steps, start))


def critic_loss(actor: Any, critic: Any, noise: Noise) -> gradients.Loss:
    """Returns the loss of `(off_policy.Drawn [B], parameters of the target's actor and critic)`."""

    def total(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        drawn, (acting, judging) = batch
        sample = drawn.sample
        action = actor.apply({"params": acting}, sample.next_observation)
        near = jnp.clip(noise.target * jax.random.normal(key, action.shape), -noise.most, noise.most)
        action = jnp.clip(action + near, -1.0, 1.0)
        worth = critic.apply({"params": judging}, sample.next_observation, action).min(axis=-1)
        wanted = jax.lax.stop_gradient(sample.reward + sample.discount * worth)
        values = critic.apply({"params": params}, sample.observation, sample.action)
        return off_policy.twin_loss(values, wanted, drawn.weights, model_state)

    return total


def actor_loss(actor: Any, critic: Any) -> gradients.Loss:
    """Returns the loss of `(observations [B, ...], critics' parameters)`."""

    def total(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        observation, judging = batch
        action = actor.apply({"params": params}, observation)
        value = -critic.apply({"params": judging}, observation, action)[:, 0].mean()
        return value, (model_state, {"loss": value})

    return total
