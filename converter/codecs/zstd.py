"""Make and undo zstd frames, the payloads of HDF5's filter 32015, without HDF5."""

from __future__ import annotations

import functools
import importlib.util
import threading
from typing import Any

import numpy as np

MAGIC = b"\x28\xb5\x2f\xfd"
CHECKSUM_FLAG = 4
_of_thread = threading.local()


@functools.cache
def is_installed() -> bool:
    """Tell whether the package zstandard is there."""
    return importlib.util.find_spec("zstandard") is not None


def shrink(data: bytes, level: int) -> bytes:
    """Return one frame with its content size and a checksum."""
    compressed: bytes = _compressor(level).compress(data)
    return compressed


def expand(payload: Any, target: np.ndarray) -> None:
    """Fill ``target``, 1-D uint8, from a frame of its size.

    Raises ValueError for anything else.
    """
    import zstandard

    try:
        if zstandard.get_frame_parameters(payload).content_size != target.nbytes:
            raise ValueError("has a chunk that inflates to another size")
        with _decompressor().stream_reader(payload, read_across_frames=True) as reader:
            if _fill(reader, target) != target.nbytes or reader.read(1):
                raise ValueError("has a chunk that inflates to another size")
    except zstandard.ZstdError as error:
        raise ValueError(f"has a chunk that does not inflate ({error})") from None


def without_checksum(payload: Any) -> Any:
    """Return a frame without the checksum of its content, or as it is where it has none.

    RFC 8878, 3.1.1: bit 2 of the byte behind the magic number tells of it, in the last four bytes.
    """
    if len(payload) <= 9 or payload[:4] != MAGIC or not payload[4] & CHECKSUM_FLAG:
        return payload
    frame = bytearray(payload[:-4])
    frame[4] &= ~CHECKSUM_FLAG
    return frame


def _fill(reader: Any, target: np.ndarray) -> int:
    done = 0
    while done < target.nbytes and (count := reader.readinto(target[done:])):
        done += count
    return done


@functools.cache
def _compressor(level: int) -> Any:
    import zstandard

    return zstandard.ZstdCompressor(level=level, write_checksum=True)


def _decompressor() -> Any:
    """Return this thread's own: making one takes longer than a small chunk."""
    found = getattr(_of_thread, "decompressor", None)
    if found is None:
        import zstandard

        found = _of_thread.decompressor = zstandard.ZstdDecompressor()
    return found
