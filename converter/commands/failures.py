"""Keep the list of failures beside the output."""

from __future__ import annotations

import csv
import io
from contextlib import suppress
from pathlib import Path

from converter.samples import Failure
from converter.writer.paths import path_of_failures, paths_of_failures


class FailureList:
    """``OUT.h5.failures.csv``: columns path and reason, one row a failure, in plan order.

    Written under another name until `publish`, so that a run that is broken off leaves the
    list of the run before it alone.
    """

    def __init__(self, path_output: Path) -> None:
        self.path = path_of_failures(path_output)
        _, self._partial = paths_of_failures(path_output)
        self._file: io.TextIOWrapper | None = None

    def add(self, failure: Failure) -> None:
        if self._file is None:
            self._file = open(  # noqa: SIM115 (open for as long as the run)
                self._partial, "w", encoding="utf-8", errors="backslashreplace", newline=""
            )
            csv.writer(self._file).writerow(("path", "reason"))
        csv.writer(self._file).writerow(failure)

    def close(self) -> None:
        """Write what is not yet on the disk; raises OSError when it is full."""
        if self._file is not None:
            self._file.close()

    def publish(self) -> Path | None:
        """Give the list its name; without failures remove an older one. Return its path."""
        self.close()
        if self._file is None:
            self.path.unlink(missing_ok=True)
            self._partial.unlink(missing_ok=True)  # of a run that was killed
            return None
        self._partial.replace(self.path)
        return self.path

    def discard(self) -> None:
        """Leave nothing behind. Does nothing after `publish`."""
        if self._file is not None:
            with suppress(OSError):  # of a full disk: it is no longer wanted
                self._file.close()
            with suppress(OSError):  # what ended the run matters more
                self._partial.unlink(missing_ok=True)
