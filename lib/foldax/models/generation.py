"""Sampling sequences from a language model, in one compiled loop."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from foldax.errors import ConfigError
from foldax.models.layers.sequences import check_tokens


def generate(
    model: Any,
    variables: Any,
    prompt: jax.Array,
    key: jax.Array,
    *,
    steps: int,
    temperature: Any = 1.0,
    top_k: int | None = None,
    top_p: Any = None,
    context: jax.Array | None = None,
    context_mask: jax.Array | None = None,
    use_cache: bool = True,
) -> jax.Array:
    """Returns tokens `[B, steps]` that go on after the prompts.

    Args:
      model: a causal model of tokens, `Transformer` or `Recurrent`.
      variables: its parameters, `{"params": ...}`.
      prompt: int `[B, T]`, all equally long.
      key: randomness of the draws.
      steps: number of tokens to draw.
      temperature: divides the logits; 0 takes the likeliest token; may be traced.
      top_k: draws among the likeliest k only (Fan et al., 2018), and those as likely as the last of them.
      top_p: draws among the likeliest that together have this probability (Holtzman et al., 2020); may be traced.
      context: `[B, S, C]`, what a Transformer with cross-attention reads.
      context_mask: `[B, S]`, 0 or False where the context is padding.
      use_cache: remembers what earlier steps computed; without it every step computes all anew.

    Raises:
      ConfigError: a model that cannot go on from a prompt, an empty prompt or (outside compiled code) one with an
        unknown token, no steps, a setting out of range, or more tokens than the model's `max_length`.
    """
    prompt = jnp.asarray(prompt)
    _check(model, prompt, steps)
    _check_settings(temperature, top_k, top_p, model.features or model.vocabulary_size)
    if hasattr(model, "dropout"):
        model = model.clone(dropout=0.0)  # a traced rate could not be static
    inputs = {} if context is None else {"context": context, "context_mask": context_mask}
    return _generate(model, variables, prompt, key, inputs, steps, temperature, top_k, top_p, use_cache)


def _check(model: Any, prompt: jax.Array, steps: int) -> None:
    if prompt.ndim != 2 or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise ConfigError(f"generate: the prompt must be integer tokens [B, T], got {prompt.dtype}{list(prompt.shape)}")
    length = prompt.shape[1]
    if length < 1 or steps < 1:
        raise ConfigError(f"generate: needs a prompt and steps of at least 1 token, got {length} and {steps}")
    name = type(model).__name__
    if not getattr(model, "causal", True) or getattr(model, "bidirectional", False):
        raise ConfigError(f"generate: the {name} sees what comes after a step, so it cannot say what comes next")
    if model.pooling is not None or model.vocabulary_size is None:
        raise ConfigError(f"generate: the {name} must have a vocabulary_size and no pooling")
    if (model.features or model.vocabulary_size) > model.vocabulary_size:
        raise ConfigError(f"generate: {model.features} features are more than the vocabulary, {model.vocabulary_size}")
    longest = getattr(model, "max_length", None)
    if longest is not None and length + steps > longest:
        raise ConfigError(
            f"generate: a prompt of {length} tokens and {steps} steps are more than the model's max_length, {longest}"
        )
    check_tokens(prompt, model.vocabulary_size, "generate: prompt")


def _check_settings(temperature: Any, top_k: int | None, top_p: Any, size: int) -> None:
    """Looks at what is a Python number; traced settings go unseen."""
    if isinstance(temperature, (int, float)) and temperature < 0:
        raise ConfigError(f"temperature: {temperature} must be 0 or more")
    if isinstance(top_p, (int, float)) and not 0 < top_p <= 1:
        raise ConfigError(f"top_p: {top_p} must be above 0 and at most 1")
    if top_k is not None and not 1 <= top_k <= size:
        raise ConfigError(f"top_k: {top_k} must be at least 1 and at most the vocabulary, {size}")


@functools.partial(jax.jit, static_argnames=("model", "steps", "top_k", "use_cache"))
def _generate(
    model: Any,
    variables: Any,
    prompt: jax.Array,
    key: jax.Array,
    inputs: dict[str, jax.Array],
    steps: int,
    temperature: Any,
    top_k: int | None,
    top_p: Any,
    use_cache: bool,
) -> jax.Array:
    draw = functools.partial(sample, temperature=temperature, top_k=top_k, top_p=top_p)
    keys = jax.random.split(key, steps)
    length = prompt.shape[1]
    padded = jnp.pad(prompt, [(0, 0), (0, steps)])

    def cached(carry: Any, key: jax.Array) -> Any:
        tokens, cache = carry
        logits, changed = model.apply({**variables, "cache": cache}, tokens, decode=True, mutable=["cache"], **inputs)
        token = draw(key, logits[:, -1])
        return (token[:, None], changed["cache"]), token

    def anew(carry: Any, key: jax.Array) -> Any:
        tokens, length = carry
        logits = model.apply(variables, tokens, **inputs)
        token = draw(key, jax.lax.dynamic_index_in_dim(logits, length - 1, axis=1, keepdims=False))
        return (jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], length, axis=1), length + 1), token

    if not use_cache:
        return jax.lax.scan(anew, (padded, jnp.int32(length)), keys)[1].T
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), padded, decode=True, **inputs))["cache"]
    cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    carry, first = cached((prompt.astype(jnp.int32), cache), keys[0])  # the whole prompt at once
    _, rest = jax.lax.scan(cached, carry, keys[1:])
    return jnp.concatenate([first[:, None], rest.T], axis=1)


def sample(
    key: jax.Array, logits: jax.Array, *, temperature: Any = 1.0, top_k: int | None = None, top_p: Any = None
) -> jax.Array:
    """Draws tokens int `[B]` from logits `[B, V]`; the arguments are those of `generate`.

    Raises:
      ConfigError: `top_k` is not in 1 to V, or another setting that is a Python number is out of range.
    """
    _check_settings(temperature, top_k, top_p, logits.shape[-1])
    lowest = jnp.finfo(logits.dtype).min
    temperature = jnp.asarray(temperature, logits.dtype)
    # The likeliest at 0: however small the temperature, no logit overflows upwards.
    scaled = (logits - logits.max(axis=-1, keepdims=True)) * jnp.reciprocal(jnp.where(temperature > 0, temperature, 1))
    if top_k is not None:
        least = jax.lax.top_k(scaled, top_k)[0][:, -1:]
        scaled = jnp.where(scaled < least, lowest, scaled)
    if top_p is not None:
        ordered = jnp.flip(jnp.sort(scaled, axis=-1), axis=-1)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # of all that are likelier
        kept = (before < top_p) | (jnp.asarray(top_p) >= 1)
        kept = kept.at[:, 0].set(True)  # the likeliest always
        least = jnp.where(kept, ordered, jnp.inf).min(axis=-1, keepdims=True)
        scaled = jnp.where(scaled < least, lowest, scaled)
    drawn = jax.random.categorical(key, scaled, axis=-1)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
