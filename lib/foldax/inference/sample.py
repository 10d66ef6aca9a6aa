"""`foldax sample`: a grid of images from a generative model, or text from a language model."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from foldax.engine import compiled
from foldax.engine.result import Result
from foldax.errors import ConfigError, ExperimentError, check_positive, display_path
from foldax.inference.inputs import map_in_batches
from foldax.inference.outputs import output_path
from foldax.learner import Sampler
from foldax.plots.images import image_rows
from foldax.runs.folder import whole_file
from foldax.runs.load import load_run
from foldax.runs.terminal import echo

COLUMNS = 8  # images in a row


def sample(
    run: Result | str | Path,
    *,
    prompt: str | None = None,
    label: int | None = None,
    count: int | None = None,
    length: int = 200,
    seed: int = 0,
    out: str | Path | None = None,
    verbose: bool = True,
) -> Path:
    """Writes samples of a run's generative model: a PNG file with a grid of images, or a text file.

    Args:
      run: a run folder, or the `Result` of `foldax.train`.
      prompt: text that a language model continues.
      label: class of all images; None: a conditional model takes all classes in turn.
      count: number of images or texts; by default 64 images or one text.
      length: tokens of a text, after the prompt.
      seed: seed of the samples.
      out: file; `samples.png` or `samples.txt` in the run folder if None.
      verbose: prints the texts and the path.

    Returns:
      The file.

    Raises:
      ConfigError: an option is out of range, or is not of this kind of model.
      ExperimentError: the learner has no `sampler`, or its code fails.
      RunError: the run cannot be loaded, or the file cannot be written.
    """
    check_positive(length=length, count=1 if count is None else count)
    result = run if isinstance(run, Result) else load_run(run)
    sampler = result.learner.sampler
    if sampler is None:
        raise ExperimentError("this learner has no `sampler`, so there is nothing to sample (`foldax predict` uses it)")
    if sampler.takes == "prompt":
        if label is not None:
            raise ConfigError("--class: a language model has no classes; give it a --prompt")
        path = output_path(result, out, "samples.txt", "file to write")
        texts = _sample_texts(result, sampler, prompt, count or 1, length, seed)
        with whole_file(path) as temporary:
            temporary.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        if verbose:
            echo("\n\n".join(texts))
    else:
        if prompt is not None:
            raise ConfigError("--prompt: this model makes images; only a language model takes a text")
        path = output_path(result, out, "samples.png", "file to write")
        labels = _labels(sampler, label, count or COLUMNS**2)
        images = _sample_images(result, sampler, labels, seed)
        figure = image_rows(_as_rows(images))
        with whole_file(path) as temporary:
            figure.savefig(temporary, dpi=120)
    if verbose:
        echo(f"written: {display_path(path)}")
    return path


def _sample_texts(
    result: Result, sampler: Sampler, prompt: str | None, count: int, length: int, seed: int
) -> list[str]:
    tokenizer = sampler.tokenizer
    if tokenizer is None:
        raise ExperimentError("the learner has no tokenizer to write text with: language_model(..., tokenizer=...)")
    if not prompt:
        raise ConfigError("--prompt: a language model continues a text, so give it one of at least a character")
    tokens = np.tile(np.asarray(tokenizer.encode(prompt), np.int32), (count, 1))
    with compiled.user_code_errors(result.experiment):
        continued = sampler.draw(result.state, jnp.asarray(tokens), jax.random.key(seed), length)
    return [prompt + tokenizer.decode(row) for row in np.asarray(continued)]


def _labels(sampler: Sampler, label: int | None, count: int) -> np.ndarray:
    """Returns the label of each image, int32 `[count]`."""
    size = sampler.num_classes
    if label is None:
        return np.arange(count, dtype=np.int32) % (size or 1)
    if size is None:
        raise ConfigError("--class: the model was trained without classes, so its samples cannot have one")
    if not 0 <= label < size:
        raise ConfigError(f"--class: there is no class {label}; there are 0 to {size - 1}")
    return np.full(count, label, np.int32)


def _sample_images(result: Result, sampler: Sampler, labels: np.ndarray, seed: int) -> np.ndarray:
    """Samples one image for each label, `[N, H, W, C]`.

    Raises:
      ExperimentError: samples are no images.
    """
    shape, key = result.info.shapes["inputs"], jax.random.key(seed)
    draw = jax.jit(lambda state, labels, key: sampler.draw(state, labels, key, shape))

    def draw_batch(batch: dict[str, np.ndarray], number: int) -> Any:
        return draw(result.state, batch["inputs"], jax.random.fold_in(key, number))

    with compiled.user_code_errors(result.experiment):
        images = map_in_batches(draw_batch, {"inputs": labels})
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ExperimentError(f"samples have the shape {list(images.shape[1:])}, which is no image [H, W, 1 or 3]")
    is_uint8 = np.issubdtype(result.info.dtypes["inputs"], np.integer) and images.shape[-1] == 3
    return np.clip(images / 255.0 if is_uint8 else images, 0, 1) if images.shape[-1] == 3 else images


def _as_rows(images: np.ndarray) -> np.ndarray:
    """Arranges images `[N, ...]` in rows `[R, S, ...]`; places that are left over stay empty."""
    columns = min(COLUMNS, len(images))
    empty = np.full((-len(images) % columns, *images.shape[1:]), np.nan, np.float32)
    return np.concatenate([images.astype(np.float32), empty]).reshape(-1, columns, *images.shape[1:])
