"""Cross-entropy in chunks: the plain loss and its gradients, to rounding, in a fraction of the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from foldax import learners
from foldax.engine.flops import inner_jaxprs
from foldax.errors import ConfigError, ExperimentError
from foldax.learners.supervised.step_losses import StepLoss, Steps, chunked_loss
from foldax.models import HiddenStates, Recurrent, Transformer

KEY = jax.random.key(0)
V, B, T, D = 101, 4, 10, 8
MODEL = Transformer(V, V, D, 1, 2, causal=True, max_length=T, vocabulary_multiple=16, tie_embeddings=True)
SEGMENTS = np.array([[1] * 11, [1] * 5 + [2] * 6, [1] * 3 + [0] * 8, [1] * 2 + [3] * 9])
BATCH = {"inputs": np.random.default_rng(0).integers(0, V, (B, T + 1)), "mask": SEGMENTS}


def test_chunks_equal_the_plain_loss():
    """3 does not divide 10 steps. Members of a sweep differ in label smoothing and dropout, both traced."""

    def updated_and_evaluated(smoothing, num_chunks):
        model = MODEL.clone(dropout=smoothing)
        options = dict(label_smoothing=smoothing, num_output_chunks=num_chunks, microbatches=2, l2=0.1)
        learner = learners.language_model(model, optax.sgd(1.0), token_bytes=np.arange(V), **options)
        state, metrics = learner.update(learner.init(KEY, BATCH), BATCH, KEY)
        return state.params, metrics, learner.evaluate(state, BATCH, KEY)

    smoothings = jnp.array([0.0, 0.2])
    results = jax.jit(lambda values: [jax.vmap(updated_and_evaluated, (0, None))(values, n) for n in (1, 3)])(
        smoothings
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), *results)


def test_gradients_are_scaled_by_the_cotangent_and_keep_the_type_of_the_states():
    def loss(params, states, steps, label_smoothing):
        return ((states.astype(jnp.float32) @ params).mean(axis=-1) * steps.weights).sum(), jnp.zeros(())

    steps = Steps(jnp.zeros((2, 5), int), jnp.arange(10.0).reshape(2, 5))
    hidden = HiddenStates(jnp.ones((2, 5, 3), jnp.bfloat16), jnp.ones((3, 4)))
    gradients = jax.grad(lambda hidden: 3.0 * chunked_loss(loss, 2, hidden, steps, None)[0])(hidden)
    np.testing.assert_allclose(gradients.output_params, np.full((3, 4), 3 * 45 / 4))
    assert gradients.states.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradients.states[..., 0].astype(np.float32), 3 * steps.weights, rtol=1e-2)


def largest_array(function, *args):
    """Number of elements of the largest array in a traced program, those of inner programs included."""

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars if hasattr(variable.aval, "size"))
            for inner in inner_jaxprs(equation):
                yield from sizes(inner)

    return max(sizes(jax.make_jaxpr(function)(*args).jaxpr))


def test_all_logits_never_exist():
    """Neither in the traced program nor in the memory that the compiler plans: 50 MiB of logits, in 16 chunks."""
    model = Transformer(6_400, 6_400, 8, 1, 1, causal=True, max_length=256)
    batch = {"inputs": jax.ShapeDtypeStruct((8, 257), jnp.int32)}
    num_logits, temporary = 8 * 256 * 6_400, {}
    for num_chunks in (1, 16):
        learner = learners.language_model(model, optax.sgd(0.1), num_output_chunks=num_chunks)
        state = jax.eval_shape(learner.init, KEY, batch)
        for function in (learner.update, learner.evaluate):
            largest = largest_array(function, state, batch, KEY)
            assert largest == num_logits if num_chunks == 1 else largest <= num_logits / 16
        memory = jax.jit(learner.update, donate_argnums=0).lower(state, batch, KEY).compile().memory_analysis()
        temporary[num_chunks] = memory.temp_size_in_bytes
    assert temporary[1] > 4 * num_logits
    assert temporary[16] < temporary[1] / 4


def test_chunks_by_default_where_logits_are_large_and_the_model_returns_hidden_states():
    large, small = ({"targets": jax.ShapeDtypeStruct((8, length), int)} for length in (1_024, 4))
    for model, expected in ((Transformer(50_304, 50_304), 16), (Recurrent(50_304, vocabulary_size=50_304), 1)):
        assert StepLoss(model, num_chunks=None).chunks_of(large) == expected
    assert StepLoss(Transformer(50_304, 50_304), num_chunks=None).chunks_of(small) == 1
    assert StepLoss(Transformer(50_304, 50_304), num_chunks=100).chunks_of(small) == 4
    with pytest.raises(ExperimentError, match="num_output_chunks=2: Recurrent returns no hidden states"):
        learners.language_model(Recurrent(5, vocabulary_size=5), optax.sgd(0.1), num_output_chunks=2)
    with pytest.raises(ConfigError, match="num_output_chunks: 0"):
        learners.language_model(MODEL, optax.sgd(0.1), num_output_chunks=0)
