"""Networks that see an image as a sequence of patches: the Vision Transformer and the MLP-Mixer."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from foldax.errors import ConfigError
from foldax.models.layers.activations import Activation, activation
from foldax.models.layers.building_blocks import Conv, Dense, Dropout, repeat
from foldax.models.layers.initializers import Initializer, initializer
from foldax.models.networks.transformer import Block


def patches(x: jax.Array, size: int, width: int, kernel_init: Initializer, dtype: Any) -> jax.Array:
    """Returns images `[B, H, W, C]` as embedded patches `[B, H / size * W / size, width]`; in a compact module only.

    Raises:
      ConfigError: the patches do not divide the image.
    """
    if x.ndim != 4 or x.shape[1] % size or x.shape[2] % size:
        raise ConfigError(f"patch_size: {size} must divide images [B, H, W, C], got {x.shape}")
    convolve = Conv(
        width, (size, size), (size, size), padding="VALID", dtype=dtype, kernel_init=initializer(kernel_init)
    )
    embedded = convolve(x)
    return embedded.reshape(x.shape[0], -1, width)


class ViT(nn.Module):
    """The Vision Transformer (Dosovitskiy et al., 2021): `[B, H, W, C]` to float32 `[B, features]`.

    Attributes:
      features: width of the output.
      patch_size: sides of a patch; they divide the image.
      width: of the blocks.
      depth: number of blocks.
      num_heads: of attention.
      mlp_width: of the hidden dense layers; None: four times the width.
      pooling: "class": a token of its own is read out; "mean": the mean of all patches.
      activation: a name of `ACTIVATIONS` or a function.
      dropout: rate after the embedding, and on what attention and dense layers add; may be traced.
      kernel_init: a name of `INITIALIZERS` or a function.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      remat: computes each block anew in the backward pass, which saves memory.
      scan_layers: runs the blocks as a loop, so that compiling takes as long for any depth; parameters are stacked.
    """

    features: int
    patch_size: int = 4
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    mlp_width: int | None = None
    pooling: Literal["class", "mean"] = "class"
    activation: Activation = "gelu"
    dropout: Any = 0.0
    kernel_init: Initializer = "glorot_uniform"
    dtype: Any = None
    remat: bool = False
    scan_layers: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if self.pooling not in ("class", "mean"):
            raise ConfigError(f"pooling: {self.pooling!r} is neither 'class' nor 'mean'")
        x = patches(x, self.patch_size, self.width, self.kernel_init, self.dtype)
        if self.pooling == "class":
            token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        x = Dropout(self.dropout)(x, train=train)
        options = dict(mlp_width=self.mlp_width, activation=self.activation, dropout=self.dropout, dtype=self.dtype)
        x = repeat(
            lambda x: Block(self.num_heads, kernel_init=self.kernel_init, **options)(x, train=train),
            x,
            self.depth,
            scan=self.scan_layers,
            remat=self.remat,
            name="blocks",
        )
        x = nn.LayerNorm(dtype=self.dtype)(x)
        x = x[:, 0] if self.pooling == "class" else x.mean(axis=1)
        return Dense(self.features, dtype=self.dtype, name="output")(x).astype(jnp.float32)


class MLPMixer(nn.Module):
    """The MLP-Mixer (Tolstikhin et al., 2021): `[B, H, W, C]` to float32 `[B, features]`.

    Attributes:
      features: width of the output.
      patch_size: sides of a patch; they divide the image.
      width: of the patches' embedding.
      depth: number of blocks.
      token_width: of the hidden layer that mixes patches; None: half the width.
      channel_width: of the hidden layer that mixes channels; None: four times the width.
      others: as in `ViT`; dropout acts on what a block adds.
    """

    features: int
    patch_size: int = 4
    width: int = 128
    depth: int = 4
    token_width: int | None = None
    channel_width: int | None = None
    activation: Activation = "gelu"
    dropout: Any = 0.0
    kernel_init: Initializer = "glorot_uniform"
    dtype: Any = None
    remat: bool = False
    scan_layers: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = patches(x, self.patch_size, self.width, self.kernel_init, self.dtype)
        init = initializer(self.kernel_init)

        def mixed(x: jax.Array, hidden: int) -> jax.Array:
            y = activation(self.activation)(Dense(hidden, dtype=self.dtype, kernel_init=init)(x))
            return Dropout(self.dropout)(Dense(x.shape[-1], dtype=self.dtype, kernel_init=init)(y), train=train)

        def block(x: jax.Array) -> jax.Array:
            y = nn.LayerNorm(dtype=self.dtype)(x).swapaxes(1, 2)
            x = x + mixed(y, self.token_width or self.width // 2).swapaxes(1, 2)
            return x + mixed(nn.LayerNorm(dtype=self.dtype)(x), self.channel_width or 4 * self.width)

        x = repeat(block, x, self.depth, scan=self.scan_layers, remat=self.remat, name="blocks")
        x = nn.LayerNorm(dtype=self.dtype)(x).mean(axis=1)
        return Dense(self.features, dtype=self.dtype, name="output")(x).astype(jnp.float32)
