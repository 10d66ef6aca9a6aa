"""Proximal policy optimisation (Schulman et al., 2017).

An update plays `rollout_steps` steps in `num_envs` copies of the environment, then works through what was seen
`epochs` times, in `minibatches` parts. The copies, in the midst of their episodes, are part of the state. Where the
environment is on the host, its steps come as the batch, played by the same policy.
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
from foldax.learners.policies import policy


class PPOState(NamedTuple):
    """The network and the world.

    Attributes:
      network: an actor and a critic.
      actors: copies of the environment; None where they are on the host.
    """

    network: TrainState
    actors: Any


class Surrogate(NamedTuple):
    """What is descended, in the words of the paper; all floats may be traced.

    Attributes:
      clip: how far a step may change an action's probability, as a share, to any gain.
      value_clip: how far it may change a value, to any gain; None: as far as it likes.
      entropy_weight: of the policy's entropy, which is ascended.
      value_weight: of half the squared error of the values.
      standardize: whether advantages of a minibatch are centred, and divided by their deviation.
    """

    clip: Any = 0.2
    value_clip: Any = 0.2
    entropy_weight: Any = 0.01
    value_weight: Any = 0.5
    standardize: bool = True


def ppo(
    environment: rl.Environment | None,
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 4,
    rollout_steps: int = 128,
    epochs: int = 4,
    minibatches: int = 4,
    discount: Any = 0.99,
    trace_decay: Any = 0.95,
    surrogate: Surrogate = Surrogate(),
    evaluation_episodes: int = 16,
    evaluation_steps: int = 1000,
) -> Learner:
    """Returns a learner of a policy, for choices and for numbers.

    `update` reports "loss", "policy_loss", "value_loss", "entropy", "clipped" (share of actions), "divergence" (from
    the policy that played, estimated in nats), "gradient_norm" and, of episodes that ended, "return" and "length".
    `evaluate` plays `evaluation_episodes` greedily and reports "return" and "length" of each; those that take longer
    than `evaluation_steps` are left off there. `predict` gives the likeliest actions of observations `[B, ...]`, and
    draws those of `rl.Explore`.

    Args:
      environment: where; None: on the host, so that a batch is `rl.Played`, and evaluation's is finished episodes.
      model: `(observations [B, ...]) -> models.Opinion`, such as `models.ActorCritic`.
      optimizer: of optax; takes `epochs * minibatches` steps an update; its rates may be traced.
      num_envs: copies of the environment.
      rollout_steps: that each takes in an update.
      epochs: how often an update's steps are worked through.
      minibatches: parts of them, which must divide their number.
      discount: of a reward one step later; may be traced.
      trace_decay: lambda of the advantages' estimates (GAE); may be traced.
      surrogate: the loss.
      evaluation_episodes: played at once.
      evaluation_steps: most of each.

    Raises:
      ConfigError: a number is below 1, or the minibatches do not divide the steps.
    """
    steps = num_envs * rollout_steps
    counts = dict(num_envs=num_envs, rollout_steps=rollout_steps, epochs=epochs, minibatches=minibatches)
    _check(steps, counts | {"evaluation_episodes": evaluation_episodes})
    descend = loss(model, surrogate)

    act = functools.partial(acting, model)

    def init(key: jax.Array, examples: Any) -> PPOState:
        of_network, of_world = jax.random.split(key)
        actors = None if environment is None else rl.begin(environment, of_world, num_envs)
        observation = examples if actors is None else actors.observation
        variables = model.init({"params": of_network}, observation[:1])
        return PPOState(gradients.create(variables["params"], optimizer), actors)

    def update(state: PPOState, batch: Any, key: jax.Array) -> tuple[PPOState, dict[str, Any]]:
        of_play, of_order = jax.random.split(key)
        if environment is None:
            actors, seen, finished = None, judged(model, state.network, batch.seen), batch.finished
        else:
            play = functools.partial(act, state.network)
            actors, seen, finished = rl.rollout(environment, play, state.actors, of_play, rollout_steps)
        rows = targets(model, state.network, seen, discount, trace_decay)

        def epoch(network: TrainState, key: jax.Array) -> tuple[TrainState, Any]:
            order = jax.random.permutation(key, steps).reshape(minibatches, -1)

            def one(network: TrainState, chosen: jax.Array) -> tuple[TrainState, Any]:
                part = jax.tree.map(lambda x: x[chosen], rows)
                return gradients.step(network, descend, optimizer, part, key)

            return jax.lax.scan(one, network, order)

        network, metrics = jax.lax.scan(epoch, state.network, jax.random.split(of_order, epochs))
        means = {name: value.mean() for name, value in metrics.items()}
        ended = jax.tree.map(jnp.sum, {"return": finished.episode_return, "length": finished.episode_length})
        return PPOState(network, actors), means | ended

    def evaluate(state: PPOState, batch: Any, key: jax.Array) -> dict[str, Any]:
        if environment is None:
            return batch
        play = functools.partial(act, state.network, greedy=True)
        found = rl.episodes(environment, play, key, evaluation_episodes, evaluation_steps)
        return {"return": found["return"], "length": found["length"].astype(jnp.float32)}

    def predict(state: PPOState, inputs: Any, key: jax.Array) -> jax.Array:
        if isinstance(inputs, rl.Explore):
            return act(state.network, inputs.observation, key)[0]
        return act(state.network, jnp.asarray(inputs), key, greedy=True)[0]

    return Learner(init, update, evaluate, predict)


def acting(
    model: Any, network: TrainState, observation: jax.Array, key: jax.Array, greedy: bool = False
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns actions for observations `[N, ...]`, drawn or the likeliest, and what the network says of them."""
    said = model.apply({"params": network.params}, observation)
    chances = policy(said.policy, said.log_std)
    action = chances.mode() if greedy else chances.sample(key)
    return action, {"log_probability": chances.log_probability(action), "value": said.value}


def judged(model: Any, network: TrainState, seen: rl.Transition) -> rl.Transition:
    """Adds to actions `[T, N, ...]` what the network says of them; it must be the one that took them."""

    def one(observation: jax.Array, action: jax.Array) -> dict[str, jax.Array]:
        said = model.apply({"params": network.params}, observation)
        return {"log_probability": policy(said.policy, said.log_std).log_probability(action), "value": said.value}

    return seen._replace(extras=jax.vmap(one)(seen.observation, seen.action))


def targets(
    model: Any, network: TrainState, seen: rl.Transition, discount: Any, trace_decay: Any
) -> dict[str, jax.Array]:
    """Returns what was seen `[T, N, ...]` with advantages, and targets of its values, as rows `[T * N, ...]`."""
    # Values of what came next are asked for anew: at an episode's end it is not the next row's observation.
    nexts = jax.vmap(lambda observation: model.apply({"params": network.params}, observation).value)
    values, ends = seen.extras["value"], (seen.terminated, seen.truncated)
    advantages = rl.generalized_advantages(
        seen.reward, values, nexts(seen.next_observation), *ends, discount=discount, trace_decay=trace_decay
    )
    rows = {"observation": seen.observation, "action": seen.action, **seen.extras}
    rows |= {"advantage": advantages, "target": advantages + values}
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


def loss(model: Any, surrogate: Surrogate) -> gradients.Loss:
    """Returns the loss of rows `[B]`: "observation", "action", "log_probability" and "value" of the policy that played,
    "advantage" and "target"."""

    def total(params: Any, model_state: Any, rows: Any, key: jax.Array) -> Any:
        said = model.apply({"params": params}, rows["observation"])
        chances, advantages = policy(said.policy, said.log_std), rows["advantage"]
        if surrogate.standardize:
            advantages = (advantages - advantages.mean()) * jnp.reciprocal(advantages.std() + 1e-8)
        change = chances.log_probability(rows["action"]) - rows["log_probability"]
        ratio = jnp.exp(change)
        bounded = jnp.clip(ratio, 1 - surrogate.clip, 1 + surrogate.clip)
        policy_loss = -jnp.minimum(ratio * advantages, bounded * advantages).mean()
        errors = jnp.square(said.value - rows["target"])
        if surrogate.value_clip is not None:
            near = rows["value"] + jnp.clip(said.value - rows["value"], -surrogate.value_clip, surrogate.value_clip)
            errors = jnp.maximum(errors, jnp.square(near - rows["target"]))
        value_loss, entropy = 0.5 * errors.mean(), chances.entropy().mean()
        value = policy_loss + surrogate.value_weight * value_loss - surrogate.entropy_weight * entropy
        metrics = {"loss": value, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        metrics |= {"clipped": (jnp.abs(ratio - 1) > surrogate.clip).mean(), "divergence": (ratio - 1 - change).mean()}
        return value, (model_state, metrics)

    return total


def _check(steps: int, counts: dict[str, int]) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name}: {value} must be 1 or more")
    if steps % counts["minibatches"]:
        parts = f"{counts['num_envs']} x {counts['rollout_steps']}"
        raise ConfigError(f"minibatches: {counts['minibatches']} do not divide {parts} = {steps} steps")
