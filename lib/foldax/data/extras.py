"""Imports of optional packages."""

import importlib
import warnings
from typing import Any

from foldax.errors import DataError


def import_extra(module: str, extra: str) -> Any:
    """Imports a module of an optional dependency where it is used.

    Args:
      module: name of the module.
      extra: name of the extra of foldax that installs it.

    Raises:
      DataError: the package is not installed; the message says how to install it.

    >>> import_extra("json", "none").loads("[1]")
    [1]
    """
    try:
        with warnings.catch_warnings():  # a package's own import warnings do not concern the user
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise DataError(f"{package} is not installed ({error}): pip install 'foldax[{extra}]'") from error
