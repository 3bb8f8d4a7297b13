"""Hold samples that lie encoded in a file already, as the rows of an index describe them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from converter.codecs.filters import crc32
from converter.errors import LoadError, StoppedError
from converter.files import Handle, open_handle
from converter.format.headers import structure_nbytes
from converter.format.index import SOURCE, SOURCES_END, Extent, IndexBuilder
from converter.format.index_reader import Index, open_index, read_sources, sources_begin
from converter.format.layout import Layout
from converter.samples import Batch, Encoded, Part, Result


class StoredSamples:
    """Encoded samples in a file. The file may grow behind them meanwhile."""

    def __init__(self, handle: Handle, tail: Index, sources: np.ndarray) -> None:
        self.path = handle.path
        self.keys = tail
        self.sources = sources
        self._handle = handle
        self._layouts: dict[int, tuple[Layout, int]] = {}

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

    def distrust(self) -> None:
        """Take no sample to be as it would be now."""
        self.sources = np.full(len(self), np.array((2**64 - 1, 0), SOURCE))

    def start(self, position: int) -> int | None:
        """Return where a sample's payload begins; None for one without."""
        places = self.keys.extents(position)
        return places[0].offset if places else None

    def record_nbytes(self, position: int) -> int:
        """Return the bytes of a sample: its payload, and HDF5's structures behind it."""
        row = self.keys.row(position)
        return row.nbytes + self._layout(row.layout)[1]

    def is_whole(self, position: int) -> bool:
        """Tell whether a sample's payload has its checksum still."""
        try:
            for place in self.keys.extents(position):
                data = np.empty(place.nbytes, np.uint8)
                self._handle.read_into(data, place.offset)
                if crc32(data) != place.crc32:
                    return False
        except (LoadError, OSError):
            return False
        return True

    def batch(self, positions: Sequence[int]) -> StoredBatch:
        """Return samples as the pool would.

        Raises StoppedError where a payload has changed since it was checked.
        """
        records = [self.record_nbytes(position) for position in positions]
        buffer = np.empty(sum(records), np.uint8).data
        results: list[Result] = []
        begin = 0
        first = self.start(positions[0])
        if first is not None and self._lie_together(positions, records, first):
            self._handle.read_into(buffer, first)
        for position, nbytes in zip(positions, records, strict=True):
            places = self.keys.extents(position)
            at = begin
            for place in places:
                part = buffer[at : at + place.nbytes]
                if crc32(part) != place.crc32:
                    self._handle.read_into(part, place.offset)
                self._check(position, part, place)
                at += place.nbytes
            results.append(self._encoded(position, places))
            begin += nbytes
        return StoredBatch(results, buffer, self, first)

    def holds(self, data: memoryview, offset: int) -> bool:
        """Tell whether these bytes are in the file there."""
        size = os.fstat(self._handle.fd).st_size
        return offset + len(data) <= size and self._handle.read(len(data), offset) == data

    def _lie_together(self, positions: Sequence[int], records: list[int], first: int) -> bool:
        """Tell whether the records can be read at once; wrong where it does not matter."""
        last = self.start(positions[-1])
        end = first + sum(records)
        size = os.fstat(self._handle.fd).st_size
        return last == first + sum(records[:-1]) and end <= size

    def _check(self, position: int, part: memoryview, place: Extent) -> None:
        if crc32(part) != place.crc32:
            raise StoppedError(
                f"{self.keys.key(position)!r} in {self.path} is damaged (its checksum differs): "
                "convert that file again"
            )

    def _encoded(self, position: int, places: Sequence[Extent]) -> Encoded:
        row = self.keys.row(position)
        layout, _ = self._layout(row.layout)
        if not layout.has_shape:
            layout = replace(layout, shape=(row.nbytes,))
        parts = tuple(Part(place.nbytes, place.crc32) for place in places)
        nbytes, mtime_ns = self.sources[position].tolist()
        return Encoded(self.keys.key(position), layout, parts, nbytes, mtime_ns)

    def _layout(self, number: int) -> tuple[Layout, int]:
        known = self._layouts.get(number)
        if known is None:
            layout = self.keys.layout(number)
            if len(self._layouts) >= 4096:
                self._layouts.clear()
            known = self._layouts[number] = layout, structure_nbytes(layout)
        return known


class StoredBatch(Batch):
    """Samples copied from elsewhere, or from the very place they belong to."""

    def __init__(
        self,
        results: list[Result],
        payload: memoryview,
        existing: StoredSamples,
        offset: int | None,
    ) -> None:
        super().__init__(results, payload)
        self._existing, self._offset = existing, offset

    def is_at(self, path: Path, offset: int) -> bool:
        """Tell whether all of it, with HDF5's structures, is at a place in a file already."""
        existing = self._existing
        is_same_file = os.path.samestat(os.stat(path), os.fstat(existing._handle.fd))
        return is_same_file and existing.holds(self.payload, offset)


def open_finished(path: Path) -> StoredSamples:
    """Open a file the converter has finished.

    Raises LoadError where it has no index, or one that does not know its source files.
    """
    handle = open_handle(path)
    tail = open_index(handle)
    if tail is None:
        raise LoadError(
            f"{path} has no index, by which its samples are found: it was made or changed by "
            "another program, convert again with --overwrite"
        )
    begin = sources_begin(tail.hdf5_nbytes)
    sources = read_sources(handle.read(tail.sources_nbytes, begin))
    if not len(tail):  # a shard without files
        sources = np.empty(0, SOURCE)
    if sources is None or len(sources) != len(tail):
        raise LoadError(
            f"{path} does not know the sizes and times of its source files, by which changes "
            "are found: convert again with --overwrite"
        )
    return StoredSamples(handle, tail, sources)


def open_recorded(path: Path, samples: IndexBuilder) -> StoredSamples:
    """Open a file that was not finished, with the samples its journal has."""
    content = io.BytesIO()
    handle = Handle(os.fspath(path))
    samples.write(content, 0, claimed_nbytes=handle.nbytes)
    data = content.getvalue()
    nbytes = len(samples) * SOURCE.itemsize
    begin = nbytes + SOURCES_END.size if nbytes else 0
    tail = Index(data, begin, os.fspath(path))
    return StoredSamples(handle, tail, np.frombuffer(data, SOURCE, len(samples)))
