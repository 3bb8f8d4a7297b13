"""The table of readers: each is a module of this folder that turns a file into an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from converter.images.picture import Allocate, Image, Least
from converter.sources import images, opencv


class Reader(Protocol):
    """What each module of a reader has."""

    #: For the help of ``--reader``.
    HELP: str
    #: Packages whose versions OUT.h5 records.
    PACKAGES: tuple[str, ...]
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

        It may be smaller, by a factor, but not smaller than ``least`` says of its size.
        """

    def plugins_of(self, extensions: Sequence[str]) -> dict[str, str | None]:
        """Return what reads files of each extension, for OUT.h5 to record."""


READERS: dict[str, Reader] = {"imageio": images, "opencv": opencv}
DEFAULT_READER = "imageio"


def marks_images(reader: str) -> bool:
    """Tell whether images are marked for viewers, of a reader as OUT.h5 records it."""
    return reader in READERS and READERS[reader].IS_RGB


PACKAGES = tuple(name for reader in READERS.values() for name in reader.PACKAGES)
