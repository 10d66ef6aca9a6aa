"""`foldax export`: a run's parameters as safetensors, and a program that predicts with nothing of foldax's code.

The program is what `jax.export` makes of the learner's `predict`: StableHLO, for several platforms at once. Parameters
are its argument, so that it is small. It takes raw inputs, as the dataset gives them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from foldax import parameter_paths
from foldax.configuration import to_json
from foldax.engine.result import Result
from foldax.errors import ConfigError, ExperimentError, RunError
from foldax.experiment import experiment_name
from foldax.inference import inputs as reading
from foldax.runs import tables
from foldax.runs.load import load_run
from foldax.runs.train import warn
from foldax.runs.transfer import parameters

FILES = ("params.safetensors", "predict.jax", "signature.json", "example.py")
PLATFORMS = ("cpu", "cuda", "tpu")
CHECKED = 16  # examples that the program is tried on
TOLERANCE = 1e-4  # relative; another compilation of the same operations

Inputs = Any  # an array, or arrays by name


def export(
    run: Result | str | Path,
    out: str | Path | None = None,
    *,
    batch_size: int | str | None = None,
    platforms: Sequence[str] = PLATFORMS,
    shape: Sequence[int | str] | None = None,
    verbose: bool = True,
) -> Path:
    """Writes `params.safetensors`, `predict.jax`, `signature.json` and `example.py`, which predicts with the first two.

    Args:
      run: a run folder, or what `foldax.train` returned; the state that was tested is exported.
      out: the folder to write to; `export` in the run folder if None.
      batch_size: examples a call: a number, or "symbolic" for any; None: any if the model allows it, else the batch
        size of training, with a warning.
      platforms: of "cpu", "cuda", "rocm" and "tpu", where the program is to run.
      shape: of one example's inputs, if not as in the dataset; a name such as "time" stands for any length.
      verbose: whether to say what was written.

    Returns:
      The folder.

    Raises:
      ConfigError: a platform, batch size or shape that is not allowed.
      ExperimentError: the learner has no `predict`, it cannot be exported so, or the program's outputs differ.
      RunError: see `load_run`; or the folder cannot be written, or holds other files of these names.
    """
    unknown = [name for name in platforms if name not in (*PLATFORMS, "rocm")]
    if unknown or not platforms:
        raise ConfigError(f"platforms: {', '.join(unknown) or 'none'} given; allowed are cpu, cuda, rocm and tpu")
    if batch_size not in (None, "symbolic") and not (isinstance(batch_size, int) and batch_size > 0):
        raise ConfigError(f"batch_size: {batch_size!r} is neither a number above 0 nor 'symbolic'")
    result = run if isinstance(run, Result) else load_run(run)
    if out is None:
        if result.run_dir is None:
            raise ConfigError("out: the run has no folder, so say where to write")
        out = result.run_dir / "export"
    folder = Path(out)
    _check_free(folder)
    predict = result.learner.predict
    if predict is None:
        raise ExperimentError("this learner has no `predict`, so there is nothing to export")
    expected = reading.expected(result)
    if shape is not None:  # a mask is one number for each step
        expected = {name: (tuple(shape)[: len(old) or None], dtype) for name, (old, dtype) in expected.items()}
    program, weights, random = _program(result, predict, expected, batch_size, tuple(platforms))
    said = _check(program, result, weights, random, expected)
    signature = _signature(result, program, weights, random)
    _write(folder, result, program, weights, signature)
    if verbose:
        _report(folder, signature, said)
    return folder


def _check_free(folder: Path) -> None:
    taken = [name for name in FILES if (folder / name).exists()]
    if taken and "signature.json" not in taken:
        raise RunError(f"{folder} holds a {taken[0]} that is not an exported one; choose another folder (--out)")


def _specs(expected: reading.Expected, batch: int | str, scope: Any = None) -> Inputs:
    """Returns shapes and dtypes of a batch: of the inputs alone, or by name where there is a mask too."""
    made = {}
    for name, (shape, dtype) in expected.items():
        text = ", ".join(map(str, (batch, *shape)))
        made[name] = jax.ShapeDtypeStruct(jax_export.symbolic_shape(text, scope=scope), dtype)
    return reading.as_given(made)


def _program(
    result: Result, predict: Callable[..., Any], expected: reading.Expected, batch_size: Any, platforms: tuple[str, ...]
) -> tuple[jax_export.Exported, dict[str, Any], bool]:
    """Returns the program `(weights, inputs[, seed]) -> outputs`, its weights by name, and whether it takes a seed."""
    leaves = parameter_paths.leaves_by_path(result.state)
    if any(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves.values()):
        raise ExperimentError(
            "the state holds random keys, which cannot be exported: use the key that predict is given"
        )
    specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), result.state)
    structure = jax.tree.structure(result.state)

    def run(state: Any, inputs: Inputs, seed: Any) -> Any:
        outputs = predict(state, inputs, jax.random.key(seed))
        by_path = parameter_paths.leaves_by_path(outputs)
        return by_path[""] if list(by_path) == [""] else by_path

    one = {name: (tuple(s if isinstance(s, int) else 8 for s in shape), d) for name, (shape, d) in expected.items()}
    arguments = (specs, _specs(one, 2), jax.ShapeDtypeStruct((), jnp.uint32))
    kept = _exported(run, arguments, None).module_kept_var_idx
    random = len(jax.tree.leaves(arguments)) - 1 in kept
    used = [path for index, path in enumerate(leaves) if index in kept]
    named = _names(leaves, used)

    def called(weights: dict[str, Any], inputs: Inputs, seed: Any = 0) -> Any:
        state = [
            weights[named[path]] if path in named else jnp.zeros(leaf.shape, leaf.dtype)
            for path, leaf in leaves.items()
        ]
        return run(jax.tree.unflatten(structure, state), inputs, seed)

    weights = {named[path]: leaves[path] for path in used}
    seed = (arguments[2],) if random else ()
    wanted = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()}

    def exported(batch: int | str, told: str) -> jax_export.Exported:
        scope = jax_export.SymbolicScope(["batch >= 1"] if batch == "batch" else [])
        return _exported(called, (wanted, _specs(expected, batch, scope), *seed), platforms, told)

    if isinstance(batch_size, int):
        return exported(batch_size, f" with a batch size of {batch_size}"), weights, random
    try:
        return exported("batch", " with a symbolic batch size (a number may do: --batch-size 64)"), weights, random
    except ExperimentError as error:
        if batch_size == "symbolic":
            raise
        size = result.info.batch_size
        warn(f"{str(error).splitlines()[0]}; the program takes {size} examples at a time")
        return exported(size, f" with a batch size of {size}"), weights, random


def _exported(
    function: Callable[..., Any], specs: Any, platforms: tuple[str, ...] | None, told: str = ""
) -> jax_export.Exported:
    try:
        return jax_export.export(jax.jit(function), platforms=platforms)(*specs)
    except Exception as error:  # whatever JAX raises while it traces the model is about this experiment's
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ExperimentError(f"predict cannot be exported{told}: {reason}") from error


def _names(leaves: dict[str, Any], used: Sequence[str]) -> dict[str, str]:
    """Returns the names, in the file, of the leaves that predict uses; an average of the parameters has their names."""
    known = parameters.names(leaves)
    made: dict[str, str] = {}
    for path in used:
        name = known.get(path, path)
        made[path] = path if name in made.values() else name
    return made


def _check(
    program: jax_export.Exported, result: Result, weights: dict[str, Any], random: bool, expected: reading.Expected
) -> str:
    """Runs the program on a few examples and says how it compares with the run's own `predict`.

    Raises:
      ExperimentError: it gives something else.
    """
    here = jax.default_backend()
    if not {"gpu": {"cuda", "rocm"}}.get(here, {here}) & set(program.platforms):
        return f"not tried: this is {here}"
    batch = program.in_avals[len(weights)].shape[0]
    inputs = reading.samples(result, batch if isinstance(batch, int) else CHECKED, expected)
    ours = parameter_paths.leaves_by_path(result.predict(inputs))
    theirs = parameter_paths.leaves_by_path(program.call(weights, inputs, *([np.uint32(0)] if random else [])))
    if all(np.asarray(value).tobytes() == np.asarray(theirs[name]).tobytes() for name, value in ours.items()):
        return "same bits as `predict`"
    worst = 0.0
    for name, value in ours.items():
        mine, other = np.asarray(value, np.float64), np.asarray(theirs[name], np.float64)
        scale = max(1.0, float(np.abs(mine).max(initial=0.0)))
        worst = max(worst, float(np.abs(mine - other).max(initial=0.0)) / scale)
    if not worst <= TOLERANCE:
        raise ExperimentError(f"the exported program differs from `predict` by {worst:.2g}, relative to its outputs")
    return f"differs from `predict` by {worst:.1g} at most"


def _signature(result: Result, program: jax_export.Exported, weights: dict[str, Any], random: bool) -> dict[str, Any]:
    def described(aval: Any) -> dict[str, Any]:
        sizes = [size if isinstance(size, int) else str(size) for size in aval.shape]
        return {"shape": sizes, "dtype": str(aval.dtype)}

    (_, inputs, *_), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    info = result.info
    return {
        "experiment": experiment_name(result.experiment),
        "foldax": version("foldax"),
        "jax": jax.__version__,
        "status": result.status,
        "state": "last" if result.best_step is None else "best",
        "step": result.step if result.best_step is None else result.best_step,
        "data_fingerprint": getattr(info, "fingerprint", None),
        "test": result.metrics.get("test", {}),
        "platforms": list(program.platforms),
        "inputs": jax.tree.map(described, inputs),
        "outputs": jax.tree.map(described, outputs),
        "takes_seed": random,
        "class_names": _list(getattr(info, "class_names", None)),
        "feature_names": _list(getattr(info, "feature_names", None)),
        "parameters": list(weights),
    }


def _list(value: Any) -> Any:
    return None if value is None else list(value)


def _write(
    folder: Path, result: Result, program: jax_export.Exported, weights: dict[str, Any], signature: dict[str, Any]
) -> None:
    leaves = parameter_paths.leaves_by_path(result.state)
    kept = {name: np.asarray(leaf) for name, leaf in weights.items()}
    for path, name in parameters.names(leaves).items():
        kept.setdefault(name, np.asarray(leaves[path]))
    metadata = {key: signature[key] for key in ("experiment", "foldax", "state", "step", "data_fingerprint")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "predict.jax").write_bytes(program.serialize())
        (folder / "signature.json").write_text(json.dumps(signature, indent=2) + "\n")
        (folder / "example.py").write_text(example(signature))
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}") from error
    parameters.write_safetensors(folder / "params.safetensors", kept, metadata | {"config": to_json(result.config)})


def example(signature: dict[str, Any]) -> str:
    """Returns a script that predicts with the exported files, and needs nothing of foldax."""
    one = "shape" in signature["inputs"]
    kinds = [f"{spec['dtype']}[{', '.join(map(str, spec['shape']))}]" for spec in _each(signature["inputs"]).values()]
    arrays = "an array" if one else " and ".join(f'"{name}"' for name in signature["inputs"])
    test = ", ".join(f"{name} {value:.4g}" for name, value in signature["test"].items())
    zeros = [
        f"np.{'ones' if name == 'mask' else 'zeros'}("
        f"{tuple(size if isinstance(size, int) else 4 for size in spec['shape'])}, np.{spec['dtype']})"
        for name, spec in _each(signature["inputs"]).items()
    ]
    made = zeros[0] if one else "{" + ", ".join(f'"{n}": {z}' for n, z in zip(signature["inputs"], zeros)) + "}"
    return EXAMPLE.format(
        experiment=signature["experiment"],
        test=f" (test: {test})" if test else "",
        file="INPUTS.npy" if one else "INPUTS.npz",
        kinds=", ".join(kinds),
        arrays=arrays,
        read="np.load(sys.argv[1])" if one else "dict(np.load(sys.argv[1]))",
        made=made,
        seed=", np.uint32(0)" if signature["takes_seed"] else "",
    )


def _each(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": inputs} if "shape" in inputs else inputs


EXAMPLE = '''"""Predicts with {experiment}{test}; see signature.json. pip install jax flatbuffers safetensors

    python example.py {file}    # {arrays}, {kinds}; without a file some constants
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

here = Path(__file__).parent
signature = json.loads((here / "signature.json").read_text())
weights = load_file(here / "params.safetensors")
program = export.deserialize(bytearray((here / "predict.jax").read_bytes()))
weights = {{name: weights[name] for name in signature["parameters"]}}
inputs = {read} if len(sys.argv) > 1 else {made}
outputs = jax.jit(program.call)(weights, inputs{seed})
print(outputs)
'''


def _report(folder: Path, signature: dict[str, Any], said: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    run = f"{signature['experiment']}, {signature['status']}"
    table = Table(title=f"{run}: {signature['state']} state, step {signature['step']}")
    for column in ("", "name", "shape", "dtype"):
        table.add_column(column)
    for side in ("inputs", "outputs"):
        for name, spec in _each(signature[side]).items():
            shape = Text(_text(spec["shape"]))
            table.add_row(side, "" if "shape" in signature[side] else name, shape, spec["dtype"])
    console = Console()
    console.print(table)
    console.print(f"platforms: {', '.join(signature['platforms'])}; {said}", highlight=False)
    for name in FILES:
        size = (folder / name).stat().st_size
        print(f"{tables.shown(folder / name)}  {size:,} bytes")


def _text(sizes: Sequence[Any]) -> str:
    return "[" + ", ".join(map(str, sizes)) + "]"
