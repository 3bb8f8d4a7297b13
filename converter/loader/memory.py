"""Keep the arrays read last, up to a number of bytes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np


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
