"""Keep the arrays read last, up to a number of bytes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

import numpy as np


class Cache:
    """Arrays by position, for all threads of a process; what goes in and comes out is copied."""

    def __init__(self, most_nbytes: int) -> None:
        self._most_nbytes = most_nbytes
        self._forget()

    def get(self, position: int) -> np.ndarray | None:
        """Return a copy of a kept array."""
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            array = self._arrays.get(position)
            if array is None:
                return None
            self._arrays.move_to_end(position)
        return array.copy()

    def put(self, position: int, array: np.ndarray) -> None:
        """Keep a copy, and let go of those used longest ago."""
        if array.nbytes > self._most_nbytes:
            return
        array = array.copy()
        with self._lock:
            if position in self._arrays:
                return
            self._arrays[position] = array
            self._nbytes += array.nbytes
            while self._nbytes > self._most_nbytes:
                self._nbytes -= self._arrays.popitem(last=False)[1].nbytes

    def _forget(self) -> None:
        """Start empty: in a forked process another's thread may have held the lock."""
        self._pid = os.getpid()
        self._arrays: OrderedDict[int, np.ndarray] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()
