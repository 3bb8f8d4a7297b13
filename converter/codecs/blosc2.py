"""Encode and decode Blosc2 frames, the payloads of HDF5's filter 32026, without HDF5."""

from __future__ import annotations

import functools
import math
import os
import struct
from types import ModuleType
from typing import TYPE_CHECKING

from converter.codecs.chunks import LARGEST_CHUNK_NBYTES
from converter.codecs.filters import FilterPipeline, Payload

if TYPE_CHECKING:
    import numpy as np

NAME = "blosc2"
FILTER = 32026  # registered with the HDF Group
LEVELS = range(1, 10)
DEFAULT_LEVEL = 1  # 5 takes 7 times as long, for 2 % on photos
PACKAGE: str | None = "blosc2"
MODULE: str | None = "blosc2"
NOTICE: str | None = (
    "h5py reads blosc2 only after `import hdf5plugin`, 4.4 or newer, and h5web does not show it; "
    "H5Folder does without (pip install hdf5plugin)"
)
NEEDS_INDEX_CHECKSUM = True  # a frame has none
INFLATION = 1 << 15  # measured with chunks of 4 MiB of zeros
PAYLOAD_VERSION = 1

BLOCK_NBYTES = 96 << 10  # fixed: Blosc2's own choice depends on the machine's caches
BLOCKS_A_THREAD = 2  # at least: a thread takes 50 us to start
LARGEST_TYPESIZE = 127
VALUES = 7  # in `pipeline`
REVISION, ZSTD_CODEC, BYTE_SHUFFLE = 1, 5, 1  # of the plugin's filter values
MAGIC = b"\x9e\xa8b2frame\x00"
#: Of a frame (README_CFRAME_FORMAT of C-Blosc2): sizes of the header and of the frame, bytes
#: decoded and stored, sizes of type, block and chunk.
FRAME_HEAD = struct.Struct(">11xixq5xxqxqxixixi")
CHUNK_HEAD = struct.Struct("<4xiii")  # of a chunk: bytes decoded, in a block, stored
CHUNK_HEAD_NBYTES = 32


@functools.cache
def _module() -> ModuleType:
    import blosc2

    blosc2.set_releasegil(True)  # of decompress2
    return blosc2  # type: ignore[no-any-return]


@functools.cache
def _forget_environment() -> None:
    """Let no variable override the settings: the same file would give other bytes."""
    for name in [name for name in os.environ if name.startswith("BLOSC_")]:
        del os.environ[name]


def typesize_of(shape: tuple[int, ...], itemsize: int) -> int:
    """Return the bytes of a pixel, or of an item of other arrays."""
    size = shape[-1] * itemsize if len(shape) >= 3 and shape[-1] <= 4 else itemsize
    return size if size <= LARGEST_TYPESIZE else 1


def pipeline(level: int, dtype: np.dtype, chunks: tuple[int, ...]) -> FilterPipeline | None:
    if dtype.itemsize > LARGEST_CHUNK_NBYTES:  # zeros of it would inflate beyond INFLATION
        return None
    typesize = typesize_of(chunks, dtype.itemsize)
    nbytes = dtype.itemsize * math.prod(chunks)
    return ((FILTER, (REVISION, 0, typesize, nbytes, level, BYTE_SHUFFLE, ZSTD_CODEC)),)


def can_decode(filters: FilterPipeline, itemsize: int) -> bool:
    """Tell whether `decode` can undo filters that end with this one.

    It must stand alone. HDF5's plugin cuts chunks of several dimensions, whose shape it records
    behind these values, into blocks in another order.
    """
    return len(filters) == 1 and len(filters[0][1]) <= VALUES


def encode(data: bytes | np.ndarray, values: tuple[int, ...]) -> bytes:
    """Return the frame of a chunk's bytes, of which there is at least one."""
    blosc2 = _module()
    _forget_environment()
    typesize, level = values[2], values[4]
    delta = [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA]
    settings = blosc2.CParams(
        codec=blosc2.Codec.ZSTD,
        clevel=level,
        typesize=typesize,
        nthreads=1,
        # no other size can be decoded when a type would be cut
        blocksize=BLOCK_NBYTES // typesize * typesize,
        splitmode=blosc2.SplitMode.NEVER_SPLIT,
        filters=[blosc2.Filter.NOFILTER] * 4 + delta,
        filters_meta=[0] * 6,
    )
    frame = blosc2.SChunk(
        chunksize=len(data),
        cparams=settings,
        dparams=blosc2.DParams(nthreads=1),
        contiguous=True,
    )
    frame.append_data(data)
    return frame.to_cframe()  # type: ignore[no-any-return]


def decode(payload: Payload, target: np.ndarray, threads: int = 1) -> None:
    """Fill ``target``, 1-D uint8, from the frame of a chunk of its size.

    At most ``threads`` share the work. Raises ValueError for anything else.
    """
    blosc2 = _module()
    data = memoryview(payload)
    if len(data) < FRAME_HEAD.size or data[: len(MAGIC)] != MAGIC:
        raise ValueError("has a chunk that is no Blosc2 frame")
    head, frame, nbytes, stored, _, _, chunk_nbytes = FRAME_HEAD.unpack_from(data)
    if frame != len(data) or nbytes != target.nbytes or chunk_nbytes != target.nbytes:
        raise ValueError("has a chunk that inflates to another size")
    inner_nbytes = 0
    if stored:  # else one value is repeated, and there is no inner chunk
        if not 0 < head <= len(data) - CHUNK_HEAD_NBYTES:
            raise ValueError("has a chunk that is no Blosc2 frame")
        inner, _, inner_nbytes = CHUNK_HEAD.unpack_from(data, head)
        if inner != target.nbytes or not CHUNK_HEAD_NBYTES <= inner_nbytes <= len(data) - head:
            raise ValueError("has a chunk that inflates to another size")
    try:
        if stored:  # without the frame, which takes longer to open than a small chunk to decode
            most = max(1, min(threads, target.nbytes // BLOCK_NBYTES // BLOCKS_A_THREAD))
            blosc2.decompress2(data[head : head + inner_nbytes], dst=target, nthreads=most)
        else:
            whole = blosc2.schunk_from_cframe(bytes(data), False)
            whole.dparams = blosc2.DParams(nthreads=1)
            whole.decompress_chunk(0, target)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"has a chunk that does not inflate ({error})") from None
