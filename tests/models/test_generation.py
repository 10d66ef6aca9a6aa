"""Generation: the cache, sampling by temperature, top-k and top-p, and invalid arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from foldax.errors import ConfigError
from foldax.models import Recurrent, Transformer, generate, sample_tokens
from tests.models.shared import random_variables

B, T, V = 4, 5, 13
PROMPT = np.random.default_rng(0).integers(0, V, (B, T))
CONTEXT = np.random.default_rng(1).normal(size=(B, 6, 3)).astype(np.float32)
CONTEXT_MASK = np.arange(6)[None] < np.array([6, 1, 4, 2])[:, None]
TRANSFORMER = functools.partial(Transformer, V, V, 8, num_heads=4, causal=True)
MODELS = {
    "rotary": TRANSFORMER(depth=1, num_kv_heads=2, normalization="rms"),
    "scanned": TRANSFORMER(num_kv_heads=1, depth=2, scan_layers=True),
    "learned": TRANSFORMER(depth=1, positions="learned", max_length=20, tie_embeddings=True),
    "translator": TRANSFORMER(depth=1, cross_attention=True),
    "lstm": Recurrent(V, (8, 6), "lstm", vocabulary_size=V),
    "gru": Recurrent(V, (8,), "gru", vocabulary_size=V),
}


def extra(name):
    return {"context": CONTEXT, "context_mask": CONTEXT_MASK} if name == "translator" else {}


@pytest.mark.parametrize(
    ("name", "top_k"), list(zip(["rotary", "scanned", "learned", "translator", "lstm"], [None, 7, 5, None, 7]))
)
def test_cached_generation_equals_uncached_generation(name, top_k):
    model = MODELS[name]
    variables = random_variables(model, PROMPT, scale=0.5, **extra(name))
    continuation = functools.partial(generate, model, variables, num_tokens=9, top_k=top_k, **extra(name))
    generated = set()
    for seed, (temperature, top_p) in enumerate([(1.0, 1.0), (0.0, 1.0), (0.7, 0.8), (3.0, 0.95), (10.0, 1.0)]):
        prompt = np.roll(PROMPT, seed, axis=1)
        settings = {"key": jax.random.key(seed), "temperature": temperature, "top_p": top_p}
        cached, uncached = (np.asarray(continuation(prompt, use_cache=use, **settings)) for use in (True, False))
        assert cached.shape == (B, 9)
        np.testing.assert_array_equal(cached, uncached)
        generated |= set(cached.ravel())
    assert len(generated) > 4


def test_prompt_of_one_token_can_be_continued_to_max_length():
    variables = random_variables(MODELS["learned"], PROMPT, scale=0.5)
    continuation = functools.partial(
        generate, MODELS["learned"], variables, PROMPT[:, :1], jax.random.key(0), temperature=0
    )
    longest = continuation(num_tokens=19)
    np.testing.assert_array_equal(longest, continuation(num_tokens=19, use_cache=False))
    np.testing.assert_array_equal(longest[:, :1], continuation(num_tokens=1))


def test_settings_may_be_traced_and_the_cache_is_no_longer_than_needed():
    variables = random_variables(MODELS["rotary"], PROMPT, scale=0.5)

    def tokens(temperature, top_p, dropout):
        model = MODELS["rotary"].clone(dropout=dropout, max_length=4099)
        options = {"num_tokens": 9, "temperature": temperature, "top_p": top_p}
        return generate(model, variables, PROMPT, jax.random.key(1), **options)

    plain = generate(MODELS["rotary"], variables, PROMPT, jax.random.key(1), num_tokens=9, temperature=0.7, top_p=0.8)
    np.testing.assert_array_equal(jax.jit(tokens)(0.7, 0.8, 0.5), plain)
    assert "4099" not in str(jax.make_jaxpr(tokens)(0.7, 0.8, 0.5))


def expected_probabilities(logits, temperature=1.0, top_k=None, top_p=1.0):
    """Probabilities `[V]` by definition: most probable tokens first, until their sum reaches `top_p`."""
    weights = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-logits)[:top_k]
    probabilities = weights / weights[order].sum()
    kept, total = np.zeros(len(logits)), 0.0
    for token in order:
        if total >= top_p:
            break
        kept[token] = probabilities[token]
        total += probabilities[token]
    return kept / kept.sum()


SAMPLES = 4096
LOGITS = np.log(np.array([0.02, 0.3, 0.08, 0.4, 0.05, 0.15], np.float32))


@functools.partial(jax.jit, static_argnames="top_k")
def frequencies(key, logits, temperature=1.0, top_p=1.0, top_k=None):
    """Relative frequency of each token among samples for these logits `[V]`."""
    many = jnp.broadcast_to(logits, (SAMPLES, *logits.shape))
    samples = sample_tokens(key, many, temperature=temperature, top_k=top_k, top_p=top_p)
    return jnp.bincount(samples, length=len(logits)) / SAMPLES


@pytest.mark.parametrize("top_k", [None, 1, 3, 6])
def test_samples_have_the_support_and_frequencies_of_the_definition(top_k):
    cases = [(1.0, 1.0), (1.0, 0.5), (1.0, 0.75), (1.0, 0.3), (0.5, 0.9), (2.5, 0.9), (2.5, 1.0), (1.0, 1e-6)]
    for seed, (temperature, top_p) in enumerate(cases):
        expected = expected_probabilities(LOGITS.astype(float), temperature, top_k, top_p)
        observed = frequencies(jax.random.key(seed), LOGITS, temperature, top_p, top_k)
        assert ((observed > 0) == (expected > 0)).all(), (temperature, top_p)
        deviation = np.sqrt(np.maximum(expected * (1 - expected), 0) / SAMPLES)
        assert (np.abs(observed - expected) <= 5 * deviation + 1e-6).all(), (temperature, top_p)


@settings(max_examples=30, deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40).map(lambda number: number / 10), min_size=6, max_size=6, unique=True),
    temperature=st.floats(0.25, 4),
    top_p=st.floats(0.01, 1),
    top_k=st.sampled_from([None, 3]),
)
def test_samples_stay_within_the_support(logits, temperature, top_p, top_k):
    logits = np.array(logits)
    supports = [expected_probabilities(logits, temperature, top_k, top_p + shift) > 0 for shift in (-1e-5, 1e-5)]
    sampled = np.asarray(frequencies(jax.random.key(0), logits.astype(np.float32), temperature, top_p, top_k)) > 0
    assert not (sampled & ~supports[1]).any()  # top_p is rounded, so a token at its edge may or may not be in
    likely = expected_probabilities(logits, temperature, top_k, top_p) > 0.01
    assert not (likely & supports[0] & ~sampled).any()


@pytest.mark.parametrize("temperature", [0.0, 1e-44, 1e-30, 1e-6])
def test_tiny_temperatures_select_the_most_probable_token(temperature):
    logits = jnp.array([[1.0, 3.0, 2.999, -1e30], [-1e4, -2e4, -3e4, -jnp.inf]])
    samples = sample_tokens(jax.random.key(0), logits, temperature=temperature, top_k=3, top_p=0.9)
    np.testing.assert_array_equal(samples, [1, 0])


def test_top_p_takes_no_more_of_the_tokens_that_tie_than_it_needs():
    keys, logits = jax.random.split(jax.random.key(0), 200), jnp.array([[0.0, 1.0, 1.0, 1.0, 1.0]])
    tokens = jax.vmap(lambda key: sample_tokens(key, logits, top_p=0.4))(keys)
    assert set(np.asarray(tokens).ravel().tolist()) == {1, 2}


def test_top_k_keeps_all_ties_with_its_last_token():
    logits = np.array([2.0, 1.0, 1.0, 1.0, 0.0], np.float32)
    assert (np.asarray(frequencies(jax.random.key(0), logits, top_k=2)) > 0).tolist() == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (MODELS["learned"], {"num_tokens": 16}, "5 tokens and 16 new ones are more than the model's max_length, 20"),
        (MODELS["lstm"], {"num_tokens": 0}, "at least 1 token, got 5 and 0"),
        (MODELS["lstm"], {"prompt": PROMPT[:, :0]}, "at least 1 token, got 0 and 2"),
        (MODELS["lstm"], {"prompt": PROMPT[0]}, r"integer tokens \[B, T\], got int32\[5\]"),
        (MODELS["lstm"], {"prompt": PROMPT / 1}, r"integer tokens \[B, T\], got float32\[4, 5\]"),
        (MODELS["lstm"], {"prompt": np.array([[0, V]])}, r"prompt: token 13 at \[0, 1\] is not in the vocabulary"),
        (MODELS["lstm"], {"prompt": np.array([[-1, 0]])}, r"prompt: token -1 at \[0, 0\]"),
        (MODELS["lstm"], {"temperature": -0.1}, "temperature: -0.1 must be 0 or more"),
        (MODELS["lstm"], {"top_k": 0}, "top_k: 0 must be at least 1"),
        (MODELS["lstm"], {"top_k": V + 1}, "top_k: 14 .* at most the vocabulary, 13"),
        (MODELS["lstm"], {"top_p": 0.0}, "top_p: 0.0 must be above 0"),
        (MODELS["lstm"], {"top_p": 1.5}, "top_p: 1.5 .* at most 1"),
        (MODELS["rotary"].clone(causal=False), {}, "Transformer attends to later steps"),
        (MODELS["gru"].clone(bidirectional=True), {}, "Recurrent attends to later steps"),
        (MODELS["gru"].clone(pooling="last"), {}, "no pooling"),
        (MODELS["gru"].clone(vocabulary_size=None), {}, "must have a vocabulary_size"),
        (MODELS["gru"].clone(features=V + 1), {}, "14 features are more than the vocabulary, 13"),
        (nn.Dense(V), {}, "must be a Transformer or Recurrent, got Dense"),
    ],
)
def test_invalid_arguments_raise_helpful_errors(model, options, message):
    with pytest.raises(ConfigError, match=message):
        generate(model, {}, options.pop("prompt", PROMPT), jax.random.key(0), **{"num_tokens": 2, **options})
