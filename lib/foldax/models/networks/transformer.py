"""The Transformer: encoder, decoder, and decoder with cross-attention (Vaswani et al., 2017).

Shapes: B batch, T queries, S keys, D width, C features of the inputs.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from foldax.errors import ConfigError, check_positive
from foldax.learner import ShardingRule
from foldax.models.layers import Activation, Initializer, activation, initializer, sequences
from foldax.models.layers.attention import Attention, AttentionImplementation, rotary_angles
from foldax.models.layers.building_blocks import Dense, Dropout, Remat, flat_dot_general, normalization, repeat


class Block(nn.Module):
    """Pre-norm Transformer block (Xiong et al., 2020): attention, optional cross-attention, and an MLP; `[B, T, D]`.

    Attributes:
      num_heads: as in `Attention`, as are `num_kv_heads`, `causal`, `use_bias`, `kernel_init` and `dtype`.
      mlp_width: width of the hidden dense layer; None: four times D.
      gated: multiplies the hidden layer by a second, linear one (Shazeer, 2020).
      cross_attention: whether the block also attends to a context.
      activation: activation of the hidden dense layer.
      dropout: dropout rate of every residual branch, in [0, 1]; may be traced.
      normalization: "layer" or "rms".
      attention_implementation: "xla" or "fused", see `dot_product_attention`.

    >>> import jax
    >>> block = Block(num_heads=2, gated=True)
    >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.ones((2, 5, 8)))[0].shape
    (2, 5, 8)
    """

    num_heads: int
    num_kv_heads: int | None = None
    mlp_width: int | None = None
    gated: bool = False
    causal: bool = False
    cross_attention: bool = False
    activation: Activation = "gelu"
    dropout: chex.Numeric = 0.0
    normalization: Literal["layer", "rms"] = "layer"
    use_bias: bool = True
    kernel_init: Initializer = "glorot_uniform"
    dtype: DTypeLike | None = None
    attention_implementation: AttentionImplementation = "xla"

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        angles: Array | None = None,
        context: Array | None = None,
        context_mask: Array | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> Array:
        width = x.shape[-1]
        options = dict(use_bias=self.use_bias, dtype=self.dtype)
        attention = functools.partial(Attention, self.num_heads, self.num_kv_heads, kernel_init=self.kernel_init)
        attention = functools.partial(attention, implementation=self.attention_implementation)
        dense = functools.partial(Dense, kernel_init=initializer(self.kernel_init), **options)

        def normalized(x: Array) -> Array:
            return normalization(self.normalization, width, train, self.dtype)(x)

        def add(x: Array, branch: Array) -> Array:
            return x + Dropout(self.dropout)(branch, train=train)

        # 1. Self-attention: x + attention(norm(x))
        attend = attention(causal=self.causal, name="attention", **options)
        x = add(x, attend(normalized(x), mask=mask, angles=angles, decode=decode))
        # 2. Cross-attention: x + attention(norm(x), context)
        if self.cross_attention:
            attend = attention(name="cross_attention", **options)
            x = add(x, attend(normalized(x), context, mask=context_mask))
        # 3. MLP: x + W_out (activation(W_in norm(x)) * W_gate norm(x)), the last factor only if gated
        hidden_width = self.mlp_width or 4 * width
        y = normalized(x)
        hidden = activation(self.activation)(dense(hidden_width, name="mlp_in")(y))
        if self.gated:
            hidden = hidden * dense(hidden_width, name="mlp_gate")(y)
        return add(x, dense(width, name="mlp_out")(hidden))


BLOCK_FIELDS: tuple[str, ...] = ("num_heads", "num_kv_heads", "mlp_width", "gated", "causal", "cross_attention")
BLOCK_FIELDS += ("activation", "dropout", "normalization", "use_bias", "kernel_init", "dtype")
BLOCK_FIELDS += ("attention_implementation",)
"""Attributes that a network passes on to its blocks, see `transformer_blocks`."""


def transformer_blocks(network: nn.Module, x: Array, **inputs: Any) -> Array:
    """Applies the `depth` Transformer blocks of a network to `[B, T, D]`, inside its compact method.

    Args:
      network: has `depth`, `scan_layers` and, where it differs from the default of `Block`, each of `BLOCK_FIELDS`; may
        have `remat`.
      x: input of the first block.
      **inputs: keyword arguments of every block, such as `train`.
    """
    options = {name: getattr(network, name) for name in BLOCK_FIELDS if hasattr(network, name)}

    def block(x: Array) -> Array:
        return Block(**options)(x, **inputs)

    remat = getattr(network, "remat", False)
    return repeat(block, x, network.depth, scan=network.scan_layers, remat=remat, name="blocks")


class HiddenStates(NamedTuple):
    """Inputs of a network's output layer, with its parameters: all that its logits depend on.

    A loss that computes the logits of a few steps at a time, by `Transformer.logits`, never holds all of them.

    Attributes:
      states: `[B, T, D]`.
      output_params: parameters of the output layer, as part of the network's parameters.

    >>> HiddenStates(jnp.ones((2, 5, 8)), {"output": {"kernel": jnp.ones((8, 11))}}).states.shape
    (2, 5, 8)
    """

    states: Array
    output_params: chex.ArrayTree


SHARDING_RULES: tuple[ShardingRule, ...] = (
    (r"attention/(query|key_value)/kernel$|mlp_(in|gate)/kernel$", (None, "tensor")),
    (r"attention/(query|key_value)/bias$|mlp_(in|gate)/bias$", ("tensor",)),
    (r"attention/output/kernel$|mlp_out/kernel$|embedding/embedding$", ("tensor", None)),
    (r"(^|/)output/kernel$", (None, "tensor")),
)
"""Heads, hidden units and the vocabulary are divided over "tensor" (Shoeybi et al., 2019); see `foldax.Learner`."""


class Transformer(nn.Module):
    """Pre-norm Transformer: `[B, T, C]`, or tokens `[B, T]`, to float32 `[B, T, features]` or `[B, features]`.

    Vaswani et al. (2017), with normalisation before each layer (Xiong et al., 2020). It is an encoder by default, a
    decoder with `causal=True`, and with `cross_attention=True` a decoder that reads a context, as for translation. With
    `decode=True`, keys and values are kept in the collection "cache" (see `generate`).

    Attributes:
      features: width of the output; None: no dense layer after the last block.
      vocabulary_size: number of tokens; None where inputs are floats, which a dense layer projects to `width`.
      width: width of the blocks, D.
      depth: number of blocks.
      num_heads: number of query heads, which divides the width.
      num_kv_heads: number of key-value heads, shared by groups of query heads (Ainslie et al., 2023); None: as many as
        `num_heads`.
      mlp_width: width of the hidden dense layers; None: four times the width.
      gated: multiplies each hidden dense layer by a second, linear one: SwiGLU with activation "silu" (Shazeer, 2020).
      causal: whether a step attends only to itself and earlier steps.
      cross_attention: whether the blocks also attend to a `context`.
      positions: "rotary" (Su et al., 2021), "learned", or None.
      max_length: longest sequence; the number of positions if they are learned.
      pooling: "last", "mean" or "max" over time; None: one output per step.
      tie_embeddings: uses the transposed embedding as output layer (Press & Wolf, 2017); `features` is then the
        vocabulary.
      activation: activation of the hidden dense layers, a name of `ACTIVATIONS` or a function.
      dropout: dropout rate after the embedding and of every residual branch, in [0, 1]; may be traced.
      normalization: "layer" or "rms".
      use_bias: whether attention and dense layers have biases.
      kernel_init: a name of `INITIALIZERS` or a function `(key, shape, dtype) -> array`.
      dtype: type to compute in, such as `jnp.bfloat16`; parameters stay float32.
      remat: recomputes each block in the backward pass, or what a policy does not save, see `models.repeat`.
      scan_layers: runs the blocks as a scan, so that compile time does not depend on the depth; their parameters are
        stacked.
      vocabulary_multiple: the embedding and the output layer of a vocabulary have its size rounded up to a multiple of
        this, such as 128, which devices divide evenly. No token and no logit stands for the rows added.
      attention_implementation: "xla", or "fused": attention of long sequences by cuDNN on GPUs and by splash attention
        on TPUs, which store no attention weights; needs no mask on TPUs, and a `dtype` of 16 bits on GPUs. XLA's
        wherever these do not take the inputs.
      sharding_rules: `SHARDING_RULES`, of every Transformer: how several devices divide its parameters.

    >>> import jax
    >>> model = Transformer(11, vocabulary_size=11, width=8, depth=1, num_heads=2, causal=True)
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 5), int))[0].shape
    (2, 5, 11)
    """

    features: int | None = None
    vocabulary_size: int | None = None
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None
    mlp_width: int | None = None
    gated: bool = False
    causal: bool = False
    cross_attention: bool = False
    positions: Literal["rotary", "learned"] | None = "rotary"
    max_length: int = 1024
    pooling: sequences.Pooling | None = None
    tie_embeddings: bool = False
    activation: Activation = "gelu"
    dropout: chex.Numeric = 0.0
    normalization: Literal["layer", "rms"] = "layer"
    use_bias: bool = True
    kernel_init: Initializer = "glorot_uniform"
    dtype: DTypeLike | None = None
    remat: Remat = False
    scan_layers: bool = False
    vocabulary_multiple: int = 1
    attention_implementation: AttentionImplementation = "xla"
    sharding_rules: ClassVar[tuple[ShardingRule, ...]] = SHARDING_RULES

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        context: Array | None = None,
        context_mask: Array | None = None,
        train: bool = False,
        decode: bool = False,
        return_hidden: bool = False,
    ) -> Array | HiddenStates:
        """Applies the network.

        Args:
          x: float `[B, T, C]`, or int `[B, T]` with a `vocabulary_size`.
          mask: `[B, T]`, 0 or False at padding, to which no step attends. Numbers above 0 are segment ids of packed
            sequences, which do not attend to each other and whose positions each start at 0.
          context: `[B, S, C]`, for cross-attention.
          context_mask: `[B, S]`, 0 or False where the context is padding.
          train: whether dropout is active.
          decode: treats `x` as the continuation of what is in the collection "cache"; without a mask. Initialised with
            `decode=True`, the cache has room for as many steps as those inputs; past its end, outputs are wrong.
          return_hidden: returns the inputs of the output layer instead of its outputs.

        Returns:
          float32 `[B, T, features]`, or `[B, features]` with pooling; or `HiddenStates`.

        Raises:
          ConfigError: inputs that are neither the declared tokens nor floats, a sequence longer than `max_length`, a
            cache without `causal`, a missing context, or attributes that contradict each other.
        """
        check_settings(self)
        # 1. Embedding and positions
        hidden, positions = self._embed(x, mask, train, decode)
        if decode and (not self.causal or mask is not None):
            raise ConfigError("Transformer: decode needs a causal model, and sequences without a mask")
        self._check_context(x, context, context_mask)
        if context is not None and context_mask is not None:
            context = jnp.where((context_mask != 0)[..., None], context, 0)  # padding may hold anything, NaN included
        attention_mask = None if mask is None else sequences.segment_attention_mask(mask, mask)
        angles = rotary_angles(positions, self.width // self.num_heads) if self.positions == "rotary" else None
        context_mask = None if context_mask is None else (context_mask != 0)[:, None, :]
        inputs = dict(mask=attention_mask, angles=angles, context=context, context_mask=context_mask)
        # 2. Blocks
        hidden = transformer_blocks(self, hidden, train=train, decode=decode, **inputs)
        # 3. Final normalisation, pooling and output layer
        hidden = normalization(self.normalization, self.width, train, self.dtype)(hidden)
        if self.pooling is not None:
            hidden = sequences.pool_sequence(hidden, self.pooling, mask)
        # While the parameters are initialised, those of the output layer are too.
        if not return_hidden or self.is_initializing():
            outputs = self._project(hidden, self._output_layer(name="output"))
        if not return_hidden:
            return outputs
        params, name = self.variables["params"], "embedding" if self.tie_embeddings else "output"
        return HiddenStates(hidden, {name: params[name]} if name in params else {})

    def logits(self, hidden: Array) -> Array:
        """Applies the output layer; called as `model.apply({"params": output_params}, hidden, method="logits")`.

        Args:
          hidden: `[..., D]`, some of the states of `HiddenStates`.

        Returns:
          float32 `[..., features]`.
        """
        output = self._output_layer(parent=None)
        return self._project(hidden, lambda x: output.apply({"params": self.variables["params"]["output"]}, x))

    def _output_layer(self, **options: Any) -> nn.Module:
        # Padded as the vocabulary is, where the outputs are the logits of its tokens.
        multiple = self.vocabulary_multiple if self.features == self.vocabulary_size else 1
        return Dense(sequences.round_up(self.features or 0, multiple), dtype=self.dtype, **options)

    def _project(self, x: Array, output: Callable[[Array], Array]) -> Array:
        # A tied output layer has no bias.
        if self.tie_embeddings:
            x = flat_dot_general(x, self.get_variable("params", "embedding")["embedding"].astype(x.dtype).T)
        elif self.features is not None:
            x = output(x)
        # Without the logits of the padding of the vocabulary.
        size = self.vocabulary_size if self.tie_embeddings else self.features
        return x[..., :size].astype(jnp.float32)

    def _embed(self, x: Array, mask: Array | None, train: bool, decode: bool) -> tuple[Array, Array]:
        """Returns the input of the first block, `[B, T, D]`, and the positions, `[B, T]` or `[1, T]`."""
        hidden = sequences.embed_inputs(self, x, mask, self.vocabulary_size, self.width, self.vocabulary_multiple)
        if x.shape[1] > self.max_length:
            raise ConfigError(f"Transformer: {x.shape[1]} steps are more than its max_length, {self.max_length}")
        if self.vocabulary_size is None:
            hidden = Dense(self.width, dtype=self.dtype, name="input")(hidden)
        positions = self._step_positions(x, mask, decode)
        if self.positions == "learned":
            hidden = hidden + nn.Embed(self.max_length, self.width, dtype=self.dtype, name="positions")(positions)
        return Dropout(self.dropout)(hidden, train=train), positions

    def _output_names(self) -> list[str]:
        return ["embedding"] if self.tie_embeddings else [] if self.features is None else ["output"]

    def _check_context(self, x: Array, context: Array | None, context_mask: Array | None) -> None:
        if self.cross_attention != (context is not None):
            verb = "needs a" if self.cross_attention else "takes no"
            raise ConfigError(f"Transformer: with cross_attention={self.cross_attention} it {verb} context")
        if context is None:
            return
        if context.ndim != 3 or context.shape[0] != x.shape[0]:
            raise ConfigError(f"Transformer: the context must be [{x.shape[0]}, S, C], got {list(context.shape)}")
        if context_mask is not None and context_mask.shape != context.shape[:2]:
            shapes = f"{list(context.shape[:2])}, got {list(context_mask.shape)}"
            raise ConfigError(f"Transformer: the context's mask must be {shapes}")

    def _step_positions(self, x: Array, mask: Array | None, decode: bool) -> Array:
        """Returns the position of every step in its segment, `[B, T]` or `[1, T]`."""
        # Positions restart in every segment; when decoding they continue from the cache.
        if mask is not None:
            return sequences.segment_positions(mask)
        steps = jnp.arange(x.shape[1], dtype=jnp.int32)[None, :]
        if decode:
            cache_exists = self.has_variable("cache", "position")
            position = self.variable("cache", "position", jnp.zeros, (), jnp.int32)
            steps = steps + position.value
            if cache_exists:
                position.value = position.value + x.shape[1]
        return steps


def check_settings(model: Transformer) -> None:
    """Checks the attributes of a Transformer; raises a ConfigError where they are unknown or contradict each other.

    >>> check_settings(Transformer(width=8, num_heads=2))
    """
    if model.positions not in ("rotary", "learned", None):
        raise ConfigError(f"positions: {model.positions!r} is unknown; choose None, 'rotary' or 'learned'")
    # The other normalisations mix steps, and would let padding influence the outputs.
    if model.normalization not in ("layer", "rms"):
        raise ConfigError(f"normalization: {model.normalization!r} is not available here; choose 'layer' or 'rms'")
    sequences.check_pooling(model.pooling)
    check_positive(vocabulary_multiple=model.vocabulary_multiple)
    if model.width % model.num_heads:
        raise ConfigError(f"num_heads: {model.num_heads} must divide the width, {model.width}")
    if model.positions == "rotary" and model.width // model.num_heads % 2:
        raise ConfigError(f"num_heads: rotary positions rotate pairs, but {model.width} / {model.num_heads} is odd")
    if model.tie_embeddings and (model.vocabulary_size is None or model.features not in (None, model.vocabulary_size)):
        size = f"the vocabulary's size, {model.vocabulary_size}"
        raise ConfigError(f"tie_embeddings: {model.features} features must be {size}")
