"""Count what a conversion did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from converter.callbacks import Progress
from converter.samples import Encoded, Failure, Note
from converter.writer.reuse import Changes

FAILURES_SHOWN = 10


@dataclass
class Report:
    """Counts of files, bytes and seconds; grows while the conversion runs."""

    path_output: Path
    total: int = 0
    stored: int = 0
    failed: int = 0
    source_nbytes: int = 0
    payload_nbytes: int = 0
    output_nbytes: int = 0
    seconds: float = 0.0
    fsync_seconds: float = 0.0
    is_unchanged: bool = False
    changes: Changes | None = None
    palettes: int = 0
    multi_frames: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    linked_folders: int = 0
    first_failures: list[Failure] = field(default_factory=list)
    path_failures: Path | None = None

    @property
    def progress(self) -> Progress:
        """Return how far it is."""
        done = self.stored + self.failed
        return Progress(self.total, done, self.failed, self.payload_nbytes)

    def add(self, sample: Encoded) -> None:
        self.stored += 1
        self.source_nbytes += sample.source_nbytes
        self.payload_nbytes += sum(part.nbytes for part in sample.parts)
        if sample.note:
            self.palettes += Note.PALETTE in sample.note
            self.multi_frames += Note.FRAMES in sample.note

    def add_failure(self, failure: Failure) -> None:
        self.failed += 1
        if len(self.first_failures) < FAILURES_SHOWN:
            self.first_failures.append(failure)
