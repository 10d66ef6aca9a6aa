"""CartPole by a parallelised Q-network (PQN), without replay buffer and target network.

    foldax run experiments/rl/pqn_cartpole.py

Greedy returns (`test/return`, 16 episodes each) over the seeds 8 to 15: 500 for all. The learning rate was chosen with
the seeds 0 to 2 among 2.5e-4, 5e-4 and 1e-3, of which the chosen one gave 500 for all.
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 500_000
    num_envs: int = 32
    rollout_steps: int = 64
    pqn: learners.PQNSettings = learners.PQNSettings(num_epochs=4, num_minibatches=16, lambda_=0.95)
    """Hyperparameters of PQN."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers, each with layer normalisation."""
    learning_rate: float = 5e-4
    """Initial learning rate of RAdam; falls linearly to 0."""
    max_gradient_norm: float = 10.0
    """Gradients of a larger global norm are scaled down to it."""


def environment(config: Config) -> rl.Environment:
    return rl.cartpole()


def learner(config: Config, info: None) -> foldax.Learner:
    gradient_steps = config.steps * config.pqn.num_epochs * config.pqn.num_minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, gradient_steps)
    return learners.pqn(
        environment(config),
        models.QNetwork(2, hidden=config.hidden, normalization="layer"),
        optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.radam(schedule)),
        config.pqn,
        environment_steps=config.environment_steps,
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
    )


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
