"""`foldax compare`: groups of runs and sweeps, their metrics, and tests over seeds, which are compared with SciPy's."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from foldax import cli
from foldax.runs.terminal import print_table
from foldax.sweeps import compare
from foldax.sweeps.compare import paired_test, paired_tests, read_groups
from tests.sweeps.test_catalog import write_run
from tests.sweeps.test_statistics import results_of, write_sweep

RATES = (0.1, 0.0123456789)
SEEDS = 4


def write_runs(root: Path) -> list[Path]:
    """Writes runs with two rates and several seeds."""
    paths = []
    for number, rate in enumerate(RATES):
        for seed in range(SEEDS):
            accuracy = 0.5 + 0.1 * number + 0.01 * (seed + number * seed**2)
            path = write_run(root / f"{number}{seed}", accuracy, seed=seed, optimizer={"learning_rate": rate})
            log = [{"step": step, "split": "validation", "loss": accuracy / step} for step in (1, 2, 3)]
            (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
            paths.append(path)
    return paths


def seeds_of(groups) -> list[list[int]]:
    return [[member.seed for member in group] for group in groups.values()]


def test_runs_that_differ_only_in_the_seed_are_one_group(tmp_path) -> None:
    paths = write_runs(tmp_path)
    for arguments in (paths, [tmp_path]):
        groups = read_groups(arguments)
        assert list(groups) == ["A", "B"]
        assert seeds_of(groups) == [[0, 1, 2, 3]] * 2


def test_a_config_trained_twice_with_one_seed_is_two_groups(tmp_path) -> None:
    paths = [write_run(tmp_path / name, 0.5) for name in "ab"]
    assert seeds_of(read_groups(paths)) == [[0], [0]]
    assert seeds_of(read_groups([paths[0], paths[0]])) == [[0]]


def test_one_repeated_seed_leaves_the_others_in_their_group(tmp_path) -> None:
    paths = [write_run(tmp_path / name, 0.5, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 2))]
    assert sorted(seeds_of(read_groups(paths)), key=len) == [[0], [0, 1, 2]]


def test_a_sweep_has_a_group_for_each_config(tmp_path) -> None:
    results = results_of({"learning_rate": [1e-3, 1e-2]}, seeds=3)
    results.loc[0, "status"] = "not finite"
    groups = read_groups([write_sweep(tmp_path / "sweep", results, ("learning_rate",))])
    assert seeds_of(groups) == [[0, 1, 2]] * 2
    first, second = groups["A"][0], groups["B"][0]
    assert (first.config["learning_rate"], second.config["learning_rate"]) == (1e-3, 1e-2)
    assert second.metrics["test/loss"] == results.loc[3, "test/loss"]
    assert np.isnan(first.metrics["test/loss"])  # it diverged
    assert {line["step"] for line in second.history} == {10, 20, 40}
    assert paired_tests(groups)["B", "test/loss"].num_pairs == 2


def test_tests_over_seeds_equal_those_of_scipy(tmp_path) -> None:
    groups = read_groups(write_runs(tmp_path))
    found = paired_tests(groups)["B", "validation/accuracy"]
    x, y = (np.array([m.metrics["validation/accuracy"] for m in group]) for group in groups.values())
    expected = stats.ttest_rel(y, x)
    assert found.num_pairs == SEEDS
    assert found.difference == pytest.approx((y - x).mean())
    assert found.t_test == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.wilcoxon == pytest.approx(0.125)  # all 4 differences have one sign: 2 / 2**4


def test_tests_of_degenerate_values() -> None:
    assert paired_test({0: 1.0}, {0: 2.0}) is None
    assert paired_test({0: 1.0, 1: float("nan")}, {0: 2.0, 1: 2.0}) is None
    assert paired_test({0: 1.0, 1: 2.0}, {2: 1.0, 3: 2.0}) is None
    assert paired_test({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}) == (2, 0.0, 0.0, 0.0, 1.0, 1.0)
    equal = paired_test({0: 1.0, 1: 2.0}, {1: 4.0, 0: 3.0})
    assert equal is not None
    assert (equal.difference, equal.low, equal.high) == (2.0, 2.0, 2.0)
    assert np.isnan(equal.t_test)


@pytest.mark.parametrize("width", [40, 120])
def test_tables_show_differing_fields_and_metrics_at_any_width(tmp_path, capsys, monkeypatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    groups = read_groups(write_runs(tmp_path))
    print_table(compare.fields_table(groups))
    fields = capsys.readouterr().out
    assert "learning_rate" in fields
    assert "0.01235" in fields
    assert "monitor" not in fields
    print_table(compare.metrics_table(groups))
    print_table(compare.differences_table(paired_tests(groups), "A"))
    shown = capsys.readouterr().out
    for text in ("validation/accuracy", "0.5150 ± 0.013", "B - A", "0.12"):
        assert text in shown, text
    assert max(map(len, (fields + shown).splitlines())) <= width


def test_values_that_four_digits_do_not_distinguish_are_shown_whole(tmp_path, capsys) -> None:
    paths = [write_run(tmp_path / f"{rate}", 0.5, rate=rate) for rate in (0.1, 0.100001)]
    print_table(compare.fields_table(read_groups(paths)))
    assert "0.100001" in capsys.readouterr().out


def test_the_command_draws_curves_of_all_groups(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = write_runs(tmp_path / "runs")
    assert cli.main(["compare", *map(str, paths)]) == 0
    out = capsys.readouterr().out
    assert f"A  runs/{paths[0].name} and 3 more seeds" in out
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_says_what_cannot_be_compared(tmp_path, capsys) -> None:
    run = write_run(tmp_path / "run", 0.5)
    for words, code, message in (
        ([run], 2, "these are one group"),
        ([run, tmp_path / "gone"], 1, "there is no folder"),
        ([run, "--out", "x.docx"], 2, "must end in one of .png"),
    ):
        assert cli.main(["compare", *map(str, words)]) == code
        assert message in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["compare", str(tmp_path / "empty")]) == 1
    assert "holds none" in capsys.readouterr().err
