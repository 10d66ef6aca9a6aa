"""Does it cost return to treat the end of an episode at its time limit as termination?

    python research/time_limits/study.py            # all numbers and the figure again; goes on if killed
    python research/time_limits/study.py --quick    # the same with few steps and seeds

README.md beside this file has the answer. The value of the last observation is that of the rewards that would have
followed; a learner that takes truncation for termination learns that it is 0 (Pardo et al., 2018). All else is the same
for both, seeds included, and both are tested in the same environments.
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
TREATMENTS = {"truncated": False, "terminated": True}  # how the end at the time limit is reported to the learner
ENVIRONMENTS = {"CartPole-v1": rl.cartpole, "Pendulum-v1": rl.pendulum, "MountainCar-v0": rl.mountain_car}
LONG_LIMIT = 1_000  # of MountainCar: random actions hardly ever reach the top within its own 200 steps
COLORS = {"truncated": "#0072B2", "terminated": "#D55E00"}  # colours of Okabe & Ito


class Case(NamedTuple):
    """An agent in an environment.

    Attributes:
      agent: name of the algorithm.
      environment: name of the environment in Gymnasium.
      file: experiment with the agent and its settings.
      environment_steps: length of a run.
      limit: time limit of training episodes in steps; None: the environment's own.
    """

    agent: str
    environment: str
    file: str
    environment_steps: int
    limit: int | None = None


CASES = (
    Case("PPO", "CartPole-v1", "ppo_cartpole", 500_000),
    Case("DQN", "CartPole-v1", "dqn_cartpole", 250_000),
    Case("PPO", "Pendulum-v1", "ppo_pendulum", 200_000),
    Case("SAC", "Pendulum-v1", "sac_pendulum", 20_000),
    Case("PPO", "MountainCar-v0", "ppo_acrobot", 300_000, LONG_LIMIT),
    Case("DQN", "MountainCar-v0", "dqn_mountain_car", 300_000, LONG_LIMIT),
)


class Sizes(NamedTuple):
    """Size of the study.

    Attributes:
      seeds: runs of each case and treatment.
      updates: updates of a run; None: those of its case.
      cases: cases that are run.
    """

    seeds: int = 16
    updates: int | None = None
    cases: tuple[Case, ...] = CASES


QUICK = Sizes(seeds=2, updates=5, cases=CASES[:1])


def experiment(case: Case) -> foldax.Experiment:
    """The experiment of a case, with a field for the treatment of the time limit."""
    base = foldax.load_experiment(EXPERIMENTS / f"{case.file}.py")
    module = sys.modules[base.learner.__module__]

    @foldax.config
    class Config(base.config):
        terminate_on_time_limit: bool = False
        """Report the end of an episode at its time limit as termination."""

    def learner(config: Config, info: None) -> foldax.Learner:
        make = ENVIRONMENTS[case.environment]
        environment = make()
        if case.limit is not None:
            environment = rl.wrappers.rescale_observations(make(max_steps=case.limit))
        if config.terminate_on_time_limit:
            environment = rl.wrappers.terminate_on_time_limit(environment)
        return module.agent(config, environment)

    return foldax.Experiment(Config, learner, name=f"{case.agent}_{case.environment}".replace("-", "_"))


def study(sizes: Sizes, runs: Path) -> pandas.DataFrame:
    """Runs all cases; a row for each run: agent, environment, treatment of the limit, seed and test return."""
    rows = []
    for case in sizes.cases:
        case_experiment = experiment(case)
        config = dataclasses.replace(case_experiment.config(), environment_steps=case.environment_steps)
        config = config if sizes.updates is None else with_steps(config, sizes.updates)
        folder = runs / case_experiment.name
        resume = (folder / "sweep.json").exists()
        space = {"terminate_on_time_limit": list(TREATMENTS.values())}
        sweep = foldax.sweep(case_experiment, space, config=config, seeds=sizes.seeds, sweep_dir=folder, resume=resume)
        names = {value: name for name, value in TREATMENTS.items()}
        for _, row in sweep.results.iterrows():
            values = {"seed": row["seed"], "return": row["test/return"]}
            limit = names[bool(row["terminate_on_time_limit"])]
            rows.append({"agent": case.agent, "environment": case.environment, "limit": limit, **values})
    return pandas.DataFrame(rows)


def summarize(results: pandas.DataFrame) -> pandas.DataFrame:
    """A row for each case: interquartile means with intervals, and the probability that truncation is better."""
    rows = []
    for (agent, environment), group in results.groupby(["agent", "environment"], sort=False):
        scores = {name: group.loc[group["limit"] == name, "return"].to_numpy() for name in TREATMENTS}
        row: dict[str, Any] = {"agent": agent, "environment": environment}
        for name, values in scores.items():
            row |= dict(zip((name, f"{name} low", f"{name} high"), map(float, agents.bootstrap_interval(values))))
        better = agents.improvement_interval(*scores.values())
        rows.append(row | dict(zip(("better", "better low", "better high"), better)))
    return pandas.DataFrame(rows)


def draw(results: pandas.DataFrame, summary: pandas.DataFrame) -> Any:
    """Plots every case: interquartile means with their confidence intervals, and the seeds as points beside."""
    figure, axes = plots.new_figure(1, len(summary), width=2.2, height=3.0)
    for axis, (_, row) in zip(axes.flat, summary.iterrows(), strict=True):
        case = results[(results["agent"] == row["agent"]) & (results["environment"] == row["environment"])]
        for x, name in enumerate(TREATMENTS):
            values = case.loc[case["limit"] == name, "return"].to_numpy()
            jitter = x + np.linspace(0.1, 0.3, len(values))
            axis.plot(jitter, values, "o", color=COLORS[name], alpha=0.4, markersize=3)
            errors = [[row[name] - row[f"{name} low"]], [row[f"{name} high"] - row[name]]]
            axis.errorbar([x], [row[name]], yerr=errors, fmt="s", color=COLORS[name], capsize=4)
        axis.set_xticks(range(len(TREATMENTS)), list(TREATMENTS))
        axis.set(xlim=(-0.5, 1.6), title=f"{row['agent']}, {row['environment'].split('-')[0]}")
    axes.flat[0].set_ylabel("greedy test return")
    marks = "squares: interquartile means with 95% intervals; points: seeds"
    figure.supxlabel(f"the end of an episode at its time limit is reported as\n({marks})", fontsize=9)
    return figure


def readme_table(summary: pandas.DataFrame) -> str:
    """The table of README.md."""
    lines = [
        "| agent, environment | truncated | terminated | probability that truncated is better |",
        "| --- | ---: | ---: | ---: |",
    ]
    for _, row in summary.iterrows():
        cells = [f"{row[name]:.1f} ({row[f'{name} low']:.1f} to {row[f'{name} high']:.1f})" for name in TREATMENTS]
        cells.append(f"{row['better']:.2f} ({row['better low']:.2f} to {row['better high']:.2f})")
        lines.append(f"| {row['agent']}, {row['environment']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options = studies.parse_options(__file__, __doc__, arguments, "few updates, one case")
    sizes = QUICK if options.quick else Sizes()
    results = study(sizes, options.runs_dir)
    summary = summarize(results)
    options.save({"results": results, "summary": summary}, {"returns": draw(results, summary)})
    print(f"\n{readme_table(summary)}\n\n{len(results)} runs; tables and figure: {options.output_dir}")


if __name__ == "__main__":
    studies.run(main)
