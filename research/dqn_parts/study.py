"""What does each part of a deep Q-network buy? Leave one out, and see.

    python research/dqn_parts/study.py            # all numbers and the figure again; goes on if killed
    python research/dqn_parts/study.py --quick    # the same with few steps and seeds

README.md beside this file has the answer. The whole has a replay memory, a target network, double Q-learning, a dueling
network, three-step returns and priorities; each variant lacks one of them, and is otherwise the same (without replay
there is nothing for priorities to choose from, and there are none).
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
    """How much of a game is played.

    Attributes:
      environment_steps: of a run.
      num_envs: copies, each of which takes a step for an update.
    """

    environment_steps: int
    num_envs: int


GAMES = {"CartPole-v1": Game(50_000, 4), "Breakout-MinAtar": Game(60_000, 8), "SpaceInvaders-MinAtar": Game(60_000, 8)}


@foldax.config
class Config(foldax.Interaction):
    game: str = "CartPole-v1"
    """Name of gymnax's environment."""
    start_steps: int = 1_000
    num_envs: int = 4
    rollout_steps: int = 1
    batch_size: int = 32
    """Transitions in an update's descent."""
    capacity: int = 50_000
    """Transitions that are remembered, if any are."""
    learning_rate: float = 5e-4
    """Of Adam."""
    discount: float = 0.99
    """Of a reward one step later."""
    replay: bool = True
    """Whether updates draw from a memory; without it from as many of the newest transitions as make a batch."""
    target: bool = True
    """Whether a network that is copied each 1,000 steps judges what comes next; without it each update."""
    double: bool = True
    """Whether the network chooses the next action that the target judges."""
    dueling: bool = True
    """Whether the network tells what the state is worth from what each action adds to it."""
    n_step: bool = True
    """Whether three rewards are summed before the next value is asked for; without it one."""
    prioritized: bool = True
    """Whether surprising transitions are drawn more often."""


def learner(config: Config, info: None) -> foldax.Learner:
    world = rl.gymnax(config.game)
    images, steps = "MinAtar" in config.game, 3 if config.n_step else 1
    encoder = models.CNN(64, (8,), pooling=None, dense=(), activate_final=True) if images else None
    newest = config.batch_size + (steps - 1) * config.num_envs  # the last ones have no n steps yet
    return learners.dqn(
        world,
        models.QNetwork(
            world.actions.num, hidden=(64,) if images else (64, 64), dueling=config.dueling, encoder=encoder
        ),
        optax.adam(config.learning_rate),
        memory=learners.Memory(
            config.capacity if config.replay else newest,
            steps=steps,
            prioritized=config.prioritized and config.replay,
            correction_steps=config.environment_steps,
        ),
        num_envs=config.num_envs,
        rollout_steps=config.rollout_steps,
        start=config.start_steps,
        batch_size=config.batch_size,
        discount=config.discount,
        epsilon_steps=0.2 * config.environment_steps,
        target_period=1_000 if config.target else 1,
        double=config.double,
        evaluation_episodes=32,
    )


experiment = foldax.Experiment(Config, learner, name="dqn_parts")


class Sizes(NamedTuple):
    """How large everything is.

    Attributes:
      seeds: of each game and variant.
      games: by name.
    """

    seeds: int = 16
    games: dict[str, Game] = GAMES


QUICK = Sizes(2, {"CartPole-v1": Game(1_100, 4)})


def variants() -> dict[str, dict[str, bool]]:
    """Returns the fields of the whole, and of what lacks each part."""
    return {"all": {}, **{f"no {part}": {part: False} for part in PARTS}}


def study(sizes: Sizes, runs: Path) -> pandas.DataFrame:
    """Returns a row for each run: game, variant, seed, and its test return."""
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


def summarized(results: pandas.DataFrame) -> pandas.DataFrame:
    """Returns a row for each game and variant: interquartile mean, and how likely the whole is better."""
    rows = []
    for game, group in results.groupby("game", sort=False):
        scores = {name: group.loc[group["variant"] == name, "return"].to_numpy() for name in variants()}
        for name, values in scores.items():
            row: dict[str, Any] = {"game": game, "variant": name}
            row |= dict(zip(("return", "low", "high"), map(float, agents.interval(values))))
            better = agents.improvement(scores["all"], values) if name != "all" else (np.nan,) * 3
            rows.append(row | dict(zip(("better", "better low", "better high"), better)))
    return pandas.DataFrame(rows)


def draw(results: pandas.DataFrame, summary: pandas.DataFrame) -> Any:
    """Draws each game's variants: interquartile means with intervals, and the seeds as points."""
    games = list(dict.fromkeys(summary["game"]))
    figure, axes = plots.new_figure(1, len(games), width=3.6, height=3.2)
    names = list(variants())
    for axis, game in zip(axes.flat, games, strict=True):
        rows = summary[summary["game"] == game]
        for place, (_, row) in enumerate(rows.iterrows()):
            chosen = (results["game"] == game) & (results["variant"] == row["variant"])
            values, color = results.loc[chosen, "return"].to_numpy(), plots.CYCLE[0 if place == 0 else 1]
            axis.plot(values, place + np.linspace(0.1, 0.35, len(values)), "o", color=color, alpha=0.4, markersize=3)
            ends = [[row["return"] - row["low"]], [row["high"] - row["return"]]]
            axis.errorbar([row["return"]], [place], xerr=ends, fmt="s", color=color, capsize=3)
        axis.axvline(rows["return"].iloc[0], color="#999999", linewidth=0.8)
        axis.set_yticks(range(len(names)), [name.replace("_", "-") for name in names])
        axis.invert_yaxis()
        axis.set(title=game, xlabel="return of test episodes")
    return figure


def readme_table(summary: pandas.DataFrame) -> str:
    """Returns the table of README.md."""
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
    places = studies.places(__file__, __doc__, arguments, "few steps, one game")
    results = study(QUICK if places.quick else Sizes(), places.runs)
    summary = summarized(results)
    places.save({"results": results, "summary": summary}, {"parts": draw(results, summary)})
    print(f"\n{readme_table(summary)}\n\n{len(results)} runs; tables and figure: {places.out}")


if __name__ == "__main__":
    studies.run(main)
