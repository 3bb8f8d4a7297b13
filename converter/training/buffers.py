"""Memory for the arrays of batches, which is written again only when nobody holds it."""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory as NamedMemory
from typing import Any

import numpy as np

from converter.loader.selection import stacked

HAS_MEMFD = hasattr(os, "memfd_create") and sys.platform == "linux"


class Memory:
    """Some bytes: 1-D uint8. ``is_retired`` where they must not be written again."""

    is_retired = False

    def __init__(self, nbytes: int) -> None:
        self.bytes = np.empty(nbytes, np.uint8)


class _Owner:
    """What numpy keeps as the base of an array, and of all views and tensors of it.

    So it lives as long as one of them.
    """

    __slots__ = ("__array_interface__", "__weakref__")

    def __init__(self, memory: Memory) -> None:
        self.__array_interface__ = memory.bytes.__array_interface__


class Buffers:
    """Memory for arrays of about one size, such as the images of each batch.

    An array may be taken and let go of in any thread. Nothing waits: while all memory is held,
    there is new memory for the next array. ``count`` tells how often that was.
    """

    is_pinned = False

    def __init__(self, allocate: Callable[[int], Memory] = Memory) -> None:
        self.count = 0
        self._allocate = allocate
        self._free: deque[Memory] = deque()

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return an array in memory that nobody holds; what it contains is arbitrary."""
        return self.part(self.take(math.prod(shape) * dtype.itemsize), shape, dtype)

    def take(self, nbytes: int) -> Memory:
        """Return memory of at least so many bytes; it is lost unless `part` is called for it."""
        while True:
            try:
                memory = self._free.pop()  # used last: perhaps still in the processor's cache
            except IndexError:
                self.count += 1
                return self._allocate(nbytes)
            if len(memory.bytes) >= nbytes and not memory.is_retired:
                return memory
            # too small, as will be the batches to come: larger memory takes its place

    def part(self, memory: Memory, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return the memory's first bytes as an array; call it once for what was taken.

        When the array and all views of it are gone, the memory is free again.
        """
        owner = _Owner(memory)
        # the callback runs wherever the last reference is dropped, also amid garbage collection:
        # it takes no lock
        end = weakref.finalize(owner, self._give_back, memory)
        end.atexit = False
        whole = np.asarray(owner)
        return whole[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def _give_back(self, memory: Memory) -> None:
        self._free.append(memory)

    def at_request(self) -> None:
        """Hear that the next batch is asked for; what was given back may be used from now on."""


class _PinnedMemory(Memory):
    """Memory from which a GPU can copy while Python goes on."""

    def __init__(self, nbytes: int) -> None:
        import torch

        self.bytes = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()


class PinnedBuffers(Buffers):
    """Pinned memory. A copy to the GPU may still read it when its tensor is gone already.

    What is given back is used again when the GPU has passed the place in the current stream at
    which the next batch was asked for.
    """

    is_pinned = True

    def __init__(
        self,
        allocate: Callable[[int], Memory] = _PinnedMemory,
        record: Callable[[], Callable[[], bool]] | None = None,
    ) -> None:
        super().__init__(allocate)
        self._record = record or _record_event
        self._given_back: deque[Memory] = deque()
        self._waiting: deque[tuple[Callable[[], bool], list[Memory]]] = deque()

    def _give_back(self, memory: Memory) -> None:
        self._given_back.append(memory)

    def at_request(self) -> None:
        memories = [self._given_back.popleft() for _ in range(len(self._given_back))]
        if memories:
            self._waiting.append((self._record(), memories))
        while self._waiting and self._waiting[0][0]():
            self._free.extend(self._waiting.popleft()[1])


def _record_event() -> Callable[[], bool]:
    """Return what tells whether the GPU has done all it was asked for up to now."""
    import torch

    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    query: Callable[[], bool] = event.query
    return query


class SharedMemory(Memory):
    """Memory that reader processes write: on Linux a file without a name, elsewhere one with."""

    def __init__(self, number: int, nbytes: int) -> None:
        self.number = number
        self.handle: int | str
        if HAS_MEMFD:
            descriptor = self.handle = os.memfd_create("H5Loader", os.MFD_CLOEXEC)
            weakref.finalize(self, os.close, descriptor)
            # reserved: a page that cannot be had when it is touched kills with SIGBUS
            os.posix_fallocate(descriptor, 0, max(1, nbytes))
            self.bytes = mapped(descriptor, nbytes)
        else:
            named = NamedMemory(create=True, size=max(1, nbytes))
            weakref.finalize(self, _remove, named)
            self.handle = named.name
            self.bytes = bytes_of(named, nbytes)
        _retired_at_fork().add(self)


def mapped(descriptor: int, nbytes: int) -> np.ndarray:
    """Return the bytes of a file without a name."""
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
    return np.frombuffer(mmap.mmap(descriptor, max(1, nbytes), flags), np.uint8, nbytes)


def bytes_of(named: NamedMemory, nbytes: int) -> np.ndarray:
    """Return the first bytes of memory with a name."""
    assert named.buf is not None  # only behind close()
    return np.frombuffer(named.buf, np.uint8, nbytes)


def _remove(named: NamedMemory) -> None:
    named.unlink()
    with contextlib.suppress(BufferError):  # it is unmapped with its last array
        named.close()


@functools.cache
def _retired_at_fork() -> weakref.WeakSet[SharedMemory]:
    """Return the memory that is not written again after a fork: the child may hold it, too."""
    memories: weakref.WeakSet[SharedMemory] = weakref.WeakSet()

    def retire() -> None:
        for memory in list(memories):
            memory.is_retired = True

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=retire)
    return memories


class Arrays:
    """The arrays of one batch by name, filled by several threads.

    Rows of equal shape lie in one array, made when the first of them is known. Others are kept
    one by one.
    """

    def __init__(self, count: int, buffers: Callable[[str], Buffers]) -> None:
        self._count = count
        self._buffers = buffers
        self._lock = threading.Lock()
        self._made: dict[str, tuple[np.ndarray, int]] = {}
        self._kept: dict[str, list[Any]] = {}

    def row(self, name: str, row: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return a row to be filled.

        Raises MismatchError where the batch has rows of another shape or dtype.
        """
        made = self._made.get(name)
        if made is None:
            with self._lock:
                made = self._made.get(name)
                if made is None:
                    array = self._buffers(name).array((self._count, *shape), dtype)
                    made = self._made[name] = array, row
        array, first = made
        if array.shape[1:] != shape or array.dtype != dtype:
            raise MismatchError(first, array[0], np.empty(shape, dtype))
        own: np.ndarray = array[row]
        return own

    def keep(self, name: str, row: int, array: np.ndarray) -> None:
        """Take one row that need not be like others."""
        kept = self._kept.get(name)
        if kept is None:
            kept = self._kept.setdefault(name, [None] * self._count)
        kept[row] = array

    def put(self, name: str, rows: np.ndarray | list[np.ndarray]) -> None:
        if isinstance(rows, list) or self._buffers(name).is_pinned:
            self._kept[name] = list(rows)
        else:
            self._made[name] = rows, 0

    def finished(self) -> dict[str, np.ndarray | list[np.ndarray]]:
        """Return an array for each name; a list where shapes or dtypes differ."""
        finished: dict[str, Any] = {name: array for name, (array, _) in self._made.items()}
        for name, rows in self._kept.items():
            finished[name] = stacked(rows, self._buffers(name).array)
        return finished


class MismatchError(Exception):
    """Two rows of a batch that cannot lie in one array."""

    def __init__(self, other_row: int, other: np.ndarray, own: np.ndarray) -> None:
        super().__init__(other_row)
        self.other_row = other_row
        self.other, self.own = (other.shape, other.dtype), (own.shape, own.dtype)
