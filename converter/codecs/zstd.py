"""Encode and decode Zstandard frames, the payloads of HDF5's filter 32015, without HDF5."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

from converter.codecs.filters import FilterPipeline, Payload, after_shuffle, is_alone_or_shuffled

if TYPE_CHECKING:
    import numpy as np

NAME = "zstd"
FILTER = 32015  # registered with the HDF Group
LEVELS = range(1, 23)
DEFAULT_LEVEL = 6  # 3 is at times larger than gzip on depth maps
PACKAGE: str | None = "zstandard"
MODULE: str | None = "zstandard"
NOTICE: str | None = (
    "h5py reads zstd only after `import hdf5plugin`; H5Folder does without (pip install hdf5plugin)"
)
#: For data this compressible, checking zstd's checksum of the output costs more than decoding.
#: The index has one of the input, which is cheaper to check.
NEEDS_INDEX_CHECKSUM = True
INFLATION = 1 << 15  # 4 bytes make a block of 128 KiB (RFC 8878, 3.1.1.2)
PAYLOAD_VERSION = 2  # frames of version 1 had a checksum of their content

_of_thread = threading.local()


def pipeline(level: int, dtype: np.dtype, chunks: tuple[int, ...]) -> FilterPipeline:
    return after_shuffle(FILTER, (level,), dtype.itemsize)


can_decode = is_alone_or_shuffled


def encode(data: bytes | np.ndarray, values: tuple[int, ...]) -> bytes:
    """Return the frame of a chunk's bytes, which names their number."""
    frame: bytes = _compressor(values[0]).compress(data)
    return frame


def decode(payload: Payload, target: np.ndarray, threads: int = 1) -> None:
    """Fill ``target``, 1-D uint8, from a frame of its size.

    Raises ValueError for anything else.
    """
    import zstandard

    try:
        if zstandard.get_frame_parameters(payload).content_size != target.nbytes:
            raise ValueError("has a chunk that inflates to another size")
        with _decompressor().stream_reader(payload, read_across_frames=True) as reader:
            done = 0
            while done < target.nbytes and (count := reader.readinto(target[done:])):
                done += count
            if done != target.nbytes or reader.read(1):
                raise ValueError("has a chunk that inflates to another size")
    except zstandard.ZstdError as error:
        raise ValueError(f"has a chunk that does not inflate ({error})") from None


@functools.cache
def _compressor(level: int) -> Any:
    import zstandard

    return zstandard.ZstdCompressor(level=level, write_checksum=False)


def _decompressor() -> Any:
    """Return this thread's own: making one takes longer than a small chunk."""
    if not hasattr(_of_thread, "decompressor"):
        import zstandard

        _of_thread.decompressor = zstandard.ZstdDecompressor()
    return _of_thread.decompressor
