"""How much do L1, L2, dropout, batch norm, early stopping and augmentation improve as the training set shrinks?

    python research/regularization/study.py            # all results, tables and figures; resumes if killed
    python research/regularization/study.py --quick    # the same on two small sets, in half a minute

README.md beside this file has the answer. Dropout: Srivastava et al. (2014). Batch normalisation: Ioffe & Szegedy
(2015). Early stopping: Prechelt (1998). Affine augmentation: Simard et al. (2003).
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax
import pandas

import foldax
from foldax import augment, data, learners, models, plots
from foldax.runs import studies
from foldax.sweeps import statistics

CLASSES = 10
GUESS = {"accuracy": 1 / CLASSES, "loss": math.log(CLASSES)}
TRACED = ("L1", "L2", "dropout", "augmentation")  # regularisers whose strength is traced, so that they share a program
REGULARIZERS = ("none", *TRACED, "batch norm", "early stopping", "all together")
COLORS = ("#000000", "#0072B2", "#009E73", "#E69F00", "#D55E00")  # Okabe & Ito, safe for the colour-blind
MARKERS = "o^sDv"


@foldax.config
class Config(foldax.Training):
    steps: int = 500
    log_every = 250
    evaluate_every = 0  # only at the end: the last state is tested, unless training stops early
    checkpoint_every = 0  # a member takes a second
    keep = "last"
    batch_size: int = 50
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    examples_per_class: int = 100
    """Training images of each of the ten classes, sampled anew by each seed."""
    batch_norm: bool = False
    """Whether hidden layers are normalised over the batch."""
    strengths: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strength of each of `TRACED`."""
    learning_rate: float = 0.03


class Grid(NamedTuple):
    """The grid of runs that are compared.

    Attributes:
      config: fields that all members share.
      examples_per_class: a tenth of each size of the training set.
      strengths: candidates for each of `TRACED`, chosen in each cell by validation accuracy.
      patience: candidates for the patience of early stopping, in evaluations.
      evaluate_every: steps between two evaluations, for early stopping.
      strength_fractions: candidates for the fraction of the chosen strengths in the combination of all regularisers.
      learning_rates: candidates for the learning rate.
      seeds: runs of each setting.
      max_concurrent: maximum number of members that train at a time; by default one per device.
    """

    config: Config = Config()
    examples_per_class: tuple[int, ...] = (100, 50, 20, 10, 5)
    strengths: tuple[tuple[float, ...], ...] = (
        (1e-5, 1e-4, 3e-4, 1e-3),
        (1e-4, 1e-3, 3e-3, 1e-2),
        (0.05, 0.1, 0.3, 0.5),
        (0.25, 0.5, 1.0, 1.5),
    )
    patience: tuple[int, ...] = (1, 3, 10)
    evaluate_every: int = 20
    strength_fractions: tuple[float, ...] = (0.25, 0.5, 1.0)
    learning_rates: tuple[float, ...] = (0.03, 0.1)
    seeds: int = 8
    max_concurrent: int | None = None


QUICK = Grid(Config(steps=20, hidden=(8,)), (10, 5), ((1e-4,), (1e-3,), (0.3,), (0.5,)), (1,), 10, (0.5,), (0.1,), 2, 1)


def dataset(config: Config) -> data.Dataset:
    return data.load("digits", batch_size=config.batch_size, validation=0.15, test=0.25)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    """Builds a classifier trained by SGD with momentum; Adam would rescale the gradients of the penalties.

    Augmentation of strength 1 rotates an image by up to 20 degrees, translates it by up to a pixel and scales it by up
    to 15%.
    """
    l1, l2, dropout, amount = config.strengths
    model = models.MLP(
        (*config.hidden, info.num_classes), dropout=dropout, normalization="batch" if config.batch_norm else None
    )
    classifier = learners.classifier(
        model,
        optax.sgd(config.learning_rate, momentum=0.9),
        preprocess=info.standardize,
        augment=augment.random_affine(rotation=20 * amount, translation=amount / 8, scale=0.15 * amount),
        l1=l1,
        l2=l2,
    )
    return learners.subset(classifier, config.examples_per_class, info)


experiment = foldax.Experiment(Config, learner, dataset, name="regularization")


def alone(regularizer: str, strength: float) -> tuple[float, ...]:
    """Returns strengths that are 0 for all but one regulariser."""
    return tuple(strength if name == regularizer else 0.0 for name in TRACED)


def run(grid: Grid, path: Path, space: dict[str, Any], **changes: Any) -> pandas.DataFrame:
    """Trains the members of a sweep that are not finished yet; returns a row for each member."""
    return foldax.sweep(
        experiment,
        space | {"learning_rate": grid.learning_rates},
        seeds=grid.seeds,
        config=dataclasses.replace(grid.config, **changes),
        max_concurrent=grid.max_concurrent,
        sweep_dir=path,
        resume=(path / "sweep.json").exists(),
    ).results


def train_all(grid: Grid, runs: Path) -> pandas.DataFrame:
    """Trains all members; returns a row for each, with its regulariser and strength."""
    stop = {"keep": "best", "evaluate_every": grid.evaluate_every}
    candidates = [(name, value) for name, values in zip(TRACED, grid.strengths, strict=True) for value in values]
    labels = {str(alone(*label)): label for label in [("none", 0.0), *candidates]}
    traced = {"examples_per_class": grid.examples_per_class, "strengths": [alone(*label) for label in labels.values()]}
    plain = run(grid, runs / "traced", traced)
    normal = run(grid, runs / "batch-norm", {"examples_per_class": grid.examples_per_class}, batch_norm=True)
    early = run(
        grid,
        runs / "early-stopping",
        {"examples_per_class": grid.examples_per_class, "patience": grid.patience},
        **stop,
    )
    labels_of_members = plain["strengths"].map(labels)
    members = [
        plain.assign(regularizer=labels_of_members.str[0], strength=labels_of_members.str[1]),
        normal.assign(regularizer="batch norm", strength=1.0),
        early.assign(regularizer="early stopping", strength=early["patience"].astype(float)),
    ]
    chosen = choose(pandas.concat(members, ignore_index=True)).set_index(["regularizer", "examples_per_class"])[
        "strength"
    ]
    for size in grid.examples_per_class:
        full = [chosen[name, size] for name in TRACED]
        mixed = {tuple(float(fraction * value) for value in full): fraction for fraction in grid.strength_fractions}
        space = {"examples_per_class": [size], "strengths": list(mixed)}
        patience = int(chosen["early stopping", size])
        together = run(grid, runs / f"together-{size}", space, batch_norm=True, patience=patience, **stop)
        fractions = together["strengths"].map({str(strengths): fraction for strengths, fraction in mixed.items()})
        members.append(together.assign(regularizer="all together", strength=fractions))
    return pandas.concat(members, ignore_index=True)


def with_scores(members: pandas.DataFrame) -> pandas.DataFrame:
    """Returns the members with columns such as "test accuracy"; a member that is not finite counts as a guess."""
    not_finite = members["status"] == statistics.NOT_FINITE
    scores = {
        f"{split} {metric}": members[f"{split}/{metric}"].mask(not_finite, guess)
        for split in ("validation", "test")
        for metric, guess in GUESS.items()
    }
    return members.assign(not_finite=not_finite, **scores)


def choose(members: pandas.DataFrame) -> pandas.DataFrame:
    """Chooses the setting of each regulariser and size by mean validation accuracy; returns a row of test results each.

    Columns are the mean of accuracy and loss over seeds with its 95% bootstrap interval (low, high), and the same of
    the difference (gain) to "none" with the same seed: the same images, and the same weights where shapes agree.
    """
    rows, plain = [], {}
    for (regularizer, size), group in with_scores(members).groupby(["regularizer", "examples_per_class"], sort=False):
        validation = group.groupby(["strength", "learning_rate"])["validation accuracy"].mean()
        strength, rate = validation.idxmax()
        chosen = group[(group["strength"] == strength) & (group["learning_rate"] == rate)].set_index("seed")
        row = {"regularizer": regularizer, "examples_per_class": size, "strength": strength, "learning_rate": rate}
        row |= {
            "validation_accuracy": validation.max(),
            "seeds": len(chosen),
            "not_finite": int(group["not_finite"].sum()),
        }
        row["steps"] = chosen["steps_done"].mean()
        for metric in GUESS:
            test = chosen[f"test {metric}"]
            if regularizer == "none":
                plain[size, metric] = test
            for name, values in ((metric, test), (f"{metric}_gain", test - plain[size, metric])):
                low, high = statistics.bootstrap_interval(values.to_numpy())
                row |= {name: values.mean(), f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    order = {name: index for index, name in enumerate(REGULARIZERS)}
    return pandas.DataFrame(rows).sort_values("regularizer", key=lambda names: names.map(order), kind="stable")


def draw_gains(results: pandas.DataFrame, metric: str) -> Any:
    """Plots the test metric of none and all, and the difference of each regulariser to none, by number of images."""
    percent = 100.0 if metric == "accuracy" else 1.0
    figure, axes = plots.new_figure(2, 4, width=2.9, height=2.7)
    for axis, regularizer in zip(axes.flat, REGULARIZERS, strict=True):
        if regularizer != "none":
            axis.sharey(axes.flat[1])
        lines = ("none", "all together") if regularizer == "none" else (regularizer,)
        for name, color, marker in zip(lines, COLORS[:2] if regularizer == "none" else COLORS[1:], "os", strict=False):
            rows = results[results["regularizer"] == name].sort_values("examples_per_class")
            column = metric if regularizer == "none" else f"{metric}_gain"
            middle, low, high = (percent * rows[f"{column}{end}"].to_numpy() for end in ("", "_low", "_high"))
            style = {"color": color, "marker": marker, "ms": 5, "lw": 1.5, "capsize": 3}
            sizes = rows["examples_per_class"] * CLASSES
            axis.errorbar(sizes, middle, yerr=(middle - low, high - middle), label=name, **style)
        axis.set_title("test " + metric if regularizer == "none" else f"{regularizer}, minus none", fontsize=10)
        if regularizer == "none":
            axis.legend(frameon=False, fontsize=8)
        else:
            axis.axhline(0.0, color="0.4", lw=1, ls="--")
        unit = " (points)" if metric == "accuracy" else " (nats)"
        axis.set_ylabel(metric + unit if axis in (axes[0, 0], axes[0, 1], axes[1, 0]) else "")
        _size_axis(axis, results)
    figure.supxlabel("bars: 95% intervals over seeds; dashed: no gain", fontsize=9)
    return figure


def draw_strengths(members: pandas.DataFrame, results: pandas.DataFrame) -> Any:
    """Plots validation accuracy by strength of each regulariser at the best learning rate, a line for each size."""
    names = (*TRACED, "early stopping", "all together")
    figure, axes = plots.new_figure(2, 3, width=3.4, height=2.8)
    labels = {"early stopping": "patience in evaluations", "all together": "fraction of each chosen strength"}
    for axis, regularizer in zip(axes.flat, names, strict=True):
        group = with_scores(members[members["regularizer"] == regularizer])
        cells = group.groupby(["examples_per_class", "strength", "learning_rate"])["validation accuracy"].mean()
        best = cells.groupby(["examples_per_class", "strength"]).max()
        none = results[results["regularizer"] == "none"].set_index("examples_per_class")["validation_accuracy"]
        for size, color, marker in zip(none.index, COLORS, MARKERS, strict=False):
            axis.plot(best[size], color=color, marker=marker, ms=4, lw=1.4, label=f"{size * CLASSES:,}")
            axis.axhline(none[size], color=color, lw=0.8, ls=":")
        if regularizer in ("L1", "L2", "augmentation", "early stopping", "all together"):
            axis.set_xscale("log")
        values = sorted(set(group["strength"]))
        axis.set_xticks(values, [f"{value:g}" for value in values], fontsize=8)
        axis.minorticks_off()
        axis.set_title(regularizer, fontsize=10)
        axis.set_xlabel(labels.get(regularizer, "strength"))
        axis.set_ylabel("validation accuracy" if axis in axes[:, 0] else "")
        axis.grid(alpha=0.25)
    title = {"title": "training images (dotted: none)"}
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, **title)
    return figure


def _size_axis(axis: Any, results: pandas.DataFrame) -> None:
    sizes = sorted({size * CLASSES for size in results["examples_per_class"]})
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel("training images")
    axis.grid(alpha=0.25)


def readme_table(results: pandas.DataFrame, metric: str) -> str:
    """Returns a table of the README: the metric without regularisers and the gain of each, with intervals, by size."""
    sizes = sorted(set(results["examples_per_class"]), reverse=True)
    scale, digits = (100.0, 1) if metric == "accuracy" else (1.0, 3)
    lines = [["regulariser", *(f"{size * CLASSES:,} images" for size in sizes)], ["---", *["---:"] * len(sizes)]]
    cells = results.set_index(["regularizer", "examples_per_class"])
    for name in REGULARIZERS:
        column, sign = (metric, "") if name == "none" else (f"{metric}_gain", "+")
        line = [name]
        for size in sizes:
            middle, low, high = (scale * cells.loc[(name, size), f"{column}{end}"] for end in ("", "_low", "_high"))
            line.append(f"{middle:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options = studies.parse_options(__file__, __doc__, arguments, "two small training sets")
    grid = QUICK if options.quick else Grid()
    members = train_all(grid, options.runs_dir)
    results = choose(members)
    figures = {f"{metric}_gains": draw_gains(results, metric) for metric in GUESS}
    figures["strengths"] = draw_strengths(members, results)
    options.save({"results": results}, figures)
    print(f"\n{readme_table(results, 'accuracy')}\n\n{readme_table(results, 'loss')}\n")
    not_finite, steps = (members["status"] == statistics.NOT_FINITE).sum(), members["steps_done"].sum()
    counts = f"{len(members):,} members ({not_finite:,} not finite), {steps:,} steps"
    print(f"{counts}; table and figures: {options.output_dir}")


if __name__ == "__main__":
    studies.run(main)
