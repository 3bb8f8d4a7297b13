"""Lay out the tail: the index of all payloads, behind HDF5's end of file.

All numbers are little-endian. The tail begins at the first multiple of 8 behind the HDF5
part and ends with the file::

    rows         32 bytes a sample: `ROW`
    chunks       24 bytes a chunk of the samples that have several: `CHUNK`
    paths        the keys, UTF-8, one behind the other
    layouts      one JSON object each: dtype, shape, chunks, filters, content
    layout_ends  8 bytes each: where each layout ends within "layouts"
    buckets      4 bytes each: where each bucket begins within "slots", and a last end
    slots        4 bytes a sample: its position, sorted by bucket
    footer       `FOOTER`

Each section begins at a multiple of 8, padded with zeros. A key's bucket is the top
``bucket_bits`` bits of the CRC-32 (zlib's) of its UTF-8 bytes. The footer's CRC-32 covers the tail
up to itself.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

MAGIC = b"\x89D2H5IX\n"  # the first byte is no text, as in PNG
VERSION = 1
SECTIONS = ("rows", "chunks", "paths", "layouts", "layout_ends", "buckets", "slots")

#: Of a sample with one payload: its offset, size and CRC-32. With several: offset is its
#: first row in "chunks", nbytes the sum of their sizes. Empty arrays have neither.
ROW = np.dtype(
    [("offset", "<u8"), ("nbytes", "<u8"), ("path_end", "<u8"), ("crc32", "<u4"), ("layout", "<u4")]
)
CHUNK = np.dtype([("offset", "<u8"), ("nbytes", "<u8"), ("crc32", "<u4"), ("zero", "<u4")])
ROW_STRUCT = struct.Struct("<QQQII")
CHUNK_STRUCT = struct.Struct("<QQII")
#: version, bucket_bits, size of the HDF5 part, section sizes, CRC-32, magic.
FOOTER = struct.Struct(f"<IIQ{len(SECTIONS)}QI8s")

MOST_SAMPLES = 2**32 - 1
INTERNED_LAYOUTS = 4096


class Place(NamedTuple):
    """Where one payload lies in the file."""

    offset: int
    nbytes: int
    crc32: int


class IndexBuilder:
    """Collect the rows of a file being written: 36 bytes a sample beside its key."""

    def __init__(self) -> None:
        self._rows = bytearray()
        self._chunks = bytearray()
        self._paths = bytearray()
        self._hashes = bytearray()
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

    def add(self, key: bytes, layout: bytes, places: Sequence[Place]) -> None:
        """Add a sample in stored order; ``layout`` as `layout_json` gives it."""
        if len(self) >= MOST_SAMPLES:
            raise ValueError(f"an index holds at most {MOST_SAMPLES} samples: convert in parts")
        self._paths += key
        self._hashes += zlib.crc32(key).to_bytes(4, "little")
        if len(places) == 1:
            offset, nbytes, crc32 = places[0]
        else:
            offset, crc32 = len(self._chunks) // CHUNK.itemsize if places else 0, 0
            nbytes = sum(place.nbytes for place in places)
            for place in places:
                self._chunks += CHUNK_STRUCT.pack(*place, 0)
        number = self._intern(layout)
        self._rows += ROW_STRUCT.pack(offset, nbytes, len(self._paths), crc32, number)

    def _intern(self, layout: bytes) -> int:
        number = self._known.get(layout)
        if number is None:
            if len(self._known) >= INTERNED_LAYOUTS:  # all different: bounded, some written twice
                self._known.clear()
            number = self._known[layout] = len(self._layout_ends) // 8
            self._layouts += layout
            self._layout_ends += len(self._layouts).to_bytes(8, "little")
        return number

    def write(self, file: BinaryIO, hdf5_nbytes: int) -> None:
        """Write the tail to ``file``, which stands at the end of the HDF5 part."""
        bits, buckets, slots = _hash_table(np.frombuffer(self._hashes, "<u4"))
        sections: tuple[bytearray | np.ndarray, ...] = (
            self._rows,
            self._chunks,
            self._paths,
            self._layouts,
            self._layout_ends,
            buckets,
            slots,
        )
        file.write(bytes(-hdf5_nbytes % 8))
        crc, sizes = 0, []
        for section in sections:
            content = memoryview(section).cast("B")  # type: ignore[arg-type]
            sizes.append(len(content))
            for piece in (content, bytes(-len(content) % 8)):
                file.write(piece)
                crc = zlib.crc32(piece, crc)
        footer = FOOTER.pack(VERSION, bits, hdf5_nbytes, *sizes, 0, MAGIC)
        crc = zlib.crc32(footer[: -len(MAGIC) - 4], crc)
        file.write(FOOTER.pack(VERSION, bits, hdf5_nbytes, *sizes, crc, MAGIC))


def layout_json(
    dtype: np.dtype,
    shape: tuple[int, ...],
    chunks: tuple[int, ...] | None,
    filters: Sequence[tuple[int, tuple[int, ...]]],
    content: str,
) -> bytes:
    """Describe how an array lies in the file; the dtype as in an .npy file's header.

    The length of an encoded file is that of its payload, so that all share a description.
    """
    described = {
        "dtype": np.lib.format.dtype_to_descr(dtype),
        "shape": (None,) if content == "encoded" and chunks is None else shape,
        "chunks": chunks,
        "filters": filters,
        "content": content,
    }
    return json.dumps(described, separators=(",", ":")).encode()


def _hash_table(hashes: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Sort positions into about as many buckets as there are keys."""
    bits = max(0, len(hashes) - 1).bit_length()
    bucket = (hashes.astype(np.uint64) >> np.uint64(32 - bits)).astype(np.uint32)
    slots = np.argsort(bucket, kind="stable").astype("<u4")
    buckets = np.zeros(2**bits + 1, "<u4")
    np.cumsum(np.bincount(bucket, minlength=2**bits), out=buckets[1:])
    return bits, buckets, slots
