"""Do gradients vanish with depth, and do ReLU, initialisation, normalisation or residual connections prevent it?

    python research/vanishing_gradients/study.py            # all results, tables and figures; resumes if killed
    python research/vanishing_gradients/study.py --quick    # the same on a few small networks, in half a minute

README.md beside this file has the answer. Vanishing gradients: Hochreiter (1991), Bengio et al. (1994).
Initialisation: Glorot & Bengio (2010), He et al. (2015). Residual units: He et al. (2016). Normalisation: Ioffe &
Szegedy (2015) of batches, Ba et al. (2016) of layers.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas

import foldax
from foldax import data, learners, models, plots
from foldax.learners import losses
from foldax.runs import studies
from foldax.sweeps import statistics

CHANCE = 0.1  # accuracy of a guess among ten classes
TRAINED = 0.9  # test accuracy from which a network counts as trained
MEDIAN_AND_RANGE = ("median", "min", "max")  # columns of gradient norms and ratios
CELL = ["cure", "activation", "initializer", "depth"]
COLORS = {  # colours of Okabe & Ito, safe for the colour-blind; markers for print in grey and overlapping lines
    "sigmoid": ("#D55E00", "o", "-"),
    "tanh": ("#E69F00", "s", "-"),
    "relu": ("#000000", "^", "-"),
    "leaky_relu": ("#0072B2", "v", "--"),
    "prelu": ("#56B4E9", "D", "-"),
    "elu": ("#009E73", "P", "-"),
}
INITIALIZERS = {  # a, b and c in: variance of a kernel = 1 / (a fan_in + b fan_out + c)
    "glorot": (0.5, 0.5, 0.0),
    "he": (0.5, 0.0, 0.0),
    "normal": (0.0, 0.0, 1e4),  # standard deviation 0.01, whatever the layer's size (Krizhevsky et al., 2012)
}
CURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual": {"residual": True},
    "batch norm": {"normalization": "batch"},
    "layer norm": {"normalization": "layer"},
    "residual + batch norm": {"residual": True, "normalization": "batch"},
}


@foldax.config
class Config(foldax.Training):
    steps: int = 400
    log_every = 100
    evaluate_every = 0  # only at the end: the last state is tested
    checkpoint_every = 0  # a member takes a second
    keep = "last"
    batch_size: int = 64
    width: int = 32
    """Width of every hidden layer."""
    depth: int = 1
    """Number of hidden layers."""
    activation: str = "relu"
    cure: str = "plain"
    """Remedy against vanishing gradients, one of `CURES`."""
    inverse_variance: tuple[float, float, float] = INITIALIZERS["glorot"]
    """a, b and c of `INITIALIZERS`; traced, so that all initialisers share a program."""
    learning_rate: float = 0.03


class Grid(NamedTuple):
    """The grid of runs that are compared.

    Attributes:
      config: fields that all members share.
      depths: depths of plain networks, with every initialiser.
      cure_depths: depths of networks with a cure, with Glorot's initialisation.
      cures: names in `CURES`.
      activations: names in `foldax.models.ACTIVATIONS`.
      learning_rates: candidates, chosen in each cell by validation accuracy.
      seeds: runs of each setting.
      max_concurrent: maximum number of members that train at a time; by default one per device.
    """

    config: Config = Config()
    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    cure_depths: tuple[int, ...] = (16, 64)
    cures: tuple[str, ...] = ("residual", "batch norm", "layer norm", "residual + batch norm")
    activations: tuple[str, ...] = tuple(COLORS)
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    seeds: int = 8
    max_concurrent: int | None = None


QUICK = Grid(Config(steps=40, width=16), (1, 3), (3,), ("residual + batch norm",), ("sigmoid", "relu"), (0.1,), 2, 1)


def kernel_init(inverse_variance: Sequence[Any], key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Samples a normal kernel `[fan_in, fan_out]` of variance 1 / (a fan_in + b fan_out + c), which may be traced."""
    a, b, c = inverse_variance
    fan_in, fan_out = shape
    return jax.random.normal(key, shape, dtype) * jax.lax.rsqrt(a * fan_in + b * fan_out + c)


def network(config: Config, info: data.Info) -> models.MLP:
    """Builds a network of `config.depth` equally wide hidden layers, which run as a scan."""
    return models.MLP(
        (config.width,) * config.depth + (info.num_classes,),
        activation=config.activation,
        kernel_init=functools.partial(kernel_init, config.inverse_variance),
        scan_layers=True,
        **CURES[config.cure],
    )


def dataset(config: Config) -> data.Dataset:
    return data.load("digits", batch_size=config.batch_size)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    """Builds a classifier trained by SGD with momentum, whose steps are proportional to the gradients."""
    optimizer = optax.sgd(config.learning_rate, momentum=0.9)
    return learners.classifier(network(config, info), optimizer, preprocess=info.standardize)


experiment = foldax.Experiment(Config, learner, dataset, name="vanishing_gradients")


def kernel_norms(tree: Any) -> jax.Array:
    """Returns the Frobenius norms `[depth + 1]` of all kernels, from the first layer to the output.

    Each kernel is divided by its largest entry first: squares of float32 values below 1e-19 would be 0.
    """
    kernels = [tree["Dense_0"]["kernel"][None], tree["Dense_1"]["kernel"][None]]
    if "layers" in tree:
        kernels.insert(1, tree["layers"]["Dense_0"]["kernel"])

    def norms(kernel: jax.Array) -> jax.Array:
        largest = jnp.abs(kernel).max(axis=(1, 2), keepdims=True)
        scaled = kernel / jnp.maximum(largest, jnp.finfo(kernel.dtype).tiny)
        return largest[:, 0, 0] * jnp.sqrt(jnp.square(scaled).sum(axis=(1, 2)))

    return jnp.concatenate([norms(kernel) for kernel in kernels])


@functools.partial(jax.jit, static_argnames="info")
def gradient_norms(config: Config, seeds: jax.Array, batch: dict[str, jax.Array], info: data.Info) -> jax.Array:
    """Returns the norms `[S, depth + 1]` of dL/dW of all layers at initialisation, L being the mean loss of a batch.

    Args:
      config: its floats are traced, other fields are static.
      seeds: `[S]`, one network for each.
      batch: "inputs" `[B, ...]` and "targets" `[B]`.
      info: metadata of the dataset.
    """
    model, inputs = network(config, info), info.standardize(batch["inputs"])

    def norms_of_network(seed: jax.Array) -> jax.Array:
        variables = dict(model.init(jax.random.key(seed), inputs, train=False))
        params = variables.pop("params")

        def loss(params: Any) -> jax.Array:
            logits, _ = model.apply({"params": params, **variables}, inputs, train=True, mutable=list(variables))
            return losses.softmax_cross_entropy(logits, batch["targets"]).mean()

        return kernel_norms(jax.grad(loss)(params))

    return jax.vmap(norms_of_network)(seeds)


def measure_gradients(grid: Grid) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Returns gradient norms by layer, and their ratios (first layer to output), of every cell before training.

    The columns are median, min and max over seeds. A norm of 0 is an underflow of float32; where the gradient of the
    output is 0 too, the ratio is NaN.
    """
    digits = dataset(grid.config)
    batch = {name: values[: grid.config.batch_size] for name, values in digits.train.examples().items()}
    cells = [("plain", depth, name) for depth in grid.depths for name in INITIALIZERS]
    cells += [(cure, depth, "glorot") for cure in grid.cures for depth in grid.cure_depths]
    norms, ratios = [], []
    for activation in grid.activations:
        for cure, depth, initializer in cells:
            config = dataclasses.replace(
                grid.config, activation=activation, cure=cure, depth=depth, inverse_variance=INITIALIZERS[initializer]
            )
            values = np.asarray(gradient_norms(config, jnp.arange(grid.seeds), batch, digits.info))
            cell = dict(zip(CELL, (cure, activation, initializer, depth), strict=True))
            norms += [
                {**cell, "layer": layer, **median_and_range(column)} for layer, column in enumerate(values.T, start=1)
            ]
            output = np.where(values[:, -1] > 0, values[:, -1], np.nan)  # 0 / 0 has no ratio
            ratios.append({**cell, **median_and_range(values[:, 0] / output)})
    return pandas.DataFrame(norms), pandas.DataFrame(ratios)


def median_and_range(values: np.ndarray) -> dict[str, float]:
    """Returns median, minimum and maximum of `[S]`."""
    return {"median": float(np.median(values)), "min": float(values.min()), "max": float(values.max())}


def train_all(grid: Grid, runs: Path) -> tuple[pandas.DataFrame, int]:
    """Trains all members that are not done yet; returns a row for each, and the number of programs."""
    common = {"activation": grid.activations, "learning_rate": grid.learning_rates}
    spaces = {
        "plain": {"depth": grid.depths, "inverse_variance": tuple(INITIALIZERS.values()), **common},
        "cures": {"cure": grid.cures, "depth": grid.cure_depths, **common},
    }
    sweeps = [
        foldax.sweep(
            experiment,
            space,
            seeds=grid.seeds,
            config=grid.config,
            max_concurrent=grid.max_concurrent,
            sweep_dir=runs / name,
            resume=(runs / name / "sweep.json").exists(),
        )
        for name, space in spaces.items()
    ]
    programs = sum(len(sweep.metadata["groups"]) for sweep in sweeps)
    members = pandas.concat([sweep.results for sweep in sweeps], ignore_index=True)
    names = {str(values): name for name, values in INITIALIZERS.items()}
    return members.assign(initializer=members["inverse_variance"].map(names)), programs


def choose(members: pandas.DataFrame) -> pandas.DataFrame:
    """Chooses the learning rate of each cell by mean validation accuracy; returns a row of test results each.

    A member that is not finite counts as a guess. The columns test_accuracy, low and high are the mean over seeds and
    its 95% bootstrap interval; min and max are the worst and best seed.
    """
    not_finite = members["status"] == statistics.NOT_FINITE
    scores = {split: members[f"{split}/accuracy"].mask(not_finite, CHANCE) for split in ("validation", "test")}
    members = members.assign(not_finite=not_finite, **scores)
    rows = []
    for cell, group in members.groupby(CELL, sort=False):
        validation = group.groupby("learning_rate")["validation"].mean()
        chosen = group[group["learning_rate"] == validation.idxmax()]
        test = chosen["test"].to_numpy()
        low, high = statistics.bootstrap_interval(test)
        row = {"learning_rate": validation.idxmax(), "validation_accuracy": validation.max()}
        row |= {"test_accuracy": test.mean(), "low": low, "high": high, "min": test.min(), "max": test.max()}
        row |= {"seeds": len(test), "not_finite": int(chosen["not_finite"].sum())}
        rows.append(dict(zip(CELL, cell, strict=True)) | row)
    return pandas.DataFrame(rows)


def draw_panels(
    table: pandas.DataFrame, x: str, columns: tuple[str, str, str], xlabel: str, ylabel: str, log: bool
) -> Any:
    """Plots columns (middle, low, high) by `x`: a panel for each initialiser, a line and band for each activation."""
    figure, axes = plots.new_figure(1, len(INITIALIZERS), width=3.9, height=4.0)
    for axis, initializer in zip(axes[0], INITIALIZERS, strict=True):
        vanished = []
        for activation, (color, marker, line) in COLORS.items():
            rows = table[(table["initializer"] == initializer) & (table["activation"] == activation)].sort_values(x)
            if not len(rows):
                continue
            middle, low, high = (rows[name].to_numpy() for name in columns)
            if log:  # 0 in float32 has no logarithm: the line ends
                middle, low, high = (np.where(middle > 0, values, np.nan) for values in (middle, low, high))
                low = np.maximum(low, np.finfo(np.float32).tiny)
                if np.isnan(middle).all():
                    vanished.append(activation)
            every = max(1, len(rows) // 8)
            style = {"color": color, "marker": marker, "ls": line, "lw": 1.6, "ms": 5, "markevery": every}
            axis.plot(rows[x], middle, label=activation, **style)
            axis.fill_between(rows[x], low, high, color=color, alpha=0.18, lw=0)
        if x == "depth":
            depths = sorted(table[x].unique())
            axis.set_xscale("log", base=2)
            axis.set_xticks(depths, [str(depth) for depth in depths])
        if vanished:
            axis.text(0.04, 0.96, "all 0 in float32:\n" + "\n".join(vanished), va="top", transform=axis.transAxes)
        axis.set(xlabel=xlabel, title=initializer, yscale="log" if log else "linear")
        axis.grid(alpha=0.25)
    lows, highs = zip(*(axis.get_ylim() for axis in axes[0]), strict=True)
    for axis in axes[0]:
        axis.set(xlim=axes[0, 0].get_xlim(), ylim=(min(lows), max(highs)))
    axes[0, 0].set_ylabel(ylabel)
    marks = "line: median, band: range over seeds" if columns == MEDIAN_AND_RANGE else "line: mean, band: 95% interval"
    legend = {"loc": "outside lower center", "ncols": 6, "frameon": False, "title": marks}
    figure.legend(*axes[0, 0].get_legend_handles_labels(), **legend)
    return figure


def draw_cures(table: pandas.DataFrame, grid: Grid) -> Any:
    """Plots test accuracy of each activation (row) with each cure (marker), a panel for each depth."""
    kinds = [("plain", "glorot"), ("plain", "he"), *((cure, "glorot") for cure in grid.cures)]
    colors, markers = ("#999999", "#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7"), "xo^sDP"
    depths = [depth for depth in grid.cure_depths if depth in grid.depths]
    figure, axes = plots.new_figure(1, len(depths), width=5.4, height=4.6)
    for axis, depth in zip(axes[0], depths, strict=True):
        for index, (cure, initializer) in enumerate(kinds):
            rows = table[(table["cure"] == cure) & (table["initializer"] == initializer) & (table["depth"] == depth)]
            rows = rows.set_index("activation").loc[list(grid.activations)]
            heights = np.arange(len(rows)) + 0.13 * (index - (len(kinds) - 1) / 2)
            errors = (rows["test_accuracy"] - rows["low"], rows["high"] - rows["test_accuracy"])
            label = f"{cure}, {initializer}" if cure == "plain" else cure
            style = {"color": colors[index], "marker": markers[index], "ls": "none", "ms": 6, "capsize": 2}
            axis.errorbar(rows["test_accuracy"], heights, xerr=errors, label=label, **style)
        for edge in np.arange(1, len(grid.activations)) - 0.5:
            axis.axhline(edge, color="0.5", alpha=0.4, lw=0.8)
        axis.axvline(CHANCE, color="0.5", ls=":", lw=1)
        axis.set_yticks(range(len(grid.activations)), grid.activations if axis is axes[0, 0] else [])
        axis.set(xlabel="test accuracy", title=f"{depth} hidden layers", xlim=(0, 1.03))
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.25)
    marks = "marks: means with 95% intervals over seeds; dotted: chance"
    legend = {"loc": "outside lower center", "ncols": 6, "frameon": False, "title": marks}
    figure.legend(*axes[0, 0].get_legend_handles_labels(), **legend)
    return figure


def readme_table(results: pandas.DataFrame, ratios: pandas.DataFrame, grid: Grid) -> str:
    """Returns the table of the README: ratios, deepest trained network and accuracies with cures, by activation."""
    deepest, cured = max(grid.depths), max(grid.cure_depths)
    head = ["activation", *(f"ratio, {name}" for name in INITIALIZERS), *(f"deepest, {name}" for name in INITIALIZERS)]
    lines = [[*head, *grid.cures], ["---", *["---:"] * (len(head) + len(grid.cures) - 1)]]
    accuracy, ratio = results.set_index(CELL)["test_accuracy"], ratios.set_index(CELL)["median"]
    for activation in grid.activations:
        deepest_ratios = [ratio["plain", activation, name, deepest] for name in INITIALIZERS]
        cells = ["0 / 0" if np.isnan(value) else f"{value:.1e}" if value else "0" for value in deepest_ratios]
        for name in INITIALIZERS:
            trained = [d for d in grid.depths if accuracy["plain", activation, name, d] >= TRAINED]
            cells.append(str(max(trained, default="none")))
        cells += [f"{accuracy[cure, activation, 'glorot', cured]:.3f}" for cure in grid.cures]
        lines.append([activation, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options = studies.parse_options(__file__, __doc__, arguments, "few and small networks")
    grid = QUICK if options.quick else Grid()
    members, programs = train_all(grid, options.runs_dir)
    results, (gradients, ratios) = choose(members), measure_gradients(grid)
    plain, plain_ratios = (table[table["cure"] == "plain"] for table in (results, ratios))
    deepest = gradients[(gradients["cure"] == "plain") & (gradients["depth"] == max(grid.depths))]
    ratio_label = "first layer's gradient / output's"
    figures = {
        "gradient_by_layer": draw_panels(
            deepest, "layer", MEDIAN_AND_RANGE, "layer (last: output)", "norm of dL/dW", log=True
        ),
        "gradient_ratio": draw_panels(plain_ratios, "depth", MEDIAN_AND_RANGE, "hidden layers", ratio_label, log=True),
        "accuracy": draw_panels(
            plain, "depth", ("test_accuracy", "low", "high"), "hidden layers", "test accuracy", log=False
        ),
        "cures": draw_cures(results, grid),
    }
    options.save({"results": results, "gradients": gradients, "ratios": ratios}, figures)
    print(f"\n{readme_table(results, ratios, grid)}\n")
    not_finite = (members["status"] == statistics.NOT_FINITE).sum()
    steps = members["steps_done"].sum()
    counts = f"{len(members):,} members ({not_finite:,} not finite) of {programs} programs, {steps:,} steps"
    print(f"{counts}; see {options.output_dir}")


if __name__ == "__main__":
    studies.run(main)
