"""`load_run` restores the state of a run."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import foldax
from foldax.runs.load import load_run
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
