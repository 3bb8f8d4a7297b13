"""Hold samples that lie encoded in a file already."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from converter.codecs.filters import crc32
from converter.errors import LoadError, StoppedError
from converter.files import Handle, open_handle
from converter.format.headers import structure_nbytes
from converter.format.index import SOURCE, Extent
from converter.format.index_reader import Index, open_index, read_sources, sources_begin
from converter.format.layout import Layout, has_bool
from converter.samples import Batch, Encoded, Failure, Part, Result

BATCH_NBYTES = 4 << 20
BATCH_FILES = 256
STALE = np.array((2**64 - 1, 0), SOURCE)  # size and time of no file


class Stored(NamedTuple):
    """A sample that lies encoded in a file: ``nbytes`` with HDF5's structures behind it."""

    encoded: Encoded
    extents: Sequence[Extent]
    nbytes: int


class StoredSamples:
    """The samples of a finished file."""

    def __init__(self, handle: Handle, index: Index, sources: np.ndarray) -> None:
        self.path = handle.path
        self.keys = index
        self.sources = sources
        self.handle = handle

    def __len__(self) -> int:
        return len(self.keys)

    def find_current(self, keys: Sequence[str], sources: np.ndarray) -> np.ndarray:
        """Return positions of samples whose source file is as it was, -1 for the others.

        ``sources`` ``(N,)`` of `SOURCE` is what the files are now.
        """
        positions = self.keys.find_all(list(keys))
        found = positions >= 0
        same = self.sources[positions[found]] == sources[found]
        positions[np.flatnonzero(found)[~same]] = -1
        return positions

    def has(self, key: str, source: tuple[int, int]) -> bool | None:
        """Tell whether a sample is of the file as it is; None where there is none."""
        position = self.keys.find(key)
        return None if position is None else tuple(self.sources[position].tolist()) == source

    def mark_stale(self) -> None:
        """Treat every sample as changed."""
        self.sources = np.full(len(self), STALE)

    def mark_bools_stale(self) -> int:
        """Treat every sample that holds bools as changed; return how many do."""
        numbers = self.keys.rows["layout"]
        found = [n for n in np.unique(numbers).tolist() if has_bool(self.keys.layout(n).dtype)]
        chosen = np.isin(numbers, found)
        self.sources = self.sources.copy()
        self.sources[chosen] = STALE
        return int(chosen.sum())

    def is_whole(self, position: int) -> bool:
        """Tell whether the payload of a sample still has its checksum."""
        return is_whole(self.handle, self.keys.extents(position))

    def sample(self, position: int) -> Stored:
        """Return the sample at a position."""
        row = self.keys.row(position)
        source = self.sources[position].tolist()
        layout = self.keys.layout(row.layout)
        return describe(self.keys.key(position), layout, self.keys.extents(position), source)

    def batches(self, positions: Iterable[int]) -> Iterator[Batch]:
        """Yield samples, a few at a time."""
        return read_batches(self.handle, map(self.sample, positions))


def describe(key: str, layout: Layout, extents: Sequence[Extent], source: Sequence[int]) -> Stored:
    """Return what is known of a sample in a file, as a worker would have described it."""
    payload_nbytes = sum(extent.nbytes for extent in extents)
    nbytes = payload_nbytes + _structure_nbytes(layout)
    if not layout.has_shape:
        layout = replace(layout, shape=(payload_nbytes,))
    parts = tuple(Part(extent.nbytes, extent.crc32) for extent in extents)
    source_nbytes, mtime_ns = source
    return Stored(Encoded(key, layout, parts, source_nbytes, mtime_ns), extents, nbytes)


@functools.lru_cache(maxsize=4096)
def _structure_nbytes(layout: Layout) -> int:
    return structure_nbytes(layout)


def is_whole(handle: Handle, extents: Sequence[Extent]) -> bool:
    """Tell whether a payload has its checksum."""
    try:
        return all(crc32(handle.read(e.nbytes, e.offset)) == e.crc32 for e in extents)
    except (LoadError, OSError):
        return False


def read_batches(handle: Handle, samples: Iterable[Stored | Failure]) -> Iterator[Batch]:
    """Yield samples of a file as a pool would, and failures in between, a few at a time."""
    some: list[Stored | Failure] = []
    nbytes = 0
    for sample in samples:
        some.append(sample)
        nbytes += sample.nbytes if isinstance(sample, Stored) else 0
        if nbytes >= BATCH_NBYTES or len(some) >= BATCH_FILES:
            yield _read(handle, some, nbytes)
            some, nbytes = [], 0
    if some:
        yield _read(handle, some, nbytes)


def _read(handle: Handle, samples: Sequence[Stored | Failure], nbytes: int) -> Batch:
    """Return samples as a batch.

    Raises StoppedError where a payload has changed since it was checked.
    """
    buffer = np.zeros(nbytes, np.uint8).data
    results: list[Result] = []
    begin = 0
    is_read = _read_at_once(handle, [s for s in samples if isinstance(s, Stored)], buffer)
    for sample in samples:
        if isinstance(sample, Failure):
            results.append(sample)
            continue
        at = begin
        for extent in sample.extents:
            part = buffer[at : at + extent.nbytes]
            if not is_read:
                handle.read_into(part, extent.offset)
            if crc32(part) != extent.crc32:
                raise StoppedError(
                    f"{sample.encoded.key!r} in {handle.path} is damaged (its checksum differs): "
                    "convert that file again"
                )
            at += extent.nbytes
        results.append(sample.encoded)
        begin += sample.nbytes
    return Batch(results, buffer)


def _read_at_once(handle: Handle, samples: Sequence[Stored], buffer: memoryview) -> bool:
    """Read records that lie one behind the other; return whether they do."""
    begin, end = None, 0
    for sample in samples:
        if sample.extents:
            offset = sample.extents[0].offset
            if begin is None:
                begin = offset - end
            elif offset != begin + end:
                return False
        end += sample.nbytes
    if begin is None or begin < 0 or begin + end > handle.nbytes:
        return False
    handle.read_into(buffer, begin)
    return True


def open_finished(path: Path) -> StoredSamples:
    """Open a file the converter has finished.

    Raises LoadError where it has no index, or one that does not know its source files.
    """
    handle = open_handle(path)
    index = open_index(handle)
    if index is None:
        raise LoadError(
            f"{path} has no index, by which its samples are found: it was made or changed by "
            "another program, convert again with --overwrite"
        )
    begin = sources_begin(index.hdf5_nbytes)
    sources = read_sources(handle.read(index.sources_nbytes, begin))
    if not len(index):  # a shard without files
        sources = np.empty(0, SOURCE)
    if sources is None or len(sources) != len(index):
        raise LoadError(
            f"{path} does not know the sizes and times of its source files, by which changes "
            "are found: convert again with --overwrite"
        )
    return StoredSamples(handle, index, sources)
