"""Progress of a run on stderr: a bar in a terminal, a plain line every two seconds elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Any

from foldax.runs.terminal import Output, console


class Progress:
    """Shows the step, steps per second, time left and newest metrics of a run.

    Args:
      name: name of the run.
      steps: number of updates in total.
      shown: False shows nothing.
    """

    def __init__(self, name: str, steps: int, shown: bool = True) -> None:
        self._steps, self._name, self._shown = steps, name, shown
        self._console = console(sys.stderr)
        self._newest: dict[str, str] = {}
        self._start: tuple[int, float] | None = None
        self._printed_at = time.monotonic()
        self._bar: Any = None
        # A dumb terminal cannot move its cursor back over a bar: it gets lines.
        if shown and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._start_bar()

    def _start_bar(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}", markup=False),
            console=self._console,
            # What goes to a file must not be shown above the bar instead.
            redirect_stdout=Output(sys.stdout).isatty(),
        )
        self._task = self._bar.add_task(self._name, total=self._steps, speed="", metrics="")
        self._bar.start()

    def step(self, step: int, performance: Callable[[], str] = str) -> None:
        """Shows that `step` updates are done, and the speed: what `performance` says, else measured here."""
        if not self._shown:
            return
        now = time.monotonic()
        self._start = self._start or (step, now)
        # Counted from the first call: the time before it was spent compiling.
        speed = (step - self._start[0]) / (now - self._start[1]) if now > self._start[1] else 0.0
        text = f"{speed:,.0f} steps/s" if speed >= 10 else f"{speed:.2f} steps/s" if speed else "compiling"
        text = performance() or text
        metrics = "  ".join(self._newest.values())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, speed=text, metrics=metrics)
        # Log files get a line every two seconds, and the last one.
        elif now - self._printed_at >= 2.0 or step == self._steps:
            left = f"{(self._steps - step) / speed:.0f} s left" if speed else ""
            Output(sys.stderr).write(f"{self._name}: {step}/{self._steps}  {text}  {left}  {metrics}\n")
            self._printed_at = now

    def metrics(self, split: str, metrics: dict[str, float]) -> None:
        """Sets the newest metrics of a split; shows its loss and accuracy, or its first two metrics."""
        names = [name for name in ("loss", "accuracy") if name in metrics] or list(metrics)[:2]
        self._newest[split] = f"{split} " + " ".join(f"{name} {metrics[name]:.4g}" for name in names)

    def note(self, text: str) -> None:
        """Sets a text that is shown beside the metrics."""
        self._newest["note"] = text

    def close(self) -> None:
        """Ends the bar and leaves its last state on the screen."""
        if self._bar is not None:
            self._bar.stop()
