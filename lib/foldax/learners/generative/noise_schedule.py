"""Noise processes: how data turn into noise step by step, and how to come back; pure functions of arrays.

At time t, an integer from 0 to T, data x `[B, ...]` have become `signal[t] * x + noise[t] * e`, with e a standard
normal. At time 0 nothing has happened.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.errors import ConfigError

Prediction = Literal["epsilon", "v", "velocity", "sample"]


class Process(NamedTuple):
    """How much of the data, and how much noise, there is at each time.

    Attributes:
      signal: float32 `[T + 1]`, from 1 on.
      noise: float32 `[T + 1]`, from 0 on.
    """

    signal: np.ndarray
    noise: np.ndarray

    @property
    def steps(self) -> int:
        """T."""
        return len(self.signal) - 1


def cosine(steps: int = 1000) -> Process:
    """The cosine schedule of Nichol & Dhariwal (2021), whose steps add at most 0.999 of variance."""
    times = np.arange(steps + 1) / _checked(steps)
    share = np.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    return _of_variances(np.minimum(1 - share[1:] / share[:-1], 0.999))


def linear(steps: int = 1000) -> Process:
    """The linear schedule of Ho et al. (2020): variances from 1e-4 to 0.02 for 1,000 steps, and as much for others."""
    scale = 1000 / _checked(steps)
    return _of_variances(np.minimum(np.linspace(1e-4 * scale, 0.02 * scale, steps), 0.999))


def flow(steps: int = 1000) -> Process:
    """The straight path of flow matching (Lipman et al., 2023; Liu et al., 2023): a share t / T of noise."""
    times = np.arange(steps + 1) / _checked(steps)
    return Process((1 - times).astype(np.float32), times.astype(np.float32))


def perturbed(process: Process, x: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """Returns what data and noise, both `[B, ...]`, have become at times int `[B]`."""
    signal, scale = at(process, times, x.ndim)
    return signal * x + scale * noise


def target(process: Process, prediction: Prediction, x: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """Returns what a network is to predict `[B, ...]`.

    "epsilon" is the noise (Ho et al., 2020), "v" is `signal * noise - noise share * data` (Salimans & Ho, 2022),
    "velocity" is the noise minus the data (Liu et al., 2023), "sample" is the data.
    """
    data_share, noise_share = _shares(process, prediction, times, x.ndim)
    return data_share * x + noise_share * noise


def separated(
    process: Process, prediction: Prediction, noisy: jax.Array, outputs: jax.Array, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the data and the noise, both `[B, ...]`, that a network's outputs say are in `noisy`."""
    signal, scale = at(process, times, noisy.ndim)
    data_share, noise_share = _shares(process, prediction, times, noisy.ndim)
    inverse = jnp.reciprocal(signal * noise_share - scale * data_share)
    x = (noise_share * noisy - scale * outputs) * inverse
    return x, (signal * outputs - data_share * noisy) * inverse


def posterior(
    process: Process, x: jax.Array, noisy: jax.Array, times: jax.Array, earlier: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns mean `[B, ...]` and deviation `[B, 1, ...]` of what was at an earlier time, given data and what is now.

    Equations 6 and 7 of Ho et al. (2020), for any two times and any process.
    """
    (signal, scale), (signal_then, scale_then) = (at(process, t, x.ndim) for t in (times, earlier))
    kept = signal * jnp.reciprocal(signal_then)
    added = jnp.square(scale) - jnp.square(kept * scale_then)  # variance between the two times
    inverse = jnp.reciprocal(jnp.square(scale))
    mean = (kept * jnp.square(scale_then) * noisy + signal_then * added * x) * inverse
    return mean, scale_then * jnp.sqrt(jnp.maximum(added * inverse, 0.0))


def sample(
    denoise: Callable[[jax.Array, jax.Array], jax.Array],
    process: Process,
    prediction: Prediction,
    key: jax.Array,
    noise: jax.Array,
    *,
    steps: int = 50,
    eta: jax.Array | float = 0.0,
    clip: float | None = None,
) -> jax.Array:
    """Returns samples `[B, ...]`, made of noise in one compiled loop (DDIM: Song et al., 2021).

    Args:
      denoise: `(noisy [B, ...], times int [B]) -> outputs [B, ...]` of the kind of `prediction`.
      process: which the network was trained with.
      prediction: see `target`.
      key: of the noise that is added on the way.
      noise: standard normal `[B, ...]`, to begin with.
      steps: how many, at most T.
      eta: share of the posterior's deviation that is added anew: 0 is deterministic (Euler's steps, for a flow), and 1
        with all T steps is DDPM; may be traced.
      clip: largest absolute value of data.

    Raises:
      ConfigError: there are more steps than the process has, or none.
    """
    if not 1 <= steps <= process.steps:
        raise ConfigError(f"sampling steps: {steps} must be from 1 to the process's {process.steps}")
    times = np.round(np.linspace(process.steps, 0, steps + 1)).astype(np.int32)

    def step(noisy: jax.Array, now: Any) -> tuple[jax.Array, None]:
        index, *both = now
        time, earlier = (jnp.full(len(noisy), t) for t in both)
        x, rest = separated(process, prediction, noisy, denoise(noisy, time), time)
        if clip is not None:
            x = jnp.clip(x, -clip, clip)
            signal, scale = at(process, time, noisy.ndim)
            rest = (noisy - signal * x) * jnp.reciprocal(scale)
        signal, scale = at(process, earlier, noisy.ndim)
        deviation = eta * posterior(process, x, noisy, time, earlier)[1]
        kept = jnp.sqrt(jnp.maximum(jnp.square(scale) - jnp.square(deviation), 0.0))
        fresh = jax.random.normal(jax.random.fold_in(key, index), noisy.shape)
        return signal * x + kept * rest + deviation * fresh, None

    return jax.lax.scan(step, noise, (jnp.arange(steps), times[:-1], times[1:]))[0]


def at(process: Process, times: jax.Array, ndim: int) -> tuple[jax.Array, jax.Array]:
    """Returns signal and noise at times `[B]`, each `[B, 1, ...]` of `ndim` axes."""
    shape = (-1, *[1] * (ndim - 1))
    return jnp.asarray(process.signal)[times].reshape(shape), jnp.asarray(process.noise)[times].reshape(shape)


def check(process: Process, prediction: Prediction) -> None:
    """Checks that a network may predict this.

    Raises:
      ConfigError: there is no such prediction, or none of the data is left at the end, so that noise tells nothing.
    """
    if prediction not in ("epsilon", "v", "velocity", "sample"):
        raise ConfigError(f"prediction: {prediction!r} is none of 'epsilon', 'v', 'velocity' and 'sample'")
    if prediction == "epsilon" and not process.signal[-1] > 0:
        raise ConfigError("prediction: 'epsilon' does not tell the data where all is noise; take 'v' or 'velocity'")


def _shares(process: Process, prediction: Prediction, times: jax.Array, ndim: int) -> tuple[jax.Array, jax.Array]:
    """Returns the shares of data and of noise in what is predicted."""
    signal, scale = at(process, times, ndim)
    zero, one = jnp.zeros_like(signal), jnp.ones_like(signal)
    return {"epsilon": (zero, one), "v": (-scale, signal), "velocity": (-one, one), "sample": (one, zero)}[prediction]


def _of_variances(added: np.ndarray) -> Process:
    kept = np.concatenate([[1.0], np.cumprod(1 - added)])
    return Process(np.sqrt(kept).astype(np.float32), np.sqrt(1 - kept).astype(np.float32))


def _checked(steps: int) -> int:
    if steps < 1:
        raise ConfigError(f"steps: {steps} must be 1 or more")
    return steps
