"""A sweep on a JAX runtime of two processes: both train, and both end with the tables of one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from pandas.testing import assert_frame_equal

import foldax

FILE = '''
"""The program of each of two processes."""
import sys
from pathlib import Path
import jax
import foldax  # before JAX starts: the cores become devices

index, address, execution, out = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
jax.distributed.initialize(address, num_processes=2, process_id=index)
assert (jax.process_count(), jax.local_device_count(), jax.device_count()) == (2, 2, 4)
from tests.conftest import tiny
try:
    foldax.sweep(tiny, {}, search=foldax.SuccessiveHalving(), save=False)
except foldax.FoldaxError as error:
    print(error)
path = None if execution == "fast" else out / "sweep"
options = dict(seeds=3, execution=execution, sweep_dir=path, save=path is not None, verbose=index == 0)
sweep = foldax.sweep(tiny, {"learning_rate": [1e-3, 1e-2], "hidden": [(8,), (4,)]}, **options)
sweep.results.to_parquet(out / f"results-{index}.parquet")
print("traced", sweep.metadata["programs"], "of", len(sweep.configs))
if path is not None:  # there is nothing left to do, in either
    again = foldax.sweep(tiny, {"learning_rate": [1e-3, 1e-2], "hidden": [(8,), (4,)]}, resume=True, **options)
    assert again.results.equals(sweep.results)
'''


@pytest.mark.parametrize("execution", ["exact", "fast"])
def test_two_processes_share_a_sweep(tmp_path: Path, execution: str) -> None:
    from tests.conftest import ROOT, tiny

    (tmp_path / "two.py").write_text(FILE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    command = [sys.executable, str(tmp_path / "two.py")]
    running = [subprocess.Popen([*command, str(i), address, execution, str(tmp_path)], **pipes) for i in range(2)]
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert "search: SuccessiveHalving runs in one process, and this is a runtime of several" in out
        assert "traced 2 of 12" in out
    tables = [pandas.read_parquet(tmp_path / f"results-{index}.parquet") for index in range(2)]
    assert_frame_equal(*tables, check_exact=True)
    assert list(tables[0]["member"]) == list(range(12))
    space = {"learning_rate": [1e-3, 1e-2], "hidden": [(8,), (4,)]}
    alone = foldax.sweep(tiny, space, seeds=3, save=False, verbose=False).results.drop(columns="seconds")
    if execution == "exact":
        there = pandas.read_parquet(tmp_path / "sweep" / "process-1" / "results.parquet").drop(columns="seconds")
        assert_frame_equal(there.astype(alone.dtypes.to_dict()), alone, check_exact=True)
    else:
        numbers = ["steps_done", "validation/loss", "test/loss"]
        assert_frame_equal(tables[0][numbers], alone[numbers], rtol=1e-3)
