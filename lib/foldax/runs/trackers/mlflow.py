"""MLflow, at its tracking URI."""

import logging
import re
import time
from pathlib import Path
from typing import Any

from foldax.field_values import to_plain
from foldax.runs.status import is_success, status_kind
from foldax.runs.trackers.protocol import TrackedRun

MAX_PARAMS = 100  # that one request may have
MAX_TEXT = 500  # letters of a parameter that every server takes


class MLflow:
    """Logs to the server or folder of MLFLOW_TRACKING_URI, by default MLflow's own: `mlflow ui` shows it."""

    def start(self, run: TrackedRun) -> str:
        """Creates a run in the experiment of that name, or goes on with one."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells how it makes its database
        # A client, because the calls of the module itself belong to the thread that started the run.
        self._client: Any = MlflowClient()
        if run.id is not None:
            self._id = run.id
            self._client.update_run(self._id, status="RUNNING")
            return self._id
        experiment = self._client.get_experiment_by_name(run.experiment)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(run.experiment)
        tags = {"run_folder": str(run.folder.resolve())} | ({"group": run.group} if run.group else {})
        self._id = self._client.create_run(experiment_id, tags=tags, run_name=run.name).info.run_id
        # Once only: parameters of a run cannot change.
        params = [Param(_key(name), str(value)[:MAX_TEXT]) for name, value in flat_config(run.config).items()]
        for first in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self._id, params=params[first : first + MAX_PARAMS])
        return self._id

    def log(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Logs metrics by names such as "train/loss"."""
        self._log({f"{split}/{name}": value for name, value in metrics.items()}, step)

    def figure(self, step: int, name: str, path: Path) -> None:
        """Stores the file as an artifact."""
        self._client.log_artifact(self._id, str(path), f"figures/{_key(name)}")

    def summary(self, metrics: dict[str, float]) -> None:
        """Logs the final metrics by names such as "final/test/loss"."""
        self._log({f"final/{name}": value for name, value in metrics.items()}, 0)

    def finish(self, status: str) -> None:
        """Ends the run."""
        failure = "KILLED" if status_kind(status) == "interrupted" else "FAILED"
        self._client.set_terminated(self._id, "FINISHED" if is_success(status) else failure)

    def _log(self, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1_000 * time.time())
        self._client.log_batch(self._id, [Metric(_key(name), value, now, step) for name, value in metrics.items()])


def flat_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Lists the fields of a config, those of nested ones as "optimizer.name".

    >>> flat_config({"steps": 3, "optimizer": {"name": "adam"}})
    {'steps': 3, 'optimizer.name': 'adam'}
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, dict)
        flat |= flat_config(value, f"{prefix}{name}.") if nested else {prefix + name: to_plain(value)}
    return flat


def _key(name: str) -> str:
    """Replaces characters that MLflow does not take in names."""
    return re.sub(r"[^\w\-./ ]", "_", name)
