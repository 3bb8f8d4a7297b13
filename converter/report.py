"""Count what a conversion did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from converter.encoder import Encoded
from converter.plan import Failure
from converter.readers import Note

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
    palettes: int = 0
    multi_frames: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    linked_folders: int = 0
    first_failures: list[Failure] = field(default_factory=list)
    path_failures: Path | None = None

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


@dataclass(frozen=True)
class Estimate:
    """What a conversion of all files would come to, judged from some of them.

    ``files`` and ``source_nbytes`` are of the whole folder, ``ratio`` is output to source;
    None where no file of the sample could be read.
    """

    files: int
    sampled: int
    failed: int
    ratio: float | None
    output_nbytes: int | None
    free_nbytes: int
