"""With few labels, which self-supervised representation of digits gives the most accurate classifier?

    python research/representations/study.py            # all results; run it again to continue after an interruption
    python research/representations/study.py --quick    # the same with few steps, in a few minutes

README.md beside this file has the answer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
import pandas

import foldax
from foldax import data, learners, models, plots
from foldax.runs import studies
from foldax.sweeps import statistics

HERE = Path(__file__).resolve().parent
EXPERIMENTS = HERE.parents[1] / "experiments"
LABELS = (1, 5, 10, 50)  # per class
SUPERVISED = "supervised, from scratch"
STYLES = {  # colours of Okabe & Ito (2008); markers and line styles for grey prints
    "pixels": ("#999999", "o", "--"),
    "PCA": ("#000000", "x", "--"),
    "autoencoder": ("#56B4E9", "s", "-"),
    "VAE": ("#0072B2", "D", "-"),
    "masked autoencoder": ("#CC79A7", "v", "-"),
    "SimCLR, features": ("#E69F00", "^", "-"),
    "SimCLR, projections": ("#D55E00", "P", "-"),
    SUPERVISED: ("#009E73", "*", ":"),
}


class Sizes(NamedTuple):
    """Size of the study.

    Attributes:
      seeds: seeds of every method; each trains anew and draws other labelled images, the same for all methods.
      steps: steps of every run; None: the default of its experiment.
      labels: labels per class.
      components: components of PCA.
    """

    seeds: int = 8
    steps: int | None = None
    labels: tuple[int, ...] = LABELS
    components: int = 32


QUICK = Sizes(seeds=2, steps=20, labels=(1, 5), components=8)


@foldax.config
class MaskedDigits(foldax.Training):
    """A masked autoencoder of digits, with 4 of 16 patches visible."""

    steps: int = 3_000
    log_every = 200
    evaluate_every = 0  # only at the end
    keep = "last"  # the learning rate decays to 0
    batch_size: int = 128
    width: int = 64
    depth: int = 3
    learning_rate: float = 2e-3


def masked_learner(config: MaskedDigits, info: data.Info) -> foldax.Learner:
    shape = info.shapes["inputs"]
    model = models.MaskedAutoencoder(shape, patch_size=2, visible_patches=4, width=config.width, depth=config.depth)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.adamw(schedule, eps=1e-6, weight_decay=1e-2)
    return learners.masked_autoencoder(model, optimizer, preprocess=lambda x: x * (1 / 16))


class Method(NamedTuple):
    """A way to learn representations without labels.

    Attributes:
      experiment: an experiment whose `evaluate` returns representations.
      config: values of its config.
      outputs: by the name in this study, the name of the output of `evaluate`.
    """

    experiment: foldax.Experiment
    config: dict[str, Any]
    outputs: dict[str, str]


def methods() -> list[Method]:
    """Lists the self-supervised methods."""

    def load(kind: str, name: str) -> foldax.Experiment:
        return foldax.load_experiment(EXPERIMENTS / kind / f"{name}.py")

    simclr = {"SimCLR, features": "features", "SimCLR, projections": "projections"}
    masked = foldax.Experiment(MaskedDigits, masked_learner, name="masked_digits")
    return [
        Method(load("unsupervised", "digits_autoencoder"), {"latent_size": 16}, {"autoencoder": "latents"}),
        Method(load("generative", "vae_digits"), {"importance_samples": 0}, {"VAE": "latents"}),
        Method(masked, {}, {"masked autoencoder": "features"}),
        Method(load("unsupervised", "contrastive_digits"), {"evaluate_every": 0}, simclr),
    ]


class Digits(NamedTuple):
    """The images of the study.

    Attributes:
      pool: "inputs" and "targets" of the training images: unlabelled for pretraining, and a few labelled for probes.
      test: the same of the test images.
    """

    pool: dict[str, np.ndarray]
    test: dict[str, np.ndarray]

    def both(self) -> dict[str, np.ndarray]:
        """Concatenates the pool and the test images to one split."""
        return {name: np.concatenate([self.pool[name], self.test[name]]) for name in self.pool}


def load_digits() -> Digits:
    """Loads the training and test images of `data.load("digits")`."""
    dataset = data.load("digits", batch_size=64)
    pool = {name: np.asarray(leaf) for name, leaf in dataset.train.examples().items()}
    return Digits(pool, dataset.splits["test"].examples())


def draw_labelled(targets: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws the indices of `count` images of each class."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(targets == k))[:count] for k in np.unique(targets)])


def probe_accuracies(digits: Digits, rows: np.ndarray, sizes: Sizes) -> dict[tuple[int, int], float]:
    """Computes the test accuracy of logistic regression by (labels of each class, seed).

    Args:
      digits: the images.
      rows: their representations, `[pool + test, D]`; standardized by the mean and deviation of the pool.
      sizes: numbers of labels and seeds.
    """
    from sklearn.linear_model import LogisticRegression

    count = len(digits.pool["targets"])
    pool, test = np.split(rows.reshape(len(rows), -1).astype(np.float64), [count])
    mean, std = pool.mean(axis=0), pool.std(axis=0) + 1e-6
    pool, test, targets = (pool - mean) / std, (test - mean) / std, digits.pool["targets"]
    scores = {}
    for examples_per_class in sizes.labels:
        for seed in range(sizes.seeds):
            labelled = draw_labelled(targets, examples_per_class, seed)
            probe = LogisticRegression(max_iter=1_000).fit(pool[labelled], targets[labelled])
            scores[examples_per_class, seed] = float(probe.score(test, digits.test["targets"]))
    return scores


def pretrain_and_probe(method: Method, digits: Digits, sizes: Sizes, folder: Path) -> list[dict[str, Any]]:
    """Learns a representation with every seed, in one sweep; returns a row for each name, seed and number of labels.

    The test split of the sweep is the pool and the test images, so that `summarize` has the representations of both.
    """

    def dataset(config: Any) -> data.Dataset:
        splits = {"train": digits.pool, "test": digits.both()}
        return data.from_splits(splits, name="digits", batch_size=config.batch_size, validation=0)

    def summarize(values: dict[str, np.ndarray]) -> dict[str, float]:
        scores = {}
        for name, output in method.outputs.items():
            for (examples_per_class, seed), score in probe_accuracies(digits, values[output], sizes).items():
                scores[f"{name}/{examples_per_class}/{seed}"] = score
        return scores

    experiment = method.experiment._replace(dataset=dataset, summarize=summarize, figures=None)
    config = experiment.config(**method.config, **({} if sizes.steps is None else {"steps": sizes.steps}))
    members = run_sweep(experiment, {}, config, sizes.seeds, folder)
    return [
        row(name, count, member["seed"], member[f"test/{name}/{count}/{member['seed']}"])
        for name in method.outputs
        for count in sizes.labels
        for _, member in members.iterrows()
    ]


def row(method: str, examples_per_class: int, seed: int, accuracy: float) -> dict[str, Any]:
    return {"method": method, "examples_per_class": examples_per_class, "seed": seed, "accuracy": accuracy}


def train_supervised(sizes: Sizes, folder: Path) -> list[dict[str, Any]]:
    """Trains SimCLR's encoder with its augmentation from scratch on the labelled images alone; returns rows."""
    experiment = foldax.load_experiment(EXPERIMENTS / "unsupervised" / "pretrain_finetune.py")._replace(figures=None)
    config = experiment.config(**({} if sizes.steps is None else {"steps": sizes.steps}))
    members = run_sweep(experiment, {"examples_per_class": sizes.labels}, config, sizes.seeds, folder)
    columns = {"examples_per_class": "examples_per_class", "seed": "seed", "test/accuracy": "accuracy"}
    return members[list(columns)].rename(columns=columns).assign(method=SUPERVISED).to_dict("records")


def run_sweep(experiment: foldax.Experiment, space: Any, config: Any, seeds: int, folder: Path) -> pandas.DataFrame:
    """Runs a sweep, or continues it if its folder exists, and returns a row for each member."""
    resume = (folder / "sweep.json").exists()
    return foldax.sweep(experiment, space, config=config, seeds=seeds, sweep_dir=folder, resume=resume).results


def study(sizes: Sizes, runs: Path) -> pandas.DataFrame:
    """Runs the study and returns a row for each method, number of labels and seed."""
    from sklearn.decomposition import PCA

    digits = load_digits()
    pixels = digits.both()["inputs"].reshape(-1, digits.pool["inputs"][0].size)
    pca = PCA(sizes.components, svd_solver="full").fit(pixels[: len(digits.pool["targets"])])
    rows = [
        row(name, count, seed, score)
        for name, values in {"pixels": pixels, "PCA": pca.transform(pixels)}.items()
        for (count, seed), score in probe_accuracies(digits, values, sizes).items()
    ]
    for method in methods():
        folder = runs / next(iter(method.outputs)).split(",")[0].replace(" ", "_")
        rows += pretrain_and_probe(method, digits, sizes, folder)
    rows += train_supervised(sizes, runs / "supervised")
    return pandas.DataFrame(rows)[["method", "examples_per_class", "seed", "accuracy"]]


def summarize_seeds(members: pandas.DataFrame) -> pandas.DataFrame:
    """Computes mean, 95% bootstrap interval and standard deviation over seeds, by method and number of labels."""
    rows = []
    for (method, count), group in members.groupby(["method", "examples_per_class"], sort=False):
        accuracy = group["accuracy"]
        low, high = statistics.bootstrap_interval(accuracy.to_numpy())
        cells = {"mean": accuracy.mean(), "low": low, "high": high, "std": accuracy.std(), "seeds": len(group)}
        rows.append({"method": method, "examples_per_class": count, **cells})
    return pandas.DataFrame(rows)


def draw(results: pandas.DataFrame) -> Any:
    """Draws the test accuracy against the number of labels of each class, one line per method."""
    figure, axes = plots.new_figure(width=6.4, height=4.4)
    axis = axes[0, 0]
    for index, (method, (color, marker, line)) in enumerate(STYLES.items()):
        rows = results[results["method"] == method].sort_values("examples_per_class")
        labels = rows["examples_per_class"] * 1.03 ** (index - 3.5)  # shifted, so that intervals do not overlap
        errors = (rows["mean"] - rows["low"], rows["high"] - rows["mean"])
        style = {"color": color, "marker": marker, "ls": line, "ms": 6, "lw": 1.4, "capsize": 2}
        axis.errorbar(labels, rows["mean"], yerr=errors, label=method, **style)
    ticks = sorted(set(results["examples_per_class"]))
    axis.set_xscale("log")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set(xlabel="labels per class", ylabel="test accuracy")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, loc="lower right", fontsize=8, title="bars: 95% intervals", title_fontsize=8)
    return figure


def readme_table(results: pandas.DataFrame) -> str:
    """Formats the README's table: mean and standard deviation of the test accuracy."""
    counts = sorted(set(results["examples_per_class"]))
    lines = [["representation", *(f"{n} label{'s' * (n > 1)}" for n in counts)], ["---", *["---:"] * len(counts)]]
    for method in STYLES:
        rows = results[results["method"] == method].sort_values("examples_per_class")
        lines.append([method, *(f"{cell.mean:.3f} ± {cell.std:.3f}" for cell in rows.itertuples())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options = studies.parse_options(__file__, __doc__, arguments, "few steps and labels")
    sizes = QUICK if options.quick else Sizes()
    results = summarize_seeds(study(sizes, options.runs_dir))
    options.save({"results": results}, {"representations": draw(results)})
    print(f"\n{readme_table(results)}\n")
    print(f"table and figure: {options.output_dir}")


if __name__ == "__main__":
    studies.run(main)
