"""What an augmentation is, and how several make one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from foldax.errors import ConfigError, ExperimentError

Batch = dict[str, Any]
Augmentation = Callable[[jax.Array, Batch], Batch]


def chain(*steps: Augmentation) -> Augmentation:
    """Returns the augmentation that does one after the other, each with a key of its own; without any: nothing."""

    def step(key: jax.Array, batch: Batch) -> Batch:
        for index, each in enumerate(steps):
            batch = each(jax.random.fold_in(key, index), batch)
        return batch

    return step


def sometimes(augmentation: Augmentation, probability: Any = 0.5) -> Augmentation:
    """Returns the augmentation that happens to each example with a probability in [0, 1], which may be traced.

    Raises:
      ExperimentError: the augmentation changes a shape or dtype, as `mixup` does with classes.
    """
    check_share("sometimes", probability=probability)

    def step(key: jax.Array, batch: Batch) -> Batch:
        coin, own = jax.random.split(key)
        changed = augmentation(own, batch)
        chosen = computed_once(jax.random.bernoulli(coin, probability, batch["inputs"].shape[:1]))

        def select(new: jax.Array, old: Any) -> jax.Array:
            old = jnp.asarray(old)
            if (new.shape, new.dtype) != (old.shape, old.dtype):
                raise ExperimentError(
                    f"sometimes: {old.dtype}{list(old.shape)} became {new.dtype}{list(new.shape)}, so that no example "
                    "can stay as it is; classes become shares by augment.soft_targets(num_classes) before it"
                )
            return jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return {name: select(jnp.asarray(changed[name]), leaf) for name, leaf in batch.items()}

    return step


def noise(std: Any) -> Augmentation:
    """Returns the augmentation that adds normal noise to the inputs `[B, ...]`.

    Args:
      std: standard deviation in the inputs' own units (of 255 for bytes); may be traced.
    """

    def change(key: jax.Array, x: jax.Array) -> jax.Array:
        return in_floats(lambda x: x + std * jax.random.normal(key, x.shape), x)

    return on_inputs("noise", change)


def on_inputs(name: str, change: Callable[[jax.Array, jax.Array], jax.Array], axes: str = "[B, ...]") -> Augmentation:
    """Returns the augmentation that changes inputs of these axes, `(key, inputs) -> inputs`, and nothing else."""

    def step(key: jax.Array, batch: Batch) -> Batch:
        return {**batch, "inputs": change(key, inputs_of(name, batch, axes))}

    return step


def inputs_of(name: str, batch: Batch, axes: str = "[B, ...]") -> jax.Array:
    """Returns the inputs of a batch.

    Raises:
      ExperimentError: they have other axes, or are tokens, which nothing here can change.
    """
    inputs = jnp.asarray(batch["inputs"])
    rank = axes.count(",") + 1
    if inputs.ndim < 2 or ("..." not in axes and inputs.ndim != rank):
        raise ExperimentError(f"{name}: the inputs must be {axes}, and are {list(inputs.shape)}")
    if inputs.ndim == 2 and not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ExperimentError(
            f"{name}: {inputs.dtype}{list(inputs.shape)} are tokens, which cannot be changed like numbers"
        )
    return inputs


def in_floats(change: Callable[[jax.Array], jax.Array], inputs: jax.Array) -> jax.Array:
    """Returns `change(inputs)` computed in float32, as the dtype of the inputs; integers are rounded and clipped."""
    changed = change(inputs.astype(jnp.float32))
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        return changed.astype(inputs.dtype)
    range_ = jnp.iinfo(inputs.dtype)
    return jnp.clip(jnp.round(changed), range_.min, range_.max).astype(inputs.dtype)


def computed_once(draws: jax.Array) -> jax.Array:
    """Returns what was drawn for each example, `[B]` or so, unchanged.

    XLA's CPU compiler puts the computation of draws into the loop over pixels, where it is done anew for each: a crop
    and then a flip of 32 x 32 x 3 took 46 us an image instead of 4. It respects no optimization barrier there, but a
    sort (here of pairs of equals) is never put into another loop.
    """
    return jnp.sort(jnp.stack([draws, draws]), axis=0)[0]


def check_share(name: str, most: float = 1.0, **values: Any) -> None:
    """Checks that numbers are between 0 and `most`, where they are known; traced ones are checked by their config.

    Raises:
      ConfigError: one is not.
    """
    for field, value in values.items():
        if isinstance(value, (int, float)) and not 0 <= value <= most:
            raise ConfigError(f"{name}: {field} {value} is out of range; it must be between 0 and {most:g}")


def check_size(name: str, field: str, size: int, room: int, where: str, least: int = 0) -> None:
    """Checks that a size fits.

    Raises:
      ConfigError: it is no whole number from `least` to `room`.
    """
    if not isinstance(size, int) or isinstance(size, bool) or not least <= size <= room:
        raise ConfigError(f"{name}: {field} {size!r} does not fit {where}; it must be from {least} to {room}")
