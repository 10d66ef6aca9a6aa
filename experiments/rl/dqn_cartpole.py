"""CartPole by a deep Q-network, with the settings that CleanRL reports.

    foldax run experiments/rl/dqn_cartpole.py

Returns over 8 runs, seeds 0 to 7, as mean and standard deviation: in training over the last 50,000 of 500,000 steps
(100 episodes, epsilon 0.05) 499.4 and 1.7 (CleanRL reports 488.7 and 498.4); greedy, over 16 episodes (`test/return`)
and seeds 8 to 15, 499.7 and 0.8.

A sweep of these 8 (`--exact --seeds 8`) took 455 s with compilation on 2 CPU cores shared with other programs.

Within 50,000 steps, keeping the state of the best validation episodes: greedy 500.0 and 0 over the same seeds (17 s for
all 8):

    foldax run experiments/rl/dqn_cartpole.py --environment-steps 50000 --learning-starts 1000 --rollout-steps 2 \\
        --learning-rate 1e-3 --dqn.batch-size 64 --dqn.replay.capacity 50000 --dqn.exploration-fraction 0.2 \\
        --dqn.target-update-period 100 --dqn.double --keep best --evaluate-every 500
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 500_000
    learning_starts: int = 10_000
    num_envs: int = 1
    rollout_steps: int = 10
    hidden: tuple[int, ...] = (120, 84)
    """Widths of the hidden layers."""
    dueling: bool = False
    """Whether the network has separate streams for the state value and the advantages."""
    learning_rate: float = 2.5e-4
    """Of Adam."""
    dqn: learners.DQNSettings = learners.DQNSettings()
    """Hyperparameters of DQN; the defaults are CleanRL's."""


def environment(config: Config) -> rl.Environment:
    return rl.cartpole()


def agent(config: Config, environment: rl.Environment) -> foldax.Learner:
    """The agent in an environment, which studies may change."""
    return learners.dqn(
        environment,
        models.QNetwork(environment.action_space.num, hidden=config.hidden, dueling=config.dueling),
        optax.adam(config.learning_rate),
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
