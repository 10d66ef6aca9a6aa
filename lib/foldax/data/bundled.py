"""Datasets that need no download: names and locations."""

from pathlib import Path

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
BUNDLED_VERSION = "1.0.0"


def bundled_names() -> tuple[str, ...]:
    """Names of the datasets that need no download.

    >>> "digits" in bundled_names()
    True
    """
    # Absent on systems without the Debian package.
    fashion = ("fashion_mnist",) if (FASHION_MNIST / "train-images-idx3-ubyte.gz").exists() else ()
    return ("digits", "breast_cancer", "wine", "iris", "diabetes", *fashion)
