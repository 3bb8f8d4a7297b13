"""Lay out version 1 B-trees, and the one that finds the chunks of a dataset.

HDF5 File Format Specification, version 3.0, section III.A.1, node type 1 for chunks. Nearly all
datasets have one chunk, so nodes are small: the superblock extension says how small.
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
            return nodes * node_nbytes(MOST_CHILDREN, 8 + 8 * (len(shape) + 1))


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
    beyond = math.ceil(shape[0] / chunks[0]) * chunks[0]  # the last chunk along the first axis
    keys.append(key.pack(0, 0, beyond, *(0 for _ in shape)))
    return btree(1, [place.offset for place in places], keys, MOST_CHILDREN, address)


def btree(
    kind: int, children: Sequence[int], keys: Sequence[bytes], most_children: int, address: int
) -> tuple[bytes, int]:
    """Return the nodes of a version 1 B-tree of a kind for ``address``, and that of its root.

    There is a key before each of the ``children`` and one behind the last; keys are equally long.
    """
    nbytes = node_nbytes(most_children, len(keys[0]))
    level, nodes = 0, bytearray()
    while True:
        parents = []
        for start in range(0, len(children), most_children):
            node = address + len(nodes)
            end = start + most_children
            left = node - nbytes if start else UNDEFINED
            right = node + nbytes if end < len(children) else UNDEFINED
            some = children[start:end]
            nodes += NODE_HEAD.pack(b"TREE", kind, level, len(some), left, right)
            for before, child in zip(keys[start:end], some, strict=False):
                nodes += before + child.to_bytes(8, "little")
            nodes += keys[start + len(some)]
            nodes += bytes(node + nbytes - address - len(nodes))
            parents.append(node)
        if len(parents) == 1:
            return bytes(nodes), parents[0]
        children, keys, level = parents, [*keys[:-1:most_children], keys[-1]], level + 1


def node_nbytes(most_children: int, key_nbytes: int) -> int:
    """Return the bytes of a node: all have room for as many children."""
    return NODE_HEAD.size + most_children * 8 + (most_children + 1) * key_nbytes
