"""The command line: `foldax run`, `sweep`, `resume`, `show`, `export`, ...; `foldax --help` lists all."""

import argparse
import ast
import importlib.machinery
import keyword
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

import foldax
from foldax import processes
from foldax.commands.inference import OTHER_DATA, add_inference_commands
from foldax.commands.management import add_management_commands
from foldax.commands.plan import add_plan_command
from foldax.commands.training import connect, parse_config, resume, train_experiment
from foldax.errors import ConfigError, FoldaxError, RunError, display_path
from foldax.experiment import Experiment, load_experiment
from foldax.extras import import_extra
from foldax.runs.terminal import echo, finish_output, lost_output, report_error, reserve_streams, warn
from foldax.runs.trackers.choose import NAMES as TRACKER_NAMES

USAGE = 2
FAILED = 1
STOPPED = 130  # as shells say of Ctrl-C

SHELLS = ("bash", "zsh", "tcsh")
KINDS = ("supervised", "generative", "rl", "custom")  # templates of `foldax new`


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command of `foldax`.

    Args:
      arguments: the command line without "foldax"; that of the process if None.

    Returns:
      The exit code: 0, 1 (the run failed), 2 (bad usage) or 130 (Ctrl-C).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return _exit_code(lambda: _run_words(words))


def _run_words(words: list[str]) -> int | None:
    parser = _parser()
    if not words:
        parser.print_help()
        return 0
    # Options after FILE, `--help` too, are those of the file's config, so argparse must not see them.
    if words[0] in ("run", "check", "sweep", "plan") and len(words) > 1 and not words[1].startswith("-"):
        command, options = parser.parse_args(words[:2]), words[2:]
    else:
        command, options = parser.parse_known_args(words)
    command.options = options
    if not command.takes_options:
        _reject(command.options)
    code = command.run(command)
    if reason := lost_output():
        warn(f"some of what this command printed is lost: {reason}")
        # What trains has written its results to a folder.
        return code if command.name in ("run", "resume", "sweep") else FAILED
    return code


def run_experiment(experiment: Experiment, arguments: Sequence[str] | None = None) -> None:
    """Serves `python FILE.py [--field value ...]`, which does the same as `foldax run FILE`, and exits."""
    options = list(sys.argv[1:] if arguments is None else arguments)

    def train() -> None:
        connect(options)
        train_experiment(experiment, options)

    sys.exit(_exit_code(train))


def _exit_code(command: Callable[[], int | None]) -> int:
    """Runs a command, which returns its exit code or None for 0, and prints its error as one message."""
    reserve_streams()
    code = FAILED
    try:
        code = command() or 0
    except FoldaxError as error:
        report_error(str(error))
        if os.environ.get("FOLDAX_TRACEBACK"):
            traceback.print_exc()
        code = USAGE if isinstance(error, ConfigError) else FAILED
    except BrokenPipeError:
        pass
    except Exception:
        # JAX starts its backends at their first use, wherever that is.
        if not (reason := _jax_problem()):
            if processes.number_of_processes() == 1:
                raise
            traceback.print_exc()
        else:
            warn(f"JAX cannot start (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}): {reason}")
    except KeyboardInterrupt:
        warn("stopped")
        code = STOPPED
    finally:
        finish_output()
    if code:
        processes.leave(code)
    return code


def _jax_problem() -> str | None:
    """Says why JAX cannot start its backends; None if it can."""
    try:
        jax.devices()
    except Exception as error:  # of several types
        return str(error) or "there is no such device, or no plugin of JAX for it"
    return None


def _parser() -> argparse.ArgumentParser:
    description = "Train, sweep, resume, reproduce, check and use experiments."
    parser = argparse.ArgumentParser(prog="foldax", description=description)
    parser.add_argument("--version", action="version", version=f"foldax {foldax.__version__}, jax {jax.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace], int | None], help: str, *names: str, takes_options: bool = False
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        for argument in names:
            command.add_argument(argument.lower(), metavar=argument, type=Path)
        command.set_defaults(name=name, run=run, takes_options=takes_options)
        return command

    # Experiments and runs
    list_ = add("list", _list, "list the experiments under a folder, one line each")
    list_.add_argument("folder", nargs="?", type=Path, default=Path(), help="default: the working directory")
    run = add("run", _run, "train an experiment file, and print its metrics and paths", "FILE", takes_options=True)
    run.epilog = "Every field of the file's config is an option: `foldax run FILE --help` lists them."
    resume_ = add("resume", resume, "continue a run from its last checkpoint", "RUN_DIR", takes_options=True)
    resume_.epilog = "Fields may change from here on, as --steps 10000 --patience 5: all but seed, init_from, keep "
    resume_.epilog += "and checkpoints, if the state stays as large as it is."
    resume_.add_argument("--allow-other-data", action="store_true", help=OTHER_DATA)
    help = f"tracker to use from now on: {', '.join(TRACKER_NAMES)} (default: as before)"
    resume_.add_argument("--tracker", action="append", metavar="NAME", help=help)
    resume_.add_argument("--quiet", action="store_true", help="print the folder and warnings only")
    help = "train a finished run again and compare metrics and state bit by bit"
    reproduce = add("reproduce", _reproduce, help, "RUN_DIR", takes_options=True)
    reproduce.add_argument("--member", type=int, metavar="K", help="member K of a sweep, trained as a single run")
    reproduce.epilog = "--log-every and --checkpoint-every may differ from those of the run."
    add("show", _show, "show a run or a sweep: config, metrics, figures", "RUN_DIR")
    add("report", _report, "write a sweep's page: curves, effects of fields, a table of all members", "SWEEP_DIR")
    help = "train with all combinations of some values, and several seeds"
    sweep = add("sweep", _sweep, help, "FILE", takes_options=True)
    sweep.epilog = "Every field of the file's config takes several values: `foldax sweep FILE --help` says how."
    check = add("check", _check, "check that an experiment file satisfies the laws", "FILE", takes_options=True)
    check.epilog = "Every field of the file's config is an option."
    add_plan_command(add)
    new = add("new", _new, "write a commented experiment file to start from")
    new.add_argument("file_name", metavar="NAME", help="for example my_experiment (writes my_experiment.py)")
    completion = add("completion", _completion, "print a script with which a shell completes commands and options")
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"one of {', '.join(SHELLS)}")
    new.add_argument("--kind", choices=KINDS, default="supervised", help="kind of learning (default: supervised)")
    add_inference_commands(add)
    add_management_commands(add)
    return parser


def _list(command: argparse.Namespace) -> None:
    if not command.folder.is_dir():
        raise RunError(f"there is no folder {str(command.folder)!r}")
    count = 0
    for path in sorted(command.folder.rglob("*.py")):
        # Folders above the one that was asked for may have any name.
        parts = path.relative_to(command.folder).parts
        if path.is_dir() or any(part.startswith(".") or part in ("site-packages", "tests", "lib") for part in parts):
            continue
        try:
            # Parsed, not imported: listing runs no code.
            tree = ast.parse(path.read_bytes(), path.name)
        except (SyntaxError, ValueError, OSError) as error:
            warn(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")
            continue
        targets = [t for n in tree.body for t in getattr(n, "targets", [getattr(n, "target", None)])]
        if any(isinstance(target, ast.Name) and target.id == "experiment" for target in targets):
            echo(f"{path}  {(ast.get_docstring(tree) or '').split(chr(10))[0]}")
            count += 1
    if not count:
        warn(f"no experiment files under {command.folder}; `foldax new NAME` writes one")


def _run(command: argparse.Namespace) -> None:
    connect(command.options)
    train_experiment(load_experiment(command.file), command.options)


def _sweep(command: argparse.Namespace) -> int:
    from foldax.sweeps import command as sweep_command

    return sweep_command.run(load_experiment(command.file), command.file, command.options)


def _report(command: argparse.Namespace) -> None:
    from foldax.sweeps.report import write_report

    echo(f"report: {display_path(write_report(command.sweep_dir))}")


def _reproduce(command: argparse.Namespace) -> int:
    from foldax.engine import compile_cache
    from foldax.runs import folder
    from foldax.runs.reproduce import reproduce
    from foldax.sweeps.reproduce import reproduce_member

    compile_cache.disable()  # the bits of a program from the cache are compared with those of one compiled now
    # A member has the options of its sweep.
    if command.member is not None or folder.is_sweep(command.run_dir):
        _reject(command.options)
        return 0 if reproduce_member(command.run_dir, command.member) else FAILED
    experiment, config = folder.load(command.run_dir)
    config = parse_config(experiment, command.options, config)
    return 0 if reproduce(command.run_dir, experiment, config) else FAILED


def _show(command: argparse.Namespace) -> None:
    from foldax.runs import folder
    from foldax.runs.show import show
    from foldax.sweeps.show import show as show_sweep

    (show_sweep if folder.is_sweep(command.run_dir) else show)(command.run_dir)


def _check(command: argparse.Namespace) -> int:
    from foldax import laws

    experiment = load_experiment(command.file)
    # Every law is tried, also after one is broken.
    subject = laws.make_subject(experiment, parse_config(experiment, command.options, command="check"))
    broken = 0
    for name, law in laws.LAWS.items():
        try:
            reason = law(subject)
            echo(f"{name:9} {'does not apply: ' + reason if reason else 'holds'}")
        except FoldaxError as error:
            broken += 1
            echo(f"{name:9} BROKEN: {error}")
    advice = None if broken else laws.faster_dispatch(subject)
    if advice:
        echo(f"note: {advice}")
    return FAILED if broken else 0


def _new(command: argparse.Namespace) -> None:
    from foldax.runs.folder import whole_file

    path = Path(command.file_name)
    path = path if path.suffix == ".py" else path.with_name(path.name + ".py")
    if not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        rule = "use letters, digits and underscores, and no word of the language"
        raise ConfigError(f"{path.stem!r} cannot be a Python module's name: {rule}")
    installed = [place for place in sys.path if "site-packages" in place]
    if path.stem in sys.stdlib_module_names or importlib.machinery.PathFinder.find_spec(path.stem, installed):
        raise ConfigError(f"{path.stem!r} is the name of a module that the file would hide; choose another name")
    if path.exists():
        raise RunError(f"{path} exists already; choose another name")
    text = (Path(__file__).with_name("templates") / f"{command.kind}.py").read_text(encoding="utf-8")
    with whole_file(path) as temporary:
        # At once: a name may hold "FILE" itself.
        values = {"NAME": path.stem, "FILE": str(path)}
        temporary.write_text(re.sub(r"\b(NAME|FILE)\b", lambda match: values[match[0]], text), encoding="utf-8")
    echo(f"wrote {path}; try: foldax run {path}")


def _completion(command: argparse.Namespace) -> None:
    shtab = import_extra("shtab", "completion")
    parser = _parser()
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    for action in (action for each in commands.values() for action in each._actions if action.type is Path):
        action.complete = shtab.FILE  # file names
    echo(shtab.complete(parser, command.shell))


def _reject(options: list[str]) -> None:
    if options:
        raise ConfigError(f"{options[0]!r} is no option of this command; see --help")


if __name__ == "__main__":
    sys.exit(main())
