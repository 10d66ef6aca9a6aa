"""The cache of compiled programs: on by default, the user's own settings first, and the bits of a fresh compile."""

import collections
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import foldax
from foldax.engine import compile_cache
from foldax.engine.state_leaves import state_digest
from tests.conftest import Config, tiny

NAMES = ["jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs"]
events: collections.Counter[str] = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))


@pytest.fixture
def unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A process whose user has set nothing about JAX's cache; yields the user's cache folder."""
    before = {name: jax.config.values[name] for name in NAMES}
    monkeypatch.setenv("FOLDAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FOLDAX_COMPILE_CACHE", "")
    for name, value in zip(NAMES, (None, -1, 1.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def trained_digest() -> str:
    """Trains in this process as a new one would; returns the digest of the final state."""
    jax.clear_caches()
    events.clear()
    return state_digest(foldax.train(tiny, Config(hidden=(7,)), save=False, verbose=False).final_state)


def test_programs_from_the_cache_have_the_bits_of_a_fresh_compile(unset: Path) -> None:
    first = trained_digest()
    assert (events["cache_hits"], events["cache_misses"] > 0) == (0, True)
    second = trained_digest()
    assert (events["cache_hits"] > 0, events["cache_misses"]) == (True, 0)
    compile_cache.disable()
    assert (trained_digest(), first) == (second, second)
    assert (events["cache_hits"], events["cache_misses"]) == (0, 0)


def test_it_is_on_by_default_per_type_of_machine_and_bounded(unset: Path, monkeypatch) -> None:
    here = compile_cache.enable()
    assert here == unset / "programs" / compile_cache.machine_type()
    assert [jax.config.values[name] for name in NAMES] == [str(here), compile_cache.MAX_BYTES, 0.0]
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr("platform.processor", lambda: "another")
    assert compile_cache.enable() not in (None, here)


@pytest.mark.parametrize("word", ["off", "0", "False"])
def test_one_switch_turns_it_off(unset: Path, monkeypatch, word: str) -> None:
    monkeypatch.setenv("FOLDAX_COMPILE_CACHE", word)
    assert compile_cache.enable() is None
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_settings_of_the_user_come_first(unset: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FOLDAX_COMPILE_CACHE", str(tmp_path / "own"))
    jax.config.update("jax_compilation_cache_max_size", 10_000)
    assert compile_cache.enable() == tmp_path / "own" / compile_cache.machine_type()
    assert jax.config.values["jax_compilation_cache_max_size"] == 10_000
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    assert compile_cache.enable() is None
    compile_cache.disable()
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "jax")


def test_programs_of_a_killed_writer_are_removed(unset: Path) -> None:
    folder = compile_cache.enable()
    assert folder is not None
    for name in ("whole-cache", "whole-atime", "half-cache"):
        (folder / name).touch()
    jax.config.update("jax_compilation_cache_dir", None)
    compile_cache.enable()
    assert {path.name for path in folder.glob("*-*")} == {"whole-cache", "whole-atime"}


def test_a_folder_that_cannot_be_written_is_no_error(unset: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FOLDAX_COMPILE_CACHE", os.fspath(tmp_path / "file"))
    assert compile_cache.enable() is None
