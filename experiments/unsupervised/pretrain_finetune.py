"""Digits with few labels: features learned without any from all training images, then probed or fine-tuned.

First SimCLR learns the network, then that is the start of a classifier that sees `per_class` labels of each class. A
probe trains the linear classifier alone (`--frozen true`); fine-tuning lets it learn alone first (`--thaw 0.5`):

    foldax run experiments/unsupervised/contrastive_digits.py --steps 5000 --run-dir runs/simclr
    foldax run experiments/unsupervised/pretrain_finetune.py --init-from runs/simclr --frozen true --learning-rate 1e-3
    foldax run experiments/unsupervised/pretrain_finetune.py --init-from runs/simclr --learning-rate 1e-3 --thaw 0.5 \\
        --keep-statistics true --encoder-rate 3e-4

Test accuracy (359 images) with 5 labels a class, mean and standard deviation over seeds 0 to 7, which draw the labelled
images; one run of contrastive_digits (seed 0). Rates are the best by validation of those in the last column:

    probe of pretrained projections           0.976 +- 0.013    --learning-rate 1e-3 (3e-3)
    fine-tuned, as above                      0.972 +- 0.018    --encoder-rate 3e-4 (1e-3)
    fine-tuned at once, batch statistics      0.943 +- 0.016    --learning-rate 1e-3, --encoder-rate 3e-3 alone
    from scratch, the same network            0.917 +- 0.011    --encoder-rate 1e-2 (1e-3, 3e-3, 3e-2)
    from scratch, without SimCLR's head       0.921 +- 0.013    --layer features, --encoder-rate 1e-2 (3e-3)

After 2,000 steps of SimCLR the probe has 0.966 +- 0.010, after 10,000 0.973 +- 0.016. A row is made by `foldax sweep`
with its options, `--exact --seeds 8`; 10 to 20 s a run on 2 CPU cores.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from contrastive_digits import encoder, head, unit, views
from flax import linen as nn

import foldax
from foldax import data, learners, optim, plots


@foldax.config
class Config(foldax.Training):
    steps: int = 600
    log_every = 100
    evaluate_every = 0  # only at the end
    keep = "last"  # the rate decays to 0
    per_class: int | None = 5
    """Labelled images of each class, drawn anew by every seed; None: all of them."""
    frozen: bool = False
    """Train the linear classifier alone, on the features that the encoder has from the start."""
    batch_size: int = 50
    """Images per step."""
    channels: tuple[int, ...] = (32, 64)
    """As in contrastive_digits."""
    width: int = 256
    """As in contrastive_digits."""
    projections: int = 64
    """As in contrastive_digits."""
    layer: Literal["features", "projections"] = "projections"
    """What the linear classifier sees: the encoder's features, or what SimCLR's head makes of them."""
    learning_rate: float = 1e-2
    """Of the linear classifier, at the start of the cosine schedule."""
    encoder_rate: float = 3e-3
    """Of all below the linear classifier, where it is not frozen."""
    thaw: float = 0.0
    """Share of the steps in which the classifier learns alone; only then the encoder does too (Kumar et al., 2022)."""
    keep_statistics: bool = False
    """Normalise by the running statistics that the encoder has from the start, not by the batch's; always if frozen."""
    weight_decay: float = 1e-2
    """Of AdamW."""
    amount: float = 1.0
    """Of augmentation, as in contrastive_digits."""


class Network(nn.Module):
    """The encoder of contrastive_digits under its name there, its head too if wanted, and a linear classifier."""

    encoder: Any
    head: Any
    num_classes: int
    keep_statistics: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        train = train and not self.keep_statistics
        x = self.encoder(x, train=train)
        x = x if self.head is None else self.head(x, train=train)
        return nn.Dense(self.num_classes, name="output")(nn.RMSNorm(use_scale=False)(x))  # of one length, as compared


def dataset(config: Config) -> data.Dataset:
    return data.load("digits", batch_size=config.batch_size)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    projects = head(config) if config.layer == "projections" else None
    network = Network(encoder(config), projects, info.num_classes, config.frozen or config.keep_statistics)
    below = r"encoder|head"
    fall = optax.cosine_decay_schedule(1.0, config.steps)

    def encoders(step: jax.Array) -> jax.Array:
        return jnp.where(step < config.thaw * config.steps, 0.0, config.encoder_rate * fall(step))

    def adamw(rate: Any) -> optax.GradientTransformation:
        return optax.adamw(rate, eps=1e-5, weight_decay=config.weight_decay)  # see `learners.simclr`

    groups = {} if config.frozen else {below: adamw(encoders)}
    made = learners.classifier(
        network,
        optim.by_path(adamw(lambda step: config.learning_rate * fall(step)), groups),
        preprocess=unit,
        augment=views(config.amount),
        frozen=(below,) if config.frozen else (),
    )
    return made if config.per_class is None else learners.subset(made, config.per_class, info)


experiment = foldax.Experiment(Config, learner, dataset, figures=plots.image_classification)

if __name__ == "__main__":
    foldax.main(experiment)
