"""Show how far a run is: a bar on a terminal, elsewhere a line every 30 seconds."""

from __future__ import annotations

import sys
import time
from typing import Any

from converter.callbacks import Progress

SECONDS_BETWEEN_LINES = 30.0


class ProgressBar:
    """Shows `Progress` as it grows; use as a context manager."""

    def __init__(self, *, quiet: bool, seconds: float = SECONDS_BETWEEN_LINES) -> None:
        self._stream = sys.stderr
        self._quiet, self._seconds = quiet, seconds
        self._bar: Any = None
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: Progress) -> None:
        """Show it: on a terminal at once, elsewhere after so many seconds."""
        if self._quiet:
            return
        if self._stream.isatty():
            self._show_bar(progress)
        elif time.monotonic() - self._last_line >= self._seconds:
            self._last_line = time.monotonic()
            print(_line(progress, self._last_line - self._start), file=self._stream)

    def _show_bar(self, progress: Progress) -> None:
        if self._bar is None:
            from tqdm import tqdm  # 50 ms that only a terminal needs

            self._bar = tqdm(
                total=progress.total,
                unit=" files",
                file=self._stream,
                dynamic_ncols=True,
                leave=False,
            )
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = f"{progress.nbytes / 1e6 / seconds:.0f} MB/s"
        self._bar.set_postfix_str(f"{rate}, {progress.failed} failed", refresh=False)
        self._bar.update(progress.done - self._bar.n)


def _line(progress: Progress, seconds: float) -> str:
    rate = progress.done / seconds
    left = (progress.total - progress.done) / rate if rate else 0.0
    return (
        f"converter: {progress.done} of {progress.total} files, {rate:.0f} files/s, "
        f"{progress.nbytes / 1e6 / seconds:.0f} MB/s, {left:.0f} s left, "
        f"{progress.failed} failed"
    )
