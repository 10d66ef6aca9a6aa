"""Training speed of `foldax.train` and `foldax.sweep` in steps per second, against hand-written scans and PyTorch.

    python research/throughput/throughput.py [digits] [fashion] [checkpoints] [sweep] [vae] [--json FILE]

All contenders of a section take turns in one process, for several rounds after an uncounted first one. README.md beside
this file has the results and describes the contenders.
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
from foldax.engine.flops import count_flops

try:
    import torch
except ImportError:
    torch = None

Contenders = dict[str, Callable[[], float]]  # by name; each returns steps per second
ROUNDS = {"digits": 7, "fashion": 3, "checkpoints": 3, "sweep": 5, "vae": 5}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
TORCH_SECONDS = 2.0  # length of a round of PyTorch's loop
CHECKPOINTED_SECONDS = 9.0  # length of a run with a checkpoint every second
MEMBERS = 64  # members of the sweep: 8 learning rates x 8 seeds
CONSOLE = Console(width=110)


@foldax.config
class Config(foldax.Training):
    log_every = 100
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
    likelihood = learners.likelihoods.discretized_logistic(17)
    encoder, decoder = models.MLP((64, 2 * 8)), models.MLP((64, 64 * likelihood.num_parameters))
    model = learners.VAE(encoder, decoder, likelihood, preprocess=info.standardize)
    return learners.vae(model, optax.adamw(config.learning_rate))


digits = foldax.Experiment(Config, digits_learner, name="digits")
fashion = foldax.Experiment(Config, fashion_learner, name="fashion")
vae = foldax.Experiment(Config, vae_learner, name="vae")


def training_speed(experiment: foldax.Experiment, config: Config, dataset: data.Dataset) -> float:
    """Steps per second of a whole run of `foldax.train`, with its run folder, logs, checkpoints and figures."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        return foldax.train(experiment, config, run_dir=run_dir, dataset=dataset, verbose=False).steps_per_second


def scan_speed(config: Config, arrays: Any, init: Any, update: Any) -> Callable[[], float]:
    """A hand-written training loop: a jitted scan over the same update that donates the state and returns mean metrics.

    A call runs as many whole epochs as fit into `log_every` steps, in orders from `jax.random.permutation` at its
    start. Metrics of a call are fetched after the next call is dispatched.
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
        history, calls, start = [], config.steps // length, time.perf_counter()
        for _ in range(calls):
            carry, metrics = chunk(carry, arrays)
            history.append(jax.device_get(unread))
            unread = metrics
        jax.block_until_ready(carry)
        return calls * length / (time.perf_counter() - start)

    return speed


def scanned_members_speed(config: Config, dataset: data.Dataset, side_by_side: bool) -> Callable[[], float]:
    """A hand-written sweep: one thread per device scans the update for the members of that device.

    Members run one after another (`lax.map`, a whole run per call) or side by side (`vmap`, five epochs per call), each
    with its own learning rate and orders. Orders are generated by `lax.map`, because vmapped sorts are slow.
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
    def initial_carry(seeds: jax.Array, arrays: Any) -> Any:
        keys = jax.vmap(jax.random.key)(seeds)
        init = digits_learner(config, dataset.info).init
        return jax.vmap(lambda key: init(key, arrays))(keys), keys, jnp.zeros(len(seeds), jnp.int32)

    def run_members(index: int) -> None:
        seeds = np.arange(index, MEMBERS, len(devices), dtype=np.uint32)
        rates = np.asarray(learning_rates(), np.float32)[seeds]
        rates, seeds, placed = jax.device_put((rates, seeds, arrays), devices[index])
        carry = initial_carry(seeds, placed)
        for _ in range(config.steps // (epochs * length)):
            carry, _ = chunk(rates, carry, placed)
        jax.block_until_ready(carry)

    def speed() -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(len(devices)) as pool:
            list(pool.map(run_members, range(len(devices))))
        return MEMBERS * config.steps / (time.perf_counter() - start)

    return speed


def learning_rates() -> list[float]:
    """Learning rates of the members of the sweep: 8 rates with 8 seeds each."""
    return [float(rate) for rate in np.geomspace(1e-4, 1e-2, 8) for _ in range(MEMBERS // 8)]


def sweep_speed(experiment: foldax.Experiment, config: Config, execution: str) -> float:
    """Steps per second, summed over members, of a whole call of `foldax.sweep` with its folder and evaluations."""
    space = {"learning_rate": sorted(set(learning_rates()))}
    with tempfile.TemporaryDirectory() as folder:
        options = dict(sweep_dir=Path(folder) / "sweep", config=config, execution=execution, verbose=False)
        start = time.perf_counter()
        sweep = foldax.sweep(experiment, space, seeds=MEMBERS // len(space["learning_rate"]), **options)
        return sweep.metadata["member_steps"] / (time.perf_counter() - start)


def torch_loop(
    config: Config, count: int, network: Any, loss: Callable[[Any, Any], Any], threads: int, fused: bool
) -> Callable[[], float]:
    """The same training in PyTorch, with batches from a shuffled index of `count` examples.

    `loss(network, rows)` is the loss of a batch; its value is read once per `log_every` steps.
    """
    size, steps_per_epoch = config.batch_size, count // config.batch_size
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-4, fused=fused)

    def speed() -> float:
        torch.set_num_threads(threads)
        steps, start = 0, time.perf_counter()
        while steps < config.steps and time.perf_counter() - start < TORCH_SECONDS:
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
        return steps / (time.perf_counter() - start)

    return speed


def torch_contenders(
    config: Config, count: int, make: Callable[[], Any], loss: Callable[[Any, Any], Any]
) -> Contenders:
    """PyTorch with all cores and with one (tiny layers are slower on several), with default and with fused AdamW."""
    kinds = [(threads, fused) for threads in sorted({CORES, 1}, reverse=True) for fused in (False, True)]
    name = "PyTorch, threads: {}{}".format
    return {name(n, ", fused AdamW" * fused): torch_loop(config, count, make(), loss, n, fused) for n, fused in kinds}


def torch_classifiers(config: Config, dataset: data.Dataset, make: Callable[[], Any], image: bool) -> Contenders:
    """PyTorch classifiers of the dataset, standardised before the loop; none if PyTorch is not installed."""
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


def peak_matmul_flops(times: int = 20) -> float:
    """Highest measured FLOP/s of a float32 product of 1024 x 1024 matrices."""
    x, dot, seconds = jnp.ones((1024, 1024), jnp.float32), jax.jit(jnp.dot), []
    for _ in range(times):
        start = time.perf_counter()
        dot(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(seconds)


def compare(title: str, contenders: Contenders, rounds: int, flops: float = 0.0) -> dict[str, Any]:
    """Runs all contenders in turn, prints the table of the section and returns its numbers."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds + 1):  # the first round compiles and is not counted
        for name, speed in contenders.items():
            speeds[name] += [speed()][: 1 if index else 0]
    table = Table("", title=title, title_justify="left")
    for heading in ("steps/s (median)", "lowest to highest", "first row / this"):
        table.add_column(heading, justify="right")
    first, results = next(iter(speeds.values())), {}
    median = statistics.median(first)
    places = 0 if median >= 1000 else 1
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(first, values, strict=True))
        results[name] = {"steps_per_second": values, "first_to_this": ratio}
        spread = f"{min(values):,.{places}f} to {max(values):,.{places}f}"
        table.add_row(name, f"{statistics.median(values):,.{places}f}", spread, f"{ratio:.3f}")
    if flops:
        rate = peak_matmul_flops()
        floor = f"floor: {flops / 1e6:.4g} MFLOP at {rate / 1e9:.0f} GFLOP/s"
        table.add_row(floor, f"{rate / flops:,.{places}f}", "", f"{median * flops / rate:.3f}")
        results["floor"] = {"flops": flops, "matmul_flops_per_second": rate}
    CONSOLE.print(table)
    return results


def step_flops(learner: Any, config: Any, dataset: data.Dataset) -> float:
    """Counts the FLOPs of the products and convolutions of one update, of the mathematics alone: see `count_flops`."""
    instance = learner(config, dataset.info)
    batch = {name: values[: config.batch_size] for name, values in dataset.train.examples().items()}
    state = jax.eval_shape(instance.init, jax.random.key(0), batch)
    return count_flops(jax.make_jaxpr(instance.update)(state, batch, jax.random.key(0)))


def measure_digits() -> dict[str, Any]:
    dataset = data.load("digits", batch_size=DIGITS.batch_size)
    learner, arrays = digits_learner(DIGITS, dataset.info), dataset.train.examples()
    contenders = {
        "foldax.train": functools.partial(training_speed, digits, DIGITS, dataset),
        "hand-written scan": scan_speed(DIGITS, arrays, learner.init, learner.update),
        **torch_classifiers(DIGITS, dataset, torch_mlp, image=False),
    }
    flops = step_flops(digits_learner, DIGITS, dataset)
    return compare("digits: 64-32-32-10, batch 64", contenders, ROUNDS["digits"], flops)


def measure_fashion() -> dict[str, Any]:
    dataset = data.load("fashion_mnist", batch_size=FASHION.batch_size)
    contenders = {"foldax.train": functools.partial(training_speed, fashion, FASHION, dataset)}
    contenders |= torch_classifiers(FASHION, dataset, torch_cnn, image=True)
    flops = step_flops(fashion_learner, FASHION, dataset)
    return compare("Fashion-MNIST: CNN 32-64, dense 256, batch 128", contenders, ROUNDS["fashion"], flops)


def measure_checkpoints() -> dict[str, Any]:
    results = {}
    for experiment, config, name in ((digits, DIGITS, "digits"), (fashion, FASHION, "fashion_mnist")):
        dataset = data.load(name, batch_size=config.batch_size)
        make = functools.partial(Config, batch_size=config.batch_size)
        # Compiles the programs of a checkpoint, so that no measured run does.
        training_speed(experiment, make(steps=20, checkpoint_every=10), dataset)
        speed = training_speed(experiment, make(steps=config.steps, checkpoint_every=0), dataset)
        steps = 10 * round(speed * CHECKPOINTED_SECONDS / 10)
        configs = {f"checkpoint_every={every!r}": make(steps=steps, checkpoint_every=every) for every in ("1s", 0)}
        contenders = {
            key: functools.partial(training_speed, experiment, config, dataset) for key, config in configs.items()
        }
        results[name] = compare(f"{name}: {steps:,} steps, about 9 s", contenders, ROUNDS["checkpoints"])
    return results


def measure_sweep() -> dict[str, Any]:
    dataset = data.load("digits", batch_size=MEMBER.batch_size)
    experiment = digits._replace(dataset=lambda config: dataset)
    contenders = {
        "foldax.sweep, exact": functools.partial(sweep_speed, experiment, MEMBER, "exact"),
        "foldax.sweep, fast": functools.partial(sweep_speed, experiment, MEMBER, "fast"),
        "foldax.train, one run": functools.partial(training_speed, digits, DIGITS, dataset),
        "hand-written, one after another": scanned_members_speed(MEMBER, dataset, side_by_side=False),
        "hand-written, side by side": scanned_members_speed(MEMBER, dataset, side_by_side=True),
        **torch_classifiers(DIGITS, dataset, torch_mlp, image=False),
    }
    flops = step_flops(digits_learner, MEMBER, dataset)
    return compare(f"digits: {MEMBERS} members of {MEMBER.steps:,} steps", contenders, ROUNDS["sweep"], flops)


def measure_vae() -> dict[str, Any]:
    dataset = data.load("digits", batch_size=VAE_MEMBER.batch_size)
    experiment = vae._replace(dataset=lambda config: dataset)
    contenders = {
        "foldax.sweep, exact": functools.partial(sweep_speed, experiment, VAE_MEMBER, "exact"),
        "foldax.sweep, fast": functools.partial(sweep_speed, experiment, VAE_MEMBER, "fast"),
        "foldax.train, one run": functools.partial(training_speed, vae, VAE, dataset),
    }
    title = f"digits: {MEMBERS} members of {VAE_MEMBER.steps:,} steps, VAE 64-64-8-64-64"
    return compare(title, contenders, ROUNDS["vae"])


def main() -> None:
    sections = {"digits": measure_digits, "fashion": measure_fashion, "checkpoints": measure_checkpoints}
    sections |= {"sweep": measure_sweep, "vae": measure_vae}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"some of {', '.join(sections)}; all if none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers of every round there too")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.sections) - set(sections)):
        parser.error(f"unknown section {unknown[0]!r}; choose from {', '.join(sections)}")
    version = f"torch {torch.__version__}" if torch else "no PyTorch rows (pip install 'foldax\\[benchmark]')"
    CONSOLE.print(f"{CORES} cores, {jax.devices()[0].platform}, jax {jax.__version__}, {version}")
    results = {name: measure() for name, measure in sections.items() if name in (arguments.sections or sections)}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
