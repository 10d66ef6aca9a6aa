"""Acrobot, which must swing its end above the bar, by proximal policy optimisation.

    foldax run experiments/rl/ppo_acrobot.py

Greedy returns of 100 episodes (`test/return`): -78.5, standard deviation 1.4 over seeds 0 to 7, after 500,000 steps.
A sweep of these 8 (`--exact --seeds 8`) took 269 s with compiling on 2 CPU cores that others used too. With 8
minibatches, rate 1e-3 and weight 0.01 of the entropy: -82.8, deviation 4.0.
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.Interaction):
    environment_steps: int = 500_000
    num_envs: int = 16
    rollout_steps: int = 128
    epochs: int = 4
    """How often the steps of an update are worked through."""
    minibatches: int = 32
    """Parts of them."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    learning_rate: float = 5e-4
    """At first; it falls to 0 in a straight line."""
    discount: float = 0.99
    """Of a reward one step later."""
    trace_decay: float = 0.95
    """Lambda of the advantages (GAE)."""
    clip: float = 0.2
    """How far a step may change an action's probability, as a share."""
    entropy_weight: float = 0.0
    """Of the policy's entropy in the loss."""
    max_gradient_norm: float = 0.5
    """Gradients with a larger one are scaled down to it."""
    scaled: bool = True
    """Whether observations and rewards are scaled by their running moments."""


def environment(config: Config) -> rl.Environment:
    return rl.gymnax("Acrobot-v1")


def agent(config: Config, world: rl.Environment) -> foldax.Learner:
    """Returns the learner of a world."""
    descents = config.steps * config.epochs * config.minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, descents)
    return learners.ppo(
        world,
        models.ActorCritic(world.actions.num, hidden=config.hidden),
        optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(schedule, eps=1e-5)),
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        epochs=config.epochs,
        minibatches=config.minibatches,
        discount=config.discount,
        trace_decay=config.trace_decay,
        surrogate=learners.Surrogate(config.clip, None, config.entropy_weight),
        scale_observations=config.scaled,
        scale_rewards=config.scaled,
        evaluation_episodes=100,
        evaluation_steps=500,
    )


def learner(config: Config, info: None) -> foldax.Learner:
    return agent(config, environment(config))


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
