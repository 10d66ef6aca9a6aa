"""Clustering of handwritten digits: minibatch k-means or stepwise EM of a Gaussian mixture, beside scikit-learn.

    foldax run experiments/unsupervised/cluster_digits.py
    foldax run experiments/unsupervised/cluster_digits.py --method mixture

Agreement of the clusters of 359 test images with their classes, mean and standard deviation over seeds 8 to 15:
adjusted Rand index (ARI) and normalised mutual information (NMI). How minibatch k-means starts was chosen with seeds 8
to 39, so its seeds are others:

                                         ARI               NMI
    minibatch k-means                    0.638 +- 0.042    0.754 +- 0.021    (seeds 40 to 47)
    stepwise EM                          0.667 +- 0.052    0.796 +- 0.032
    scikit-learn: KMeans                 0.631 +- 0.043    0.750 +- 0.023
                  KMeans, best of 10     0.658 +- 0.012    0.771 +- 0.009
                  GaussianMixture        0.740 +- 0.086    0.828 +- 0.047    (seeds 0 to 7)
                  diagonal               0.664 +- 0.066    0.777 +- 0.033    (seeds 0 to 7)
                  hierarchical (Ward)    0.689             0.786             (fitted to the test images)

    foldax sweep experiments/unsupervised/cluster_digits.py --exact --seed 40 --seeds 8
    foldax sweep experiments/unsupervised/cluster_digits.py --exact --method mixture --seed 8 --seeds 8
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import foldax
from foldax import data, learners, plots
from foldax.learners.clustering import kmeans


@foldax.config
class Config(foldax.Training):
    steps: int = 300
    log_every = 20
    evaluate_every = 0  # only at the end
    keep = "last"
    method: Literal["kmeans", "mixture"] = "kmeans"
    """Minibatch k-means, or stepwise EM of a Gaussian mixture."""
    num_clusters: int = 10
    """Number of clusters."""
    covariance_type: Literal["full", "diagonal"] = "full"
    """Covariances of the mixture."""
    regularization: float = 0.02
    """Added to the variances of the mixture; pixels are in [0, 1]."""
    step_exponent: float = 0.7
    """Exponent of the step size of stepwise EM, (t + 2) ** -step_exponent."""
    batch_size: int = 256
    """Examples per step."""


def dataset(config: Config) -> data.Dataset:
    return data.load("digits", batch_size=config.batch_size)


def to_unit_interval(images: Any) -> jax.Array:
    """Scales images from [0, 16] to [0, 1]."""
    return jnp.asarray(images, jnp.float32) * (1 / 16)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    if config.method == "kmeans":
        return learners.kmeans.minibatch_kmeans(config.num_clusters, preprocess=to_unit_interval)
    return learners.mixture.stepwise_em(
        config.num_clusters,
        covariance_type=config.covariance_type,
        preprocess=to_unit_interval,
        regularization=config.regularization,
        step_exponent=config.step_exponent,
    )


def baseline_assignments(train: np.ndarray, test: np.ndarray, config: Config) -> dict[str, np.ndarray]:
    """Clusters the test rows `[N, D]` by scikit-learn, fitted to the training rows unless the name says so."""
    from sklearn.cluster import AgglomerativeClustering, KMeans
    from sklearn.mixture import GaussianMixture

    count, seed = config.num_clusters, config.seed
    mixtures = {
        kind: GaussianMixture(count, covariance_type=kind, reg_covar=config.regularization, random_state=seed)
        for kind in ("full", "diag")
    }
    return {
        "KMeans": KMeans(count, n_init=1, random_state=seed).fit(train).predict(test),
        "KMeans, best of 10": KMeans(count, n_init=10, random_state=seed).fit(train).predict(test),
        **{f"GaussianMixture, {kind}": model.fit(train).predict(test) for kind, model in mixtures.items()},
        "hierarchical (Ward), on the test images": AgglomerativeClustering(count).fit_predict(test),
    }


def figures(result: foldax.Result) -> dict[str, Any]:
    test, images = result.values["test"], np.asarray(to_unit_interval(result.examples("test")["inputs"]))
    train = np.asarray(to_unit_interval(result.dataset.train.examples()["inputs"]))
    centers = result.state.centers if result.config.method == "kmeans" else result.state.means
    flat, centers = images.reshape(len(images), -1), np.asarray(centers)
    assignments, targets = test["assignments"], test["targets"]
    baselines = baseline_assignments(train.reshape(len(train), -1), flat, result.config)
    methods = {f"foldax {result.config.method}": assignments, **baselines}
    lines = [f"{'':<42}ARI     NMI"]
    for name, clusters in methods.items():
        ari, nmi = kmeans.clustering_scores({"targets": targets, "assignments": clusters}).values()
        lines.append(f"{name:<42}{ari:.4f}  {nmi:.4f}")
    counts = np.bincount(assignments, minlength=len(centers))
    names = result.info.class_names
    common_classes = [
        names[np.bincount(targets[assignments == k]).argmax()] if counts[k] else "none" for k in range(len(centers))
    ]
    titles = [f"{k}: {count}, mostly {name}" for k, (count, name) in enumerate(zip(counts, common_classes))]
    labels = {"by cluster": (assignments, None), "by class": (targets, names)}
    return {
        "comparison": f"{len(images)} test images in {len(centers)} clusters: agreement with the classes\n"
        + "\n".join(lines),
        "centers": plots.image_grid(centers.reshape(-1, *images.shape[1:]), titles, columns=5, title="centres"),
        "members": plots.cluster_members(images, assignments, np.linalg.norm(flat - centers[assignments], axis=1)),
        "embedding": plots.embeddings(flat, labels),
        "dendrogram": dendrogram(centers, [f"{k} ({name})" for k, name in enumerate(common_classes)]),
    }


def dendrogram(centers: np.ndarray, names: list[str]) -> Any:
    """Draws the dendrogram of centres `[K, D]` by average linkage."""
    from scipy.cluster import hierarchy

    figure, axes = plots.new_figure(width=5.6, height=3.4)
    axis = axes[0, 0]
    if len(centers) > 1:
        tree = hierarchy.linkage(centers, "average", optimal_ordering=True)
        hierarchy.dendrogram(
            tree, labels=names, ax=axis, color_threshold=0, above_threshold_color=plots.COLORS["train"]
        )
    axis.tick_params(axis="x", labelrotation=45, labelsize=8)
    axis.set(xlabel="cluster (its most common class)", ylabel="average-linkage distance")
    return figure


experiment = foldax.Experiment(Config, learner, dataset, summarize=kmeans.clustering_scores, figures=figures)

if __name__ == "__main__":
    foldax.main(experiment)
