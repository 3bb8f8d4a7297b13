"""Look samples up in the index; believe nothing of it unchecked."""

from __future__ import annotations

import bisect
import dataclasses
import mmap
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any
from zlib import crc32 as crc32_of_key  # for short keys quicker than zlib_ng's

import numpy as np

from converter.codecs.filters import crc32
from converter.errors import LoadError
from converter.files import Handle, is_refusal
from converter.format.index import (
    CHUNK,
    FOOTER,
    MAGIC,
    ROW,
    SECTIONS,
    SOURCE,
    SOURCES_END,
    SOURCES_MAGIC,
    VERSION,
    Extent,
    Footer,
    order_of,
)
from converter.format.layout import Layout, parse_layout
from converter.format.superblock import SIGNATURE, SUPERBLOCK, check_closed, find_superblock

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
ROWS_AT_ONCE = 1 << 18
MOST_LAYOUTS_KEPT = 4096
KEYS_PROBED = 64
PIECE_NBYTES = 1 << 24


class Index:
    """The index of a file, mapped or in memory.

    Raises LoadError from any method when what the index says is impossible.
    """

    def __init__(self, content: bytes | mmap.mmap, begin: int, path: str) -> None:
        self.path = path
        self._content = content
        footer = Footer.unpack(bytes(content[len(content) - FOOTER.size :]))
        assert footer is not None
        self.hdf5_nbytes, self.sources_nbytes, self.groups_begin, sizes, *numbers = footer
        self.groups_crc32, self._bits, version, self.crc32 = numbers
        if version != VERSION:
            raise self.damage(f"has version {version}, not {VERSION}")
        self._check_crc(begin)
        self._begins = dict(zip(SECTIONS, self._place_sections(begin, sizes), strict=True))
        self._sizes = dict(zip(SECTIONS, sizes, strict=True))
        self._len: int = self._sizes["rows"] // ROW.itemsize
        self._check_sizes()
        self.rows = self._array("rows", ROW)
        self._slots, self._buckets = self._array("slots", "<u4"), self._array("buckets", "<u4")
        self._paths_begin = self._begins["paths"]
        self._check_order()
        self._shift = 32 - self._bits
        self._bucket_begins, self._slot_positions = _ints(self._buckets), _ints(self._slots)
        self._path_ends, self._crcs = _ints(self.rows["path_end"]), _ints(self.rows["crc32"])
        #: For single samples: a number each, in a third of the time numpy takes.
        self.offsets, self.nbytes = _ints(self.rows["offset"]), _ints(self.rows["nbytes"])
        self.layout_numbers = _ints(self.rows["layout"])
        self._layouts: dict[int, Layout] = {}

    @property
    def is_in_order(self) -> bool:
        """Tell whether the keys seem to lie in the order of a conversion, from a few of them."""
        step = max(1, self._len // KEYS_PROBED)
        orders = [order_of(self.key(position)) for position in range(0, self._len, step)]
        return all(one < other for one, other in pairwise(orders))

    @property
    def has_encoded(self) -> bool:
        """Tell whether a layout is of files as they were."""
        begin = self._begins["layouts"]
        end = begin + self._sizes["layouts"]
        return self._content.find(b'"encoded"', begin, end) >= 0

    def __len__(self) -> int:
        return self._len

    def damage(self, what: str) -> LoadError:
        """Return the error to raise when the index says something impossible."""
        return LoadError(
            f"the index of {self.path} {what}: read the file with h5py, or convert it again"
        )

    def find(self, key: str) -> int | None:
        name = key.encode(errors="surrogatepass")
        bucket = crc32_of_key(name) >> self._shift
        path_ends, paths_begin = self._path_ends, self._paths_begin
        for slot in range(self._bucket_begins[bucket], self._bucket_begins[bucket + 1]):
            position: int = self._slot_positions[slot]
            begin = paths_begin + (path_ends[position - 1] if position else 0)
            if self._content[begin : paths_begin + path_ends[position]] == name:
                return position
        return None

    def find_all(self, keys: Sequence[str]) -> np.ndarray:
        """Return the position of each key, -1 for unknown ones."""
        names = [key.encode(errors="surrogatepass") for key in keys]
        hashes = np.fromiter(map(crc32_of_key, names), np.uint64, len(names))
        buckets = (hashes >> np.uint64(self._shift)).view(np.int64)
        firsts = self._buckets[buckets].astype(np.int64)
        counts = self._buckets[buckets + 1] - firsts
        # One entry for each key and each sample in its bucket.
        owners = np.repeat(np.arange(len(names)), counts)
        slots = np.arange(len(owners)) + np.repeat(firsts + counts - np.cumsum(counts), counts)
        positions = self._slots[slots].astype(np.int64)
        found = np.full(len(names), -1, np.int64)
        same = self._have_names(positions, names, owners)
        found[owners[same]] = positions[same]
        return found

    def _have_names(
        self, positions: np.ndarray, names: list[bytes], owners: np.ndarray
    ) -> np.ndarray:
        """Return where the sample at ``positions[n]`` is called ``names[owners[n]]``."""
        path_ends = self.rows["path_end"]
        ends = path_ends[positions].view(np.int64)
        begins = np.where(positions, path_ends[positions - 1].view(np.int64), 0)
        lengths = np.fromiter(map(len, names), np.int64, len(names))[owners]
        fits = ends - begins == lengths
        same = []
        for length in {len(name) for name in names} - {0}:
            chosen = np.flatnonzero(fits & (lengths == length))
            if len(chosen):
                wanted = np.array(names, f"V{length}")[owners[chosen]]
                count = self._sizes["paths"] - length + 1
                # the paths' bytes as overlapping items of this length
                paths = np.ndarray(count, f"V{length}", self._content, self._paths_begin, 1)
                same.append(chosen[paths[begins[chosen]] == wanted])
        return np.concatenate(same) if same else np.empty(0, np.int64)

    def key(self, position: int) -> str:
        """Return the key at a position that is in range."""
        begin = self._path_ends[position - 1] if position else 0
        return self._decoded(begin, self._path_ends[position])

    def keys(self) -> Iterator[str]:
        """Yield all keys in stored order."""
        begin = 0
        for first in range(0, self._len, ROWS_AT_ONCE):
            for end in self.rows["path_end"][first : first + ROWS_AT_ONCE].tolist():
                yield self._decoded(begin, end)
                begin = end

    @property
    def path_bytes(self) -> np.ndarray:
        """Return the bytes of all keys, one behind the other; rows["path_end"] says where."""
        return self._array("paths", "u1")

    def positions_with(self, fragment: str) -> Iterator[int]:
        """Yield the positions of keys that hold a text, in stored order."""
        wanted = fragment.encode(errors="surrogatepass")
        stop = self._paths_begin + self._sizes["paths"]
        at = self._paths_begin
        while 0 <= (at := self._content.find(wanted, at, stop)) < stop:
            position = bisect.bisect_right(self._path_ends, at - self._paths_begin)
            end = self._paths_begin + self._path_ends[position]
            if at + len(wanted) <= end:
                yield position
            at = max(end, at + 1)

    def layout(self, number: int) -> Layout:
        """Return a checked layout."""
        layout = self._layouts.get(number)
        if layout is None:
            if len(self._layouts) >= MOST_LAYOUTS_KEPT:
                self._layouts.clear()
            layout = self._layouts[number] = self._parse_layout(number)
        return layout

    def layout_at(self, position: int) -> Layout:
        """Return the checked layout of a sample; what it claims to hold is not checked yet."""
        layout = self.layout(self.layout_numbers[position])
        if layout.has_shape:
            return layout
        return dataclasses.replace(layout, shape=(self.nbytes[position],))

    def extents(self, position: int) -> list[Extent]:
        """Return the checked extents of a sample's payloads, one for each chunk.

        They lie within the HDF5 part, and what they hold can be the array.
        """
        layout = self.layout_at(position)
        offset, nbytes = self.offsets[position], self.nbytes[position]
        count = layout.count_extents(nbytes)
        extents = [Extent(offset, nbytes, self._crcs[position])]
        if count != 1:
            extents = self._chunk_extents(offset, count) if count else []
        fits = sum(extent.nbytes for extent in extents) == nbytes
        fits = fits and layout.can_come_from(nbytes) if layout.nbytes else nbytes == 0
        end = self.hdf5_nbytes
        if not fits or any(e.nbytes < 1 or e.offset + e.nbytes > end for e in extents):
            raise self.misplaced(position)
        return extents

    def misplaced(self, position: int) -> LoadError:
        """Return the error for a sample whose row contradicts its layout or the file."""
        nbytes, offset = self.nbytes[position], self.offsets[position]
        return self.damage(
            f"gives {self.key(position)!r} impossible extents ({nbytes} bytes at {offset})"
        )

    def _chunk_extents(self, first: int, count: int) -> list[Extent]:
        if first + count > self._sizes["chunks"] // CHUNK.itemsize:
            raise self.damage(f"has no chunks {first} to {first + count}")
        rows = self._array("chunks", CHUNK)[first : first + count]
        return [Extent(offset, nbytes, crc) for offset, nbytes, crc, _ in rows.tolist()]

    def _parse_layout(self, number: int) -> Layout:
        ends = self._array("layout_ends", "<u8")
        if number >= len(ends):
            raise self.damage(f"has no layout {number}")
        begin, end = int(ends[number - 1]) if number else 0, int(ends[number])
        offset = self._begins["layouts"]
        try:
            return parse_layout(bytes(self._content[offset + begin : offset + end]))
        except ValueError as error:
            raise self.damage(f"has {error}") from None

    def _decoded(self, begin: int, end: int) -> str:
        try:
            return self._content[self._paths_begin + begin : self._paths_begin + end].decode()
        except UnicodeDecodeError:
            raise self.damage("holds a path that is not UTF-8") from None

    def _array(self, section: str, dtype: Any) -> np.ndarray:
        dtype = np.dtype(dtype)
        count = self._sizes[section] // dtype.itemsize
        return np.frombuffer(self._content, dtype, count, self._begins[section])

    def _check_crc(self, begin: int) -> None:
        end = len(self._content) - len(MAGIC) - U32.size
        if crc32(memoryview(self._content)[begin:end]) != self.crc32:
            raise self.damage("is damaged (its checksum differs)")

    def _place_sections(self, begin: int, sizes: tuple[int, ...]) -> list[int]:
        begins, at = [], begin
        for size in sizes:
            begins.append(at)
            at += size + -size % 8
        if at != len(self._content) - FOOTER.size:
            raise self.damage(f"has sections that add up to {at - begin} bytes, not to its length")
        return begins

    def _check_sizes(self) -> None:
        sizes, buckets = self._sizes, 2**self._bits if self._bits <= 32 else -1
        if (
            sizes["rows"] % ROW.itemsize
            or sizes["chunks"] % CHUNK.itemsize
            or sizes["layout_ends"] % U64.size
            or sizes["slots"] != U32.size * self._len
            or sizes["buckets"] != U32.size * (buckets + 1)
        ):
            raise self.damage("has sections of impossible sizes")

    def _check_order(self) -> None:
        """Check what each search relies on; what reading relies on is checked then."""
        slots, buckets, count = self._slots, self._buckets, self._len
        if buckets[0] or buckets[-1] != count or not _is_sorted(buckets):
            raise self.damage("has buckets out of order")
        if count and int(slots.max()) >= count:
            raise self.damage("has slots outside its rows")
        ends = self.rows["path_end"]
        if int(ends[-1]) != self._sizes["paths"] if count else self._sizes["paths"]:
            raise self.damage("has paths of another length")
        if not _is_sorted(ends):
            raise self.damage("has paths out of order")
        ends = self._array("layout_ends", "<u8")
        if int(ends[-1]) != self._sizes["layouts"] if len(ends) else self._sizes["layouts"]:
            raise self.damage("has layouts of another length")
        if not _is_sorted(ends):
            raise self.damage("has layouts out of order")


def _ints(values: np.ndarray) -> memoryview:
    """Return integers to be taken one by one, without a copy where the machine allows it."""
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return memoryview(native)  # type: ignore[arg-type]


def _is_sorted(values: np.ndarray) -> bool:
    """Tell whether no value is less than the one before, in little memory."""
    for first in range(0, len(values), ROWS_AT_ONCE):
        block = values[first : first + ROWS_AT_ONCE + 1]
        if (block[1:] < block[:-1]).any():
            return False
    return True


def open_index(handle: Handle) -> Index | None:
    """Return the index of a file, mapped; None where it has none.

    Raises LoadError where what it says is impossible.
    """
    if handle.nbytes < FOOTER.size + SUPERBLOCK.size:
        return None
    footer = Footer.unpack(handle.read(FOOTER.size, handle.nbytes - FOOTER.size))
    if footer is None:
        return None
    hdf5_nbytes, sources_nbytes = footer[:2]
    begin = sources_begin(hdf5_nbytes) + sources_nbytes
    check_closed(handle)
    signature, version, _, end_of_file = SUPERBLOCK.unpack(handle.read(SUPERBLOCK.size, 0))
    if signature != SIGNATURE:
        if find_superblock(handle) is not None:  # a user block has moved all the index points to
            return None
        raise LoadError(f"{handle.path} is not an HDF5 file, though it ends like one of ours")
    is_known = footer.version == VERSION
    is_inside = begin <= handle.nbytes - FOOTER.size
    if is_known and not (is_inside and (version < 2 or end_of_file == hdf5_nbytes)):
        raise LoadError(
            f"the index of {handle.path} gives the HDF5 part {hdf5_nbytes} bytes, which it does "
            "not have: read the file with h5py, or convert it again"
        )
    first = min(begin, handle.nbytes - FOOTER.size)
    try:
        mapped, offset = handle.map(first, handle.nbytes)
    except OSError as error:
        if not is_refusal(error):
            raise
        return Index(bytes(handle.read(handle.nbytes - first, first)), 0, handle.path)
    return Index(mapped, offset, handle.path)


def sources_begin(hdf5_nbytes: int) -> int:
    """Return where the sources begin, or without them the index."""
    return hdf5_nbytes + -hdf5_nbytes % 8


def crc32_of(handle: Handle, begin: int, end: int) -> int:
    """Return the CRC-32 of a part of a file, in little memory."""
    crc = 0
    for offset in range(begin, end, PIECE_NBYTES):
        crc = crc32(handle.read(min(PIECE_NBYTES, end - offset), offset), crc)
    return crc


def read_sources(section: bytes | bytearray) -> np.ndarray | None:
    """Return the sources ``(N,)`` of `SOURCE`; None where there are none, or they are damaged."""
    if len(section) < SOURCES_END.size or (len(section) - SOURCES_END.size) % SOURCE.itemsize:
        return None
    crc, _, magic = SOURCES_END.unpack(section[-SOURCES_END.size :])
    rows = section[: -SOURCES_END.size]
    if magic != SOURCES_MAGIC or crc32(rows) != crc:
        return None
    return np.frombuffer(rows, SOURCE)
