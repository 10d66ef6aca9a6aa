"""The large experiments: packed documents in shards, sizes of the models, and crops of images of any size."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from foldax import data
from foldax.engine.layout import Layout, make_mesh
from foldax.errors import DataError
from foldax.parameter_paths import leaves_by_path
from tests.conftest import EXPERIMENTS, ROOT, shrunk

FOLDER = ROOT / "experiments" / "scale"
LANGUAGE = sys.modules[shrunk(FOLDER / "language_model.py")[0].learner.__module__]
SMALL = LANGUAGE.Config(context_length=32, batch_size=8)


def test_rows_are_the_joined_documents_of_their_split() -> None:
    texts = list(LANGUAGE.documents("help", "text"))
    assert len(texts) > 40
    encoding = data.Bytes((LANGUAGE.END,))
    numbers = []
    for split, kept in LANGUAGE.SPLITS.items():
        rows = np.stack([row["inputs"] for row in LANGUAGE.packed_rows(SMALL, "help", split)])
        documents = [text for number, text in enumerate(texts) if number % 20 in kept]
        joined = np.concatenate([[*encoding.encode(text), encoding.token(LANGUAGE.END)] for text in documents])
        assert 0 <= len(joined) - rows.size < rows.shape[1] == 33
        np.testing.assert_array_equal(rows.reshape(-1), joined[: rows.size])
        numbers += kept
    assert sorted(numbers) == list(range(20))


def test_shards_are_written_once_and_mixed_with_other_corpora(tmp_path: Path) -> None:
    other = tmp_path / "other"
    for split in LANGUAGE.SPLITS:
        data.write_array_records(other, [{"inputs": np.full(33, 7, np.int32)}] * 20, name=split)
    config = dataclasses.replace(SMALL, text=("help", str(other)), weights=(1.0, 3.0), shards=str(tmp_path / "shards"))
    dataset = LANGUAGE.dataset(config)
    (folder,) = (tmp_path / "shards").iterdir()
    written = folder.stat().st_mtime_ns
    assert len(list(folder.glob("train-*"))) == LANGUAGE.NUM_SHARDS
    assert {"validation", "test"} == dataset.splits.keys()
    block = next(LANGUAGE.dataset(config).train.blocks(0, 0))
    assert folder.stat().st_mtime_ns == written
    from_other = (np.asarray(block.data["inputs"]) == 7).all(axis=-1)
    assert from_other.mean() == pytest.approx(0.75, abs=0.1)
    with pytest.raises(DataError, match="1 weights do not fit 2 corpora"):
        LANGUAGE.dataset(dataclasses.replace(config, weights=(1.0,)))
    with pytest.raises(DataError, match="'books' is no corpus and no folder"):
        next(LANGUAGE.documents("books", "text"))


def test_synthetic_rows_need_no_corpus_and_fill_any_batch() -> None:
    config = dataclasses.replace(SMALL, text=("synthetic",), vocabulary_size=50_257, batch_size=2_000)
    dataset = LANGUAGE.dataset(config)
    rows = np.asarray(dataset.train.examples()["inputs"])
    assert rows.shape == (2_000, 33)
    assert 50_000 < rows.max() < dataset.info.vocabulary_size == 50_257


@pytest.mark.parametrize(("model", "millions"), [("125M", 124), ("1.3B", 1311)])
def test_models_have_their_sizes_and_every_matrix_is_divided(model: str, millions: int) -> None:
    config = dataclasses.replace(SMALL, model=model, text=("synthetic",), vocabulary_size=50_257)
    learner = LANGUAGE.learner(config, SimpleNamespace(vocabulary_size=50_257))
    batch = {"inputs": jax.ShapeDtypeStruct((2, 33), jnp.int32)}
    params = leaves_by_path(jax.eval_shape(learner.init, jax.random.key(0), batch).params)
    assert sum(leaf.size for leaf in params.values()) / 1e6 == pytest.approx(millions, abs=0.5)
    layout = Layout(make_mesh("fsdp=2", jax.devices()[:2])).with_rules(learner.sharding_rules)
    for path, leaf in params.items():
        assert ("fsdp" in layout.spec(path, leaf.shape)) == (not path.endswith("scale")), path


@pytest.fixture
def resnet() -> Any:
    path = next(path for path in EXPERIMENTS if path.stem == "image_resnet")
    return sys.modules[shrunk(path)[0].learner.__module__]


def test_crops_lie_in_the_image_and_keep_their_aspect_ratio(resnet: Any) -> None:
    # The colours of a pixel are its position, so a crop shows where it was cut.
    rows, columns = np.mgrid[:120, :240]
    image = Image.fromarray(np.stack([rows, columns, columns], axis=-1).astype(np.uint8))
    areas = []
    for seed in range(50):
        pixels = np.asarray(resnet.random_resized_crop(image, 32, np.random.default_rng(seed))).astype(float)
        assert pixels.shape == (32, 32, 3)
        height, width = np.ptp(pixels[..., 0]) + 1, np.ptp(pixels[..., 1]) + 1
        assert 0.6 < width / height < 1.6
        areas.append(width * height / image.width / image.height)
    assert min(areas) < 0.2
    assert max(areas) > 0.4
    tall = Image.new("RGB", (1, 400))  # no such crop fits
    assert resnet.random_resized_crop(tall, 8, np.random.default_rng(0)).size == (8, 8)


def test_images_of_tfds_are_cropped_to_one_size(resnet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(70, 120, (40, 2))
    examples = [
        {"image": random.integers(256, size=(*size, 3), dtype=np.uint8), "label": i % 5} for i, size in enumerate(sizes)
    ]
    monkeypatch.setattr(tfds, "data_source", lambda name, split: examples)
    features = {"label": SimpleNamespace(num_classes=5)}
    monkeypatch.setattr(tfds, "builder", lambda name: SimpleNamespace(info=SimpleNamespace(features=features)))
    config = resnet.Config(data="images", image_size=64, batch_size=16, depth=18)
    dataset = resnet.dataset(config)
    batches = next(dataset.train.blocks(0, 0)).data
    assert batches["inputs"].shape[1:] == (16, 64, 64, 3)
    assert dataset.info.num_classes == 5
    test = dataset.splits["test"].examples()
    np.testing.assert_array_equal(test["targets"], np.arange(40) % 5)
    assert test["inputs"].shape == (40, 64, 64, 3)
    state = jax.eval_shape(resnet.learner(config, dataset.info).init, jax.random.key(0), dataset.train.examples())
    assert "Conv_0" in state.params
