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
    if isinstance(model, type):
        raise ExperimentError(f"model: {model.__name__} is a class; pass an instance, {model.__name__}(...)")
    for path, part in _parts("model", model):
        package = _package(part)
        if package is not None:
            kind = f"{type(part).__name__} is a module of {ADAPTERS[package][0]}"
            raise ExperimentError(f"{path}: {kind}, which a learner takes through an adapter: {_remedy(package, part)}")
    if not (callable(getattr(model, "init", None)) and callable(getattr(model, "apply", None))):
        allowed = "a Flax Linen module, or any object with its `init` and `apply`"
        adapters = "models.from_nnx and models.from_equinox adapt other modules"
        raise ExperimentError(f"model: a {type(model).__name__} is no model: pass {allowed}; {adapters}")


def check_factory(package: str, factory: Any) -> None:
    """Checks that an adapter got a function, not a module, which can be called too.

    Args:
      package: of the adapter, a key of `ADAPTERS`.
      factory: its argument.

    Raises:
      ExperimentError: it is a module, or cannot be called.

    >>> check_factory("flax.nnx", 3)
    Traceback (most recent call last):
    foldax.errors.ExperimentError: from_nnx takes a function that builds the module: \
models.from_nnx(lambda rngs: int(..., rngs=rngs))
    """
    own = _package(factory)
    if own is not None or not callable(factory):
        remedy = _remedy(own or package, factory)
        raise ExperimentError(f"{ADAPTERS[package][1]} takes a function that builds the module: {remedy}")


def _remedy(package: str, module: Any) -> str:
    _, adapter, factory = ADAPTERS[package]
    return f"models.{adapter}({factory.format(name=type(module).__name__)})"


def _package(value: Any) -> str | None:
    """Returns the library that a module is of, or None if it is of neither."""
    # A package that is not imported has made no module.
    imported = [name for name in ADAPTERS if name in sys.modules]
    return next((name for name in imported if isinstance(value, sys.modules[name].Module)), None)


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields a model and the values of its fields, at any depth, with their paths."""
    yield path, value
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _parts(f"{path}[{index}]", item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        if _package(value) is not None:
            return
        for field in dataclasses.fields(value):
            if field.name not in ("parent", "name"):  # of Linen itself
                yield from _parts(f"{path}.{field.name}", getattr(value, field.name, None))
