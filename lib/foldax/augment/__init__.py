"""Augmentations: pure functions `(key, batch) -> batch` of training batches {"inputs": `[B, ...]`, "targets", ...}.

They run in the compiled step, on the inputs as the dataset has them, before `preprocess`. Each example draws for
itself. Inputs keep shape and dtype: integers are worked on as float32, then rounded and clipped to their dtype's
range. Floats such as strengths and probabilities may be traced. Targets stay, but for `mixup` and `cutmix`.

    learners.classifier(model, optimizer, augment=augment.chain(augment.random_crop(4), augment.random_flip()))
"""

from foldax.augment.images import color, cutout, random_affine, random_crop, random_flip, random_rotation, resample
from foldax.augment.mixing import cutmix, mixup, soft_targets
from foldax.augment.series import channel_mask, random_scaling, random_shift, time_mask
from foldax.augment.steps import Augmentation, chain, noise, sometimes

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
    "resample",
    "soft_targets",
    "sometimes",
    "time_mask",
]
