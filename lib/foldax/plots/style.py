"""What all figures begin with: matplotlib without global state, and colours that the colour-blind can tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np

COLORS = {"train": "#0072B2", "validation": "#D55E00", "test": "#009E73"}
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # of curves that are no splits; those of Okabe & Ito


def new_figure(rows: int = 1, columns: int = 1, width: float = 4.0, height: float = 3.2) -> tuple[Any, np.ndarray]:
    """Returns a figure and its axes `[rows, columns]`, each axis of `width` x `height` inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes
