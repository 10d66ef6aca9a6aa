"""Do successive halving and population-based training find on digits what a grid finds, with half of its steps?

    python research/searches/study.py            # all numbers and the figure again; goes on if killed
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
METRIC = "validation/loss"  # of the last state; less is better
COLORS = {"grid": "#000000", "halving": "#0072B2", "pbt": "#D55E00"}  # Okabe & Ito's


class Sizes(NamedTuple):
    """How large everything is.

    Attributes:
      steps: of a member that runs to its end.
      values: of each field in the grid, evenly spaced from end to end of its range.
      samples: configs that halving draws from the ranges.
      population: members of population-based training, half as many as the grid has.
      repetitions: each with other seeds, draws included.
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
    """Returns evenly spaced values of each range; the middle of it where there is one."""
    space = {}
    for (name, values), count in zip(RANGES.items(), sizes.values, strict=True):
        spaced = np.geomspace if values.log else np.linspace
        found = spaced(values.low, values.high, count) if count > 1 else spaced(values.low, values.high, 3)[1:2]
        space[name] = [float(value) for value in found]
    return space


def searches(sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Returns what each contender gives `foldax.sweep`."""
    least = sizes.steps // 9  # two decisions: the schedules of very short runs say little of long ones
    return {
        "grid": {"space": grid(sizes)},
        "halving": {"space": RANGES, "samples": sizes.samples, "search": foldax.Halving(rate=3, least=least)},
        "pbt": {"space": RANGES, "samples": sizes.population, "search": foldax.PBT(every=max(1, sizes.steps // 20))},
    }


def run_all(sizes: Sizes, runs: Path) -> pandas.DataFrame:
    """Runs every contender in every repetition, or what is not done yet; returns a row for each."""
    experiment, rows = foldax.load_experiment(DIGITS), []
    for repetition in range(sizes.repetitions):
        config = experiment.config(steps=sizes.steps, seed=1_000 * repetition)
        for name, options in searches(sizes).items():
            path = runs / f"{name}-{repetition}"
            resume = (path / "sweep.json").exists()
            sweep = foldax.sweep(experiment, **options, config=config, sweep_dir=path, resume=resume, verbose=False)
            best = sweep.results.loc[sweep.results.query("status == 'finished'")[METRIC].idxmin()]
            row = {"search": name, "repetition": repetition, "best": best[METRIC], "member": int(best["member"])}
            row |= {split: best[f"{split}/accuracy"] for split in ("validation", "test")}
            row |= {"members": len(sweep.results), "member_steps": sweep.facts["member_steps"]}
            rows.append(row | {"programs": len(sweep.facts["groups"]), "seconds": sweep.facts["seconds"]})
            print(
                "  ".join(
                    f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in row.items()
                )
            )
    return pandas.DataFrame(rows)


def draw(table: pandas.DataFrame) -> Any:
    """Draws the best validation loss against the steps it took: a point for each repetition, a cross for their mean."""
    figure, axes = plots.new_figure(1, 1, width=5.4, height=3.8)
    axis = axes[0, 0]
    for name, color in COLORS.items():
        rows = table[table["search"] == name]
        axis.scatter(rows["member_steps"] / 1e3, rows["best"], color=color, alpha=0.5, s=28)
        axis.scatter(rows["member_steps"].mean() / 1e3, rows["best"].mean(), color=color, marker="x", s=90, label=name)
    axis.set(xlabel="thousand member-steps", ylabel="best validation loss", xlim=(0, None))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    return figure


def readme_table(table: pandas.DataFrame) -> str:
    """Returns the README's table: mean and standard deviation over repetitions."""
    columns = ["search", "members", "member-steps", "of the grid's", "best validation loss", "against the grid's"]
    lines = [f"| {' | '.join([*columns, 'test accuracy'])} |", f"| --- {'| ---: ' * len(columns)}|"]
    of_grid = table[table["search"] == "grid"].set_index("repetition")
    for name in COLORS:
        rows = table[table["search"] == name].set_index("repetition")
        share = rows["member_steps"].mean() / of_grid["member_steps"].mean()
        apart = rows["best"] - of_grid["best"]
        cells = [name, str(rows["members"].iloc[0]), f"{rows['member_steps'].mean():,.0f}", f"{share:.2f}"]
        cells += [f"{rows['best'].mean():.4f} ± {rows['best'].std():.4f}", f"{apart.mean():+.4f} ± {apart.std():.4f}"]
        cells.append(f"{rows['test'].mean():.4f} ± {rows['test'].std():.4f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    places = studies.places(__file__, __doc__, arguments, "few members and steps")
    sizes = QUICK if places.quick else Sizes()
    table = run_all(sizes, places.runs)
    places.save({"results": table}, {"searches": draw(table)})
    print(f"\n{readme_table(table)}\n\n{table['seconds'].sum() / 60:.1f} minutes; table and figure: {places.out}")


if __name__ == "__main__":
    studies.run(main)
