"""What is computed once and remembered."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from foldax import data
from foldax.data import cache
from foldax.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOLDAX_CACHE", str(tmp_path))


def test_what_is_remembered_is_computed_once_for_a_name() -> None:
    asked = []

    def compute() -> dict:
        asked.append(1)
        return {"accuracy": 0.1 + 0.2, "errors": (1, 2.5)}

    first = data.disk_cached("one", compute)
    assert first == data.disk_cached("one", compute) == {"accuracy": 0.1 + 0.2, "errors": [1, 2.5]}
    assert len(asked) == 1
    assert data.disk_cached("two", lambda: 3) == 3


def test_what_failed_or_is_damaged_is_computed_again(tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        data.disk_cached("one", fail)
    assert data.disk_cached("one", lambda: 1) == 1
    (file,) = tmp_path.rglob("one.json")
    file.write_text("{")
    assert data.disk_cached("one", lambda: 2) == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data.disk_cached("one", lambda: 1) == 1
    (tmp_path / "file").touch()
    monkeypatch.setenv("FOLDAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"the cache .*file/remembered cannot be written: Not a directory; .* FOLDAX"):
        data.disk_cached("one", lambda: 1)
    with pytest.raises(DataError, match=r"the cache .*/datasets cannot be written: Not a directory"):
        data.load("iris", batch_size=8)


def test_nothing_is_locked_or_written_to_read_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    info = data.load("iris", batch_size=8).info
    assert data.disk_cached("one", lambda: 1) == 1

    def read_only(*_: object) -> None:
        raise DataError("the cache cannot be written")

    monkeypatch.setattr(cache, "file_lock", read_only)
    monkeypatch.setattr(cache, "write_json", read_only)
    assert data.disk_cached("one", lambda: 2) == 1
    assert data.load("iris", batch_size=8).info == info
    assert data.load("iris", batch_size=8, source="stream").info == info
    assert data.load("iris", batch_size=8, split_seed=1).info != info  # whose statistics are not in the cache


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"the cache .*iris/1\.0\.0 cannot be written: No space left on device"):
        data.load("iris", batch_size=8)
    monkeypatch.undo()
    monkeypatch.setenv("FOLDAX_CACHE", str(tmp_path))
    assert data.load("iris", batch_size=8).info.num_classes == 3


def test_a_file_system_without_locks_is_used_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert data.disk_cached("one", lambda: 1) == 1
