"""HalfCheetah of MuJoCo, stepped on the host, by proximal policy optimisation (pip install 'foldax[mujoco]').

    foldax run experiments/rl/halfcheetah.py

Observations and rewards are scaled by what the learner has seen of them. Greedy return of 8 test episodes
(`test/return`) after a million steps of the environments: 2,074, standard deviation 815 over seeds 0 to 7 (from 1,545
to 4,068). A sweep of these 8 (`--exact --seeds 8`) took 619 s on 2 CPU cores. After 300,000 (`--environment-steps
300000`, with a learning rate that falls to 0 by then): 1,154 and 884. Other processors round otherwise, and their runs
part soon. The simulations are not saved: a run that is resumed begins new episodes.
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.Interaction):
    environment_steps: int = 1_000_000
    num_envs: int = 8
    rollout_steps: int = 256
    log_every: int = 5
    evaluate_every: int = 50
    evaluation_episodes: int = 8
    """Greedy episodes of an evaluation, played at once."""
    epochs: int = 10
    """How often the steps of an update are worked through."""
    minibatches: int = 32
    """Parts of them."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    learning_rate: float = 3e-4
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
    sizes = dict(num_envs=config.num_envs, rollout_steps=config.rollout_steps)
    return rl.gymnasium("HalfCheetah-v5", **sizes, evaluation_episodes=config.evaluation_episodes)


def learner(config: Config, info: rl.HostFacts) -> foldax.Learner:
    descents = config.steps * config.epochs * config.minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, descents)
    return learners.ppo(
        info,
        models.ActorCritic(info.actions.shape[0], continuous=True, hidden=config.hidden),
        optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(schedule, eps=1e-5)),
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        epochs=config.epochs,
        minibatches=config.minibatches,
        discount=config.discount,
        trace_decay=config.trace_decay,
        surrogate=learners.Surrogate(config.clip, None, 0.0),
        scale_observations=True,
        scale_rewards=True,
    )


experiment = foldax.Experiment(Config, learner, dataset)

if __name__ == "__main__":
    foldax.main(experiment)
