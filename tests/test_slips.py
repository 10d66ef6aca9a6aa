"""Slips of a newcomer with data, models and trackers: each is one line that says what was wrong and what is allowed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import foldax
from foldax import data, learners, models
from foldax.errors import FoldaxError
from foldax.runs.hooks import check_hooks
from foldax.runs.trackers.choose import make_trackers
from foldax.runs.trackers.csv import CSV

X, Y = np.zeros((20, 3), np.float32), np.arange(20) % 4
IMAGES = np.zeros((20, 8, 8, 1), np.float32)
TABLE = "a,b,label\n1,2,x\n3,,y\n5,6,x\n"


def arrays(x: Any = X, y: Any = Y, **options: Any) -> data.Dataset:
    return data.from_arrays({"inputs": x, "targets": y}, **{"batch_size": 4, **options})


def read_csv(**options: Any) -> data.Dataset:
    Path("x.csv").write_text(TABLE)
    return data.from_csv("x.csv", **{"targets": "label", "batch_size": 1, **options})


def no_image() -> data.Dataset:
    for name in ("cat", "dog"):
        Path("pets", name).mkdir(parents=True)
        Path("pets", name, "a.png").write_text("none")
    return data.from_folder("pets", batch_size=1)


DATA: list[tuple[Callable[[], Any], str]] = [
    (lambda: data.load("digit", batch_size=4), "there is no dataset 'digit'; did you mean 'digits'? (without a download: "),
    (lambda: arrays(X, Y[:19]), "arrays: all arrays must have the same number of examples, but 'inputs' has 20, 'targets' has 19"),
    (lambda: arrays(batch_size=64), "batch_size=64 is larger than the training split of arrays, which has 14 examples"),
    (lambda: arrays(validatoin=0.1), "there is no option 'validatoin'; did you mean 'validation'? (options: batch_size, "),
    (lambda: data.from_arrays(X, batch_size=4), 'arrays: expected a dict of arrays by name, {"inputs": ..., "targets": ...}, got ndarray'),
    (lambda: arrays([[1.0, 2.0], [3.0]] * 10), "'inputs' must be an array of numbers, of one shape ("),
    (lambda: arrays(np.full((20, 3), np.nan)), "'inputs' has values that are not finite, first in example 0; leave it out or fill it in"),
    (lambda: arrays(class_names=["cat", "dog"]), "arrays: 'targets' must be classes 0 to 1, but they go from 0 to 3"),
    (lambda: read_csv(targets="lable"), "x.csv: there is no column 'lable'; did you mean 'label'? (columns: a, b, label)"),
    (lambda: read_csv(), "x.csv: values are missing: column 'b' has 1; fill them in, or choose missing='drop', 'mean' or 'indicator'"),
    (no_image, "pets/cat/a.png cannot be read as an image: "),
    (lambda: data.pad_sequences([1, 2]), "sequence 0 has the shape []; all must be [T], or [T, C] of the same C"),
    (lambda: data.from_iterable([1, 2]), "iterable: expected a dict of arrays [B, ...], or a pair (inputs, targets), got int"),
]  # fmt: skip


def start(model: Any, inputs: Any = X, optimizer: Any = optax.sgd(0.1), **options: Any) -> Any:
    """Traces the first state and the first update of a classifier."""
    batch = {"inputs": jnp.asarray(inputs[:4]), "targets": jnp.zeros(4, jnp.int32)}
    learner = learners.classifier(model, optimizer, **options)
    state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    return jax.eval_shape(learner.update, state, batch, jax.random.key(0))


MODELS: list[tuple[Callable[[], Any], str]] = [
    (lambda: start(models.MLP), "model: MLP is a class; pass an instance, MLP(...)"),
    (lambda: start(models.MLP(64)), "MLP.features: 64 must be a tuple, such as (64,)"),
    (lambda: start(models.MLP(())), "MLP.features: () has no widths; the last one is that of the output"),
    (lambda: start(models.MLP((0, 4))), "MLP.features: 0 in (0, 4) must be an integer of 1 or more"),
    (lambda: start(models.MLP((8, 4), activation="rellu")), "activation: there is no 'rellu'; did you mean 'relu'? (known: "),
    (lambda: start(models.MLP((8, 4), dropout=1.5)), "dropout: the rate 1.5 must be a probability, from 0 to 1"),
    (lambda: start(models.CNN(4)), "CNN: inputs must be images [B, H, W, C] (or sequences [B, T, C]), got (1, 3)"),
    (lambda: start(models.CNN(4, channels=8), IMAGES), "CNN.channels: 8 must be a tuple, such as (64,)"),
    (lambda: start(models.ViT(4, patch_size=3), IMAGES), "patch_size: 3 must divide images [B, H, W, C], got (1, 8, 8, 1)"),
    (lambda: start(models.ViT(4, patch_size=4, width=10, num_heads=3), IMAGES), "num_heads: 3 must divide the width, 10; "),
    (lambda: start(models.ResNet(4, depth=21), IMAGES), "depth: 21 is neither 6n + 2 (basic: 8, 14, 20, ...) nor 9n + 2 "),
    (lambda: start(nnx.Linear(3, 4, rngs=nnx.Rngs(0))), "model: Linear is a module of Flax NNX, which a learner takes through an adapter: models.from_nnx(lambda rngs: Linear(..., rngs=rngs))"),
    (lambda: start(models.MLP((4,)), optimizer=1e-3), "optimizer: 0.001 is none of Optax; pass one, such as optax.adam(1e-3)"),
    (lambda: start(models.MLP((4,)), optimizer=optax.adam), "optimizer: adam is a function that makes one; call it, such as adam(1e-3)"),
    (lambda: start(models.MLP((4,)), label_smoothing=2.0), "label_smoothing: 2.0 must be a probability, from 0 to 1"),
]  # fmt: skip


class Half:
    """A tracker that lacks methods."""

    def start(self, run: Any) -> str:
        return "half"


def draw(step: int, state: Any, context: Any) -> None:
    """A function for a hook."""


TRACKERS: list[tuple[Callable[[], Any], str]] = [
    (lambda: make_trackers("wnadb"), "tracker: there is no 'wnadb'; did you mean 'wandb'? (allowed: tensorboard, csv, wandb, mlflow, trackio, none)"),
    (lambda: make_trackers(3), "tracker: int is no tracker: it has no method start, log, figure, summary, finish (see foldax.Tracker)"),
    (lambda: make_trackers([Half()]), "tracker: Half is no tracker: it has no method log, figure, summary, finish (see foldax.Tracker)"),
    (lambda: make_trackers(CSV), "tracker: CSV is a class; give an instance, CSV(...)"),
    (lambda: foldax.train(None, foldax.Training(), save=False, tracker="csv"), "tracker: trackers need the run folder, and save=False has none"),
    (lambda: check_hooks(draw, 10), "hooks: draw is no hook; write hooks=[foldax.Every(500, function)]"),
    (lambda: check_hooks([(5, draw)], 10), "hooks: tuple is no hook; write hooks=[foldax.Every(500, function)]"),
    (lambda: foldax.Every(0, draw), "foldax.Every: the steps between two calls must be an integer of 1 or more, not 0"),
    (lambda: foldax.Every(5, "draw"), "foldax.Every(5, ...): 'draw' is no function"),
    (lambda: foldax.Every(5, lambda: None), "foldax.Every(5, ...): <lambda>() cannot be called with (step, state, context)"),
]  # fmt: skip


SLIPS = [*DATA, *MODELS, *TRACKERS]


@pytest.mark.parametrize(("slip", "line"), SLIPS, ids=[line[:40] for _, line in SLIPS])
def test_a_slip_is_one_clear_line(slip: Callable[[], Any], line: str, tmp_path: Path, monkeypatch) -> None:
    """Where a line ends in a comma, a space or a bracket, a list of what is allowed follows."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FoldaxError) as raised:
        slip()
    assert str(raised.value).startswith(line) if line[-1] in " (" else str(raised.value) == line
    assert "\n" not in str(raised.value)
