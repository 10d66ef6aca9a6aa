"""Weights & Biases, offline unless `WANDB_MODE` says otherwise."""

import io
import os
import re
from pathlib import Path
from typing import Any

from foldax.runs.status import is_success
from foldax.runs.trackers.protocol import TrackedRun


class WandB:
    """Logs to W&B: offline files in the run folder, which `wandb sync` uploads, or online with WANDB_MODE=online.

    WANDB_PROJECT and WANDB_DIR, too, do what they do in W&B.
    """

    def start(self, run: TrackedRun) -> str:
        """Starts a run of the project that has the experiment's name."""
        import wandb

        # Characters that names of projects must not have.
        project = os.environ.get("WANDB_PROJECT") or re.sub(r"[/\\#?%:]", "_", run.experiment)
        self._run: Any = wandb.init(
            project=project,
            name=run.name,
            group=run.group,
            dir=os.environ.get("WANDB_DIR") or run.folder,
            id=run.id,
            resume="allow",
            config=run.config,
            mode=os.environ.get("WANDB_MODE") or "offline",
            reinit="create_new",  # beside a run of the user's own
            settings=wandb.Settings(silent=True, console="off"),
        )
        # W&B's own steps never go back, as those of a resumed run do.
        self._run.define_metric("*", step_metric="step")
        return self._run.id

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Logs metrics by names such as "train/loss"."""
        self._run.log({f"{split}/{name}": value for name, value in metrics.items()} | {"step": step})

    def figure(self, step: int, name: str, path: Path) -> None:
        """Logs an image or a text."""
        import wandb

        is_text = path.suffix == ".txt"
        value: Any = (
            wandb.Html(io.StringIO(path.read_text(encoding="utf-8")), inject=False)
            if is_text
            else wandb.Image(str(path))
        )
        self._run.log({f"figures/{name}": value, "step": step})

    def summary(self, metrics: dict[str, float]) -> None:
        """Sets the summary of the run."""
        self._run.summary.update({f"final/{name}": value for name, value in metrics.items()})

    def finish(self, status: str) -> None:
        """Ends the run."""
        self._run.finish(exit_code=0 if is_success(status) else 1)
