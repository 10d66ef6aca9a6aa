"""Optimizers as configs: a name chooses the Optax optimizer, floats may be traced, so that sweeps share a program."""

import contextlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import optax
from chex import Numeric
from optax import contrib

from foldax.configuration import config
from foldax.errors import ConfigError
from foldax.optim import schedules
from foldax.parameter_paths import path_name


@config
class Optimizer:
    """Config of an optimizer and its learning-rate schedule, to be nested in an experiment's config; see `build`.

    Fields that are None take the default of the optimizer or schedule, or turn the feature off. A moving average of the
    parameters belongs to the learner: `learners.classifier(..., ema_decay=0.999)`.

    Raises:
      ConfigError: a field is out of range.

    >>> Optimizer(name="sgd", learning_rate=0.1, schedule="cosine", warmup_fraction=0.05).schedule
    'cosine'
    >>> Optimizer(warmup_fraction=2.0)
    Traceback (most recent call last):
    foldax.errors.ConfigError: Optimizer.warmup_fraction: 2.0 is out of range; it must be between 0 and 1
    """

    # fmt: off
    name: Literal[
        "sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adadelta", "adam", "adamw", "nadam", "nadamw", "adamax",
        "adamaxw", "amsgrad", "radam", "adabelief", "yogi", "adan", "lion", "lamb", "lars", "muon", "adafactor",
    ] = "adamw"
    # fmt: on
    """Update rule."""
    learning_rate: float = 1e-3
    """Peak of the learning-rate schedule."""
    # fmt: off
    schedule: Literal[
        "constant", "linear", "cosine", "polynomial", "exponential", "piecewise", "inverse_sqrt", "stable_decay",
        "restarts", "one_cycle",
    ] = "constant"
    # fmt: on
    """Shape of the learning-rate schedule over the run."""
    warmup_fraction: float | None = None
    """Fraction of the steps over which the rate first rises; None: 0 (inverse_sqrt 0.1, one_cycle 0.3)."""
    final_fraction: float | None = None
    """Last rate as a fraction of the peak; None: 0 (exponential 0.01, one_cycle 4e-6)."""
    power: float | None = None
    """Exponent of the polynomial schedule; None: 2."""
    milestones: tuple[float, ...] | None = None
    """Fractions of the steps at which the piecewise schedule drops; None: 0.5 0.75."""
    factor: float | None = None
    """Factor of the rate at each milestone of piecewise (None: 0.1), or of the peak at each restart (None: 1)."""
    cooldown_fraction: float | None = None
    """Fraction of the steps over which the stable_decay schedule finally falls; None: 0.2."""
    num_cycles: int | None = None
    """Number of cosine cycles of the restarts schedule; None: 4."""
    cycle_growth: float | None = None
    """Length of each cycle of the restarts schedule, as a multiple of the cycle before; None: 1."""
    weight_decay: float | None = None
    """Weight decay of kernels and embeddings; biases and norms do not decay."""
    momentum: float | None = None
    """Decay of the moving average of updates (momentum, nesterov, rmsprop, lars, muon, adafactor)."""
    beta1: float | None = None
    """Decay of the moving average of gradients (the Adam family, adan, lion, lamb)."""
    beta2: float | None = None
    """Decay of the moving average of squared gradients (these, rmsprop and adadelta); in lion, of gradients."""
    epsilon: float | None = None
    """Added to denominators for numerical stability."""
    clip_norm: float | None = None
    """Maximum global L2 norm of the gradients; larger ones are rescaled to it."""
    clip_value: float | None = None
    """Maximum absolute value of each entry of a gradient; applied before clip_norm."""
    mu_dtype: Literal["float32", "bfloat16"] | None = None
    """Type in which the moving average of gradients or updates is stored; None: float32, that of the parameters."""
    accumulate_steps: int = 1
    """Number of batches whose gradients are averaged for one update of the parameters."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                # A traced value is unknown; it was checked when the config was created.
                if isinstance(number, (int, float)) and not low <= number <= high:
                    allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
                    raise ConfigError(f"Optimizer.{name}: {number} is out of range; it must be {allowed}")


# Closed ranges of the fields, checked when a config is created.
_FRACTIONS = ("warmup_fraction", "milestones", "cooldown_fraction", "momentum", "beta1", "beta2")
_RANGES = dict.fromkeys(_FRACTIONS, (0.0, 1.0)) | dict.fromkeys(("num_cycles", "accumulate_steps"), (1, math.inf))
_RANGES |= dict.fromkeys(("learning_rate", "final_fraction", "power", "factor", "cycle_growth"), (0.0, math.inf))
_RANGES |= dict.fromkeys(("weight_decay", "epsilon", "clip_norm", "clip_value"), (0.0, math.inf))


_builds: ContextVar[list[tuple[Optimizer, int]] | None] = ContextVar("builds", default=None)


@contextlib.contextmanager
def record_builds() -> Iterator[list[tuple[Optimizer, int]]]:
    """Yields a list to which each call of `build` in its block adds its config and its number of steps.

    >>> with record_builds() as builds:
    ...     optimizer = build(Optimizer(name="sgd"), steps=10)
    >>> builds[0][1]
    10
    """
    builds: list[tuple[Optimizer, int]] = []
    token = _builds.set(builds)
    try:
        yield builds
    finally:
        _builds.reset(token)


def build(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """Builds the Optax optimizer that a config describes.

    Gradients are clipped by value, then by norm; the rule turns them into an update; the schedule scales it. Weight
    decay is decoupled from the gradient, as published, in adamw, nadamw, adamaxw, adan, lion, lamb, lars, muon and
    adafactor (there times the rate too); the other rules add it to the clipped gradient (the gradient of an L2 penalty,
    as in PyTorch). Muon updates hidden matrices; all other parameters take Adam without decay: embeddings, the output
    layer ("output", "..._output", else the last "Dense_N" of the network), kernels of convolutions and stacked layers.

    Args:
      config: its floats may be traced.
      steps: number of calls of the optimizer in the run, and length of the schedule: the updates, times the gradient
        steps in each (`num_epochs * num_minibatches` of PPO, `discriminator_steps` of a GAN). With `accumulate_steps`,
        one step of the schedule takes `accumulate_steps` calls.

    Raises:
      ConfigError: a field is set that the optimizer or the schedule does not have.

    >>> import jax.numpy as jnp
    >>> optimizer = build(Optimizer(name="sgd", learning_rate=0.5, clip_norm=1.0), steps=10)
    >>> params = jnp.zeros(2)
    >>> updates, _ = optimizer.update(jnp.array([30.0, 40.0]), optimizer.init(params), params)
    >>> updates.round(3).tolist()
    [-0.30000001192092896, -0.4000000059604645]
    """
    if (builds := _builds.get()) is not None:
        builds.append((config, steps))
    rule = RULES[config.name]
    hyperparameters = ("momentum", "beta1", "beta2", "epsilon", "mu_dtype")
    arguments = _arguments(config, rule.fields, hyperparameters, f"the optimizer {config.name!r}")
    parts = []
    # 1. Clipping
    if config.clip_value is not None:
        parts.append(optax.clip(config.clip_value))
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    # 2. Weight decay: by the rule if it decouples it, else added to the gradient.
    if rule.weight_decay is not None:
        decay = 0.0 if config.weight_decay is None else config.weight_decay
        arguments |= {rule.weight_decay: decay, **dict.fromkeys(rule.masks, decay_mask)}
    elif config.weight_decay is not None:
        parts.append(optax.add_decayed_weights(config.weight_decay, decay_mask))
    # 3. Update rule, scaled by the schedule
    parts.append(rule.factory(build_schedule(config, max(steps // config.accumulate_steps, 1)), **arguments))
    optimizer = optax.chain(*parts) if len(parts) > 1 else parts[0]
    # 4. Accumulation over several updates
    if config.accumulate_steps == 1:
        return optimizer
    return optax.MultiSteps(optimizer, config.accumulate_steps).gradient_transformation()


def build_schedule(config: Optimizer, steps: int) -> schedules.Schedule | Numeric:
    """Builds `step -> learning rate` of a config; a rate that never changes is returned as it is.

    Raises:
      ConfigError: a field is set that the schedule does not have.

    >>> rate = build_schedule(Optimizer(learning_rate=0.1, schedule="linear", final_fraction=0.5), steps=10)
    >>> [round(float(rate(step)), 3) for step in (0, 5, 10)]
    [0.1, 0.075, 0.05]
    """
    factory = SCHEDULES[config.schedule]
    names = {name: name for name in inspect.signature(factory).parameters}
    arguments = _arguments(config, names, _SCHEDULE_FIELDS, f"the schedule {config.schedule!r}")
    # A number instead of a schedule spares the optimizer a step counter.
    if config.schedule == "constant" and not arguments:
        return config.learning_rate
    return factory(config.learning_rate, steps, **arguments)


def decay_mask(params: optax.Params) -> optax.Params:
    """Mask of the leaves that weight decay and penalties act on: rank 2 or more, and by name no bias, scale or token.

    These are kernels and embeddings, as in nanoGPT. Names count because layers that are stacked for a scan have biases
    and norms of rank 2. Standard deviations of noisy layers ("kernel_std") and the tokens of Transformers
    ("class_token", "mask_token") do not decay either.

    >>> import jax.numpy as jnp
    >>> decay_mask({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': False, 'kernel': True}
    """
    return jax.tree_util.tree_map_with_path(_is_kernel, params)


def _is_kernel(path: Sequence[Any], leaf: jax.Array) -> bool:
    name = path_name(path[-1:]) if path else ""
    return leaf.ndim >= 2 and not name.endswith(("bias", "scale", "_std", "_token"))


def _hidden_matrices(params: optax.Params) -> optax.Params:
    """Gives Muon its dimension numbers for hidden matrices, and None for the parameters of Adam."""

    def is_absent(node: Any) -> bool:
        # Taken out by `frozen`, or by Muon itself, which asks for its own part of the parameters again.
        return node is None or isinstance(node, optax.MaskedNode)

    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_absent)]
    modules = {path.split("/")[0] for path in paths}
    outputs = {module for module in modules if module == "output" or module.endswith("_output")}
    dense = sorted((int(module[6:]), module) for module in modules if re.fullmatch(r"Dense_\d+", module))
    outputs = outputs or {module for _, module in dense[-1:]}

    def dimension_numbers(path: Sequence[Any], leaf: Any) -> contrib.MuonDimensionNumbers | None:
        if is_absent(leaf) or leaf.ndim != 2 or not _is_kernel(path, leaf):
            return None
        name = path_name(path)
        is_hidden = not name.endswith("embedding") and name.split("/")[0] not in outputs
        return contrib.MuonDimensionNumbers() if is_hidden else None

    return jax.tree_util.tree_map_with_path(dimension_numbers, params, is_leaf=is_absent)


def _adafactor(
    learning_rate: schedules.Schedule | Numeric, *, weight_decay: Numeric = 0.0, **arguments: Any
) -> optax.GradientTransformation:
    """Adafactor whose weight decay is times the learning rate, as in the other rules; Optax's is not."""
    decay: Any = 0.0
    if not isinstance(weight_decay, (int, float)) or weight_decay:
        rate = learning_rate
        decay = (lambda count: weight_decay * rate(count)) if callable(rate) else weight_decay * rate
    return optax.adafactor(learning_rate, weight_decay_rate=decay, **arguments)


class Rule(NamedTuple):
    """An Optax optimizer, with the names of its arguments.

    Attributes:
      factory: `(learning_rate, **arguments) -> GradientTransformation`.
      fields: names of its arguments by fields of `Optimizer`.
      weight_decay: name of its weight decay argument; None: it has none, and the decay is added to the gradient.
      masks: names of the arguments that select the decayed leaves.
    """

    factory: Callable[..., optax.GradientTransformation]
    fields: Mapping[str, str] = {}
    weight_decay: str | None = None
    masks: tuple[str, ...] = ("mask",)


# Fields of `Optimizer` and the arguments of Optax that they set.
_MOMENTUM = {"momentum": "momentum"}
_SGD = {**_MOMENTUM, "mu_dtype": "accumulator_dtype"}
_MOMENTUM_AND_EPSILON = {**_MOMENTUM, "epsilon": "eps"}
_ADAFACTOR = {**_MOMENTUM_AND_EPSILON, "mu_dtype": "dtype_momentum"}
_BETAS = {"beta1": "b1", "beta2": "b2"}
_ADAM = {**_BETAS, "epsilon": "eps"}
_MU_DTYPE = {"mu_dtype": "mu_dtype"}
_MUON = {"momentum": "beta", "beta1": "adam_b1", "beta2": "adam_b2", "epsilon": "eps", **_MU_DTYPE}

RULES: dict[str, Rule] = {
    "sgd": Rule(optax.sgd),
    "momentum": Rule(partial(optax.sgd, momentum=0.9), _SGD),
    "nesterov": Rule(partial(optax.sgd, momentum=0.9, nesterov=True), _SGD),
    "rmsprop": Rule(optax.rmsprop, {**_MOMENTUM_AND_EPSILON, "beta2": "decay"}),
    "adagrad": Rule(optax.adagrad, {"epsilon": "eps"}),
    "adadelta": Rule(optax.adadelta, {"beta2": "rho", "epsilon": "eps"}),
    "adam": Rule(optax.adam, _ADAM | _MU_DTYPE),
    "adamw": Rule(optax.adamw, _ADAM | _MU_DTYPE, "weight_decay"),
    "nadam": Rule(optax.nadam, _ADAM | _MU_DTYPE),
    "nadamw": Rule(optax.nadamw, _ADAM | _MU_DTYPE, "weight_decay"),
    "adamax": Rule(optax.adamax, _ADAM),
    "adamaxw": Rule(optax.adamaxw, _ADAM, "weight_decay"),
    "amsgrad": Rule(optax.amsgrad, _ADAM | _MU_DTYPE),
    "radam": Rule(optax.radam, _ADAM),
    "adabelief": Rule(optax.adabelief, _ADAM),
    "yogi": Rule(optax.yogi, _ADAM),
    "adan": Rule(optax.adan, _ADAM, "weight_decay"),
    "lion": Rule(optax.lion, _BETAS | _MU_DTYPE, "weight_decay"),
    "lamb": Rule(optax.lamb, _ADAM, "weight_decay"),
    "lars": Rule(optax.lars, _MOMENTUM_AND_EPSILON, "weight_decay", ("weight_decay_mask", "trust_ratio_mask")),
    "muon": Rule(
        partial(contrib.muon, muon_weight_dimension_numbers=_hidden_matrices),
        _MUON,
        "weight_decay",
        ("weight_decay_mask",),
    ),
    "adafactor": Rule(
        _adafactor, _MOMENTUM_AND_EPSILON | {"mu_dtype": "dtype_momentum"}, "weight_decay", ("weight_decay_mask",)
    ),
}
"""Update rules by name, with Optax's defaults but for momentum, 0.9."""

_SCHEDULES = [schedules.warmup_constant, schedules.warmup_linear, schedules.warmup_cosine, schedules.warmup_polynomial]
_SCHEDULES += [schedules.warmup_exponential, schedules.warmup_piecewise, schedules.warmup_inverse_sqrt]
_SCHEDULES += [schedules.warmup_stable_decay, schedules.warmup_restarts, schedules.one_cycle]
SCHEDULES: dict[str, Callable[..., schedules.Schedule]] = {f.__name__.removeprefix("warmup_"): f for f in _SCHEDULES}
_SCHEDULE_FIELDS: tuple[str, ...] = ("warmup_fraction", "final_fraction", "cooldown_fraction", "milestones")
_SCHEDULE_FIELDS += ("power", "factor", "num_cycles", "cycle_growth")


def _arguments(config: Optimizer, names: Mapping[str, str], fields: tuple[str, ...], where: str) -> dict[str, Any]:
    """Collects those of `fields` that are set, by the names that `where` has for them.

    Raises:
      ConfigError: a field is set that has no name there, and would be ignored.
    """
    values = {field: getattr(config, field) for field in fields if getattr(config, field) is not None}
    for field in values.keys() - names.keys():
        allowed = ", ".join(sorted(names.keys() & set(fields))) or "none"
        raise ConfigError(f"Optimizer.{field}: {where} has no such field (its own fields: {allowed}); leave it None")
    return {names[field]: value for field, value in values.items()}
