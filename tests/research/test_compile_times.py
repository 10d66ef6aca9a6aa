"""Compile times of deep and shallow networks: the compiled networks, and the statistics of the seconds."""

import importlib.util
from typing import Any

import jax
import pytest

from tests.conftest import ROOT
from tests.models.shared import parameter_count


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("compile_times", ROOT / "research/throughput/compile_times.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_networks_have_the_sizes_their_names_say(study):
    counts = {case.name: parameter_count(case.model, case.inputs) for case in study.CASES}
    assert counts["ResNet-56"] == 853_018
    assert counts["ResNet-1001"] == 10_327_706
    block = 4 * (128 + 1) * 128 + (128 + 1) * 512 + (512 + 1) * 128 + 4 * 128
    assert counts["Transformer, 200 layers"] - counts["Transformer, 4 layers"] == 196 * block


def test_every_round_recompiles_and_restores_the_cache_setting(study):
    tokens = jax.ShapeDtypeStruct((2, 4), "int32")
    small = [
        study.Case("shallow", study.models.Transformer(8, 8, 8, 1, 2, causal=True, scan_layers=True), tokens, None),
        study.Case("deep", study.models.Transformer(8, 8, 8, 50, 2, causal=True, scan_layers=True), tokens, "shallow"),
    ]
    before = jax.config.jax_enable_compilation_cache
    compiled, events = [], []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
    found = study.measure(small, 2)
    assert jax.config.jax_enable_compilation_cache == before
    assert compiled.count("/jax/core/compile/backend_compile_duration") >= 4
    assert not [name for name in events if "cache_hit" in name]
    assert all(len(pairs) == 2 and min(map(min, pairs)) > 0 for pairs in found.values())
    assert study.table(small, found).row_count == 2


def test_ratios_are_medians_over_rounds(study):
    cases = [study.Case("a", None, None, None), study.Case("b", None, None, "a")]
    found = {"a": [(1.0, 1.0), (1.0, 3.0), (2.0, 2.0)], "b": [(1.0, 3.0), (2.0, 2.0), (3.0, 3.0)]}
    assert study.ratios(cases, found) == {"b": 1.5}


def test_no_rounds_say_so(study, capsys):
    with pytest.raises(SystemExit, match="2"):
        study.main(["--rounds", "0"])
    assert "at least 1" in capsys.readouterr().err
