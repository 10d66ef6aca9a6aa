"""`foldax export`: a run's parameters as safetensors, and a program that predicts without any code of foldax.

The program is the learner's `predict`, exported by `jax.export` as StableHLO for several platforms at once. Parameters
are its argument, which keeps it small. It takes raw inputs, as the dataset yields them, or as the
learner states them: observations, classes.
"""

import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from foldax import parameter_paths
from foldax.configuration import to_json
from foldax.engine.result import Result
from foldax.engine.state_leaves import is_key, typed_array
from foldax.errors import ConfigError, ExperimentError, RunError, display_path, first_line
from foldax.experiment import experiment_name
from foldax.inference.inputs import InputSpecs, example_inputs, input_specs, list_text, predict_argument
from foldax.inference.outputs import output_path
from foldax.runs import tables
from foldax.runs.folder import write_errors
from foldax.runs.load import load_run
from foldax.runs.terminal import echo, print_table, warn
from foldax.runs.transfer import parameters

FILES = ("params.safetensors", "predict.jax", "signature.json", "example.py")
PLATFORMS = ("cpu", "cuda", "tpu")
CHECKED_EXAMPLES = 16
TOLERANCE = 1e-4  # relative to the largest output: the exported program is compiled differently

Inputs = Any  # an array, or arrays by name


class ExportedPredict(NamedTuple):
    """An exported program `(weights, inputs[, seed]) -> outputs`.

    Attributes:
      program: the program.
      weights: its first argument: arrays by name.
      takes_seed: whether it takes a seed, because `predict` uses its key.
    """

    program: jax_export.Exported
    weights: dict[str, jax.Array]
    takes_seed: bool


def export(
    run: Result | str | Path,
    out: str | Path | None = None,
    *,
    batch_size: int | str | None = None,
    platforms: Sequence[str] = PLATFORMS,
    shape: Sequence[int | str] | None = None,
    verbose: bool = True,
) -> Path:
    """Exports a run: writes `params.safetensors`, `predict.jax`, `signature.json`, and `example.py`, which uses them.

    Args:
      run: a run folder, or the `Result` of `foldax.train`; the state that was tested is exported.
      out: output folder; `export` in the run folder if None.
      batch_size: examples per call: a number, or "symbolic" for any number; None: any number if the model allows it,
        else the batch size of training, with a warning.
      platforms: platforms of the program, of "cpu", "cuda", "rocm" and "tpu".
      shape: shape of one example's inputs, if it is not the dataset's; a name such as "time" stands for any length.
      verbose: prints a summary.

    Returns:
      The folder.

    Raises:
      ConfigError: a platform, batch size or shape is not allowed.
      ExperimentError: the learner has no `predict`, it cannot be exported, or the program's outputs differ from it.
      RunError: the run cannot be loaded, or the folder cannot be written or holds other files of these names.
    """
    # 1. Arguments
    unknown = [name for name in platforms if name not in (*PLATFORMS, "rocm")]
    if unknown or not platforms:
        raise ConfigError(f"platforms: {', '.join(unknown) or 'none'} given; allowed are cpu, cuda, rocm and tpu")
    if batch_size not in (None, "symbolic") and not (isinstance(batch_size, int) and batch_size > 0):
        raise ConfigError(f"batch_size: {batch_size!r} is neither a number above 0 nor 'symbolic'")
    result = run if isinstance(run, Result) else load_run(run)
    folder = output_path(result, out, "export")
    existing = [name for name in FILES if (folder / name).exists()]
    if existing and "signature.json" not in existing:
        raise RunError(f"{folder} holds a {existing[0]} that is not an exported one; choose another folder (--out)")
    if result.learner.predict is None:
        raise ExperimentError("this learner has no `predict`, so there is nothing to export")
    # 2. Program, tried on a few examples
    specs = input_specs(result)
    if shape is not None:  # a mask has only the axes of time
        specs = {name: spec._replace(shape=tuple(shape)[: len(spec.shape) or None]) for name, spec in specs.items()}
    exported = _export_predict(result, specs, batch_size, tuple(platforms))
    comparison = _compare_to_predict(exported, result, specs)
    # 3. Files
    signature = _signature(result, exported, specs)
    _write(folder, result, exported, signature)
    if verbose:
        _print_summary(folder, signature, comparison)
    return folder


def check_export(result: Result) -> None:
    """Traces the program that `export` would write, for two examples; compiles and computes nothing.

    Raises:
      ExperimentError: `predict` fails, or cannot be exported.
      RunError: the inputs of `predict` are not known.
    """
    _export_predict(result, input_specs(result), 2, ("cpu",))


def _batch_specs(specs: InputSpecs, batch: int | str, scope: Any = None) -> Inputs:
    """Returns shapes and dtypes of a batch, whose sizes may be symbolic."""
    batch_specs = {}
    for name, spec in specs.items():
        # The comma makes a tuple of one size, too.
        sizes = ", ".join(map(str, (batch, *spec.shape))) + ","
        batch_specs[name] = jax.ShapeDtypeStruct(jax_export.symbolic_shape(sizes, scope=scope), spec.dtype)
    return predict_argument(batch_specs)


def _export_predict(
    result: Result, specs: InputSpecs, batch_size: int | str | None, platforms: tuple[str, ...]
) -> ExportedPredict:
    predict: Callable[..., Any] = result.learner.predict  # type: ignore[assignment]  # it is not None
    leaves = _state_arrays(result)

    def predict_by_path(arrays: list[Any], inputs: Inputs, seed: Any) -> Any:
        state = jax.tree.map(typed_array, jax.tree.unflatten(jax.tree.structure(result.state), arrays), result.state)
        outputs = predict(state, inputs, jax.random.key(seed))
        by_path = parameter_paths.leaves_by_path(outputs)
        return by_path[""] if list(by_path) == [""] else by_path

    # 1. A trial export with fixed sizes tells which leaves of the state `predict` reads, and whether it uses its key.
    fixed = {
        name: spec._replace(shape=tuple(size if isinstance(size, int) else 8 for size in spec.shape))
        for name, spec in specs.items()
    }
    state_specs = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves.values()]
    seed_spec = jax.ShapeDtypeStruct((), jnp.uint32)
    arguments = (state_specs, _batch_specs(fixed, 2), seed_spec)
    used = _export(predict_by_path, arguments, None).module_kept_var_idx
    takes_seed = len(jax.tree.leaves(arguments)) - 1 in used
    names = _weight_names(leaves, [path for index, path in enumerate(leaves) if index in used])

    # 2. The program takes only these leaves, by name.
    def run(weights: dict[str, Any], inputs: Inputs, seed: Any = 0) -> Any:
        # Leaves that `predict` does not read may be anything: zeros keep the structure.
        arrays = [
            weights[names[path]] if path in names else jnp.zeros(leaf.shape, leaf.dtype)
            for path, leaf in leaves.items()
        ]
        return predict_by_path(arrays, inputs, seed)

    weights = {name: leaves[path] for path, name in names.items()}
    weight_specs = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()}

    def export_batch(batch: int | str, description: str) -> ExportedPredict:
        scope = jax_export.SymbolicScope(["batch >= 1"] if batch == "batch" else [])
        arguments = (weight_specs, _batch_specs(specs, batch, scope), *((seed_spec,) if takes_seed else ()))
        return ExportedPredict(_export(run, arguments, platforms, description), weights, takes_seed)

    # 3. Any batch size, unless the model needs to know it.
    if isinstance(batch_size, int):
        return export_batch(batch_size, f" with a batch size of {batch_size}")
    try:
        return export_batch("batch", " with a symbolic batch size (a number may do: --batch-size 64)")
    except ExperimentError as error:
        if batch_size == "symbolic":
            raise
        size = getattr(result.info, "batch_size", CHECKED_EXAMPLES)  # an agent's run has no dataset
        warn(f"{first_line(error)}; the program takes {size} examples at a time")
        return export_batch(size, f" with a batch size of {size}")


def _state_arrays(result: Result) -> dict[str, jax.Array]:
    """Returns the leaves of the state by path, random keys as their uint32 data, which files can hold."""
    leaves = parameter_paths.leaves_by_path(result.state)
    return {path: jax.random.key_data(leaf) if is_key(leaf) else leaf for path, leaf in leaves.items()}


def _export(
    function: Callable[..., Any], arguments: Any, platforms: tuple[str, ...] | None, description: str = ""
) -> jax_export.Exported:
    try:
        return jax_export.export(jax.jit(function), platforms=platforms)(*arguments)
    except Exception as error:  # tracing the experiment's own model may raise anything
        reason = first_line(error)
        raise ExperimentError(f"predict cannot be exported{description}: {reason}") from error


def _weight_names(leaves: dict[str, Any], used: Sequence[str]) -> dict[str, str]:
    """Names the leaves that `predict` reads, by path; a moving average has the names of the parameters."""
    known = parameters.parameter_names(leaves)
    names: dict[str, str] = {}
    for path in used:
        name = known.get(path, path)
        names[path] = path if name in names.values() else name
    return names


def _compare_to_predict(exported: ExportedPredict, result: Result, specs: InputSpecs) -> str:
    """Runs the program on a few examples and describes how its outputs compare to those of `predict`.

    Raises:
      ExperimentError: they differ by more than `TOLERANCE`.
    """
    program, weights, takes_seed = exported
    backend = jax.default_backend()
    if not {"gpu": {"cuda", "rocm"}}.get(backend, {backend}) & set(program.platforms):
        return f"not tried: this is {backend}"
    # Arguments are flat: weights come first, inputs next.
    batch = program.in_avals[len(weights)].shape[0]
    inputs = example_inputs(result, batch if isinstance(batch, int) else CHECKED_EXAMPLES, specs)
    expected = parameter_paths.leaves_by_path(result.predict(inputs))
    outputs = parameter_paths.leaves_by_path(program.call(weights, inputs, *([np.uint32(0)] if takes_seed else [])))
    if all(np.asarray(value).tobytes() == np.asarray(outputs[name]).tobytes() for name, value in expected.items()):
        return "same bits as `predict`"
    # Other fusions round differently: compare relative to the largest output.
    difference = 0.0
    for name, value in expected.items():
        ours, theirs = np.asarray(value, np.float64), np.asarray(outputs[name], np.float64)
        scale = max(1.0, float(np.abs(ours).max(initial=0.0)))
        difference = max(difference, float(np.abs(ours - theirs).max(initial=0.0)) / scale)
    if not difference <= TOLERANCE:  # also if it is NaN
        raise ExperimentError(f"the exported program differs from `predict` by {difference:.2g} (relative)")
    return f"differs from `predict` by {difference:.1g} at most"


def _signature(result: Result, exported: ExportedPredict, specs: InputSpecs) -> dict[str, Any]:
    def describe(aval: Any) -> dict[str, Any]:
        sizes = [size if isinstance(size, int) else str(size) for size in aval.shape]
        return {"shape": sizes, "dtype": str(aval.dtype)}

    def names(kind: str) -> list[str] | None:
        value = getattr(result.info, f"{kind}_names", None)
        return None if value is None else list(value)

    program = exported.program
    (_, inputs, *_), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    return {
        "experiment": experiment_name(result.experiment),
        "foldax": version("foldax"),
        "jax": jax.__version__,
        "status": result.status,
        "state": "last" if result.best_step is None else "best",
        "step": result.step if result.best_step is None else result.best_step,
        "data_fingerprint": getattr(result.info, "fingerprint", None),
        "test": result.metrics.get("test", {}),
        "platforms": list(program.platforms),
        "inputs": predict_argument(
            {
                name: describe(inputs[name] if isinstance(inputs, dict) else inputs)
                | {"meaning": spec.meaning}
                | ({} if spec.num_classes is None else {"num_classes": spec.num_classes})
                for name, spec in specs.items()
            }
        ),
        "outputs": jax.tree.map(describe, outputs),
        "takes_seed": exported.takes_seed,
        "class_names": names("class"),
        "feature_names": names("feature"),
        "parameters": list(exported.weights),
    }


def _write(folder: Path, result: Result, exported: ExportedPredict, signature: dict[str, Any]) -> None:
    leaves = _state_arrays(result)
    arrays = {name: np.asarray(leaf) for name, leaf in exported.weights.items()}
    # Parameters that `predict` does not read are exported too: another run may start from them.
    for path, name in parameters.parameter_names(leaves).items():
        arrays.setdefault(name, np.asarray(leaves[path]))
    metadata = {key: signature[key] for key in ("experiment", "foldax", "state", "step", "data_fingerprint")}
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "predict.jax").write_bytes(exported.program.serialize())
        (folder / "signature.json").write_text(json.dumps(signature, indent=2) + "\n")
        (folder / "example.py").write_text(example_script(signature))
    parameters.write_safetensors(folder / "params.safetensors", arrays, metadata | {"config": to_json(result.config)})


def example_script(signature: dict[str, Any]) -> str:
    """Writes a script that predicts with the exported files, without foldax.

    >>> spec = {"shape": ["batch", 6], "dtype": "float32"}
    >>> script = example_script({"experiment": "tiny", "test": {}, "inputs": spec, "takes_seed": False})
    >>> "np.zeros((4, 6), np.float32)" in script
    True
    """
    is_array = "shape" in signature["inputs"]
    specs = _by_name(signature["inputs"])
    constants = {
        name: f"np.{'ones' if name == 'mask' else 'zeros'}("
        f"{tuple(size if isinstance(size, int) else 4 for size in spec['shape'])}, np.{spec['dtype']})"
        for name, spec in specs.items()
    }
    by_name = ", ".join(f'"{name}": {constant}' for name, constant in constants.items())
    test = ", ".join(f"{name} {value:.4g}" for name, value in signature["test"].items())
    template = Path(__file__).with_name("export_example.txt").read_text(encoding="utf-8")
    return template.format(
        experiment=signature["experiment"],
        test=f" (test: {test})" if test else "",
        file="INPUTS.npy" if is_array else "INPUTS.npz",
        dtypes=", ".join(
            f"{spec['dtype']}{list_text(spec['shape'])}" + (f" ({spec['meaning']})" if spec.get("meaning") else "")
            for spec in specs.values()
        ),
        arrays="an array" if is_array else " and ".join(f'"{name}"' for name in specs),
        load="np.load(sys.argv[1])" if is_array else "dict(np.load(sys.argv[1]))",
        constants=constants["inputs"] if is_array else f"{{{by_name}}}",
        seed=", np.uint32(0)" if signature["takes_seed"] else "",
    )


def _by_name(specs: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": specs} if "shape" in specs else specs


def _print_summary(folder: Path, signature: dict[str, Any], comparison: str) -> None:
    run = f"{signature['experiment']}, {signature['status']}"
    columns = ("", "name", "shape", "dtype")
    rows = [
        (side, "" if "shape" in signature[side] else name, list_text(spec["shape"]), spec["dtype"])
        for side in ("inputs", "outputs")
        for name, spec in _by_name(signature[side]).items()
    ]
    title = f"{run}: {signature['state']} state, step {signature['step']}"
    print_table(tables.text_table(columns, rows, left=columns, title=title))
    echo(f"platforms: {', '.join(signature['platforms'])}; {comparison}")
    for name in FILES:
        echo(f"{display_path(folder / name)}  {(folder / name).stat().st_size:,} bytes")
