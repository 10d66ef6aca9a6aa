"""Configs as options of the command line, and back: one spelling for `foldax run`, `foldax sweep`, hints and tables.

An option is `--field WORD ...`; `--optimizer.name` is a field of a nested config. A word is a Python literal (`1e-3`,
`None`, `(64, 64)`), or the text itself where that fits the field's type. A tuple may also be written as several words,
and a bool as `--field` or `--no-field`.
"""

import argparse
import ast
import contextlib
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import typing
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

from foldax.config_fields import field_kinds, field_types
from foldax.errors import ConfigError, did_you_mean
from foldax.field_values import coerce_value, is_config, to_plain, type_name

Config: TypeAlias = Any  # an instance of a config class (see `foldax.config`), which is a pytree of its traced fields
Overrides: TypeAlias = dict[str, Any]  # values of config fields by name, dotted in nested configs
T = TypeVar("T")


# Fields


def field_type(cls: type, name: str) -> tuple[str, Any]:
    """Looks up a config field: whether it is traced, and its type.

    Args:
      cls: a config class.
      name: name of the field, dotted in nested configs.

    Returns:
      `("traced" | "structural" | "driver", type)`.

    Raises:
      ConfigError: the class has no such field.

    >>> import foldax
    >>> field_type(foldax.Training, "steps")
    ('structural', <class 'int'>)
    """
    head, dot, rest = name.partition(".")
    kinds = field_kinds(cls)
    if head not in kinds or (dot and not rest):
        hint, names = did_you_mean(head, kinds), ", ".join(kinds)
        raise ConfigError(f"{cls.__name__} has no field {name!r}{hint} (fields: {names})")
    hint = field_types(cls)[head]
    if not rest:
        return kinds[head], hint
    inner = _nested(hint)
    if inner is None:
        raise ConfigError(f"{cls.__name__}.{head} is no nested config, so there is no field {name!r}")
    return field_type(inner, rest)


def field_names(cls: type) -> Iterator[str]:
    """Names of all fields, dotted in nested configs; a nested config that may be None comes before its fields.

    >>> import foldax
    >>> "steps" in field_names(foldax.Training)
    True
    """
    for name, hint in field_types(cls).items():
        inner = _nested(hint)
        if inner is None or not is_config(hint):
            yield name
        for rest in () if inner is None else field_names(inner):
            yield f"{name}.{rest}"


def _nested(hint: Any) -> Any:
    """The config class of a field of type `Nested` or `Nested | None`; else None."""
    return next((arm for arm in (hint, *typing.get_args(hint)) if is_config(arm)), None)


def set_fields(config: T, overrides: Overrides) -> T:
    """Copies a config with some fields replaced, all at once, so that fields are only checked together.

    Raises:
      ConfigError: a value is not allowed, or the nested config of a field is None.

    >>> import foldax
    >>> set_fields(foldax.Training(), {"steps": 5, "seed": 1}).steps
    5
    """
    changes: dict[str, Any] = {name: value for name, value in overrides.items() if "." not in name}
    # Fields of one nested config are replaced together, since it may check them together.
    nested: dict[str, Overrides] = {}
    for name in overrides.keys() - changes.keys():
        head, _, rest = name.partition(".")
        nested.setdefault(head, {})[rest] = overrides[name]
    for head, inner in nested.items():
        owner = changes.get(head, getattr(config, head))
        if owner is None:
            raise ConfigError(f"{type(config).__name__}.{head} is None, so its field {min(inner)!r} cannot be set")
        changes[head] = set_fields(owner, inner)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a config, as `to_json` makes them, by dotted name.

    >>> flatten({"steps": 5, "optimizer": {"name": "adam"}})
    {'steps': 5, 'optimizer.name': 'adam'}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = flatten(value) if isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{rest}": v for rest, v in inner.items()}
    return flat


# From values to words


def plain_text(value: Any) -> str:
    """Spells a plain value, as `to_plain` makes it; tuples in Python's notation.

    >>> plain_text([64, [0.5, "inf"]]), plain_text("adam")
    ("(64, (0.5, 'inf'))", 'adam')
    """
    return value if isinstance(value, str) else repr(_as_tuples(value))


def _as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_tuples(item) for name, item in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def format_word(value: Any, hint: Any) -> str:
    """Spells the value of a field, so that `parse_word` gives it back.

    >>> format_word("none", str | None), format_word(None, str | None), format_word((8, 8), tuple[int, ...])
    ("'none'", 'None', '(8, 8)')
    """
    plain = to_plain(value)
    with contextlib.suppress(ConfigError):
        if repr(to_plain(parse_word(plain_text(plain), hint, ""))) == repr(plain):
            return plain_text(plain)
    # A text that reads as another value of the type: in quotes.
    return repr(plain)


def format_options(config: Config, base: Config = None, prefix: str = "") -> list[str]:
    """Words of the command line that turn one config into another.

    Args:
      config: the config to make.
      base: the config without options; by default all fields have their defaults.
      prefix: what comes before the names of the fields: "optimizer." in a nested config.

    >>> import foldax
    >>> format_options(foldax.Training(steps=5, profile=True))
    ['--profile', '--steps', '5']
    """
    words: list[str] = []
    base = type(config)() if base is None else base
    for name, hint in field_types(type(config)).items():
        value, before = getattr(config, name), getattr(base, name)
        option = option_name(prefix + name)
        if is_config(value) and is_config(before):
            words += format_options(value, before, f"{prefix}{name}.")
        elif repr(to_plain(value)) == repr(to_plain(before)):
            continue
        elif hint is bool:
            words.append(option if value else _negated(option))
        else:
            word = format_word(value, hint)
            # Else a word such as -x would be an option.
            words += [f"{option}={word}"] if word.startswith("-") else [option, word]
    return words


def option_name(name: str) -> str:
    """Spells a field's name as an option.

    >>> option_name("optimizer.learning_rate"), option_name("pqn.lambda_")
    ('--optimizer.learning-rate', '--pqn.lambda_')
    """
    return "--" + re.sub(r"_(?=\w)", "-", name)


def _negated(option: str) -> str:
    """`--no-bias` of `--bias`, `--optimizer.no-nesterov` of `--optimizer.nesterov`."""
    head, dot, last = option[2:].rpartition(".")
    return f"--{head}{dot}no-{last}"


# From words to values


def parse_word(text: str, hint: Any, where: str) -> Any:
    """Parses the value of a field from one word: a Python literal, or the text itself where that fits the type.

    Args:
      text: the word.
      hint: type of the field.
      where: the option, as the error names it.

    Raises:
      ConfigError: the word is no value of the type.

    >>> parse_word("1_000", int, "--steps"), parse_word("none", float | None, "--clip"), parse_word("1", str, "--label")
    (1000, None, '1')
    """
    if hint is str:
        return text
    value: Any = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the text as Python code
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = ast.literal_eval(text) if value == text else value
    for candidate in (value, text):
        with contextlib.suppress(ConfigError):
            return coerce_value(candidate, hint, where)
    return coerce_value(value, hint, where)  # raises


def parse_options(cls: type, arguments: Sequence[str]) -> Overrides:
    """Parses a command line into values of fields; `format_options` is its inverse.

    Args:
      cls: the config class.
      arguments: `--field WORD ...`, as they stand on the command line.

    Raises:
      ConfigError: there is no such field, or a word is no value of its type.

    >>> import foldax
    >>> parse_options(foldax.Training, ["--steps", "7", "--no-profile"])
    {'steps': 7, 'profile': False}
    """
    return {name: values[0] for name, values in _parse(cls, arguments, several=False).items()}


def parse_alternatives(cls: type, arguments: Sequence[str]) -> dict[str, list[Any]]:
    """Parses the command line of a sweep, where an option has one word for each of its alternative values.

    Words that are no values, such as ranges, stay as they are.

    >>> import foldax
    >>> parse_alternatives(foldax.Training, ["--steps", "5", "10", "--profile"])
    {'steps': [5, 10], 'profile': [True]}
    """
    return _parse(cls, arguments, several=True)


def split_options(
    parser: argparse.ArgumentParser, cls: type, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Parses the options of a command, and leaves those of the config's fields for `parse_options`.

    Raises:
      ConfigError: the command refuses a value, or an option is neither the command's nor a field's.

    >>> import foldax
    >>> parser = argparse.ArgumentParser(exit_on_error=False)
    >>> _ = parser.add_argument("--run-dir")
    >>> split_options(parser, foldax.Training, ["--run-dir", "r", "--steps", "7"])
    (Namespace(run_dir='r'), ['--steps', '7'])
    """
    try:
        known, fields = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from None
    for word in fields:
        if word.startswith("--") and word != "--help":
            _resolve(cls, word.partition("=")[0], [], list(parser._option_string_actions))
    return known, fields


def _parse(cls: type, arguments: Sequence[str], several: bool) -> dict[str, list[Any]]:
    words_by_option: dict[str, list[str]] = {}
    option = None
    for argument in arguments:
        if argument.startswith("--"):
            option, equals, word = argument.partition("=")
            words_by_option[option] = [word] if equals else []  # the last of several equal options counts
        elif option is None:
            raise ConfigError(f"{argument!r} belongs to no option: write --field before its values")
        else:
            words_by_option[option].append(argument)
    values: dict[str, list[Any]] = {}
    for option, words in words_by_option.items():
        name, hint, words = _resolve(cls, option, words)
        values[name] = _parse_words(words, hint, option, several)
    return values


def _resolve(cls: type, option: str, words: list[str], other_options: Sequence[str] = ()) -> tuple[str, Any, list[str]]:
    """Finds the field of an option; returns its name, its type, and the words, which `--flag` and `--no-flag` lack."""
    name = option[2:].replace("-", "_")
    head, dot, last = name.rpartition(".")
    with contextlib.suppress(ConfigError):
        hint = field_type(cls, name)[1]
        return name, hint, words or (["True"] if hint is bool else [])
    positive = f"{head}{dot}{last.removeprefix('no_')}"
    with contextlib.suppress(ConfigError):
        if not words and positive != name and field_type(cls, positive)[1] is bool:
            return positive, bool, ["False"]
    suggestion = did_you_mean(option, [*map(option_name, field_names(cls)), *other_options])
    raise ConfigError(f"there is no option {option}{suggestion} (all: --help)")


def _parse_words(words: Sequence[str], hint: Any, option: str, several: bool) -> list[Any]:
    """Parses the words of an option into one value, or one per word; several words may also be the items of a tuple."""
    tuples = [arm for arm in (hint, *typing.get_args(hint)) if typing.get_origin(arm) is tuple]
    if not words and not tuples:
        raise ConfigError(f"{option}: no value is given")
    error: ConfigError | None = None
    if words and (several or len(words) == 1):
        try:
            return [parse_word(word, hint, option) for word in words]
        except ConfigError as caught:
            error = caught
    if several and words and words[0].partition(":")[0] in ("log", "uniform"):
        return list(words)
    if tuples and not (error and words[0][:1] in ("(", "[")):
        items = typing.get_args(tuples[0])
        types = (items[0],) * len(words) if items[-1] is Ellipsis else items
        if len(types) != len(words):
            raise ConfigError(f"{option}: expected {len(types)} values, got {len(words)}")
        value = tuple(parse_word(word, item, option) for word, item in zip(words, types, strict=True))
        if items[-1] is Ellipsis and several and len(words) > 1:
            one, *each = (f'"{format_word(item, hint)}"' for item in (value, *((item,) for item in value)))
            raise ConfigError(f"{option}: write one tuple as {one}, several as {' '.join(each)}")
        return [value]
    if error:
        raise error
    problem = f"{option}: {words[1]!r} is a value too many, or belongs to no option"
    raise ConfigError(f"{problem}; expected {type_name(hint)} (`foldax sweep` takes several values)")


# Help


def options_help(cls: type, default: Config, with_kinds: bool = False) -> str:
    """Lists the options of a config with types, documentation and defaults.

    Args:
      cls: the config class.
      default: a config whose values are shown as the defaults.
      with_kinds: whether to show which fields are traced, too.

    >>> import foldax
    >>> "--steps int" in options_help(foldax.Training, foldax.Training())
    True
    """
    formatter = argparse.HelpFormatter("")
    formatter.start_section("fields of the config")
    for name in field_names(cls):
        kind, hint = field_type(cls, name)
        value = functools.reduce(lambda one, part: getattr(one, part, None), name.split("."), default)
        text = "see its fields" if is_config(value) else plain_text(to_plain(value))
        note = f"({kind}; default: {text})" if with_kinds else f"(default: {text})"
        # Metavar and help are texts: argparse would fill in what follows a percent sign.
        help = f"{_documentation(cls, name)} {note}".strip().replace("%", "%%")
        names = [option_name(name)] + ([_negated(option_name(name))] if hint is bool else [])
        nargs = 0 if hint is bool else None
        formatter.add_argument(argparse.Action(names, name, nargs, metavar=type_name(hint), help=help))
    formatter.end_section()
    return formatter.format_help()


def _documentation(cls: type, name: str) -> str:
    """The text below a field in the source of its class, or the comment behind it; empty if there is none."""
    head, _, rest = name.partition(".")
    if rest:
        return _documentation(_nested(field_types(cls)[head]), rest)
    for owner in cls.__mro__:
        # A class made in a prompt has no source.
        with contextlib.suppress(OSError, TypeError, SyntaxError):
            found = is_config(owner) and _find_documentation(inspect.getsource(owner), head)
            if found:
                return found
    return ""


def _find_documentation(source: str, name: str) -> str:
    lines = textwrap.dedent(source).splitlines()
    (definition,) = ast.parse("\n".join(lines)).body
    body: list[Any] = getattr(definition, "body", [])
    for statement, after in itertools.pairwise([*body, None]):
        if isinstance(statement, ast.AnnAssign) and getattr(statement.target, "id", None) == name:
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return " ".join(str(after.value.value).split())
            line = lines[(statement.end_lineno or 1) - 1]
            return line[statement.end_col_offset :].strip().removeprefix("#").strip()
    return ""
