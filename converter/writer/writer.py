"""Write OUT.h5: alone decides what happens to the disk, in which order.

Payloads are written as they come, by a few threads, and recorded in the journal in plan order
when they are in the file. Groups, index and superblock come last; then the file gets its name.
"""

from __future__ import annotations

import io
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path

from converter.errors import ConverterError, WriteError
from converter.files import DISK_FULL, lock, synchronise, write_at
from converter.samples import Batch
from converter.writer.journal import Head, Journal, Rows
from converter.writer.paths import MARK_NBYTES, Paths
from converter.writer.payloads import Payloads, is_large
from converter.writer.resume import Prefix
from converter.writer.structures import Structures

OWNER_NBYTES = 16


class _State(Enum):
    LOCKED = auto()  # nothing is changed yet
    WRITING = auto()
    FINISHED = auto()
    TAKEN = auto()  # another run writes the file now


class Writer:
    """Write samples in plan order to a file that becomes ``paths.output`` when complete.

    ``threads`` threads write large payloads; the caller's thread writes all if that is 1.
    """

    def __init__(self, paths: Paths, *, threads: int | None = None) -> None:
        self.paths = paths
        self.fsync_seconds = 0.0
        self.refused_fsync: OSError | None = None  # of a disk that cannot say what it has
        self._is_locked = True
        self._owner = os.urandom(OWNER_NBYTES)  # stands behind the mark, of this run alone
        self.expected_nbytes: int | None = None
        self.recorded = 0  # samples that a next run need not read
        self.recorded_nbytes = 0  # of the file, with these samples
        self._structures = Structures()
        self._file: io.FileIO | None = None
        self._identity: os.stat_result | None = None  # of the file, open or closed to be renamed
        self._journal: Journal | None = None
        self._is_resumable = True
        self._state = _State.LOCKED
        self._threads = threads
        self._payloads: Payloads | None = None
        self._unrecorded: deque[tuple[int, Rows]] = deque()  # with the end of each batch

    def lock(self) -> None:
        """Keep other runs away. What is there stays as it is.

        Raises ConverterError while another run writes, WriteError where no file can be made.
        """
        with self._explaining():
            self._file, self._is_locked = _open_locked(self.paths.partial)
            self._identity = os.fstat(self._file.fileno())

    def begin(self, head: Head, *, is_resumable: bool = True) -> None:
        """Start over with an empty file, of which the journal tells. Raises WriteError."""
        assert self._file is not None
        mark = os.urandom(MARK_NBYTES)
        self.discard()
        with self._explaining():
            write_at(self._file, memoryview(mark + self._owner), 0)
            self._journal = Journal.begin(self.paths.journal, head._replace(mark=mark.hex()))
        self._is_resumable = is_resumable
        self._start(self.nbytes)

    def resume(self, prefix: Prefix, structures: Structures) -> None:
        """Cut file and journal behind a prefix, whose batches come first. Raises WriteError."""
        assert self._file is not None
        with self._explaining():
            self._journal = Journal.resume(self.paths.journal, prefix.rows)
            write_at(self._file, memoryview(self._owner), MARK_NBYTES)
            self._file.truncate(prefix.nbytes)
        self.recorded, self._structures = prefix.samples, structures
        self.recorded_nbytes = prefix.nbytes
        self._start(prefix.nbytes)

    def _start(self, begin: int) -> None:
        assert self._file is not None
        self._payloads = Payloads(
            self._file,
            begin,
            self._record,
            threads=self._threads,
            is_large=is_large(self.expected_nbytes),
        )
        self._state = _State.WRITING

    def __len__(self) -> int:
        return len(self._structures)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the samples so far."""
        return self._structures.end

    @property
    def is_kept(self) -> bool:
        """Tell whether the next run will find what was written: nobody has removed it."""
        try:
            status = os.stat(self.paths.partial)
        except OSError:
            return False
        is_own = self._identity is not None and os.path.samestat(status, self._identity)
        return is_own and self.paths.journal.exists()

    def write(self, batch: Batch) -> None:
        """Append a batch, and hold it until it is in the file and recorded.

        Raises WriteError when the disk is full or fails: nothing can be written after that.
        """
        assert self._file is not None and self._payloads is not None
        if batch.is_in_place:
            return
        if not self._is_locked:
            self._check_owner()
        rows = self._structures.add(batch)
        batch.is_held = True
        self._unrecorded.append((self._structures.end, rows))
        self._payloads.append(batch.payload, batch.release)
        self._raise_error()

    def _record(self, end: int) -> None:
        """Record the batches that end at or before an offset, in plan order."""
        assert self._journal is not None
        while self._unrecorded and self._unrecorded[0][0] <= end:
            nbytes, rows = self._unrecorded[0]
            if self._is_resumable:
                self._journal.append(rows)
            self._unrecorded.popleft()
            self.recorded += sum(len(row) > 1 for row in rows.content)
            self.recorded_nbytes = nbytes

    def settle(self) -> None:
        """Wait until all batches are recorded, or one cannot be written."""
        if self._payloads is not None:
            self._payloads.settle()

    def _raise_error(self) -> None:
        assert self._payloads is not None
        with self._explaining():
            if self._payloads.error is not None:
                raise self._payloads.error

    def finish(self, attributes: Mapping[str, str]) -> int:
        """Write groups and index, give the file its name; return its bytes.

        ``attributes`` are those of the root group.
        """
        assert self._file is not None
        self.settle()
        self._raise_error()
        with self._explaining():
            self._check_owner()
            self._file.seek(self.nbytes)
            buffered = io.BufferedWriter(self._file)  # it writes on after a short write
            superblock = self._structures.write(buffered, attributes)
            nbytes = buffered.tell()
            buffered.flush()
            buffered.detach()
            self._file.truncate(nbytes)
            self._check_owner()
            write_at(self._file, memoryview(superblock), 0)
            self._synchronise(self._file.fileno())
            if os.name == "nt" or self.refused_fsync is not None:
                self._file.close()  # Windows renames no open file; elsewhere it may tell of losses
            self._rename()
            self._state = _State.FINISHED
            self._synchronise_folder()
        self.close()
        return nbytes

    def close(self) -> None:
        """Leave nothing behind but what the next run can resume."""
        if self._payloads is not None:
            self._payloads.close()
        if self._file is None:
            return
        if self._journal is not None:
            self._journal.close()
        if self._state is _State.FINISHED:  # another run's file may be called partial by now
            leftovers: tuple[Path, ...] = (self.paths.journal,)
        elif self._state is _State.TAKEN or self._can_be_resumed():
            leftovers = ()
        else:
            leftovers = self.paths.all()
        for path in leftovers:
            with suppress(OSError):  # what ended the run matters more
                path.unlink(missing_ok=True)
        self._file.close()
        self._file = None

    def _can_be_resumed(self) -> bool:
        assert self._file is not None
        if self._state is _State.LOCKED:  # then what is there is an earlier run's
            return os.fstat(self._file.fileno()).st_size > 0
        return self.recorded > 0

    def discard(self) -> None:
        """Remove what earlier runs have left. Raises WriteError."""
        assert self._file is not None
        if self._state is _State.TAKEN:
            return
        with self._explaining():
            self.paths.journal.unlink(missing_ok=True)  # first: it tells of what is cut off now
            self._file.truncate(0)
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

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.explain(error) from error

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
