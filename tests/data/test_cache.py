"""What is computed once and remembered."""

from pathlib import Path

import pytest

from foldax import data


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
