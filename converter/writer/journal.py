"""Record beside the file being written which samples are safely in it.

A journal is text: one JSON object a line, with the CRC-32 of what its second name stands for::

    {"crc":..,"head":{..}}   what the journal belongs to, and how its samples were made
    {"crc":..,"rows":[..]}   a batch, a `Row` for each file, appended when the batch is written

What is believed ends before the first line that was cut off or damaged.
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

VERSION = 2
LINE = re.compile(rb'\{"crc":(\d+),"(head|rows)":(.*)\}\n')
BEGIN_OF_VERSION_1 = re.compile(rb'HEAD.{12}\{"version": 1,', re.DOTALL)


class Head(NamedTuple):
    """What a journal belongs to.

    ``mark`` stands at the beginning of the file it describes. ``root`` is the folder that is
    converted; ``manner`` decides how a file becomes a payload.
    """

    output: str
    mark: str
    root: str
    manner: dict[str, str]


class Row(NamedTuple):
    """One file: its sample as the index has it, or a failure, which has no layout.

    Each extent is offset, size and CRC-32; the source is size and time of the file.
    """

    key: str
    layout: str | None = None
    extents: Sequence[Sequence[int]] = ()
    source: Sequence[int] = ()


class Journal:
    """A journal that is being written."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self.path = path
        self._file = file

    @classmethod
    def begin(cls, path: Path, head: Head) -> Journal:
        """Begin a new one, in the place of an older one. Raises OSError."""
        journal = cls(path, io.FileIO(path, "w"))
        journal._append(_line("head", {"version": VERSION, **head._asdict()}))
        return journal

    @classmethod
    def resume(cls, path: Path, count: int) -> Journal:
        """Keep the first ``count`` rows of one. Raises OSError."""
        end, rest = 0, []
        for line_end, rows in read_lines(path):
            if len(rows) > count:
                rest = rows[:count]
                break
            end, count = line_end, count - len(rows)
        journal = cls(path, io.FileIO(path, "r+"))
        journal._file.truncate(end)
        journal._file.seek(end)
        if rest:
            journal.append(rest)
        return journal

    def append(self, rows: Sequence[Row]) -> None:
        """Record a batch. Raises OSError."""
        self._append(_line("rows", rows))

    def close(self) -> None:
        self._file.close()

    def _append(self, line: bytes) -> None:
        data = memoryview(line)
        while data.nbytes:
            data = data[self._file.write(data) :]


def read_head(path: Path) -> Head | None:
    """Return what a journal belongs to; None where there is none, or its head is damaged.

    Raises ConverterError where it cannot be read, or is of another version of this program.
    """
    try:
        with open(path, "rb") as file:
            begin = file.read(64)
            file.seek(0)
            line = file.readline()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConverterError(f"{path} cannot be read ({error.strerror}): remove it") from error
    head: dict[str, Any] | None = _content(line, b"head")
    is_other = head is not None and head.pop("version") != VERSION
    if is_other or BEGIN_OF_VERSION_1.match(begin):
        raise ConverterError(
            f"{path} is the journal of another version of the converter: resume with that version, "
            "or start over with --restart"
        )
    return None if head is None else Head(**head)


def read_lines(path: Path) -> Iterator[tuple[int, list[Row]]]:
    """Yield where each line of a journal ends, and its rows, as far as they are good."""
    with open(path, "rb") as file:
        end = len(file.readline())
        yield end, []  # its head
        for line in file:
            rows = _content(line, b"rows")
            if rows is None:
                return
            end += len(line)
            yield end, [Row(*row) for row in rows]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a journal, as far as they are good."""
    for _, rows in read_lines(path):
        yield from rows


def _line(kind: str, content: object) -> bytes:
    body = json.dumps(content, separators=(",", ":")).encode()
    return b'{"crc":%d,"%s":%s}\n' % (zlib.crc32(body), kind.encode(), body)


def _content(line: bytes, kind: bytes) -> Any:
    """Return what a line says; None where it is of another kind, cut off or damaged."""
    found = LINE.fullmatch(line)
    if found is None or found[2] != kind or zlib.crc32(found[3]) != int(found[1]):
        return None
    return json.loads(found[3])
