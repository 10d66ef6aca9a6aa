"""Images in files: the pixels of one, and datasets of folders with a sub-folder of images for each class."""

import copy
import hashlib
import urllib.parse
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from foldax.data import cache
from foldax.data.arrays import check_set_names
from foldax.data.dataset import Dataset, DatasetOptions, make_dataset
from foldax.data.prepared import prepare_arrays
from foldax.errors import DataError, did_you_mean

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by number of channels
GREY_MODES = ("1", "L", "LA", "La")
DEEP_MODES = "IF"  # first letters of modes that have one channel of more than 8 bits, such as "I;16"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


def read_image(path: Path, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads the pixels of an image.

    Args:
      path: the file.
      channels: 1 (grey), 3 (red, green, blue) or 4 (with opacity); others are converted.
      size: height and width, to which the image is scaled, after its longer sides are cut off on both ends; None keeps
        its own.

    Returns:
      Pixels uint8 `[H, W, C]`, turned upright as the file says; of more bits where a grey image has them.

    Raises:
      DataError: transparent pixels or bits would be lost, or it is no image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    # A bomb is an image of more pixels than a file of that size could show in good faith.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read as an image: {reason}") from error
    if channels < 4 and image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise DataError(f"{path} has transparent pixels, and {channels} channels have none; put it on a background")
    # A conversion would cut them off at 255.
    is_deep = image.mode[0] in DEEP_MODES
    if is_deep and channels > 1:
        problem = f"expected an image of {channels} channels, got one of mode {image.mode}"
        raise DataError(f"{path}: {problem}, which has more than 8 bits per pixel")
    image = image if is_deep else image.convert(MODES[channels])
    if size is not None:
        image = ImageOps.fit(image, size[::-1])
    return np.asarray(image).reshape(image.height, image.width, channels)


class ImageExamples:
    """Images in files, decoded when they are read; can be pickled for worker processes."""

    def __init__(
        self, files: Sequence[Path], targets: np.ndarray | None, channels: int | None, size: tuple[int, int] | None
    ) -> None:
        self._files, self._targets, self._size = files, targets, size
        self._first = files[0]  # the others must be like it
        first_mode = _mode(files[0])
        if first_mode[0] in DEEP_MODES:
            raise _deep_image_error(files[0])
        self._is_grey = channels is None and first_mode in GREY_MODES
        self._channels = channels or (1 if self._is_grey else 3)
        shape = read_image(files[0], self._channels, size).shape
        self.spec = {"inputs": jax.ShapeDtypeStruct(shape, np.dtype(np.uint8))}
        if targets is not None:
            self.spec["targets"] = jax.ShapeDtypeStruct((), np.dtype(np.int32))

    def with_files(self, files: Sequence[Path], targets: np.ndarray | None) -> "ImageExamples":
        """Returns other images of the same size and number of channels."""
        other = copy.copy(self)
        other._files, other._targets = files, targets
        return other

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Decodes the images at `indices` `[B]`, in threads."""
        with ThreadPoolExecutor() as threads:
            images = list(threads.map(self._read, (self._files[index] for index in indices.tolist())))
        arrays = {"inputs": np.stack(images)}
        return arrays if self._targets is None else arrays | {"targets": self._targets[indices]}

    def _read(self, file: Path) -> np.ndarray:
        # The conversion to grey would lose colours in silence.
        if self._is_grey and (mode := _mode(file)) not in GREY_MODES:
            if mode[0] in DEEP_MODES:
                raise _deep_image_error(file)
            problem = "has mode P, which may have colours" if mode == "P" else "has colours"
            raise DataError(f"{file} {problem}, and {self._first} has none; give channels=3, or 1 for grey images")
        image, expected = read_image(file, self._channels, self._size), self.spec["inputs"]
        if image.dtype != expected.dtype:
            raise _deep_image_error(file)
        if image.shape != expected.shape:
            sizes = " and ".join(f"{width} x {height}" for height, width, _ in (image.shape, expected.shape))
            problem = f"{file} and {self._first} have different sizes, {sizes} pixels"
            raise DataError(f"{problem}; give the size to which all are scaled, as size={expected.shape[0]}")
        return image


def from_folder(
    path: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    name: str | None = None,
    **options: Any,
) -> Dataset:
    """Makes a dataset of the images in a folder, with a sub-folder for each class.

    "inputs" are pixels uint8 `[N, H, W, C]`, "targets" the classes in sorted order of the sub-folders' names; without
    sub-folders there are no targets. If the folder has a sub-folder "train", those of the classes are in there, and in
    "test" and "validation" (or "val") beside it; a missing split is sampled from "train".

    The images are decoded once, into `$FOLDAX_CACHE`. Where they are above 1 GiB when decoded (`source`), they are
    decoded during the training (`workers`), and the first use reads all of them once, for the fingerprint, and those of
    the training split again, for mean and standard deviation.

    Args:
      path: the folder.
      size: height and width, or both in one number, to which images are scaled, after their longer sides are cut off on
        both ends; by default all must have the same.
      channels: 1 (grey), 3 (colours) or 4 (with opacity); by default 1 or 3, as the first image has.
      name: name of the dataset; by default that of the folder.
      **options: options of `load`, as for `from_arrays`; "evaluation" has folders by name, whose images are held in
        memory.

    Raises:
      DataError: there are no images, a class has none, one cannot be read (the message names the file), they differ in
        size, or as for `from_splits`.

    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     for number in range(20):
    ...         file = Path(folder) / ("cat", "dog")[number % 2] / f"{number}.png"
    ...         file.parent.mkdir(exist_ok=True)
    ...         Image.new("L", (8, 6), number).save(file)
    ...     info = from_folder(folder, batch_size=4).info
    >>> info.shapes["inputs"], info.class_names
    ((6, 8, 1), ('cat', 'dog'))
    """
    chosen, root = DatasetOptions.make(options), Path(path)
    if channels not in (None, *MODES):
        raise DataError(f"channels={channels!r} is none of {tuple(MODES)}")
    pixels = (size, size) if isinstance(size, int | np.integer) else size
    if pixels is not None and not (len(pixels) == 2 and all(int(side) == side > 0 for side in pixels)):
        raise DataError(f"size={size!r}: expected a number of pixels, or (height, width)")
    listing = _list_images(root)
    examples = ImageExamples(listing.files, listing.targets, channels, pixels)
    # Other files, or files that were written again, are prepared anew.
    stats = [(file, file.stat()) for file in listing.files]
    key = repr([(str(file.relative_to(root)), stat.st_size, stat.st_mtime_ns) for file, stat in stats])
    digest = hashlib.sha256(f"{key} {channels} {pixels}".encode()).hexdigest()
    name = name or root.resolve().name
    evaluation = dict(chosen.evaluation or {})
    check_set_names(evaluation, name)
    folders = {split: Path(folder) for split, folder in evaluation.items() if isinstance(folder, str | Path)}
    sets = {split: _read_set(folder, listing, examples) for split, folder in folders.items()}
    chosen = chosen._replace(evaluation=evaluation | sets)
    place = cache.cache_folder() / "arrays" / "folders" / f"{urllib.parse.quote(name, safe='')}-{digest[:16]}"
    return make_dataset(prepare_arrays(name, place, examples, chosen.source, listing.facts()), chosen)


class _Listing(NamedTuple):
    """The images of a folder; `targets` int32 `[N]` and `class_names` are None without sub-folders of classes."""

    files: list[Path]
    targets: np.ndarray | None
    class_names: tuple[str, ...] | None
    sizes: dict[str, int]

    def facts(self) -> dict[str, Any]:
        """Facts of `RawDataset`."""
        count, names = (None, None) if self.class_names is None else (len(self.class_names), list(self.class_names))
        return {"sizes": self.sizes, "names": {"num_classes": count, "class_names": names, "feature_names": None}}


def _list_images(root: Path) -> _Listing:
    """Lists the images of each class and split, in the order of their names."""
    if not root.is_dir():
        raise DataError(f"there is no folder {str(root)!r}")
    folders = {"train": root}
    if (root / "train").is_dir():
        folders = {}
        for folder in _sub_folders(root):
            if folder.name not in SPLIT_FOLDERS or SPLIT_FOLDERS[folder.name] in folders:
                problem = f"beside 'train' there is {folder.name!r}{did_you_mean(folder.name, SPLIT_FOLDERS)}"
                raise DataError(f"{root}: {problem}; the splits are {tuple(SPLIT_FOLDERS)}, one for validation")
            folders[SPLIT_FOLDERS[folder.name]] = folder
    # The order of the splits in `RawDataset.sizes` is that of the examples.
    folders = {split: folders[split] for split in ("train", "validation", "test") if split in folders}
    names = sorted({folder.name for split in folders.values() for folder in _sub_folders(split)})
    files: list[Path] = []
    targets: list[int] = []
    sizes = dict.fromkeys(folders, 0)
    for split, folder in folders.items():
        direct = _images(folder.iterdir())
        if direct and names:
            raise DataError(f"{direct[0]} is in no sub-folder of a class, as others are; move it to one")
        for number, images in enumerate([direct] if not names else [_images((folder / n).rglob("*")) for n in names]):
            if not images and (not names or (folder / names[number]).is_dir()):
                place = folder / names[number] if names else folder
                raise DataError(f"{place} has no images ({', '.join(SUFFIXES)})")
            files += images
            targets += [number] * len(images)
            sizes[split] += len(images)
    return _Listing(files, np.array(targets, np.int32) if names else None, tuple(names) or None, sizes)


def _read_set(root: Path, train: _Listing, like: ImageExamples) -> dict[str, np.ndarray]:
    """Reads all images of an evaluation set, whose classes are those of the training split."""
    listing = _list_images(root)
    names = listing.class_names or ()
    if unknown := [name for name in names if name not in (train.class_names or ())]:
        known = ", ".join(train.class_names or ()) or "none"
        raise DataError(f"{root}: there is no class {unknown[0]!r} in the training split (classes: {known})")
    targets = listing.targets
    if targets is not None:
        targets = np.array([(train.class_names or ()).index(name) for name in names], np.int32)[targets]
    return like.with_files(listing.files, targets).read(np.arange(len(listing.files)))


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _images(paths: Iterable[Path]) -> list[Path]:
    found = (path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


def _deep_image_error(path: Path) -> DataError:
    return DataError(f"{path} has more than 8 bits per pixel; scale it to 0 to 255, or use data.from_arrays")


def _mode(path: Path) -> str:
    """Reads the mode of an image from its header; grey if it has none, for `read_image` reports that."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return GREY_MODES[0]
