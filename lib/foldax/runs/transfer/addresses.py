"""Addresses of parameters: a run folder or file, perhaps a step, and perhaps a prefix of parameters."""

from pathlib import Path
from typing import NamedTuple


class Address(NamedTuple):
    """Where parameters are read from.

    Attributes:
      path: a run folder, an export folder or a safetensors file.
      step: the step of the checkpoint; None is the state that was tested.
      prefix: the path below which parameters are read; "" reads all.
    """

    path: Path
    step: int | None
    prefix: str


def parse_address(text: str | Path) -> Address:
    """Splits "RUN", "RUN@500", "RUN:prefix" or "RUN@500:prefix".

    >>> parse_address("runs/first@500:encoder/Dense_0")
    Address(path=PosixPath('runs/first'), step=500, prefix='encoder/Dense_0')
    """
    if Path(text).exists():  # a folder may have a colon in its name
        return Address(Path(text), None, "")
    head, colon, prefix = str(text).rpartition(":")
    path, prefix = (head, prefix.strip("/")) if colon and head else (str(text), "")
    head, _, step = path.rpartition("@")
    if head and step.isdecimal() and not Path(path).exists():
        return Address(Path(head), int(step), prefix)
    return Address(Path(path), None, prefix)


def exists(text: str | Path) -> bool:
    """Whether there is the folder or file of an address.

    >>> exists(".:encoder"), exists(".@500"), exists("nowhere:encoder")
    (True, True, False)
    """
    return parse_address(text).path.exists()
