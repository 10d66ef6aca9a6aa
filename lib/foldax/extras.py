"""Imports of optional packages."""

import importlib
import warnings
from typing import Any

from foldax.errors import FoldaxError


def import_extra(module: str, extra: str, error_type: type[FoldaxError] = FoldaxError, advice: str = "") -> Any:
    """Imports a module of an optional dependency where it is used.

    Args:
      module: name of the module.
      extra: name of the extra of foldax that installs it.
      error_type: the error to raise if its package is not installed.
      advice: appended to the message of that error.

    Raises:
      FoldaxError: the package is not installed; an `error_type`, whose message says how to install it.
      ImportError: the package is installed, but its own imports fail.

    >>> import_extra("json", "text").loads("[1]")
    [1]
    """
    package = module.split(".")[0]
    try:
        with warnings.catch_warnings():  # a package's own import warnings do not concern the user
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != package:
            raise
        raise error_type(f"{package} is not installed: pip install 'foldax[{extra}]'{advice}") from error
