"""The table of readers: each is a module of this folder that turns a file into an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from converter.images.picture import Allocate, Image
from converter.sources import images, opencv


class Reader(Protocol):
    """What each module of a reader has."""

    #: For the help of ``--reader``.
    HELP: str
    #: Distributions whose versions the file records.
    PACKAGES: tuple[str, ...]
    #: Counts up when the same file gives another array; 0 where nobody counts.
    REVISION: int

    def check_installed(self) -> None:
        """Raise ConverterError, saying what to install, where something is missing."""

    def refuse_unread(self, extensions: Sequence[str], *, store: str) -> None:
        """Raise ConverterError for an extension of which it can read no file."""

    def read_noted(self, path: str, allocate: Allocate | None = None) -> Image:
        """Read a file, perhaps into ``allocate(nbytes)``; raise whatever says why not."""

    def plugins_of(self, extensions: Sequence[str]) -> dict[str, str | None]:
        """Return what reads files of each extension, where the file is to record that."""


READERS: dict[str, Reader] = {"imageio": images, "opencv": opencv}
DEFAULT_READER = "imageio"
PACKAGES = tuple(name for reader in READERS.values() for name in reader.PACKAGES)
