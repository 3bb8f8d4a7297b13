"""Find what an interrupted run has stored, and how much of it can stay.

What stays is a prefix: the plan and the journal are walked side by side, and the first file that
is at odds with what was recorded of it ends what is kept. The run goes on from there.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from converter.errors import ConverterError
from converter.files import Handle
from converter.format.index import Extent, order_of
from converter.format.layout import Layout, parse_layout
from converter.format.superblock import SIGNATURE, SUPERBLOCK_NBYTES
from converter.samples import Batch, Failure, KeyList, Plan, Run
from converter.writer import provenance
from converter.writer.journal import Head, Row, read_head, read_rows
from converter.writer.paths import MARK_NBYTES, Paths, read_mark
from converter.writer.reuse import KEYS_AT_ONCE, map_in_threads, source_of
from converter.writer.stored import BATCH_FILES, Stored, describe, is_whole, read_batches

FEWEST_KEPT = 0.9  # of the samples recorded: if fewer would stay, the user has to say so


class Prefix(NamedTuple):
    """How far a journal is good: its rows, the plan's keys, samples, and bytes of the file."""

    rows: int = 0
    keys: int = 0
    samples: int = 0
    nbytes: int = SUPERBLOCK_NBYTES


CHANGED = "has changed since the run was interrupted"
NEW = "is new since the run was interrupted"
GONE = "is gone since the run was interrupted"
MENDED = "failed before and can be read now"
DAMAGED = "is damaged in the unfinished file"


BEGINNING = Prefix()


class _End(NamedTuple):
    """What ended a prefix."""

    key: str
    what: str


@dataclass
class Kept:
    """What stays of an interrupted run, and what was read again in it and failed again."""

    prefix: Prefix = BEGINNING
    failures: dict[str, Failure] = field(default_factory=dict)

    def batches(self, paths: Paths) -> Iterator[Batch]:
        """Yield the files of the prefix in plan order, as they were recorded."""
        if not self.prefix.rows:
            return
        handle, rows = Handle(str(paths.partial)), read_rows(paths.journal)
        kept = (self._stored(row) for row in itertools.islice(rows, self.prefix.rows))
        for batch in read_batches(handle, (one for one in kept if one is not None)):
            batch.is_in_place = True
            yield batch

    def _stored(self, row: Row) -> Stored | Failure | None:
        """Return what a row is of; None for a failure whose file is gone."""
        return self.failures.get(row.key) if row.layout is None else _stored(row)


def find_kept(
    paths: Paths, head: Head, plan: Plan, run: Run, notice: Callable[[str], None]
) -> Kept:
    """Look at what lies beside the output. The caller holds the lock on ``paths.partial``.

    ``notice`` is told what is kept and what is not, and why. Nothing is changed yet.

    Raises
    ------
    ConverterError
        The journal belongs to another file, or less than `FEWEST_KEPT` of it would stay.
    """
    if not _is_of_use(paths, head, notice):
        return Kept()
    rows = read_rows(paths.journal)
    walk = _Walk(plan, Handle(str(paths.partial)))
    while walk.end is None and (some := list(itertools.islice(rows, KEYS_AT_ONCE))):
        walk.take(some)
    recorded = walk.recorded + sum(row.layout is not None for row in rows)
    kept = walk.kept(run)
    samples, end = kept.prefix.samples, walk.end
    # What is damaged cannot be put back: stopping would save nothing.
    if end is not None and end.what != DAMAGED and samples < FEWEST_KEPT * recorded:
        raise ConverterError(
            f"{end.key} {end.what}, so only {samples} of the {recorded} samples stored in "
            f"{paths.partial} could be kept: undo that change, or start over with --restart"
        )
    if samples:
        notice(f"{samples} of {len(plan.keys)} files are kept from the interrupted run")
    else:
        kept = Kept()
    again = recorded - samples - (end is not None and end.what == GONE)
    if end is not None and again:
        notice(f"{end.key} {end.what}: {again} of the samples stored are read again")
    return kept


class _Walk:
    """Goes along a plan and a journal, as far as they agree."""

    def __init__(self, plan: Plan, handle: Handle) -> None:
        self._plan, self._handle = plan, handle
        self._failures: list[tuple[str, Prefix]] = []  # each with what is before it
        self.prefix = BEGINNING
        self.recorded = 0  # samples, as far as it has gone
        self.end: _End | None = None

    def take(self, rows: list[Row]) -> None:
        """Go on by a few rows, or to the first that is at odds with the plan or the file."""
        self.recorded += sum(row.layout is not None for row in rows)
        agreeing = self._agreeing(rows)
        good = map_in_threads(
            lambda row: is_whole(self._handle, _extents(row)), [row for row, _ in agreeing]
        )
        for (row, key), is_good in zip(agreeing, good, strict=True):
            if not (is_good and self._advance(row, key)):
                self.end = _End(row.key, DAMAGED)
                return

    def kept(self, run: Run) -> Kept:
        """Read what had failed again: the first file that can be read ends the prefix."""
        kept = Kept(self.prefix)
        for first in range(0, len(self._failures), BATCH_FILES):
            some = self._failures[first : first + BATCH_FILES]
            keys = KeyList()
            for key, _ in some:
                keys.append(key.encode())
            results = (result for batch in run(keys) for result in batch.results)
            for (key, before), result in list(zip(some, results, strict=True)):
                if not isinstance(result, Failure):
                    self.end = _End(key, MENDED)
                    kept.prefix = before
                    return kept
                kept.failures[key] = result
        return kept

    def _agreeing(self, rows: list[Row]) -> list[tuple[Row, str | None]]:
        """Return rows that say what the plan does, each with its key there, up to `end`."""
        keys, index = self._plan.keys, self.prefix.keys
        agreeing: list[tuple[Row, str | None]] = []
        for row in rows:
            key = keys[index] if index < len(keys) else None
            if row.key == key:
                if row.layout is not None and source_of(self._plan, key) != tuple(row.source):
                    self.end = _End(key, CHANGED)
                    break
                index += 1
            elif key is not None and order_of(key) < order_of(row.key):
                self.end = _End(key, NEW)
                break
            elif row.layout is not None:
                self.end = _End(row.key, GONE)
                break
            else:  # it failed, and is gone
                key = None
            agreeing.append((row, key))
        return agreeing

    def _advance(self, row: Row, key: str | None) -> bool:
        """Take one more row in; False where the file does not hold it in its place."""
        before = self.prefix
        nbytes, is_sample = before.nbytes, row.layout is not None
        if is_sample:
            if row.extents and row.extents[0][0] != nbytes:
                return False
            nbytes += _stored(row).nbytes
            if nbytes > self._handle.nbytes:
                return False
        elif key is not None:
            self._failures.append((key, before))
        self.prefix = Prefix(
            before.rows + 1, before.keys + (key is not None), before.samples + is_sample, nbytes
        )
        return True


def _extents(row: Row) -> list[Extent]:
    return [Extent(*extent) for extent in row.extents]


def _stored(row: Row) -> Stored:
    assert row.layout is not None
    return describe(row.key, _layout(row.layout), _extents(row), row.source)


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
            notice(f"nothing is known of what {partial} holds: the run starts over")
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
    difference = _difference(recorded, head)
    if difference:
        notice(f"what {partial} holds is of no use, for {difference}: the run starts over")
    return not difference


def _difference(before: Head, now: Head) -> str | None:
    if before.root != now.root:
        return f"it is of the folder {before.root}"
    return provenance.difference(before.manner, now.manner)
