"""Statistics of a sweep: compared with hand calculations, SciPy and pandas; output while it is unfinished."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import foldax
from foldax import Training
from foldax.errors import ConfigError, RunError
from foldax.runs import folder
from foldax.runs.tables import format_metric
from foldax.sweeps import statistics
from foldax.sweeps.exact import MemberResult
from foldax.sweeps.show import show
from foldax.sweeps.statistics import NOT_FINITE, STOPPED
from foldax.sweeps.sweep import _status

SPACE = {"learning_rate": [1e-3, 1e-2, 1e-1], "hidden": ["[8]", "[8, 8]"], "clip": [None, 1.0]}


def results_of(space=SPACE, seeds: int = 3) -> pandas.DataFrame:
    """Makes a grid's results; what is measured depends on the rate and, a little, on all else."""
    rng = np.random.RandomState(0)
    configs = [dict(zip(space, values)) for values in itertools.product(*space.values())]
    rows = []
    for member, (config, seed) in enumerate(itertools.product(configs, range(seeds))):
        loss = 0.2 + abs(np.log10(config.get("learning_rate", 1e-2)) + 2) + 0.01 * rng.rand()
        measured = {"train/loss": loss - 0.1, "validation/loss": loss, "test/loss": loss, "test/accuracy": 1 - loss / 3}
        rows.append(
            {"member": member, "group": 0, **config, "seed": seed, "status": "finished", "steps_done": 40} | measured
        )
    return pandas.DataFrame(rows)


def write_sweep(path: Path, results: pandas.DataFrame | None, fields=tuple(SPACE), **metadata) -> Path:
    """Writes a sweep folder with these results (none while it runs) and curves that lead to them."""
    path.mkdir()
    if results is not None:
        points = [
            (row.member, step, split, "loss", row[f"{split}/loss"] + 1 / step)
            for _, row in results.iterrows()
            for split, step in itertools.product(("train", "validation"), (10, 20, 40))
        ]
        curves = pandas.DataFrame(points, columns=["member", "step", "split", "metric", "value"])
        results.to_parquet(path / "results.parquet")
        curves.to_parquet(path / "curves.parquet")
        measured = {
            "fields": list(fields), "programs": 2, "member_steps": 40 * len(results), "compile_seconds": 1.0,
            "member_steps_per_second": 1234.5, "seconds": 9.8, "ended": "2026-01-01T00:01:00+00:00",
            "groups": [
                {"structural": {"hidden": hidden, "steps": 40}, "members": len(results) // 2, "execution": "exact"}
                for hidden in ("[8]", "[8, 8]")
            ],
        }  # fmt: skip
    started = {
        "experiment": "tiny", "file": None, "command": "foldax sweep tiny.py --seeds 3", "search": "grid",
        "space": {name: SPACE.get(name, []) for name in fields}, "seeds": 3, "monitor": "loss", "mode": "min",
        "config": {"steps": 40, "keep": "last"}, "python": "3.11.7", "versions": {"jax": "0.10.2", "gone": None},
        "git": {"commit": "abc123", "dirty": True}, "backend": "cpu", "devices": ["cpu:0"], "data_fingerprint": "f00d",
        "started": "2026-01-01T00:00:00+00:00", "ended": None, "status": "running",
    }  # fmt: skip
    ended = {} if results is None else measured | {"status": "finished"}
    (path / "sweep.json").write_text(json.dumps(started | ended | metadata))
    return path


def test_interval_is_the_bca_bootstrap_of_scipy() -> None:
    values = np.array([0.9, 1.1, 1.3, 2.0, 1.2])
    expected = stats.bootstrap((values,), np.mean, n_resamples=2_000, method="BCa", rng=np.random.default_rng(0))
    assert statistics.bootstrap_interval(values) == tuple(expected.confidence_interval)


def test_interval_where_bca_does_not_exist() -> None:
    assert np.isnan(statistics.bootstrap_interval(np.array([]))).all()
    assert np.isnan(statistics.bootstrap_interval(np.array([1.0]))).all()
    assert statistics.bootstrap_interval(np.full(4, 2.5)) == (2.5, 2.5)
    assert statistics.bootstrap_interval(np.array([1.0, 1.0 + 1e-16, 1.0])) == (1.0, 1.0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=9).map(lambda values: np.array(values) / 8))
def test_interval_lies_within_the_values_and_is_deterministic(values) -> None:
    low, high = statistics.bootstrap_interval(values)
    assert values.min() <= low <= high <= values.max()
    assert (low, high) == statistics.bootstrap_interval(values)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_summary_has_the_means_of_pandas_best_config_first(mode) -> None:
    results = results_of()
    table = statistics.summarize(results, list(SPACE), "validation/loss", mode)
    expected = results.groupby(list(SPACE), dropna=False)["validation/loss"].mean()
    assert table.index.names == list(SPACE)
    pandas.testing.assert_series_equal(table["mean"].sort_index(), expected, check_names=False)
    assert table["mean"].is_monotonic_increasing if mode == "min" else table["mean"].is_monotonic_decreasing
    assert (table["n"] == 3).all()
    assert (table["not_finite"] == 0).all()
    first = results[(results["learning_rate"] == 1e-3) & (results["hidden"] == "[8]") & (results["clip"] == 1.0)]
    row = table.loc[(1e-3, "[8]", 1.0)]
    assert (row["low"], row["high"]) == statistics.bootstrap_interval(first["validation/loss"].to_numpy())


def test_members_that_are_not_finite_are_counted_and_excluded() -> None:
    results = results_of({"learning_rate": [1e-3, 1e-2]})
    results.loc[0, "status"] = "not finite"  # though its last metric is a number
    results.loc[1, "validation/loss"] = np.inf
    results.loc[3:, "validation/loss"] = np.nan
    results.loc[3:, "status"] = "not finite"
    table = statistics.summarize(results, ["learning_rate"], "validation/loss")
    assert list(table.index) == [1e-3, 1e-2]  # nothing finite comes last
    assert table.loc[1e-3, "mean"] == results.loc[2, "validation/loss"]
    assert table["n"].tolist() == [1, 0]
    assert table["not_finite"].tolist() == [2, 3]
    assert table[["low", "high"]].isna().all(axis=None)
    assert statistics.caveats(results) == ["members not finite, so in no mean: 4"]
    results.loc[3, "status"] = "finished (validation loss is nan at step 4)"
    results.loc[4, "status"] = "finished (test loss is nan at step 4)"  # this one has no validation loss
    assert statistics.summarize(results, ["learning_rate"], "validation/loss")["not_finite"].tolist() == [2, 2]


def test_status_of_a_member_names_evaluations_that_are_not_finite() -> None:
    nan, lines = float("nan"), [{"step": step, "split": "validation", "loss": 0.5} for step in (2, 4)]
    lines[1]["loss"] = nan
    numbers = {"finished": {"test": {"loss": float("inf")}}, STOPPED: {}, NOT_FINITE: {}}
    members = [MemberResult(0, *how, lines, None, 1.0) for how in ((s, 6, 2, m) for s, m in numbers.items())]
    statuses = [*map(_status, members), _status(members[0]._replace(metrics={}, history=lines[:1]))]
    assert statuses == [
        "finished (validation loss is nan at step 4; test loss is inf at step 2)",
        "stopped by the search (validation loss is nan at step 4)",
        "not finite",
        "finished",
    ]
    assert statistics.caveats(pandas.DataFrame({"status": statuses})) == [
        "members not finite, so in no mean: 1",
        "members stopped by the search, so to be compared with care: 1",
        "members with an evaluation that is not finite, which their status names: 2",
    ]


def test_sweep_of_seeds_only_is_one_config() -> None:
    table = statistics.summarize(results_of({}, seeds=5), [], "test/loss")
    assert len(table) == 1
    assert table["n"].item() == 5


def test_missing_metric_suggests_the_nearest() -> None:
    with pytest.raises(RunError, match=r"no 'validation/los'; did you mean 'validation/loss'\?"):
        statistics.summarize(results_of(), ["hidden"], "validation/los")


def test_configs_are_not_selected_by_the_test_split() -> None:
    metadata, results = {"monitor": "loss"}, results_of()
    assert statistics.default_metric(metadata, results) == "validation/loss"
    assert statistics.default_metric(metadata, results.assign(**{"validation/loss": np.nan})) == "train/loss"
    assert statistics.default_metric(metadata, results.drop(columns="validation/loss")) == "train/loss"
    assert statistics.default_metric({"monitor": "reward"}, results) == "validation/loss"
    assert statistics.default_metric({"monitor": "ood/loss"}, results.assign(**{"ood/loss": 1.0})) == "ood/loss"
    assert statistics.default_metric(metadata, results[["test/loss", "status"]]) == "test/loss"  # there is nothing else
    assert statistics.default_metric(metadata, results[["status"]]) is None
    assert statistics.default_metric(metadata, None) is None


def test_summary_puts_the_best_first_also_by_other_metrics_than_the_monitored() -> None:
    metadata = {"monitor": "accuracy", "mode": "max", "fields": ["learning_rate"]}
    results = results_of({"learning_rate": [1e-3, 1e-2]}).assign(**{"test/size": 1.0})
    swept = foldax.SweepResult(results, None, metadata, [], None)
    for metric in ("test/loss", "validation/loss", "test/accuracy"):
        assert list(swept.summary(metric).index) == [1e-2, 1e-3], metric
    assert list(swept.summary("test/loss", "max").index) == [1e-3, 1e-2]
    with pytest.raises(ConfigError, match="mode: say which values of 'test/size' are best"):
        swept.summary("test/size")


def test_options_of_the_best_member_train_it_again() -> None:
    results = results_of({"learning_rate": [1e-3, 1e-2]}, seeds=1)
    configs = [Training(), Training(steps=40, profile=True, init_from="a b")]
    metadata = {"monitor": "loss", "mode": "min"}
    best = statistics.best_member(metadata, results, configs)
    assert best == {"metric": "validation/loss", "options": "--init-from 'a b' --profile --steps 40"}
    assert statistics.best_member({"monitor": "reward", "mode": "max"}, results, configs) == best  # by the loss
    assert statistics.best_member(metadata, None, []) is None


def test_show_prints_overview_groups_and_best_configs(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    results = results_of(SPACE | {"dropout": [0.0, 0.5]})
    results.loc[0, "status"] = "not finite"
    path = write_sweep(tmp_path / "sweep", results, (*SPACE, "dropout"))
    assert folder.is_sweep(path)
    assert not folder.is_sweep(tmp_path)
    show(path)
    shown = capsys.readouterr().out
    for part in (
        "tiny  sweep (grid), finished", "foldax sweep tiny.py", "members: 72  configs: 24  seeds: 3  programs: 2",
        "member-steps/s: 1,234", "[8, 8]", "Best configs by validation/loss (min)", "and 4 more configs",
        "members not finite, so in no mean: 1", "results.parquet",
    ):  # fmt: skip
        assert part in shown, part
    assert "steps" not in shown.split("Groups")[1].split("Best")[0]  # the groups do not differ in it
    best = statistics.summarize(results, [*SPACE, "dropout"], "validation/loss").iloc[0]
    row = next(line for line in shown.splitlines() if line.strip().startswith("0.01 "))
    assert format_metric(best["mean"]) in row
    assert f"{format_metric(best['low'])}..{format_metric(best['high'])}" in row


def test_show_at_40_columns_has_every_field_and_value(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    results = results_of(SPACE | {"dropout": [0.0, 0.5]})
    show(write_sweep(tmp_path / "sweep", results, (*SPACE, "dropout")))
    table = capsys.readouterr().out.split("Best configs")[1]
    assert max(map(len, table.split("and 4 more")[0].splitlines())) <= 40
    for name in (*SPACE, "dropout", "validation/loss", "95% interval"):
        assert table.count(name) >= 20, name
    best = statistics.summarize(results, [*SPACE, "dropout"], "validation/loss").iloc[0]
    assert format_metric(best["mean"]) in table
    assert f"{format_metric(best['low'])}..{format_metric(best['high'])}" in table


def test_show_of_an_unfinished_sweep(tmp_path, capsys) -> None:
    path = write_sweep(tmp_path / "sweep", None)
    show(path)
    assert "running" in (shown := capsys.readouterr().out)
    assert "no member is done yet" in shown
    results = results_of()[:4]
    results.to_parquet(path / "results.parquet")
    show(path)
    assert "configs: 2" in capsys.readouterr().out


def test_reading_what_is_no_sweep_folder_is_an_error(tmp_path) -> None:
    with pytest.raises(RunError, match="there is no sweep folder"):
        statistics.read(tmp_path / "nowhere")
    with pytest.raises(RunError, match="no sweep"):
        statistics.read(tmp_path)
    path = write_sweep(tmp_path / "sweep", results_of())
    (path / "results.parquet").write_bytes(b"half a file")
    with pytest.raises(RunError, match=r"results.parquet cannot be read"):
        statistics.read(path)
