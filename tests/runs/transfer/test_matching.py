"""Matching of parameters by name and shape: replaced arrays, kept arrays, and errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import foldax
from foldax import learners, models
from foldax.errors import ConfigError, RunError
from foldax.learners.gradients import TrainState
from foldax.learners.wrappers.subset import SubsetState
from foldax.runs import transfer
from foldax.runs.transfer import matching, parameters


def filled(value: float, **shapes: tuple[int, ...]) -> dict:
    return {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}


def state(value: float, ema: float | None = None, **shapes: tuple[int, ...]) -> TrainState:
    """A state with different values in parameters, statistics, optimizer and average."""
    params = {"Dense_0": filled(value, **shapes)}
    statistics = {"batch_stats": {"BatchNorm_0": filled(value + 0.25, mean=(2,))}}
    moments = {"params": {"Dense_0": filled(value + 0.5, **shapes)}}
    return TrainState(params, statistics, moments, None if ema is None else {"Dense_0": filled(ema, **shapes)})


# Names


def test_names_are_those_of_flax_variables_without_the_optimizer() -> None:
    result = parameters.parameters_of(state(1, kernel=(3, 2), bias=(2,)))
    assert set(result) == {"params/Dense_0/kernel", "params/Dense_0/bias", "batch_stats/BatchNorm_0/mean"}
    assert result["params/Dense_0/kernel"][0, 0] == 1


def test_an_average_of_the_parameters_has_their_names() -> None:
    assert parameters.parameters_of(state(1, ema=2, kernel=(3, 2)))["params/Dense_0/kernel"][0, 0] == 2


def test_a_wrapped_learner_keeps_its_names() -> None:
    inner = state(1, kernel=(3, 2))
    assert set(parameters.parameters_of(SubsetState(inner, {"inputs": np.zeros((4, 3))}))) == set(
        parameters.parameters_of(inner)
    )


def test_names_of_two_networks_are_distinct() -> None:
    both = {"generator": state(1, kernel=(3, 2)), "critic": state(2, kernel=(3, 2))}
    result = parameters.parameters_of(both)
    assert result["generator/params/Dense_0/kernel"][0, 0] == 1
    assert result["critic/params/Dense_0/kernel"][0, 0] == 2
    assert "critic/batch_stats/BatchNorm_0/mean" in result


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        ({"params": {"a": np.zeros(1)}, "batch_stats": {"b": np.zeros(1)}}, {"params/a", "batch_stats/b"}),
        ({"params": {"a": np.zeros(1)}, "opt_state": {"a": np.zeros(1)}, "step": np.zeros(())}, {"params/a"}),
        ({"Dense_0": {"kernel": np.zeros(1)}}, {"params/Dense_0/kernel"}),
        ({"Dense_0/kernel": np.zeros(1), "batch_stats/b/mean": np.zeros(1)}, {"params/Dense_0/kernel", "batch_stats/b/mean"}),
        ({"w": np.zeros(1), "count": np.zeros(())}, {"params/w", "params/count"}),
        ([np.zeros(1), np.zeros(2)], {"params/0", "params/1"}),
        (np.zeros(3), {"params/"}),
    ],
    ids=["variables", "own state", "parameters", "by path", "whole state", "list", "one array"],
)  # fmt: skip
def test_names_of_various_trees(tree, names) -> None:
    assert set(parameters.parameters_of(tree)) == names


# Matching


def test_arrays_that_fit_are_replaced_and_all_others_stay() -> None:
    target = state(0, ema=0, kernel=(3, 2), bias=(4,), scale=(1,))
    source = state(1, kernel=(3, 2), bias=(5,), extra=(1,))
    result = transfer.match(target, source)
    tree = result.tree
    assert (tree.params["Dense_0"]["kernel"] == 1).all()
    assert (tree.ema_params["Dense_0"]["kernel"] == 1).all(), "an average starts as a copy of the parameters"
    assert (tree.model_state["batch_stats"]["BatchNorm_0"]["mean"] == 1.25).all()
    for name in ("bias", "scale"):
        np.testing.assert_array_equal(tree.params["Dense_0"][name], target.params["Dense_0"][name])
    assert tree.optimizer_state is not None
    jax.tree.map(np.testing.assert_array_equal, tree.optimizer_state, target.optimizer_state)
    assert {row.name: row.status for row in result.rows} == {
        "params/Dense_0/kernel": "matched",
        "params/Dense_0/bias": "shape differs",
        "params/Dense_0/scale": "missing in source",
        "params/Dense_0/extra": "unused",
        "batch_stats/BatchNorm_0/mean": "matched",
    }
    assert str(result) == "Python: 2 matched, 1 shape differs, 1 missing in source, 1 unused"


def test_a_target_keeps_its_floating_point_dtype() -> None:
    result = transfer.match({"w": jnp.zeros(3, jnp.bfloat16)}, {"w": np.float32([1, 2, 3])})
    assert result.tree["w"].dtype == jnp.bfloat16
    with pytest.raises(RunError, match="none of the parameters"):
        transfer.match({"w": np.zeros(3, np.int32)}, {"w": np.float32([1, 2, 3])})


leaves = st.dictionaries(
    st.text("abc", min_size=1, max_size=2), st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=4
)
modules = st.dictionaries(st.sampled_from(["Dense_0", "Dense_1", "MLP_0"]), leaves, min_size=1, max_size=3)


@settings(deadline=None, max_examples=60)
@given(modules, modules)
def test_matching_of_any_two_trees(ours, theirs) -> None:
    target = {module: filled(0, **shapes) for module, shapes in ours.items()}
    source = {module: filled(1, **shapes) for module, shapes in theirs.items()}
    common = [(m, n) for m in ours for n in ours[m] if theirs.get(m, {}).get(n) == ours[m][n]]
    if not common:
        with pytest.raises(RunError, match="none of the parameters"):
            transfer.match(target, source)
        return
    result = transfer.match(target, source)
    for module, arrays in result.tree.items():
        for name, array in arrays.items():
            assert array.shape == ours[module][name]
            assert (array == float((module, name) in common)).all()
    assert result.count("matched") == len(common)
    both = {(m, n) for tree in (ours, theirs) for m in tree for n in tree[m]}
    assert len(result.rows) == len(both)


# Renaming


@pytest.mark.parametrize(
    "rename",
    [{"MLP_0": "encoder"}, {r"MLP_0/(.*)": r"encoder/\1"}, [("nothing|MLP_0", "encoder"), ("MLP_0/Dense_0", "never")]],
    ids=["a part", "a group", "the first counts"],
)
def test_renamed_parameters_and_their_statistics(rename) -> None:
    source = {
        "params": {"MLP_0": {"Dense_0": filled(1, kernel=(2, 2))}},
        "batch_stats": {"MLP_0": filled(2, mean=(2,))},
    }
    target = {
        "params": {"encoder": {"Dense_0": filled(0, kernel=(2, 2))}},
        "batch_stats": {"encoder": filled(0, mean=(2,))},
    }
    result = transfer.match(target, source, rename=rename, strict=True).tree
    assert (result["params"]["encoder"]["Dense_0"]["kernel"] == 1).all()
    assert (result["batch_stats"]["encoder"]["mean"] == 2).all()


def test_a_prefix_is_dropped() -> None:
    source = {"MLP_0": {"Dense_0": filled(1, kernel=(2, 2))}, "MLP_01": {"Dense_0": filled(3, kernel=(1,))}}
    assert set(transfer.rename(source, {r"MLP_0/(.*)": r"\1"}).arrays) == {
        "params/Dense_0/kernel", "params/MLP_01/Dense_0/kernel",
    }  # fmt: skip
    assert "params/Dense_0/kernel" in transfer.rename(source, {"MLP_0": ""}).arrays


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"MPL_0": "x"}, r"rename: no parameter's path matches 'MPL_0'; did you mean 'MLP_0'"),
        ({"MLP_0(": "x"}, r"rename: 'MLP_0\(' is no regular expression"),
        ({"MLP_0": "MLP_1"}, "rename: MLP_0/kernel and MLP_1/kernel would both be named MLP_1/kernel"),
    ],
)
def test_invalid_renames(patterns, message) -> None:
    source = {"MLP_0": filled(1, kernel=(2,)), "MLP_1": filled(1, kernel=(2,))}
    with pytest.raises(ConfigError, match=message):
        transfer.rename(source, patterns)


# Arrays that do not fit


def test_an_error_names_ten_arrays_of_both_sides_if_nothing_fits() -> None:
    target = {f"here_{i}": filled(0, kernel=(2,)) for i in range(12)}
    source = {f"there_{i}": filled(0, kernel=(2,)) for i in range(11)}
    with pytest.raises(RunError) as error:
        transfer.match(target, source)
    text = str(error.value)
    assert text.count("here_") + text.count("kernel") > 20
    for part in (
        "The model has here_0/kernel, ",
        "and 2 more",
        "The source has there_0/kernel, ",
        "and 1 more",
        "transfer.rename",
    ):
        assert part in text


def test_strict_matching_names_ten_arrays_that_do_not_fit_with_both_shapes() -> None:
    target = {f"layer_{i:02}": filled(0, kernel=(2, 3)) for i in range(14)}
    source = {f"layer_{i:02}": filled(0, kernel=(3, 2)) for i in range(11)} | {"layer_11": filled(0, kernel=(2, 3))}
    assert transfer.match(target, source).count("matched") == 1
    with pytest.raises(RunError) as error:
        transfer.load_params(target, source)
    text = str(error.value)
    assert "13 of 14 arrays do not fit" in text
    assert "layer_00/kernel (2x3 in the model, 3x2 in the source), layer_01/kernel" in text
    assert "layer_09/kernel (2x3 in the model, 3x2 in the source) and 3 more" in text
    assert "layer_10" not in text
    with pytest.raises(RunError, match=r"layer_1/bias \(missing in source, 2 in the model\)"):
        transfer.load_params({"layer_1": filled(0, bias=(2,), kernel=(1,))}, {"layer_1": filled(0, kernel=(1,))})
    with pytest.raises(RunError, match=r"layer_1/bias \(unused, 2 in the source\)"):
        transfer.load_params({"layer_1": filled(0, kernel=(1,))}, {"layer_1": filled(0, bias=(2,), kernel=(1,))})
    with pytest.raises(RunError, match=r"w \(2 int32 in the model, 2 float32 in the source\)"):
        transfer.load_params({"w": np.zeros(2, np.int32), "v": np.ones(1)}, {"w": np.float32([1, 2]), "v": np.ones(1)})


def test_a_source_without_parameters() -> None:
    with pytest.raises(RunError, match="no parameters in the dict"):
        transfer.match({"w": np.zeros(2)}, {})


# The table


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_shows_ten_arrays_of_each_status_and_counts_the_others(width) -> None:
    from rich.console import Console

    target = {f"layer_{i:02}": filled(0, kernel=(2, 3)) for i in range(12)} | {
        "head": filled(0, kernel=(3, 5), bias=(5,))
    }
    source = {f"layer_{i:02}": filled(0, kernel=(2, 3)) for i in range(12)} | {"head": filled(0, kernel=(3, 9))}
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(matching.table(transfer.match(target, source | {"old": filled(0, kernel=(1,))})))
    lines = console.export_text().splitlines()
    assert lines[0].strip() == "Parameters from Python"
    assert lines[-1].strip() == (
        "12 of 14 arrays, 72 of 92 values are from the source; the others keep their initialisation"
        if width == 140
        else "initialisation"
    ), lines[-3:]
    text = [line.strip("│ ").split("│") for line in lines if line.startswith("│")]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in text}
    assert rows["layer_00/kernel"] == ["2x3", "2x3", "matched"]
    assert rows["and 2 more"] == ["", "", "matched"]
    assert "layer_10/kernel" not in rows
    assert rows["head/kernel"] == ["3x5", "3x9", "shape differs"]
    assert rows["head/bias"] == ["5", "", "missing in source"]
    assert rows["old/kernel"] == ["", "1", "unused"]
    assert all(len(line) <= width for line in lines)


# With real learners


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_new_head_on_a_network_with_statistics(ema) -> None:
    class Net(nn.Module):
        classes: int

        @nn.compact
        def __call__(self, x, train=False):
            return models.MLP((4, self.classes), normalization="batch")(x, train=train)

    examples = {"inputs": np.ones((4, 3), np.float32), "targets": np.zeros(4, np.int32)}
    old = learners.classifier(Net(3), optax.adam(1e-3)).init(jax.random.key(0), examples)
    new = learners.classifier(Net(5), optax.sgd(1e-3), ema_decay=ema).init(jax.random.key(1), examples)
    result = transfer.match(new, old)
    assert (result.count("matched"), result.count("shape differs")) == (6, 2)
    body = result.tree.evaluation_params["MLP_0"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(body, old.params["MLP_0"]["Dense_0"]["kernel"])
    head = result.tree.evaluation_params["MLP_0"]["Dense_1"]["kernel"]
    np.testing.assert_array_equal(head, new.params["MLP_0"]["Dense_1"]["kernel"])
    assert isinstance(foldax.transfer.match(new, old), transfer.Match)
