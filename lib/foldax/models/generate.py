"""Sampling sequences from a language model, in one compiled loop."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from foldax.errors import ConfigError


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
      top_k: draws among the likeliest k only (Fan et al., 2018).
      top_p: draws among the likeliest that together have this probability (Holtzman et al., 2020); may be traced.
      use_cache: remembers what earlier steps computed; without it every step computes all anew.

    Raises:
      ConfigError: an empty prompt, no steps, a `top_k` out of range, or more tokens than the model's `max_length`.
    """
    length = prompt.shape[1]
    if length < 1 or steps < 1:
        raise ConfigError(f"generate: needs a prompt and steps of at least 1 token, got {length} and {steps}")
    longest = getattr(model, "max_length", None)
    if longest is not None and length + steps > longest:
        raise ConfigError(
            f"generate: a prompt of {length} tokens and {steps} steps are more than the model's max_length, {longest}"
        )
    if hasattr(model, "dropout"):
        model = model.clone(dropout=0.0)  # a traced rate could not be static
    return _generate(model, variables, prompt, key, steps, temperature, top_k, top_p, use_cache)


@functools.partial(jax.jit, static_argnames=("model", "steps", "top_k", "use_cache"))
def _generate(
    model: Any,
    variables: Any,
    prompt: jax.Array,
    key: jax.Array,
    steps: int,
    temperature: Any,
    top_k: int | None,
    top_p: Any,
    use_cache: bool,
) -> jax.Array:
    draw = functools.partial(sample, temperature=temperature, top_k=top_k, top_p=top_p)
    keys = jax.random.split(key, steps)

    def cached(carry: Any, key: jax.Array) -> Any:
        tokens, cache = carry
        logits, changed = model.apply({**variables, "cache": cache}, tokens, decode=True, mutable=["cache"])
        token = draw(key, logits[:, -1])
        return (token[:, None], changed["cache"]), token

    def anew(carry: Any, key: jax.Array) -> Any:
        tokens, length = carry
        logits = model.apply(variables, tokens)
        token = draw(key, jax.lax.dynamic_index_in_dim(logits, length - 1, axis=1, keepdims=False))
        return (jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], length, axis=1), length + 1), token

    if use_cache:
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), prompt, decode=True))["cache"]
        cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        carry, first = cached((prompt, cache), keys[0])  # the whole prompt at once
        _, rest = jax.lax.scan(cached, carry, keys[1:])
        return jnp.concatenate([first[:, None], rest.T], axis=1)
    padded = jnp.pad(prompt, [(0, 0), (0, steps)])
    return jax.lax.scan(anew, (padded, jnp.int32(prompt.shape[1])), keys)[1].T


def sample(
    key: jax.Array, logits: jax.Array, *, temperature: Any = 1.0, top_k: int | None = None, top_p: Any = None
) -> jax.Array:
    """Draws tokens int `[B]` from logits `[B, V]`; the arguments are those of `generate`.

    Raises:
      ConfigError: `top_k` is not in 1 to V.
    """
    size, lowest = logits.shape[-1], jnp.finfo(logits.dtype).min
    temperature = jnp.asarray(temperature, logits.dtype)
    scaled = logits * jnp.reciprocal(jnp.where(temperature > 0, temperature, 1))
    if top_k is not None:
        if not 1 <= top_k <= size:
            raise ConfigError(f"top_k: {top_k} must be at least 1 and at most the vocabulary, {size}")
        least = jax.lax.top_k(scaled, top_k)[0][:, -1:]
        scaled = jnp.where(scaled < least, lowest, scaled)
    if top_p is not None:
        ordered = jnp.flip(jnp.sort(scaled, axis=-1), axis=-1)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # of all that are likelier
        kept = jnp.where(before < jnp.asarray(top_p, logits.dtype), ordered, jnp.inf)
        kept = kept.at[:, 0].set(ordered[:, 0])  # the likeliest always
        scaled = jnp.where(scaled < kept.min(axis=-1, keepdims=True), lowest, scaled)
    drawn = jax.random.categorical(key, scaled, axis=-1)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
