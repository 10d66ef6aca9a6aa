"""Pendulum, which has continuous actions, by proximal policy optimisation with normalised observations and rewards.

    foldax run experiments/rl/ppo_pendulum.py

Greedy returns of 100 episodes (`test/return`): -174.3, standard deviation 9.9 over seeds 0 to 7, after 200,000 steps,
and -235 with 107 over seeds 8 to 15, which chose no setting: four of them end between -217 and -487 (seed 10).
A sweep of 8 (`--exact --seed 8 --seeds 8`) took 68 s with compilation on 2 shared CPU cores.
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 200_000
    num_envs: int = 8
    rollout_steps: int = 256
    ppo: learners.PPOSettings = learners.PPOSettings(
        num_epochs=10,
        num_minibatches=32,
        discount=0.9,
        value_clip_range=None,
        entropy_coefficient=0.0,
        normalize_observations=True,
        normalize_rewards=True,
        evaluation_episodes=100,
        evaluation_steps=200,
    )
    """Hyperparameters of PPO."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    learning_rate: float = 1e-3
    """Initial learning rate of Adam; falls linearly to 0."""
    max_gradient_norm: float = 0.5
    """Gradients of a larger global norm are scaled down to it."""


def environment(config: Config) -> rl.Environment:
    return rl.pendulum()


def agent(config: Config, environment: rl.Environment) -> foldax.Learner:
    """The agent in an environment, which studies may change."""
    gradient_steps = config.steps * config.ppo.num_epochs * config.ppo.num_minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, gradient_steps)
    return learners.ppo(
        environment,
        models.ActorCritic(1, continuous=True, hidden=config.hidden),
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
