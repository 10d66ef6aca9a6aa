"""Weights with PyTorch's names and layout, read into Flax models: outputs equal those of plain NumPy."""

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from foldax import models, transfer
from foldax.errors import ConfigError, RunError

RANDOM = np.random.RandomState(0)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name.replace("__", "."): RANDOM.randn(*shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def save(tmp_path: Path):
    def save(arrays: dict[str, np.ndarray]) -> Path:
        save_file(arrays, tmp_path / "theirs.safetensors")
        return tmp_path / "theirs.safetensors"

    return save


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def close(ours: jax.Array, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-5, atol=1e-5)


def test_a_perceptron(save) -> None:
    theirs = weights(net__0__weight=(8, 5), net__0__bias=(8,), net__1__weight=(3, 8), net__1__bias=(3,))
    x = RANDOM.randn(4, 5).astype(np.float32)
    model = models.MLP((8, 3))
    names = {r"net\.(\d)\.weight": r"Dense_\1/kernel", r"net\.(\d)\.bias": r"Dense_\1/bias"}
    like = model.init(jax.random.key(0), x)
    result = transfer.from_safetensors(save(theirs), names, like=like)
    hidden = relu(x @ theirs["net.0.weight"].T + theirs["net.0.bias"])
    close(model.apply(result, x), hidden @ theirs["net.1.weight"].T + theirs["net.1.bias"])
    assert jax.tree.structure(result) == jax.tree.structure(like)


class Conv(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(6, (3, 2), padding="VALID")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-5)(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def test_a_convolutional_network_with_statistics(save) -> None:
    theirs = weights(
        conv__weight=(6, 2, 3, 2), conv__bias=(6,), bn__weight=(6,), bn__bias=(6,), bn__running_mean=(6,),
        bn__running_var=(6,), fc__weight=(3, 6 * 3 * 4), fc__bias=(3,),
    )  # fmt: skip
    theirs["bn.running_var"] = np.abs(theirs["bn.running_var"]) + 0.5
    theirs["bn.num_batches_tracked"] = np.array(7)
    x = RANDOM.randn(2, 5, 5, 2).astype(np.float32)  # [B, H, W, C]; theirs are [B, C, H, W]
    names = {
        r"conv\.weight": "Conv_0/kernel",
        r"conv\.bias": "Conv_0/bias",
        r"bn\.weight": "BatchNorm_0/scale",
        r"bn\.bias": "BatchNorm_0/bias",
        r"bn\.running_(mean|var)": r"batch_stats/BatchNorm_0/\1",
        r"fc\.weight": "Dense_0/kernel",
        r"fc\.bias": "Dense_0/bias",
    }
    flattened = {"Dense_0/kernel": lambda w: w.reshape(3, 6, 3, 4).transpose(2, 3, 1, 0).reshape(-1, 3)}
    result = transfer.from_safetensors(save(theirs), names, rules=flattened)
    assert set(result) == {
        "params/Conv_0/kernel", "params/Conv_0/bias", "params/BatchNorm_0/scale", "params/BatchNorm_0/bias",
        "batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var", "params/Dense_0/kernel", "params/Dense_0/bias",
    }  # fmt: skip
    images = x.transpose(0, 3, 1, 2)
    out = np.zeros((2, 6, 3, 4))
    for row in range(3):
        for column in range(4):
            patch = images[:, None, :, row : row + 3, column : column + 2] * theirs["conv.weight"]
            out[:, :, row, column] = patch.sum((2, 3, 4)) + theirs["conv.bias"]
    scale, shift, mean, var = (
        theirs[f"bn.{name}"][:, None, None] for name in ("weight", "bias", "running_mean", "running_var")
    )
    out = relu((out - mean) / np.sqrt(var + 1e-5) * scale + shift).reshape(2, -1)
    expected = out @ theirs["fc.weight"].T + theirs["fc.bias"]
    model = Conv()
    close(model.apply(transfer.load_params(model.init(jax.random.key(0), x), result), x), expected)


def test_an_lstm_whose_two_biases_are_added(save) -> None:
    theirs = weights(
        lstm__weight_ih_l0=(16, 3), lstm__weight_hh_l0=(16, 4), lstm__bias_ih_l0=(16,), lstm__bias_hh_l0=(16,),
        out__weight=(2, 4), out__bias=(2,),
    )  # fmt: skip
    names = {
        r"lstm\.weight_ih_l(\d)": r"layer_\1/input/kernel",
        r"lstm\.weight_hh_l(\d)": r"layer_\1/kernel",
        r"lstm\.bias_(ih|hh)_l(\d)": r"layer_\2/input/bias",
        r"out\.weight": "output/kernel",
        r"out\.bias": "output/bias",
    }
    x = RANDOM.randn(2, 5, 3).astype(np.float32)
    h, c, outputs = np.zeros((2, 4)), np.zeros((2, 4)), []
    for step in range(5):
        gates = x[:, step] @ theirs["lstm.weight_ih_l0"].T + theirs["lstm.bias_ih_l0"]
        gates = gates + h @ theirs["lstm.weight_hh_l0"].T + theirs["lstm.bias_hh_l0"]
        enter, forget, candidate, leave = np.split(gates, 4, axis=1)  # PyTorch's order: i, f, g, o
        c = sigmoid(forget) * c + sigmoid(enter) * np.tanh(candidate)
        h = sigmoid(leave) * np.tanh(c)
        outputs.append(h @ theirs["out.weight"].T + theirs["out.bias"])
    model = models.Recurrent(2, (4,), "lstm")
    like = model.init(jax.random.key(0), x)
    close(model.apply(transfer.from_safetensors(save(theirs), names, like=like), x), np.stack(outputs, 1))


def test_a_joint_projection_is_split_and_heads_are_divided(save) -> None:
    theirs = weights(in_proj_weight=(24, 8), in_proj_bias=(24,), out_proj__weight=(8, 8), out_proj__bias=(8,))
    names = {
        r"in_proj_weight": ("query/kernel", "key/kernel", "value/kernel"),
        r"in_proj_bias": ("query/bias", "key/bias", "value/bias"),
        r"out_proj\.weight": "out/kernel",
        r"out_proj\.bias": "out/bias",
    }
    x = RANDOM.randn(3, 5, 8).astype(np.float32)
    model = nn.MultiHeadDotProductAttention(num_heads=2)
    like = model.init(jax.random.key(0), x)
    assert like["params"]["query"]["kernel"].shape == (8, 2, 4)
    projected = x @ theirs["in_proj_weight"].T + theirs["in_proj_bias"]
    q, k, v = (part.reshape(3, 5, 2, 4).transpose(0, 2, 1, 3) for part in np.split(projected, 3, axis=-1))
    scores = q @ k.transpose(0, 1, 3, 2) / 2
    attention = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    heads = (attention @ v).transpose(0, 2, 1, 3).reshape(3, 5, 8)
    expected = heads @ theirs["out_proj.weight"].T + theirs["out_proj.bias"]
    close(model.apply(transfer.from_safetensors(save(theirs), names, like=like), x), expected)


def test_a_file_of_foldax_is_read_back(tmp_path) -> None:
    variables = models.MLP((4, 2), normalization="batch").init(jax.random.key(0), np.ones((2, 3)))
    transfer.save(tmp_path / "ours.safetensors", variables, {"note": "mine"})
    result = transfer.from_safetensors(tmp_path / "ours.safetensors", layout=None)
    expected = transfer.from_safetensors(tmp_path / "ours.safetensors", layout=None, like=variables)
    jax.tree.map(np.testing.assert_array_equal, expected, variables)
    assert {"params/Dense_0/kernel", "batch_stats/BatchNorm_0/mean"} <= set(result)
    jax.tree.map(
        np.testing.assert_array_equal, transfer.load_params(variables, tmp_path / "ours.safetensors"), variables
    )


# Errors


def test_weights_that_do_not_fit_are_named_with_both_shapes(save) -> None:
    file = save(weights(**{f"l{i:02}__weight": (3, 2) for i in range(12)}))
    like = {f"Dense_{i:02}": {"kernel": np.zeros((3, 3))} for i in range(11)} | {
        "Dense_11": {"kernel": np.zeros((2, 3))}
    }
    with pytest.raises(RunError) as error:
        transfer.from_safetensors(file, {r"l(\d+)\.weight": r"Dense_\1/kernel"}, like=like)
    text = str(error.value)
    assert "11 of 12 arrays do not fit" in text
    assert "Dense_00/kernel (3x3 in the model, 2x3 in the source)" in text
    assert "Dense_09/kernel" in text
    assert "and 1 more" in text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {r"fc\.wieght": "a"},
            r"names: 'fc\\\\.wieght' matches nothing in .*; did you mean 'fc.weight'\? \(there are fc",
        ),
        ({r"f.*\.weight": "a/kernel"}, "names: fc.weight and fd.weight would both be a/kernel"),
        ({r"fc\.weight": ("a", "b")}, r"names: fc.weight \(3, 2\) cannot be split into 2 equal parts"),
    ],
    ids=["misspelt", "twice", "split"],
)
def test_invalid_names(save, names, message) -> None:
    file = save(weights(fc__weight=(3, 2), fd__weight=(3, 2)))
    with pytest.raises(ConfigError, match=message):
        transfer.from_safetensors(file, names)


def test_files_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(RunError, match="there is no file"):
        transfer.from_safetensors(tmp_path / "gone.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(RunError, match=r"torn.safetensors is no safetensors file that can be read"):
        transfer.from_safetensors(tmp_path / "torn.safetensors")
    with pytest.raises(ConfigError, match="layout: 'tensorflow'"):
        transfer.from_safetensors(tmp_path / "torn.safetensors", layout="tensorflow")
    with pytest.raises(RunError, match="cannot write"):
        transfer.save(tmp_path / "gone" / "x.safetensors", {"w": np.zeros(2)})
