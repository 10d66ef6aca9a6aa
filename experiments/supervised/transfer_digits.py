"""Transfer learning: from the digits 0 to 4, or from clothes, to the digits 5 to 9 with few labels.

A network learns the source task first; a second one then starts from its convolutions, with a new head:

    foldax run experiments/supervised/transfer_digits.py --run-dir runs/zero_to_four
    foldax run experiments/supervised/transfer_digits.py --task five_to_nine --examples-per-class 10 \\
        --init-from runs/zero_to_four --frozen

Feature extraction is `--frozen`, fine-tuning is `--layer-decay 0.3` without it, and training from scratch is
neither, without `--init-from`. All of them, with four numbers of labels and 8 seeds, each with its own labelled images,
are one sweep:

    foldax sweep experiments/supervised/transfer_digits.py --task five_to_nine --init-from none runs/zero_to_four \\
        --frozen false true --examples-per-class 1 5 10 50 --seeds 8

Test accuracy is 1.000 on the digits 0 to 4 (seed 0, 180 images), and on the digits 5 to 9 (448 images, 8 seeds, best
learning rates by validation), with 1, 5, 10 and 50 labels per class:

    from scratch                          0.763  0.900  0.951  0.981
    fine-tuned from digits 0 to 4         0.734  0.879  0.932  0.968
    features of digits 0 to 4             0.726  0.866  0.925  0.969
    fine-tuned from Fashion-MNIST         0.766  0.907  0.948  0.976
    features of Fashion-MNIST             0.707  0.897  0.934  0.972

At this size of image and network transfer gains nothing; research/transfer/ has the standard deviations and the figure.
"""

from typing import Literal

import jax
import numpy as np
import optax
from flax import linen as nn

import foldax
from foldax import data, learners, models, optim, plots

LEVELS = ("Conv", ".*_head/Dense")  # from the input to the output, one level per layer


@foldax.config
class Config(foldax.Training):
    steps: int = 300
    evaluate_every = 0  # only at the end
    keep = "last"  # the rate decays to 0
    task: Literal["zero_to_four", "five_to_nine", "clothes"] = "zero_to_four"
    """Digits 0 to 4, digits 5 to 9, or Fashion-MNIST at the size of the digits."""
    examples_per_class: int | None = None
    """Labelled examples per class, sampled anew by each seed; None: all of them."""
    frozen: bool = False
    """Train the head alone, on the initial features of the trunk: those of init_from, or random ones."""
    batch_size: int = 50
    """Examples per update."""
    channels: tuple[int, ...] = (16, 32)
    """Channels of the trunk's 3 x 3 convolutions, each followed by pooling."""
    dense: int = 64
    """Width of the head's hidden layer."""
    learning_rate: float = 3e-3
    """Learning rate of the head at the start of the cosine schedule."""
    layer_decay: float = 1.0
    """Factor of the learning rate from one layer to the layer below it."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""


class Network(nn.Module):
    """Convolutions that all tasks share by name, and a head of two layers with the name of the task."""

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
        images, targets, names = load_all("fashion_mnist")
        images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))  # to 32 x 32, so that means of 4 x 4 are 8 x 8
        images = images.reshape(-1, 8, 4, 8, 4, 1).mean((2, 4), dtype=np.float32)
    else:
        images, targets, names = load_all("digits")
        first = 0 if config.task == "zero_to_four" else 5
        in_task = (targets >= first) & (targets < first + 5)
        images, targets, names = images[in_task], targets[in_task] - first, names[first : first + 5]
    return data.from_arrays(
        {"inputs": images, "targets": targets},
        name=config.task,
        class_names=names,
        batch_size=config.batch_size,
        validation=0.2,
        test=0.5 if config.task == "five_to_nine" else 0.2,  # training takes few of them
    )


def load_all(name: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns all images `[N, H, W, 1]` of a dataset, their classes `[N]`, and the names of the classes."""
    dataset = data.load(name, batch_size=1, validation=0.0, test=0.0)
    examples = dataset.train.examples()
    assert dataset.info.class_names is not None
    return np.asarray(examples["inputs"]), np.asarray(examples["targets"]), dataset.info.class_names


def learner(config: Config, info: data.Info) -> foldax.Learner:
    network = Network(config.task, info.num_classes, config.channels, config.dense)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    adamw = optax.adamw(schedule, weight_decay=config.weight_decay)
    classifier = learners.classifier(
        network,
        optim.layer_decay(adamw, config.layer_decay, LEVELS),
        preprocess=info.standardize,
        frozen=(r"Conv_\d+",) if config.frozen else (),
    )
    if config.examples_per_class is None:
        return classifier
    return learners.subset(classifier, config.examples_per_class, info)


experiment = foldax.Experiment(Config, learner, dataset, figures=plots.image_classification)

if __name__ == "__main__":
    foldax.main(experiment)
