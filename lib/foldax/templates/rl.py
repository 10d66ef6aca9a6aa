"""NAME: say here which task the agent learns, and which return it reaches after how many environment steps.

foldax run FILE
foldax run FILE --ppo.clip-range 0.1 --learning-rate 1e-3 --seed 1
foldax play RUN
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import foldax
from foldax import learners, models, rl

SIZE = 9


@foldax.config
class Config(foldax.RLTraining):  # seed, log_every, evaluate_every, patience, ...: `foldax run FILE --help`
    """Hyperparameters of the agent and its training."""

    environment_steps: int = 20_000
    num_envs: int = 8
    rollout_steps: int = 32
    ppo: learners.PPOSettings = learners.PPOSettings(evaluation_steps=100)
    """Hyperparameters of PPO; each is an option, such as --ppo.clip-range."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    learning_rate: float = 3e-3  # a float is traced: changing it compiles nothing, sweeping it compiles once
    """Learning rate of Adam."""


def environment(config: Config) -> rl.Environment:
    """A corridor whose right end pays 1; any other step costs 0.01, and both ends terminate the episode."""

    # Pure functions of one state. There are others: rl.cartpole(), rl.playground("CartpoleBalance"), ...
    def observe(position: jax.Array) -> jax.Array:
        return position.astype(jnp.float32)[None] / SIZE

    def reset(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        position = jax.random.randint(key, (), 1, SIZE - 1)
        return position, observe(position)

    def step(key: jax.Array, position: jax.Array, action: jax.Array) -> tuple[jax.Array, rl.Step]:
        position = position + 2 * action - 1  # actions 0 and 1: left and right
        reward = jnp.where(position == SIZE - 1, 1.0, -0.01)
        terminated = (position == 0) | (position == SIZE - 1)
        return position, rl.Step(observe(position), reward, terminated, truncated=jnp.bool_(False))

    observations = rl.Box(np.zeros(1, np.float32), np.ones(1, np.float32))
    return rl.Environment(reset, step, observations, rl.Discrete(2), "corridor")


def learner(config: Config, info: None) -> foldax.Learner:
    """Builds PPO with an MLP each for actor and critic."""
    return learners.ppo(
        environment(config),
        models.ActorCritic(2, hidden=config.hidden),
        optax.chain(optax.clip_by_global_norm(0.5), optax.adam(config.learning_rate)),
        config.ppo,
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
    )


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
