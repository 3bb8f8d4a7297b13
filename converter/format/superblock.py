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
SMALLEST_USER_BLOCK_NBYTES = 512
UNDEFINED = 2**64 - 1


def find_superblock(handle: Handle) -> int | None:
    """Return where the superblock begins; None where there is none.

    A user block of 512, 1024, 2048... bytes may be in front of it (specification, II).
    """
    begin = 0
    while begin + SUPERBLOCK.size <= handle.nbytes:
        if handle.read(len(SIGNATURE), begin) == SIGNATURE:
            return begin
        begin = 2 * begin or SMALLEST_USER_BLOCK_NBYTES
    return None


def check_closed(handle: Handle) -> None:
    """Raise LoadError where a program writes the file, or did and was killed.

    HDF5 refuses such files too, but not those it is given as Python files.
    """
    begin = find_superblock(handle)
    if begin is None:
        return
    _, version, flags, _ = SUPERBLOCK.unpack(handle.read(SUPERBLOCK.size, begin))
    if version == 3 and flags & WRITING_FLAGS:
        raise LoadError(
            f"{handle.path} is being written by another program, or was not closed by it: close "
            "it there; if that program has ended, run HDF5's `h5clear -s FILE` (it comes with "
            "h5dump), or convert again"
        )


def superblock(root: int, end: int, extension: int = UNDEFINED) -> bytes:
    """Return a superblock, version 3, for a root group's header and an end of file.

    ``extension`` is the address of the object header that says more.
    """
    data = SIGNATURE + bytes((3, 8, 8, 0))
    data += struct.pack("<QQQQ", 0, extension, end, root)
    return data + checksum(data)
