"""Options of the command line: every value of a field has a spelling, and it means the same everywhere."""

import argparse
import dataclasses
import enum
import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import foldax
from foldax import cli
from foldax.configuration import to_json
from foldax.errors import ConfigError
from foldax.experiment import Experiment
from foldax.options import format_options, options_help, parse_alternatives, parse_options, set_fields, split_options


class Activation(enum.Enum):
    RELU = "relu"
    none = 1  # a name that reads as None


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@foldax.config
class Optimizer:
    learning_rate: float = 0.1
    """Step size, 10% of the usual one."""
    nesterov: bool = False
    name: str | None = "adam"


@foldax.config
class Config(foldax.Training):
    clip: float | None = None  # largest norm of a gradient
    sizes: tuple[int, ...] = (8, 8)
    names: tuple[str, ...] = ("a",)
    pair: tuple[float, float] = (0.0, 1.0)
    nested: tuple[tuple[int, ...], ...] = ()
    flag: bool = True
    label: str = "a"
    note: str | None = None
    either: str | int = 3
    kind: Literal["a", "none", 1] | None = "a"
    activation: Activation | None = Activation.RELU
    level: Level = Level.LOW
    path: Path = Path("weights")
    dtype: np.dtype | None = None
    dtypes: tuple[np.dtype, ...] = (np.dtype("int8"),)
    optimizer: Optimizer = Optimizer()
    second: Optimizer | None = None


TEXTS = st.text(max_size=6) | st.sampled_from(
    ["None", "'None'", "none", "1", "(1, 2)", "-x", "--steps", "true", "log:1:2", "nan"]
)
FLOATS = st.floats(allow_nan=True)
OPTIMIZERS = st.builds(Optimizer, learning_rate=FLOATS, nesterov=st.booleans(), name=st.none() | TEXTS)
CONFIGS = st.builds(
    Config,
    clip=st.none() | FLOATS,
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    names=st.lists(TEXTS, max_size=3).map(tuple),
    pair=st.tuples(FLOATS, FLOATS),
    nested=st.lists(st.lists(st.integers(), max_size=2).map(tuple), max_size=2).map(tuple),
    flag=st.booleans(),
    label=TEXTS,
    note=st.none() | TEXTS,
    either=st.integers() | TEXTS,
    kind=st.sampled_from(["a", "none", 1, None]),
    activation=st.none() | st.sampled_from(Activation),
    level=st.sampled_from(Level),
    path=st.sampled_from(["a b", ".", "-x", "none", "3"]).map(Path),
    dtype=st.none() | st.sampled_from(["float32", "bfloat16", ">i4"]).map(np.dtype),
    optimizer=OPTIMIZERS,
    second=st.none() | OPTIMIZERS,
)


@given(config=CONFIGS, base=CONFIGS)
@example(config=Config(note="None", kind="none", activation=Activation.none, either="5"), base=Config())
def test_options_of_a_config_give_it_back(config: Config, base: Config) -> None:
    arguments = format_options(config, base)
    for parse in (parse_options, lambda *both: {name: value for name, (value,) in parse_alternatives(*both).items()}):
        restored = set_fields(base, parse(Config, arguments))
        assert repr(to_json(restored)) == repr(to_json(config)), arguments
        assert [type(value) for value in vars(restored).values()] == [type(value) for value in vars(config).values()]


def test_options_name_only_what_differs() -> None:
    assert format_options(Config()) == []
    optimizer = Optimizer(nesterov=True, name=None)
    config = Config(optimizer=optimizer, flag=False, sizes=(64, 64), label="--x", activation=Activation.none, clip=-1.0)
    assert format_options(dataclasses.replace(config, dtype=np.dtype("float32"))) == [
        "--clip=-1.0", "--sizes", "(64, 64)", "--no-flag", "--label=--x", "--activation", "'none'",
        "--dtype", "float32", "--optimizer.nesterov", "--optimizer.name", "None",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--clip", "none"], "clip", None),
        (["--clip", "inf"], "clip", math.inf),
        (["--steps", "1_000"], "steps", 1000),
        (["--steps", "0x10"], "steps", 16),
        (["--sizes", "[4, 4]"], "sizes", (4, 4)),
        (["--sizes", "4,4"], "sizes", (4, 4)),
        (["--sizes", "4"], "sizes", (4,)),
        (["--sizes"], "sizes", ()),
        (["--names", "('a b',)"], "names", ("a b",)),
        (["--names", "b"], "names", ("b",)),
        (["--pair", "-1e-3", "2"], "pair", (-1e-3, 2.0)),
        (["--flag", "FALSE"], "flag", False),
        (["--no-flag"], "flag", False),
        (["--optimizer.no-nesterov"], "optimizer.nesterov", False),
        (["--label", "(1, 2)"], "label", "(1, 2)"),
        (["--label", "log:1:2"], "label", "log:1:2"),
        (["--label", ""], "label", ""),
        (["--label="], "label", ""),
        (["--label", "-x"], "label", "-x"),
        (["--note", "none"], "note", None),
        (["--either", "5"], "either", 5),
        (["--either", "5.0"], "either", "5.0"),
        (["--activation", "RELU"], "activation", Activation.RELU),
        (["--activation", "relu"], "activation", Activation.RELU),
        (["--level", "HIGH"], "level", Level.HIGH),
        (["--path", "other/weights.npz"], "path", Path("other/weights.npz")),
        (["--dtype", "bfloat16"], "dtype", np.dtype("bfloat16")),
        (["--dtypes", "int8", "float64"], "dtypes", (np.dtype("int8"), np.dtype("float64"))),
        (["--second", "{'learning_rate': 0.5}"], "second", {"learning_rate": 0.5}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_words_mean_the_same_for_a_run_and_a_sweep(words: list[str], name: str, value: object) -> None:
    if name == "second":
        value = Optimizer(learning_rate=0.5)
    assert parse_options(Config, words) == {name: value}
    if words != ["--dtypes", "int8", "float64"]:
        assert parse_alternatives(Config, words) == {name: [value]}


def test_an_unknown_option_is_compared_with_those_of_the_command_and_of_the_fields() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--sweep-dir")
    assert split_options(parser, Config, ["--steps=3", "--sweep-dir", "s"])[1] == ["--steps=3"]
    for word, option in (("--run-dir=r", "--sweep-dir"), ("--step", "--steps")):
        with pytest.raises(ConfigError, match=f"there is no option {word[:6]}.*; did you mean '{option}'"):
            split_options(parser, Config, [word])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "3"], r"there is no option --step; did you mean '--steps'\? \(all: --help\)"),
        (["--optimizer.lerning-rate", "1"], "did you mean '--optimizer.learning-rate'"),
        (["--no-steps"], "there is no option --no-steps"),
        (["--", "--steps"], "there is no option --"),
        (["3"], "'3' belongs to no option"),
        (["--steps"], "--steps: no value is given"),
        (["--steps", "1e3"], r"--steps: expected int, got 1000.0 \(float\)"),
        (["--steps", "3", "4"], "--steps: '4' is a value too many.*expected int"),
        (["--pair", "3"], "--pair: expected 2 values, got 1"),
        (["--sizes", "(8.5,)"], r"--sizes\[0\]: expected int, got 8.5"),
        (["--sizes", "8", "x"], "--sizes: expected int, got 'x'"),
        (["--activation", "RELO"], "--activation: expected .*'RELU'"),
        (["--dtype", "float3"], "--dtype: expected dtype | None, got 'float3'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_options(Config, words)


def test_several_words_for_tuples_are_ambiguous_in_a_sweep() -> None:
    assert parse_alternatives(Config, ["--sizes", "(8,)", "(4, 4)"]) == {"sizes": [(8,), (4, 4)]}
    with pytest.raises(ConfigError, match=r"""--sizes: write one tuple as "\(8, 4\)", several as "\(8,\)" "\(4,\)"$"""):
        parse_alternatives(Config, ["--sizes", "8", "4"])
    with pytest.raises(ConfigError, match=r"""one tuple as "\('a', 'b'\)", several as "\('a',\)" "\('b',\)"$"""):
        parse_alternatives(Config, ["--names", "a", "b"])


def test_help_has_types_documentation_and_defaults() -> None:
    text = " ".join(options_help(Config, Config()).split())
    for part in (
        "--steps int Number of updates; each consumes one batch. (default: 1000)",
        "--clip float | None largest norm of a gradient (default: None)",
        "--sizes tuple[int, ...] (default: (8, 8))",
        "--flag, --no-flag (default: True)",
        "--activation 'RELU' or 'none' | None (default: RELU)",
        "--dtypes tuple[dtype, ...] (default: ('int8',))",
        "--optimizer.learning-rate float Step size, 10% of the usual one. (default: 0.1)",
    ):
        assert part in text


def test_the_command_line_sets_fields_of_every_type() -> None:
    experiment = Experiment(Config, lambda config, info: None)
    words = ["--activation", "none", "--path", "x", "--dtype", "int8", "--level", "HIGH"]
    config = cli.parse_config(experiment, words, Config(activation=Activation.RELU))
    assert (config.activation, config.path, config.dtype, config.level) == (
        None,
        Path("x"),
        np.dtype("int8"),
        Level.HIGH,
    )
