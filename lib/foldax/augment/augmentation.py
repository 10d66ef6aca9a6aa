"""The type of an augmentation, and augmentations of any inputs: `chain`, `random_apply`, `gaussian_noise`."""

from collections.abc import Callable
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
from chex import Numeric
from jax import Array

from foldax.errors import ConfigError, ExperimentError

Batch: TypeAlias = dict[str, Any]  # arrays `[B, ...]` by name: "inputs", "targets", "mask", ...
Augmentation: TypeAlias = Callable[[Array, Batch], Batch]  # (key, batch) -> batch


def chain(*augmentations: Augmentation | None) -> Augmentation:
    """Applies augmentations one after the other, each with its own key; the empty chain changes nothing.

    Args:
      *augmentations: `(key, batch) -> batch`; None, for an optional augmentation, is skipped.

    >>> augment = chain(gaussian_noise(0.1), random_apply(gaussian_noise(1.0), 0.0))
    >>> augment(jax.random.key(0), {"inputs": jnp.zeros((2, 3))})["inputs"].shape
    (2, 3)
    """

    present = [augmentation for augmentation in augmentations if augmentation is not None]

    def apply(key: Array, batch: Batch) -> Batch:
        for index, augmentation in enumerate(present):
            # Folding in the index keeps the keys of the first augmentations when others are appended.
            batch = augmentation(jax.random.fold_in(key, index), batch)
        return batch

    return apply


def random_apply(augmentation: Augmentation, probability: Numeric = 0.5) -> Augmentation:
    """Applies an augmentation to each example with a probability.

    Args:
      augmentation: must keep all shapes and dtypes.
      probability: in [0, 1]; may be traced.

    Raises:
      ConfigError: the probability is out of range.
      ExperimentError: while tracing, if the augmentation changes a shape or dtype, as `mixup` does with classes.

    >>> augment = random_apply(gaussian_noise(1.0), probability=0.0)
    >>> augment(jax.random.key(0), {"inputs": jnp.ones((1, 2))})["inputs"].tolist()
    [[1.0, 1.0]]
    """
    check_fraction("random_apply", probability=probability)

    def apply(key: Array, batch: Batch) -> Batch:
        choice_key, augment_key = jax.random.split(key)
        # Both versions are computed: examples of one program cannot take different branches.
        augmented = augmentation(augment_key, batch)
        chosen = materialize(jax.random.bernoulli(choice_key, probability, batch["inputs"].shape[:1]))

        def select(new: Array, old: Array) -> Array:
            # `where` would broadcast or promote in silence.
            if (new.shape, new.dtype) != (old.shape, old.dtype):
                change = f"{old.dtype}{list(old.shape)} became {new.dtype}{list(new.shape)}"
                remedy = "put augment.soft_targets(num_classes) before it to mix classes"
                raise ExperimentError(f"random_apply: {change}, but examples that are not chosen must stay; {remedy}")
            return jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return {name: select(jnp.asarray(augmented[name]), jnp.asarray(leaf)) for name, leaf in batch.items()}

    return apply


def gaussian_noise(std: chex.Array | float) -> Augmentation:
    """Adds independent normal noise to the inputs `[B, ...]` (jitter).

    Args:
      std: standard deviation in the units of the inputs (0 to 255 for bytes), a scalar or broadcastable to the inputs;
        may be traced.

    >>> augment = gaussian_noise(0.1)
    >>> f"{augment(jax.random.key(0), {'inputs': jnp.zeros((1000, 2))})['inputs'].std():.2f}"
    '0.10'
    """

    def change(key: Array, x: Array) -> Array:
        return apply_in_float32(lambda x: x + std * jax.random.normal(key, x.shape), x)

    return input_augmentation("gaussian_noise", change)


def input_augmentation(name: str, change: Callable[[Array, Array], Array], axes: str = "[B, ...]") -> Augmentation:
    """Builds an augmentation of the inputs alone.

    Args:
      name: for error messages.
      change: `(key, inputs) -> inputs`.
      axes: axes that the inputs must have, such as "[B, H, W, C]".

    >>> brighten = input_augmentation("brighten", lambda key, x: x + 1.0)
    >>> brighten(jax.random.key(0), {"inputs": jnp.zeros((1, 2))})["inputs"].tolist()
    [[1.0, 1.0]]
    """

    def apply(key: Array, batch: Batch) -> Batch:
        return {**batch, "inputs": change(key, batch_inputs(name, batch, axes))}

    return apply


def batch_inputs(name: str, batch: Batch, axes: str = "[B, ...]") -> Array:
    """Returns the inputs of a batch, checked.

    Raises:
      ExperimentError: the inputs have other axes, or are tokens, which have no order that an augmentation could use.
    """
    inputs = jnp.asarray(batch["inputs"])
    # "[B, H, W, C]" has three commas, so four axes.
    if inputs.ndim < 2 or ("..." not in axes and inputs.ndim != axes.count(",") + 1):
        raise ExperimentError(f"{name}: the inputs must be {axes}, and are {list(inputs.shape)}")
    if inputs.ndim == 2 and not jnp.issubdtype(inputs.dtype, jnp.floating):
        tokens = f"{inputs.dtype}{list(inputs.shape)} are tokens"
        raise ExperimentError(f"{name}: the inputs {tokens}; only continuous inputs can be augmented")
    return inputs


def apply_in_float32(change: Callable[[Array], Array], inputs: Array) -> Array:
    """Computes `change(inputs)` in float32 and converts back; integers are rounded and clipped to their range.

    >>> apply_in_float32(lambda x: 1.3 * x, jnp.array([10, 250], jnp.uint8))
    Array([ 13, 255], dtype=uint8)
    """
    changed = change(inputs.astype(jnp.float32))
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        return changed.astype(inputs.dtype)
    # Without clipping, 256 would wrap around to 0 in uint8.
    limits = jnp.iinfo(inputs.dtype)
    return jnp.clip(jnp.round(changed), limits.min, limits.max).astype(inputs.dtype)


def materialize(samples: Array) -> Array:
    """Returns random samples unchanged, computed once instead of once per pixel.

    XLA's CPU compiler fuses the generation of samples `[B]` into the loop over pixels that uses them, and so generates
    them anew for every pixel: a crop and then a flip of 32 x 32 x 3 took 46 us an image instead of 4. Optimization
    barriers do not prevent it on CPUs (https://github.com/openxla/xla/issues/20440), but a sort, here of pairs of
    equals, is never fused into a loop.

    >>> materialize(jnp.array([3.0, 1.0, 2.0])).tolist()
    [3.0, 1.0, 2.0]
    """
    return jnp.sort(jnp.stack([samples, samples]), axis=0)[0]


def check_fraction(name: str, **values: Numeric | None) -> None:
    """Checks that values lie between 0 and 1; traced values were checked by their config.

    Raises:
      ConfigError: a value is out of range.
    """
    for field, value in values.items():
        # Tracers have no value to compare.
        if isinstance(value, (int, float)) and not 0 <= value <= 1:
            raise ConfigError(f"{name}: {field} {value} is out of range; it must be between 0 and 1")


def check_size(name: str, field: str, size: int, room: int, where: str) -> None:
    """Checks that a size is an integer between 0 and `room`.

    Raises:
      ConfigError: it is not.
    """
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= room:
        raise ConfigError(f"{name}: {field} {size!r} does not fit {where}; it must be from 0 to {room}")
