"""Rendering of gymnax environments: images uint8 `[240, 240, 3]`, painted with Pillow from a state on the host."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from foldax.rl.environment import Render, State

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


def gymnax_renderer(name: str, environment: Any, params: Any) -> Render | None:
    """Makes the function that renders states of a gymnax environment; None where there is none.

    Args:
      name: name of the environment.
      environment: gymnax's environment.
      params: its `EnvParams`.
    """
    if name.endswith("-MinAtar"):
        observe = jax.jit(lambda state: environment.get_obs(state, params))
        return lambda state: draw_grid(np.asarray(observe(state)))
    make_shapes = CLASSIC_CONTROL.get(name)
    return None if make_shapes is None else lambda state: draw_shapes(make_shapes(state, params))


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


def cart_pole_shapes(state: State, params: Any) -> list[Shape]:
    """Cart, pole and track, at whose ends the episode terminates."""
    scale = 0.85 / float(params.x_threshold)
    x, angle, ground = scale * float(state.x), float(state.theta), -0.5
    tip = (x + 1.1 * math.sin(angle), ground + 0.1 + 1.1 * math.cos(angle))
    ends: list[Shape] = [("line", [(end, ground - 0.07), (end, ground + 0.07)], RED, 0.02) for end in (-0.85, 0.85)]
    track: Shape = ("line", [(-0.95, ground), (0.95, ground)], GREY, 0.015)
    cart: Shape = ("polygon", _box((x, ground), 0.2, 0.1), DARK, 0.0)
    pole: list[Shape] = [("line", [(x, ground + 0.1), tip], ORANGE, 0.055), ("disc", [(x, ground + 0.1)], BLUE, 0.035)]
    return [track, *ends, cart, *pole]


def pendulum_shapes(state: State, params: Any) -> list[Shape]:
    """Rod, and the torque as an arc in its direction; angle 0 is upright."""
    angle = float(state.theta)
    end = (-0.75 * math.sin(angle), 0.75 * math.cos(angle))
    torque = float(np.ravel(state.last_u)[0]) / float(params.max_torque)
    # The arc's length is proportional to the torque.
    angles = np.linspace(0.0, max(-1.0, min(1.0, torque)) * 0.8 * math.pi, 24)
    arc = [(-0.3 * math.sin(a), 0.3 * math.cos(a)) for a in angles]
    torque_arc: list[Shape] = [("line", arc, GREEN, 0.035), ("disc", arc[-1:], GREEN, 0.05)]
    upright: Shape = ("line", [(0.0, 0.85), (0.0, 0.95)], GREY, 0.015)
    rod: list[Shape] = [("line", [(0.0, 0.0), end], RED, 0.15), ("disc", [(0.0, 0.0)], DARK, 0.04)]
    return [upright, rod[0], *(torque_arc if abs(torque) > 0.02 else []), rod[1]]


def acrobot_shapes(state: State, params: Any) -> list[Shape]:
    """Both links, and the height that the tip must reach."""
    lengths = (float(params.link_length_1), float(params.link_length_2))
    scale = 0.92 / sum(lengths)
    first, both = float(state.joint_angle1), float(state.joint_angle1 + state.joint_angle2)
    # Angles are measured from hanging straight down.
    elbow = (scale * lengths[0] * math.sin(first), -scale * lengths[0] * math.cos(first))
    end = (elbow[0] + scale * lengths[1] * math.sin(both), elbow[1] - scale * lengths[1] * math.cos(both))
    goal: Shape = ("line", [(-0.95, scale), (0.95, scale)], GREEN, 0.015)
    links: list[Shape] = [("line", [(0.0, 0.0), elbow], BLUE, 0.1), ("line", [elbow, end], ORANGE, 0.1)]
    return [goal, *links, ("disc", [(0.0, 0.0), elbow], DARK, 0.04), ("disc", [end], RED, 0.05)]


def mountain_car_shapes(state: State, params: Any) -> list[Shape]:
    """Valley, flag, and the car on the slope."""
    low, high = float(params.min_position), float(params.max_position)

    def point_at(position: float) -> Point:
        return 1.9 * (position - low) / (high - low) - 0.95, 0.62 * math.sin(3 * position) - 0.1

    margin = 0.03 * (high - low)  # up to the image's edges
    valley = [point_at(position) for position in np.linspace(low - margin, high + margin, 60)]
    position, flag = float(state.position), point_at(float(params.goal_position))
    # The car is placed along the normal of the slope, which a small step ahead gives.
    (x, y), ahead = point_at(position), point_at(position + 1e-3)
    slope = math.atan2(ahead[1] - y, ahead[0] - x)
    normal = (-math.sin(slope), math.cos(slope))
    top = (flag[0], flag[1] + 0.3)
    body = (x + 0.11 * normal[0], y + 0.11 * normal[1])
    wheels = [(x + s * normal[1] + 0.045 * normal[0], y - s * normal[0] + 0.045 * normal[1]) for s in (-0.075, 0.075)]
    ground: list[Shape] = [("polygon", [(-1.1, -1.0), *valley, (1.1, -1.0)], "#E4E4E4", 0.0)]
    ground.append(("line", valley, GREY, 0.015))
    pennant = [top, (top[0] - 0.16, top[1] - 0.06), (top[0], top[1] - 0.12)]
    goal: list[Shape] = [("line", [flag, top], DARK, 0.015), ("polygon", pennant, GREEN, 0.0)]
    return [*ground, *goal, ("polygon", _box(body, 0.13, 0.055, slope), RED, 0.0), ("disc", wheels, DARK, 0.045)]


CLASSIC_CONTROL: dict[str, Callable[[State, Any], list[Shape]]] = {"CartPole-v1": cart_pole_shapes}
CLASSIC_CONTROL |= {"Pendulum-v1": pendulum_shapes, "Acrobot-v1": acrobot_shapes}
CLASSIC_CONTROL |= dict.fromkeys(("MountainCar-v0", "MountainCarContinuous-v0"), mountain_car_shapes)


def _box(center: Point, half_width: float, half_height: float, angle: float = 0.0) -> list[Point]:
    cosine, sine = math.cos(angle), math.sin(angle)
    corners = ((half_width * side, half_height * level) for side, level in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
    return [(center[0] + cosine * x - sine * y, center[1] + sine * x + cosine * y) for x, y in corners]


def _draw_disc(draw: Any, center: Point, radius: float, color: str) -> None:
    x, y = center
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
