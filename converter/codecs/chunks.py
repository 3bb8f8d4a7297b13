"""Cut an array into chunks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LARGEST_CHUNK_NBYTES = 4 << 20


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Cut an array along its first axes into chunks of at most 4 MiB; small ones stay whole.

    An axis is cut into equal parts, as far as it divides, so that the last chunk is not
    mostly padding.
    """
    chunks = list(shape)
    for axis, length in enumerate(shape):
        if math.prod(chunks) * itemsize <= LARGEST_CHUNK_NBYTES:
            break
        step_nbytes = math.prod(shape[axis + 1 :]) * itemsize
        longest = max(1, LARGEST_CHUNK_NBYTES // step_nbytes)
        parts = math.ceil(length / longest)
        chunks[axis] = math.ceil(length / parts)
    return tuple(chunks)


def encode_chunks(
    array: np.ndarray, chunks: tuple[int, ...], encode: Callable[[np.ndarray], bytes]
) -> Iterator[bytes]:
    """Yield each chunk's payload in C order of the chunk grid; edge chunks padded with zeros."""
    import numpy as np  # takes too long for --help

    for start in chunk_starts(array.shape, chunks):
        part = array[tuple(slice(s, s + c) for s, c in zip(start, chunks, strict=True))]
        if part.shape != chunks:
            padded = np.zeros(chunks, array.dtype)
            padded[tuple(slice(0, n) for n in part.shape)] = part
            part = padded
        yield encode(part)


def chunk_starts(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Return the first index of each chunk, in C order of the chunk grid."""
    return itertools.product(*(range(0, n, c) for n, c in zip(shape, chunks, strict=True)))
