"""Pictures of gymnax's worlds, uint8 `[240, 240, 3]`: for people, drawn with Pillow from a state on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

SIDE = 240  # pixels
FINER = 4  # lines are drawn so many times larger, then averaged, so that their edges are smooth

BLUE, ORANGE, RED, GREEN, GREY, DARK = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#9A9A9A", "#303030"
# Of a grid's channels, those of Okabe & Ito (2008) first: legible for the colour-blind on a dark ground.
CHANNELS = (
    (86, 180, 233), (230, 159, 0), (150, 150, 150), (0, 158, 115), (240, 228, 66),
    (213, 94, 0), (204, 121, 167), (0, 114, 178), (255, 255, 255), (140, 86, 75),
)  # fmt: skip
GROUND, LINE = (38, 38, 42), (26, 26, 29)

Render = Callable[[Any], np.ndarray]
Point = tuple[float, float]
Shape = tuple[str, Sequence[Point], str, float]
"""Kind ("line", "polygon" or "disc"), its points, its colour, and the width of a line or the radius of a disc."""


def of_gymnax(name: str, world: Any, settings: Any) -> Render | None:
    """Returns what draws states of a gymnax environment, or None where it cannot be drawn.

    Args:
      name: of the environment.
      world: gymnax's object.
      settings: its parameters.
    """
    if name.endswith("-MinAtar"):
        seen = jax.jit(lambda state: world.get_obs(state, settings))
        return lambda state: grid(np.asarray(seen(state)))
    shapes = CLASSIC.get(name)
    return None if shapes is None else lambda state: picture(shapes(state, settings))


def grid(cells: np.ndarray) -> np.ndarray:
    """Returns a picture of cells `[H, W, C]`, above 0 where channel C has something; the first channels are on top."""
    height, width, channels = cells.shape
    size = max(2, SIDE // max(height, width))
    colors = np.full((height, width, 3), GROUND, np.uint8)
    for channel in reversed(range(channels)):
        colors[cells[..., channel] > 0] = CHANNELS[channel % len(CHANNELS)]
    found = colors.repeat(size, axis=0).repeat(size, axis=1)
    found[::size] = found[:, ::size] = LINE
    return found


def picture(shapes: Sequence[Shape], span: float = 1.0) -> np.ndarray:
    """Returns a picture of shapes, in order, in a square from -`span` to `span`, with y upwards."""
    from PIL import Image, ImageDraw

    side = SIDE * FINER
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    scale = side / (2 * span)
    for kind, points, color, size in shapes:
        places = [(side / 2 + scale * x, side / 2 - scale * y) for x, y in points]
        if kind == "polygon":
            draw.polygon(places, fill=color)
        elif kind == "line":
            draw.line(places, fill=color, width=max(1, round(scale * size)), joint="curve")
            for place in (places[0], places[-1]):
                _disc(draw, place, scale * size / 2, color)
        else:
            for place in places:
                _disc(draw, place, scale * size, color)
    return np.asarray(image.reduce(FINER))


def cart_pole(state: Any, settings: Any) -> list[Shape]:
    """Shows the track, whose ends are where an episode ends, and the cart with its pole."""
    reach = 0.85 / float(settings.x_threshold)
    x, angle, ground = reach * float(state.x), float(state.theta), -0.5
    tip = (x + 1.1 * math.sin(angle), ground + 0.1 + 1.1 * math.cos(angle))
    ends: list[Shape] = [("line", [(end, ground - 0.07), (end, ground + 0.07)], RED, 0.02) for end in (-0.85, 0.85)]
    return [
        ("line", [(-0.95, ground), (0.95, ground)], GREY, 0.015),
        *ends,
        ("polygon", _box((x, ground), 0.2, 0.1), DARK, 0.0),
        ("line", [(x, ground + 0.1), tip], ORANGE, 0.055),
        ("disc", [(x, ground + 0.1)], BLUE, 0.035),
    ]


def pendulum(state: Any, settings: Any) -> list[Shape]:
    """Shows the rod, which is at rest upright, and the torque as an arc in its direction."""
    angle = float(state.theta)
    end = (-0.75 * math.sin(angle), 0.75 * math.cos(angle))
    torque = float(np.ravel(state.last_u)[0]) / float(settings.max_torque)
    turned = np.linspace(0.0, max(-1.0, min(1.0, torque)) * 0.8 * math.pi, 24)
    arc = [(-0.3 * math.sin(a), 0.3 * math.cos(a)) for a in turned]
    push: list[Shape] = [("line", arc, GREEN, 0.035), ("disc", arc[-1:], GREEN, 0.05)] if abs(torque) > 0.02 else []
    upright: Shape = ("line", [(0.0, 0.85), (0.0, 0.95)], GREY, 0.015)
    return [upright, ("line", [(0.0, 0.0), end], RED, 0.15), *push, ("disc", [(0.0, 0.0)], DARK, 0.04)]


def acrobot(state: Any, settings: Any) -> list[Shape]:
    """Shows both links, and the height that the end must reach."""
    lengths = (float(settings.link_length_1), float(settings.link_length_2))
    scale = 0.92 / sum(lengths)
    first, both = float(state.joint_angle1), float(state.joint_angle1 + state.joint_angle2)
    elbow = (scale * lengths[0] * math.sin(first), -scale * lengths[0] * math.cos(first))
    end = (elbow[0] + scale * lengths[1] * math.sin(both), elbow[1] - scale * lengths[1] * math.cos(both))
    return [
        ("line", [(-0.95, scale), (0.95, scale)], GREEN, 0.015),
        ("line", [(0.0, 0.0), elbow], BLUE, 0.1),
        ("line", [elbow, end], ORANGE, 0.1),
        ("disc", [(0.0, 0.0), elbow], DARK, 0.04),
        ("disc", [end], RED, 0.05),
    ]


def mountain_car(state: Any, settings: Any) -> list[Shape]:
    """Shows the valley, the flag, and the car on the slope."""
    low, high = float(settings.min_position), float(settings.max_position)

    def place(position: float) -> Point:
        return 1.9 * (position - low) / (high - low) - 0.95, 0.62 * math.sin(3 * position) - 0.1

    beyond = 0.03 * (high - low)  # to the picture's edges
    valley = [place(position) for position in np.linspace(low - beyond, high + beyond, 60)]
    position, flag = float(state.position), place(float(settings.goal_position))
    here, ahead = place(position), place(position + 1e-3)
    along = math.atan2(ahead[1] - here[1], ahead[0] - here[0])
    up = (-math.sin(along), math.cos(along))
    top = (flag[0], flag[1] + 0.3)
    body = (here[0] + 0.11 * up[0], here[1] + 0.11 * up[1])
    wheels = [
        (here[0] + s * 0.075 * up[1] + 0.045 * up[0], here[1] - s * 0.075 * up[0] + 0.045 * up[1]) for s in (-1, 1)
    ]
    return [
        ("polygon", [(-1.1, -1.0), *valley, (1.1, -1.0)], "#E4E4E4", 0.0),
        ("line", valley, GREY, 0.015),
        ("line", [flag, top], DARK, 0.015),
        ("polygon", [top, (top[0] - 0.16, top[1] - 0.06), (top[0], top[1] - 0.12)], GREEN, 0.0),
        ("polygon", _box(body, 0.13, 0.055, along), RED, 0.0),
        ("disc", wheels, DARK, 0.045),
    ]


CLASSIC: dict[str, Callable[[Any, Any], list[Shape]]] = {
    "CartPole-v1": cart_pole,
    "Pendulum-v1": pendulum,
    "Acrobot-v1": acrobot,
    "MountainCar-v0": mountain_car,
    "MountainCarContinuous-v0": mountain_car,
}


def _box(center: Point, half_width: float, half_height: float, turned: float = 0.0) -> list[Point]:
    cosine, sine = math.cos(turned), math.sin(turned)
    corners = (
        (-half_width, -half_height),
        (half_width, -half_height),
        (half_width, half_height),
        (-half_width, half_height),
    )
    return [(center[0] + cosine * x - sine * y, center[1] + sine * x + cosine * y) for x, y in corners]


def _disc(draw: Any, place: Point, radius: float, color: str) -> None:
    x, y = place
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
