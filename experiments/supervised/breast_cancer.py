"""Breast cancer (569 tumours, 30 measured features, malignant or benign) with a small multilayer perceptron.

    foldax run experiments/supervised/breast_cancer.py

Test AUROC 0.9966 (mean of seeds 8 to 15, standard deviation 0.0002; 114 tumours), accuracy 0.9660; 19 s on 2 CPU cores,
of which training takes less than one.
"""

import numpy as np
import optax
from sklearn import metrics

import foldax
from foldax import data, learners, models, plots


@foldax.config
class Config(foldax.Training):
    steps = 600
    log_every = 20
    evaluate_every = 60
    patience = 5
    batch_size: int = 64
    """Examples per update."""
    hidden: tuple[int, ...] = (32,)
    """Widths of the hidden layers."""
    learning_rate: float = 2e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.1
    """Weight decay of AdamW."""
    dropout: float = 0.2
    """Dropout rate after each hidden layer."""


def dataset(config: Config) -> data.Dataset:
    return data.load("breast_cancer", batch_size=config.batch_size)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    model = models.MLP((*config.hidden, info.num_classes), dropout=config.dropout)
    optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
    return learners.classifier(model, optimizer, preprocess=info.standardize)


def benign_scores(values: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the log odds `[N]` of class 1 (benign)."""
    return values["logits"][:, 1] - values["logits"][:, 0]


def summarize(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {"auroc": metrics.roc_auc_score(values["targets"], benign_scores(values))}


def figures(result: foldax.Result) -> dict:
    test, names = result.values["test"], result.info.class_names
    scores, predictions = benign_scores(test), plots.predicted_classes(test["logits"])
    wrong = np.flatnonzero(predictions != test["targets"])
    lines = [f"test example {i}: {names[test['targets'][i]]}, log odds of benign {scores[i]:+.2f}" for i in wrong]
    return {
        "roc": plots.roc_curve(test["targets"], scores),
        "confusion": plots.confusion_text(test["targets"], predictions, names),
        "mistakes": f"{len(wrong)} of {len(predictions)} wrong\n" + "\n".join(lines),
    }


experiment = foldax.Experiment(Config, learner, dataset, summarize, figures)

if __name__ == "__main__":
    foldax.main(experiment)
