"""What `foldax run FILE --help` and others of a file print: usage, the file's first paragraph, every field."""

import ast
from collections.abc import Sequence

from foldax.experiment import Experiment, experiment_file
from foldax.options import options_help
from foldax.runs.terminal import echo

USAGES = {
    "run": (
        "[--run-dir DIR] [--or-resume | --overwrite] [--tracker NAME] [--no-compile-cache] [--quiet]",
        "--or-resume goes on with the run if it was started, and shows its result if it is finished\n"
        "--overwrite removes the run in --run-dir first; --quiet prints the run folder and warnings only\n",
    ),
    "check": ("", "prints each law that the experiment satisfies, or how it breaks\n"),
    "plan": ("--on CHIPS [--mesh AXES] [--largest-batch] [--json]", ""),
}


def asks_for_help(options: Sequence[str]) -> bool:
    """Says whether the options after a file ask for help.

    >>> asks_for_help(["--steps", "7"]), asks_for_help(["-h"])
    (False, True)
    """
    return not {"-h", "--help"}.isdisjoint(options)


def usage(command: str, file: str = "FILE") -> str:
    """Returns the usage of a command that takes a file and the fields of its config.

    >>> usage("check", "digits.py")
    'usage: foldax check digits.py [--field VALUE ...]'
    """
    return " ".join(["usage: foldax", command, file, *filter(None, [USAGES[command][0]]), "[--field VALUE ...]"])


def print_file_help(experiment: Experiment, command: str) -> None:
    """Prints the usage of a command with a file, the first paragraph of the file, and the fields of its config.

    Args:
      experiment: the experiment of the file.
      command: run, check or plan.

    >>> from foldax import Training
    >>> print_file_help(Experiment(Training, lambda config, info: None), "check")  # doctest: +ELLIPSIS
    usage: foldax check FILE [--field VALUE ...]
    prints each law that the experiment satisfies, or how it breaks
    ...
    """
    file = experiment_file(experiment)
    docstring = ast.get_docstring(ast.parse(file.read_bytes())) if file else None
    echo(f"{usage(command, file.name if file else 'FILE')}\n{USAGES[command][1]}")
    paragraph = (docstring or "").split("\n\n")[0]
    echo(f"{paragraph}\n\n{options_help(experiment.config, experiment.config())}".strip())
