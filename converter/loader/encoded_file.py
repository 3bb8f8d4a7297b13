"""Read files that were stored as they are, and decode them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from converter.errors import LoadError, UnreadableError, describe
from converter.loader.h5py_file import H5pyFile
from converter.loader.indexed_file import Bytes, IndexedFile
from converter.loader.selection import box_of
from converter.threads import Threads


class EncodedFile:
    """An open file whose samples are image files; gives the arrays they decode to."""

    holds_files = True

    def __init__(self, source: IndexedFile | H5pyFile, threads: Threads) -> None:
        self.keys = source.keys
        self.identity = source.identity
        self._source = source
        self._threads = threads
        self._decoder: Callable[[Bytes, str], np.ndarray] | None = None

    def close(self) -> None:
        """Close the file, and let its threads end."""
        self._source.close()
        self._threads.close()

    def payload(self, position: int) -> Bytes:
        """Return the bytes of a file, perhaps as a part of the mapping."""
        data = self._source.payload(position)
        if isinstance(data, np.ndarray):
            raise LoadError(
                f"{self.keys.key(position)!r} in {self.keys.path} is an array, not a file: read it "
                "as one"
            )
        return data

    def read(self, position: int) -> np.ndarray:
        """Return the array a file decodes to."""
        data = self._source.payload(position)
        if isinstance(data, np.ndarray):
            return data
        key = self.keys.key(position)
        decode = self._decoder
        if decode is None:
            decode = self._decoder = _import_decoder()
        try:
            return decode(data, key.rpartition(".")[2].lower())
        except UnreadableError as error:
            raise LoadError(
                f"{key!r} in {self.keys.path}: {error}; read_bytes gives it as it is"
            ) from error
        except Exception as error:
            raise LoadError(
                f"{key!r} in {self.keys.path} cannot be decoded ({describe(error)}): "
                "read_bytes gives it as it is"
            ) from error

    def read_part(self, position: int, selection: Any) -> np.ndarray:
        """Return a part of the array; all of it is decoded."""
        array = self.read(position)
        box = box_of(selection, array.shape)
        spans = [slice(a, b) for a, b in zip(box.start, box.stop, strict=True)]
        inner: Any = (*spans, ...)  # ...: without an axis it would be no array
        return np.array(array[inner][(*box.take, ...)])

    def read_batch(self, positions: np.ndarray) -> list[np.ndarray]:
        """Return the arrays at positions, decoded by several threads where that is faster."""
        places = positions.tolist()
        if isinstance(self._source, IndexedFile):
            self._source.fetch(positions)
        return self._threads.map(self.read, places)


def _import_decoder() -> Callable[[Bytes, str], np.ndarray]:
    try:
        from converter.images.formats import decode_image
    except ImportError as error:
        name = error.name or ""
        if name.partition(".")[0] == "converter":  # of a copied loader
            raise LoadError(
                f"files stored as they are need {name} to be decoded, which is missing: copy that "
                "module of the converter too"
            ) from error
        raise LoadError(
            f"files stored as they are need image packages to be decoded ({error}): "
            "pip install pillow tifffile simplejpeg"
        ) from error
    return decode_image
