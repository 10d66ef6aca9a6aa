"""What does it cost to treat an episode that was cut off by its time limit as one that is over?

    python research/time_limits/study.py            # all numbers and the figure again; goes on if killed
    python research/time_limits/study.py --quick    # the same with few steps and seeds

README.md beside this file has the answer. A state at the limit is worth what would have followed; a learner that takes
the cut for an end learns that it is worth nothing (Pardo et al., 2018). Everything but that is the same in both ways,
seeds included; all are tested in the same environments.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas

import foldax
from foldax import plots, rl
from foldax.configuration import with_steps
from foldax.evaluation import agents
from foldax.runs import studies

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments" / "rl"
WAYS = {"cut off": False, "over": True}  # what an episode at its limit counts as
LONG = 1_000  # of MountainCar; within its own 200 steps chance hardly ever reaches the top
COLORS = {"cut off": "#0072B2", "over": "#D55E00"}  # Okabe & Ito's


class Case(NamedTuple):
    """An agent in an environment.

    Attributes:
      agent: its name.
      world: name of gymnax's environment.
      file: experiment whose agent and settings these are.
      environment_steps: of a run.
      limit: steps of an episode while it learns; None: the environment's own.
    """

    agent: str
    world: str
    file: str
    environment_steps: int
    limit: int | None = None


CASES = (
    Case("PPO", "CartPole-v1", "ppo_cartpole", 500_000),
    Case("DQN", "CartPole-v1", "dqn_cartpole", 250_000),
    Case("PPO", "Pendulum-v1", "ppo_pendulum", 200_000),
    Case("SAC", "Pendulum-v1", "sac_pendulum", 20_000),
    Case("PPO", "MountainCar-v0", "ppo_acrobot", 300_000, LONG),
    Case("DQN", "MountainCar-v0", "dqn_mountain_car", 300_000, LONG),
)


class Sizes(NamedTuple):
    """How large everything is.

    Attributes:
      seeds: of each case and way.
      updates: of an agent; None: as many as its case has.
      cases: which are run.
    """

    seeds: int = 16
    updates: int | None = None
    cases: tuple[Case, ...] = CASES


QUICK = Sizes(seeds=2, updates=5, cases=CASES[:1])


def experiment(case: Case) -> foldax.Experiment:
    """Returns the case's experiment, with a field that says whether an episode at its limit is over."""
    base = foldax.load_experiment(EXPERIMENTS / f"{case.file}.py")
    module = sys.modules[base.learner.__module__]

    @foldax.config
    class Config(base.config):
        over: bool = False
        """Whether an episode at its time limit counts as over."""

    def learner(config: Config, info: None) -> foldax.Learner:
        world = rl.gymnax(case.world)
        if case.limit is not None:
            world = rl.wrappers.unit_observations(rl.gymnax(case.world, max_steps_in_episode=case.limit))
        return module.agent(config, rl.wrappers.limit_ends(world) if config.over else world)

    return foldax.Experiment(Config, learner, name=f"{case.agent}_{case.world}".replace("-", "_"))


def study(sizes: Sizes, runs: Path) -> pandas.DataFrame:
    """Returns a row for each run: agent, world, what the limit counts as, seed, and its test return."""
    rows = []
    for case in sizes.cases:
        made = experiment(case)
        config = dataclasses.replace(made.config(), environment_steps=case.environment_steps)
        config = config if sizes.updates is None else with_steps(config, sizes.updates)
        folder = runs / made.name
        resume = (folder / "sweep.json").exists()
        space = {"over": list(WAYS.values())}
        sweep = foldax.sweep(made, space, config=config, seeds=sizes.seeds, sweep_dir=folder, resume=resume)
        names = {value: name for name, value in WAYS.items()}
        for _, row in sweep.results.iterrows():
            found = {"limit": names[bool(row["over"])], "seed": row["seed"], "return": row["test/return"]}
            rows.append({"agent": case.agent, "world": case.world, **found})
    return pandas.DataFrame(rows)


def summarized(results: pandas.DataFrame) -> pandas.DataFrame:
    """Returns a row for each case: interquartile means with intervals, and how likely the right way is better."""
    rows = []
    for (agent, world), group in results.groupby(["agent", "world"], sort=False):
        scores = {way: group.loc[group["limit"] == way, "return"].to_numpy() for way in WAYS}
        row: dict[str, Any] = {"agent": agent, "world": world}
        for way, values in scores.items():
            row |= dict(zip((way, f"{way} low", f"{way} high"), map(float, agents.interval(values))))
        better = agents.improvement(*scores.values())
        rows.append(row | dict(zip(("better", "better low", "better high"), better)))
    return pandas.DataFrame(rows)


def draw(results: pandas.DataFrame, summary: pandas.DataFrame) -> Any:
    """Draws every case: interquartile means with their intervals, and seeds as points beside."""
    figure, axes = plots.new_figure(1, len(summary), width=2.2, height=3.0)
    for axis, (_, row) in zip(axes.flat, summary.iterrows(), strict=True):
        case = results[(results["agent"] == row["agent"]) & (results["world"] == row["world"])]
        for place, way in enumerate(WAYS):
            values = case.loc[case["limit"] == way, "return"].to_numpy()
            spread = place + np.linspace(0.1, 0.3, len(values))
            axis.plot(spread, values, "o", color=COLORS[way], alpha=0.4, markersize=3)
            ends = [[row[way] - row[f"{way} low"]], [row[f"{way} high"] - row[way]]]
            axis.errorbar([place], [row[way]], yerr=ends, fmt="s", color=COLORS[way], capsize=4)
        axis.set_xticks(range(len(WAYS)), list(WAYS))
        axis.set(xlim=(-0.5, 1.6), title=f"{row['agent']}, {row['world'].split('-')[0]}")
    axes.flat[0].set_ylabel("return of test episodes")
    figure.supxlabel("an episode at its time limit counts as", fontsize=10)
    return figure


def readme_table(summary: pandas.DataFrame) -> str:
    """Returns the table of README.md."""
    lines = [
        "| agent, environment | cut off | over | probability that cut off is better |",
        "| --- | ---: | ---: | ---: |",
    ]
    for _, row in summary.iterrows():
        cells = [f"{row[way]:.1f} ({row[f'{way} low']:.1f} to {row[f'{way} high']:.1f})" for way in WAYS]
        cells.append(f"{row['better']:.2f} ({row['better low']:.2f} to {row['better high']:.2f})")
        lines.append(f"| {row['agent']}, {row['world']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    places = studies.places(__file__, __doc__, arguments, "few updates, one case")
    sizes = QUICK if places.quick else Sizes()
    results = study(sizes, places.runs)
    summary = summarized(results)
    places.save({"results": results, "summary": summary}, {"returns": draw(results, summary)})
    print(f"\n{readme_table(summary)}\n\n{len(results)} runs; tables and figure: {places.out}")


if __name__ == "__main__":
    studies.run(main)
