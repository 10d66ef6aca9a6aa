"""Noise schedules for diffusion and flow matching, prediction targets and the DDIM sampler; pure functions of arrays.

At time t, an integer from 0 to T, data x_0 `[B, ...]` have become

    x_t = alpha_t x_0 + sigma_t epsilon,    epsilon ~ N(0, I)

with alpha_0 = 1 and sigma_0 = 0. The alpha_t here is the square root of the cumulative product in Ho et al. (2020).
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from foldax.errors import ConfigError, check_positive

PredictionType = Literal["noise", "x0", "v", "flow"]
Data = Float[Array, " B *D"]
Times = Integer[Array, " B"]


class NoiseSchedule(NamedTuple):
    """Scale of the data and standard deviation of the noise at every time.

    Attributes:
      alpha: scale of the data, float32 `[T + 1]`, falling from 1.
      sigma: standard deviation of the noise, float32 `[T + 1]`, rising from 0.

    >>> schedule = NoiseSchedule(np.float32([1, 0.5, 0]), np.float32([0, 0.5, 1]))
    >>> schedule.steps
    2
    """

    alpha: Float[np.ndarray, " T+1"]
    sigma: Float[np.ndarray, " T+1"]

    @property
    def steps(self) -> int:
        """Number of steps from data to noise, T."""
        return len(self.alpha) - 1


def cosine(steps: int = 1000) -> NoiseSchedule:
    """Cosine schedule (Nichol & Dhariwal, 2021), with the variance added by a step clipped to 0.999.

    Args:
      steps: T, 1 or more.

    Raises:
      ConfigError: `steps` is below 1.

    >>> schedule = cosine(100)
    >>> bool(abs(schedule.alpha[50] ** 2 - 0.5) < 0.02)
    True
    """
    times = np.arange(steps + 1) / _check_steps(steps)
    # Nichol & Dhariwal, equation 17; the offset 0.008 makes the first steps add noticeable noise.
    alpha_bar = np.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    return _from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999))


def linear(steps: int = 1000) -> NoiseSchedule:
    """Linear schedule (Ho et al., 2020): variances from 1e-4 to 0.02 for 1,000 steps, scaled for other numbers.

    Args:
      steps: T, 1 or more.

    Raises:
      ConfigError: `steps` is below 1.

    >>> round(float(linear().sigma[1] ** 2), 6)
    0.0001
    """
    # The sum of the variances, and so the last alpha, hardly depends on the number of steps.
    scale = 1000 / _check_steps(steps)
    return _from_betas(np.minimum(np.linspace(1e-4 * scale, 0.02 * scale, steps), 0.999))


def flow(steps: int = 1000) -> NoiseSchedule:
    """Straight path of flow matching (Lipman et al., 2023; Liu et al., 2023): alpha_t = 1 - t / T, sigma_t = t / T.

    Args:
      steps: T, 1 or more.

    Raises:
      ConfigError: `steps` is below 1.

    >>> flow(4).sigma.tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    times = np.arange(steps + 1) / _check_steps(steps)
    return NoiseSchedule((1 - times).astype(np.float32), times.astype(np.float32))


def add_noise(schedule: NoiseSchedule, x: Data, noise: Data, times: Times) -> Data:
    """Computes x_t = alpha_t x_0 + sigma_t epsilon.

    Args:
      schedule: noise schedule.
      x: data x_0, `[B, ...]`.
      noise: standard normal epsilon, `[B, ...]`.
      times: int `[B]`, 0 to T.

    Returns:
      Noisy data x_t, `[B, ...]`.

    >>> add_noise(flow(4), jnp.ones((2, 1)), jnp.zeros((2, 1)), jnp.array([0, 3]))[:, 0].tolist()
    [1.0, 0.25]
    """
    chex.assert_equal_shape([x, noise])
    alpha, sigma = coefficients_at(schedule, times, x.ndim)
    return alpha * x + sigma * noise


def prediction_target(
    schedule: NoiseSchedule, prediction_type: PredictionType, x: Data, noise: Data, times: Times
) -> Data:
    """Computes the regression target of a denoising network.

    Args:
      schedule: noise schedule.
      prediction_type: "noise", epsilon (Ho et al., 2020); "x0", the data; "v", alpha_t epsilon - sigma_t x_0 (Salimans
        & Ho, 2022); or "flow", flow matching's velocity epsilon - x_0 (Liu et al., 2023).
      x: data x_0, `[B, ...]`.
      noise: standard normal epsilon, `[B, ...]`.
      times: int `[B]`.

    Returns:
      Target, `[B, ...]`.

    >>> x, noise, times = jnp.full((1, 1), 3.0), jnp.ones((1, 1)), jnp.array([2])
    >>> prediction_target(flow(4), "flow", x, noise, times).tolist()
    [[-2.0]]
    """
    chex.assert_equal_shape([x, noise])
    data_coefficient, noise_coefficient = _target_coefficients(schedule, prediction_type, times, x.ndim)
    return data_coefficient * x + noise_coefficient * noise


def predict_x0_and_noise(
    schedule: NoiseSchedule, prediction_type: PredictionType, noisy: Data, outputs: Data, times: Times
) -> tuple[Data, Data]:
    """Converts a network's outputs to estimates of the data and of the noise; inverts `prediction_target`.

    Args:
      schedule: noise schedule.
      prediction_type: see `prediction_target`.
      noisy: x_t, `[B, ...]`.
      outputs: of the network for x_t, `[B, ...]`.
      times: int `[B]`.

    Returns:
      Estimates of x_0 and epsilon, both `[B, ...]`.

    >>> x0, noise = predict_x0_and_noise(flow(4), "flow", jnp.ones((1, 1)), jnp.full((1, 1), -2.0), jnp.array([2]))
    >>> x0.tolist(), noise.tolist()
    ([[2.0]], [[0.0]])
    """
    chex.assert_equal_shape([noisy, outputs])
    alpha, sigma = coefficients_at(schedule, times, noisy.ndim)
    data_coefficient, noise_coefficient = _target_coefficients(schedule, prediction_type, times, noisy.ndim)
    # x_t and the target are two linear equations in (x_0, epsilon): Cramer's rule.
    inverse = jnp.reciprocal(alpha * noise_coefficient - sigma * data_coefficient)
    x0 = (noise_coefficient * noisy - sigma * outputs) * inverse
    return x0, (alpha * outputs - data_coefficient * noisy) * inverse


def posterior(
    schedule: NoiseSchedule, x: Data, noisy: Data, times: Times, earlier: Times
) -> tuple[Data, Float[Array, " B *ones"]]:
    """Computes the Gaussian q(x_s | x_t, x_0) for s < t (Ho et al., 2020, equations 6 and 7, for any two times).

    Args:
      schedule: noise schedule.
      x: x_0, `[B, ...]`.
      noisy: x_t, `[B, ...]`.
      times: t, int `[B]`.
      earlier: s, int `[B]`, below t.

    Returns:
      Mean `[B, ...]` and standard deviation `[B, 1, ...]`.

    >>> mean, std = posterior(flow(4), jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.array([2]), jnp.array([0]))
    >>> mean.tolist(), std.tolist()
    ([[1.0]], [[0.0]])
    """
    chex.assert_equal_shape([x, noisy])
    (alpha, sigma), (alpha_s, sigma_s) = (coefficients_at(schedule, t, x.ndim) for t in (times, earlier))
    # q(x_t | x_s) = N(alpha_ts x_s, variance_ts)
    alpha_ts = alpha * jnp.reciprocal(alpha_s)
    variance_ts = jnp.square(sigma) - jnp.square(alpha_ts * sigma_s)
    inverse = jnp.reciprocal(jnp.square(sigma))
    mean = (alpha_ts * jnp.square(sigma_s) * noisy + alpha_s * variance_ts * x) * inverse
    return mean, sigma_s * jnp.sqrt(jnp.maximum(variance_ts * inverse, 0.0))


def sample_ddim(
    denoise: Callable[[Array, Array], Array],
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    key: chex.PRNGKey,
    noise: Data,
    *,
    num_inference_steps: int = 50,
    eta: chex.Numeric = 0.0,
    clip_sample_range: float | None = None,
) -> Data:
    """Samples with DDIM (Song et al., 2021, equation 12) in one compiled loop.

    With `eta` 1 and all T steps it is the ancestral sampler of DDPM; with `eta` 0 and the `flow` schedule it is Euler's
    method.

    Args:
      denoise: `(noisy [B, ...], times int [B]) -> outputs [B, ...]`.
      schedule: the schedule that the network was trained with.
      prediction_type: see `prediction_target`.
      key: random key of the noise added on the way.
      noise: initial standard normal x_T, `[B, ...]`.
      num_inference_steps: number of steps, 1 to T, spaced evenly in time.
      eta: factor of the posterior's standard deviation, from 0 (deterministic) to 1; may be traced.
      clip_sample_range: largest absolute value of the predicted x_0; None: no clipping.

    Returns:
      Samples, `[B, ...]`.

    Raises:
      ConfigError: `num_inference_steps` is below 1 or above T.

    >>> denoise = lambda noisy, times: jnp.full_like(noisy, 0.5)  # predicts x_0 = 0.5 at any time
    >>> noise = jax.random.normal(jax.random.key(0), (2, 3))
    >>> sample_ddim(denoise, cosine(10), "x0", jax.random.key(1), noise, num_inference_steps=5)[0].tolist()
    [0.5, 0.5, 0.5]
    """
    check_num_inference_steps(schedule, num_inference_steps)
    # NumPy, not JAX: the times are constants of the compiled program.
    times = np.round(np.linspace(schedule.steps, 0, num_inference_steps + 1)).astype(np.int32)

    def step(noisy: jax.Array, scanned: tuple[jax.Array, Any, Any]) -> tuple[jax.Array, None]:
        index, *both_times = scanned
        time, earlier = (jnp.full(noisy.shape[0], t) for t in both_times)

        # 1. Predicted x_0 and epsilon; a clipped x_0 implies another epsilon.
        x0, epsilon = predict_x0_and_noise(schedule, prediction_type, noisy, denoise(noisy, time), time)
        if clip_sample_range is not None:
            x0 = jnp.clip(x0, -clip_sample_range, clip_sample_range)
            alpha, sigma = coefficients_at(schedule, time, noisy.ndim)
            epsilon = (noisy - alpha * x0) * jnp.reciprocal(sigma)

        # 2. "Direction pointing to x_t", and fresh noise
        alpha, sigma = coefficients_at(schedule, earlier, noisy.ndim)
        std = eta * posterior(schedule, x0, noisy, time, earlier)[1]
        direction = jnp.sqrt(jnp.maximum(jnp.square(sigma) - jnp.square(std), 0.0))
        fresh_noise = jax.random.normal(jax.random.fold_in(key, index), noisy.shape)
        return alpha * x0 + direction * epsilon + std * fresh_noise, None

    return jax.lax.scan(step, noise, (jnp.arange(num_inference_steps), times[:-1], times[1:]))[0]


def coefficients_at(
    schedule: NoiseSchedule, times: Times, ndim: int
) -> tuple[Float[Array, " B *ones"], Float[Array, " B *ones"]]:
    """Looks up alpha and sigma at times int `[B]`, each `[B, 1, ...]` with `ndim` axes.

    Args:
      schedule: alpha and sigma at times 0 to T.
      times: int `[B]`, each from 0 to T.
      ndim: number of axes of the data, so that the results broadcast against `[B, ...]`.

    >>> alpha, sigma = coefficients_at(flow(4), jnp.array([1, 2]), ndim=3)
    >>> alpha.shape, sigma[:, 0, 0].tolist()
    ((2, 1, 1), [0.25, 0.5])
    """
    chex.assert_rank(times, 1)
    chex.assert_type(times, int)
    shape = (-1, *[1] * (ndim - 1))
    return jnp.asarray(schedule.alpha)[times].reshape(shape), jnp.asarray(schedule.sigma)[times].reshape(shape)


def check_prediction_type(schedule: NoiseSchedule, prediction_type: str) -> None:
    """Checks that the prediction type exists and determines x_0 at every time of the schedule.

    Raises:
      ConfigError: the prediction type is unknown, or "noise" with a schedule whose last alpha is 0.

    >>> check_prediction_type(cosine(), "noise")
    """
    if prediction_type not in get_args(PredictionType):
        raise ConfigError(f"prediction_type: {prediction_type!r} is none of 'noise', 'x0', 'v' and 'flow'")
    if prediction_type == "noise" and not schedule.alpha[-1] > 0:
        raise ConfigError("prediction_type: 'noise' does not determine the data in pure noise; use 'v' or 'flow'")


def check_num_inference_steps(schedule: NoiseSchedule, num_inference_steps: int) -> None:
    """Checks that a sampler takes at least one step and at most as many as the noise schedule has.

    Raises:
      ConfigError: it does not.

    >>> check_num_inference_steps(cosine(100), 50)
    """
    if not 1 <= num_inference_steps <= schedule.steps:
        raise ConfigError(
            f"num_inference_steps: {num_inference_steps} must be from 1 to the noise schedule's {schedule.steps} steps"
        )


def _target_coefficients(
    schedule: NoiseSchedule, prediction_type: PredictionType, times: Array, ndim: int
) -> tuple[Array, Array]:
    """Coefficients of x_0 and of epsilon in the prediction target."""
    alpha, sigma = coefficients_at(schedule, times, ndim)
    # Every target is a linear combination of x_0 and epsilon.
    zero, one = jnp.zeros_like(alpha), jnp.ones_like(alpha)
    coefficients = {"noise": (zero, one), "x0": (one, zero), "v": (-sigma, alpha), "flow": (-one, one)}
    return coefficients[prediction_type]


def _from_betas(betas: np.ndarray) -> NoiseSchedule:
    # beta_t is the variance added by step t: alpha_bar_t = prod_s (1 - beta_s), and alpha_bar + sigma^2 = 1.
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    return NoiseSchedule(np.sqrt(alpha_bar).astype(np.float32), np.sqrt(1 - alpha_bar).astype(np.float32))


def _check_steps(steps: int) -> int:
    check_positive(steps=steps)
    return steps
