"""Memory for batches, which is written again only when nobody holds it."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np


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
