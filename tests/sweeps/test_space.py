"""Search spaces: the configs of grids and random samples, and errors."""

import contextlib
import dataclasses
import itertools
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import foldax
from foldax import Range
from foldax.configuration import from_json, to_json
from foldax.errors import ConfigError
from foldax.options import field_type, option_name, parse_alternatives, set_fields
from foldax.sweeps.space import (
    enumerate_overrides,
    flat_values,
    member_configs,
    parse_space,
    structural_values,
    structure,
)


@foldax.config
class Optimizer:
    learning_rate: float = 0.1
    momentum: float | None = None
    name: str = "sgd"


@foldax.config
class Config(foldax.Training):
    hidden: tuple[int, ...] = (8,)
    learning_rate: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    bias: bool = True
    label: str = "a"
    normalization: Literal["none", "batch"] = "batch"
    temperature: float = foldax.structural(1.0)
    optimizer: Optimizer = Optimizer()


BASE = Config()


def make_configs(space: dict, seeds: int = 1, samples: int | None = None, config: Config = BASE) -> list[Config]:
    return member_configs(config, enumerate_overrides(parse_space(config, space), samples, config.seed), seeds)


# Grids


@given(
    rates=st.lists(st.floats(1e-6, 1), min_size=1, max_size=4, unique=True),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
    seeds=st.integers(1, 4),
    first=st.integers(0, 2**32 - 5),
)
def test_grid_is_the_product_in_order_with_seeds_innermost(
    rates: list[float], widths: list[int], seeds: int, first: int
) -> None:
    configs = make_configs({"learning_rate": rates, "hidden": [(w,) for w in widths]}, seeds, config=Config(seed=first))
    expected = itertools.product(rates, widths, range(first, first + seeds))
    assert [(c.learning_rate, c.hidden[0], c.seed) for c in configs] == list(expected)
    untouched = dict(learning_rate=BASE.learning_rate, hidden=BASE.hidden, seed=BASE.seed)
    assert all(dataclasses.replace(config, **untouched) == BASE for config in configs)


def test_empty_space_gives_the_config_with_each_seed() -> None:
    assert [config.seed for config in make_configs({}, 3, config=Config(seed=5))] == [5, 6, 7]


def test_values_are_converted_to_field_types_and_deduplicated() -> None:
    space = {
        "learning_rate": np.array([1, 0.5, 1]),
        "hidden": [[8, 8], (8, 8), [4]],
        "steps": np.arange(3, 5),
        "bias": np.array([True, False]),
        "clip": [None, 1, 1.0],
        "optimizer.learning_rate": 0.25,
    }
    checked = parse_space(BASE, space)
    assert checked == {
        "learning_rate": [1.0, 0.5],
        "hidden": [(8, 8), (4,)],
        "steps": [3, 4],
        "bias": [True, False],
        "clip": [None, 1.0],
        "optimizer.learning_rate": [0.25],
    }
    assert [type(v) for v in checked["steps"] + checked["bias"] + checked["learning_rate"]] == [
        int, int, bool, bool, float, float,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "values", [jnp.array([0.5, 0.25]), [jnp.float32(0.5), jnp.float32(0.25)]], ids=["array", "list"]
)
def test_values_may_be_jax_arrays(values) -> None:
    assert parse_space(BASE, {"learning_rate": values}) == {"learning_rate": [0.5, 0.25]}


def test_nested_fields_leave_other_fields_unchanged() -> None:
    space = {"optimizer.learning_rate": [0.5, 0.25], "optimizer.momentum": [None, 0.9], "learning_rate": [0.1]}
    configs = make_configs(space)
    assert [(c.optimizer.learning_rate, c.optimizer.momentum) for c in configs] == [
        (0.5, None), (0.5, 0.9), (0.25, None), (0.25, 0.9),
    ]  # fmt: skip
    assert {config.optimizer.name for config in configs} == {"sgd"}
    assert BASE.optimizer == Optimizer()


def test_nested_config_as_a_value() -> None:
    rates = make_configs({"optimizer": [Optimizer(learning_rate=0.5), {"learning_rate": 0.25}]})
    assert [config.optimizer.learning_rate for config in rates] == [0.5, 0.25]


def test_fields_are_checked_together() -> None:
    @foldax.config
    class Heads(foldax.Training):
        width: int = 8
        heads: int = 4

        def __post_init__(self) -> None:
            if self.width % self.heads:
                raise ConfigError(f"Heads.heads: {self.heads} do not divide the width, {self.width}")

    configs = make_configs({"width": [6, 9], "heads": [3]}, config=Heads())
    assert [(config.width, config.heads) for config in configs] == [(6, 3), (9, 3)]
    with pytest.raises(ConfigError, match="4 do not divide the width, 6"):
        make_configs({"width": [8, 6], "heads": [4]}, config=Heads())


# Random samples

BOUNDS = st.tuples(st.floats(1e-30, 1e30), st.floats(1.01, 1e6)).map(lambda b: (b[0], b[0] * b[1]))


@given(bounds=BOUNDS, log=st.booleans(), samples=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_samples_are_within_bounds_and_follow_from_the_seed(
    bounds: tuple[float, float], log: bool, samples: int, seed: int
) -> None:
    config, space = Config(seed=seed), {"learning_rate": Range(*bounds, log), "steps": [3, 5, 7]}
    configs = make_configs(space, samples=samples, config=config)
    assert len(configs) == samples
    assert all(bounds[0] <= c.learning_rate <= bounds[1] and c.steps in (3, 5, 7) for c in configs)
    assert make_configs(space, samples=samples, config=config) == configs


def test_samples_of_a_grid_are_different_configs() -> None:
    space = {"steps": [3, 5], "bias": [True, False]}
    configs = make_configs(space, samples=4)
    assert {(config.steps, config.bias) for config in configs} == {*itertools.product([3, 5], [True, False])}
    assert make_configs(space, samples=2) == configs[:2]
    with pytest.raises(ConfigError, match="samples: 12 is too many, because the space has 4 different configs"):
        make_configs(space, samples=12)


def test_samples_differ_between_seeds_and_from_each_other() -> None:
    samples = [
        [c.learning_rate for c in make_configs({"learning_rate": "log:1e-5:1"}, 1, 8, Config(seed=s))] for s in (0, 1)
    ]
    assert len({*samples[0], *samples[1]}) == 16


def test_more_samples_begin_with_the_same_ones() -> None:
    space = {"learning_rate": "log:1e-5:1", "bias": [True, False]}
    assert make_configs(space, samples=9)[:4] == make_configs(space, samples=4)


@pytest.mark.parametrize(("text", "below"), [("log:1e-4:1", 2 / 4), ("uniform:1e-4:1", 0.01)])
def test_log_uniform_range_covers_each_decade_equally(text: str, below: float) -> None:
    rates = [config.learning_rate for config in make_configs({"learning_rate": text}, samples=2_000)]
    assert np.mean(np.array(rates) < 1e-2) == pytest.approx(below, abs=0.05)


def test_each_sample_gets_every_seed() -> None:
    configs = make_configs({"learning_rate": "uniform:0:1"}, seeds=2, samples=3)
    assert [config.seed for config in configs] == [0, 1] * 3
    assert [a.learning_rate for a in configs[::2]] == [b.learning_rate for b in configs[1::2]]
    assert len({config.learning_rate for config in configs}) == 3


@given(bounds=BOUNDS, log=st.booleans())
def test_range_survives_its_text(bounds: tuple[float, float], log: bool) -> None:
    ranged = Range(*bounds, log)
    assert parse_space(BASE, {"learning_rate": str(ranged)}) == {"learning_rate": ranged}  # so sweep.json can hold it
    kind = "log" if log else "uniform"
    for text in (f"{kind}:{bounds[0]!r}:{bounds[1]!r}", [f"{kind}:{bounds[0]!r}:{bounds[1]!r}"], ranged):
        assert parse_space(BASE, {"optimizer.learning_rate": text}) == {"optimizer.learning_rate": ranged}


# Errors


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"learning_rate": []}, "learning_rate: the list of values is empty"),
        ({"learning_rate": ()}, "learning_rate: the list of values is empty"),
        ({"learning_rate": np.array([])}, "learning_rate: the list of values is empty"),
        ({"lerning_rate": [1]}, r"Config has no field 'lerning_rate'; did you mean 'learning_rate'\? \(fields: .*steps"),
        ({"optimiser.learning_rate": [1]}, "no field 'optimiser.learning_rate'; did you mean 'optimizer'"),
        ({"optimizer.lerning_rate": [1]}, "Optimizer has no field 'lerning_rate'; did you mean 'learning_rate'"),
        ({"hidden.width": [1]}, "Config.hidden is no nested config"),
        ({"optimizer.": [1]}, "no field"),
        ({"steps.": [1]}, "no field"),
        ({".steps": [1]}, "no field"),
        ({"": [1]}, "no field"),
        ({"seed": [1, 2]}, r"seed: give the number of seeds instead \(seeds=8, --seeds 8\)"),
        ({"seed": [1]}, "seed: give the number of seeds"),
        ({"learning_rate": ["fast"]}, "Config.learning_rate: expected float, got 'fast'"),
        ({"learning_rate": [1e-3, True]}, "Config.learning_rate: expected float, got True"),
        ({"learning_rate": [None]}, "Config.learning_rate: expected float, got None"),
        ({"learning_rate": "uniform"}, "Config.learning_rate: expected float, got 'uniform'"),
        ({"hidden": (64, 64)}, "Config.hidden: expected tuple.*got 64"),
        ({"hidden": [(8.5,)]}, r"Config.hidden\[0\]: expected int, got 8.5"),
        ({"betas": [(0.9,)]}, "Config.betas: expected 2 values, got 1"),
        ({"steps": [0]}, "Config.steps: 0 is too small"),
        ({"steps": [10, "many"]}, "Config.steps: expected int, got 'many'"),
        ({"mode": ["maximum"]}, "Config.mode: expected 'min' or 'max'"),
        ({"optimizer.name": [3]}, "Config.optimizer.name: expected str, got 3"),
        ({"optimizer": [{"learning_rate": "fast"}]}, "Optimizer.learning_rate: expected float"),
        ({"steps": Range(1, 10)}, "steps: a range needs a traced float, and this field is structural"),
        ({"temperature": "uniform:0:1"}, "temperature: a range needs a traced float, and this field is structural"),
        ({"hidden": "log:1:10"}, "hidden: a range needs a traced float, and this field is structural"),
        ({"log_every": Range(1, 10)}, "log_every: a range needs a traced float, and this field is driver"),
        ({"patience": "uniform:1:10"}, "patience: a range needs a traced float, and this field is driver"),
        ({"betas": "uniform:0:1"}, "betas"),
        ({"optimizer": "uniform:0:1"}, "optimizer"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_spaces_are_config_errors(space: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        make_configs(space, samples=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["log:1", "log:1:2:3", "log::", "log:a:b", "log:0:1", "log:-1:1", "log:1:1", "log:2:1", "log:1:inf", "log:nan:1",
     "log:1:nan", "uniform:1:1", "uniform:2:1", "uniform:-inf:1", "uniform:nan:1", "uniform:0:nan", "uniform:1e-3",
     Range(1, 0), Range(0, 1, log=True), Range(0, math.inf), Range(math.nan, 1)],
    ids=str,
)  # fmt: skip
def test_malformed_ranges_are_named(text) -> None:
    for values in (text, [text]) if isinstance(text, str) else (text,):
        with pytest.raises(ConfigError, match=r"learning_rate: .* is no range"):
            parse_space(BASE, {"learning_rate": values})


def test_range_in_a_grid_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"learning_rate: a range needs the number of samples \(samples=20, --samples"
    ):
        make_configs({"learning_rate": "log:1e-3:1"})


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_seed_or_sample_is_an_error(count: int) -> None:
    with pytest.raises(ConfigError, match=f"seeds: {count} is too small; it must be at least 1"):
        make_configs({}, seeds=count)
    with pytest.raises(ConfigError, match=f"samples: {count} is too small; it must be at least 1"):
        make_configs({}, samples=count)


def test_seeds_beyond_the_largest_are_an_error() -> None:
    with pytest.raises(ConfigError, match="seed: 4294967296 is too large"):
        make_configs({}, 2, config=Config(seed=2**32 - 1))


# Fields


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("learning_rate", "traced"),
        ("betas", "traced"),
        ("optimizer.momentum", "traced"),
        ("optimizer.name", "structural"),
        ("temperature", "structural"),
        ("steps", "structural"),
        ("seed", "driver"),
        ("patience", "driver"),
    ],
)
def test_field_kinds(name: str, kind: str) -> None:
    assert field_type(Config, name)[0] == kind


def test_structure_depends_on_structural_fields_and_on_none() -> None:
    same = [
        {"learning_rate": 0.5}, {"seed": 4}, {"patience": 3}, {"log_every": 7}, {"optimizer.learning_rate": 0.7},
        {"betas": (0.1, 0.2)}, {"checkpoint_every": 5}, {"dispatch": "step"},
    ]  # fmt: skip
    other = [
        {"hidden": (9,)}, {"steps": 3}, {"temperature": 2.0}, {"bias": False}, {"optimizer.name": "adam"},
        {"clip": 1.0}, {"optimizer.momentum": 0.5},
    ]  # fmt: skip
    for values in same:
        assert structure(set_fields(BASE, values)) == structure(BASE), values
    structures = [structure(BASE), *(structure(set_fields(BASE, values)) for values in other)]
    assert len(set(structures)) == len(structures)


def test_flat_values_are_table_cells() -> None:
    cells = flat_values(Config(hidden=(8, 4), optimizer=Optimizer(momentum=0.5)))
    assert cells["hidden"] == "(8, 4)"
    assert cells["betas"] == "(0.9, 0.999)"
    assert cells["clip"] is None
    assert (cells["optimizer.learning_rate"], cells["optimizer.momentum"]) == (0.1, 0.5)
    assert "optimizer" not in cells
    assert set(structural_values(BASE)) == {
        "steps", "hidden", "bias", "label", "normalization", "temperature", "optimizer.name",
    }  # fmt: skip


def test_flat_values_of_an_optional_nested_config() -> None:
    @foldax.config
    class Optional(foldax.Training):
        optimizer: Optimizer | None = Optimizer()

    assert flat_values(Optional())["optimizer.learning_rate"] == 0.1
    assert "steps" in structural_values(Optional())
    assert "steps" in structural_values(Optional(optimizer=None))
    assert make_configs({"optimizer": [None, Optimizer()]}, config=Optional())[0].optimizer is None


# Values on the command line

FIELDS = {
    "hidden": st.lists(st.integers(-100, 100), max_size=4).map(tuple),
    "learning_rate": st.floats(allow_nan=False, allow_infinity=False),
    "betas": st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    "clip": st.none() | st.floats(-10, 10),
    "bias": st.booleans(),
    "steps": st.integers(1, 10**12),
    "patience": st.none() | st.integers(1, 10**6),
    "mode": st.sampled_from(["min", "max"]),
    "checkpoint_every": st.integers(0, 1000) | st.integers(1, 100).map("{}s".format) | st.integers(1, 9).map(str),
    "optimizer.momentum": st.none() | st.floats(0, 1),
    "optimizer.name": st.sampled_from(["sgd", "adam", "lion"]),
}


@pytest.mark.parametrize("name", FIELDS)
@given(data=st.data())
def test_command_line_values_parse_to_field_values(name: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(FIELDS[name], min_size=1, max_size=3, unique=True))
    parsed = parse_space(
        BASE, {name: parse_alternatives(Config, [option_name(name), *(str(value) for value in values)])[name]}
    )[name]
    if name == "checkpoint_every":  # "5" and 5 steps are the same
        parsed, values = list(map(str, parsed)), list(dict.fromkeys(map(str, values)))
    assert parsed == values
    assert [type(value) for value in parsed] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("bias", "true", True),
        ("bias", "FALSE", False),
        ("clip", "none", None),
        ("hidden", "64,", (64,)),
        ("hidden", "64,32", (64, 32)),
        ("hidden", "[64, 32]", (64, 32)),
        ("hidden", "()", ()),
        ("steps", "1_000", 1000),
        ("learning_rate", "1", 1.0),
        ("learning_rate", "-1e-3", -1e-3),
        ("label", "b c", "b c"),
        ("label", "none", "none"),
        ("label", "True", "True"),
        ("label", "3", "3"),
        ("label", "(1, 2)", "(1, 2)"),
        ("normalization", "none", "none"),
        ("optimizer", "{'learning_rate': 0.5}", Optimizer(learning_rate=0.5)),
    ],
)
def test_spellings_of_values(name: str, text: str, value) -> None:
    (parsed,) = parse_space(BASE, {name: parse_alternatives(Config, [f"{option_name(name)}={text}"])[name]})[name]
    assert parsed == value
    assert type(parsed) is type(value)


@given(text=st.text(max_size=20))
@example(text="1or 2")
@example(text="'\\d'")
@example(text="{1}")
@example(text="1" * 5000)
@example(text="(" * 300)
@example(text="{**{}}")
def test_any_text_is_a_value_or_a_config_error(text: str) -> None:
    for name in ("label", "learning_rate", "hidden"):
        with contextlib.suppress(ConfigError):
            parse_space(BASE, {name: parse_alternatives(Config, [f"{option_name(name)}={text}"])[name]})


def test_parsing_an_unknown_field_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no option --hiden; did you mean '--hidden'"):
        parse_alternatives(Config, ["--hiden", "1"])


@given(
    rates=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=3),
    hidden=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    momentum=st.none() | st.floats(0, 1),
)
def test_member_configs_survive_json(rates: list[float], hidden: tuple[int, ...], momentum: float | None) -> None:
    for config in make_configs({"learning_rate": rates, "hidden": [hidden], "optimizer.momentum": [momentum]}, 2):
        assert from_json(Config, to_json(config)) == config
        assert config.optimizer.momentum == momentum
