"""One network in three libraries: dense, batch normalisation, ReLU, dropout, dense."""

import equinox as eqx
import jax
from flax import linen as nn
from flax import nnx

from foldax import models


class Linen(nn.Module):
    classes: int
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(8, name="hidden")(x))
        x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))
        return nn.Dense(self.classes, name="output")(x)


class NNX(nnx.Module):
    def __init__(self, features: int, classes: int, rate: float, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(features, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.output = nnx.Linear(8, classes, rngs=rngs)
        self.num_classes = classes

    def __call__(self, x):
        return self.output(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


class Equinox(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    output: eqx.nn.Linear
    noise_key: jax.Array  # of noise that is fixed for a run
    noise_scale: float = eqx.field(static=True)
    num_classes: int = eqx.field(static=True)

    def __init__(self, features: int, classes: int, rate: float, key: jax.Array, noise_scale: float = 0.0) -> None:
        hidden_key, output_key, self.noise_key = jax.random.split(key, 3)
        self.hidden = eqx.nn.Linear(features, 8, key=hidden_key)
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(rate)
        self.output = eqx.nn.Linear(8, classes, key=output_key)
        self.noise_scale, self.num_classes = noise_scale, classes

    def __call__(self, x, state, *, key=None):
        x = x + self.noise_scale * jax.random.normal(self.noise_key, x.shape)
        x, state = self.norm(self.hidden(x), state)
        return self.output(self.dropout(jax.nn.relu(x), key=key)), state


def from_nnx(features: int, classes: int, rate: float = 0.0) -> models.NNXModel:
    return models.from_nnx(lambda rngs: NNX(features, classes, rate, rngs))


def from_equinox(features: int, classes: int, rate: float = 0.0, noise_scale: float = 0.0) -> models.EquinoxModel:
    return models.from_equinox(lambda key: Equinox(features, classes, rate, key, noise_scale))
