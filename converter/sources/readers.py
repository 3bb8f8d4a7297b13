"""The table of readers, each a module of this folder that turns a file into an array; settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from converter.codecs.compression import AUTO, Compression
from converter.sources.resizing import Resizing

if TYPE_CHECKING:
    from converter.images.picture import Allocate, Image, Least
    from converter.sources.encoder import Encoder


class Reader(Protocol):
    """What each module of a reader has."""

    #: Counts up when the same file gives another array; 0 where that is not counted.
    REVISION: int
    #: Whether colours are in the order red, green, blue: OUT.h5 then marks images for viewers.
    IS_RGB: bool

    def check_installed(self) -> None:
        """Raise ConverterError, saying what to install, where something is missing."""

    def refuse_unread(self, extensions: Sequence[str], *, store: str) -> None:
        """Raise ConverterError for an extension whose files it cannot read."""

    def read_noted(
        self, path: str, allocate: Allocate | None = None, least: Least | None = None
    ) -> Image:
        """Read a file, perhaps into ``allocate(nbytes)``; any exception makes it a failure.

        The image may be decoded to a half, a quarter or an eighth, but not below ``least(size)``.
        """

    def plugins_of(self, extensions: Sequence[str]) -> dict[str, str | None]:
        """Return what reads files of each extension, for OUT.h5 to record."""


class Table(Mapping[str, Reader]):
    """Readers by name. A module is imported when it is first asked for: not for ``--help``."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = modules

    def __getitem__(self, name: str) -> Reader:
        return cast(Reader, import_module(f"converter.sources.{self._modules[name]}"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


READERS = Table({"imageio": "images", "opencv": "opencv"})
DEFAULT_READER = "imageio"
#: Packages of each reader, whose versions OUT.h5 records: all of them, whichever reader it is.
PACKAGES = {
    "imageio": ("imageio", "pillow", "tifffile", "simplejpeg", "imagecodecs"),
    "opencv": (
        "opencv-python",
        "opencv-python-headless",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ),
}
#: For the help of ``--reader``.
HELP = {
    "imageio": "RGB, full depth, all frames (docs/formats.md)",
    "opencv": "exactly cv2.imread(path), that is BGR, 8 bits, EXIF orientation applied",
}

if TYPE_CHECKING:  # each module has all that a reader needs
    from converter.sources import images, opencv

    _READERS: tuple[Reader, ...] = (images, opencv)


class Choice(NamedTuple):
    """A way to store samples, to be compared with others."""

    store: str
    compression: Compression
    resizing: Resizing | None = None


@dataclass(frozen=True)
class Settings:
    """All that decides how a file becomes a payload; travels to the workers.

    With ``choices`` samples are not encoded but surveyed: `Surveyed` says how large each choice
    would make them.
    """

    root: str
    store: str = "array"
    compression: Compression = AUTO
    reader: str = DEFAULT_READER
    check_decoding: bool = True
    max_pixels: int | None = None
    path_functions: Path | None = None
    functions_text: bytes | None = None  # of that file, for machines that may not have it
    choices: tuple[Choice, ...] = ()
    file_timeout: float | None = None  # seconds; for `pool`
    resizing: Resizing | None = None  # not with functions

    def start(self) -> Encoder:
        """Return the encoder that does the work in this process."""
        from converter.sources.encoder import Encoder

        return Encoder(self)


def marks_images(reader: str) -> bool:
    """Tell whether images are marked for viewers, of a reader as OUT.h5 records it."""
    return reader in READERS and READERS[reader].IS_RGB


def packages() -> tuple[str, ...]:
    """Return the packages of all readers whose versions OUT.h5 records."""
    return tuple(chain.from_iterable(PACKAGES.values()))
