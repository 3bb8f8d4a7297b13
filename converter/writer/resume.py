"""Find what an interrupted run has stored, and how much of it can stay.

What stays is a prefix. Plan and journal are walked side by side, and the first file that differs
from its row ends what is kept. The run resumes from there.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from converter.errors import ConverterError
from converter.files import Handle
from converter.format.index import order_of
from converter.format.layout import Layout, parse_layout
from converter.format.superblock import SIGNATURE, SUPERBLOCK_NBYTES
from converter.samples import Batch, Failure, Plan, Run
from converter.writer import provenance
from converter.writer.journal import Head, Row, read_head, read_rows
from converter.writer.paths import MARK_NBYTES, Paths, read_mark
from converter.writer.reuse import failures_of, map_in_threads, source_of
from converter.writer.stored import BATCH_FILES, Stored, describe, is_whole, read_batches

FEWEST_KEPT = 0.9  # of the samples recorded: if fewer would stay, the user has to say so


CHANGED = "has changed since the run was interrupted"
NEW = "is new since the run was interrupted"
GONE = "is gone since the run was interrupted"
MENDED = "failed before and can be read now"
DAMAGED = "is damaged in the unfinished file"


class Prefix(NamedTuple):
    """How far a journal is good: its rows, the plan's keys, samples, and bytes of the file."""

    rows: int = 0
    keys: int = 0
    samples: int = 0
    nbytes: int = SUPERBLOCK_NBYTES


class _End(NamedTuple):
    """Which file ended a prefix, and why."""

    key: str
    why: str


@dataclass
class Kept:
    """What stays of an interrupted run; ``failures`` of it were read again and failed again."""

    prefix: Prefix
    failures: dict[str, Failure] = field(default_factory=dict)
    marks_images: bool = False

    def batches(self, paths: Paths) -> Iterator[Batch]:
        """Yield the files of the prefix in plan order, as they were recorded."""
        if not self.prefix.rows:
            return
        rows = itertools.islice(read_rows(paths.journal), self.prefix.rows)
        kept = (
            _stored(row, marks_images=self.marks_images)
            if row.layout
            else self.failures.get(row.key)
            for row in rows
        )
        present = (one for one in kept if one is not None)  # the file of a failure may be gone
        for batch in read_batches(Handle(str(paths.partial)), present):
            batch.is_in_place = True
            yield batch


def find_kept(
    paths: Paths,
    head: Head,
    plan: Plan,
    run: Run,
    notice: Callable[[str], None],
    *,
    marks_images: bool,
) -> Kept:
    """Find what of an interrupted run can stay. The caller holds the lock on ``paths.partial``.

    ``notice`` is told what is kept and what is not, and why. Nothing is changed yet.

    Raises
    ------
    ConverterError
        The journal belongs to another file, or less than `FEWEST_KEPT` of it would stay.
    """
    if not _is_of_use(paths, head, notice):
        return Kept(Prefix())
    rows = read_rows(paths.journal)
    walk = _Walk(plan, Handle(str(paths.partial)), marks_images=marks_images)
    while walk.end is None and (some := list(itertools.islice(rows, BATCH_FILES))):
        walk.take(some)
    recorded = walk.recorded + sum(row.layout is not None for row in rows)
    failures = walk.read_failures(run)
    samples, end = walk.prefix.samples, walk.end
    # What is damaged cannot be put back: stopping would save nothing.
    if end is not None and end.why != DAMAGED and samples < FEWEST_KEPT * recorded:
        raise ConverterError(
            f"{end.key} {end.why}, so only {samples} of the {recorded} samples stored in "
            f"{paths.partial} could be kept: undo that change, or start over with --restart"
        )
    if samples:
        notice(f"{samples} of {len(plan.keys)} files are kept from the interrupted run")
    again = recorded - samples - (end is not None and end.why == GONE)
    if end is not None and again:
        notice(f"{end.key} {end.why}: {again} of the samples stored are read again")
    return Kept(walk.prefix, failures, marks_images) if samples else Kept(Prefix())


class _Walk:
    """Goes along a plan and a journal, as far as they agree."""

    def __init__(self, plan: Plan, handle: Handle, *, marks_images: bool) -> None:
        self._plan, self._handle, self._marks_images = plan, handle, marks_images
        self._failures: dict[str, Prefix] = {}  # each with the prefix before it
        self.prefix = Prefix()
        self.recorded = 0  # samples in the rows taken
        self.end: _End | None = None

    def take(self, rows: list[Row]) -> None:
        """Go on by some rows, or to the first that disagrees with the plan or the file."""
        self.recorded += sum(row.layout is not None for row in rows)
        good = map_in_threads(lambda row: is_whole(self._handle, row.extents), rows)
        for row, is_good in zip(rows, good, strict=True):
            self.end = self._advance(row, is_good=is_good)
            if self.end is not None:
                return

    def read_failures(self, run: Run) -> dict[str, Failure]:
        """Read what failed; the first file that does not fail again ends the prefix."""
        failures = failures_of(run, list(self._failures))
        for key, before in self._failures.items():
            if key not in failures:
                self.prefix, self.end = before, _End(key, MENDED)
                break
        return failures

    def _advance(self, row: Row, *, is_good: bool) -> _End | None:
        """Take one more row in, or return why not."""
        rows, index, samples, nbytes = self.prefix
        key = self._plan.keys[index] if index < len(self._plan.keys) else None
        is_sample = row.layout is not None
        if row.key == key:
            if is_sample and source_of(self._plan, key) != row.source:
                return _End(key, CHANGED)
        elif key is not None and order_of(key) < order_of(row.key):
            return _End(key, NEW)
        elif is_sample:
            return _End(row.key, GONE)
        if is_sample:
            if not is_good or (row.extents and row.extents[0].offset != nbytes):
                return _End(row.key, DAMAGED)
            nbytes += _stored(row, marks_images=self._marks_images).nbytes
        elif row.key == key:  # else the file of the failure is gone
            self._failures[row.key] = self.prefix
        self.prefix = Prefix(rows + 1, index + (row.key == key), samples + is_sample, nbytes)
        return None


def _stored(row: Row, *, marks_images: bool) -> Stored:
    assert row.layout is not None
    layout = _layout(row.layout)
    return describe(row.key, layout, row.extents, row.source, marks_images=marks_images)


@functools.lru_cache(maxsize=4096)
def _layout(text: str) -> Layout:
    return parse_layout(text.encode())


def _is_of_use(paths: Paths, head: Head, notice: Callable[[str], None]) -> bool:
    """Tell whether a journal is of the same folder and options as this run.

    Raises ConverterError where it belongs to another file.
    """
    journal, partial, mark = paths.journal, paths.partial, read_mark(paths.partial)
    if not mark:  # of a run that came to its end but for removing it
        return False
    recorded = read_head(journal)
    if recorded is None:
        if partial.stat().st_size > MARK_NBYTES:
            why = "no journal says what it holds"
            notice(f"{partial} cannot be resumed, because {why}: the run starts over")
        return False
    if recorded.output != head.output:
        raise ConverterError(
            f"{journal} belongs to {recorded.output}, not to {head.output}: move it away, or "
            "start over with --restart"
        )
    is_complete = bytes.fromhex(mark).startswith(SIGNATURE)  # but for its name
    if recorded.mark != mark and not is_complete:
        raise ConverterError(
            f"{journal} does not belong to {partial}: move both away, or start over with --restart"
        )
    difference = provenance.difference(recorded.encoding_options, head.encoding_options)
    if recorded.root != head.root:
        difference = f"it is of the folder {recorded.root}"
    if difference:
        notice(f"{partial} cannot be resumed, because {difference}: the run starts over")
    return not difference
