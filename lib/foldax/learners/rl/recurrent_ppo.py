"""Proximal policy optimisation with a memory, for worlds that do not show all that counts (Hausknecht & Stone, 2015).

The memory of each copy goes through its episode beside what it sees (see `rl.remembering`). Learning runs over whole
sequences of the rollout, from the memory that their copy had at the start, which begins anew where an episode does;
minibatches are of copies.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from foldax import rl
from foldax.errors import ConfigError, check_counts
from foldax.learner import Acts, Learner
from foldax.learners import gradients
from foldax.learners.rl import on_policy
from foldax.learners.rl.distributions import policy
from foldax.learners.rl.on_policy import AgentState
from foldax.learners.rl.ppo import Surrogate, judge


def recurrent_ppo(
    environment: rl.Environment,
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 8,
    rollout_steps: int = 128,
    epochs: int = 4,
    minibatches: int = 4,
    discount: Any = 0.99,
    trace_decay: Any = 0.95,
    surrogate: Surrogate = Surrogate(),
    evaluation_episodes: int = 16,
    evaluation_steps: int = 1000,
    greedy_evaluation: bool = True,
) -> Learner:
    """Returns a learner of a policy that remembers, for choices and for numbers.

    It reports and evaluates as `ppo` does. `predict` is given an episode's observations so far `[B, T, ...]`, from its
    first one on, and gives the likeliest actions at each of these times `[B, T, ...]`.

    Args:
      environment: where.
      model: of sequences, such as `models.RecurrentActorCritic`.
      optimizer: of optax; takes `epochs * minibatches` steps an update; its rates may be traced.
      num_envs: copies of the environment.
      rollout_steps: that each takes in an update; gradients reach no further back.
      epochs: how often an update's sequences are worked through.
      minibatches: parts of them, which must divide the copies.
      discount: of a reward one step later; may be traced.
      trace_decay: lambda of the advantages' estimates (GAE); may be traced.
      surrogate: the loss.
      evaluation_episodes: played at once.
      evaluation_steps: most of each.
      greedy_evaluation: whether they are played by the likeliest actions, or by drawn ones.

    Raises:
      ConfigError: the environment is none, or on the host, a number is below 1, or the minibatches do not divide
        the copies.
    """
    rl.check_device("recurrent_ppo", environment)
    check_counts(num_envs=num_envs, rollout_steps=rollout_steps, epochs=epochs, minibatches=minibatches)
    check_counts(evaluation_episodes=evaluation_episodes)
    if num_envs % minibatches:
        raise ConfigError(f"minibatches: {minibatches} do not divide {num_envs} copies, whose sequences stay whole")
    nothing = jax.tree.map(lambda x: x[0], model.initial_memory(1))
    world, descend = rl.remembering(on_policy.within(environment), nothing), loss(model, surrogate)

    def policy_of(params: Any, greedy: bool = False) -> Any:
        def act(observation: Any, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
            said, memory = step(model, params, observation)
            chances = policy(said.policy, said.log_std)
            action = chances.mode() if greedy else chances.sample(key)
            return (action, memory), {"log_probability": chances.log_probability(action), "value": said.value}

        return act

    def init(key: jax.Array, examples: Any) -> AgentState:
        of_network, of_world = jax.random.split(key)
        actors = rl.begin(world, of_world, num_envs)
        params = model.init({"params": of_network}, actors.observation[0][:1, None])["params"]
        return AgentState(gradients.create(params, optimizer), actors)

    def update(state: AgentState, batch: Any, key: jax.Array) -> tuple[AgentState, dict[str, Any]]:
        of_play, of_order = jax.random.split(key)
        act = policy_of(state.network.params)
        actors, seen, ended = on_policy.played(world, act, state.actors, None, of_play, rollout_steps)
        rows = sequences(model, state.network.params, seen, discount, trace_decay)
        network, metrics = on_policy.worked_through(
            state.network, descend, optimizer, rows, of_order, epochs, minibatches
        )
        return AgentState(network, actors), metrics | ended

    def evaluate(state: AgentState, batch: Any, key: jax.Array) -> dict[str, Any]:
        act = policy_of(state.network.params, greedy_evaluation)
        return on_policy.evaluated(world, act, batch, key, evaluation_episodes, evaluation_steps)

    def predict(state: AgentState, inputs: Any, key: jax.Array) -> jax.Array:
        said, _ = model.apply({"params": state.network.params}, jnp.asarray(inputs))
        return on_policy.bounded(environment.actions, policy(said.policy, said.log_std).mode())

    return Learner(init, update, evaluate, predict, Acts(0, num_envs * rollout_steps))


def step(model: Any, params: Any, observation: Any) -> tuple[Any, Any]:
    """Returns the `models.Opinion` `[N]` of `(observation [N, ...], memory)`, and the memory after it."""
    shown, memory = observation
    said, after = model.apply({"params": params}, shown[:, None], memory)
    return jax.tree.map(lambda x: x[:, 0], said), after


def sequences(model: Any, params: Any, seen: rl.Transition, discount: Any, trace_decay: Any) -> dict[str, Any]:
    """Returns what was seen `[T, N, ...]`, with advantages and the values' targets, as sequences `[N, T, ...]`.

    "memory" is that before the first step, and "starts" says where another episode began.
    """
    nexts = jax.vmap(lambda observation: step(model, params, observation)[0].value)(seen.next_observation)
    over = seen.terminated | seen.truncated
    rows = on_policy.advantages(seen, nexts, discount, trace_decay)
    rows |= {"observation": seen.observation[0], "action": seen.action[0]}
    rows["starts"] = jnp.concatenate([jnp.zeros_like(over[:1]), over[:-1]])
    memory = jax.tree.map(lambda x: x[0], seen.observation[1])
    return {**jax.tree.map(lambda x: x.swapaxes(0, 1), rows), "memory": memory}


def loss(model: Any, surrogate: Surrogate) -> gradients.Loss:
    """Returns the loss of sequences `[B, T, ...]`, as `sequences` gives them."""

    def total(params: Any, model_state: Any, rows: Any, key: jax.Array) -> Any:
        said, _ = model.apply({"params": params}, rows["observation"], rows["memory"], rows["starts"])
        judged = {name: rows[name] for name in ("action", "log_probability", "value", "advantage", "target")}
        said, judged = on_policy.in_rows((said, judged))
        value, metrics = judge(said, judged, surrogate)
        return value, (model_state, metrics)

    return total
