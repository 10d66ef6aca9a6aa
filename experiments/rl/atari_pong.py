"""Pong, and Atari's other games, by proximal policy optimisation from pixels (pip install 'foldax[atari]').

    foldax run experiments/rl/atari_pong.py

Made for a GPU: an update of the defaults takes 0.9 TFLOP, 24 s on 2 busy CPU cores, so that 10 million steps (40
million frames) take days there; no GPU has run it yet, and the defaults have no score. What was seen on the CPU is that
it learns, starts, stops and goes on, with a smaller network and one seed (0):

    foldax run experiments/rl/atari_pong.py --size 64 --channels 16 32 32 --dense 256 --learning-rate 5e-4
        --environment-steps 3000000 --evaluate-every 0

Returns of training episodes, from -21 to 21, means of the 150,000 steps before:

    steps       150k   500k  1000k  1500k  2000k  2500k  3000k
    return     -20.4  -20.2  -16.9  -15.8  -13.8  -11.2  -10.2

Greedy, 8 test episodes (`test/return`) came to -7.4. It took 80 minutes on 2 CPU cores that other programs used too;
alone it takes 1,450 steps/s. The games are not saved: a run that is resumed begins new ones.
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.Interaction):
    game: str = "Pong"
    """A name of ale-py's, as in "ALE/Pong-v5"."""
    environment_steps: int = 10_000_000
    num_envs: int = 8
    rollout_steps: int = 128
    log_every: int = 10
    evaluate_every: int = 500
    evaluation_episodes: int = 8
    """Greedy episodes of an evaluation, played at once."""
    evaluation_steps: int = 27_000
    """Most of each: half an hour of play."""
    size: int = 84
    """Pixels along the sides of an image; 42 is a small network's."""
    channels: tuple[int, ...] = (32, 64, 64)
    """Of the convolutions."""
    dense: int = 512
    """Width of the layer after them."""
    epochs: int = 4
    """How often the steps of an update are worked through."""
    minibatches: int = 4
    """Parts of them."""
    learning_rate: float = 2.5e-4
    """At first; it falls to 0 in a straight line."""
    discount: float = 0.99
    """Of a reward one step later."""
    trace_decay: float = 0.95
    """Lambda of the advantages (GAE)."""
    clip: float = 0.1
    """How far a step may change an action's probability, as a share, and a value."""
    entropy_weight: float = 0.01
    """Of the policy's entropy in the loss."""
    max_gradient_norm: float = 0.5
    """Gradients with a larger one are scaled down to it."""


def dataset(config: Config) -> rl.Host:
    return rl.gymnasium(
        f"ale_py:ALE/{config.game}-v5",
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        mode="vector_entry_point",  # ale-py's own: frames are skipped, shrunk and stacked in its threads
        img_height=config.size,
        img_width=config.size,
        evaluation_options=dict(reward_clipping=False),
        evaluation_episodes=config.evaluation_episodes,
        evaluation_steps=config.evaluation_steps,
    )


def learner(config: Config, info: rl.HostFacts) -> foldax.Learner:
    descents = config.steps * config.epochs * config.minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, descents)
    encoder = models.NatureCNN(config.dense, config.channels, channels_first=True)
    return learners.ppo(
        info,
        models.ActorCritic(info.actions.num, hidden=(), encoder=encoder),
        optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(schedule, eps=1e-5)),
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        epochs=config.epochs,
        minibatches=config.minibatches,
        discount=config.discount,
        trace_decay=config.trace_decay,
        surrogate=learners.Surrogate(config.clip, config.clip, config.entropy_weight),
    )


experiment = foldax.Experiment(Config, learner, dataset)

if __name__ == "__main__":
    foldax.main(experiment)
