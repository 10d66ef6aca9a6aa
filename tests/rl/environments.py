"""Environments so small that the best policy and its values are known."""

import jax
import jax.numpy as jnp
import numpy as np

from foldax.rl import Box, Discrete, Environment, Step, Tuple


def counter(length: int = 3, truncates: bool = False, start: int = 0, reward: float | None = None) -> Environment:
    """Shows the number of steps so far; terminates or truncates after `length`. The reward is `reward`, or that number."""

    def reset(key):
        return jnp.int32(start), jnp.full(1, start, jnp.float32)

    def step(key, state, action):
        count = state + 1
        done = count >= start + length
        ends = (jnp.bool_(False), done) if truncates else (done, jnp.bool_(False))
        step_reward = count.astype(jnp.float32) if reward is None else jnp.float32(reward)
        return count, Step(count[None].astype(jnp.float32), step_reward, *ends)

    return Environment(
        reset, step, Box(np.zeros(1, np.float32), np.full(1, np.inf, np.float32)), Discrete(2), "counter"
    )


def choice() -> Environment:
    """Requests one of two actions at random, three times; the right one has reward 1, a step late."""

    def observe(state):
        requested, time, pending = state
        return jnp.stack([requested * 2.0 - 1.0, time / 2.0 - 1.0, pending])

    def reset(key):
        state = jax.random.randint(key, (), 0, 2).astype(jnp.float32), jnp.float32(0), jnp.float32(0)
        return state, observe(state)

    def step(key, state, action):
        requested, time, pending = state
        earned = jnp.where((action.astype(jnp.float32) == requested) & (time < 3), 1.0, 0.0)
        after = jax.random.randint(key, (), 0, 2).astype(jnp.float32), time + 1, earned
        return after, Step(observe(after), pending, time >= 3, jnp.bool_(False))

    bounds = Box(np.full(3, -1, np.float32), np.full(3, 1, np.float32))
    return Environment(reset, step, bounds, Discrete(2), "choice")


def continuous() -> Environment:
    """The action should be half of the observation; the reward is minus the squared error."""

    def reset(key):
        target = jax.random.choice(key, jnp.array([-1.0, 1.0]))
        return target, target[None]

    def step(key, state, action):
        after, observation = reset(key)
        return after, Step(observation, -jnp.square(action[0] - state / 2), jnp.bool_(True), jnp.bool_(False))

    bounds = Box(np.full(1, -1, np.float32), np.full(1, 1, np.float32))
    return Environment(reset, step, bounds, bounds, "continuous")


def continuous_and_late() -> Environment:
    """As `continuous`, but the reward comes a step late; the second action has no effect."""

    def reset(key):
        target = jax.random.choice(key, jnp.array([-1.0, 1.0]))
        return (target, jnp.float32(0), jnp.int32(0)), jnp.stack([target, jnp.float32(0)])

    def step(key, state, action):
        target, pending, time = state
        after = target, -jnp.square(action[0] - target / 2), time + 1
        return after, Step(jnp.stack([jnp.float32(0), after[1]]), pending, time >= 1, jnp.bool_(False))

    bounds = Box(np.full(2, -1, np.float32), np.full(2, 1, np.float32))
    return Environment(
        reset, step, bounds, Box(np.full(1, -1, np.float32), np.full(1, 1, np.float32)), "continuous_and_late"
    )


def recall(length: int = 3) -> Environment:
    """Shows a cue at first, and asks for it at the last of `length` steps: reward 1 for the right action, else -1."""

    def observe(state):
        cue, time = state
        asks = (time == length - 1).astype(jnp.float32)
        return jnp.stack([jnp.where(time == 0, cue, 0.0), asks])

    def reset(key):
        state = jax.random.choice(key, jnp.array([-1.0, 1.0])), jnp.int32(0)
        return state, observe(state)

    def step(key, state, action):
        cue, time = state
        reward = jnp.where((action.astype(jnp.float32) * 2.0 - 1.0) == cue, 1.0, -1.0)
        after = cue, time + 1
        done = time + 1 >= length
        return after, Step(observe(after), jnp.where(done, reward, 0.0), done, jnp.bool_(False))

    bounds = Box(np.full(2, -1, np.float32), np.full(2, 1, np.float32))
    return Environment(reset, step, bounds, Discrete(2), "recall")


def masked(num_actions: int = 4, length: int = 3) -> Environment:
    """Shows a score for each action, of which random ones are legal: reward 1 for the best of these, -100 if illegal."""

    def scores_and_mask(key):
        score_key, mask_key, legal_key = jax.random.split(key, 3)
        legal = jax.random.bernoulli(mask_key, 0.4, (num_actions,))
        legal = legal | (jnp.arange(num_actions) == jax.random.randint(legal_key, (), 0, num_actions))
        return jax.random.uniform(score_key, (num_actions,)), legal

    def reset(key):
        scores, legal = scores_and_mask(key)
        return (scores, legal, jnp.int32(0)), scores

    def step(key, state, action):
        scores, legal, time = state
        best = jnp.where(legal, scores, -1.0).argmax()
        reward = jnp.where(legal[action], (action == best).astype(jnp.float32), -100.0)
        after = (*scores_and_mask(key), time + 1)
        return after, Step(after[0], reward, time + 1 >= length, jnp.bool_(False))

    bounds = Box(np.zeros(num_actions, np.float32), np.ones(num_actions, np.float32))
    return Environment(reset, step, bounds, Discrete(num_actions), "masked", legal_actions=lambda state: state[1])


def two_parts(action_space=None) -> Environment:
    """Shows an image whose bright column, and a vector whose sign, the action should name; reward 1 for each, one step."""

    def observe(state):
        column, sign = state
        image = jnp.broadcast_to(jax.nn.one_hot(column, 3)[None, :, None], (3, 3, 1))
        return {"image": (255 * image).astype(jnp.uint8), "vector": sign[None]}

    def reset(key):
        column_key, sign_key = jax.random.split(key)
        sign = jax.random.choice(sign_key, jnp.array([-1.0, 1.0]))
        state = jax.random.randint(column_key, (), 0, 3), sign
        return state, observe(state)

    def step(key, state, action):
        column, sign = state
        if isinstance(action_space, Tuple):
            correct = (action[0] == column) + jnp.clip(action[1][0] * sign, -1.0, 1.0)
        elif action_space is not None:
            correct = (action[0] == column).astype(jnp.float32) + (action[1] == (sign > 0))
        else:
            correct = (action == 2 * column + (sign > 0)).astype(jnp.float32)
        info = {"column": (action == column).astype(jnp.float32)} if action_space is None else {}
        return state, Step(observe(state), correct.astype(jnp.float32), jnp.bool_(True), jnp.bool_(False), info)

    image, ones = np.zeros((3, 3, 1), np.uint8), np.ones(1, np.float32)
    space = {"image": Box(image, image + 255), "vector": Box(-ones, ones)}
    return Environment(reset, step, space, action_space or Discrete(6), "two parts")
