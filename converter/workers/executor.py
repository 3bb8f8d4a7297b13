"""Give out samples to a ``concurrent.futures.Executor``, of other machines perhaps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter import __version__
from converter.errors import ConverterError, StoppedError, describe
from converter.samples import Batch, Failure
from converter.workers import tasks
from converter.workers.dask import cluster_of
from converter.workers.executor_worker import FolderJob, Returned, encode_there

MOST_BYTES_AHEAD = 512 << 20
MOST_TASKS_AHEAD = 64  # or two for each thread of the executor
#: Of an answer: each costs Dask several milliseconds, so photos came 1.4 times as fast in answers
#: of 32 MiB as of 4; but all threads should have work.
LARGEST_ANSWER_NBYTES, SMALLEST_ANSWER_NBYTES = 32 << 20, 4 << 20
SMALLEST_ALLOWANCE_NBYTES = 1 << 20
FIRST_NBYTES = 512 << 10  # what is expected of files before any is known
THREADS_EXPECTED = 8
#: Dask blames all tasks of a worker that died, those too that it had not begun.
ATTEMPTS_ALONE = 3
SECONDS_IN_TASK = 0.2
SECONDS_WITHOUT_WORKERS = 60.0
LOOKS = 12  # for workers, in that time


@dataclass(eq=False)
class _Task:
    keys: list[str]
    future: Future[Returned]
    allowance: int  # bytes after which the rest is another task
    attempts: int
    is_seen: bool = False


class ExecutorRun:
    """Hands samples to an executor, and their results back in order.

    About ``most_nbytes`` are on their way at most. A task that fails as a whole, as when its worker
    dies, is given out again file by file; a file that fails alone so, three times, is a Failure.
    A cluster that has no workers for ``patience`` seconds ends the run.
    """

    def __init__(
        self,
        executor: Executor,
        job: FolderJob,
        *,
        most_nbytes: int = MOST_BYTES_AHEAD,
        patience: float = SECONDS_WITHOUT_WORKERS,
    ) -> None:
        self._executor = executor
        self._cluster = cluster_of(executor)
        if self._cluster is not None:
            self._cluster.check_versions()
        self._job = job
        self._most_nbytes = most_nbytes
        self._patience = patience
        self._in_plan_order: deque[_Task] = deque()
        self._nbytes: float = FIRST_NBYTES  # of a file, as far as is known
        self._seconds = SECONDS_IN_TASK / 8
        self._largest = 0.0  # of an answer
        threads = self._threads()
        self._most_tasks = max(MOST_TASKS_AHEAD, 2 * threads)
        fair = most_nbytes // (2 * threads)
        self._answer_nbytes = max(SMALLEST_ANSWER_NBYTES, min(fair, LARGEST_ANSWER_NBYTES))

    def run(self, keys: Sequence[str]) -> Iterator[Batch]:
        """Yield the results of all keys in order.

        Raises StoppedError when the executor can do no more work.
        """
        start = 0
        try:
            while start < len(keys) or self._in_plan_order:
                self._look_at_done()
                start = self._submit_ahead(keys, start - self._take_back())
                task = self._in_plan_order.popleft()
                answer = self._answer_of(task)
                if answer is None:
                    continue
                if not task.is_seen:
                    self._see(task, answer, 0)
                yield Batch(answer.results, answer.payload.data)
        finally:
            for task in self._in_plan_order:
                task.future.cancel()
            self._in_plan_order.clear()

    def _look_at_done(self) -> None:
        """Learn from answers that are there; give out at once what they leave over."""
        place = 0
        while place < len(self._in_plan_order):
            task = self._in_plan_order[place]
            place += 1
            if task.is_seen or not task.future.done() or task.future.cancelled():
                continue
            if task.future.exception() is None:
                self._see(task, task.future.result(), place)

    def _see(self, task: _Task, answer: Returned, place: int) -> None:
        """Learn from an answer; submit the files that are not in it, which had bytes enough."""
        task.is_seen = True
        self._learn(answer)
        done = len(answer.results)
        if done < len(task.keys) and answer.problem is None:
            self._in_plan_order.insert(place, self._submit(task.keys[done:]))
            task.keys = task.keys[:done]

    def _threads(self) -> int:
        """Return how many tasks the executor does at once, as far as can be known."""
        if self._cluster is not None:
            return max(1, self._cluster.count_threads())
        return int(getattr(self._executor, "_max_workers", None) or THREADS_EXPECTED)

    def _take_back(self) -> int:
        """Cancel what was submitted when files seemed smaller; return how many files."""
        files = 0
        while len(self._in_plan_order) > 1 and self._nbytes_ahead() > self._most_nbytes:
            if self._in_plan_order[-1].is_seen or not self._in_plan_order[-1].future.cancel():
                break
            files += len(self._in_plan_order.pop().keys)
        return files

    def _nbytes_ahead(self) -> float:
        return sum(max(task.allowance, self._largest) for task in self._in_plan_order)

    def _submit_ahead(self, keys: Sequence[str], start: int) -> int:
        while start < len(keys) and len(self._in_plan_order) < self._most_tasks:
            count = self._files_in_task(len(keys) - start)
            ahead = self._nbytes_ahead() + max(self._allowance(count), self._largest)
            if self._in_plan_order and ahead > self._most_nbytes:
                break
            self._in_plan_order.append(self._submit(list(keys[start : start + count])))
            start += count
        return start

    def _allowance(self, files: int) -> int:
        """Return the bytes these files may take: twice what is expected of them."""
        expected = int(2 * files * self._nbytes)
        return min(max(expected, SMALLEST_ALLOWANCE_NBYTES), self._answer_nbytes)

    def _files_in_task(self, left: int) -> int:
        by_nbytes = self._answer_nbytes / max(self._nbytes, 1)
        by_time = SECONDS_IN_TASK / max(self._seconds, 1e-6)
        by_rest = left / 8  # the last ones should not all be one worker's
        return max(1, int(min(by_nbytes, by_time, by_rest, tasks.MOST_FILES_IN_TASK)))

    def _submit(self, keys: list[str], attempts: int = 1) -> _Task:
        allowance = self._allowance(len(keys))
        try:
            future = self._executor.submit(encode_there, __version__, self._job, allowance, keys)
        except (BrokenExecutor, RuntimeError) as error:
            raise _broken(error) from error
        return _Task(keys, future, allowance, attempts)

    def _answer_of(self, task: _Task) -> Returned | None:
        """Wait for a task; None where its files were given out again one by one."""
        self._wait(task.future)
        try:
            answer = task.future.result()
        except (BrokenExecutor, CancelledError) as error:
            raise _broken(error) from error
        except ImportError as error:
            raise StoppedError(
                f"a worker of the executor cannot import what it needs ({error}): install the "
                f"converter {__version__} there, with the same packages"
            ) from error
        except Exception as error:  # whatever an executor makes of a dead worker
            if len(task.keys) > 1:
                self._in_plan_order.extendleft(self._submit([key]) for key in reversed(task.keys))
                return None
            if task.attempts < ATTEMPTS_ALONE:
                self._in_plan_order.appendleft(self._submit(task.keys, task.attempts + 1))
                return None
            reason = f"reading it ended the worker ({describe(error)})"
            return Returned([Failure(task.keys[0], reason)], np.empty(0, np.uint8), 0.0)
        if answer.problem is not None:
            raise StoppedError(answer.problem)
        return answer

    def _wait(self, future: Future[Returned]) -> None:
        """Wait for an answer, looking now and then if anybody is there to give it."""
        if self._cluster is not None:
            while not wait([future], timeout=self._patience / LOOKS).done:
                self._cluster.check_workers(self._patience)

    def _learn(self, answer: Returned) -> None:
        files = max(len(answer.results), 1)
        self._seconds += (answer.seconds / files - self._seconds) / 2
        self._nbytes += (answer.payload.nbytes / files - self._nbytes) / 2
        # at once larger, slowly smaller: so much may be on its way for each task
        self._largest = max(answer.payload.nbytes, self._largest * 0.98)


def _broken(error: BaseException) -> StoppedError:
    return StoppedError(f"the executor can do no more work ({describe(error)}): start it anew")


def check_executor(executor: Any) -> None:
    """Raise ConverterError for what is no executor."""
    if not callable(getattr(executor, "submit", None)):
        raise ConverterError(
            f"executor is a {type(executor).__name__}: give a concurrent.futures.Executor, such as "
            "distributed.Client(...).get_executor()"
        )
