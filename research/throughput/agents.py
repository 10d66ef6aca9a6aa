"""How many environment steps a second do agents take, compared with Stable-Baselines3?

    python research/throughput/agents.py [ppo] [seeds] [dqn] [replay] [compile] [--json FILE]

All contenders of a section take turns in one process, for several rounds after a warm-up; `dqn` and `compile` measure
seconds, compilation included.
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from throughput import CONSOLE, CORES, Contenders, compare, torch, training_speed

import foldax
from foldax.engine.flops import count_flops
from foldax.rl import replay

try:
    import stable_baselines3
except ImportError:
    stable_baselines3 = None

ROUNDS = 3
SEEDS = 8
PPO_STEPS = 500_000  # environment steps of a run
TORCH_STEPS = 8_192  # environment steps of a round: 16 updates
AGENTS = Path(__file__).resolve().parents[2] / "experiments" / "rl"
CARTPOLE = AGENTS / "ppo_cartpole.py"
DQN_STEPS = 100_000  # environment steps of a run
CAPACITIES = 10_000, 1_000_000  # transitions of a full replay buffer
BATCHES, BATCH_SIZE, NUM_ENVS = 2_000, 256, 8  # of a round of replay


def agent(experiment: foldax.Experiment, config: Any) -> float:
    """Environment steps per second of a whole `foldax.train`, with run folder, log, checkpoint and figures."""
    return training_speed(experiment, config, None) * config.environment_steps_after(1)


def seeds(experiment: foldax.Experiment, config: Any) -> float:
    """Environment steps per second of an exact sweep, summed over its members, with its folder and tables."""
    with tempfile.TemporaryDirectory() as folder:
        options = dict(sweep_dir=Path(folder) / "sweep", config=config, execution="exact", verbose=False)
        began = time.perf_counter()
        foldax.sweep(experiment, {}, seeds=SEEDS, **options)
        return SEEDS * config.environment_steps_after(config.steps) / (time.perf_counter() - began)


def stable_baselines(config: Any, threads: int) -> Callable[[], float]:
    """Makes a measurement of PPO in Stable-Baselines3 with the settings of the config, in Gymnasium's CartPole."""
    from stable_baselines3.common.env_util import make_vec_env

    widths = list(config.hidden)
    agent = stable_baselines3.PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=config.num_envs, seed=0),
        learning_rate=lambda left: left * config.learning_rate,
        n_steps=config.rollout_steps,
        batch_size=config.num_envs * config.rollout_steps // config.ppo.num_minibatches,
        n_epochs=config.ppo.num_epochs,
        gamma=config.ppo.discount,
        gae_lambda=config.ppo.gae_lambda,
        clip_range=config.ppo.clip_range,
        clip_range_vf=config.ppo.value_clip_range,
        ent_coef=config.ppo.entropy_coefficient,
        vf_coef=config.ppo.value_coefficient,
        max_grad_norm=config.max_gradient_norm,
        policy_kwargs={"net_arch": {"pi": widths, "vf": widths}, "activation_fn": torch.nn.Tanh},
        device="cpu",
    )

    def speed() -> float:
        torch.set_num_threads(threads)
        began = time.perf_counter()
        agent.learn(TORCH_STEPS)
        return TORCH_STEPS / (time.perf_counter() - began)

    return speed


def cartpole() -> tuple[foldax.Experiment, Any]:
    """PPO's experiment, and its config with the reference settings."""
    experiment = foldax.load_experiment(CARTPOLE)
    return experiment, dataclasses.replace(experiment.config(), environment_steps=PPO_STEPS)


def measure_ppo() -> dict[str, Any]:
    experiment, config = cartpole()
    contenders: Contenders = {"foldax.train": functools.partial(agent, experiment, config)}
    if stable_baselines3 is not None:
        for threads in sorted({CORES, 1}, reverse=True):
            contenders[f"Stable-Baselines3, threads: {threads}"] = stable_baselines(config, threads)
    learner, key = experiment.learner(config, None), jax.random.key(0)
    state = jax.eval_shape(learner.init, key, None)
    flops = count_flops(jax.make_jaxpr(learner.update)(state, None, key)) / config.environment_steps_after(1)
    title = "CartPole: PPO, 4 environments x 128 steps; environment steps"
    return compare(title, contenders, ROUNDS, flops=flops)


def measure_seeds() -> dict[str, Any]:
    experiment, config = cartpole()
    contenders: Contenders = {
        "foldax.train, one run": functools.partial(agent, experiment, config),
        f"foldax.sweep, exact, {SEEDS} seeds": functools.partial(seeds, experiment, config),
    }
    title = f"CartPole: PPO, {PPO_STEPS:,} environment steps a run; steps of all runs"
    results = compare(title, contenders, ROUNDS)
    one, many = (results[name]["steps_per_second"] for name in contenders)
    ratio = statistics.median(SEEDS * a / b for a, b in zip(one, many, strict=True))
    CONSOLE.print(f"{SEEDS} seeds take {ratio:.2f} times the wall time of one")
    return {**results, "wall_time_ratio": ratio}


def measure_dqn() -> dict[str, Any]:
    experiment = foldax.load_experiment(AGENTS / "dqn_cartpole.py")
    config = dataclasses.replace(experiment.config(), environment_steps=DQN_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        jax.clear_caches()
        began = time.perf_counter()
        foldax.train(experiment, config, run_dir=Path(folder) / "run", verbose=False)
        seconds = time.perf_counter() - began
    title = f"CartPole: DQN, {DQN_STEPS:,} environment steps"
    CONSOLE.print(f"{title}: {seconds:.1f} s from start to end of a run, including compilation")
    return {"seconds": seconds}


def replay_speed(capacity: int) -> Callable[[], float]:
    """Batches per second sampled from a full buffer of transitions of CartPole's size."""
    buffer = replay.init(jnp.zeros((NUM_ENVS, 4)), jnp.zeros(NUM_ENVS, jnp.int32), capacity)
    shape = buffer.rows.shape[:2]
    frames = jnp.arange(shape[0] * shape[1], dtype=jnp.int32).reshape(shape)
    rows = buffer.rows.at[:, :, 0].set(frames).at[:, :, 1].set(frames + NUM_ENVS)
    buffer = buffer._replace(rows=rows, num_rows=jnp.int32(shape[0]), num_frames=jnp.int32(frames.size + NUM_ENVS))

    @jax.jit
    def sample_batches(buffer: replay.ReplayBuffer, key: jax.Array) -> jax.Array:
        def sample(total: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            batch = replay.sample(buffer, key, BATCH_SIZE, 0.99)
            # A sum of everything, so that XLA removes no part of the batch as unused.
            return total + batch.rewards.sum() + batch.observations.sum() + batch.next_observations.sum(), None

        return jax.lax.scan(sample, jnp.float32(0), jax.random.split(key, BATCHES))[0]

    def speed() -> float:
        began = time.perf_counter()
        sample_batches(buffer, jax.random.key(0)).block_until_ready()
        return BATCHES / (time.perf_counter() - began)

    return speed


def measure_replay() -> dict[str, Any]:
    contenders: Contenders = {f"of {capacity:,}": replay_speed(capacity) for capacity in CAPACITIES}
    return compare(f"batches of {BATCH_SIZE} transitions, sampled uniformly", contenders, 2 * ROUNDS + 1)


def measure_compile() -> dict[str, Any]:
    """Seconds that XLA needs to compile one update of every experiment's learner, without its cache."""
    seconds_by_experiment = {}
    jax.config.update("jax_enable_compilation_cache", False)
    for file in sorted(AGENTS.glob("*.py")):
        experiment = foldax.load_experiment(file)
        if experiment.dataset is not None:  # a host environment's
            continue
        learner, key = experiment.learner(experiment.config(), None), jax.random.key(0)
        state = jax.eval_shape(learner.init, key, None)
        lowered = jax.jit(learner.update).lower(state, None, key)
        began = time.perf_counter()
        lowered.compile()
        seconds_by_experiment[file.stem] = time.perf_counter() - began
        CONSOLE.print(f"{file.stem}: an update compiles in {seconds_by_experiment[file.stem]:.1f} s")
    return seconds_by_experiment


def main() -> None:
    sections = {"ppo": measure_ppo, "seeds": measure_seeds, "dqn": measure_dqn}
    sections |= {"replay": measure_replay, "compile": measure_compile}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"some of {', '.join(sections)}; all if none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers of every round there too")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.sections) - set(sections)):
        parser.error(f"unknown section {unknown[0]!r}; choose from {', '.join(sections)}")
    missing = "no Stable-Baselines3 rows (pip install 'foldax\\[benchmark]')"
    version = f"stable-baselines3 {stable_baselines3.__version__}" if stable_baselines3 else missing
    load = os.getloadavg()[0]
    CONSOLE.print(f"{CORES} cores (load {load:.1f}), {jax.devices()[0].platform}, jax {jax.__version__}, {version}")
    results = {name: measure() for name, measure in sections.items() if name in (chosen.sections or sections)}
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
