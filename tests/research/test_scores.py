"""The table of scores: every row's command exists, quick rows are whole, and other rows are kept."""

import importlib.util
from typing import Any

import pandas
import pytest

from foldax.errors import ConfigError
from foldax.runs.folder import read_json
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def scores() -> Any:
    spec = importlib.util.spec_from_file_location("scores", ROOT / "research" / "scores" / "scores.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quick_rows_are_whole_and_kept(scores: Any, tmp_path: Any, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--only"]
    scores.main([*arguments, "digits"])
    (tmp_path / "out" / "scores.csv").write_text(
        (tmp_path / "out" / "scores.csv").read_text() + "breast_cancer,auroc,8,0.5\nbreast_cancer,auroc,9,0.7\n"
    )
    scores.main([*arguments, "digits"])
    table = pandas.read_csv(tmp_path / "out" / "scores.csv")
    assert list(table["row"]) == ["digits", "digits", "breast_cancer", "breast_cancer"]
    assert list(table["seed"]) == [8, 9, 8, 9]
    summary = pandas.read_csv(tmp_path / "out" / "summary.csv").set_index("row")
    assert summary.loc["breast_cancer", ["mean", "std", "n", "seeds"]].tolist() == [0.6, 0.141421, 2, "8 to 9"]
    assert summary.loc["digits", "mean"] == pytest.approx(table["score"][:2].mean(), rel=1e-5)
    assert read_json(tmp_path / "runs" / "digits" / "sweep.json")["seeds"] == 2
    assert "| breast_cancer | auroc | 8 to 9 | 0.60 ± 0.14 | `foldax sweep" in capsys.readouterr().out


def test_options_of_every_row_exist(scores: Any) -> None:
    for row in scores.ROWS:
        for file, options in [(row.file, row.options), *([row.pretraining] if row.pretraining else [])]:
            _, config = scores.load(file, options, quick=False)
        assert row.mean_over is None or hasattr(config, row.mean_over[0])
    assert len({row.name for row in scores.ROWS}) == len(scores.ROWS)
    shown = set((ROOT / "docs/reference/experiments.md").read_text().split("experiments/"))
    assert {f"{row.file}.py" for row in scores.ROWS} <= {part.partition(")")[0] for part in shown}


def test_only_takes_names_or_their_first_words(scores: Any) -> None:
    assert [row.name for row in scores.choose(["forecast"])] == ["forecast", "forecast sunspots"]
    assert [row.name for row in scores.choose(["digits"])] == ["digits"]
    assert scores.choose(None) == list(scores.ROWS)
    with pytest.raises(ConfigError, match="no row is named 'digit'; there are digits, "):
        scores.choose(["digit"])


def test_scores_are_rounded_to_two_digits_of_the_deviation(scores: Any) -> None:
    assert scores.format_score(0.97703, 0.00294) == "0.9770 ± 0.0029"
    assert scores.format_score(-144.42, 3.53) == "-144.4 ± 3.5"
    assert scores.format_score(2074.3, 815.0) == "2074 ± 815"
    assert scores.format_score(500.0, 0.0) == "500 ± 0"
