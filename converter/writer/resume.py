"""Find what an interrupted run has stored, and how much of it can stay.

What stays is a prefix. Plan and journal are walked side by side, and the first file that differs
from its row ends what is kept. The run resumes from there.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from converter.codecs.filters import crc32
from converter.errors import ConverterError
from converter.files import Handle, open_to_write, write_at
from converter.format.index import order_of
from converter.format.layout import Layout, parse_layout
from converter.format.superblock import SIGNATURE, SUPERBLOCK_NBYTES
from converter.samples import Batch, Encoded, Failure, Plan, Result, Run
from converter.writer import provenance
from converter.writer.journal import Head, Row, read_head, read_rows
from converter.writer.large_reads import reader_of
from converter.writer.paths import MARK_NBYTES, Paths, read_mark
from converter.writer.reuse import failures_of, source_of
from converter.writer.stored import BATCH_FILES, Form, Read, Stored, read_batches
from converter.writer.structures import Structures

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

    prefix: Prefix = field(default_factory=Prefix)
    structures: Structures = field(default_factory=Structures)  # of its samples
    failures: dict[str, Failure] = field(default_factory=dict)
    marks_images: bool = False

    def batches(self, paths: Paths) -> Iterator[Batch]:
        """Yield the files of the prefix in plan order, as they were recorded, without payloads."""
        if not self.prefix.rows:
            return
        rows = itertools.islice(read_rows(paths.journal), self.prefix.rows)
        results: Iterator[Result | None] = (
            self.failures.get(one.key) if isinstance(one, Failure) else one.encoded
            for one in _samples(rows, marks_images=self.marks_images)
        )
        present = (one for one in results if one is not None)  # the file of a failure may be gone
        while some := list(itertools.islice(present, BATCH_FILES)):
            yield Batch(some, memoryview(b""), is_in_place=True)


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

    ``notice`` is told what is kept and what is not, and why. Nothing is changed yet, except
    that damaged HDF5 structures of what is kept are mended.

    Raises
    ------
    ConverterError
        The journal belongs to another file, or less than `FEWEST_KEPT` of it would stay.
    """
    if not _is_of_use(paths, head, notice):
        return Kept()
    walk = _Walk(paths, plan, run, marks_images=marks_images)
    recorded = walk.recorded
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
    return Kept(walk.prefix, walk.structures, walk.failures, marks_images) if samples else Kept()


class _Walk:
    """Goes along a journal and a plan, as far as they agree.

    Reads each payload, once, and what HDF5 needs for it; mends the latter. Reads again what failed.
    """

    def __init__(self, paths: Paths, plan: Plan, run: Run, *, marks_images: bool) -> None:
        self._partial, self._plan, self._run = paths.partial, plan, run
        self.failures: dict[str, Failure] = {}
        self.structures = Structures()
        self.prefix = Prefix()
        self.recorded = 0  # samples, also those behind the prefix
        self.end: _End | None = None
        samples = self._counted(_samples(read_rows(paths.journal), marks_images=marks_images))
        reader = reader_of(Handle(str(self._partial)))
        with closing(read_batches(reader, samples)) as batches:
            for read in batches:
                self._take(read)
                if self.end is not None:
                    break
        deque(samples, maxlen=0)

    def _counted(self, samples: Iterator[Stored | Failure]) -> Iterator[Stored | Failure]:
        for sample in samples:
            self.recorded += isinstance(sample, Stored)
            yield sample

    def _take(self, read: Read) -> None:
        """Go on by a batch, or to the first file that disagrees with the plan or is damaged."""
        results, before = read.batch.results, [self.prefix]
        for number, result in enumerate(results):
            self.end = self._advance(result, is_damaged=number in read.damaged)
            if self.end is not None:
                break
            before.append(self.prefix)
        kept = results[: self._first_mended(results, before)]
        offset = self.structures.end
        payload = read.batch.payload[: self.prefix.nbytes - offset]
        crc = crc32(payload)
        self.structures.add(Batch(kept, payload))
        if crc32(payload) != crc:  # the disk has lost some of HDF5's structures
            self._mend(payload, offset)

    def _first_mended(self, results: list[Result], before: list[Prefix]) -> int:
        """Read again what failed; the first that does not fail again ends the prefix.

        ``before`` are the prefixes before each result that may stay, and behind the last.
        Return how many stay.
        """
        present = [
            number
            for number, (one, other) in enumerate(pairwise(before))
            if isinstance(results[number], Failure) and one.keys < other.keys
        ]
        found = failures_of(self._run, [results[number].key for number in present])
        self.failures |= found
        for number in present:
            if (key := results[number].key) not in found:
                self.prefix, self.end = before[number], _End(key, MENDED)
                return number
        return len(before) - 1

    def _mend(self, payload: memoryview, offset: int) -> None:
        try:
            with open_to_write(self._partial) as file:
                write_at(file, payload, offset)
        except OSError as error:
            raise ConverterError(
                f"{self._partial} is damaged, and could not be mended ({error.strerror}): free "
                "space, or start over with --restart"
            ) from error

    def _advance(self, result: Result, *, is_damaged: bool) -> _End | None:
        """Take one more file in, or return why not."""
        rows, index, samples, nbytes = self.prefix
        key = self._plan.keys[index] if index < len(self._plan.keys) else None
        if result.key == key:
            if isinstance(result, Encoded) and source_of(self._plan, key) != result.source:
                return _End(key, CHANGED)
        elif key is not None and order_of(key) < order_of(result.key):
            return _End(key, NEW)
        elif isinstance(result, Encoded):
            return _End(result.key, GONE)
        if is_damaged:
            return _End(result.key, DAMAGED)
        if isinstance(result, Encoded):
            samples, nbytes = samples + 1, nbytes + result.record_nbytes
        is_present = result.key == key  # else the file of the failure is gone
        self.prefix = Prefix(rows + 1, index + is_present, samples, nbytes)
        return None


def _samples(rows: Iterator[Row], *, marks_images: bool) -> Iterator[Stored | Failure]:
    """Yield what a journal says, each sample right behind the one before."""
    end = SUPERBLOCK_NBYTES
    for row in rows:
        if row.layout is None:
            yield Failure(row.key, "")
            continue
        nbytes = sum(extent.nbytes for extent in row.extents)
        form = Form.of(_layout(row.layout), nbytes, marks_images=marks_images)
        moved = end - row.extents[0].offset if row.extents else 0
        extents = [extent._replace(offset=extent.offset + moved) for extent in row.extents]
        stored = form.stored(row.key, extents, row.source)
        end += stored.nbytes
        yield stored


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
