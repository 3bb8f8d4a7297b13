"""Read files from front to back, many samples at once; large ones past the page cache.

What is read of a large file leaves in the page cache what was there before.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from converter.files import Handle
from converter.writer.payloads import is_large

UNCACHED = 0x80  # RWF_DONTCACHE, which Python does not name
FIRST_LINUX_WITH_UNCACHED = (6, 16)  # 6.14 has it, and may lose pages of a file that is written
SMALLEST_NBYTES = 256 << 10  # for less, other programs' pages are not in danger
STRUCTURES_NBYTES = 4 << 10  # behind a payload, mostly far fewer
#: From LARGE_NBYTES on so much is read at once, and a block of smaller samples: what is read
#: beyond the last sample of a worker's task is wasted.
LARGE_NBYTES, MOST_NBYTES, BLOCK_NBYTES = 64 << 10, 4 << 20, 1 << 20
#: Fills memory from an offset on. Raises LoadError where the file ends before.
Reader = Callable[[memoryview, int], None]


def knows_uncached(system: str = sys.platform, release: str | None = None) -> bool:
    """Tell whether this system's uncached reads are safe."""
    if system != "linux" or not hasattr(os, "preadv"):
        return False
    version = re.match(r"(\d+)\.(\d+)", os.uname().release if release is None else release)
    return version is not None and tuple(map(int, version.groups())) >= FIRST_LINUX_WITH_UNCACHED


def reader_of(handle: Handle, nbytes: int | None = None) -> Reader:
    """Return what reads a file best. ``nbytes`` is that of all files, if several are read."""
    is_past = is_large(handle.nbytes if nbytes is None else nbytes) and knows_uncached()
    return partial(_read_past, handle) if is_past else handle.read_into


def _read_past(handle: Handle, target: memoryview, offset: int) -> None:
    nbytes = 0
    if len(target) >= SMALLEST_NBYTES:
        with suppress(NotImplementedError, OSError):  # what could not be read is read again
            nbytes = os.preadv(handle.fd, [target], offset, UNCACHED)
    Handle.read_into(handle, target[nbytes:], offset + nbytes)


class Window(Handle):
    """A file of which the part that was read last stays in memory, for h5py and the index.

    It goes from sample to sample, past the page cache where the file is large.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._begin, self._content = 0, memoryview(b"")
        self._memory = memoryview(b"")
        self._read = reader_of(self)

    def fetch(self, nbytes: int, offset: int) -> memoryview:
        """Return bytes, to be looked at before the next are fetched."""
        if not self._holds(nbytes, offset):
            self._begin, self._content = offset, memoryview(b"")
            each = nbytes + STRUCTURES_NBYTES  # the next will be as large
            most = MOST_NBYTES if nbytes >= LARGE_NBYTES else BLOCK_NBYTES
            length = min(max(1, most // each) * each, self.nbytes - offset)
            if not length <= len(self._memory) <= max(length, 2 * MOST_NBYTES):
                self._memory = memoryview(bytearray(length))
            self._read(self._memory[:length], offset)
            self._content = self._memory[:length]
        return self._content[offset - self._begin :][:nbytes]

    def read_into(self, target: Any, offset: int) -> None:
        """Fill a buffer; see `Handle.read_into`."""
        view = memoryview(target).cast("B")
        if self._holds(view.nbytes, offset):
            view[:] = self.fetch(view.nbytes, offset)
        else:
            super().read_into(view, offset)

    def reopened(self) -> io.RawIOBase:  # type: ignore[override]
        """Return the file as HDF5 reads it; see `Handle.reopened`."""
        return _File(self)

    def _holds(self, nbytes: int, offset: int) -> bool:
        begin = offset - self._begin
        return begin >= 0 and begin + nbytes <= len(self._content)


class _File(io.RawIOBase):
    """A window with a file position, as h5py wants a file."""

    def __init__(self, window: Window) -> None:
        self._window, self._offset = window, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begins = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._window.nbytes}
        self._offset = begins[whence] + offset
        return self._offset

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        view = view[: max(0, self._window.nbytes - self._offset)]
        self._window.read_into(view, self._offset)
        self._offset += view.nbytes
        return view.nbytes
