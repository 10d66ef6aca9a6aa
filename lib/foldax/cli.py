"""The command line: `foldax run`, `sweep`, `resume`, `show`, `export`, ...; `foldax --help` lists all."""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foldax.configuration import field_types, is_config
from foldax.errors import ConfigError, FoldaxError, RunError, nearest
from foldax.experiment import Experiment, experiment_file, load_experiment

USAGE = 2
FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, 1 (the run failed) or 2 (bad usage)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    if not given:
        parser.print_help()
        return 0
    if given[0] in ("run", "check", "sweep") and len(given) > 1 and not given[1].startswith("-"):
        command, rest = parser.parse_args(given[:2]), given[2:]
    else:
        command, rest = parser.parse_known_args(given)
    return _guarded(lambda: command.run(command, rest))


def run_experiment(experiment: Experiment, arguments: Sequence[str] | None = None) -> None:
    """Serves `python FILE.py [--field value ...]`: the same as `foldax run FILE`, then exits."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_guarded(lambda: _train(experiment, given)))


def _guarded(command: Callable[[], int]) -> int:
    try:
        return command()
    except FoldaxError as error:
        print(f"foldax: {error}", file=sys.stderr)
        if os.environ.get("FOLDAX_TRACEBACK"):
            traceback.print_exc()
        return USAGE if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        print("foldax: stopped", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="foldax", description="Train, sweep, resume, reproduce, check and use experiments."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[..., int], help: str, *names: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        for argument in names:
            command.add_argument(argument.lower(), metavar=argument, type=Path)
        command.set_defaults(run=run)
        return command

    add("list", _list, "list the experiments under a folder, one line each").add_argument(
        "folder", nargs="?", type=Path, default=Path(), help="default: the working directory"
    )
    run = add("run", _run, "train an experiment file; then show a table and where things are", "FILE")
    run.epilog = "Every field of the file's config is an option: `foldax run FILE --help` lists them."
    add("resume", _resume, "go on from a run's last checkpoint", "RUN_DIR")
    again = add("reproduce", _reproduce, "run a finished run again and compare metrics and state bit by bit", "RUN_DIR")
    again.add_argument("--member", type=int, metavar="K", help="member K of a sweep, run alone")
    again.epilog = "Other --log-every and --checkpoint-every than the run's may be given."
    add("show", _show, "show a run or a sweep: config, metrics, figures", "RUN_DIR")
    add("report", _report, "write a sweep's page: curves, effects of fields, a table of all members", "SWEEP_DIR")
    swept = add("sweep", _sweep, "train with every combination of some values, and several seeds", "FILE")
    swept.epilog = "Every field of the file's config takes several values: `foldax sweep FILE --help` says how."
    says = add("predict", _predict, "print what a run predicts: classes with probabilities, or numbers", "RUN_DIR")
    says.add_argument("input", metavar="INPUT", help="test or validation, or a .npy .npz .csv .json .png .jpg file")
    says.add_argument("--out", type=Path, metavar="FILE", help="write it too: .npy .npz (as predicted) .csv .json")
    out = add("export", _export, "write a run's parameters, and a program that predicts without foldax", "RUN_DIR")
    out.add_argument("--out", type=Path, metavar="DIR", help="default: export in the run folder")
    out.add_argument("--batch-size", metavar="N", help="examples a call, or `symbolic`: any (default, if possible)")
    out.add_argument("--platforms", nargs="+", metavar="NAME", help="of cpu, cuda, rocm, tpu (default: cpu cuda tpu)")
    out.add_argument("--shape", nargs="+", metavar="N", help="of one input, if not the dataset's; a name is any length")
    out.epilog = "DIR gets params.safetensors, predict.jax, signature.json and example.py, which predicts with them."
    group = add(
        "cluster", _cluster, "group a run's examples by what it makes of them; write groups, scores, figures", "RUN_DIR"
    )
    group.add_argument(
        "--of", metavar="NAME", help="inputs, or a value of `evaluate`, as codes (default: what there is)"
    )
    group.add_argument("--split", default="test", metavar="NAME", help="train, validation or test (default)")
    group.add_argument("--method", metavar="NAME", help="kmeans (default), mixture or hierarchical")
    group.add_argument("--clusters", type=int, metavar="K", help="default: the number of classes")
    group.add_argument("--normalize", action="store_true", help="scale what is clustered to length 1")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of kmeans and mixture")
    group.add_argument("--out", type=Path, metavar="DIR", help="default: a folder in RUN_DIR/clusters")
    plays = add("play", _play, "play episodes with a run's agent: an animation, pictures, and returns", "RUN_DIR")
    plays.add_argument("--episodes", type=int, default=1, metavar="N", help="how many, one after another (default: 1)")
    plays.add_argument("--seed", type=int, default=0, metavar="N", help="the same plays the same episodes (default: 0)")
    plays.add_argument("--steps", type=int, default=1000, metavar="N", help="most of an episode (default: 1000)")
    plays.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=".gif, or .mp4 with imageio-ffmpeg (default: play.gif in the run folder)",
    )
    plays.add_argument("--fps", type=int, default=30, metavar="N", help="frames a second (default: 30)")
    plays.epilog = (
        "The agent does what it takes for best (`predict`), in the experiment's `environment`. Beside FILE there is a "
        "strip of pictures of the first episode (_strip.png); where the environment cannot be drawn, there is a figure "
        "of what was observed (_observations.png) instead of both."
    )
    check = add("check", _check, "check that an experiment file keeps the laws", "FILE")
    check.epilog = "Every field of the file's config is an option."
    new = add("new", _new, "write a commented experiment file to start from")
    new.add_argument("name", metavar="NAME", help="for example my_experiment (writes my_experiment.py)")
    return parser


def _list(command: argparse.Namespace, rest: list[str]) -> int:
    _no_more(rest)
    if not command.folder.is_dir():
        raise RunError(f"there is no folder {str(command.folder)!r}")
    found = 0
    for path in sorted(command.folder.rglob("*.py")):
        if any(part.startswith(".") or part in ("site-packages", "tests", "lib") for part in path.parts):
            continue
        with contextlib.suppress(SyntaxError, UnicodeDecodeError):
            tree = ast.parse(path.read_text())
            targets = [t for n in tree.body for t in getattr(n, "targets", [getattr(n, "target", None)])]
            if any(isinstance(target, ast.Name) and target.id == "experiment" for target in targets):
                line = (ast.get_docstring(tree) or "").split("\n")[0]
                print(f"{path}  {line}")
                found += 1
    if not found:
        print(f"no experiment files under {command.folder}; `foldax new NAME` writes one", file=sys.stderr)
    return 0


def _run(command: argparse.Namespace, rest: list[str]) -> int:
    return _train(load_experiment(command.file), rest)


def _train(experiment: Experiment, arguments: list[str]) -> int:
    from foldax.runs.train import train

    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--run-dir", type=Path)
    known, rest = options.parse_known_args(arguments)
    train(experiment, parse_config(experiment, rest), run_dir=known.run_dir)
    return 0


def _sweep(command: argparse.Namespace, rest: list[str]) -> int:
    from foldax.sweeps import command as sweep_command

    return sweep_command.run(load_experiment(command.file), command.file, rest)


def _report(command: argparse.Namespace, rest: list[str]) -> int:
    from foldax.runs.tables import shown
    from foldax.sweeps.report import report

    _no_more(rest)
    print(f"report: {shown(report(command.sweep_dir))}")
    return 0


def _resume(command: argparse.Namespace, rest: list[str]) -> int:
    from foldax.runs import folder
    from foldax.runs.train import train
    from foldax.sweeps import command as sweep_command

    _no_more(rest)
    if folder.is_sweep(command.run_dir):
        return sweep_command.resume(command.run_dir)
    experiment, config = folder.load(command.run_dir)
    if (command.run_dir / "result.json").exists():
        print(f"{command.run_dir} is finished; `foldax show {command.run_dir}` shows it")
        return 0
    train(experiment, config, run_dir=command.run_dir, resume=True)
    return 0


def _reproduce(command: argparse.Namespace, rest: list[str]) -> int:
    from foldax.runs import folder
    from foldax.runs.reproduce import reproduce
    from foldax.sweeps.reproduce import reproduce_member

    if command.member is not None or folder.is_sweep(command.run_dir):
        _no_more(rest)
        return 0 if reproduce_member(command.run_dir, command.member) else FAILED
    experiment, config = folder.load(command.run_dir)
    config = parse_config(experiment, rest, config)
    return 0 if reproduce(command.run_dir, experiment, config) else FAILED


def _show(command: argparse.Namespace, rest: list[str]) -> int:
    from foldax.runs import folder
    from foldax.runs.show import show
    from foldax.sweeps import statistics

    _no_more(rest)
    (statistics.show if folder.is_sweep(command.run_dir) else show)(command.run_dir)
    return 0


def _predict(command: argparse.Namespace, rest: list[str]) -> int:
    from foldax.inference.predict import predict

    _no_more(rest)
    predict(command.run_dir, command.input, command.out)
    return 0


def _export(command: argparse.Namespace, rest: list[str]) -> int:
    from foldax.inference.export import PLATFORMS, export

    def number(text: str) -> int | str:
        return int(text) if text.isdigit() else text

    _no_more(rest)
    size = None if command.batch_size is None else number(command.batch_size)
    shape = None if command.shape is None else [number(text) for text in command.shape]
    export(command.run_dir, command.out, batch_size=size, platforms=command.platforms or PLATFORMS, shape=shape)
    return 0


def _cluster(command: argparse.Namespace, rest: list[str]) -> int:
    from foldax.inference.cluster import cluster

    _no_more(rest)
    options = ("of", "split", "method", "clusters", "normalize", "seed", "out")
    cluster(command.run_dir, **{name: getattr(command, name) for name in options})
    return 0


def _play(command: argparse.Namespace, rest: list[str]) -> int:
    from foldax.inference.play import play

    _no_more(rest)
    play(command.run_dir, **{name: getattr(command, name) for name in ("episodes", "seed", "steps", "out", "fps")})
    return 0


def _check(command: argparse.Namespace, rest: list[str]) -> int:
    from foldax import laws

    experiment = load_experiment(command.file)
    subject = laws.subject(experiment, parse_config(experiment, rest))
    broken = 0
    for name, law in laws.LAWS.items():
        try:
            skipped = law(subject)
            print(f"{name:9} {'does not apply: ' + skipped if skipped else 'holds'}", flush=True)
        except FoldaxError as error:
            broken += 1
            print(f"{name:9} BROKEN: {error}", flush=True)
    advice = None if broken else laws.faster_dispatch(subject)
    if advice:
        print(f"note: {advice}")
    return FAILED if broken else 0


def _new(command: argparse.Namespace, rest: list[str]) -> int:
    _no_more(rest)
    path = Path(command.name)
    path = path if path.suffix == ".py" else path.with_name(path.name + ".py")
    if not path.stem.isidentifier():
        raise ConfigError(f"{path.stem!r} cannot be a Python module's name: use letters, digits and underscores")
    if path.exists():
        raise RunError(f"{path} exists already; choose another name")
    text = (Path(__file__).with_name("template.py")).read_text()
    try:
        path.write_text(text.replace("NAME", path.stem, 1).replace("FILE", str(path)))
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
    print(f"wrote {path}; try: foldax run {path}")
    return 0


def parse_config(experiment: Experiment, arguments: Sequence[str], default: Any = None) -> Any:
    """Returns the experiment's config with what the command line says.

    Raises:
      ConfigError: an unknown field or a bad value; names the field, the value and what is allowed.
    """
    import tyro

    file = experiment_file(experiment)
    shown, said = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
            config, unknown = tyro.cli(
                experiment.config,
                args=_spread(arguments),
                default=experiment.config() if default is None else default,
                return_unknown_args=True,
                prog=f"foldax run {file.name if file else 'FILE'} [--run-dir DIR]",
                description=_first_paragraph(experiment),
            )
    except SystemExit as stop:
        if not stop.code:
            print(shown.getvalue(), end="")
            raise
        raise ConfigError(_one_line(said.getvalue() or shown.getvalue())) from None
    if unknown:
        options = _options(experiment.config)
        if unknown[0].startswith("-"):
            near = nearest(unknown[0].split("=")[0], options)
            raise ConfigError(f"there is no option {unknown[0]}{near} (all: --help)")
        raise ConfigError(f"{unknown[0]!r} belongs to no option (a value too many, or a missing --field before it)")
    return config


def _spread(arguments: Sequence[str]) -> list[str]:
    """Lets a tuple be written in Python's way too: --hidden "(64, 64)" as --hidden 64 64."""
    spread: list[str] = []
    for argument in arguments:
        value = None
        if argument.startswith("("):
            with contextlib.suppress(ValueError, SyntaxError):
                value = ast.literal_eval(argument)
        spread += map(str, value) if isinstance(value, tuple) else [argument]
    return spread


def _options(cls: type, prefix: str = "--") -> list[str]:
    options = ["--run-dir"]
    for name, hint in field_types(cls).items():
        option = prefix + name.replace("_", "-")
        options += _options(hint, f"{option}.")[1:] if is_config(hint) else [option]
    return options


def _first_paragraph(experiment: Experiment) -> str:
    module = sys.modules.get(experiment.learner.__module__)
    return ((module.__doc__ if module else None) or "").split("\n\n")[0]


def _one_line(text: str) -> str:
    """Takes the frame off an error of tyro's and puts it on one line."""
    lines = [line.strip() for line in text.splitlines()]
    rules = [i for i, line in enumerate(lines) if line.startswith("---") and not line.strip("-")]
    message = " ".join(lines[rules[0] + 1 : rules[1]]) if len(rules) > 1 else " ".join(filter(None, lines))
    usage = (
        next((line for line in lines[rules[1] :] if line.startswith("--") and line.strip("-")), "") if rules[1:] else ""
    )
    message = re.sub(r"^Error parsing \w+: (?=\w+\.)", "", message)
    return f"{message} (usage: {usage})" if usage else message


def _no_more(rest: list[str]) -> None:
    if rest:
        raise ConfigError(f"{rest[0]!r} is not understood here; see --help")


if __name__ == "__main__":
    sys.exit(main())
