"""CartPole by proximal policy optimisation, with the settings that CleanRL and PureJaxRL report.

    foldax run experiments/rl/ppo_cartpole.py

Returns of 8 runs, seeds 0 to 7 (`foldax sweep experiments/rl/ppo_cartpole.py --exact --seeds 8`), mean and standard
deviation:

    settings                  steps    last 125 episodes of training    greedy
    these                   500,000                        500.0 ± 0   500 ± 0
    tuned for 100k steps     99,840                                    500 ± 0

Training's are actions that are drawn, of the last 122 updates (`train/return`; CleanRL reports 490, PureJaxRL 490.2);
greedy ones are 16 episodes of each seed (`test/return`). The tuned settings:

    foldax run experiments/rl/ppo_cartpole.py --environment-steps 100000 --num-envs 8 --rollout-steps 32 --epochs 20 \\
        --minibatches 1 --learning-rate 1e-3 --trace-decay 0.8 --discount 0.98 --entropy-weight 0

A lone run makes about 125,000 steps of the environment a second on 2 CPU cores, so that it takes 4 s beside compiling.
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.Interaction):
    environment_steps: int = 500_000
    num_envs: int = 4
    rollout_steps: int = 128
    log_every = 122  # of 976 updates: the last line is of about 125 episodes
    epochs: int = 4
    """How often the steps of an update are worked through."""
    minibatches: int = 4
    """Parts of them."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    learning_rate: float = 2.5e-4
    """At first; it falls to 0 in a straight line."""
    discount: float = 0.99
    """Of a reward one step later."""
    trace_decay: float = 0.95
    """Lambda of the advantages (GAE)."""
    clip: float = 0.2
    """How far a step may change an action's probability, as a share, and a value."""
    entropy_weight: float = 0.01
    """Of the policy's entropy in the loss."""
    max_gradient_norm: float = 0.5
    """Gradients with a larger one are scaled down to it."""


def environment(config: Config) -> rl.Environment:
    return rl.gymnax("CartPole-v1")


def agent(config: Config, world: rl.Environment) -> foldax.Learner:
    """Returns the learner of a world."""
    descents = config.steps * config.epochs * config.minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, descents)
    return learners.ppo(
        world,
        models.ActorCritic(world.actions.num, hidden=config.hidden),
        optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(schedule, eps=1e-5)),
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        epochs=config.epochs,
        minibatches=config.minibatches,
        discount=config.discount,
        trace_decay=config.trace_decay,
        surrogate=learners.Surrogate(config.clip, config.clip, config.entropy_weight),
    )


def learner(config: Config, info: None) -> foldax.Learner:
    return agent(config, environment(config))


experiment = foldax.Experiment(Config, learner, environment=environment)

if __name__ == "__main__":
    foldax.main(experiment)
