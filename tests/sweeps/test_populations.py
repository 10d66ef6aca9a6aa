"""Searches: surviving members equal single runs bit for bit, decisions compile nothing, interruptions change nothing."""

import dataclasses

import jax
import numpy as np
import pytest
from pandas.testing import assert_frame_equal

import foldax
from foldax.engine import compiled
from foldax.errors import ConfigError, Interrupted, RunError
from foldax.sweeps.populations import Population, SuccessiveHalving, exploit_and_explore, rungs
from foldax.sweeps.reproduce import reproduce_member
from tests.conftest import Config, tiny

CONFIG = Config(steps=18, log_every=6, evaluate_every=6)
RATES = {"learning_rate": [1e-4, 1e-3, 1e-2, 3e-2]}


def run_sweep(search, space=RATES, experiment=tiny, config=CONFIG, **options) -> foldax.SweepResult:
    return foldax.sweep(experiment, space, config=config, search=search, **{"save": False, "verbose": False} | options)


def test_rungs_grow_by_the_reduction_factor_and_end_with_all_steps() -> None:
    assert rungs(900, 27, SuccessiveHalving(reduction_factor=3)) == [33, 100, 300, 900]
    assert rungs(900, 27, SuccessiveHalving(reduction_factor=3, min_steps=100)) == [100, 300, 900]
    assert rungs(10, 1, SuccessiveHalving()) == [10]


def test_successive_halving_stops_the_worse_and_keeps_bits() -> None:
    sweep = run_sweep(foldax.SuccessiveHalving(reduction_factor=2), seeds=2)
    results = sweep.results
    assert (results["status"] == "finished").sum() == 2
    assert sorted(results["steps_done"].unique()) == [4, 9, 18]
    assert sweep.metadata["member_steps"] < 8 * 18
    whole = run_sweep(None, seeds=2).results
    kept = results[results["status"] == "finished"]["member"]
    assert list(results["state_sha256"][kept]) == list(whole["state_sha256"][kept])


def test_worst_members_copy_the_best_and_perturb_searched_fields() -> None:
    hyperparameters = np.array([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 8.0]], np.float32)
    objectives = np.array([0.3, np.nan, 0.1, 0.2], np.float32)
    searched = np.array([True, False])
    parents, changed = exploit_and_explore(jax.random.key(0), objectives, hyperparameters, searched, np.float32(2.0), 1)
    np.testing.assert_array_equal(parents, [0, 2, 2, 3])  # the one that is not finite copies the best
    np.testing.assert_array_equal(changed[:, 1], [5.0, 7.0, 7.0, 8.0])
    assert float(changed[1, 0]) in (6.0, 1.5)
    np.testing.assert_array_equal(np.delete(changed[:, 0], 1), [1.0, 3.0, 4.0])


def test_population_based_training_compiles_nothing_for_a_decision_and_is_reproducible() -> None:
    first = run_sweep(foldax.PBT(perturbation_interval=6))
    before = dict(compiled.trace_counts)
    second = run_sweep(foldax.PBT(perturbation_interval=6))
    assert compiled.trace_counts == before
    assert set(first.results["status"]) == {"finished"}
    assert list(first.results["state_sha256"]) == list(second.results["state_sha256"])
    assert set(first.curves[first.curves["split"] == "config"]["metric"]) == {"learning_rate"}


def test_members_record_the_config_that_they_ended_with() -> None:
    sweep = run_sweep(foldax.PBT(perturbation_interval=6), {"learning_rate": [1e-8, 2e-8, 1e-2, 3e-2]})
    curves = sweep.curves[sweep.curves["split"] == "config"]
    last = curves.groupby("member")["value"].last()
    rates = sweep.results["learning_rate"]
    np.testing.assert_array_equal(rates.astype(np.float32), last.astype(np.float32))
    assert rates.min() > 1e-3  # the hopeless ones have copied the good ones
    assert [config.learning_rate for config in sweep.configs] == rates.tolist()
    assert {1e-2, 3e-2} & {*rates}  # one that copied nothing has all digits of its own value


def test_members_of_searches_reproduce_as_single_runs(tmp_path, tiny_file, capsys) -> None:
    experiment = foldax.load_experiment(tiny_file)
    rates, path = {"learning_rate": [1e-8, 2e-8, 1e-2, 3e-2]}, tmp_path / "pbt"
    pbt = run_sweep(foldax.PBT(perturbation_interval=6), rates, experiment, None, save=True, sweep_dir=path)
    kept = pbt.results["learning_rate"].isin(rates["learning_rate"])
    assert kept.sum() == 3
    assert reproduce_member(path, int(kept.idxmax()))
    with pytest.raises(RunError, match=r"copied other members while it trained, so no single run repeats it"):
        reproduce_member(path, int(kept.idxmin()))
    path = tmp_path / "halving"
    halving = run_sweep(foldax.SuccessiveHalving(2), rates, experiment, None, save=True, sweep_dir=path)
    stopped = halving.results["status"] == "stopped by the search"
    assert halving.results["steps_done"][stopped.idxmax()] == 3
    assert reproduce_member(path, int(stopped.idxmax()))
    assert "DIFFERS" not in capsys.readouterr().out


def test_resumed_optuna_gives_results_to_the_configs_that_were_trained(tmp_path, tiny_file, monkeypatch) -> None:
    optuna = pytest.importorskip("optuna")
    from foldax.sweeps.plan import Planner

    experiment, plans, plan = foldax.load_experiment(tiny_file), [], Planner.plan

    def killed(self: Planner, all_overrides: list) -> object:
        plans.append(all_overrides)
        if len(plans) == 3:  # the first is empty; then each batch has one
            raise Interrupted("stopped")
        return plan(self, all_overrides)

    def search(seed: int) -> foldax.Optuna:
        return foldax.Optuna(num_trials=6, batch_size=2, sampler=optuna.samplers.RandomSampler(seed=seed))

    options = dict(space={"learning_rate": "log:1e-4:1e-1"}, experiment=experiment, config=None, save=True)
    monkeypatch.setattr(Planner, "plan", killed)
    with pytest.raises(Interrupted):
        run_sweep(search(0), sweep_dir=tmp_path / "s", **options)
    monkeypatch.undo()
    resumed = run_sweep(search(1), sweep_dir=tmp_path / "s", resume=True, **options)
    suggested = [overrides["learning_rate"] for overrides in plans[2]]
    assert len(suggested) == 4
    assert resumed.results["learning_rate"].tolist()[:4] == suggested  # two were trained, two only suggested
    assert resumed.results["learning_rate"].nunique() == 6
    for number in (0, 5):
        assert reproduce_member(tmp_path / "s", number)


@pytest.mark.parametrize(
    "search", [foldax.PBT(perturbation_interval=6), foldax.SuccessiveHalving(2)], ids=["PBT", "halving"]
)
def test_killed_search_goes_on_between_two_decisions_to_the_same_table(search, tmp_path, monkeypatch) -> None:
    config, steps = dataclasses.replace(CONFIG, checkpoint_every=2), []
    save, restore = Population.save, Population.restore

    def killed(self: Population, now: bool = False) -> None:
        save(self, now)
        if self.round == 1 and len({run.step for run in self.runs.values()}) > 1:
            raise Interrupted("stopped")

    def restored(self: Population) -> None:
        restore(self)
        steps.append((self.round, {number: run.step for number, run in self.runs.items()}))

    monkeypatch.setattr(Population, "restore", restored)
    monkeypatch.setattr(Population, "save", killed)
    with pytest.raises(Interrupted):
        run_sweep(search, config=config, save=True, sweep_dir=tmp_path / "s")
    monkeypatch.setattr(Population, "save", save)
    resumed = run_sweep(search, config=config, save=True, sweep_dir=tmp_path / "s", resume=True)
    whole = run_sweep(search, config=config)
    round_, last = steps[1]
    assert round_ == 1
    assert len({*last.values()}) > 1  # one is ahead of the others
    assert_frame_equal(resumed.results.drop(columns="seconds"), whole.results.drop(columns="seconds"))
    assert_frame_equal(resumed.curves, whole.curves)


def test_optuna_suggests_batches_of_one_program() -> None:
    pytest.importorskip("optuna")
    sweep = run_sweep(foldax.Optuna(num_trials=6, batch_size=3), {"learning_rate": "log:1e-4:1e-1"})
    assert len(sweep.results) == 6
    assert sweep.results["learning_rate"].between(1e-4, 1e-1).all()
    assert len(sweep.metadata["groups"]) == 1


@pytest.mark.parametrize(
    ("search", "space", "words"),
    [
        (foldax.PBT(), {"hidden": [(4,), (8,)]}, "changes traced floats"),
        (foldax.PBT(), {}, "needs a traced float"),
        (foldax.PBT(quantile_fraction=0.9), RATES, "quantile_fraction"),
        (foldax.SuccessiveHalving(reduction_factor=1), RATES, "at least 2"),
        (foldax.Optuna(num_trials=0), RATES, "at least 1"),
        ("grid", RATES, "is none of"),
    ],
    ids=str,
)
def test_search_that_does_not_fit_is_a_config_error(search, space, words) -> None:
    with pytest.raises(ConfigError, match=words):
        run_sweep(search, space)
