"""Lay out the index of all payloads, behind HDF5's end of file.

All numbers are little-endian. At the first multiple of 8 behind the HDF5 part come the sources.
Only an update reads them; they differ between two copies of a folder with other times::

    sources      16 bytes a sample: `SOURCE`, the size and time of its source file
    end          `SOURCES_END`: CRC-32 of the sources, and a magic number

A rebuilt index has neither. The index itself follows, and ends with the file::

    rows         32 bytes a sample: `ROW`
    chunks       24 bytes a chunk of the samples that have several: `CHUNK`
    paths        the keys, UTF-8, one behind the other
    layouts      one JSON object each: dtype, shape, chunks, filters, content
    layout_ends  8 bytes each: where each layout ends within "layouts"
    buckets      4 bytes each: where each bucket begins within "slots", and a last end
    slots        4 bytes a sample: its position, sorted by bucket
    footer       `FOOTER`

Each section begins at a multiple of 8, padded with zeros. A key's bucket is the top
``bucket_bits`` bits of the CRC-32 (zlib's) of its UTF-8 bytes. The footer's CRC-32 covers the
index up to itself.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

MAGIC = b"\x89D2H5IX\n"  # the first byte is no text, as in PNG
VERSION = 2
SOURCES_MAGIC = b"D2H5SRC\n"
SECTIONS = ("rows", "chunks", "paths", "layouts", "layout_ends", "buckets", "slots")

#: A sample with one payload has its offset, size and CRC-32 here. With several, offset is the
#: first of its rows in "chunks", and nbytes the sum of their sizes. Empty arrays have neither.
ROW = np.dtype(
    [("offset", "<u8"), ("nbytes", "<u8"), ("path_end", "<u8"), ("crc32", "<u4"), ("layout", "<u4")]
)
CHUNK = np.dtype([("offset", "<u8"), ("nbytes", "<u8"), ("crc32", "<u4"), ("zero", "<u4")])
SOURCE = np.dtype([("nbytes", "<u8"), ("mtime_ns", "<i8")])
SOURCES_END = struct.Struct("<II8s")  # CRC-32, zero, magic
ROW_STRUCT = struct.Struct("<QQQII")
CHUNK_STRUCT = struct.Struct("<QQII")
#: `Footer`, then the magic number: the last 16 bytes are version, CRC-32 and magic in any version.
FOOTER = struct.Struct(f"<QQQ{len(SECTIONS)}QIIII8s")

MOST_SAMPLES = 2**32 - 1
INTERNED_LAYOUTS = 4096


class Extent(NamedTuple):
    """Where one payload lies in the file."""

    offset: int
    nbytes: int
    crc32: int


class Footer(NamedTuple):
    """The end of an index.

    ``groups_crc32`` covers the HDF5 part from ``groups_begin``, behind all samples, to its end.
    ``sizes`` are those of the sections; ``crc32`` covers the index up to itself.
    """

    hdf5_nbytes: int
    sources_nbytes: int
    groups_begin: int
    sizes: tuple[int, ...]
    groups_crc32: int
    bucket_bits: int
    version: int = VERSION
    crc32: int = 0

    def pack(self) -> bytes:
        """Return its bytes, with the magic number."""
        return FOOTER.pack(*self[:3], *self.sizes, *self[4:], MAGIC)

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> Footer | None:
        """Return the footer of these bytes; None where they have another magic number."""
        hdf5, sources, groups, *sizes, crc_groups, bits, version, crc, magic = FOOTER.unpack(data)
        if magic != MAGIC:
            return None
        return cls(hdf5, sources, groups, tuple(sizes), crc_groups, bits, version, crc)


class IndexBuilder:
    """Collect the rows of a file being written: 52 bytes a sample beside its key."""

    def __init__(self) -> None:
        self._rows = bytearray()
        self._chunks = bytearray()
        self._paths = bytearray()
        self._hashes = bytearray()
        self._sources = bytearray()
        self._layouts = bytearray()
        self._layout_ends = bytearray()
        self._known: dict[bytes, int] = {}

    def keys(self) -> Iterator[bytes]:
        """Yield the keys in stored order."""
        start = 0
        for (end,) in struct.iter_unpack("<16xQ8x", self._rows):
            yield bytes(self._paths[start:end])
            start = end

    def __len__(self) -> int:
        return len(self._rows) // ROW.itemsize

    def add(
        self,
        key: bytes,
        layout: bytes,
        extents: Sequence[Extent],
        source: tuple[int, int] | None = None,
    ) -> None:
        """Add a sample in stored order; ``layout`` as `layout_json` gives it.

        ``source`` is the size and time of its file, as in `SOURCE`: of all samples or of none.
        """
        places = np.array(extents, np.uint64).reshape(-1, 3)
        sources = None if source is None else np.array([source], SOURCE)
        self.extend([key], [layout], np.array([len(extents)]), places, sources)

    def extend(
        self,
        keys: Sequence[bytes],
        layouts: Sequence[bytes],
        counts: np.ndarray,
        extents: np.ndarray,
        sources: np.ndarray | None,
    ) -> None:
        """Add samples as `add` adds one, in a tenth of the time.

        ``counts`` ``(N,)`` says how many of the ``extents`` ``(P, 3)`` each has; ``sources`` are
        of `SOURCE`.
        """
        if len(self) + len(keys) > MOST_SAMPLES:
            raise ValueError(f"an index holds at most {MOST_SAMPLES} samples: convert in parts")
        rows, ends, is_one = np.zeros(len(keys), ROW), np.cumsum(counts), counts == 1
        rows["path_end"] = np.cumsum([len(self._paths), *map(len, keys)])[1:]
        rows["layout"] = self._numbers(layouts)
        for name, values in zip(Extent._fields, extents[ends[is_one] - 1].T, strict=True):
            rows[name][is_one] = values
        for n in np.flatnonzero(counts > 1).tolist():
            chunks = extents[ends[n] - counts[n] : ends[n]]
            rows["offset"][n] = len(self._chunks) // CHUNK.itemsize
            rows["nbytes"][n] = chunks[:, 1].sum()
            self._chunks += b"".join(CHUNK_STRUCT.pack(*chunk, 0) for chunk in chunks.tolist())
        self._rows += rows.tobytes()
        self._paths += b"".join(keys)
        self._hashes += struct.pack(f"<{len(keys)}I", *map(zlib.crc32, keys))
        if sources is not None:
            self._sources += sources.tobytes()

    def _numbers(self, layouts: Sequence[bytes]) -> list[int]:
        try:
            return [self._known[layout] for layout in layouts]
        except KeyError:
            return [self._intern(layout) for layout in layouts]

    def _intern(self, layout: bytes) -> int:
        if layout in self._known:
            return self._known[layout]
        if len(self._known) >= INTERNED_LAYOUTS:  # memory is bounded; some are written twice
            self._known.clear()
        number = self._known[layout] = len(self._layout_ends) // 8
        self._layouts += layout
        self._layout_ends += len(self._layouts).to_bytes(8, "little")
        return number

    def write(
        self,
        file: BinaryIO,
        hdf5_nbytes: int,
        *,
        groups_begin: int | None = None,
        groups_crc32: int = 0,
    ) -> None:
        """Write sources and index to ``file``, which stands at the end of the HDF5 part.

        ``groups_begin`` is where in that part the groups begin, if they are behind all samples,
        and ``groups_crc32`` the checksum from there on.
        """
        file.write(bytes(-hdf5_nbytes % 8))
        sources_nbytes = self._write_sources(file)
        bits, *table = _hash_table(np.frombuffer(self._hashes, "<u4"))
        texts = (self._paths, self._layouts, self._layout_ends)
        crc, sizes = 0, []
        for section in (self._rows, self._chunks, *texts, *table):
            content = memoryview(section).cast("B")  # type: ignore[arg-type]
            sizes.append(len(content))
            for piece in (content, bytes(-len(content) % 8)):
                file.write(piece)
                crc = zlib.crc32(piece, crc)
        begin = hdf5_nbytes if groups_begin is None else groups_begin
        footer = Footer(hdf5_nbytes, sources_nbytes, begin, tuple(sizes), groups_crc32, bits)
        crc = zlib.crc32(footer.pack()[: -len(MAGIC) - 4], crc)
        file.write(footer._replace(crc32=crc).pack())

    def _write_sources(self, file: BinaryIO) -> int:
        if not self._sources:
            return 0
        file.write(self._sources)
        end = SOURCES_END.pack(zlib.crc32(self._sources), 0, SOURCES_MAGIC)
        file.write(end)
        return len(self._sources) + len(end)


def order_of(key: str) -> tuple[tuple[int, str], ...]:
    """Return what sorts keys as a conversion stores them: files of a folder before its folders."""
    *folders, name = key.split("/")
    return (*((1, folder) for folder in folders), (0, name))


def _hash_table(hashes: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Sort positions into about as many buckets as there are keys."""
    bits = max(0, len(hashes) - 1).bit_length()
    bucket = (hashes.astype(np.uint64) >> np.uint64(32 - bits)).astype(np.uint32)
    slots = np.argsort(bucket, kind="stable").astype("<u4")
    buckets = np.zeros(2**bits + 1, "<u4")
    np.cumsum(np.bincount(bucket, minlength=2**bits), out=buckets[1:])
    return bits, buckets, slots
