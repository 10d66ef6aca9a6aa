"""Robots of MuJoCo Playground, simulated on the device, by proximal policy optimisation (extra `robotics`).

    foldax run experiments/rl/ppo_playground.py

CartpoleBalance, whose maximum return is 1000: greedy returns of 16 episodes of 1,000 steps (`test/return`) 997.9,
standard deviation 3.6 over seeds 8 to 15, after a million steps. A sweep of 8 (`--exact --seed 8 --seeds 8`) took 83 s
on 2 CPU cores, half of it compiling.

    foldax run experiments/rl/ppo_playground.py --environment-name CartpoleSwingup --environment-steps 2000000

CartpoleSwingup: training episodes came to 697 after a million steps and fell to 435 after two, greedy 436 (seed 0).
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 1_000_000
    num_envs: int = 64
    rollout_steps: int = 64
    environment_name: str = "CartpoleBalance"
    """Name in Playground, such as CartpoleSwingup, PendulumSwingup, ReacherEasy or CheetahRun."""
    ppo: learners.PPOSettings = learners.PPOSettings(
        num_minibatches=16,
        value_clip_range=None,
        entropy_coefficient=0.0,
        normalize_observations=True,
        normalize_rewards=True,
    )
    """Hyperparameters of PPO."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    learning_rate: float = 1e-3
    """Initial learning rate of Adam; falls linearly to 0."""
    max_gradient_norm: float = 0.5
    """Gradients of a larger global norm are scaled down to it."""


def environment(config: Config) -> rl.Environment:
    return rl.playground(config.environment_name)


def agent(config: Config, environment: rl.Environment) -> foldax.Learner:
    """The agent in an environment, which studies may change."""
    gradient_steps = config.steps * config.ppo.num_epochs * config.ppo.num_minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, gradient_steps)
    return learners.ppo(
        environment,
        models.ActorCritic(environment.action_space.shape[0], continuous=True, hidden=config.hidden),
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
