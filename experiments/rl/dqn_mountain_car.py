"""MountainCar, whose only reward is the end of an episode at the top of the hill, by a double, dueling Q-network.

    foldax run experiments/rl/dqn_mountain_car.py

Greedy return over 128 episodes (`test/return`): -102.6, standard deviation 3.3 over seeds 8 to 15 (-101.5 and 1.1 over
seeds 0 to 7, by whose validation episodes the settings were chosen), after 300,000 steps. A sweep of 8 (`--exact --seed
8 --seeds 8`) took 1 min with compilation on 2 CPU cores.

Training episodes are truncated after 1,000 steps, test episodes after 200, as is usual: hardly any 200 random steps
reach the top, so that there would be nothing to learn from.
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 300_000
    learning_starts: int = 1_000
    num_envs: int = 4
    rollout_steps: int = 1
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the hidden layers."""
    learning_rate: float = 4e-3
    """Of Adam at the start; it falls linearly to 0."""
    episode_steps: int = 1_000
    """Maximum length of a training episode; test episodes have 200 steps."""
    dqn: learners.DQNSettings = learners.DQNSettings(
        target_update_period=600,
        double=True,
        exploration_fraction=0.7,
        replay=learners.ReplaySettings(capacity=50_000, n_steps=3),
        evaluation_episodes=128,
        evaluation_steps=200,
    )
    """Hyperparameters of DQN."""


def environment(config: Config) -> rl.Environment:
    environment = rl.mountain_car(max_steps=config.episode_steps)
    return rl.wrappers.rescale_observations(environment)  # velocities are 20 times smaller than positions


def agent(config: Config, environment: rl.Environment) -> foldax.Learner:
    """The agent in an environment, which studies may change."""
    return learners.dqn(
        environment,
        models.QNetwork(environment.action_space.num, hidden=config.hidden, dueling=True),
        optax.adam(optax.linear_schedule(config.learning_rate, 0.0, config.steps)),
        config.dqn,
        environment_steps=config.environment_steps,
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        learning_starts=config.learning_starts,
    )


def learner(config: Config, info: None) -> foldax.Learner:
    return agent(config, environment(config))


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
