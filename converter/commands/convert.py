"""Convert a folder: plan, read and encode, write, count."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from converter.callbacks import Callbacks, Progress
from converter.codecs import compression
from converter.commands.estimate import Known, check_size, estimate
from converter.commands.report import FailureList, Report
from converter.commands.request import (
    MY_READ,
    Options,
    Request,
    check_request,
    encoding_settings,
    load_functions,
    nearest_folder,
    plan_of,
    recorded_options,
    request_of,
)
from converter.errors import ConverterError, StoppedError
from converter.files import Spare, open_hdf5
from converter.samples import Batch, Encoded, Failure, KeyList, Plan, Run
from converter.sources import readers, user_functions
from converter.sources.encoder import Choice
from converter.sources.readers import READERS
from converter.streams import open_closed_descriptors
from converter.workers.executor import ExecutorRun, check_executor
from converter.workers.launcher import Launcher, launching
from converter.workers.once import ReadOnce
from converter.workers.pool import Pool
from converter.workers.tasks import run_here
from converter.writer import provenance
from converter.writer.journal import Head
from converter.writer.paths import Paths
from converter.writer.resume import find_kept
from converter.writer.reuse import Changes, Reuse
from converter.writer.stored import StoredSamples, open_finished
from converter.writer.writer import Writer

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11

FILES_BEFORE_GIVING_UP = 1000  # when so many all fail, the rest will too
FINISHING_FILES = 4  # at most open at once when the output is finished, had my_read left none
MOST_FILES_KEPT_TRACK_OF = 100_000  # beyond, reading a few twice costs less


def run_request(request: Request, caller: Callbacks, executor: Executor | None = None) -> Report:
    """Convert the folder to one HDF5 file; see `Request` for what can be asked.

    With an ``executor`` that reads and encodes, and this process writes.

    The file appears under its name only when it is complete.

    Raises
    ------
    ConverterError
        The request cannot be met; nothing was touched.
    StoppedError
        It began and could not be finished; no output, an older one stays.
    """
    start = time.perf_counter()
    check_request(request)
    if executor is not None:
        check_executor(executor)
        if request.file_timeout is not None:
            raise ConverterError(
                "a time limit for files works with processes of this machine alone: drop "
                "--file_timeout"
            )
    if request.compression.notice:
        caller.notice(request.compression.notice)
    with ExitStack() as stack:
        # before the user's functions are imported, so that none of these is in a worker
        launcher = stack.enter_context(launching_for(request, caller, executor))
        found = load_functions(request, caller)
        run = stack.enter_context(encoding(request, found, launcher, executor))
        plan = plan_of(request, found)
        once = ReadOnce(run)
        if request.custom_read_func or len(plan.keys) <= MOST_FILES_KEPT_TRACK_OF:
            run = once.run
        report = Report(request.path_output, total=len(plan.keys) + len(plan.failures))
        report.left_out, report.linked_folders = plan.left_out, plan.linked_folders
        report.hidden_folders = plan.hidden_folders
        stack.enter_context(output_folder(request.path_output.parent))
        writer = Writer(Paths(request.path_output))
        stack.callback(_close, writer, caller)
        with caller.without_signals():
            writer.lock()
            if request.restart:
                writer.discard()
        attributes = _attributes(request, found) | plan.shard_attribute()
        work = _start(request, plan, run, writer, attributes, caller)
        once.begin()
        spare = Spare(FINISHING_FILES)
        stack.callback(spare.release)
        failures = FailureList(request.path_output)
        stack.callback(failures.discard)
        report.changes = work.changes
        if work.batches is None:
            return _report_unchanged(request, plan, work, failures, report, start)
        try:
            with _saying_what_is_kept(writer, report, caller):
                _convert_all(request, plan, work.batches, writer, failures, report, caller)
                failures.close()
                spare.release()
                with caller.without_signals():
                    report.output_nbytes = writer.finish(attributes)
                    caller.finished()
                    report.path_failures = failures.publish()
        except OSError as error:  # payloads, or the list of failures, could not be written
            raise writer.explain(error) from error
    report.fsync_seconds, report.refused_fsync = writer.fsync_seconds, writer.refused_fsync
    report.seconds = time.perf_counter() - start
    return report


def launching_for(
    request: Request, caller: Callbacks, executor: Executor | None = None
) -> AbstractContextManager[Launcher | None]:
    """Return what starts the workers of a request, if it has any."""
    is_needed = executor is None and not _is_alone(request)
    return launching(is_needed=is_needed, fork=caller.is_fresh)


def _is_alone(request: Request) -> bool:
    return request.workers == 1 and request.file_timeout is None


@contextmanager
def encoding(
    request: Request,
    found: user_functions.Hooks,
    launcher: Launcher | None,
    executor: Executor | None = None,
    *,
    choices: tuple[Choice, ...] = (),
) -> Iterator[Run]:
    settings = encoding_settings(request, found, choices=choices)
    if executor is not None:
        if settings.path_functions is not None:  # the worker's machine may not have it
            text = settings.path_functions.read_bytes()
            settings = replace(settings, functions_text=text)
        yield ExecutorRun(executor, settings).run
        return
    if _is_alone(request):
        start = functools.cache(settings.start)  # once: it imports my_functions.py
        yield lambda keys: run_here(start, keys)
        return
    with Pool(settings, request.workers, launcher) as pool:
        yield pool.run


@contextmanager
def _saying_what_is_kept(writer: Writer, report: Report, caller: Callbacks) -> Iterator[None]:
    """Tell, when a run is interrupted, what the next one can resume from."""
    try:
        yield
    except BaseException:
        writer.settle()
        if writer.recorded and writer.is_kept:
            each = writer.nbytes / max(len(writer), 1)
            needed = max(0, report.total - report.failed - writer.recorded) * each
            caller.notice(
                f"{writer.recorded} of {report.total} files are kept in {writer.paths.partial} "
                f"({writer.nbytes / 1e6:,.1f} MB): the same command resumes from there and needs "
                f"about {needed / 1e6:,.1f} MB more; --restart starts over"
            )
        raise


def _close(writer: Writer, caller: Callbacks) -> None:
    with caller.without_signals():
        writer.close()


@dataclass
class _Work:
    """What is to be written: batches in plan order, None where OUT.h5 would stay as it is."""

    batches: Iterator[Batch] | None
    changes: Changes | None
    failures: list[Failure]


def _start(
    request: Request,
    plan: Plan,
    run: Run,
    writer: Writer,
    attributes: dict[str, str],
    caller: Callbacks,
) -> _Work:
    """Look at what earlier runs have left, and begin the file or resume it.

    ``writer`` holds the lock. Raises ConverterError where the disk has too little space.
    """
    manner = provenance.encoding_options(attributes)
    head = Head(request.path_output.name, "", str(request.path_images.resolve()), manner)
    kept = find_kept(writer.paths, head, plan, run, caller.notice)
    finished = _finished(request, attributes, caller) if request.update else None
    changes = Changes(finished) if finished is not None else None
    rest = Reuse(plan, kept.prefix.keys, finished)
    damaged = rest.check()
    if damaged:
        caller.notice(f"{damaged} of the samples kept are damaged, and are read again")
    if changes is not None and rest.is_all(run):
        changes.kept = rest.count
        writer.discard()
        return _Work(None, changes, rest.failures)
    is_resumed = kept.prefix.samples > 0
    if is_resumed:
        known = Known(kept.prefix.samples, kept.prefix.nbytes)
        expected = estimate(request, plan, run, known, KeyList())
    else:
        known = Known(rest.count, rest.payload_nbytes)
        expected = estimate(request, plan, run, known, rest.keys_to_read())
        check_size(request, expected, caller)
    with caller.without_signals():
        writer.expected_nbytes = expected.output_nbytes
        if is_resumed:
            writer.resume(kept.prefix)
        else:
            writer.begin(head)
    return _Work(chain(kept.batches(writer.paths), rest.batches(run)), changes, [])


def _finished(request: Request, attributes: dict[str, str], caller: Callbacks) -> StoredSamples:
    """Open the file that is to be updated.

    Nothing of it is kept where it was made by other versions of the packages: these may give
    other arrays.
    """
    finished = open_finished(request.path_output)
    with open_hdf5(request.path_output) as file:
        before = {name: str(file.attrs[name]) for name in attributes if name in file.attrs}
    difference = provenance.difference(
        provenance.encoding_options(before), provenance.encoding_options(attributes)
    )
    if difference is not None:
        caller.notice(
            f"of {request.path_output} nothing can be kept, for {difference}: everything is read "
            "again"
        )
        finished.mark_stale()
    elif provenance.REVISION_NAME not in before:
        count = finished.mark_bools_stale()
        if count:
            caller.notice(
                f"{count} samples of {request.path_output} hold bools that other programs misread: "
                "they are read again"
            )
    return finished


def _convert_all(
    request: Request,
    plan: Plan,
    batches: Iterator[Batch],
    writer: Writer,
    failures: FailureList,
    report: Report,
    caller: Callbacks,
) -> None:
    def fail(failure: Failure) -> None:
        _add_failure(request, failure, failures, report)

    for failure in plan.failures:
        fail(failure)
    most_failed = FILES_BEFORE_GIVING_UP + len(plan.failures)
    for batch in batches:
        with caller.without_signals():
            writer.write(batch)
        for result in batch.results:
            if isinstance(result, Failure):
                fail(result)
                is_whole = request.shard is None
                if is_whole and not report.stored and report.failed == most_failed:
                    who = f"the first {FILES_BEFORE_GIVING_UP} files all"
                    raise _nothing_stored(request, who, failures, report)
            elif isinstance(result, Encoded):
                report.add(result)
                if report.changes is not None:
                    report.changes.add(result)
        caller.progress(report.progress)
    if not report.stored and request.shard is None:  # the others are merged with an empty one
        raise _nothing_stored(request, f"all {report.total} files", failures, report)


def _add_failure(request: Request, failure: Failure, failures: FailureList, report: Report) -> None:
    report.add_failure(failure)
    failures.add(failure)
    if request.on_error == "stop":
        undone = "is as it was" if request.update else "was not made"
        raise StoppedError(
            f"{failure.key}: {failure.reason} (stopped at the first failure, --on_error=stop; "
            f"{request.path_output} {undone})"
        )


def _report_unchanged(
    request: Request,
    plan: Plan,
    work: _Work,
    failures: FailureList,
    report: Report,
    start: float,
) -> Report:
    """Report an update that has nothing to write."""
    for failure in (*plan.failures, *work.failures):
        _add_failure(request, failure, failures, report)
    report.path_failures = failures.publish()
    report.is_unchanged = True
    report.stored = report.total - report.failed
    report.seconds = time.perf_counter() - start
    return report


def _nothing_stored(
    request: Request, who: str, failures: FailureList, report: Report
) -> StoppedError:
    first = report.first_failures[0]
    hint = "" if request.custom_read_func else "; for files that are no images, "
    if hint and request.store == "encoded":
        hint += "--skip_decode_check stores them without a look"
    elif hint:
        hint += "write my_read and add --custom_read_func"
    return StoppedError(
        f"{who} failed, the first, {first.key}, because: {first.reason} (all reasons are in "
        f"{failures.publish()}; {request.path_output} was not made{hint})"
    )


def _attributes(request: Request, found: user_functions.Hooks) -> dict[str, str]:
    options = recorded_options(request)
    options["my_read_sha256"] = found.sha256 if request.custom_read_func else None
    options["my_prune_sha256"] = found.sha256 if request.custom_prune_func else None
    reader, revision, plugins = MY_READ, 0, {}
    if not request.custom_read_func:
        reader = request.reader_name
        revision = READERS[reader].REVISION
        if not request.custom_prune_func:  # else there may be any extension
            plugins = READERS[reader].plugins_of(request.extensions)
    return provenance.describe(
        store=request.store,
        reader=reader,
        revision=revision,
        options=options,
        plugins=plugins,
        packages=(*readers.PACKAGES, *compression.PACKAGES),
        payload_version=request.compression.payload_version,
    )


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Make the output's folder; remove it again when the conversion fails."""
    made = []
    nearest = nearest_folder(folder)
    missing = Path(os.path.abspath(folder))
    while missing != nearest:
        made.append(missing)
        missing = missing.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConverterError(f"{folder} cannot be made: {error.strerror}") from error
    try:
        yield
    except BaseException:
        for path in made:
            try:
                path.rmdir()
            except OSError:  # something else is in it by now
                break
        raise


def convert(
    path_images: str | os.PathLike[str],
    path_output: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    notice: Callable[[str], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
    **options: Unpack[Options],
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
    notice, progress
        Called with sentences the user should know, and with how far it is.
    **options
        `Options`: what is not given, or None, is as on the command line.

    Returns
    -------
    Report
        Counts, bytes, seconds and failures. Files that cannot be read are failures.

    Raises
    ------
    ConverterError
        The request cannot be met; nothing was touched.
    StoppedError
        It began and could not be finished; the same call resumes from there.
    """
    open_closed_descriptors()
    if executor is not None and options.get("workers") is not None:
        raise ConverterError("workers are those of the executor: give one or the other")
    request = request_of(path_images, path_output, options)
    return run_request(request, Callbacks(notice, progress), executor)
