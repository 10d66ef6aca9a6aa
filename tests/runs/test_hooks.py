"""Hooks: called at the same steps with the same state whatever the chunks, and no bit of the run depends on them."""

import os
import signal
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

import foldax
from foldax.engine.state_leaves import host_arrays
from foldax.errors import ConfigError, ExperimentError, Interrupted
from foldax.runs import folder
from tests.conftest import Config, tiny
from tests.engine.test_loop import with_losses


class Calls:
    """A hook that keeps the steps and copies of the states with which it is called."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.states: list[dict[str, np.ndarray]] = []

    def __call__(self, step: int, state: Any, context: foldax.HookContext) -> None:
        self.steps.append(step)
        self.states.append(host_arrays(state))


@pytest.fixture(scope="module")
def plain() -> foldax.Result:
    return foldax.train(tiny, Config(), save=False, verbose=False)


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_hooks_change_no_bit(plain: foldax.Result, steps: int) -> None:
    calls = Calls()
    result = foldax.train(tiny, Config(), save=False, verbose=False, hooks=[foldax.Every(steps, calls)])
    assert calls.steps == list(range(steps, 13, steps))
    chex.assert_trees_all_equal(host_arrays(result.final_state), host_arrays(plain.final_state))
    assert (result.history, result.metrics) == (plain.history, plain.metrics)


def test_a_hook_gets_the_state_of_its_step_and_the_log_up_to_it(plain: foldax.Result) -> None:
    calls, contexts, logged = Calls(), [], []

    def keep(step: int, state: Any, context: foldax.HookContext) -> None:
        contexts.append(context)
        logged.append(context.history[-1]["step"])

    hooks = [foldax.Every(4, calls), foldax.Every(4, keep)]
    foldax.train(tiny, Config(), save=False, verbose=False, hooks=hooks)
    shorter = foldax.train(tiny, Config(steps=4, keep="last"), save=False, verbose=False)
    assert sorted(calls.states[0]) == sorted(host_arrays(shorter.final_state))
    for name, array in host_arrays(shorter.final_state).items():
        np.testing.assert_array_equal(calls.states[0][name], array)
    assert logged == [4, 8, 12]
    assert (contexts[0].config, contexts[0].run_dir, contexts[0].info) == (Config(), None, plain.info)
    assert contexts[0].learner.predict is not None


def test_a_hook_cannot_put_other_arrays_into_the_state(plain: foldax.Result) -> None:
    def spoil(step: int, state: Any, context: Any) -> None:
        for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, dict)):
            if isinstance(node, dict):
                node.clear()

    result = foldax.train(tiny, Config(), save=False, verbose=False, hooks=foldax.Every(3, spoil))
    assert result.metrics == plain.metrics


def test_a_hook_that_fails_names_itself_and_its_step_and_loses_nothing(plain, tmp_path: Path, capsys) -> None:
    def draw(step: int, state: Any, context: Any) -> None:
        if step == 6:
            raise ValueError("no such colour")

    with pytest.raises(ExperimentError, match=r"(?s)hook 'draw' at step 6 failed:.*ValueError: no such colour"):
        foldax.train(tiny, Config(), run_dir=tmp_path / "r", verbose=False, hooks=[foldax.Every(3, draw)])
    assert "the state of step 6 was saved before the error below" in capsys.readouterr().err
    assert folder.read_json(tmp_path / "r" / "manifest.json")["status"].startswith("failed: hook 'draw' at step 6")
    calls = Calls()
    hooks = [foldax.Every(3, calls)]
    resumed = foldax.train(tiny, Config(), run_dir=tmp_path / "r", resume=True, verbose=False, hooks=hooks)
    assert calls.steps == [6, 9, 12]
    assert resumed.history == plain.history
    chex.assert_trees_all_equal(host_arrays(resumed.final_state), host_arrays(plain.final_state))


def test_a_resumed_run_calls_hooks_at_the_steps_that_are_left(plain, tmp_path: Path, capsys) -> None:
    def stop(step: int, state: Any, context: Any) -> None:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped at step 6"):
        foldax.train(tiny, Config(), run_dir=tmp_path / "r", verbose=False, hooks=[foldax.Every(3, stop)])
    calls = Calls()
    hooks = [foldax.Every(3, calls)]
    resumed = foldax.train(tiny, Config(), run_dir=tmp_path / "r", resume=True, verbose=False, hooks=hooks)
    assert calls.steps == [9, 12]
    assert resumed.history == plain.history
    assert "hooks of earlier sessions are not called now: stop" in capsys.readouterr().err


def test_no_hook_is_called_after_an_early_stop() -> None:
    calls, late = Calls(), Calls()
    hooks = [foldax.Every(1, calls), foldax.Every(7, late)]
    config = Config(steps=12, evaluate_every=1, log_every=100, patience=3)
    result = foldax.train(with_losses([9, 5, 3, *[4] * 10]), config, save=False, verbose=False, hooks=hooks)
    assert (result.step, calls.steps, late.steps) == (5, [1, 2, 3, 4, 5], [])


def test_figures_of_hooks_are_saved_by_step(tmp_path: Path, capsys) -> None:
    def draw(step: int, state: Any, context: Any) -> dict[str, Any]:
        figure = Figure()
        figure.add_subplot().plot([0, step])
        return {"a/b": figure, "note": f"step {step}", "wrong": 3, "..": "x"}

    hooks = foldax.Every(6, draw)
    foldax.train(tiny, Config(steps=6), run_dir=tmp_path / "r", verbose=False, hooks=hooks)
    figures = tmp_path / "r" / "figures"
    assert (figures / "a%2Fb" / "step_6.png").read_bytes().startswith(b"\x89PNG")
    assert (figures / "note" / "step_6.txt").read_text() == "step 6\n"
    assert (figures / "%2E%2E" / "step_6.txt").exists()
    warning = (
        "foldax: figure 'wrong' of hook 'draw' at step 6 could not be drawn; the run goes on: expected a matplotlib"
    )
    assert capsys.readouterr().err.startswith(warning)


def hook(step, state, context) -> None: ...


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: foldax.Every(0, hook), r"integer of 1 or more, not 0$"),
        (lambda: foldax.Every(-5, hook), r"integer of 1 or more, not -5$"),
        (lambda: foldax.Every(2.5, hook), r"integer of 1 or more, not 2.5$"),
        (lambda: foldax.Every(True, hook), r"integer of 1 or more, not True$"),
        (lambda: foldax.Every(500, "hook"), r"'hook' is no function$"),
        (lambda: foldax.Every(500, lambda step, state: None), r"<lambda>\(step, state\) cannot be called with \(step, st"),
        (lambda: foldax.train(tiny, save=False, hooks=[hook]), r"hook is no hook; write hooks=\[foldax.Every\(500, fun"),
        (lambda: foldax.train(tiny, save=False, hooks=hook), r"hook is no hook; write hooks=\[foldax.Every\(500, fun"),
    ],
)  # fmt: skip
def test_a_wrong_hook_is_an_error_before_the_first_step(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_hook_that_is_never_called_is_told(capsys) -> None:
    foldax.train(tiny, Config(), save=False, verbose=False, hooks=[foldax.Every(500, hook)])
    expected = "foldax: hook hook is never called: the run has 12 steps, and its interval is 500\n"
    assert capsys.readouterr().err == expected


def donate(step: int, state: Any, context: Any) -> None:
    jax.block_until_ready(jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(state))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda step, state, context: Figure(), r"hook '<lambda>' at step 6 returned Figure; return \{name: figure\}"),
        (donate, r"hook 'donate' at step 6 donated arrays of the state"),
    ],
)
def test_what_a_hook_must_not_do_is_named(function, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        foldax.train(tiny, Config(steps=6), save=False, verbose=False, hooks=[foldax.Every(6, function)])
