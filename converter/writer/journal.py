"""Record beside the unfinished file which samples are in it.

A journal is text: one JSON object a line, with the CRC-32 of its second value::

    {"crc":..,"head":{..}}   what the journal belongs to, and how its samples were encoded
    {"crc":..,"rows":[..]}   a batch: a `Row` for each file, appended when the batch is written

Rows begin with a list of the layouts that are in them. A row is a key, and of a sample also the
number of its layout in that list, its source, and offset, size and checksum of each payload.

The first line that was cut off or damaged ends what is believed.
"""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from converter.errors import ConverterError
from converter.format.index import Extent

VERSION = 4
LINE = re.compile(rb'\{"crc":(\d+),"(head|rows)":(.*)\}\n')
BEGIN_OF_VERSION_1 = re.compile(rb'HEAD.{12}\{"version": 1,', re.DOTALL)


class Head(NamedTuple):
    """What a journal belongs to.

    ``mark`` stands at the beginning of the file it describes. ``root`` is the folder that is
    converted; ``encoding_options`` decide how a file becomes a payload.
    """

    output: str
    mark: str
    root: str
    encoding_options: dict[str, str]


class Row(NamedTuple):
    """One file: its sample as the index has it, or a failure, which has no layout.

    The source is size and time of the file.
    """

    key: str
    layout: str | None = None
    extents: Sequence[Extent] = ()
    source: tuple[int, int] = (0, 0)


class Rows(NamedTuple):
    """A batch as a line has it; see above. A row of one value is a failure."""

    layouts: Sequence[str] = ()
    content: Sequence[Sequence[Any]] = ()


class Journal:
    """A journal that is being written."""

    def __init__(self, path: Path, mode: str) -> None:
        self._file = io.FileIO(path, mode)

    @classmethod
    def begin(cls, path: Path, head: Head) -> Journal:
        """Begin a new journal; an older one is lost. Raises OSError."""
        journal = cls(path, "w")
        journal._append("head", {"version": VERSION, **head._asdict()})
        return journal

    @classmethod
    def resume(cls, path: Path, count: int) -> Journal:
        """Cut a journal behind its first ``count`` rows, to append to it. Raises OSError."""
        end, rest = 0, Rows()
        for line_end, rows in read_lines(path):
            if len(rows.content) > count:
                rest = rows._replace(content=rows.content[:count])
                break
            end, count = line_end, count - len(rows.content)
        journal = cls(path, "r+")
        journal._file.truncate(end)
        journal._file.seek(end)
        if rest.content:
            journal.append(rest)
        return journal

    def append(self, rows: Rows) -> None:
        """Record a batch. Raises OSError."""
        self._append("rows", [rows.layouts, *rows.content])

    def close(self) -> None:
        self._file.close()

    def _append(self, kind: str, content: object) -> None:
        body = json.dumps(content, separators=(",", ":")).encode()
        line = memoryview(b'{"crc":%d,"%s":%s}\n' % (zlib.crc32(body), kind.encode(), body))
        while line.nbytes:
            line = line[self._file.write(line) :]


def read_head(path: Path) -> Head | None:
    """Return what a journal belongs to; None where there is none, or its head is damaged.

    Raises ConverterError where it cannot be read, or is of another version of this program.
    """
    try:
        with open(path, "rb") as file:
            line, more = file.readline(), file.read(64)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConverterError(f"{path} cannot be read ({error.strerror}): remove it") from error
    head: dict[str, Any] | None = _content(line, b"head")
    is_other = head is not None and head.pop("version") != VERSION
    if is_other or BEGIN_OF_VERSION_1.match(line + more):
        raise ConverterError(
            f"{path} is the journal of another version of the converter: resume with that version, "
            "or start over with --restart"
        )
    return None if head is None else Head(**head)


def read_lines(path: Path) -> Iterator[tuple[int, Rows]]:
    """Yield where each line of a journal ends, and its rows, up to the first bad line."""
    with open(path, "rb") as file:
        end = len(file.readline())
        yield end, Rows()  # its head
        for line in file:
            rows = _content(line, b"rows")
            if rows is None:
                return
            end += len(line)
            yield end, Rows(rows[0], rows[1:])


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a journal, up to the first bad line."""
    for _, rows in read_lines(path):
        for row in rows.content:
            yield _row(rows.layouts, *row)


def _row(layouts: Sequence[str], key: str, number: int | None = None, *numbers: int) -> Row:
    if number is None:
        return Row(key)
    nbytes, mtime_ns, *rest = numbers
    extents = list(map(Extent, rest[::3], rest[1::3], rest[2::3]))
    return Row(key, layouts[number], extents, (nbytes, mtime_ns))


def _content(line: bytes, kind: bytes) -> Any:
    """Return what a line says; None where it is of another kind, cut off or damaged."""
    match = LINE.fullmatch(line)
    if match is None or match[2] != kind or zlib.crc32(match[3]) != int(match[1]):
        return None
    return json.loads(match[3])
