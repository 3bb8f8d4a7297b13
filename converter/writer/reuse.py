"""Take what is encoded already and read the rest, in plan order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from converter.format.headers import structure_nbytes
from converter.format.index import SOURCE
from converter.format.superblock import SUPERBLOCK_NBYTES
from converter.samples import Batch, Encoded, Failure, KeyList, Plan, Run
from converter.threads import Threads
from converter.writer.stored import StoredSamples

KEYS_AT_ONCE = 4096
BATCH_NBYTES = 4 << 20
BATCH_FILES = 256
CHECKED_AT_ONCE = 64


class Reuse:
    """For each sample of a plan: where it lies encoded, if it does.

    Parameters
    ----------
    plan
        What is to be stored.
    files
        Where samples may lie; an earlier one goes first.
    """

    def __init__(self, plan: Plan, files: Sequence[StoredSamples]) -> None:
        self._plan = plan
        self._files = files
        self._file = np.full(len(plan.keys), -1, np.int8)
        self._position = np.full(len(plan.keys), -1, np.int64)
        self._failures: dict[int, Failure] = {}
        if any(len(file) for file in files):
            self._find()

    @property
    def count(self) -> int:
        """Return how many samples need not be read."""
        return int((self._file >= 0).sum())

    def count_in(self, file: StoredSamples) -> int:
        """Return how many lie in one file."""
        if file not in self._files:
            return 0
        return int((self._file == self._files.index(file)).sum())

    @property
    def nbytes(self) -> int:
        """Return the bytes of what need not be read."""
        return sum(self.nbytes_in(file) for file in self._files)

    def nbytes_in(self, file: StoredSamples) -> int:
        """Return the bytes of what one file has to give."""
        chosen = self._position[self._file == self._files.index(file)]
        return int(file.keys.rows["nbytes"][chosen].sum())

    @property
    def failures(self) -> list[Failure]:
        """Return what was read anew, and failed."""
        return [self._failures[place] for place in sorted(self._failures)]

    def absent_keys(self) -> KeyList:
        """Return what is to be read."""
        if not self.count:
            return self._plan.keys
        return _chosen(self._plan.keys, np.flatnonzero(self._file < 0).tolist())

    def check(self, progress: Callable[[int, int], None] = lambda nbytes, files: None) -> int:
        """Compare checksums; what is damaged will be read. Return how many that are."""
        threads = Threads()
        damaged = 0
        try:
            for number, file in enumerate(self._files):
                chosen = np.flatnonzero(self._file == number)
                for first in range(0, len(chosen), KEYS_AT_ONCE):
                    block = chosen[first : first + KEYS_AT_ONCE]
                    pieces = [
                        self._position[block[n : n + CHECKED_AT_ONCE]].tolist()
                        for n in range(0, len(block), CHECKED_AT_ONCE)
                    ]

                    def whole(piece: list[int], file: StoredSamples = file) -> list[bool]:
                        return [file.is_whole(position) for position in piece]

                    good = np.array([one for part in threads.map(whole, pieces) for one in part])
                    self._file[block[~good]] = -1
                    damaged += int((~good).sum())
                    progress(int(file.keys.rows["nbytes"][self._position[block]].sum()), len(block))
        finally:
            threads.close()
        return damaged

    def is_in_place(self, file: StoredSamples, run: Run) -> bool:
        """Tell whether all that ``file`` has to give lies where it belongs in the new file.

        Samples that seem to have failed are read again to see: `batches` will not do so.
        """
        number = self._files.index(file)
        last = np.flatnonzero(self._file == number)
        if not len(last):
            return True
        end, doubtful = SUPERBLOCK_NBYTES, []
        for place in range(int(last[-1]) + 1):
            if self._file[place] != number:
                doubtful.append(place)
                continue
            position = int(self._position[place])
            start = file.start(position)
            if start is not None and start != end:
                return False
            end += file.record_nbytes(position)
        return self._all_fail(doubtful, run)

    def is_all_of(self, file: StoredSamples, run: Run) -> bool:
        """Tell whether the new file would hold just what ``file`` does."""
        if self.count_in(file) != len(file):
            return False
        if not self.is_in_place(file, run):
            return False
        absent = [n for n in np.flatnonzero(self._file < 0).tolist() if n not in self._failures]
        return self._all_fail(absent, run)

    def batches(self, run: Run) -> Iterator[Batch]:
        """Yield all samples of the plan in order."""
        absent = [n for n in np.flatnonzero(self._file < 0).tolist() if n not in self._failures]
        if len(absent) == len(self._plan.keys):
            yield from run(self._plan.keys)
            return
        fresh = _Fresh(run(_chosen(self._plan.keys, absent)))
        begin = 0
        while begin < len(self._file):
            if begin in self._failures:
                yield Batch([self._failures[begin]], memoryview(b""))
                begin += 1
                continue
            end = self._end_of_kind(begin)
            if self._file[begin] >= 0:
                yield from self._copies(begin, end)
            else:
                yield from fresh.take(end - begin)
            begin = end
        fresh.finish()

    def _find(self) -> None:
        keys = self._plan.keys
        for first in range(0, len(keys), KEYS_AT_ONCE):
            some = keys[first : first + KEYS_AT_ONCE]
            sources = self._sources_now(some)
            block = slice(first, first + len(some))
            for number, file in enumerate(self._files):
                positions = file.find_current(some, sources)
                new = (self._file[block] < 0) & (positions >= 0)
                self._file[block][new] = number
                self._position[block][new] = positions[new]

    def _sources_now(self, keys: Sequence[str]) -> np.ndarray:
        sources = np.zeros(len(keys), SOURCE)
        for n, key in enumerate(keys):
            try:
                status = os.stat(self._plan.path(key))
            except OSError:  # it will be a failure
                sources[n] = (2**64 - 1, 0)
            else:
                sources[n] = (status.st_size, status.st_mtime_ns)
        return sources

    def _all_fail(self, places: list[int], run: Run) -> bool:
        """Read samples, a few at a time, until one can be read; keep what failed."""
        for first in range(0, len(places), BATCH_FILES):
            some = places[first : first + BATCH_FILES]
            results = (
                result for batch in run(_chosen(self._plan.keys, some)) for result in batch.results
            )
            failed = {
                place: result
                for place, result in zip(some, results, strict=True)
                if isinstance(result, Failure)
            }
            self._failures.update(failed)
            if len(failed) < len(some):
                return False
        return True

    def _end_of_kind(self, begin: int) -> int:
        """Return where samples end that come from the same place as the first."""
        end = begin + 1
        while (
            end < len(self._file)
            and self._file[end] == self._file[begin]
            and end not in self._failures
        ):
            end += 1
        return end

    def _copies(self, begin: int, end: int) -> Iterator[Batch]:
        file = self._files[int(self._file[begin])]
        return copies(file, self._position[begin:end].tolist())


def copies(file: StoredSamples, positions: Iterable[int]) -> Iterator[Batch]:
    """Yield samples of a file, a few at a time."""
    some: list[int] = []
    nbytes = 0
    for position in positions:
        some.append(position)
        nbytes += file.record_nbytes(position)
        if nbytes >= BATCH_NBYTES or len(some) >= BATCH_FILES:
            yield file.batch(some)
            some, nbytes = [], 0
    if some:
        yield file.batch(some)


class _Fresh:
    """Batches to be taken in other portions than they come in."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._rest = Batch([], memoryview(b""))

    def take(self, count: int) -> Iterator[Batch]:
        """Yield the next so many samples."""
        while count > 0:
            if not self._rest.results:
                self._rest = next(self._batches)
            if len(self._rest.results) <= count:
                batch, self._rest = self._rest, Batch([], memoryview(b""))
            else:
                batch, self._rest = _cut(self._rest, count)
            count -= len(batch.results)
            yield batch

    def finish(self) -> None:
        """Wait until all that was taken is written; raises what came of it."""
        deque(self._batches, maxlen=0)


def _cut(batch: Batch, count: int) -> tuple[Batch, Batch]:
    """Cut a batch behind its first samples."""
    nbytes = 0
    for result in batch.results[:count]:
        if isinstance(result, Encoded):
            nbytes += sum(part.nbytes for part in result.parts) + structure_nbytes(result.layout)
    return (
        Batch(batch.results[:count], batch.payload[:nbytes]),
        Batch(batch.results[count:], batch.payload[nbytes:]),
    )


def _chosen(keys: KeyList, places: Sequence[int]) -> KeyList:
    chosen = KeyList()
    for place in places:
        chosen.append(keys[place].encode())
    return chosen


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
