"""Encode samples in a worker of an executor, which may be another machine's."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from converter import __version__
from converter.errors import ConverterError
from converter.samples import Buffer, Result
from converter.workers.tasks import Job, Worker, work_on

ENCODERS_KEPT = 4
_of_thread = threading.local()  # some workers have several threads


class FolderJob(Job, Protocol):
    """A job on the files of a folder, which all machines see under the same path."""

    @property
    def root(self) -> str:
        """Return the path of the folder."""


class Returned(NamedTuple):
    """What comes back of a task; ``problem`` where a worker cannot do any."""

    results: list[Result]
    payload: np.ndarray
    seconds: float
    problem: str | None = None


def encode_there(version: str, job: FolderJob, allowance: int, keys: Sequence[str]) -> Returned:
    """Encode samples until they take ``allowance`` bytes: in the executor's worker."""
    start = time.perf_counter()
    try:
        _check(version, job)
        worker = _worker(job)
    except ConverterError as error:
        return Returned([], np.empty(0, np.uint8), 0.0, str(error))
    buffer = Buffer(2 * allowance)
    results = work_on(worker, keys, buffer, most_nbytes=allowance)
    payload = np.frombuffer(buffer.payload(), np.uint8)
    return Returned(results, payload, time.perf_counter() - start)


def _check(version: str, job: FolderJob) -> None:
    """Raise ConverterError where this worker cannot do the job."""
    if version != __version__:
        raise ConverterError(
            f"a worker has version {__version__} of the converter, and this is {version}: install "
            "the same on all"
        )
    if not os.path.isdir(job.root):
        raise ConverterError(
            f"a worker on {os.uname().nodename if hasattr(os, 'uname') else 'another machine'} "
            f"sees no folder {job.root}: all workers must see it under that path"
        )


def _worker(job: FolderJob) -> Worker:
    """Return this thread's worker: making one reads my_functions.py anew."""
    made: dict[FolderJob, Worker] = _of_thread.__dict__.setdefault("made", {})
    if job not in made:
        if len(made) >= ENCODERS_KEPT:
            made.clear()
        made[job] = job.start()
    return made[job]
