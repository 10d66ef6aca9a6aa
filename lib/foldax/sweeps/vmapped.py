"""Members of a sweep side by side in one program: mapped inside each device, divided over all of them.

The fast way on accelerators. A member's metrics agree with its lone run's to rounding at first, then drift, because
XLA orders sums as it likes; its keys and the order of its data are the same.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from foldax.engine import compiled, evaluation, loop
from foldax.engine import fold as folds
from foldax.engine.checkpoint import state_digest
from foldax.engine.fold import Best, Fold, Program, Report, first_best
from foldax.engine.state import NEVER, Boundary, Calls, Hooks, Run
from foldax.experiment import Experiment
from foldax.sweeps.exact import Member, Outcome

MEMBERS = "members"  # the mesh's axis
FOLD = Fold(None, 0, 0, 0)  # type: ignore[arg-type]  # the step is common to all, so that the loop's end is no array


def _mapped(function: Callable[..., Any], mesh: Any, in_axes: Any, out_axes: Any) -> Callable[..., Any]:
    """Maps a function over the members within each device of the mesh."""

    def spec(axes: Any) -> Any:
        return jax.tree.map(
            lambda axis: PartitionSpec() if axis is None else PartitionSpec(MEMBERS), axes, is_leaf=lambda x: x is None
        )

    many = jax.vmap(function, in_axes, out_axes)
    return jax.shard_map(many, mesh=mesh, in_specs=spec(in_axes), out_specs=spec(out_axes), check_vma=False)


@functools.partial(jax.jit, static_argnames=("mesh", "program"))
def _start(mesh: Any, program: Program, config: Any, seed: Any, examples: Any, data: Any) -> Fold:
    start = functools.partial(folds.start, program)
    return _mapped(start, mesh, (0, 0, None, None), FOLD)(config, seed, examples, data)


def _advance(
    mesh: Any,
    program: Program,
    config: Any,
    seed: Any,
    fold: Fold,
    stopped: Any,
    data: Any,
    first: Any,
    until: Any,
    log_every: Any,
) -> tuple[Fold, Report]:
    def one(config: Any, seed: Any, fold: Fold, stopped: Any, *shared: Any) -> tuple[Fold, Report]:
        after, report = folds.advance(program, config, seed, fold, jnp.bool_(False), *shared)
        frozen = jax.tree.map(lambda old, new: jnp.where(stopped, old, new), fold, after)
        return frozen._replace(step=after.step), report

    many = _mapped(one, mesh, (0, 0, FOLD, 0, None, None, None, None), (FOLD, Report(None, 0, 0)))  # type: ignore[arg-type]
    return many(config, seed, fold, stopped, data, first, until, log_every)


_advance = jax.jit(compiled.counted("advance", _advance), static_argnames=("mesh", "program"), donate_argnames="fold")


@functools.partial(jax.jit, static_argnames=("mesh", "program", "collect"))
def _evaluate(
    mesh: Any, program: Program, config: Any, seed: Any, state: Any, batches: Any, mask: Any, index: Any, collect: bool
) -> Any:
    def one(config: Any, seed: Any, state: Any, batches: Any, mask: Any, index: Any) -> Any:
        return folds.evaluate(program, config, seed, state, batches, mask, index, collect)

    return _mapped(one, mesh, (0, 0, 0, None, None, None), 0)(config, seed, state, batches, mask, index)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="best")
def _observe(mesh: Any, best: Any, fold: Fold, value: Any, sign: Any, patience: Any) -> Any:
    return _mapped(folds.observe, mesh, (0, FOLD, 0, None, None), 0)(best, fold, value, sign, patience)


class Together:
    """Members of one group on their way through one program.

    Attributes:
      members: those that are still in the arrays, in the order of their rows; further rows are padding.
      run: the driver's bookkeeping; its arrays have a leading axis of rows.
      histories: lines of the log by member index.
      frozen: how a member froze, and after how many steps, by its index.
    """

    def __init__(
        self,
        experiment: Experiment,
        members: Sequence[Member],
        devices: Sequence[jax.Device],
        initial: Callable[[Any], Any] | None = None,
    ) -> None:
        self.experiment, self.members, self.devices = experiment, list(members), list(devices)
        self.histories: dict[int, list[dict[str, Any]]] = {member.number: [] for member in members}
        self.frozen: dict[int, tuple[str, int]] = {}
        self.mesh = jax.sharding.Mesh(np.array(devices), (MEMBERS,), axis_types=(jax.sharding.AxisType.Auto,))
        self.run = self._begin(initial)

    def _begin(self, initial: Callable[[Any], Any] | None) -> Run:
        began, config = (time.perf_counter(), compiled.compile_seconds()), self.members[0].config
        dataset = self.members[0].dataset
        if dataset is not None:
            dataset = dataset.to(NamedSharding(self.mesh, PartitionSpec()))
        program = loop.make_program(self.experiment, config, dataset)
        rows = self._rows(range(len(self.members)))
        each = [compiled.prepared(self.members[row].config) for row in rows]
        traced, seeds = self._place(jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(each)))
        blocks = loop.blocks_of(dataset, config.seed, 0, None)
        block = next(blocks)
        examples = None if dataset is None else dataset.train.examples()
        arguments = dict(config=traced, seed=seeds, examples=examples, data=block.data)
        with self._explained(program, examples, block.data):
            fold = _start(self.mesh, program, **arguments)
        if initial is not None:
            states = jax.device_get(fold.state)
            changed = [initial(evaluation.taken(states, row)) for row in range(len(rows))]
            state = jax.tree.map(lambda *leaves: np.stack(leaves), *changed)
            fold = fold._replace(state=compiled.copy(self._place(state)))
        keeps_best = config.keep == "best" and loop.has(dataset, "validation")
        best = jax.tree.map(lambda x: np.broadcast_to(x, (len(rows), *x.shape)), first_best(None))
        best = self._place(best)._replace(state=compiled.copy(fold.state) if keeps_best else None)
        run = Run(program, config, arguments, dataset, fold, best, 0, blocks, block, [], time.perf_counter(), began)
        run.calls = Calls(*(functools.partial(call, self.mesh) for call in (_advance, _evaluate, _observe)))
        run.rows = len(rows)
        return run

    def _rows(self, rows: Sequence[int]) -> np.ndarray:
        """Returns rows that divide over the devices: the last one again as padding."""
        padding = -len(rows) % len(self.devices)
        return np.array([*rows, *[rows[-1]] * padding])

    def _place(self, tree: Any) -> Any:
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(MEMBERS)))

    def _explained(self, program: Program, examples: Any, data: Any) -> Any:
        return compiled.explained(program, *compiled.prepared(self.members[0].config), examples, data)

    def fold(self, hooks: Hooks, until: int = NEVER) -> str:
        """Folds all members to a step, or their end; "crowded" says that frozen ones should be dropped first."""
        crowded = hooks._replace(interrupted=lambda: hooks.interrupted() or self._crowded())
        arguments = self.run.arguments
        with self._explained(self.run.program, arguments["examples"], arguments["data"]):
            status = loop.fold_all(self.run, crowded, until, self._read)
        return "crowded" if status == "interrupted" and not hooks.interrupted() else status

    def _crowded(self) -> bool:
        """Whether half of the rows were frozen an evaluation ago: by then that is known, whatever the chunks were.

        So the arrays shrink at the same steps in every run of the same sweep, and a member's bits, which depend on
        how many are beside it, are the same.
        """
        step, every = self.run.step, self.run.config.evaluate_every
        live = self.live(step - every)
        fewer = 2 * len(live) <= len(self.members) and 0 < len(self._rows(live or [0])) < (self.run.rows or 0)
        return every > 0 and step % every == 0 and fewer

    def live(self, step: int = NEVER) -> list[int]:
        """Returns the rows of the members that had not frozen by a step."""
        frozen = [(row, self.frozen.get(member.number, ("", NEVER))) for row, member in enumerate(self.members)]
        return [row for row, (how, when) in frozen if not how or when > step]

    def _read(self, run: Run, hooks: Hooks, boundary: Boundary) -> bool:
        """Reads what was dispatched up to a boundary, for every member that was not frozen before it."""
        report, found, stopped = jax.device_get((boundary.report, boundary.evaluation, boundary.stopped))
        for row in self.live():
            index = self.members[row].number
            theirs = Report(report.step, *evaluation.taken(report[1:], row))
            lines, bad = loop.log_lines(run, boundary, theirs, found and evaluation.of_member(found, row))
            self.histories[index] += [{"step": step, "split": split, **metrics} for step, split, metrics in lines]
            if bad and (stopped is None or stopped[row]):
                self.frozen[index] = ("not finite", min(bad.values()))
            elif stopped is not None and stopped[row]:
                self.frozen[index] = ("stopped early", boundary.end)
        hooks.progress(boundary.end)
        if boundary.snapshot is not None:
            self.save(hooks, boundary.snapshot)
        return not self.live()

    def save(self, hooks: Hooks, tree: Any) -> None:
        """Starts writing a checkpoint of all that is in the arrays."""
        if hooks.checkpoints is not None:
            meta = {
                "members": [member.number for member in self.members],
                "histories": [list(self.histories[member.number]) for member in self.members],  # they grow meanwhile
                "frozen": [self.frozen.get(member.number) for member in self.members],
            }
            hooks.checkpoints.save(int(tree[0].step), tree, meta)

    def outcomes(self, rows: Sequence[int]) -> list[Outcome]:
        """Returns what came of the members in some rows, which have come to their end."""
        run = self.run
        kept, best_step = run.fold.state, np.full(run.rows or 0, -1)
        if run.best.state is not None:
            best_step = jax.device_get(run.best.step)
            kept = _best(run.best, run.fold)
        with self._explained(run.program, run.arguments["examples"], run.arguments["data"]):
            found = {
                split: jax.device_get(loop.evaluated(run, kept, split))
                for split in ("validation", "test")
                if loop.has(run.dataset, split)
            }
            final = jax.device_get(run.fold.state)
            seconds = (time.perf_counter() - run.began[0]) / len(self.members)
            return [self._outcome(row, found, int(best_step[row]), final, seconds) for row in rows]

    def _outcome(self, row: int, found: dict[str, Any], best_step: int, final: Any, seconds: float) -> Outcome:
        member = self.members[row]
        status, steps = self.frozen.get(member.number, ("finished", self.run.step))
        history = self.histories[member.number]
        if status == "not finite":
            return Outcome(member.number, status, steps, None, {}, history, None, seconds)
        metrics = loop.last_training_metrics(history)
        for split, result in found.items():
            metrics[split] = evaluation.metrics(self.run.program, evaluation.of_member(result, row))
        digest, step = state_digest(evaluation.taken(final, row)), best_step if best_step >= 0 else None
        return Outcome(member.number, status, steps, step, metrics, history, digest, seconds)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all members but those in some rows from the arrays; the program is compiled for the new size."""
        run, places = self.run, self._rows(rows)
        step, config, seed = run.fold.step, run.arguments["config"], run.arguments["seed"]
        kept = jax.device_get((run.fold[1:], run.best, config, seed))
        fold, run.best, config, seed = self._place(evaluation.taken(kept, places))
        self.members, run.rows = [self.members[row] for row in rows], len(places)
        run.fold, run.arguments = Fold(step, *fold), {**run.arguments, "config": config, "seed": seed}


@jax.jit
def _best(best: Best, fold: Fold) -> Any:
    """Returns each row's best state, or the last where there is no best."""

    def one(best: Any, last: Any) -> Any:
        known = (best_step >= 0).reshape(-1, *[1] * (last.ndim - 1))
        return jnp.where(known, best, last)

    best_step = best.step
    return jax.tree.map(one, best.state, fold.state)


def fold_together(
    experiment: Experiment,
    members: Sequence[Member],
    devices: Sequence[jax.Device],
    hooks: Hooks,
    done: Callable[[Outcome], None],
) -> bool:
    """Folds members of one group side by side to their end, from the newest checkpoint on; says whether they are done.

    Args:
      experiment: what they run.
      members: of one group, alike in all driver fields but the seed.
      devices: to divide them over.
      hooks: the driver's; `log` is not called.
      done: takes what came of a member, some when others are still on their way.
    """
    together = restored(experiment, members, devices, hooks)
    while True:
        status = together.fold(hooks)
        if status == "interrupted":
            together.save(hooks, (together.run.fold, together.run.best))
            return False
        rows, run = range(len(together.members)), together.run
        live = together.live(run.step - run.config.evaluate_every) if status == "crowded" else []
        for outcome in together.outcomes([row for row in rows if row not in live]):
            done(outcome)
        if status != "crowded":
            return True
        together.keep(live)


def restored(
    experiment: Experiment, members: Sequence[Member], devices: Sequence[jax.Device], hooks: Hooks
) -> Together:
    """Returns members on their way: from the newest checkpoint if there is one, else from their first step."""
    made: list[Together] = []

    def like(meta: dict[str, Any]) -> Any:
        by_index = {member.number: member for member in members}
        made.append(Together(experiment, [by_index[index] for index in meta["members"]], devices))
        return made[-1].run.fold, made[-1].run.best

    found = None if hooks.checkpoints is None else hooks.checkpoints.restore(like)
    if found is None:
        return Together(experiment, members, devices, hooks.initial)
    together, (tree, meta) = made[-1], found
    run = together.run
    run.fold, run.best = jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), tree, (run.fold, run.best))
    run.step = int(run.fold.step)
    together.histories = dict(zip(meta["members"], meta["histories"]))
    together.frozen = {index: tuple(how) for index, how in zip(meta["members"], meta["frozen"]) if how is not None}
    return together


def can_be_divided(experiment: Experiment, member: Member) -> bool:
    """Whether members like this one can be divided over devices: on arrays without elements jaxlib 0.12 crashes."""
    program, arguments = loop.start_arguments(experiment, member.config, member.dataset)
    with compiled.explained(program, *arguments):
        fold = jax.eval_shape(functools.partial(compiled.start, program), *arguments)
    return all(leaf.size for leaf in jax.tree.leaves(fold))


def members_in_memory(experiment: Experiment, member: Member) -> tuple[int, int]:
    """Returns the bytes that a member needs at most, the data aside, and how many fit into half of the free memory."""
    program, arguments = loop.start_arguments(experiment, member.config, member.dataset)
    with compiled.explained(program, *arguments):
        size = compiled.update_bytes(program, *arguments)
    device = jax.local_devices()[0]
    known = device.memory_stats() or {}
    free = known.get("bytes_limit", 0) - known.get("bytes_in_use", 0)
    if free <= 0:  # the CPU's devices share the machine's memory
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    return size, max(1, free // 2 // size) * jax.local_device_count()
