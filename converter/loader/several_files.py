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
from converter.loader.encoded_file import EncodedFile
from converter.loader.h5py_file import H5pyFile
from converter.loader.indexed_file import Bytes, IndexedFile

OneFile = IndexedFile | H5pyFile | EncodedFile


class SeveralIndexes:
    """The keys of several files, one behind the other.

    Raises LoadError where two have one in common.
    """

    def __init__(self, tails: Sequence[Index]) -> None:
        self.path = ", ".join(tail.path for tail in tails)
        self._tails = tails
        self.starts = [0, *itertools.accumulate(len(tail) for tail in tails)]
        if not self._are_in_order():  # else they have no keys in common
            self._check_common()

    def __len__(self) -> int:
        return self.starts[-1]

    def damage(self, what: str) -> LoadError:
        """Return the error to raise for what cannot be."""
        return self._tails[0].damage(what)

    def find(self, key: str) -> int | None:
        """Return a key's position."""
        for start, tail in zip(self.starts, self._tails, strict=False):
            position = tail.find(key)
            if position is not None:
                return start + position
        return None

    def find_all(self, keys: Sequence[str]) -> np.ndarray:
        """Return the position of each key, -1 for unknown ones."""
        found = np.full(len(keys), -1, np.int64)
        for start, tail in zip(self.starts, self._tails, strict=False):
            absent = np.flatnonzero(found < 0)
            if not len(absent):
                break
            positions = tail.find_all([keys[n] for n in absent.tolist()])
            found[absent[positions >= 0]] = positions[positions >= 0] + start
        return found

    def key(self, position: int) -> str:
        """Return the key at a position that is in range."""
        number = self.number_of(position)
        return self._tails[number].key(position - self.starts[number])

    def keys(self) -> Iterator[str]:
        """Yield all keys in stored order."""
        for tail in self._tails:
            yield from tail.keys()

    def positions_with(self, fragment: str) -> Iterator[int]:
        """Yield the positions of keys that hold a text."""
        for start, tail in zip(self.starts, self._tails, strict=False):
            for position in tail.positions_with(fragment):
                yield start + position

    def number_of(self, position: int) -> int:
        """Return which file a position is in."""
        return bisect.bisect_right(self.starts, position) - 1

    def _are_in_order(self) -> bool:
        """Tell whether the keys lie in the order of a conversion, as those of shards do."""
        last: Any = ()
        for tail in self._tails:
            if not len(tail):
                continue
            if order_of(tail.key(0)) <= last or not tail.is_in_order:
                return False
            last = order_of(tail.key(len(tail) - 1))
        return True

    def _check_common(self) -> None:
        for n, tail in enumerate(self._tails):
            keys = list(tail.keys())
            for other in self._tails[:n]:
                common = np.flatnonzero(other.find_all(keys) >= 0)
                if len(common):
                    raise LoadError(
                        f"{keys[int(common[0])]!r} is in {other.path} and in {tail.path}: read "
                        "files that have no names in common"
                    )


class SeveralFiles:
    """Open files, read as one."""

    def __init__(self, files: Sequence[OneFile]) -> None:
        self._files = files
        self.keys = SeveralIndexes([file.keys for file in files])
        self.identity = tuple(file.identity for file in files)
        self.holds_files = any(file.holds_files for file in files)

    def close(self) -> None:
        """Close all."""
        for file in self._files:
            file.close()

    def payload(self, position: int) -> Bytes | np.ndarray:
        """Return the bytes of an encoded file, or an array."""
        file, position = self._split(position)
        return file.payload(position)

    def read(self, position: int) -> np.ndarray:
        """Return the array at a position in range."""
        file, position = self._split(position)
        return file.read(position)

    def read_part(self, position: int, selection: Any) -> np.ndarray:
        """Return a part of the array at a position in range."""
        file, position = self._split(position)
        return file.read_part(position, selection)

    def read_batch(self, positions: np.ndarray) -> np.ndarray | list[np.ndarray]:
        """Return arrays; each file reads its own at once."""
        numbers = np.searchsorted(self.keys.starts, positions, "right") - 1
        if (numbers == numbers[0]).all():
            number = int(numbers[0])
            return self._files[number].read_batch(positions - self.keys.starts[number])
        arrays: list[Any] = [None] * len(positions)
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            some = self._files[number].read_batch(positions[places] - self.keys.starts[number])
            for place, array in zip(places.tolist(), some, strict=True):
                arrays[place] = array
        return arrays

    def _split(self, position: int) -> tuple[OneFile, int]:
        number = self.keys.number_of(position)
        return self._files[number], position - self.keys.starts[number]
