"""Put the HDF5 file together from finished payloads. Alone decides what goes where in it.

Behind the superblock the file holds, sample by sample, the payload and HDF5's structures for it,
then the groups, then the tail. The structures are made here, many at once, not by libhdf5: it
takes 30 us and 270 bytes for what takes 2 us and 90 bytes here, and it can crash on a full disk.
"""

from __future__ import annotations

import io
import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import BinaryIO

import numpy as np

from converter.codecs.filters import crc32
from converter.errors import ConverterError, WriteError
from converter.files import DISK_FULL, lock, synchronise, write_at
from converter.format import groups
from converter.format.chunk_tree import chunk_tree
from converter.format.headers import Kind, fill_headers, kind_of, structure_nbytes, template
from converter.format.index import Extent, IndexBuilder
from converter.format.layout import layout_json
from converter.format.superblock import SUPERBLOCK_NBYTES, UNDEFINED, superblock
from converter.samples import Batch, Encoded
from converter.writer import provenance
from converter.writer.journal import Head, Journal, Row
from converter.writer.paths import MARK_NBYTES, Paths
from converter.writer.resume import Prefix

OWNER_NBYTES = 16
#: System calls let other Python threads run: while one payload is written others are received.
THREADS = 2
#: Payloads that are not written yet, beyond which `Writer.write` waits.
MOST_WAITING, MOST_WAITING_NBYTES = 4, 64 << 20
SMALLEST_FOR_THREAD_NBYTES = 256 << 10  # handing it over costs as much as writing so much


class _State(Enum):
    LOCKED = auto()  # nothing is changed yet
    WRITING = auto()
    FINISHED = auto()
    TAKEN = auto()  # by another run, whose all there is now is


@dataclass(eq=False)
class _Waiting:
    """A batch that is not recorded yet."""

    batch: Batch
    rows: list[Row]
    offset: int
    is_written: bool = False


class Writer:
    """Write samples in plan order to a file that becomes ``paths.output`` when complete.

    Until then it has another name, and beside it is a journal of what is safely in it. Payloads
    are written by ``threads`` threads, and recorded in order; by the caller where that is 1.
    """

    def __init__(self, paths: Paths, *, threads: int | None = None) -> None:
        self.paths = paths
        self.payload_nbytes = 0
        self.fsync_seconds = 0.0
        self.refused_fsync: OSError | None = None  # of a disk that cannot say what it has
        self._is_locked = True
        self._owner = os.urandom(OWNER_NBYTES)  # stands behind the mark, of this run alone
        self.expected_nbytes: int | None = None
        self.recorded = 0  # samples that a next run need not read
        self._index = IndexBuilder()
        self._headers = array("Q")  # where each dataset's object header is
        self._has_chunks = False
        self._end = SUPERBLOCK_NBYTES
        self._file: io.FileIO | None = None
        self._journal: Journal | None = None
        self._state = _State.LOCKED
        count = (THREADS if threads is None else threads) if hasattr(os, "pwrite") else 1
        self._threads = ThreadPoolExecutor(count, "Writer") if count > 1 else None
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._error: OSError | None = None

    def lock(self) -> None:
        """Keep other runs away. What there is stays as it is.

        Raises ConverterError while another run writes, WriteError where nothing can be made.
        """
        try:
            self._file, self._is_locked = _open_locked(self.paths.partial)
        except OSError as error:
            raise self.explain(error) from error

    def begin(self, head: Head) -> None:
        """Begin the file anew. Raises WriteError."""
        assert self._file is not None
        mark = os.urandom(MARK_NBYTES)
        self.discard()
        try:
            write_at(self._file, memoryview(mark + self._owner), 0)
            self._journal = Journal.begin(self.paths.journal, head._replace(mark=mark.hex()))
        except OSError as error:
            raise self.explain(error) from error
        self._state = _State.WRITING

    def resume(self, prefix: Prefix) -> None:
        """Keep a part of what is in the file; its batches are written first. Raises WriteError."""
        assert self._file is not None
        try:
            self._journal = Journal.resume(self.paths.journal, prefix.rows)
            write_at(self._file, memoryview(self._owner), MARK_NBYTES)
            self._file.truncate(prefix.nbytes)
        except OSError as error:
            raise self.explain(error) from error
        self.recorded = prefix.samples
        self._state = _State.WRITING

    def __len__(self) -> int:
        return len(self._index)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the samples so far."""
        return self._end

    @property
    def is_kept(self) -> bool:
        """Tell whether a next run will find what was written: nobody has removed it."""
        try:
            status = os.stat(self.paths.partial)
        except OSError:
            return False
        if self._file is None or self._file.closed:
            return False
        is_own = os.path.samestat(status, os.fstat(self._file.fileno()))
        return is_own and self.paths.journal.exists()

    def write(self, batch: Batch) -> None:
        """Append a batch; holds it until it is in the file and recorded.

        Raises WriteError when the disk is full or fails: nothing can be written after that.
        """
        if batch.is_in_place:
            self._take_in(batch)
            return
        if not self._is_locked:
            self._check_owner()
        offset = self._end
        rows = self._complete(batch)
        batch.is_held = True
        waiting = _Waiting(batch, rows, offset)
        with self._changed:
            self._waiting.append(waiting)
        if self._threads is None or len(batch.payload) < SMALLEST_FOR_THREAD_NBYTES:
            self._write_out(waiting)
        else:
            self._threads.submit(self._write_out, waiting)
        self._wait(MOST_WAITING, MOST_WAITING_NBYTES)
        self._check()

    def _take_in(self, batch: Batch) -> None:
        """Go on behind a batch that is in its place, and recorded."""
        assert self._file is not None
        before, offset = crc32(batch.payload), self._end
        self._complete(batch)
        if crc32(batch.payload) != before:  # the disk has lost some of HDF5's structures
            try:
                write_at(self._file, batch.payload, offset)
            except OSError as error:
                raise self.explain(error) from error

    def _write_out(self, waiting: _Waiting) -> None:
        """Write a payload, in any thread; record what is written in plan order by then."""
        assert self._file is not None and self._journal is not None
        try:
            write_at(self._file, waiting.batch.payload, waiting.offset)
            with self._changed:
                waiting.is_written = True
                while self._error is None and self._waiting and self._waiting[0].is_written:
                    first = self._waiting[0]
                    self._journal.append(first.rows)
                    self._waiting.popleft()
                    self.recorded += sum(row.layout is not None for row in first.rows)
                    first.batch.release()
                self._changed.notify()
        except OSError as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify()

    def settle(self) -> None:
        """Wait until all is written and recorded, or cannot be."""
        self._wait(0, 0)

    def _wait(self, most: int, most_nbytes: int) -> None:
        def is_little() -> bool:
            nbytes = sum(len(waiting.batch.payload) for waiting in self._waiting)
            return len(self._waiting) <= most and nbytes <= most_nbytes

        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or is_little())

    def _check(self) -> None:
        if self._error is not None:
            raise self.explain(self._error) from self._error

    def finish(self, attributes: Mapping[str, str]) -> int:
        """Write groups and tail, give the file its name; return its bytes.

        ``attributes`` are those of the root group.
        """
        assert self._file is not None and self._journal is not None
        self.settle()
        self._check()
        try:
            self._check_owner()
            self._file.seek(self._end)
            buffered = io.BufferedWriter(self._file)  # it writes on after a short write
            begin = self._end
            root, extension, crc = self._write_groups(buffered, attributes)
            self._index.write(buffered, self._end, groups_begin=begin, groups_crc32=crc)
            nbytes = buffered.tell()
            buffered.flush()
            buffered.detach()
            self._file.truncate(nbytes)
            self._check_owner()
            write_at(self._file, memoryview(superblock(root, self._end, extension)), 0)
            self._synchronise(self._file.fileno())
            if os.name == "nt" or self.refused_fsync is not None:
                self._file.close()  # Windows renames no open file; elsewhere it may tell of losses
            self._rename()
            self._state = _State.FINISHED
            self._synchronise_folder()
        except OSError as error:
            raise self.explain(error) from error
        self.close()
        return nbytes

    def close(self) -> None:
        """Leave nothing behind but what a next run can resume."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        if self._file is None:
            return
        if self._journal is not None:
            self._journal.close()
        leftovers: tuple[Path, ...] = ()
        if self._state is _State.FINISHED:  # another run's file may be called partial by now
            leftovers = (self.paths.journal,)
        elif self._state is _State.TAKEN or (self._state is _State.WRITING and self.recorded):
            leftovers = ()
        elif self._state is _State.WRITING or not os.fstat(self._file.fileno()).st_size:
            leftovers = self.paths.all()
        for path in leftovers:
            with suppress(OSError):  # what ended the run matters more
                path.unlink(missing_ok=True)
        self._file.close()
        self._file = None

    def discard(self) -> None:
        """Remove what earlier runs have left."""
        assert self._file is not None
        if self._state is _State.TAKEN:
            return
        try:
            self.paths.journal.unlink(missing_ok=True)  # first: it tells of what is cut off now
            self._file.truncate(0)
        except OSError as error:
            raise self.explain(error) from error
        self.recorded = 0

    def _check_owner(self) -> None:
        """Raise WriteError where another run writes this file too: a disk may have no locks."""
        try:
            with open(self.paths.partial, "rb") as file:
                file.seek(MARK_NBYTES)
                if file.read(OWNER_NBYTES) == self._owner:
                    return
        except OSError as error:
            if not self.paths.partial.parent.is_dir() or self.paths.partial.exists():
                raise self.explain(error) from error
        self._state = _State.TAKEN
        raise WriteError(
            f"{self.paths.partial} was taken up by another run, for this disk has no locks: let "
            "one run at a time write it"
        )

    def _rename(self) -> None:
        assert self._file is not None
        try:
            os.replace(self.paths.partial, self.paths.output)
        except OSError:
            if self._file.closed:
                raise
            self._file.close()  # some network disks rename no open file
            os.replace(self.paths.partial, self.paths.output)

    def _synchronise(self, descriptor: int) -> None:
        start = time.perf_counter()
        self.refused_fsync = synchronise(descriptor)
        self.fsync_seconds += time.perf_counter() - start

    def _synchronise_folder(self) -> None:
        """Have the disk know the new name too; not all file systems can."""
        if os.name == "nt":
            return
        with suppress(OSError):
            descriptor = os.open(self.paths.output.parent, os.O_RDONLY)
            try:
                start = time.perf_counter()
                os.fsync(descriptor)
                self.fsync_seconds += time.perf_counter() - start
            finally:
                os.close(descriptor)

    def explain(self, error: OSError) -> WriteError:
        """Return the error to raise when the file system refuses."""
        expected = self.expected_nbytes
        cure = "name another place with --path_output"
        if error.errno in DISK_FULL:
            needs = f" (it needs about {expected / 1e6:,.0f} MB in all)" if expected else ""
            cure = f"free space, or name another disk with --path_output{needs}"
        return WriteError(
            f"{self.paths.output} could not be written ({error.strerror or error}): {cure}"
        )

    def _complete(self, batch: Batch) -> list[Row]:
        """Give samples their places, put HDF5's structures into the space left for them.

        Returns what is to be recorded of the batch.
        """
        samples = [result for result in batch.results if isinstance(result, Encoded)]
        rows = iter(self._place(samples, batch.payload) if samples else [])
        return [
            next(rows) if isinstance(result, Encoded) else Row(result.key)
            for result in batch.results
        ]

    def _place(self, samples: Sequence[Encoded], payload: memoryview) -> list[Row]:
        buffer = np.frombuffer(payload, np.uint8)
        known: dict[int, tuple[Kind, int, bytes]] = {}
        rows_of: dict[Kind, list[int]] = {}
        structures = []
        for row, sample in enumerate(samples):
            layout = sample.layout
            found = known.get(id(layout))
            if found is None:
                found = kind_of(layout), structure_nbytes(layout), layout_json(layout)
                known[id(layout)] = found
            rows_of.setdefault(found[0], []).append(row)
            structures.append(found[1])
        nbytes = np.array([sum([part.nbytes for part in s.parts]) for s in samples])
        ends = np.cumsum(nbytes + structures)
        starts = ends - nbytes - structures
        headers = ends.copy()
        for kind, rows in rows_of.items():
            form = template(kind)
            headers[rows] -= len(form.data)
            addresses = (self._end + starts[rows]).astype(np.uint64)
            addresses[nbytes[rows] == 0] = UNDEFINED
            layouts = [samples[row].layout for row in rows]
            shapes = np.array([one.shape for one in layouts], np.uint64)
            chunks = None
            if kind.filters:
                self._has_chunks = True
                chunks = np.array([one.chunks for one in layouts], np.uint32)
                for number, row in enumerate(rows):
                    addresses[number] = self._put_tree(samples[row], payload, int(starts[row]))
            fill_headers(
                buffer,
                form,
                places=headers[rows],
                shapes=shapes.reshape(len(rows), kind.rank),
                chunks=chunks,
                addresses=addresses,
                nbytes=nbytes[rows],
            )
        offsets = (self._end + starts).tolist()
        self._headers.extend((self._end + headers).tolist())
        self.payload_nbytes += int(nbytes.sum())
        self._end += int(ends[-1])
        recorded = []
        for sample, offset in zip(samples, offsets, strict=True):
            extents = _extents(sample, offset)
            described = known[id(sample.layout)][2]
            source = (sample.source_nbytes, sample.source_mtime_ns)
            self._index.add(sample.key.encode(), described, extents, source)
            recorded.append(Row(sample.key, described.decode(), extents, source))
        return recorded

    def _put_tree(self, sample: Encoded, payload: memoryview, start: int) -> int:
        """Put the B-tree of a dataset's chunks behind them; return its root."""
        layout = sample.layout
        assert layout.chunks is not None
        extents = _extents(sample, self._end + start)
        address = extents[-1].offset + extents[-1].nbytes
        nodes, root = chunk_tree(layout.shape, layout.chunks, extents, address)
        begin = address - self._end
        payload[begin : begin + len(nodes)] = nodes
        return root

    def _write_groups(self, file: BinaryIO, attributes: Mapping[str, str]) -> tuple[int, int, int]:
        """Write all groups, each behind those within it.

        Returns where the root's header is, and the superblock's extension if there is one, and
        the checksum of all that was written.
        """
        crc = 0

        def write(data: bytes) -> None:
            nonlocal crc
            file.write(data)
            crc = crc32(data, crc)
            self._end += len(data)

        open_folders = [groups.Links(b"")]

        def close_folder() -> None:
            folder = open_folders.pop()
            data, address = groups.group(folder.sorted(), self._end)
            open_folders[-1].add(folder.name, address)
            write(data)

        for key, address in zip(self._index.keys(), self._headers, strict=True):
            *parts, name = key.split(b"/")
            depth = _common(parts, open_folders)
            while len(open_folders) > depth + 1:
                close_folder()
            open_folders += [groups.Links(part) for part in parts[depth:]]
            open_folders[-1].add(name, address)
        while len(open_folders) > 1:
            close_folder()
        extension = UNDEFINED
        if self._has_chunks:
            extension = self._end
            write(groups.superblock_extension())
            attributes = provenance.with_chunks(attributes)
        heap, messages = groups.texts(attributes, self._end)
        write(heap)
        data, root = groups.group(open_folders[0].sorted(), self._end, messages)
        write(data)
        return root, extension, crc


def _common(parts: Sequence[bytes], open_folders: Sequence[groups.Links]) -> int:
    """Return how many of a key's folders are open already."""
    depth = 0
    for part, folder in zip(parts, open_folders[1:], strict=False):
        if part != folder.name:
            break
        depth += 1
    return depth


def _extents(sample: Encoded, offset: int) -> list[Extent]:
    extents = []
    for part in sample.parts:
        extents.append(Extent(offset, part.nbytes, part.crc32))
        offset += part.nbytes
    return extents


def _open_locked(path: Path) -> tuple[io.FileIO, bool]:
    """Open a file for writing and keep others from writing it; tell whether the disk has locks."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    file = io.FileIO(os.open(path, flags, 0o666), "r+")
    try:
        is_locked = lock(file.fileno(), exclusive=True)
    except BlockingIOError:
        file.close()
        raise _in_use(path) from None
    # Another run may have finished, and renamed this very file, while it was being opened.
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
        file.close()
        raise _in_use(path)
    return file, is_locked


def _in_use(path: Path) -> ConverterError:
    return ConverterError(f"{path} is being written by another run: wait for it, or end it")
