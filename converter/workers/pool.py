"""Have samples worked on by a pool of processes, in plan order.

Each worker has a pipe and a few buffers of its own, and nothing is shared between workers: a
worker that dies takes nothing with it but the task it was at.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection
from typing import Any

from converter.errors import ConverterError, WorkersError, describe
from converter.samples import BASE_NBYTES, Batch, Failure
from converter.workers import launcher, tasks
from converter.workers.launcher import Launcher
from converter.workers.pool_worker import (
    BUFFERS,
    Answer,
    Ready,
    Task,
    serve,
    serve_descriptors,
    unpacked,
)
from converter.workers.shared_memory import SharedMemory
from converter.workers.tasks import Job

SECONDS_IN_TASK = 0.1
LEAST_SECONDS_IN_TASK = 0.005  # handing over a task costs about a millisecond
TASKS_AHEAD = 2  # one being worked on, one waiting: a worker need not wait for its next
DEATHS_ALONE = 2  # a file is to blame when it was alone in a worker that died this often
MOST_DEATHS_AT_START = 5


@dataclass(eq=False)
class _Task:
    keys: list[str]
    alone: bool = False
    deaths: int = 0
    worker: _Process | None = None
    buffer: int = -1
    answer: Answer | None = None


@dataclass(eq=False)
class _Process:
    process: Any
    connection: connection.Connection
    memory: list[SharedMemory] | None
    free_buffers: set[int] = field(default_factory=lambda: set(range(BUFFERS)))
    tasks: deque[_Task] = field(default_factory=deque)
    is_ready: bool = False

    @property
    def ends(self) -> set[Any]:
        """Return what to wait for: a message, or the end of the process."""
        return {self.connection, self.process.sentinel}


class Pool:
    """Worker processes that do one thing to samples; use as a context manager.

    Parameters
    ----------
    settings
        What the workers are to do.
    count
        How many processes, at most: there are no more than samples.
    launcher
        What starts them; None for a new interpreter, which ends with the pool.
    """

    def __init__(self, settings: Job, count: int, launcher: Launcher | None = None) -> None:
        self._settings = settings
        self._own_launcher = _new_launcher() if launcher is None else None
        self._launcher = launcher or self._own_launcher
        self._count = count
        self._workers: list[_Process] = []
        self._in_plan_order: deque[_Task] = deque()
        self._yielded: list[_Task] = []  # those whose buffers are not free yet
        self._released: deque[_Task] = deque()  # those of them whose buffers may be freed
        self._heard, self._released_one = connection.Pipe(duplex=False)
        self._deaths_at_start = 0
        self._seconds = SECONDS_IN_TASK / 8  # a file, as far as is known
        self._nbytes = BASE_NBYTES / 8
        self._start_workers(1)  # it is ready by the time it is known what there is to do

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers at once, whatever they are at."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
            for memory in worker.memory or ():
                memory.close()
        self._workers.clear()
        if self._own_launcher is not None:
            self._own_launcher.close()
        self._heard.close()
        self._released_one.close()

    def run(self, keys: Sequence[str]) -> Iterator[Batch]:
        """Yield the results of all keys in order. A file that kills its worker is a Failure.

        Raises WorkersError when workers cannot be started.
        """
        self._in_plan_order.clear()
        self._start_workers(min(self._count, len(keys)))
        start = 0
        while start < len(keys) or self._in_plan_order:
            self._free_released()
            start = self._dispatch(keys, start)
            head = self._in_plan_order[0] if self._in_plan_order else None
            if head is None or head.answer is None:  # without a head all buffers are held
                self._listen()
                continue
            self._in_plan_order.popleft()
            self._yielded.append(head)
            results = unpacked(head.keys, head.answer.results)
            batch = Batch(results, self._payload(head), partial(self._release, head))
            yield batch
            if not batch.is_held:
                self._free(head)

    def _release(self, task: _Task) -> None:
        """Have the buffer of a task freed, from any thread."""
        self._released.append(task)
        self._released_one.send_bytes(b"!")

    def _payload(self, task: _Task) -> memoryview:
        assert task.answer is not None
        if task.answer.payload is not None:
            return memoryview(task.answer.payload)
        assert task.worker is not None and task.worker.memory is not None
        return task.worker.memory[task.buffer].map()[: task.answer.nbytes]

    # Handing out tasks

    def _dispatch(self, keys: Sequence[str], start: int) -> int:
        """Send out tasks, earliest first, while buffers are free; return the next key's index."""
        waiting = [
            task for task in self._in_plan_order if task.worker is None and task.answer is None
        ]
        while True:
            if waiting:
                task = waiting[0]
                worker = self._worker_for(task)
                if worker is None:
                    return start
                waiting.pop(0)
            else:
                if start >= len(keys):
                    return start
                worker = self._least_busy(spare=not self._in_plan_order)
                if worker is None:
                    return start
                count = self._files_in_task(len(keys) - start)
                task = _Task(list(keys[start : start + count]))
                self._in_plan_order.append(task)
                start += count
            self._send(worker, task)

    def _worker_for(self, task: _Task) -> _Process | None:
        return self._least_busy(spare=task is self._in_plan_order[0], idle=task.alone)

    def _least_busy(self, *, spare: bool, idle: bool = False) -> _Process | None:
        """Return the worker for the next task, None while there is none.

        ``spare``: it may take the last buffer; ``idle``: it must have nothing else to do.
        """
        most = 0 if idle else TASKS_AHEAD - 1
        able = [
            worker
            for worker in self._workers
            if len(worker.free_buffers) > (0 if spare else 1)
            and len(worker.tasks) <= most
            and not any(task.alone for task in worker.tasks)
        ]
        return min(able, key=lambda worker: len(worker.tasks), default=None)

    def _files_in_task(self, left: int) -> int:
        """Size a task by what files took so far, in bytes and time; smaller near the end."""
        seconds = max(self._seconds, 1e-6)
        by_nbytes = 0.9 * BASE_NBYTES / max(self._nbytes, 1)
        by_rest = max(left / (2 * len(self._workers)), LEAST_SECONDS_IN_TASK / seconds)
        files = min(by_nbytes, SECONDS_IN_TASK / seconds, by_rest, tasks.MOST_FILES_IN_TASK)
        return max(1, int(files))

    def _send(self, worker: _Process, task: _Task) -> None:
        task.worker, task.buffer = worker, worker.free_buffers.pop()
        worker.tasks.append(task)
        try:
            worker.connection.send(Task(task.buffer, task.keys))
        except OSError:
            self._bury(worker)

    def _free_released(self) -> None:
        while self._released:  # before the pipe tells of it: asking that takes longer
            self._heard.recv_bytes()
            self._free(self._released.popleft())

    def _free(self, task: _Task) -> None:
        """Let a buffer be filled again: its payload is written, so that a crash cannot lose it."""
        self._yielded.remove(task)
        if task.worker is not None:
            task.worker.free_buffers.add(task.buffer)

    # Hearing from workers

    def _listen(self) -> None:
        """Wait until a worker answers or dies, or a buffer is released; take in what there is."""
        ends = {end for worker in self._workers for end in worker.ends}
        ready = set(connection.wait([self._heard, *ends]))
        for worker in [worker for worker in self._workers if ready & worker.ends]:
            self._hear(worker)

    def _hear(self, worker: _Process) -> None:
        """Take in what a worker has sent; if it is dead, all of it."""
        is_dead = not worker.process.is_alive()  # first: it may answer, and die then
        message = _message(worker)
        if message is not None and not is_dead:
            self._take(worker, message)
            return  # the next wait tells whether there is more
        while message is not None:
            self._take(worker, message)
            message = _message(worker)
        if is_dead or not worker.process.is_alive():
            self._bury(worker)

    def _take(self, worker: _Process, message: Answer | Ready) -> None:
        if isinstance(message, Answer):
            self._take_answer(worker, message)
        elif message.problem is not None:
            raise WorkersError(message.problem)
        else:
            worker.is_ready = True
            self._deaths_at_start = 0

    def _take_answer(self, worker: _Process, answer: Answer) -> None:
        task = worker.tasks.popleft()
        task.answer = answer
        done = len(answer.results)
        if done < len(task.keys):  # the buffer was full: the rest follows in its own task
            rest = _Task(task.keys[done:], alone=task.alone)
            self._in_plan_order.insert(self._in_plan_order.index(task) + 1, rest)
        self._learn(answer)

    def _learn(self, answer: Answer) -> None:
        files = len(answer.results)
        self._seconds += (answer.seconds / files - self._seconds) / 2
        self._nbytes += (answer.nbytes / files - self._nbytes) / 2

    # Deaths

    def _bury(self, worker: _Process) -> None:
        """Replace a dead worker; give its tasks back, the one it was at file by file."""
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        if not worker.is_ready:
            self._deaths_at_start += 1
            if self._deaths_at_start > MOST_DEATHS_AT_START:
                raise WorkersError(
                    f"worker processes die while they start ({_ending(worker.process)}): "
                    "--workers=1 works without them"
                )
        held = [
            task
            for task in (*self._yielded, *self._in_plan_order)
            if task.worker is worker and task.answer is not None
        ]
        successor = self._start_worker(worker.memory)
        successor.free_buffers -= {task.buffer for task in held}
        for task in held:
            task.worker = successor
        self._workers[self._workers.index(worker)] = successor
        for task in worker.tasks:
            task.worker = None
        if worker.tasks and worker.is_ready:
            self._suspect(worker.tasks[0], worker)

    def _suspect(self, task: _Task, worker: _Process) -> None:
        """Find the file that killed a worker: each alone, given up when it kills again."""
        if task.alone:
            task.deaths += 1
            timeout = self._settings.file_timeout
            is_late = timeout is not None and worker.process.exitcode == tasks.EXIT_OF_FAULTHANDLER
            if is_late or task.deaths >= DEATHS_ALONE:
                reason = f"reading it ended the worker process ({_ending(worker.process)})"
                if is_late:
                    reason = f"reading it took longer than {timeout:g} s (--file_timeout)"
                task.answer = Answer([Failure(task.keys[0], reason)], 0, bytearray(), 0.0)
            return
        place = self._in_plan_order.index(task)
        self._in_plan_order.remove(task)
        for number, key in enumerate(task.keys):
            self._in_plan_order.insert(place + number, _Task([key], alone=True))

    def _start_workers(self, count: int) -> None:
        """Start workers until there are ``count``."""
        with _explained_start():
            while len(self._workers) < count:
                self._workers.append(self._start_worker(_new_memory()))

    def _start_worker(self, memory: list[SharedMemory] | None) -> _Process:
        ours, theirs = connection.Pipe()
        process: Any
        if self._launcher is not None:
            descriptors = [theirs.fileno(), *(part.descriptor for part in memory or ())]
            process = self._launcher.start(serve_descriptors, (self._settings,), descriptors)
        else:  # Windows
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=serve, args=(self._settings, theirs, memory))
            process.daemon = True
            process.start()
        theirs.close()
        return _Process(process, ours, memory)


def _new_launcher() -> Launcher | None:
    return Launcher() if launcher.IS_AVAILABLE else None


@contextmanager
def _explained_start() -> Iterator[None]:
    """Say what to do where the system, or multiprocessing, starts no processes."""
    cure = "convert with workers=1 (--workers=1), which reads in this process"
    try:
        yield
    except AssertionError as error:  # of multiprocessing, on Windows
        if not multiprocessing.current_process().daemon:
            raise
        raise ConverterError(
            "this process is daemonic, and may start no worker processes: start it with "
            f"daemon=False, or {cure}"
        ) from error
    except OSError as error:
        raise WorkersError(
            f"worker processes cannot be started ({describe(error)}): {cure}"
        ) from error


def _message(worker: _Process) -> Answer | Ready | None:
    """Return what a worker has sent, None when there is nothing (more) to hear from it."""
    try:
        if worker.connection.poll():
            return worker.connection.recv()  # type: ignore[no-any-return]
    except (EOFError, OSError):  # it is dead, perhaps in the middle of a word
        worker.process.kill()
        worker.process.join()
    return None


def _new_memory() -> list[SharedMemory] | None:
    """Return buffers' worth of shared memory, or None: payloads then go through the pipe."""
    if not hasattr(os, "posix_fallocate"):
        return None
    memory: list[SharedMemory] = []
    try:
        for _ in range(BUFFERS):
            memory.append(SharedMemory())
        memory[0].grow(1)  # some systems refuse to map it
        memory[0].shrink()
    except OSError:
        for buffer in memory:
            buffer.close()
        return None
    return memory


def _ending(process: Any) -> str:
    code = process.exitcode
    if code is None or code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name if -code in iter(signal.Signals) else f"signal {-code}"
    return name + (", out of memory or killed from outside" if name == "SIGKILL" else "")
