"""Acrobot, which must swing its tip above a line, by proximal policy optimisation.

    foldax run experiments/rl/ppo_acrobot.py

Greedy returns of 100 episodes (`test/return`): -78.0, standard deviation 1.9 over seeds 8 to 15, after 500,000 steps.
A sweep of these 8 (`--exact --seed 8 --seeds 8`) took 73 s with compilation on 2 shared CPU cores. With 8 minibatches,
a learning rate of 1e-3 and an entropy coefficient of 0.01: -78.7, standard deviation 3.2 (seeds 0 to 7).
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 500_000
    num_envs: int = 16
    rollout_steps: int = 128
    ppo: learners.PPOSettings = learners.PPOSettings(
        num_minibatches=32,
        value_clip_range=None,
        entropy_coefficient=0.0,
        normalize_observations=True,
        normalize_rewards=True,
        evaluation_episodes=100,
        evaluation_steps=500,
    )
    """Hyperparameters of PPO."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    learning_rate: float = 5e-4
    """Initial learning rate of Adam; falls linearly to 0."""
    max_gradient_norm: float = 0.5
    """Gradients of a larger global norm are scaled down to it."""


def environment(config: Config) -> rl.Environment:
    return rl.acrobot()


def agent(config: Config, environment: rl.Environment) -> foldax.Learner:
    """The agent in an environment, which studies may change."""
    gradient_steps = config.steps * config.ppo.num_epochs * config.ppo.num_minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, gradient_steps)
    return learners.ppo(
        environment,
        models.ActorCritic(environment.action_space.num, hidden=config.hidden),
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
