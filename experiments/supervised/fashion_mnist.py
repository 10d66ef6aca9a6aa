"""Fashion-MNIST (70,000 images of 28 x 28 pixels) with a small convolutional network.

    foldax run experiments/supervised/fashion_mnist.py

Test accuracy 0.9238 (seed 8; 0.9237 with seed 0) after 5 epochs; 3 minutes on 2 CPU cores.
"""

import optax

import foldax
from foldax import data, learners, models, plots


@foldax.config
class Config(foldax.Training):
    steps = 2_300
    log_every = 115
    evaluate_every = 460
    monitor = "accuracy"
    mode = "max"
    batch_size: int = 128
    """Examples per update."""
    channels: tuple[int, ...] = (32, 64)
    """Channels of the 3 x 3 convolutions, each followed by pooling."""
    dense: int = 256
    """Width of the hidden dense layer."""
    learning_rate: float = 2e-3
    """Peak of the schedule: linear warmup over a tenth of the steps, then linear decay to 0."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    dropout: float = 0.3
    """Dropout rate after the dense layer."""


def dataset(config: Config) -> data.Dataset:
    return data.load("fashion_mnist", batch_size=config.batch_size, validation=1 / 60)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    model = models.CNN(info.num_classes, config.channels, dense=(config.dense,), dropout=config.dropout)
    warmup = config.steps // 10
    up = optax.linear_schedule(0.0, config.learning_rate, warmup)
    down = optax.linear_schedule(config.learning_rate, 0.0, config.steps - warmup)
    optimizer = optax.adamw(optax.join_schedules([up, down], [warmup]), weight_decay=config.weight_decay)
    return learners.classifier(model, optimizer, preprocess=info.standardize)


experiment = foldax.Experiment(Config, learner, dataset, figures=plots.image_classification)

if __name__ == "__main__":
    foldax.main(experiment)
