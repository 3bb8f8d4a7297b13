"""Hold payloads between the worker that makes them and the writer that takes them."""

from __future__ import annotations

import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any

from converter.samples import BASE_NBYTES, Buffer, rounded_nbytes


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
            return memoryview(bytearray())  # writable, as all others
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


class SharedBuffer(Buffer):
    """A buffer in shared memory; in private memory while no shared memory can be had."""

    def __init__(self, memory: SharedMemory) -> None:
        super().__init__()
        self._memory = memory
        self.is_shared = True

    def reset(self) -> None:
        self.used = 0
        self.is_shared = True
        self._buffer = self._memory.map()
        if len(self._buffer) > 2 * BASE_NBYTES:
            self._buffer = memoryview(bytearray())
            self._memory.shrink()

    def _grow(self, nbytes: int) -> None:
        if self.is_shared:
            try:
                self._buffer = self._memory.grow(rounded_nbytes(nbytes))
                return
            except OSError:
                self.is_shared = False
        super()._grow(nbytes)
