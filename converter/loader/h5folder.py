"""Read samples by key or position, in any process. Needs numpy and h5py alone.

To copy it into another project take, in a folder named ``converter``: codecs/, format/, loader/,
errors.py, files.py, threads.py and an ``__init__.py``; for files stored with
``--store=encoded`` also samples.py and images/.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex, overload

import numpy as np

from converter.errors import LoadError
from converter.files import Handle, local_path
from converter.format.index_reader import open_index
from converter.loader.encoded_file import EncodedFile
from converter.loader.h5py_file import H5pyFile
from converter.loader.indexed_file import IndexedFile
from converter.loader.memory import Cache
from converter.loader.selection import Location, fill_rows, stacked
from converter.loader.several_files import OneFile, SeveralFiles
from converter.loader.suggestions import unknown_key
from converter.threads import Threads

Source = IndexedFile | H5pyFile | EncodedFile | SeveralFiles
Path = str | os.PathLike[str]


class _Opened(NamedTuple):
    """What is open. A forked process may use it too: only HDF5 and the cache start anew."""

    source: Source
    find: Callable[[str], int | None]
    read: Callable[[int], np.ndarray]  # from the cache, where there is one


class H5Folder(Mapping[str, np.ndarray]):
    """The arrays of an HDF5 file by their relative paths, read-only.

    The file is opened at first use, once in each process: an H5Folder may be forked, pickled
    and used from several threads. Arrays belong to the caller. Samples are found through the
    file's index and read without HDF5. A file without an index, and arrays whose filters cannot
    be undone here, are read through h5py: the same results, slower. Files that were stored as
    they are (``--store=encoded``) are decoded, to the arrays the converter would have stored.

    Parameters
    ----------
    path
        The HDF5 file; or several, such as the shards of one folder, which are read as one.
    cache_nbytes
        Keep recently read arrays, up to this many bytes in each process.
    verify
        Compare each payload with its CRC-32. To read a part of an uncompressed array, all of it
        is then read. Files without an index hold no such checksums.
    threads
        How many threads at most read the samples of a batch, where several are faster than one.
        None: as many as there are cores, but one in a worker process.

    Raises
    ------
    LoadError
        From any method that reads: the file or a sample is damaged, or refused.
    OSError
        The file cannot be opened or read.

    Examples
    --------
    >>> folder = H5Folder("out.h5")
    >>> folder["foo/boo/goo/image_0001.jpg"].shape
    (375, 500, 3)
    >>> folder.read_batch(range(32)).shape
    (32, 375, 500, 3)
    """

    __hash__ = object.__hash__

    def __init__(
        self,
        path: Path | Sequence[Path],
        *,
        cache_nbytes: int = 0,
        verify: bool = False,
        threads: int | None = None,
    ) -> None:
        if cache_nbytes < 0:
            raise ValueError(f"cache_nbytes is {cache_nbytes}: give 0 (no cache) or more")
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}: give 1 or more, or None")
        paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        if not paths:
            raise ValueError("no path is given: give one file or several")
        self.paths = tuple(str(local_path(one)) for one in paths)
        self.path = ", ".join(self.paths)
        self._cache_nbytes = cache_nbytes
        self._verify = verify
        self._threads = threads
        self._opened: _Opened | None = None
        self._identity: tuple[Any, ...] | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._open().source.keys)

    def __iter__(self) -> Iterator[str]:
        return self._open().source.keys.keys()

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._open().source.keys.find(key) is not None

    @overload
    def __getitem__(self, key: str | SupportsIndex) -> np.ndarray: ...
    @overload
    def __getitem__(
        self, key: Sequence[str | SupportsIndex] | np.ndarray | slice
    ) -> np.ndarray | list[np.ndarray]: ...
    def __getitem__(self, key: Any) -> Any:
        """Return the array of a key, or at a position in stored order (negative: from the end).

        Several keys or positions, as a list, an array, a column or a slice, give what
        `read_batch` does. Raises KeyError with near matches for an unknown key, IndexError for a
        position.
        """
        opened = self._opened or self._open()
        position = opened.find(key) if type(key) is str else None
        if position is None:
            if type(key) is not int and are_several(key):
                return self.read_batch(key)
            position = self._position(opened, key)
        return opened.read(position)

    def __eq__(self, other: object) -> bool:
        return self is other  # a Mapping would compare all arrays

    def __repr__(self) -> str:
        return f"H5Folder({self.path!r})"

    def __enter__(self) -> H5Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def get(self, key: str, default: Any = None) -> Any:
        """Return the array of a key, or ``default``."""
        if key not in self:  # a Mapping would search for near matches
            return default
        return self[key]

    def key_at(self, position: SupportsIndex) -> str:
        """Return the key at a position."""
        opened = self._open()
        return opened.source.keys.key(self._in_range(operator.index(position), opened))

    def read(self, key: str | SupportsIndex, selection: Any = ...) -> np.ndarray:
        """Return a part of an array, reading only the chunks it needs.

        Parameters
        ----------
        key
            A key or a position.
        selection
            Integers, slices and ``...``, as ``numpy.s_`` makes them, with numpy's sense.
        """
        opened = self._open()
        return opened.source.read_part(self._position(opened, key), selection)

    @property
    def is_encoded(self) -> bool:
        """Tell whether the file holds files, which are decoded on reading."""
        return self._open().source.holds_files

    def read_bytes(self, key: str | SupportsIndex) -> bytes:
        """Return the bytes of a file that is stored with ``--store=encoded``.

        They are those of the original, unless ``--resize`` encoded its image again. Raises
        LoadError where arrays were stored.
        """
        opened = self._open()
        position = self._position(opened, key)
        data = opened.source.payload(position) if opened.source.holds_files else None
        if data is None or isinstance(data, np.ndarray):
            raise LoadError(
                f"{opened.source.keys.key(position)!r} in {self.path} is an array, not an original "
                "file: convert with --store=encoded to keep the files"
            )
        return bytes(data)

    def read_bytes_batch(
        self, keys: Sequence[str | SupportsIndex] | np.ndarray | slice
    ) -> list[bytes]:
        """Return the bytes of several files, by keys or positions, as `read_bytes` does."""
        opened = self._open()
        positions = self._positions(opened, keys)
        if opened.source.holds_files:
            opened.source.fetch(positions)
        return [self.read_bytes(position) for position in positions.tolist()]

    def location(self, key: str | SupportsIndex) -> Location:
        """Return where the bytes of a sample lie: path, offset, nbytes, dtype and shape.

        They are in C order and as they are, for programs that read the file by themselves. With
        ``--store=encoded`` they are what `read_bytes` returns: uint8, of shape (nbytes,).
        Raises LoadError for a compressed or an empty array, and where the file has no index.
        """
        opened = self._open()
        return opened.source.location(self._position(opened, key))

    def read_batch(
        self,
        keys: Sequence[str | SupportsIndex] | np.ndarray | slice,
        *,
        out: np.ndarray | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Return the arrays of keys or positions, in their order.

        Parameters
        ----------
        keys
            A list, an array of numpy, a column of pandas, a tensor or a slice.
        out
            An array to fill and to return, of shape (N, ...) and the arrays' dtype, with any
            strides. Memory that is used again is faster than new memory for each batch. After an
            error some of it may be filled. None: return a new array (N, ...) where shapes and
            dtypes agree, else a list.
        """
        opened = self._open()
        positions = self._positions(opened, keys)
        if out is not None:
            _check_out(out, len(positions))
        if not len(positions):
            return [] if out is None else out
        if self._cache_nbytes:
            cached = map(opened.read, positions.tolist())
            if out is not None:
                return fill_rows(out, cached, opened.source.keys, positions)
            return stacked(list(cached))
        arrays = opened.source.read_batch(positions, out)
        return arrays if isinstance(arrays, np.ndarray) else stacked(arrays)

    def __getitems__(self, keys: Sequence[str | SupportsIndex]) -> list[np.ndarray]:
        """Return one array for each key or position: PyTorch's DataLoader asks for a batch so."""
        return list(self.read_batch(keys))

    _getitems = __getitems__  # as Grain asks for a batch

    def close(self) -> None:
        """Close the file in this process; reading afterwards raises LoadError."""
        opened, self._opened, self._closed = self._opened, None, True
        if opened is not None:
            opened.source.close()

    def _open(self) -> _Opened:
        opened = self._opened
        if opened is not None:
            return opened
        if self._closed:
            raise LoadError(f"{self.path} is closed: make a new H5Folder to read on")
        # No lock: one held by another thread while forking would stay locked. Two threads
        # may both open the file; one of the two handles is then dropped.
        threads = Threads(self._threads)
        files = [self._open_one(path, threads) for path in self.paths]
        source: Source = files[0] if len(files) == 1 else SeveralFiles(files)
        if self._identity not in (None, source.identity):
            raise LoadError(
                f"{self.path} was replaced since this H5Folder was first used, in another "
                "process: make a new H5Folder"
            )
        self._identity = source.identity
        nbytes = self._cache_nbytes
        read = Cache(nbytes, source.read).read if nbytes else source.read
        self._opened = opened = _Opened(source, source.keys.find, read)
        return opened

    def _open_one(self, path: str, threads: Threads) -> OneFile:
        handle = Handle(path)
        index = open_index(handle)
        source: IndexedFile | H5pyFile
        if index is None:
            source = H5pyFile(handle)
        else:
            source = IndexedFile(handle, index, threads=threads, verify=self._verify)
        return EncodedFile(source, threads) if source.is_encoded else source

    def _position(self, opened: _Opened, key: str | SupportsIndex) -> int:
        if isinstance(key, bytes):
            key = key.decode(errors="surrogateescape")
        if getattr(key, "ndim", None) == 0 and hasattr(key, "item"):
            key = key.item()
        if isinstance(key, str):
            position = opened.source.keys.find(key)
            if position is None:
                raise unknown_key(opened.source.keys, key)
            return position
        try:
            return self._in_range(operator.index(key), opened)
        except TypeError:
            raise TypeError(f"a key is str, a position int, not {type(key).__name__}") from None

    def _in_range(self, position: int, opened: _Opened) -> int:
        count = len(opened.source.keys)
        if -count <= position < count:
            return position % count
        raise IndexError(f"position {position} is not in {self.path}, which holds {count} samples")

    def _positions(self, opened: _Opened, keys: Any) -> np.ndarray:
        """Return the positions of keys, or positions that are in range."""
        if isinstance(keys, (str, bytes)):
            raise TypeError("read_batch takes several keys: put one into a list")
        count = len(opened.source.keys)
        if isinstance(keys, slice):
            return np.arange(*keys.indices(count), dtype=np.int64)
        if hasattr(keys, "__array__"):  # of numpy, a column of pandas, a tensor
            keys = np.asarray(keys)
            if keys.dtype.kind == "S":
                keys = np.char.decode(keys, "utf-8")
            if keys.ndim != 1 or keys.dtype.kind not in "iuUOT":
                raise TypeError(
                    f"keys or positions are text or integers in one row, not {keys.ndim} "
                    f"dimensions of {keys.dtype}"
                )
        if isinstance(keys, np.ndarray) and keys.dtype.kind in "iu":
            positions = keys
        else:
            keys = list(keys)
            kinds = set(map(type, keys))
            if kinds and all(issubclass(kind, str) for kind in kinds):
                positions = opened.source.keys.find_all(keys)
                if (positions < 0).any():
                    raise unknown_key(opened.source.keys, keys[int(np.argmin(positions))])
                return positions
            try:
                if kinds - {int}:
                    raise TypeError
                positions = np.array(keys, np.int64)
            except (TypeError, OverflowError):
                positions = np.array([self._position(opened, key) for key in keys], np.int64)
        if len(positions) and not (-count <= positions.min() and positions.max() < count):
            wrong = positions[(positions < -count) | (positions >= count)][0]
            self._in_range(int(wrong), opened)
        positions = positions.astype(np.int64)
        positions[positions < 0] += count
        return positions


def are_several(key: Any) -> bool:
    """Tell whether these are several keys or positions, and not one."""
    if hasattr(key, "ndim"):  # a tensor of one position could be taken for the position
        return bool(key.ndim)
    if isinstance(key, tuple):  # a selection belongs to `read`
        return not any(isinstance(one, slice) or one is Ellipsis for one in key)
    return isinstance(key, (list, range, slice)) or hasattr(key, "__array__")


def _check_out(out: Any, count: int) -> None:
    """Raise ValueError where a batch of so many arrays cannot be written into ``out``."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is an array of numpy to fill, not {type(out).__name__}")
    if not out.ndim or len(out) != count:
        raise ValueError(f"out has shape {out.shape}: give it {count} rows, one for each key")
    if not out.flags.writeable:
        raise ValueError("out is read-only: give an array that can be written")
