"""Offer a conversion as one call, for other programs."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from converter.callbacks import Caller, Progress
from converter.codecs.compression import parse_compression
from converter.commands.convert import run_request
from converter.commands.report import Report
from converter.commands.request import Request, parse_shard
from converter.errors import ConverterError
from converter.threads import usable_cores


def convert(
    path_images: str | os.PathLike[str],
    path_output: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    ext: str = "jpg",
    custom_read_func: bool = False,
    custom_prune_func: bool = False,
    path_functions: str | os.PathLike[str] | None = None,
    reader: str | None = None,
    store: str = "array",
    skip_decode_check: bool = False,
    compression: str = "auto",
    workers: int | None = None,
    on_error: str = "skip",
    max_pixels: int | None = None,
    follow_links: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    file_timeout: float | None = None,
    shard: str | None = None,
    notice: Callable[[str], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """Convert a folder to one HDF5 file, as the command line does with the flags of these names.

    Parameters
    ----------
    path_images, path_output
        The folder, and the file to make.
    executor
        Reads and encodes elsewhere, such as ``distributed.Client(...).get_executor()``; its
        workers must see the folder under the same path, and have this package in the same
        version. This process alone writes.
    workers
        Without an executor: processes of this machine; None for as many as it has cores.
    notice, progress
        Called with sentences the user should know, and with how far it is.

    Returns
    -------
    Report
        Counts, bytes, seconds and failures. Files that cannot be read are failures.

    Raises
    ------
    ConverterError
        The request cannot be met; nothing was touched.
    StoppedError
        It began and could not be finished; the same call goes on from there.
    """
    if executor is not None and workers is not None:
        raise ConverterError("workers are those of the executor: give one or the other")
    try:
        parsed = parse_compression(compression)
    except ValueError as error:
        raise ConverterError(str(error)) from None
    request = Request(
        path_images=Path(path_images),
        path_output=Path(path_output),
        ext=ext,
        custom_read_func=custom_read_func,
        custom_prune_func=custom_prune_func,
        path_functions=Path(path_functions) if path_functions is not None else None,
        reader=reader,
        store=store,
        skip_decode_check=skip_decode_check,
        compression=parsed,
        workers=usable_cores() if workers is None else workers,
        on_error=on_error,
        max_pixels=max_pixels,
        follow_links=follow_links,
        overwrite=overwrite,
        restart=restart,
        file_timeout=file_timeout,
        shard=parse_shard(shard) if shard is not None else None,
    )
    return run_request(request, Caller(notice, progress), executor)
