"""Every public name is documented: a summary, its parameters, shapes of arrays, errors and the source of an algorithm."""

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import pytest

import foldax
from foldax import errors

LIBRARY = Path(foldax.__file__).parent
PACKAGES = ("learners", "models", "data", "rl", "augment", "optim", "evaluation", "plots", "runs.transfer")
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)}
ARRAY = re.compile(r"jax\.Array|np\.ndarray|chex\.Array\b|ArrayLike")
SHAPE = re.compile(r"`[^`\n]*\[[^`\n]*\][^`\n]*`")
YEAR = re.compile(r"\b(1[89]|20)\d\d\b")
FILES = sorted(LIBRARY.rglob("*.py"))

# Names from the literature: each docstring, or that of its module, gives the year of the paper.
SCHEDULES = ("one_cycle", "warmup_cosine", "warmup_inverse_sqrt", "warmup_restarts", "warmup_stable_decay")
ALGORITHMS = {
    "foldax.optim": (*SCHEDULES, "layer_decay"),
    "foldax.rl": ("generalized_advantages", "lambda_returns", "n_step_targets"),
    "foldax.augment": ("cutmix", "cutout", "mixup"),
}
# Names that a rule does not hold for, each with its reason.
TEXTBOOK = "maximum likelihood or a loss of the user's choice, not the algorithm of one paper"
PLUMBING = "prepares, collects or formats outputs; computes no published measure"
NO_SOURCE = {
    **dict.fromkeys(
        ("foldax.learners.classifier", "foldax.learners.regressor", "foldax.learners.language_model"), TEXTBOOK
    ),
    **dict.fromkeys(("foldax.learners.sequence_classifier", "foldax.learners.step_classifier"), TEXTBOOK),
    "foldax.learners.subset": "selects examples for another learner",
    **{f"foldax.evaluation.generative.{name}": PLUMBING for name in ("with_images", "summarize", "collect_samples")},
    **{f"foldax.evaluation.generative.{name}": PLUMBING for name in ("classifier_features", "compare_to_real")},
    "foldax.evaluation.generative.nearest_neighbors": "plain Euclidean distances",
    "foldax.evaluation.likelihood.histogram_bits": "a baseline of this library: relative frequencies",
}


def exports(module: types.ModuleType) -> dict[str, Any]:
    """Lists the functions and classes of `__all__`, or, without one, those that the module defines without underscore."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    values = {name: getattr(module, name) for name in names if not name.startswith("_")}
    # Aliases of types and constants are objects of other libraries: they have no docstring of their own.
    return {name: value for name, value in values.items() if inspect.isfunction(value) or inspect.isclass(value)}


def modules() -> Iterator[types.ModuleType]:
    """Yields foldax, its public packages, and the modules that their `__all__` lists."""
    found = {"foldax": foldax}
    for package in PACKAGES:
        found[f"foldax.{package}"] = importlib.import_module(f"foldax.{package}")
    for module in tuple(found.values()):
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, types.ModuleType):
                found.setdefault(value.__name__, value)
    yield from found.values()


MODULES = {module.__name__: module for module in modules()}
by_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)


def public(module: types.ModuleType) -> dict[str, Any]:
    """Names each public value of a module as the failures print it."""
    return {f"{module.__name__}.{name}": value for name, value in exports(module).items()}


def parameters(value: Any) -> list[str]:
    """Lists the parameters of a function, or the public fields of a class, in their order."""
    if inspect.isclass(value):
        # Inherited fields are documented where they are declared.
        own = annotations(value)
        if not (dataclasses.is_dataclass(value) or hasattr(value, "_fields")):
            own = inspect.signature(value).parameters if "__init__" in value.__dict__ else {}
        added = {"parent", "name"} if issubclass(value, nn.Module) else set()  # by Flax, to every module
        return [name for name in own if not name.startswith("_") and name not in added]
    return [name for name in inspect.signature(value).parameters if name != "self"]


def entries(docstring: str) -> set[str]:
    """Lists the names that the sections "Args:" and "Attributes:" of a docstring describe."""
    names: set[str] = set()
    for section in re.findall(r"^(?:Args|Attributes):\n((?:  .*\n?|\n)+)", docstring, re.MULTILINE):
        for entry in re.findall(r"^  (\*{0,2}\w+(?:, \*{0,2}\w+)*):", section, re.MULTILINE):
            names |= {name.strip("* ") for name in entry.split(",")}
    return names


def described(value: Any) -> set[str]:
    """Lists the parameters that a docstring describes, and fields with a string below them."""
    names = entries(inspect.getdoc(value) or "")
    if inspect.isclass(value):
        body = source_of(value).body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                names.add(ast.unparse(field.target))
    return names


def source_of(value: Any) -> ast.FunctionDef | ast.ClassDef:
    """Parses the definition of a function or class."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value)))).body[0]
    assert isinstance(definition, (ast.FunctionDef, ast.ClassDef))
    return definition


def raised(value: Any) -> set[str]:
    """Lists the errors of foldax that the body of a function, or the constructor of a class, raises itself."""
    definition = source_of(value)
    bodies: list[ast.AST] = [definition]
    if isinstance(definition, ast.ClassDef):
        bodies = [node for node in definition.body if getattr(node, "name", "") in ("__init__", "__post_init__")]
    nodes = [node for body in bodies for node in ast.walk(body)]
    calls = [node.exc.func for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {ast.unparse(call).rsplit(".", 1)[-1] for call in calls} & ERRORS


def returns_learner(value: Any) -> bool:
    """Tells whether a function builds a learner."""
    definition = source_of(value)
    return isinstance(definition, ast.FunctionDef) and ast.unparse(definition.returns or ast.Constant(0)).endswith(
        "Learner"
    )


def annotations(value: Any) -> dict[str, str]:
    """Maps the parameters of a function, or the fields of a class, to their annotations as they are written."""
    definition = source_of(value)
    if isinstance(definition, ast.ClassDef):
        fields = [node for node in definition.body if isinstance(node, ast.AnnAssign)]
        return {ast.unparse(field.target): ast.unparse(field.annotation) for field in fields}
    arguments = [*definition.args.posonlyargs, *definition.args.args, *definition.args.kwonlyargs]
    return {argument.arg: ast.unparse(argument.annotation) for argument in arguments if argument.annotation}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_every_public_function_and_class_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    definitions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    missing = [node.name for node in definitions if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert missing == []


@by_module
def test_the_first_line_is_one_sentence(module: types.ModuleType) -> None:
    def wrong(value: Any) -> bool:
        first = (value.__doc__ or "").split("\n")[0]
        return (
            not first.endswith(".")
            or first.startswith(("Returns what", "What "))
            or bool(re.search(r"[a-z\])`]\. [A-Z]", first))
        )

    assert [name for name, value in public(module).items() if wrong(value)] == []


@by_module
def test_every_parameter_of_three_or_more_is_described(module: types.ModuleType) -> None:
    missing = {}
    for name, value in public(module).items():
        expected = parameters(value)
        absent = [parameter for parameter in expected if parameter not in described(value)]
        if len(expected) >= 3 and absent:
            missing[name] = absent
    assert missing == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_every_described_parameter_exists(path: Path) -> None:
    unknown = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            existing = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
            unknown[node.name] = entries(ast.get_docstring(node) or "") - existing
    assert {name: names for name, names in unknown.items() if names} == {}


@by_module
def test_arrays_are_described_by_their_shape(module: types.ModuleType) -> None:
    def takes_arrays(value: Any) -> bool:
        # Random keys and rates (`chex.Numeric`) are scalars; functions of arrays are described by their signature.
        kinds = [
            kind for name, kind in annotations(value).items() if not name.endswith("key") and "Callable" not in kind
        ]
        return any(ARRAY.search(kind) for kind in kinds)

    missing = [
        name for name, value in public(module).items() if takes_arrays(value) and not SHAPE.search(value.__doc__)
    ]
    assert missing == []


@by_module
def test_errors_are_described(module: types.ModuleType) -> None:
    def section(value: Any) -> str:
        return (inspect.getdoc(value) or "").partition("Raises:\n")[2]

    missing = {name: raised(value) for name, value in public(module).items()}
    missing = {
        name: {error for error in found if error not in section(public(module)[name])}
        for name, found in missing.items()
    }
    assert {name: found for name, found in missing.items() if found} == {}


@by_module
def test_algorithms_name_their_source(module: types.ModuleType) -> None:
    def is_algorithm(name: str, value: Any) -> bool:
        if module.__name__.startswith("foldax.evaluation") or name.rsplit(".", 1)[-1] in ALGORITHMS.get(
            module.__name__, ()
        ):
            return True
        return module.__name__.startswith("foldax.learners") and returns_learner(value)

    names = [name for name, value in public(module).items() if is_algorithm(name, value)]
    sources = {
        name: public(module)[name].__doc__ + importlib.import_module(public(module)[name].__module__).__doc__
        for name in names
    }
    assert [name for name, source in sources.items() if not YEAR.search(source) and name not in NO_SOURCE] == []


def test_exemptions_name_what_exists() -> None:
    everything = {name for module in MODULES.values() for name in public(module)}
    assert NO_SOURCE.keys() <= everything
