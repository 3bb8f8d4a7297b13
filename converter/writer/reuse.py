"""Take what is encoded already and read the rest, in plan order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.format.index import SOURCE
from converter.samples import Batch, Encoded, Failure, KeyList, Plan, Portions, Run
from converter.threads import Threads
from converter.writer.stored import BATCH_FILES, StoredSamples

KEYS_AT_ONCE = 4096
CHECKED_AT_ONCE = 64
NO_SOURCE = (2**64 - 1, 0)
TO_READ, FAILED = -1, -2


class Reuse:
    """For each sample of a plan: where it lies in a finished file, or that it is to be read.

    Parameters
    ----------
    plan
        What is to be stored.
    begin
        How many of its keys are stored already.
    finished
        Where samples may lie.
    """

    def __init__(self, plan: Plan, begin: int, finished: StoredSamples | None) -> None:
        self._plan, self._begin, self._finished = plan, begin, finished
        self._positions = np.full(len(plan.keys) - begin, TO_READ, np.int64)
        self._failures: dict[int, Failure] = {}
        if finished is not None and len(finished):
            self._find(finished)

    @property
    def count(self) -> int:
        """Return how many samples the finished file has to give."""
        return int((self._positions >= 0).sum())

    @property
    def payload_nbytes(self) -> int:
        """Return the bytes of their payloads."""
        if self._finished is None:
            return 0
        return int(self._finished.keys.rows["nbytes"][self._kept()].sum())

    @property
    def failures(self) -> list[Failure]:
        """Return what `is_all` has read, and failed."""
        return [self._failures[index] for index in sorted(self._failures)]

    def keys_to_read(self) -> KeyList:
        """Return what is to be read."""
        if not self._begin and not self.count and not self._failures:
            return self._plan.keys
        return self._keys(np.flatnonzero(self._positions == TO_READ))

    def check(self) -> int:
        """Compare checksums; what is damaged will be read. Return how many samples are."""
        finished = self._finished
        if finished is None:
            return 0
        damaged = 0
        for some in _blocks(np.flatnonzero(self._positions >= 0)):
            good = map_in_threads(finished.is_whole, self._positions[some].tolist())
            bad = some[~np.array(good)]
            self._positions[bad] = TO_READ
            damaged += len(bad)
        return damaged

    def is_all(self, run: Run) -> bool:
        """Tell whether the new file would hold just what the finished one does.

        To see that, what the finished one lacks is read, until a file can be read.
        """
        finished = self._finished
        if finished is None or self._begin:
            return False
        if not np.array_equal(self._kept(), range(len(finished))):
            return False
        lacking = np.flatnonzero(self._positions == TO_READ)
        for first in range(0, len(lacking), BATCH_FILES):
            some = lacking[first : first + BATCH_FILES].tolist()
            results = [result for batch in run(self._keys(some)) for result in batch.results]
            for index, result in zip(some, results, strict=True):
                if isinstance(result, Failure):
                    self._failures[index] = result
                    self._positions[index] = FAILED
            if len(self._failures) < first + len(some):
                return False
        return True

    def batches(self, run: Run) -> Iterator[Batch]:
        """Yield all samples in plan order."""
        fresh = Portions(run(self.keys_to_read()))
        for origin, begin, end in self._runs():
            if origin == TO_READ:
                yield from fresh.take(end - begin)
            elif origin == FAILED:
                failures: list[Any] = [self._failures[index] for index in range(begin, end)]
                yield Batch(failures, memoryview(b""))
            elif self._finished is not None:
                yield from self._finished.batches(self._positions[begin:end].tolist())
        fresh.finish()

    def _runs(self) -> Iterator[tuple[int, int, int]]:
        """Yield origin, begin and end of samples in a row that come from the same place."""
        origins = np.minimum(self._positions, 0)
        begin = 0
        for end in np.append(np.flatnonzero(np.diff(origins)) + 1, len(origins)):
            if begin < end:
                yield int(origins[begin]), begin, int(end)
            begin = int(end)

    def _kept(self) -> np.ndarray:
        return self._positions[self._positions >= 0]

    def _keys(self, indices: Iterable[int]) -> KeyList:
        chosen = KeyList()
        for index in indices:
            chosen.append(self._plan.keys[self._begin + int(index)].encode())
        return chosen

    def _find(self, finished: StoredSamples) -> None:
        for some in _blocks(np.arange(len(self._positions))):
            keys = [self._plan.keys[self._begin + index] for index in some.tolist()]
            sources = [source_of(self._plan, key) or NO_SOURCE for key in keys]
            self._positions[some] = finished.find_current(keys, np.array(sources, SOURCE))


def source_of(plan: Plan, key: str) -> tuple[int, int] | None:
    """Return size and time of the file of a sample; None where it cannot be had."""
    try:
        status = os.stat(plan.path(key))
    except OSError:  # it will be a failure
        return None
    return status.st_size, status.st_mtime_ns


def map_in_threads(function: Callable[[Any], bool], items: Sequence[Any]) -> list[bool]:
    """Return ``function(item)`` for each, worked out by several threads."""
    pieces = [items[n : n + CHECKED_AT_ONCE] for n in range(0, len(items), CHECKED_AT_ONCE)]
    threads = Threads()
    try:
        done = threads.map(lambda piece: [function(item) for item in piece], pieces)
    finally:
        threads.close()
    return [one for piece in done for one in piece]


def _blocks(indices: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(indices), KEYS_AT_ONCE):
        yield indices[first : first + KEYS_AT_ONCE]


@dataclass
class Changes:
    """What an update changes in a finished file, in samples stored."""

    before: StoredSamples
    added: int = 0
    changed: int = 0
    kept: int = 0

    @property
    def removed(self) -> int:
        """Return how many are no longer in it."""
        return len(self.before) - self.changed - self.kept

    def add(self, sample: Encoded) -> None:
        """Count a sample of the new file."""
        has = self.before.has(sample.key, (sample.source_nbytes, sample.source_mtime_ns))
        if has is None:
            self.added += 1
        elif has:
            self.kept += 1
        else:
            self.changed += 1

    def __str__(self) -> str:
        return (
            f"{self.added} added, {self.changed} changed, {self.removed} removed, {self.kept} kept"
        )
