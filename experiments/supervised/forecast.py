"""Forecasts of CO2 (monthly) and sunspots (yearly) a season ahead, with their uncertainty, against an ARIMA.

    foldax run experiments/supervised/forecast.py
    foldax run experiments/supervised/forecast.py --series sunspots

The last fifth of a series is tested on: at each of its origins, one step apart, what lies behind is known, and the next
12 months or 11 years are forecast. Skill is 1 - MAE / MAE of the seasonal naive forecast (the season before).
Perceptron (default): mean and deviation of seeds 0 to 7, and in brackets where the middle 90% of seed 0's skill lies
when blocks of origins are drawn anew. The ARIMAs are statsmodels', fitted to the same part of the series as the
network.

    co2       94 origins   skill 0.726 +- 0.003 (0.681 to 0.763)   90% interval holds 96.6%
      ARIMA (0,1,1)(0,1,1)12     0.735 (0.682 to 0.779)                               89.9%
    sunspots  52 origins   skill 0.210 +- 0.016 (0.104 to 0.373)   90% interval holds 90.8%
      AR(9)                      0.210 (-0.045 to 0.395)                               82.0%

19 s a series on 2 CPU cores.
"""

import warnings
from importlib import metadata
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

import foldax
from foldax import data, learners, models, optim, plots

ARIMAS = {
    "co2": dict(order=(0, 1, 1), seasonal_order=(0, 1, 1, 12)),  # the airline model of Box & Jenkins
    "sunspots": dict(order=(9, 0, 0), trend="c"),
}


@foldax.config
class Config(foldax.Training):
    steps = 1_000
    keep = "last"
    log_every = 100
    series: Literal["co2", "sunspots"] = "co2"
    """Monthly CO2 at Mauna Loa, or yearly numbers of sunspots."""
    model: Literal["linear", "mlp", "cnn", "lstm", "transformer"] = "mlp"
    """What reads the last seasons."""
    seasons: int = 4
    """Length of what is looked back at, in seasons of 12 months or 11 years; one season is forecast."""
    scale: Literal["window", "last"] = "last"
    """What a context's values are measured from: their mean or the last one."""
    batch_size: int = 32
    """Origins per step."""
    width: int = 32
    """Of hidden layers, channels or states."""
    learning_rate: float = 2e-3
    """Highest rate of AdamW, which falls as a cosine."""
    weight_decay: float = 1.0
    """Of AdamW."""
    dropout: float = 0.1
    """Rate after hidden layers."""


def series_of(config: Config) -> data.Series:
    return {"co2": data.co2, "sunspots": data.sunspots}[config.series]()


def dataset(config: Config) -> data.Dataset:
    series = series_of(config)
    splits = data.forecast_splits(series.values, config.seasons * series.season, series.season, validation=0.0)
    return data.from_splits(splits, name=series.name, batch_size=config.batch_size, validation=0.0)


def network(config: Config, horizon: int) -> Any:
    outputs, width, dropout = 2 * horizon, config.width, config.dropout
    if config.model == "linear":
        return models.MLP((outputs,))
    if config.model == "mlp":
        return models.MLP((width, width, outputs), activation="gelu", dropout=dropout)
    if config.model == "cnn":
        return models.CNN(outputs, (width, width), dense=(width,), activation="gelu", dropout=dropout)
    if config.model == "lstm":
        return models.Recurrent(outputs, (width,), pooling="last", dropout=dropout)
    return models.Transformer(
        outputs, width=width, depth=2, num_heads=2, mlp_width=2 * width, pooling="last", dropout=dropout
    )


def learner(config: Config, info: data.Info) -> foldax.Learner:
    horizon = info.shapes["targets"][0]
    rule = optim.Optimizer(
        learning_rate=config.learning_rate,
        schedule="cosine",
        warmup=0.05,
        weight_decay=config.weight_decay,
        clip_norm=1.0,
    )
    forecaster = learners.forecaster(network(config, horizon), optim.build(rule, config.steps), scale=config.scale)

    def evaluate(state: Any, batch: Any, key: Any) -> dict[str, Any]:
        naive = jnp.abs(batch["inputs"][:, -horizon:, 0] - batch["targets"]).mean(axis=1)
        return forecaster.evaluate(state, batch, key) | {"naive_absolute_error": naive}

    return forecaster._replace(evaluate=evaluate)


def summarize(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {"skill": 1 - float(values["absolute_error"].mean() / values["naive_absolute_error"].mean())}


def arima(series: data.Series, origins: np.ndarray) -> dict[str, list]:
    """Returns means and deviations `[N, H]` of statsmodels' ARIMA, fitted to what is before the first origin.

    At every origin it has filtered all that came before; its parameters stay, as the network's do.
    """
    from statsmodels.tsa.arima.model import ARIMA

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ARIMAS[series.name]
        fitted = ARIMA(series.values[: origins[0]], **model).fit(
            method="statespace" if "seasonal_order" in model else "innovations_mle"
        )
        whole = fitted.apply(series.values)
        told = [whole.get_prediction(int(o), int(o) + series.season - 1, dynamic=True) for o in origins]
    return {"mean": [list(one.predicted_mean) for one in told], "std": [list(one.se_mean) for one in told]}


def figures(result: foldax.Result) -> dict:
    test, series, info = result.values["test"], series_of(result.config), result.info
    count, horizon = test["targets"].shape
    origins = len(series.values) - horizon + 1 - count + np.arange(count)
    name = f"arima-{info.name}-{info.fingerprint[:16]}-statsmodels-{metadata.version('statsmodels')}"
    other = {key: np.asarray(value) for key, value in data.remembered(name, lambda: arima(series, origins)).items()}
    naive = series.values[origins[:, None] + np.arange(horizon) - series.season]
    told = {result.config.model: (test["predictions"], test["std"]), "ARIMA": (other["mean"], other["std"])}
    fans = np.arange(count - 1, -1, -horizon)[::-1]
    shown = slice(origins[0] - 2 * horizon, None)
    return {
        "comparison": comparison(series, origins, test["targets"], naive, told),
        "forecasts": plots.forecast_fans(
            series.times[shown],
            series.values[shown],
            [(origins[i] - shown.start, test["predictions"][i], test["std"][i]) for i in fans],
            f"{series.name}, forecast by {result.config.model} at every {horizon}th origin",
            series.unit,
            **{"ARIMA": other["mean"][fans], "seasonal naive": naive[fans]},
        ),
        "errors": drawn_errors(
            series, test["targets"], {k: v for k, (v, _) in told.items()} | {"seasonal naive": naive}
        ),
        "calibration": plots.calibration({k: (test["targets"], *v) for k, v in told.items()}),
    }


def comparison(
    series: data.Series, origins: np.ndarray, targets: np.ndarray, naive: np.ndarray, told: dict[str, tuple]
) -> str:
    """Returns a table of errors, skills, coverage and log-likelihoods."""
    error = np.abs(naive - targets).mean(axis=1)
    head = f"{series.name}: {len(origins)} origins from {series.times[origins[0]]} on, {targets.shape[1]} steps ahead\n"
    head += f"{'':<16}{'MAE':>8}{'skill over seasonal naive':>52}{'in 90% interval':>18}{'nats':>8}\n"
    lines = [f"{'seasonal naive':<16}{error.mean():>8.3f}{0:>52.3f}"]
    for name, (mean, std) in told.items():
        own = np.abs(mean - targets).mean(axis=1)
        low, high = skill_range(own, error, targets.shape[1])
        skill = f"{1 - own.mean() / error.mean():.3f} (bootstrap over origins: {low:.3f} to {high:.3f})"
        nats = np.mean(0.5 * ((targets - mean) / std) ** 2 + np.log(std) + 0.5 * np.log(2 * np.pi))
        covered = plots.coverage(targets, mean, std, 0.9)
        lines.append(f"{name:<16}{own.mean():>8.3f}{skill:>52}{covered:>18.1%}{nats:>8.3f}")
    return head + "\n".join(lines)


def skill_range(errors: np.ndarray, naive: np.ndarray, block: int, draws: int = 2_000) -> np.ndarray:
    """Returns where the middle 90% of skills lie when blocks of neighbouring origins are drawn anew (Kunsch, 1989)."""
    random, count = np.random.RandomState(0), len(errors)
    starts = random.randint(0, count - block + 1, (draws, -(-count // block)))
    rows = (starts[:, :, None] + np.arange(block)).reshape(draws, -1)[:, :count]
    return np.percentile(1 - errors[rows].mean(axis=1) / naive[rows].mean(axis=1), [5, 95])


def drawn_errors(series: data.Series, targets: np.ndarray, told: dict[str, np.ndarray]) -> Any:
    """Draws mean absolute errors against how far ahead they were forecast."""
    figure, axes = plots.new_figure(width=4.6)
    for (name, mean), color in zip(told.items(), plots.CYCLE, strict=False):
        axes[0, 0].plot(
            1 + np.arange(targets.shape[1]), np.abs(mean - targets).mean(axis=0), ".-", color=color, label=name
        )
    axes[0, 0].set(
        xlabel="steps ahead", ylabel=f"mean absolute error ({series.unit})", ylim=(0, None), title=series.name
    )
    axes[0, 0].legend(frameon=False)
    axes[0, 0].grid(alpha=0.25)
    return figure


experiment = foldax.Experiment(Config, learner, dataset, summarize, figures)

if __name__ == "__main__":
    foldax.main(experiment)
