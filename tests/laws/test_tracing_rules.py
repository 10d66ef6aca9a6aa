"""Stricter rules of JAX, on the traced functions of every learner: keys are used once, and no dtype is promoted."""

from collections.abc import Callable

import jax
import optax
import pytest
from jax.experimental.key_reuse._core import check_key_reuse

import foldax
from foldax import laws
from foldax.engine import fold, setup
from tests.laws.test_laws import LEARNERS

# Without a toy, the classifier with other data, and the search of mctx, which promotes dtypes and selects among keys.
NAMES = [name for name in LEARNERS if name not in ("bandit", "streaming", "alphazero")]


def traceable(name: str) -> tuple[foldax.Learner, object, object]:
    """A learner, its examples and a batch."""
    experiment, config, dataset = laws.make_subject(LEARNERS[name])
    program, (config, _, examples, _) = setup.initial_fold_arguments(experiment, config, dataset)
    return fold.make_learner(program, config), examples, jax.tree.map(lambda x: x[:16], examples)


@pytest.mark.parametrize("name", NAMES)
def test_no_key_is_used_twice(name: str) -> None:
    learner, examples, batch = traceable(name)
    first, second, third = jax.random.split(jax.random.key(0), 3)
    check_key_reuse(lambda key: learner.init(key, examples), first)
    state = jax.eval_shape(learner.init, first, examples)
    check_key_reuse(learner.update, state, batch, second)
    check_key_reuse(learner.evaluate, state, batch, third)


def test_the_check_finds_a_key_that_is_used_twice() -> None:
    with pytest.raises(jax.errors.KeyReuseError):
        check_key_reuse(lambda key: jax.random.normal(key) + jax.random.uniform(key), jax.random.key(0))


@pytest.fixture
def lenient_optax(monkeypatch) -> None:
    """Lets Optax's own code promote dtypes: Adam divides by a power of its integer count."""

    def lenient(update: Callable) -> Callable:
        def promoting_update(*args, **kwargs):
            with jax.numpy_dtype_promotion("standard"):
                return update(*args, **kwargs)

        return promoting_update

    def lenient_optimizer(make: Callable) -> Callable:
        def make_lenient(*args, **kwargs):
            optimizer = make(*args, **kwargs)
            return optimizer._replace(update=lenient(optimizer.update))

        return make_lenient

    for name in ("adam", "sgd", "rmsprop", "radam", "chain"):
        monkeypatch.setattr(optax, name, lenient_optimizer(getattr(optax, name)))
    monkeypatch.setattr(optax.MultiSteps, "update", lenient(optax.MultiSteps.update))


@pytest.mark.usefixtures("lenient_optax")
@pytest.mark.parametrize("name", NAMES)
def test_no_dtype_is_promoted_implicitly(name: str) -> None:
    with jax.numpy_dtype_promotion("strict"):
        learner, examples, batch = traceable(name)
        key = jax.random.key(0)
        state = jax.eval_shape(learner.init, key, examples)
        jax.eval_shape(learner.update, state, batch, key)
        jax.eval_shape(learner.evaluate, state, batch, key)
