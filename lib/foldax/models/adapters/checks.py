"""Refusal of models that learners cannot call, with the adapter that makes them callable."""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

from foldax.errors import ExperimentError

ADAPTERS = {
    "flax.nnx": ("Flax NNX", "from_nnx", "lambda rngs: {name}(..., rngs=rngs)"),
    "equinox": ("Equinox", "from_equinox", "lambda key: {name}(..., key=key)"),
}
"""By package: the name of the library, its adapter, and the function to hand to it."""


def check_model(model: Any) -> None:
    """Checks that a learner can call a model and all networks in its fields.

    Args:
      model: a Flax Linen module, or any other `foldax.learner.Model`.

    Raises:
      ExperimentError: the model, or a network in one of its fields, is a module of Flax NNX or Equinox, which needs an
        adapter; or the model lacks Flax's `init` and `apply`.

    >>> from flax import nnx
    >>> check_model(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    Traceback (most recent call last):
    foldax.errors.ExperimentError: model: Linear is a module of Flax NNX, which a learner takes through an adapter: \
models.from_nnx(lambda rngs: Linear(..., rngs=rngs))
    """
    for path, part in _parts("model", model):
        package = next((name for name in ADAPTERS if _is_module_of(name, part)), None)
        if package is not None:
            library, adapter, factory = ADAPTERS[package]
            remedy = f"models.{adapter}({factory.format(name=type(part).__name__)})"
            kind = f"{type(part).__name__} is a module of {library}"
            raise ExperimentError(f"{path}: {kind}, which a learner takes through an adapter: {remedy}")
    if not (callable(getattr(model, "init", None)) and callable(getattr(model, "apply", None))):
        allowed = "a Flax Linen module, or any object with its `init` and `apply`"
        adapters = "models.from_nnx and models.from_equinox adapt other modules"
        raise ExperimentError(f"model: a {type(model).__name__} is no model: pass {allowed}; {adapters}")


def _is_module_of(package: str, value: Any) -> bool:
    # A package that is not imported has made no module.
    library = sys.modules.get(package)
    return library is not None and isinstance(value, library.Module)


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields a model and the values of its fields, at any depth, with their paths."""
    yield path, value
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _parts(f"{path}[{index}]", item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        if any(_is_module_of(package, value) for package in ADAPTERS):
            return
        for field in dataclasses.fields(value):
            if field.name not in ("parent", "name"):  # of Linen itself
                yield from _parts(f"{path}.{field.name}", getattr(value, field.name, None))
