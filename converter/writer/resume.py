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
from converter.writer.paths import MARK_NBYTES, Paths, read_mark
from converter.writer.stored import StoredSamples, open_recorded


@dataclass
class Unfinished:
    """What earlier runs have left: the file they were at, and one that was moved aside."""

    own: StoredSamples | None = None
    aside: StoredSamples | None = None


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
