"""Threads of this process: for many items at once where that is faster, and for a queue of them."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from queue import SimpleQueue

#: CPU time. For less, threads wait for Python's lock longer than they gain: two threads had 0.4 to
#: 0.9 of the rate of one at 7 to 64 us an item, and 1.2 to 1.9 times it from 100 us on, whether
#: arrays were copied, inflated or decoded. Without measuring, batches of 64 x 64 masks took 1.3 to
#: 1.9 times as long.
SECONDS_AN_ITEM = 80e-6
SECONDS_A_THREAD = 200e-6  # at least: a thread takes 50 us to start on its work
LONGEST_JOIN_SECONDS = 5.0  # an item may take long, or hang


class Threads:
    """Threads that start when first needed, anew in a forked process.

    ``count`` None: as many as there are cores, but one in a worker process, because others run
    beside it.
    """

    def __init__(
        self, count: int | None = None, *, clock: Callable[[], float] = time.thread_time
    ) -> None:
        self.count = (1 if _is_worker() else usable_cores()) if count is None else count
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._clock = clock  # of a thread: without waiting for others, or a disk
        self._seconds: float | None = None  # of CPU time that an item took last

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Return ``function(item)`` for each, in order; raise what the first failing call raised.

        Measures how long items take. The caller's thread is one of those at work.
        """
        if self.count == 1 or len(items) < 2:
            return [function(item) for item in items]
        tasks = _Tasks(function, items)
        if self._seconds is None:
            self._work(tasks, most=1)
        others = self._others(len(items))
        futures = [self._executor().submit(tasks.work) for _ in range(others)]
        self._work(tasks)
        for future in [future for future in futures if not future.cancel()]:
            future.result()
        if tasks.errors:
            raise tasks.errors[min(tasks.errors)]
        return tasks.results

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
        from concurrent.futures import ThreadPoolExecutor  # takes too long for --help

        if self._pool is None or self._pool[0] != os.getpid():  # threads do not survive a fork
            self._pool = os.getpid(), ThreadPoolExecutor(self.count, "H5Folder")
        return self._pool[1]

    def close(self) -> None:
        """End the threads of this process."""
        pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown(wait=False)


class _Tasks:
    """Items, each of which the first free thread takes."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self._function, self._items = function, items
        self.results: list[Any] = [None] * len(items)
        self.errors: dict[int, BaseException] = {}
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
                self.results[n] = self._function(self._items[n])
            except BaseException as error:
                self.errors[n] = error
                self._left.clear()
        return done


class QueueThreads:
    """Threads that take items from a queue, until `close` or until nobody holds this object.

    Queues of this kind may be used amid garbage collection, where `close` may be called; a lock
    may not.

    Parameters
    ----------
    count
        How many threads.
    name
        What each is called.
    serve
        What each does: it takes items from the queue it is given until it gets None.
    """

    def __init__(self, count: int, name: str, serve: Callable[[SimpleQueue[Any]], object]) -> None:
        import queue  # these take too long for --help
        import threading
        import weakref

        self.count = count
        self._current = threading.current_thread
        self.items: SimpleQueue[Any] = queue.SimpleQueue()
        # before they start: Ctrl-C may come amid it, and nobody would call `close`
        weakref.finalize(self, _end, self.items, count).atexit = False
        # as daemons: threading waits for other threads before it calls what closes these
        self._threads = [
            threading.Thread(target=serve, args=(self.items,), name=name, daemon=True)
            for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads when each has done its item; what none has begun is not done."""
        _end(self.items, self.count)
        end = time.monotonic() + LONGEST_JOIN_SECONDS
        for thread in self._threads:
            if thread is not self._current():
                thread.join(max(0.0, end - time.monotonic()))


def _end(items: SimpleQueue[Any], count: int) -> None:
    while not items.empty():
        with contextlib.suppress(Exception):  # a thread was quicker
            items.get_nowait()
    for _ in range(count):
        items.put(None)


def _is_worker() -> bool:
    """Tell whether multiprocessing has started this process: then it has been imported here."""
    processes = sys.modules.get("multiprocessing.process")
    return processes is not None and processes.current_process().name != "MainProcess"


def usable_cores(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the cores this process may use: its affinity, limited by the container's quota."""
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):  # in a sandbox that refuses to tell
            allowed = len(os.sched_getaffinity(0))
    # cgroup-v2 has "QUOTA PERIOD" in microseconds, or "max PERIOD"; v1 has a file for each
    words = _read(cgroup_root / "cpu.max").split()
    if not words:
        words = [
            _read(cgroup_root / "cpu" / f"cpu.cfs_{n}_us").strip() for n in ("quota", "period")
        ]
    if len(words) == 2 and all(map(str.isdigit, words)) and int(words[0]) and int(words[1]):
        return max(1, min(allowed, math.ceil(int(words[0]) / int(words[1]))))
    return allowed


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
