"""A sweep on a JAX runtime of several processes (a TPU pod): each folds a share of the members on its own devices.

Members need nothing of each other, so nothing crosses the network but what came of them, at the end.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from foldax.errors import ConfigError
from foldax.sweeps.exact import Outcome
from foldax.sweeps.plan import Plan


def check(search: Any, launcher: Any) -> None:
    """Checks that several processes can do a sweep.

    Raises:
      ConfigError: it has a search or a launcher.
    """
    for name, value in (("search", search), ("launcher", launcher)):
        if value is not None and jax.process_count() > 1:
            raise ConfigError(f"{name}: {type(value).__name__} runs in one process, and this is a runtime of several")


def share(made: Plan) -> Plan:
    """Returns the plan with this process's share of every group."""
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return made
    groups = [dataclasses.replace(group, members=group.members[index::count]) for group in made.groups]
    return made._replace(groups=[group for group in groups if group.members])


def agree(text: str) -> str:
    """Returns the first process's text in every process."""
    return _gathered(text)[0]


def gather(outcomes: dict[int, Outcome]) -> list[Outcome]:
    """Returns the outcomes that other processes have and this one has not; every process must call it."""
    texts = _gathered(json.dumps([found._asdict() for found in outcomes.values()]))
    others = [Outcome(**one) for text in texts for one in json.loads(text)]
    return [found for found in others if found.number not in outcomes]


def _gathered(text: str) -> list[str]:
    """Returns every process's text, in the order of the processes."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    mine = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(mine.size, np.int32))
    padded = np.pad(mine, (0, int(sizes.max()) - mine.size))
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes.tolist())]
