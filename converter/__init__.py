"""Data2H5: one HDF5 file from the loose files below a folder."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.loader import H5Folder as H5Folder
    from converter.readers import read_image as read_image

__version__ = "0.1.0"

_HOMES = {"H5Folder": "converter.loader", "read_image": "converter.readers"}
__all__ = ["H5Folder", "read_image"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: a loader needs no image packages."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
