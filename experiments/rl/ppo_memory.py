"""A cue that is shown once and asked for later, by proximal policy optimisation with and without a recurrent policy.

    foldax run experiments/rl/ppo_memory.py

The environment is bsuite's MemoryChain (Osband et al., 2020): it shows a cue in the first steps, and asks for it
`length` steps later; the right answer has reward 1 and the wrong one -1. A policy without memory gets 0 at best.

Greedy returns of 100 episodes of each of 8 runs, seeds 0 to 7, after 200,000 steps, length 10 (mean and standard
deviation; `foldax sweep experiments/rl/ppo_memory.py --exact --seeds 8 --cell lstm none`):

    cell      returns
    lstm       1.00 ± 0
    none       0.02 ± 0.09

With LSTM seeds 8 to 15 (`--exact --seed 8 --seeds 8`) reach 1.00 ± 0 too.

A sweep of the 8 with LSTM took 133 s with compilation, of those without 73 s, on 2 shared CPU cores.
"""

import dataclasses
from typing import Literal

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.RLTraining):
    environment_steps: int = 200_000
    num_envs: int = 16
    rollout_steps: int = 64
    cell: Literal["lstm", "gru", "rnn", "none"] = "lstm"
    """Cell of the recurrent layer; "none": a policy without one."""
    length: int = 10
    """Steps between the cue and the question."""
    ppo: learners.PPOSettings = learners.PPOSettings(evaluation_episodes=100)
    """Hyperparameters of PPO; its minibatches are of whole sequences where the policy is recurrent."""
    hidden: tuple[int, ...] = (32,)
    """Widths of the dense layers, which come before the recurrent one if there is one."""
    width: int = 32
    """Width of the recurrent layer."""
    learning_rate: float = 3e-3
    """Initial learning rate of Adam; falls linearly to 0."""
    max_gradient_norm: float = 0.5
    """Gradients of a larger global norm are scaled down to it."""


def environment(config: Config) -> rl.Environment:
    return rl.memory_chain(length=config.length)


def learner(config: Config, info: None) -> foldax.Learner:
    memory_chain = environment(config)
    num_actions = memory_chain.action_space.num
    gradient_steps = config.steps * config.ppo.num_epochs * config.ppo.num_minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, gradient_steps)
    if config.cell == "none":
        algorithm, model = learners.ppo, models.ActorCritic(num_actions, hidden=config.hidden)
    else:
        algorithm = learners.recurrent_ppo
        model = models.RecurrentActorCritic(num_actions, hidden=config.hidden, width=config.width, cell=config.cell)
    return algorithm(
        memory_chain,
        model,
        optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(schedule, eps=1e-5)),
        dataclasses.replace(config.ppo, evaluation_steps=config.length + 2),
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
    )


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
