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
    "zstandard",
    "blosc2",
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
    reader: str,
    store: str,
    skip_decode_check: bool,
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
        "skip_decode_check": skip_decode_check,
    }
    if read_sha256 is not None:
        reader = "my_read"
    plugins = {}
    if reader == "imageio":
        plugins = {extension: plugin_of(extension) for extension in extensions}
    return {
        "format": FORMAT,
        "store": store,
        "reader": reader,
        "options": _json(options),
        "plugins": _json(plugins),
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
