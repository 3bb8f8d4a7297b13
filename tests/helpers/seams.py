"""Have the converter behave as elsewhere: with other packages, or with few files to a task."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest

from converter.workers import once, tasks
from converter.writer import provenance


def pretend_installed(patch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Have these versions of packages recorded, and no others."""
    patch.setattr(provenance, "installed_versions", lambda _: versions)


def pretend_free(patch: pytest.MonkeyPatch, nbytes: int) -> None:
    """Have disks with so many free bytes."""
    usage = namedtuple("usage", "total used free")
    patch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12 - nbytes, nbytes))


def pretend_cached(
    patch: pytest.MonkeyPatch, answer: bool | Callable[[int], bool]
) -> list[tuple[int, int]]:
    """Have the system say that bytes are, or are not, in the page cache; perhaps by their offset.

    Return a list that fills with the offset and size of each read by a system call.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        pytest.skip("the system cannot say what is cached")
    preadv, reads = os.preadv, []

    def answering(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if not flags:
            reads.append((offset, sum(memoryview(one).nbytes for one in buffers)))
            return preadv(descriptor, buffers, offset)
        if answer(offset) if callable(answer) else answer:
            return 1
        raise BlockingIOError

    patch.setattr(os, "preadv", answering)
    return reads


def make_tasks_small(patch: pytest.MonkeyPatch, files: int) -> None:
    """Record after so few files."""
    patch.setattr(tasks, "MOST_FILES_IN_TASK", files)


def forget_estimate(patch: pytest.MonkeyPatch) -> None:
    """Read the files again that the estimate has read, as those behind them are read."""
    patch.setattr(once, "MOST_NBYTES", 0)
    patch.setattr(once, "FEWEST_KEPT", 0)
