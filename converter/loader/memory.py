"""Keep the arrays read last, and have the memory of new ones at once."""

from __future__ import annotations

import functools
import mmap
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import ctypes
except ImportError:  # a Python that was built without it
    ctypes = None  # type: ignore[assignment]

#: The allocator of C takes larger memory than this from the system, if it has none that is free.
LEAST_NBYTES = 128 << 10
MOST_NBYTES = 4 << 20  # from here on numpy asks for large pages, which come quickly by themselves
ARRAYS_SKIPPED = 16  # without asking, after one in memory that is not new
MADV_POPULATE_WRITE = 23  # from Linux 5.14 on
Ask = Callable[[int, int], bool]  # of memory: where it begins, and its bytes


class Cache:
    """Arrays by position, for all threads of a process; what goes in and comes out is copied."""

    def __init__(self, most_nbytes: int, read: Callable[[int], np.ndarray]) -> None:
        self._most_nbytes = most_nbytes
        self._read = read
        self._start_empty()

    def read(self, position: int) -> np.ndarray:
        """Return the array at a position, from memory where it is kept."""
        if self._pid != os.getpid():
            self._start_empty()
        with self._lock:
            array = self._arrays.get(position)
            if array is not None:
                self._arrays.move_to_end(position)
        if array is not None:
            return array.copy()
        array = self._read(position)
        if array.nbytes <= self._most_nbytes:
            self._keep(position, array.copy())
        return array

    def _keep(self, position: int, array: np.ndarray) -> None:
        """Keep an array, and drop those used longest ago."""
        with self._lock:
            if position in self._arrays:
                return
            self._arrays[position] = array
            self._nbytes += array.nbytes
            while self._nbytes > self._most_nbytes:
                self._nbytes -= self._arrays.popitem(last=False)[1].nbytes

    def _start_empty(self) -> None:
        """Keep nothing yet: in a forked process another thread may have held the lock."""
        self._pid = os.getpid()
        self._arrays: OrderedDict[int, np.ndarray] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()


class NewArrays:
    """Arrays that are filled at once, one after the other.

    The system hands out new memory page by page, when each is first written: for a photo that takes
    six times as long as copying it there, and two thirds of that for all its pages at once. Where
    arrays were let go of, their memory is used again, and all its pages are there.
    """

    def __init__(self, is_new: Ask | None = None, populate: Ask | None = None) -> None:
        self._is_new, self._populate = is_new or _is_new, populate or _populate
        self._arrays_to_skip = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return an array; what it contains is arbitrary."""
        array = np.empty(shape, dtype)
        if LEAST_NBYTES <= array.nbytes < MOST_NBYTES:
            if self._arrays_to_skip > 0:
                self._arrays_to_skip -= 1
            elif not self._are_new_pages(array):
                self._arrays_to_skip = ARRAYS_SKIPPED
        return array

    def _are_new_pages(self, array: np.ndarray) -> bool:
        """Tell whether the memory is new, as its last whole page; if so, have it handed out."""
        address = array.__array_interface__["data"][0]
        begin = address - address % mmap.PAGESIZE
        end = address + array.nbytes
        end -= end % mmap.PAGESIZE
        return self._is_new(end - mmap.PAGESIZE, mmap.PAGESIZE) and self._populate(
            begin, end - begin
        )


def _is_new(begin: int, nbytes: int) -> bool:
    """Tell whether a page of memory was never written."""
    library = _library()
    if library is None:
        return False
    is_there = ctypes.create_string_buffer(1)
    return library.mincore(begin, nbytes, is_there) == 0 and is_there.raw == b"\0"


def _populate(begin: int, nbytes: int) -> bool:
    """Have the system hand out pages; what they hold stays. False where it does not know how."""
    library = _library()
    return library is not None and library.madvise(begin, nbytes, MADV_POPULATE_WRITE) == 0


@functools.cache
def _library() -> Any:
    """Return the C library of this process; None where it is not Linux's."""
    if sys.platform != "linux" or ctypes is None:
        return None
    try:
        library = ctypes.CDLL(None)
        library.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
        library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    except (OSError, AttributeError):
        return None
    return library
