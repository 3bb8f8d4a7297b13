"""Record how a file was made: nothing that differs between two equal runs."""

from __future__ import annotations

import json
from importlib import metadata

import h5py

from converter.images.formats import REVISION, plugin_of

FORMAT = "data2h5 1"
REVISION_NAME = "reader_revision"  # of the table of formats; files without it have revision 0
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
    ext: str | tuple[str, ...],
    read_sha256: str | None,
    prune_sha256: str | None,
    reader: str,
    store: str,
    skip_decode_check: bool,
    compression: str,
    max_pixels: int | None,
    follow_links: bool,
    hidden_folders: bool,
) -> dict[str, str]:
    """Return the root attributes; each is short text or JSON.

    ``ext`` is a text as my_prune got it, else the extensions.
    """
    options = {
        "compression": compression,
        "ext": ext,
        "follow_links": follow_links,
        "hidden_folders": hidden_folders,
        "max_pixels": max_pixels,
        "my_prune_sha256": prune_sha256,
        "my_read_sha256": read_sha256,
        "skip_decode_check": skip_decode_check,
    }
    if read_sha256 is not None:
        reader = "my_read"
    plugins = {}
    if reader == "imageio" and not isinstance(ext, str):
        plugins = {extension: plugin_of(extension) for extension in ext}
    return {
        "format": FORMAT,
        "store": store,
        "reader": reader,
        REVISION_NAME: str(REVISION if reader == "imageio" else 0),
        "options": _json(options),
        "plugins": _json(plugins),
        "versions": _json(_versions()),
    }


#: The root attributes in the order in which they are written.
NAMES = ("format", "store", "reader", REVISION_NAME, "options", "plugins", "versions")
#: Options that decide which files go in, and not what becomes of them.
OF_SELECTION = ("ext", "follow_links", "hidden_folders", "my_prune_sha256")


def manner(attributes: dict[str, str]) -> dict[str, str]:
    """Return what of the root attributes decides how a file becomes a payload."""
    options = {
        name: _json(value)
        for name, value in json.loads(attributes["options"]).items()
        if name not in OF_SELECTION
    }
    rest = {name: attributes[name] for name in ("format", "store", "reader", "versions")}
    return {**rest, REVISION_NAME: attributes.get(REVISION_NAME, "0"), **options}


def difference(before: dict[str, str], now: dict[str, str]) -> str | None:
    """Say how one `manner` differs from another; None where it does not."""
    for name in sorted({*before, *now}):
        one, other = before.get(name), now.get(name)
        if one == other:
            continue
        if name == REVISION_NAME:
            return (
                f"the default reader has changed (revision {one or 0} of its formats, now {other}) "
                "and may read other arrays"
            )
        if name == "versions" and one and other:
            return _difference_of_versions(json.loads(one), json.loads(other))
        return f"{name} was {one} and is {other}"
    return None


def _difference_of_versions(before: dict[str, str], now: dict[str, str]) -> str:
    for name in sorted({*before, *now}):
        one, other = before.get(name), now.get(name)
        if one != other:
            return f"it was made with {name} {one or 'missing'}, and this is {other or 'missing'}"
    return "the versions of packages are written otherwise"


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
