"""MountainCar, where nothing but the top of the hill ends the costs, by a double, dueling Q-network.

    foldax run experiments/rl/dqn_mountain_car.py

Greedy returns of 128 episodes (`test/return`): -101.5, standard deviation 1.1 over seeds 0 to 7, after 300,000 steps. A
sweep of these 8 (`--exact --seeds 8`) took 1 min with compiling on 2 CPU cores. Settings were chosen by the episodes
of validation, on the same seeds.

Episodes of training are cut off after 1,000 steps, those of tests after 200, as is usual: of 200 random steps hardly
any reach the top, and there is nothing to learn from.
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.Interaction):
    environment_steps: int = 300_000
    start_steps: int = 1_000
    num_envs: int = 4
    rollout_steps: int = 1
    batch_size: int = 128
    """Transitions in an update's descent."""
    capacity: int = 50_000
    """Transitions that are remembered."""
    bootstrap_steps: int = 3
    """Rewards that are summed before the next value is asked for."""
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the hidden layers."""
    learning_rate: float = 4e-3
    """Of Adam, at first; it falls to 0 in a straight line."""
    discount: float = 0.99
    """Of a reward one step later."""
    epsilon: float = 0.05
    """Probability of a random action in the end."""
    exploration: float = 0.7
    """Share of the environment's steps in which it falls from 1 to that."""
    target_period: int = 600
    """Steps of the environment between copies of the network to the target."""
    episode_steps: int = 1_000
    """After which an episode of training is cut off; of 200, chance seldom reaches the top. Tests have 200."""
    evaluation_episodes: int = 128
    """Played at once, each of 200 steps at most."""


def environment(config: Config) -> rl.Environment:
    world = rl.gymnax("MountainCar-v0", max_steps_in_episode=config.episode_steps)
    return rl.wrappers.unit_observations(world)  # velocities are 20 times as small as places


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
