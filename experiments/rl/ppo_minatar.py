"""MinAtar's games (Young & Tian, 2019), images of 10 x 10 cells, by proximal policy optimisation.

    foldax run experiments/rl/ppo_minatar.py
    foldax run experiments/rl/ppo_minatar.py --environment-steps 10000000

Breakout, returns of the training episodes that ended in the last ten updates, over seeds 0 to 7:

    steps                  82k   164k   328k   492k   655k   819k   999k
    mean                   1.3    5.9   15.5   21.6   26.2   29.3   33.1
    standard deviation     0.0    0.1    1.3    2.4    4.2    5.3    6.9

Greedy returns of 64 episodes (`test/return`) after a million steps: 36.1, standard deviation 14.8 over seeds 8 to 15
(from 23.4 to 62.7; 35.5 and 8.3 over seeds 0 to 7). A sweep of 8 (`--exact --seed 8 --seeds 8`) took 818 s on 2 shared
CPU cores. 10M steps are for a GPU and were not run.
"""

from typing import Literal

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 1_000_000
    num_envs: int = 64
    rollout_steps: int = 128
    log_every = 10
    game: Literal["Breakout", "Asterix", "Freeway", "SpaceInvaders", "Seaquest"] = "Breakout"
    """MinAtar's game."""
    channels: tuple[int, ...] = (16,)
    """Output channels of the convolutions that actor and critic share."""
    dense: int = 128
    """Width of the dense layer after them."""
    ppo: learners.PPOSettings = learners.PPOSettings(
        num_minibatches=8,
        evaluation_episodes=64,
        evaluation_steps=2_500,  # the longest game, Freeway
    )
    """Hyperparameters of PPO."""
    hidden: tuple[int, ...] = (64,)
    """Widths of the hidden layers of actor and critic."""
    learning_rate: float = 2.5e-3
    """Initial learning rate of Adam; falls linearly to 0."""
    max_gradient_norm: float = 0.5
    """Gradients of a larger global norm are scaled down to it."""


def environment(config: Config) -> rl.Environment:
    return rl.gymnax(f"{config.game}-MinAtar")


def agent(config: Config, environment: rl.Environment) -> foldax.Learner:
    """The agent in an environment, which studies may change."""
    gradient_steps = config.steps * config.ppo.num_epochs * config.ppo.num_minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, gradient_steps)
    encoder = models.CNN(config.dense, config.channels, pooling=None, dense=(), activate_final=True)
    return learners.ppo(
        environment,
        models.ActorCritic(environment.action_space.num, hidden=config.hidden, activation="relu", encoder=encoder),
        optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(schedule, eps=1e-5)),
        config.ppo,
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
    )


def learner(config: Config, info: None) -> foldax.Learner:
    return agent(config, environment(config))


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
