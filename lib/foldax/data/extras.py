"""Packages that only some datasets need."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from foldax.errors import DataError


def optional(module: str, extra: str) -> Any:
    """Imports a module of one of foldax's extras, where it is used: some take seconds.

    Raises:
      DataError: if it is not installed; says how to install it.
    """
    try:
        with warnings.catch_warnings():  # what a package's own imports are warned of is not our user's business
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise DataError(f"{package} is not there ({error}): pip install 'foldax[{extra}]'") from error
