"""`rl.check` passes the library's environments, and says in a line what is wrong with others."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from foldax import rl
from foldax.errors import ConfigError
from foldax.rl import Box, Discrete, Environment, Step
from tests.rl.environments import counter, masked, two_parts

check = functools.partial(rl.check, num_steps=3, num_envs=2)


@pytest.mark.parametrize("make", [rl.matrix_game, masked, two_parts, rl.pendulum], ids=lambda make: make.__name__)
def test_environments_that_are_right_pass(make):
    report = check(make())
    assert report.reset_price > 0 < report.steps_per_second
    assert report.name in str(report)


def test_the_report_counts_ends_and_notes_what_may_be_a_mistake():
    report = rl.check(counter(25), num_steps=50, num_envs=2)
    assert (report.episodes, report.terminated, report.mean_length) == (4, 4, 25.0)
    assert "all 4 episodes terminated after exactly 25 steps; if that is a time limit" in str(report)
    report = rl.check(counter(25, truncates=True), num_steps=10, num_envs=2)
    assert "no episode ended in 10 steps" in str(report)


def test_resets_that_cost_more_than_steps_are_noted():
    def reset(key):
        return jnp.int32(0), jnp.linalg.svd(jax.random.normal(key, (60, 60)))[1][:1] * 0

    report = check(counter()._replace(reset=reset))
    assert "rl.wrappers.pool_resets" in str(report)


def environment(**changes) -> Environment:
    """Counts to three; the changes are of one step's result, by field."""

    def step(key, state, action):
        count = state + 1
        result = Step(jnp.ones(1), jnp.float32(1), count >= 3, jnp.bool_(False))
        return count, result._replace(**{name: change(count) for name, change in changes.items()})

    ones = np.ones(1, np.float32)
    return Environment(lambda key: (jnp.int32(0), jnp.ones(1)), step, Box(-ones, ones), Discrete(2), "mine")


def overflowing() -> Environment:
    def step(key, state, action):
        return state + jnp.int8(1), Step(jnp.ones(1), jnp.float32(1), jnp.bool_(False), jnp.bool_(False))

    return environment()._replace(reset=lambda key: (jnp.int8(120), jnp.ones(1)), step=step)


COUNTER = itertools.count()
GENERATOR = np.random.RandomState(0)
SLIPS = {
    "NumPy": (environment(reward=lambda count: np.sqrt(count)), "mine: step uses NumPy, or a Python branch, on values"),
    "a Python counter": (
        environment(reward=lambda count: jnp.float32(next(COUNTER))),
        "mine: step gives another program each time: it reads something that changes",
    ),
    "random numbers of NumPy": (
        environment()._replace(reset=lambda key: (jnp.int32(0), jnp.asarray(GENERATOR.random_sample(1), jnp.float32))),
        "mine: reset gives another program each time",
    ),
    "a reward for each player": (
        environment(reward=lambda count: jnp.zeros(2)),
        r"mine: reward is float32\[2\]; it must be float32\[\]",
    ),
    "an integer reward": (
        environment(reward=lambda count: count),
        r"mine: reward is int32\[\]; it must be float32\[\]",
    ),
    "an end that is no truth": (
        environment(terminated=lambda count: jnp.float32(0)),
        r"mine: terminated is float32\[\]; it must be bool\[\]",
    ),
    "another observation": (
        environment(observation=lambda count: jnp.ones(2)),
        r"the observation of step is float32\[2\], but observation_space has float32\[1\]",
    ),
    "out of bounds": (
        environment(observation=lambda count: jnp.full(1, 2.0)),
        r"an observation is outside of the bounds of observation_space, or not finite \(at step 1\)",
    ),
    "NaN": (environment(reward=lambda count: jnp.float32(np.inf)), "a reward is not finite"),
    "a mask of the wrong shape": (
        environment()._replace(legal_actions=lambda state: jnp.ones(3, bool)),
        r"legal_actions returns bool\[3\]; its actions need bool\[2\]",
    ),
    "a mask of numbers": (
        environment()._replace(legal_actions=lambda state: jnp.ones(2)),
        r"legal_actions returns float32\[2\]; its actions need bool\[2\]",
    ),
    "no legal action": (
        environment()._replace(legal_actions=lambda state: jnp.full(2, state != 1)),
        r"no action is legal in a state whose episode goes on; .* \(at step 2\)",
    ),
    "a wrong space": (
        environment()._replace(action_space=2),
        "action_space must be an rl.Discrete, MultiDiscrete, Box",
    ),
    "another state": (
        environment()._replace(
            step=lambda key, state, action: (state + 0.5, environment().step(key, state, action)[1])
        ),
        r"the state after a step is float32\[\], but the one after a reset has int32\[\]",
    ),
    "info of many numbers": (
        environment(info=lambda count: {"cells": jnp.ones(3)}),
        r"info\['cells'\] is float32\[3\]; it must be a scalar",
    ),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_an_error_of_one_line(name):
    wrong, message = SLIPS[name]
    with pytest.raises(ConfigError, match=message) as error:
        check(wrong)
    assert "\n" not in str(error.value)


def test_a_small_integer_that_overflows_is_an_error():
    with pytest.raises(ConfigError, match="an integer of 8 or 16 bits in the state overflows to negative values"):
        rl.check(overflowing(), num_steps=10, num_envs=2)
    rl.check(overflowing(), num_steps=5, num_envs=2)


def test_a_state_without_legal_actions_may_be_terminal():
    terminal = environment()._replace(legal_actions=lambda state: jnp.full(2, state < 3))
    assert check(terminal).terminated == 2
