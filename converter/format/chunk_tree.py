"""Lay out the version 1 B-tree that finds the chunks of a dataset.

HDF5 File Format Specification, version 3.0, section III.A.1, node type 1. Nearly all datasets
have one chunk, so nodes are small: the superblock extension says how small.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from converter.codecs.chunks import chunk_starts
from converter.format.index import Extent
from converter.format.superblock import UNDEFINED

K = 2  # of 1, HDF5 2.0 adds levels until it crashes when a program appends hundreds of chunks
MOST_CHILDREN = 2 * K
NODE_HEAD = struct.Struct("<4sBBHQQ")


def tree_nbytes(shape: tuple[int, ...], chunks: tuple[int, ...]) -> int:
    """Return the bytes of all nodes."""
    count = math.prod(math.ceil(n / c) for n, c in zip(shape, chunks, strict=True))
    nodes = 0
    while True:
        count = math.ceil(count / MOST_CHILDREN)
        nodes += count
        if count == 1:
            return nodes * _node_nbytes(len(shape))


def chunk_tree(
    shape: tuple[int, ...], chunks: tuple[int, ...], places: Sequence[Extent], address: int
) -> tuple[bytes, int]:
    """Return the nodes, to be written at ``address``, and the address of the root.

    ``places`` are in C order of the chunk grid.
    """
    key = struct.Struct(f"<II{len(shape) + 1}Q")
    keys = [
        key.pack(place.nbytes, 0, *start, 0)
        for start, place in zip(chunk_starts(shape, chunks), places, strict=True)
    ]
    beyond = key.pack(0, 0, *_beyond(shape, chunks), 0)
    children = [place.offset for place in places]
    nbytes, level, nodes = _node_nbytes(len(shape)), 0, bytearray()
    while True:
        parents, first_keys, siblings = [], [], range(0, len(children), MOST_CHILDREN)
        for start in siblings:
            node = address + len(nodes)
            end = start + MOST_CHILDREN
            left = node - nbytes if start else UNDEFINED
            right = node + nbytes if end < len(children) else UNDEFINED
            some = children[start:end]
            head = NODE_HEAD.pack(b"TREE", 1, level, len(some), left, right)
            pairs = b"".join(
                k + child.to_bytes(8, "little")
                for k, child in zip(keys[start:end], some, strict=True)
            )
            last = keys[end] if end < len(keys) else beyond
            nodes += (head + pairs + last).ljust(nbytes, b"\0")
            parents.append(node)
            first_keys.append(keys[start])
        if len(parents) == 1:
            return bytes(nodes), parents[0]
        children, keys, level = parents, first_keys, level + 1


def _beyond(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    """Return the first index behind the last chunk along the first axis."""
    return (math.ceil(shape[0] / chunks[0]) * chunks[0], *(0 for _ in shape[1:]))


def _node_nbytes(rank: int) -> int:
    key_nbytes = 8 + 8 * (rank + 1)
    return NODE_HEAD.size + MOST_CHILDREN * 8 + (MOST_CHILDREN + 1) * key_nbytes
