"""Environments of Gymnasium by name (extra `gymnasium`): classic control, MuJoCo's, Atari's, and others'."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from foldax.errors import ConfigError, nearest
from foldax.rl import headless
from foldax.rl.host_environment import Host, host


def gymnasium(
    name: str,
    *,
    num_envs: int,
    rollout_steps: int,
    wrappers: Sequence[Callable[[Any], Any]] = (),
    mode: Literal["sync", "async", "vector_entry_point"] = "sync",
    evaluation_options: dict[str, Any] | None = None,
    evaluation_episodes: int = 16,
    evaluation_steps: int = 10_000,
    greedy_evaluation: bool = True,
    **options: Any,
) -> Host:
    """Returns an environment of Gymnasium (Towers et al., 2024) by name as an experiment's source of data; see `host`.

    Args:
      name: such as "CartPole-v1", or "module:Name-v0", which imports a module that registers it.
      num_envs: copies to learn from.
      rollout_steps: steps of each in an update.
      wrappers: Gymnasium's own, the innermost first, such as `gymnasium.wrappers.FlattenObservation`.
      mode: "sync" steps the copies in turn, "async" each in a process of its own, "vector_entry_point" as they come
        where they have a way of their own (Atari's).
      evaluation_options: what differs in those to evaluate in.
      evaluation_episodes: played at once, by as many copies.
      evaluation_steps: most of each.
      greedy_evaluation: whether they are played by the best actions, or by such as are learned from.
      **options: arguments of the environment.

    Raises:
      ConfigError: Gymnasium or what the environment needs is not installed, there is none of this name, it does not
        take an option or wrappers, or see `host`.
    """
    if wrappers and mode == "vector_entry_point":
        raise ConfigError(f"{name}: mode 'vector_entry_point' takes no wrappers, which are of single environments")
    try:
        import gymnasium as library
        from gymnasium.vector import AutoresetMode
    except ModuleNotFoundError as error:
        raise ConfigError("environments of Gymnasium need it: pip install 'foldax[gymnasium]'") from error

    def make(changes: dict[str, Any], count: int) -> Any:
        reset: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
        if "render_mode" in changes:
            headless.prepare()
        own = mode == "vector_entry_point"
        if mode == "async":
            reset["context"] = "spawn"  # a fork of a process that runs JAX's threads may hang
        how = reset if own else dict(vector_kwargs=reset, wrappers=list(wrappers))
        try:
            return library.make_vec(name, count, vectorization_mode=mode, **how, **(options | changes))
        except (library.error.NameNotFound, library.error.NamespaceNotFound, library.error.VersionNotFound) as error:
            known = list(library.registry)
            raise ConfigError(f"Gymnasium has no environment {name!r}{nearest(name, known)}") from error
        except (ModuleNotFoundError, library.error.DependencyNotInstalled) as error:
            needs = "Atari's games need foldax[atari], MuJoCo's worlds foldax[mujoco]"
            raise ConfigError(f"Gymnasium cannot make {name!r}: {str(error).splitlines()[0]} ({needs})") from error
        except (library.error.Error, TypeError) as error:
            raise ConfigError(f"Gymnasium cannot make {name!r}: {str(error).splitlines()[0]}") from error

    changes = evaluation_options or {}
    drawn = functools.partial(make, changes | {"render_mode": "rgb_array"}) if mode != "vector_entry_point" else None
    return host(
        functools.partial(make, {}),
        name,
        pictured=drawn,
        num_envs=num_envs,
        rollout_steps=rollout_steps,
        evaluation=functools.partial(make, evaluation_options) if evaluation_options else None,
        evaluation_episodes=evaluation_episodes,
        evaluation_steps=evaluation_steps,
        greedy_evaluation=greedy_evaluation,
    )
