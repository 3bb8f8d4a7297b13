"""Read files that were stored as they are, and decode them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from converter.errors import LoadError, UnreadableError, describe
from converter.format.layout import Layout
from converter.loader.h5py_file import H5pyFile
from converter.loader.indexed_file import Bytes, IndexedFile
from converter.loader.selection import Location, Placed, box_of, check_row, rows_of
from converter.threads import Threads


class EncodedFile:
    """An open file whose samples are image files; gives the arrays they decode to.

    Other methods are those of an `IndexedFile`.
    """

    holds_files = True

    def __init__(self, source: IndexedFile | H5pyFile, threads: Threads) -> None:
        self.keys = source.keys
        self.identity = source.identity
        self._source = source
        self._threads = threads

    def close(self) -> None:
        """Close the file and end its threads."""
        self._source.close()
        self._threads.close()

    def payload(self, position: int) -> Bytes | np.ndarray:
        """Return the bytes of a file, perhaps as a part of the mapping; or an array."""
        return self._source.payload(position)

    def read(self, position: int) -> np.ndarray:
        """Return the array a file decodes to."""
        data = self._source.payload(position)
        if isinstance(data, np.ndarray):
            return data
        key = self.keys.key(position)
        decode = self._decode  # which may say what to install
        try:
            return decode(data, key.rpartition(".")[2].lower())
        except Exception as error:
            why = str(error) if isinstance(error, UnreadableError) else describe(error)
            raise LoadError(
                f"{key!r} in {self.keys.path} cannot be decoded ({why}): read_bytes returns the "
                "file as it is"
            ) from error

    def view(self, position: int, first_row: int = 0, rows: int | None = None) -> np.ndarray:
        """Return an array, or rows of it, read-only; an image file is decoded."""
        if self._source.placed(np.array([position])).numbers[0] >= 0:
            return self._source.view(position, first_row, rows)
        array = self.read(position)
        view = array[rows_of(first_row, rows)] if array.ndim else array
        view.flags.writeable = False
        return view

    def reducible_shape(self, position: int) -> tuple[int, ...] | None:
        """Return the shape of a JPEG that `reduced` can decode, by its header; else None."""
        data = self._source.payload(position)
        if isinstance(data, np.ndarray):
            return None
        _ = self._decode  # says what to install
        from converter.images.jpeg import reducible_shape

        try:
            return reducible_shape(data)
        except UnreadableError:
            return None  # `read` says why

    def reduced(self, position: int, factor: int) -> np.ndarray | None:
        """Return a JPEG that has a `reducible_shape`, decoded to 1/2, 1/4 or 1/8 of its size.

        Height and width are rounded up. The values differ slightly from those of a resized array.
        None where it is damaged; then `read` says whether it can be decoded.
        """
        from converter.images.jpeg import decode_reduced

        data = self._source.payload(position)
        return None if isinstance(data, np.ndarray) else decode_reduced(data, factor)

    def placed(self, positions: np.ndarray) -> Placed:
        return self._source.placed(positions)

    def layout(self, number: int) -> Layout | None:
        return self._source.layout(number)

    def read_part(self, position: int, selection: Any) -> np.ndarray:
        """Return a part of the array; all of it is decoded."""
        array = self.read(position)
        box = box_of(selection, array.shape)
        inner: Any = (*box.slices, ...)  # ...: without an axis it would be no array
        return np.array(array[inner][(*box.take, ...)])

    def read_batch(
        self, positions: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """Return the arrays at positions, decoded by several threads where that is faster.

        With ``out`` they fill its rows, and it is returned.
        """
        self.fetch(positions)
        if out is None:
            return self._threads.map(self.read, positions.tolist())
        batch, numbered = out, positions.tolist()

        def fill(n: int) -> None:
            array = self.read(numbered[n])
            check_row(batch, array, self.keys, numbered[n])
            batch[n, ...] = array

        self._threads.map(fill, range(len(numbered)))
        return batch

    def fetch(self, positions: np.ndarray) -> None:
        self._source.fetch(positions)

    def location(self, position: int) -> Location:
        """Return where the bytes of a sample lie: those of the image file."""
        return self._source.location(position)

    @functools.cached_property
    def _decode(self) -> Callable[[Bytes, str], np.ndarray]:
        """Return what decodes a file with an extension; imported when first needed."""
        try:
            import converter.images.picture  # noqa: F401 (what decoders need)
            from converter.images.formats import decode_image
        except ImportError as error:
            name = error.name or ""
            if name.partition(".")[0] == "converter":  # the loader was copied
                raise LoadError(
                    f"files stored as they are need {name} to be decoded: copy that module too"
                ) from error
            raise LoadError(
                f"files stored as they are need image packages to be decoded ({error}): "
                "pip install pillow tifffile simplejpeg"
            ) from error
        return decode_image
