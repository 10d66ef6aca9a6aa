"""With few labels, which representation of digits that was learned without any is worth most?

    python research/representations/study.py            # all numbers, the table and the figure; goes on if killed
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
LABELS = (1, 5, 10, 50)  # of each class
SUPERVISED = "supervised, from scratch"
STYLES = {  # Okabe & Ito's colours; markers and lines tell them apart in grey
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
    """How large everything is.

    Attributes:
      seeds: of every method; each learns anew and draws labelled images of its own, the same for all methods.
      steps: of every run; None: as many as its file says.
      labels: of each class.
      components: of PCA.
    """

    seeds: int = 8
    steps: int | None = None
    labels: tuple[int, ...] = LABELS
    components: int = 32


QUICK = Sizes(seeds=2, steps=20, labels=(1, 5), components=8)


@foldax.config
class Masked(foldax.Training):
    """A masked autoencoder of digits: 4 of 16 patches are seen."""

    steps: int = 3_000
    log_every = 200
    evaluate_every = 0  # only at the end
    keep = "last"  # the rate decays to 0
    batch_size: int = 128
    width: int = 64
    depth: int = 3
    learning_rate: float = 2e-3


def masked_learner(config: Masked, info: data.Info) -> foldax.Learner:
    shape = info.shapes["inputs"]
    model = models.MaskedAutoencoder(shape, patch_size=2, visible=4, width=config.width, depth=config.depth)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.adamw(schedule, eps=1e-6, weight_decay=1e-2)
    return learners.masked_autoencoder(model, optimizer, preprocess=lambda x: x * (1 / 16))


class Method(NamedTuple):
    """How a representation is learned.

    Attributes:
      experiment: an experiment whose `evaluate` gives representations.
      fields: of its config.
      names: the name that `evaluate` gives each of them, by what they are called here.
    """

    experiment: foldax.Experiment
    fields: dict[str, Any]
    names: dict[str, str]


def methods() -> list[Method]:
    """Returns all that learn without labels."""

    def load(kind: str, name: str) -> foldax.Experiment:
        return foldax.load_experiment(EXPERIMENTS / kind / f"{name}.py")

    simclr = {"SimCLR, features": "features", "SimCLR, projections": "projections"}
    masked = foldax.Experiment(Masked, masked_learner, name="masked_digits")
    return [
        Method(load("unsupervised", "digits_autoencoder"), {"codes": 16}, {"autoencoder": "codes"}),
        Method(load("generative", "vae_digits"), {"importance_samples": 0}, {"VAE": "codes"}),
        Method(masked, {}, {"masked autoencoder": "features"}),
        Method(load("unsupervised", "contrastive_digits"), {"evaluate_every": 0}, simclr),
    ]


class Digits(NamedTuple):
    """Where labels come from, and what is tested.

    Attributes:
      pool: "inputs" and "targets" of the images whose labels may be drawn: those that are learned from without any.
      test: the same of the images that are tested on.
    """

    pool: dict[str, np.ndarray]
    test: dict[str, np.ndarray]

    def both(self) -> dict[str, np.ndarray]:
        """Returns the pool's images, then those that are tested on, as one split."""
        return {name: np.concatenate([self.pool[name], self.test[name]]) for name in self.pool}


def digits() -> Digits:
    """Returns the training and test images of `data.load("digits")`."""
    dataset = data.load("digits", batch_size=64)
    pool = {name: np.asarray(leaf) for name, leaf in dataset.train.examples().items()}
    return Digits(pool, dataset.splits["test"].examples())


def drawn(targets: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Returns indices of `per_class` images of each class."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(targets == k))[:per_class] for k in np.unique(targets)])


def probes(found: Digits, rows: np.ndarray, sizes: Sizes) -> dict[tuple[int, int], float]:
    """Returns the test accuracy of logistic regression by labels of each class and draw.

    Args:
      found: the images.
      rows: `[pool + test, D]`, what represents them; standardised by the pool's mean and deviation.
      sizes: labels and draws.
    """
    from sklearn.linear_model import LogisticRegression

    count = len(found.pool["targets"])
    known, new = np.split(rows.reshape(len(rows), -1).astype(np.float64), [count])
    mean, std = known.mean(axis=0), known.std(axis=0) + 1e-6
    known, new, targets = (known - mean) / std, (new - mean) / std, found.pool["targets"]
    scores = {}
    for per_class in sizes.labels:
        for seed in range(sizes.seeds):
            chosen = drawn(targets, per_class, seed)
            probe = LogisticRegression(max_iter=1_000).fit(known[chosen], targets[chosen])
            scores[per_class, seed] = float(probe.score(new, found.test["targets"]))
    return scores


def learned(method: Method, found: Digits, sizes: Sizes, folder: Path) -> list[dict[str, Any]]:
    """Learns a representation with every seed, in one sweep, and returns a row for each name, seed and labels.

    Its test split is the pool and the test images, so that `summarize` has what represents both.
    """

    def dataset(config: Any) -> data.Dataset:
        splits = {"train": found.pool, "test": found.both()}
        return data.from_splits(splits, name="digits", batch_size=config.batch_size, validation=0)

    def summarize(values: dict[str, np.ndarray]) -> dict[str, float]:
        scores = {}
        for name, value in method.names.items():
            for (per_class, seed), score in probes(found, values[value], sizes).items():
                scores[f"{name}/{per_class}/{seed}"] = score
        return scores

    fields = method.fields | ({} if sizes.steps is None else {"steps": sizes.steps})
    asked = method.experiment._replace(dataset=dataset, summarize=summarize, figures=None)
    config = asked.config(**fields)
    members = swept(asked, {}, config, sizes.seeds, folder)
    rows = []
    for name in method.names:
        for per_class in sizes.labels:
            for _, member in members.iterrows():
                score = member[f"test/{name}/{per_class}/{member['seed']}"]
                rows.append({"method": name, "per_class": per_class, "seed": member["seed"], "accuracy": score})
    return rows


def supervised(sizes: Sizes, folder: Path) -> list[dict[str, Any]]:
    """Returns rows of SimCLR's encoder with its augmentation, trained from scratch on the labelled images alone."""
    experiment = foldax.load_experiment(EXPERIMENTS / "unsupervised" / "pretrain_finetune.py")
    config = experiment.config(**({} if sizes.steps is None else {"steps": sizes.steps}))
    members = swept(experiment._replace(figures=None), {"per_class": sizes.labels}, config, sizes.seeds, folder)
    columns = {"per_class": "per_class", "seed": "seed", "test/accuracy": "accuracy"}
    return members[list(columns)].rename(columns=columns).assign(method=SUPERVISED).to_dict("records")


def swept(experiment: foldax.Experiment, space: Any, config: Any, seeds: int, folder: Path) -> pandas.DataFrame:
    """Returns the members of a sweep, which goes on if it was begun before."""
    known = (folder / "sweep.json").exists()
    return foldax.sweep(experiment, space, config=config, seeds=seeds, sweep_dir=folder, resume=known).results


def study(sizes: Sizes, runs: Path) -> pandas.DataFrame:
    """Returns a row for each method, number of labels and seed."""
    from sklearn.decomposition import PCA

    found = digits()
    pixels = found.both()["inputs"].reshape(-1, found.pool["inputs"][0].size)
    pca = PCA(sizes.components, svd_solver="full").fit(pixels[: len(found.pool["targets"])])
    rows = []
    for name, values in {"pixels": pixels, "PCA": pca.transform(pixels)}.items():
        for (per_class, seed), score in probes(found, values, sizes).items():
            rows.append({"method": name, "per_class": per_class, "seed": seed, "accuracy": score})
    for method in methods():
        rows += learned(method, found, sizes, runs / next(iter(method.names)).split(",")[0].replace(" ", "_"))
    rows += supervised(sizes, runs / "supervised")
    return pandas.DataFrame(rows)[["method", "per_class", "seed", "accuracy"]]


def summarized(members: pandas.DataFrame) -> pandas.DataFrame:
    """Returns a row for each method and number of labels: mean, 95% bootstrap interval, standard deviation."""
    rows = []
    for (method, per_class), group in members.groupby(["method", "per_class"], sort=False):
        low, high = statistics.interval(group["accuracy"].to_numpy())
        row = {"method": method, "per_class": per_class, "middle": group["accuracy"].mean(), "low": low, "high": high}
        rows.append({**row, "std": group["accuracy"].std(), "seeds": len(group)})
    return pandas.DataFrame(rows)


def draw(results: pandas.DataFrame) -> Any:
    """Draws test accuracy against labels of each class, a line for each method."""
    figure, axes = plots.new_figure(width=6.4, height=4.4)
    axis = axes[0, 0]
    for index, (method, (color, marker, line)) in enumerate(STYLES.items()):
        rows = results[results["method"] == method].sort_values("per_class")
        labels = rows["per_class"] * 1.03 ** (index - 3.5)  # side by side, so that intervals do not cover each other
        errors = (rows["middle"] - rows["low"], rows["high"] - rows["middle"])
        style = {"color": color, "marker": marker, "ls": line, "ms": 6, "lw": 1.4, "capsize": 2}
        axis.errorbar(labels, rows["middle"], yerr=errors, label=method, **style)
    ticks = sorted(set(results["per_class"]))
    axis.set_xscale("log")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set(xlabel="labels of each class", ylabel="test accuracy")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, loc="lower right", fontsize=8)
    return figure


def readme_table(results: pandas.DataFrame) -> str:
    """Returns the README's table: mean and standard deviation of the test accuracy."""
    counts = sorted(set(results["per_class"]))
    made = [["representation", *(f"{n} label{'s' * (n > 1)}" for n in counts)], ["---", *["---:"] * len(counts)]]
    for method in STYLES:
        rows = results[results["method"] == method].sort_values("per_class")
        made.append([method, *(f"{row.middle:.3f} ± {row.std:.3f}" for row in rows.itertuples())])
    return "\n".join(f"| {' | '.join(line)} |" for line in made)


def main(arguments: Sequence[str] | None = None) -> None:
    places = studies.places(__file__, __doc__, arguments, "few steps and labels")
    sizes = QUICK if places.quick else Sizes()
    results = summarized(study(sizes, places.runs))
    places.save({"results": results}, {"representations": draw(results)})
    print(f"\n{readme_table(results)}\n")
    print(f"table and figure: {places.out}")


if __name__ == "__main__":
    studies.run(main)
