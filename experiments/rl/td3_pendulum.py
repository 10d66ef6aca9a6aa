"""Pendulum, whose action is continuous, by twin delayed deep deterministic policy gradients (TD3).

    foldax run experiments/rl/td3_pendulum.py

Greedy return over 128 episodes (`test/return`): -145.6, standard deviation 5.8 over seeds 8 to 15, after 20,000 steps.
A sweep of these 8 (`--exact --seed 8 --seeds 8`) took 189 s with compilation on 2 CPU cores shared with other programs.
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 20_000
    learning_starts: int = 1_000
    num_envs: int = 1
    rollout_steps: int = 2
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critics."""
    learning_rate: float = 1e-3
    """Of Adam, for actor and critics."""
    td3: learners.TD3Settings = learners.TD3Settings(
        batch_size=128,
        discount=0.98,
        tau=0.01,
        replay=learners.ReplaySettings(capacity=20_000),
        evaluation_episodes=128,
        evaluation_steps=200,
    )
    """Hyperparameters of TD3."""


def environment(config: Config) -> rl.Environment:
    return rl.pendulum()


def agent(config: Config, environment: rl.Environment) -> foldax.Learner:
    """The agent in an environment, which studies may change."""
    return learners.td3(
        environment,
        models.DeterministicActor(1, config.hidden),
        models.TwinCritic(config.hidden),
        optax.adam(config.learning_rate),
        optax.adam(config.learning_rate),
        config.td3,
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        learning_starts=config.learning_starts,
        environment_steps=config.environment_steps,
    )


def learner(config: Config, info: None) -> foldax.Learner:
    return agent(config, environment(config))


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
