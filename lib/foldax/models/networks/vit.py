"""Networks that treat an image as a sequence of patches: the Vision Transformer and the MLP-Mixer."""

from typing import ClassVar, Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from foldax.errors import ConfigError
from foldax.learner import ShardingRule
from foldax.models.layers import Activation, Conv, Dense, Dropout, Initializer, Remat, activation, initializer, repeat
from foldax.models.networks.transformer import SHARDING_RULES, transformer_blocks


def embed_patches(x: jax.Array, size: int, width: int, kernel_init: Initializer, dtype: DTypeLike | None) -> jax.Array:
    """Embeds the non-overlapping patches of images with one linear layer, inside a compact module.

    Args:
      x: images `[B, H, W, C]`.
      size: side of a patch, which divides H and W.
      width: size of the embedding.
      kernel_init: a name of `INITIALIZERS` or a function.
      dtype: type to compute in.

    Returns:
      `[B, H / size * W / size, width]`, patches row by row.

    Raises:
      ConfigError: the patches do not divide the image.
    """
    if x.ndim != 4 or x.shape[1] % size or x.shape[2] % size:
        raise ConfigError(f"patch_size: {size} must divide images [B, H, W, C], got {x.shape}")
    kernel_init = initializer(kernel_init)
    convolve = Conv(width, (size, size), (size, size), padding="VALID", dtype=dtype, kernel_init=kernel_init)
    return convolve(x).reshape(x.shape[0], -1, width)


class ViT(nn.Module):
    """Vision Transformer (Dosovitskiy et al., 2021): `[B, H, W, C]` to float32 `[B, features]`.

    Attributes:
      features: width of the output.
      patch_size: side of a patch, which divides H and W.
      width: width of the blocks.
      depth: number of blocks.
      num_heads: number of attention heads, which divides the width.
      mlp_width: width of the hidden dense layers; None: four times the width.
      pooling: "class": reads out an extra, learned token; "mean": the mean over all patches.
      activation: a name of `ACTIVATIONS` or a function.
      dropout: dropout rate after the embedding and of every residual branch, in [0, 1]; may be traced.
      kernel_init: a name of `INITIALIZERS` or a function.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      remat: recomputes each block in the backward pass, or what a policy does not save, see `models.repeat`.
      scan_layers: runs the blocks as a scan, so that compile time does not depend on the depth; their parameters are
        stacked.
      sharding_rules: as in `Transformer`.

    >>> model = ViT(10, patch_size=4, width=8, depth=1, num_heads=2)
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 8, 8, 3)))[0].shape
    (2, 10)
    """

    features: int
    patch_size: int = 4
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    mlp_width: int | None = None
    pooling: Literal["class", "mean"] = "class"
    activation: Activation = "gelu"
    dropout: chex.Numeric = 0.0
    kernel_init: Initializer = "glorot_uniform"
    dtype: DTypeLike | None = None
    remat: Remat = False
    scan_layers: bool = False
    sharding_rules: ClassVar[tuple[ShardingRule, ...]] = SHARDING_RULES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if self.pooling not in ("class", "mean"):
            raise ConfigError(f"pooling: {self.pooling!r} is unknown; choose 'class' or 'mean'")
        # 1. Patch embedding, class token and learned positions
        x = embed_patches(x, self.patch_size, self.width, self.kernel_init, self.dtype)
        if self.pooling == "class":
            token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        x = Dropout(self.dropout)(x, train=train)
        # 2. Blocks
        x = transformer_blocks(self, x, train=train)
        # 3. Head
        x = nn.LayerNorm(dtype=self.dtype)(x)
        x = x[:, 0] if self.pooling == "class" else x.mean(axis=1)
        return Dense(self.features, dtype=self.dtype, name="output")(x).astype(jnp.float32)


class MLPMixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al., 2021): `[B, H, W, C]` to float32 `[B, features]`.

    Attributes:
      features: width of the output.
      patch_size: side of a patch, which divides H and W.
      width: width of the patch embedding.
      depth: number of blocks.
      token_width: width of the hidden layer that mixes patches; None: half the width.
      channel_width: width of the hidden layer that mixes channels; None: four times the width.
      activation: activation of the hidden layers, a name of `ACTIVATIONS` or a function.
      dropout: dropout rate after every dense layer of a block, in [0, 1]; may be traced.
      kernel_init: a name of `INITIALIZERS` or a function.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      remat: recomputes each block in the backward pass, or what a policy does not save, see `models.repeat`.
      scan_layers: runs the blocks as a scan, so that compile time does not depend on the depth; their parameters are
        then stacked.

    >>> model = MLPMixer(10, patch_size=4, width=8, depth=1)
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 8, 8, 3)))[0].shape
    (2, 10)
    """

    features: int
    patch_size: int = 4
    width: int = 128
    depth: int = 4
    token_width: int | None = None
    channel_width: int | None = None
    activation: Activation = "gelu"
    dropout: chex.Numeric = 0.0
    kernel_init: Initializer = "glorot_uniform"
    dtype: DTypeLike | None = None
    remat: Remat = False
    scan_layers: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = embed_patches(x, self.patch_size, self.width, self.kernel_init, self.dtype)
        init = initializer(self.kernel_init)

        def mlp(x: jax.Array, hidden: int) -> jax.Array:
            y = activation(self.activation)(Dense(hidden, dtype=self.dtype, kernel_init=init)(x))
            return Dropout(self.dropout)(Dense(x.shape[-1], dtype=self.dtype, kernel_init=init)(y), train=train)

        def block(x: jax.Array) -> jax.Array:
            # Token mixing over patches, then channel mixing (equation 1)
            y = nn.LayerNorm(dtype=self.dtype)(x).swapaxes(1, 2)
            x = x + mlp(y, self.token_width or self.width // 2).swapaxes(1, 2)
            return x + mlp(nn.LayerNorm(dtype=self.dtype)(x), self.channel_width or 4 * self.width)

        x = repeat(block, x, self.depth, scan=self.scan_layers, remat=self.remat, name="blocks")
        x = nn.LayerNorm(dtype=self.dtype)(x).mean(axis=1)
        return Dense(self.features, dtype=self.dtype, name="output")(x).astype(jnp.float32)
