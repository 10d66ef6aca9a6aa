"""What do four kinds of generators buy with the same budget: likelihood, quality, diversity, and at what cost?

    python research/generators/study.py            # all numbers, the table and the figures again; goes on if killed
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
from foldax.engine.flops import operations_of
from foldax.evaluation import generative
from foldax.runs import studies

HERE = Path(__file__).resolve().parent
EXPERIMENTS = HERE.parents[1] / "experiments"
TIMED = 50  # examples, for each of which some images are drawn


class Generator(NamedTuple):
    """An experiment file with fields that make it draw images of a class.

    Attributes:
      file: in `experiments/generative`.
      fields: of its config.
      bits: the metric that bounds or is the bits per pixel, or None.
      exact: whether it is no bound.
      color: of Okabe & Ito.
    """

    file: str
    fields: dict[str, Any]
    bits: str | None
    exact: bool
    color: str


GENERATORS = {
    "VAE": Generator("vae_digits", {"conditional": True}, "importance_bits_per_dimension", False, "#0072B2"),
    "GAN": Generator("gan_digits", {}, None, False, "#D55E00"),
    "diffusion": Generator("diffusion_digits", {}, "bits_per_dimension", False, "#009E73"),
    "flow matching": Generator(
        "diffusion_digits", {"process": "flow", "prediction": "velocity"}, "bits_per_dimension", False, "#CC79A7"
    ),
    "autoregression": Generator("pixels_digits", {"conditional": True}, "bits_per_byte", True, "#000000"),
}
MEASURES = {
    "bits": "bits per pixel",
    "generated_accuracy": "accuracy of an SVC trained on samples",
    "frechet_distance": "Frechet distance",
    "precision": "precision",
    "recall": "recall",
    "neighbour_distance": "distance to the nearest training image",
}


COLUMNS = ["generator", "seed", "steps", "operations", "sampling_seconds", *MEASURES]


class Sizes(NamedTuple):
    """How large everything is.

    Attributes:
      operations: floating-point ones of all products and convolutions of a run's updates.
      seeds: runs of each generator.
      samples: images drawn for each test image.
    """

    operations: float = 1e12
    seeds: int = 8
    samples: int = 6


QUICK = Sizes(operations=5e10, seeds=2, samples=1)


def prepared(generator: Generator, sizes: Sizes) -> tuple[foldax.Experiment, Any, float]:
    """Returns the experiment, its config with as many steps as the budget allows, and an update's operations."""
    experiment = foldax.load_experiment(EXPERIMENTS / "generative" / f"{generator.file}.py")
    config = experiment.config(samples=sizes.samples, **generator.fields)
    operations = step_operations(experiment, config)
    return experiment, dataclasses.replace(config, steps=max(10, round(sizes.operations / operations))), operations


def step_operations(experiment: foldax.Experiment, config: Any) -> float:
    """Returns the floating-point operations of one update's products of matrices and convolutions."""
    dataset = experiment.dataset(config)
    learner = experiment.learner(config, dataset.info)
    batch = {name: values[: config.batch_size] for name, values in dataset.train.examples().items()}
    state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    return operations_of(jax.make_jaxpr(learner.update)(state, batch, jax.random.key(0)).jaxpr)


def measured(classifier: foldax.Result, train: np.ndarray) -> Any:
    """Returns a `summarize` of all that is measured of samples, beside as many real images."""

    def summarize(values: dict[str, np.ndarray]) -> dict[str, float]:
        found = generative.summarize(values)
        if not found:
            return {}
        images = values["images"]
        samples, _ = generative.drawn(values, len(images))
        expected, made = (generative.features(classifier, x) for x in (images, samples))
        precision, recall = generative.precision_recall(expected, made)
        distances = generative.nearest_neighbours(samples, train)[1]
        found |= {"frechet_distance": generative.frechet_distance(expected, made), "precision": precision}
        return found | {"recall": recall, "neighbour_distance": float(np.median(distances))}

    return summarize


def sampling_seconds(experiment: foldax.Experiment, config: Any, rounds: int = 3) -> float:
    """Returns the seconds that 1,000 images take: of an evaluation that draws some, less one that draws none."""
    dataset, seconds = experiment.dataset(config), {}
    batch = {name: values[:TIMED] for name, values in dataset.train.examples().items()}
    for samples in (config.samples, 0):
        learner = experiment.learner(dataclasses.replace(config, samples=samples), dataset.info)
        state = jax.jit(learner.init)(jax.random.key(0), dataset.train.examples())
        evaluate = jax.jit(learner.evaluate)
        taken = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            jax.block_until_ready(evaluate(state, batch, jax.random.key(0)))
            taken.append(time.perf_counter() - began)
        seconds[samples] = statistics.median(taken[1:])
    return (seconds[config.samples] - seconds[0]) * 1000 / (TIMED * config.samples)


def real_images(classifier: foldax.Result, train: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns what training images themselves have against test images: what a perfect generator could reach."""
    test = classifier.examples("test")
    count = len(test["targets"])
    values = {"samples": train["inputs"][:, None], "targets": train["targets"], "images": test["inputs"]}
    accuracy = generative.train_on_generated(train["inputs"], train["targets"], test["inputs"], test["targets"])
    expected, found = (generative.features(classifier, x) for x in (test["inputs"], values["samples"][:count, 0]))
    precision, recall = generative.precision_recall(expected, found)
    distance = float(np.median(generative.nearest_neighbours(test["inputs"], train["inputs"])[1]))
    row = {"generator": "training images", "seed": 0, "generated_accuracy": accuracy, "neighbour_distance": distance}
    return row | {
        "frechet_distance": generative.frechet_distance(expected, found),
        "precision": precision,
        "recall": recall,
    }


def study(sizes: Sizes, runs: Path) -> pandas.DataFrame:
    """Returns a row for each run: generator, seed, steps, what was measured, and what it cost."""
    digits = foldax.load_experiment(EXPERIMENTS / "supervised" / "digits.py")
    classifier = foldax.train(digits, save=False, verbose=False)
    train = {name: np.asarray(leaf) for name, leaf in classifier.dataset.train.examples().items()}
    rows = [real_images(classifier, train)]
    for name, generator in GENERATORS.items():
        experiment, config, operations = prepared(generator, sizes)
        asked = experiment._replace(summarize=measured(classifier, train["inputs"]), figures=None)
        folder = runs / name.replace(" ", "_")
        known = (folder / "sweep.json").exists()
        sweep = foldax.sweep(asked, {}, config=config, seeds=sizes.seeds, sweep_dir=folder, resume=known)
        cost = {"steps": config.steps, "operations": operations * config.steps}
        cost["sampling_seconds"] = sampling_seconds(experiment, config)
        for _, row in sweep.results.iterrows():
            found = {key: row[f"test/{key}"] for key in MEASURES if f"test/{key}" in row}
            bits = {"bits": row[f"test/{generator.bits}"]} if generator.bits else {}
            rows.append({"generator": name, "seed": row["seed"], **cost, **bits, **found})
    return pandas.DataFrame(rows).reindex(columns=COLUMNS)


def draw(results: pandas.DataFrame) -> Any:
    """Draws every measure of every generator: seeds as points, and what training images have as a line."""
    figure, axes = plots.new_figure(2, 3, width=3.6, height=2.9)
    real = results[results["generator"] == "training images"].iloc[0]
    for axis, (key, title) in zip(axes.flat, MEASURES.items(), strict=True):
        for place, (name, generator) in enumerate(GENERATORS.items()):
            values = results.loc[results["generator"] == name, key].dropna()
            spread = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(len(values))
            marker = "o" if generator.exact or key != "bits" else "v"
            axis.plot(place + spread, values, marker, color=generator.color, ms=4.5, alpha=0.8)
            if not len(values):
                axis.text(place, 0.5, "none", ha="center", transform=axis.get_xaxis_transform(), fontsize=8)
        if not np.isnan(real[key]):
            axis.axhline(real[key], color="grey", ls="--", lw=1)
        axis.set_xticks(
            range(len(GENERATORS)), [name.replace(" ", "\n") for name in GENERATORS], fontsize=7, rotation=20
        )
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.25, axis="y")
    return figure


def readme_table(results: pandas.DataFrame) -> str:
    """Returns the README's table: mean and standard deviation over seeds of every measure, and the cost."""
    titles = ["generator", "steps", *MEASURES.values(), "seconds for 1,000 samples"]
    made = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for name, rows in results.groupby("generator", sort=False):
        cells = []
        for key in MEASURES:
            values = rows[key].dropna()
            digits = 2 if key in ("frechet_distance", "neighbour_distance") else 3
            spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{spread}" if len(values) else "")
        steps, seconds = rows["steps"].iloc[0], rows["sampling_seconds"].iloc[0]
        none = np.isnan(steps)
        made.append([name, "" if none else f"{steps:,.0f}", *cells, "" if none else f"{seconds:.2g}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in made)


def main(arguments: Sequence[str] | None = None) -> None:
    places = studies.places(__file__, __doc__, arguments, "a small budget")
    sizes = QUICK if places.quick else Sizes()
    results = study(sizes, places.runs)
    places.save({"results": results}, {"generators": draw(results)})
    print(f"\n{readme_table(results)}\n")
    print(f"{sizes.operations:.3g} operations a run; table and figure: {places.out}")


if __name__ == "__main__":
    studies.run(main)
