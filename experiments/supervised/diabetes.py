"""Diabetes (442 patients, 10 measured features): progression after a year, with an interval for each patient.

    foldax run experiments/supervised/diabetes.py

Seeds 0 to 7 of one split, 110 test patients: RMSE 56.3 +- 0.3, R^2 0.501 +- 0.005, negative log-likelihood 1.109 +-
0.007 nats (of standardised targets); the 90% interval holds 85.1% +- 1.5% of them (binomial error of so few: 2.9%).
Ridge regression has RMSE 56.6 and R^2 0.496 there. Other splits (`--split 1`) move all of this more than seeds do.
"""

import numpy as np
from sklearn import linear_model

import foldax
from foldax import data, learners, models, optim, plots


@foldax.config
class Config(foldax.Training):
    steps = 1_000
    log_every = 50
    split: int = 0
    """Seed of the split into training and test patients."""
    batch_size: int = 32
    """Patients per step."""
    hidden: tuple[int, ...] = (32,)
    """Widths of the hidden layers."""
    learning_rate: float = 3e-3
    """Highest rate of AdamW, which falls as a cosine."""
    weight_decay: float = 1.0
    """Of AdamW."""
    dropout: float = 0.2
    """Rate after each hidden layer."""


def dataset(config: Config) -> data.Dataset:
    return data.load("diabetes", batch_size=config.batch_size, validation=0.0, test=0.25, split_seed=config.split)


def learner(config: Config, info: data.Info) -> foldax.Learner:
    model = models.MLP((*config.hidden, 2), activation="gelu", dropout=config.dropout)  # a mean and a log deviation
    rule = optim.Optimizer(learning_rate=config.learning_rate, schedule="cosine", weight_decay=config.weight_decay)
    return learners.gaussian_regressor(
        model,
        optim.build(rule, config.steps),
        preprocess=info.standardize,
        target_mean=info.target_mean,
        target_std=info.target_std,
    )


def summarize(values: dict[str, np.ndarray]) -> dict[str, float]:
    return dict(zip(("rmse", "r2"), errors(values["targets"], values["predictions"]), strict=True))


def errors(targets: np.ndarray, mean: np.ndarray) -> tuple[float, float]:
    """Returns the root of the mean squared error and R^2."""
    squared = float(np.mean((targets - mean) ** 2))
    return squared**0.5, 1 - squared / float(np.var(targets))


def ridge(train: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns means and deviations `[N]` of ridge regression, its penalty and deviation from leaving each one out."""
    center, scale = train["inputs"].mean(axis=0), train["inputs"].std(axis=0)
    inputs = (train["inputs"] - center) / scale
    model = linear_model.RidgeCV(np.logspace(-2, 3, 51)).fit(inputs, train["targets"])
    return model.predict((test["inputs"] - center) / scale), np.full(len(test["targets"]), (-model.best_score_) ** 0.5)


def figures(result: foldax.Result) -> dict:
    test, train = result.values["test"], {k: np.asarray(v) for k, v in result.dataset.train.examples().items()}
    targets, mean, std = (test[name][:, 0].astype(np.float64) for name in ("targets", "predictions", "std"))
    told = {"network": (mean, std), "ridge": ridge(train, result.examples("test"))}
    unit = np.log(float(result.info.target_std))  # nats of targets of deviation 1, as the learner's loss
    lines = [f"{'':<10}{'RMSE':>8}{'R^2':>8}{'nats':>8}{'in 90% interval':>24}{'its mean width':>16}"]
    for name, (center, spread) in told.items():
        nats = np.mean(0.5 * ((targets - center) / spread) ** 2 + np.log(spread) + 0.5 * np.log(2 * np.pi)) - unit
        share = plots.coverage(targets, center, spread, 0.9)
        error = (share * (1 - share) / len(targets)) ** 0.5
        rmse, r2 = errors(targets, center)
        width = np.mean(2 * plots.reach_of(0.9) * spread)
        lines.append(f"{name:<10}{rmse:>8.2f}{r2:>8.3f}{nats:>8.3f}{f'{share:.1%} +- {error:.1%}':>24}{width:>16.1f}")
    return {
        "comparison": f"{len(targets)} test patients (+- is the binomial standard error)\n" + "\n".join(lines),
        "intervals": plots.intervals(targets, mean, std, unit="progression of diabetes"),
        "calibration": plots.calibration({name: (targets, *value) for name, value in told.items()}, len(targets)),
    }


experiment = foldax.Experiment(Config, learner, dataset, summarize, figures)

if __name__ == "__main__":
    foldax.main(experiment)
