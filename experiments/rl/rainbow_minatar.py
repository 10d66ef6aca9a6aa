"""MinAtar's games (Young & Tian, 2019) by Rainbow (Hessel et al., 2018): all parts of Q-learning at once.

    foldax run experiments/rl/rainbow_minatar.py
    foldax run experiments/rl/rainbow_minatar.py --game Asterix

Breakout, greedy returns of 16 episodes (`test/return`): 7.0, standard deviation 1.1 over seeds 0 to 7, after 200,000
steps (`--environment-steps 200000`). A sweep of these 8 (`--exact --seeds 8`) took 1,089 s on 2 CPU cores that other
programs used too. A million steps, the default, are made for a GPU and were not run.
"""

from typing import Literal

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.Interaction):
    environment_steps: int = 1_000_000
    start_steps: int = 5_000
    num_envs: int = 8
    rollout_steps: int = 1
    log_every = 1_000
    game: Literal["Breakout", "Asterix", "Freeway", "SpaceInvaders", "Seaquest"] = "Breakout"
    """Which one."""
    batch_size: int = 64
    """Transitions in an update's descent."""
    capacity: int = 100_000
    """Transitions that are remembered."""
    bootstrap_steps: int = 3
    """Rewards that are summed before the next value is asked for."""
    channels: tuple[int, ...] = (16,)
    """Of the convolutions."""
    dense: int = 128
    """Width of the dense layer after them."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the noisy hidden layers, of the state's value and of the actions' gains each."""
    atoms: int = 51
    """Values from `low` to `high`, of whose probabilities a return is made."""
    low: float = foldax.structural(-1.0)
    """The smallest of them."""
    high: float = foldax.structural(20.0)
    """The largest of them."""
    learning_rate: float = 2.5e-4
    """Of Adam."""
    discount: float = 0.99
    """Of a reward one step later."""
    target_period: int = 8_000
    """Steps of the environment between copies of the network to the target."""
    exponent: float = 0.5
    """Of priorities."""


def environment(config: Config) -> rl.Environment:
    return rl.gymnax(f"{config.game}-MinAtar")


def agent(config: Config, world: rl.Environment) -> foldax.Learner:
    """Returns the learner of a world."""
    head = learners.heads.categorical(config.atoms, config.low, config.high)
    encoder = models.CNN(config.dense, config.channels, pooling=None, dense=(), activate_final=True)
    return learners.dqn(
        world,
        models.QNetwork(world.actions.num, head.width, config.hidden, dueling=True, noisy=True, encoder=encoder),
        optax.adam(config.learning_rate, eps=1.5e-4),
        head=head,
        memory=learners.Memory(
            config.capacity,
            config.bootstrap_steps,
            prioritized=True,
            exponent=config.exponent,
            correction_steps=config.environment_steps,
        ),
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        start=config.start_steps,
        batch_size=config.batch_size,
        discount=config.discount,
        epsilon=0.0,  # noisy layers explore
        epsilon_steps=0.0,
        target_period=config.target_period,
        double=True,
        evaluation_steps=2_500,  # the longest game, Freeway
    )


def learner(config: Config, info: None) -> foldax.Learner:
    return agent(config, environment(config))


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
