"""Folders of images: classes and splits are sub-folders, and every message names the file."""

import itertools
import os

import numpy as np
import pytest
from PIL import Image

from foldax import data
from foldax.errors import DataError


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def fill(root, counts, shape=(3, 4), start=0):
    """Saves images whose pixels all are their number, in a sub-folder for each class."""
    numbers = itertools.count(start)
    for name, count in counts.items():
        for i in range(count):
            save(root / name / f"{i:03}.png", np.full(shape, next(numbers)))


def examples(dataset):
    """Images of all splits, as `(number, class)` by split."""
    parts = {"train": dataset.train.examples(), **{name: split.examples() for name, split in dataset.splits.items()}}
    return {
        name: sorted(
            (int(x.ravel()[0]), int(y)) for x, y in zip(np.asarray(part["inputs"]), np.asarray(part["targets"]))
        )
        for name, part in parts.items()
    }


def test_sub_folders_are_classes(tmp_path):
    fill(tmp_path / "pets", {"dog": 3, "cat": 5})
    (tmp_path / "pets" / ".hidden").mkdir()
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not an image")
    dataset = data.from_folder(tmp_path / "pets", batch_size=2, validation=0, test=0)
    assert (dataset.info.name, dataset.info.class_names) == ("pets", ("cat", "dog"))
    assert dataset.info.shapes == {"inputs": (3, 4, 1), "targets": ()}
    assert examples(dataset)["train"] == [(0, 1), (1, 1), (2, 1), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0)]


def test_sub_folders_may_be_splits(tmp_path):
    fill(tmp_path / "train", {"cat": 2, "dog": 2})
    fill(tmp_path / "test", {"dog": 1, "cat": 1}, start=10)
    fill(tmp_path / "val", {"cat": 1}, start=20)
    dataset = data.from_folder(tmp_path, batch_size=2)
    expected = {"train": [(0, 0), (1, 0), (2, 1), (3, 1)], "validation": [(20, 0)], "test": [(10, 1), (11, 0)]}
    assert examples(dataset) == expected


def test_without_sub_folders_there_are_no_targets(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.jpg", np.full((2, 2, 3), 10 * i))
    dataset = data.from_folder(tmp_path, batch_size=2, validation=0, test=0)
    assert dataset.info.shapes == {"inputs": (2, 2, 3)}
    assert dataset.info.num_classes is None


def test_images_are_scaled_and_cut_to_one_size(tmp_path):
    stripes = np.repeat(np.array([[0, 100, 200, 250]]), 2, axis=0).repeat(4, 0).repeat(4, 1)
    save(tmp_path / "a" / "wide.png", stripes)
    save(tmp_path / "a" / "tall.png", stripes.T)
    dataset = data.from_folder(tmp_path, size=8, batch_size=2, validation=0, test=0)
    tall, wide = np.asarray(dataset.train.examples()["inputs"])[..., 0]
    np.testing.assert_array_equal(wide, stripes[:, 4:12])
    np.testing.assert_array_equal(tall, stripes.T[4:12])
    assert data.from_folder(tmp_path, size=(4, 6), channels=3, batch_size=2, validation=0, test=0).info.shapes[
        "inputs"
    ] == (4, 6, 3)


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned by a quarter
    save(tmp_path / "a" / "0.png", [[0, 50, 100], [150, 200, 250]], exif=exif)
    dataset = data.from_folder(tmp_path, batch_size=1, validation=0, test=0)
    np.testing.assert_array_equal(dataset.train.examples()["inputs"][0, ..., 0], [[150, 0], [200, 50], [250, 100]])


def test_a_stream_decodes_the_same_images_during_training(tmp_path):
    fill(tmp_path, {"cat": 6, "dog": 6})
    device, stream = (
        data.from_folder(tmp_path, batch_size=3, source=source, validation=0, test=0.5)
        for source in ("device", "stream")
    )
    assert device.info == stream.info
    np.testing.assert_array_equal(device.info.mean, stream.info.mean)
    assert examples(device)["test"] == examples(stream)["test"]
    blocks = stream.train.blocks(0, 0)
    block = next(blocks)
    blocks.close()
    epoch = np.asarray(block.data["inputs"][:2, :, 0, 0, 0])
    assert sorted(epoch.ravel().tolist()) == [number for number, _ in examples(device)["train"]]


def test_a_folder_is_decoded_once_until_it_changes(tmp_path, monkeypatch):
    fill(tmp_path, {"cat": 3, "dog": 3})
    first = data.from_folder(tmp_path, batch_size=2, validation=0, test=0)
    count = itertools.count()
    read = data.images.ImageExamples.read
    monkeypatch.setattr(
        data.images.ImageExamples, "read", lambda self, rows: (next(count) and None) or read(self, rows)
    )
    again = data.from_folder(tmp_path, batch_size=2, validation=0, test=0)
    assert next(count) == 0
    assert again.info == first.info
    save(tmp_path / "cat" / "000.png", np.full((3, 4), 99))
    changed = data.from_folder(tmp_path, batch_size=2, validation=0, test=0)
    assert (99, 0) in examples(changed)["train"]
    assert changed.info.fingerprint != first.info.fingerprint


def test_a_named_set_is_a_folder_of_the_same_classes(tmp_path):
    fill(tmp_path / "pets", {"dog": 3, "cat": 5})
    fill(tmp_path / "ood", {"dog": 2}, start=50)
    options = {"batch_size": 2, "validation": 0, "test": 0}
    dataset = data.from_folder(tmp_path / "pets", evaluation={"ood": tmp_path / "ood"}, **options)
    assert examples(dataset)["ood"] == [(50, 1), (51, 1)]
    fill(tmp_path / "ood", {"eel": 1})
    with pytest.raises(DataError, match=r"ood: there is no class 'eel' in the training split \(classes: cat, dog\)"):
        data.from_folder(tmp_path / "pets", evaluation={"ood": tmp_path / "ood"}, **options)


def broken(root):
    fill(root, {"a": 2})
    (root / "a" / "x.png").write_bytes((root / "a" / "000.png").read_bytes()[:45])


def text(root):
    fill(root, {"a": 2})
    (root / "a" / "x.jpg").write_text("no image")


def sizes(root):
    fill(root, {"a": 2})
    save(root / "a" / "x.png", np.zeros((5, 7)))


def colours(root):
    fill(root, {"a": 2})
    save(root / "a" / "x.png", np.zeros((3, 4, 3)))


def transparent(root):
    fill(root, {"a": 2}, shape=(3, 4, 3))
    save(root / "a" / "x.png", np.zeros((3, 4, 4)))


def loose(root):
    fill(root, {"a": 2})
    save(root / "x.png", np.zeros((3, 4)))


def split(root):
    fill(root / "train", {"a": 2})
    fill(root / "tset", {"a": 2})


def deep(root):
    fill(root, {"a": 2})
    Image.fromarray(np.full((5, 4), 40_000, np.uint16)).save(root / "a" / "x.png")


def all_deep(root):
    (root / "a").mkdir(parents=True)
    Image.fromarray(np.full((3, 4), 40_000, np.uint16)).save(root / "a" / "x.png")


def palette(root):
    fill(root, {"a": 2})
    Image.new("P", (4, 3)).save(root / "a" / "x.png")


DEEP = "{root}/a/x.png has more than 8 bits per pixel; scale it to 0 to 255, or use data.from_arrays"
SLIPS = {
    "no folder": (lambda root: None, {}, "there is no folder '{root}'"),
    "no images": (lambda root: root.mkdir(), {}, "{root} has no images (.png, .jpg, .jpeg, .bmp, .gif, .tif, .tiff, .webp, .pgm, .ppm)"),
    "a class without images": (
        lambda root: (fill(root, {"a": 2}), (root / "b").mkdir()),
        {},
        "{root}/b has no images (.png, .jpg, .jpeg, .bmp, .gif, .tif, .tiff, .webp, .pgm, .ppm)",
    ),
    "a file that ends early": (broken, {}, "{root}/a/x.png cannot be read as an image: "),
    "a file that is no image": (text, {}, "{root}/a/x.jpg cannot be read as an image: cannot identify image file"),
    "sizes": (
        sizes,
        {},
        "{root}/a/x.png and {root}/a/000.png have different sizes, 7 x 5 and 4 x 3 pixels; "
        "give the size to which all are scaled, as size=3",
    ),
    "colours": (
        colours,
        {},
        "{root}/a/x.png has colours, and {root}/a/000.png has none; give channels=3, or 1 for grey images",
    ),
    "transparent pixels": (
        transparent,
        {},
        "{root}/a/x.png has transparent pixels, and 3 channels have none; put it on a background",
    ),
    "an image in no class": (loose, {}, "{root}/x.png is in no sub-folder of a class, as others are; move it to one"),
    "a split": (
        split,
        {},
        "{root}: beside 'train' there is 'tset'; did you mean 'test'?; "
        "the splits are ('train', 'validation', 'val', 'test'), one for validation",
    ),
    "16 bits": (deep, {}, DEEP),
    "16 bits in grey": (deep, {"channels": 1}, DEEP),
    "16 bits in colours": (deep, {"channels": 3}, "{root}/a/x.png: expected an image of 3 channels, got one of mode I;16, which"),
    "16 bits of all": (all_deep, {}, DEEP),
    "a palette": (
        palette,
        {},
        "{root}/a/x.png has mode P, which may have colours, and {root}/a/000.png has none; "
        "give channels=3, or 1 for grey images",
    ),
    "channels": (lambda root: fill(root, {"a": 2}), {"channels": 2}, "channels=2 is none of (1, 3, 4)"),
    "size": (
        lambda root: fill(root, {"a": 2}),
        {"size": (3, 4, 1)},
        "size=(3, 4, 1): expected a number of pixels, or (height, width)",
    ),
    "option": (
        lambda root: fill(root, {"a": 2}),
        {"valdation": 0},
        "there is no option 'valdation'; did you mean 'validation'? (options: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SLIPS)
def test_slips_are_one_clear_line(tmp_path, case):
    make, options, message = SLIPS[case]
    root = tmp_path / "images"
    make(root)
    with pytest.raises(DataError) as caught:
        data.from_folder(root, batch_size=1, **options)
    assert str(caught.value).startswith(message.format(root=root))
    assert os.linesep not in str(caught.value)
