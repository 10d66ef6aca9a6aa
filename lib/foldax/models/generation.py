"""Autoregressive generation from a language model, in one compiled loop."""

import functools

import chex
import jax
import jax.numpy as jnp
from chex import Numeric
from flax.typing import VariableDict

from foldax.errors import ConfigError
from foldax.learner import Key, Model
from foldax.models.layers.sequences import check_tokens
from foldax.models.networks.recurrent import Recurrent
from foldax.models.networks.transformer import Transformer

LanguageModel = Transformer | Recurrent


def generate(
    model: Model,
    variables: VariableDict,
    prompt: jax.Array,
    key: Key,
    *,
    num_tokens: int,
    temperature: Numeric = 1.0,
    top_k: int | None = None,
    top_p: Numeric | None = None,
    context: jax.Array | None = None,
    context_mask: jax.Array | None = None,
    use_cache: bool = True,
) -> jax.Array:
    """Samples a continuation of each prompt.

    Args:
      model: a causal model of tokens, `Transformer` or `Recurrent`.
      variables: its parameters, `{"params": ...}`.
      prompt: int `[B, T]`, T at least 1.
      key: random key.
      num_tokens: number of tokens to generate.
      temperature: divides the logits; 0 selects the most probable token; may be traced.
      top_k: samples from the k most probable tokens only, and any that tie with the last of them (Fan et al., 2018).
      top_p: samples from the smallest set of most probable tokens whose probabilities sum to at least this value, in
        (0, 1] (nucleus sampling: Holtzman et al., 2020); of tokens that tie, the first are taken; may be traced.
      context: `[B, S, C]`, for a Transformer with cross-attention.
      context_mask: `[B, S]`, 0 or False where the context is padding.
      use_cache: caches keys and values, or carries, of earlier steps; otherwise every step recomputes all of them.

    Returns:
      int32 `[B, num_tokens]`.

    Raises:
      ConfigError: the model cannot continue a prompt, the prompt is empty or (outside compiled code) holds an unknown
        token, an argument is out of range, or the tokens are more than the model's `max_length`.

    >>> model = Recurrent(5, (4,), vocabulary_size=5)
    >>> prompt = jnp.array([[0, 1], [2, 3]])
    >>> variables = model.init(jax.random.key(0), prompt)
    >>> generate(model, variables, prompt, jax.random.key(1), num_tokens=3).shape
    (2, 3)
    """
    if not isinstance(model, LanguageModel):
        raise ConfigError(f"generate: the model must be a Transformer or Recurrent, got {type(model).__name__}")
    prompt = jnp.asarray(prompt)
    num_logits = _check_model_and_prompt(model, prompt, num_tokens)
    _check_sampling(temperature, top_k, top_p, num_logits)
    # The model is a static argument of the compiled loop, which a traced dropout rate cannot be.
    model = model.clone(dropout=0.0)
    inputs = {} if context is None else {"context": context, "context_mask": context_mask}
    return _generate(model, variables, prompt, key, inputs, num_tokens, temperature, top_k, top_p, use_cache)


def _check_model_and_prompt(model: LanguageModel, prompt: jax.Array, num_tokens: int) -> int:
    """Returns the number of logits per step, or raises a ConfigError."""
    if prompt.ndim != 2 or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise ConfigError(f"generate: the prompt must be integer tokens [B, T], got {prompt.dtype}{list(prompt.shape)}")
    length = prompt.shape[1]
    if length < 1 or num_tokens < 1:
        got = f"{length} and {num_tokens}"
        raise ConfigError(f"generate: the prompt and num_tokens must be at least 1 token, got {got}")
    name = type(model).__name__
    if not getattr(model, "causal", True) or getattr(model, "bidirectional", False):
        raise ConfigError(f"generate: the {name} attends to later steps, so it cannot predict the next token")
    if model.pooling is not None or model.vocabulary_size is None:
        raise ConfigError(f"generate: the {name} must have a vocabulary_size and no pooling")
    if (model.features or model.vocabulary_size) > model.vocabulary_size:
        raise ConfigError(f"generate: {model.features} features are more than the vocabulary, {model.vocabulary_size}")
    max_length = getattr(model, "max_length", None)
    if max_length is not None and length + num_tokens > max_length:
        tokens = f"a prompt of {length} tokens and {num_tokens} new ones"
        raise ConfigError(f"generate: {tokens} are more than the model's max_length, {max_length}")
    check_tokens(prompt, model.vocabulary_size, "generate: prompt")
    return model.features or model.vocabulary_size


def _check_sampling(temperature: Numeric, top_k: int | None, top_p: Numeric | None, num_logits: int) -> None:
    """Checks settings that are Python numbers; traced ones, whose values are unknown, pass."""
    if isinstance(temperature, (int, float)) and temperature < 0:
        raise ConfigError(f"temperature: {temperature} must be 0 or more")
    if isinstance(top_p, (int, float)) and not 0 < top_p <= 1:
        raise ConfigError(f"top_p: {top_p} must be above 0 and at most 1")
    if top_k is not None and not 1 <= top_k <= num_logits:
        raise ConfigError(f"top_k: {top_k} must be at least 1 and at most the vocabulary, {num_logits}")


@functools.partial(jax.jit, static_argnames=("model", "num_tokens", "top_k", "use_cache"))
def _generate(
    model: LanguageModel,
    variables: VariableDict,
    prompt: jax.Array,
    key: Key,
    inputs: dict[str, jax.Array],
    num_tokens: int,
    temperature: Numeric,
    top_k: int | None,
    top_p: Numeric | None,
    use_cache: bool,
) -> jax.Array:
    sample = functools.partial(sample_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    keys = jax.random.split(key, num_tokens)
    padded = jnp.pad(prompt, [(0, 0), (0, num_tokens)])
    Carry = tuple[jax.Array, chex.ArrayTree]

    def cached_step(carry: Carry, key: Key) -> tuple[Carry, jax.Array]:
        tokens, cache = carry
        logits, changed = model.apply({**variables, "cache": cache}, tokens, decode=True, mutable=["cache"], **inputs)
        token = sample(key, logits[:, -1])
        return (token[:, None], changed["cache"]), token

    def uncached_step(carry: Carry, key: Key) -> tuple[Carry, jax.Array]:
        tokens, length = carry
        logits = model.apply(variables, tokens, **inputs)
        token = sample(key, jax.lax.dynamic_index_in_dim(logits, length - 1, axis=1, keepdims=False))
        return (jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], length, axis=1), length + 1), token

    # Without a cache, every step applies the model to the whole padded sequence; a causal model ignores its end.
    if not use_cache:
        return jax.lax.scan(uncached_step, (padded, jnp.int32(prompt.shape[1])), keys)[1].T
    # An empty cache with room for the prompt and all new tokens, created without computing the parameters.
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), padded, decode=True, **inputs))["cache"]
    cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    # 1. Prefill: the whole prompt in one call, which gives the first token.
    carry, first = cached_step((prompt.astype(jnp.int32), cache), keys[0])
    # 2. Decoding: one token per step.
    _, rest = jax.lax.scan(cached_step, carry, keys[1:])
    return jnp.concatenate([first[:, None], rest.T], axis=1)


def sample_tokens(
    key: Key, logits: jax.Array, *, temperature: Numeric = 1.0, top_k: int | None = None, top_p: Numeric | None = None
) -> jax.Array:
    """Samples tokens from logits, with temperature, top-k (Fan et al., 2018) and top-p (Holtzman et al., 2020).

    Args:
      key: random key.
      logits: float `[B, V]`.
      temperature: as in `generate`, as are `top_k` and `top_p`.
      top_k: in 1 to V.
      top_p: in (0, 1].

    Returns:
      int32 `[B]`.

    Raises:
      ConfigError: `top_k`, or another argument that is a Python number, is out of range.

    >>> sample_tokens(jax.random.key(0), jnp.array([[0.0, 2.0, 1.0]]), temperature=0).tolist()
    [1]
    """
    _check_sampling(temperature, top_k, top_p, logits.shape[-1])
    chex.assert_rank(logits, 2)
    lowest = jnp.finfo(logits.dtype).min
    temperature = jnp.asarray(temperature, logits.dtype)
    # Relative to the maximum, so that no logit overflows upwards however small the temperature is.
    scaled = (logits - logits.max(axis=-1, keepdims=True)) * jnp.reciprocal(jnp.where(temperature > 0, temperature, 1))
    # Top-k: keep logits not below the k-th largest.
    if top_k is not None:
        threshold = jax.lax.top_k(scaled, top_k)[0][:, -1:]
        scaled = jnp.where(scaled < threshold, lowest, scaled)
    # Top-p: keep the nucleus, tokens whose more probable ones sum to less than top_p.
    if top_p is not None:
        order = jnp.argsort(scaled, axis=-1, descending=True)
        descending = jnp.take_along_axis(scaled, order, axis=-1)
        probabilities = jax.nn.softmax(descending, axis=-1)
        preceding = jnp.cumsum(probabilities, axis=-1) - probabilities
        in_nucleus = (preceding < top_p) | (jnp.asarray(top_p) >= 1)
        # The most probable token always stays, even for a top_p that rounds to 0.
        in_nucleus = in_nucleus.at[:, 0].set(True)
        # Back to the order of the tokens. By rank, not by a threshold, which all ties with the last token would pass.
        in_nucleus = jnp.take_along_axis(in_nucleus, jnp.argsort(order, axis=-1), axis=-1)
        scaled = jnp.where(in_nucleus, scaled, lowest)
    sampled = jax.random.categorical(key, scaled, axis=-1)
    return jnp.where(temperature > 0, sampled, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
