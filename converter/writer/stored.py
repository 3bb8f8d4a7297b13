"""Read samples that lie encoded in a file, to keep or copy them as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from converter.codecs.filters import crc32
from converter.errors import LoadError, StoppedError
from converter.files import Handle, open_handle
from converter.format.headers import as_image, is_image
from converter.format.index import SOURCE, Extent
from converter.format.index_reader import open_index, read_sources, sources_begin
from converter.format.layout import Layout, has_bool
from converter.samples import Batch, Encoded, Failure, Part, Result
from converter.writer.payloads import read_large

BATCH_NBYTES = 4 << 20
BATCH_FILES = 256
STALE = np.array((2**64 - 1, 0), SOURCE)  # size and time of no file


class Stored(NamedTuple):
    """A sample that lies encoded in a file: ``nbytes`` with HDF5's structures behind it."""

    encoded: Encoded
    extents: Sequence[Extent]
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

    def is_whole(self, position: int) -> bool:
        """Tell whether the payload of a sample still has its checksum."""
        return is_whole(self._handle, self.keys.extents(position))

    def batches(self, positions: Iterable[int]) -> Iterator[Batch]:
        """Yield samples, a few at a time."""
        return read_batches(self._handle, map(self._sample, positions))

    def _sample(self, position: int) -> Stored:
        layout = self.keys.layout(self.keys.row(position).layout)
        source = self._sources[position].tolist()
        extents = self.keys.extents(position)
        return describe(
            self.keys.key(position), layout, extents, source, marks_images=self.marks_images
        )


def describe(
    key: str,
    layout: Layout,
    extents: Sequence[Extent],
    source: Sequence[int],
    *,
    marks_images: bool,
) -> Stored:
    """Return a sample of a file as a worker would describe it."""
    nbytes = sum(extent.nbytes for extent in extents)
    if not layout.has_shape:
        layout = replace(layout, shape=(nbytes,))
    elif marks_images and not layout.is_encoded and is_image(layout.dtype, layout.shape, nbytes):
        layout = as_image(layout)
    parts = tuple(Part(extent.nbytes, extent.crc32) for extent in extents)
    source_nbytes, mtime_ns = source
    encoded = Encoded(key, layout, parts, source_nbytes, mtime_ns)
    return Stored(encoded, extents, encoded.record_nbytes)


def is_whole(handle: Handle, extents: Sequence[Extent]) -> bool:
    """Tell whether a payload has its checksum."""
    try:
        return all(crc32(handle.read(e.nbytes, e.offset)) == e.crc32 for e in extents)
    except (LoadError, OSError):
        return False


def read_batches(handle: Handle, samples: Iterable[Stored | Failure]) -> Iterator[Batch]:
    """Yield samples of a file, and failures in between, in batches as a pool does.

    Raises StoppedError where a payload has changed since it was checked.
    """
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
    buffer = np.zeros(nbytes, np.uint8).data
    results: list[Result] = []
    extents: list[tuple[int, Extent, str]] = []  # where each goes in the buffer, and its key
    begin = 0
    for sample in samples:
        if isinstance(sample, Failure):
            results.append(sample)
            continue
        results.append(sample.encoded)
        target = begin
        for extent in sample.extents:
            extents.append((target, extent, sample.encoded.key))
            target += extent.nbytes
        begin += sample.nbytes
    first = extents[0][1].offset - extents[0][0] if extents else -1
    are_adjacent = all(extent.offset - target == first for target, extent, _ in extents)
    if are_adjacent and 0 <= first <= handle.nbytes - nbytes:
        read_large(handle, buffer, first)
    else:
        for target, extent, _ in extents:
            handle.read_into(buffer[target : target + extent.nbytes], extent.offset)
    for target, extent, key in extents:
        if crc32(buffer[target : target + extent.nbytes]) != extent.crc32:
            raise StoppedError(
                f"{key!r} in {handle.path} is damaged (its checksum differs): convert that file "
                "again"
            )
    return Batch(results, buffer)
