"""Progress: few plain lines on stderr, or a bar in a terminal."""

from foldax.runs.progress import Progress


def test_plain_lines_without_a_terminal(capsys) -> None:
    progress = Progress("line", 10)
    progress.step(1)
    progress.metrics("train", {"accuracy": 0.5, "loss": 1.25, "other": 3.0})
    progress.metrics("validation", {"f1": 0.123456, "auroc": 1.0, "third": 2.0})
    for step in range(2, 11):
        progress.step(step)
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()  # a line in two seconds, and one at the end
    assert line.startswith("line: 10/10  ")
    assert line.endswith("train loss 1.25 accuracy 0.5  validation f1 0.1235 auroc 1")
    assert "\x1b" not in err


def test_nothing_is_printed_if_not_shown(capsys) -> None:
    progress = Progress("line", 10, shown=False)
    progress.step(10)
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_a_bar_in_a_terminal(capsys, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    progress = Progress("line", 10)
    progress.metrics("train", {"loss": 1.25})
    progress.step(10)
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "10/10" in err
    assert "loss 1.25" in err
