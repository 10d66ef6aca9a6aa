"""MinAtar's games (Young & Tian, 2019) by Rainbow (Hessel et al., 2018): DQN with all its extensions.

    foldax run experiments/rl/rainbow_minatar.py
    foldax run experiments/rl/rainbow_minatar.py --game Asterix

Breakout, greedy return over 16 episodes (`test/return`): 7.8, standard deviation 2.0 over seeds 8 to 15 (from 4.2 to
11.3), after 200,000 steps (`--environment-steps 200000`). A sweep of 8 (`--exact --seed 8 --seeds 8`) took 1,089 s on 2
CPU cores shared with other programs. The default of a million steps is meant for a GPU and was not run.
"""

from typing import Literal

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 1_000_000
    learning_starts: int = 5_000
    num_envs: int = 8
    rollout_steps: int = 1
    log_every = 1_000
    game: Literal["Breakout", "Asterix", "Freeway", "SpaceInvaders", "Seaquest"] = "Breakout"
    """Game of MinAtar."""
    channels: tuple[int, ...] = (16,)
    """Channels of the convolutions."""
    dense: int = 128
    """Width of the dense layer after them."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the noisy hidden layers in each dueling stream."""
    num_atoms: int = 51
    """Atoms of the categorical return distribution."""
    v_min: float = foldax.structural(-1.0)
    """Return of the lowest atom."""
    v_max: float = foldax.structural(20.0)
    """Return of the highest atom."""
    learning_rate: float = 2.5e-4
    """Of Adam."""
    dqn: learners.DQNSettings = learners.DQNSettings(
        batch_size=64,
        target_update_period=8_000,
        double=True,
        exploration_fraction=0.0,  # noisy layers explore
        final_epsilon=0.0,
        replay=learners.ReplaySettings(capacity=100_000, n_steps=3, prioritized=True, priority_exponent=0.5),
        evaluation_steps=2_500,  # the longest game, Freeway
    )
    """Hyperparameters of DQN."""


def environment(config: Config) -> rl.Environment:
    return rl.gymnax(f"{config.game}-MinAtar")


def agent(config: Config, environment: rl.Environment) -> foldax.Learner:
    """The agent in an environment, which studies may change."""
    encoder = models.CNN(config.dense, config.channels, pooling=None, dense=(), activate_final=True)
    return learners.dqn(
        environment,
        models.QNetwork(
            environment.action_space.num, config.num_atoms, config.hidden, dueling=True, noisy=True, encoder=encoder
        ),
        optax.adam(config.learning_rate, eps=1.5e-4),
        config.dqn,
        environment_steps=config.environment_steps,
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        learning_starts=config.learning_starts,
        return_distribution=learners.return_distributions.categorical(config.num_atoms, config.v_min, config.v_max),
    )


def learner(config: Config, info: None) -> foldax.Learner:
    return agent(config, environment(config))


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
