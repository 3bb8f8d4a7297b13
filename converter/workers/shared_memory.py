"""Hold payloads between the worker that makes them and the writer that takes them."""

from __future__ import annotations

import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any

import numpy as np

BASE_NBYTES = 4 << 20


class Room:
    """A reusable buffer, filled from the front; grows to what it must hold."""

    def __init__(self, nbytes: int = 0) -> None:
        self.used = 0
        self._buffer = _memory(nbytes)

    def view(self, nbytes: int) -> memoryview:
        """Return the next ``nbytes`` bytes, to be written to; not yet kept."""
        if self.used + nbytes > len(self._buffer):
            self._grow(self.used + nbytes)
        return self._buffer[self.used : self.used + nbytes]

    def keep(self, nbytes: int) -> None:
        self.used += nbytes

    def payload(self) -> memoryview:
        """Return all that was kept since `reset`."""
        return self._buffer[: self.used]

    def reset(self) -> None:
        self.used = 0
        if len(self._buffer) > 2 * BASE_NBYTES:
            self._buffer = _memory(0)

    def _grow(self, nbytes: int) -> None:
        larger = _memory(_rounded(nbytes))
        larger[: self.used] = self._buffer[: self.used]
        self._buffer = larger


def _memory(nbytes: int) -> memoryview:
    """Return memory that is only taken from the system where it is written to."""
    return np.empty(nbytes, np.uint8).data


def _rounded(nbytes: int) -> int:
    """Return a size that need not grow again soon, of little memory that is never used."""
    return max(1 << 20, 1 << (nbytes - 1).bit_length() if nbytes < BASE_NBYTES else nbytes)


class SharedMemory:
    """An unnamed file in memory that processes share by its descriptor.

    Nothing is left of it when the last process is gone, however it went. It is no file in
    /dev/shm, which has 64 MB in a container or is missing: Linux counts it as ordinary
    memory. Elsewhere it is a deleted temporary file.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is not None:
            self.descriptor = descriptor
        elif hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("converter", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        self._map: mmap.mmap | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (reduction.DupFd(self.descriptor),)

    def map(self) -> memoryview:
        """Return all of it as it is now."""
        nbytes = os.fstat(self.descriptor).st_size
        if not nbytes:
            return memoryview(b"")
        if self._map is None or len(self._map) != nbytes:
            self._map = mmap.mmap(self.descriptor, nbytes)
        return memoryview(self._map)

    def grow(self, nbytes: int) -> memoryview:
        """Make it larger; raises OSError where the memory cannot be had.

        Reserved first: a page that cannot be had when it is touched kills with SIGBUS.
        """
        os.posix_fallocate(self.descriptor, 0, nbytes)
        return self.map()

    def shrink(self) -> None:
        os.ftruncate(self.descriptor, 0)

    def close(self) -> None:
        self._map = None
        os.close(self.descriptor)


def _receive(duplicate: Any) -> SharedMemory:
    return SharedMemory(duplicate.detach())


class SharedRoom(Room):
    """A room in shared memory; in private memory while no shared memory can be had."""

    def __init__(self, memory: SharedMemory) -> None:
        super().__init__()
        self._memory = memory
        self.is_shared = True

    def reset(self) -> None:
        self.used = 0
        self.is_shared = True
        self._buffer = self._memory.map()
        if len(self._buffer) > 2 * BASE_NBYTES:
            self._buffer = memoryview(b"")
            self._memory.shrink()

    def _grow(self, nbytes: int) -> None:
        if self.is_shared:
            try:
                self._buffer = self._memory.grow(_rounded(nbytes))
                return
            except OSError:
                self.is_shared = False
        super()._grow(nbytes)
