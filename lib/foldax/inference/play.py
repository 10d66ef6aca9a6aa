"""`foldax play`: episodes of a trained agent as an animation and a film strip; games for two as text."""

import functools
import importlib.util
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.figure
import numpy as np
from PIL import Image

from foldax import rl
from foldax.engine import compiled
from foldax.engine.result import Result
from foldax.errors import ConfigError, ExperimentError, RunError, check_positive, display_path
from foldax.experiment import Experiment
from foldax.inference.outputs import output_path
from foldax.inference.play_game import play_games
from foldax.inference.rollout import Episode, decompress_image, rollout_on_device, rollout_on_host
from foldax.plots import agents
from foldax.runs.folder import whole_file
from foldax.runs.load import load_run
from foldax.runs.terminal import echo

MAX_FRAMES = 1000  # frames of an animation
STRIP_IMAGES = 8
MAX_STRIP_WIDTH = 2000  # pixels
MIN_SIDE = 120  # pixels of the shorter side of a frame
LAST_FRAME_SECONDS = 0.7  # added to the last frame of an episode
MAX_ROWS = 20  # printed episodes
MAX_FPS = {".gif": 50, ".mp4": 120}  # a GIF counts in hundredths of a second


class Scene(NamedTuple):
    """An environment to play in.

    Attributes:
      name: name of the environment.
      render: converts a state of an episode to an image uint8 `[H, W, 3]`; None: it cannot be rendered.
      rollout: `(number of episodes, seed, maximum steps) -> episodes`.
    """

    name: str
    render: Callable[[Any], np.ndarray] | None
    rollout: Callable[[int, int, int], list[Episode]]


def play(
    run: Result | str | Path,
    *,
    episodes: int = 1,
    seed: int = 0,
    steps: int = 1000,
    out: str | Path | None = None,
    fps: int = 30,
    against: str | None = None,
    verbose: bool = True,
) -> list[Episode] | np.ndarray:
    """Plays episodes with a run's `predict`; writes an animation of all of them and a film strip of the first.

    Where the environment cannot be rendered, it writes a figure of the first episode's observations and rewards. A game
    for two is played against an opponent, and its positions are printed.

    Args:
      run: a run folder, or the `Result` of `foldax.train`.
      episodes: number of episodes, in parallel environments.
      seed: seed of the environments and the policy.
      steps: maximum length of an episode.
      out: a .gif or .mp4 file; `play.gif` in the run folder if None. The film strip is written beside it.
      fps: frames per second.
      against: in a game for two the opponent: "random", "human" or a run folder; None: "random".
      verbose: prints returns and paths.

    Returns:
      The episodes; of a game for two the agent's total reward in each game, float32 `[episodes]`.

    Raises:
      ConfigError: an option is out of range, or the experiment has no `environment`.
      ExperimentError: the learner has no `predict`, its code or the environment's fails, or the first observations are
        not finite.
      RunError: the run cannot be loaded, or a file cannot be written.
    """
    _check_options(episodes, seed, steps, fps, out)
    result = run if isinstance(run, Result) else load_run(run)
    if (game := _game(result)) is not None:
        return play_games(
            result, game, against or "random", games=episodes, seed=seed, max_steps=steps, verbose=verbose
        )
    scene = _scene(result)
    if against is not None:
        raise ConfigError(f"--against: {scene.name} is for one player")
    path = output_path(result, out, "play.gif", kind="file to write")
    # 1. Rollout
    with compiled.user_code_errors(result.experiment):
        played = scene.rollout(episodes, seed, steps)
    if verbose:
        _print_returns(played, scene.name)
    # Episodes whose first observation is finite.
    finite = [episode for episode in played if len(episode.observations)]
    if not finite:
        raise ExperimentError(f"{scene.name}: its first observation is not finite, so there is nothing to play")
    # 2. Files
    title = f"{scene.name}: return {finite[0].episode_return:.6g}, {finite[0].length:,} steps"
    note, files = "", []
    if scene.render is None:
        note = f"{scene.name} cannot be rendered: plotted observations and rewards instead"
        figure = agents.episode_curves(_as_rows(finite[0].observations), finite[0].rewards, title)
        files = [_save(path.with_name(f"{path.stem}_observations.png"), lambda path: figure.savefig(path, dpi=120))]
    else:
        # Rounded up: at most MAX_FRAMES frames over all episodes.
        every = -(-sum(episode.length + 1 for episode in finite) // MAX_FRAMES)
        if every > 1:
            note = f"the animation shows one of {every} steps: there are more than {MAX_FRAMES}"
        frames = [
            list(_render(result.experiment, scene, [*episode.states[:-1:every], episode.states[-1]]))
            for episode in finite
        ]
        strip = _film_strip(result.experiment, scene, finite[0], title)
        files = [
            _save(path, lambda path: write_animation(path, frames, fps)),
            _save(path.with_name(f"{path.stem}_strip.png"), strip.savefig),
        ]
    if verbose:
        echo(*filter(None, [note, *map(display_path, files)]), sep="\n")
    return played


def _as_rows(observations: Any) -> np.ndarray:
    """Joins observations of several parts, `[T, ...]` each, to `[T, D]`."""
    parts = jax.tree.leaves(observations)
    return parts[0] if len(parts) == 1 else np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def _check_options(episodes: int, seed: int, steps: int, fps: int, out: str | Path | None) -> None:
    check_positive(**{"--episodes": episodes, "--steps": steps})
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed: {seed} must be from 0 to {2**32 - 1}")
    suffix = ".gif" if out is None else Path(out).suffix.lower()
    if suffix not in MAX_FPS:
        raise ConfigError(f"--out: {str(out)!r} is of no known kind; allowed are {', '.join(MAX_FPS)}")
    if not 1 <= fps <= MAX_FPS[suffix]:
        raise ConfigError(f"--fps: {fps} must be from 1 to {MAX_FPS[suffix]} for a {suffix} file")
    if suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ConfigError("--out: a .mp4 file needs imageio-ffmpeg (pip install imageio-ffmpeg); a .gif needs nothing")


def _game(result: Result) -> rl.Environment | None:
    """The run's environment, if it is a game for two."""
    if result.experiment.environment is None:
        return None
    with compiled.user_code_errors(result.experiment):
        environment = result.experiment.environment(result.config)
    return environment if isinstance(environment, rl.Environment) and environment.num_players == 2 else None


def _scene(result: Result) -> Scene:
    """Finds the environment of a run's agent.

    Raises:
      ConfigError: the experiment has no `environment`, and its dataset is no host environment.
      ExperimentError: `environment` returns something else.
    """
    if result.experiment.environment is None and isinstance(result.dataset, rl.HostEnvironment):
        host = result.dataset
        return Scene(host.info.name, _host_render(host), functools.partial(rollout_on_host, result, host))
    if result.experiment.environment is None:
        remedy = "environment=a function of the config that returns an rl.Environment"
        raise ConfigError(f"this experiment has no `environment` to play in: foldax.Experiment(..., {remedy})")
    with compiled.user_code_errors(result.experiment):
        environment = result.experiment.environment(result.config)
    if not isinstance(environment, rl.Environment):
        raise ExperimentError(f"`environment` must return an rl.Environment, got {type(environment).__name__}")
    return Scene(environment.name, environment.render, functools.partial(rollout_on_device, result, environment))


def _host_render(host: rl.HostEnvironment) -> Callable[[Any], np.ndarray] | None:
    """Returns `render` for the states of `rollout_on_host`; None if neither renderings nor observations are images."""
    if host.make_for_rendering:
        return decompress_image
    if host.info.dtype != np.uint8 or len(host.info.observation_space.shape) != 3:
        return None

    def render(compressed: Any) -> np.ndarray:
        stack = decompress_image(compressed)
        if stack.shape[-1] == 3:
            return stack
        # Frames are stacked along the first or the last axis, whichever is shorter.
        newest = stack[-1] if stack.shape[0] < stack.shape[-1] else stack[..., -1]  # of stacked grey frames
        return np.repeat(newest[..., None], 3, axis=-1)

    return render


def _print_returns(played: list[Episode], name: str) -> None:
    for number, episode in enumerate(played[:MAX_ROWS], 1):
        note = "" if episode.is_done else " (maximum length)"
        if episode.non_finite:
            note = f" (step {len(episode.states)}: an observation, a reward or the state is not finite)"
        echo(f"{name}, episode {number}: return {episode.episode_return:.6g}, {episode.length:,} steps{note}")
    if len(played) > 1:
        returns, lengths = (np.array([getattr(e, field) for e in played]) for field in ("episode_return", "length"))
        echo(
            f"{len(played):,} episodes: return {returns.mean():.6g} ± {returns.std(ddof=1):.4g}, "
            f"{lengths.mean():,.1f} ± {lengths.std(ddof=1):,.1f} steps (mean and standard deviation)"
        )


def _render(experiment: Experiment, scene: Scene, states: list[Any]) -> Iterator[np.ndarray]:
    """Yields an image `[H, W, 3]` of each state, enlarged if it is tiny.

    Raises:
      ExperimentError: `render` fails, or does not return images of one size.
    """
    shape = None
    for state in states:
        with compiled.user_code_errors(experiment):
            image = np.asarray(scene.render(state))  # type: ignore[misc]  # it is not None
        shape = shape or image.shape
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or image.shape != shape:
            images = "uint8 [H, W, 3], all of one size"
            raise ExperimentError(f"{scene.name}: `render` must return {images}, got {image.dtype} {list(image.shape)}")
        factor = max(1, MIN_SIDE // min(shape[:2]))
        yield image.repeat(factor, axis=0).repeat(factor, axis=1)


def _film_strip(experiment: Experiment, scene: Scene, episode: Episode, title: str) -> matplotlib.figure.Figure:
    steps = np.unique(np.linspace(0, episode.length, STRIP_IMAGES).round().astype(int))
    images = [Image.fromarray(image) for image in _render(experiment, scene, [episode.states[step] for step in steps])]
    factor = -(-STRIP_IMAGES * images[0].width // MAX_STRIP_WIDTH)
    arrays = np.stack([np.asarray(image.reduce(factor)) for image in images])
    return agents.film_strip(arrays, [f"step {step:,}" for step in steps], title)


def _save(path: Path, write: Callable[[Path], Any]) -> Path:
    with whole_file(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
    return path


def write_animation(path: Path, episodes: list[list[np.ndarray]], fps: int) -> None:
    """Writes frames uint8 `[H, W, 3]` of several episodes, one after another, to a .gif or .mp4 file.

    Raises:
      RunError: ffmpeg fails.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     write_animation(Path(directory) / "x.gif", [[np.zeros((8, 8, 3), np.uint8)] * 2], fps=30)
    """
    frames = [frame for episode in episodes for frame in episode]
    last_frames = set(np.cumsum([len(episode) for episode in episodes]) - 1)
    if path.suffix.lower() == ".gif":
        # A palette of 64 colours keeps the file small.
        images = [Image.fromarray(frame).quantize(64, method=Image.Quantize.FASTOCTREE) for frame in frames]
        extra = int(1000 * LAST_FRAME_SECONDS)
        durations = [1000 // fps + (extra if number in last_frames else 0) for number in range(len(images))]
        images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)
        return
    # A film has a constant rate, so the last frame of an episode is repeated.
    repeats = [1 + (number in last_frames) * round(LAST_FRAME_SECONDS * fps) for number in range(len(frames))]
    _write_mp4(path, np.repeat(np.stack(frames), repeats, axis=0), fps)


def _write_mp4(path: Path, frames: np.ndarray, fps: int) -> None:
    import imageio_ffmpeg

    # yuv420p stores colours per 2 x 2 pixels, so sides must be even.
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    frames = np.pad(frames, [(0, 0), *odd, (0, 0)], mode="edge")
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
    target = ["-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p", str(path)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, *target]
    # Not imageio_ffmpeg's own writer: it forks, and JAX warns of forks because its threads may deadlock.
    process = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
    if process.returncode:
        raise RunError(f"cannot write {path}: {process.stderr.decode(errors='replace').strip()}")
