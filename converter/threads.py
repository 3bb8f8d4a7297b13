"""Do one thing to many items in several threads of this process, where that is faster."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

#: Of CPU time. Below, threads wait for Python's lock longer than they gain: two threads had 0.4 to
#: 0.9 of the rate of one at 7 to 64 us an item, and 1.2 to 1.9 times it from 100 us on, whether
#: arrays were copied, inflated or decoded. Without measuring, batches of 64 x 64 masks took 1.3 to
#: 1.9 times as long.
SECONDS_AN_ITEM = 80e-6
SECONDS_A_THREAD = 200e-6  # at least: it takes 50 us to set to work


class Threads:
    """Threads that start when first needed, anew in a forked process.

    ``count`` None: as many as there are cores, but one in a worker process, which has others
    beside it.
    """

    def __init__(
        self, count: int | None = None, *, clock: Callable[[], float] = time.thread_time
    ) -> None:
        in_worker = multiprocessing.parent_process() is not None
        self.count = (1 if in_worker else usable_cores()) if count is None else count
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._clock = clock  # of a thread: without waiting for others, or a disk
        self._seconds: float | None = None  # of CPU time that an item took last

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Return ``function(item)`` for each, in order; raises what the first failing one did.

        How long items take is measured. The caller's thread is one of those at work.
        """
        if self.count == 1 or len(items) < 2:
            return [function(item) for item in items]
        tasks = _Tasks(function, items)
        if self._seconds is None:
            self._work(tasks, most=1)
        others = self._others(len(items))
        futures = [self._executor().submit(tasks.work) for _ in range(others)]
        self._work(tasks)
        wait([future for future in futures if not future.cancel()])
        return tasks.results()

    def _others(self, items: int) -> int:
        """Return how many threads should help."""
        if self._seconds is None or self._seconds < SECONDS_AN_ITEM:
            return 0
        return min(self.count, items, int(items * self._seconds / SECONDS_A_THREAD)) - 1

    def _work(self, tasks: _Tasks, most: int | None = None) -> None:
        start = self._clock()
        done = tasks.work(most)
        if done:
            self._seconds = (self._clock() - start) / done

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pool[0] != os.getpid():  # threads do not survive a fork
            self._pool = os.getpid(), ThreadPoolExecutor(self.count, "H5Folder")
        return self._pool[1]

    def close(self) -> None:
        """Let the threads of this process end."""
        pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown(wait=False)


class _Tasks:
    """Items to be done, each by the thread that comes first."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self._function, self._items = function, items
        self._results: list[Any] = [None] * len(items)
        self._errors: dict[int, BaseException] = {}
        self._left = deque(range(len(items)))

    def work(self, most: int | None = None) -> int:
        """Do what is left, ``most`` items at most; return how many were done."""
        done = 0
        while done != most:
            try:
                n = self._left.popleft()
            except IndexError:
                break
            done += 1
            try:
                self._results[n] = self._function(self._items[n])
            except BaseException as error:
                self._errors[n] = error
                self._left.clear()
        return done

    def results(self) -> list[Any]:
        """Return all results in order. Raises what the first failing item did."""
        if self._errors:
            raise self._errors[min(self._errors)]
        return self._results


def usable_cores(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the cores this process may use: affinity, cut by the container's CPU quota."""
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):  # in a sandbox that refuses to tell
            allowed = len(os.sched_getaffinity(0))
    quota = _quota_v2(cgroup_root) or _quota_v1(cgroup_root)
    return max(1, min(allowed, math.ceil(quota)) if quota else allowed)


def _quota_v2(root: Path) -> float | None:
    """Read ``cpu.max``: "QUOTA PERIOD" in microseconds, or "max PERIOD" (kernel, cgroup-v2)."""
    words = _read(root / "cpu.max").split()
    if len(words) == 2 and words[0].isdigit() and int(words[1]):
        return int(words[0]) / int(words[1])
    return None


def _quota_v1(root: Path) -> float | None:
    quota = _read(root / "cpu" / "cpu.cfs_quota_us").strip()
    period = _read(root / "cpu" / "cpu.cfs_period_us").strip()
    if quota.isdigit() and period.isdigit() and int(period):
        return int(quota) / int(period)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
