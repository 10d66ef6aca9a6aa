"""The command `foldax`, outside of the package, whose import takes seconds in which Ctrl-C must show no traceback."""

import sys


def main() -> int:
    """Runs `foldax.cli.main`; returns 130 if Ctrl-C comes while it is imported."""
    try:
        from foldax import cli

        return cli.main()
    except KeyboardInterrupt:
        print("foldax: stopped", file=sys.stderr)
        return 130
