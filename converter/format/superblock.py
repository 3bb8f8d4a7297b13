"""Write and read the first bytes of an HDF5 file."""

from __future__ import annotations

import struct

from converter.errors import LoadError
from converter.files import Handle
from converter.format.checksum import checksum

SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: Of superblock versions 2 and 3, behind the signature: version, flags and the size.
SUPERBLOCK = struct.Struct("<8sB2xB16xQ")
#: Of a file that is open for writing, or was and was not closed (specification, II.C).
WRITING_FLAGS = 0x01 | 0x04
SUPERBLOCK_NBYTES = 48
UNDEFINED = 2**64 - 1


def check_closed(handle: Handle) -> None:
    """Raise LoadError where a program writes the file, or did and was killed.

    HDF5 refuses such files too, but not those it is given as Python files.
    """
    if handle.nbytes < SUPERBLOCK.size:
        return
    signature, version, flags, _ = SUPERBLOCK.unpack(handle.read(SUPERBLOCK.size, 0))
    if signature == SIGNATURE and version == 3 and flags & WRITING_FLAGS:
        raise LoadError(
            f"{handle.path} is being written by another program, or was not closed by it: close "
            "it there, or convert again"
        )


def superblock(root: int, end: int) -> bytes:
    """Return a superblock, version 3, for a root group's header and an end of file."""
    data = SIGNATURE + bytes((3, 8, 8, 0))
    data += struct.pack("<QQQQ", 0, UNDEFINED, end, root)
    return data + checksum(data)
