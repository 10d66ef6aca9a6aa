"""What holds of all agents alike."""

import jax
import pytest

from tests.learners.rl import test_learning, test_off_policy, test_on_policy
from tests.rl.environments import choice, continuous

KEY = jax.random.key(0)
AGENTS = {name: make(choice()) for name, make in test_on_policy.AGENTS.items()}
AGENTS |= {name: make(choice(), **options) for name, (make, options) in test_learning.AGENTS.items()}
AGENTS |= {name: make(continuous()) for name, (make, _) in test_off_policy.AGENTS.items()}


def primitives(jaxpr):
    """Yields the names of all operations, those of loops and functions too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner)


@pytest.mark.parametrize("name", AGENTS)
def test_updates_have_no_branches_of_which_a_sweep_would_run_both_sides(name):
    """What is rare, such as an actor's step for every few of its critics', is a loop's end, or costs a copy."""
    state = jax.eval_shape(lambda key: AGENTS[name].init(key, None), KEY)
    found = set(primitives(jax.make_jaxpr(AGENTS[name].update)(state, None, KEY).jaxpr))
    assert "scan" in found
    assert "cond" not in found
