"""Ablation of a deep Q-network: what each of its extensions contributes.

    python research/dqn_parts/study.py            # runs everything and draws the figure; a killed study resumes
    python research/dqn_parts/study.py --quick    # one game, few steps and seeds

README.md beside this file has the results. The full agent has a replay buffer, a target network, double Q-learning, a
dueling network, three-step returns and prioritized replay; each variant lacks one of them and is otherwise the same.
Without replay there are no priorities either.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
import pandas

import foldax
from foldax import learners, models, plots, rl
from foldax.evaluation import agents
from foldax.runs import studies

PARTS = ("replay", "target", "double", "dueling", "n_step", "prioritized")


class Game(NamedTuple):
    """Size of the runs of a game.

    Attributes:
      environment_steps: length of a run.
      num_envs: parallel environments; each takes one step in an update.
    """

    environment_steps: int
    num_envs: int


GAMES = {"CartPole-v1": Game(50_000, 4), "Breakout-MinAtar": Game(60_000, 8), "SpaceInvaders-MinAtar": Game(60_000, 8)}


@foldax.config
class Config(foldax.RLTraining):
    game: str = "CartPole-v1"
    """CartPole-v1, or the name of an environment of gymnax."""
    learning_starts: int = 1_000
    num_envs: int = 4
    rollout_steps: int = 1
    batch_size: int = 32
    """Transitions sampled for the gradient step of an update."""
    capacity: int = 50_000
    """Transitions in the replay buffer, if there is one."""
    learning_rate: float = 5e-4
    """Of Adam."""
    discount: float = 0.99
    """Discount of a reward one environment step later."""
    replay: bool = True
    """Whether there is a replay buffer; without it, batches are sampled from as many of the newest transitions."""
    target: bool = True
    """Whether the target network is copied every 1,000 environment steps; without it, in every update."""
    double: bool = True
    """Whether the online network selects the next action that the target network evaluates."""
    dueling: bool = True
    """Whether the network has separate streams for the state value and the advantages."""
    n_step: bool = True
    """Whether three rewards are summed before bootstrapping; without it, one."""
    prioritized: bool = True
    """Whether transitions are sampled in proportion to a power of their TD error."""


def learner(config: Config, info: None) -> foldax.Learner:
    environment = rl.cartpole() if config.game == "CartPole-v1" else rl.gymnax(config.game)
    is_image, n_steps = "MinAtar" in config.game, 3 if config.n_step else 1
    encoder = models.CNN(64, (8,), pooling=None, dense=(), activate_final=True) if is_image else None
    newest = config.batch_size + (n_steps - 1) * config.num_envs  # the last ones do not have n steps yet
    replay = learners.ReplaySettings(
        capacity=config.capacity if config.replay else newest,
        n_steps=n_steps,
        prioritized=config.prioritized and config.replay,
    )
    hidden = (64,) if is_image else (64, 64)
    return learners.dqn(
        environment,
        models.QNetwork(environment.action_space.num, hidden=hidden, dueling=config.dueling, encoder=encoder),
        optax.adam(config.learning_rate),
        learners.DQNSettings(
            batch_size=config.batch_size,
            discount=config.discount,
            target_update_period=1_000 if config.target else 1,
            double=config.double,
            exploration_fraction=0.2,
            replay=replay,
            evaluation_episodes=32,
        ),
        environment_steps=config.environment_steps,
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        learning_starts=config.learning_starts,
    )


experiment = foldax.Experiment(Config, learner, name="dqn_parts")


class Sizes(NamedTuple):
    """Size of the study.

    Attributes:
      seeds: runs of each variant of each game.
      games: sizes of their runs by name.
    """

    seeds: int = 16
    games: dict[str, Game] = GAMES


QUICK = Sizes(2, {"CartPole-v1": Game(1_100, 4)})


def variants() -> dict[str, dict[str, bool]]:
    """The config fields of the full agent ("all"), and of the variant without each part."""
    return {"all": {}, **{f"no {part}": {part: False} for part in PARTS}}


def study(sizes: Sizes, runs: Path) -> pandas.DataFrame:
    """Trains all variants; a row for each run: game, variant, seed and test return."""
    rows = []
    for game, size in sizes.games.items():
        for name, fields in variants().items():
            config = Config(game=game, **size._asdict(), **fields)
            folder = runs / f"{game}-{name}".replace(" ", "_")
            resume = (folder / "sweep.json").exists()
            sweep = foldax.sweep(experiment, {}, config=config, seeds=sizes.seeds, sweep_dir=folder, resume=resume)
            for _, row in sweep.results.iterrows():
                rows.append({"game": game, "variant": name, "seed": row["seed"], "return": row["test/return"]})
    return pandas.DataFrame(rows)


def summarize(results: pandas.DataFrame) -> pandas.DataFrame:
    """A row for each game and variant: interquartile mean, and the probability that the full agent is better."""
    rows = []
    for game, group in results.groupby("game", sort=False):
        scores = {name: group.loc[group["variant"] == name, "return"].to_numpy() for name in variants()}
        for name, values in scores.items():
            row: dict[str, Any] = {"game": game, "variant": name}
            row |= dict(zip(("return", "low", "high"), map(float, agents.bootstrap_interval(values))))
            better = agents.improvement_interval(scores["all"], values) if name != "all" else (np.nan,) * 3
            rows.append(row | dict(zip(("better", "better low", "better high"), better)))
    return pandas.DataFrame(rows)


def draw(results: pandas.DataFrame, summary: pandas.DataFrame) -> Any:
    """Plots the variants of each game: interquartile means with confidence intervals, and the seeds as points."""
    games = list(dict.fromkeys(summary["game"]))
    figure, axes = plots.new_figure(1, len(games), width=3.6, height=3.2)
    names = list(variants())
    for axis, game in zip(axes.flat, games, strict=True):
        rows = summary[summary["game"] == game]
        for y, (_, row) in enumerate(rows.iterrows()):
            is_variant = (results["game"] == game) & (results["variant"] == row["variant"])
            values, color = results.loc[is_variant, "return"].to_numpy(), plots.CYCLE[0 if y == 0 else 1]
            axis.plot(values, y + np.linspace(0.1, 0.35, len(values)), "o", color=color, alpha=0.4, markersize=3)
            errors = [[row["return"] - row["low"]], [row["high"] - row["return"]]]
            axis.errorbar([row["return"]], [y], xerr=errors, fmt="s", color=color, capsize=3)
        axis.axvline(rows["return"].iloc[0], color="#999999", linewidth=0.8)
        axis.set_yticks(range(len(names)), [name.replace("_", "-") for name in names])
        axis.invert_yaxis()
        axis.set(title=game, xlabel="greedy test return")
    marks = "squares: interquartile means with 95% intervals; points: seeds; vertical line: the full agent"
    figure.supxlabel(marks, fontsize=9)
    return figure


def readme_table(summary: pandas.DataFrame) -> str:
    """The table of README.md."""
    games = list(dict.fromkeys(summary["game"]))
    lines = [f"| | {' | '.join(games)} |", "| --- |" + " ---: |" * len(games)]
    for name in variants():
        cells = []
        for game in games:
            row = summary[(summary["game"] == game) & (summary["variant"] == name)].iloc[0]
            cells.append(f"{row['return']:.1f} ({row['low']:.1f} to {row['high']:.1f})")
            if name != "all":
                cells[-1] += f", {row['better']:.2f}"
        lines.append(f"| {name.replace('_', '-')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options = studies.parse_options(__file__, __doc__, arguments, "few steps, one game")
    results = study(QUICK if options.quick else Sizes(), options.runs_dir)
    summary = summarize(results)
    options.save({"results": results, "summary": summary}, {"parts": draw(results, summary)})
    print(f"\n{readme_table(summary)}\n\n{len(results)} runs; tables and figure: {options.output_dir}")


if __name__ == "__main__":
    studies.run(main)
