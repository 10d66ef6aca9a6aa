"""`foldax sample`: grids of images, text, and errors."""

import numpy as np
import optax
import pytest
from PIL import Image

import foldax
from foldax import data, learners, models
from foldax.errors import ConfigError, ExperimentError
from tests.conftest import Config, tiny
from tests.inference.test_export import untrained
from tests.laws.test_laws import LEARNERS


@pytest.fixture(scope="module")
def vae() -> foldax.Result:
    return untrained(LEARNERS["vae"])


def test_images_of_a_class(vae, tmp_path) -> None:
    first, second, other = (
        foldax.sample(vae, label=label, count=10, out=tmp_path / f"{index}.png", verbose=False)
        for index, label in enumerate((2, 2, 0))
    )
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    with Image.open(first) as image:
        width, height = image.size
    assert width > 2 * height, "two rows of at most 8 images"


def test_text_continues_a_prompt(tmp_path, capsys) -> None:
    tokenizer = data.Characters("abc")

    def learner(config: Config, info: data.Info) -> foldax.Learner:
        model = models.Transformer(3, depth=1, num_heads=1, width=4, vocabulary_size=3, causal=True, max_length=4)
        return learners.language_model(model, optax.adam(0.1), tokenizer=tokenizer)

    def dataset(config: Config) -> data.Dataset:
        return data.from_arrays({"inputs": np.zeros((32, 4), np.int32)}, batch_size=8, vocabulary_size=3)

    result = untrained(foldax.Experiment(Config, learner, dataset, name="text"))
    text = foldax.sample(result, prompt="ab", count=2, length=11, out=tmp_path / "texts.txt").read_text()
    samples = text.split()  # longer than the window of the model
    assert [len(sample) for sample in samples] == [13, 13]
    assert all(sample.startswith("ab") and set(sample) <= set("abc") for sample in samples)
    assert samples[0] in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--prompt: a language model continues a text"):
        foldax.sample(result, out=tmp_path / "texts.txt")
    with pytest.raises(ConfigError, match="--class: a language model has no classes"):
        foldax.sample(result, label=1, out=tmp_path / "texts.txt")


def test_what_cannot_be_sampled(vae, tmp_path) -> None:
    for options, message in (
        ({"label": 3}, "--class: there is no class 3; there are 0 to 2"),
        ({"prompt": "a"}, "--prompt: this model makes images"),
        ({"count": 0}, "count"),
    ):
        with pytest.raises(ConfigError, match=message):
            foldax.sample(vae, out=tmp_path / "x.png", **options)
    with pytest.raises(ExperimentError, match="no `sampler`, so there is nothing to sample"):
        foldax.sample(untrained(tiny), out=tmp_path / "x.png")
