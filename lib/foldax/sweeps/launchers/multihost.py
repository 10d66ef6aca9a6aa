"""Sweeps on a JAX runtime of several processes (a TPU pod): each trains its own members on its own devices.

Members are independent, so only their results cross the network, at the end.
"""

import dataclasses
import json

import jax
import numpy as np

from foldax.errors import ConfigError
from foldax.sweeps.exact import MemberResult
from foldax.sweeps.launchers.launch import Launcher
from foldax.sweeps.plan import Plan
from foldax.sweeps.search import Search


def check_single_process(search: Search | None, launcher: Launcher | None) -> None:
    """Checks that a search or launcher, if there is one, runs in a single process.

    Raises:
      ConfigError: the JAX runtime has several processes.

    >>> check_single_process(None, None)
    """
    for name, value in (("search", search), ("launcher", launcher)):
        if value is not None and jax.process_count() > 1:
            raise ConfigError(f"{name}: {type(value).__name__} runs in one process, and this is a runtime of several")


def process_shard(plan: Plan) -> Plan:
    """The part of a plan that this process trains: every n-th member of each group, for n processes.

    >>> process_shard(Plan([], [], [])).groups
    []
    """
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return plan
    # Interleaved, because neighbouring members often take equally long.
    groups = [dataclasses.replace(group, members=group.members[index::count]) for group in plan.groups]
    return plan._replace(groups=[group for group in groups if group.members])


def broadcast_text(text: str) -> str:
    """Sends the text of process 0 to all processes; every process must call it.

    >>> broadcast_text("runs/line")
    'runs/line'
    """
    return _all_gather(text)[0]


def gather_results(results: dict[int, MemberResult]) -> list[MemberResult]:
    """Collects the results that other processes have and this one lacks; every process must call it.

    Args:
      results: this process's results, by member number.

    >>> gather_results({})
    []
    """
    texts = _all_gather(json.dumps([result._asdict() for result in results.values()]))
    gathered = [MemberResult(**fields) for text in texts for fields in json.loads(text)]
    return [result for result in gathered if result.number not in results]


def _all_gather(text: str) -> list[str]:
    """Collects the texts of all processes, in their order."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    # Arrays of all processes must have one shape: bytes are padded to the longest.
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(own.size, np.int32))
    padded = np.pad(own, (0, int(sizes.max()) - own.size))
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes.tolist())]
