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
    """Yields the names of all operations, also those inside loops and functions."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner)


@pytest.mark.parametrize("name", AGENTS)
def test_no_update_branches_because_a_vmapped_sweep_would_run_both_sides(name):
    """Rare work, such as an actor's step after some of the critics', is at the end of a loop, or costs a copy."""
    state = jax.eval_shape(lambda key: AGENTS[name].init(key, None), KEY)
    names = set(primitives(jax.make_jaxpr(AGENTS[name].update)(state, None, KEY).jaxpr))
    assert "scan" in names
    assert "cond" not in names
