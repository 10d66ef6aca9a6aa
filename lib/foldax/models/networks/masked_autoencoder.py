"""Masked autoencoder network (He et al., 2022): a ViT that encodes visible patches, a small one that decodes all."""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from foldax.errors import ConfigError
from foldax.models.layers import Activation, Dense, Initializer
from foldax.models.networks.transformer import transformer_blocks
from foldax.models.networks.vit import embed_patches


class MaskedAutoencoderOutput(NamedTuple):
    """Output of a `MaskedAutoencoder`.

    Attributes:
      patches: `[B, N, size * size * C]`, predicted pixels of all patches, visible ones included (see `patchify`).
      mask: float32 `[B, N]`, 1 for masked patches and 0 for visible ones.
    """

    patches: jax.Array
    mask: jax.Array


def patchify(images: jax.Array, size: int) -> jax.Array:
    """Cuts images into square patches, row by row.

    Args:
      images: `[B, H, W, C]`.
      size: side of a patch in pixels; it divides H and W.

    Returns:
      `[B, N, size * size * C]` with N = H W / size^2.

    Raises:
      ConfigError: the patches do not divide the image.

    >>> patchify(jnp.arange(16).reshape(1, 4, 4, 1), 2)[0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    if images.ndim != 4 or images.shape[1] % size or images.shape[2] % size:
        raise ConfigError(f"patch_size: {size} must divide images [B, H, W, C], got {images.shape}")
    batch, height, width, channels = images.shape
    grid = images.reshape(batch, height // size, size, width // size, size, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


def unpatchify(patches: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Reassembles patches `[B, N, size * size * C]` to images `[B, H, W, C]`: the inverse of `patchify`.

    Args:
      patches: pixels of the patches, row by row.
      shape: `(H, W, C)`.

    >>> images = jnp.arange(16).reshape(1, 4, 4, 1)
    >>> bool((unpatchify(patchify(images, 2), (4, 4, 1)) == images).all())
    True
    """
    chex.assert_rank(patches, 3)
    height, width, channels = shape
    size = round((patches.shape[-1] / channels) ** 0.5)
    grid = patches.reshape(-1, height // size, width // size, size, size, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *shape)


class PatchTransformer(nn.Module):
    """Settings that the encoder and the decoder share; they are those of `MaskedAutoencoder`."""

    width: int
    depth: int
    num_heads: int
    activation: Activation
    dropout: chex.Numeric
    kernel_init: Initializer
    dtype: DTypeLike | None
    scan_layers: bool


class PatchEncoder(PatchTransformer):
    """A ViT without its head, on a subset of the patches or on all: images `[B, H, W, C]` to `[B, V, width]`.

    Its parameters have the names of those of a `ViT` with pooling "mean". Its attributes are those of
    `MaskedAutoencoder`.
    """

    patch_size: int

    @nn.compact
    def __call__(self, x: jax.Array, selection: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """Encodes the patches that the one-hot rows of `selection` `[B, V, N]` select, or all N patches."""
        x = embed_patches(x, self.patch_size, self.width, self.kernel_init, self.dtype)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        # A matrix product instead of an index: its gradient is several times as fast on the CPU.
        x = x if selection is None else selection.astype(x.dtype) @ x
        return nn.LayerNorm(dtype=self.dtype)(transformer_blocks(self, x, train=train))


class PatchDecoder(PatchTransformer):
    """Predicts the pixels of all patches `[B, N, patch_pixels]` from encoded visible patches `[B, V, D]`."""

    patch_pixels: int

    @nn.compact
    def __call__(self, x: jax.Array, selection: jax.Array, *, train: bool = False) -> jax.Array:
        """Decodes patches `[B, V, D]`, whose positions are the one-hot rows of `selection` `[B, V, N]`."""
        # [B, N, V]: the position of each visible patch; [B, N, 1]: 1 at masked positions.
        visible = selection.swapaxes(1, 2).astype(x.dtype)
        masked = 1 - visible.sum(axis=2, keepdims=True)
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width)).astype(x.dtype)
        # Every position holds its encoded patch, or the mask token where there is none.
        x = visible @ Dense(self.width, dtype=self.dtype, name="input")(x) + masked * token
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        x = nn.LayerNorm(dtype=self.dtype)(transformer_blocks(self, x, train=train))
        return Dense(self.patch_pixels, dtype=self.dtype, name="output")(x).astype(jnp.float32)


class MaskedAutoencoder(nn.Module):
    """The masked autoencoder (He et al., 2022): images `[B, H, W, C]` to a `MaskedAutoencoderOutput`.

    The encoder, a ViT without its head, sees `visible_patches` random patches of each image. The decoder sees their
    encodings, and a learned mask token at all other positions. With `method=MaskedAutoencoder.encode`, the encoder sees
    all patches, and their mean is the feature vector `[B, width]` of the image.

    Attributes:
      shape: `(H, W, C)` of an image.
      patch_size: side of a patch in pixels; it divides H and W.
      visible_patches: patches that the encoder sees while training, at least 1 and fewer than all; a quarter of all
        in the paper.
      width: width of the encoder's blocks.
      depth: number of the encoder's blocks.
      num_heads: attention heads of the encoder.
      decoder_width: width of the decoder's blocks; half the encoder's or less is enough.
      decoder_depth: number of the decoder's blocks.
      decoder_heads: attention heads of the decoder.
      activation: of the hidden dense layers: a name of `ACTIVATIONS` or a function.
      dropout: dropout rate after attention and dense layers; may be traced.
      kernel_init: a name of `INITIALIZERS` or a function.
      dtype: type of the computation, such as `jnp.bfloat16`; parameters stay float32.
      scan_layers: compiles the blocks as one loop, so that compile time does not grow with depth; their parameters are
        stacked.

    >>> model = MaskedAutoencoder((4, 4, 1), patch_size=2, visible_patches=1, width=8, depth=1)
    >>> rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    >>> output, _ = jax.eval_shape(model.init_with_output, rngs, jnp.zeros((3, 4, 4, 1)))
    >>> output.patches.shape, output.mask.shape
    ((3, 4, 4), (3, 4))
    """

    shape: tuple[int, ...]
    patch_size: int = 4
    visible_patches: int = 12
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    decoder_width: int = 64
    decoder_depth: int = 1
    decoder_heads: int = 4
    activation: Activation = "gelu"
    dropout: chex.Numeric = 0.0
    kernel_init: Initializer = "glorot_uniform"
    dtype: DTypeLike | None = None
    scan_layers: bool = False

    def setup(self) -> None:
        shared = {n: getattr(self, n) for n in ("activation", "dropout", "kernel_init", "dtype", "scan_layers")}
        sizes = (self.decoder_width, self.decoder_depth, self.decoder_heads)
        self.encoder = PatchEncoder(self.width, self.depth, self.num_heads, patch_size=self.patch_size, **shared)
        self.decoder = PatchDecoder(*sizes, patch_pixels=self.patch_size**2 * self.shape[-1], **shared)

    def __call__(self, x: jax.Array, *, train: bool = False) -> MaskedAutoencoderOutput:
        """Masks all but `visible_patches` random patches (random stream "dropout") and predicts the pixels of all.

        Raises:
          ConfigError: `x` does not have the declared shape, or `visible_patches` or `patch_size` does not fit it.
        """
        self._check(x)
        count = math.prod(self.shape[:-1]) // self.patch_size**2
        if not 1 <= self.visible_patches < count:
            allowed = f"1 to {count - 1} of the image's {count} patches"
            raise ConfigError(f"visible_patches: {self.visible_patches} must be {allowed}")
        # Random masking: the first `visible_patches` of a random order of all patches, as one-hot rows.
        order = jnp.argsort(jax.random.uniform(self.make_rng("dropout"), (x.shape[0], count)), axis=1)
        selection = jax.nn.one_hot(order[:, : self.visible_patches], count)
        patches = self.decoder(self.encoder(x, selection, train=train), selection, train=train)
        return MaskedAutoencoderOutput(patches, 1.0 - selection.sum(axis=1))

    def encode(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the features `[B, width]` of whole images `[B, H, W, C]`."""
        self._check(x)
        return self.encoder(x, train=train).mean(axis=1)

    def _check(self, x: jax.Array) -> None:
        if x.shape[1:] != tuple(self.shape):
            shapes = f"{tuple(self.shape)}, got {list(x.shape)}"
            raise ConfigError(f"MaskedAutoencoder: inputs must be [B, ...] of shape {shapes}")
        if any(side % self.patch_size for side in self.shape[:-1]):
            raise ConfigError(f"patch_size: {self.patch_size} must divide images of shape {tuple(self.shape)}")
