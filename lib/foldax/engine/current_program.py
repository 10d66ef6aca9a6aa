"""The program whose code runs now, to which what that code reads is ascribed."""

import contextlib
from collections.abc import Hashable, Iterator
from contextvars import ContextVar
from typing import Any

import jax

from foldax.configuration import without_driver_fields
from foldax.experiment import Experiment

_program: ContextVar[Hashable] = ContextVar("program", default=None)


def program_key(experiment: Experiment, config: Any) -> Hashable:
    """Identifies the program of a config: all configs with its structural fields have the same.

    >>> from foldax import Training
    >>> experiment = Experiment(Training, print)
    >>> program_key(experiment, Training(seed=1)) == program_key(experiment, Training(seed=2))
    True
    """
    return experiment, jax.tree.structure(without_driver_fields(config))


def current_program() -> Hashable:
    """Returns the key of the program of the innermost `inputs_of`; None outside of any."""
    return _program.get()


@contextlib.contextmanager
def inputs_of(experiment: Experiment, config: Any) -> Iterator[None]:
    """Ascribes what is read in its block to a program; threads that are started in it need a block of their own."""
    token = _program.set(program_key(experiment, config))
    try:
        yield
    finally:
        _program.reset(token)
