"""Callbacks of a long run: notices, progress, and holding off signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
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


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Hold off Ctrl-C in a program that has handlers of its own, such as a notebook.

    One that came within is raised at the end. Amid the writing it could leave a lock taken, or
    lose a piece that others wait for.
    """
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()  # only there it is raised
    if not is_main or not callable(handler):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *interrupt: held.append(interrupt))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])


class Progress(NamedTuple):
    """How far a run is."""

    total: int
    done: int
    failed: int
    nbytes: int
