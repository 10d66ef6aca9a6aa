"""Handwritten digits (1,797 images of 8 x 8 pixels) with a multilayer perceptron.

foldax run experiments/supervised/digits.py
"""

import optax

import foldax
from foldax import data, learners, models


@foldax.config
class Config(foldax.Training):
    steps: int = 3_000
    batch_size: int = 64
    hidden: tuple[int, ...] = (128, 128)
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    dropout: float = 0.2


def dataset(config: Config) -> data.Dataset:
    return data.load("digits", batch_size=config.batch_size)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    model = models.MLP((*config.hidden, info.num_classes), dropout=config.dropout)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)
    return learners.classifier(model, optimizer, preprocess=info.standardize)


experiment = foldax.Experiment(Config, learner, dataset)

if __name__ == "__main__":
    foldax.main(experiment)
