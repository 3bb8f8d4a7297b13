"""What the folders of this package hand each other: keys, samples, failures, batches."""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Flag
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

if TYPE_CHECKING:
    from converter.format.layout import Layout

BASE_NBYTES = 4 << 20


class Failure(NamedTuple):
    """A sample that was not stored, and why."""

    key: str
    reason: str


class KeyList(Sequence[str]):
    """Keys in plan order, as one block of UTF-8: 8 bytes a key beside its name."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._names = bytearray()
        self._ends = array("Q", [0])
        for key in keys:
            self.append(key.encode())

    def append(self, key: bytes) -> None:
        self._names += key
        self._ends.append(len(self._names))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def digest(self) -> str:
        """Return a SHA-256 that other keys do not have."""
        import hashlib  # shards need it

        found = hashlib.sha256(self._names)
        found.update(self._ends.tobytes())
        return found.hexdigest()

    @overload
    def __getitem__(self, item: int) -> str: ...
    @overload
    def __getitem__(self, item: slice) -> list[str]: ...
    def __getitem__(self, item: int | slice) -> str | list[str]:
        if isinstance(item, slice):
            first, end, step = item.indices(len(self))
            if step != 1:
                return [self[i] for i in range(first, end, step)]
            ends = self._ends[first : max(first, end) + 1]
            return [self._names[a:b].decode() for a, b in pairwise(ends)]
        if not 0 <= item < len(self):
            raise IndexError(item)
        return self._names[self._ends[item] : self._ends[item + 1]].decode()


@dataclass
class Plan:
    """What a walk found: the keys to read, and everything that was left out."""

    root: Path
    keys: KeyList = field(default_factory=KeyList)
    left_out: Counter[str] = field(default_factory=Counter)
    linked_folders: int = 0
    hidden_folders: Counter[str] = field(default_factory=Counter)  # not entered, by name
    failures: list[Failure] = field(default_factory=list)
    folders: int = 0  # those that hold keys
    shard: dict[str, int | str] | None = None  # which part of a whole it is

    def part(self, number: int, count: int) -> Plan:
        """Return the ``number``-th of ``count`` equal parts; the first has all failures."""
        total = len(self.keys)
        begin, end = (number - 1) * total // count, number * total // count
        shard: dict[str, int | str] = {
            "number": number,
            "of": count,
            "files": total,
            "keys": self.keys.digest(),
        }
        failures = self.failures if number == 1 else []
        return replace(self, keys=KeyList(self.keys[begin:end]), failures=failures, shard=shard)

    def shard_attribute(self) -> dict[str, str]:
        """Return the root attribute that tells which part it is; none of a whole."""
        return {} if self.shard is None else {"shard": json.dumps(self.shard, sort_keys=True)}

    def path(self, key: str) -> str:
        """Return the path of a sample's file."""
        return path_of(str(self.root), key)


def path_of(root: str, key: str) -> str:
    """Return the path of a sample's file below the folder that was walked."""
    return f"{root}/{key}" if os.sep == "/" else os.path.join(root, *key.split("/"))


class Note(Flag):
    """What a reader did to an image that its user may not expect."""

    NONE = 0
    PALETTE = 1  # expanded to colours
    FRAMES = 2  # all of them stored
    FIRST_PICTURE = 4  # of several, as phones put into a JPEG
    INDICES = 8  # of a palette, which is not stored
    REDUCED = 16  # smaller copies left out
    FIRST_FRAME = 32  # of several: OpenCV
    DEPTH = 64  # cut to 8 bits: OpenCV
    ALPHA = 128  # left out: OpenCV
    FEW_VALUES = 256  # one channel of few values, as labels have, was interpolated
    HOLES = 512  # one channel of depth with many zeros was interpolated
    RESIZED = 1024  # as --resize asks; not of one that needed no change


class Part(NamedTuple):
    """One stored chunk, or the whole of a contiguous dataset."""

    nbytes: int
    crc32: int


class Encoded(NamedTuple):
    """A sample whose payload is in a buffer: its parts, then space for HDF5's structures."""

    key: str
    layout: Layout
    parts: tuple[Part, ...]
    source_nbytes: int
    source_mtime_ns: int
    note: Note = Note.NONE

    @property
    def source(self) -> tuple[int, int]:
        """Return size and time of its file."""
        return self.source_nbytes, self.source_mtime_ns

    @property
    def record_nbytes(self) -> int:
        """Return the bytes of its payload, with the space for HDF5's structures."""
        from converter.format.headers import structure_nbytes

        return sum(part.nbytes for part in self.parts) + structure_nbytes(self.layout)


class Surveyed(NamedTuple):
    """What would be stored of a sample: bytes with HDF5's structures, for each choice.

    ``compressed`` tells where a filter would make it smaller.
    """

    key: str
    source_nbytes: int
    stored_nbytes: tuple[int, ...]
    compressed: tuple[bool, ...]


class Checked(NamedTuple):
    """A sample in which no fault was found."""

    key: str
    nbytes: int


Result = Encoded | Surveyed | Checked | Failure


class Buffer:
    """A reusable buffer, filled from the front; grows to what it must hold."""

    def __init__(self, nbytes: int = 0) -> None:
        self.used = 0
        self._buffer = _memory(nbytes)

    def view(self, nbytes: int) -> memoryview:
        """Return the next ``nbytes`` bytes, to be written to; not yet kept."""
        if self.used + nbytes > len(self._buffer):
            self._grow(self.used + nbytes)
        return self._buffer[self.used : self.used + nbytes]

    def keep(self, nbytes: int) -> None:
        self.used += nbytes

    def payload(self) -> memoryview:
        """Return all that was kept since `reset`."""
        return self._buffer[: self.used]

    def reset(self) -> None:
        self.used = 0
        if len(self._buffer) > 2 * BASE_NBYTES:
            self._buffer = _memory(0)

    def _grow(self, nbytes: int) -> None:
        larger = _memory(rounded_nbytes(nbytes))
        larger[: self.used] = self._buffer[: self.used]
        self._buffer = larger


def _memory(nbytes: int) -> memoryview:
    """Return memory that the system provides only where it is written to."""
    import numpy as np  # takes too long for --help

    return np.empty(nbytes, np.uint8).data


def rounded_nbytes(nbytes: int) -> int:
    """Return a size for a buffer: it need not grow again soon, and little of it stays unused."""
    return max(1 << 20, 1 << (nbytes - 1).bit_length() if nbytes < BASE_NBYTES else nbytes)


@dataclass
class Batch:
    """Results in plan order; ``payload`` holds what they put in the buffer.

    The payload is valid until the next batch is asked for. To use it longer, set ``is_held``, and
    call ``release``, from any thread, when it is no longer needed. With ``is_in_place`` there is
    none: all of it is in the unfinished file already.
    """

    results: list[Result]
    payload: memoryview
    release: Callable[[], None] = lambda: None
    is_held: bool = False
    is_in_place: bool = False


Run = Callable[[Sequence[str]], Iterator[Batch]]


class Portions:
    """Batches to be taken in other portions than they come in.

    One `Run` reads all, so that workers read on where few samples lie between copies.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._rest = Batch([], memoryview(b""))

    def take(self, count: int) -> Iterator[Batch]:
        """Yield the next so many samples."""
        while count > 0:
            batch = self._rest if self._rest.results else next(self._batches)
            first, self._rest = _cut(batch, count)
            count -= len(first.results)
            yield first

    def finish(self) -> None:
        """Have the iterator come to its end."""
        deque(self._batches, maxlen=0)


def _cut(batch: Batch, count: int) -> tuple[Batch, Batch]:
    """Cut a batch behind its first samples; the last part releases it."""
    if len(batch.results) <= count:
        return batch, Batch([], memoryview(b""))
    batch.is_held = True
    nbytes = 0
    for result in batch.results[:count]:
        if isinstance(result, Encoded):
            nbytes += result.record_nbytes
    return (
        Batch(batch.results[:count], batch.payload[:nbytes]),
        Batch(batch.results[count:], batch.payload[nbytes:], batch.release),
    )


def until_failure(batch: Batch) -> Batch:
    """Return a batch without what comes behind its first failure."""
    numbers = (n for n, result in enumerate(batch.results) if isinstance(result, Failure))
    return _cut(batch, next(numbers, len(batch.results)) + 1)[0]
