"""The laws: what every learner and every experiment must satisfy, as functions that say in plain words what broke.

Each law takes a `Subject` and returns None, or a sentence saying why it does not apply; it raises
`LawBroken` otherwise. They run a few steps of the experiment's own config with the driver's own programs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.configuration import kinds, with_steps
from foldax.engine import compiled, loop
from foldax.engine import fold as folds
from foldax.engine.checkpoint import Checkpoints, flat, to_host
from foldax.engine.policy import Newest
from foldax.errors import FoldaxError
from foldax.experiment import Experiment
from foldax.learner import Average
from foldax.runs.transfer import initial_parameters
from foldax.sweeps.exact import Lanes, Member, own_devices
from foldax.sweeps.vmapped import Together

STEPS = 10
FAST_TOLERANCE = 1e-4
# A ReLU that stands on its edge turns rounding into another activation: in a ResNet-20 2% of an array's step. Gradients
# that rounding had spoiled were out by 96%.
STEP_TOLERANCE = 0.05


class LawBroken(FoldaxError):
    """An experiment does not satisfy a law."""


class Subject(NamedTuple):
    """What is checked: an experiment, a config, and its data, loaded once."""

    experiment: Experiment
    config: Any
    dataset: Any

    def begin(self, **changes: Any) -> loop.Run:
        """Returns a run before its first step, with some fields of the config changed."""
        config = dataclasses.replace(self.config, **changes)
        return loop.begin(self.experiment, config, _hooks(config), self.dataset)


def subject(experiment: Experiment, config: Any = None, dataset: Any = None) -> Subject:
    """Returns what the laws take; the config has at least as many steps as they need."""
    config = experiment.config() if config is None else config
    config = dataclasses.replace(with_steps(config, max(config.steps, STEPS + 2)), devices=1)
    if dataset is None and experiment.dataset is not None:
        dataset = experiment.dataset(config)
    return Subject(experiment, config, dataset)


def purity(subject: Subject) -> str | None:
    """Same seed, same bits, also when everything is traced anew."""
    run = subject.begin()
    loop.refill(run)
    first, second = (_fold_anew(run, STEPS) for _ in range(2))
    _same_bits(first, second, "two runs with the same seed differ", "the learner uses randomness that is not its key's")
    return None


def chunking(subject: Subject) -> str | None:
    """Any chunk size, same bits."""
    if reason := loop.unsaved(subject.dataset):
        return reason
    whole = _fold(subject.begin(), [STEPS])
    parts = _fold(subject.begin(), [1, 2, STEPS // 2, STEPS])
    why = "the learner depends on something that is neither state, batch nor key"
    _same_bits(whole, parts, f"one chunk of {STEPS} steps and four smaller ones differ", why)
    return None


def resume(subject: Subject) -> str | None:
    """Stop anywhere, go on from the checkpoint, same bits."""
    if reason := loop.unsaved(subject.dataset):
        return reason
    whole = _fold(subject.begin(), [STEPS])
    with tempfile.TemporaryDirectory() as folder:
        run = subject.begin()
        _fold(run, [STEPS // 2])
        checkpoints = Checkpoints(Path(folder))
        try:
            loop.save(run, loop.Hooks(checkpoints=checkpoints), (run.fold, run.best), run.block.cursor)
            checkpoints.wait()
            config = subject.config
            resumed = loop.begin(subject.experiment, config, loop.Hooks(checkpoints=checkpoints), subject.dataset)
            after = _fold(resumed, [STEPS])
        finally:
            checkpoints.close()
    why = "something that the learner remembers is not in its state"
    _same_bits(whole, after, f"a run stopped at step {STEPS // 2} and resumed differs from an uninterrupted one", why)
    return None


def sweep(subject: Subject) -> str | None:
    """A member of a sweep has the bits of its lone run (exact), and its metrics agree at first (fast)."""
    if reason := loop.unsaved(subject.dataset):
        return reason
    config = dataclasses.replace(subject.config, log_every=STEPS, evaluate_every=0)
    leaves, treedef = jax.tree_util.tree_flatten(config)
    changed = jax.tree.unflatten(treedef, [float(leaf) * 1.1 for leaf in leaves])
    configs = [config, dataclasses.replace(changed, seed=config.seed + 1)]
    members = [Member(number, 0, one, subject.dataset) for number, one in enumerate(configs)]
    alone = [_alone(subject, one) for one in configs]
    lanes, exact = Lanes(subject.experiment, own_devices()), {}

    def work(member: Member, device: jax.Device) -> None:
        dataset = None if member.dataset is None else member.dataset.to(device)
        run = lanes.begin(member._replace(dataset=dataset), device, _hooks(config))
        with contextlib.closing(run.blocks):
            lanes.fold(member, run, device, loop.Hooks(), STEPS)
        exact[member.number] = to_host(run.fold.state)

    lanes.each(members, work)
    why = "the learner depends on something outside of its config, key and batch"
    for number, lone in enumerate(alone):
        what = f"member {number} of a sweep differs from the same run alone"
        _same_bits(to_host(lone.fold.state), exact[number], what, why)
    if alone[0].block.end is not None:
        return "its members have the bits of lone runs; side by side they cannot be, because this dataset streams"
    together = Together(subject.experiment, members, jax.devices(), _hooks(config).initial)
    together.fold(loop.Hooks(), STEPS)
    for number, lone in enumerate(alone):
        for name, value in lone.history[-1].items():
            other = together.histories[number][-1][name]
            if name != "split" and not np.allclose(other, value, rtol=FAST_TOLERANCE, atol=FAST_TOLERANCE):
                raise LawBroken(
                    f"metric {name!r} of member {number} under vmap is {other:.6g} over {STEPS} steps, and {value:.6g} "
                    "alone: more than rounding (is there a host callback in it?)"
                )
    return None


def _alone(subject: Subject, config: Any) -> loop.Run:
    """Returns a lone run after the laws' steps."""
    run = loop.begin(subject.experiment, config, _hooks(config), subject.dataset)
    with contextlib.closing(run.blocks), compiled.explained(run.program, **run.arguments):
        loop.fold_all(run, loop.Hooks(), STEPS)
    return run


def sharding(subject: Subject) -> str | None:
    """A batch shared by several devices gives what one device gives, to rounding."""
    count = jax.device_count()
    batch_size = subject.dataset.info.batch_size if subject.dataset is not None else count
    count = max((n for n in range(1, count + 1) if batch_size % n == 0), default=1)
    if count < 2:
        return f"needs two devices that divide the batch size ({batch_size}); this machine has {jax.device_count()}"
    run = subject.begin()
    start = to_host(run.fold.state)
    one, many = _fold(run, [3]), _fold(subject.begin(devices=count), [3])
    for name, array in one.items():
        if not np.issubdtype(array.dtype, np.floating) or np.allclose(many[name], array, rtol=1e-3, atol=1e-4):
            continue
        apart, moved = (float(np.linalg.norm(array - other[name])) for other in (many, start))
        if not apart <= STEP_TOLERANCE * moved:
            raise LawBroken(
                f"after 3 steps on {count} devices, `{name}` differs from one device's by "
                f"{apart / max(moved, 1e-30):.1%} of how far it went: more than rounding (the learner depends on how a "
                "batch is divided, or amplifies rounding)"
            )
    return None


def tracing(subject: Subject) -> str | None:
    """A new value of a traced or driver field does not compile anything."""
    _fold(subject.begin(), [1])
    config = subject.config
    leaves, treedef = jax.tree_util.tree_flatten_with_path(config)
    changed = jax.tree.unflatten(treedef, [float(leaf) * 0.7 + 0.01 for _, leaf in leaves])
    changed = dataclasses.replace(changed, seed=config.seed + 1, log_every=config.log_every + 1)
    before = dict(compiled.traces)
    run = loop.begin(subject.experiment, changed, loop.Hooks(), subject.dataset)
    _fold(run, [1])
    weak = jax.tree.unflatten(treedef, [jnp.asarray(leaf) for _, leaf in leaves])
    _fold(loop.begin(subject.experiment, weak, loop.Hooks(), subject.dataset), [1])
    if compiled.traces != before:
        fields = ", ".join(name for name, kind in kinds(type(config)).items() if kind != "structural")
        raise LawBroken(f"a new value of a traced or driver field compiled the program again (one of: {fields})")
    return None


def coverage(subject: Subject) -> str | None:
    """Evaluation counts each example once, and an example's value does not depend on its batch."""
    if subject.dataset is None:
        return "there is no dataset"
    split = next((s for s in ("validation", "test") if s in subject.dataset.splits), None)
    if split is None:
        return "the dataset has no validation or test split"
    run, source = subject.begin(), subject.dataset.splits[split]
    config, seed, seen = run.arguments["config"], run.arguments["seed"], 0
    learner = folds.make_learner(run.program, config)
    newest = Newest(run.program, config, seed, run.fold.state, "evaluate")
    for index, block in enumerate(source.blocks(newest)):
        mask = np.asarray(block.mask)
        seen += int(mask.sum())
        values = _rows(run, block.batches, block.mask, index)
        for name, value in values.items():
            if np.shape(value)[:2] != mask.shape:
                raise LawBroken(
                    f"evaluate gives {name!r} of shape {np.shape(value)[1:]} for a batch of {mask.shape[1]} examples; "
                    f"it must give one value per example, [{mask.shape[1]}]"
                )
        if index == 0:
            _independent_of_batch(learner, run, block, values, seed)
    if seen != source.num_examples:
        raise LawBroken(f"evaluating {split} shows {seen} examples of {source.num_examples}")
    return None


def learning(subject: Subject) -> str | None:
    """The loss falls on a batch that is repeated."""
    if subject.dataset is None or loop.unsaved(subject.dataset):
        return "there is no batch to repeat: what an agent learns from is what it did (see how its returns rise)"
    run = subject.begin()
    learner = folds.make_learner(run.program, run.arguments["config"])
    keys = folds.streams(run.arguments["seed"])
    loop.refill(run)
    batch = run.program.feed.batch(run.block.data, keys.data, jnp.int32(0), jnp.int32(run.block.start))

    @jax.jit
    def repeat(state: Any, batch: Any) -> jax.Array:
        def one(state: Any, step: jax.Array) -> tuple[Any, jax.Array]:
            state, metrics = learner.update(state, batch, jax.random.fold_in(keys.update, step))
            return state, jnp.float32(
                metrics["loss"].total if isinstance(metrics["loss"], Average) else metrics["loss"]
            )

        return jax.lax.scan(one, state, jnp.arange(8 * STEPS))[1]

    if "loss" not in run.fold.sums:
        return "update reports no loss"
    losses = np.asarray(repeat(run.fold.state, batch))
    before, after = float(losses[:5].mean()), float(losses[-5:].mean())
    if not after < before:
        raise LawBroken(
            f"the loss on one batch went from {before:.4g} to {after:.4g} in {len(losses)} updates on it: it does not "
            "learn (a sign, a stopped gradient, or a learning rate that is far too high or zero)"
        )
    return None


LAWS: dict[str, Callable[[Subject], str | None]] = {
    law.__name__: law for law in (purity, chunking, resume, sweep, sharding, tracing, coverage, learning)
}


def faster_dispatch(subject: Subject, steps: int = 20) -> str | None:
    """Returns advice if dispatching each step is clearly faster here than a compiled loop (median of three)."""
    if loop.unsaved(subject.dataset):
        return None  # its environments take the time

    def seconds(dispatch: str) -> float:
        run, times = subject.begin(dispatch=dispatch), []
        _fold(run, [2])
        for _ in range(3):
            began = time.perf_counter()
            _fold(run, [run.step + steps])
            times.append(time.perf_counter() - began)
        return float(np.median(times))

    ratio = seconds("loop") / seconds("step")
    if ratio > 1.3:
        return f"--dispatch step would be {ratio:.1f} times as fast here (a native convolution in a loop on the CPU?)"
    return None


def _hooks(config: Any) -> loop.Hooks:
    """Returns what the driver is to do beside the learner: start from other parameters, if the config says so."""
    return loop.Hooks(initial=initial_parameters.starting(initial_parameters.begins(config)))


def _fold(run: loop.Run, boundaries: Sequence[int]) -> dict[str, np.ndarray]:
    """Folds to each of the boundaries and returns the state's arrays by path."""
    with compiled.explained(run.program, **run.arguments):
        for end in boundaries:
            while run.step < end:
                loop.refill(run)
                stop = end if run.block.end is None else min(end, run.block.end)
                loop.dispatch_chunk(run, loop.Hooks(), stop)
    return to_host(run.fold.state)


def _fold_anew(run: loop.Run, end: int) -> dict[str, np.ndarray]:
    """Folds within the first block with programs that are traced anew, so that nothing is remembered."""
    end = end if run.block.end is None else min(end, run.block.end)
    program, arguments = run.program, run.arguments

    @jax.jit
    def anew(config: Any, seed: Any, examples: Any, data: Any) -> Any:
        fold, zero = folds.start(program, config, seed, examples, data), jnp.int32(0)
        bounds = dict(first=zero, until=jnp.int32(end), log_every=jnp.int32(STEPS + 1))
        return folds.advance(program, config, seed, fold, jnp.bool_(False), data, **bounds)[0].state

    with compiled.explained(program, **arguments):
        return to_host(anew(**arguments))


def _same_bits(first: dict[str, np.ndarray], second: dict[str, np.ndarray], what: str, why: str) -> None:
    for name, array in first.items():
        if array.tobytes() != second[name].tobytes():
            raise LawBroken(f"{what}, in `{name}` at least: {why}")


def _rows(run: loop.Run, batches: Any, mask: Any, index: int) -> dict[str, np.ndarray]:
    config, seed = run.arguments["config"], run.arguments["seed"]
    _, values = compiled.evaluate(
        run.program, config, seed, run.fold.state, batches, mask, jnp.int32(index), collect=True
    )
    return flat(jax.device_get(values))


def _independent_of_batch(learner: Any, run: loop.Run, block: Any, values: dict[str, Any], seed: Any) -> None:
    """Checks that an example's values stay when its neighbours in the batch change."""
    batch = jax.tree.map(lambda x: jnp.asarray(x[0]), block.batches)
    size = block.mask.shape[1]
    alone = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), batch)  # the first example, repeated
    key = jax.random.fold_in(folds.streams(seed).evaluate, 0)
    repeated = flat(jax.device_get(jax.jit(learner.evaluate)(run.fold.state, alone, key)))
    for name, value in repeated.items():
        if np.issubdtype(value.dtype, np.floating) and size > 1:
            expected = np.asarray(values[name])[0, 0]
            if not np.allclose(value[0], expected, rtol=1e-3, atol=1e-4):
                raise LawBroken(
                    f"evaluate's {name!r} of an example depends on the other examples of its batch "
                    "(batch statistics instead of running ones?), so padding would change it"
                )
