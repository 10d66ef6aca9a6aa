"""An optimizer as a config: names choose what Optax builds, numbers are traced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import optax
from optax import contrib

from foldax.configuration import config
from foldax.errors import ConfigError
from foldax.optim import schedules
from foldax.parameter_paths import name_of


@config
class Optimizer:
    """How to descend a gradient; `build` makes it. Fields that are None are absent, or the optimizer's own default.

    A moving average of the parameters is the learner's: `learners.classifier(..., ema_decay=0.999)`.
    """

    name: Literal[
        "sgd",
        "momentum",
        "nesterov",
        "rmsprop",
        "adagrad",
        "adadelta",
        "adam",
        "adamw",
        "nadam",
        "nadamw",
        "adamax",
        "adamaxw",
        "amsgrad",
        "radam",
        "adabelief",
        "yogi",
        "adan",
        "lion",
        "lamb",
        "lars",
        "muon",
        "adafactor",
    ] = "adamw"
    """Which rule makes updates of gradients."""
    learning_rate: float = 1e-3
    """The highest rate of the schedule."""
    schedule: Literal[
        "constant",
        "linear",
        "cosine",
        "polynomial",
        "exponential",
        "piecewise",
        "inverse_sqrt",
        "stable_decay",
        "restarts",
        "one_cycle",
    ] = "constant"
    """How the rate moves over the run."""
    warmup: float | None = None
    """Share of the steps in which the rate first rises; None: 0 (inverse_sqrt 0.1, one_cycle 0.3)."""
    final: float | None = None
    """Last rate as a share of the highest; None: 0 (exponential 0.01, one_cycle 4e-6)."""
    power: float | None = None
    """Of the polynomial schedule; None: 2."""
    milestones: tuple[float, ...] | None = None
    """Shares of the steps at which the piecewise schedule falls; None: 0.5 0.75."""
    factor: float | None = None
    """Of the piecewise schedule at each milestone (None: 0.1), or of the peak at each restart (None: 1)."""
    cooldown: float | None = None
    """Last share of the steps, in which the stable_decay schedule falls; None: 0.2."""
    cycles: int | None = None
    """Number of times that the restarts schedule falls; None: 4."""
    growth: float | None = None
    """How many times as long each cycle of the restarts schedule is as the one before; None: 1."""
    weight_decay: float | None = None
    """Pulls kernels and embeddings to zero; biases and norms are left alone."""
    momentum: float | None = None
    """Weight of the past in the mean of updates (momentum, nesterov, rmsprop, lars, muon, adafactor)."""
    beta1: float | None = None
    """Weight of the past in the mean of gradients (the Adam family, adan, lion, lamb)."""
    beta2: float | None = None
    """Weight of the past in the mean of squared gradients (those, and rmsprop and adadelta); in lion, of updates."""
    epsilon: float | None = None
    """Keeps denominators away from zero."""
    clip_norm: float | None = None
    """Largest norm of all gradients together; longer ones are shortened to it."""
    clip_value: float | None = None
    """Largest absolute value of a gradient's entry; applied before clip_norm."""
    accumulate: int = 1
    """Number of batches whose gradients are averaged before the parameters move."""

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                # Inside a traced program the value is not known; it was checked when the config was made.
                if isinstance(one, (int, float)) and not least <= one <= most:
                    raise ConfigError(f"Optimizer.{name}: {one} is out of range; it must be {_range(least, most)}")


_RANGES = {
    "learning_rate": (0.0, float("inf")),
    **dict.fromkeys(("warmup", "milestones", "cooldown", "momentum", "beta1", "beta2"), (0.0, 1.0)),
    **dict.fromkeys(("final", "power", "factor", "growth"), (0.0, float("inf"))),
    **dict.fromkeys(("weight_decay", "epsilon", "clip_norm", "clip_value"), (0.0, float("inf"))),
    **dict.fromkeys(("cycles", "accumulate"), (1, float("inf"))),
}


def _range(least: float, most: float) -> str:
    return f"at least {least:g}" if most == float("inf") else f"between {least:g} and {most:g}"


def build(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer that a config describes; its floats may be traced.

    In order: gradients are clipped by value, then by norm; the rule makes an update of them; the schedule scales it.
    Weight decay is decoupled from the gradient, as published, in adamw, nadamw, adamaxw, adan, lion, lamb, lars, muon
    and adafactor; the other rules add it to the clipped gradient (the gradient of an L2 penalty, as in PyTorch).
    Muon is for matrices: all else, kernels of convolutions and stacked layers too, takes Adam without decay.

    Args:
      config: names and numbers.
      steps: number of updates of the run; the schedule is as long. With `accumulate`, a step of the schedule is
        one of the parameters, which `accumulate` updates make.

    Raises:
      ConfigError: a field is given that the optimizer, or the schedule, has not.
    """
    rule = RULES[config.name]
    numbers = _given(config, rule.fields, ("momentum", "beta1", "beta2", "epsilon"), f"the optimizer {config.name!r}")
    parts = []
    if config.clip_value is not None:
        parts.append(optax.clip(config.clip_value))
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if rule.decay is not None:
        decay = 0.0 if config.weight_decay is None else config.weight_decay
        numbers |= {rule.decay: decay, **dict.fromkeys(rule.masks, decayed)}
    elif config.weight_decay is not None:
        parts.append(optax.add_decayed_weights(config.weight_decay, decayed))
    parts.append(rule.make(schedule(config, max(steps // config.accumulate, 1)), **numbers))
    made = optax.chain(*parts) if len(parts) > 1 else parts[0]
    return made if config.accumulate == 1 else optax.MultiSteps(made, config.accumulate).gradient_transformation()


def schedule(config: Optimizer, steps: int) -> Any:
    """Returns `step -> rate` of a config, or the rate itself where it never changes.

    Raises:
      ConfigError: a field is given that the schedule has not.
    """
    make = SCHEDULES[config.schedule]
    its_own = {name: name for name in inspect.signature(make).parameters}
    numbers = _given(config, its_own, _SCHEDULED, f"the schedule {config.schedule!r}")
    if config.schedule == "constant" and not numbers:
        return config.learning_rate
    return make(config.learning_rate, steps, **numbers)


def decayed(params: Any) -> Any:
    """Returns True for the leaves that weight decay acts on: rank 2 or more, and no bias nor scale by name.

    These are kernels and embeddings, as in nanoGPT. Names count because layers that are stacked for a scan have
    biases and norms of rank 2.
    """

    def of_kernel(path: Any, leaf: jax.Array) -> bool:
        name = name_of(path[-1:]) if path else ""
        return leaf.ndim >= 2 and not name.endswith(("bias", "scale"))

    return jax.tree_util.tree_map_with_path(of_kernel, params)


class Rule(NamedTuple):
    """A function of Optax, and what it calls our fields.

    Attributes:
      make: `(learning_rate, **numbers) -> GradientTransformation`.
      fields: names of its arguments by names of our fields.
      decay: name of its weight decay; None: it has none, and the decay is added to the gradient.
      masks: names of its arguments that say which leaves.
    """

    make: Callable[..., optax.GradientTransformation]
    fields: Mapping[str, str] = {}
    decay: str | None = None
    masks: tuple[str, ...] = ("mask",)


_MOMENTUM = {"momentum": "momentum"}
_BETAS = {"beta1": "b1", "beta2": "b2"}
_ADAM = {**_BETAS, "epsilon": "eps"}

RULES: dict[str, Rule] = {
    "sgd": Rule(optax.sgd),
    "momentum": Rule(partial(optax.sgd, momentum=0.9), _MOMENTUM),
    "nesterov": Rule(partial(optax.sgd, momentum=0.9, nesterov=True), _MOMENTUM),
    "rmsprop": Rule(optax.rmsprop, {**_MOMENTUM, "beta2": "decay", "epsilon": "eps"}),
    "adagrad": Rule(optax.adagrad, {"epsilon": "eps"}),
    "adadelta": Rule(optax.adadelta, {"beta2": "rho", "epsilon": "eps"}),
    "adam": Rule(optax.adam, _ADAM),
    "adamw": Rule(optax.adamw, _ADAM, "weight_decay"),
    "nadam": Rule(optax.nadam, _ADAM),
    "nadamw": Rule(optax.nadamw, _ADAM, "weight_decay"),
    "adamax": Rule(optax.adamax, _ADAM),
    "adamaxw": Rule(optax.adamaxw, _ADAM, "weight_decay"),
    "amsgrad": Rule(optax.amsgrad, _ADAM),
    "radam": Rule(optax.radam, _ADAM),
    "adabelief": Rule(optax.adabelief, _ADAM),
    "yogi": Rule(optax.yogi, _ADAM),
    "adan": Rule(optax.adan, _ADAM, "weight_decay"),
    "lion": Rule(optax.lion, _BETAS, "weight_decay"),
    "lamb": Rule(optax.lamb, _ADAM, "weight_decay"),
    "lars": Rule(
        optax.lars, {**_MOMENTUM, "epsilon": "eps"}, "weight_decay", ("weight_decay_mask", "trust_ratio_mask")
    ),
    "muon": Rule(
        contrib.muon,
        {"momentum": "beta", "beta1": "adam_b1", "beta2": "adam_b2", "epsilon": "eps"},
        "weight_decay",
        ("weight_decay_mask",),
    ),
    "adafactor": Rule(optax.adafactor, {**_MOMENTUM, "epsilon": "eps"}, "weight_decay_rate", ("weight_decay_mask",)),
}
"""Their defaults are Optax's, but for momentum 0.9."""

SCHEDULES: dict[str, Callable[..., schedules.Schedule]] = {
    "constant": schedules.warmup_constant,
    "linear": schedules.warmup_linear,
    "cosine": schedules.warmup_cosine,
    "polynomial": schedules.warmup_polynomial,
    "exponential": schedules.warmup_exponential,
    "piecewise": schedules.warmup_piecewise,
    "inverse_sqrt": schedules.warmup_inverse_sqrt,
    "stable_decay": schedules.warmup_stable_decay,
    "restarts": schedules.warmup_restarts,
    "one_cycle": schedules.one_cycle,
}
_SCHEDULED = ("warmup", "final", "power", "milestones", "factor", "cooldown", "cycles", "growth")


def _given(config: Optimizer, names: Mapping[str, str], fields: tuple[str, ...], where: str) -> dict[str, Any]:
    """Returns the fields that are not None, under the names that they have there.

    Raises:
      ConfigError: one has none there, so that it would be ignored.
    """
    given = {field: getattr(config, field) for field in fields if getattr(config, field) is not None}
    for field in given.keys() - names.keys():
        there = ", ".join(sorted(names.keys() & set(fields))) or "none of its own"
        raise ConfigError(f"Optimizer.{field}: {where} has no such number (it has: {there}); leave it None")
    return {names[field]: value for field, value in given.items()}
