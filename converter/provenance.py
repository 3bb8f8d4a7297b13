"""Record how a file was made: nothing that differs between two equal runs."""

from __future__ import annotations

import json
from importlib import metadata

import h5py

from converter.readers import plugin_of

FORMAT = "data2h5 1"
PACKAGES = ("h5py", "numpy", "imageio", "pillow", "tifffile")
#: Their presence decides which files can be read, or how payloads are compressed.
OPTIONAL_PACKAGES = (
    "simplejpeg",
    "zlib-ng",
    "imagecodecs",
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)


def describe(
    *,
    extensions: tuple[str, ...],
    read_sha256: str | None,
    prune_sha256: str | None,
    compression: str,
    max_pixels: int | None,
    follow_links: bool,
) -> dict[str, str]:
    """Return the root attributes; each is short text or JSON."""
    options = {
        "compression": compression,
        "ext": extensions,
        "follow_links": follow_links,
        "max_pixels": max_pixels,
        "my_prune_sha256": prune_sha256,
        "my_read_sha256": read_sha256,
    }
    plugins = {extension: plugin_of(extension) for extension in extensions}
    return {
        "format": FORMAT,
        "reader": "imageio" if read_sha256 is None else "my_read",
        "options": _json(options),
        "plugins": _json(plugins if read_sha256 is None else {}),
        "versions": _json(_versions()),
    }


def _versions() -> dict[str, str]:
    versions = {"hdf5": h5py.version.hdf5_version}
    for name in PACKAGES + OPTIONAL_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an optional one that is not there: its absence is the record
    return versions


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
