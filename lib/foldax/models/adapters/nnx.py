"""Modules of Flax NNX as models.

`flax.nnx.bridge.ToLinen` does the same for a class and its arguments, but knows neither `train` nor Variables of one
class name, and its handling of random streams changed between releases.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from foldax.errors import ExperimentError
from foldax.models.adapters.checks import check_factory
from foldax.models.adapters.variables import Path, dropout_key, get_variables, initial_key, path_names, put_variables


class NNXModel(nn.Module):
    """A module of Flax NNX as a Linen module; made by `from_nnx`.

    Attributes:
      factory: `rngs -> module`.
    """

    factory: Callable[[Any], Any]

    @nn.compact
    def __call__(self, *inputs: Any, train: bool = False, **options: Any) -> Any:
        """Calls the module in training or evaluation mode."""
        module = _build_module(self.factory, initial_key(self), dropout_key(self))
        if self.is_initializing():
            put_variables(self, _variables(module))
        else:
            _replace_variables(module, get_variables(self, _variables(module)))
        module.train() if train else module.eval()
        # Modules that were written for Linen take the mode as an argument.
        if "train" in inspect.signature(module.__call__).parameters:
            options["train"] = train
        outputs = module(*inputs, **options)
        if not self.is_initializing():
            put_variables(self, _variables(module))
        return outputs

    def __getattr__(self, name: str) -> Any:
        # Sizes that learners ask for, such as `num_classes`; Linen itself looks up names with underscores.
        if name.startswith("_") or "factory" not in self.__dict__:
            raise AttributeError(name)
        from flax import nnx

        return getattr(nnx.eval_shape(lambda: _build_module(self.factory, jax.random.key(0), None)), name)


def from_nnx(factory: Callable[[Any], Any]) -> NNXModel:
    """Adapts a module of Flax NNX to every learner.

    Parameters (`nnx.Param`) become the collection "params", running statistics (`nnx.BatchStat`) "batch_stats", and
    other Variables a collection called as their class; paths are those of the attributes, such as "linear/kernel".
    Arrays that are no Variables are constants, the same for every seed. The module is switched by its `train()` and
    `eval()`, and gets `train=` if its `__call__` has that argument. Its random streams are seeded anew in every call,
    from the learner's key.

    Args:
      factory: pure function `rngs -> module`, where `rngs` is an `nnx.Rngs` with any stream. It is called in every
        trace, so it must do the same each time.

    Returns:
      A Linen module. It has the attributes of the NNX module, such as `num_classes`.

    Raises:
      ExperimentError: `factory` is a module, or while tracing, does not return one; or the learner does not keep the
        module's state, as agents do not.

    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> model = from_nnx(lambda rngs: nnx.Linear(3, 5, rngs=rngs))
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> variables["params"]["kernel"].shape, model.apply(variables, jnp.ones((2, 3))).shape
    ((3, 5), (2, 5))
    """
    check_factory("flax.nnx", factory)
    return NNXModel(factory)


def _build_module(factory: Callable[[Any], Any], key: jax.Array, dropout: jax.Array | None) -> Any:
    from flax import nnx

    # The stream "default" stands for any that the module asks for by another name.
    default = jax.random.fold_in(key if dropout is None else dropout, 1)
    module = factory(nnx.Rngs(default=default, params=key, dropout=default if dropout is None else dropout))
    if not isinstance(module, nnx.Module):
        raise ExperimentError(f"from_nnx: the function must return an nnx.Module, got a {type(module).__name__}")
    return module


def _state(module: Any) -> Any:
    from flax import nnx

    # Keys and counts of random streams come anew with every call.
    return nnx.state(module, nnx.All(nnx.Variable, nnx.Not(nnx.RngState)))


def _variables(module: Any) -> dict[Path, jax.Array]:
    """Returns the values of a module's Variables by collection and path."""
    from flax import nnx

    variables, kinds = {}, {nnx.Param: "params", nnx.BatchStat: "batch_stats"}
    for path, variable in nnx.to_flat_state(_state(module)):
        collection = next((name for kind, name in kinds.items() if isinstance(variable, kind)), None)
        # flax 0.11 has `value` alone, later releases deprecate it.
        value = variable.get_value() if hasattr(variable, "get_value") else variable.value
        variables[(collection or type(variable).__name__, *map(str, path))] = value
    return variables


def _replace_variables(module: Any, values: dict[Path, jax.Array]) -> None:
    from flax import nnx

    by_path = {path[1:]: value for path, value in values.items()}

    def replace(path: Any, variable: Any) -> Any:
        return variable.replace(by_path[path_names(path)])

    def is_variable(node: Any) -> bool:
        return isinstance(node, nnx.Variable)

    nnx.update(module, jax.tree_util.tree_map_with_path(replace, _state(module), is_leaf=is_variable))
