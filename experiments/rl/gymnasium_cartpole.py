"""CartPole of Gymnasium, stepped on the host, by proximal policy optimisation (extra `gymnasium`).

    foldax run experiments/rl/gymnasium_cartpole.py

Greedy test return over 100,000 steps of the environments, 32 episodes of each seed: 500.0 of 500 with every one of the
seeds 0 to 7 (standard deviation 0). A run takes 30 s on 2 CPU cores, of which 14 are compiling; about 7,000 steps of
the environments a second, where the host's steps and the network's take turns. The environments are not saved: a run
that is resumed begins new episodes there.
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.Interaction):
    environment_steps: int = 100_000
    num_envs: int = 8
    rollout_steps: int = 64
    log_every: int = 10
    epochs: int = 10
    """How often the steps of an update are worked through."""
    minibatches: int = 4
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
    max_gradient_norm: float = 0.5
    """Gradients with a larger one are scaled down to it."""


def dataset(config: Config) -> rl.Host:
    return rl.gymnasium(
        "CartPole-v1", num_envs=config.num_envs, rollout_steps=config.rollout_steps, evaluation_episodes=32
    )


def learner(config: Config, info: rl.HostFacts) -> foldax.Learner:
    descents = config.steps * config.epochs * config.minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, descents)
    return learners.ppo(
        info,
        models.ActorCritic(info.actions.num, hidden=config.hidden),
        optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(schedule, eps=1e-5)),
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        epochs=config.epochs,
        minibatches=config.minibatches,
        discount=config.discount,
        trace_decay=config.trace_decay,
        surrogate=learners.Surrogate(config.clip, None, 0.0),
    )


experiment = foldax.Experiment(Config, learner, dataset)

if __name__ == "__main__":
    foldax.main(experiment)
