"""With few labels for the digits 5 to 9, what do features of the digits 0 to 4, or of clothes, buy?

    python research/transfer/study.py            # all numbers, the table and the figure again; goes on if killed
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
METHODS = {  # whether it starts from a run, and whether the convolutions stay as they are
    "from scratch": (False, False),
    "fine-tuning": (True, False),
    "feature extraction": (True, True),
    "random features": (False, True),
}
STYLES = {  # Okabe & Ito's colours, told apart by the colour-blind; markers and lines tell them apart in grey
    "from scratch": ("#000000", "o", "-"),
    "fine-tuning": ("#0072B2", "s", "-"),
    "feature extraction": ("#D55E00", "^", "-"),
    "random features": ("#999999", "D", "--"),
}
SOURCES = {"zero_to_four": "digits 0 to 4", "clothes": "Fashion-MNIST"}


class Sizes(NamedTuple):
    """How large everything is.

    Attributes:
      sources: tasks that are learned before, in `SOURCES`, and the steps of each.
      steps: of every run on the digits 5 to 9.
      per_class: labelled images of each of them.
      learning_rates: to choose from, in each cell, by mean validation accuracy.
      depth_decays: likewise.
      seeds: runs of each; every one draws its own labelled images.
      members_at_once: None is one for each device.
    """

    sources: tuple[tuple[str, int], ...] = (("zero_to_four", 300), ("clothes", 2_000))
    steps: int = 300
    per_class: tuple[int, ...] = (1, 5, 10, 50)
    learning_rates: tuple[float, ...] = (1e-3, 3e-3)
    depth_decays: tuple[float, ...] = (1.0, 0.3)
    seeds: int = 8
    members_at_once: int | None = None


QUICK = Sizes((("zero_to_four", 20),), 20, (2,), (1e-2,), (0.5,), 2, 1)


def train_all(sizes: Sizes, runs: Path) -> pandas.DataFrame:
    """Learns the sources, then everything as one sweep, or what is not done yet; returns a row for each member."""
    experiment = foldax.load_experiment(FILE)
    for source, steps in sizes.sources:
        if not (runs / source / "result.json").exists():
            config = experiment.config(task=source, steps=steps)
            foldax.train(experiment, config, run_dir=runs / source, resume=(runs / source / "manifest.json").exists())
    space = {
        "init_from": [None, *(str(runs / source) for source, _ in sizes.sources)],
        "frozen": [False, True],
        "per_class": sizes.per_class,
        "learning_rate": sizes.learning_rates,
        "depth_decay": sizes.depth_decays,
    }
    sweep = foldax.sweep(
        experiment,
        space,
        seeds=sizes.seeds,
        config=experiment.config(task="five_to_nine", steps=sizes.steps),
        members_at_once=sizes.members_at_once,
        sweep_dir=runs / "sweep",
        resume=(runs / "sweep" / "sweep.json").exists(),
    )
    return sweep.results


def choose(members: pandas.DataFrame) -> pandas.DataFrame:
    """Returns a row for each source, method and number of labels: what validates best, and what that tests at.

    What starts from no source has the source "none". middle, low and high are the mean test accuracy over seeds and its
    95% bootstrap interval, std the standard deviation; gain is the mean difference to "from scratch" with the same
    labelled images, with its interval. A member that is not finite counts as a guess.
    """
    lost = members["status"] == statistics.NOT_FINITE
    scores = {split: members[f"{split}/accuracy"].mask(lost, CHANCE) for split in ("validation", "test")}
    source = members["init_from"].map(lambda path: Path(path).name if isinstance(path, str) else "none")
    found = members.assign(lost=lost, source=source, **scores)
    kinds = {kind: method for method, kind in METHODS.items()}
    rows, scratch = [], {}
    for (source, frozen, size), group in found.groupby(["source", "frozen", "per_class"], sort=False):
        validation = group.groupby(["learning_rate", "depth_decay"])["validation"].mean()
        rate, decay = validation.idxmax()
        chosen = group[(group["learning_rate"] == rate) & (group["depth_decay"] == decay)].set_index("seed")
        test, method = chosen["test"], kinds[source != "none", bool(frozen)]
        if method == "from scratch":
            scratch[size] = test
        row = {"source": source, "method": method, "per_class": int(size), "learning_rate": rate, "depth_decay": decay}
        row |= {"validation": validation.max(), "std": test.std(), "seeds": len(test), "lost": group["lost"].sum()}
        for name, values in (("", test), ("gain_", test - scratch[size])):
            low, high = statistics.interval(values.to_numpy())
            row |= {f"{name}middle": values.mean(), f"{name}low": low, f"{name}high": high}
        rows.append(row)
    return pandas.DataFrame(rows)


def lines(results: pandas.DataFrame, source: str) -> dict[str, pandas.DataFrame]:
    """Returns the rows of each method for a source, by number of labels; those without a source belong to all."""
    rows = results[results["source"].isin(["none", source])].sort_values("per_class")
    return {method: rows[rows["method"] == method] for method in METHODS}


def draw(results: pandas.DataFrame, sources: Sequence[str]) -> Any:
    """Draws test accuracy on the digits 5 to 9 against the labels of each, a panel for each source."""
    figure, axes = plots.new_figure(1, len(sources), width=4.4, height=3.9)
    for axis, source in zip(axes[0], sources, strict=True):
        axis.sharey(axes[0, 0])
        for index, (method, rows) in enumerate(lines(results, source).items()):
            color, marker, line = STYLES[method]
            labels = rows["per_class"] * 1.04 ** (
                index - 1.5
            )  # side by side, so that intervals do not cover each other
            errors = (rows["middle"] - rows["low"], rows["high"] - rows["middle"])
            style = {"color": color, "marker": marker, "ls": line, "ms": 5, "lw": 1.5, "capsize": 3}
            axis.errorbar(labels, rows["middle"], yerr=errors, label=method, **style)
        ticks = sorted(set(results["per_class"]))
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set(xlabel="labels of each class", title=f"before: {SOURCES[source]}")
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("test accuracy on the digits 5 to 9")
    axes[0, 0].legend(frameon=False, loc="lower right")
    return figure


def update_flops(frozen: bool) -> float:
    """Returns the floating-point operations of one update, as XLA counts them before it optimises."""
    experiment = foldax.load_experiment(FILE)
    config = experiment.config(task="five_to_nine", per_class=10, frozen=frozen)
    dataset = experiment.dataset(config)
    learner = experiment.learner(config, dataset.info)
    split, key = dataset.train.examples(), jax.random.key(0)
    state = jax.eval_shape(learner.init, key, split)
    batch = {name: values[: config.batch_size] for name, values in split.items()}
    return jax.jit(learner.update).lower(state, batch, key).cost_analysis()["flops"]


def readme_table(results: pandas.DataFrame, sources: Sequence[str]) -> str:
    """Returns the README's table: mean and standard deviation of the test accuracy, by method and labels."""
    counts = sorted(set(results["per_class"]))
    made = [
        ["before", "method", *(f"{n} label{'s' * (n > 1)}" for n in counts)],
        ["---", "---", *["---:"] * len(counts)],
    ]
    for source in ("none", *sources):
        for method, rows in lines(results, source).items():
            rows = rows[rows["source"] == source]
            cells = [f"{row.middle:.3f} ± {row.std:.3f}" for row in rows.itertuples()]
            made += [[SOURCES.get(source, "nothing"), method, *cells]] if cells else []
    return "\n".join(f"| {' | '.join(line)} |" for line in made)


def main(arguments: Sequence[str] | None = None) -> None:
    places = studies.places(__file__, __doc__, arguments, "few steps and labels")
    sizes = QUICK if places.quick else Sizes()
    members = train_all(sizes, places.runs)
    results = choose(members)
    sources = [source for source, _ in sizes.sources]
    places.save({"results": results}, {"transfer": draw(results, sources)})
    trained, frozen = update_flops(False), update_flops(True)
    print(f"\n{readme_table(results, sources)}\n")
    print(f"one update: {trained / 1e6:.1f} MFLOP with all parameters, {frozen / 1e6:.1f} with frozen convolutions")
    print(f"{len(members):,} members, {members['steps_done'].sum():,} steps; table and figure: {places.out}")


if __name__ == "__main__":
    studies.run(main)
