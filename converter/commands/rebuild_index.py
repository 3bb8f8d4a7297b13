"""Add an index to a finished HDF5 file that has none."""

from __future__ import annotations

import io
import warnings
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d

from converter.callbacks import Callbacks, Progress
from converter.codecs.chunks import chunk_starts
from converter.errors import ConverterError, WriteError
from converter.files import Handle, lock, open_handle, open_to_write, synchronise, write_at
from converter.format.index import Extent, IndexBuilder
from converter.format.index_reader import crc32_of, open_index
from converter.format.layout import Layout, layout_json, parse_layout
from converter.format.superblock import SIGNATURE, SUPERBLOCK
from converter.loader.h5py_file import Datasets


def rebuild_index(path: Path, caller: Callbacks) -> int:
    """Write an index of all datasets behind the file; return how many datasets there are.

    Their checksums are those of the bytes as they are now. What is in the file stays as it is,
    and other programs do not see the index.

    Raises
    ------
    ConverterError
        The file holds what an index cannot describe, and is left as it is.
    WriteError
        The disk is full or fails; the file is as good as before.
    """
    handle = open_handle(path)
    if open_index(handle) is not None:
        raise ConverterError(f"{path} has an index: drop --rebuild_index")
    try:
        lock(handle.fd)
    except BlockingIOError as error:
        raise ConverterError(f"{path} is open in another program: close it there") from error
    index, nbytes = IndexBuilder(), 0
    with closing(Datasets(handle)) as datasets:
        names = list(datasets.names())
        end = _end_of_hdf5(handle)
        is_encoded = datasets.store() == "encoded"
        for done, name in enumerate(names):
            dataset = datasets.dataset(name)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # names that h5py gives to values are lost
                    layout, extents = _describe(handle, dataset, end, is_encoded=is_encoded)
                    described = layout_json(layout)
            except _IndescribableError as error:
                raise ConverterError(
                    f"{path} cannot have an index, because {name!r} {error}: read it with h5py"
                ) from None
            index.add(name.encode(), described, extents)
            nbytes += sum(extent.nbytes for extent in extents)
            caller.progress(Progress(len(names), done, 0, nbytes))
    content = io.BytesIO()
    index.write(content, end)
    try:
        with open_to_write(path) as target:
            write_at(target, memoryview(content.getvalue()), end)
            target.truncate(end + len(content.getvalue()))
            synchronise(target.fileno())
    except OSError as error:
        raise WriteError(
            f"the index could not be added to {path} ({error.strerror or error}), which is as good "
            "as before: repeat when the disk can be written to"
        ) from error
    return len(names)


class _IndescribableError(Exception):
    """What an index cannot describe."""


def _end_of_hdf5(handle: Handle) -> int:
    """Return where HDF5's part of a file that HDF5 has opened ends."""
    signature, version, _, end = SUPERBLOCK.unpack(handle.read(SUPERBLOCK.size, 0))
    if signature != SIGNATURE:
        raise ConverterError(
            f"{handle.path} does not begin as HDF5 files do: it cannot have an index"
        )
    return int(end) if version >= 2 else handle.nbytes


def _describe(
    handle: Handle, dataset: h5py.Dataset, end: int, *, is_encoded: bool
) -> tuple[Layout, list[Extent]]:
    """Return how an array lies in the file, and where its payloads do."""
    _check_type(dataset)
    layout = _layout(dataset, is_encoded=is_encoded)
    if not dataset.size:
        return replace(layout, chunks=None, filters=()), []
    return layout, _extents(handle, dataset, end)


def _layout(dataset: h5py.Dataset, *, is_encoded: bool) -> Layout:
    creation = dataset.id.get_create_plist()
    described = (creation.get_filter(n) for n in range(creation.get_nfilters()))
    filters = tuple((number, tuple(values)) for number, _, values, _ in described)
    content = dataset.attrs.get("content", "array")
    if isinstance(content, bytes):
        content = content.decode(errors="replace")
    if not isinstance(content, str) or content not in ("text", "bytes"):
        content = "array"
    is_bytes = dataset.dtype == np.uint8 and dataset.ndim == 1
    if is_encoded and is_bytes:
        content = "encoded"
    chunks = dataset.chunks
    if chunks is not None and any(c > n for c, n in zip(chunks, dataset.shape, strict=True)):
        raise _IndescribableError("has chunks larger than itself")
    layout = Layout(dataset.dtype, dataset.shape, chunks, filters, content)
    try:
        known = parse_layout(layout_json(layout))
    except ValueError as error:
        raise _IndescribableError(f"has {error}") from None
    if known.dtype != dataset.dtype:
        raise _IndescribableError(f"has dtype {dataset.dtype}")
    return layout


def _extents(handle: Handle, dataset: h5py.Dataset, end: int) -> list[Extent]:
    """Return where the payloads are; ``end`` is that of HDF5's part."""
    kind = dataset.id.get_create_plist().get_layout()
    if kind == h5d.CONTIGUOUS:
        ranges = [(dataset.id.get_offset(), dataset.nbytes)]
    elif kind == h5d.CHUNKED:
        ranges = _chunks(dataset)
    else:
        raise _IndescribableError("is stored within its own header, or in other files")
    found = []
    for offset, nbytes in ranges:
        if offset is None or offset + nbytes > end:
            raise _IndescribableError("has bytes that were never written")
        found.append(Extent(offset, nbytes, crc32_of(handle, offset, offset + nbytes)))
    return found


def _check_type(dataset: h5py.Dataset) -> None:
    """Refuse what is not an array, and types whose bytes in the file are not numpy's."""
    try:
        kind = h5py.h5t.py_create(dataset.dtype, logical=True)
    except (TypeError, ValueError):
        raise _IndescribableError("has a type numpy does not have") from None
    if not dataset.dtype.hasobject and not kind.equal(dataset.id.get_type()):
        raise _IndescribableError("has a type whose bytes are not numpy's")
    if dataset.shape is None or dataset.dtype.hasobject or not dataset.dtype.itemsize:
        raise _IndescribableError("is not an array of numbers")


def _chunks(dataset: h5py.Dataset) -> list[tuple[int, int]]:
    ranges = []
    for start in chunk_starts(dataset.shape, dataset.chunks):
        chunk = dataset.id.get_chunk_info_by_coord(start)
        if chunk.byte_offset is None:
            raise _IndescribableError("has bytes that were never written")
        if chunk.filter_mask:
            raise _IndescribableError("has chunks that leave filters out")
        ranges.append((chunk.byte_offset, chunk.size))
    return ranges
