"""The log: whole lines, and rewinding to a checkpoint."""

import json
import os

import pytest

from foldax.errors import RunError
from foldax.runs.log import Log, read_log

LINES = [{"step": step, "split": "train", "loss": 1.0 / step} for step in (1, 2, 3)]


@pytest.fixture
def written(tmp_path):
    log = Log(tmp_path)
    for line in LINES:
        log.write(line["step"], line["split"], {"loss": line["loss"]})
    log.close()
    return tmp_path


def test_a_log_is_read_back(written) -> None:
    assert read_log(written) == LINES
    assert [json.loads(line) for line in (written / "metrics.jsonl").read_text().splitlines()] == LINES


def test_lines_are_written_immediately(tmp_path) -> None:
    log = Log(tmp_path)
    log.write(1, "train", {"loss": 0.1 + 0.2})
    assert read_log(tmp_path) == [{"step": 1, "split": "train", "loss": 0.1 + 0.2}]
    log.close()


def test_a_folder_without_a_log_has_no_lines(tmp_path) -> None:
    assert read_log(tmp_path) == []


@pytest.mark.parametrize("torn", ['{"step": 4, "split": "tr', "{", '{"step": 4, "split": "train", "loss": 0.2'])
def test_rewinding_after_a_torn_last_line(written, torn) -> None:
    with (written / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert read_log(written) == LINES
    log = Log(written)
    assert log.rewind(2) == LINES[:2]
    log.write(3, "train", {"loss": 7.0})
    log.close()
    assert read_log(written) == [*LINES[:2], {"step": 3, "split": "train", "loss": 7.0}]


@pytest.mark.parametrize("damage", [b"\0\0\0", b"\xff{}", b"null", b'{"step": 2,'], ids=str)
def test_a_damaged_line_loses_no_other(written, damage) -> None:
    first, _, third = (written / "metrics.jsonl").read_bytes().splitlines()
    (written / "metrics.jsonl").write_bytes(b"\n".join([first, damage, third, b""]))
    log = Log(written)
    with pytest.warns(UserWarning, match=r"metrics\.jsonl, line 2 is damaged and left out"):
        assert log.rewind(3) == [LINES[0], LINES[2]]
    log.close()
    assert read_log(written) == [LINES[0], LINES[2]]


def test_rewinding_to_the_start_and_to_the_end(written) -> None:
    log = Log(written)
    assert log.rewind(3) == LINES
    assert log.rewind(0) == []
    log.close()
    assert read_log(written) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_a_run_error(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = Log(tmp_path)
    with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
        log.write(1, "train", {"loss": 1.0})
    with pytest.raises(RunError, match="No space left"):
        log.close()
