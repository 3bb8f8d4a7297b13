"""Write payloads one behind the other, in a few threads; large files past the page cache.

An ordinary write puts all bytes into the page cache, and taking new pages for them costs more than
anything else a large output costs. So a file that would not stay there anyway is written directly
(O_DIRECT) where it is on a disk of this machine: payloads are copied into aligned blocks of memory
that the disk takes them from. A block is written once: what is behind the last whole block waits
for the rest of it, and is written in the ordinary way if that takes long. On other disks, and where
that is refused, the system is asked to drop what was written. The bytes of the file are the same.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from converter.files import is_refusal, write_at

#: System calls let other Python threads run: while one payload is written others are received.
THREADS = 2
#: `Payloads.append` waits while more than these are not written yet. There are enough blocks that a
#: disk which is busy for a moment keeps nobody waiting.
MOST_WAITING, MOST_WAITING_NBYTES, MOST_WAITING_BLOCKS = 4, 64 << 20, 12
SMALLEST_FOR_THREAD_NBYTES = 256 << 10  # handing it over costs as much as writing so much
#: Of a direct write. The system waits for each, and a disk is faster with few long ones.
BLOCK_NBYTES = 4 << 20
#: Linux drops only what is on the disk already: the first request starts the writing.
DROPPED_NBYTES = 64 << 20
SECONDS_BETWEEN_WRITES = 1.0  # at most, while there is something to write
#: A file of up to so many bytes, or so much of the free memory, is likely to be read next.
CACHED_NBYTES, CACHED_SHARE = 1 << 30, 0.1


def is_large(nbytes: int | None, free_memory: int | None = None) -> bool:
    """Tell whether a file of so many bytes, where that is known, should not fill the page cache.

    ``free_memory`` in bytes is the system's, if not given.
    """
    if nbytes is None or nbytes <= CACHED_NBYTES:
        return False
    return nbytes > CACHED_SHARE * (_free_memory() if free_memory is None else free_memory)


@dataclass(eq=False)
class _Piece:
    """Bytes to be written at an offset, and what is called when they are."""

    data: memoryview
    offset: int
    then: list[Callable[[], None]] = field(default_factory=list)
    is_written: bool = False

    @property
    def end(self) -> int:
        return self.offset + len(self.data)

    @property
    def is_block(self) -> bool:
        """Tell whether it is a whole block of the file."""
        return not self.offset % BLOCK_NBYTES and len(self.data) == BLOCK_NBYTES


class Payloads:
    """What is appended to a file from the offset ``begin`` on.

    Parameters
    ----------
    file, begin
        An open file, and its length.
    written
        Called, from any thread but never from two at once, with an offset up to which all is in
        the file. May raise OSError.
    threads
        How many write; the caller's thread writes all if that is 1.
    is_large
        Keep what is written out of the page cache.
    """

    def __init__(
        self,
        file: io.FileIO,
        begin: int,
        written: Callable[[int], None],
        *,
        threads: int | None = None,
        is_large: bool = False,
    ) -> None:
        self.error: BaseException | None = None  # the first; nothing is written after it
        self._file, self._end, self._written = file, begin, written
        count = (THREADS if threads is None else threads) if hasattr(os, "pwrite") else 1
        self._threads = ThreadPoolExecutor(count, "Writer") if count > 1 else None
        self._direct = open_direct(file.fileno()) if is_large else None
        self._in_blocks = self._direct is not None
        self._is_refused = not self._in_blocks
        self._drops = is_large and hasattr(os, "posix_fadvise")
        self._waiting: deque[_Piece] = deque()  # in the order of the file
        self._changed = threading.Condition()
        self._block = _new_block() if self._in_blocks else memoryview(b"")  # that of `_end`
        self._spare_blocks: list[memoryview] = []
        self._handed_over = begin  # all before it is written, or among `_waiting`
        self._last_time = time.monotonic() - SECONDS_BETWEEN_WRITES
        self._dropped = begin

    def append(self, data: memoryview, release: Callable[[], None]) -> None:
        """Have bytes written behind all others; ``release`` is called when they may change.

        Waits while too much is waiting already. See ``error`` for what came of it.
        """
        if self._in_blocks:
            self._cut(data, release)
        else:
            self._end += len(data)
            self._handed_over = self._end
            self._hand_over(_Piece(data, self._end - len(data), [release]))
            self._wait(MOST_WAITING, MOST_WAITING_NBYTES)

    def settle(self) -> None:
        """Wait until all is written, or something cannot be."""
        self._flush()
        self._wait()

    def close(self) -> None:
        """Drop what is waiting, and end the threads."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None

    def _cut(self, data: memoryview, release: Callable[[], None]) -> None:
        """Copy bytes into blocks, and hand over the whole ones."""
        if not data and self._handed_over == self._end:  # failures have no bytes
            self._hand_over(_Piece(data, self._end))
        while data and self.error is None:
            front = data[: BLOCK_NBYTES - self._end % BLOCK_NBYTES]
            self._copy(front)
            data = data[len(front) :]
            if not self._end % BLOCK_NBYTES:
                self._flush()
                self._wait(MOST_WAITING_BLOCKS, MOST_WAITING_NBYTES)
        release()
        if time.monotonic() - self._last_time > SECONDS_BETWEEN_WRITES:
            self._flush()

    def _copy(self, data: memoryview) -> None:
        begin = self._end % BLOCK_NBYTES
        self._block[begin : begin + len(data)] = data
        self._end += len(data)

    def _copied(self) -> _Piece:
        """Return what is copied and not handed over yet; begin a new block behind a whole one."""
        begin, nbytes = self._handed_over % BLOCK_NBYTES, self._end - self._handed_over
        block, piece = self._block, _Piece(self._block[begin : begin + nbytes], self._handed_over)
        self._handed_over = self._end
        if not self._end % BLOCK_NBYTES:
            piece.then.append(lambda: self._spare_blocks.append(block))
            self._block = self._spare_blocks.pop() if self._spare_blocks else _new_block()
        return piece

    def _flush(self) -> None:
        """Have all written that is copied: the rest of a block follows in the ordinary way."""
        if self._handed_over < self._end:
            self._last_time = time.monotonic()
            self._hand_over(self._copied())

    def _hand_over(self, piece: _Piece) -> None:
        with self._changed:
            self._waiting.append(piece)
        if self._threads is None or len(piece.data) < SMALLEST_FOR_THREAD_NBYTES:
            self._write(piece)
        else:
            self._threads.submit(self._write, piece)

    def _wait(self, most: int = 0, most_nbytes: int = 0) -> None:
        def is_settled() -> bool:
            nbytes = sum(len(piece.data) for piece in self._waiting)
            return len(self._waiting) <= most and nbytes <= most_nbytes

        with self._changed:
            self._changed.wait_for(lambda: self.error is not None or is_settled())

    def _write(self, piece: _Piece) -> None:
        """Write a piece, in any thread; tell in the order of the file what is written by then."""
        try:
            rest = self._write_directly(piece) if piece.is_block else 0
            write_at(self._file, piece.data[rest:], piece.offset + rest)
            with self._changed:
                piece.is_written = True
                while self.error is None and self._waiting and self._waiting[0].is_written:
                    first = self._waiting[0]
                    self._written(first.end)
                    self._waiting.popleft()
                    for function in first.then:
                        function()
                    self._drop_behind(first.end)
                self._changed.notify()
        except BaseException as error:  # whatever it is: in a thread nobody else would hear of it
            with self._changed:
                self.error = self.error or error
                self._changed.notify()

    def _write_directly(self, block: _Piece) -> int:
        """Write a block past the page cache; return how many bytes of it, 0 where refused."""
        if self._direct is None or self._is_refused:
            return 0
        try:
            return os.pwrite(self._direct, block.data, block.offset)
        except OSError as error:
            if not is_refusal(error):
                raise
            self._is_refused = True
            return 0

    def _drop_behind(self, end: int) -> None:
        """Have the system write what it holds of the file, and drop what it wrote before that."""
        if not (self._drops and self._is_refused) or end - self._dropped < DROPPED_NBYTES:
            return
        begin, self._dropped = max(0, self._dropped - DROPPED_NBYTES), end
        try:
            os.posix_fadvise(self._file.fileno(), begin, end - begin, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            if not is_refusal(error):
                raise
            self._drops = False


def open_direct(descriptor: int) -> int | None:
    """Open the same file for direct writes; None where it is on no disk of this machine.

    A file server answers each direct write on its own: there ordinary writes are faster.
    """
    if not hasattr(os, "O_DIRECT") or not os.major(os.fstat(descriptor).st_dev):
        return None
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:  # the ordinary way is always there
        return None


def _new_block() -> memoryview:
    return memoryview(mmap.mmap(-1, BLOCK_NBYTES))  # direct writes ask for whole pages


def _free_memory() -> int:
    """Return the bytes that programs can have without swapping; 0 where unknown."""
    try:
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
