"""Test scores of the experiments, over seeds that no setting was chosen with.

    python research/scores/scores.py                                 # every row; goes on if killed
    python research/scores/scores.py --only digits cluster_digits    # these rows
    python research/scores/scores.py --quick --only digits           # the same with a few steps and two seeds

Settings were chosen with seeds 0 to 7, by the validation split where there is one; each row here is a sweep over seeds
8 to 15, or as many of them as it names. README.md beside this file has the scores that were measured so far.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas

import foldax
from foldax.configuration import with_steps
from foldax.errors import ConfigError, RunError
from foldax.options import parse_options, set_fields
from foldax.runs import studies

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
FIRST_SEED = 8  # settings were chosen with seeds 0 to 7


class Row(NamedTuple):
    """A row of the table of scores: a sweep over seeds of one experiment.

    Attributes:
      name: name of the row.
      file: experiment, below `experiments/`.
      metrics: metrics of the test split that are reported.
      options: options of the experiment's command line.
      seeds: number of seeds.
      mean_over: a field, and its values, over which a seed's score is the mean.
      pretraining: an experiment and its options, from whose run (seed 0) all members start.
      first_seed: the first of the seeds, above those that a setting was chosen with.
    """

    name: str
    file: str
    metrics: tuple[str, ...]
    options: str = ""
    seeds: int = 8
    mean_over: tuple[str, tuple[Any, ...]] | None = None
    pretraining: tuple[str, str] | None = None
    first_seed: int = FIRST_SEED

    def command(self) -> str:
        """The command line that trains these runs."""
        field = ""
        if self.mean_over is not None:
            field = f" --{self.mean_over[0]} {' '.join(map(str, self.mean_over[1]))}"
        options = f"{field} {self.options}".rstrip()
        seeds = f"--seed {self.first_seed} --seeds {self.seeds}"
        return f"foldax sweep experiments/{self.file}.py --exact{options} {seeds}"


SMALL_RESNET = "--train-examples 10000 --steps 1560 --batch-size 64 --depth 14 --width 16 --optimizer.learning-rate 0.1"
SMALL_PONG = (
    "--size 64 --channels 16 32 32 --dense 256 --learning-rate 5e-4 --environment-steps 3000000 --evaluate-every 0"
)
FINE_TUNING = "--learning-rate 1e-3 --freeze-fraction 0.5 --use-running-statistics --encoder-learning-rate 3e-4"
SIMCLR = ("unsupervised/contrastive_digits", "--steps 5000")
ACCURACY, RETURN, TSTR = ("accuracy",), ("return",), ("tstr_accuracy",)

ROWS = (
    Row("digits", "supervised/digits", ACCURACY),
    Row("fashion_mnist", "supervised/fashion_mnist", ACCURACY, seeds=1),
    Row("fashion_resnet", "supervised/fashion_resnet", ACCURACY, SMALL_RESNET, seeds=1),
    Row("breast_cancer", "supervised/breast_cancer", ("auroc",)),
    Row("diabetes", "supervised/diabetes", ("r2",)),
    Row("forecast", "supervised/forecast", ("skill",)),
    Row("forecast sunspots", "supervised/forecast", ("skill",), "--series sunspots"),
    Row("time_series", "supervised/time_series", ACCURACY),
    Row("time_series JapaneseVowels", "supervised/time_series", ACCURACY, "--series JapaneseVowels"),
    Row("time_series OSULeaf", "supervised/time_series", ACCURACY, "--series OSULeaf"),
    Row("text_bytes transformer", "supervised/text_bytes", ("bits_per_byte",), "--model transformer", seeds=3),
    Row("text_bytes lstm", "supervised/text_bytes", ("bits_per_byte",), seeds=3),
    Row("digits_autoencoder", "unsupervised/digits_autoencoder", ("squared_error",)),
    Row("digits_autoencoder 16", "unsupervised/digits_autoencoder", ("squared_error",), "--latent-size 16"),
    Row("anomaly_digits", "unsupervised/anomaly_digits", ("auroc",), mean_over=("normal", tuple(range(10)))),
    Row("denoise_fashion", "unsupervised/denoise_fashion", ("psnr",)),
    Row("contrastive_digits", "unsupervised/contrastive_digits", ("probe_accuracy", "projections_adjusted_rand_index")),
    Row(
        "pretrain_finetune probe",
        "unsupervised/pretrain_finetune",
        ACCURACY,
        "--frozen --learning-rate 1e-3",
        pretraining=SIMCLR,
    ),
    Row("pretrain_finetune", "unsupervised/pretrain_finetune", ACCURACY, FINE_TUNING, pretraining=SIMCLR),
    Row("masked_fashion", "unsupervised/masked_fashion", ("knn_accuracy",), seeds=1),
    Row("cluster_digits mixture", "unsupervised/cluster_digits", ("adjusted_rand_index",), "--method mixture"),
    # How k-means starts was chosen with seeds 8 to 39.
    Row("cluster_digits", "unsupervised/cluster_digits", ("adjusted_rand_index",), first_seed=40),
    Row("vae_digits", "generative/vae_digits", ("bits_per_dimension", "iwae_bits_per_dimension")),
    Row("vae_digits conditional", "generative/vae_digits", TSTR, "--conditional"),
    Row("gan_digits", "generative/gan_digits", TSTR),
    Row("diffusion_digits", "generative/diffusion_digits", (*TSTR, "bits_per_dimension")),
    Row("pixels_digits", "generative/pixels_digits", ("bits_per_byte",)),
    Row("vae_fashion", "generative/vae_fashion", ("bits_per_dimension",), seeds=1),
    Row("ppo_cartpole", "rl/ppo_cartpole", RETURN),
    Row("dqn_cartpole", "rl/dqn_cartpole", RETURN),
    Row("a2c_cartpole", "rl/a2c_cartpole", RETURN),
    Row("reinforce_cartpole", "rl/reinforce_cartpole", RETURN),
    Row("pqn_cartpole", "rl/pqn_cartpole", RETURN),
    Row("sac_pendulum", "rl/sac_pendulum", RETURN),
    Row("td3_pendulum", "rl/td3_pendulum", RETURN),
    Row("ppo_pendulum", "rl/ppo_pendulum", RETURN),
    Row("dqn_mountain_car", "rl/dqn_mountain_car", RETURN),
    Row("ppo_acrobot", "rl/ppo_acrobot", RETURN),
    Row("ppo_memory", "rl/ppo_memory", RETURN),
    Row("ppo_minatar", "rl/ppo_minatar", RETURN),
    Row("rainbow_minatar", "rl/rainbow_minatar", RETURN, "--environment-steps 200000"),
    Row("gymnasium_cartpole", "rl/gymnasium_cartpole", RETURN),
    Row("halfcheetah", "rl/halfcheetah", RETURN),
    Row("ppo_playground", "rl/ppo_playground", RETURN),
    Row("atari_pong", "rl/atari_pong", RETURN, SMALL_PONG, seeds=1),
)
QUICK_SEEDS, QUICK_STEPS = 2, 4


def load(file: str, options: str, quick: bool) -> tuple[foldax.Experiment, Any]:
    """An experiment and the config of some options; with a few steps if quick."""
    experiment = foldax.load_experiment(EXPERIMENTS / f"{file}.py")
    config = set_fields(experiment.config(), parse_options(experiment.config, options.split()))
    return experiment, with_steps(config, QUICK_STEPS) if quick else config


def pretrain(row: Row, quick: bool, runs: Path) -> Path:
    """Trains the run that a row starts from, or goes on with it; returns its folder."""
    assert row.pretraining is not None
    experiment, config = load(*row.pretraining, quick)
    folder = runs / Path(row.pretraining[0]).name
    if not (folder / "result.json").exists():
        foldax.train(experiment, config, run_dir=folder, resume=(folder / "config.json").exists())
    return folder


def measure(row: Row, quick: bool, runs: Path) -> pandas.DataFrame:
    """Runs the sweep of a row, or goes on with it; a table with a line per seed and metric: row, metric, seed, score.

    Raises:
      RunError: the experiment has no such metric.
    """
    experiment, config = load(row.file, row.options, quick)
    config = dataclasses.replace(config, seed=row.first_seed)
    if row.pretraining is not None:
        config = dataclasses.replace(config, init_from=str(pretrain(row, quick, runs)))
    folder = runs / row.name.replace(" ", "_")
    space = {row.mean_over[0]: list(row.mean_over[1])} if row.mean_over else {}
    seeds = min(row.seeds, QUICK_SEEDS) if quick else row.seeds
    resume = (folder / "sweep.json").exists()
    # Exact, because members of a vmapped sweep differ from single runs in their rounding.
    sweep = foldax.sweep(
        experiment, space, config=config, seeds=seeds, execution="exact", sweep_dir=folder, resume=resume
    )
    columns = {f"test/{metric}": metric for metric in row.metrics}
    if missing := columns.keys() - set(sweep.results):
        raise RunError(f"{row.file} has no {min(missing)!r}")
    scores = sweep.results.groupby("seed")[list(columns)].mean().rename(columns=columns).reset_index()
    scores = scores.melt(id_vars="seed", var_name="metric", value_name="score")
    return scores.assign(row=row.name)[["row", "metric", "seed", "score"]]


def summarize(scores: pandas.DataFrame) -> pandas.DataFrame:
    """A line per row and metric: mean and standard deviation over seeds, their number, and the command of the row."""
    groups = scores.groupby(["row", "metric"], sort=False)["score"]
    table = groups.agg(mean="mean", std="std", n="count").reset_index()
    seeds = scores.groupby(["row", "metric"], sort=False)["seed"].agg(["min", "max"]).reset_index()
    table.insert(
        2, "seeds", [f"{low} to {high}" if low < high else f"{low}" for low, high in seeds[["min", "max"]].values]
    )
    commands = {row.name: row.command() for row in ROWS}
    return table.assign(command=table["row"].map(commands))


def readme_table(summary: pandas.DataFrame) -> str:
    """The table of README.md."""
    lines = ["| row | metric | seeds | score | command |", "| --- | --- | --- | ---: | --- |"]
    for _, line in summary.iterrows():
        score = f"{line['mean']:.4g}" if line["n"] < 2 else format_score(line["mean"], line["std"])
        lines.append(f"| {line['row']} | {line['metric']} | {line['seeds']} | {score} | `{line['command']}` |")
    return "\n".join(lines)


def format_score(mean: float, std: float) -> str:
    """Mean and standard deviation, to two digits of the latter (but at most five after the point).

    >>> format_score(0.97703, 0.00294), format_score(-144.42, 3.53), format_score(500.0, 0.0)
    ('0.9770 ± 0.0029', '-144.4 ± 3.5', '500 ± 0')
    """
    if std == 0:
        return f"{mean:.5g} ± 0"
    decimals = min(max(1 - int(f"{std:e}".partition("e")[2]), 0), 5)
    return f"{mean:.{decimals}f} ± {std:.{decimals}f}"


def with_earlier(scores: pandas.DataFrame, file: Path) -> pandas.DataFrame:
    """Adds the rows that an earlier call wrote and this one did not measure, all in the order of `ROWS`."""
    if file.exists():
        earlier = pandas.read_csv(file)
        scores = pandas.concat([earlier[~earlier["row"].isin(scores["row"])], scores])
    order = {row.name: place for place, row in enumerate(ROWS)}
    return scores.sort_values("row", key=lambda names: names.map(order), kind="stable").reset_index(drop=True)


def choose(names: Sequence[str] | None) -> list[Row]:
    """The rows of these names, or whose names begin with these words; all of them if None.

    Raises:
      ConfigError: no row has such a name.
    """
    chosen = {name: [row for row in ROWS if f"{row.name} ".startswith(f"{name} ")] for name in names or ()}
    for name, rows in chosen.items():
        if not rows:
            raise ConfigError(f"--only: no row is named {name!r}; there are {', '.join(row.name for row in ROWS)}")
    return [row for row in ROWS if names is None or any(row in rows for rows in chosen.values())]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", nargs="+", metavar="ROW")
    parsed, others = parser.parse_known_args(arguments)
    options = studies.parse_options(__file__, __doc__, others, "a few steps, two seeds")
    for row in choose(parsed.only):
        scores = with_earlier(measure(row, options.quick, options.runs_dir), options.output_dir / "scores.csv")
        # After each row, since all of them take hours.
        options.save({"scores": scores, "summary": summarize(scores)}, {})
        print(f"\n{readme_table(summarize(scores))}\n\ntables: {options.output_dir}")


if __name__ == "__main__":
    studies.run(main)
