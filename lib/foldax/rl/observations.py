"""Observations as trees of arrays, among them those with the actions that are legal."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from foldax.errors import ConfigError
from foldax.learner import InputSpec, Key
from foldax.rl.environment import Action, Environment, EnvironmentLike, HostSpec, LegalActions, Observation, State, Step
from foldax.rl.spaces import Box, Discrete, Space, action_components

E = TypeVar("E", bound=EnvironmentLike)


class MaskedObservation(NamedTuple):
    """An observation with the actions that are legal in it, as a policy receives and a replay buffer stores both.

    Attributes:
      observation: array or tree of arrays, `[N, ...]`.
      legal_actions: bool `[N, A]`; a tuple of such masks for a `MultiDiscrete` or a `Tuple` of actions.
    """

    observation: Observation
    legal_actions: LegalActions


def split_mask(observation: Observation) -> tuple[Observation, LegalActions | None]:
    """Splits an observation into what the network receives and the legal actions; None: all are legal.

    >>> split_mask(jnp.zeros(2))[1] is None
    True
    """
    if isinstance(observation, MaskedObservation):
        return observation.observation, observation.legal_actions
    return observation, None


def observe_legal_actions(environment: E) -> E:
    """Makes the observations of an environment with illegal actions `MaskedObservation`s; others stay as they are.

    Learners, evaluation and `foldax play` do this themselves. From then on the mask travels with the observation, so
    that a policy is masked alike when it acts and when it learns, also where its transitions were stored.

    Args:
      environment: the environment, with `legal_actions` or without; a `HostSpec`, which has none, stays as it is.

    Raises:
      ConfigError: the mask does not fit the actions.

    >>> from foldax import rl
    >>> environment = rl.cartpole()._replace(legal_actions=lambda state: jnp.array([True, False]))
    >>> observe_legal_actions(environment).reset(jax.random.key(0))[1].legal_actions.tolist()
    [True, False]
    """
    if isinstance(environment, HostSpec) or environment.legal_actions is None:
        return environment
    on_device: Environment = environment
    legal_actions: Callable[[State], LegalActions] = environment.legal_actions
    _check_mask(environment, legal_actions)

    def reset(key: Key) -> tuple[State, Observation]:
        state, observation = on_device.reset(key)
        return state, MaskedObservation(observation, legal_actions(state))

    def step(key: Key, state: State, action: Action) -> tuple[State, Step]:
        state, result = on_device.step(key, state, action)
        return state, result._replace(observation=MaskedObservation(result.observation, legal_actions(state)))

    return on_device._replace(reset=reset, step=step, legal_actions=None)  # type: ignore[return-value]  # E is one here


def _check_mask(environment: Environment, legal_actions: Callable[[State], LegalActions]) -> None:
    state = jax.eval_shape(environment.reset, jax.random.key(0))[0]
    mask, expected = jax.eval_shape(legal_actions, state), expected_mask(environment.action_space)
    # As text: inside a sweep's program shapes also have a sharding, which does not matter.
    found, allowed = (
        str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)).replace("'", "") for tree in (mask, expected)
    )
    if found != allowed:
        raise ConfigError(f"{environment.name}: legal_actions returns {found}; its actions need {allowed}")


def expected_mask(space: Space) -> Any:
    """Shape and dtype of the mask of a space of actions; None for a `Box`, which has no illegal actions.

    >>> from foldax import rl
    >>> expected_mask(rl.Discrete(3)).shape
    (3,)
    """
    if isinstance(space, Discrete):
        return jax.ShapeDtypeStruct((space.num,), jnp.bool_)
    components = action_components(space)
    return None if components is None else tuple(map(expected_mask, components))


def observation_inputs(environment: EnvironmentLike, *axes: str) -> dict[str, InputSpec] | None:
    """States the inputs of a policy's `predict`: observations, after the axes that are named, and legal actions.

    Args:
      environment: its space gives shapes and dtypes; the parts of a dict of observations are named by its keys.
      *axes: "time" for a policy with memory, which takes the observations of the episode so far.

    Returns:
      The inputs by name; None where observations or masks are trees of another form.

    >>> from foldax import rl
    >>> observation_inputs(rl.cartpole(), "time")["inputs"].shape
    ('time', 4)
    """
    meaning = "observations of the episode so far" if axes else "observations"
    space = environment.observation_space
    parts = space if isinstance(space, dict) else {"inputs": space}
    if not all(isinstance(part, Box) for part in parts.values()):
        return None

    def dtype(part: Box) -> Any:
        return environment.dtype if isinstance(environment, HostSpec) else jax.dtypes.canonicalize_dtype(part.low.dtype)

    specs = {name: InputSpec((*axes, *part.shape), dtype(part), meaning) for name, part in parts.items()}
    if isinstance(environment, Environment) and environment.legal_actions is not None:
        mask = expected_mask(environment.action_space)
        if not isinstance(mask, jax.ShapeDtypeStruct):
            return None
        specs["legal_actions"] = InputSpec((*axes, *mask.shape), mask.dtype, "whether each action is legal")
    return specs


def as_observation(inputs: Any) -> Observation:
    """Turns the inputs of a policy's `predict` into observations: see `observation_inputs`.

    Args:
      inputs: an array `[B, ...]`, a dict of arrays whose "legal_actions" are the mask, or a `MaskedObservation`.

    >>> as_observation({"inputs": [[0.5]], "legal_actions": [[True, False]]}).legal_actions.shape
    (1, 2)
    """
    if isinstance(inputs, MaskedObservation):
        return inputs
    if not isinstance(inputs, dict):
        return jax.tree.map(jnp.asarray, inputs) if isinstance(inputs, tuple) else jnp.asarray(inputs)
    parts = {name: jax.tree.map(jnp.asarray, part) for name, part in inputs.items() if name != "legal_actions"}
    observation = parts["inputs"] if list(parts) == ["inputs"] else parts
    legal_actions = inputs.get("legal_actions")
    return observation if legal_actions is None else MaskedObservation(observation, jnp.asarray(legal_actions))


def num_rows(observation: Observation) -> int:
    """Length N of the leading axis of observations `[N, ...]`.

    >>> num_rows({"image": jnp.zeros((5, 8, 8, 1)), "vector": jnp.zeros((5, 2))})
    5
    """
    return len(jax.tree.leaves(observation)[0])


def first_row(observation: Observation) -> Observation:
    """Takes the first of observations `[N, ...]`, `[1, ...]`, as a network is initialised with.

    >>> first_row(jnp.zeros((5, 2))).shape
    (1, 2)
    """
    return jax.tree.map(lambda x: x[:1], observation)
