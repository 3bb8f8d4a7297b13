"""Let no run fail because its output goes nowhere: to a closed pipe, or to a full disk."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

STDOUT, STDERR = 1, 2
SECONDS_FOR_READER = 1.0  # how long to wait for the reader of a full pipe


class _Output(io.RawIOBase):
    """Writes to a descriptor; what cannot be written is dropped, and ``is_lost`` says so."""

    def __init__(self, descriptor: int, name: str, *, is_lost: bool) -> None:
        self.name, self.mode = name, "wb"
        self.is_lost = is_lost
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            return os.write(self._descriptor, view)
        except BlockingIOError:
            with suppress(OSError, ValueError):
                if select.select([], [self._descriptor], [], SECONDS_FOR_READER)[1]:
                    return os.write(self._descriptor, view)
            self.is_lost = True
        except OSError:
            self.is_lost = True
        return view.nbytes


@contextmanager
def unfailing_streams() -> Iterator[None]:
    """Within, writing to stdout and stderr never fails, whatever characters a terminal can show."""
    before = sys.stdout, sys.stderr
    closed = open_closed_descriptors()
    out, err = _unfailing(STDOUT, sys.stdout, closed), _unfailing(STDERR, sys.stderr, closed)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        for stream in (out, err):
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def is_output_lost() -> bool:
    """Tell whether something printed to stdout within `unfailing_streams` was lost."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return True
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Output) and raw.is_lost


def open_closed_descriptors() -> set[int]:
    """Open the null device for each descriptor of 0 to 2 that is closed; return which were.

    Otherwise the next file that is opened, such as the output, would get what libraries write
    there.
    """
    closed = set()
    for descriptor in (0, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError as error:
            if error.errno == errno.EBADF:
                opened = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
                os.set_inheritable(opened, True)
                closed.add(descriptor)
    return closed


def _unfailing(descriptor: int, stream: TextIO | None, closed: set[int]) -> TextIO:
    """Return a stream to the same place; ``stream`` itself where that is not a descriptor."""
    encoding, is_lost = "utf-8", descriptor in closed
    if stream is not None:
        try:
            if stream.fileno() != descriptor and not is_lost:
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="backslashreplace")
                return stream
            stream.flush()
        except (OSError, ValueError):  # a notebook's, or one that is full already
            if not isinstance(stream, io.TextIOWrapper):
                return stream
        encoding = stream.encoding or encoding
    name = "<stdout>" if descriptor == STDOUT else "<stderr>"
    raw = _Output(descriptor, name, is_lost=is_lost)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=descriptor == STDERR or raw.isatty(),
        write_through=getattr(stream, "write_through", False),  # python -u
    )
