"""Progress on the screen: a bar in a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any


class Progress:
    """Shows steps, steps per second, time left and the newest metrics of a run."""

    def __init__(self, name: str, steps: int, shown: bool = True) -> None:
        from rich.console import Console

        self._steps, self._name, self._shown = steps, name, shown
        self._console = Console(stderr=True)
        self._newest: dict[str, str] = {}
        self._first: tuple[int, float] | None = None
        self._printed_at = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        if shown and self._console.is_terminal:
            self._bar, self._task = self._make_bar()

    def _make_bar(self) -> tuple[Any, Any]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self._console,
        )
        task = bar.add_task(self._name, total=self._steps, speed="", metrics="")
        bar.start()
        return bar, task

    def step(self, step: int) -> None:
        """Shows that `step` updates are done."""
        if not self._shown:
            return
        now = time.monotonic()
        self._first = self._first or (step, now)
        speed = (step - self._first[0]) / (now - self._first[1]) if now > self._first[1] else 0.0
        text = f"{speed:,.0f} steps/s" if speed >= 10 else f"{speed:.2f} steps/s" if speed else "compiling"
        metrics = "  ".join(self._newest.values())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, speed=text, metrics=metrics)
        elif now - self._printed_at >= 2.0 or step == self._steps:
            left = f"{(self._steps - step) / speed:.0f} s left" if speed else ""
            print(f"{self._name}: {step}/{self._steps}  {text}  {left}  {metrics}", file=sys.stderr)
            self._printed_at = now

    def metrics(self, split: str, metrics: dict[str, float]) -> None:
        """Takes the newest metrics of a split; loss and accuracy, or the first two, are shown."""
        names = [name for name in ("loss", "accuracy") if name in metrics] or list(metrics)[:2]
        self._newest[split] = f"{split} " + " ".join(f"{name} {metrics[name]:.4g}" for name in names)

    def note(self, text: str) -> None:
        """Takes a text to show in place of metrics."""
        self._newest["note"] = text

    def close(self) -> None:
        """Leaves the screen as a finished bar."""
        if self._bar is not None:
            self._bar.stop()
