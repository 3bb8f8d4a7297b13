"""The table of codecs: each is a module of this folder, and is used through this one."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from converter.codecs import blosc2, gzip, zstd
from converter.codecs.filters import (
    SHUFFLE,
    FilterPipeline,
    Payload,
    as_bytes,
    shuffled,
    unshuffle,
)
from converter.errors import ConverterError

if TYPE_CHECKING:
    import numpy as np


class Codec(Protocol):
    """What each module of a codec has."""

    #: The name in ``--compression=NAME``, and the number of its filter in HDF5.
    NAME: str
    FILTER: int
    LEVELS: range
    DEFAULT_LEVEL: int
    #: The package whose version decides the bytes, and the module that must be there.
    PACKAGE: str | None
    MODULE: str | None
    #: What to tell who writes it, where h5py reads it only after ``import hdf5plugin``.
    NOTICE: str | None
    #: Whether damage would pass its decoder unnoticed.
    NEEDS_INDEX_CHECKSUM: bool
    #: The bytes that one byte decodes to at most.
    INFLATION: int
    #: A part of the root attribute ``format``: counts up when the same array gives other bytes.
    PAYLOAD_VERSION: int

    def pipeline(
        self, level: int, dtype: np.dtype, chunks: tuple[int, ...]
    ) -> FilterPipeline | None:
        """Return the filters of a dataset: its own, perhaps behind SHUFFLE.

        None where items are too large for it.
        """

    def can_decode(self, filters: FilterPipeline, itemsize: int) -> bool:
        """Tell whether it can decode filters of a file, of which the last is its own."""

    def encode(self, data: bytes | np.ndarray, values: tuple[int, ...]) -> bytes:
        """Return the payload of a chunk's bytes; ``values`` are those of its filter."""

    def decode(self, payload: Payload, target: np.ndarray, threads: int = 1) -> None:
        """Fill ``target``, 1-D uint8, or raise ValueError."""


_CODECS: tuple[Codec, ...] = (gzip, zstd, blosc2)
CODECS = {codec.NAME: codec for codec in _CODECS}
BY_FILTER = {codec.FILTER: codec for codec in _CODECS}
#: What is assumed of filters that are not known here.
MOST_INFLATION = 1 << 15


class Compression(NamedTuple):
    """What ``--compression`` names; "auto" and "none" have no level."""

    name: str
    level: int | None = None

    def __str__(self) -> str:
        return self.name if self.level is None else f"{self.name}:{self.level}"

    @property
    def notice(self) -> str | None:
        """Say who cannot read it as it is; None where h5py can."""
        return CODECS[self.name].NOTICE if self.name in CODECS else None

    @property
    def needs_plugin(self) -> bool:
        """Tell whether h5py reads it only after ``import hdf5plugin``."""
        return self.notice is not None

    @property
    def payload_version(self) -> int:
        """Return the version of its payloads, for the root attribute ``format``."""
        return CODECS[self.name].PAYLOAD_VERSION if self.name in CODECS else 1

    @property
    def missing_package(self) -> str | None:
        """Return the package to install first; None where nothing is missing."""
        codec = CODECS.get(self.name)
        return None if codec is None or is_installed(codec) else codec.PACKAGE


AUTO, NONE = Compression("auto"), Compression("none")
#: What "auto" compresses with: HDF5 needs no plugin for it.
OF_AUTO = Compression(gzip.NAME, gzip.DEFAULT_LEVEL)
pays_off = gzip.pays_off
WORTHWHILE_RATIO = gzip.WORTHWHILE_RATIO
#: Each at its default level, in the order of the help.
ALL = (AUTO, NONE, *(Compression(codec.NAME, codec.DEFAULT_LEVEL) for codec in _CODECS))
PACKAGES = tuple(codec.PACKAGE for codec in _CODECS if codec.PACKAGE is not None)


def is_installed(codec: Codec) -> bool:
    """Tell whether chunks can be encoded and decoded without HDF5."""
    return codec.MODULE is None or importlib.util.find_spec(codec.MODULE) is not None


def parse_compression(text: str) -> Compression:
    """Return the compression a text such as ``zstd`` or ``zstd:3`` names.

    Raises ConverterError, saying what there is.
    """
    name, colon, level = text.partition(":")
    by_name = {one.name: one for one in ALL}
    if name not in by_name or (colon and name not in CODECS):
        raise ConverterError(
            f"{text!r} is none of {', '.join(by_name)} (a level may follow the last "
            f"{len(CODECS)}, as in {OF_AUTO.name}:6)"
        )
    if not colon:
        return by_name[name]
    levels = CODECS[name].LEVELS
    if level.isascii() and level.isdigit() and int(level) in levels:
        return Compression(name, int(level))
    raise ConverterError(f"{name} has levels {levels[0]} to {levels[-1]}, not {level!r}")


def check_installed(compression: Compression) -> None:
    """Raise ConverterError where a package is missing."""
    package = compression.missing_package
    if package is not None:
        raise ConverterError(
            f"--compression={compression.name} needs another package: pip install {package}"
        )


def pipeline(
    compression: Compression, dtype: np.dtype, chunks: tuple[int, ...]
) -> FilterPipeline | None:
    """Return the filters of a dataset; None where its items are too large for the codec."""
    assert compression.level is not None
    return CODECS[compression.name].pipeline(compression.level, dtype, chunks)


def encode(chunk: np.ndarray, filters: FilterPipeline) -> bytes:
    """Apply filters to a chunk."""
    number, values = filters[-1]
    if len(filters) > 1:
        return BY_FILTER[number].encode(shuffled(chunk), values)
    whole = chunk if chunk.flags.c_contiguous else chunk.copy()
    return BY_FILTER[number].encode(as_bytes(whole), values)


def decode(payload: Payload, filters: FilterPipeline, target: np.ndarray, threads: int = 1) -> None:
    """Fill ``target``, C-contiguous and as large as one chunk, from a payload.

    At most ``threads`` share the work. Raises ValueError when the payload does not decode to
    exactly that.
    """
    raw = as_bytes(target)
    if not filters:
        if len(payload) != raw.nbytes:
            raise ValueError("has a chunk of another size")
        raw.data[:] = payload
        return
    codec = BY_FILTER[filters[-1][0]]
    if len(filters) == 1:
        codec.decode(payload, raw, threads)
        return
    import numpy as np  # takes too long for --help

    planes = np.empty_like(raw)
    codec.decode(payload, planes, threads)
    unshuffle(planes.reshape(target.dtype.itemsize, -1), raw)


def is_decodable(filters: FilterPipeline, itemsize: int) -> bool:
    """Tell whether `decode` can undo filters."""
    if not filters:
        return True
    codec = BY_FILTER.get(filters[-1][0])
    return codec is not None and is_installed(codec) and codec.can_decode(filters, itemsize)


def needs_index_checksum(filters: FilterPipeline) -> bool:
    """Tell whether damage of a payload would pass its filters unnoticed."""
    codecs = (BY_FILTER.get(number) for number, _ in filters)
    return any(codec is not None and codec.NEEDS_INDEX_CHECKSUM for codec in codecs)


def inflation(filters: Sequence[int]) -> int:
    """Return how many bytes filters, by their numbers, can make of one byte at most.

    At least what deflate can: HDF5 need not store chunks that nothing was written to.
    """
    known = {SHUFFLE: 1, **{codec.FILTER: codec.INFLATION for codec in _CODECS}}
    return max(gzip.INFLATION, *(known.get(number, MOST_INFLATION) for number in filters), 0)
