"""Rendered images: objects are where the state places them, and wrappers render the wrapped environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from foldax import rl
from foldax.rl import rendering, wrappers
from foldax.rl.environments.board_game import BoardState
from foldax.rl.environments.matrix_game import MatrixGameState
from tests.conftest import ROOT
from tests.rl.environments import counter

KEY = jax.random.key(0)


def center_of(color: str, image: np.ndarray) -> np.ndarray:
    """Mean (x, y) of all pixels of a colour, as fractions of the image, y upwards."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    y, x = np.nonzero((image == np.uint8(rgb)).all(axis=-1))
    assert len(x), f"no pixel has the colour {color}"
    return np.array([x.mean() / image.shape[1], 1 - y.mean() / image.shape[0]])


def render(environment: rl.Environment, *state: float) -> np.ndarray:
    image = environment.render((np.float32(state), np.int32(0)))
    assert (image.shape, image.dtype) == ((240, 240, 3), np.uint8)
    return image


def test_the_pole_leans_to_the_side_of_its_angle() -> None:
    left, middle, right = (render(rl.cartpole(), x, 0, x / 8, 0) for x in (-2.0, 0.0, 2.0))
    carts, poles = (
        [center_of(color, i)[0] for i in (left, middle, right)] for color in (rendering.DARK, rendering.ORANGE)
    )
    assert carts == pytest.approx([0.5 - 0.85 / 2.4, 0.5, 0.5 + 0.85 / 2.4], abs=0.01)
    assert poles[0] < carts[0] < carts[1] == pytest.approx(poles[1], abs=0.01)
    assert carts[2] < poles[2]


@pytest.mark.parametrize(("angle", "x", "y"), [(0, 0, 1), (np.pi, 0, -1), (np.pi / 2, -1, 0), (-np.pi / 2, 1, 0)])
def test_a_pendulum_turns_counterclockwise_from_upright(angle, x, y) -> None:
    place = center_of(rendering.RED, render(rl.pendulum(), angle, 0, 0))
    assert place == pytest.approx([0.5 + 0.19 * x, 0.5 + 0.19 * y], abs=0.02)


@pytest.mark.parametrize("torque", [-2.0, 2.0])
def test_the_torque_is_drawn_to_its_side(torque) -> None:
    image = render(rl.pendulum(), np.pi, 0, torque)
    assert (center_of(rendering.GREEN, image)[0] < 0.5) == (torque > 0)  # positive: counterclockwise, over the left


def test_an_acrobot_hangs_at_rest_and_reaches_above_its_line_when_upright() -> None:
    for first, height in ((0.0, -0.46), (np.pi, 0.46)):
        place = center_of(rendering.RED, render(rl.acrobot(), first, 0, 0, 0))
        assert place == pytest.approx([0.5, 0.5 + height], abs=0.02)


@pytest.mark.parametrize("make", [rl.mountain_car, rl.continuous_mountain_car])
def test_the_car_is_on_the_slope(make) -> None:
    bottom, left, goal = (center_of(rendering.RED, render(make(), x, 0)) for x in (-np.pi / 6, -1.1, 0.5))
    assert left[0] < bottom[0] < goal[0]
    assert bottom[1] < left[1] < goal[1]


def test_agent_start_walls_and_goal_of_a_maze_have_their_colours() -> None:
    environment = rl.grid_maze(["S.", "#G"])
    state, _ = environment.reset(KEY)
    for action, colors in ((None, (0, None, 2, 3)), (1, (1, 0, 2, 3)), (2, (1, None, 2, 0))):
        state = state if action is None else environment.step(KEY, state, jnp.int32(action))[0]
        cells = environment.render(state)[60::120, 60::120].reshape(4, 3)
        expected = [rendering.BACKGROUND if color is None else rendering.CHANNEL_COLORS[color] for color in colors]
        np.testing.assert_array_equal(cells, expected)


def test_a_disc_above_the_pulled_arm_shows_the_reward() -> None:
    environment = rl.bandit([0.0, 0.5, 1.0])
    state, _ = environment.reset(KEY)
    first = environment.render(state)
    blue = (first == np.uint8([0, 114, 178])).all(axis=-1)
    assert [int(blue[:, x].sum()) for x in (48, 120, 192)] == pytest.approx([0, 78, 156], abs=2)  # heights in pixels
    for arm, color in ((0, rendering.GREY), (2, rendering.ORANGE)):
        state, _ = environment.step(KEY, state, jnp.int32(arm))
        assert center_of(color, environment.render(state))[0] == pytest.approx(0.2 + 0.3 * arm, abs=0.01)


def test_bits_are_hidden_until_one_is_asked_for() -> None:
    environment = rl.memory_chain(length=3, num_bits=2)
    for time, color in ((0, rendering.BLUE), (1, rendering.BLUE), (2, rendering.GREY)):
        image = environment.render((np.int32([0, 1]), np.int32(1), np.int32(time)))
        assert center_of(color, image[:180])[0] < 0.51
        assert (image == np.uint8([0, 158, 115])).all(axis=-1).sum() == 0  # nothing is asked
    asked = environment.render((np.int32([0, 1]), np.int32(1), np.int32(3)))
    assert center_of(rendering.GREEN, asked)[0] == pytest.approx(0.725, abs=0.01)


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


PICTURES = {  # the states of the pictures of docs/reference/environments.md
    "cartpole": (rl.cartpole(), (np.float32([-0.6, 0, 0.15, 0]), np.int32(0))),
    "pendulum": (rl.pendulum(), (np.float32([-0.7, 0, 1.5]), np.int32(0))),
    "acrobot": (rl.acrobot(), (np.float32([0.9, 0.8, 0, 0]), np.int32(0))),
    "mountain_car": (rl.mountain_car(), (np.float32([0.1, 0]), np.int32(0))),
    "continuous_mountain_car": (rl.continuous_mountain_car(), (np.float32([-0.9, 0]), np.int32(0))),
    "grid_maze": (rl.grid_maze(), (np.int32([3, 3]), np.int32(0))),
    "bandit": (rl.bandit([0.2, 0.5, 0.8]), (np.int32(1), np.float32(1))),
    "matrix_game": (rl.matrix_game(), MatrixGameState(np.int32(2), np.int32([0, 2]))),
    "tic_tac_toe": (rl.tic_tac_toe(), BoardState(np.int32([1, -1, -1, -1, 0, -1, 0, -1, -1]), np.int32(1))),
    "connect_four": (rl.connect_four(), BoardState(np.int32([-1] * 31 + [0, -1, -1, -1, 1, 1, 0, -1, -1, -1, 0]), 1)),
    "memory_chain": (rl.memory_chain(num_bits=3), (np.int32([0, 1, 1]), np.int32(1), np.int32(5))),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_of_the_reference_are_those_of_the_environments(name) -> None:
    environment, state = PICTURES[name]
    with Image.open(ROOT / "docs" / "reference" / "environments" / f"{name}.png") as image:
        picture = np.asarray(image, np.float32)
    difference = np.abs(picture - environment.render(state))
    assert difference.mean() < 2  # versions of Pillow draw edges a little differently


def test_wrappers_render_the_wrapped_environment() -> None:
    inner = counter()._replace(render=lambda state: np.full((2, 2, 3), state, np.uint8))
    for wrapped in (wrappers.time_limit(inner, 5), wrappers.frame_stack(wrappers.time_limit(inner, 5), 2)):
        state, _ = wrapped.reset(KEY)
        state, _ = wrapped.step(KEY, state, np.int32(0))
        np.testing.assert_array_equal(wrapped.render(state), np.ones((2, 2, 3)))
    assert wrappers.frame_stack(wrappers.time_limit(counter(), 5), 2).render is None
