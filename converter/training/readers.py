"""Carry out the parts of batches: in threads of this process, or in the caller."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

LONGEST_JOIN_SECONDS = 5.0
Part = tuple[int, Callable[[], None]]  # of the work with this number


class Work(Protocol):
    """What is done in parts, which threads take as they are free."""

    number: int  # no other work in progress has it

    def parts(self) -> Sequence[Callable[[], None]]:
        """Return the parts, of which none raises anything."""


class InCaller:
    """Does each part when somebody waits for it."""

    def start(self, work: Work) -> None:
        """Begin nothing yet."""

    def wait(self, work: Work) -> None:
        """Do all parts."""
        for part in work.parts():
            part()

    def close(self) -> None:
        """End nothing."""


class InThreads:
    """Threads that hold this object alone: whoever waits for the parts may go at any time.

    Queues of this kind may be used amid garbage collection, where `close` may be called; a lock
    may not.
    """

    def __init__(self, count: int) -> None:
        self._parts: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._left: dict[int, int] = {}  # parts of each work that are not done
        # as daemons: threading waits for other threads before it calls what closes these
        self._threads = [
            threading.Thread(
                target=_serve, args=(self._parts, self._done), name="H5Loader", daemon=True
            )
            for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def start(self, work: Work) -> None:
        """Let the threads begin."""
        parts = work.parts()
        self._left[work.number] = len(parts)
        for part in parts:
            self._parts.put((work.number, part))

    def wait(self, work: Work) -> None:
        """Return when all parts are done."""
        while self._left[work.number]:
            self._left[self._done.get()] -= 1
        del self._left[work.number]

    def close(self) -> None:
        """End the threads when each has done its part; what none has begun is not done."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._parts.get_nowait()
        for _ in self._threads:
            self._parts.put(None)
        end = time.monotonic() + LONGEST_JOIN_SECONDS  # a transform may be slow, or hang
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))


def _serve(
    parts: queue.SimpleQueue[Part | None],
    done: queue.SimpleQueue[int],
) -> None:
    """Do parts until told to end."""
    while (item := parts.get()) is not None:
        number, part = item
        part()
        done.put(number)
        del item, part  # or this thread would hold the arrays of a batch until the next part
