"""Speed, memory and learning rate: what is known is logged, and nothing is invented."""

import types
from typing import Any

import numpy as np
import pytest

import foldax
from foldax import learners, models, optim
from foldax.engine import hardware, setup
from foldax.engine.state import Callbacks
from foldax.runs import performance
from foldax.runs.log import read_log
from foldax.runs.recorder import PERFORMANCE_LOG
from tests.conftest import Config, tiny, tiny_dataset


@foldax.config
class Scheduled(Config):
    optimizer: optim.Optimizer = optim.Optimizer(name="sgd", learning_rate=0.5, schedule="linear", final_fraction=0.0)


def experiment(build: Any) -> foldax.Experiment:
    def learner(config: Scheduled, info: Any) -> foldax.Learner:
        return learners.classifier(models.MLP((info.num_classes,)), build(config))

    return foldax.Experiment(Scheduled, learner, tiny_dataset, name="scheduled")


def start(build: Any, config: Any) -> Any:
    return setup.start_run(experiment(build), config, Callbacks(), None)


def test_the_learning_rate_is_that_of_the_last_update_before_a_log_line() -> None:
    config = Scheduled(steps=10, log_every=4)
    rates = performance.learning_rates(start(lambda c: optim.build(c.optimizer, c.steps), config))
    np.testing.assert_allclose(rates["learning_rate"], [0.5 * (1 - step / 10) for step in (3, 7, 9)], rtol=1e-6)


def test_the_learning_rate_counts_the_calls_and_accumulated_batches_of_an_update() -> None:
    accumulating = optim.Optimizer(
        name="sgd", learning_rate=1.0, schedule="linear", final_fraction=0.0, accumulate_steps=2
    )
    run = types.SimpleNamespace(config=Scheduled(steps=10, log_every=5, optimizer=accumulating))
    run.program = start(lambda c: optim.build(c.optimizer, 4 * c.steps), run.config).program
    # 4 calls an update, 2 of which are one step of a schedule of 20.
    np.testing.assert_allclose(performance.learning_rates(run)["learning_rate"], [1 - 9 / 20, 1 - 19 / 20], rtol=1e-5)


def test_two_optimizers_have_names_and_an_unknown_one_none() -> None:
    @foldax.config
    class Two(Scheduled):
        other: optim.Optimizer = optim.Optimizer(learning_rate=0.25)

    config = Two(steps=4, log_every=2)

    def both(config: Any) -> Any:
        assert config.other.learning_rate.dtype == np.float32  # it can be built in a trace only
        optim.build(config.other, config.steps)
        return optim.build(config.optimizer, config.steps)

    rates = performance.learning_rates(start(both, config))
    assert sorted(rates) == ["optimizer.learning_rate", "other.learning_rate"]
    np.testing.assert_array_equal(rates["other.learning_rate"], [0.25, 0.25])
    run = setup.start_run(tiny, Config(), Callbacks(), None)
    assert performance.learning_rates(run) == {}


@pytest.mark.parametrize(
    ("config", "info", "expected"),
    [
        (Config(), None, {}),
        (Config(), types.SimpleNamespace(batch_size=32), {"examples_per_second": 32}),
        (Config(), types.SimpleNamespace(batch_size=8, vocabulary_size=5, shapes={"inputs": (16,)}), {"tokens_per_second": 128}),
        (foldax.RLTraining(num_envs=4, rollout_steps=8), None, {"environment_steps_per_second": 32}),
    ],
)  # fmt: skip
def test_an_update_consumes_examples_tokens_or_environment_steps(config, info, expected) -> None:
    run: Any = types.SimpleNamespace(config=config, program=types.SimpleNamespace(info=info))
    assert performance.units_per_step(run) == {"steps_per_second": 1, **expected}


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12), ("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("TPU v6 lite", 918e12),
        ("cpu", None), ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None), ("NVIDIA H200 NVL", None), ("TPU v4 lite", None),
    ],
)  # fmt: skip
def test_peak_speeds_are_those_of_whole_known_devices(kind: str, flops: float | None) -> None:
    assert hardware.peak_flops(types.SimpleNamespace(device_kind=kind)) == flops


def test_memory_is_that_of_the_device_where_it_counts() -> None:
    stats = {"bytes_in_use": 5, "peak_bytes_in_use": 9, "num_allocs": 1}
    device: Any = types.SimpleNamespace(memory_stats=lambda: stats)
    assert hardware.memory_in_use(device) == {"memory_bytes": 5.0, "peak_memory_bytes": 9.0}


def test_performance_is_logged_beside_the_metrics(tmp_path, monkeypatch) -> None:
    result = foldax.train(tiny, Config(), run_dir=tmp_path / "r", verbose=False)
    lines = read_log(tmp_path / "r", PERFORMANCE_LOG)
    # A line for each chunk that has log lines, at the last of them.
    assert lines[-1]["step"] == 12
    assert {line["step"] for line in lines} <= {4, 8, 12}
    assert lines[-1]["examples_per_second"] == pytest.approx(16 * lines[-1]["steps_per_second"])
    assert all(line["peak_memory_bytes"] > 0 for line in lines)
    assert "mfu" not in lines[-1]  # the peak of a CPU is not known
    assert read_log(tmp_path / "r") == result.history
    monkeypatch.setattr(hardware, "PEAK_FLOPS", {"cpu": 1e9})
    foldax.train(tiny, Config(), run_dir=tmp_path / "s", verbose=False)
    # Forward and backward pass of the two layers, two operations each; the inputs need no gradient.
    flops = 16 * 2 * (2 * 6 * 8 + 3 * 8 * 2)
    line = read_log(tmp_path / "s", PERFORMANCE_LOG)[-1]
    assert line["mfu"] == pytest.approx(line["steps_per_second"] * flops / 1e9)
