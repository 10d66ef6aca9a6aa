"""Rollouts of a trained agent, on the device or on the host: whole episodes with states, observations and rewards."""

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from foldax import rl
from foldax.engine.result import Result
from foldax.errors import ConfigError, ExperimentError
from foldax.learner import State

CHUNK = 64  # steps per call of the compiled loop


class Episode(NamedTuple):
    """An episode up to its end, to the maximum number of steps, or to the first value that is not finite.

    Attributes:
      states: states of the environment, T + 1 of them; the first is before any step.
      observations: observations `[T + 1, ...]`, an array or a tree of arrays, without their mask.
      rewards: rewards `[T]`.
      is_done: whether the environment ended the episode.
      non_finite: whether the next observation, reward or state is not finite.

    >>> episode = Episode([0, 1, 2], np.zeros((3, 1)), np.array([1.0, 0.5]), is_done=True, non_finite=False)
    >>> episode.length, episode.episode_return
    (2, 1.5)
    """

    states: list[Any]
    observations: Any
    rewards: np.ndarray
    is_done: bool
    non_finite: bool

    @property
    def length(self) -> int:
        """Number of steps."""
        return len(self.rewards)

    @property
    def episode_return(self) -> float:
        """Sum of the rewards."""
        return float(self.rewards.sum())


def rollout_on_device(
    result: Result, environment: rl.Environment, num_episodes: int, seed: int, max_steps: int
) -> list[Episode]:
    """Collects one episode from each of several parallel environments; one call computes a chunk of steps of all.

    Args:
      result: the run, whose `predict` selects the actions.
      environment: the environment.
      num_episodes: number of parallel environments N.
      seed: seed of the environments and the policy.
      max_steps: maximum length of an episode.

    Returns:
      N episodes.

    Raises:
      ExperimentError: the learner has no `predict`.
    """
    predict, environment = _predict(result), rl.observe_legal_actions(environment)
    # 1. First observations, which tell whether the policy has memory.
    reset_key, step_key = jax.random.split(jax.random.key(seed))
    states, observations = jax.jit(jax.vmap(environment.reset))(jax.random.split(reset_key, num_episodes))
    # Models without memory of their own, such as Transformers, act from the whole episode so far.
    takes_history = _takes_history(predict, result.state, environment, observations)
    history_steps = max_steps if takes_history else 0
    history = jax.tree.map(lambda x: jnp.zeros((num_episodes, history_steps, *x.shape[1:]), x.dtype), observations)

    # 2. A compiled chunk of steps. Environments that are done step on; their later steps are dropped at the end.
    @jax.jit
    def advance(learner_state: State, carry: Any, key: jax.Array, start: jax.Array) -> Any:
        def one_step(carry: Any, step: jax.Array) -> Any:
            states, observations, history = carry
            # Folding in the step gives the same keys whatever the size of a chunk.
            policy_key, environment_key = jax.random.split(jax.random.fold_in(key, step))
            if takes_history:
                # Later steps are still zeros; a causal policy ignores them.
                history = jax.tree.map(lambda past, now: past.at[:, step].set(now), history, observations)
                action = predict(learner_state, history, policy_key)[:, step]
            else:
                action = predict(learner_state, observations, policy_key)
            step_keys = jax.random.split(environment_key, num_episodes)
            states, transition = jax.vmap(environment.step)(step_keys, states, action)
            after = states, transition.observation
            return (*after, history), (*after, transition.reward, transition.terminated | transition.truncated)

        return jax.lax.scan(one_step, carry, start + jnp.arange(CHUNK))

    # 3. Whole chunks until every environment is done; later steps are cut off below.
    carry: Any = states, observations, history
    chunks = [jax.tree.map(lambda x: x[None], jax.device_get((states, observations)))]
    rewards, dones = np.zeros((0, num_episodes)), np.zeros((0, num_episodes), bool)
    while len(rewards) < max_steps and not dones.any(axis=0).all():
        carry, steps = advance(result.state, carry, step_key, jnp.int32(len(rewards)))
        *after, reward, done = jax.device_get(steps)
        chunks.append(tuple(after))
        rewards, dones = np.concatenate([rewards, reward]), np.concatenate([dones, done])
    return [_cut_episode(chunks, rewards[:max_steps, i], dones[:max_steps, i], i) for i in range(num_episodes)]


def _predict(result: Result) -> Callable[..., Any]:
    if result.learner.predict is None:
        raise ExperimentError("this learner has no `predict`, so it cannot play")
    return result.learner.predict


def _takes_history(
    predict: Callable[..., Any], learner_state: State, environment: rl.Environment, observations: jax.Array
) -> bool:
    """Whether `predict` takes episodes so far `[N, T, ...]`, as a policy with memory, not single steps `[N, ...]`."""
    key, count = jax.random.key(0), rl.num_rows(observations)
    action = jax.eval_shape(lambda key: rl.random_actions(environment.action_space, key, count), key)
    sequences = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, 2, *x.shape[1:]), x.dtype), observations)

    def takes(inputs: Any, *time: int) -> bool:
        try:
            # Shapes only: nothing is computed.
            found, expected = jax.eval_shape(predict, learner_state, inputs, key), action
            shapes = [(count, *time, *leaf.shape[1:]) for leaf in jax.tree.leaves(expected)]
            return [leaf.shape for leaf in jax.tree.leaves(found)] == shapes
        except Exception:  # the shape does not fit; if none does, the rollout itself raises the reason
            return False

    return not takes(observations) and takes(sequences, 2)


def rollout_on_host(
    result: Result, host: rl.HostEnvironment, num_episodes: int, seed: int, max_steps: int
) -> list[Episode]:
    """Collects one episode from each of several host environments; its states are compressed images.

    A host environment resets in the step that ends an episode, so what it renders then belongs to the next episode:
    with `make_for_rendering` the last image repeats the one of a step earlier.

    Args:
      result: the run, whose `predict` selects the actions.
      host: the environment.
      num_episodes: number of parallel environments N.
      seed: seed of the environments and the policy.
      max_steps: maximum length of an episode.

    Returns:
      N episodes; see `decompress_image`.

    Raises:
      ConfigError: the environment cannot be rendered.
      ExperimentError: the learner has no `predict`.
    """
    act, key = jax.jit(_predict(result)), jax.random.key(seed)
    make = host.make_for_rendering or host.splits["test"].make
    lists: list[list[list]] = [[[] for _ in range(num_episodes)] for _ in range(3)]
    states, observations, rewards = lists
    is_done = np.zeros(num_episodes, bool)
    with contextlib.closing(rl.VectorEnvironment(make(num_episodes), host.info.name, seed)) as environment:
        for step in range(max_steps + 1):
            # State and observation before the step.
            images = _images(host, environment)
            for number in np.flatnonzero(~is_done):
                states[number].append(compress_image(images[number]))
                observations[number].append(environment.observation[number])
            if step == max_steps or is_done.all():
                break
            action = np.asarray(act(result.state, environment.observation, jax.random.fold_in(key, step)))
            transition, _ = environment.step(action)
            done = transition.terminated | transition.truncated
            for number in np.flatnonzero(~is_done):
                rewards[number].append(transition.reward[number])
                if done[number]:
                    # The environment has reset itself: the final observation is only in the transition.
                    last = transition.next_observation[number]
                    states[number].append(states[number][-1] if host.make_for_rendering else compress_image(last))
                    observations[number].append(last)
            is_done |= done
    each = zip(states, observations, rewards, is_done, strict=True)
    return [Episode(s, np.array(o), np.array(r), bool(done), False) for s, o, r, done in each]


def compress_image(image: chex.ArrayNumpy) -> tuple[bytes, tuple[int, ...], np.dtype]:
    """Compresses an array: an episode may hold thousands of images.

    >>> decompress_image(compress_image(np.array([[1, 2]], np.uint8)))
    array([[1, 2]], dtype=uint8)
    """
    image = np.asarray(image)
    return zlib.compress(image.tobytes(), 1), image.shape, image.dtype


def decompress_image(image: tuple[bytes, tuple[int, ...], np.dtype]) -> np.ndarray:
    """Restores the array of `compress_image`."""
    data, shape, dtype = image
    return np.frombuffer(zlib.decompress(data), dtype).reshape(shape)


def _images(host: rl.HostEnvironment, environment: rl.VectorEnvironment) -> Any:
    """Returns the rendered images of all environments, or their observations if they are not made for rendering."""
    if host.make_for_rendering is None:
        return environment.observation
    try:
        return environment.vector_env.render()
    except Exception as error:  # environments raise errors of many kinds for missing packages and displays
        raise ConfigError(f"{host.info.name} cannot be rendered: {error}") from error


def _cut_episode(chunks: list[Any], rewards: np.ndarray, dones: np.ndarray, number: int) -> Episode:
    """Returns an environment's episode up to its end, or to the first value that is not finite."""
    # Index of the first step that is done, or all steps.
    length = int(dones.argmax()) + 1 if dones.any() else len(dones)
    states, observations = [], []
    for step, (state, observation) in enumerate(_steps(chunks, number)):
        if step > length:
            break
        # An episode ends before the first value that is not finite.
        if not _is_finite(observation) or (step and not np.isfinite(rewards[step - 1])) or _has_nan(state):
            break
        states.append(state)
        observations.append(observation)
    finite_steps, non_finite = max(len(states) - 1, 0), len(states) <= length
    is_done = bool(dones.any()) and not non_finite
    stacked = jax.tree.map(lambda *parts: np.array(parts), *observations) if observations else np.array([])
    return Episode(states, rl.split_mask(stacked)[0], rewards[:finite_steps], is_done, non_finite)


def _steps(chunks: list[Any], number: int) -> Iterator[Any]:
    for chunk in chunks:
        for step in range(rl.num_rows(chunk[1])):
            yield jax.tree.map(lambda x, step=step: x[step, number], chunk)


def _is_finite(observation: Any) -> bool:
    return all(np.isfinite(part).all() for part in jax.tree.leaves(observation))


def _has_nan(state: Any) -> bool:
    leaves = (leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, np.ndarray | np.generic))
    return any(np.isnan(leaf).any() for leaf in leaves if np.issubdtype(leaf.dtype, np.floating))
