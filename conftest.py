"""Settings of the tests and of the library's examples: strict JAX, one compilation cache, one data cache."""

import ctypes
import gc
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jaxlib.version

CACHE = Path(os.environ.setdefault("FOLDAX_TEST_CACHE", str(Path(tempfile.gettempdir()) / "foldax-tests")))
os.environ.setdefault("FOLDAX_CACHE", str(CACHE / "data"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
if os.environ.get("FOLDAX_TEST_OPTIMIZED") != "1":
    # Compiling is most of the tests' time: without optimizations and MLIR's emitters of kernels it takes a third.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if jaxlib.version.__version_info__ < (0, 11):  # newer ones do not know the flag
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for library in ("OMP", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")  # tests run in parallel processes, one per core

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

import pytest
from jaxtyping import install_import_hook

# Calls of these functions are checked against the shapes and dtypes in their annotations.
ANNOTATED = ["learners.losses", "learners.generative.noise_schedule", "learners.rl.return_distributions"]
ANNOTATED += ["models.distributions", "rl.priorities", "rl.returns"]
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int is a float, too
install_import_hook([f"foldax.{module}" for module in ANNOTATED], CHECKER)

from foldax.engine import compiled
from foldax.runs.transfer import pretrained

# Packages of extras that examples in docstrings need, by the call that needs them.
EXTRAS = {r"\bgymnax\(": "gymnax", r"\bgymnasium\(|import gymnasium": "gymnasium"}
EXTRAS |= {r"\balphazero\(": "mctx"}


MAX_MEMORY = 2.5e9  # bytes of a worker, above which it drops its programs


@pytest.fixture(autouse=True)
def forget_inputs() -> Iterator[None]:
    """Forgets what a test has read by `foldax.pretrained` outside of runs, which later runs would record."""
    yield
    pretrained._inputs.pop(None, None)


@pytest.fixture(autouse=True)
def drop_programs() -> Iterator[None]:
    """Drops the programs of earlier tests before they fill the memory or the process's memory mappings."""
    yield
    compiled.drop_programs_near_map_limit()
    statm = Path("/proc/self/statm")
    if statm.exists() and int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MAX_MEMORY:
        jax.clear_caches()
        gc.collect()
        # XLA's compiler leaves most of its memory in glibc's arenas, which only a trim gives back.
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips examples whose extra is not installed."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            source = "".join(example.source for example in item.dtest.examples)
            for pattern, package in EXTRAS.items():
                if re.search(pattern, source) and importlib.util.find_spec(package) is None:
                    item.add_marker(pytest.mark.skip(reason=f"{package} is not installed"))
