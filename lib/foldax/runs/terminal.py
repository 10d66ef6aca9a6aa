"""Lines on the terminal."""

import sys


def warn(message: str) -> None:
    """Prints a warning on stderr."""
    print(f"foldax: {message}", file=sys.stderr)
