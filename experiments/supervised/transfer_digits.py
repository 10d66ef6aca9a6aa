"""Transfer learning: what was learned of the digits 0 to 4, or of clothes, for the digits 5 to 9 with few labels.

First a network learns one task; then another one, whose convolutions start as the first one's and whose head is new:

    foldax run experiments/supervised/transfer_digits.py --run-dir runs/zero_to_four
    foldax run experiments/supervised/transfer_digits.py --task five_to_nine --per-class 10 \\
        --init-from runs/zero_to_four --frozen true

Feature extraction is `--frozen true`, fine-tuning `--depth-decay 0.3` without it, from scratch neither with no
`--init-from`. All of them, for four numbers of labels and 8 seeds that draw their own labelled images, are one sweep:

    foldax sweep experiments/supervised/transfer_digits.py --task five_to_nine --init-from none runs/zero_to_four \\
        --frozen false true --per-class 1 5 10 50 --seeds 8

The digits 0 to 4 reach a test accuracy of 1.000 (seed 0, 180 images). The digits 5 to 9 (448 images, 8 seeds, the best
rates by validation) reach, with 1, 5, 10 and 50 labels a class:

    from scratch                          0.763  0.900  0.951  0.981
    fine-tuned from digits 0 to 4         0.734  0.879  0.932  0.968
    features of digits 0 to 4             0.726  0.866  0.925  0.969
    fine-tuned from Fashion-MNIST         0.766  0.907  0.948  0.976
    features of Fashion-MNIST             0.707  0.897  0.934  0.972

At this size of image and network nothing is gained; research/transfer/ has the spreads and the figure.
"""

from typing import Literal

import jax
import numpy as np
import optax
from flax import linen as nn

import foldax
from foldax import data, learners, models, optim, plots

LEVELS = ("Conv", ".*_head/Dense")  # from the input to the output; each layer is a level of its own


@foldax.config
class Config(foldax.Training):
    steps: int = 300
    evaluate_every = 0  # only at the end
    keep = "last"  # the rate decays to 0
    task: Literal["zero_to_four", "five_to_nine", "clothes"] = "zero_to_four"
    """What is learned: digits 0 to 4, digits 5 to 9, or Fashion-MNIST at the digits' size."""
    per_class: int | None = None
    """Labelled examples of each class, drawn anew by every seed; None: all of them."""
    frozen: bool = False
    """Train the head alone, on the features that the trunk has from the start: from init_from, or random ones."""
    batch_size: int = 50
    """Examples per step."""
    channels: tuple[int, ...] = (16, 32)
    """Channels of the trunk's 3 x 3 convolutions; each is followed by pooling."""
    dense: int = 64
    """Number of features that the trunk gives the head."""
    learning_rate: float = 3e-3
    """Of the head, at the start of the cosine schedule."""
    depth_decay: float = 1.0
    """Factor of the rate from one layer to the one below it."""
    weight_decay: float = 1e-2
    """Of AdamW."""


class Network(nn.Module):
    """Convolutions, which all tasks share by name, and a head of two layers, which only runs of the same task do."""

    task: str
    num_classes: int
    channels: tuple[int, ...]
    dense: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        for width in self.channels:
            x = models.pool(nn.relu(models.Conv(width, (3, 3))(x)), "max", (2, 2))
        return models.MLP((self.dense, self.num_classes), name=f"{self.task}_head")(x)


def dataset(config: Config) -> data.Dataset:
    if config.task == "clothes":
        images, targets, names = everything("fashion_mnist")
        images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))  # to 32 x 32, so that means of 4 x 4 give 8 x 8
        images = images.reshape(-1, 8, 4, 8, 4, 1).mean((2, 4), dtype=np.float32)
    else:
        images, targets, names = everything("digits")
        first = 0 if config.task == "zero_to_four" else 5
        chosen = (targets >= first) & (targets < first + 5)
        images, targets, names = images[chosen], targets[chosen] - first, names[first : first + 5]
    return data.from_arrays(
        {"inputs": images, "targets": targets},
        name=config.task,
        class_names=names,
        batch_size=config.batch_size,
        validation=0.2,
        test=0.5 if config.task == "five_to_nine" else 0.2,  # few labels are learned from, so many can be tested
    )


def everything(name: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns all images `[N, H, W, 1]` of a dataset, their classes `[N]`, and the classes' names."""
    found = data.load(name, batch_size=1, validation=0.0, test=0.0)
    examples = found.train.examples()
    assert found.info.class_names is not None
    return np.asarray(examples["inputs"]), np.asarray(examples["targets"]), found.info.class_names


def learner(config: Config, info: data.Info) -> foldax.Learner:
    network = Network(config.task, info.num_classes, config.channels, config.dense)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    adamw = optax.adamw(schedule, weight_decay=config.weight_decay)
    made = learners.classifier(
        network,
        optim.depth_decay(adamw, config.depth_decay, LEVELS),
        preprocess=info.standardize,
        frozen=(r"Conv_\d+",) if config.frozen else (),
    )
    return made if config.per_class is None else learners.subset(made, config.per_class, info)


experiment = foldax.Experiment(Config, learner, dataset, figures=plots.image_classification)

if __name__ == "__main__":
    foldax.main(experiment)
