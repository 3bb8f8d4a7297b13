"""Read samples that lie encoded in a file, to keep or copy them as they are."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converter.codecs.filters import crc32
from converter.errors import LoadError, StoppedError
from converter.files import open_handle
from converter.format.headers import as_image, is_image, structure_nbytes
from converter.format.index import SOURCE, Extent
from converter.format.index_reader import open_index, read_sources, sources_begin
from converter.format.layout import Layout, has_bool
from converter.samples import Batch, Encoded, Failure, Part, Result
from converter.writer.large_reads import Reader, reader_of

BATCH_NBYTES = 4 << 20
BATCH_FILES = 1024
MEMORY_NBYTES = 2 * BATCH_NBYTES  # for a batch, but for one with a large sample
STALE = np.array((2**64 - 1, 0), SOURCE)  # size and time of no file


class Stored(NamedTuple):
    """A sample that lies encoded in a file: ``nbytes`` with HDF5's structures behind it."""

    encoded: Encoded
    extents: Sequence[tuple[int, int, int]]  # as `Extent`
    nbytes: int


class StoredSamples:
    """The samples of a file that the converter has finished.

    With ``marks_images`` set, images are copied as such, which viewers show.

    Raises LoadError where it has no index, or one that does not know its source files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marks_images = False
        self._handle = open_handle(path)
        self._read = reader_of(self._handle)
        index = open_index(self._handle)
        if index is None:
            raise LoadError(
                f"{path} has no index to find its samples by: another program made or changed it, "
                "convert again with --overwrite"
            )
        self.keys = index
        begin = sources_begin(index.hdf5_nbytes)
        sources = read_sources(self._handle.read(index.sources_nbytes, begin))
        if not len(index):  # a shard without files
            sources = np.empty(0, SOURCE)
        if sources is None or len(sources) != len(index):
            raise LoadError(
                f"{path} does not know the sizes and times of its source files, so that changes "
                "cannot be found: convert again with --overwrite"
            )
        self._sources = sources

    def __len__(self) -> int:
        return len(self.keys)

    def read_as_part_of(self, nbytes: int) -> None:
        """Read from now on as is best for several files, of ``nbytes`` together."""
        self._read = reader_of(self._handle, nbytes)

    def find_current(self, keys: Sequence[str], sources: np.ndarray) -> np.ndarray:
        """Return positions of samples whose source file is as it was, -1 for the others.

        ``sources`` ``(N,)`` of `SOURCE` is what the files are now.
        """
        positions = self.keys.find_all(list(keys))
        found = positions >= 0
        same = self._sources[positions[found]] == sources[found]
        positions[np.flatnonzero(found)[~same]] = -1
        return positions

    def has(self, key: str, source: tuple[int, int]) -> bool | None:
        """Tell whether a sample is of the file as it is; None where there is none."""
        position = self.keys.find(key)
        return None if position is None else tuple(self._sources[position].tolist()) == source

    def mark_stale(self) -> None:
        """Treat every sample as changed."""
        self._sources = np.full(len(self), STALE)

    def mark_bools_stale(self) -> int:
        """Treat every sample that holds bools as changed; return how many do."""
        numbers = self.keys.rows["layout"]
        found = [n for n in np.unique(numbers).tolist() if has_bool(self.keys.layout(n).dtype)]
        chosen = np.isin(numbers, found)
        self._sources = self._sources.copy()
        self._sources[chosen] = STALE
        return int(chosen.sum())

    def read(self, positions: np.ndarray) -> Iterator[Read]:
        """Yield samples, a few at a time, and which of them are damaged."""
        return read_batches(self._read, self._samples(positions))

    def batches(self, positions: np.ndarray) -> Iterator[Batch]:
        """Yield samples, a few at a time. Raises StoppedError where one is damaged."""
        for read in self.read(positions):
            for number, why in read.damaged.items():
                raise StoppedError(
                    f"{read.batch.results[number].key!r} in {self.path} is damaged ({why}): "
                    "convert that file again"
                )
            yield read.batch

    def _samples(self, positions: np.ndarray) -> Iterator[Stored]:
        index, end = self.keys, self.keys.hdf5_nbytes
        form_of = lru_cache(maxsize=4096)(self._form)
        for first in range(0, len(positions), BATCH_FILES):
            some = positions[first : first + BATCH_FILES]
            rows, sources = index.rows[some], self._sources[some]
            offsets, sizes, crcs = (rows[name].tolist() for name in Extent._fields)
            forms = list(map(form_of, rows["layout"].tolist(), sizes))
            extents: list[Any] = [(one,) for one in zip(offsets, sizes, crcs, strict=True)]
            parts: list[tuple[Part, ...]] = [(part,) for part in map(Part, sizes, crcs)]
            is_inside = (rows["nbytes"] <= end) & (rows["offset"] <= end - rows["nbytes"])
            for n in np.flatnonzero(~is_inside | ~np.array([form.is_in_one for form in forms])):
                extents[n] = index.extents(int(some[n]))
                parts[n] = tuple([Part(nbytes, crc) for _, nbytes, crc in extents[n]])
            columns = (
                [form.layout for form in forms],
                parts,
                sources["nbytes"].tolist(),
                sources["mtime_ns"].tolist(),
            )
            encoded = map(Encoded, index.keys_at(some), *columns)
            yield from map(Stored, encoded, extents, [form.record_nbytes for form in forms])

    def _form(self, number: int, nbytes: int) -> Form:
        return Form.of(self.keys.layout(number), nbytes, marks_images=self.marks_images)


class Form(NamedTuple):
    """What samples have in common whose payloads have the same layout and size.

    ``record_nbytes`` are those of the payload with HDF5's structures behind it. A payload that is
    not ``is_in_one`` extent lies in several, or in none.
    """

    layout: Layout
    record_nbytes: int
    is_in_one: bool

    @classmethod
    def of(cls, layout: Layout, nbytes: int, *, marks_images: bool) -> Form:
        is_in_one = layout.count_extents(nbytes) == 1 and layout.can_come_from(nbytes)
        if not layout.has_shape:
            layout = replace(layout, shape=(nbytes,))
        elif (
            marks_images and not layout.is_encoded and is_image(layout.dtype, layout.shape, nbytes)
        ):
            layout = as_image(layout)
        return cls(layout, nbytes + structure_nbytes(layout), is_in_one and nbytes > 0)

    def stored(self, key: str, extents: Sequence[Extent], source: Sequence[int]) -> Stored:
        """Return a sample as a worker would describe it, with its extents in a file."""
        parts = tuple([Part(nbytes, crc) for _, nbytes, crc in extents])
        source_nbytes, mtime_ns = source
        encoded = Encoded(key, self.layout, parts, source_nbytes, mtime_ns)
        return Stored(encoded, extents, self.record_nbytes)


class Read(NamedTuple):
    """A batch, and which of its results have a payload that is not what it was, and why."""

    batch: Batch
    damaged: dict[int, str]


def read_batches(read: Reader, samples: Iterator[Stored | Failure]) -> Generator[Read]:
    """Yield samples of a file, and failures in between, in batches as a pool does.

    Each is read, by another thread, while the one before is worked on.
    """
    spare: list[memoryview] = []  # new memory would cost as much as reading
    with ThreadPoolExecutor(1, "Reader") as thread:
        coming = thread.submit(_read_some, read, samples, spare)
        while (some := coming.result()) is not None:
            coming = thread.submit(_read_some, read, samples, spare)
            yield some
            if not some.batch.is_held:
                some.batch.release()


#: Of an extent: how far it is moved, where it goes in a batch, the number of its result, its bytes
#: and their checksum.
_Target = tuple[int, int, int, int, int]


def _read_some(
    read: Reader, samples: Iterator[Stored | Failure], spare: list[memoryview]
) -> Read | None:
    """Read the next samples into spare memory; return None where there are no more."""
    results: list[Result] = []
    targets: list[_Target] = []
    nbytes = 0
    for sample in samples:
        if isinstance(sample, Failure):
            results.append(sample)
        else:
            begin = nbytes
            for offset, extent_nbytes, crc in sample.extents:
                targets.append((offset - begin, begin, len(results), extent_nbytes, crc))
                begin += extent_nbytes
            results.append(sample.encoded)
            nbytes += sample.nbytes
        if nbytes >= BATCH_NBYTES or len(results) >= BATCH_FILES:
            break
    if not results:
        return None
    memory = spare.pop() if spare and nbytes <= MEMORY_NBYTES else _memory(nbytes)

    def release() -> None:
        if len(memory) == MEMORY_NBYTES:
            spare.append(memory)

    batch = Batch(results, memory[:nbytes], release)
    return _fill(read, batch, targets)


def _fill(read: Reader, batch: Batch, targets: Sequence[_Target]) -> Read:
    """Read payloads to where they go, at once those that lie in the file just so."""
    damaged: dict[int, str] = {}
    runs = [list(run) for _, run in groupby(targets, itemgetter(0))]
    begins = [0, *(run[0][1] for run in runs[1:]), len(batch.payload)]
    for run, (first, end) in zip(runs, pairwise(begins), strict=False):
        is_read = _is_read(read, batch.payload[first:end], run[0][0] + first)
        for moved, begin, result, nbytes, crc in run:
            payload = batch.payload[begin : begin + nbytes]
            try:
                if not is_read:
                    read(payload, begin + moved)
                if crc32(payload) != crc:
                    damaged[result] = "its checksum differs"
            except (LoadError, OSError) as error:
                damaged[result] = getattr(error, "strerror", None) or "the file was cut"
    return Read(batch, damaged)


def _is_read(read: Reader, target: memoryview, offset: int) -> bool:
    """Read samples in a row; tell whether all of them could be."""
    if offset >= 0:
        with suppress(LoadError, OSError):
            read(target, offset)
            return True
    target[:] = bytes(len(target))  # nothing is left of what was there before
    return False


def _memory(nbytes: int) -> memoryview:
    return np.empty(max(nbytes, MEMORY_NBYTES), np.uint8).data
