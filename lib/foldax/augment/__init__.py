"""Augmentation inside the compiled step: pure functions `(key, batch) -> batch` of batches {"inputs": [B, ...], ...}.

Each example draws its own randomness. What moves values keeps their dtype; what computes new ones gives float32.
"""

from foldax.augment.colors import color, noise
from foldax.augment.mixing import cutmix, mixup
from foldax.augment.moves import cutout, random_affine, random_crop, random_flip, random_rotation
from foldax.augment.series import channel_mask, random_scaling, random_shift, time_mask
from foldax.augment.steps import Augmentation, chain, sometimes

__all__ = [
    "Augmentation",
    "chain",
    "channel_mask",
    "color",
    "cutmix",
    "cutout",
    "mixup",
    "noise",
    "random_affine",
    "random_crop",
    "random_flip",
    "random_rotation",
    "random_scaling",
    "random_shift",
    "sometimes",
    "time_mask",
]
