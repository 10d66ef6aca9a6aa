"""`foldax play`: what a trained agent does, as an animation and a strip of pictures."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foldax import rl
from foldax.engine import compiled
from foldax.engine.result import Result
from foldax.errors import ConfigError, ExperimentError, RunError
from foldax.experiment import Experiment
from foldax.inference.rollout import Episode, played_here, played_on_host, unpacked
from foldax.plots import agents
from foldax.runs import tables
from foldax.runs.load import load_run

MOST_FRAMES = 1000  # of an animation
STRIP = 8  # pictures
WIDEST = 2000  # pixels of them all, side by side
LEAST = 120  # pixels of a picture's shorter side
HELD = 0.7  # seconds that an episode's last picture stays
ROWS = 20  # episodes that are printed
FASTEST = {".gif": 50, ".mp4": 120}  # frames a second, by kind of file; a GIF counts in hundredths of a second


class Scene(NamedTuple):
    """Where an agent plays.

    Attributes:
      name: of the environment.
      render: a state of an episode to an image uint8 `[H, W, 3]`; None: there are no pictures.
      play: `(episodes, seed, most steps) -> episodes`.
    """

    name: str
    render: Callable[[Any], np.ndarray] | None
    play: Callable[[int, int, int], list[Episode]]


def play(
    run: Result | str | Path,
    *,
    episodes: int = 1,
    seed: int = 0,
    steps: int = 1000,
    out: str | Path | None = None,
    fps: int = 30,
    verbose: bool = True,
) -> list[Episode]:
    """Plays episodes by the run's `predict`; writes an animation of all of them, and pictures of the first.

    Where the environment has no pictures, it writes a figure of the first episode's observations and rewards.

    Args:
      run: a run folder, or what `foldax.train` returned.
      episodes: played side by side.
      seed: of the environment's and the policy's randomness; the same plays the same.
      steps: after which an episode is left off.
      out: a .gif or .mp4 file; `play.gif` in the run folder if None. The pictures are written beside it.
      fps: frames a second.
      verbose: whether to say what came of it.

    Raises:
      ConfigError: an option is out of its range, or the experiment has no `environment`.
      ExperimentError: the learner has no `predict`, its code or the environment's fails, or nothing is finite.
      RunError: see `load_run`; or a file cannot be written.
    """
    _check(episodes, seed, steps, fps, out)
    result = run if isinstance(run, Result) else load_run(run)
    scene, path = _scene(result), _path(result, out)
    with compiled.own_code(result.experiment):
        played = scene.play(episodes, seed, steps)
    if verbose:
        _show(played, scene.name)
    shown = [episode for episode in played if len(episode.observations)]
    if not shown:
        raise ExperimentError(f"{scene.name}: its first observation is not finite, so there is nothing to play")
    first, written = shown[0], []
    about = f"{scene.name}: return {first.total:.6g}, {first.length:,} steps"
    if scene.render is None:
        note = f"{scene.name} has no pictures (no `render`, on a host `pictured`): observations and rewards are drawn"
        figure, place = agents.played(first.observations, first.rewards, about), _beside(path, "observations")
        written = [(place, lambda: figure.savefig(place, dpi=120))]
    else:
        every = -(-sum(episode.length + 1 for episode in shown) // MOST_FRAMES)
        note = f"every {every} steps are a frame of the animation: there are too many" if every > 1 else ""
        animation = [_frames(result.experiment, scene, episode, every) for episode in shown]
        strip, place = _strip(result.experiment, scene, first, about), _beside(path, "strip")
        written = [(path, lambda: _animate(path, animation, fps)), (place, lambda: strip.savefig(place))]
    for name, write in written:
        _write(name, write)
    if verbose:
        print(*filter(None, [note, *(tables.shown(name) for name, _ in written)]), sep="\n")
    return played


def _check(episodes: int, seed: int, steps: int, fps: int, out: str | Path | None) -> None:
    for name, value in (("episodes", episodes), ("steps", steps)):
        if value < 1:
            raise ConfigError(f"--{name}: {value} must be 1 or more")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed: {seed} must be from 0 to {2**32 - 1}")
    kind = ".gif" if out is None else Path(out).suffix.lower()
    if kind not in FASTEST:
        raise ConfigError(f"--out: {str(out)!r} is of no known kind; allowed are {', '.join(FASTEST)}")
    if not 1 <= fps <= FASTEST[kind]:
        raise ConfigError(f"--fps: {fps} must be from 1 to {FASTEST[kind]} for a {kind} file")
    if kind == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ConfigError("--out: a .mp4 file needs imageio-ffmpeg (pip install imageio-ffmpeg); a .gif needs nothing")


def _scene(result: Result) -> Scene:
    """Returns where a run's agent plays.

    Raises:
      ConfigError: the experiment has no `environment`, and its data are of none on the host.
      ExperimentError: `environment` returns something else.
    """
    if result.experiment.environment is None and isinstance(result.dataset, rl.Host):
        host = result.dataset
        return Scene(host.info.name, _as_they_are(host), functools.partial(played_on_host, result, host))
    if result.experiment.environment is None:
        raise ConfigError(
            "this experiment says no `environment` to play in: "
            "foldax.Experiment(..., environment=a function of the config that returns an rl.Environment)"
        )
    with compiled.own_code(result.experiment):
        world = result.experiment.environment(result.config)
    if not isinstance(world, rl.Environment):
        raise ExperimentError(f"`environment` must return an rl.Environment, got {type(world).__name__}")
    return Scene(world.name, world.render, functools.partial(played_here, result, world))


def _as_they_are(host: rl.Host) -> Callable[[Any], np.ndarray] | None:
    """Returns what makes a picture of a state, if that is one or an observation that is: of grey ones the newest."""
    if host.pictured:
        return unpacked
    if host.info.dtype != np.uint8 or len(host.info.observations.shape) != 3:
        return None

    def newest(packed: Any) -> np.ndarray:
        stack = unpacked(packed)
        if stack.shape[-1] == 3:
            return stack
        image = stack[-1] if stack.shape[0] < stack.shape[-1] else stack[..., -1]
        return np.repeat(image[..., None], 3, axis=-1)

    return newest


def _path(result: Result, out: str | Path | None) -> Path:
    if out is None and result.run_dir is None:
        raise ConfigError("out: the run has no folder, so say where to write")
    return Path(out) if out is not None else Path(str(result.run_dir)) / "play.gif"


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.stem}_{what}.png")


# What is shown


def _show(played: list[Episode], name: str) -> None:
    for number, episode in enumerate(played[:ROWS], 1):
        note = "" if episode.ended else " (left off there)"
        if episode.broken:
            note = f" (step {len(episode.states)}: an observation, a reward or the state is not finite)"
        print(f"{name}, episode {number}: return {episode.total:.6g}, {episode.length:,} steps{note}")
    if len(played) > 1:
        totals, lengths = (np.array([getattr(e, field) for e in played]) for field in ("total", "length"))
        print(
            f"{len(played):,} episodes: return {totals.mean():.6g} ± {totals.std(ddof=1):.4g}, "
            f"{lengths.mean():,.1f} ± {lengths.std(ddof=1):,.1f} steps (mean and standard deviation)"
        )


def _frames(experiment: Experiment, scene: Scene, episode: Episode, every: int) -> list[np.ndarray]:
    """Returns pictures `[H, W, 3]` of every so many steps, and of the last."""
    return list(_drawn(experiment, scene, [*episode.states[:-1:every], episode.states[-1]]))


def _drawn(experiment: Experiment, scene: Scene, states: list[Any]) -> Iterator[np.ndarray]:
    """Yields a picture of each state, enlarged if it is tiny.

    Raises:
      ExperimentError: `render` fails, or returns no picture, or one of another size.
    """
    shape = None
    for state in states:
        with compiled.own_code(experiment):
            image = np.asarray(scene.render(state))  # type: ignore[misc]  # it is not None
        shape = shape or image.shape
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or image.shape != shape:
            raise ExperimentError(
                f"{scene.name}: `render` must return uint8 [H, W, 3], all of one size, "
                f"got {image.dtype} {list(image.shape)}"
            )
        larger = max(1, LEAST // min(shape[:2]))
        yield image.repeat(larger, axis=0).repeat(larger, axis=1)


def _strip(experiment: Experiment, scene: Scene, episode: Episode, title: str) -> Any:
    chosen = np.unique(np.linspace(0, episode.length, STRIP).round().astype(int))
    from PIL import Image

    images = [Image.fromarray(image) for image in _drawn(experiment, scene, [episode.states[step] for step in chosen])]
    smaller = -(-STRIP * images[0].width // WIDEST)
    return agents.strip(
        np.stack([np.asarray(image.reduce(smaller)) for image in images]), [f"step {step:,}" for step in chosen], title
    )


# Files


def _write(path: Path, write: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def _animate(path: Path, episodes: list[list[np.ndarray]], fps: int) -> None:
    frames = [frame for episode in episodes for frame in episode]
    lasts = set(np.cumsum([len(episode) for episode in episodes]) - 1)
    if path.suffix.lower() == ".gif":
        from PIL import Image

        images = [Image.fromarray(frame).quantize(64, method=Image.Quantize.FASTOCTREE) for frame in frames]
        durations = [1000 // fps + (int(1000 * HELD) if number in lasts else 0) for number in range(len(images))]
        images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)
        return
    every = (frame for number, frame in enumerate(frames) for _ in range(1 + (number in lasts) * round(HELD * fps)))
    _film(path, np.stack(list(every)), fps)


def _film(path: Path, frames: np.ndarray, fps: int) -> None:
    """Writes a film by ffmpeg.

    Raises:
      RunError: ffmpeg fails.
    """
    import imageio_ffmpeg

    # Colours are stored for 2 x 2 pixels. The package's own writer forks, which JAX warns of.
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    frames = np.pad(frames, [(0, 0), *odd, (0, 0)], mode="edge")
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
    target = ["-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p", str(path)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, *target]
    done = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
    if done.returncode:
        raise RunError(f"cannot write {path}: {done.stderr.decode(errors='replace').strip()}")
