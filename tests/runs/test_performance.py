"""Speed, memory and learning rate: what is known is logged, and nothing is invented."""

import json
import types
from typing import Any

import numpy as np
import pytest

import foldax
from foldax import learners, models, optim
from foldax.engine import compiled, hardware, setup
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
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"), ("Tesla T4", "t4"), ("NVIDIA B200", "b200"), ("TPU v2", "v2"),
        ("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("TPU7x", "tpu7x"),
        ("cpu", None), ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None), ("NVIDIA H200 NVL", None), ("TPU v4 lite", None),
    ],
)  # fmt: skip
def test_chips_are_known_by_their_whole_kind(kind: str, name: str | None) -> None:
    chip = hardware.chip_of(kind)
    assert (chip and chip.name) == name
    # Memory is read in far less than a minute, and no product reads it often enough to be free of it.
    assert chip is None or (1 < chip.memory / chip.memory_bandwidth * 1e3 < 100 and chip.flops > chip.memory_bandwidth)


def test_memory_is_that_of_the_device_where_it_counts() -> None:
    stats = {"bytes_in_use": 5, "peak_bytes_in_use": 9, "bytes_limit": 12, "num_allocs": 1}
    device: Any = types.SimpleNamespace(memory_stats=lambda: stats)
    expected = {"memory_bytes": 5.0, "peak_memory_bytes": 9.0, "memory_limit_bytes": 12.0}
    assert hardware.memory_in_use(device) == expected


def test_speeds_are_those_of_chunks_without_evaluations(monkeypatch) -> None:
    now = iter([0.0, 1.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr(compiled, "training_clock", lambda: next(now))
    measured = performance.Performance()
    measured.start(setup.start_run(tiny, Config(), Callbacks(), None))
    measured.add_chunk(1)
    measured.add_chunk(11)
    measured.note_split("validation")
    measured.add_chunk(21)  # 10 steps in 1 s, and an evaluation of 9 s
    assert measured.measure(8)["steps_per_second"] == 10
    measured.note_split("train")
    measured.add_chunk(31)
    measured.note_split("validation")
    measured.add_chunk(41)
    assert measured.summary()["steps_per_second"] == 10
    assert measured.text().startswith("10 steps/s  160 examples/s")
    # Each chunk has an evaluation: better a speed with it than none.
    assert performance.Rates().add(10, 2.0, is_clean=False).steps_per_second == 5
    assert performance.Rates().steps_per_second is None


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
    assert result.performance == json.loads((tmp_path / "r" / "result.json").read_text())["performance"]
    monkeypatch.setattr(hardware, "CHIPS", {"cpu": hardware.Chip("cpu", 1e9, 1.0, 1.0, 1.0)})
    result = foldax.train(tiny, Config(), run_dir=tmp_path / "s", verbose=False)
    # Forward and backward pass of the two layers, two operations each; the inputs need no gradient.
    flops = 16 * 2 * (2 * 6 * 8 + 3 * 8 * 2)
    line = read_log(tmp_path / "s", PERFORMANCE_LOG)[-1]
    assert line["mfu"] == pytest.approx(line["steps_per_second"] * flops / 1e9)
    assert result.performance["mfu"] == pytest.approx(result.performance["steps_per_second"] * flops / 1e9)
