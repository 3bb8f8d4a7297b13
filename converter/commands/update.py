"""Read from a file the options it was made with, to update it with the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from converter.commands.request import (
    MY_READ,
    RECORDED,
    Request,
    extensions_of,
    recorded_value,
)
from converter.errors import ConverterError
from converter.files import open_handle, open_hdf5
from converter.sources import user_functions
from converter.sources.readers import DEFAULT_READER


def update_request(
    typed: dict[str, Any],
    *,
    purpose: str = "--update",
    notice: Callable[[str], None],
) -> Request:
    """Return the request that made ``typed["path_output"]``, as an update of it.

    ``typed`` are the flags the user gave. Raises ConverterError where one differs from what the
    file was made with, or the file does not say how it was made. ``notice`` is told what an older
    file does not record.
    """
    output: Path = typed["path_output"]
    recorded, options = _recorded(output, purpose)
    if "hidden_folders" not in options:
        notice(
            f"{output} was made by a version that entered hidden folders: they are entered again "
            "(to leave them out, convert again with --overwrite)"
        )
    for name, value in typed.items():
        if name in recorded and not _alike(name, value, recorded):
            raise ConverterError(
                f"{output} was made with {_flag(name, recorded[name])}, not "
                f"{_flag(name, value)}: drop that flag, or convert again with --overwrite"
            )
    request = Request(**recorded | typed | {"update": True})
    if request.custom_read_func or request.custom_prune_func:
        path = user_functions.find_functions(request.path_functions)
        hashes = (None, user_functions.hash_of(path))
        for name in ("my_read", "my_prune"):
            if options[f"{name}_sha256"] not in hashes:
                raise ConverterError(
                    f"{output} was made with another {name} than that of {path}: give the file it "
                    "was made with as --path_functions, or convert again with --overwrite"
                )
    return request


def _recorded(output: Path, purpose: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the flags a file was made with, and the options it records."""
    if purpose == "--update" and not os.path.lexists(output):
        raise ConverterError(
            f"no file {output} to update: drop --update to make it, or correct --path_output"
        )
    open_handle(output)  # says what is wrong with the name
    unknown = f"which {purpose} needs: convert again with --overwrite"
    try:
        with open_hdf5(output) as file:
            attributes = {name: file.attrs[name] for name in ("store", "reader", "options")}
            if "shard" in file.attrs:
                attributes["shard"] = file.attrs["shard"]
    except (OSError, RuntimeError) as error:
        raise ConverterError(f"{output} cannot be read as HDF5, {unknown}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConverterError(f"{output} does not say how it was made, {unknown}") from error
    if "shard" in attributes and purpose == "--update":
        raise ConverterError(
            f"{output} is a shard, and shards cannot be updated: convert it again with --overwrite"
        )
    try:
        options = json.loads(attributes["options"])
        reader = attributes["reader"]
        recorded = {
            **{name: recorded_value(name, options) for name in RECORDED},
            "custom_read_func": options["my_read_sha256"] is not None,
            "custom_prune_func": options["my_prune_sha256"] is not None,
            "reader": None if reader in (DEFAULT_READER, MY_READ) else reader,
            "store": attributes["store"],
            "shard": None,
        }
        if "shard" in attributes:
            shard = json.loads(attributes["shard"])
            recorded["shard"] = shard["number"], shard["of"]
        return recorded, options
    except (ConverterError, KeyError, TypeError, ValueError) as error:
        raise ConverterError(
            f"{output} records its options in a format this version does not know, {unknown}"
        ) from error


def _alike(name: str, value: Any, recorded: Mapping[str, Any]) -> bool:
    """Tell whether a flag asks for what was recorded."""
    before = recorded[name]
    if name == "reader":
        return (value or DEFAULT_READER) == (before or DEFAULT_READER)
    if name == "ext" and not recorded["custom_prune_func"]:  # which gets it as it is typed
        return extensions_of(value) == extensions_of(before)
    return bool(value == before)


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"no --{name}"
    if type(value) is tuple:  # a size; not a NamedTuple, such as a compression
        value = "x".join(map(str, value))
    return f"no --{name}" if value is None else f"--{name}={value}"
