"""Read several files as if they were one."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from converter.errors import LoadError
from converter.format.index import order_of
from converter.format.index_reader import Index
from converter.format.layout import Layout
from converter.loader.encoded_file import EncodedFile
from converter.loader.h5py_file import H5pyFile
from converter.loader.indexed_file import Bytes, IndexedFile
from converter.loader.selection import Location, Placed, fill_rows

FILE_BITS = 32  # a layout's number in several files: that of its file, then its own
OneFile = IndexedFile | H5pyFile | EncodedFile


class SeveralIndexes:
    """The keys of several files, one file behind the other, to be asked as an `Index`.

    Raises LoadError where two files have a key in common.
    """

    def __init__(self, indexes: Sequence[Index]) -> None:
        self.path = ", ".join(index.path for index in indexes)
        self.indexes = indexes
        self.starts = [0, *itertools.accumulate(len(index) for index in indexes)]
        if not self._are_in_order():  # else they have no keys in common
            self._check_common()

    def __len__(self) -> int:
        return self.starts[-1]

    def damage(self, what: str) -> LoadError:
        return self.indexes[0].damage(what)

    def find(self, key: str) -> int | None:
        for start, index in zip(self.starts, self.indexes, strict=False):
            position = index.find(key)
            if position is not None:
                return start + position
        return None

    def find_all(self, keys: Sequence[str]) -> np.ndarray:
        positions = np.full(len(keys), -1, np.int64)
        for start, index in zip(self.starts, self.indexes, strict=False):
            unknown = np.flatnonzero(positions < 0)
            if not len(unknown):
                break
            own = index.find_all([keys[n] for n in unknown.tolist()])
            positions[unknown[own >= 0]] = own[own >= 0] + start
        return positions

    def key(self, position: int) -> str:
        number = self.number_of(position)
        return self.indexes[number].key(position - self.starts[number])

    def keys(self) -> Iterator[str]:
        return itertools.chain.from_iterable(index.keys() for index in self.indexes)

    def positions_with(self, fragment: str) -> Iterator[int]:
        for start, index in zip(self.starts, self.indexes, strict=False):
            yield from (start + position for position in index.positions_with(fragment))

    def number_of(self, position: int) -> int:
        """Return the number of the file that holds a position."""
        return bisect.bisect_right(self.starts, position) - 1

    def _are_in_order(self) -> bool:
        """Tell whether the keys lie in the order of a conversion, as those of shards do."""
        last: Any = ()
        for index in filter(len, self.indexes):
            if order_of(index.key(0)) <= last or not index.is_in_order:
                return False
            last = order_of(index.key(len(index) - 1))
        return True

    def _check_common(self) -> None:
        for n, index in enumerate(self.indexes):
            keys = list(index.keys())
            for other in self.indexes[:n]:
                common = np.flatnonzero(other.find_all(keys) >= 0)
                if len(common):
                    raise LoadError(
                        f"{keys[int(common[0])]!r} is in {other.path} and in {index.path}: read "
                        "files that have no keys in common"
                    )


class SeveralFiles:
    """Open files, read as one by the methods of an `IndexedFile` and an `EncodedFile`."""

    def __init__(self, files: Sequence[OneFile]) -> None:
        self._files = files
        self.keys = SeveralIndexes([file.keys for file in files])
        self.identity = tuple(file.identity for file in files)
        self.holds_files = any(file.holds_files for file in files)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def payload(self, position: int) -> Bytes | np.ndarray:
        file, position = self._split(position)
        return file.payload(position)

    def read(self, position: int) -> np.ndarray:
        file, position = self._split(position)
        return file.read(position)

    def view(self, position: int, first_row: int = 0, rows: int | None = None) -> np.ndarray:
        file, position = self._split(position)
        return file.view(position, first_row, rows)

    def reducible_shape(self, position: int) -> tuple[int, ...] | None:
        file, position = self._split(position)
        return file.reducible_shape(position) if isinstance(file, EncodedFile) else None

    def reduced(self, position: int, factor: int) -> np.ndarray | None:
        file, position = self._split(position)
        return file.reduced(position, factor) if isinstance(file, EncodedFile) else None

    def placed(self, positions: np.ndarray) -> Placed:
        """Return where the samples at positions in range lie, each in its own file."""
        offsets, numbers = np.empty((2, len(positions)), np.int64)
        for file, chosen, own in self._by_file(positions):
            placed = self._files[file].placed(own)
            offsets[chosen] = placed.offsets
            numbers[chosen] = np.where(placed.numbers < 0, -1, placed.numbers | file << FILE_BITS)
        return Placed(offsets, numbers)

    def layout(self, number: int) -> Layout | None:
        if number < 0:
            return None
        return self._files[number >> FILE_BITS].layout(number & ((1 << FILE_BITS) - 1))

    def read_part(self, position: int, selection: Any) -> np.ndarray:
        file, position = self._split(position)
        return file.read_part(position, selection)

    def read_batch(
        self, positions: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """Return the arrays at positions, or fill ``out``; each file reads its own at once."""
        numbers = self._numbers_of(positions)
        if (numbers == numbers[0]).all():
            number = int(numbers[0])
            return self._files[number].read_batch(positions - self.keys.starts[number], out)
        arrays: list[Any] = [None] * len(positions)
        for number, chosen, own in self._by_file(positions):
            some = self._files[number].read_batch(own)
            for n, array in zip(chosen.tolist(), some, strict=True):
                arrays[n] = array
        return arrays if out is None else fill_rows(out, arrays, self.keys, positions)

    def fetch(self, positions: np.ndarray) -> None:
        for number, _, own in self._by_file(positions):
            self._files[number].fetch(own)

    def location(self, position: int) -> Location:
        """Return where the bytes of a sample lie, and in which of the files."""
        file, position = self._split(position)
        return file.location(position)

    def _by_file(self, positions: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield each file's number, which positions are its own, and those as its own count."""
        numbers = self._numbers_of(positions)
        for number in np.unique(numbers).tolist():
            chosen = np.flatnonzero(numbers == number)
            yield number, chosen, positions[chosen] - self.keys.starts[number]

    def _numbers_of(self, positions: np.ndarray) -> np.ndarray:
        """Return the number of the file that holds each position."""
        return np.searchsorted(self.keys.starts, positions, "right") - 1

    def _split(self, position: int) -> tuple[OneFile, int]:
        number = self.keys.number_of(position)
        return self._files[number], position - self.keys.starts[number]
