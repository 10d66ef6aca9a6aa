"""Plans of runs on chips that are not here: what the compilers say is read, and slips are answered by one line."""

import importlib.util
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from foldax import cli, rl
from foldax.commands import plan as command
from foldax.engine import plan as plans
from foldax.engine import setup, topology
from foldax.engine.collectives import Collective, find_collectives
from foldax.errors import ConfigError, RunError
from foldax.models.layers.attention import dot_product_attention
from foldax.platforms import tracing_for
from tests.conftest import EXPERIMENTS, ROOT, Config, tiny

DIGITS = ROOT / "experiments/supervised/digits.py"
PLANNED = EXPERIMENTS if os.environ.get("FOLDAX_PLAN_EXPERIMENTS") == "all" else [DIGITS]
MESHES = ("data=1", "fsdp=-1")
EXTRAS = {"v5e": "plan-tpu", "h100": "plan-gpu"}

PROGRAM = """HloModule jit_advance, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%layer (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %gathered = (bf16[4,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%shard), replica_groups=[2,2]<=[4], dimensions={0}
  %done = bf16[8,4]{1,0} all-gather-done(%gathered)
}

%step (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %loop = (s32[], bf16[8,4]) while(%t), condition=%more, body=%layer, backend_config={"known_trip_count":{"n":"3"}}
  %all = (f32[16]{0}, f32[4]{0}) all-reduce(%g, %h), replica_groups={{0,1,2,3}}, to_apply=%add
}

%more.1 (p: (u32[], bf16[4])) -> pred[] {
  %limit = u32[]{:T(128)} constant(5), metadata={op_name="step"}
  %count = u32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%count, %limit), direction=LT, metadata={op_name="step"}
}

%rotate (p: (u32[], bf16[4])) -> (u32[], bf16[4]) {
  %part = bf16[4]{0} collective-permute(%q), channel_id=9, source_target_pairs={{0,1},{1,0}}
}

%fused_computation.1 (p: bf16[8,4]) -> bf16[8,16] {
  %start = bf16[8,16]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=4,'b'=1] {'a'}, dimensions={1}
}

%async_collective_fusion.2 (p: bf16[8,4]) -> bf16[8,16] {
  %goes_on = bf16[8,16]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=4,'b'=1] {'a'}, dimensions={1}
}

%all-reduce-scatter.3 (p: f32[8,4]) -> f32[2,4] {
  %whole = f32[8,4]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = f32[2,4]{1,0} dynamic-slice(%whole, %i, %zero), dynamic_slice_sizes={2,4}
}

ENTRY %main (p: f32[16]) -> f32[16] {
  %one = (bf16[8,16]{1,0}, u32[]) fusion(%q), kind=kCustom, calls=%fused_computation.1
  %two = (f32[8]{0}, bf16[8,16]{1,0}) fusion(%q), kind=kCustom, calls=%async_collective_fusion.2
  %three = f32[2,4]{1,0} fusion(%r), kind=kCustom, calls=%all-reduce-scatter.3
  %parts = (u32[]{:T(128)}, bf16[4]{0}) while(%t), condition=%more.1, body=%rotate, metadata={op_name="step"}
  %steps = (s32[], f32[16]) while(%t), condition=%more, body=%step
}
"""


def test_collectives_count_as_often_as_their_loop_runs() -> None:
    assert find_collectives(PROGRAM) == {
        "all-gather": Collective(3 + 1, 3 * 64.0 + 256, 3 * 32.0 + 256 * 3 / 4),
        "all-reduce": Collective(1, 80.0, 2 * 80 * 3 / 4),
        "collective-permute": Collective(5, 5 * 8.0, 5 * 8.0),
        "reduce-scatter": Collective(1, 32.0, 96.0),
    }


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM. Used 20.50G of 15.75G hbm. Exceeded by 4.75G.", 20.5 * 2**30),
        ("the total memory required for HLO temporaries (5.00T) exceeds available HBM (15.75G).", 5 * 2**40),
        ("INTERNAL: something else", None),
    ],
)
def test_both_texts_of_out_of_memory_are_read(message: str, expected: float | None) -> None:
    assert plans.bytes_needed(message) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v9", "there is no chip 'v9'"),
        ("h10", "did you mean 'h100'"),
        ("v5e:4", "which has 2 sizes, such as 'v5e:4x4'"),
        ("v4:2x0x1", "is no topology of v4"),
        ("h100:12", "a multiple of 8"),
        ("h100:x", "such as 'h100:8'"),
    ],
)
def test_unknown_chips_and_topologies_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        topology.parse_target(text)


def test_every_chip_is_described() -> None:
    targets = [topology.parse_target(name) for name in (*topology.TPU_AXES, *topology.GPUS)]
    assert {target.platform for target in targets} == {"tpu", "cuda"}
    assert all(target.chip.memory > 2**32 for target in targets)
    assert "device_memory_size: 84942979072" in topology._target_config(topology.parse_target("h100").chip)


def test_a_missing_compiler_names_its_extra(monkeypatch, capsys) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for chips, extra in EXTRAS.items():
        with pytest.raises(ConfigError, match=rf"pip install 'foldax\[{extra}\]'"):
            topology.check_compiler(topology.parse_target(chips))
    assert cli.main(["plan", str(DIGITS), "--on", "v5e"]) == 2
    assert cli.main(["plan", str(DIGITS)]) == 2
    assert cli.main(["plan", str(DIGITS), "--help"]) == 0
    out, err = capsys.readouterr()
    assert "--on: say on which chips, such as v5e:4x4" in err
    assert out.startswith(f"usage: foldax plan {DIGITS.name} --on CHIPS")


def test_runs_without_a_program_of_their_own_are_refused(monkeypatch) -> None:
    target: Any = topology.parse_target("v5e")
    with pytest.raises(ConfigError, match="dispatches every step from the host"):
        plans.plan_run(tiny, Config(dispatch="step"), target)
    host = rl.HostEnvironment(None, None, {}, "a simulator")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="environments of this experiment are on the host"):
        plans.plan_run(tiny._replace(dataset=lambda config: host), Config(), target)
    with pytest.raises(ConfigError, match="'data=8' takes 8 devices, but v5e:1x1 has 1"):
        plans.plan_run(tiny, Config(mesh="data=8"), target)


def test_the_devices_of_a_mesh_divide_batches_and_state(monkeypatch) -> None:
    # The target's devices are those of the CPU here, which need no other compiler.
    monkeypatch.setattr(plans, "make_devices", lambda target: jax.devices())
    monkeypatch.setattr(setup, "MIN_DIVIDED_SIZE", 0)
    one, two = (plans.plan_run(tiny, Config(mesh=mesh), topology.parse_target("v5e:1x2")) for mesh in MESHES)
    assert (one.devices, two.devices, two.available) == (1, 2, 2)
    assert one.flops == two.flops > 0
    assert one.state / 2 <= two.state < 0.6 * one.state
    assert not one.collectives
    assert two.collectives
    assert two.compute_seconds == one.compute_seconds / 2


def test_models_are_traced_for_the_platform_that_is_planned() -> None:
    query = jnp.ones((1, 128, 2, 4))

    def attend(query: jax.Array) -> jax.Array:
        return dot_product_attention(query, query, query, causal=True)

    here = str(jax.make_jaxpr(attend)(query))
    with tracing_for("tpu"):
        assert str(jax.make_jaxpr(lambda query: attend(query))(query)) != here


def test_the_largest_batch_is_found_by_few_plans() -> None:
    sizes = []

    def make_plan(size: int) -> dict[str, Any]:
        sizes.append(size)
        if size > 1_000:
            raise RunError("more examples than there are")
        return {"batch_size": size, "fits": size <= 104}

    assert command.largest_batch(make_plan, {"batch_size": 512, "fits": False}, 8)["batch_size"] == 104
    assert len(sizes) <= 6
    assert command.largest_batch(make_plan, {"batch_size": 8, "fits": True}, 8)["batch_size"] == 104
    with pytest.raises(ConfigError, match="not even a batch size of 8 fits"):
        command.largest_batch(make_plan, {"batch_size": 8, "fits": False}, 8)


def test_a_mesh_compiles_for_chips_that_are_not_here(capsys) -> None:
    try:
        topology.check_compiler(topology.parse_target("v5e"))
    except ConfigError as error:
        pytest.skip(str(error))
    assert cli.main(["plan", str(DIGITS), "--on", "v5e:2x2", "--mesh", "data=2,fsdp=-1", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"]
    assert plan["devices"] == plan["available"] == 4
    assert plan["collectives"]["all-reduce"]["bytes"] > 0


@pytest.mark.parametrize("chips", EXTRAS)
@pytest.mark.parametrize("file", PLANNED, ids=lambda file: file.stem)
def test_an_experiment_compiles_for_a_chip_that_is_not_here(file, chips, capsys) -> None:
    try:
        topology.check_compiler(topology.parse_target(chips))
    except ConfigError as error:
        pytest.skip(str(error))
    code = cli.main(["plan", str(file), "--on", chips, "--json"])
    out, err = capsys.readouterr()
    if "are on the host" in err:
        pytest.skip("its environments are on the host")
    assert code == 0, err
    plan = json.loads(out)
    assert plan["fits"]
    assert 0 < plan["state"] < plan["peak"] <= plan["total"]
    assert 0 <= plan["mfu"] <= 1
