"""The loop of a worker process: fill buffers with the payloads of tasks."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from multiprocessing import connection
from typing import Any, NamedTuple

from converter.errors import ConverterError
from converter.samples import Buffer, Encoded, Part, Result
from converter.streams import unfailing_streams
from converter.workers.shared_memory import SharedBuffer, SharedMemory
from converter.workers.tasks import Job, Worker, work_on

PACKED_LENGTH = 6  # of a sample of one part
BUFFERS = 5  # the last is kept for the task that is next in order: it always gets through


class Answer(NamedTuple):
    """What a worker sends back for a task; ``results`` as `packed` returns them."""

    results: list[Any]
    nbytes: int
    payload: bytearray | None
    seconds: float


def packed(results: Sequence[Result]) -> list[Any]:
    """Return results as plain tuples, without the keys, which the parent knows.

    Named tuples take six times as long to pickle.
    """
    rows: list[Any] = []
    for result in results:
        if isinstance(result, Encoded):
            _, layout, parts, nbytes, mtime_ns, note = result
            rows.append((layout, nbytes, mtime_ns, note, *chain.from_iterable(parts)))
        else:
            rows.append(result)
    return rows


def unpacked(keys: Sequence[str], rows: Sequence[Any]) -> list[Result]:
    """Return what `packed` was given; there may be fewer results than keys."""
    results: list[Result] = []
    for key, row in zip(keys, rows, strict=False):
        if type(row) is not tuple:
            results.append(row)
            continue
        parts: tuple[Part, ...]
        if len(row) == PACKED_LENGTH:  # nearly all: unpacked in half the time
            layout, nbytes, mtime_ns, note, stored_nbytes, crc32 = row
            parts = (Part(stored_nbytes, crc32),)
        else:
            layout, nbytes, mtime_ns, note, *numbers = row
            parts = tuple(map(Part, numbers[::2], numbers[1::2]))
        results.append(Encoded(key, layout, parts, nbytes, mtime_ns, note))
    return results


class Ready(NamedTuple):
    """What a worker sends when it has started, or cannot, and why."""

    problem: str | None = None


class Task(NamedTuple):
    """What a worker is sent: files to work on, and the number of the buffer for their payloads."""

    buffer: int
    keys: list[str]


def serve_descriptors(settings: Job, descriptors: Sequence[int]) -> None:
    """Serve as `serve` does: with a pipe, and memory if there is any, by their descriptors."""
    pipe, *memory = descriptors
    shared = [SharedMemory(descriptor) for descriptor in memory]
    serve(settings, connection.Connection(pipe), shared or None)


def serve(settings: Job, pipe: connection.Connection, memory: list[SharedMemory] | None) -> None:
    """Do the tasks that come through the pipe, until the parent goes away."""
    with unfailing_streams():  # my_read may print
        _serve(settings, pipe, memory)


def _serve(settings: Job, pipe: connection.Connection, memory: list[SharedMemory] | None) -> None:
    multiprocessing.current_process().name = "Worker"  # see `threads.Threads`
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it raises what matters too
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    # before anything of the user's runs: the process ends with its parent, wherever it is
    threading.Thread(target=_receive, args=(pipe, tasks), daemon=True).start()
    try:
        encoder = settings.start()
    except ConverterError as error:
        pipe.send(Ready(str(error)))
        return
    with suppress(OSError):  # the parent may be gone: `_receive` ends this process
        pipe.send(Ready())
    buffers: list[Buffer] = (
        [SharedBuffer(part) for part in memory] if memory else [Buffer()] * BUFFERS
    )
    while True:
        task = tasks.get()
        pipe.send(_answer(encoder, task.keys, buffers[task.buffer], settings.file_timeout))


def _answer(
    encoder: Worker, keys: Sequence[str], buffer: Buffer, most_seconds: float | None
) -> Answer:
    start = time.perf_counter()
    buffer.reset()
    results = work_on(encoder, keys, buffer, seconds=most_seconds)
    seconds = time.perf_counter() - start
    shared = isinstance(buffer, SharedBuffer) and buffer.is_shared
    payload = None if shared else bytearray(buffer.payload())
    return Answer(packed(results), buffer.used, payload, seconds)


def _receive(pipe: connection.Connection, tasks: queue.SimpleQueue[Task]) -> None:
    """Take tasks in as they come, so that the parent never waits; end with the parent."""
    try:
        while True:
            tasks.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(1)
