"""Turn one sample into the payload of its dataset, or into a failure."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converter import hooks, readers
from converter.errors import UnreadableError, UnstorableError, describe
from converter.filters import Layout, chunk_shape, crc32, encode_chunks, gzip_filters, pays_off
from converter.headers import structure_nbytes
from converter.plan import Failure
from converter.readers import Note
from converter.rooms import Room
from converter.storable import as_storable

LONGEST_REASON = 500


@dataclass(frozen=True)
class Settings:
    """All that decides how a file becomes a payload; travels to the workers."""

    root: str
    compression: str = "auto"
    max_pixels: int | None = None
    path_functions: Path | None = None


class Part(NamedTuple):
    """One stored chunk, or the whole of a contiguous dataset."""

    nbytes: int
    crc32: int


class Encoded(NamedTuple):
    """A sample whose payload lies ready: its parts, then space for HDF5's structures."""

    key: str
    layout: Layout
    parts: tuple[Part, ...]
    source_nbytes: int
    note: Note = Note.NONE


Result = Encoded | Failure


class Encoder:
    """Read, check and encode samples, one at a time, in this process."""

    def __init__(self, settings: Settings) -> None:
        self._root = settings.root
        self._compression = settings.compression
        self._read = None
        if settings.path_functions is not None:
            self._read = hooks.load_hooks(settings.path_functions, read=True, prune=False).read
        readers.limit_pixels(settings.max_pixels)
        self._layouts: dict[Any, tuple[Layout, int]] = {}

    def encode(self, key: str, room: Room) -> Result:
        """Put the payload of one sample behind what ``room`` holds.

        Never raises for what a file or ``my_read`` does: that is a Failure with its reason.
        """
        used = room.used
        try:
            return self._encode(key, room)
        except (UnreadableError, UnstorableError) as error:
            reason = str(error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # my_read may raise anything, SystemExit for one
            reason = describe(error)
        room.used = used
        return Failure(key, _one_line(reason, self._root))

    def _encode(self, key: str, room: Room) -> Encoded:
        path = os.path.join(self._root, *key.split("/")) if os.sep != "/" else f"{self._root}/{key}"
        status = _regular_file(path)
        if self._read is None:
            array, note = readers.read_noted(path, room.view)
            content = "array"
            array = as_storable(array).array
        else:
            note = Note.NONE
            array, content = as_storable(self._read(path))
        layout, parts = self._store(array, content, room)
        return Encoded(key, layout, parts, status.st_size, note)

    def _store(
        self, array: np.ndarray, content: str, room: Room
    ) -> tuple[Layout, tuple[Part, ...]]:
        if array.ndim and array.size and self._is_to_compress(array):
            stored = self._compress(array, content, room)
            if stored is not None:
                return stored
        payload = room.view(array.nbytes)
        target = np.frombuffer(payload, np.uint8)
        if array.nbytes and not np.may_share_memory(target, array):
            target[:] = array.reshape(-1).view(np.uint8)
        room.keep(array.nbytes)
        layout = self._keep_structure(array, content, room)
        return layout, (Part(array.nbytes, crc32(payload)),) if array.nbytes else ()

    def _is_to_compress(self, array: np.ndarray) -> bool:
        if self._compression == "auto":
            return pays_off(array)
        return self._compression == "gzip"

    def _compress(
        self, array: np.ndarray, content: str, room: Room
    ) -> tuple[Layout, tuple[Part, ...]] | None:
        """Put deflated chunks into the room; None, and nothing put, where they are no smaller."""
        payloads, stored_nbytes = [], 0
        for payload in encode_chunks(array, chunk_shape(array.shape, array.dtype.itemsize)):
            payloads.append(payload)
            stored_nbytes += len(payload)
            if stored_nbytes >= array.nbytes:
                return None
        for payload in payloads:
            room.view(len(payload))[:] = payload
            room.keep(len(payload))
        layout = self._keep_structure(array, content, room, compressed=True)
        return layout, tuple(Part(len(payload), crc32(payload)) for payload in payloads)

    def _keep_structure(
        self, array: np.ndarray, content: str, room: Room, compressed: bool = False
    ) -> Layout:
        """Leave space for what the writer puts behind the payload; return the layout.

        It is the same object for the same layout: pickled once a task.
        """
        alike = (array.dtype, array.shape, content, compressed)
        known = self._layouts.get(alike)
        if known is None:
            if len(self._layouts) >= 1000:
                self._layouts.clear()
            chunks = chunk_shape(array.shape, array.dtype.itemsize) if compressed else None
            filters = gzip_filters(array.dtype) if compressed else ()
            layout = Layout(array.dtype, array.shape, chunks, filters, content)
            known = self._layouts[alike] = layout, structure_nbytes(layout)
        layout, nbytes = known
        room.view(nbytes)
        room.keep(nbytes)
        return layout


def _regular_file(path: str) -> os.stat_result:
    """Refuse what would block for ever (a FIFO) or is no file; raises OSError when it is gone."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise UnreadableError(
                f"a symbolic link to {os.readlink(path)}, which does not exist"
            ) from None
        raise UnreadableError("it vanished while converting") from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("not a regular file (a pipe, socket or device)")
    return status


def _one_line(reason: str, root: str) -> str:
    reason = " ".join(reason.replace(root + os.sep, "").split())
    reason = reason.encode(errors="backslashreplace").decode()
    return reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "..."
