"""Data2H5: one HDF5 file from the loose files below a folder."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.commands.convert import convert as convert
    from converter.cropping.crops import CenterCrop as CenterCrop
    from converter.cropping.crops import RandomCrop as RandomCrop
    from converter.cropping.crops import RandomResizedCrop as RandomResizedCrop
    from converter.cropping.crops import Resize as Resize
    from converter.errors import ConverterError as ConverterError
    from converter.errors import StoppedError as StoppedError
    from converter.loader.h5folder import H5Folder as H5Folder
    from converter.sources.images import read_image as read_image
    from converter.training.loader import H5Loader as H5Loader
    from converter.training.torch_data import H5ImageFolder as H5ImageFolder
    from converter.training.torch_data import H5Sampler as H5Sampler

__version__ = "0.1.0"

_HOMES = {
    "CenterCrop": "converter.cropping.crops",
    "ConverterError": "converter.errors",
    "H5Folder": "converter.loader.h5folder",
    "H5ImageFolder": "converter.training.torch_data",
    "H5Loader": "converter.training.loader",
    "H5Sampler": "converter.training.torch_data",
    "RandomCrop": "converter.cropping.crops",
    "RandomResizedCrop": "converter.cropping.crops",
    "Resize": "converter.cropping.crops",
    "StoppedError": "converter.errors",
    "convert": "converter.commands.convert",
    "read_image": "converter.sources.images",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: a loader needs no image packages."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
