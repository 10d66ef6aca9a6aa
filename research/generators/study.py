"""Likelihood, usefulness, fidelity, diversity and sampling cost of five generators with the same training budget.

    python research/generators/study.py            # all numbers, the table and the figure; resumes if killed
    python research/generators/study.py --quick    # the same with a small budget, in a few minutes

README.md beside this file has the answer.
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas

import foldax
from foldax import plots
from foldax.engine.flops import count_flops
from foldax.evaluation import generative
from foldax.runs import studies

HERE = Path(__file__).resolve().parent
EXPERIMENTS = HERE.parents[1] / "experiments"
TIMED_EXAMPLES = 50  # of an evaluation whose sampling is timed


class Generator(NamedTuple):
    """An experiment and the fields of its config that make it class-conditional.

    Attributes:
      file: name of the file in `experiments/generative`.
      fields: fields of its config that differ from the defaults.
      bits: name of the metric of bits per pixel, or None.
      exact: whether the metric is exact; otherwise it is an upper bound.
      color: color in figures (Okabe & Ito's palette).
    """

    file: str
    fields: dict[str, Any]
    bits: str | None
    exact: bool
    color: str


GENERATORS = {
    "VAE": Generator("vae_digits", {"conditional": True}, "iwae_bits_per_dimension", False, "#0072B2"),
    "GAN": Generator("gan_digits", {}, None, False, "#D55E00"),
    "diffusion": Generator("diffusion_digits", {}, "bits_per_dimension", False, "#009E73"),
    "flow matching": Generator(
        "diffusion_digits",
        {"noise_schedule": "flow", "prediction_type": "flow"},
        "bits_per_dimension",
        False,
        "#CC79A7",
    ),
    "autoregression": Generator("pixels_digits", {"conditional": True}, "bits_per_byte", True, "#000000"),
}
MEASURES = {
    "bits": "bits per pixel",
    "tstr_accuracy": "TSTR accuracy",
    "frechet_distance": "Fréchet distance",
    "precision": "precision",
    "recall": "recall",
    "neighbor_distance": "distance to the nearest training image",
}


COLUMNS = ["generator", "seed", "steps", "flops", "sampling_seconds", *MEASURES]


class Sizes(NamedTuple):
    """Budget and sizes of the study.

    Attributes:
      flops: training budget of a run: floating-point operations of all matrix products and convolutions in its updates.
      seeds: runs of each generator.
      samples_per_example: images sampled for each test image.
    """

    flops: float = 1e12
    seeds: int = 8
    samples_per_example: int = 6


QUICK = Sizes(flops=5e10, seeds=2, samples_per_example=1)


def prepare(generator: Generator, sizes: Sizes) -> tuple[foldax.Experiment, Any, float]:
    """Returns the experiment, its config with as many steps as the budget allows, and the FLOPs of an update."""
    experiment = foldax.load_experiment(EXPERIMENTS / "generative" / f"{generator.file}.py")
    config = experiment.config(samples_per_example=sizes.samples_per_example, **generator.fields)
    flops = update_flops(experiment, config)
    return experiment, dataclasses.replace(config, steps=max(10, round(sizes.flops / flops))), flops


def update_flops(experiment: foldax.Experiment, config: Any) -> float:
    """Counts the floating-point operations of one update's matrix products and convolutions."""
    dataset = experiment.dataset(config)
    learner = experiment.learner(config, dataset.info)
    batch = {name: values[: config.batch_size] for name, values in dataset.train.examples().items()}
    state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    return count_flops(jax.make_jaxpr(learner.update)(state, batch, jax.random.key(0)).jaxpr)


def feature_measures(classifier: foldax.Result, real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """Computes Fréchet distance, precision and recall in features of the classifier."""
    real, generated = (generative.classifier_features(classifier, images) for images in (real, generated))
    precision, recall = generative.precision_recall(real, generated)
    distance = generative.frechet_distance(real, generated)
    return {"frechet_distance": distance, "precision": precision, "recall": recall}


def make_summarize(classifier: foldax.Result, train: np.ndarray) -> Any:
    """Returns a `summarize` that computes all measures on as many samples as there are real images."""

    def summarize(values: dict[str, np.ndarray]) -> dict[str, float]:
        metrics = generative.summarize(values)
        if not metrics:
            return {}
        samples, _ = generative.collect_samples(values, len(values["images"]))
        distances = generative.nearest_neighbors(samples, train)[1]
        metrics |= feature_measures(classifier, values["images"], samples)
        return metrics | {"neighbor_distance": float(np.median(distances))}

    return summarize


def sampling_seconds(experiment: foldax.Experiment, config: Any, rounds: int = 3) -> float:
    """Measures the seconds per 1,000 samples: an evaluation with samples minus one without, median of the rounds."""
    dataset, seconds = experiment.dataset(config), {}
    batch = {name: values[:TIMED_EXAMPLES] for name, values in dataset.train.examples().items()}
    for count in (config.samples_per_example, 0):
        learner = experiment.learner(dataclasses.replace(config, samples_per_example=count), dataset.info)
        state = jax.jit(learner.init)(jax.random.key(0), dataset.train.examples())
        evaluate = jax.jit(learner.evaluate)
        durations = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            jax.block_until_ready(evaluate(state, batch, jax.random.key(0)))
            durations.append(time.perf_counter() - start)
        seconds[count] = statistics.median(durations[1:])  # the first one compiles
    count = config.samples_per_example
    return (seconds[count] - seconds[0]) * 1000 / (TIMED_EXAMPLES * count)


def measure_real_images(classifier: foldax.Result, train: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the row of the training images themselves, which a perfect generator would match."""
    test = classifier.examples("test")
    accuracy = generative.tstr_accuracy(train["inputs"], train["targets"], test["inputs"], test["targets"])
    distance = float(np.median(generative.nearest_neighbors(test["inputs"], train["inputs"])[1]))
    row = {"generator": "training images", "seed": 0, "tstr_accuracy": accuracy, "neighbor_distance": distance}
    return row | feature_measures(classifier, test["inputs"], train["inputs"][: len(test["targets"])])


def run_study(sizes: Sizes, runs: Path) -> pandas.DataFrame:
    """Trains all generators and returns a row per run: generator, seed, steps, measures and cost."""
    digits = foldax.load_experiment(EXPERIMENTS / "supervised" / "digits.py")
    classifier = foldax.train(digits, save=False, verbose=False)
    train = {name: np.asarray(leaf) for name, leaf in classifier.dataset.train.examples().items()}
    rows = [measure_real_images(classifier, train)]
    for name, generator in GENERATORS.items():
        experiment, config, flops = prepare(generator, sizes)
        measured = experiment._replace(summarize=make_summarize(classifier, train["inputs"]), figures=None)
        folder = runs / name.replace(" ", "_")
        resume = (folder / "sweep.json").exists()
        sweep = foldax.sweep(measured, {}, config=config, seeds=sizes.seeds, sweep_dir=folder, resume=resume)
        cost = {"steps": config.steps, "flops": flops * config.steps}
        cost["sampling_seconds"] = sampling_seconds(experiment, config)
        for _, row in sweep.results.iterrows():
            measures = {key: row[f"test/{key}"] for key in MEASURES if f"test/{key}" in row}
            bits = {"bits": row[f"test/{generator.bits}"]} if generator.bits else {}
            rows.append({"generator": name, "seed": row["seed"], **cost, **bits, **measures})
    return pandas.DataFrame(rows).reindex(columns=COLUMNS)


def draw_measures(results: pandas.DataFrame) -> Any:
    """Draws every measure of every generator: seeds as points, training images as a line."""
    figure, axes = plots.new_figure(2, 3, width=3.6, height=2.9)
    real = results[results["generator"] == "training images"].iloc[0]
    for axis, (key, title) in zip(axes.flat, MEASURES.items(), strict=True):
        for position, (name, generator) in enumerate(GENERATORS.items()):
            values = results.loc[results["generator"] == name, key].dropna()
            offsets = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(len(values))
            marker = "o" if generator.exact or key != "bits" else "v"
            axis.plot(position + offsets, values, marker, color=generator.color, ms=4.5, alpha=0.8)
            if not len(values):
                axis.text(position, 0.5, "none", ha="center", transform=axis.get_xaxis_transform(), fontsize=8)
        if not np.isnan(real[key]):
            axis.axhline(real[key], color="grey", ls="--", lw=1)
        axis.set_xticks(
            range(len(GENERATORS)), [name.replace(" ", "\n") for name in GENERATORS], fontsize=7, rotation=20
        )
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.25, axis="y")
    figure.supxlabel("circles: seeds; triangles: upper bounds of seeds; dashed: training images", fontsize=9)
    return figure


def readme_table(results: pandas.DataFrame) -> str:
    """Formats the README's table: mean and standard deviation over seeds of every measure, and the cost."""
    titles = ["generator", "steps", *MEASURES.values(), "seconds for 1,000 samples"]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for name, rows in results.groupby("generator", sort=False):
        cells = []
        for key in MEASURES:
            values = rows[key].dropna()
            digits = 2 if key in ("frechet_distance", "neighbor_distance") else 3
            deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{deviation}" if len(values) else "")
        steps, seconds = rows["steps"].iloc[0], rows["sampling_seconds"].iloc[0]
        untrained = np.isnan(steps)
        lines.append([name, "" if untrained else f"{steps:,.0f}", *cells, "" if untrained else f"{seconds:.2g}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options = studies.parse_options(__file__, __doc__, arguments, "a small budget")
    sizes = QUICK if options.quick else Sizes()
    results = run_study(sizes, options.runs_dir)
    options.save({"results": results}, {"generators": draw_measures(results)})
    print(f"\n{readme_table(results)}\n")
    print(f"{sizes.flops:.3g} FLOPs per run; table and figure: {options.output_dir}")


if __name__ == "__main__":
    studies.run(main)
