"""CartPole by a deep Q-network, with the settings that CleanRL reports.

    foldax run experiments/rl/dqn_cartpole.py

Returns of 8 runs, seeds 0 to 7, mean and standard deviation: of training over the last 50,000 of 500,000 steps (100
episodes; epsilon 0.05) 499.4 and 1.7 (CleanRL reports 488.7 and 498.4); greedy, of 16 episodes (`test/return`), 500.0
and 0.

A sweep of these 8 (`--exact --seeds 8`) took 455 s with compiling on 2 CPU cores that much else was using.

Within 50,000 steps, the state of the best validation episodes: greedy 500.0 and 0 over the same seeds (17 s for 8):

    foldax run experiments/rl/dqn_cartpole.py --environment-steps 50000 --start-steps 1000 --rollout-steps 2 \\
        --batch-size 64 --capacity 50000 --learning-rate 1e-3 --exploration 0.2 --target-period 100 --double True \\
        --keep best --evaluate-every 500
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.Interaction):
    environment_steps: int = 500_000
    start_steps: int = 10_000
    num_envs: int = 1
    rollout_steps: int = 10
    batch_size: int = 128
    """Transitions in an update's descent."""
    capacity: int = 10_000
    """Transitions that are remembered."""
    hidden: tuple[int, ...] = (120, 84)
    """Widths of the hidden layers."""
    learning_rate: float = 2.5e-4
    """Of Adam."""
    discount: float = 0.99
    """Of a reward one step later."""
    epsilon: float = 0.05
    """Probability of a random action in the end."""
    exploration: float = 0.5
    """Share of the environment's steps in which it falls from 1 to that."""
    target_period: int = 500
    """Steps of the environment between copies of the network to the target."""
    double: bool = False
    """Whether the network chooses the next action that the target judges."""
    dueling: bool = False
    """Whether the network tells what the state is worth from what each action adds to it."""


def environment(config: Config) -> rl.Environment:
    return rl.gymnax("CartPole-v1")


def agent(config: Config, world: rl.Environment) -> foldax.Learner:
    """Returns the learner of a world."""
    return learners.dqn(
        world,
        models.QNetwork(world.actions.num, hidden=config.hidden, dueling=config.dueling),
        optax.adam(config.learning_rate),
        memory=learners.Memory(config.capacity),
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        start=config.start_steps,
        batch_size=config.batch_size,
        discount=config.discount,
        epsilon=config.epsilon,
        epsilon_steps=config.exploration * config.environment_steps,
        target_period=config.target_period,
        double=config.double,
    )


def learner(config: Config, info: None) -> foldax.Learner:
    return agent(config, environment(config))


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
