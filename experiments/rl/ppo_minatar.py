"""MinAtar's games (Young & Tian, 2019) by proximal policy optimisation, from their pictures of 10 x 10 cells.

    foldax run experiments/rl/ppo_minatar.py
    foldax run experiments/rl/ppo_minatar.py --environment-steps 10000000

Breakout, returns of the training episodes that ended in the last ten updates, over seeds 0 to 7:

    steps         82k   164k   328k   492k   655k   819k   999k
    mean          1.3    5.9   15.5   21.6   26.2   29.3   33.1
    deviation     0.0    0.1    1.3    2.4    4.2    5.3    6.9

Greedy returns of 64 episodes (`test/return`) after a million steps: 35.5, standard deviation 8.3 over these seeds (from
21.6 to 45.4). A sweep of the 8 (`--exact --seeds 8`) took 818 s on 2 CPU cores that other programs used too. 10M steps
are for a GPU and were not run.
"""

from typing import Literal

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.Interaction):
    environment_steps: int = 1_000_000
    num_envs: int = 64
    rollout_steps: int = 128
    log_every = 10
    game: Literal["Breakout", "Asterix", "Freeway", "SpaceInvaders", "Seaquest"] = "Breakout"
    """Which one."""
    epochs: int = 4
    """How often the steps of an update are worked through."""
    minibatches: int = 8
    """Parts of them."""
    channels: tuple[int, ...] = (16,)
    """Of the convolutions that actor and critic share."""
    dense: int = 128
    """Width of the dense layer after them."""
    hidden: tuple[int, ...] = (64,)
    """Widths of the hidden layers of actor and critic."""
    learning_rate: float = 2.5e-3
    """At first; it falls to 0 in a straight line."""
    discount: float = 0.99
    """Of a reward one step later."""
    trace_decay: float = 0.95
    """Lambda of the advantages (GAE)."""
    clip: float = 0.2
    """How far a step may change an action's probability, as a share, and a value."""
    entropy_weight: float = 0.01
    """Of the policy's entropy in the loss."""
    max_gradient_norm: float = 0.5
    """Gradients with a larger one are scaled down to it."""


def environment(config: Config) -> rl.Environment:
    return rl.gymnax(f"{config.game}-MinAtar")


def agent(config: Config, world: rl.Environment) -> foldax.Learner:
    """Returns the learner of a world."""
    descents = config.steps * config.epochs * config.minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, descents)
    encoder = models.CNN(config.dense, config.channels, pooling=None, dense=(), activate_final=True)
    return learners.ppo(
        world,
        models.ActorCritic(world.actions.num, hidden=config.hidden, activation="relu", encoder=encoder),
        optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(schedule, eps=1e-5)),
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        epochs=config.epochs,
        minibatches=config.minibatches,
        discount=config.discount,
        trace_decay=config.trace_decay,
        surrogate=learners.Surrogate(config.clip, config.clip, config.entropy_weight),
        evaluation_episodes=64,
        evaluation_steps=2_500,  # the longest game, Freeway
    )


def learner(config: Config, info: None) -> foldax.Learner:
    return agent(config, environment(config))


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
