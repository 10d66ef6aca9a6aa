"""Class-conditional diffusion or flow matching on Fashion-MNIST (28 x 28 pixels).

    foldax run experiments/generative/diffusion_fashion.py                   # for a GPU: a U-Net, 150 epochs
    foldax run experiments/generative/diffusion_fashion.py --network dit --width 64 --depth 4 \\
        --steps 2500 --batch-size 64 --learning-rate 2e-3 --ema-decay 0.995 \\
        --noise-schedule flow --prediction-type flow

The first command is meant for a GPU and has not been measured yet. The second trains a small Transformer for 2.7
epochs, in five minutes on 2 shared CPU cores. Its TSTR accuracy (an SVC trained on 2,000 generated images, tested on
10,000 real ones) is 0.741 with seed 0; an SVC trained on 2,000 real images reaches 0.833.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import foldax
from foldax import augment, data, learners, models, plots
from foldax.evaluation import generative
from foldax.learners.generative import noise_schedule

NOISE_SCHEDULES = {"cosine": noise_schedule.cosine, "flow": noise_schedule.flow}
SAMPLES_PER_CALL = 250


@foldax.config
class Config(foldax.Training):
    steps: int = 60_000
    log_every = 200
    evaluate_every = 0  # only at the end
    keep = "last"  # the rate decays to 0
    batch_size: int = 128
    """Examples per step."""
    noise_schedule: Literal["cosine", "flow"] = "cosine"
    """Noise schedule; "flow" is flow matching, together with the prediction type "flow"."""
    prediction_type: Literal["noise", "x0", "v", "flow"] = "v"
    """Target of the network: "flow" is the velocity of flow matching."""
    network: Literal["unet", "dit"] = "unet"
    """U-Net or Diffusion Transformer."""
    channels: tuple[int, ...] = (64, 128, 128)
    """U-Net: channels at each resolution."""
    blocks: int = 2
    """U-Net: residual blocks at each resolution."""
    patch_size: int = 4
    """Transformer: side length of a patch."""
    width: int = 256
    """Transformer: size of the token embeddings."""
    depth: int = 8
    """Transformer: number of blocks."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters stay float32."""
    learning_rate: float = 5e-4
    """Peak learning rate of AdamW, with a cosine schedule."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    ema_decay: float = 0.9995
    """Decay of the moving average of the parameters, which is used for sampling."""
    dropout: float = 0.1
    """Dropout rate of the network."""
    class_dropout_prob: float = 0.1
    """Probability that a label is replaced by the null label in training."""
    num_inference_steps: int = 25
    """Steps of the sampler."""
    guidance_scale: float = 1.5
    """Classifier-free guidance: 1 is the conditional model, more is more typical of the class."""
    num_evaluation_times: int = 2
    """Number of times (noise levels) at which each example is evaluated."""
    num_samples: int = 2_000
    """Images sampled after training, to train the SVC on."""


def dataset(config: Config) -> data.Dataset:
    return data.load("fashion_mnist", batch_size=config.batch_size, validation=1 / 60)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    options = dict(num_classes=info.num_classes, dropout=config.dropout, dtype=config.dtype)
    if config.network == "unet":
        model = models.UNet(1, config.channels, config.blocks, **options)
    else:
        model = models.DiT(1, config.patch_size, config.width, config.depth, scan_layers=True, **options)
    learning_rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    return learners.diffusion(
        model,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, weight_decay=config.weight_decay)),
        shape=info.shapes["inputs"],
        noise_schedule=NOISE_SCHEDULES[config.noise_schedule](),
        prediction_type=config.prediction_type,
        sampler=learners.SamplerSettings(config.num_inference_steps, guidance_scale=config.guidance_scale),
        class_dropout_prob=config.class_dropout_prob,
        num_evaluation_times=config.num_evaluation_times,
        preprocess=lambda images: jnp.asarray(images, jnp.float32) * (1 / 127.5) - 1,
        postprocess=lambda images: jnp.round((images + 1) * 127.5),
        ema_decay=config.ema_decay,
        augment=augment.random_flip(0.5),
    )


def sample_in_parts(result: foldax.Result, labels: np.ndarray) -> np.ndarray:
    """Samples images `[N, H, W, C]` of classes int `[N]`, in parts of equal size, so that only one program compiles."""
    predict, parts = jax.jit(result.learner.predict), []
    for index, start in enumerate(range(0, len(labels), SAMPLES_PER_CALL)):
        part = np.resize(labels[start : start + SAMPLES_PER_CALL], min(SAMPLES_PER_CALL, len(labels)))
        parts.append(np.asarray(predict(result.state, part, jax.random.fold_in(jax.random.key(0), index))))
    return np.concatenate(parts)[: len(labels)]


def figures(result: foldax.Result) -> dict[str, Any]:
    classes, names = result.info.num_classes, result.info.class_names
    labels = np.arange(max(result.config.num_samples, 12 * classes)) % classes
    images = sample_in_parts(result, labels)
    train = {name: np.asarray(leaf[:20_000]) for name, leaf in result.dataset.train.examples().items()}
    test, first = result.examples("test"), images[: 2 * classes]
    nearest, distances = generative.nearest_neighbors(first, train["inputs"])
    by_class = images[: 12 * classes].reshape(12, classes, *images.shape[1:]).swapaxes(0, 1)
    count = len(labels)
    accuracy = generative.tstr_accuracy(images, labels, test["inputs"], test["targets"])
    real = generative.tstr_accuracy(train["inputs"][:count], train["targets"][:count], *test.values())
    return {
        "comparison": f"accuracy on {len(test['targets'])} test images of an SVC trained on {count} images\n"
        f"generated {accuracy:.4f}\nreal      {real:.4f}",
        "samples": plots.image_rows(by_class, names, title="samples of each class"),
        "neighbours": plots.nearest_neighbors(
            first, train["inputs"][nearest], distances, "samples and the nearest of 20,000 training images"
        ),
    }


experiment = foldax.Experiment(Config, learner, dataset, figures=figures)

if __name__ == "__main__":
    foldax.main(experiment)
