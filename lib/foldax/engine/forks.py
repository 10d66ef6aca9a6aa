"""Refusal of forks: the threads of JAX do not exist there, and what waits for them would hang."""

import os

from foldax.errors import RunError

_processes: list[int] = []  # those in which something has been computed, of which a fork is not one


def check_process() -> None:
    """Checks that this process is no fork of one that has computed with foldax.

    Raises:
      RunError: it is.

    >>> check_process()
    """
    if not _processes:
        _processes.append(os.getpid())
    if _processes != [os.getpid()]:
        remedy = 'start it with multiprocessing.get_context("spawn"), or as a program of its own'
        raise RunError(f"this process is a fork of one that has used JAX, and JAX would hang in it: {remedy}")
