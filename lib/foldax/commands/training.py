"""`foldax run` and `foldax resume`: they train a run in one process, or each process its part of it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foldax import processes
from foldax.commands.file_help import asks_for_help, print_file_help
from foldax.errors import ConfigError, display_path
from foldax.experiment import Experiment
from foldax.mesh import ONE_DEVICE
from foldax.options import parse_options, set_fields, split_options
from foldax.runs.terminal import echo


def connect(options: Sequence[str]) -> None:
    """Connects the processes of a run over several, if it names a mesh: else each of them is a run of its own."""
    processes.connect(any(word.partition("=")[0] == "--mesh" for word in options))


def train_experiment(experiment: Experiment, options: list[str]) -> None:
    """Trains an experiment with the options of `foldax run`."""
    from foldax.engine import compile_cache
    from foldax.runs import first_step, resume
    from foldax.runs.removal import remove_earlier_run
    from foldax.runs.show import show
    from foldax.runs.train import train

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--or-resume", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--tracker", action="append")
    parser.add_argument("--no-compile-cache", action="store_true")
    known, fields = split_options(parser, experiment.config, options)
    config = parse_config(experiment, fields)
    if known.no_compile_cache:
        compile_cache.disable()
    first_step.begin_command()
    if known.overwrite:

        def remove() -> None:
            _check_overwrite(known, config)
            remove_earlier_run(known.run_dir)

        processes.agree("overwrite", remove)
    keywords: dict[str, Any] = {"tracker": known.tracker, "verbose": not known.quiet}
    if known.or_resume:
        path = Path(processes.agree("folder", lambda: str(known.run_dir or resume.latest_run_dir(experiment, config))))
        if processes.agree("status", lambda: resume.run_status(path, experiment, config)) == "finished":
            if processes.is_first():
                echo(display_path(path)) if known.quiet else show(path)
            return
        keywords |= {"run_dir": path, "resume": "auto"}
    else:
        keywords["run_dir"] = known.run_dir
    result = train(experiment, config, **keywords)
    if known.quiet and result.run_dir and processes.is_first():
        echo(display_path(result.run_dir))


def _check_overwrite(known: argparse.Namespace, config: Any) -> None:
    """Raises an error if --overwrite makes no sense, would remove what the run begins with, or the run cannot begin."""
    from foldax.runs.trackers.choose import DEFAULT, make_trackers
    from foldax.runs.transfer.addresses import parse_address
    from foldax.runs.transfer.initial_parameters import initial_source

    if known.run_dir is None or known.or_resume:
        reason = "--or-resume goes on with the run instead" if known.run_dir else "it needs --run-dir"
        raise ConfigError(f"--overwrite replaces the run in a folder: {reason}")
    source = getattr(config, "init_from", None)
    if source and (folder := parse_address(source).path).resolve().is_relative_to(known.run_dir.resolve()):
        raise ConfigError(f"--overwrite would remove {folder}, with whose parameters the run begins (--init-from)")
    # What would end the new run at its start must not cost the old one.
    make_trackers(known.tracker or DEFAULT)
    if source and (read_source := initial_source(config, None, None)) is not None:
        read_source()


def resume(command: argparse.Namespace) -> int:
    """Goes on with a run or a sweep."""
    from foldax.runs import first_step, folder
    from foldax.runs.resume import run_status
    from foldax.runs.train import train
    from foldax.sweeps import command as sweep_command

    if not folder.is_sweep(command.run_dir):
        config_file = command.run_dir / "config.json"
        saved = folder.read_json(config_file) if config_file.exists() else {}
        processes.connect(saved.get("mesh", ONE_DEVICE) != ONE_DEVICE)
    else:
        if command.options:
            problem = (
                f"{command.options[0]}: {command.run_dir} is a sweep, whose members keep the fields that they have"
            )
            raise ConfigError(f"{problem}; start another sweep with {' '.join(command.options)}, or leave them out")
        return sweep_command.resume(command.run_dir, command.allow_other_data, command.tracker, command.quiet)
    experiment, config = folder.load(command.run_dir)
    config = parse_config(experiment, command.options, config)

    def status() -> str:
        return run_status(command.run_dir, experiment, config, allow_any=True)

    if processes.agree("status", status) == "finished":
        if not processes.is_first():
            return 0
        more = "more --steps go on with it" if command.options else f"`foldax show {command.run_dir}` shows it"
        echo(command.run_dir if command.quiet else f"{command.run_dir} is finished; {more}")
    else:
        first_step.begin_command()
        options = {name: getattr(command, name) for name in ("run_dir", "allow_other_data", "tracker")}
        train(experiment, config, resume=True, verbose=not command.quiet, **options)
        if command.quiet and processes.is_first():
            echo(command.run_dir)
    return 0


def parse_config(experiment: Experiment, arguments: Sequence[str], default: Any = None, command: str = "run") -> Any:
    """Parses the options of a command line into a config.

    Args:
      experiment: the experiment, whose config has a field for every option.
      arguments: options such as `["--learning-rate", "0.1"]`.
      default: the config without options; by default `experiment.config()`.
      command: whose usage `--help` prints.

    Returns:
      An instance of `experiment.config`.

    Raises:
      ConfigError: an option is unknown, or its value is not allowed; names both, and the allowed values.

    >>> from foldax import Training, config
    >>> @config
    ... class Config(Training):
    ...     steps: int = 100
    >>> parse_config(Experiment(Config, lambda config, info: None), ["--steps", "7"]).steps
    7
    """
    default = experiment.config() if default is None else default
    if asks_for_help(arguments):
        print_file_help(experiment, command)
        raise SystemExit(0)
    return set_fields(default, parse_options(experiment.config, arguments))
