"""Copy the samples that an older file holds as they are now, read the rest, in plan order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.format.index import SOURCE
from converter.samples import Batch, Encoded, Failure, KeyList, Plan, Portions, Run
from converter.writer.stored import StoredSamples

KEYS_AT_ONCE = 4096
FAILURES_AT_ONCE = 256
NO_SOURCE = (2**64 - 1, 0)
TO_READ, FAILED = -1, -2


class Reuse:
    """Where each sample of a plan comes from: an older file, or its source file.

    Parameters
    ----------
    plan
        What is to be stored.
    begin
        How many of its keys are stored already.
    finished
        The older file, if there is one.
    """

    def __init__(self, plan: Plan, begin: int, finished: StoredSamples | None) -> None:
        self._plan, self._begin, self._finished = plan, begin, finished
        #: Of each key from `begin` on: the position in the older file, `TO_READ` or `FAILED`.
        self._positions = np.full(len(plan.keys) - begin, TO_READ, np.int64)
        self._failures: dict[str, Failure] = {}
        if finished is None or not len(finished):
            return
        for some in _blocks(np.arange(len(self._positions))):
            keys = [self._key(index) for index in some.tolist()]
            sources = [source_of(plan, key) or NO_SOURCE for key in keys]
            self._positions[some] = finished.find_current(keys, np.array(sources, SOURCE))

    @property
    def count(self) -> int:
        """Return how many samples are copied."""
        return len(self._copied())

    @property
    def payload_nbytes(self) -> int:
        """Return the bytes of their payloads."""
        if self._finished is None:
            return 0
        return int(self._finished.keys.rows["nbytes"][self._copied()].sum())

    @property
    def failures(self) -> list[Failure]:
        """Return the files that `is_all` has read and that failed."""
        return list(self._failures.values())

    def keys_to_read(self) -> KeyList:
        """Return the keys of the files to read."""
        indices = np.flatnonzero(self._positions == TO_READ)
        if len(indices) == len(self._plan.keys):
            return self._plan.keys
        keys = KeyList()
        for index in indices:
            keys.append(self._key(int(index)).encode())
        return keys

    def is_all(self, run: Run) -> bool:
        """Tell whether the new file would hold just what the older one does.

        To find out, the files that the older one lacks are read until one does not fail, and then
        what it holds until something is damaged.
        """
        if self._finished is None or self._begin:
            return False
        if not np.array_equal(self._copied(), range(len(self._finished))):
            return False
        keys = self.keys_to_read()
        self._failures = failures_of(run, keys)
        for index in np.flatnonzero(self._positions == TO_READ):
            if self._key(int(index)) in self._failures:
                self._positions[index] = FAILED
        if len(self._failures) < len(keys):
            return False
        return not any(read.damaged for read in self._finished.read(self._copied()))

    def batches(self, run: Run, run_again: Run, notice: Callable[[str], None]) -> Iterator[Batch]:
        """Yield all samples in plan order.

        What is found to be damaged is read by ``run_again``, while ``run`` is at work; at the end
        ``notice`` is told how many there were.
        """
        damaged: list[str] = []
        fresh, kept = Portions(run(self.keys_to_read())), Portions(self._kept(run_again, damaged))
        for origin, begin, end in self._stretches():
            if origin == FAILED:
                failures: list[Any] = [self._failures[self._key(n)] for n in range(begin, end)]
                yield Batch(failures, memoryview(b""))
            elif origin == TO_READ:
                yield from fresh.take(end - begin)
            else:
                yield from kept.take(end - begin)
        fresh.finish()
        kept.finish()
        if self._finished is not None and damaged:
            notice(
                f"{len(damaged)} of the files kept were damaged in {self._finished.path}: they "
                "were read again"
            )

    def _kept(self, run: Run, damaged: list[str]) -> Iterator[Batch]:
        """Yield what is copied; of what is damaged, and put on a list, the source is read."""
        for read in () if self._finished is None else self._finished.read(self._copied()):
            if not read.damaged:
                yield read.batch
                continue
            results, done = read.batch.results, 0
            keys = [results[number].key for number in read.damaged]
            damaged += keys
            whole, instead = Portions(iter([read.batch])), Portions(run(keys))
            for number in read.damaged:
                yield from whole.take(number - done)
                deque(whole.take(1), maxlen=0)  # passed over
                yield from instead.take(1)
                done = number + 1
            yield from whole.take(len(results) - done)
            instead.finish()

    def _stretches(self) -> Iterator[tuple[int, int, int]]:
        """Yield origin, begin and end of samples in a row that come from one origin."""
        origins = np.minimum(self._positions, 0)
        begin = 0
        for end in np.append(np.flatnonzero(np.diff(origins)) + 1, len(origins)).tolist():
            if begin < end:
                yield int(origins[begin]), begin, end
            begin = end

    def _copied(self) -> np.ndarray:
        return self._positions[self._positions >= 0]

    def _key(self, index: int) -> str:
        return self._plan.keys[self._begin + index]


def source_of(plan: Plan, key: str) -> tuple[int, int] | None:
    """Return size and time of the file of a sample; None where the system does not tell."""
    try:
        status = os.stat(plan.path(key))
    except OSError:  # reading it will fail
        return None
    return status.st_size, status.st_mtime_ns


def failures_of(run: Run, keys: Sequence[str]) -> dict[str, Failure]:
    """Read files until one does not fail; return the failures so far by key, in order."""
    failures: dict[str, Failure] = {}
    for first in range(0, len(keys), FAILURES_AT_ONCE):
        some = KeyList()
        for key in keys[first : first + FAILURES_AT_ONCE]:
            some.append(key.encode())
        for batch in run(some):
            failures |= {one.key: one for one in batch.results if isinstance(one, Failure)}
        if len(failures) < first + len(some):
            break
    return failures


def have_common_keys(plan: Plan, finished: StoredSamples) -> bool:
    """Tell whether a file holds one of the keys of a plan, at least."""
    return any(
        (finished.keys.find_all(plan.keys[first : first + KEYS_AT_ONCE]) >= 0).any()
        for first in range(0, len(plan.keys), KEYS_AT_ONCE)
    )


def _blocks(indices: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(indices), KEYS_AT_ONCE):
        yield indices[first : first + KEYS_AT_ONCE]


@dataclass
class Changes:
    """How many samples an update adds, changes, removes and keeps."""

    before: StoredSamples
    added: int = 0
    changed: int = 0
    kept: int = 0

    @property
    def removed(self) -> int:
        """Return how many the new file lacks."""
        return len(self.before) - self.changed - self.kept

    def add(self, sample: Encoded) -> None:
        """Count a sample of the new file."""
        is_current = self.before.has(sample.key, sample.source)
        if is_current is None:
            self.added += 1
        elif is_current:
            self.kept += 1
        else:
            self.changed += 1

    def __str__(self) -> str:
        return (
            f"{self.added} added, {self.changed} changed, {self.removed} removed, {self.kept} kept"
        )
