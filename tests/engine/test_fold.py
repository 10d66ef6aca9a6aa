"""Sums of training metrics over log periods of any length."""

import jax
import jax.numpy as jnp
import pytest

import foldax
from foldax.engine import fold as folds
from foldax.learner import Average


@pytest.mark.parametrize("count", [500, 5_000_000])
def test_the_mean_of_a_long_log_period_is_right(count) -> None:
    """Plainly summed in float32, five million times 0.1 would be 0.11 on average."""

    def period(fold: folds.Fold) -> folds.Fold:
        def step(fold: folds.Fold) -> folds.Fold:
            sums = {"loss": Average(fold.metric_sums["loss"].total + 0.1, fold.metric_sums["loss"].count + 1)}
            return fold._replace(step=fold.step + 1, metric_sums=sums)

        def block(fold: folds.Fold) -> folds.Fold:
            end = jnp.minimum(count, fold.step + folds.SUM_STEPS)
            fold = jax.lax.while_loop(lambda fold: fold.step < end, step, fold)
            return folds.reset_metric_sums(fold, jnp.int32(2**31 - 1))

        return jax.lax.while_loop(lambda fold: fold.step < count, block, fold)

    zero = {"loss": Average(jnp.float32(0), jnp.float32(0))}
    sums = folds.log_sums(jax.jit(period)(folds.Fold(jnp.int32(0), None, zero, {}, (zero, zero))))["loss"]
    assert int(sums.count) == count
    assert float(sums.total) / count == pytest.approx(0.1, rel=2e-5)


def test_long_log_periods_are_those_of_single_steps_to_the_bit() -> None:
    """Periods longer than `SUM_STEPS`, with a number of steps that is no multiple of either."""

    @foldax.config
    class Config(foldax.Training):
        steps: int = 2 * 1_500 + 7
        log_every: int = 1_500
        monitor: str = "loss"

    def learner(config: Config, info: None) -> foldax.Learner:
        def update(state: jax.Array, batch: None, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return state + 1, {"loss": jnp.float32(0.1) + state}

        return foldax.Learner(lambda key, examples: jnp.int32(0), update, lambda *_: {"loss": jnp.ones(2)})

    experiment = foldax.Experiment(Config, learner)
    logs = [
        foldax.train(experiment, Config(dispatch=dispatch), save=False, verbose=False).history
        for dispatch in ("loop", "step")
    ]
    means = [line["loss"] for line in logs[0] if line["split"] == "train"]
    assert means == pytest.approx([749.6, 2249.6, 3003.1], rel=1e-5)
    assert logs[0] == logs[1]
