"""Record how a file was made; two runs that make the same file record the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from converter.installed import hdf5_version, package_versions

REVISION_NAME = "reader_revision"  # of the table of formats; files without it have revision 0
#: Of HDF5's structures. It follows that of payloads in "format", behind a point, where there are
#: compressed arrays, or images that are marked as such; older files lack it.
CHUNKS_VERSION, IMAGES_VERSION = 1, 2
#: The root attributes in the order in which they are written.
ATTRIBUTES = ("format", "store", "reader", REVISION_NAME, "options", "plugins", "versions")
#: Options that decide which files go in, and not what becomes of them.
SELECTION_OPTIONS = ("ext", "follow_links", "hidden_folders", "my_prune_sha256")
RESIZE = "resize"  # an option of files whose images were made smaller, alone
PACKAGES = ("h5py", "numpy")


def describe(
    *,
    store: str,
    reader: str,
    revision: int,
    options: Mapping[str, object],
    plugins: Mapping[str, str | None],
    packages: Iterable[str],
    payload_version: int,
) -> dict[str, str]:
    """Return the root attributes; each is short text or JSON.

    ``revision`` is the reader's: it counts up when the reader gives other arrays. ``packages``
    are those whose versions decide what is stored, beside h5py and numpy.
    """
    return {
        "format": f"data2h5 {payload_version}",
        "store": store,
        "reader": reader,
        REVISION_NAME: str(revision),
        "options": _json(options),
        "plugins": _json(plugins),
        "versions": _json(installed_versions(packages)),
    }


def with_structures(
    attributes: Mapping[str, str], *, has_chunks: bool, has_images: bool
) -> dict[str, str]:
    """Return the root attributes of a file by what it holds: compressed arrays, marked images."""
    made = dict(attributes)
    if "format" in made and (has_chunks or has_images):
        version = IMAGES_VERSION if has_images else CHUNKS_VERSION
        made["format"] = f"{payload_format(made['format'])}.{version}"
    return made


def payload_format(text: str) -> str:
    """Return what of the attribute "format" decides how a file becomes a payload."""
    return text.partition(".")[0]


def size_resized_to(options: object) -> int | str | None:
    """Return ``--resize`` by the attribute "options"; None where there is none of it."""
    try:
        size = json.loads(options).get(RESIZE) if isinstance(options, str) else None
    except (AttributeError, ValueError):  # of another program
        return None
    return size if isinstance(size, (int, str)) else None


def encoding_options(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return those root attributes and options that decide how a file becomes a payload."""
    options = {
        name: _json(value)
        for name, value in json.loads(attributes["options"]).items()
        if name not in SELECTION_OPTIONS
    }
    rest = {name: attributes[name] for name in ("store", "reader", "versions")}
    rest["format"] = payload_format(attributes["format"])
    return {**rest, REVISION_NAME: attributes.get(REVISION_NAME, "0"), **options}


def difference(before: dict[str, str], now: dict[str, str]) -> str | None:
    """Return a sentence on how two `encoding_options` differ; None where they do not."""
    if (RESIZE in before) != (RESIZE in now):  # only then is it recorded
        return f"it was made {_resized(before)}, and this is {_resized(now)}"
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


def _resized(options: dict[str, str]) -> str:
    if RESIZE not in options:
        return f"without --{RESIZE}"
    return f"with --{RESIZE}={json.loads(options[RESIZE])}"


def _difference_of_versions(before: dict[str, str], now: dict[str, str]) -> str:
    for name in sorted({*before, *now}):
        one, other = before.get(name), now.get(name)
        if one != other:
            return f"it was made with {name} {one or 'missing'}, and this is {other or 'missing'}"
    return "the package versions are recorded in another format"


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of HDF5, h5py, numpy and those of ``packages`` that are installed."""
    # what is missing is optional: leaving it out records that
    return {"hdf5": hdf5_version(), **package_versions((*PACKAGES, *packages))}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
