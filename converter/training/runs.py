"""Cut a file into runs of samples side by side, and read whole runs ahead of the training."""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from converter.files import Handle
from converter.format.index_reader import Index
from converter.loader.h5folder import H5Folder
from converter.loader.several_files import SeveralIndexes
from converter.threads import QueueThreads
from converter.training.labels import Selection, as_array, indexes_of
from converter.training.orders import Opening, Order, Runs, at_least

BLOCK_NBYTES = 8 << 20
LARGEST_GAP_NBYTES = 128 << 10  # is read too: less than what a disk reads in the time of a seek
READ_NBYTES = 1 << 20
#: Threads. One read 790 MB at 0.9 to 1.1 GB/s, four at 0.9 to 1.4, about as fast as that disk was
#: past the page cache; and while one waits for a core, the disk has work from the others. They
#: read pieces side by side, between which a spinning disk need not seek.
READERS = 4
PROBES = 8  # of each piece that is read
SLEEP_SECONDS = 0.002
NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)


class FileRuns:
    """The runs of the selected samples: about ``block_nbytes`` of them each, in stored order.

    Raises ValueError for a file without an index, which does not say where its samples lie.
    """

    def __init__(
        self, folder: H5Folder, selection: Selection, block_nbytes: int = BLOCK_NBYTES
    ) -> None:
        block_nbytes = at_least("block_nbytes", block_nbytes, 1)
        positions = as_array(selection.positions)
        files, offsets, nbytes = _extents(folder._open().source.keys, positions)
        indices = _stored_order(files, offsets)
        self._paths = folder.paths
        self._hdf5_nbytes = [
            index.hdf5_nbytes for _, index in indexes_of(folder._open().source.keys)
        ]
        self._files, self._offsets = files[indices], offsets[indices]
        self._ends = self._offsets + nbytes[indices]
        blocks = (np.cumsum(nbytes[indices]) - nbytes[indices]) // block_nbytes
        is_first = np.ones(len(indices), bool)
        is_first[1:] = (np.diff(blocks) > 0) | (np.diff(self._files) > 0)
        self.runs = Runs(np.flatnonzero(is_first), indices)

    def spans(self, run: int) -> tuple[str, list[tuple[int, int]]]:
        """Return the file of a run, and where its bytes begin and end there."""
        firsts = self.runs.firsts
        file = int(self._files[firsts[run]])
        stop = firsts[run + 1] if run + 1 < len(firsts) else len(self._offsets)
        some = slice(firsts[run], stop)
        # a damaged index may put them anywhere
        begins = self._offsets[some].clip(0, self._hdf5_nbytes[file])
        ends = np.maximum.accumulate(self._ends[some].clip(0, self._hdf5_nbytes[file]))
        gaps = np.flatnonzero(begins[1:] - ends[:-1] > LARGEST_GAP_NBYTES) + 1
        spans = zip(
            begins[np.append(0, gaps)].tolist(), ends[np.append(gaps - 1, -1)].tolist(), strict=True
        )
        return self._paths[file], list(spans)


class ReadAhead:
    """Reads the runs of an epoch into the page cache, several at once, in threads of its own.

    It brings nothing but speed: what it cannot read raises nothing here, and is read again by
    whoever needs it.
    """

    def __init__(self, order: Order, runs: FileRuns, epoch: int, start: int = 0) -> None:
        self._runs = runs
        self._openings = order.openings(epoch, start)
        self._next = next(self._openings, None)
        self._ordered: deque[Opening] = deque()
        self._count = 0
        self._progress = _Progress()
        self._readers = QueueThreads(READERS, "ReadAhead", _serve)
        self.advance(start)

    def advance(self, sample: int) -> int:
        """Order what is due when the epoch comes to a sample.

        Returns what to give `wait` before that sample is read.
        """
        while self._next is not None and self._next.due <= sample:
            self._ordered.append(self._next)
            path, spans = self._runs.spans(self._next.run)
            pieces = list(_pieces(spans))
            run = _Run(len(pieces))
            self._progress.runs.append(run)
            for offset, nbytes in pieces:
                self._readers.items.put(_Piece(run, path, offset, nbytes))
            self._next = next(self._openings, None)
        while self._ordered and self._ordered[0].needed <= sample:
            self._ordered.popleft()
            self._count += 1
        return self._count

    def wait(self, count: int) -> None:
        """Return when the first ``count`` runs have been read; at once after `close`."""
        progress, done = self._progress, self._progress.done
        while done < count and not progress.is_over:
            if done < len(progress.runs) and progress.runs[done].is_read:
                done += 1
            else:
                time.sleep(SLEEP_SECONDS)
        progress.done = done  # of several threads' any: all before it are read

    def close(self) -> None:
        """End the threads; may be called amid garbage collection, where a lock may not be taken."""
        self._progress.is_over = True
        self._readers.close()


class _Run:
    """A run that is due, in so many pieces."""

    def __init__(self, pieces: int) -> None:
        self._pieces = pieces
        self._read: list[None] = []  # one of each that was read: threads append without a lock

    @property
    def is_read(self) -> bool:
        return len(self._read) == self._pieces

    def note_piece(self) -> None:
        self._read.append(None)


class _Piece(NamedTuple):
    """What one call reads."""

    run: _Run
    path: str
    offset: int
    nbytes: int


class _Progress:
    """How far the threads are."""

    def __init__(self) -> None:
        self.runs: list[_Run] = []  # in the order they were due
        self.done = 0  # of these, all that come first
        self.is_over = False


def _serve(due: queue.SimpleQueue[_Piece | None]) -> None:
    """Read pieces until told to end."""
    target = memoryview(bytearray(READ_NBYTES))
    handles: dict[str, Handle] = {}
    while (piece := due.get()) is not None:
        run, path, offset, nbytes = piece
        # whatever it is, whoever needs the run meets it again; here somebody waits for the piece
        with contextlib.suppress(Exception):
            handle = handles.get(path) or handles.setdefault(path, Handle(path))
            if not _is_cached(handle, offset, nbytes):
                handle.read_into(target[:nbytes], offset)
        run.note_piece()


def _pieces(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield offset and size of what is read by one call."""
    for begin, end in spans:
        for offset in range(begin, end, READ_NBYTES):
            yield offset, min(READ_NBYTES, end - offset)


def _is_cached(handle: Handle, offset: int, nbytes: int) -> bool:
    """Tell whether the bytes seem to be in the page cache, from a few of them."""
    if NOWAIT is None:
        return False
    try:
        probes = [offset + nbytes * n // PROBES for n in range(PROBES)]
        return all(os.preadv(handle.fd, (bytearray(1),), n, NOWAIT) == 1 for n in probes)
    except OSError:  # not cached, or a file system that cannot tell
        return False


def _stored_order(files: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the indices in the order of file and offset."""
    steps, ahead = np.diff(files), np.diff(offsets) >= 0
    if ((steps > 0) | ((steps == 0) & ahead)).all():  # as it mostly is: sorting takes longer
        return np.arange(len(files))
    return np.lexsort((offsets, files))


def _extents(
    keys: Index | SeveralIndexes, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the file, the offset and the stored bytes of each sample."""
    files = np.zeros(len(positions), np.int64)
    offsets, nbytes = np.zeros_like(files), np.zeros_like(files)
    for number, (start, index) in enumerate(indexes_of(keys)):
        chosen = np.flatnonzero((positions >= start) & (positions < start + len(index)))
        if not len(chosen):
            continue
        if not index.hdf5_nbytes:
            raise ValueError(
                f"order='blocks' needs the index of {index.path}, which has none: add it with "
                "--verify --rebuild_index"
            )
        own = positions[chosen] - start
        rows = index.rows.take(own)
        files[chosen], nbytes[chosen] = number, rows["nbytes"]
        offsets[chosen] = rows["offset"]
        layouts = rows["layout"]
        for layout in set(layouts.tolist()):
            if index.layout(layout).is_in_parts:  # its rows say which chunks they have
                for n in np.flatnonzero(layouts == layout).tolist():
                    first = index.extents(int(own[n]))[:1]
                    offsets[chosen[n]] = first[0].offset if first else 0
    return files, offsets, nbytes
