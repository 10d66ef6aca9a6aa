"""Launched sweeps: a real local Ray and submitit's local jobs, with workers that are killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas
import pytest
from pandas.testing import assert_frame_equal

import foldax
from foldax.errors import ConfigError, ExperimentError, FoldaxError, Interrupted, RunError
from foldax.runs.progress import Progress
from foldax.sweeps.groups import SweepCallbacks
from foldax.sweeps.launchers import launch, pool, worker
from foldax.sweeps.launchers.ray import Ray
from foldax.sweeps.launchers.slurm import Slurm
from foldax.sweeps.records import ResultStore

FILE = '''
"""A line through the origin; where a file `kill` is, a worker kills itself at its seventh evaluation, or all do."""
import os, signal
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
import foldax
from foldax import data

HOME = Path("SOMEWHERE")


@foldax.config
class Config(foldax.Training):
    steps: int = 40
    log_every: int = foldax.driver(10)
    evaluate_every: int = foldax.driver(10)
    checkpoint_every: int | str = foldax.driver(10)
    learning_rate: float = 0.1
    width: int = 2


def dataset(config):
    if (HOME / "fail").exists():
        raise OSError("no such disk")
    slope = 3.0 if (HOME / "other").exists() and os.getpid() != int((HOME / "other").read_text()) else 2.0
    inputs = np.linspace(-1, 1, 100, dtype=np.float32)[:, None]
    return data.from_arrays({"inputs": inputs, "targets": inputs[:, 0] * slope}, batch_size=10)


def learner(config, info):
    def errors(w, batch):
        return (batch["inputs"][:, 0] * w.sum() - batch["targets"]) ** 2

    def update(w, batch, key):
        loss, gradient = jax.value_and_grad(lambda w: errors(w, batch).mean())(w)
        return w - config.learning_rate * (gradient + jax.random.normal(key, w.shape)), {"loss": loss}

    return foldax.Learner(
        lambda key, examples: jax.random.normal(key, (config.width,)),
        update,
        lambda w, batch, key: {"loss": errors(w, batch)},
    )


def summarize(values):
    calls = HOME / f"{os.getpid()}.calls"
    with calls.open("a") as file:
        file.write("x")
    always, once = HOME / "kill-all", HOME / "kill"
    if always.exists() or once.exists() and calls.stat().st_size == 7:
        once.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return {"largest": float(values["loss"].max())}


experiment = foldax.Experiment(Config, learner, dataset, summarize)
'''
SPACE = {"learning_rate": [0.1, 0.01, 1e38], "width": [2, 3]}  # the last rate is not finite
NUM_MEMBERS = 12  # members, with two seeds


@pytest.fixture(scope="module")
def ray_here() -> Any:
    """A Ray of this machine with room for two workers, shared by the tests."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with pool.fork_allowed():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "line.py").write_text(FILE.replace("SOMEWHERE", str(tmp_path)))
    return tmp_path


@pytest.fixture(scope="module")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> foldax.SweepResult:
    """Tables that every sweep of this file must reproduce."""
    home = tmp_path_factory.mktemp("whole")
    (home / "line.py").write_text(FILE.replace("SOMEWHERE", str(home)))
    return run_sweep(home, save=False)


def run_sweep(home: Path, launcher: Any = None, **options: Any) -> foldax.SweepResult:
    experiment = foldax.load_experiment(home / "line.py")
    return foldax.sweep(experiment, SPACE, launcher=launcher, **{"seeds": 2, "verbose": False} | options)


def assert_same_tables(first: foldax.SweepResult, second: foldax.SweepResult) -> None:
    frames = [one.results.drop(columns="seconds") for one in (first, second)]
    assert_frame_equal(*frames, check_exact=True)
    assert_frame_equal(first.curves, second.curves, check_exact=True)


def processes(home: Path) -> set[int]:
    return {int(path.stem) for path in home.glob("*.calls")} - {os.getpid()}


def test_ray_workers_match_a_local_sweep_though_one_is_killed(ray_here, home, finished_sweep) -> None:
    (home / "kill").touch()
    sweep = run_sweep(home, Ray(), sweep_dir=home / "sweep")
    assert_same_tables(finished_sweep, sweep)
    assert not (home / "kill").exists(), "no worker was killed"
    assert len(processes(home)) >= 3  # two at a time, and the one in the killed one's place
    metadata = json.loads((home / "sweep" / "sweep.json").read_text())
    assert (metadata["status"], metadata["launcher"], metadata["launcher_options"]["cpus"]) == ("finished", "ray", 1)
    assert_frame_equal(pandas.read_parquet(home / "sweep" / "results.parquet"), sweep.results, check_exact=True)


def test_ray_workers_without_the_file_system_receive_the_experiment(
    ray_here, home, finished_sweep, monkeypatch
) -> None:
    make_jobs = launch.make_jobs
    monkeypatch.setattr(
        launch,
        "make_jobs",
        lambda *arguments: ({**job, "file": "/nowhere/line.py", "folder": "/nowhere"} for job in make_jobs(*arguments)),
    )
    assert_same_tables(finished_sweep, run_sweep(home, Ray(), save=False))
    assert processes(home)


def test_fast_members_are_sent_in_vmapped_slices(ray_here, home) -> None:
    sweep = run_sweep(home, Ray(), execution="fast", save=False)
    assert set(sweep.results["status"]) == {"finished", "not finite"}
    alone = run_sweep(home, execution="fast", max_concurrent=3, save=False)  # half a group each, as two workers get it
    assert_same_tables(alone, sweep)


def test_optuna_batches_train_on_ray(ray_here, home) -> None:
    space = {"learning_rate": foldax.Range(1e-3, 1e-1, log=True)}
    options = dict(search=foldax.Optuna(num_trials=4, batch_size=2), save=False, verbose=False)
    experiment = foldax.load_experiment(home / "line.py")
    assert_same_tables(
        foldax.sweep(experiment, space, **options), foldax.sweep(experiment, space, launcher=Ray(), **options)
    )
    assert processes(home)


def test_workers_lost_repeatedly_end_the_sweep_which_resumes(ray_here, home, finished_sweep) -> None:
    (home / "kill-all").touch()
    with pytest.raises(RunError, match=r"3 workers in turn were lost with the members \d.*; the last: "):
        run_sweep(home, Ray(), sweep_dir=home / "sweep")
    (home / "kill-all").unlink()
    assert_same_tables(finished_sweep, run_sweep(home, Ray(), sweep_dir=home / "sweep", resume=True))


def test_error_of_the_experiment_arrives_without_foldax_frames(ray_here, home) -> None:
    experiment = foldax.load_experiment(home / "line.py")
    data = experiment.dataset(experiment.config())  # loaded here, where there was no such file yet
    here = experiment._replace(dataset=lambda config: data)
    (home / "fail").touch()
    with pytest.raises(ExperimentError, match="no such disk") as caught:
        foldax.sweep(here, SPACE, launcher=Ray(), save=False, verbose=False)
    assert "foldax/sweeps" not in str(caught.value)


def test_worker_with_other_data_is_an_error(ray_here, home) -> None:
    (home / "other").write_text(str(os.getpid()))
    with pytest.raises(RunError, match="a worker loaded other data"):
        run_sweep(home, Ray(), save=False)


def test_local_ray_sweep_is_stopped_and_resumed(home) -> None:
    """In a process of its own, for this one may have a Ray already; SIGTERM saves, and `foldax resume` goes on."""
    arguments = ["sweep", "line.py", "--learning-rate", "0.1", "0.01", "1e38", "--width", "2", "3", "--seeds", "2"]
    arguments += ["--launcher", "ray", "--workers", "2", "--sweep-dir", "sweep", "--steps", "100"]
    check_stopped_and_resumed(home, arguments)


def test_slurm_jobs_are_stopped_and_resumed(home) -> None:
    arguments = ["sweep", "line.py", "--learning-rate", "0.1", "0.01", "1e38", "--width", "2", "3", "--seeds", "2"]
    arguments += ["--launcher", "slurm", "--slurm-cluster", "local", "--workers", "2", "--sweep-dir", "sweep"]
    check_stopped_and_resumed(home, [*arguments, "--steps", "100"])


def check_stopped_and_resumed(home: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "foldax.cli"]
    pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home)
    running = subprocess.Popen([*command, *arguments], **pipes)
    until, records = time.monotonic() + 240, home / "sweep" / "members.jsonl"
    while running.poll() is None and time.monotonic() < until and not (records.exists() and records.stat().st_size):
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=240)
    assert running.returncode == 1, err
    assert "Traceback" not in err
    assert "members done; go on with: foldax resume sweep" in err
    before = records.read_text()
    resumed = subprocess.run([*command, "resume", "sweep"], timeout=400, check=False, **pipes)
    assert resumed.returncode == 0, resumed.stderr
    assert "Traceback" not in resumed.stderr
    assert records.read_text().startswith(before)
    experiment = foldax.load_experiment(home / "line.py")
    config = experiment.config(steps=100)
    finished_sweep = foldax.sweep(experiment, SPACE, seeds=2, config=config, save=False, verbose=False)
    results, curves = (pandas.read_parquet(home / "sweep" / f"{name}.parquet") for name in ("results", "curves"))
    assert_frame_equal(
        results.drop(columns="seconds"), finished_sweep.results.drop(columns="seconds"), check_exact=True
    )
    assert_frame_equal(curves, finished_sweep.curves, check_exact=True)


def test_slurm_jobs_match_a_local_sweep_though_one_is_killed(home, finished_sweep) -> None:
    (home / "kill").touch()
    assert_same_tables(finished_sweep, run_sweep(home, Slurm(workers=2, cluster="local"), sweep_dir=home / "sweep"))
    assert not (home / "kill").exists(), "no worker was killed"
    assert len(processes(home)) == 3


def test_only_workers_without_progress_in_turn_end_a_sweep(tmp_path) -> None:
    job = {"slice": 0, "members": [(0, {}), (1, {})], "execution": "exact", "folder": str(tmp_path)}
    (tmp_path / "sweep.json").write_text("{}")
    attempts, callbacks = {}, SweepCallbacks(None, ResultStore(None, 2), Progress("", 0, shown=False), lambda: False)
    for step in (10, 20, 30, 40, 40):  # a time limit that ends each worker, and the fourth before it saves
        (tmp_path / "members" / "1" / str(step)).mkdir(parents=True, exist_ok=True)
        assert launch._remaining_jobs(job, "TIMEOUT", attempts, callbacks) == [job]
    with pytest.raises(RunError, match=r"3 workers in turn were lost with the members 0, 1; the last: TIMEOUT"):
        launch._remaining_jobs(job, "TIMEOUT", attempts, callbacks)


def test_workers_receive_the_modules_beside_the_experiment(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in {
        "line.py": "import foldax\nfrom beside import part\nfrom lines.slope import learner\n"
        "experiment = foldax.Experiment(foldax.Training, learner)\n",
        "beside.py": "part = 1\n", "lines/slope.py": "def learner(config, info): return 'mine'\n", "unused.py": "",
    }.items():  # fmt: skip
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_text(text)
    foldax.load_experiment(tmp_path / "here" / "line.py")
    sources = launch.sources_beside(tmp_path / "here" / "line.py")
    assert sorted(name for name, _ in sources) == ["beside.py", "line.py", "lines/slope.py"]
    shutil.rmtree(tmp_path / "here")
    for name in ("beside", "lines", "lines.slope"):
        del sys.modules[name]
    experiment, _ = worker._load_experiment("/nowhere/line.py", tuple(sources))
    assert experiment.learner(None, None) == "mine"
    for name in ("beside", "lines", "lines.slope"):
        del sys.modules[name]


# Errors


@pytest.mark.parametrize(
    ("launcher", "options", "words"),
    [
        ("ray", {}, "launcher: 'ray' is neither foldax.Ray() nor foldax.Slurm()"),
        (Ray(workers=0), {}, "launcher: workers is 0; it must be at least 1"),
        (Ray(cpus=0), {}, "launcher: cpus is 0; it must be at least 1"),
        (Slurm(gpus=-1), {}, "launcher: gpus is -1; it must be at least 0"),
        (Slurm(cluster="lsf"), {}, "launcher: cluster 'lsf' is neither 'slurm' nor 'local'"),
        (Slurm(), {"save": False}, "launcher: Slurm's workers answer through the sweep folder"),
        (
            Ray(),
            {"search": foldax.SuccessiveHalving()},
            "launcher: SuccessiveHalving compares members while they train",
        ),
        (Ray(address="there"), {}, "launcher: the Ray address 'there' is not of the form host:port"),
        (Ray(address="there:many"), {}, "launcher: the Ray address 'there:many' is not of the form host:port"),
    ],
)
def test_wrong_launcher_options_are_config_errors(home, monkeypatch, launcher, options, words) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ConfigError) as caught:
        run_sweep(home, launcher, **{"save": True, "sweep_dir": home / "sweep"} | options)
    assert str(caught.value).startswith(words)


def test_experiment_without_a_file_cannot_be_launched(home) -> None:
    space: dict[str, Any] = {}
    exec(FILE.replace("SOMEWHERE", str(home)), space)
    with pytest.raises(ConfigError, match="workers load the experiment from its file, and this one has none"):
        foldax.sweep(space["experiment"], launcher=Ray(), save=False, verbose=False)


def test_ray_address_that_does_not_answer_is_an_error(home, monkeypatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, but not listening
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        for launcher in (Ray(address=address), Ray(address=f"ray://{address}")):
            with pytest.raises(RunError, match=f"no Ray cluster answers at (ray://)?{address}"):
                run_sweep(home, launcher, save=False)
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RunError, match="no Ray cluster answers"):
            run_sweep(home, Ray(), sweep_dir=home / "sweep")
    assert json.loads((home / "sweep" / "sweep.json").read_text())["status"].startswith("failed: launcher: no Ray")


@pytest.mark.parametrize(("launcher", "package"), [(Ray(), "ray"), (Slurm(), "submitit")])
def test_missing_package_of_a_launcher_is_an_error(home, monkeypatch, launcher, package) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"ray": "ray", "submitit": "slurm"}[package]
    with pytest.raises(FoldaxError, match=rf"is not installed: pip install 'foldax\[{extra}\]'"):
        run_sweep(home, launcher, sweep_dir=home / "sweep")


def test_missing_slurm_is_an_error(home, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(RunError, match=r"cannot submit to Slurm from here: .*srun"):
        run_sweep(home, Slurm(), sweep_dir=home / "sweep")


def test_worker_too_large_for_the_cluster_is_an_error(ray_here, home) -> None:
    with pytest.raises(ConfigError, match="no worker of 3 cpus and 0 gpus fits into"):
        run_sweep(home, Ray(cpus=3), save=False)


def test_interruption_states_the_progress(ray_here, home, monkeypatch) -> None:
    handle_event = launch.handle_event

    def interrupted(event: Any, job: Any, fingerprints: Any, callbacks: Any) -> None:
        handle_event(event, job, fingerprints, callbacks)
        if event[0] == "result":
            callbacks.stop_requested = lambda: True

    monkeypatch.setattr(launch, "handle_event", interrupted)
    with pytest.raises(Interrupted, match=r"^stopped with \d+ of 12 members done$"):
        run_sweep(home, Ray(), save=False)
