"""Join finished files into one, by copying what lies encoded in them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, groupby, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converter.callbacks import Callbacks
from converter.commands.convert import output_folder
from converter.commands.estimate import check_space
from converter.commands.report import Report
from converter.commands.request import check_output, complete_options
from converter.errors import ConverterError
from converter.files import open_hdf5
from converter.format.index import order_of
from converter.samples import Batch, Portions
from converter.sources.readers import marks_images
from converter.writer import provenance
from converter.writer.journal import Head, read_head
from converter.writer.paths import Paths
from converter.writer.stored import StoredSamples
from converter.writer.writer import Writer

MERGING = "a merge"  # in a journal, which otherwise names the folder that is converted


class _Part(NamedTuple):
    """A file to be joined: its root attributes, and which shard it is, if it is one."""

    path: Path
    samples: StoredSamples
    attributes: dict[str, str]
    shard: dict[str, int | str] | None


def merge(
    paths: Sequence[Path], path_output: Path, caller: Callbacks, *, overwrite: bool
) -> Report:
    """Join files into ``path_output``.

    Shards of one folder are joined in their order, and the result is byte for byte what converting
    the whole folder at once would have made. Other files must have been made with the same
    options; their samples are stored in the order of a conversion.

    Raises
    ------
    ConverterError
        A shard is missing or given twice, options differ, keys clash, or a file cannot be read.
    StoppedError
        A payload is damaged, or the disk is full.
    """
    start = time.perf_counter()
    _check_paths(paths, path_output, overwrite=overwrite)
    parts = [_open(path) for path in paths]
    _check_alike(parts)
    if any(part.shard is not None for part in parts):
        parts = _complete(parts)
    files = [part.samples for part in parts]
    if not any(len(file) for file in files):
        raise ConverterError("none of the files to join holds a file: convert again")
    _check_folders(files)
    nbytes = sum(path.stat().st_size for path in paths)
    for file in files:
        file.read_as_part_of(nbytes)
    check_space(path_output, nbytes, cure="free space")
    _check_unfinished(Paths(path_output))
    report = Report(path_output=path_output, total=sum(len(file) for file in files))
    with ExitStack() as stack:
        stack.enter_context(output_folder(path_output.parent))
        writer = Writer(Paths(path_output))
        stack.callback(writer.close)
        with caller.without_signals():
            writer.lock()
            writer.expected_nbytes = nbytes
            writer.begin(Head(path_output.name, "", MERGING, {}), is_resumable=False)
        try:
            for batch in _batches(files):
                with caller.without_signals():
                    writer.write(batch)
                report.done += len(batch.results)
                report.nbytes += len(batch.payload)
                caller.progress(report.progress)
            with caller.without_signals():
                report.output_nbytes = writer.finish(_common_attributes(parts))
        except BaseException:
            writer.discard()  # joining anew costs no decoding
            raise
    report.fsync_seconds, report.refused_fsync = writer.fsync_seconds, writer.refused_fsync
    report.seconds = time.perf_counter() - start
    return report


def _check_paths(paths: Sequence[Path], path_output: Path, *, overwrite: bool) -> None:
    existing = [path for path in paths if path.exists()]
    if path_output.exists() and any(os.path.samefile(path, path_output) for path in existing):
        raise ConverterError(f"{path_output} is one of the files to join: name another file")
    check_output(path_output, overwrite=overwrite)
    for n, path in enumerate(paths):
        if path in paths[:n]:
            raise ConverterError(f"{path} is given twice: give each file once")


def _open(path: Path) -> _Part:
    if not path.is_file():
        raise ConverterError(f"no file {path}: --merge names files the converter made")
    samples = StoredSamples(path)
    try:
        with open_hdf5(path) as file:
            attributes = {name: str(value) for name, value in file.attrs.items()}
        shard = json.loads(attributes["shard"]) if "shard" in attributes else None
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ConverterError(f"{path} cannot be read ({error}): convert it again") from error
    if not {*provenance.ATTRIBUTES} - {provenance.REVISION_NAME} <= attributes.keys():
        raise ConverterError(f"{path} does not say how it was made: convert it again")
    attributes["format"] = provenance.payload_format(attributes["format"])
    try:
        attributes["options"] = complete_options(attributes["options"])
    except (TypeError, ValueError):
        raise ConverterError(f"{path} does not say how it was made: convert it again") from None
    samples.marks_images = marks_images(attributes["reader"])
    return _Part(path, samples, attributes, shard)


def _check_alike(parts: Sequence[_Part]) -> None:
    """Refuse files that were made with other options than the first."""
    first = parts[0]
    for part in parts[1:]:
        names = {*first.attributes, *part.attributes} - {"shard"}
        for name in sorted(names):
            default = "0" if name == provenance.REVISION_NAME else None
            one, other = first.attributes.get(name, default), part.attributes.get(name, default)
            if one != other:
                what = f"{name} is {other} and {one}"
                if name == "options" and one is not None and other is not None:
                    what = _differences(json.loads(other), json.loads(one))
                raise ConverterError(
                    f"{part.path} and {first.path} were made with different options: {what}: "
                    "convert one of them again"
                )


def _differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Say which options differ. Those of resizing are recorded only where images were resized."""

    def told(options: dict[str, Any], name: str) -> str:
        return json.dumps(options[name]) if name in options else "not given"

    return ", ".join(
        f"{name} is {told(one, name)} and {told(other, name)}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    )


def _common_attributes(parts: Sequence[_Part]) -> dict[str, str]:
    """Return the root attributes: what older files lack says which samples an update reads."""
    return {
        name: parts[0].attributes[name]
        for name in provenance.ATTRIBUTES
        if all(name in part.attributes for part in parts)
    }


def _complete(parts: Sequence[_Part]) -> list[_Part]:
    """Return shards in order; refuse what is not all of one whole."""
    by_number: dict[int, _Part] = {}
    first = parts[0]
    for part in parts:
        if part.shard is None or first.shard is None:
            whole = part if part.shard is None else first
            raise ConverterError(f"{whole.path} is not a shard, but others are: join only shards")
        if any(part.shard[name] != first.shard[name] for name in ("of", "files", "keys")):
            raise ConverterError(
                f"{part.path} and {first.path} are shards of different folders, or the folder "
                "changed in between: convert all shards again"
            )
        number = int(part.shard["number"])
        if number in by_number:
            raise ConverterError(
                f"{part.path} and {by_number[number].path} are both shard {number} of "
                f"{part.shard['of']}: name one of them"
            )
        by_number[number] = part
    assert first.shard is not None
    count = int(first.shard["of"])
    missing = count - len(by_number)
    if missing:
        absent = (number for number in range(1, count + 1) if number not in by_number)
        names = ", ".join(f"{number}/{count}" for number in islice(absent, 10))
        more = f" and {missing - 10} more" if missing > 10 else ""
        raise ConverterError(f"shards are missing: {names}{more}: add them to --merge")
    return [by_number[number] for number in range(1, count + 1)]


def _check_folders(files: Sequence[StoredSamples]) -> None:
    """Refuse a name that is a folder in one file and a sample in another."""
    if len(files) == 1:
        return
    keys = chain.from_iterable(file.keys.keys() for file in files)
    folders = {key.rpartition("/")[0] for key in keys}
    for folder in sorted(folders - {""}):
        above = folder.split("/")
        for n in range(1, len(above) + 1):
            name = "/".join(above[:n])
            for file in files:
                if file.keys.find(name) is not None:
                    raise ConverterError(
                        f"{name!r} is a file in {file.path} and a folder in another: join files "
                        "that have no names in common"
                    )


def _check_unfinished(paths: Paths) -> None:
    """Refuse to overwrite a conversion that can be resumed."""
    head = read_head(paths.journal)
    if head is not None and head.root != MERGING:
        raise ConverterError(
            f"{paths.partial} is left from an interrupted conversion: resume that, or remove the "
            f"file and {paths.journal.name}"
        )


def _batches(files: Sequence[StoredSamples]) -> Iterator[Batch]:
    """Yield all samples in the order of a conversion."""
    if _are_in_order(files):
        for file in files:
            yield from file.batches(np.arange(len(file)))
        return
    origins = [
        (order_of(key), n, p)
        for n, file in enumerate(files)
        for p, key in enumerate(file.keys.keys())
    ]
    origins.sort()
    for (one, n, p), (other, m, _) in pairwise(origins):
        if one == other:
            raise ConverterError(
                f"{files[n].keys.key(p)!r} is in {files[n].path} and in {files[m].path}: join "
                "files that have no names in common"
            )
    streams = [
        Portions(file.batches(np.array([p for _, m, p in origins if m == n], np.int64)))
        for n, file in enumerate(files)
    ]
    for number, some in groupby(origins, key=lambda origin: origin[1]):
        yield from streams[number].take(len(list(some)))
    for stream in streams:
        stream.finish()


def _are_in_order(files: Sequence[StoredSamples]) -> bool:
    """Tell whether one file's keys all come before the next one's."""
    filled = [file.keys for file in files if len(file)]
    return all(
        order_of(one.key(len(one) - 1)) < order_of(other.key(0)) for one, other in pairwise(filled)
    )
