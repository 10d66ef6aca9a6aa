"""Digits with few labels: self-supervised pretraining on all training images, then a linear probe or fine-tuning.

SimCLR pretrains the network, which then initialises a classifier that sees `examples_per_class` labels of each class. A
linear probe trains the classifier alone (`--frozen`); fine-tuning does so only at first (`--freeze-fraction 0.5`):

    foldax run experiments/unsupervised/contrastive_digits.py --steps 5000 --run-dir runs/simclr
    foldax run experiments/unsupervised/pretrain_finetune.py --init-from runs/simclr --frozen --learning-rate 1e-3
    foldax run experiments/unsupervised/pretrain_finetune.py --init-from runs/simclr --learning-rate 1e-3 \\
        --freeze-fraction 0.5 --use-running-statistics --encoder-learning-rate 3e-4

Test accuracy (359 images) with 5 labels per class, mean and standard deviation over seeds 0 to 7, which draw the
labelled images; one run of contrastive_digits (seed 0). Learning rates, of the classifier (lr) or of the encoder
(encoder lr), are the best by validation; the others that were tried are in parentheses:

    probe of pretrained projections           0.976 +- 0.013    lr 1e-3 (3e-3)
    fine-tuned, as above                      0.972 +- 0.018    encoder lr 3e-4 (1e-3)
    fine-tuned at once, batch statistics      0.943 +- 0.016    lr 1e-3, encoder lr 3e-3 alone
    from scratch, the same network            0.917 +- 0.011    encoder lr 1e-2 (1e-3, 3e-3, 3e-2)
    from scratch, without SimCLR's head       0.921 +- 0.013    --layer features, encoder lr 1e-2 (3e-3)

Over seeds 8 to 15, which chose no setting, the first two rows are 0.970 +- 0.009 and 0.964 +- 0.006.

After 2,000 steps of SimCLR the probe reaches 0.966 +- 0.010, after 10,000 steps 0.973 +- 0.016. Each row is a
`foldax sweep` with its options (there a flag has a value: `--frozen true`) and `--exact --seeds 8`; 10 to 20 s per run
on 2 CPU cores.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from contrastive_digits import encoder, head, to_unit_interval, views
from flax import linen as nn

import foldax
from foldax import data, learners, optim, plots


@foldax.config
class Config(foldax.Training):
    steps: int = 600
    log_every = 100
    evaluate_every = 0  # only at the end
    keep = "last"  # the learning rate decays to 0
    examples_per_class: int | None = 5
    """Labelled images of each class, which the seed draws; None: all of them."""
    frozen: bool = False
    """Train the linear classifier alone, on the features of the initial encoder (a linear probe)."""
    batch_size: int = 50
    """Images per step."""
    channels: tuple[int, ...] = (32, 64)
    """As in contrastive_digits."""
    width: int = 256
    """As in contrastive_digits."""
    projection_size: int = 64
    """As in contrastive_digits."""
    layer: Literal["features", "projections"] = "projections"
    """Input of the linear classifier: the encoder's features, or the projections of SimCLR's head."""
    learning_rate: float = 1e-2
    """Peak of the cosine schedule of the linear classifier's AdamW."""
    encoder_learning_rate: float = 3e-3
    """Peak of the cosine schedule of the encoder's and the head's AdamW, unless they are frozen."""
    freeze_fraction: float = 0.0
    """Fraction of the steps, at the beginning, that train the linear classifier alone (Kumar et al., 2022)."""
    use_running_statistics: bool = False
    """Normalise by the initial running statistics instead of those of the batch; always so if frozen."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    augmentation_strength: float = 1.0
    """As in contrastive_digits."""


class Network(nn.Module):
    """The encoder of contrastive_digits, optionally its head, under their names there, and a linear classifier."""

    encoder: Any
    head: Any
    num_classes: int
    use_running_statistics: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        train = train and not self.use_running_statistics
        x = self.encoder(x, train=train)
        x = x if self.head is None else self.head(x, train=train)
        return nn.Dense(self.num_classes, name="output")(nn.RMSNorm(use_scale=False)(x))  # SimCLR compares directions


def dataset(config: Config) -> data.Dataset:
    return data.load("digits", batch_size=config.batch_size)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    projection_head = head(config) if config.layer == "projections" else None
    network = Network(encoder(config), projection_head, info.num_classes, config.use_running_statistics)
    pretrained = r"encoder|head"
    decay = optax.cosine_decay_schedule(1.0, config.steps)

    def encoder_schedule(step: jax.Array) -> jax.Array:
        return jnp.where(step < config.freeze_fraction * config.steps, 0.0, config.encoder_learning_rate * decay(step))

    def adamw(schedule: optax.Schedule) -> optax.GradientTransformation:
        return optax.adamw(schedule, eps=1e-5, weight_decay=config.weight_decay)  # see `learners.simclr`

    groups = {} if config.frozen else {pretrained: adamw(encoder_schedule)}
    classifier = learners.classifier(
        network,
        optim.parameter_groups(adamw(lambda step: config.learning_rate * decay(step)), groups),
        preprocess=to_unit_interval,
        augment=views(config.augmentation_strength),
        frozen=(pretrained,) if config.frozen else (),
    )
    if config.examples_per_class is None:
        return classifier
    return learners.subset(classifier, config.examples_per_class, info)


experiment = foldax.Experiment(Config, learner, dataset, figures=plots.image_classification)

if __name__ == "__main__":
    foldax.main(experiment)
