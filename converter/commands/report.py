"""Count what a command did, and list what failed."""

from __future__ import annotations

import csv
import functools
import io
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from converter.callbacks import Progress
from converter.files import Spare
from converter.samples import Encoded, Failure, Note
from converter.writer.paths import path_of_failures, paths_of_failures
from converter.writer.reuse import Changes

FAILURES_SHOWN = 10
NO_NOTE = Note.NONE  # looked up once: before Python 3.12 an enum takes long


@dataclass
class Counts:
    """What a command has done, of how many files; grows while it runs."""

    total: int = 0
    done: int = 0
    failed: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    first_failures: list[Failure] = field(default_factory=list)

    @property
    def progress(self) -> Progress:
        """Return how far it is."""
        return Progress(self.total, self.done + self.failed, self.failed, self.nbytes)

    def add_failure(self, failure: Failure) -> None:
        self.failed += 1
        if len(self.first_failures) < FAILURES_SHOWN:
            self.first_failures.append(failure)


@dataclass
class Report(Counts):
    """What a conversion or a merge has done; ``nbytes`` are those of the payloads."""

    path_output: Path = Path()
    source_nbytes: int = 0
    output_nbytes: int = 0
    fsync_seconds: float = 0.0
    refused_fsync: OSError | None = None  # of a disk that cannot tell when it has all
    is_unchanged: bool = False
    changes: Changes | None = None
    notes: Counter[Note] = field(default_factory=Counter)  # files for each thing noted
    first_noted: dict[Note, str] = field(default_factory=dict)  # the key of the first of them
    left_out: Counter[str] = field(default_factory=Counter)
    linked_folders: int = 0
    hidden_folders: Counter[str] = field(default_factory=Counter)  # not entered, by name
    path_failures: Path | None = None

    @property
    def stored(self) -> int:
        """Return how many files are stored."""
        return self.done

    def add(self, sample: Encoded) -> None:
        self.done += 1
        self.source_nbytes += sample.source_nbytes
        for part in sample.parts:
            self.nbytes += part.nbytes
        if sample.note is not NO_NOTE:
            for note in _single_notes(sample.note):
                self.notes[note] += 1
                self.first_noted.setdefault(note, sample.key)


@functools.cache
def _single_notes(notes: Note) -> tuple[Note, ...]:
    return tuple(note for note in Note if note.value and note in notes)


class FailureList:
    """``OUT.h5.failures.csv``: columns path and reason, one row a failure, in plan order.

    It has another name until `publish`, so that an interrupted run leaves the list of the run
    before it as it is.
    """

    def __init__(self, path_output: Path) -> None:
        self.path = path_of_failures(path_output)
        _, self._partial = paths_of_failures(path_output)
        self._file: io.TextIOWrapper | None = None
        self._spare = Spare(1)  # where my_read leaves none

    def add(self, failure: Failure) -> None:
        if self._file is None:
            self._spare.release()
            self._file = open(  # noqa: SIM115 (open for as long as the run)
                self._partial, "w", encoding="utf-8", errors="backslashreplace", newline=""
            )
            csv.writer(self._file).writerow(("path", "reason"))
        csv.writer(self._file).writerow(failure)

    def close(self) -> None:
        """Write what is not yet on the disk; raises OSError when it is full."""
        self._spare.release()
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
        self._spare.release()
        if self._file is not None:
            with suppress(OSError):  # of a full disk: it is no longer wanted
                self._file.close()
            with suppress(OSError):  # what ended the run matters more
                self._partial.unlink(missing_ok=True)
