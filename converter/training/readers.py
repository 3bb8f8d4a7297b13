"""Carry out the parts of batches: in the caller, in threads of this process, or in processes.

Processes are for loops whose own Python holds the interpreter's lock. The caller's thread talks to
them, and only when it asks for a batch: a thread of its own would wait for the lock. They write
into shared memory, of which they have each piece but once. Arrays that do not have the shape of
those before are sent through the pipe instead.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import multiprocessing
import multiprocessing.process
import os
import pickle
import queue
import signal
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import connection, reduction
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory as NamedMemory
from typing import Any, NamedTuple

import numpy as np

from converter.errors import LoadError, describe
from converter.threads import QueueThreads
from converter.training.batches import Filling, joined
from converter.training.buffers import HAS_MEMFD, Buffers, SharedMemory, bytes_of, mapped
from converter.training.plans import Recipe, Request
from converter.training.rows import Filler

LONGEST_JOIN_SECONDS = 2.0  # of a process
Part = tuple[int, Callable[[], None]]  # of the batch with this number


class InThreads:
    """Threads that hold this object alone: whoever waits for the parts may go at any time.

    Without threads, who waits does the parts. `close` may be called amid garbage collection.
    """

    is_broken = False

    def __init__(self, count: int) -> None:
        self._numbers = itertools.count()
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._left: dict[int, int] = {}  # parts of each batch that are not done
        self._threads = QueueThreads(
            count, "H5Loader", functools.partial(_serve_thread, done=self._done)
        )

    def start(self, filling: Filling) -> Callable[[], None]:
        """Let the threads begin; return what waits until all parts are done."""
        if not self._threads.count:
            return functools.partial(_do_parts, filling)
        parts, number = filling.parts(), next(self._numbers)
        self._left[number] = len(parts)
        for part in parts:
            self._threads.items.put((number, part))
        return functools.partial(self._wait, number)

    def _wait(self, number: int) -> None:
        while self._left[number]:
            self._left[self._done.get()] -= 1
        del self._left[number]

    def close(self) -> None:
        """End the threads when each has done its part; what none has begun is not done."""
        self._threads.close()


def _do_parts(filling: Filling) -> None:
    for part in filling.parts():
        part()


def _serve_thread(parts: queue.SimpleQueue[Part | None], done: queue.SimpleQueue[int]) -> None:
    """Do parts until told to end."""
    while (item := parts.get()) is not None:
        number, part = item
        part()
        done.put(number)
        del item, part  # or this thread would hold the arrays of a batch until the next part


class Place(NamedTuple):
    """Where the rows of a name go: the memory's number, and where in it they begin."""

    memory: int
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Task(NamedTuple):
    """Some rows of a batch. ``memories`` come behind it, ``forgotten`` are needed no more."""

    number: int
    request: Request
    places: dict[str, Place]
    memories: list[tuple[int, int, str]]  # number, bytes, name
    forgotten: list[int]


class Done(NamedTuple):
    """Rows by name, None for those that are in their place; or what went wrong."""

    number: int
    rows: dict[str, Any]
    error: BaseException | None


class RemoteFilling:
    """A batch that processes fill."""

    def __init__(self, request: Request, recipe: Recipe, labels: Callable[[], Any] | None) -> None:
        self.request = request
        self.arrays: dict[str, np.ndarray] = {}
        self.done: list[Done | None] = []
        self._recipe, self._labels = recipe, labels

    def result(self) -> tuple[dict[str, Any], Any]:
        """Return the arrays and the labels; raise what went wrong in the first part it did."""
        parts = [part for part in self.done if part is not None]
        for part in parts:
            if part.error is not None:
                raise part.error
        arrays: dict[str, Any] = {}
        bounds = np.cumsum([0, *_shares(len(self.request.positions), len(parts))]).tolist()
        for name in parts[0].rows:
            pieces = [part.rows[name] for part in parts]
            if all(piece is None for piece in pieces):
                arrays[name] = self.arrays[name]
                continue
            pieces = [
                self.arrays[name][bounds[n] : bounds[n + 1]] if piece is None else piece
                for n, piece in enumerate(pieces)
            ]
            arrays[name] = joined(pieces, self._recipe, self.request)
        return arrays, self._labels() if self._labels is not None else None


class InProcesses:
    """Reader processes; start them once and use them for many epochs."""

    def __init__(self, count: int, recipe: Recipe) -> None:
        try:
            described = pickle.dumps(recipe)
        except Exception as error:
            raise ValueError(
                f"processes={count} sends transform and crop to other processes, but they cannot "
                f"be pickled ({describe(error)}): define them at the top of a module"
            ) from error
        self.is_broken = False
        self._pid = os.getpid()
        self._numbers = itertools.count()  # of batches and of memory
        self._dropped: list[deque[int]] = [deque() for _ in range(count)]
        self._known: list[set[int]] = [set() for _ in range(count)]
        self._rows: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._buffers: dict[str, Buffers] = {}
        self._pending: dict[int, RemoteFilling] = {}
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._end = weakref.finalize(self, _end, self._pid, self._processes, self._pipes)
        context = multiprocessing.get_context("spawn")
        for number in range(count):
            own, theirs = context.Pipe()
            name = f"H5Loader-{number}"
            process = context.Process(target=_serve, args=(theirs, described), name=name)
            process.daemon = True
            self._pipes.append(own)
            process.start()
            # what multiprocessing knows of, it also ends at the end of a process that was forked
            # from this one by os.fork
            multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
            self._processes.append(process)
            theirs.close()

    def start(self, work: RemoteFilling) -> Callable[[], None]:
        """Send each process its part; return what waits until all are done.

        It raises LoadError where a process has ended.
        """
        request, count, number = work.request, len(self._pipes), next(self._numbers)
        shares = [share for share in _shares(len(request.positions), count) if share]
        memories = self._prepare(work)
        work.done = [None] * len(shares)
        self._pending[number] = work
        first = 0
        for n, share in enumerate(shares):
            places = {
                name: Place(
                    memory.number,
                    first * math.prod(array.shape[1:]) * array.itemsize,
                    (share, *array.shape[1:]),
                    array.dtype,
                )
                for name, (memory, array) in memories.items()
            }
            self._send(n, number, request.rows(first, first + share), places, memories)
            first += share
        return functools.partial(self._wait, work)

    def _wait(self, work: RemoteFilling) -> None:
        while any(part is None for part in work.done):
            sentinels = {process.sentinel: n for n, process in enumerate(self._processes)}
            ready = connection.wait([*self._pipes, *sentinels])
            pipes = [n for n, pipe in enumerate(self._pipes) if pipe in ready]
            for n in pipes:
                self._receive(n)
            if not pipes:
                raise self._death(sentinels[ready[0]])

    def close(self) -> None:
        self.is_broken = True
        self._end()

    def _prepare(self, work: RemoteFilling) -> dict[str, tuple[SharedMemory, np.ndarray]]:
        """Return memory for the rows of each name, as those before were."""
        prepared = {}
        for name, (shape, dtype) in self._rows.items():
            buffers = self._buffers.get(name)
            if buffers is None:
                allocate = functools.partial(_allocate, self._numbers, self._dropped)
                buffers = self._buffers[name] = Buffers(allocate)
            whole = (len(work.request.positions), *shape)
            memory = buffers.take(math.prod(whole) * dtype.itemsize)
            assert isinstance(memory, SharedMemory)
            work.arrays[name] = buffers.part(memory, whole, dtype)
            prepared[name] = memory, work.arrays[name]
        return prepared

    def _send(
        self,
        n: int,
        number: int,
        request: Request,
        places: dict[str, Place],
        memories: dict[str, tuple[SharedMemory, np.ndarray]],
    ) -> None:
        known, dropped = self._known[n], self._dropped[n]
        new = [memory for memory, _ in memories.values() if memory.number not in known]
        known.update(memory.number for memory in new)
        forgotten = [dropped.popleft() for _ in range(len(dropped))]
        names = [(m.number, len(m.bytes), "" if HAS_MEMFD else str(m.handle)) for m in new]
        task = Task(number, request, places, names, [one for one in forgotten if one in known])
        known.difference_update(forgotten)
        try:
            self._pipes[n].send(task)
            for memory in new:
                if isinstance(memory.handle, int):
                    reduction.send_handle(self._pipes[n], memory.handle, self._processes[n].pid)
        except OSError:
            raise self._death(n) from None
        except BaseException:  # Ctrl-C amid a message: what follows would not be understood
            self.close()
            raise

    def _receive(self, n: int) -> None:
        try:
            done: Done = self._pipes[n].recv()
        except (EOFError, OSError):
            raise self._death(n) from None
        except BaseException:
            self.close()
            raise
        work = self._pending[done.number]
        work.done[n] = done
        if all(part is not None for part in work.done):
            del self._pending[done.number]
        for name, rows in done.rows.items():
            if isinstance(rows, np.ndarray):
                self._rows[name] = rows.shape[1:], rows.dtype
            elif rows is not None:
                self._rows.pop(name, None)

    def _death(self, n: int) -> LoadError:
        """End all; return the error for a process that has ended."""
        process = self._processes[n]
        process.join(LONGEST_JOIN_SECONDS)
        status = process.exitcode
        self.close()
        if status is not None and status < 0:
            how = f"was ended by signal {-status} ({signal.Signals(-status).name})"
            cure = "look whether memory is short, and iterate again to start new ones"
        else:
            how = f"ended with status {status}"
            cure = (
                "see what it wrote to stderr; a script must start its loop below "
                'if __name__ == "__main__"'
            )
        return LoadError(f"a reader process of H5Loader {how}: {cure}")


def _shares(count: int, parts: int) -> list[int]:
    """Return how many rows each part has; the first ones have one more."""
    share, more = divmod(count, parts)
    return [share + (n < more) for n in range(parts)]


def _allocate(numbers: Iterator[int], dropped: list[deque[int]], nbytes: int) -> SharedMemory:
    memory = SharedMemory(next(numbers), nbytes)
    weakref.finalize(memory, _forget, memory.number, dropped)
    return memory


def _forget(number: int, dropped: list[deque[int]]) -> None:
    for numbers in dropped:
        numbers.append(number)


def _end(pid: int, processes: list[Any], pipes: list[Connection]) -> None:
    """End the processes: they do when their pipe is closed."""
    for pipe in pipes:
        pipe.close()
    if pid != os.getpid():  # they are another process's children
        return
    for process in processes:
        process.join(LONGEST_JOIN_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        process.close()


def _serve(pipe: Connection, described: bytes) -> None:
    """Fill parts of batches, in a reader process, until the pipe is closed."""
    _receive_tasks(pipe, described)
    # without the end of an interpreter, which takes a second after torch was imported
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _receive_tasks(pipe: Connection, described: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and ends this
    recipe: Recipe = pickle.loads(described)
    filler = Filler(recipe)
    memories: dict[int, np.ndarray] = {}
    answers: queue.SimpleQueue[Done] = queue.SimpleQueue()
    # a thread: while a large answer waits for the parent, this process must go on receiving
    threading.Thread(target=_answer, args=(pipe, answers), daemon=True).start()
    while True:
        try:
            task: Task = pipe.recv()
            for number, nbytes, name in task.memories:
                memories[number] = _attached(pipe, nbytes, name)
        except (EOFError, OSError):
            return
        for number in task.forgotten:
            memories.pop(number, None)
        answers.put(_done(task, recipe, filler, memories))


def _attached(pipe: Connection, nbytes: int, name: str) -> np.ndarray:
    if not name:
        descriptor = reduction.recv_handle(pipe)
        try:
            return mapped(descriptor, nbytes)
        finally:
            os.close(descriptor)
    return bytes_of(NamedMemory(name), nbytes)


def _answer(pipe: Connection, answers: queue.SimpleQueue[Done]) -> None:
    with contextlib.suppress(OSError):  # the parent has gone
        while True:
            pipe.send(answers.get())


class _Target(Buffers):
    """The place of the rows of one name; other memory for rows that do not fit it."""

    def __init__(self, place: np.ndarray | None) -> None:
        super().__init__()
        self._place = place

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        place = self._place
        if place is not None and place.shape == shape and place.dtype == dtype:
            return place
        return np.empty(shape, dtype)

    def put(self, rows: Any) -> Any:
        """Return None for rows that are in their place from now on, else the rows."""
        if not isinstance(rows, np.ndarray):
            return rows
        target = self.array(rows.shape, rows.dtype)
        if target is not self._place:
            return rows
        if rows is not target:
            target[...] = rows
        return None


def _done(task: Task, recipe: Recipe, filler: Filler, memories: dict[int, np.ndarray]) -> Done:
    targets: dict[str, _Target] = {}

    def buffers(name: str) -> _Target:
        return targets.setdefault(name, _Target(_view(task.places.get(name), memories)))

    try:
        filling = Filling(task.request, recipe, buffers=buffers, filler=filler)
        _do_parts(filling)
        arrays, _ = filling.result()
        left = {name: buffers(name).put(rows) for name, rows in arrays.items()}
        return Done(task.number, left, None)
    except BaseException as error:
        return Done(task.number, {}, _sendable(error))


def _view(place: Place | None, memories: dict[int, np.ndarray]) -> np.ndarray | None:
    if place is None:
        return None
    nbytes = math.prod(place.shape) * place.dtype.itemsize
    data = memories[place.memory][place.offset : place.offset + nbytes]
    return data.view(place.dtype).reshape(place.shape)


def _sendable(error: BaseException) -> BaseException:
    """Return an exception that comes through a pipe."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        return LoadError(describe(error))
    return error if isinstance(copy, BaseException) else LoadError(describe(error))
