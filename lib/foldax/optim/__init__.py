"""Optimizers from config fields, schedules with traced numbers, groups of parameters by path: Optax does the work."""

from foldax.optim.groups import by_path, depth_decay
from foldax.optim.optimizer import Optimizer, build, decayed, schedule
from foldax.optim.schedules import (
    one_cycle,
    warmup_constant,
    warmup_cosine,
    warmup_exponential,
    warmup_inverse_sqrt,
    warmup_linear,
    warmup_piecewise,
    warmup_polynomial,
    warmup_restarts,
    warmup_stable_decay,
)

__all__ = [
    "Optimizer",
    "build",
    "by_path",
    "decayed",
    "depth_decay",
    "one_cycle",
    "schedule",
    "warmup_constant",
    "warmup_cosine",
    "warmup_exponential",
    "warmup_inverse_sqrt",
    "warmup_linear",
    "warmup_piecewise",
    "warmup_polynomial",
    "warmup_restarts",
    "warmup_stable_decay",
]
