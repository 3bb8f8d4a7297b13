"""Job off the orders of a pool, in a worker process of it."""

from __future__ import annotations

import io
import itertools
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

from converter.errors import ConverterError
from converter.files import open_to_write, write_at
from converter.samples import Buffer, Result
from converter.workers.shared_memory import SharedBuffer, SharedMemory
from converter.workers.tasks import Job, Worker, work_on

BUFFERS = 5  # the last is kept for the task that is next in order: it always gets through


class Answer(NamedTuple):
    """What a worker sends back for a task."""

    results: list[Result]
    nbytes: int
    payload: bytearray | None
    seconds: float


class Ready(NamedTuple):
    """What a worker sends when it has started, or cannot, and why."""

    problem: str | None = None


class Written(NamedTuple):
    """What a worker sends when it has copied the payload of a buffer to the file."""

    buffer: int
    error: OSError | None = None


class Task(NamedTuple):
    """What a worker is sent: read these files into a buffer, or copy a buffer to the file."""

    buffer: int
    keys: list[str]
    path: Path | None = None
    offset: int = 0
    nbytes: int = 0


_Orders = queue.PriorityQueue[tuple[bool, int, Task]]  # writing first, then as they came


def serve(
    settings: Job,
    pipe: connection.Connection,
    memory: list[SharedMemory] | None,
    others: list[connection.Connection],
) -> None:
    """Job off tasks until the parent goes away."""
    for other in others:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it raises what matters too
    try:
        encoder = settings.start()
    except ConverterError as error:
        pipe.send(Ready(str(error)))
        return
    with suppress(OSError):  # the parent may be gone: `_receive` ends this process
        pipe.send(Ready())
    orders: _Orders = queue.PriorityQueue()
    threading.Thread(target=_receive, args=(pipe, orders), daemon=True).start()
    buffers: list[Buffer] = (
        [SharedBuffer(part) for part in memory] if memory else [Buffer()] * BUFFERS
    )
    file: io.FileIO | None = None
    while True:
        _, _, order = orders.get()
        if order.path is None:
            pipe.send(_answer(encoder, order.keys, buffers[order.buffer], settings.file_timeout))
            continue
        try:
            file = file or open_to_write(order.path)
            assert memory is not None
            # not buffers[order.buffer]: what lies there may be a predecessor's
            write_at(file, memory[order.buffer].map()[: order.nbytes], order.offset)
            pipe.send(Written(order.buffer))
        except OSError as error:
            pipe.send(Written(order.buffer, OSError(error.errno, error.strerror)))


def _answer(
    encoder: Worker, keys: Sequence[str], buffer: Buffer, most_seconds: float | None
) -> Answer:
    start = time.perf_counter()
    buffer.reset()
    results = work_on(encoder, keys, buffer, seconds=most_seconds)
    seconds = time.perf_counter() - start
    shared = isinstance(buffer, SharedBuffer) and buffer.is_shared
    payload = None if shared else bytearray(buffer.payload())
    return Answer(results, buffer.used, payload, seconds)


def _receive(pipe: connection.Connection, orders: _Orders) -> None:
    """Take orders in as they come, so that the parent never waits; end with the parent.

    Writing goes first: it frees a buffer, and what is written is not lost.
    """
    try:
        for number in itertools.count():
            order = pipe.recv()
            orders.put((order.path is None, number, order))
    except (EOFError, OSError):
        os._exit(1)
