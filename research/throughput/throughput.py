"""How many steps a second does `foldax.train` make, against a hand-written scan and PyTorch?

    python research/throughput/throughput.py [digits] [fashion] [checkpoints] [--json FILE]

All contenders of a section run in turn in one process, several rounds after one that is not counted; the table shows
the median of the rounds, their spread, and the median of the ratios within a round. What is compared, and the numbers,
are in README.md beside this file.
"""

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
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

Contenders = dict[str, Callable[[], float]]  # by name, each returns steps per second
ROUNDS = {"digits": 7, "fashion": 3, "checkpoints": 3}
LEARNING_RATE = 1e-3
TORCH_SECONDS = 2.0  # of a round, after which the loop ends at the next log
CHECKPOINTED_SECONDS = 9.0  # length of a run with a checkpoint every second


@foldax.config
class Digits(foldax.Training):
    steps: int = 30_000
    evaluate_every = 0  # only at the end
    batch_size: int = 64
    learning_rate: float = LEARNING_RATE


@foldax.config
class Fashion(foldax.Training):
    steps: int = 150
    evaluate_every = 0
    batch_size: int = 128
    learning_rate: float = LEARNING_RATE


def digits_learner(config: Digits, info: data.Info) -> foldax.Learner:
    model = models.MLP((32, 32, info.num_classes))
    return learners.classifier(model, optax.adamw(config.learning_rate), preprocess=info.standardize)


def fashion_learner(config: Fashion, info: data.Info) -> foldax.Learner:
    model = models.CNN(info.num_classes, (32, 64), dense=(256,))
    return learners.classifier(model, optax.adamw(config.learning_rate), preprocess=info.standardize)


digits = foldax.Experiment(Digits, digits_learner, name="digits")
fashion = foldax.Experiment(Fashion, fashion_learner, name="fashion")


def trained(experiment: foldax.Experiment, config: Any, dataset: data.Dataset) -> float:
    """Steps per second of `foldax.train` with all it does: run folder, log, checkpoint, figures."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        return foldax.train(experiment, config, run_dir=run_dir, dataset=dataset, verbose=False).steps_per_second


def hand_written(config: Digits, dataset: data.Dataset, init: Any, update: Any, prepare: Any) -> Callable[[], float]:
    """What one writes without a library: a jitted scan over `log_every` steps, state donated, metrics returned.

    A call works through as many whole epochs as fit into `log_every` steps, in orders that `jax.random.permutation`
    draws at its start. Metrics of a call are read after the next one was dispatched.
    """
    key, size = jax.random.key(0), config.batch_size
    arrays = {**dataset.train.examples()}
    arrays["inputs"] = prepare(arrays["inputs"])
    count = len(arrays["targets"])
    epochs, steps_per_epoch = config.log_every // (count // size), count // size
    length = epochs * steps_per_epoch

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(carry: Any, arrays: Any) -> tuple[Any, Any]:
        def step(carry: Any, rows: jax.Array) -> tuple[Any, Any]:
            state, number = carry
            batch = jax.tree.map(lambda array: array[rows], arrays)
            state, metrics = update(state, batch, jax.random.fold_in(key, number))
            return (state, number + 1), metrics

        keys = jax.random.split(jax.random.fold_in(key, carry[1]), epochs)
        orders = jax.lax.map(lambda key: jax.random.permutation(key, count), keys)
        rows = orders[:, : steps_per_epoch * size].reshape(length, size)
        carry, metrics = jax.lax.scan(step, carry, rows)
        return carry, jax.tree.map(jnp.mean, metrics)

    def speed() -> float:
        carry, unread = chunk((init(key, arrays), jnp.int32(0)), arrays)
        history, calls = [], config.steps // length
        began = time.perf_counter()
        for _ in range(calls):
            carry, metrics = chunk(carry, arrays)
            history.append(jax.device_get(unread))
            unread = metrics
        jax.block_until_ready(carry)
        return calls * length / (time.perf_counter() - began)

    return speed


def plain_update() -> tuple[Any, Any]:
    """The update of `learners.classifier`, its metrics too, written out in Flax and optax."""
    dense = [nn.Dense(32), nn.relu, nn.Dense(32), nn.relu, nn.Dense(10)]
    model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), *dense])
    optimizer = optax.adamw(LEARNING_RATE)

    def loss(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(params, batch["inputs"])
        right = jnp.argmax(logits, axis=-1) == batch["targets"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean(), right.mean()

    def init(key: jax.Array, arrays: Any) -> Any:
        params = model.init(key, arrays["inputs"][:1])
        return params, optimizer.init(params)

    def update(state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
        params, moments = state
        (value, accuracy), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, moments = optimizer.update(gradients, moments, params)
        metrics = {"loss": value, "accuracy": accuracy, "gradient_norm": optax.tree.norm(gradients)}
        return (optax.apply_updates(params, updates), moments), metrics

    return init, update


def torch_loop(config: Any, dataset: data.Dataset, layers: list[Any], image: bool, fused: bool) -> Callable[[], float]:
    """The same in PyTorch: batches from a shuffled index, standardised before the loop; the loss read every log."""
    inputs = np.asarray(dataset.info.standardize(dataset.train.examples()["inputs"]))  # [N, H, W, C]
    inputs = torch.tensor(np.moveaxis(inputs, -1, 1) if image else inputs.reshape(len(inputs), -1))
    targets = torch.tensor(np.asarray(dataset.train.examples()["targets"]), dtype=torch.long)
    network, size = torch.nn.Sequential(*layers), config.batch_size
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-4, fused=fused)
    criterion, steps_per_epoch = torch.nn.CrossEntropyLoss(), len(inputs) // size

    def speed() -> float:
        began = time.perf_counter()
        for step in range(config.steps):
            position = step % steps_per_epoch
            if position == 0:
                order = torch.randperm(len(inputs))
            rows = order[position * size : (position + 1) * size]
            optimizer.zero_grad()
            loss = criterion(network(inputs[rows]), targets[rows])
            loss.backward()
            optimizer.step()
            if (step + 1) % config.log_every == 0:
                loss.item()
                if time.perf_counter() - began > TORCH_SECONDS:
                    break
        return (step + 1) / (time.perf_counter() - began)

    return speed


def mlp_layers() -> list[Any]:
    make = torch.nn
    return [make.Linear(64, 32), make.ReLU(), make.Linear(32, 32), make.ReLU(), make.Linear(32, 10)]


def cnn_layers() -> list[Any]:
    make = torch.nn
    first = [make.Conv2d(1, 32, 3, padding=1), make.ReLU(), make.MaxPool2d(2)]
    second = [make.Conv2d(32, 64, 3, padding=1), make.ReLU(), make.MaxPool2d(2)]
    return [*first, *second, make.Flatten(), make.Linear(3136, 256), make.ReLU(), make.Linear(256, 10)]


def torch_contenders(config: Any, dataset: data.Dataset, layers: Callable[[], list[Any]], image: bool) -> Contenders:
    if torch is None:
        return {}
    names = {"PyTorch": False, "PyTorch, fused AdamW": True}
    return {name: torch_loop(config, dataset, layers(), image, fused) for name, fused in names.items()}


def alternate(contenders: Contenders, rounds: int) -> dict[str, list[float]]:
    """Runs all in turn, `rounds` times after a first time that compiles and is not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds + 1):
        for name, speed in contenders.items():
            found = speed()
            if index:
                speeds[name].append(found)
    return speeds


def operations(layers: list[tuple[int, int, int]], batch_size: int) -> float:
    """Floating-point operations of one update's products; layers are (positions, inputs per output, outputs).

    A product costs two operations per multiplication forward, the same again for the gradient of the weights and
    again for that of the inputs, which the first layer needs not. All else (ReLU, pooling, AdamW) is left out.
    """
    forward = [2 * batch_size * positions * fan_in * outputs for positions, fan_in, outputs in layers]
    return 3 * sum(forward) - forward[0]


def matmul_rate(times: int = 20) -> float:
    """Best floating-point operations per second of a float32 product of matrices 1024 x 1024."""
    x = jnp.ones((1024, 1024), jnp.float32)
    dot = jax.jit(jnp.dot)
    dot(x, x).block_until_ready()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        dot(x, x).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * 1024**3 / min(seconds)


def show(console: Console, title: str, speeds: dict[str, list[float]], floor: float | None) -> dict[str, Any]:
    """Prints a section's table and returns its numbers; ratios are those of the first row to each other."""
    table = Table("", "steps/s", "lowest to highest", "first row / this", title=title, title_justify="left")
    table.columns[1].justify = table.columns[2].justify = table.columns[3].justify = "right"
    first, found = next(iter(speeds.values())), {}
    digits = 0 if statistics.median(first) >= 1000 else 1
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(first, values, strict=True))
        found[name] = {"steps_per_second": values, "first_to_this": ratio}
        spread = f"{min(values):,.{digits}f} to {max(values):,.{digits}f}"
        table.add_row(name, f"{statistics.median(values):,.{digits}f}", spread, f"{ratio:.3f}")
    if floor is not None:
        ratio = statistics.median(first) * floor
        table.add_row("floor (see README.md)", f"{1 / floor:,.{digits}f}", "", f"{ratio:.3f}")
    console.print(table)
    return found


def measure_digits(console: Console) -> dict[str, Any]:
    config = Digits()
    dataset = data.load("digits", batch_size=config.batch_size)
    learner = digits_learner(config, dataset.info)
    plain = plain_update()
    contenders = {
        "foldax.train": lambda: trained(digits, config, dataset),
        "hand-written scan, same update": hand_written(config, dataset, learner.init, learner.update, lambda x: x),
        "hand-written scan, plain optax": hand_written(config, dataset, *plain, dataset.info.standardize),
        **torch_contenders(config, dataset, mlp_layers, image=False),
    }
    speeds = alternate(contenders, ROUNDS["digits"])
    cost, rate = operations([(1, 64, 32), (1, 32, 32), (1, 32, 10)], config.batch_size), matmul_rate()
    console.print(f"one update: {cost / 1e6:.2f} MFLOP; matrix products: {rate / 1e9:.0f} GFLOP/s")
    return show(console, "digits: 64-32-32-10, batch 64", speeds, cost / rate)


def measure_fashion(console: Console) -> dict[str, Any]:
    config = Fashion()
    dataset = data.load("fashion_mnist", batch_size=config.batch_size)
    contenders = {
        "foldax.train": lambda: trained(fashion, config, dataset),
        **torch_contenders(config, dataset, cnn_layers, image=True),
    }
    speeds = alternate(contenders, ROUNDS["fashion"])
    layers = [(784, 9, 32), (196, 9 * 32, 64), (1, 3136, 256), (1, 256, 10)]
    cost, rate = operations(layers, config.batch_size), matmul_rate()
    console.print(f"one update: {cost / 1e9:.2f} GFLOP; matrix products: {rate / 1e9:.0f} GFLOP/s")
    return show(console, "Fashion-MNIST: CNN 32-64, dense 256, batch 128", speeds, cost / rate)


def measure_checkpoints(console: Console) -> dict[str, Any]:
    found = {}
    for experiment, name, make in ((digits, "digits", Digits), (fashion, "fashion_mnist", Fashion)):
        dataset = data.load(name, batch_size=make().batch_size)
        trained(experiment, make(steps=200, checkpoint_every=100), dataset)  # compiles what a checkpoint needs
        speed = trained(experiment, make(checkpoint_every=0), dataset)
        steps = 10 * round(speed * CHECKPOINTED_SECONDS / 10)
        configs = {f"checkpoint_every={every!r}": make(steps=steps, checkpoint_every=every) for every in (0, "1s")}
        contenders: Contenders = {
            key: functools.partial(trained, experiment, config, dataset) for key, config in configs.items()
        }
        speeds = alternate(contenders, ROUNDS["checkpoints"])
        found[name] = show(console, f"{name}: runs of {steps:,} steps, about {steps / speed:.0f} s", speeds, None)
    return found


def main() -> None:
    sections = {"digits": measure_digits, "fashion": measure_fashion, "checkpoints": measure_checkpoints}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"some of {', '.join(sections)}; all if none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers of every round there too")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.sections) - set(sections)):
        parser.error(f"unknown section {unknown[0]!r}; choose from {', '.join(sections)}")
    console, cores = Console(width=110), len(os.sched_getaffinity(0))
    if torch is None:
        console.print("PyTorch is not installed (pip install 'foldax\\[benchmark]'): its rows are left out")
    else:
        torch.set_num_threads(cores)
    version = "" if torch is None else f", torch {torch.__version__}"
    console.print(f"{cores} cores, {jax.devices()[0].platform}, jax {jax.__version__}{version}")
    found = {name: sections[name](console) for name in sections if name in (chosen.sections or sections)}
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
