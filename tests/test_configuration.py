"""Configs: traced, structural and driver fields, checks of values, JSON and hashes."""

import dataclasses
import enum
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import foldax
from foldax.config_fields import field_kinds
from foldax.configuration import parse_interval, traced_config, with_steps
from foldax.errors import ConfigError
from foldax.field_values import type_name


@foldax.config
class Optimizer:
    learning_rate: float = 1e-3
    momentum: float | None = None
    name: Literal["sgd", "adam"] = "adam"


@foldax.config
class Config(foldax.Training):
    optimizer: Optimizer = Optimizer()
    hidden: tuple[int, ...] = (8, 8)
    betas: tuple[float, float] = (0.9, 0.999)
    rates: tuple[float, ...] = ()
    dropout: float = 0.0
    clip: float | None = None
    epsilon: float = foldax.structural(1e-8)
    every: int | str = "epoch"
    activation: Literal["relu", "tanh"] = "relu"
    bias: bool = True
    note: float = foldax.driver(0.0)


def names(config) -> set[str]:
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(config)[0]}


def test_leaves_are_exactly_the_traced_floats() -> None:
    expected = {".optimizer.learning_rate", ".betas[0]", ".betas[1]", ".dropout"}
    assert names(Config()) == expected
    full = Config(optimizer=Optimizer(momentum=0.9), clip=1.0, rates=(0.1, 0.2))
    assert names(full) == expected | {".optimizer.momentum", ".clip", ".rates[0]", ".rates[1]"}


def test_fields_are_traced_structural_or_driver_by_their_type_and_declaration() -> None:
    kinds = field_kinds(Config)
    assert {name for name, kind in kinds.items() if kind == "traced"} == {
        "optimizer", "betas", "rates", "dropout", "clip",
    }  # fmt: skip
    assert {kinds[name] for name in ("seed", "log_every", "note", "patience")} == {"driver"}
    assert {kinds[name] for name in ("steps", "hidden", "epsilon", "activation", "bias")} == {"structural"}


def test_flattening_and_unflattening_give_the_same_config() -> None:
    config = Config(clip=2.0, rates=(0.5,))
    assert jax.tree.map(lambda leaf: leaf, config) == config


def test_traced_config_has_float32_leaves_and_resets_driver_fields() -> None:
    traced = traced_config(Config(seed=7, log_every=3, note=5.0, dropout=0.25, clip=1, patience=2))
    leaves = jax.tree.leaves(traced)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 and not leaf.weak_type for leaf in leaves)
    assert (traced.seed, traced.log_every, traced.note, traced.patience) == (0, None, 0.0, None)
    assert traced.epsilon == 1e-8
    assert isinstance(traced.epsilon, float)
    np.testing.assert_array_equal(traced.dropout, np.float32(0.25))
    again = traced_config(traced)  # a nested config of arrays stays as it is
    np.testing.assert_array_equal(again.optimizer.learning_rate, np.float32(1e-3))


def test_the_nearest_spelling_of_a_value_is_suggested() -> None:
    with pytest.raises(ConfigError, match="Config.activation: expected 'relu' or 'tanh'.*did you mean 'relu'"):
        Config(activation="rellu")


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.5},
        {"optimizer": Optimizer(learning_rate=1.0)},
        {"betas": (0.5, 0.5)},
        {"dropout": jnp.float32(0.5)},
        {"dropout": np.float64(0.5)},
        {"dropout": 1},
        {"seed": 3},
        {"log_every": 7, "evaluate_every": 1, "checkpoint_every": 5, "monitor": "accuracy", "mode": "max"},
        {"patience": 4, "keep": "last", "dispatch": "step", "profile": True, "note": 1.0},
    ],
)
def test_traced_and_driver_fields_keep_the_treedef(changes: dict) -> None:
    before, after = traced_config(Config()), traced_config(Config(**changes))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert hash(jax.tree.structure(after)) == hash(jax.tree.structure(before))
    assert [jax.typeof(leaf) for leaf in jax.tree.leaves(after)] == [jax.typeof(x) for x in jax.tree.leaves(before)]


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 5},
        {"hidden": (8,)},
        {"epsilon": 1e-7},
        {"bias": False},
        {"activation": "tanh"},
        {"optimizer": Optimizer(name="sgd")},
        {"clip": 1.0},
        {"rates": (0.1,)},
    ],
)
def test_structural_fields_change_the_treedef(changes: dict) -> None:
    assert jax.tree.structure(traced_config(Config(**changes))) != jax.tree.structure(traced_config(Config()))


def test_a_traced_value_compiles_nothing_new() -> None:
    calls = []

    @jax.jit
    def function(config):
        calls.append(config)
        return config.dropout * config.optimizer.learning_rate

    for dropout, seed in ((0.1, 0), (0.2, 1), (1, 2)):
        function(traced_config(Config(dropout=dropout, seed=seed)))
    assert len(calls) == 1


def test_numbers_in_float_fields_become_floats() -> None:
    for value in (1, np.int64(1), np.float32(1), 1.0):
        dropout = Config(dropout=value).dropout
        assert dropout == 1.0
        assert type(dropout) is float


def test_configs_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().steps = 3
    assert dataclasses.replace(Config(), steps=3).steps == 3


REFUSED = [
    ({"dropout": True}, ["Config.dropout", "float", "True (bool)"]),
    ({"dropout": "0.1"}, ["Config.dropout", "float", "'0.1' (str)"]),
    ({"dropout": None}, ["Config.dropout", "float", "None"]),
    ({"clip": "x"}, ["Config.clip", "float | None", "'x'"]),
    ({"steps": 10.0}, ["Config.steps", "int", "10.0 (float)"]),
    ({"steps": True}, ["Config.steps", "int", "True"]),
    ({"steps": 0}, ["Config.steps", "0", "at least 1"]),
    ({"steps": -5}, ["Config.steps", "-5", "at least 1"]),
    ({"seed": -1}, ["Config.seed", "-1", "at least 0"]),
    ({"seed": 2**32}, ["Config.seed", "2**32"]),
    ({"log_every": 0}, ["Config.log_every", "0", "at least 1"]),
    ({"evaluate_every": -1}, ["Config.evaluate_every", "-1", "at least 0"]),
    ({"patience": 0}, ["Config.patience", "at least 1"]),
    ({"mesh": "data=0"}, ["mesh: '0' is no size of 'data'", "a positive number"]),
    ({"checkpoint_every": "soon"}, ["checkpoint_every", "'soon'", "'30s'"]),
    ({"checkpoint_every": -3}, ["Config.checkpoint_every", "-3", "negative"]),
    ({"checkpoint_every": "-3s"}, ["Config.checkpoint_every", "-3s"]),
    ({"checkpoint_every": "nans"}, ["checkpoint_every", "nans"]),
    ({"checkpoint_every": ""}, ["checkpoint_every", "''"]),
    ({"hidden": {8}}, ["Config.hidden", "tuple[int, ...]", "{8} (set)"]),
    ({"hidden": 8}, ["Config.hidden", "tuple[int, ...]", "8 (int)"]),
    ({"hidden": (8, 2.5)}, ["Config.hidden[1]", "int", "2.5"]),
    ({"betas": (0.9,)}, ["Config.betas", "2 values", "1"]),
    ({"betas": (0.9, False)}, ["Config.betas[1]", "float", "False"]),
    ({"every": 1.5}, ["Config.every", "int | str", "1.5"]),
    ({"activation": "rleu"}, ["Config.activation", "'relu' or 'tanh'", "'rleu'"]),
    ({"mode": "maximum"}, ["Config.mode", "'min' or 'max'", "'maximum'"]),
    ({"bias": 1}, ["Config.bias", "bool", "1"]),
    ({"optimizer": 1.0}, ["Config.optimizer", "Optimizer", "1.0 (float)"]),
    ({"optimizer": {"learning_rat": 1.0}}, ["'learning_rat'", "did you mean 'learning_rate'?"]),
    ({"learning_rat": 1.0}, ["Config", "'learning_rat'", "fields: "]),
    ({"droput": 0.1}, ["'droput'", "did you mean 'dropout'?"]),
    ({"step": 10}, ["'step'", "did you mean 'steps'?"]),
]


@pytest.mark.parametrize(("values", "words"), REFUSED, ids=[str(values)[:40] for values, _ in REFUSED])
def test_a_wrong_value_is_refused_with_its_field_type_and_value(values: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(**values)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_config_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="too small"):
        foldax.Training(steps=0)


def test_each_allowed_form_of_a_value_is_accepted() -> None:
    assert Config(every=3).every == 3
    assert Config(every="step").every == "step"
    assert Config(clip=None).clip is None
    assert Config(clip=1).clip == 1.0
    assert Config(hidden=()).hidden == ()
    assert Config(hidden=[8, 8]) == Config(hidden=(8, 8))
    assert Config(optimizer={"learning_rate": 1.0}).optimizer == Optimizer(learning_rate=1.0)
    assert Config(patience=None, evaluate_every=0, checkpoint_every=0).evaluate_every == 0


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 49, 50, 99, 500, 976, 1_000, 3_000, 49_999])
def test_periods_follow_from_the_steps_unless_given(steps: int) -> None:
    config = foldax.Training(steps=steps)
    assert {str(period).strip("0") for period in (config.log_period, config.evaluation_period)} <= {"1", "2", "5"}
    assert steps < 50 or 50 <= steps / config.log_period <= 125
    assert steps < 10 or 10 <= steps / config.evaluation_period <= 25
    given = foldax.Training(steps=steps, log_every=7, evaluate_every=0)
    assert (given.log_period, given.evaluation_period) == (7, 0)
    assert foldax.RLTraining(environment_steps=512 * steps).evaluation_period == 0


def test_log_lines_follow_each_other_within_1000_steps() -> None:
    assert foldax.Training(steps=10_000_000).log_period == 1_000


def test_intervals_are_steps_or_times() -> None:
    never = float("inf")
    assert [parse_interval(x) for x in (0, 500, "500", "30s", "1.5m", "2h")] == [
        (0, never), (500, never), (500, never), (0, 30.0), (0, 90.0), (0, 7200.0),
    ]  # fmt: skip


def test_a_child_has_its_own_checks_and_its_parents() -> None:
    @foldax.config
    class Child(Config):
        warmup: int = 0

        def __post_init__(self) -> None:
            if self.warmup > self.steps:
                raise ConfigError(f"Child.warmup: {self.warmup} exceeds steps, {self.steps}")

    assert Child(warmup=3, dropout=1).dropout == 1.0
    assert names(Child()) == names(Config())
    with pytest.raises(ConfigError, match=r"Child\.warmup: 11 exceeds"):
        Child(warmup=11, steps=10)
    with pytest.raises(ConfigError, match=r"Child\.steps: 0 is too small"):
        Child(steps=0)
    with pytest.raises(ConfigError, match=r"Child\.dropout: expected float"):
        Child(dropout="x")


def test_a_child_that_calls_super_is_checked_as_well() -> None:
    @foldax.config
    class Child(foldax.Training):
        warmup: int = 0

        def __post_init__(self) -> None:
            super().__post_init__()

    with pytest.raises(ConfigError, match=r"Child\.log_every: 0 is too small"):
        Child(log_every=0)


def test_a_child_may_change_a_default() -> None:
    @foldax.config
    class Child(Config):
        steps: int = 5
        dropout: float = 0.5
        log_every: int = foldax.driver(2)

    assert (Child().steps, Child().dropout, traced_config(Child(log_every=9)).log_every) == (5, 0.5, 2)


class Pair(NamedTuple):
    first: int = 8


UNRESTORABLE = [tuple, Any, Sequence[int], list[int], dict[str, int], Pair, frozenset, bytes, tuple[Any, ...]]


@pytest.mark.parametrize("hint", UNRESTORABLE)
def test_a_type_that_json_does_not_restore_is_refused_at_its_declaration(hint: Any) -> None:
    with pytest.raises(ConfigError, match=r"WithField.extra: values of type .* cannot be restored .*allowed are bool"):
        foldax.config(type("WithField", (foldax.Training,), {"__annotations__": {"extra": hint}, "extra": None}))


class Activation(enum.StrEnum):
    RELU = "relu"
    TANH = "tanh"


class Level(enum.IntEnum):
    LOW = 1


class Color(enum.Enum):
    RED = (1, 0, 0)


RESTORABLE = [
    (Activation, Activation.TANH),
    (Level | None, Level.LOW),
    (Color, Color.RED),
    (Path, Path("weights.npz")),
    (Path | None, None),
    (np.dtype, np.dtype("bfloat16")),
    (float, math.nan),
    (float, -math.inf),
    (tuple[tuple[int, int], ...], ((1, 2), (3, 4))),
    (tuple[float, ...] | str, (1.0, math.inf)),
    (str, Activation.RELU),
    (int, np.int64(3)),
    (Literal["a", 1], 1),
]


@pytest.mark.parametrize(("hint", "value"), RESTORABLE)
def test_json_restores_fields_of_every_allowed_type(hint: Any, value: Any) -> None:
    fields = {"__annotations__": {"extra": hint}, "extra": foldax.driver(value)}
    WithField = foldax.config(type("WithField", (foldax.Training,), fields))
    text = json.dumps(foldax.to_json(WithField()), allow_nan=False)
    restored = foldax.from_json(WithField, json.loads(text)).extra
    assert type(restored) is type(WithField().extra)
    assert restored == WithField().extra or (math.isnan(value) and math.isnan(restored))
    assert json.dumps(foldax.to_json(WithField(extra=restored))) == text


def test_a_misspelt_member_of_an_enumeration_gets_a_suggestion() -> None:
    @foldax.config
    class WithEnum(foldax.Training):
        activation: Activation = Activation.RELU

    assert WithEnum(activation="TANH").activation is Activation.TANH
    with pytest.raises(ConfigError, match="expected 'RELU' or 'TANH', got 'TAN'.*did you mean 'TANH'"):
        WithEnum(activation="TAN")


def test_types_are_written_as_people_write_them() -> None:
    assert type_name(int | None) == "int | None"
    assert type_name(tuple[float, ...]) == "tuple[float, ...]"
    assert type_name(Literal["a", "b"]) == "'a' or 'b'"


finite = st.floats(allow_nan=False, allow_infinity=False)
optimizers = st.builds(
    Optimizer, learning_rate=finite, momentum=st.none() | finite, name=st.sampled_from(["sgd", "adam"])
)
configs = st.builds(
    Config,
    optimizer=optimizers,
    steps=st.integers(1, 2**31 - 1),
    seed=st.integers(0, 2**32 - 1),
    hidden=st.lists(st.integers()).map(tuple),
    betas=st.tuples(finite, finite),
    rates=st.lists(finite).map(tuple),
    clip=st.none() | finite,
    every=st.integers() | st.text(),
    activation=st.sampled_from(["relu", "tanh"]),
    bias=st.booleans(),
    patience=st.none() | st.integers(1, 9),
)


@given(configs)
def test_json_gives_an_equal_config_back(config: Config) -> None:
    text = json.dumps(foldax.to_json(config))
    again = foldax.from_json(Config, json.loads(text))
    assert again == config
    assert foldax.config_hash(again) == foldax.config_hash(config)


@given(configs, configs)
def test_the_hash_differs_for_different_configs(one: Config, other: Config) -> None:
    same = repr(foldax.to_json(one)) == repr(foldax.to_json(other))  # 0.0 and -0.0 are two values
    assert (foldax.config_hash(one) == foldax.config_hash(other)) == same


def test_the_hash_depends_on_the_class() -> None:
    @foldax.config
    class Same(Config):
        pass

    assert foldax.config_hash(Same()) != foldax.config_hash(Config())


def test_json_of_an_older_version_takes_defaults_and_unknown_fields_are_refused() -> None:
    assert foldax.from_json(Config, {"steps": 3}) == Config(steps=3)
    with pytest.raises(ConfigError, match="did you mean 'hidden'"):
        foldax.from_json(Config, {"hiden": [1]})
    with pytest.raises(ConfigError, match="expected an object of fields"):
        foldax.from_json(Config, [1])
    with pytest.raises(ConfigError, match=r"Config\.betas: expected 2 values, got 3"):
        foldax.from_json(Config, {"betas": [1.0, 2.0, 3.0]})
    with pytest.raises(ConfigError, match=r"Optimizer has no field 'learningrate'; did you mean 'learning_rate'"):
        foldax.from_json(Config, {"optimizer": {"learningrate": 1.0}})


HASH = """
import foldax
@foldax.config
class Config(foldax.Training):
    hidden: tuple[int, ...] = (8, 8)
    rate: float = 0.1
    name: str = "a"
print(hash("a"), foldax.config_hash(Config()))
"""


def test_the_hash_is_the_same_in_every_process() -> None:
    lines = [
        subprocess.run(
            [sys.executable, "-c", HASH],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert lines[0][0] != lines[1][0]  # Python's own hash differs
    assert lines[0][1] == lines[1][1]


@foldax.config
class Agent(foldax.RLTraining):
    environment_steps: int = 1_000
    learning_starts: int = 100
    num_envs: int = 3
    rollout_steps: int = 10


def test_updates_of_an_agent_follow_from_its_environment_steps() -> None:
    assert Agent().steps == 30
    assert Agent(environment_steps=190).steps == 3
    assert dataclasses.replace(Agent(), num_envs=9).steps == 10
    assert Agent().environment_steps_after(30) == 1_000
    assert with_steps(Agent(), 7).steps == 7
    assert with_steps(Config(), 7).steps == 7
    with pytest.raises(ConfigError, match="environment_steps: 120 is too small; an update takes 3 x 10, after 100"):
        Agent(environment_steps=120)
    with pytest.raises(ConfigError, match="Agent has no field 'steps'"):
        Agent(steps=3)
    assert foldax.from_json(Agent, foldax.to_json(Agent(environment_steps=500))).steps == 13
