"""Run conversions that end at a chosen step of their writing. A program: see `break_all`.

Each runs in a process group of its own, forked from one that has everything imported, and that
serves all tests: hundreds of them take seconds.
"""

from __future__ import annotations

import errno
import functools
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parents[1]
#: What a run imports when it needs it: here, and not once in each child.
IMPORTED = (
    "converter.commands.convert",
    "converter.commands.update",
    "converter.messages",
    "email.parser",
    "numpy.ma",
    "numpy.random",
)
#: Kill before a step; amid it, if it writes, else behind it; refuse it as a full disk does.
WAYS = ("before", "amid", "full")


class Point(NamedTuple):
    """Where one run ends: at a step by its number, or when the file has so many bytes.

    ``place`` is the folder of the output; without an end the run is not broken off.
    """

    place: str
    way: str = "before"
    step: int | None = None
    nbytes: int | None = None


class Broken(NamedTuple):
    """How it ended: exit status or minus the signal's number, the steps it did, what it read."""

    status: int
    steps: list[str]
    reads: list[str]
    err: str


def break_all(
    arguments: list[str], points: list[Point], *, files_in_task: int, in_blocks: bool = False
) -> list[Broken]:
    """Run the command line for each point, with ``--path_output=PLACE/OUT.h5``.

    With ``in_blocks`` the file is written as very large ones are.
    """
    process = _prepared()
    try:
        print(json.dumps([arguments, points, files_in_task, in_blocks]), file=process.stdin)
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, process.stderr.read()
    except BaseException:
        process.kill()
        process.communicate()
        _prepared.cache_clear()
        raise
    return [Broken(*fields) for fields in json.loads(answer)]


@functools.cache
def _prepared() -> subprocess.Popen[str]:
    """Return the process that forks all others; it ends when its stdin does."""
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _main() -> None:
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        arguments, points, *manner = json.loads(line)
        ended = [_break(arguments, Point(*fields), *manner) for fields in points]
        print(json.dumps(ended), flush=True)


def _break(arguments: list[str], point: Point, files_in_task: int, in_blocks: bool) -> Broken:
    from helpers.run import processes_left

    place = Path(point.place)
    said, done, read = (place.with_name(place.name + end) for end in (".err", ".steps", ".reads"))
    read.touch()
    process = os.fork()
    if not process:
        os.setsid()
        os.environ["READS"] = str(read)  # resuming.READER
        _redirect(said)
        _set_manner(files_in_task, in_blocks)
        with open(done, "w") as steps:
            if point.nbytes is None:
                _Steps(point, lambda name: print(name, file=steps, flush=True)).install()
            status = _run([*arguments, f"--path_output={place / 'OUT.h5'}"])
        sys.stderr.flush()
        os._exit(status)
    if point.nbytes is not None:
        _kill_at_size(process, place / "OUT.h5.partial", point.nbytes)
    _, status = os.waitpid(process, 0)
    assert not processes_left(process)
    lists = (path.read_text().split() for path in (done, read))
    return Broken(os.waitstatus_to_exitcode(status), *lists, said.read_text())


def _set_manner(files_in_task: int, in_blocks: bool) -> None:
    from converter.workers import tasks
    from converter.writer import payloads

    tasks.MOST_FILES_IN_TASK = files_in_task
    payloads.THREADS = 1  # so that steps come one after the other
    if in_blocks:
        payloads.CACHED_NBYTES, payloads.CACHED_SHARE, payloads.BLOCK_NBYTES = 0, 0.0, 1 << 15


def _run(arguments: list[str]) -> int:
    from converter.cli import main

    # not main(arguments): its workers would be of a new interpreter, for a program may have a past
    sys.argv = ["converter", *arguments]
    return main()


def _kill_at_size(process: int, partial: Path, nbytes: int) -> None:
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        try:
            if os.stat(partial).st_size >= nbytes:
                os.killpg(process, signal.SIGKILL)
                return
        except FileNotFoundError:
            pass
        time.sleep(0.0002)


def _redirect(said: Path) -> None:
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


class _Steps:
    """Counts what changes the disk in this very process, and ends it at one of these calls."""

    def __init__(self, point: Point, note: Callable[[str], None]) -> None:
        self._point, self._note = point, note
        self._process = os.getpid()
        self._count = 0
        self._is_full = False

    def install(self) -> None:
        real_write, real_truncate = io.FileIO.write, io.FileIO.truncate
        steps = self

        class FileIO(io.FileIO):
            def write(self, data: Any) -> int:
                return steps.write("write", data, lambda part: real_write(self, part))

            def truncate(self, size: int | None = None) -> int:
                return steps.other("truncate", lambda: real_truncate(self, size))

        io.FileIO = FileIO  # type: ignore[misc]
        real_pwrite = os.pwrite

        def pwrite(descriptor: int, data: Any, offset: int) -> int:
            return self.write("pwrite", data, lambda part: real_pwrite(descriptor, part, offset))

        os.pwrite = pwrite
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def write(self, name: str, data: Any, call: Callable[[Any], int]) -> int:
        if not self._is_next(name):
            return call(data)
        if self._point.way == "before":
            self._kill()
        half = memoryview(data).cast("B")[: memoryview(data).nbytes // 2]
        written = call(half) if half.nbytes else 0
        if self._point.way == "amid":
            self._kill()
        self._is_full = True
        return written or self._refuse()

    def other(self, name: str, call: Callable[[], Any]) -> Any:
        is_next = self._is_next(name)
        if is_next and self._point.way == "before":
            self._kill()
        if is_next and self._point.way == "full":
            self._is_full = True
        try:
            return call()
        finally:  # also when there was nothing to unlink
            if is_next and self._point.way == "amid":
                self._kill()

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: self.other(name, lambda: real(*args, **options))

    def _is_next(self, name: str) -> bool:
        if os.getpid() != self._process:  # a worker
            return False
        if self._is_full and name in ("write", "pwrite"):
            self._refuse()
        self._note(name)
        self._count += 1
        return self._count == self._point.step

    def _refuse(self) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _kill(self) -> None:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _main()
