"""Rendered images: objects are where the state places them, and wrappers render the wrapped environment."""

import importlib.util
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from foldax import rl
from foldax.rl import rendering, wrappers
from tests.rl.environments import counter

KEY = jax.random.key(0)


def center_of(color: str, image: np.ndarray) -> np.ndarray:
    """Mean (x, y) of all pixels of a colour, as fractions of the image, y upwards."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    y, x = np.nonzero((image == np.uint8(rgb)).all(axis=-1))
    assert len(x), f"no pixel has the colour {color}"
    return np.array([x.mean() / image.shape[1], 1 - y.mean() / image.shape[0]])


def render(name: str, params: dict, **state: float) -> np.ndarray:
    shapes = rendering.CLASSIC_CONTROL[name](SimpleNamespace(**state), SimpleNamespace(**params))
    image = rendering.draw_shapes(shapes)
    assert (image.shape, image.dtype) == ((240, 240, 3), np.uint8)
    return image


def test_the_pole_leans_to_the_side_of_its_angle() -> None:
    left, middle, right = (render("CartPole-v1", {"x_threshold": 2.4}, x=x, theta=x / 8) for x in (-2.0, 0.0, 2.0))
    carts, poles = (
        [center_of(color, i)[0] for i in (left, middle, right)] for color in (rendering.DARK, rendering.ORANGE)
    )
    assert carts == pytest.approx([0.5 - 0.85 / 2.4, 0.5, 0.5 + 0.85 / 2.4], abs=0.01)
    assert poles[0] < carts[0] < carts[1] == pytest.approx(poles[1], abs=0.01)
    assert carts[2] < poles[2]


@pytest.mark.parametrize(("angle", "x", "y"), [(0, 0, 1), (np.pi, 0, -1), (np.pi / 2, -1, 0), (-np.pi / 2, 1, 0)])
def test_a_pendulum_turns_counterclockwise_from_upright(angle, x, y) -> None:
    place = center_of(rendering.RED, render("Pendulum-v1", {"max_torque": 2.0}, theta=angle, last_u=np.zeros(1)))
    assert place == pytest.approx([0.5 + 0.19 * x, 0.5 + 0.19 * y], abs=0.02)


@pytest.mark.parametrize("torque", [-2.0, 2.0])
def test_the_torque_is_drawn_to_its_side(torque) -> None:
    image = render("Pendulum-v1", {"max_torque": 2.0}, theta=np.pi, last_u=np.float32([torque]))
    assert (center_of(rendering.GREEN, image)[0] < 0.5) == (torque > 0)  # positive: counterclockwise, over the left


def test_an_acrobot_hangs_at_rest_and_reaches_above_its_line_when_upright() -> None:
    lengths = {"link_length_1": 1.0, "link_length_2": 1.0}
    for first, height in ((0.0, -0.46), (np.pi, 0.46)):
        place = center_of(rendering.RED, render("Acrobot-v1", lengths, joint_angle1=first, joint_angle2=0.0))
        assert place == pytest.approx([0.5, 0.5 + height], abs=0.02)


def test_the_car_is_on_the_slope() -> None:
    params = {"min_position": -1.2, "max_position": 0.6, "goal_position": 0.5}
    bottom, left, goal = (
        center_of(rendering.RED, render("MountainCar-v0", params, position=x)) for x in (-np.pi / 6, -1.1, 0.5)
    )
    assert left[0] < bottom[0] < goal[0]
    assert bottom[1] < left[1] < goal[1]


def test_a_cell_has_the_colour_of_its_first_channel() -> None:
    cells = np.zeros((10, 5, 12))
    cells[0, 0, 3] = cells[9, 4, 1] = cells[9, 4, 3] = cells[2, 2, 11] = 1
    image = rendering.draw_grid(cells)
    assert (image.shape, image.dtype) == ((240, 120, 3), np.uint8)
    middles = image[12::24, 12::24]
    assert tuple(middles[0, 0]) == rendering.CHANNEL_COLORS[3]
    assert tuple(middles[9, 4]) == rendering.CHANNEL_COLORS[1]
    assert tuple(middles[2, 2]) == rendering.CHANNEL_COLORS[1]  # colours repeat
    assert tuple(middles[5, 1]) == rendering.BACKGROUND


def test_wrappers_render_the_wrapped_environment() -> None:
    inner = counter()._replace(render=lambda state: np.full((2, 2, 3), state, np.uint8))
    for wrapped in (wrappers.time_limit(inner, 5), wrappers.frame_stack(wrappers.time_limit(inner, 5), 2)):
        state, _ = wrapped.reset(KEY)
        state, _ = wrapped.step(KEY, state, np.int32(0))
        np.testing.assert_array_equal(wrapped.render(state), np.ones((2, 2, 3)))
    assert wrappers.frame_stack(wrappers.time_limit(counter(), 5), 2).render is None


NAMES = [
    *rendering.CLASSIC_CONTROL,
    *(f"{game}-MinAtar" for game in ("Asterix", "Breakout", "Freeway", "SpaceInvaders")),
]


@pytest.mark.skipif(
    importlib.util.find_spec("gymnax") is None, reason="gymnax is not installed: pip install 'foldax[rl]' (Python 3.11)"
)
@pytest.mark.parametrize("name", NAMES)
def test_gymnax_environments_are_rendered(name) -> None:
    environment = rl.gymnax(name)
    state = jax.device_get(jax.jit(environment.reset)(KEY)[0])
    image = environment.render(state)
    assert (image.dtype, image.shape[-1]) == (np.uint8, 3)
    assert min(image.shape[:2]) >= 200
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 2
    assert rl.gymnax("MemoryChain-bsuite").render is None
