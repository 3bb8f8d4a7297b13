"""Turn one sample into the payload of its dataset, or into a failure."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from converter.codecs.chunks import chunk_shape, encode_chunks
from converter.codecs.compression import (
    AUTO,
    NONE,
    OF_AUTO,
    Compression,
    encode,
    pays_off,
    pipeline,
)
from converter.codecs.filters import FilterPipeline, as_bytes, crc32
from converter.errors import UnreadableError, UnstorableError, describe
from converter.files import are_descriptors_used_up
from converter.format.headers import is_image, structure_nbytes
from converter.format.layout import IMAGE, Layout
from converter.images.formats import check_noted, decode_noted, encode_again, extension_of
from converter.images.picture import Bytes, Image, Resized
from converter.samples import Buffer, Encoded, Failure, Note, Part, Result, Surveyed, path_of
from converter.sources import images, user_functions
from converter.sources.readers import READERS, Choice, Settings
from converter.sources.resampling import resize
from converter.sources.resizing import DEFAULT_QUALITY, Resizing
from converter.sources.storable import as_storable

LONGEST_REASON = 500
MEMORY_FILE = re.compile(r"<_io\.BytesIO object at 0x[0-9a-f]+>")  # differs from run to run


class Encoder:
    """Read, check and encode samples, one at a time, in this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._my_read = None
        path, text = settings.path_functions, settings.functions_text
        if path is not None:
            hooks = user_functions.load_hooks(path, read=True, prune=False, text=text)
            self._my_read = hooks.read
        self._read = READERS[settings.reader].read_noted
        self._marks_images = path is None and READERS[settings.reader].IS_RGB
        images.limit_pixels(settings.max_pixels)
        self._scratch = Buffer()

    def encode(self, key: str, buffer: Buffer) -> Result:
        """Put the payload of one sample behind what ``buffer`` holds.

        Never raises for what a file or ``my_read`` does: that is a Failure with its reason.
        """
        used = buffer.used
        try:
            return (self._survey if self._settings.choices else self._encode)(key, buffer)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # my_read may raise anything, also SystemExit
            buffer.used = used
            return self._failure(key, error)

    def read(self, key: str, buffer: Buffer) -> np.ndarray | Failure:
        """Return what would be stored of a sample, uncompressed."""
        try:
            path = path_of(self._settings.root, key)
            _regular_file(path)
            settings = self._settings
            if settings.store == "encoded" and settings.resizing is None:
                return np.frombuffer(images.read_into(path, buffer.view), np.uint8)
            return self._sample(path, buffer, settings.store, settings.resizing)[0]
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self._failure(key, error)

    def _failure(self, key: str, error: BaseException) -> Failure:
        is_own = isinstance(error, (UnreadableError, UnstorableError))
        reason = str(error) if is_own else describe(error)
        if not is_own and self._my_read is not None and are_descriptors_used_up():
            reason = (
                f"my_read leaves files open, and no more can be opened ({reason}): close each, as "
                "`with open(...)` does"
            )
        return Failure(key, _one_line(reason, self._settings.root))

    def _encode(self, key: str, buffer: Buffer) -> Encoded:
        path = path_of(self._settings.root, key)
        status = _regular_file(path)  # before it is read: a change behind this shows
        settings = self._settings
        array, content, note = self._sample(path, buffer, settings.store, settings.resizing)
        layout, parts = self._keep(array, content, settings.compression, buffer)
        return Encoded(key, layout, parts, status.st_size, status.st_mtime_ns, note)

    def _survey(self, key: str, buffer: Buffer) -> Surveyed:
        """Read once for each store and resizing; where that is refused, a sample has 0 bytes."""
        path, used = path_of(self._settings.root, key), buffer.used
        source_nbytes = _regular_file(path).st_size
        original = np.frombuffer(images.read_into(path, buffer.view), np.uint8)
        samples: dict[tuple[str, Resizing | None], tuple[np.ndarray, str] | UnreadableError]
        samples = {("encoded", None): (original.copy(), "encoded")}
        stored_nbytes, compressed = [], []
        for choice in self._settings.choices:
            what = choice.store, choice.resizing
            if what not in samples:
                samples[what] = self._sample_to_survey(path, buffer, choice)
            sample = samples[what]
            if isinstance(sample, UnreadableError):
                stored_nbytes.append(0)
                compressed.append(False)
                continue
            layout, _ = self._keep(*sample, choice.compression, buffer)
            stored_nbytes.append(buffer.used - used)
            compressed.append(bool(layout.filters))
            buffer.used = used
        if isinstance(sample, UnreadableError) and not any(stored_nbytes):
            raise sample
        return Surveyed(key, source_nbytes, tuple(stored_nbytes), tuple(compressed))

    def _sample_to_survey(
        self, path: str, buffer: Buffer, choice: Choice
    ) -> tuple[np.ndarray, str] | UnreadableError:
        """Return a copy of a sample and its content, or why it cannot be resized so."""
        try:
            array, content, _ = self._sample(path, buffer, choice.store, choice.resizing)
        except UnreadableError as error:
            if choice.resizing is None:
                raise
            return error
        return array.copy(), content

    def _sample(
        self, path: str, buffer: Buffer, store: str, resizing: Resizing | None
    ) -> tuple[np.ndarray, str, Note]:
        """Return the array to store, C-contiguous, its content and what the reader noticed."""
        if store == "encoded":
            return self._file(path, buffer, resizing)
        if self._my_read is not None:
            array, content = as_storable(self._my_read(path))
            return array, content, Note.NONE
        image = self._read(path, buffer.view, resizing.least if resizing else None)
        note = image.note
        if resizing is not None:
            image, target = resize(image, resizing)
            note = image.note if target is None else image.note | Note.RESIZED
        return as_storable(image.array).array, "array", note

    def _file(
        self, path: str, buffer: Buffer, resizing: Resizing | None
    ) -> tuple[np.ndarray, str, Note]:
        """Return a file as it is, or encoded again where it is resized."""
        data, note = images.read_into(path, buffer.view), Note.NONE
        if resizing is not None:
            image, target = resize(self._decode(path, data, resizing), resizing)
            note = image.note
            if target is not None:
                note |= Note.RESIZED
                quality = DEFAULT_QUALITY if resizing.quality is None else resizing.quality
                resized = Resized(image.array, image.pixels, *target, quality)
                data = memoryview(encode_again(data, extension_of(path), resized))
        elif self._settings.check_decoding:
            with _explaining(path):
                note = check_noted(data, extension_of(path), self._scratch.view)
        return np.frombuffer(data, np.uint8), "encoded", note

    def _decode(self, path: str, data: Bytes, resizing: Resizing) -> Image:
        with _explaining(path):
            return decode_noted(data, extension_of(path), self._scratch.view, resizing.least)

    def _keep(
        self, array: np.ndarray, content: str, compression: Compression, buffer: Buffer
    ) -> tuple[Layout, tuple[Part, ...]]:
        """Put a payload into the buffer, and leave space for HDF5's structures behind it."""
        if compression == AUTO:
            compression = OF_AUTO if pays_off(array) else NONE
        if array.ndim and array.size and compression != NONE:
            stored = self._compress(array, content, compression, buffer)
            if stored is not None:
                return stored
        payload = buffer.view(array.nbytes)
        target = np.frombuffer(payload, np.uint8)
        if array.nbytes and not np.may_share_memory(target, array):
            target[:] = as_bytes(array)
        buffer.keep(array.nbytes)
        layout = self._keep_structure(array, content, array.nbytes, None, (), buffer)
        return layout, (Part(array.nbytes, crc32(payload)),) if array.nbytes else ()

    def _compress(
        self, array: np.ndarray, content: str, compression: Compression, buffer: Buffer
    ) -> tuple[Layout, tuple[Part, ...]] | None:
        """Put filtered chunks into the buffer; return None where they are not smaller."""
        payloads, stored_nbytes = [], 0
        chunks = chunk_shape(array.shape, array.dtype.itemsize)
        filters = pipeline(compression, array.dtype, chunks)
        if filters is None:
            return None
        for payload in encode_chunks(array, chunks, functools.partial(encode, filters=filters)):
            payloads.append(payload)
            stored_nbytes += len(payload)
            if stored_nbytes >= array.nbytes:
                return None
        for payload in payloads:
            buffer.view(len(payload))[:] = payload
            buffer.keep(len(payload))
        layout = self._keep_structure(array, content, stored_nbytes, chunks, filters, buffer)
        return layout, tuple(Part(len(payload), crc32(payload)) for payload in payloads)

    def _keep_structure(
        self,
        array: np.ndarray,
        content: str,
        stored_nbytes: int,
        chunks: tuple[int, ...] | None,
        filters: FilterPipeline,
        buffer: Buffer,
    ) -> Layout:
        """Leave space for what the writer puts behind the payload; return the layout."""
        is_array = self._marks_images and content == "array"
        if is_array and is_image(array.dtype, array.shape, stored_nbytes):
            content = IMAGE
        layout, nbytes = _structured(array.dtype, array.shape, chunks, filters, content)
        buffer.view(nbytes)
        buffer.keep(nbytes)
        return layout


@functools.lru_cache(maxsize=1000)
def _structured(
    dtype: np.dtype,
    shape: tuple[int, ...],
    chunks: tuple[int, ...] | None,
    filters: FilterPipeline,
    content: str,
) -> tuple[Layout, int]:
    """Return a layout, and the bytes of its structures; equal ones are pickled once a task."""
    layout = Layout(dtype, shape, chunks, filters, content)
    return layout, structure_nbytes(layout)


def _regular_file(path: str) -> os.stat_result:
    """Return the status of a file; refuse what is missing, and what could block for ever."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise UnreadableError(
                f"a symbolic link to {os.readlink(path)}, which does not exist"
            ) from None
        raise UnreadableError("it was removed while converting") from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("not a regular file (a pipe, socket or device)")
    return status


@contextmanager
def _explaining(path: str) -> Iterator[None]:
    """Have decoders name the file, and not the memory it is in."""
    try:
        yield
    except UnreadableError:
        raise
    except Exception as error:
        text = MEMORY_FILE.sub(os.path.basename(path), describe(error))
        raise UnreadableError(text) from error


def _one_line(reason: str, root: str) -> str:
    reason = " ".join(reason.replace(root + os.sep, "").split())
    reason = reason.encode(errors="backslashreplace").decode()
    return reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "..."
