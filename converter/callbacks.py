"""Callbacks of a long run: notices, progress, and holding off signals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Callbacks:
    """What the caller wants to be told, and how it holds off signals.

    Parameters
    ----------
    notice
        Called with a sentence the user should know.
    progress
        Called with how far it is, after every few files.
    without_signals
        Gives a context in which no signal handler raises: the output is being written there.
    finished
        Called within that context when the output is complete: it is too late to interrupt.
    is_fresh
        Whether no code but this package's has run in this process: workers may be forked from it.
    """

    notice: Callable[[str], None] = lambda _: None
    progress: Callable[[Progress], None] = lambda _: None
    without_signals: Callable[[], AbstractContextManager[None]] = nullcontext
    finished: Callable[[], None] = lambda: None
    is_fresh: bool = False


class Progress(NamedTuple):
    """How far a run is."""

    total: int
    done: int
    failed: int
    nbytes: int
