"""Run the converter: in this process, in one of its own, to the end or until something."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from converter.cli import main

ROOT = Path(__file__).resolve().parents[2]
#: Files of functions that many tests choose by ``read_with``.
FUNCTIONS = ROOT / "tests" / "functions"
SECONDS_BEFORE_HANG = 300  # also where much else runs
CAPABILITIES_OF_ROOT = (1, 2)  # DAC_OVERRIDE, DAC_READ_SEARCH: see capabilities(7)
PR_CAPBSET_DROP = 24
_started: list[subprocess.Popen] = []


class Finished(NamedTuple):
    """How a run ended, and what it said."""

    status: int
    out: str
    err: str


def run_here(capfd: pytest.CaptureFixture[str], *arguments: str) -> Finished:
    """Run the command line within this process, from which its workers are then forked."""
    capfd.readouterr()  # of what ran before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["converter", *arguments])
        try:
            status = main()  # with arguments of a program its workers start from a new interpreter
        except SystemExit as error:  # as argparse ends
            status = int(error.code or 0)
    out, err = capfd.readouterr()
    return Finished(status, out, err)


def program(*arguments: str) -> list[str]:
    """Return the command line of any run in a process of its own."""
    return [sys.executable, str(ROOT / "converter"), *arguments]


def command(folder: Path, output: Path, *flags: str) -> list[str]:
    """Return the command line of a conversion in a process of its own."""
    return program(f"--path_images={folder}", f"--path_output={output}", *flags)


def read_with(functions: Path | str) -> tuple[str, str]:
    """Return the flags to read with my_read of a file, or of a name in tests/functions."""
    path = functions if isinstance(functions, Path) else FUNCTIONS / functions
    return "--custom_read_func", f"--path_functions={path}"


def start(arguments: list[str], *, outlives_test: bool = False, **options: Any) -> subprocess.Popen:
    """Start a process that leads a process group of its own."""
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    process = subprocess.Popen(
        arguments,
        encoding="utf-8",
        errors="surrogateescape",
        start_new_session=True,
        **options,
    )
    if not outlives_test:
        _started.append(process)
    return process


def end_all() -> None:
    """Kill the processes that were started and that nobody has seen end, with their groups."""
    while _started:
        process = _started.pop()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finish(process: subprocess.Popen, *, seconds: float = SECONDS_BEFORE_HANG) -> Finished:
    """Wait for the end of a run. One that hangs is killed, and raises TimeoutExpired."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return Finished(process.returncode, out or "", err or "")


def run(arguments: list[str], **options: Any) -> Finished:
    """Run to the end, in a process group of its own."""
    return finish(start(arguments, **options))


def processes() -> dict[int, tuple[int, int]]:
    """Return the parent and the process group of each live process."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # gone meanwhile
                continue
            if fields[0] not in "ZX":
                found[int(folder.name)] = int(fields[1]), int(fields[2])
    return found


def processes_of(group: int) -> list[int]:
    """Return the live processes of a process group."""
    return [process for process, (_, of) in processes().items() if of == group]


def processes_left(group: int, *, seconds: float = 15) -> list[int]:
    """Return the processes of a group that are still there after a while."""
    wait_until(lambda: not processes_of(group), seconds=seconds)
    return processes_of(group)


def children_of(parent: int) -> list[int]:
    """Return the live child processes of a process."""
    return sorted(process for process, (of, _) in processes().items() if of == parent)


def workers_of(parent: int) -> list[int]:
    """Return the live worker processes of a run: those that its launcher has started."""
    return sorted(worker for launcher in children_of(parent) for worker in children_of(launcher))


def wait_until(condition: Callable[[], Any], *, seconds: float = 30) -> None:
    """Wait for a condition, at most this long."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


def without_root_rights() -> None:
    """Hold this process to file permissions, also when root runs it; for ``preexec_fn``."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for number in CAPABILITIES_OF_ROOT:
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)


def write_functions(path: Path, text: str) -> Path:
    """Write a file of functions such as my_functions.py."""
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path
