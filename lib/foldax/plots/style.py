"""Style of all figures: matplotlib without global state, in colours that colour-blind readers can distinguish.

Figures have no background, and colours of middle lightness: they read on light and on dark pages alike.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

Axes: TypeAlias = "matplotlib.axes.Axes"
Figure: TypeAlias = "matplotlib.figure.Figure"
StepsAfter = Callable[[int], int]
"""`updates -> environment steps`, such as `config.environment_steps_after`."""
COLORS = {"train": "#0072B2", "validation": "#D55E00", "test": "#009E73"}  # of Okabe & Ito (2008), by split
SET_COLORS = ("#CC79A7", "#E69F00", "#56B4E9")  # of the same, for named evaluation sets
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # the same, for curves that do not stand for a split
CURVE_COLORS = (*CYCLE, "#E69F00", "#56B4E9", "#5A5A5A", "#8C564B")  # for more of them


def new_figure(rows: int = 1, columns: int = 1, width: float = 4.0, height: float = 3.2) -> tuple[Figure, np.ndarray]:
    """Creates a figure outside of pyplot, so that it needs no display and nothing has to close it.

    Its background is transparent, and what would be black is a middle grey, for light and dark pages.

    Args:
      rows: rows of axes.
      columns: columns of axes.
      width: of each axes, in inches.
      height: of each axes, in inches.

    Returns:
      `(figure, axes)`: the axes are an array `[rows, columns]`.

    >>> figure, axes = new_figure(rows=2, columns=3, width=2.0)
    >>> axes.shape, figure.get_size_inches().tolist()
    ((2, 3), [6.0, 6.4])
    """
    from foldax.plots.theme import ThemedFigure

    # pyplot would keep a reference to every figure, and so leak memory in long sweeps.
    figure = ThemedFigure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes


def single_axis(width: float = 4.0, height: float = 3.2) -> tuple[Figure, Axes]:
    """Creates a figure with one axis."""
    figure, axes = new_figure(width=width, height=height)
    return figure, axes[0, 0]


def grid_and_legend(axis: Axes, **options: Any) -> None:
    """Draws a pale grid, and a legend without a frame; the options are those of the legend."""
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, **options)


def label_steps(axis: Axes, environment_steps: bool) -> None:
    """Labels the horizontal axis of curves: updates, or environment steps with short thousands."""
    from matplotlib.ticker import EngFormatter

    axis.set_xlabel("environment steps" if environment_steps else "step")
    if environment_steps:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def legend_entry(label: str, *, color: str = "0.5", band: bool = False, **line: Any) -> Any:
    """Makes an entry of a legend that stands for no single curve: a line, or a band."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if band:
        return Patch(color=color, alpha=0.3, lw=0, label=label)
    return Line2D([], [], color=color, label=label, **line)
