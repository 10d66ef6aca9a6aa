"""Fashion-MNIST under noise: a small network takes it away again, beside classical filters tuned on other images.

    foldax run experiments/unsupervised/denoise_fashion.py

Peak signal-to-noise ratio, mean over the 10,000 test images, of normal noise with a deviation of 0.3 of the range;
of the autoencoder mean and standard deviation of seeds 0 to 7:

    autoencoder                          20.99 +- 0.09
    non-local means, total variation     18.62, 18.56 (scikit-image, tuned on 100 validation images)
    given, clipped to the range          12.81

The gain is 2.4 dB; 3 dB would take 21.62. A network twice as wide, `--channels 64 128`, reaches 21.47 (seed 0; 20.91 as
it is), a gain of 2.85, and takes four to six times as long; the last third of its steps added 0.26 dB on training
batches. So 3 dB would take that network and about twice its steps, some 40 minutes of processor time. As it is, a run
takes 200 s of processor time. The seeds are of

    foldax sweep experiments/unsupervised/denoise_fashion.py --exact --seeds 8

scikit-image comes with `pip install 'foldax[images]'`; without it the filters are left out.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import foldax
from foldax import augment, data, learners, models, plots
from foldax.learners import losses

TUNED = 100  # validation images that the filters' settings are chosen on
Filter = Callable[..., np.ndarray]  # of one image [H, W]


@foldax.config
class Config(foldax.Training):
    steps: int = 3_000
    log_every = 100
    evaluate_every = 0  # only at the end
    keep = "last"  # the rate decays to 0
    batch_size: int = 64
    """Examples per step."""
    noise: float = 0.3
    """Deviation of the normal noise that is added to pixels in [0, 1]; nothing is clipped."""
    channels: tuple[int, ...] = (32, 64)
    """Channels at half and at a quarter of the images' side."""
    blocks: int = 2
    """Residual blocks at a quarter of the side."""
    learning_rate: float = 2e-3
    """Peak of the cosine schedule of AdamW."""
    weight_decay: float = 1e-3
    """Of AdamW."""
    compared: int = foldax.driver(10_000)
    """Test images that are filtered too, in the end."""


def dataset(config: Config) -> data.Dataset:
    return data.load("fashion_mnist", batch_size=config.batch_size, validation=1 / 60)


def unit(images: jax.Array) -> jax.Array:
    """Returns bytes as floats from 0 to 1; floats stay."""
    return images if jnp.issubdtype(images.dtype, jnp.floating) else jnp.asarray(images, jnp.float32) * (1 / 255)


def noisy(std: Any) -> augment.Augmentation:
    """Returns the corruption that adds normal noise to images in [0, 1]."""

    def step(key: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
        images = unit(batch["inputs"])
        return {**batch, "inputs": images + std * jax.random.normal(key, images.shape)}

    return step


class Denoiser(nn.Module):
    """Predicts the noise and takes it away (DnCNN: Zhang et al., 2017): images `[B, H, W, 1]` to `models.Coded`.

    Squares of 2 x 2 pixels become channels at once (FFDNet: Zhang et al., 2018); a second level sees what is far.

    Attributes:
      channels: at half and at a quarter of the side.
      blocks: residual blocks at a quarter of the side.
    """

    channels: tuple[int, ...]
    blocks: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> models.Coded:
        size, (wide, deep) = (3, 3), self.channels
        batch, height, width, _ = x.shape
        squares = x.reshape(batch, height // 2, 2, width // 2, 2).transpose(0, 1, 3, 2, 4)
        squares = squares.reshape(batch, height // 2, width // 2, 4)
        fine = nn.relu(models.Conv(wide, size)(squares))
        fine = nn.relu(models.Conv(wide, size)(fine))
        y = models.Conv(deep, (2, 2), (2, 2))(fine)
        for _ in range(self.blocks):
            y = y + models.Conv(deep, size)(nn.relu(models.Conv(deep, size)(nn.relu(y))))
        y = nn.relu(y)
        codes = y.mean(axis=(1, 2))
        fine = fine + models.ConvTranspose(wide, (2, 2), (2, 2))(y)
        fine = nn.relu(models.Conv(wide, size)(nn.relu(fine)))
        guess = models.Conv(4, size, kernel_init=nn.initializers.zeros)(fine)
        guess = guess.reshape(batch, height // 2, width // 2, 2, 2).transpose(0, 1, 3, 2, 4)
        return models.Coded(x - guess.reshape(x.shape), codes)


def psnr(squared_error: Any) -> Any:
    """Returns peak signal-to-noise ratios in decibels, of mean squared errors of pixels in [0, 1]."""
    return -10 / np.log(10) * jnp.log(jnp.maximum(squared_error, 1e-10))


def learner(config: Config, info: data.Info) -> foldax.Learner:
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    inner = learners.autoencoder(
        Denoiser(config.channels, config.blocks),
        optax.adamw(schedule, weight_decay=config.weight_decay),
        loss=lambda outputs, clean: -psnr(losses.squared_error(outputs, clean)),
        preprocess=unit,
        finish=lambda outputs: jnp.clip(outputs, 0.0, 1.0),
        corruption=noisy(config.noise),
        corrupted_evaluation=True,
        augment=augment.random_flip(),
    )

    def evaluate(state: Any, batch: Any, key: jax.Array) -> dict[str, Any]:
        values = inner.evaluate(state, batch, key)
        return values | {"psnr": psnr(values["squared_error"])}

    return inner._replace(evaluate=evaluate)


def image_psnr(images: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Returns the ratios `[N]` of images `[N, H, W]`, clipped to [0, 1], in decibels."""
    return np.asarray(psnr(np.square(images.clip(0, 1) - clean).mean(axis=(1, 2))))


def filters(noise: float) -> dict[str, tuple[Filter, list[dict[str, Any]]]]:
    """Returns scikit-image's filters by name, with the settings to choose from; none where it is not installed."""
    try:
        from skimage import restoration
    except ImportError:
        return {}
    shapes = itertools.product((5, 7), (5, 8, 11), (0.4, 0.5, 0.65, 0.8), (0.0, noise))
    means = [dict(patch_size=p, patch_distance=d, h=h * noise, sigma=s) for p, d, h, s in shapes]
    variations = [dict(weight=share * noise) for share in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
    return {
        "non-local means": (restoration.denoise_nl_means, means),
        "total variation": (restoration.denoise_tv_chambolle, variations),
    }


def filtered(config: Config, tune: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Returns noisy `test` images `[N, H, W]` after each filter, as set best for the clean images `tune`."""
    noisy_tune = tune + config.noise * np.random.RandomState(1).randn(*tune.shape)
    made = {}
    for name, (function, choices) in filters(config.noise).items():

        def apply(images: np.ndarray, options: dict[str, Any], function: Filter = function) -> np.ndarray:
            return np.stack([function(image, **options) for image in images])

        scores = [image_psnr(apply(noisy_tune, options), tune).mean() for options in choices]
        made[name] = apply(test, choices[int(np.argmax(scores))])
    return made


def figures(result: foldax.Result) -> dict[str, Any]:
    config, examples, names = result.config, result.examples("test"), result.info.class_names
    clean, tune = (np.asarray(unit(result.examples(split)["inputs"]))[..., 0] for split in ("test", "validation"))
    clean, targets = clean[: config.compared], examples["targets"][: config.compared]
    given = clean + config.noise * np.random.RandomState(0).randn(*clean.shape).astype(np.float32)
    made = {"noisy": given, **filtered(config, tune[:TUNED], given)}
    best = max((float(image_psnr(made[name], clean).mean()) for name in made if name != "noisy"), default=None)
    made["autoencoder"] = np.asarray(result.predict(given[..., None]).outputs)[..., 0]
    ratios = {name: image_psnr(images, clean) for name, images in made.items()}
    lines = [f"{name:<20}{ratio.mean():6.2f} dB" for name, ratio in ratios.items()]
    if best is None:
        lines.append("scikit-image's filters are not there to compare with: pip install 'foldax[images]'")
    else:
        lines.append(f"{ratios['autoencoder'].mean() - best:+.2f} dB over the better filter")
    titles = [names[target] for target in targets[:10]]
    titles += [f"{ratio:.1f} dB" for name in made for ratio in ratios[name][:10]]
    shown = np.concatenate([images[:10].clip(0, 1) for images in (clean, *made.values())])
    return {
        "comparison": f"PSNR of {len(clean):,} test images, noise of deviation {config.noise:g}\n" + "\n".join(lines),
        "images": plots.image_grid(shown, titles, columns=10, title=f"by row: {', '.join(('clean', *made))}"),
        "classes": classes(ratios, targets, names),
    }


def classes(ratios: dict[str, np.ndarray], targets: np.ndarray, names: Any) -> Any:
    """Draws the mean ratio of each way to denoise for each class."""
    figure, axes = plots.new_figure(width=7.0, height=3.4)
    axis, present, width = axes[0, 0], np.unique(targets), 0.8 / len(ratios)
    for number, (name, values) in enumerate(ratios.items()):
        means = [values[targets == label].mean() for label in present]
        places = np.arange(len(present)) + (number - len(ratios) / 2 + 0.5) * width
        axis.bar(places, means, width, label=name, color=plots.CYCLE[number])
    axis.set_xticks(range(len(present)), [names[label] for label in present], rotation=30, ha="right", fontsize=8)
    axis.set(ylabel="PSNR (dB)", title="higher is nearer to the clean images")
    axis.legend(frameon=False, fontsize=8, ncols=len(ratios), loc="upper center", bbox_to_anchor=(0.5, -0.32))
    return figure


experiment = foldax.Experiment(Config, learner, dataset, figures=figures)

if __name__ == "__main__":
    foldax.main(experiment)
