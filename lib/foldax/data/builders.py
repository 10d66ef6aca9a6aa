"""TFDS builders of the small, real datasets that need no download.

Only `foldax.data.prepared` imports this module, because it imports TFDS; it is importable by name so
that grain's worker processes can restore the builders.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from foldax.data.cache import FASHION_MNIST, OWN_VERSION


class Layout(NamedTuple):
    """What a dataset looks like; `classes` is None for a regression."""

    input_key: str
    shape: tuple[int, ...]
    dtype: type
    classes: tuple[str, ...] | None
    description: str


LAYOUTS = {
    "digits": Layout(
        "image", (8, 8, 1), np.uint8, tuple("0123456789"), "Handwritten digits, 8x8, values 0 to 16 (UCI)."
    ),
    "breast_cancer": Layout("features", (30,), np.float32, ("malignant", "benign"), "Breast cancer, Wisconsin (UCI)."),
    "wine": Layout("features", (13,), np.float32, ("class_0", "class_1", "class_2"), "Wine recognition (UCI)."),
    "iris": Layout("features", (4,), np.float32, ("setosa", "versicolor", "virginica"), "Iris (Fisher, 1936)."),
    "diabetes": Layout(
        "features", (10,), np.float32, None, "Progression of diabetes after a year (Efron et al., 2004)."
    ),
    "fashion_mnist": Layout(
        "image",
        (28, 28, 1),
        np.uint8,
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        "Articles of Zalando, 28x28 (Xiao, Rasul & Vollgraf, 2017), from Debian's dataset-fashion-mnist.",
    ),
}


def from_sklearn(name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns inputs, targets and the names of the inputs' columns of a dataset that scikit-learn ships."""
    import sklearn.datasets

    keywords = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(sklearn.datasets, f"load_{name}")(**keywords)
    return bunch.data, bunch.target, [str(column) for column in bunch.feature_names]


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes (the format of MNIST)."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(tuple(int(size) for size in shape))


class _OwnBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of our builders; unregistered, because TFDS has datasets of the same names."""

    VERSION = tfds.core.Version(OWN_VERSION)
    code_path = None  # TFDS would look there for checksums of downloads; there are none

    def _info(self) -> Any:
        layout = LAYOUTS[self.name]
        target_key = "target" if layout.classes is None else "label"
        target = (
            tfds.features.Scalar(np.float32)
            if layout.classes is None
            else tfds.features.ClassLabel(names=layout.classes)
        )
        inputs = tfds.features.Tensor(shape=layout.shape, dtype=layout.dtype, encoding=tfds.features.Encoding.BYTES)
        return tfds.core.DatasetInfo(
            builder=self,
            description=layout.description,
            features=tfds.features.FeaturesDict({layout.input_key: inputs, target_key: target}),
            supervised_keys=(layout.input_key, target_key),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # keep the order in which the dataset is known
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        inputs, targets, columns = from_sklearn(self.name)
        if len(LAYOUTS[self.name].shape) == 1:
            self.info.metadata["feature_names"] = columns
        return {"train": self._generate_examples(inputs, targets)}

    def _generate_examples(self, inputs: np.ndarray, targets: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        layout = LAYOUTS[self.name]
        target_key = "target" if layout.classes is None else "label"
        inputs = np.ascontiguousarray(inputs, dtype=layout.dtype).reshape(-1, *layout.shape)
        for index, (example, target) in enumerate(zip(inputs, targets, strict=True)):
            yield index, {layout.input_key: example, target_key: target.item()}


class Digits(_OwnBuilder, skip_registration=True):
    """scikit-learn's digits."""

    name = "digits"


class BreastCancer(_OwnBuilder, skip_registration=True):
    """scikit-learn's breast_cancer."""

    name = "breast_cancer"


class Wine(_OwnBuilder, skip_registration=True):
    """scikit-learn's wine."""

    name = "wine"


class Iris(_OwnBuilder, skip_registration=True):
    """scikit-learn's iris."""

    name = "iris"


class Diabetes(_OwnBuilder, skip_registration=True):
    """scikit-learn's diabetes, in the units in which it was measured."""

    name = "diabetes"


class FashionMnist(_OwnBuilder, skip_registration=True):
    """Fashion-MNIST from Debian's files."""

    name = "fashion_mnist"

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {
            split: self._generate_examples(
                read_idx(FASHION_MNIST / f"{file}-images-idx3-ubyte.gz"),
                read_idx(FASHION_MNIST / f"{file}-labels-idx1-ubyte.gz"),
            )
            for split, file in (("train", "train"), ("test", "t10k"))
        }


BUILDERS = {builder.name: builder for builder in (Digits, BreastCancer, Wine, Iris, Diabetes, FashionMnist)}
