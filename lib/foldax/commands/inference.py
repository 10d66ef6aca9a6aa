"""Commands that use a run: `foldax predict`, `export`, `cluster`, `play` and `sample`."""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path

OTHER_DATA = "go on although the data have changed"


def add_inference_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the commands to the command line; `add(name, function, help, *positionals)` adds one."""
    predict = add("predict", _use_run, "print a run's predictions: classes with probabilities, or numbers", "RUN_DIR")
    predict.add_argument("source", metavar="INPUT", help="test or validation, or a .npy .npz .csv .json .png .jpg file")
    predict.add_argument("--out", type=Path, metavar="FILE", help="write them to a .npy .npz .csv .json file, too")

    export = add("export", _use_run, "write a run's parameters and a program that predicts without foldax", "RUN_DIR")
    export.add_argument("--out", type=Path, metavar="DIR", help="default: export in the run folder")
    export.add_argument("--batch-size", type=_size, metavar="N", help="examples per call (default: any number)")
    platforms = ("cpu", "cuda", "tpu")
    export.add_argument("--platforms", nargs="+", default=platforms, metavar="NAME", help="default: cpu cuda tpu")
    export.add_argument("--shape", nargs="+", type=_size, metavar="N", help="of one input; a name is any length")
    export.epilog = "DIR gets params.safetensors, predict.jax, signature.json, and example.py, which uses them."

    cluster = add("cluster", _use_run, "cluster a run's examples by its representations of them", "RUN_DIR")
    cluster.add_argument("--representation", metavar="NAME", help="inputs, or an output of `evaluate`")
    cluster.add_argument("--split", default="test", metavar="NAME", help="train, validation or test (default)")
    cluster.add_argument("--method", metavar="NAME", help="kmeans (default), mixture or hierarchical")
    cluster.add_argument("--num-clusters", type=int, metavar="K", help="default: the number of classes")
    cluster.add_argument("--normalize", action="store_true", help="scale representations to length 1")
    cluster.add_argument("--seed", type=int, default=0, metavar="N", help="seed of kmeans and mixture (default: 0)")
    cluster.add_argument("--out", type=Path, metavar="DIR", help="default: a folder in RUN_DIR/clusters")

    play = add("play", _use_run, "play episodes with a run's agent: an animation, a film strip, and returns", "RUN_DIR")
    play.add_argument("--episodes", type=int, default=1, metavar="N", help="number of episodes (default: 1)")
    play.add_argument("--seed", type=int, default=0, metavar="N", help="seed of environment and policy (default: 0)")
    help = "maximum steps of an episode (default: 1000)"
    play.add_argument("--steps", type=int, default=1000, metavar="N", help=help)
    play.add_argument("--out", type=Path, metavar="FILE", help=".gif or .mp4 (default: play.gif in the run folder)")
    play.add_argument("--fps", type=int, default=30, metavar="N", help="frames per second (default: 30)")
    play.add_argument(
        "--against", metavar="OPPONENT", help="in a game for two: random (default), human or a run folder"
    )
    play.epilog = (
        "The agent takes its best actions (`predict`) in the experiment's `environment`. A film strip of the first "
        "episode is written beside FILE (_strip.png). If the environment cannot be rendered, a figure of the "
        "observations (_observations.png) replaces both. Games for two are shown in the terminal."
    )

    sample = add("sample", _use_run, "write samples of a run's generative model: a grid of images, or text", "RUN_DIR")
    sample.add_argument("--prompt", metavar="TEXT", help="text that a language model continues")
    sample.add_argument(
        "--class", dest="label", type=int, metavar="K", help="class of all images (default: all in turn)"
    )
    sample.add_argument("--count", type=int, metavar="N", help="number of images (default: 64) or texts (default: 1)")
    sample.add_argument("--length", type=int, default=200, metavar="N", help="tokens of a text (default: 200)")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples (default: 0)")
    sample.add_argument("--out", type=Path, metavar="FILE", help="default: samples.png or samples.txt in RUN_DIR")
    for command in (predict, export, cluster, play, sample):
        command.add_argument("--allow-other-data", action="store_true", help=OTHER_DATA)


def _use_run(command: argparse.Namespace) -> None:
    """Calls the function of `foldax.inference` that has the name of the command, with the command's options."""
    from foldax.runs.load import load_run

    module = importlib.import_module(f"foldax.inference.{command.name}")
    others = ("name", "run", "takes_options", "options", "run_dir", "allow_other_data")
    options = {name: value for name, value in vars(command).items() if name not in others}
    run = load_run(command.run_dir, allow_other_data=command.allow_other_data)
    getattr(module, command.name)(run, **options)


def _size(text: str) -> int | str:
    return int(text) if text.isdigit() else text
