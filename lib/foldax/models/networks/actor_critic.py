"""Networks of agents: actor-critic networks, and the separate actors and critics of SAC and TD3."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from chex import ArrayTree
from flax import linen as nn
from jax import Array

from foldax.models.distributions import Categorical, Distribution, Joint, MultiCategorical, Normal, SquashedNormal
from foldax.models.layers import Activation, Dense, activation
from foldax.models.networks.mlp import MLP
from foldax.models.networks.multi_input import encode_observations
from foldax.models.networks.recurrent import CellKind, Recurrent


class ActorCriticOutput(NamedTuple):
    """Output of an actor-critic network for a batch of observations; a pytree.

    Attributes:
      distribution: over actions, with batch shape `[B]`: `models.Categorical` or `models.Normal`.
      value: estimates of the expected discounted return, float `[B]`.
    """

    distribution: Distribution
    value: Array


class ActorCritic(nn.Module):
    """Actor and critic as two MLPs that share nothing but an optional encoder: `[B, ...]` to `ActorCriticOutput`.

    Kernels are orthogonal; the small one of the policy's output makes all actions about equally probable at first
    (Andrychowicz et al., 2021).

    Attributes:
      num_actions: number of discrete actions, or dimensions of a continuous action; several numbers for an action of
        several parts.
      continuous: whether actions are continuous: a `Normal` whose standard deviations do not depend on observations.
        With several numbers of actions, False is a `MultiCategorical`, and a truth value for each part a `Joint`:
        `num_actions=(3, 2), continuous=(False, True)`.
      hidden: widths of the hidden layers of actor and critic.
      activation: a name in `ACTIVATIONS` or a function.
      encoder: network from `[B, ...]` to `[B, D]` that actor and critic share; None: observations are flattened.

    >>> import jax
    >>> model, observations = ActorCritic(num_actions=3, hidden=(8,)), jnp.zeros((5, 4))
    >>> output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), observations)
    >>> output.distribution.logits.shape, output.value.shape
    ((5, 3), (5,))
    """

    num_actions: Any
    continuous: Any = False
    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    encoder: nn.Module | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> ActorCriticOutput:
        """Applies the network to observations `[B, ...]`, which an encoder may take as a dict of arrays."""
        x = encode_observations(self.encoder, x, train)

        def mlp(kind: str, features: int, scale: float) -> Array:
            y = x
            for index, width in enumerate(self.hidden):
                y = activation(self.activation)(_dense(width, math.sqrt(2), f"{kind}_{index}")(y))
            # A small scale makes the first policy nearly uniform.
            return _dense(features, scale, f"{kind}_output")(y)

        outputs = mlp("actor", _num_outputs(self.num_actions), 0.01)
        distribution = _action_distribution(self, outputs, self.num_actions, self.continuous)
        return ActorCriticOutput(distribution, mlp("critic", 1, 1.0)[:, 0])


class RecurrentActorCritic(nn.Module):
    """Dense layers and a recurrent one, shared by actor and critic: `[B, T, ...]` to `ActorCriticOutput` `[B, T]`.

    It also returns the recurrent state after the last step, from which the sequence can continue.

    Attributes:
      num_actions: as in `ActorCritic`.
      continuous: as in `ActorCritic`.
      hidden: widths of the dense layers before the recurrent one.
      width: width of the recurrent layer.
      cell: "rnn", "lstm" or "gru".
      activation: a name in `ACTIVATIONS` or a function.
      encoder: network from `[B, ...]` to `[B, D]` that comes first; None: observations are flattened.

    >>> import jax
    >>> model, observations = RecurrentActorCritic(num_actions=3, hidden=(8,), width=4), jnp.zeros((5, 7, 2))
    >>> (output, memory), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), observations)
    >>> output.distribution.logits.shape, output.value.shape
    ((5, 7, 3), (5, 7))
    """

    num_actions: Any
    continuous: Any = False
    hidden: tuple[int, ...] = (64,)
    width: int = 64
    cell: CellKind = "lstm"
    activation: Activation = "tanh"
    encoder: nn.Module | None = None

    @nn.compact
    def __call__(
        self, x: Array, memory: ArrayTree | None = None, episode_starts: Array | None = None, *, train: bool = False
    ) -> tuple[ActorCriticOutput, ArrayTree]:
        """Applies the network to sequences.

        Args:
          x: observations `[B, T, ...]`.
          memory: recurrent state before the first step, from a call or `initial_memory`; None: the initial one.
          episode_starts: bool `[B, T]`, true at the first step of an episode, before which the recurrent state is
            reset; None: nowhere. The first column is ignored: the first step always starts from `memory`.
          train: whether the encoder runs in training mode.

        Returns:
          The outputs, `[B, T]`, and the recurrent state after the last step.
        """
        batch, length = x.shape[:2]
        x = jnp.asarray(x, jnp.float32).reshape(batch * length, *x.shape[2:])
        x = x.reshape(x.shape[0], -1) if self.encoder is None else self.encoder(x, train=train)
        for index, width in enumerate(self.hidden):
            x = activation(self.activation)(_dense(width, math.sqrt(2), f"hidden_{index}")(x))
        carry = self.initial_memory(batch) if memory is None else memory
        # Episodes are numbered as segments of the sequence; the first segment continues from `memory`.
        mask = None if episode_starts is None else 1 + jnp.cumsum(episode_starts.astype(jnp.int32), axis=1)
        recurrent = Recurrent(None, (self.width,), self.cell, name="recurrent")
        x, carry = recurrent(x.reshape(batch, length, -1), mask=mask, carry=carry, train=train)
        outputs = _dense(_num_outputs(self.num_actions), 0.01, "actor_output")(x)
        distribution = _action_distribution(self, outputs, self.num_actions, self.continuous)
        return ActorCriticOutput(distribution, _dense(1, 1.0, "critic_output")(x)[..., 0]), carry

    def initial_memory(self, batch_size: int) -> ArrayTree:
        """Recurrent state of `batch_size` sequences before their first step."""
        return Recurrent(None, (self.width,), self.cell, parent=None).initial_carry(batch_size)


def _dense(features: int, scale: float, name: str) -> nn.Module:
    return Dense(features, kernel_init=nn.initializers.orthogonal(scale), name=name)


def _num_outputs(num_actions: Any) -> int:
    return num_actions if isinstance(num_actions, int) else sum(map(_num_outputs, num_actions))


def _action_distribution(
    module: nn.Module, outputs: Array, num_actions: Any, continuous: Any, name: str = "log_std"
) -> Distribution:
    """Distribution with these logits or means `[..., A]`; standard deviations are parameters of the module."""
    parts = []
    if not isinstance(num_actions, int):
        ends = np.cumsum([_num_outputs(number) for number in num_actions])
        parts = jnp.split(outputs, ends[:-1], axis=-1)
    if isinstance(continuous, tuple):
        each = zip(parts, num_actions, continuous, strict=True)
        names = (f"{name}_{index}" for index in range(len(parts)))
        return Joint(tuple(_action_distribution(module, *part, name) for part, name in zip(each, names, strict=True)))
    if not continuous:
        return MultiCategorical(tuple(parts)) if parts else Categorical(outputs)
    # Initially 1, the same for all observations
    log_std = module.param(name, nn.initializers.zeros, (1, outputs.shape[-1]))
    return Normal(outputs, jnp.broadcast_to(log_std.reshape(*[1] * (outputs.ndim - 1), -1), outputs.shape))


class GaussianActor(nn.Module):
    """Stochastic policy of SAC (Haarnoja et al., 2018): an MLP from `[B, ...]` to a `SquashedNormal` `[B, A]`.

    Attributes:
      action_dim: A, dimensions of an action.
      hidden: widths of the hidden layers.
      activation: a name in `ACTIVATIONS` or a function.
      min_log_std: lower bound of the log standard deviations before tanh.
      max_log_std: upper bound.

    >>> import jax
    >>> model, observations = GaussianActor(action_dim=2, hidden=(8,)), jnp.zeros((5, 3))
    >>> policy = model.apply(model.init(jax.random.key(0), observations), observations)
    >>> policy.mode().shape
    (5, 2)
    """

    action_dim: int
    hidden: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"
    min_log_std: float = -5.0
    max_log_std: float = 2.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> SquashedNormal:
        """Applies the network to observations `[B, ...]`."""
        x = jnp.asarray(x, jnp.float32)
        mean, unbounded = jnp.split(MLP((*self.hidden, 2 * self.action_dim), self.activation)(x), 2, axis=-1)
        # Bounded by tanh: a clip would have no gradient outside of the bounds.
        log_std = self.min_log_std + 0.5 * (self.max_log_std - self.min_log_std) * (jnp.tanh(unbounded) + 1.0)
        return SquashedNormal(mean, log_std)


class DeterministicActor(nn.Module):
    """Deterministic policy of TD3 and DDPG: an MLP from `[B, ...]` to actions `[B, A]` in [-1, 1].

    Attributes:
      action_dim: A, dimensions of an action.
      hidden: widths of the hidden layers.
      activation: a name in `ACTIVATIONS` or a function.

    >>> import jax
    >>> model, observations = DeterministicActor(action_dim=2, hidden=(8,)), jnp.zeros((5, 3))
    >>> model.apply(model.init(jax.random.key(0), observations), observations).shape
    (5, 2)
    """

    action_dim: int
    hidden: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Applies the network to observations `[B, ...]`."""
        return jnp.tanh(MLP((*self.hidden, self.action_dim), self.activation)(jnp.asarray(x, jnp.float32)))


class TwinCritic(nn.Module):
    """Two independent Q-networks (Fujimoto et al., 2018): observations `[B, ...]` and actions `[B, A]` to `[B, 2]`.

    Attributes:
      hidden: widths of the hidden layers of each.
      activation: a name in `ACTIVATIONS` or a function.

    >>> import jax
    >>> model, inputs = TwinCritic(hidden=(8,)), (jnp.zeros((5, 3)), jnp.zeros((5, 2)))
    >>> model.apply(model.init(jax.random.key(0), *inputs), *inputs).shape
    (5, 2)
    """

    hidden: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, x: Array, actions: Array, *, train: bool = False) -> Array:
        """Applies both networks to observations `[B, ...]` and actions `[B, A]`."""
        x = jnp.asarray(x, jnp.float32)
        x = jnp.concatenate([x.reshape(x.shape[0], -1), actions], axis=-1)
        # One after the other: on a CPU, one product of stacked kernels is slower than two products.
        q_values = [MLP((*self.hidden, 1), self.activation, name=name)(x) for name in ("first", "second")]
        return jnp.concatenate(q_values, axis=-1)
