"""Adapter to Gymnasium (extra `gymnasium`): classic control, MuJoCo, Atari and others, on the host."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from foldax.data.processes import starting_processes
from foldax.errors import ConfigError, did_you_mean, first_line
from foldax.extras import import_extra
from foldax.rl import headless
from foldax.rl.adapters import check_name
from foldax.rl.host_environment import HostEnvironment, from_vector_env


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
) -> HostEnvironment:
    """Makes an experiment's dataset from an environment of Gymnasium (Towers et al., 2024); see `from_vector_env`.

    Args:
      name: such as "CartPole-v1", or "module:Name-v0", which imports the module that registers it.
      num_envs: number of parallel environments.
      rollout_steps: steps of each environment in an update.
      wrappers: Gymnasium wrappers, the innermost first, such as `gymnasium.wrappers.FlattenObservation`.
      mode: "sync" steps the environments one after the other, "async" each in its own process, "vector_entry_point"
        uses the environment's own vectorised form where it has one (Atari).
      evaluation_options: options that differ in the environments for evaluation.
      evaluation_episodes: episodes of an evaluation, played in parallel.
      evaluation_steps: maximum length of an evaluation episode.
      greedy_evaluation: whether evaluation takes the most probable actions, not exploratory ones.
      **options: arguments of the environment.

    Raises:
      ConfigError: Gymnasium or a package of the environment is not installed, there is no environment of this name, it
        does not take an option or wrappers, or see `from_vector_env`.

    >>> host = gymnasium("CartPole-v1", num_envs=2, rollout_steps=3)
    >>> host.info.observation_space.shape, host.info.action_space
    ((4,), Discrete(num=2))
    """
    check_name(name, None, "Gymnasium has no environment")
    if wrappers and mode == "vector_entry_point":
        problem = "mode 'vector_entry_point' takes no wrappers, which wrap single environments"
        raise ConfigError(f"{name}: {problem}; take 'sync'")
    library = import_extra("gymnasium", "gymnasium", ConfigError)

    def make(changes: dict[str, Any], count: int) -> Any:
        if "render_mode" in changes:
            headless.prepare()
        vector_options: dict[str, Any] = {"autoreset_mode": library.vector.AutoresetMode.SAME_STEP}
        if mode == "async":
            vector_options["context"] = "spawn"  # a fork of a process that runs JAX's threads may hang
        if mode != "vector_entry_point":
            vector_options = dict(vector_kwargs=vector_options, wrappers=list(wrappers))
        with _errors_of(library, name), _own_processes() if mode == "async" else contextlib.nullcontext():
            return library.make_vec(name, count, vectorization_mode=mode, **vector_options, **(options | changes))

    # Episodes are rendered in the environments of the evaluation.
    render_options = (evaluation_options or {}) | {"render_mode": "rgb_array"}
    settings: dict[str, Any] = dict(num_envs=num_envs, rollout_steps=rollout_steps, greedy_evaluation=greedy_evaluation)
    settings |= dict(evaluation_episodes=evaluation_episodes, evaluation_steps=evaluation_steps)
    settings["make_for_evaluation"] = functools.partial(make, evaluation_options) if evaluation_options else None
    if mode != "vector_entry_point":
        settings["make_for_rendering"] = functools.partial(make, render_options)
    return from_vector_env(functools.partial(make, {}), name, **settings)


@contextlib.contextmanager
def _errors_of(library: Any, name: str) -> Iterator[None]:
    """Says in a line why Gymnasium cannot make an environment."""
    try:
        yield
    except (EOFError, OSError) as error:
        remedy = "its class must come from a module that can be imported, or from the experiment's file"
        raise ConfigError(f"Gymnasium cannot make {name!r}: a process of it ended ({error}); {remedy}") from error
    except (library.error.NameNotFound, library.error.NamespaceNotFound, library.error.VersionNotFound) as error:
        known = list(library.registry)
        raise ConfigError(f"Gymnasium has no environment {name!r}{did_you_mean(name, known)}") from error
    except (ModuleNotFoundError, library.error.DependencyNotInstalled) as error:
        needs = "Atari games need foldax[atari], MuJoCo environments foldax[mujoco]"
        raise ConfigError(f"Gymnasium cannot make {name!r}: {first_line(error)} ({needs})") from error
    except (library.error.Error, TypeError) as error:
        raise ConfigError(f"Gymnasium cannot make {name!r}: {first_line(error)}") from error


@contextlib.contextmanager
def _own_processes() -> Iterator[None]:
    """Lets the processes that are started in its block have the classes of experiment files, which none can import."""
    import cloudpickle

    by_value = [module for name, module in sys.modules.items() if name.startswith("foldax_experiment_")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(starting_processes())
        for module in by_value:
            cloudpickle.register_pickle_by_value(module)
            stack.callback(cloudpickle.unregister_pickle_by_value, module)
        yield
