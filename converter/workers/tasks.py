"""Work through the files of one task, in this process."""

from __future__ import annotations

import faulthandler
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TextIO

from converter.samples import BASE_NBYTES, Batch, Buffer, Result

MOST_FILES_IN_TASK = 1024
MOST_FILES_IN_BATCH_HERE = 256  # nobody knows how long they take: what is not written may be lost
EXIT_OF_FAULTHANDLER = 1  # dump_traceback_later(exit=True) calls _exit(1)


class Worker(Protocol):
    """Does something to samples, as `encoder.Encoder` does."""

    def encode(self, key: str, buffer: Buffer) -> Result:
        """Return what came of a sample, its payload put behind what the buffer holds."""


class Job(Protocol):
    """What workers are to do, as `encoder.Settings` says it; travels to them."""

    @property
    def file_timeout(self) -> float | None:
        """Return the seconds one sample may take."""

    def start(self) -> Worker:
        """Return what does the work, in this process."""


def run_here(start_work: Callable[[], Worker], keys: Sequence[str]) -> Iterator[Batch]:
    """Do the work in this process, without a pool."""
    worker, start = start_work(), 0
    files = min(MOST_FILES_IN_TASK, MOST_FILES_IN_BATCH_HERE)
    free: list[Buffer] = []
    while start < len(keys):
        buffer = free.pop() if free else Buffer()
        buffer.reset()
        results = work_on(worker, keys[start : start + files], buffer)
        batch = Batch(results, buffer.payload(), functools.partial(free.append, buffer))
        yield batch
        if not batch.is_held:
            batch.release()
        start += len(results)


def work_on(
    encoder: Worker,
    keys: Sequence[str],
    buffer: Buffer,
    *,
    most_nbytes: int = BASE_NBYTES,
    seconds: float | None = None,
) -> list[Result]:
    """Encode samples until an empty buffer holds ``most_nbytes``; the rest is another task.

    With ``seconds`` the process ends when one takes longer, whatever it is at.
    """
    results: list[Result] = []
    for key in keys:
        if seconds is not None:
            # its own thread, which needs no GIL, ends the process
            faulthandler.dump_traceback_later(seconds, exit=True, file=_nowhere())
        results.append(encoder.encode(key, buffer))
        if seconds is not None:
            faulthandler.cancel_dump_traceback_later()
        if buffer.used >= most_nbytes:
            break
    return results


@functools.cache
def _nowhere() -> TextIO:
    """Return where the traceback of a file that takes too long goes."""
    return open(os.devnull, "w")
