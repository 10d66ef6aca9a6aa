"""`load_run` restores the state of a run."""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import foldax
from foldax.engine import checkpoint, loop
from foldax.errors import RunError
from foldax.inference.export import export
from foldax.runs.load import load_run
from foldax.runs.transfer import parameters
from tests.conftest import Config, tiny


def test_keys_of_a_state_may_contain_slashes_and_dots(tmp_path: Path) -> None:
    def learner(config: Config, info: Any) -> foldax.Learner:
        def update(state: dict, batch: dict, key: jax.Array) -> tuple[dict, dict]:
            return jax.tree.map(lambda x: x + 1, state), {"loss": jnp.float32(0)}

        def init(key: jax.Array, examples: Any) -> dict:
            return {"reward/upright": jnp.zeros(2), "in": {"a/b.c": jnp.ones(3)}}

        def evaluate(state: dict, batch: dict, key: jax.Array) -> dict[str, jax.Array]:
            return {"loss": jnp.zeros(len(batch["inputs"]))}

        return foldax.Learner(init, update, evaluate)

    named = tiny._replace(learner=learner)
    result = foldax.train(named, Config(), run_dir=tmp_path / "run", verbose=False)
    found = load_run(tmp_path / "run", named)
    assert jax.tree.structure(found.state) == jax.tree.structure(result.state)
    np.testing.assert_array_equal(found.final_state["reward/upright"], [12, 12])
    np.testing.assert_array_equal(found.final_state["in"]["a/b.c"], [13, 13, 13])


def test_a_milestone_is_loaded_and_begun_with(tmp_path: Path) -> None:
    config = Config(keep_period=5, max_to_keep=1, checkpoint_every=0)
    result = foldax.train(tiny, config, run_dir=tmp_path / "run", verbose=False)
    assert checkpoint.checkpoint_steps(tmp_path / "run/checkpoints") == [5, 10, 12]
    shorter = foldax.train(tiny, config, run_dir=tmp_path / "other", initial=str(tmp_path / "run@5"), verbose=False)
    milestone = load_run(tmp_path / "run", tiny, step=5)
    assert milestone.step == 5
    assert milestone.history == [line for line in result.history if line["step"] <= 5]
    assert milestone.metrics == {}
    manifest = json.loads((tmp_path / "other/manifest.json").read_text())["init_from"]
    assert manifest["path"] == f"{tmp_path / 'run'}@5"
    assert manifest["step"] == 5
    assert manifest["sha256"] == parameters.as_source(milestone).provenance["sha256"]
    assert shorter.step == 12
    with pytest.raises(RunError, match="has no checkpoint of step 7; kept are 5, 10, 12"):
        parameters.read(tmp_path / "run@7")


def with_memory(config: type = Config) -> foldax.Experiment:
    """A state with a memory that only `update` needs; the evaluation of step 2 is the best."""

    def learner(config: Config, info: Any) -> foldax.Learner:
        def update(state: dict, batch: None, key: jax.Array) -> tuple[dict, dict]:
            memory = state["memory"].at[state["step"]].add(jax.random.uniform(key))
            return {"step": state["step"] + 1, "memory": memory}, {"loss": memory.sum()}

        return foldax.Learner(
            init=lambda key, examples: {"step": jnp.int32(0), "memory": jnp.zeros(1000)},
            update=update,
            evaluate=lambda state, batch, key: {"loss": jnp.abs(state["step"] - 2.0)[None]},
            predict=lambda state, inputs, key: inputs + state["step"],
            predict_inputs={"inputs": foldax.InputSpec((), np.dtype("float32"))},
            inference_state=lambda state: {**state, "memory": None},
        )

    return foldax.Experiment(config, learner, name="with_memory")


def test_the_best_state_holds_no_memory_that_only_training_needs(tmp_path: Path) -> None:
    experiment, config = with_memory(), Config(steps=5, evaluate_every=1)
    result = foldax.train(experiment, config, run_dir=tmp_path / "run", verbose=False)
    saved, _ = checkpoint.read_arrays(tmp_path / "run" / "checkpoints", lambda name: True) or pytest.fail(
        "no checkpoint"
    )
    assert {name for name in saved if ".state." in name} == {"0.state.step", "0.state.memory", "1.state.step"}
    loaded = load_run(tmp_path / "run", experiment)
    for one in (result, loaded):
        assert (one.best_step, int(one.state["step"]), one.state["memory"]) == (2, 2, None)
        assert (one.final_state["memory"] > 0).sum() == 5
        assert float(one.predict(np.float32([1]))[0]) == 3
    assert result.metrics["test"] == loaded.metrics["test"] == {"loss": 0}
    assert export(loaded, tmp_path / "export").exists()
    # A run that stops after its best step goes on from the last state, with its memory.
    for until in (3, loop.NEVER):
        with contextlib.closing(checkpoint.Checkpoints(tmp_path / "stopped")) as checkpoints:
            resumed = loop.fit(experiment, config, loop.Callbacks(checkpoints=checkpoints), until=until)
    np.testing.assert_array_equal(resumed.final_state["memory"], result.final_state["memory"])
    assert resumed.best_step == 2


def test_members_of_a_fast_sweep_keep_no_memory_in_their_best_state() -> None:
    experiment, config = with_memory(), Config(steps=5, evaluate_every=1)
    sweep = foldax.sweep(experiment, {}, config=config, seeds=2, execution="fast", save=False, verbose=False)
    assert sweep.results["test/loss"].tolist() == [0, 0]
    assert sweep.results["best_step"].tolist() == [2, 2]
