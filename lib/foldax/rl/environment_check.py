"""Check of an environment before an agent learns in it: shapes, spaces, determinism, ends, masks and price."""

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError, check_positive, first_line
from foldax.learner import Key
from foldax.rl.environment import (
    Action,
    Environment,
    EnvironmentState,
    Observation,
    Step,
    reset_environments,
    step_environments,
)
from foldax.rl.observations import observe_legal_actions, split_mask
from foldax.rl.spaces import Box, Discrete, MultiDiscrete, Space, Tuple, action_components, random_actions

KINDS = {"f": "float32", "b": "bool"}
DEAR_RESET = 0.5  # price of a reset in steps from which other resets are advised


class EnvironmentReport(NamedTuple):
    """Result of `check`; as text it is a few lines.

    Attributes:
      name: name of the environment.
      episodes: episodes of random legal actions that ended.
      terminated: those that terminated; the others were truncated.
      mean_length: their mean number of steps; NaN without any.
      reset_price: time of a reset in steps.
      steps_per_second: steps of all environments, without resets.
      notes: what may be a mistake, or can be faster.
    """

    name: str
    episodes: int
    terminated: int
    mean_length: float
    reset_price: float
    steps_per_second: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Episodes, price and notes, a line each."""
        ends = f"{self.terminated} terminated, {self.episodes - self.terminated} truncated"
        played = (
            f"{self.episodes} episodes of random actions ended ({ends}), after {self.mean_length:.4g} steps on average"
        )
        price = f"{self.steps_per_second:,.0f} steps a second; a reset costs {self.reset_price:.2g} steps"
        return "\n".join((f"{self.name}: {played}", price, *self.notes))


def check(environment: Environment, *, num_steps: int = 300, num_envs: int = 8, seed: int = 0) -> EnvironmentReport:
    """Checks that an environment is one that agents can learn in, and measures what its steps and resets cost.

    Args:
      environment: the environment, on the device.
      num_steps: steps of random legal actions in each environment.
      num_envs: number N of parallel environments.
      seed: seed of the environments and actions.

    Returns:
      The report, with notes on what is allowed and may be a mistake: episodes that never end, a time limit reported as
      termination, resets that cost more than steps.

    Raises:
      ConfigError: a space, shape, dtype or mask is not as `Environment` and `Step` say, values are out of bounds or not
        finite, no action is legal in a state, a result depends on more than its arguments, or a small integer
        overflows.

    >>> from foldax import rl
    >>> report = check(rl.bandit(), num_steps=2)
    >>> report.episodes, report.mean_length
    (16, 1.0)
    """
    check_positive(num_steps=num_steps, num_envs=num_envs)
    if not isinstance(environment, Environment):
        raise ConfigError(f"check: expected an rl.Environment, got {type(environment).__name__}")
    name = environment.name
    # 1. Shapes and dtypes, by tracing only
    _check_spaces(name, environment.observation_space, environment.action_space)
    masked = _check_shapes(environment)
    # 2. Results that depend on the arguments only
    _check_traces(environment)
    # 3. Random legal actions
    play = jax.jit(lambda key: _play(masked, key, num_steps, num_envs))
    facts, again = (jax.device_get(play(jax.random.key(seed))) for _ in range(2))
    if any(a.tobytes() != b.tobytes() for a, b in zip(jax.tree.leaves(facts), jax.tree.leaves(again), strict=True)):
        raise ConfigError(f"{name}: the same key gave other results the second time")
    _check_facts(name, facts)
    # 4. Price
    reset_seconds, step_seconds = _prices(environment, num_envs)
    return _report(name, facts, reset_seconds / step_seconds, num_envs / step_seconds)


def _check_spaces(name: str, observation_space: Any, action_space: Any) -> None:
    boxes = jax.tree.leaves(observation_space, is_leaf=lambda part: isinstance(part, Box))
    if not boxes or not all(isinstance(part, Box) for part in boxes):
        raise ConfigError(f"{name}: observation_space must be an rl.Box or a tree of them; it is {observation_space}")
    if not isinstance(action_space, (Discrete, MultiDiscrete, Box, Tuple)):
        allowed = "an rl.Discrete, MultiDiscrete, Box or Tuple"
        raise ConfigError(f"{name}: action_space must be {allowed}; it is {action_space}")
    for space in action_components(action_space) or (action_space,):
        if isinstance(space, Discrete) and space.num < 1:
            raise ConfigError(f"{name}: action_space has {space.num} actions; it needs 1 or more")


def _check_shapes(environment: Environment) -> Environment:
    """Checks the outputs of `reset` and `step`; returns the environment with masks in its observations."""
    name, key = environment.name, jax.random.key(0)
    state, observation = _traced(name, "reset", environment.reset, key)
    expected = jax.tree.map(
        lambda box: jax.ShapeDtypeStruct(box.shape, jax.dtypes.canonicalize_dtype(box.low.dtype)),
        environment.observation_space,
        is_leaf=lambda part: isinstance(part, Box),
    )
    action = jax.eval_shape(lambda key: _one_action(environment.action_space, key), key)
    after, step = _traced(name, "step", environment.step, key, state, action)
    if not isinstance(step, Step):
        raise ConfigError(f"{name}: step must return (state, rl.Step); its second result is {type(step).__name__}")
    _check_same(name, "the observation of reset", observation, "observation_space", expected)
    _check_same(name, "the observation of step", step.observation, "observation_space", expected)
    _check_same(name, "the state after a step", after, "the one after a reset", state)
    players = () if environment.num_players == 1 else (environment.num_players,)
    for field, shape, kind in (("reward", players, "f"), ("terminated", (), "b"), ("truncated", (), "b")):
        found = getattr(step, field)
        allowed = f"{KINDS[kind]}{list(shape)}"
        if not hasattr(found, "dtype") or found.shape != shape or np.dtype(found.dtype).kind != kind:
            raise ConfigError(f"{name}: {field} is {_described(found)}; it must be {allowed}")
    for metric, value in step.info.items():
        if any(leaf.shape != () for leaf in jax.tree.leaves(value)):
            raise ConfigError(
                f"{name}: info[{metric!r}] is {_described(value)}; it must be a scalar or an Average of one"
            )
    return observe_legal_actions(environment)


def _traced(name: str, function: str, call: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    try:
        result = jax.eval_shape(call, *arguments)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        remedy = "compute with jax.numpy, and jnp.where or lax.cond"
        problem = f"{function} uses NumPy, or a Python branch, on values that are known only when it runs"
        raise ConfigError(f"{name}: {problem}; {remedy} ({first_line(error)})") from error
    except TypeError as error:
        raise ConfigError(
            f"{name}: {function} failed or returned something that is no array: {first_line(error)}"
        ) from error
    if not isinstance(result, tuple) or len(result) != 2:
        expected = "(state, observation)" if function == "reset" else "(state, rl.Step)"
        raise ConfigError(f"{name}: {function} must return {expected}; it returns {type(result).__name__}")
    return result


def _check_same(name: str, what: str, found: Any, where: str, expected: Any) -> None:
    """Checks that trees have the same structure, shapes and dtypes; `what` and `where` name them in the error."""
    if _described(found) != _described(expected):
        raise ConfigError(f"{name}: {what} is {_described(found)}, but {where} has {_described(expected)}")


def _described(tree: Any) -> str:
    described = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else str(x), tree)
    return str(described).replace("'", "")


def _check_traces(environment: Environment) -> None:
    key = jax.random.key(0)
    state, _ = jax.eval_shape(environment.reset, key)
    action = jax.eval_shape(lambda key: _one_action(environment.action_space, key), key)
    for function, arguments in (("reset", (key,)), ("step", (key, state, action))):
        traces = []
        for _ in range(2):
            # A new function each time: JAX keeps the traces of old ones.
            call = getattr(environment, function)
            trace = jax.make_jaxpr(lambda *arguments, call=call: call(*arguments))(*arguments)
            constants = [np.asarray(constant).tobytes() for constant in trace.consts if not _is_key(constant)]
            traces.append((re.sub(r"0x[0-9a-f]+", "", str(trace.jaxpr)), constants))
        if traces[0] != traces[1]:
            problem = f"{function} gives another program each time: it reads something that changes"
            remedy = "keep counters in the state, and draw random numbers from the key"
            raise ConfigError(f"{environment.name}: {problem} (a Python counter, np.random); {remedy}")


def _is_key(value: Any) -> bool:
    return hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def _one_action(space: Space, key: Key) -> Action:
    return jax.tree.map(lambda x: x[0], _random_actions(space, key, 1, None))


def _random_actions(space: Space, key: Key, count: int, legal_actions: Any) -> Action:
    return random_actions(_bounded(space), key, count, legal_actions)


def _bounded(space: Space) -> Space:
    """Bounds from -1 to 1 where there are none, to sample from."""
    if isinstance(space, Tuple):
        return Tuple(tuple(map(_bounded, space.spaces)))
    if not isinstance(space, Box):
        return space
    return Box(np.where(np.isfinite(space.low), space.low, -1), np.where(np.isfinite(space.high), space.high, 1))


def _play(environment: Environment, key: Key, num_steps: int, num_envs: int) -> dict[str, jax.Array]:
    """Facts of each step of random legal actions, `[num_steps, N]`."""
    space = environment.observation_space

    def step(state: EnvironmentState, key: Key) -> tuple[EnvironmentState, dict[str, jax.Array]]:
        action_key, step_key = jax.random.split(key)
        observation, legal = split_mask(state.observation)
        action = _random_actions(environment.action_space, action_key, num_envs, legal)
        after, transition, _ = step_environments(environment, state, action, step_key)
        done = transition.terminated | transition.truncated
        masks = [mask.any(axis=-1) for mask in jax.tree.leaves(legal)]
        facts = {
            "terminated": transition.terminated,
            "done": done,
            "length": state.episode_length + 1,
            "reward": transition.reward,
            "in_bounds": _in_bounds(space, observation) & _in_bounds(space, split_mask(transition.next_observation)[0]),
            "has_legal": jnp.stack(masks).all(axis=0) if masks else jnp.ones(num_envs, bool),
            "overflows": _overflows(state.state, after.state) & ~done,
        }
        return after, facts

    # A game of several players has a reward for each; their sum does for these facts.
    if environment.num_players > 1:
        environment = _with_summed_rewards(environment)
    reset_key, play_key = jax.random.split(key)
    state = reset_environments(environment, reset_key, num_envs)
    return jax.lax.scan(step, state, jax.random.split(play_key, num_steps))[1]


def _with_summed_rewards(environment: Environment) -> Environment:
    def step(key: Key, state: Any, action: Action) -> tuple[Any, Step]:
        state, result = environment.step(key, state, action)
        return state, result._replace(reward=result.reward.sum())

    return environment._replace(step=step)


def _in_bounds(space: Any, observation: Observation) -> jax.Array:
    def inside(box: Box, values: jax.Array) -> jax.Array:
        values = values.astype(jnp.float32)
        slack = 1e-4 * (1 + jnp.abs(values))  # for rounding
        low, high = (np.asarray(bound, np.float32)[None] for bound in box)
        okay = (values >= low - slack) & (values <= high + slack) & jnp.isfinite(values)
        return okay.reshape(len(values), -1).all(axis=-1)

    parts = jax.tree.map(inside, space, observation, is_leaf=lambda part: isinstance(part, Box))
    return jnp.stack(jax.tree.leaves(parts)).all(axis=0)


def _overflows(before: Any, after: Any) -> jax.Array:
    """Whether a signed integer of 8 or 16 bits went from its largest to its smallest value, bool `[N]`."""
    found = [jnp.zeros(len(jax.tree.leaves(before)[0]), bool)]
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if old.dtype in (jnp.int8, jnp.int16):
            limits = jnp.iinfo(old.dtype)
            wrapped = (old == limits.max) & (new == limits.min)
            found.append(wrapped.reshape(len(old), -1).any(axis=-1))
    return jnp.stack(found).any(axis=0)


def _check_facts(name: str, facts: dict[str, np.ndarray]) -> None:
    problems = {
        "has_legal": "no action is legal in a state whose episode goes on; terminate it there, or allow one",
        "in_bounds": "an observation is outside of the bounds of observation_space, or not finite",
    }
    for fact, problem in problems.items():
        if not facts[fact].all():
            raise ConfigError(f"{name}: {problem} (at step {int(np.argwhere(~facts[fact])[0][0]) + 1})")
    if not np.isfinite(facts["reward"]).all():
        step = int(np.argwhere(~np.isfinite(facts["reward"]))[0][0]) + 1
        raise ConfigError(f"{name}: a reward is not finite (at step {step})")
    if facts["overflows"].any():
        remedy = "make it int32"
        raise ConfigError(f"{name}: an integer of 8 or 16 bits in the state overflows to negative values; {remedy}")


def _prices(environment: Environment, num_envs: int) -> tuple[float, float]:
    """Seconds of a reset and of a step of N environments."""
    keys = jax.random.split(jax.random.key(0), num_envs)
    reset, step = jax.jit(jax.vmap(environment.reset)), jax.jit(jax.vmap(environment.step))
    state, _ = reset(keys)
    action = _random_actions(environment.action_space, keys[0], num_envs, None)

    def seconds(call: Callable[..., Any], *arguments: Any) -> float:
        times = []
        for _ in range(6):
            start = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            times.append(time.perf_counter() - start)
        return min(times)  # the first one compiles

    return seconds(reset, keys), seconds(step, keys, state, action)


def _report(name: str, facts: dict[str, np.ndarray], reset_price: float, steps_per_second: float) -> EnvironmentReport:
    done, lengths, notes = facts["done"], facts["length"][facts["done"]], []
    terminated = int(facts["terminated"][done].sum())
    if not len(lengths):
        notes.append(f"no episode ended in {len(done)} steps; rl.wrappers.time_limit truncates episodes")
    elif terminated == len(lengths) > 1 and len(set(lengths.tolist())) == 1 and lengths[0] > 20:
        limit = f"all {terminated} episodes terminated after exactly {lengths[0]} steps"
        notes.append(f"{limit}; if that is a time limit, report it as truncated")
    if reset_price > DEAR_RESET:
        remedy = "rl.wrappers.pool_resets or cache_resets compute few of them, not one at each step"
        notes.append(f"a reset costs {reset_price:.2g} steps: {remedy}")
    mean_length = float(lengths.mean()) if len(lengths) else float("nan")
    return EnvironmentReport(name, len(lengths), terminated, mean_length, reset_price, steps_per_second, tuple(notes))
