"""Which versions of packages are installed, without importing them or what would tell."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

#: By the ending of a package's folder. ``pip install -e`` leaves the second kind in the checkout.
DESCRIPTIONS = {"dist-info": "METADATA", "egg-info": "PKG-INFO"}
VERSION = re.compile(r"Version:[ \t]*(.*)", re.IGNORECASE)


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, as `importlib.metadata` does.

    That module takes 15 ms, most of it to import Python's library for mail.
    """
    versions, described = {}, _descriptions()
    for name in names:
        if described is None:
            version = _by_importlib(name)
        elif (path := described.get(_normal(name))) is None:
            continue
        else:
            version = _version_in(path) or _by_importlib(name)
        if version is not None:
            versions[name] = version
    return versions


def _by_importlib(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _version_in(path: str) -> str | None:
    """Return the version that a file of a wheel's metadata names in its head."""
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if match := VERSION.match(line):
                    return match[1]
                if not line.strip():
                    break
    except (OSError, UnicodeError):
        pass
    return None


def _descriptions() -> dict[str, str] | None:
    """Return where each package is described; None where not all are described by such files."""
    others = (finder for finder in sys.meta_path if finder is not PathFinder)
    if any(hasattr(finder, "find_distributions") for finder in others):
        return None
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except FileNotFoundError:
            continue
        except OSError:  # an archive
            return None
        for name in names:
            stem, _, kind = name.rpartition(".")
            if kind.lower() == "egg":
                return None
            if kind.lower() in DESCRIPTIONS:
                path = os.path.join(folder, name, DESCRIPTIONS[kind.lower()])
                found.setdefault(_normal(stem.partition("-")[0]), path)
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def hdf5_version() -> str:
    """Return the version of HDF5, without h5py where that is not imported: it takes 40 ms."""
    version = None if "h5py" in sys.modules else _hdf5_of_wheel()
    if version is not None:
        return version
    import h5py

    return str(h5py.version.hdf5_version)


def _hdf5_of_wheel() -> str | None:
    """Return the version of the HDF5 beside h5py in a wheel for Linux; None where it is none."""
    spec = find_spec("h5py")
    if spec is None or spec.origin is None:
        return None
    libraries = [*Path(spec.origin).parents[1].glob("h5py.libs/libhdf5-*.so*")]
    if len(libraries) != 1:
        return None
    numbers = [ctypes.c_uint() for _ in range(3)]
    try:
        failed = ctypes.CDLL(str(libraries[0])).H5get_libversion(*map(ctypes.byref, numbers))
    except (OSError, AttributeError):
        return None
    return None if failed else ".".join(str(number.value) for number in numbers)
