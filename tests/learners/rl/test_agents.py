"""What holds of all agents alike."""

import jax
import optax
import pytest

from foldax import learners, models
from foldax.errors import ConfigError
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


THREE = "choice has 2 discrete actions, the network has outputs for 3 discrete actions"
CONTINUOUS = r"choice has 2 discrete actions, the network has outputs for continuous actions of shape \[2\]"
DISCRETE = r"continuous has continuous actions of shape \[1\], the network has outputs for 2 discrete actions"
TWO = r"continuous has continuous actions of shape \[1\], the network has outputs for continuous actions of shape \[2\]"
OPTIMIZER, STEPS = optax.sgd(0.1), dict(learning_starts=512)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: learners.ppo(choice(), models.ActorCritic(3), OPTIMIZER), THREE),
        (lambda: learners.a2c(choice(), models.ActorCritic(2, continuous=True), OPTIMIZER), CONTINUOUS),
        (lambda: learners.ppo(continuous(), models.ActorCritic(2), OPTIMIZER), DISCRETE),
        (lambda: learners.ppo(continuous(), models.ActorCritic(2, continuous=True), OPTIMIZER), TWO),
        (lambda: learners.reinforce(choice(), models.ActorCritic(3), OPTIMIZER), THREE),
        (lambda: learners.recurrent_ppo(choice(), models.RecurrentActorCritic(3), OPTIMIZER), THREE),
        (lambda: learners.pqn(choice(), models.QNetwork(3), OPTIMIZER, environment_steps=99), THREE),
        (lambda: learners.dqn(choice(), models.QNetwork(3), OPTIMIZER, environment_steps=99, **STEPS), THREE),
        (
            lambda: learners.sac(
                continuous(), models.GaussianActor(2), models.TwinCritic(), OPTIMIZER, OPTIMIZER, **STEPS
            ),
            TWO,
        ),
        (
            lambda: learners.td3(
                continuous(), models.DeterministicActor(2), models.TwinCritic(), OPTIMIZER, OPTIMIZER, **STEPS
            ),
            TWO,
        ),
    ],
)
def test_a_network_that_does_not_fit_the_actions_is_an_error_before_the_first_step(make, message):
    learner = make()
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(learner.init, KEY, None)
