"""`foldax show`: prints a run folder."""

from pathlib import Path

from foldax.engine.contracts import LOG_FIELDS
from foldax.errors import RunError, display_path
from foldax.options import flatten, plain_text
from foldax.runs import folder, provenance, tables
from foldax.runs.figures import draw_learning_curves
from foldax.runs.log import read_log
from foldax.runs.performance import performance_text
from foldax.runs.terminal import echo, print_table, warn


def show(path: Path) -> None:
    """Prints a run's config, status and metrics, redraws its learning curves, and lists its figures.

    Raises:
      RunError: `path` is no run folder.
    """
    if not path.is_dir():
        raise RunError(f"there is no run folder {str(path)!r}")
    manifest, config = folder.read_json(path / "manifest.json"), folder.read_json(path / "config.json")
    if file := provenance.edited_file(manifest):
        warn(f"{file} has changed since")
    echo(f"{manifest['experiment']}  {manifest['status']}, started {manifest['started']}")
    echo(f"command: {manifest['command']}")
    echo("config:  " + "  ".join(f"{name}={plain_text(value)}" for name, value in flatten(config).items()))
    history = read_log(path)
    metrics: dict[str, dict[str, float]] = {}
    best_step = None
    if (path / "result.json").exists():
        result = folder.read_result(path)
        metrics |= folder.result_metrics(result)
        best_step = result.get("best_step")
        title = f"{result['status']} after {result['steps']} steps; tested: the {result['tested']} state"
        speed = performance_text(result.get("performance", {})) or f"{result['steps_per_second']:,.0f} steps/s"
        echo(f"{speed}, {result['seconds']:.1f} s")
    else:
        for line in history:
            values = {name: value for name, value in line.items() if name not in LOG_FIELDS}
            metrics[line["split"]] = metrics.get(line["split"], {}) | values
        title = f"newest metrics, step {history[-1]['step'] if history else 0}; `foldax resume` goes on"
    print_table(tables.metrics_table(title, metrics))
    # Redrawn unless they are the experiment's own, because an unfinished run has none and a resumed one has old ones.
    if history and not (path / "figures" / "learning_curves.txt").exists():
        try:
            (path / "figures").mkdir(exist_ok=True)
            draw_learning_curves(history, config, best_step).savefig(path / "figures" / "learning_curves.png", dpi=120)
        except OSError as error:  # somebody else's folder
            warn(f"the learning curves are not redrawn: {error.strerror or error}")
    for figure in sorted((path / "figures").glob("*")):
        echo(display_path(figure))
