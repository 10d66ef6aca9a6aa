"""The masked autoencoder: a Transformer that sees some patches of an image, and a small one that adds the others."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models.layers.activations import Activation
from foldax.models.layers.building_blocks import Dense, repeat
from foldax.models.layers.initializers import Initializer
from foldax.models.networks.transformer import Block
from foldax.models.networks.vit import patches


class Masked(NamedTuple):
    """What a `MaskedAutoencoder` makes of inputs.

    Attributes:
      outputs: `[B, N, size * size * C]`, the pixels of all patches (see `patched`).
      mask: float32 `[B, N]`, 1 where a patch was hidden.
    """

    outputs: jax.Array
    mask: jax.Array


def patched(images: jax.Array, size: int) -> jax.Array:
    """Returns images `[B, H, W, C]` as their patches' pixels `[B, N, size * size * C]`, by rows.

    Raises:
      ConfigError: the patches do not divide the image.
    """
    if images.ndim != 4 or images.shape[1] % size or images.shape[2] % size:
        raise ConfigError(f"patch_size: {size} must divide images [B, H, W, C], got {images.shape}")
    batch, height, width, channels = images.shape
    grid = images.reshape(batch, height // size, size, width // size, size, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


def unpatched(pixels: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns patches `[B, N, size * size * C]` as images `[B, *shape]`: the opposite of `patched`."""
    height, width, channels = shape
    size = round((pixels.shape[-1] / channels) ** 0.5)
    grid = pixels.reshape(-1, height // size, width // size, size, size, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *shape)


class PatchEncoder(nn.Module):
    """A ViT without its head, of some patches or of all: images `[B, H, W, C]` to `[B, V, width]`.

    Parameters have the names of a `ViT` with pooling "mean".

    Attributes:
      those of `MaskedAutoencoder`.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    activation: Activation
    dropout: Any
    kernel_init: Initializer
    dtype: Any
    scan_layers: bool

    @nn.compact
    def __call__(self, x: jax.Array, chosen: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """Encodes all patches, or those that rows of `chosen` `[B, V, N]`, 1 in one place and else 0, choose."""
        x = patches(x, self.patch_size, self.width, self.kernel_init, self.dtype)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        # A product and not an index: on the CPU its gradient is several times as fast.
        x = x if chosen is None else chosen.astype(x.dtype) @ x
        return blocks(self, x, self.depth, self.num_heads, train)


class PatchDecoder(nn.Module):
    """What adds hidden patches: `[B, V, D]` and where they belong, `[B, V, N]`, to pixels `[B, N, outputs]`."""

    outputs: int
    width: int
    depth: int
    num_heads: int
    activation: Activation
    dropout: Any
    kernel_init: Initializer
    dtype: Any
    scan_layers: bool

    @nn.compact
    def __call__(self, x: jax.Array, chosen: jax.Array, *, train: bool = False) -> jax.Array:
        seen = chosen.swapaxes(1, 2).astype(x.dtype)
        unseen = 1 - seen.sum(axis=2, keepdims=True)
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width)).astype(x.dtype)
        x = seen @ Dense(self.width, dtype=self.dtype, name="input")(x) + unseen * token
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        x = blocks(self, x, self.depth, self.num_heads, train)
        return Dense(self.outputs, dtype=self.dtype, name="output")(x).astype(jnp.float32)


def blocks(settings: Any, x: jax.Array, depth: int, num_heads: int, train: bool) -> jax.Array:
    """Applies Transformer blocks and a last normalisation to `[B, T, width]`, as `ViT` does; in a compact module."""
    options = {name: getattr(settings, name) for name in ("activation", "dropout", "kernel_init", "dtype")}

    def block(x: jax.Array) -> jax.Array:
        return Block(num_heads, **options)(x, train=train)

    x = repeat(block, x, depth, scan=settings.scan_layers, name="blocks")
    return nn.LayerNorm(dtype=settings.dtype)(x)


class MaskedAutoencoder(nn.Module):
    """The masked autoencoder (He et al., 2022): images `[B, H, W, C]` to `Masked`.

    The encoder, a ViT without its head, gets `visible` patches, drawn anew for every image, and nothing of the others.
    The decoder gets what the encoder makes of them, and one learned vector in all other places. With
    `method=MaskedAutoencoder.encode` all patches are seen, and their mean is the image's features `[B, width]`.

    Attributes:
      shape: `(H, W, C)` of an image.
      patch_size: sides of a patch; they divide the image.
      visible: patches that the encoder sees, from 1 to all but one; the paper's are a quarter of all.
      width: of the encoder's blocks.
      depth: number of them.
      num_heads: of their attention.
      decoder_width: of the decoder's blocks; half the encoder's or less will do.
      decoder_depth: number of them.
      decoder_heads: of their attention.
      activation: of the hidden dense layers: a name of `ACTIVATIONS` or a function.
      dropout: rate on what attention and dense layers add; may be traced.
      kernel_init: a name of `INITIALIZERS` or a function.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      scan_layers: runs the blocks as a loop, so that compiling takes as long for any depth; parameters are stacked.
    """

    shape: tuple[int, ...]
    patch_size: int = 4
    visible: int = 12
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    decoder_width: int = 64
    decoder_depth: int = 1
    decoder_heads: int = 4
    activation: Activation = "gelu"
    dropout: Any = 0.0
    kernel_init: Initializer = "glorot_uniform"
    dtype: Any = None
    scan_layers: bool = False

    def setup(self) -> None:
        shared = {n: getattr(self, n) for n in ("activation", "dropout", "kernel_init", "dtype", "scan_layers")}
        self.encoder = PatchEncoder(self.patch_size, self.width, self.depth, self.num_heads, **shared)
        pixels = self.patch_size**2 * self.shape[-1]
        self.decoder = PatchDecoder(pixels, self.decoder_width, self.decoder_depth, self.decoder_heads, **shared)

    def __call__(self, x: jax.Array, *, train: bool = False) -> Masked:
        """Hides all patches but `visible` ones, drawn from the stream "dropout", and makes the pixels of all.

        Raises:
          ConfigError: images have another shape than was announced, or as many patches as that cannot be visible.
        """
        self._check(x)
        count = math.prod(self.shape[:-1]) // self.patch_size**2
        if not 1 <= self.visible < count:
            raise ConfigError(f"visible: {self.visible} must be 1 to {count - 1} of the image's {count} patches")
        order = jnp.argsort(jax.random.uniform(self.make_rng("dropout"), (x.shape[0], count)), axis=1)
        chosen = jax.nn.one_hot(order[:, : self.visible], count)
        outputs = self.decoder(self.encoder(x, chosen, train=train), chosen, train=train)
        return Masked(outputs, 1.0 - chosen.sum(axis=1))

    def encode(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the features `[B, width]` of whole images."""
        self._check(x)
        return self.encoder(x, train=train).mean(axis=1)

    def _check(self, x: jax.Array) -> None:
        if x.shape[1:] != tuple(self.shape):
            raise ConfigError(
                f"MaskedAutoencoder: inputs must be [B, ...] of shape {tuple(self.shape)}, got {list(x.shape)}"
            )
        if any(side % self.patch_size for side in self.shape[:-1]):
            raise ConfigError(f"patch_size: {self.patch_size} must divide images of shape {tuple(self.shape)}")
