"""Find the work of runs that were broken off, and decide what of it can be gone on with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from converter.errors import ConverterError
from converter.format.superblock import SIGNATURE
from converter.writer import provenance
from converter.writer.journal import Head, Recorded, read_journal
from converter.writer.stored import Existing, open_recorded

MARK_NBYTES = 16


@dataclass(frozen=True)
class Paths:
    """The names of what belongs to an output: ``aside`` is what an earlier run had moved away."""

    output: Path

    @property
    def partial(self) -> Path:
        """Return the name the file has while it is being written."""
        return _with(self.output, ".partial")

    @property
    def journal(self) -> Path:
        """Return the name of its journal."""
        return _with(self.output, ".partial.journal")

    @property
    def new_journal(self) -> Path:
        """Return the name of the journal that takes its place."""
        return _with(self.output, ".partial.journal.new")

    @property
    def aside(self) -> Path:
        """Return the name of an older unfinished file, whose samples do not lie as needed."""
        return _with(self.output, ".partial.old")

    @property
    def aside_journal(self) -> Path:
        """Return the name of its journal."""
        return _with(self.output, ".partial.old.journal")

    def all(self) -> tuple[Path, ...]:
        """Return all but the output."""
        return self.partial, self.journal, self.new_journal, self.aside, self.aside_journal


@dataclass
class Unfinished:
    """What earlier runs have left: the file they were at, and one that was moved aside."""

    own: Existing | None = None
    aside: Existing | None = None


def find_unfinished(paths: Paths, head: Head, notice: Callable[[str], None]) -> Unfinished:
    """Look at what lies beside the output. The caller holds the lock on ``paths.partial``.

    Work that was done in another manner, or on another folder, is left out, and ``notice``
    says why. Raises ConverterError for a journal that belongs to another file.
    """
    _finish_moving(paths)
    found = Unfinished()
    recorded = _read(paths.journal, paths.partial, head, notice)
    if recorded is not None and len(recorded.samples):
        found.own = open_recorded(paths.partial, recorded.samples)
    recorded = _read(paths.aside_journal, paths.aside, head, notice)
    if recorded is not None and len(recorded.samples):
        found.aside = open_recorded(paths.aside, recorded.samples)
    return found


def move_aside(paths: Paths) -> None:
    """Keep an unfinished file under another name. Raises OSError."""
    paths.aside.unlink(missing_ok=True)
    os.replace(paths.journal, paths.aside_journal)
    os.replace(paths.partial, paths.aside)


def read_mark(path: Path) -> str:
    """Return what stands at the beginning of an unfinished file; empty where nothing does."""
    try:
        with open(path, "rb") as file:
            return file.read(MARK_NBYTES).hex()
    except FileNotFoundError:
        return ""


def _finish_moving(paths: Paths) -> None:
    """Complete a `move_aside` that was broken off between its two steps."""
    if paths.aside_journal.exists() and not paths.aside.exists() and not paths.journal.exists():
        recorded = read_journal(paths.aside_journal)
        if recorded is not None and recorded.head.mark == read_mark(paths.partial):
            os.replace(paths.aside_journal, paths.journal)


def _read(
    journal: Path, partial: Path, head: Head, notice: Callable[[str], None]
) -> Recorded | None:
    mark = read_mark(partial)
    if not mark:  # of a run that came to its end but for removing it
        return None
    recorded = read_journal(journal)
    if recorded is None:
        if partial.stat().st_size > MARK_NBYTES:
            notice(f"nothing is known of what {partial} holds, it begins anew")
        return None
    if recorded.head.output != head.output:
        raise ConverterError(
            f"{journal} belongs to {recorded.head.output}, not to {head.output}: move it away, or "
            "begin anew with --restart"
        )
    is_complete = bytes.fromhex(mark).startswith(SIGNATURE)  # but for its name
    if recorded.head.mark != mark and not is_complete:
        raise ConverterError(
            f"{journal} does not belong to {partial}: move both away, or begin anew with --restart"
        )
    difference = _difference(recorded.head, head)
    if difference:
        notice(f"the work kept in {partial} is of no use, for {difference}: it begins anew")
        return None
    return recorded


def _difference(before: Head, now: Head) -> str | None:
    if before.root != now.root:
        return f"it is of the folder {before.root}"
    return provenance.difference(before.manner, now.manner)


def _with(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
