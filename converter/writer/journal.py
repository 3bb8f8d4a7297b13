"""Record beside the file being written which samples are safely in it.

A journal is a head, then blocks, each appended when what it describes has been written. Each
has a checksum and stands for itself, so that one cut off in the middle spoils no other::

    block        `BLOCK`: kind, size of its body, CRC-32 of its body; then the body
    HEAD         JSON: what the journal belongs to, and how its samples were read and encoded
    ROWS         `IndexBuilder.take_block`
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converter.errors import ConverterError
from converter.format.index import BLOCK_COUNTS, CHUNK, ROW, SOURCE, Extent, IndexBuilder
from converter.format.layout import parse_layout

VERSION = 1
HEAD, ROWS = b"HEAD", b"ROWS"
BLOCK = struct.Struct("<4sIQ")  # kind, CRC-32, size


class Head(NamedTuple):
    """What a journal belongs to.

    ``mark`` stands at the beginning of the file it describes. ``root`` is the folder that is
    converted; ``manner`` decides how a file becomes a payload.
    """

    output: str
    mark: str
    root: str
    manner: dict[str, str]


class Journal:
    """A journal that is being written; use `Journal.open`."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self.path = path
        self._file = file

    @classmethod
    def begin(cls, path: Path, head: Head) -> Journal:
        """Begin a new one, in the place of an older one. Raises OSError."""
        journal = cls(path, io.FileIO(path, "w"))
        body = json.dumps({"version": VERSION, **head._asdict()}).encode()
        journal._append(HEAD, body)
        return journal

    def append(self, block: bytes) -> None:
        """Record samples: an `IndexBuilder.block`. Raises OSError."""
        self._append(ROWS, block)

    def close(self) -> None:
        self._file.close()

    def _append(self, kind: bytes, body: bytes) -> None:
        data = memoryview(BLOCK.pack(kind, zlib.crc32(body), len(body)) + body)
        while data.nbytes:
            data = data[self._file.write(data) :]


class Recorded(NamedTuple):
    """What a journal says."""

    head: Head
    samples: IndexBuilder


def read_journal(path: Path) -> Recorded | None:
    """Read a journal; None where there is none, or nothing of it is good.

    Raises ConverterError where it is of another version of this program.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConverterError(f"{path} cannot be read ({error.strerror}): remove it") from error
    blocks = list(_blocks(content))
    if not blocks or blocks[0][0] != HEAD:
        return None
    head = _head(path, blocks[0][1])
    samples = IndexBuilder()
    for kind, body in blocks:
        if kind == ROWS:
            _add_rows(samples, body)
    return Recorded(head, samples)


def _head(path: Path, body: bytes) -> Head:
    fields: dict[str, Any] = json.loads(body)
    if fields.pop("version", None) != VERSION:
        raise ConverterError(
            f"{path} is the journal of another version of the converter: go on with that one, or "
            "begin anew with --restart"
        )
    return Head(**fields)


def _blocks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and body of each block, up to the first that is not whole."""
    start = 0
    while start + BLOCK.size <= len(content):
        kind, crc, nbytes = BLOCK.unpack_from(content, start)
        start += BLOCK.size
        body = content[start : start + nbytes]
        least = {HEAD: 2, ROWS: BLOCK_COUNTS.size}.get(kind)
        if least is None or not least <= nbytes == len(body) or zlib.crc32(body) != crc:
            return
        start += nbytes
        yield kind, body


def _add_rows(samples: IndexBuilder, body: bytes) -> None:
    counts = BLOCK_COUNTS.unpack_from(body)
    at = BLOCK_COUNTS.size

    def take(dtype: Any, count: int) -> np.ndarray:
        nonlocal at
        array = np.frombuffer(body, dtype, count, at)
        at += array.nbytes
        return array

    rows, sources = take(ROW, counts[0]), take(SOURCE, counts[0])
    chunks = take(CHUNK, counts[1])
    paths, layouts = take("u1", counts[2]).tobytes(), take("u1", counts[3]).tobytes()
    layout_ends = [0, *take("<u8", counts[4]).tolist()]
    begin = 0
    for row, source in zip(rows.tolist(), sources.tolist(), strict=True):
        offset, nbytes, end, crc32, number = row
        layout = layouts[layout_ends[number] : layout_ends[number + 1]]
        count = parse_layout(layout).count_extents(nbytes)
        places = [Extent(offset, nbytes, crc32)]
        if count != 1:
            places = [Extent(*chunk[:3]) for chunk in chunks[offset : offset + count].tolist()]
        samples.add(paths[begin:end], layout, places, source)
        begin = end
