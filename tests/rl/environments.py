"""Worlds so small that everything of them is known."""

import jax
import jax.numpy as jnp
import numpy as np

from foldax.rl import Box, Discrete, Environment, Step


def counter(length: int = 3, truncates: bool = False, start: int = 0, reward: float | None = None) -> Environment:
    """Counts its steps; an episode ends after `length`, for good or cut off. A step is worth `reward`, or the count."""

    def reset(key):
        return jnp.int32(start), jnp.full(1, start, jnp.float32)

    def step(key, state, action):
        count = state + 1
        over = count >= start + length
        end = (jnp.bool_(False), over) if truncates else (over, jnp.bool_(False))
        worth = count.astype(jnp.float32) if reward is None else jnp.float32(reward)
        return count, Step(count[None].astype(jnp.float32), worth, *end)

    return Environment(
        reset, step, Box(np.zeros(1, np.float32), np.full(1, np.inf, np.float32)), Discrete(2), "counter"
    )


def choice() -> Environment:
    """Asks three times for one of two actions, drawn anew; what is right is worth 1, seen at once, paid a step late."""

    def seen(state):
        asked, time, owed = state
        return jnp.stack([asked * 2.0 - 1.0, time / 2.0 - 1.0, owed])

    def reset(key):
        state = jax.random.randint(key, (), 0, 2).astype(jnp.float32), jnp.float32(0), jnp.float32(0)
        return state, seen(state)

    def step(key, state, action):
        asked, time, owed = state
        right = jnp.where((action == asked) & (time < 3), 1.0, 0.0)
        after = jax.random.randint(key, (), 0, 2).astype(jnp.float32), time + 1, right
        return after, Step(seen(after), owed, time >= 3, jnp.bool_(False))

    bounds = Box(np.full(3, -1, np.float32), np.full(3, 1, np.float32))
    return Environment(reset, step, bounds, Discrete(2), "choice")


def continuous() -> Environment:
    """Asks for half of the number that is seen, and takes the squared distance away."""

    def reset(key):
        asked = jax.random.choice(key, jnp.array([-1.0, 1.0]))
        return asked, asked[None]

    def step(key, state, action):
        after, observation = reset(key)
        return after, Step(observation, -jnp.square(action[0] - state / 2), jnp.bool_(True), jnp.bool_(False))

    bounds = Box(np.full(1, -1, np.float32), np.full(1, 1, np.float32))
    return Environment(reset, step, bounds, bounds, "continuous")


def continuous_and_late() -> Environment:
    """Asks as `continuous` does, but pays a step late, for what is seen then; the second action is for nothing."""

    def reset(key):
        asked = jax.random.choice(key, jnp.array([-1.0, 1.0]))
        return (asked, jnp.float32(0), jnp.int32(0)), jnp.stack([asked, jnp.float32(0)])

    def step(key, state, action):
        asked, owed, time = state
        after = asked, -jnp.square(action[0] - asked / 2), time + 1
        return after, Step(jnp.stack([jnp.float32(0), after[1]]), owed, time >= 1, jnp.bool_(False))

    bounds = Box(np.full(2, -1, np.float32), np.full(2, 1, np.float32))
    return Environment(
        reset, step, bounds, Box(np.full(1, -1, np.float32), np.full(1, 1, np.float32)), "continuous_and_late"
    )


def recall(length: int = 3) -> Environment:
    """Shows a sign at first, and asks for it at the last of `length` steps: worth 1 if it is right, else -1."""

    def seen(state):
        sign, time = state
        asks = (time == length - 1).astype(jnp.float32)
        return jnp.stack([jnp.where(time == 0, sign, 0.0), asks])

    def reset(key):
        state = jax.random.choice(key, jnp.array([-1.0, 1.0])), jnp.int32(0)
        return state, seen(state)

    def step(key, state, action):
        sign, time = state
        right = jnp.where((action * 2.0 - 1.0) == sign, 1.0, -1.0)
        after = sign, time + 1
        over = time + 1 >= length
        return after, Step(seen(after), jnp.where(over, right, 0.0), over, jnp.bool_(False))

    bounds = Box(np.full(2, -1, np.float32), np.full(2, 1, np.float32))
    return Environment(reset, step, bounds, Discrete(2), "recall")
