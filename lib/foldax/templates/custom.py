"""NAME: say here what is learned from what, and which score it reaches.

foldax run FILE
foldax run FILE --learning-rate 1e-2 --momentum 0.5 --seed 1
foldax check FILE
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import foldax
from foldax import data
from foldax.learner import Metrics


@foldax.config
class Config(foldax.Training):  # steps, seed, log_every, evaluate_every, patience, ...: `foldax run FILE --help`
    """Hyperparameters of logistic regression by gradient descent with momentum."""

    steps: int = 500
    batch_size: int = 64
    """Examples per step."""
    learning_rate: float = 1e-1  # a float is traced: changing it compiles nothing, sweeping it compiles once
    """Learning rate of gradient descent."""
    momentum: float = 0.9
    """Decay of the sum of past gradients."""


class State(NamedTuple):
    """Everything that `update` changes; any pytree of arrays."""

    weights: jax.Array  # [D]
    bias: jax.Array  # []
    velocity: tuple[jax.Array, jax.Array]


def dataset(config: Config) -> data.Dataset:
    """Loads 569 examples of 30 features and two classes, split at random."""
    return data.load("breast_cancer", batch_size=config.batch_size)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    """Logistic regression, written out as the four functions that the engine needs."""

    def losses(parameters: tuple[jax.Array, jax.Array], batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        weights, bias = parameters
        logits = info.standardize(batch["inputs"]) @ weights + bias
        labels = batch["targets"].astype(jnp.float32)
        return jnp.logaddexp(0.0, logits) - labels * logits, logits  # negative log-likelihood [B], logits [B]

    def init(key: jax.Array, examples: dict[str, jax.Array]) -> State:
        parameters = jnp.zeros(info.shapes["inputs"]), jnp.zeros(())
        return State(*parameters, velocity=jax.tree.map(jnp.zeros_like, parameters))

    def update(state: State, batch: dict[str, jax.Array], key: jax.Array) -> tuple[State, Metrics]:
        # The key belongs to this step; store none in the state.
        parameters = state.weights, state.bias
        loss, gradients = jax.value_and_grad(lambda parameters: losses(parameters, batch)[0].mean())(parameters)
        velocity = jax.tree.map(lambda v, g: config.momentum * v + g, state.velocity, gradients)
        weights, bias = jax.tree.map(lambda p, v: p - config.learning_rate * v, parameters, velocity)
        return State(weights, bias, velocity), {"loss": loss}

    def evaluate(state: State, batch: dict[str, jax.Array], key: jax.Array) -> foldax.Evaluation:
        loss, logits = losses((state.weights, state.bias), batch)
        correct = (logits > 0) == (batch["targets"] == 1)
        # Metrics [B] become means over all examples; outputs [B, ...] go to `summarize` and `figures`.
        return foldax.Evaluation({"loss": loss, "accuracy": correct.astype(jnp.float32)}, {"logits": logits})

    def predict(state: State, inputs: jax.Array, key: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(info.standardize(inputs) @ state.weights + state.bias)

    return foldax.Learner(init, update, evaluate, predict)


experiment = foldax.Experiment(Config, learner, dataset)

if __name__ == "__main__":
    foldax.main(experiment)
