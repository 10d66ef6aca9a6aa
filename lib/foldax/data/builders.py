"""TFDS builders of the small, real datasets that need no download.

Imported only to prepare or stream a dataset, because importing TFDS takes seconds. The builders are importable by name,
so that worker processes can unpickle them.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from foldax.data.bundled import BUNDLED_VERSION, FASHION_MNIST


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes, the format of MNIST."""
    content = gzip.decompress(path.read_bytes())
    # Magic number: two zero bytes, the type of the values, the number of axes.
    rank = content[3]
    # Each axis is a big-endian 32-bit integer.
    shape = np.frombuffer(content, ">u4", count=rank, offset=4).tolist()
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


class _BundledBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A dataset of scikit-learn; not registered, because TFDS has datasets of the same names."""

    VERSION = tfds.core.Version(BUNDLED_VERSION)
    code_path = None  # TFDS would look there for checksums of downloads
    shape: tuple[int, ...]
    classes: tuple[str, ...] | None = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(skip_registration=True, **keywords)

    def _info(self) -> Any:
        dtype = np.float32 if len(self.shape) == 1 else np.uint8
        inputs = tfds.features.Tensor(shape=self.shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)
        targets = tfds.features.ClassLabel(names=self.classes) if self.classes else tfds.features.Scalar(np.float32)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"inputs": inputs, "targets": targets}),
            supervised_keys=("inputs", "targets"),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # keep the published order
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        import sklearn.datasets

        keywords = {"scaled": False} if self.name == "diabetes" else {}  # raw measurements, as published
        bunch = getattr(sklearn.datasets, f"load_{self.name}")(**keywords)
        if len(self.shape) == 1:
            self.info.metadata["feature_names"] = [str(name) for name in bunch.feature_names]
        return {"train": self._generate_examples(bunch.data, bunch.target)}

    def _generate_examples(self, inputs: np.ndarray, targets: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        inputs = inputs.astype(self.info.features["inputs"].np_dtype).reshape(-1, *self.shape)
        for index, (example, target) in enumerate(zip(inputs, targets.tolist(), strict=True)):
            yield index, {"inputs": example, "targets": target}


class Digits(_BundledBuilder):
    """Handwritten digits, values 0 to 16 (UCI)."""

    name, shape, classes = "digits", (8, 8, 1), tuple("0123456789")


class BreastCancer(_BundledBuilder):
    """Breast cancer, Wisconsin (UCI)."""

    name, shape, classes = "breast_cancer", (30,), ("malignant", "benign")


class Wine(_BundledBuilder):
    """Wine recognition (UCI)."""

    name, shape, classes = "wine", (13,), ("class_0", "class_1", "class_2")


class Iris(_BundledBuilder):
    """Iris (Fisher, 1936)."""

    name, shape, classes = "iris", (4,), ("setosa", "versicolor", "virginica")


class Diabetes(_BundledBuilder):
    """Progression of diabetes after a year (Efron, Hastie, Johnstone & Tibshirani, 2004)."""

    name, shape = "diabetes", (10,)


class FashionMnist(_BundledBuilder):
    """Articles of Zalando (Xiao, Rasul & Vollgraf, 2017), from Debian's dataset-fashion-mnist."""

    name, shape = "fashion_mnist", (28, 28, 1)
    # In the order of the published labels 0 to 9.
    classes = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        def examples(file: str) -> Any:
            parts = (read_idx(FASHION_MNIST / f"{file}-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
            return self._generate_examples(*parts)

        return {"train": examples("train"), "test": examples("t10k")}


BUILDERS = {builder.name: builder for builder in (Digits, BreastCancer, Wine, Iris, Diabetes, FashionMnist)}
