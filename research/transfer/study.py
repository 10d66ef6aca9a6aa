"""With few labels for the digits 5 to 9, how much do features of the digits 0 to 4, or of clothes, improve accuracy?

    python research/transfer/study.py            # all results, the table and the figure; resumes if killed
    python research/transfer/study.py --quick    # the same with few steps and labels, in half a minute

README.md beside this file has the answer. How features lose their generality with depth: Yosinski et al. (2014).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pandas

import foldax
from foldax import plots
from foldax.runs import studies
from foldax.sweeps import statistics

HERE = Path(__file__).resolve().parent
FILE = HERE.parents[1] / "experiments" / "supervised" / "transfer_digits.py"
CHANCE = 0.2  # accuracy of a guess among five classes
METHODS = {  # (starts from a source run, convolutions are frozen)
    "from scratch": (False, False),
    "fine-tuning": (True, False),
    "feature extraction": (True, True),
    "random features": (False, True),
}
STYLES = {  # colours of Okabe & Ito, safe for the colour-blind; markers and lines for print in grey
    "from scratch": ("#000000", "o", "-"),
    "fine-tuning": ("#0072B2", "s", "-"),
    "feature extraction": ("#D55E00", "^", "-"),
    "random features": ("#999999", "D", "--"),
}
SOURCES = {"zero_to_four": "digits 0 to 4", "clothes": "Fashion-MNIST"}


class Sizes(NamedTuple):
    """Sizes of the study.

    Attributes:
      sources: source tasks in `SOURCES`, and the training steps of each.
      steps: training steps of each run on the digits 5 to 9.
      examples_per_class: labelled images of each of these digits.
      learning_rates: candidates, chosen in each cell by mean validation accuracy.
      layer_decays: candidates, likewise.
      seeds: runs of each setting, each with its own labelled images.
      max_concurrent: maximum number of members that train at a time; by default one per device.
    """

    sources: tuple[tuple[str, int], ...] = (("zero_to_four", 300), ("clothes", 2_000))
    steps: int = 300
    examples_per_class: tuple[int, ...] = (1, 5, 10, 50)
    learning_rates: tuple[float, ...] = (1e-3, 3e-3)
    layer_decays: tuple[float, ...] = (1.0, 0.3)
    seeds: int = 8
    max_concurrent: int | None = None


QUICK = Sizes((("zero_to_four", 20),), 20, (2,), (1e-2,), (0.5,), 2, 1)


def train_all(sizes: Sizes, runs: Path) -> pandas.DataFrame:
    """Trains the source tasks, then all runs as one sweep, as far as not done yet; returns a row for each member."""
    experiment = foldax.load_experiment(FILE)
    for source, steps in sizes.sources:
        if not (runs / source / "result.json").exists():
            config = experiment.config(task=source, steps=steps)
            foldax.train(experiment, config, run_dir=runs / source, resume=(runs / source / "manifest.json").exists())
    space = {
        "init_from": [None, *(str(runs / source) for source, _ in sizes.sources)],
        "frozen": [False, True],
        "examples_per_class": sizes.examples_per_class,
        "learning_rate": sizes.learning_rates,
        "layer_decay": sizes.layer_decays,
    }
    sweep = foldax.sweep(
        experiment,
        space,
        seeds=sizes.seeds,
        config=experiment.config(task="five_to_nine", steps=sizes.steps),
        max_concurrent=sizes.max_concurrent,
        sweep_dir=runs / "sweep",
        resume=(runs / "sweep" / "sweep.json").exists(),
    )
    return sweep.results


def choose(members: pandas.DataFrame) -> pandas.DataFrame:
    """Chooses the rates of each source, method and number of labels by validation; returns a row of test results each.

    Runs without a source have the source "none". test_accuracy, low and high are the mean over seeds and its 95%
    bootstrap interval, std the standard deviation; gain is the mean difference to "from scratch" with the same labelled
    images, with its interval. A member that is not finite counts as a guess.
    """
    not_finite = members["status"] == statistics.NOT_FINITE
    scores = {split: members[f"{split}/accuracy"].mask(not_finite, CHANCE) for split in ("validation", "test")}
    source = members["init_from"].map(lambda path: Path(path).name if isinstance(path, str) else "none")
    scored = members.assign(not_finite=not_finite, source=source, **scores)
    kinds = {kind: method for method, kind in METHODS.items()}
    rows, scratch = [], {}
    for (source, frozen, size), group in scored.groupby(["source", "frozen", "examples_per_class"], sort=False):
        validation = group.groupby(["learning_rate", "layer_decay"])["validation"].mean()
        rate, decay = validation.idxmax()
        chosen = group[(group["learning_rate"] == rate) & (group["layer_decay"] == decay)].set_index("seed")
        test, method = chosen["test"], kinds[source != "none", bool(frozen)]
        if method == "from scratch":
            scratch[size] = test
        row = {
            "source": source,
            "method": method,
            "examples_per_class": int(size),
            "learning_rate": rate,
            "layer_decay": decay,
        }
        row |= {
            "validation_accuracy": validation.max(),
            "std": test.std(),
            "seeds": len(test),
            "not_finite": group["not_finite"].sum(),
        }
        for name, prefix, values in (("test_accuracy", "", test), ("gain", "gain_", test - scratch[size])):
            low, high = statistics.bootstrap_interval(values.to_numpy())
            row |= {name: values.mean(), f"{prefix}low": low, f"{prefix}high": high}
        rows.append(row)
    return pandas.DataFrame(rows)


def lines(results: pandas.DataFrame, source: str) -> dict[str, pandas.DataFrame]:
    """Returns the rows of each method for a source, by number of labels; rows without a source belong to all."""
    rows = results[results["source"].isin(["none", source])].sort_values("examples_per_class")
    return {method: rows[rows["method"] == method] for method in METHODS}


def draw(results: pandas.DataFrame, sources: Sequence[str]) -> Any:
    """Plots test accuracy on the digits 5 to 9 by labels per class, a panel for each source."""
    figure, axes = plots.new_figure(1, len(sources), width=4.4, height=3.9)
    for axis, source in zip(axes[0], sources, strict=True):
        axis.sharey(axes[0, 0])
        for index, (method, rows) in enumerate(lines(results, source).items()):
            color, marker, line = STYLES[method]
            labels = rows["examples_per_class"] * 1.04 ** (
                index - 1.5
            )  # side by side, so that intervals do not cover each other
            errors = (rows["test_accuracy"] - rows["low"], rows["high"] - rows["test_accuracy"])
            style = {"color": color, "marker": marker, "ls": line, "ms": 5, "lw": 1.5, "capsize": 3}
            axis.errorbar(labels, rows["test_accuracy"], yerr=errors, label=method, **style)
        ticks = sorted(set(results["examples_per_class"]))
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set(xlabel="labels per class", title=f"source: {SOURCES[source]}")
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("test accuracy on the digits 5 to 9")
    axes[0, 0].legend(frameon=False, loc="lower right", title="bars: 95% intervals", title_fontsize=8)
    return figure


def update_flops(frozen: bool) -> float:
    """Returns the floating-point operations of one update, as XLA counts them before optimisation."""
    experiment = foldax.load_experiment(FILE)
    config = experiment.config(task="five_to_nine", examples_per_class=10, frozen=frozen)
    dataset = experiment.dataset(config)
    learner = experiment.learner(config, dataset.info)
    split, key = dataset.train.examples(), jax.random.key(0)
    state = jax.eval_shape(learner.init, key, split)
    batch = {name: values[: config.batch_size] for name, values in split.items()}
    return jax.jit(learner.update).lower(state, batch, key).cost_analysis()["flops"]


def readme_table(results: pandas.DataFrame, sources: Sequence[str]) -> str:
    """Returns the table of the README: mean and standard deviation of the test accuracy, by method and labels."""
    counts = sorted(set(results["examples_per_class"]))
    table = [
        ["source", "method", *(f"{n} label{'s' * (n > 1)}" for n in counts)],
        ["---", "---", *["---:"] * len(counts)],
    ]
    for source in ("none", *sources):
        for method, rows in lines(results, source).items():
            rows = rows[rows["source"] == source]
            cells = [f"{row.test_accuracy:.3f} ± {row.std:.3f}" for row in rows.itertuples()]
            table += [[SOURCES.get(source, "none"), method, *cells]] if cells else []
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def main(arguments: Sequence[str] | None = None) -> None:
    options = studies.parse_options(__file__, __doc__, arguments, "few steps and labels")
    sizes = QUICK if options.quick else Sizes()
    members = train_all(sizes, options.runs_dir)
    results = choose(members)
    sources = [source for source, _ in sizes.sources]
    options.save({"results": results}, {"transfer": draw(results, sources)})
    trained, frozen = update_flops(False), update_flops(True)
    print(f"\n{readme_table(results, sources)}\n")
    print(f"one update: {trained / 1e6:.1f} MFLOP with all parameters, {frozen / 1e6:.1f} with frozen convolutions")
    print(f"{len(members):,} members, {members['steps_done'].sum():,} steps; table and figure: {options.output_dir}")


if __name__ == "__main__":
    studies.run(main)
