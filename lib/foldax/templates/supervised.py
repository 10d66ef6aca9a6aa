"""NAME: say here what is trained on what, and which score it reaches.

foldax run FILE
foldax run FILE --learning-rate 1e-3 --hidden 256 256 --seed 1
foldax check FILE
"""

import optax

import foldax
from foldax import data, learners, models


@foldax.config
class Config(foldax.Training):  # steps, seed, log_every, evaluate_every, patience, ...: `foldax run FILE --help`
    """Hyperparameters of the network and its training."""

    steps: int = 1_000
    batch_size: int = 64
    """Examples per step."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    learning_rate: float = 3e-3  # a float is traced: changing it compiles nothing, sweeping it compiles once
    """Peak of the cosine schedule."""


def dataset(config: Config) -> data.Dataset:
    """Loads the data, split at random into training, validation and test examples."""
    # digits, breast_cancer, wine, iris, diabetes, fashion_mnist, any TFDS name, or data.from_arrays(...)
    return data.load("digits", batch_size=config.batch_size)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    """Builds a classifier with an MLP."""
    # Called while the program is traced: the config's floats are arrays here, `info` holds static facts
    # of the training split (num_classes, shapes, mean, std, ...).
    model = models.MLP((*config.hidden, info.num_classes))
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    return learners.classifier(model, optax.adamw(schedule), preprocess=info.standardize)


experiment = foldax.Experiment(Config, learner, dataset)

if __name__ == "__main__":
    foldax.main(experiment)
