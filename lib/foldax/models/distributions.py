"""Distributions over actions, as pytrees: batches of independent distributions with axis `[B]` first."""

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from foldax.errors import ConfigError

ILLEGAL = -1e9  # logit and value of an illegal action: its probability is 0 in float32; -inf would make gradients NaN


@runtime_checkable
class Distribution(Protocol):
    """Distribution over actions, as policy-gradient losses use it; a pytree of arrays with leading axis `[B]`.

    An action is an array, or a tuple of arrays.
    """

    def sample(self, key: chex.PRNGKey) -> Any:
        """Draws actions `[B, ...]`."""
        ...

    def mode(self) -> Any:
        """Most probable actions `[B, ...]`."""
        ...

    def log_prob(self, actions: Any) -> Float[Array, "*B"]:
        """Log-probabilities, or log-densities, of actions `[B, ...]`, in nats `[B]`."""
        ...

    def entropy(self) -> Float[Array, "*B"]:
        """Entropies in nats `[B]`."""
        ...


class Categorical(NamedTuple):
    """Categorical distribution over A discrete actions.

    Attributes:
      logits: unnormalised log-probabilities, float `[B, A]`; -inf excludes an action.

    >>> distribution = Categorical(jnp.log(jnp.array([[0.25, 0.75]])))
    >>> distribution.mode()
    Array([1], dtype=int32)
    >>> print(jnp.exp(distribution.log_prob(jnp.array([0]))))
    [0.25]
    """

    logits: Float[Array, "*B A"]

    def sample(self, key: chex.PRNGKey) -> Integer[Array, "*B"]:
        """Draws one action for each distribution, int32 `[B]`."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> Integer[Array, "*B"]:
        """Most probable actions, int32 `[B]`."""
        return self.logits.argmax(axis=-1).astype(jnp.int32)

    def log_prob(self, actions: Integer[Array, "*B"]) -> Float[Array, "*B"]:
        """Log-probabilities of actions int `[B]`, in nats `[B]`."""
        chex.assert_rank(self.logits, actions.ndim + 1)
        selected = jax.nn.one_hot(actions, self.logits.shape[-1], dtype=bool)
        # Selected, not multiplied: 0 times the -inf of an excluded action is NaN.
        return jnp.where(selected, jax.nn.log_softmax(self.logits), 0.0).sum(axis=-1)

    def entropy(self) -> Float[Array, "*B"]:
        """Entropies in nats `[B]`, between 0 and log A."""
        log_probs = jax.nn.log_softmax(self.logits)
        # p log p is 0 at p = 0; without -inf its gradient is finite.
        return -(jnp.exp(log_probs) * jnp.where(jnp.isneginf(log_probs), 0.0, log_probs)).sum(axis=-1)


class Normal(NamedTuple):
    """Normal distribution over A continuous action dimensions, with diagonal covariance.

    Attributes:
      mean: float `[B, A]`.
      log_std: log standard deviations, float `[B, A]`.

    >>> distribution = Normal(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    >>> distribution.mode().shape
    (1, 2)
    >>> print(distribution.log_prob(jnp.zeros((1, 2))).round(3))  # -log(2 pi)
    [-1.838]
    """

    mean: Float[Array, "*B A"]
    log_std: Float[Array, "*B A"]

    def sample(self, key: chex.PRNGKey) -> Float[Array, "*B A"]:
        """Draws one action for each distribution, `[B, A]`."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def mode(self) -> Float[Array, "*B A"]:
        """Most probable actions `[B, A]`, which are the means."""
        return self.mean

    def log_prob(self, actions: Float[Array, "*B A"]) -> Float[Array, "*B"]:
        """Log-densities of actions `[B, A]`, in nats `[B]`."""
        chex.assert_equal_shape([actions, self.mean])
        standardized = (actions - self.mean) * jnp.exp(-self.log_std)
        return -(0.5 * jnp.square(standardized) + self.log_std + 0.5 * math.log(2 * math.pi)).sum(axis=-1)

    def entropy(self) -> Float[Array, "*B"]:
        """Differential entropies in nats `[B]`."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(axis=-1)


class SquashedNormal(NamedTuple):
    """Normal distribution whose samples pass through tanh into (-1, 1) (Haarnoja et al., 2018, appendix C).

    Its entropy has no closed form; the mean of `-log_probs` of its samples estimates it.

    Attributes:
      mean: of the normal distribution before tanh, float `[B, A]`.
      log_std: its log standard deviations, float `[B, A]`.

    >>> distribution = SquashedNormal(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    >>> actions, log_probs = distribution.sample_and_log_prob(jax.random.key(0))
    >>> actions.shape, log_probs.shape
    ((1, 2), (1,))
    """

    mean: Float[Array, "*B A"]
    log_std: Float[Array, "*B A"]

    def sample(self, key: chex.PRNGKey) -> Float[Array, "*B A"]:
        """Draws one action for each distribution, `[B, A]`."""
        return jnp.tanh(Normal(self.mean, self.log_std).sample(key))

    def sample_and_log_prob(self, key: chex.PRNGKey) -> tuple[Float[Array, "*B A"], Float[Array, "*B"]]:
        """Draws actions `[B, A]` with their log-densities in nats `[B]`.

        Both come from the sample before tanh: near -1 and 1 its inverse, and with it `log_prob`, is inexact.
        """
        normal = Normal(self.mean, self.log_std)
        unsquashed = normal.sample(key)
        # Computed before tanh: the order of these operations fixes the order of summation in the gradient.
        log_slope = _log_slope_of_tanh(unsquashed)
        return jnp.tanh(unsquashed), normal.log_prob(unsquashed) - log_slope.sum(axis=-1)

    def log_prob(self, actions: Float[Array, "*B A"]) -> Float[Array, "*B"]:
        """Log-densities of actions `[B, A]` in (-1, 1), in nats `[B]`; inexact within 1e-6 of the bounds."""
        unsquashed = jnp.arctanh(jnp.clip(actions, -1 + 1e-6, 1 - 1e-6))
        return Normal(self.mean, self.log_std).log_prob(unsquashed) - _log_slope_of_tanh(unsquashed).sum(axis=-1)

    def mode(self) -> Float[Array, "*B A"]:
        """Actions `[B, A]` at the mean of the normal distribution."""
        return jnp.tanh(self.mean)


class MultiCategorical(NamedTuple):
    """Independent categorical distributions over the K components of an action, each with its own number of choices.

    Attributes:
      logits: unnormalised log-probabilities of each component, float `[B, A_k]`, K of them.

    >>> distribution = MultiCategorical((jnp.zeros((1, 3)), jnp.zeros((1, 2))))
    >>> distribution.sample(jax.random.key(0)).shape
    (1, 2)
    >>> print(jnp.exp(distribution.entropy()).round(4))
    [6.]
    """

    logits: tuple[Float[Array, "*B A"], ...]

    def sample(self, key: chex.PRNGKey) -> Integer[Array, "*B K"]:
        """Draws one action for each distribution, int32 `[B, K]`."""
        return jnp.stack(_joint(self).sample(key), axis=-1)

    def mode(self) -> Integer[Array, "*B K"]:
        """Most probable actions, int32 `[B, K]`."""
        return jnp.stack(_joint(self).mode(), axis=-1)

    def log_prob(self, actions: Integer[Array, "*B K"]) -> Float[Array, "*B"]:
        """Log-probabilities of actions int `[B, K]`, in nats `[B]`."""
        return _joint(self).log_prob(tuple(jnp.moveaxis(actions, -1, 0)))

    def entropy(self) -> Float[Array, "*B"]:
        """Entropies in nats `[B]`."""
        return _joint(self).entropy()


class Joint(NamedTuple):
    """Independent distributions over the parts of an action, which is a tuple with an action of each.

    Attributes:
      distributions: of the parts, such as a `Categorical` and a `Normal`.

    >>> distribution = Joint((Categorical(jnp.zeros((1, 3))), Normal(jnp.zeros((1, 2)), jnp.zeros((1, 2)))))
    >>> [part.shape for part in distribution.sample(jax.random.key(0))]
    [(1,), (1, 2)]
    """

    distributions: tuple[Distribution, ...]

    def sample(self, key: chex.PRNGKey) -> tuple[Any, ...]:
        """Draws one action for each distribution, a tuple of `[B, ...]`."""
        keys = jax.random.split(key, len(self.distributions))
        return tuple(part.sample(key) for part, key in zip(self.distributions, keys, strict=True))

    def mode(self) -> tuple[Any, ...]:
        """Most probable actions, a tuple of `[B, ...]`."""
        return tuple(part.mode() for part in self.distributions)

    def log_prob(self, actions: tuple[Any, ...]) -> Float[Array, "*B"]:
        """Sums the log-probabilities or log-densities of the parts of actions, in nats `[B]`."""
        parts = zip(self.distributions, actions, strict=True)
        return sum(part.log_prob(action) for part, action in parts)  # type: ignore[return-value]  # one or more arrays

    def entropy(self) -> Float[Array, "*B"]:
        """Sums the entropies of the parts, in nats `[B]`."""
        return sum(part.entropy() for part in self.distributions)  # type: ignore[return-value]


def _joint(distribution: MultiCategorical) -> Joint:
    return Joint(tuple(map(Categorical, distribution.logits)))


def _log_slope_of_tanh(x: jax.Array) -> jax.Array:
    # log(1 - tanh(x)^2) in a form whose difference does not round to log(0)
    return 2 * (math.log(2) - x - jax.nn.softplus(-2 * x))


def mask_values(values: Float[Array, "*B A"], legal_actions: Bool[Array, "*B A"] | None) -> Float[Array, "*B A"]:
    """Sets logits or Q-values float `[B, A]` to -1e9 where the mask bool `[B, A]` is false; None: nowhere.

    They become float32: in float16 -1e9 would be infinite.

    >>> print(mask_values(jnp.array([[1.0, 2.0]]), jnp.array([[True, False]])).argmax(axis=-1))
    [0]
    """
    if legal_actions is None:
        return values
    chex.assert_equal_shape([values, legal_actions])
    return jnp.where(legal_actions, values.astype(jnp.float32), ILLEGAL)


def mask_distribution(distribution: Distribution, legal_actions: Any) -> Distribution:
    """Gives illegal actions probability 0; log-probabilities, entropy and their gradients are those of the legal ones.

    Args:
      distribution: over discrete actions: it has "logits", or is a `Joint` of others.
      legal_actions: bool `[B, A]` for a `Categorical`, a tuple of masks for the components of others; None: all.

    Raises:
      ConfigError: the distribution has no logits.

    Source: Huang & Ontañón (2022), A closer look at invalid action masking in policy gradient algorithms.

    >>> distribution = mask_distribution(Categorical(jnp.zeros((1, 3))), jnp.array([[True, False, True]]))
    >>> print(jnp.exp(distribution.entropy()).round(4))
    [2.]
    """
    if legal_actions is None:
        return distribution
    if isinstance(distribution, Joint):
        parts = zip(distribution.distributions, legal_actions, strict=True)
        return Joint(tuple(mask_distribution(part, mask) for part, mask in parts))
    if not hasattr(distribution, "logits"):
        problem = f"the environment has illegal actions, and {type(distribution).__name__} has no logits to mask"
        raise ConfigError(f"{problem}; the network must return a models.Categorical, or another one with logits")
    logits = jax.tree.map(mask_values, distribution.logits, legal_actions)
    return distribution._replace(logits=logits)  # type: ignore[attr-defined]  # distributions are NamedTuples
