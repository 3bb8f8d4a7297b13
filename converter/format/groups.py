"""Lay out HDF5's groups, and what the superblock points to beside the first.

Numbers of messages and fields are those of the HDF5 File Format Specification, version 3.0.
A group of few links holds them in its object header, a larger one in a symbol table (local
heap, version 1 B-tree, symbol table nodes): both are written at once, from the bottom up, and
found again quickly. HDF5's own way of adding link after link takes twice the space.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from itertools import repeat

import numpy as np

from converter.format import chunk_tree
from converter.format.chunk_tree import btree
from converter.format.headers import (
    CONSTANT,
    NEVER_SHARED,
    attribute_messages,
    dataspace,
    datatype,
    object_header,
)
from converter.format.superblock import UNDEFINED

LINK_INFO, GROUP_INFO, LINK, SYMBOL_TABLE, K_VALUES = 0x02, 0x0A, 0x06, 0x11, 0x13
MOST_LINKS_IN_HEADER = 32  # they are searched one by one
NODE_K, TREE_K = 4, 16  # HDF5's defaults for symbol table nodes and the B-tree above them
NODE_ENTRIES, NODE_CHILDREN = 2 * NODE_K, 2 * TREE_K
ENTRY = np.dtype([("name", "<u8"), ("header", "<u8"), ("cached", "V24")])
NODE = np.dtype(
    [
        ("signature", "S4"),
        ("version", "u1"),
        ("zero", "u1"),
        ("count", "<u2"),
        ("entries", ENTRY, NODE_ENTRIES),
    ]
)
SMALLEST_HEAP_NBYTES = 4096
#: The head of the datatype of variable-length strings, version 1: class, and flags.
UTF_8_TEXT = bytes((0x19, 1, 1, 0))

#: The links of a folder: names, and addresses of object headers.
Links = list[tuple[bytes, int]]


def group(links: Links, address: int, attributes: Sequence[bytes] = ()) -> tuple[bytes, int]:
    """Return a group's structures, to be written at ``address``, and its header's address.

    ``links`` are sorted by name.
    """
    kept = attribute_messages(attributes)
    if len(links) <= MOST_LINKS_IN_HEADER:
        link_info = struct.pack("<BBQQ", 0, 0, UNDEFINED, UNDEFINED)
        messages = [(LINK_INFO, 0, link_info), (GROUP_INFO, CONSTANT, bytes((0, 0)))]
        messages += [(LINK, 0, _link(name, target)) for name, target in links]
        return object_header(messages + kept), address
    heap, heap_address, places = _heap([name for name, _ in links], address)
    targets = [target for _, target in links]
    tree, root = _symbol_tree(targets, places, address + len(heap))
    header = object_header([(SYMBOL_TABLE, 0, struct.pack("<QQ", root, heap_address)), *kept])
    return heap + tree + header, address + len(heap) + len(tree)


def _link(name: bytes, target: int) -> bytes:
    """Return a link message, version 1: a hard link, its name's size in as few bytes as will do."""
    width = 0 if len(name) < 256 else 1
    flags = width | (0 if name.isascii() else 0x10)
    charset = b"" if name.isascii() else b"\1"
    size = len(name).to_bytes(2**width, "little")
    return bytes((1, flags)) + charset + size + name + target.to_bytes(8, "little")


def _heap(names: Sequence[bytes], address: int) -> tuple[bytes, int, np.ndarray]:
    """Return a local heap of names, its address, and where in it each name begins."""
    sizes = [len(name) + 8 - len(name) % 8 for name in names]
    places = np.cumsum([8, *sizes])  # the empty name comes first
    data = bytes(8) + b"".join(map(bytes.ljust, names, sizes, repeat(b"\0")))
    head = struct.pack("<4sB3xQQQ", b"HEAP", 0, len(data), 1, address + 32)  # 1: nothing free
    return head + data, address, places[:-1]


def _symbol_tree(targets: Sequence[int], places: np.ndarray, address: int) -> tuple[bytes, int]:
    """Return symbol table nodes and the B-tree above them, and the address of its root."""
    count = len(targets)
    nodes = np.zeros(math.ceil(count / NODE_ENTRIES), NODE)
    nodes["signature"], nodes["version"], nodes["count"] = b"SNOD", 1, NODE_ENTRIES
    nodes["count"][-1] = (count - 1) % NODE_ENTRIES + 1
    entries = np.zeros(nodes.size * NODE_ENTRIES, ENTRY)
    entries["name"][:count], entries["header"][:count] = places, targets
    nodes["entries"] = entries.reshape(-1, NODE_ENTRIES)
    children = [address + n * NODE.itemsize for n in range(len(nodes))]
    last_names = [*places[NODE_ENTRIES - 1 : -1 : NODE_ENTRIES].tolist(), int(places[-1])]
    keys = [place.to_bytes(8, "little") for place in (0, *last_names)]
    tree, root = btree(0, children, keys, NODE_CHILDREN, address + nodes.nbytes)
    return nodes.tobytes() + tree, root


def superblock_extension() -> bytes:
    """Return the object header that tells HDF5 how large the nodes of all B-trees are."""
    sizes = struct.pack("<BHHH", 0, chunk_tree.K, TREE_K, NODE_K)
    return object_header([(K_VALUES, CONSTANT | NEVER_SHARED, sizes)])


def texts(attributes: Mapping[str, str], address: int) -> tuple[bytes, list[bytes]]:
    """Return a global heap for ``address``, and attribute messages whose texts it holds.

    Variable-length strings, for these are what readers in all languages give as text.
    """
    objects, messages = b"", []
    # size, address of the heap and number in it
    nbytes, space = 4 + 8 + 4, dataspace(())
    kind = UTF_8_TEXT + nbytes.to_bytes(4, "little") + datatype(np.dtype(np.uint8))
    for number, (name, text) in enumerate(attributes.items(), 1):
        data, label = text.encode(), name.encode() + b"\0"
        head = struct.pack("<HHIQ", number, 0, 0, len(data))
        objects += head + data + bytes(-len(data) % 8)
        sizes = struct.pack("<BBHHHB", 3, 0, len(label), len(kind), len(space), 1)
        value = struct.pack("<IQI", len(data), address, number)
        messages.append(sizes + label + kind + space + value)
    nbytes = max(SMALLEST_HEAP_NBYTES, math.ceil((16 + len(objects) + 16) / 8) * 8)
    free = struct.pack("<HHIQ", 0, 0, 0, nbytes - 16 - len(objects))
    heap = struct.pack("<4sB3xQ", b"GCOL", 1, nbytes) + objects + free
    return heap.ljust(nbytes, b"\0"), messages
