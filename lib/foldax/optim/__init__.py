"""Optimizers from configs, learning-rate schedules with traced arguments, parameter groups by path; all on Optax."""

from foldax.optim.groups import layer_decay, parameter_groups
from foldax.optim.optimizer import Optimizer, build, build_schedule, decay_mask
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

# Optimizers from configs
__all__ = ["Optimizer", "build", "build_schedule"]
# Parameter groups
__all__ += ["parameter_groups", "layer_decay", "decay_mask"]
# Schedules with traced arguments
__all__ += ["warmup_constant", "warmup_cosine", "warmup_linear", "warmup_polynomial", "warmup_exponential"]
__all__ += ["warmup_inverse_sqrt", "warmup_piecewise", "warmup_restarts", "warmup_stable_decay", "one_cycle"]
