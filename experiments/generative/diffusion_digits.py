"""Class-conditional diffusion of handwritten digits (8 x 8 pixels, 17 grey levels) with classifier-free guidance.

    foldax run experiments/generative/diffusion_digits.py
    foldax run experiments/generative/diffusion_digits.py --noise-schedule flow --prediction-type flow

TSTR accuracy (an SVC trained on 2,000 generated digits, tested on 359 real ones): 0.9662 +- 0.0062, mean and standard
deviation over seeds 8 to 15 (trained on the 1,258 real digits: 0.983). Bound on bits per pixel, estimated at 32 of the
1,000 times: 2.233 +- 0.025. A run takes about two minutes on 2 CPU cores.

    foldax sweep experiments/generative/diffusion_digits.py --exact --seed 8 --seeds 8
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import foldax
from foldax import augment, data, learners, models, plots
from foldax.evaluation import generative
from foldax.learners.generative import noise_schedule

NUM_LEVELS = 17
NOISE_SCHEDULES = {"cosine": noise_schedule.cosine, "linear": noise_schedule.linear, "flow": noise_schedule.flow}


@foldax.config
class Config(foldax.Training):
    steps: int = 4_000
    log_every = 200
    evaluate_every = 0  # only at the end
    keep = "last"  # the rate decays to 0
    batch_size: int = 64
    """Examples per step."""
    noise_schedule: Literal["cosine", "linear", "flow"] = "cosine"
    """Noise schedule; "flow" is flow matching, together with the prediction type "flow"."""
    prediction_type: Literal["noise", "x0", "v", "flow"] = "v"
    """Target of the network: "flow" is the velocity of flow matching."""
    network: Literal["unet", "dit"] = "dit"
    """U-Net or Diffusion Transformer."""
    channels: tuple[int, ...] = (32, 64)
    """U-Net: channels at each resolution."""
    width: int = 64
    """Transformer: size of the token embeddings."""
    depth: int = 3
    """Transformer: number of blocks."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW, with a cosine schedule."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    ema_decay: float = 0.998
    """Decay of the moving average of the parameters, which is used for sampling."""
    augmentation_strength: float = 0.2
    """Strength: 1 rotates by up to 20 degrees, shifts by up to a pixel and scales by up to 15%."""
    dropout: float = 0.1
    """Dropout rate of the network."""
    class_dropout_prob: float = 0.1
    """Probability that a label is replaced by the null label in training."""
    num_inference_steps: int = 25
    """Steps of the sampler."""
    eta: float = 0.0
    """Noise added by the sampler: 0 is DDIM, 1 is DDPM."""
    guidance_scale: float = 1.5
    """Classifier-free guidance: 1 is the conditional model, more is more typical of the class."""
    samples_per_example: int = 6
    """Samples per example of a split, of its class; at most 2,000 of them train the SVC."""


def dataset(config: Config) -> data.Dataset:
    return data.load("digits", batch_size=config.batch_size)


def network(config: Config, info: data.Info) -> Any:
    if config.network == "unet":
        return models.UNet(1, config.channels, num_classes=info.num_classes, dropout=config.dropout)
    options = dict(num_classes=info.num_classes, dropout=config.dropout, scan_layers=True)
    return models.DiT(1, 2, config.width, config.depth, **options)


def normalize(images: jax.Array) -> jax.Array:
    """Scales grey levels 0 to 16 to [-1, 1]."""
    return jnp.asarray(images, jnp.float32) * (2 / (NUM_LEVELS - 1)) - 1


def denormalize(images: jax.Array) -> jax.Array:
    """Rounds images in [-1, 1] to grey levels 0 to 16."""
    return jnp.clip(jnp.round((images + 1) * ((NUM_LEVELS - 1) / 2)), 0, NUM_LEVELS - 1)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    strength = config.augmentation_strength
    learning_rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    inner = learners.diffusion(
        network(config, info),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, weight_decay=config.weight_decay)),
        shape=info.shapes["inputs"],
        noise_schedule=NOISE_SCHEDULES[config.noise_schedule](),
        prediction_type=config.prediction_type,
        sampler=learners.SamplerSettings(config.num_inference_steps, config.eta, guidance_scale=config.guidance_scale),
        class_dropout_prob=config.class_dropout_prob,
        samples_per_example=config.samples_per_example,
        num_levels=NUM_LEVELS,
        num_evaluation_times=32,
        preprocess=normalize,
        postprocess=denormalize,
        ema_decay=config.ema_decay,
        augment=augment.random_affine(rotation=20 * strength, translation=strength / 8, scale=0.15 * strength),
    )
    return generative.with_images(inner)


def interpolations(result: foldax.Result, labels: np.ndarray, steps: int = 10) -> np.ndarray:
    """Samples images `[N, steps, H, W, C]` from initial noise interpolated between two draws, for each label."""
    shape = result.info.shapes["inputs"]
    noise = generative.interpolate(shape, len(labels), steps, result.config.seed).reshape(-1, *shape)
    images = result.predict({"inputs": np.repeat(labels, steps), "noise": noise})
    return np.asarray(images).reshape(len(labels), steps, *shape)


def samples_by_setting(result: foldax.Result, field: str, values: tuple[Any, ...]) -> np.ndarray:
    """Samples images `[values, 10, H, W, C]` of all classes from the same noise, varying one field of the config."""
    rows = []
    for value in values:
        config = dataclasses.replace(result.config, **{field: value})
        predict = jax.jit(learner(config, result.info).predict)
        rows.append(np.asarray(predict(result.state, np.arange(10), jax.random.key(config.seed))))
    return np.stack(rows)


def figures(result: foldax.Result) -> dict[str, Any]:
    config, names = result.config, result.info.class_names
    train = {name: np.asarray(leaf) for name, leaf in result.dataset.train.examples().items()}
    images = np.asarray(result.predict(np.repeat(np.arange(10), 12))).reshape(10, 12, *result.info.shapes["inputs"])
    first = images[:, :2].reshape(-1, *images.shape[2:])
    nearest, distances = generative.nearest_neighbors(first, train["inputs"])
    steps, scales = (1, 2, 4, 10, 50), (0.0, 1.0, 2.0, 4.0)
    drawings = {
        "samples": plots.image_rows(images, names, title="samples of each class"),
        "interpolation": plots.image_rows(
            interpolations(result, np.arange(10)), names, title="interpolation of the initial noise"
        ),
        "steps": plots.image_rows(
            samples_by_setting(result, "num_inference_steps", steps),
            [f"{n} steps" for n in steps],
            title="the same noise, with different numbers of steps",
        ),
        "guidance": plots.image_rows(
            samples_by_setting(result, "guidance_scale", scales), [f"{w:g}" for w in scales], title="guidance scale"
        ),
        "neighbours": plots.nearest_neighbors(
            first, train["inputs"][nearest], distances, "samples and their nearest training images"
        ),
    }
    if not config.samples_per_example:
        return drawings
    digits = foldax.load_experiment(Path(__file__).parents[1] / "supervised" / "digits.py")
    classifier = foldax.train(digits, save=False, verbose=False)
    samples, labels = generative.collect_samples(result.values["test"], 2000)
    table = generative.compare_to_real(samples, labels, train, result.examples("test"), classifier)
    return {"comparison": table, **drawings}


experiment = foldax.Experiment(Config, learner, dataset, generative.summarize, figures)

if __name__ == "__main__":
    foldax.main(experiment)
