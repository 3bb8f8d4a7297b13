"""Do one thing to many items in several threads of this process."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from converter.cores import usable_cores


class Threads:
    """Threads that start when first needed, anew in a forked process.

    ``count`` None: as many as there are cores, but one in a worker process, which has others
    beside it.
    """

    def __init__(self, count: int | None = None) -> None:
        in_worker = multiprocessing.parent_process() is not None
        self.count = (1 if in_worker else usable_cores()) if count is None else count
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Return ``function(item)`` for each, in order; raises what the first failing one did."""
        if self._pool is None or self._pool[0] != os.getpid():  # threads do not survive a fork
            self._pool = os.getpid(), ThreadPoolExecutor(self.count, "H5Folder")
        return list(self._pool[1].map(function, items))

    def close(self) -> None:
        """Let the threads of this process end."""
        pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown(wait=False)
