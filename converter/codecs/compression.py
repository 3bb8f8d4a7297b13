"""Name the compressions that can be asked for, and make the payloads of chunks with them."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import numpy as np

from converter.codecs import blosc2
from converter.codecs.filters import (
    BLOSC2,
    DEFLATE,
    SHUFFLE,
    ZSTD,
    FilterPipeline,
)
from converter.errors import ConverterError

#: Levels each compression knows, and the one taken where none is given.
LEVELS = {"gzip": range(1, 10), "zstd": range(1, 23), "blosc2": range(1, 10)}
#: gzip 1 (of zlib-ng) is 2.5 times larger on masks. zstd 3 is at times larger than gzip on
#: depth maps. blosc2 5 takes 7 times as long as 1, for 2 % on photos.
DEFAULT_LEVELS = {"gzip": 2, "zstd": 6, "blosc2": 1}
#: The package that makes the payloads, where it is none that is always installed.
PACKAGES = {"zstd": "zstandard", "blosc2": "blosc2"}
#: What HDF5 alone cannot undo.
PLUGIN_FILTERS = ("zstd", "blosc2")


class Compression(NamedTuple):
    """A compression as it is asked for: "auto" and "none" have no level."""

    name: str
    level: int | None = None

    def __str__(self) -> str:
        return self.name if self.level is None else f"{self.name}:{self.level}"


AUTO, NONE = Compression("auto"), Compression("none")
GZIP = Compression("gzip", DEFAULT_LEVELS["gzip"])


def parse_compression(text: str) -> Compression:
    """Return the compression a text such as ``zstd`` or ``zstd:3`` names.

    Raises ValueError, saying what there is.
    """
    name, colon, level = text.partition(":")
    if name in ("auto", "none") and not colon:
        return Compression(name)
    if name in LEVELS:
        if not colon:
            return Compression(name, DEFAULT_LEVELS[name])
        if level.isascii() and level.isdigit() and int(level) in LEVELS[name]:
            return Compression(name, int(level))
        levels = LEVELS[name]
        raise ValueError(f"{name} has levels {levels[0]} to {levels[-1]}, not {level!r}")
    names = ", ".join(("auto", "none", *LEVELS))
    raise ValueError(f"{text!r} is none of {names} (the last three with a level, as gzip:6)")


def missing_package(compression: Compression) -> str | None:
    """Return the package to install first; None where nothing is missing."""
    package = PACKAGES.get(compression.name)
    return package if package and importlib.util.find_spec(package) is None else None


def check_installed(compression: Compression) -> None:
    """Raise ConverterError where a package is missing."""
    package = missing_package(compression)
    if package:
        raise ConverterError(
            f"--compression={compression.name} needs a package more: pip install {package}"
        )


def pipeline(compression: Compression, dtype: np.dtype, chunks: tuple[int, ...]) -> FilterPipeline:
    """Return the filters of a dataset in the order in which they are applied."""
    level = compression.level
    assert level is not None
    if compression.name == "blosc2":
        return ((BLOSC2, blosc2.filter_values(chunks, dtype.itemsize, level)),)
    last = (DEFLATE if compression.name == "gzip" else ZSTD, (level,))
    if dtype.itemsize == 1:
        return (last,)
    return ((SHUFFLE, (dtype.itemsize,)), last)
