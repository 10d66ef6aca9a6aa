"""Makes code blocks of the examples in docstrings, which Markdown would take for quotations (`zensical.toml`)."""

import re
from typing import Any

import griffe

# From a line that begins with >>> to the next empty line, with its indentation
EXAMPLE = re.compile(r"^( *)>>> .*\n?(?:^ *\S.*\n?)*", re.MULTILINE)


class DoctestBlocks(griffe.Extension):
    """Encloses each example of a docstring in a fence."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(_fence, obj.docstring.value)


def _fence(match: re.Match[str]) -> str:
    indent = match[1]
    return f"{indent}```pycon\n{match[0].rstrip()}\n{indent}```\n"
