"""`foldax show`: prints a run folder."""

from pathlib import Path

from foldax.errors import RunError
from foldax.plots import common
from foldax.runs import folder, tables
from foldax.runs.log import read_log


def show(path: Path) -> None:
    """Prints a run's config, status and metrics, redraws its learning curves, and lists its figures.

    Raises:
      RunError: `path` is no run folder.
    """
    if not path.is_dir():
        raise RunError(f"there is no run folder {str(path)!r}")
    manifest, config = folder.read_json(path / "manifest.json"), folder.read_json(path / "config.json")
    print(f"{manifest['experiment']}  {manifest['status']}, started {manifest['started']}")
    print(f"command: {manifest['command']}")
    print("config:  " + "  ".join(f"{k}={v}" for k, v in config.items()))
    history = read_log(path)
    if (path / "result.json").exists():
        result = folder.read_json(path / "result.json")
        metrics = {split: result[split] for split in ("train", "validation", "test") if split in result}
        title = f"{result['status']} after {result['steps']} steps; tested: the {result['tested']} state"
        print(f"{result['steps_per_second']:,.0f} steps/s, {result['seconds']:.1f} s")
    else:
        newest = {line["split"]: line for line in history}
        metrics = {split: {k: v for k, v in newest[split].items() if k not in ("step", "split")} for split in newest}
        title = f"newest metrics, step {history[-1]['step'] if history else 0}; `foldax resume` goes on"
    tables.print_table(tables.metrics_table(title, metrics))
    # Redrawn, because an unfinished run has none and a resumed one has old ones.
    if history:
        (path / "figures").mkdir(exist_ok=True)
        common.learning_curves(history).savefig(path / "figures" / "learning_curves.png", dpi=120)
    for figure in sorted((path / "figures").glob("*")):
        print(tables.display_path(figure))
