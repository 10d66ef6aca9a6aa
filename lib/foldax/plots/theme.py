"""A figure without a background, which reads on light and on dark pages."""

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.spines import Spine
from matplotlib.text import Text

INK = "#7c7c7c"  # a contrast of 4.1 or more with white and with the near-black of dark pages


class ThemedFigure(Figure):
    """A figure whose background is transparent, and whose black lines and texts become a middle grey.

    Black is matplotlib's default, so that axes, titles and legends need no colour of their own. What is to be dark on a
    light patch is near-black ("0.1").
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(facecolor="none", **options)

    def draw(self, renderer: Any) -> None:
        """Draws the figure; called by matplotlib."""
        for axes in self.findobj(Axes):
            axes.set_facecolor("none")
        for artist in self.findobj():
            _replace_black(artist)
        super().draw(renderer)


def _replace_black(artist: Artist) -> None:
    """Makes a line, frame, text or collection grey where it is black."""
    if isinstance(artist, Line2D):
        # Of ticks, which are markers.
        if _is_black(artist.get_markeredgecolor()):
            artist.set_markeredgecolor(INK)
        if _is_black(artist.get_markerfacecolor()):
            artist.set_markerfacecolor(INK)
    if isinstance(artist, Line2D | Text):
        if _is_black(artist.get_color()):
            artist.set_color(INK)
    elif isinstance(artist, Spine | Collection) and _is_black(artist.get_edgecolor()):
        artist.set_color(INK)


def _is_black(color: Any) -> bool:
    colors: np.ndarray = to_rgba_array(color)
    return len(colors) > 0 and not colors[:, :3].any() and bool(colors[:, 3].any())
