"""HalfCheetah of MuJoCo, stepped on the host, by proximal policy optimisation (pip install 'foldax[mujoco]').

    foldax run experiments/rl/halfcheetah.py

Observations and rewards are normalised by their running statistics. Greedy return of 8 test episodes (`test/return`)
after a million environment steps: 2,187, standard deviation 716 over seeds 8 to 15 (from 1,640 to 3,496). A sweep of 8
(`--exact --seed 8 --seeds 8`) took 619 s on 2 CPU cores. After 300,000 (`--environment-steps 300000`, with a learning
rate that falls to 0 by then): 1,154 and 884 over seeds 0 to 7. Other processors round differently, and their runs
diverge soon. The simulations are not saved: a resumed run starts new episodes.
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 1_000_000
    num_envs: int = 8
    rollout_steps: int = 256
    log_every: int = 5
    evaluate_every: int = 50
    ppo: learners.PPOSettings = learners.PPOSettings(
        num_epochs=10,
        num_minibatches=32,
        value_clip_range=None,
        entropy_coefficient=0.0,
        normalize_observations=True,
        normalize_rewards=True,
        evaluation_episodes=8,
    )
    """Hyperparameters of PPO."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    learning_rate: float = 3e-4
    """Initial learning rate of Adam; falls linearly to 0."""
    max_gradient_norm: float = 0.5
    """Gradients of a larger global norm are scaled down to it."""


def dataset(config: Config) -> rl.HostEnvironment:
    return rl.gymnasium(
        "HalfCheetah-v5",
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        evaluation_episodes=config.ppo.evaluation_episodes,
    )


def learner(config: Config, info: rl.HostSpec) -> foldax.Learner:
    gradient_steps = config.steps * config.ppo.num_epochs * config.ppo.num_minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, gradient_steps)
    return learners.ppo(
        info,
        models.ActorCritic(info.action_space.shape[0], continuous=True, hidden=config.hidden),
        optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(schedule, eps=1e-5)),
        config.ppo,
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
    )


experiment = foldax.Experiment(Config, learner, dataset)

if __name__ == "__main__":
    foldax.main(experiment)
