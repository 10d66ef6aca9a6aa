"""Playing a run's agent, on the device or on the host: what it does until its episodes are over."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax import rl
from foldax.engine.result import Result
from foldax.errors import ConfigError, ExperimentError

CHUNK = 64  # steps in a call of the compiled loop


class Episode(NamedTuple):
    """What was done until it was over, left off, or no longer finite.

    Attributes:
      states: of the environment, `length` + 1 of them; the first is before any step.
      observations: `[length + 1, ...]`.
      rewards: `[length]`.
      ended: whether it was over by itself.
      broken: whether what came next is not finite.
    """

    states: list[Any]
    observations: np.ndarray
    rewards: np.ndarray
    ended: bool
    broken: bool

    @property
    def length(self) -> int:
        """Its steps."""
        return len(self.rewards)

    @property
    def total(self) -> float:
        """Its return."""
        return float(self.rewards.sum())


def played_here(result: Result, world: rl.Environment, count: int, seed: int, most_steps: int) -> list[Episode]:
    """Returns one episode of each of `count` copies; a chunk of steps of all is one call."""
    predict = _predict(result)
    of_start, of_steps = jax.random.split(jax.random.key(seed))
    states, seen = jax.jit(jax.vmap(world.reset))(jax.random.split(of_start, count))
    remembers = _remembers(predict, result.state, world, seen)
    history = jnp.zeros((count, most_steps if remembers else 0, *seen.shape[1:]), seen.dtype)

    @jax.jit
    def advance(
        learned: Any, states: Any, seen: jax.Array, history: jax.Array, key: jax.Array, start: jax.Array
    ) -> Any:
        def one(carry: Any, step: jax.Array) -> Any:
            states, seen, history = carry
            of_policy, of_world = jax.random.split(jax.random.fold_in(key, step))
            if remembers:
                history = history.at[:, step].set(seen)
                action = predict(learned, history, of_policy)[:, step]
            else:
                action = predict(learned, seen, of_policy)
            states, answer = jax.vmap(world.step)(jax.random.split(of_world, count), states, action)
            shown = states, answer.observation
            return (*shown, history), (*shown, answer.reward, answer.terminated | answer.truncated)

        return jax.lax.scan(one, (states, seen, history), start + jnp.arange(CHUNK))

    chunks = [jax.tree.map(lambda x: x[None], jax.device_get((states, seen)))]
    rewards, overs = np.zeros((0, count)), np.zeros((0, count), bool)
    while len(rewards) < most_steps and not overs.any(axis=0).all():
        carry, answers = advance(result.state, states, seen, history, of_steps, jnp.int32(len(rewards)))
        states, seen, history = carry
        *after, reward, over = jax.device_get(answers)
        chunks.append(tuple(after))
        rewards, overs = np.concatenate([rewards, reward]), np.concatenate([overs, over])
    return [_episode(chunks, rewards[:most_steps, i], overs[:most_steps, i], i) for i in range(count)]


def _predict(result: Result) -> Callable[..., Any]:
    if result.learner.predict is None:
        raise ExperimentError("this learner has no `predict`, so it cannot play")
    return result.learner.predict


def _remembers(predict: Any, learned: Any, world: rl.Environment, seen: jax.Array) -> bool:
    """Returns whether `predict` is to be given episodes so far `[B, T, ...]`: it takes these, and no single steps."""
    space, key = world.actions, jax.random.key(0)
    one = space.shape if isinstance(space, rl.Box) else ()
    sequences = jax.ShapeDtypeStruct((len(seen), 2, *seen.shape[1:]), seen.dtype)

    def takes(inputs: Any, shape: tuple[int, ...]) -> bool:
        try:
            return jax.eval_shape(predict, learned, inputs, key).shape == shape
        except Exception:  # it does not; if it takes nothing at all, playing tells why
            return False

    return not takes(seen, (len(seen), *one)) and takes(sequences, (len(seen), 2, *one))


def played_on_host(result: Result, host: rl.Host, count: int, seed: int, most_steps: int) -> list[Episode]:
    """Returns one episode of each of `count` copies, whose states are packed pictures (see `unpacked`).

    Where environments draw themselves, the last picture is of a step earlier: they begin anew with the step that ends
    an episode, so that what they draw then is of the next one.
    """
    act, key = jax.jit(_predict(result)), jax.random.key(seed)
    make = host.pictured or host.splits["test"].make
    found: list[tuple[list, list, list]] = [([], [], []) for _ in range(count)]
    ended = np.zeros(count, bool)
    with contextlib.closing(rl.Stage(make(count), host.info.name, seed)) as stage:
        for step in range(most_steps + 1):
            images = _images(host, stage)
            for copy in np.flatnonzero(~ended):
                found[copy][0].append(_packed(images[copy]))
                found[copy][1].append(stage.observation[copy])
            if step == most_steps or ended.all():
                break
            action = np.asarray(act(result.state, stage.observation, jax.random.fold_in(key, step)))
            seen, _ = stage.step(action)
            over = seen.terminated | seen.truncated
            for copy in np.flatnonzero(~ended):
                found[copy][2].append(seen.reward[copy])
                if over[copy]:
                    last = seen.next_observation[copy]
                    found[copy][0].append(found[copy][0][-1] if host.pictured else _packed(last))
                    found[copy][1].append(last)
            ended |= over
    each = zip(found, ended, strict=True)
    return [Episode(s, np.array(o), np.array(r), bool(over), False) for (s, o, r), over in each]


def _packed(image: Any) -> tuple[bytes, tuple[int, ...], np.dtype]:
    """Returns an array that takes little room: there may be thousands."""
    image = np.asarray(image)
    return zlib.compress(image.tobytes(), 1), image.shape, image.dtype


def unpacked(image: tuple[bytes, tuple[int, ...], np.dtype]) -> np.ndarray:
    """Returns the array that a host's state is."""
    data, shape, kind = image
    return np.frombuffer(zlib.decompress(data), kind).reshape(shape)


def _images(host: rl.Host, stage: rl.Stage) -> Any:
    """Returns a picture of every copy, or what it sees."""
    if host.pictured is None:
        return stage.observation
    try:
        return stage.environments.render()
    except Exception as error:  # the environments' own, which tell of packages and screens that are not there
        raise ConfigError(f"{host.info.name} cannot be drawn: {error}") from error


def _episode(chunks: list[Any], rewards: np.ndarray, overs: np.ndarray, copy: int) -> Episode:
    """Returns a copy's episode up to its end, or to where something is not finite."""
    length = int(overs.argmax()) + 1 if overs.any() else len(overs)
    states, observations = [], []
    for number, (state, observation) in enumerate(_rows(chunks, copy)):
        if number > length:
            break
        if not _finite(observation) or (number and not np.isfinite(rewards[number - 1])) or not _no_nan(state):
            break
        states.append(state)
        observations.append(observation)
    finite = max(len(states) - 1, 0)
    broken = len(states) <= length
    return Episode(states, np.array(observations), rewards[:finite], bool(overs.any()) and not broken, broken)


def _rows(chunks: list[Any], copy: int) -> Iterator[Any]:
    for chunk in chunks:
        for row in range(len(chunk[1])):
            yield jax.tree.map(lambda x, at=row: x[at, copy], chunk)


def _finite(value: Any) -> bool:
    return bool(np.isfinite(value).all())


def _no_nan(state: Any) -> bool:
    leaves = (leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, np.ndarray | np.generic))
    return not any(np.isnan(leaf).any() for leaf in leaves if np.issubdtype(leaf.dtype, np.floating))
