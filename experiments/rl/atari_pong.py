"""Pong, and Atari's other games, by proximal policy optimisation from pixels (pip install 'foldax[atari]').

    foldax run experiments/rl/atari_pong.py

Meant for a GPU: an update with the defaults takes 0.9 TFLOP, 24 s on 2 busy CPU cores, so that 10 million steps (40
million frames) take days there. It has not run on a GPU yet, and the defaults have no score. On the CPU it was shown to
learn, stop and resume, with a smaller network and one seed (0):

    foldax run experiments/rl/atari_pong.py --size 64 --channels 16 32 32 --dense 256 --learning-rate 5e-4 \\
        --environment-steps 3000000 --evaluate-every 0

Returns of training episodes, between -21 and 21, averaged over the last 150,000 steps:

    steps       150k   500k  1000k  1500k  2000k  2500k  3000k
    return     -20.4  -20.2  -16.9  -15.8  -13.8  -11.2  -10.2

The greedy return of 8 test episodes (`test/return`) was -7.4. This took 80 minutes on 2 CPU cores shared with other
programs; alone it runs at 1,450 steps/s. The games are not saved: a resumed run starts new ones.
"""

import optax

import foldax
from foldax import learners, models, rl


@foldax.config
class Config(foldax.RLTraining):
    game: str = "Pong"
    """Name of the game in ale-py, as in "ALE/Pong-v5"."""
    environment_steps: int = 10_000_000
    num_envs: int = 8
    rollout_steps: int = 128
    log_every: int = 10
    evaluate_every: int = 500
    size: int = 84
    """Height and width of an image in pixels; 42 suits a small network."""
    channels: tuple[int, ...] = (32, 64, 64)
    """Output channels of the convolutions."""
    dense: int = 512
    """Width of the dense layer after them."""
    ppo: learners.PPOSettings = learners.PPOSettings(
        clip_range=0.1,
        value_clip_range=0.1,
        evaluation_episodes=8,
        evaluation_steps=27_000,  # half an hour of play
    )
    """Hyperparameters of PPO."""
    learning_rate: float = 2.5e-4
    """Initial learning rate of Adam; falls linearly to 0."""
    max_gradient_norm: float = 0.5
    """Gradients of a larger global norm are scaled down to it."""


def dataset(config: Config) -> rl.HostEnvironment:
    return rl.gymnasium(
        f"ale_py:ALE/{config.game}-v5",
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        mode="vector_entry_point",  # ale-py skips, shrinks and stacks frames in threads of its own
        img_height=config.size,
        img_width=config.size,
        evaluation_options=dict(reward_clipping=False),
        evaluation_episodes=config.ppo.evaluation_episodes,
        evaluation_steps=config.ppo.evaluation_steps,
    )


def learner(config: Config, info: rl.HostSpec) -> foldax.Learner:
    gradient_steps = config.steps * config.ppo.num_epochs * config.ppo.num_minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, gradient_steps)
    encoder = models.NatureCNN(config.dense, config.channels, channels_first=True)
    return learners.ppo(
        info,
        models.ActorCritic(info.action_space.num, hidden=(), encoder=encoder),
        optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(schedule, eps=1e-5)),
        config.ppo,
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
    )


experiment = foldax.Experiment(Config, learner, dataset)

if __name__ == "__main__":
    foldax.main(experiment)
