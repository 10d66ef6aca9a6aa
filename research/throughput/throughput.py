"""How many steps a second do `foldax.train` and `foldax.sweep` make, against hand-written scans and PyTorch?

    python research/throughput/throughput.py [digits] [fashion] [checkpoints] [sweep] [vae] [--json FILE]

All contenders of a section run in turn in one process, in several rounds after one that is not counted. README.md
beside this file has the numbers and says what is compared.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import foldax
from foldax import data, learners, models

try:
    import torch
except ImportError:
    torch = None

Contenders = dict[str, Callable[[], float]]  # by name; each returns steps per second
ROUNDS = {"digits": 7, "fashion": 3, "checkpoints": 3, "sweep": 5, "vae": 5}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
TORCH_SECONDS = 2.0  # of a round, after which PyTorch's loop ends
CHECKPOINTED_SECONDS = 9.0  # of a run with a checkpoint every second
MEMBERS = 64  # of the sweep: learning rates x seeds
CONSOLE = Console(width=110)


@foldax.config
class Config(foldax.Training):
    evaluate_every = 0  # only at the end
    batch_size: int = 64
    learning_rate: float = 1e-3


DIGITS, FASHION, MEMBER = Config(steps=30_000), Config(steps=150, batch_size=128), Config(steps=3_800)
VAE, VAE_MEMBER = Config(steps=12_000), Config(steps=1_000)


def digits_learner(config: Config, info: data.Info) -> foldax.Learner:
    model = models.MLP((32, 32, info.num_classes))
    return learners.classifier(model, optax.adamw(config.learning_rate), preprocess=info.standardize)


def fashion_learner(config: Config, info: data.Info) -> foldax.Learner:
    model = models.CNN(info.num_classes, (32, 64), dense=(256,))
    return learners.classifier(model, optax.adamw(config.learning_rate), preprocess=info.standardize)


def vae_learner(config: Config, info: data.Info) -> foldax.Learner:
    each = learners.likelihoods.discretized_logistic(17)
    encoder, decoder = models.MLP((64, 2 * 8)), models.MLP((64, 64 * each.width))
    model = learners.VAE(encoder, decoder, each, preprocess=info.standardize)
    return learners.vae(model, optax.adamw(config.learning_rate))


digits = foldax.Experiment(Config, digits_learner, name="digits")
fashion = foldax.Experiment(Config, fashion_learner, name="fashion")
vae = foldax.Experiment(Config, vae_learner, name="vae")


def trained(experiment: foldax.Experiment, config: Config, dataset: data.Dataset) -> float:
    """Steps per second of `foldax.train` with all it does: run folder, log, checkpoint, figures."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        return foldax.train(experiment, config, run_dir=run_dir, dataset=dataset, verbose=False).steps_per_second


def hand_written(config: Config, arrays: Any, init: Any, update: Any) -> Callable[[], float]:
    """What one writes without a driver: a jitted scan of the same update, state donated, mean metrics returned.

    A call works through as many whole epochs as fit into `log_every` steps, in orders that `jax.random.permutation`
    draws at its start. Metrics of a call are read after the next one was dispatched.
    """
    key, size, count = jax.random.key(0), config.batch_size, len(arrays["targets"])
    epochs = config.log_every // (count // size)
    length = epochs * (count // size)

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(carry: Any, arrays: Any) -> tuple[Any, Any]:
        def step(carry: Any, rows: jax.Array) -> tuple[Any, Any]:
            state, number = carry
            batch = jax.tree.map(lambda array: array[rows], arrays)
            state, metrics = update(state, batch, jax.random.fold_in(key, number))
            return (state, number + 1), metrics

        keys = jax.random.split(jax.random.fold_in(key, carry[1]), epochs)
        orders = jax.lax.map(lambda key: jax.random.permutation(key, count), keys)
        rows = orders[:, : count // size * size].reshape(length, size)
        carry, metrics = jax.lax.scan(step, carry, rows)
        return carry, jax.tree.map(jnp.mean, metrics)

    def speed() -> float:
        carry, unread = chunk((init(key, arrays), jnp.int32(0)), arrays)
        history, calls, began = [], config.steps // length, time.perf_counter()
        for _ in range(calls):
            carry, metrics = chunk(carry, arrays)
            history.append(jax.device_get(unread))
            unread = metrics
        jax.block_until_ready(carry)
        return calls * length / (time.perf_counter() - began)

    return speed


def hand_written_members(config: Config, dataset: data.Dataset, side_by_side: bool) -> Callable[[], float]:
    """The same work as the sweep's: each device, driven by a thread, scans the update for its share of the members.

    One after another (`lax.map`, a whole run at a time) or side by side (`vmap`, five epochs a call), each with its
    learning rate and its own orders, which are drawn by `lax.map`, since vmapped sorts are slow.
    """
    arrays, size, devices = dataset.train.examples(), config.batch_size, jax.devices()
    length = len(arrays["targets"]) // size
    epochs = 5 if side_by_side else config.steps // length

    def run(learning_rate: jax.Array, carry: Any, orders: jax.Array, arrays: Any) -> tuple[Any, Any]:
        learner = digits_learner(dataclasses.replace(config, learning_rate=learning_rate), dataset.info)

        def step(carry: Any, rows: jax.Array) -> tuple[Any, Any]:
            state, key, number = carry
            batch = jax.tree.map(lambda array: array[rows], arrays)
            state, metrics = learner.update(state, batch, jax.random.fold_in(key, number))
            return (state, key, number + 1), metrics

        carry, metrics = jax.lax.scan(step, carry, orders)
        return carry, jax.tree.map(jnp.mean, metrics)

    def orders(key: jax.Array, first: jax.Array, arrays: Any) -> jax.Array:
        keys = jax.vmap(lambda epoch: jax.random.fold_in(key, first + epoch))(jnp.arange(epochs))
        rows = jax.lax.map(lambda key: jax.random.permutation(key, len(arrays["targets"])), keys)
        return rows[:, : length * size].reshape(epochs * length, size)

    @functools.partial(jax.jit, donate_argnums=1)
    def chunk(learning_rates: jax.Array, carry: Any, arrays: Any) -> tuple[Any, Any]:
        _, keys, numbers = carry
        if side_by_side:
            rows = jax.lax.map(lambda member: orders(*member, arrays), (keys, numbers))
            return jax.vmap(run, (0, 0, 0, None))(learning_rates, carry, rows, arrays)
        return jax.lax.map(
            lambda member: run(*member, orders(member[1][1], member[1][2], arrays), arrays), (learning_rates, carry)
        )

    @jax.jit
    def start(seeds: jax.Array, arrays: Any) -> Any:
        keys = jax.vmap(jax.random.key)(seeds)
        init = digits_learner(config, dataset.info).init
        return jax.vmap(lambda key: init(key, arrays))(keys), keys, jnp.zeros(len(seeds), jnp.int32)

    def share(index: int) -> None:
        seeds = np.arange(index, MEMBERS, len(devices), dtype=np.uint32)
        rates = np.asarray(learning_rates(), np.float32)[seeds]
        rates, seeds, placed = jax.device_put((rates, seeds, arrays), devices[index])
        carry = start(seeds, placed)
        for _ in range(config.steps // (epochs * length)):
            carry, _ = chunk(rates, carry, placed)
        jax.block_until_ready(carry)

    def speed() -> float:
        began = time.perf_counter()
        with ThreadPoolExecutor(len(devices)) as pool:
            list(pool.map(share, range(len(devices))))
        return MEMBERS * config.steps / (time.perf_counter() - began)

    return speed


def learning_rates() -> list[float]:
    """Those of the sweep's members: 8 rates, 8 seeds each."""
    return [float(rate) for rate in np.geomspace(1e-4, 1e-2, 8) for _ in range(MEMBERS // 8)]


def swept(experiment: foldax.Experiment, config: Config, way: str) -> float:
    """Member-steps per second of a whole call of `foldax.sweep`, with its folder, evaluations and tables."""
    space = {"learning_rate": sorted(set(learning_rates()))}
    with tempfile.TemporaryDirectory() as folder:
        options = dict(sweep_dir=Path(folder) / "sweep", config=config, way=way, verbose=False)
        began = time.perf_counter()
        sweep = foldax.sweep(experiment, space, seeds=MEMBERS // len(space["learning_rate"]), **options)
        return sweep.facts["member_steps"] / (time.perf_counter() - began)


def torch_loop(
    config: Config, count: int, network: Any, loss: Callable[[Any, Any], Any], threads: int, fused: bool
) -> Callable[[], float]:
    """The same in PyTorch: batches from a shuffled index of `count` examples; the loss is read every log.

    `loss` is given the network and the rows of a batch.
    """
    size, steps_per_epoch = config.batch_size, count // config.batch_size
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-4, fused=fused)

    def speed() -> float:
        torch.set_num_threads(threads)
        steps, began = 0, time.perf_counter()
        while steps < config.steps and time.perf_counter() - began < TORCH_SECONDS:
            position = steps % steps_per_epoch
            if position == 0:
                order = torch.randperm(count)
            optimizer.zero_grad()
            value = loss(network, order[position * size : (position + 1) * size])
            value.backward()
            optimizer.step()
            steps += 1
            if steps % config.log_every == 0:
                value.item()
        return steps / (time.perf_counter() - began)

    return speed


def torch_contenders(
    config: Config, count: int, make: Callable[[], Any], loss: Callable[[Any, Any], Any]
) -> Contenders:
    """PyTorch with all cores and with one (tiny layers lose by sharing), AdamW's default form and its fused one."""
    kinds = [(threads, fused) for threads in sorted({CORES, 1}, reverse=True) for fused in (False, True)]
    name = "PyTorch, threads: {}{}".format
    return {name(n, ", fused AdamW" * fused): torch_loop(config, count, make(), loss, n, fused) for n, fused in kinds}


def torch_classifiers(config: Config, dataset: data.Dataset, make: Callable[[], Any], image: bool) -> Contenders:
    """Contenders that classify the dataset's examples, standardised before the loop; none without PyTorch."""
    if torch is None:
        return {}
    inputs = np.asarray(dataset.info.standardize(dataset.train.examples()["inputs"]))  # [N, H, W, C]
    inputs = torch.tensor(np.moveaxis(inputs, -1, 1).copy() if image else inputs.reshape(len(inputs), -1))
    targets = torch.tensor(np.asarray(dataset.train.examples()["targets"]), dtype=torch.long)
    criterion = torch.nn.CrossEntropyLoss()

    def loss(network: Any, rows: Any) -> Any:
        return criterion(network(inputs[rows]), targets[rows])

    return torch_contenders(config, len(inputs), make, loss)


def torch_mlp() -> Any:
    make = torch.nn
    return make.Sequential(make.Linear(64, 32), make.ReLU(), make.Linear(32, 32), make.ReLU(), make.Linear(32, 10))


def torch_cnn() -> Any:
    make = torch.nn
    layers = [make.Conv2d(1, 32, 3, padding=1), make.ReLU(), make.MaxPool2d(2)]
    layers += [make.Conv2d(32, 64, 3, padding=1), make.ReLU(), make.MaxPool2d(2)]
    return make.Sequential(*layers, make.Flatten(), make.Linear(3136, 256), make.ReLU(), make.Linear(256, 10))


def matmul_rate(times: int = 20) -> float:
    """Best floating-point operations per second of a float32 product of matrices 1024 x 1024."""
    x, dot, seconds = jnp.ones((1024, 1024), jnp.float32), jax.jit(jnp.dot), []
    for _ in range(times):
        began = time.perf_counter()
        dot(x, x).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * 1024**3 / min(seconds)


def compare(title: str, contenders: Contenders, rounds: int, flops: float = 0.0) -> dict[str, Any]:
    """Runs all in turn, prints the section's table and returns its numbers."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds + 1):  # the first compiles and is not counted
        for name, speed in contenders.items():
            speeds[name] += [speed()][: 1 if index else 0]
    table = Table("", title=title, title_justify="left")
    for heading in ("steps/s (median)", "lowest to highest", "first row / this"):
        table.add_column(heading, justify="right")
    first, found = next(iter(speeds.values())), {}
    median = statistics.median(first)
    places = 0 if median >= 1000 else 1
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(first, values, strict=True))
        found[name] = {"steps_per_second": values, "first_to_this": ratio}
        spread = f"{min(values):,.{places}f} to {max(values):,.{places}f}"
        table.add_row(name, f"{statistics.median(values):,.{places}f}", spread, f"{ratio:.3f}")
    if flops:
        rate = matmul_rate()
        floor = f"floor: {flops / 1e6:.4g} MFLOP at {rate / 1e9:.0f} GFLOP/s"
        table.add_row(floor, f"{rate / flops:,.{places}f}", "", f"{median * flops / rate:.3f}")
        found["floor"] = {"flops": flops, "matmul_flops_per_second": rate}
    CONSOLE.print(table)
    return found


def operations(layers: list[tuple[int, int, int]], batch_size: int) -> float:
    """Operations of one update's products; layers are (positions, inputs of an output, outputs).

    Forward two per multiplication; the same again for the gradient of the weights, and again for that of the inputs,
    which the first layer needs not. All else (ReLU, pooling, AdamW) is left out.
    """
    forward = [2 * batch_size * positions * fan_in * outputs for positions, fan_in, outputs in layers]
    return 3 * sum(forward) - forward[0]


def measure_digits() -> dict[str, Any]:
    dataset = data.load("digits", batch_size=DIGITS.batch_size)
    learner, arrays = digits_learner(DIGITS, dataset.info), dataset.train.examples()
    contenders = {
        "foldax.train": functools.partial(trained, digits, DIGITS, dataset),
        "hand-written scan": hand_written(DIGITS, arrays, learner.init, learner.update),
        **torch_classifiers(DIGITS, dataset, torch_mlp, image=False),
    }
    flops = operations([(1, 64, 32), (1, 32, 32), (1, 32, 10)], DIGITS.batch_size)
    return compare("digits: 64-32-32-10, batch 64", contenders, ROUNDS["digits"], flops)


def measure_fashion() -> dict[str, Any]:
    dataset = data.load("fashion_mnist", batch_size=FASHION.batch_size)
    contenders = {"foldax.train": functools.partial(trained, fashion, FASHION, dataset)}
    contenders |= torch_classifiers(FASHION, dataset, torch_cnn, image=True)
    flops = operations([(784, 9, 32), (196, 9 * 32, 64), (1, 3136, 256), (1, 256, 10)], FASHION.batch_size)
    return compare("Fashion-MNIST: CNN 32-64, dense 256, batch 128", contenders, ROUNDS["fashion"], flops)


def measure_checkpoints() -> dict[str, Any]:
    found = {}
    for experiment, config, name in ((digits, DIGITS, "digits"), (fashion, FASHION, "fashion_mnist")):
        dataset = data.load(name, batch_size=config.batch_size)
        make = functools.partial(Config, batch_size=config.batch_size)
        trained(experiment, make(steps=20, checkpoint_every=10), dataset)  # compiles what a checkpoint needs
        speed = trained(experiment, make(steps=config.steps, checkpoint_every=0), dataset)
        steps = 10 * round(speed * CHECKPOINTED_SECONDS / 10)
        configs = {f"checkpoint_every={every!r}": make(steps=steps, checkpoint_every=every) for every in ("1s", 0)}
        contenders = {key: functools.partial(trained, experiment, config, dataset) for key, config in configs.items()}
        found[name] = compare(f"{name}: {steps:,} steps, about 9 s", contenders, ROUNDS["checkpoints"])
    return found


def measure_sweep() -> dict[str, Any]:
    dataset = data.load("digits", batch_size=MEMBER.batch_size)
    experiment = digits._replace(dataset=lambda config: dataset)
    contenders = {
        "foldax.sweep, exact": functools.partial(swept, experiment, MEMBER, "exact"),
        "foldax.sweep, fast": functools.partial(swept, experiment, MEMBER, "fast"),
        "foldax.train, one run": functools.partial(trained, digits, DIGITS, dataset),
        "hand-written, one after another": hand_written_members(MEMBER, dataset, side_by_side=False),
        "hand-written, side by side": hand_written_members(MEMBER, dataset, side_by_side=True),
        **torch_classifiers(DIGITS, dataset, torch_mlp, image=False),
    }
    flops = operations([(1, 64, 32), (1, 32, 32), (1, 32, 10)], MEMBER.batch_size)
    return compare(f"digits: {MEMBERS} members of {MEMBER.steps:,} steps", contenders, ROUNDS["sweep"], flops)


def measure_vae() -> dict[str, Any]:
    dataset = data.load("digits", batch_size=VAE_MEMBER.batch_size)
    experiment = vae._replace(dataset=lambda config: dataset)
    contenders = {
        "foldax.sweep, exact": functools.partial(swept, experiment, VAE_MEMBER, "exact"),
        "foldax.sweep, fast": functools.partial(swept, experiment, VAE_MEMBER, "fast"),
        "foldax.train, one run": functools.partial(trained, vae, VAE, dataset),
    }
    title = f"digits: {MEMBERS} members of {VAE_MEMBER.steps:,} steps, VAE 64-64-8-64-64"
    return compare(title, contenders, ROUNDS["vae"])


def main() -> None:
    sections = {"digits": measure_digits, "fashion": measure_fashion, "checkpoints": measure_checkpoints}
    sections |= {"sweep": measure_sweep, "vae": measure_vae}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"some of {', '.join(sections)}; all if none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers of every round there too")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.sections) - set(sections)):
        parser.error(f"unknown section {unknown[0]!r}; choose from {', '.join(sections)}")
    version = f"torch {torch.__version__}" if torch else "no PyTorch rows (pip install 'foldax\\[benchmark]')"
    CONSOLE.print(f"{CORES} cores, {jax.devices()[0].platform}, jax {jax.__version__}, {version}")
    found = {name: measure() for name, measure in sections.items() if name in (chosen.sections or sections)}
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
