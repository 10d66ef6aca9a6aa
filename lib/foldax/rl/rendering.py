"""Rendering of environments on the host: images uint8 `[H, W, 3]`, painted with Pillow from shapes, or of a grid."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

IMAGE_SIZE = 240  # pixels
SUPERSAMPLING = 4  # images are painted so many times larger and averaged, against jagged edges

BLUE, ORANGE, RED, GREEN, GREY, DARK = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#9A9A9A", "#303030"
# Colours of a grid's channels, those of Okabe & Ito (2008) first, legible for colour-blind readers.
CHANNEL_COLORS = (
    (86, 180, 233), (230, 159, 0), (150, 150, 150), (0, 158, 115), (240, 228, 66),
    (213, 94, 0), (204, 121, 167), (0, 114, 178), (255, 255, 255), (140, 86, 75),
)  # fmt: skip
BACKGROUND, GRID_LINE = (38, 38, 42), (26, 26, 29)

Point: TypeAlias = tuple[float, float]
Shape: TypeAlias = tuple[str, Sequence[Point], str, float]
"""Kind ("line", "polygon" or "disc"), its points, its colour, and the width of a line or the radius of a disc."""


def draw_grid(cells: np.ndarray) -> np.ndarray:
    """Draws cells `[H, W, C]` as coloured squares; where several channels are above 0, the first one is shown.

    >>> draw_grid(np.zeros((10, 10, 4))).shape
    (240, 240, 3)
    """
    height, width, channels = cells.shape
    size = max(2, IMAGE_SIZE // max(height, width))
    colors = np.full((height, width, 3), BACKGROUND, np.uint8)
    # Channels are painted from the last to the first, which covers the others.
    for channel in reversed(range(channels)):
        colors[cells[..., channel] > 0] = CHANNEL_COLORS[channel % len(CHANNEL_COLORS)]
    image = colors.repeat(size, axis=0).repeat(size, axis=1)
    image[::size] = image[:, ::size] = GRID_LINE
    return image


def draw_shapes(shapes: Sequence[Shape], span: float = 1.0) -> np.ndarray:
    """Draws shapes, later ones on top, in the square from -`span` to `span` with y upwards.

    >>> draw_shapes([("disc", [(0.0, 0.0)], RED, 0.5)])[120, 120].tolist()
    [213, 94, 0]
    """
    from PIL import Image, ImageDraw

    side = IMAGE_SIZE * SUPERSAMPLING
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    # From units to pixels; the y axis of an image points down.
    scale = side / (2 * span)
    for kind, points, color, size in shapes:
        pixels = [(side / 2 + scale * x, side / 2 - scale * y) for x, y in points]
        if kind == "polygon":
            draw.polygon(pixels, fill=color)
        elif kind == "line":
            draw.line(pixels, fill=color, width=max(1, round(scale * size)), joint="curve")
            for end in (pixels[0], pixels[-1]):
                _draw_disc(draw, end, scale * size / 2, color)
        else:
            for center in pixels:
                _draw_disc(draw, center, scale * size, color)
    return np.asarray(image.reduce(SUPERSAMPLING))


def box(center: Point, half_width: float, half_height: float, angle: float = 0.0) -> list[Point]:
    """Corners of a rectangle that is turned counterclockwise by an angle in rad."""
    cosine, sine = math.cos(angle), math.sin(angle)
    corners = ((half_width * side, half_height * level) for side, level in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
    return [(center[0] + cosine * x - sine * y, center[1] + sine * x + cosine * y) for x, y in corners]


def _draw_disc(draw: Any, center: Point, radius: float, color: str) -> None:
    x, y = center
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
