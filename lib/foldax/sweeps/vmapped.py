"""Fast execution: members of a group in one program, vmapped within each device and sharded over all devices.

The default on accelerators. A member has the keys and the order of data of its single run; its metrics agree to
rounding at first and then drift, because XLA orders the sums of a vmapped program differently.
"""

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from foldax.configuration import to_json
from foldax.data.protocol import Dataset
from foldax.engine import compiled, evaluation, loop, setup
from foldax.engine import fold as folds
from foldax.engine.best_state import BestState, initial_best, update_best
from foldax.engine.fold import ChunkReport, Fold, Program
from foldax.engine.state import NEVER, Callbacks, CompiledFunctions, PendingChunk, Run, Timestamp
from foldax.engine.state_leaves import state_digest
from foldax.experiment import Experiment
from foldax.learner import Batch, State
from foldax.sweeps.exact import Member, MemberResult, OnResult
from foldax.sweeps.space import Config

MEMBER_AXIS = "members"  # of the mesh
# `step` is not mapped: all members share it, so that the bound of the loop is a scalar instead of an array.
FOLD_AXES = Fold(None, 0, 0, 0, 0)  # type: ignore[arg-type]
REPORT_AXES = ChunkReport(None, 0, 0)  # type: ignore[arg-type]


def _vmap_over_mesh(function: Callable[..., Any], mesh: Mesh, in_axes: Any, out_axes: Any) -> Callable[..., Any]:
    """Maps a function over members: `vmap` within a device, `shard_map` over devices."""

    def specs(axes: Any) -> Any:
        shared, mapped = PartitionSpec(), PartitionSpec(MEMBER_AXIS)
        return jax.tree.map(lambda axis: shared if axis is None else mapped, axes, is_leaf=lambda x: x is None)

    # Devices are mapped outside of the members, so that the compiled program has no communication.
    vmapped = jax.vmap(function, in_axes, out_axes)
    return jax.shard_map(vmapped, mesh=mesh, in_specs=specs(in_axes), out_specs=specs(out_axes), check_vma=False)


# The functions of `engine.fold` for many members: configs, seeds, states and results have a leading axis of members,
# data and step bounds are shared.


@functools.partial(jax.jit, static_argnames=("mesh", "program"))
def _initial_fold(mesh: Mesh, program: Program, config: Config, seed: jax.Array, examples: Batch, data: Batch) -> Fold:
    start = functools.partial(folds.initial_fold, program)
    return _vmap_over_mesh(start, mesh, (0, 0, None, None), FOLD_AXES)(config, seed, examples, data)


@functools.partial(compiled.jit_and_donate, donated="fold", static_argnames=("mesh", "program"))
@functools.partial(compiled.count_traces, "advance")
def _advance(
    mesh: Mesh, program: Program, config: Config, seed: jax.Array, fold: Fold, stopped: jax.Array, **bounds: Any
) -> tuple[Fold, ChunkReport]:
    """Advances by the steps that `bounds` gives: the data, block_start, until and log_every of `fold.advance`."""

    def advance_member(config: Config, seed: jax.Array, fold: Fold, stopped: jax.Array, bounds: dict[str, Any]) -> Any:
        # A frozen member computes its steps too, and they are discarded: under `vmap` a branch would save nothing.
        after, report = folds.advance(program, config, seed, fold, jnp.bool_(False), **bounds)
        frozen = jax.tree.map(lambda old, new: jnp.where(stopped, old, new), fold, after)
        # The step is shared with members that go on.
        return frozen._replace(step=after.step), report

    advance_members = _vmap_over_mesh(advance_member, mesh, (0, 0, FOLD_AXES, 0, None), (FOLD_AXES, REPORT_AXES))
    return advance_members(config, seed, fold, stopped, bounds)


@functools.partial(jax.jit, static_argnames=("mesh", "program", "collect"))
def _evaluate(
    mesh: Mesh, program: Program, config: Config, seed: jax.Array, state: State, *block: Any, collect: bool
) -> Any:
    """Evaluates a block of a split: batches, mask and index of `fold.evaluate`."""
    evaluate_member = functools.partial(folds.evaluate, program, collect=collect)
    return _vmap_over_mesh(evaluate_member, mesh, (0, 0, 0, None, None, None), 0)(config, seed, state, *block)


@functools.partial(jax.jit, static_argnames=("mesh", "program"))
def _inference_state(mesh: Mesh, program: Program, config: Config, state: State) -> State:
    select = functools.partial(folds.inference_state, program)
    return jax.tree.map(jnp.copy, _vmap_over_mesh(select, mesh, (0, 0), 0)(config, state))


@functools.partial(compiled.jit_and_donate, donated="best", static_argnames=("mesh", "program"))
def _update_best(
    mesh: Mesh, program: Program, config: Config, best: BestState, fold: Fold, *comparison: jax.Array
) -> tuple[BestState, jax.Array]:
    """Compares an evaluation with the best one: `comparison` is value, sign and patience of `update_best`."""
    update = functools.partial(update_best, program)
    in_axes = (0, 0, FOLD_AXES, 0, None, None)
    return _vmap_over_mesh(update, mesh, in_axes, 0)(config, best, fold, *comparison)


class VmappedMembers:
    """Members of one group that train together in one program.

    Attributes:
      members: members in the arrays, in the order of their rows; further rows are padding.
      run: the engine's bookkeeping; its arrays have a leading axis of rows.
      histories: log lines by member number.
      frozen: `(status, steps)` by number of a member that stopped early or became not finite.
    """

    def __init__(
        self,
        experiment: Experiment,
        members: Sequence[Member],
        devices: Sequence[jax.Device],
        callbacks: Callbacks = Callbacks(),
    ) -> None:
        """Initialises all members at step 0.

        Args:
          experiment: the experiment that the members run.
          members: members of one group, with equal driver fields but for the seed.
          devices: devices over which the members are sharded.
          callbacks: callbacks of the run; `replace_initial_state` is called with the state of each member.
        """
        self.experiment, self.members, self.devices = experiment, list(members), list(devices)
        self.histories: dict[int, list[dict[str, Any]]] = {member.number: [] for member in members}
        self.frozen: dict[int, tuple[str, int]] = {}
        self.mesh = Mesh(np.array(devices), (MEMBER_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
        self.run = self._start_run(callbacks.replace_initial_state)

    def _start_run(self, replace_initial_state: Callable[[State], State] | None) -> Run:
        # 1. Program and data: one copy of the data on each device.
        started_at, config = Timestamp.now(), self.members[0].config
        dataset = self.members[0].dataset
        if dataset is not None:
            dataset = dataset.to(NamedSharding(self.mesh, PartitionSpec()))
        program = setup.make_program(self.experiment, config, dataset)
        # 2. Arguments: configs and seeds of all members, stacked.
        rows = self._pad_rows(range(len(self.members)))
        arguments_by_row = [compiled.traced_config_and_seed(self.members[row].config) for row in rows]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(arguments_by_row))
        configs, seeds = self._shard(stacked)
        blocks = setup.data_blocks(dataset, config.seed, 0)
        block = next(blocks)
        examples = None if dataset is None else dataset.train.examples()
        arguments = dict(config=configs, seed=seeds, examples=examples, data=block.data)
        # 3. Initial states, which parameters of another run may replace.
        self._user_errors = functools.partial(
            compiled.user_errors, program, *arguments_by_row[0], examples=examples, data=block.data
        )
        with self._user_errors():
            fold = _initial_fold(self.mesh, program, **arguments)
            state = jax.eval_shape(lambda state: jax.tree.map(lambda x: x[0], state), fold.state)
            names = setup.check_evaluate(program, *arguments_by_row[0], state, dataset)
            setup.check_monitor(config, self.experiment, dataset, names)
        if replace_initial_state is not None:
            states = jax.device_get(fold.state)  # on the host, as in a single run
            replaced = [replace_initial_state(evaluation.take_rows(states, row)) for row in range(len(rows))]
            state = jax.tree.map(lambda *leaves: np.stack(leaves), *replaced)
            fold = fold._replace(state=compiled.copy(self._shard(state)))
        # 4. Best states, of which each member has its own.
        keeps_best = config.keep == "best" and setup.has_monitored_split(config, dataset)
        best = jax.tree.map(lambda x: np.broadcast_to(x, (len(rows), *x.shape)), initial_best(None))
        best = self._shard(best)
        if keeps_best:
            best = best._replace(state=_inference_state(self.mesh, program, configs, fold.state))
        run = Run(program, config, arguments, dataset, fold, best, 0, blocks, block, started_at)
        functions = (_advance, _evaluate, _update_best)
        run.compiled = CompiledFunctions(*(functools.partial(function, self.mesh) for function in functions))
        run.num_members = len(rows)
        return run

    def _pad_rows(self, rows: Sequence[int]) -> np.ndarray:
        """Repeats the last row until the rows divide evenly over the devices."""
        padding = -len(rows) % len(self.devices)
        return np.array([*rows, *[rows[-1]] * padding])

    def _shard(self, tree: Any) -> Any:
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(MEMBER_AXIS)))

    def fold(self, callbacks: Callbacks, until: int = NEVER) -> str:
        """Trains all members up to step `until` or their end.

        Returns:
          The status of `loop.train_loop`, or "mostly_frozen": compact the arrays before going on.
        """
        either = callbacks._replace(stop_requested=lambda: callbacks.stop_requested() or self._mostly_frozen())
        with self._user_errors():
            # The loop is interrupted for either reason; which one it was is asked again.
            status = loop.train_loop(self.run, either, until, self._read)
        return "mostly_frozen" if status == "interrupted" and not callbacks.stop_requested() else status

    def _mostly_frozen(self) -> bool:
        """Whether at least half of the members were frozen one evaluation ago.

        One evaluation ago, because by then it is known whatever the size of chunks. So the arrays shrink at the same
        steps in every run of a sweep; the bits of a member, which depend on the size of the arrays, are reproducible.
        """
        step, every = self.run.step, self.run.config.evaluation_period
        active = self.active_rows(step - every)
        num_rows = len(self._pad_rows(active or [0]))
        smaller = 2 * len(active) <= len(self.members) and 0 < num_rows < (self.run.num_members or 0)
        return every > 0 and step % every == 0 and smaller

    def active_rows(self, step: int = NEVER) -> list[int]:
        """Rows of the members that were not frozen yet at a step."""
        frozen = [(row, self.frozen.get(member.number, ("", NEVER))) for row, member in enumerate(self.members)]
        return [row for row, (status, when) in frozen if not status or when > step]

    def _read(self, run: Run, callbacks: Callbacks, chunk: PendingChunk) -> bool:
        """Logs a finished chunk for every member that was not frozen before it; see `loop.train_loop`."""
        report, evaluated, stopped = jax.device_get((chunk.report, chunk.evaluations, chunk.stopped))
        # Rows are read as if each were a run of its own; padding and frozen members are skipped.
        for row in self.active_rows():
            number = self.members[row].number
            member_report = ChunkReport(report.step, *evaluation.take_rows(report[1:], row))
            member_evaluations = {
                split: evaluation.member_evaluation(split_evaluation, row)
                for split, split_evaluation in (evaluated or {}).items()
            }
            lines, bad = loop.log_lines(run, chunk, member_report, member_evaluations)
            self.histories[number] += [{"step": step, "split": split, **metrics} for step, split, metrics in lines]
            if bad and (stopped is None or stopped[row]):
                self.frozen[number] = ("not finite", min(bad.values()))
            elif stopped is not None and stopped[row]:
                self.frozen[number] = ("stopped early", chunk.end)
        run.unread.pop(0)
        callbacks.progress(chunk.end)
        if chunk.snapshot is not None:
            self.save(callbacks, chunk.snapshot)
        return not self.active_rows()

    def save(self, callbacks: Callbacks, tree: tuple[Fold, BestState]) -> None:
        """Starts writing a checkpoint of all members in the arrays."""
        if callbacks.checkpoints is not None:
            numbers = [member.number for member in self.members]
            meta = {
                "members": numbers,
                "histories": [list(self.histories[number]) for number in numbers],  # copies: they grow meanwhile
                "frozen": [self.frozen.get(number) for number in numbers],
            }
            callbacks.checkpoints.save(int(tree[0].step), tree, meta)

    def results(self, rows: Sequence[int]) -> list[MemberResult]:
        """Evaluates all members, and returns the results of those in some rows, which have ended."""
        run = self.run
        state, best_step = run.fold.state, np.full(run.num_members or 0, -1)
        if run.best.state is not None:
            # A member without a finite evaluation is tested in its last state.
            best_step = jax.device_get(run.best.step)
            last = _inference_state(self.mesh, run.program, run.arguments["config"], run.fold.state)
            state = _best_or_last_state(run.best, last)
        with self._user_errors():
            splits = setup.evaluation_splits(run.dataset)
            evaluations = {split: jax.device_get(evaluation.evaluate_split(run, state, split)) for split in splits}
            last_state = jax.device_get(run.fold.state)
            seconds = (time.perf_counter() - run.started_at.seconds) / len(self.members)

            def result(row: int) -> MemberResult:
                number, config = self.members[row].number, json.dumps(to_json(self.members[row].config))
                status, steps = self.frozen.get(number, ("finished", run.step))
                history = self.histories[number]
                if status == "not finite":
                    return MemberResult(number, status, steps, None, {}, history, None, seconds, config)
                metrics = evaluation.last_training_metrics(history)
                for split, evaluated in evaluations.items():
                    metrics[split] = evaluation.split_metrics(run.program, evaluation.member_evaluation(evaluated, row))
                best = int(best_step[row]) if best_step[row] >= 0 else None
                digest = state_digest(evaluation.take_rows(last_state, row))
                return MemberResult(number, status, steps, best, metrics, history, digest, seconds, config)

            return [result(row) for row in rows]

    def compact(self, rows: Sequence[int]) -> None:
        """Keeps only the members in some rows; the program is compiled anew for the smaller arrays."""
        run, padded = self.run, self._pad_rows(rows)
        step, config, seed = run.fold.step, run.arguments["config"], run.arguments["seed"]
        # Rows are taken on the host: indexing a sharded array turned -0.0 into 0.0.
        kept = jax.device_get((run.fold[1:], run.best, config, seed))
        fold, run.best, config, seed = self._shard(evaluation.take_rows(kept, padded))
        self.members, run.num_members = [self.members[row] for row in rows], len(padded)
        run.fold, run.arguments = Fold(step, *fold), {**run.arguments, "config": config, "seed": seed}


@jax.jit
@jax.vmap
def _best_or_last_state(best: BestState, last: State) -> State:
    """Selects each member's best state, or its last where no evaluation was finite."""
    return jax.tree.map(lambda best_leaf, last_leaf: jnp.where(best.step >= 0, best_leaf, last_leaf), best.state, last)


def fold_vmapped(
    experiment: Experiment,
    members: Sequence[Member],
    devices: Sequence[jax.Device],
    callbacks: Callbacks,
    on_result: OnResult,
) -> bool:
    """Trains members of one group together to their end, from the newest checkpoint on if there is one.

    Args:
      experiment: the experiment that the members run.
      members: members of one group, with equal driver fields but for the seed.
      devices: devices over which the members are sharded.
      callbacks: callbacks of the run; `log` is not called.
      on_result: takes the results of members that have ended, while others may go on.

    Returns:
      False if the members were interrupted before their end.
    """
    vmapped = restore_or_begin(experiment, members, devices, callbacks)
    while True:
        status = vmapped.fold(callbacks)
        if status == "interrupted":
            vmapped.save(callbacks, (vmapped.run.fold, vmapped.run.best))
            return False
        # All members have ended, or half of them froze: take the results of those, and compact the arrays.
        rows, run = range(len(vmapped.members)), vmapped.run
        active = vmapped.active_rows(run.step - run.config.evaluation_period) if status == "mostly_frozen" else []
        for result in vmapped.results([row for row in rows if row not in active]):
            on_result(result)
        if status != "mostly_frozen":
            return True
        vmapped.compact(active)


def restore_or_begin(
    experiment: Experiment, members: Sequence[Member], devices: Sequence[jax.Device], callbacks: Callbacks
) -> VmappedMembers:
    """Restores members from the newest checkpoint, or initialises them; arguments as of `fold_vmapped`."""
    # The checkpoint's metadata says which members it holds, and so what shape its arrays have.
    restored: list[VmappedMembers] = []

    def like(meta: dict[str, Any]) -> tuple[Fold, BestState]:
        by_number = {member.number: member for member in members}
        restored.append(VmappedMembers(experiment, [by_number[number] for number in meta["members"]], devices))
        return restored[-1].run.fold, restored[-1].run.best

    checkpoint = None if callbacks.checkpoints is None else callbacks.checkpoints.restore(like)
    if checkpoint is None:
        return VmappedMembers(experiment, members, devices, callbacks)
    vmapped, (tree, meta) = restored[-1], checkpoint
    run = vmapped.run
    run.fold, run.best = jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), tree, (run.fold, run.best))
    run.step = int(run.fold.step)
    vmapped.histories = dict(zip(meta["members"], meta["histories"]))
    frozen = dict(zip(meta["members"], meta["frozen"]))
    vmapped.frozen = {number: tuple(how) for number, how in frozen.items() if how is not None}
    return vmapped


def data_specs(dataset: Dataset | None) -> tuple[Batch, Batch]:
    """Shapes and dtypes of the examples and of the first block, read on the host: a plan leaves accelerators free."""
    if dataset is None:
        return None, None
    with contextlib.suppress(RuntimeError):  # JAX may have been started without CPUs
        dataset = dataset.to(jax.local_devices(backend="cpu")[0])
    arrays = dataset.train.examples(), next(setup.data_blocks(dataset, 0, 0)).data
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)


def can_be_sharded(experiment: Experiment, member: Member, specs: tuple[Batch, Batch]) -> bool:
    """Whether members like this one can be sharded over devices: jaxlib 0.12 crashes on arrays without elements."""
    program = setup.make_program(experiment, member.config, member.dataset)
    arguments = (*compiled.traced_config_and_seed(member.config), *specs)
    with compiled.user_errors(program, *arguments):
        fold = jax.eval_shape(functools.partial(compiled.initial_fold, program), *arguments)
    return all(leaf.size for leaf in jax.tree.leaves(fold))


def memory_estimate(experiment: Experiment, member: Member, specs: tuple[Batch, Batch]) -> tuple[int, int]:
    """Estimates the memory of members like this one, whose data have these `data_specs`.

    Returns:
      Upper bound of a member's bytes without the dataset, and the number of members that fit into half of the free
      memory of all devices.
    """
    program = setup.make_program(experiment, member.config, member.dataset)
    arguments = (*compiled.traced_config_and_seed(member.config), *specs)
    with compiled.user_errors(program, *arguments):
        member_bytes = compiled.update_bytes(program, *arguments)
    stats = jax.local_devices()[0].memory_stats() or {}
    free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    if free <= 0:  # no statistics on CPUs, whose devices share the machine's memory
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    return member_bytes, max(1, free // 2 // member_bytes) * jax.local_device_count()
