"""Robots of MuJoCo Playground, simulated on the device, by proximal policy optimisation (extra `robotics`).

    foldax run experiments/rl/ppo_playground.py

CartpoleBalance, which is worth 1000 at most: greedy returns of 16 episodes of 1,000 steps (`test/return`) 996.7,
standard deviation 3.7 over seeds 0 to 7, after a million steps. A sweep of these 8 (`--exact --seeds 8`) took 83 s on
2 CPU cores, half of it compiling.

    foldax run experiments/rl/ppo_playground.py --world CartpoleSwingup --environment-steps 2000000

CartpoleSwingup: training episodes came to 697 after a million steps and fell to 435 after two, greedy 436 (seed 0).
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.Interaction):
    environment_steps: int = 1_000_000
    num_envs: int = 64
    rollout_steps: int = 64
    world: str = "CartpoleBalance"
    """Name of Playground's environment, such as CartpoleSwingup, PendulumSwingup, ReacherEasy or CheetahRun."""
    epochs: int = 4
    """How often the steps of an update are worked through."""
    minibatches: int = 16
    """Parts of them."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    learning_rate: float = 1e-3
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
    evaluation_episodes: int = 16
    """Played at once, each of 1,000 steps."""


def environment(config: Config) -> rl.Environment:
    return rl.playground(config.world)


def agent(config: Config, world: rl.Environment) -> foldax.Learner:
    """Returns the learner of a world."""
    descents = config.steps * config.epochs * config.minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, descents)
    return learners.ppo(
        world,
        models.ActorCritic(world.actions.shape[0], continuous=True, hidden=config.hidden),
        optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(schedule, eps=1e-5)),
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        epochs=config.epochs,
        minibatches=config.minibatches,
        discount=config.discount,
        trace_decay=config.trace_decay,
        surrogate=learners.Surrogate(config.clip, None, config.entropy_weight),
        scale_observations=True,
        scale_rewards=True,
        evaluation_episodes=config.evaluation_episodes,
        evaluation_steps=1_000,
    )


def learner(config: Config, info: None) -> foldax.Learner:
    return agent(config, environment(config))


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
