"""The network of policy-gradient learners: what to do, and what to expect."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.models.activations import Activation, activation
from foldax.models.layers import Dense


class Opinion(NamedTuple):
    """What an `ActorCritic` says of observations.

    Attributes:
      policy: `[B, A]`, logits of A actions, or means of A numbers.
      log_std: `[B, A]`, log deviations of these numbers, or None for actions that are chosen among A.
      value: `[B]`, the discounted return that is expected.
    """

    policy: jax.Array
    log_std: jax.Array | None
    value: jax.Array


class ActorCritic(nn.Module):
    """Two networks of dense layers, which share nothing but an encoder if there is one: `[B, ...]` to `Opinion`.

    Orthogonal kernels, scaled so that all actions are about equally likely at first (Andrychowicz et al., 2021).

    Attributes:
      actions: A.
      continuous: whether actions are numbers; their deviations do not depend on what is observed.
      hidden: widths of the hidden layers of both.
      activation: a name of `ACTIVATIONS` or a function.
      encoder: any network `[B, ...]` to `[B, D]` that comes before both; None: observations are flattened.
    """

    actions: int
    continuous: bool = False
    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    encoder: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> Opinion:
        x = jnp.asarray(x, jnp.float32)
        x = x.reshape(x.shape[0], -1) if self.encoder is None else self.encoder(x, train=train)

        def dense(features: int, scale: float, name: str) -> Any:
            return Dense(features, kernel_init=nn.initializers.orthogonal(scale), name=name)

        def head(kind: str, features: int, scale: float) -> jax.Array:
            y = x
            for index, width in enumerate(self.hidden):
                y = activation(self.activation)(dense(width, math.sqrt(2), f"{kind}_{index}")(y))
            return dense(features, scale, f"{kind}_output")(y)

        policy, log_std = head("actor", self.actions, 0.01), None
        if self.continuous:
            free = self.param("log_std", nn.initializers.zeros, (1, self.actions))
            log_std = jnp.broadcast_to(free, policy.shape)
        return Opinion(policy, log_std, head("critic", 1, 1.0)[:, 0])
