"""The terminal: nothing that is printed ends a run, changes its exit code, or is taken for markup."""

import contextlib
import errno
import io
import os
import sys

import pytest

from foldax import cli
from foldax.runs import tables, terminal
from foldax.runs.progress import Progress


class Failing(io.StringIO):
    """A stream that refuses every text with an error of the system, or is closed with code 0."""

    name = "<stdout>"

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def write(self, text: str) -> int:
        raise OSError(self.code, os.strerror(self.code)) if self.code else ValueError("I/O operation on closed file")

    def isatty(self) -> bool:
        raise OSError(errno.EIO, "gone")


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF, 0])
def test_a_stream_that_fails_loses_texts_and_no_run(monkeypatch, code: int) -> None:
    monkeypatch.setattr(sys, "stdout", Failing(code))
    monkeypatch.setattr(sys, "stderr", Failing(code))
    terminal.echo("text")
    terminal.warn("text")
    terminal.print_table(tables.text_table(["a"], [["1"]]))
    progress = Progress("line", 10)
    progress.step(10)
    progress.close()
    expected = {errno.EPIPE: None, 0: "I/O operation on closed file"}.get(code, os.strerror(code))
    assert (terminal.lost_output(), terminal.lost_output()) == (expected, None)


def test_streams_that_are_closed_from_the_start_are_ignored(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    terminal.echo("text")
    terminal.warn("text")
    Progress("line", 10).step(10)
    terminal.finish_output()


def test_letters_that_an_encoding_lacks_are_escaped(monkeypatch) -> None:
    ascii_stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_stream)
    terminal.echo("R² ± 0.1, Größe \ud800")
    terminal.print_table(tables.text_table(["Müll"], [["Öl"]]))
    printed = ascii_stream.buffer.getvalue().decode("ascii")
    assert printed.startswith(r"R\xb2 \xb1 0.1, Gr\xf6\xdfe \ud800")
    assert r"M\xfcll" in printed


@pytest.mark.parametrize("name", ["rate [/s]", "kl [nats]", "[red]x[/red]", ":smile:"])
def test_names_are_never_taken_for_markup(capsys, monkeypatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    terminal.print_table(tables.metrics_table(name, {name: {name: 0.5}}))
    assert capsys.readouterr().out.count(name) == 3
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with contextlib.closing(Progress(name, 10)) as progress:
        progress.metrics("train", {name: 1.0})
        progress.step(10)
    assert capsys.readouterr().err.count(name) >= 2


def test_a_dumb_terminal_gets_lines(capsys, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    with contextlib.closing(Progress("line", 10)) as progress:
        progress.step(10)
    err = capsys.readouterr().err
    assert err.startswith("line: 10/10  ")
    assert "\x1b" not in err


def test_a_window_of_no_columns_has_the_usual_width(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    terminal.print_table(tables.text_table(["metric"], [["loss"]]))
    assert "loss" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "exit_code"), [(errno.EPIPE, 0), (errno.ENOSPC, 1)])
def test_a_command_whose_text_is_lost_fails_unless_its_reader_had_enough(
    capsys, monkeypatch, tmp_path, code: int, exit_code: int
) -> None:
    (tmp_path / "found.py").write_text("experiment = 1\n")
    monkeypatch.setattr(sys, "stdout", Failing(code))
    assert cli.main(["list", str(tmp_path)]) == exit_code
    message = "foldax: some of what this command printed is lost: No space left on device\n"
    assert capsys.readouterr().err == (message if exit_code else "")


def test_closed_standard_streams_are_opened_before_any_file(tmp_path) -> None:
    kept = os.dup(0)
    try:
        os.close(0)
        terminal.reserve_streams()
        with (tmp_path / "file").open("w") as file:
            assert file.fileno() > 2
    finally:
        os.dup2(kept, 0)
        os.close(kept)
