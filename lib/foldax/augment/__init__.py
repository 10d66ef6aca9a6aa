"""Augmentations: pure functions `(key, batch) -> batch` of training batches {"inputs": `[B, ...]`, "targets", ...}.

They run in the compiled step, on the inputs of the dataset, before `preprocess`, and independently for each example.
Inputs keep shape and dtype: integers are augmented in float32, then rounded and clipped to the range of their dtype.
Strengths and probabilities may be traced. Only `mixup`, `cutmix` and `soft_targets` change targets.

>>> import jax, jax.numpy as jnp
>>> augment = chain(random_crop(4), random_flip())
>>> augment(jax.random.key(0), {"inputs": jnp.ones((2, 32, 32, 3)), "targets": jnp.array([0, 1])})["inputs"].shape
(2, 32, 32, 3)
"""

from foldax.augment.augmentation import Augmentation, chain, gaussian_noise, random_apply
from foldax.augment.images import (
    color_jitter,
    cutout,
    random_affine,
    random_crop,
    random_flip,
    random_rotation,
    resample,
)
from foldax.augment.mixing import cutmix, mixup, soft_targets
from foldax.augment.series import channel_mask, random_scaling, random_shift, time_mask

# Any inputs
__all__ = ["Augmentation", "chain", "random_apply", "gaussian_noise"]
# Images
__all__ += ["random_crop", "random_flip", "random_rotation", "random_affine", "color_jitter", "cutout", "resample"]
# Pairs of examples
__all__ += ["mixup", "cutmix", "soft_targets"]
# Series
__all__ += ["random_scaling", "random_shift", "time_mask", "channel_mask"]
