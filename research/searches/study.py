"""Do successive halving and population-based training match a grid search on digits with half of its steps?

    python research/searches/study.py            # all results and the figure; resumes if killed
    python research/searches/study.py --quick    # the same with few members and steps, in seconds

README.md beside this file has the answer. Successive halving: Jamieson & Talwalkar (2016). Population-based training:
Jaderberg et al. (2017).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas

import foldax
from foldax import plots
from foldax.runs import studies

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parents[1] / "experiments" / "supervised" / "digits.py"
METRIC = "validation/loss"  # of the last state; lower is better
COLORS = {"grid": "#000000", "halving": "#0072B2", "pbt": "#D55E00"}  # Okabe & Ito


class Sizes(NamedTuple):
    """Sizes of the study.

    Attributes:
      steps: training steps of a member that is not stopped.
      values: number of evenly spaced grid values of each field.
      samples: number of configs that successive halving samples from the ranges.
      population: members of population-based training, half as many as those of the grid.
      repetitions: number of repetitions, each with other seeds and samples.
    """

    steps: int = 2_000
    values: tuple[int, int, int] = (6, 3, 3)
    samples: int = 96
    population: int = 27
    repetitions: int = 5


QUICK = Sizes(steps=45, values=(3, 2, 1), samples=9, population=3, repetitions=2)
RANGES = {
    "learning_rate": foldax.Range(1e-4, 1e-1, log=True),
    "weight_decay": foldax.Range(1e-3, 1.0, log=True),
    "dropout": foldax.Range(0.0, 0.6),
}


def grid(sizes: Sizes) -> dict[str, list[float]]:
    """Returns evenly spaced values of each range; a single value is its middle."""
    space = {}
    for (name, values), count in zip(RANGES.items(), sizes.values, strict=True):
        spaced = np.geomspace if values.log else np.linspace
        points = spaced(values.low, values.high, count) if count > 1 else spaced(values.low, values.high, 3)[1:2]
        space[name] = [float(value) for value in points]
    return space


def searches(sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Returns the arguments of `foldax.sweep` for each search."""
    min_steps = sizes.steps // 9  # two rungs: schedules of very short runs predict little about long ones
    halving = foldax.SuccessiveHalving(reduction_factor=3, min_steps=min_steps)
    pbt = foldax.PBT(perturbation_interval=max(1, sizes.steps // 20))
    return {
        "grid": {"space": grid(sizes)},
        "halving": {"space": RANGES, "samples": sizes.samples, "search": halving},
        "pbt": {"space": RANGES, "samples": sizes.population, "search": pbt},
    }


def run_all(sizes: Sizes, runs: Path) -> pandas.DataFrame:
    """Runs all repetitions of each search that are not done yet; returns a row for each."""
    experiment, rows = foldax.load_experiment(DIGITS), []
    for repetition in range(sizes.repetitions):
        config = experiment.config(steps=sizes.steps, seed=1_000 * repetition)
        for name, options in searches(sizes).items():
            path = runs / f"{name}-{repetition}"
            resume = (path / "sweep.json").exists()
            sweep = foldax.sweep(experiment, **options, config=config, sweep_dir=path, resume=resume, verbose=False)
            best = sweep.results.loc[sweep.results.query("status == 'finished'")[METRIC].idxmin()]
            row = {
                "search": name,
                "repetition": repetition,
                "best_validation_loss": best[METRIC],
                "member": int(best["member"]),
            }
            row |= {f"{split}_accuracy": best[f"{split}/accuracy"] for split in ("validation", "test")}
            row |= {"members": len(sweep.results), "member_steps": sweep.metadata["member_steps"]}
            rows.append(row | {"programs": len(sweep.metadata["groups"]), "seconds": sweep.metadata["seconds"]})
            print(
                "  ".join(
                    f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in row.items()
                )
            )
    return pandas.DataFrame(rows)


def draw(table: pandas.DataFrame) -> Any:
    """Plots the best validation loss by member-steps: a point for each repetition, a cross for their mean."""
    figure, axes = plots.new_figure(1, 1, width=5.4, height=3.8)
    axis = axes[0, 0]
    for name, color in COLORS.items():
        rows = table[table["search"] == name]
        axis.scatter(rows["member_steps"] / 1e3, rows["best_validation_loss"], color=color, alpha=0.5, s=28)
        axis.scatter(
            rows["member_steps"].mean() / 1e3,
            rows["best_validation_loss"].mean(),
            color=color,
            marker="x",
            s=90,
            label=name,
        )
    axis.set(xlabel="thousand member-steps", ylabel="best validation loss", xlim=(0, None))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, title="points: repetitions\ncrosses: their means", title_fontsize=8)
    return figure


def readme_table(table: pandas.DataFrame) -> str:
    """Returns the table of the README: mean and standard deviation over repetitions."""
    columns = [
        "search",
        "members",
        "member-steps",
        "fraction of the grid",
        "best validation loss",
        "difference to the grid",
    ]
    lines = [f"| {' | '.join([*columns, 'test accuracy'])} |", f"| --- {'| ---: ' * len(columns)}|"]
    by_grid = table[table["search"] == "grid"].set_index("repetition")
    for name in COLORS:
        rows = table[table["search"] == name].set_index("repetition")
        fraction = rows["member_steps"].mean() / by_grid["member_steps"].mean()
        difference = rows["best_validation_loss"] - by_grid["best_validation_loss"]
        cells = [name, str(rows["members"].iloc[0]), f"{rows['member_steps'].mean():,.0f}", f"{fraction:.2f}"]
        cells += [
            f"{rows['best_validation_loss'].mean():.4f} ± {rows['best_validation_loss'].std():.4f}",
            f"{difference.mean():+.4f} ± {difference.std():.4f}",
        ]
        cells.append(f"{rows['test_accuracy'].mean():.4f} ± {rows['test_accuracy'].std():.4f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options = studies.parse_options(__file__, __doc__, arguments, "few members and steps")
    sizes = QUICK if options.quick else Sizes()
    table = run_all(sizes, options.runs_dir)
    options.save({"results": table}, {"searches": draw(table)})
    minutes = table["seconds"].sum() / 60
    print(f"\n{readme_table(table)}\n\n{minutes:.1f} minutes; table and figure: {options.output_dir}")


if __name__ == "__main__":
    studies.run(main)
