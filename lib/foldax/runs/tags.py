"""Tags of runs and sweeps: short words in their folders, by which `foldax runs` selects them."""

from collections.abc import Iterable
from pathlib import Path

from foldax.errors import ConfigError, RunError
from foldax.runs import folder

TAGS = "tags.json"  # a file of its own: the process of a run that trains rewrites its manifest


def read_tags(path: Path) -> list[str]:
    """Reads the tags of a run or sweep.

    Args:
      path: its folder.

    Raises:
      RunError: the file of the tags is damaged.

    >>> read_tags(Path("nowhere"))
    []
    """
    if not (path / TAGS).exists():
        return []
    tags = folder.read_json(path / TAGS)
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise RunError(f"{path / TAGS} must hold a list of words, not {str(tags)[:80]}")
    return tags


def change_tags(path: Path, add: Iterable[str] = (), remove: Iterable[str] = ()) -> list[str]:
    """Adds and removes tags of a run or sweep, and returns those that it has then, in the order of their addition.

    Args:
      path: its folder.
      add: tags to add; those that it has stay where they are.
      remove: tags to remove; those that it has not are ignored.

    Raises:
      ConfigError: a tag is empty, or contains a comma or space.
      RunError: the folder is none of a run or sweep, or cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     folder.write_json(Path(directory) / "manifest.json", {})
    ...     change_tags(Path(directory), add=["baseline", "paper"], remove=["draft"])
    ['baseline', 'paper']
    """
    add, dropped_tags = list(add), set(remove)
    for tag in add:
        if not tag or not tag.isprintable() or set(tag) & set(", "):
            raise ConfigError(f"{tag!r} is no tag: use a word without commas and spaces")
    if not any((path / name).is_file() for name in ("manifest.json", "sweep.json")):
        raise RunError(f"{path} is not the folder of a run or sweep: it has neither manifest.json nor sweep.json")
    before = read_tags(path)
    tags = [tag for tag in dict.fromkeys([*before, *add]) if tag not in dropped_tags]
    if tags != before:
        folder.write_json(path / TAGS, tags)
    return tags
