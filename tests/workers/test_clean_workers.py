"""Nothing of the user's has run in the process that workers come from: no library hangs in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from converter.threads import usable_cores
from helpers.check import stored
from helpers.run import (
    ROOT,
    command,
    finish,
    processes_left,
    read_with,
    run,
    start,
    wait_until,
    write_functions,
)

#: Notes in the process that it has been imported; a fork of that process would find the note.
TELLING = """
import os, sys

INHERITED = getattr(sys, "imported_in", None)
sys.imported_in = os.getpid()


def my_read(path_sample):
    return [INHERITED is not None, os.getpid()]
"""

#: Copying large weights starts the threads of OpenMP, which do not survive a fork.
WITH_TORCH = """
import torch

torch.zeros(2000, 2000).add(1).sum()


def my_read(path_sample):
    return (torch.ones(500, 500) * 2).sum(0)
"""

SLOW_IMPORT = """
import os, time

open(os.environ["NOTES"] + f"/{os.getpid()}", "w").close()
if len(os.listdir(os.environ["NOTES"])) > 1:  # the first is the parent's
    time.sleep(600)


def my_read(path_sample):
    return 1
"""


@pytest.fixture
def numbers(folder: Path) -> Path:
    for number in range(12):
        (folder / f"{number}.num").write_text(str(number))
    return folder


def test_no_worker_is_forked_from_where_functions_were_imported(numbers, output, tmp_path):
    functions = write_functions(tmp_path / "telling.py", TELLING)
    ended = run(command(numbers, output, "--ext=num", "--workers=3", *read_with(functions)))
    assert ended.status == 0, ended.err
    arrays = stored(output)
    assert not any(inherited for inherited, _ in arrays.values())


def program_of(text: str, numbers: Path, output: Path, functions: Path) -> str:
    call = (
        f"converter.convert({str(numbers)!r}, {str(output)!r}, ext='num', custom_read_func=True, "
        f"path_functions={str(functions)!r}, workers=2)"
    )
    return f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{text.format(call=call)}\n"


@pytest.mark.parametrize("how", ["script", "-c", "standard input"])
def test_a_program_without_a_guard_converts_and_runs_once(numbers, output, tmp_path, how):
    functions = write_functions(tmp_path / "telling.py", TELLING)
    text = "import converter\nprint('once')\nreport = {call}\nprint(report.stored, report.failed)"
    program = program_of(text, numbers, output, functions)
    arguments, given = [sys.executable, "-c", program], None
    if how == "script":
        arguments = [sys.executable, str(write_functions(tmp_path / "program.py", program))]
    if how == "standard input":
        arguments, given = [sys.executable, "-"], program
    ended = subprocess.run(arguments, input=given, capture_output=True, text=True, timeout=120)
    assert ended.stdout.splitlines() == ["once", "12 0"], ended.stderr
    assert not any(inherited for inherited, _ in stored(output).values())


@pytest.mark.slow
@pytest.mark.parametrize("way", ["import", "timeout", "convert()"])
def test_torch_before_the_workers_start_does_not_hang_them(numbers, output, tmp_path, way):
    pytest.importorskip("torch")
    functions = write_functions(tmp_path / "with_torch.py", WITH_TORCH)
    if way == "convert()":
        text = "import converter, torch\ntorch.zeros(2000, 2000).add(1).sum()\n{call}"
        arguments = [sys.executable, "-c", program_of(text, numbers, output, functions)]
    else:
        # one is enough, each imports it; without a time limit there is none
        flags = ["--workers=1", "--file_timeout=60"] if way == "timeout" else ["--workers=2"]
        arguments = command(numbers, output, "--ext=num", *flags, *read_with(functions))
    ended = run(arguments)
    assert ended.status == 0, ended.err
    for array in stored(output).values():
        np.testing.assert_array_equal(array, np.full(500, 1000, np.float32))


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")
def test_workers_that_are_importing_end_with_their_parent(numbers, output, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    functions = write_functions(tmp_path / "slow_import.py", SLOW_IMPORT)
    arguments = command(numbers, output, "--ext=num", "--workers=2", *read_with(functions))
    process = start(arguments, env={**os.environ, "NOTES": str(notes)})
    wait_until(lambda: len(list(notes.iterdir())) == 3)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    assert not processes_left(process.pid)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_leaves_the_other_cores_to_the_other_workers(
    workers: int, numbers: Path, output: Path, tmp_path: Path
) -> None:
    """An H5Folder that my_read opens reads in one thread there."""
    text = "def my_read(path_sample):\n    from converter.threads import Threads\n"
    text += "    return Threads().count"
    flags = ["--ext=num", *read_with(write_functions(tmp_path / "f.py", text))]
    assert run(command(numbers, output, *flags, f"--workers={workers}")).status == 0
    counts = {int(count) for count in stored(output).values()}
    assert counts == {1 if workers > 1 else usable_cores()}


@pytest.mark.skipif(
    not os.path.exists(f"/proc/self/task/{os.getpid()}/children"), reason="asks /proc for children"
)
def test_there_are_no_more_workers_than_files(folder: Path, output: Path, tmp_path: Path) -> None:
    (folder / "only.num").touch()
    text = """
    import os


    def my_read(path_sample):
        launcher = os.getppid()
        with open(f"/proc/{launcher}/task/{launcher}/children") as children:
            return len(children.read().split())
    """
    flags = ["--ext=num", *read_with(write_functions(tmp_path / "count.py", text)), "--workers=3"]
    ended = run(command(folder, output, *flags))
    assert ended.status == 0, ended.err
    assert stored(output)["only.num"] == 1


COLLECTING = """
import gc, os, sys

SLOW = {"h5py", "numpy.ma", "importlib.metadata"}


def my_read(path_sample):
    return [gc.isenabled(), len(SLOW & sys.modules.keys())]


def my_prune(filename_str, ext_str):
    with open(os.environ["NOTE"], "w") as file:
        file.write(str(gc.isenabled()))
    return True
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_garbage_is_collected_where_the_users_code_runs(numbers, output, tmp_path, workers):
    """Only while modules are imported it is not. A worker imports no more than it needs."""
    functions = write_functions(tmp_path / "collecting.py", COLLECTING)
    flags = ["--ext=num", *read_with(functions), "--custom_prune_func", f"--workers={workers}"]
    note = tmp_path / "note"
    ended = run(command(numbers, output, *flags), env={**os.environ, "NOTE": str(note)})
    assert ended.status == 0, ended.err
    assert note.read_text() == "True"
    for array in stored(output).values():
        assert array.tolist() == [1, 0] if workers > 1 else array[0] == 1
