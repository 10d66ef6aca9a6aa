"""The laws: properties that every learner and every experiment must have, as functions that run and check them.

A law takes a `Subject`. It returns None if it holds, returns a sentence if it does not apply, and raises `LawBroken`
with the reason otherwise. Laws train the experiment for a few steps of its own config, with the engine's own programs.
"""

import contextlib
import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foldax.config_fields import field_kinds
from foldax.configuration import RLTraining, with_steps
from foldax.data.protocol import Dataset, EvaluationBlock
from foldax.engine import compile_cache, compiled, evaluation, loop, setup
from foldax.engine.checkpoint import Checkpoints
from foldax.engine.policy import CurrentPolicy
from foldax.engine.state import Callbacks, Run
from foldax.engine.state_leaves import host_arrays, leaves_by_path
from foldax.errors import FoldaxError
from foldax.experiment import Experiment
from foldax.inference.export import check_export
from foldax.learner import Batch
from foldax.mesh import ONE_DEVICE
from foldax.runs.transfer import initial_parameters
from foldax.sweeps.exact import DeviceWorkers, Member, worker_devices
from foldax.sweeps.vmapped import VmappedMembers

STEPS = 10
SHARDING_STEPS = 3
VMAP_TOLERANCE = 1e-4
# Of the distance that an array moved in `SHARDING_STEPS`. A ReLU at its threshold turns rounding into another
# activation: 2% in a ResNet-20. Gradients that rounding had really spoiled were out by 96%.
SHARDING_TOLERANCE = 0.05


class LawBroken(FoldaxError):
    """An experiment does not satisfy a law."""


class Subject(NamedTuple):
    """An experiment with one config and its loaded dataset, as the laws take it.

    Attributes:
      experiment: the experiment under test.
      config: an instance of its config class.
      dataset: the dataset of that config; None where the experiment has none.
    """

    experiment: Experiment
    config: Any
    dataset: Dataset | None

    def start_run(self, **changes: Any) -> Run:
        """Creates a run before its first step, with some fields of the config changed."""
        config = dataclasses.replace(self.config, **changes)
        return setup.start_run(self.experiment, config, _callbacks(config), self.dataset)


def make_subject(experiment: Experiment, config: Any = None, dataset: Dataset | None = None) -> Subject:
    """Prepares an experiment for the laws: loads its dataset and raises the config's steps to the number they need.

    Args:
      experiment: the experiment.
      config: an instance of `experiment.config`; by default one without arguments.
      dataset: the data, if it is loaded already.
    """
    compile_cache.enable()
    config = experiment.config() if config is None else config
    config = dataclasses.replace(with_steps(config, max(config.steps, STEPS + 2)), mesh=ONE_DEVICE)
    if dataset is None and experiment.dataset is not None:
        dataset = experiment.dataset(config)
    return Subject(experiment, config, dataset)


def purity(subject: Subject) -> str | None:
    """The same seed gives the same bits, also when every function is traced again."""
    config = dataclasses.replace(subject.config, dispatch="loop")
    run = setup.start_run(subject.experiment, config, Callbacks(), subject.dataset)
    loop.fetch_data_block(run)
    end = STEPS if run.block.end is None else min(STEPS, run.block.end)
    # Traced again, because Python-level randomness would be frozen into a single trace.
    initial_fold, advance = compiled.jit_fold()
    with compiled.user_errors(run.program, **run.arguments):
        fold = initial_fold(run.program, **run.arguments)
    functions = run.compiled._replace(advance=advance)
    second = _train(dataclasses.replace(run, fold=fold, best=compiled.copy(run.best), compiled=functions), [end])
    first = _train(run, [end])
    reason = "the learner draws random numbers from something other than its key"
    _check_same_bits(first, second, "two runs with the same seed differ", reason)
    return None


def chunking(subject: Subject) -> str | None:
    """Chunks of any size give the same bits."""
    if reason := setup.nonresumable_reason(subject.dataset):
        return reason
    whole = _train(subject.start_run(), [STEPS])
    parts = _train(subject.start_run(), [1, 2, STEPS // 2, STEPS])
    reason = "the learner depends on something that is neither state, batch nor key"
    _check_same_bits(whole, parts, f"one chunk of {STEPS} steps and four smaller ones differ", reason)
    return None


def resume(subject: Subject) -> str | None:
    """A run that stops anywhere and resumes from its checkpoint ends with the bits of an uninterrupted run."""
    if reason := setup.nonresumable_reason(subject.dataset):
        return reason
    whole = _train(subject.start_run(), [STEPS])
    with tempfile.TemporaryDirectory() as folder:
        # 1. Train half of the steps, and save.
        run = subject.start_run()
        _train(run, [STEPS // 2])
        checkpoints = Checkpoints(Path(folder))
        callbacks = Callbacks(checkpoints=checkpoints)
        try:
            loop.save_checkpoint(run, callbacks, (run.fold, run.best))
            checkpoints.wait()
            # 2. Restore into a new run, and train the rest.
            resumed = _train(setup.start_run(subject.experiment, subject.config, callbacks, subject.dataset), [STEPS])
        finally:
            checkpoints.close()
    difference = f"a run stopped at step {STEPS // 2} and resumed differs from an uninterrupted one"
    _check_same_bits(whole, resumed, difference, "something that the learner remembers is not in its state")
    return None


def sweep(subject: Subject) -> str | None:
    """A member of a sweep has the bits of its lone run (exact), or at first the same metrics to rounding (vmapped)."""
    if reason := setup.nonresumable_reason(subject.dataset):
        return reason
    config = dataclasses.replace(subject.config, log_every=STEPS, evaluate_every=0)
    # Another value for every traced field, no power of two, and another seed.
    scaled = jax.tree.map(lambda leaf: float(leaf) * 1.1, config)
    configs = [config, dataclasses.replace(scaled, seed=config.seed + 1)]
    members = [Member(number, 0, one, subject.dataset) for number, one in enumerate(configs)]
    lone_runs = [_lone_run(subject, one) for one in configs]
    _check_exact_sweep(subject, members, lone_runs)
    if lone_runs[0].block.end is not None:
        # Members of a vmapped sweep share one block of data.
        return "its members have the bits of lone runs; they cannot be vmapped, because this dataset streams"
    _check_vmapped_sweep(subject, members, lone_runs)
    return None


def _lone_run(subject: Subject, config: Any) -> Run:
    run = setup.start_run(subject.experiment, config, _callbacks(config), subject.dataset)
    with contextlib.closing(run.blocks), compiled.user_errors(run.program, **run.arguments):
        loop.train_loop(run, Callbacks(), STEPS)
    return run


def _check_exact_sweep(subject: Subject, members: list[Member], lone_runs: list[Run]) -> None:
    workers, states = DeviceWorkers(subject.experiment, worker_devices()), {}

    def train(member: Member, device: Any) -> None:
        member = workers.on_device(member, device)
        run = workers.start_run(member, device, _callbacks(member.config))
        with contextlib.closing(run.blocks):
            workers.fold(member, run, device, Callbacks(), STEPS)
        states[member.number] = host_arrays(run.fold.state)

    workers.run_all(members, train)
    reason = "the learner depends on something outside of its config, key and batch"
    for number, lone in enumerate(lone_runs):
        difference = f"member {number} of a sweep differs from the same run alone"
        _check_same_bits(host_arrays(lone.fold.state), states[number], difference, reason)


def _check_vmapped_sweep(subject: Subject, members: list[Member], lone_runs: list[Run]) -> None:
    vmapped = VmappedMembers(subject.experiment, members, jax.devices(), _callbacks(members[0].config))
    vmapped.fold(Callbacks(), STEPS)
    for number, lone in enumerate(lone_runs):
        for name, value in lone.history[-1].items():
            other = vmapped.histories[number][-1][name]
            # vmap batches matrix products, whose sums are rounded in another order.
            if name != "split" and not np.allclose(other, value, rtol=VMAP_TOLERANCE, atol=VMAP_TOLERANCE):
                difference = f"under vmap is {other:.6g} over {STEPS} steps, and {value:.6g} alone"
                problem = f"{difference}: more than rounding (does the learner call back to the host?)"
                raise LawBroken(f"metric {name!r} of member {number} {problem}")


def sharding(subject: Subject) -> str | None:
    """Several devices that share batches, or environments, and state give the result of one device, to rounding."""
    # An agent that is no `RLTraining` does not say how many environments it has.
    config, info = subject.config, getattr(subject.dataset, "info", None)
    size = config.num_envs if isinstance(config, RLTraining) else getattr(info, "batch_size", None)
    if size is None:
        return "it has no dataset, whose batches devices would divide"
    # The largest number of devices that divides it.
    count = max((n for n in range(1, jax.device_count() + 1) if size % n == 0), default=1)
    if count < 2:
        return f"needs two devices that divide batches or environments ({size}); this machine has {jax.device_count()}"
    run = subject.start_run()
    initial = host_arrays(run.fold.state)
    one, several = (_train(r, [SHARDING_STEPS]) for r in (run, subject.start_run(mesh=f"fsdp={count}")))
    for name, array in one.items():
        if not np.issubdtype(array.dtype, np.floating) or np.allclose(several[name], array, rtol=1e-3, atol=1e-4):
            continue
        # Arrays that differ by more than rounding may do so by a small part of the distance they moved.
        error, distance = (float(np.linalg.norm(array - other[name])) for other in (several, initial))
        # Written so that NaN breaks the law.
        if not error <= SHARDING_TOLERANCE * distance and not _has_no_influence(subject, name):
            difference = f"{error / max(distance, 1e-30):.1%} of the distance it moved: more than rounding"
            causes = "the learner depends on how a batch is divided, or amplifies rounding"
            problem = f"`{name or 'state'}` differs from one device's by {difference} ({causes})"
            raise LawBroken(f"after {SHARDING_STEPS} steps on {count} devices, {problem}")
    return None


def _has_no_influence(subject: Subject, name: str) -> bool:
    """Says whether a parameter does not change the training metrics, as a bias before batch normalization.

    Its gradient is zero but for rounding, which Adam turns into steps as large as any other.
    """
    # Averages and target networks follow the parameters that are trained.
    name = re.sub(r"\w+_params\.", "params.", name)
    if "params." not in name or name not in host_arrays(subject.start_run().fold.state):
        return False

    def metrics(shift: float) -> list[np.ndarray]:
        run = subject.start_run()
        leaves, structure = jax.tree.flatten(run.fold.state)
        index = list(leaves_by_path(run.fold.state)).index(name)
        leaves[index] += shift * jax.random.normal(jax.random.key(0), leaves[index].shape, leaves[index].dtype)
        run.fold = run.fold._replace(state=jax.tree.unflatten(structure, leaves))
        _train(run, [1])
        return jax.device_get(jax.tree.leaves(run.fold.metric_sums))

    return all(np.allclose(*pair, rtol=1e-3, atol=1e-5) for pair in zip(metrics(0.0), metrics(1.0)))


def tracing(subject: Subject) -> str | None:
    """A new value of a traced or driver field compiles nothing."""
    # The first run may compile; the ones after it must not.
    _train(subject.start_run(), [1])
    config = subject.config
    changed = jax.tree.map(lambda leaf: float(leaf) * 0.7 + 0.01, config)
    changed = dataclasses.replace(changed, seed=config.seed + 1, log_every=config.log_period + 1)
    # A config that already holds weakly typed JAX arrays must not recompile either.
    weakly_typed = jax.tree.map(jnp.asarray, config)
    before = dict(compiled.trace_counts)
    for other in (changed, weakly_typed):
        _train(setup.start_run(subject.experiment, other, Callbacks(), subject.dataset), [1])
    if compiled.trace_counts != before:
        fields = ", ".join(name for name, kind in field_kinds(type(config)).items() if kind != "structural")
        raise LawBroken(f"a new value of a traced or driver field compiled the program again (one of: {fields})")
    return None


def coverage(subject: Subject) -> str | None:
    """Evaluation counts each example once, and the values of an example do not depend on its batch."""
    if subject.dataset is None:
        return "there is no dataset"
    split = next((s for s in ("validation", "test") if s in subject.dataset.splits), None)
    if split is None:
        return "the dataset has no validation or test split"
    run, source, num_examples = subject.start_run(), subject.dataset.splits[split], 0
    policy = CurrentPolicy(run.program, run.arguments["config"], run.arguments["seed"], run.fold.state, "evaluate")
    # Padding is masked, so the masks must add up to the number of examples.
    for index, block in enumerate(source.blocks(policy)):
        num_examples += int(np.asarray(block.mask).sum())
        if index == 0:
            _check_independent_examples(run, block)
    if num_examples != source.num_examples:
        raise LawBroken(f"evaluating {split} counts {num_examples} examples of {source.num_examples}")
    return None


def _check_independent_examples(run: Run, block: EvaluationBlock) -> None:
    """Checks that the values of an example stay when its neighbours in the batch change."""
    program, config, seed, state = run.program, run.arguments["config"], run.arguments["seed"], run.fold.state

    def values(batches: Batch) -> dict[str, np.ndarray]:
        _, values = compiled.evaluate(program, config, seed, state, batches, block.mask, jnp.int32(0), collect=True)
        return leaves_by_path(jax.device_get(values))

    # Batches in which the first example has other neighbours: copies of itself.
    repeated = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x)[:, :1], x.shape), block.batches)
    expected = values(block.batches)
    for name, value in values(repeated).items():
        if not np.issubdtype(value.dtype, np.floating) or block.mask.shape[1] == 1:
            continue
        if not np.allclose(value[0, 0], expected[name][0, 0], rtol=1e-3, atol=1e-4):
            cause = "batch statistics instead of running ones?"
            problem = f"evaluate's {name!r} of an example depends on the other examples of its batch ({cause})"
            raise LawBroken(f"{problem}, so padding would change it")


def learning(subject: Subject) -> str | None:
    """The loss falls on a batch that is repeated."""
    if subject.dataset is None or setup.nonresumable_reason(subject.dataset):
        return "there is no batch to repeat: an agent learns from its own actions (its returns must rise instead)"
    run = subject.start_run()
    if "loss" not in run.fold.metric_sums:
        return "update reports no loss"
    loop.fetch_data_block(run)
    losses = _losses_on_one_batch(run)
    before, after = float(losses[:5].mean()), float(losses[-5:].mean())
    # Means of five losses, because single ones may rise at a high learning rate.
    if not after < before:
        change = f"the loss on one batch went from {before:.4g} to {after:.4g} in {len(losses)} updates on it"
        causes = "a wrong sign, a stopped gradient, or a learning rate that is zero or far too high"
        raise LawBroken(f"{change}: it does not learn ({causes})")
    return None


def _losses_on_one_batch(run: Run) -> np.ndarray:
    """Takes the first step 40 times, with its batch and its random numbers; the losses, float32 `[40]`."""
    losses = []
    for _ in range(4 * STEPS):
        # The same step of the engine's program, from the state that the last update left.
        sums = jax.tree.map(jnp.zeros_like, run.fold.metric_sums)
        run.fold = run.fold._replace(step=jnp.int32(0), metric_sums=sums)
        loss = loop.advance(run, 1).logs["loss"]
        losses.append(loss.total[0] / loss.count[0])
    return np.stack(losses)


def finishes(subject: Subject) -> str | None:
    """A trained run finds its monitor, evaluates, summarises, saves, draws, predicts and exports."""
    run = subject.start_run()
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Checkpoints(Path(folder))) as checkpoints:
        with contextlib.closing(run.blocks), compiled.user_errors(run.program, **run.arguments):
            evaluation.check_summarize(run)
            loop.train_loop(run, Callbacks(), 2)
            loop.save_checkpoint(run, Callbacks(checkpoints=checkpoints), (run.fold, run.best))
            result = loop.finish_run(run, "finished")
        checkpoints.wait()
    with compiled.user_code_errors(subject.experiment):
        if subject.experiment.figures is not None:
            subject.experiment.figures(result)
    if result.learner.predict is not None:
        check_export(result)
    return None


LAWS: dict[str, Callable[[Subject], str | None]] = {
    law.__name__: law for law in (purity, chunking, resume, sweep, sharding, tracing, coverage, learning, finishes)
}


def faster_dispatch(subject: Subject, steps: int = 20) -> str | None:
    """Measures whether `--dispatch step` is clearly faster here than a compiled loop (best of 3 to 9).

    Args:
      subject: the experiment.
      steps: number of steps to time.

    Returns:
      The advice, or None if the loop is as fast.
    """
    if setup.nonresumable_reason(subject.dataset):
        return None  # host environments take most of the time
    runs = {dispatch: subject.start_run(dispatch=dispatch) for dispatch in ("loop", "step")}
    seconds: dict[str, list[float]] = {dispatch: [] for dispatch in runs}
    for run in runs.values():
        _train(run, [2])  # compiles and warms up
    # In turns, the shortest of each, more rounds in doubt: other work of the machine must not look like a slow loop.
    ratio, rounds = 0.0, 0
    while rounds < 3 or (rounds < 9 and 1.3 < ratio < 5):
        for dispatch, run in runs.items():
            start = time.perf_counter()
            _train(run, [run.step + steps])
            seconds[dispatch].append(time.perf_counter() - start)
        ratio, rounds = min(seconds["loop"]) / min(seconds["step"]), rounds + 1
    if ratio > 1.3:
        return f"--dispatch step would be {ratio:.1f} times as fast here (a native convolution in a loop on the CPU?)"
    return None


def _callbacks(config: Any) -> Callbacks:
    """Callbacks with the initial parameters that the config names in `init_from`."""
    source = initial_parameters.initial_source(config)
    return Callbacks(replace_initial_state=initial_parameters.initial_state_hook(source))


def _train(run: Run, boundaries: Sequence[int]) -> dict[str, np.ndarray]:
    """Trains up to each of the boundaries in turn; the state's arrays by path."""
    with compiled.user_errors(run.program, **run.arguments):
        for end in boundaries:
            while run.step < end:
                loop.fetch_data_block(run)
                stop = end if run.block.end is None else min(end, run.block.end)
                loop.dispatch_chunk(run, Callbacks(), stop, is_saved=False)
    return host_arrays(run.fold.state)


def _check_same_bits(first: dict[str, np.ndarray], second: dict[str, np.ndarray], difference: str, reason: str) -> None:
    for name, array in first.items():
        if array.tobytes() != second[name].tobytes():
            raise LawBroken(f"{difference}, in `{name or 'state'}` at least: {reason}")
