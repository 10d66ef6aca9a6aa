"""MountainCar, where nothing but the top of the hill ends the costs, by a double, dueling Q-network.

    foldax run experiments/rl/dqn_mountain_car.py

Not measured over seeds yet.
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.Interaction):
    environment_steps: int = 120_000
    start_steps: int = 1_000
    num_envs: int = 4
    rollout_steps: int = 1
    batch_size: int = 128
    """Transitions in an update's descent."""
    capacity: int = 20_000
    """Transitions that are remembered."""
    bootstrap_steps: int = 3
    """Rewards that are summed before the next value is asked for."""
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the hidden layers."""
    learning_rate: float = 1e-3
    """Of Adam, at first; it falls to 0 in a straight line."""
    discount: float = 0.99
    """Of a reward one step later."""
    epsilon: float = 0.05
    """Probability of a random action in the end."""
    exploration: float = 0.2
    """Share of the environment's steps in which it falls from 1 to that."""
    target_period: int = 600
    """Steps of the environment between copies of the network to the target."""
    evaluation_episodes: int = 128
    """Played at once, each of 200 steps at most."""


def environment(config: Config) -> rl.Environment:
    return rl.gymnax("MountainCar-v0")


def agent(config: Config, world: rl.Environment) -> foldax.Learner:
    """Returns the learner of a world."""
    model = models.QNetwork(world.actions.num, hidden=config.hidden, dueling=True)
    return learners.dqn(
        world,
        model,
        optax.adam(optax.linear_schedule(config.learning_rate, 0.0, config.steps)),
        memory=learners.Memory(config.capacity, config.bootstrap_steps),
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        start=config.start_steps,
        batch_size=config.batch_size,
        discount=config.discount,
        epsilon=config.epsilon,
        epsilon_steps=config.exploration * config.environment_steps,
        target_period=config.target_period,
        double=True,
        evaluation_episodes=config.evaluation_episodes,
        evaluation_steps=200,
    )


def learner(config: Config, info: None) -> foldax.Learner:
    return agent(config, environment(config))


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
