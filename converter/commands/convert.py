"""Convert a folder: plan, read and encode, write, count."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.callbacks import Callbacks, Progress, without_interrupts
from converter.codecs import compression
from converter.commands.estimate import check_size, estimate
from converter.commands.report import FailureList, Report
from converter.commands.request import (
    MY_READ,
    Options,
    Request,
    check_request,
    complete_options,
    encoding_settings,
    is_alone,
    launching_for,
    load_functions,
    nearest_folder,
    plan_of,
    recorded_options,
    request_of,
)
from converter.errors import ConverterError, StoppedError
from converter.files import Spare, open_hdf5
from converter.samples import (
    BASE_NBYTES,
    Batch,
    Encoded,
    Failure,
    KeyList,
    Plan,
    Run,
    until_failure,
)
from converter.sources import readers, user_functions
from converter.sources.readers import READERS, Choice
from converter.streams import open_closed_descriptors
from converter.workers.launcher import Launcher
from converter.workers.once import SMALLEST_NBYTES, ReadOnce
from converter.workers.pool import Pool
from converter.workers.tasks import run_here
from converter.writer import provenance
from converter.writer.journal import Head
from converter.writer.paths import Paths
from converter.writer.resume import find_kept
from converter.writer.reuse import Changes, Reuse, have_common_keys
from converter.writer.stored import StoredSamples
from converter.writer.writer import Writer

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from typing_extensions import Unpack  # in typing since Python 3.11

FILES_BEFORE_GIVING_UP = 1000  # when so many all fail, the rest will too
FINISHING_FILES = 4  # at most open at once when the output is finished, had my_read left none


def run_request(
    request: Request,
    caller: Callbacks,
    executor: Executor | None = None,
    *,
    launcher: Launcher | None = None,
) -> Report:
    """Convert the folder to one HDF5 file; see `Request` for what can be asked.

    An ``executor`` reads and encodes, where there is one; this process writes. Else a ``launcher``
    starts the workers, if it has been made already. The file appears under its name only when it
    is complete.

    Raises
    ------
    ConverterError
        The request cannot be met; nothing was touched.
    StoppedError
        It began and could not be finished; there is no output, and an older one stays.
    """
    start = time.perf_counter()
    check_request(request)
    if executor is not None:
        from converter.workers.executor import check_executor  # other runs need none of it

        check_executor(executor)
        if request.file_timeout is not None:
            raise ConverterError(
                "--file_timeout works only with worker processes of this machine, not with an "
                "executor or --dask: drop it"
            )
    if request.compression.notice:
        caller.notice(request.compression.notice)
    with ExitStack() as stack:
        # before the user's functions are imported, so that none of these is in a worker
        if launcher is None:
            launcher = stack.enter_context(launching_for(request, caller, executor))
        found = load_functions(request, caller)
        run = stack.enter_context(encoding(request, found, launcher, executor))
        plan = plan_of(request, found)
        stack.enter_context(output_folder(request.path_output.parent))
        again = run if is_alone(request) else _second_run(request, found, launcher, executor)
        conversion = _Conversion(request, plan, again, caller)
        stack.callback(conversion.close)
        conversion.make(run, _attributes(request, found) | plan.shard_attribute())
    conversion.report.seconds = time.perf_counter() - start
    return conversion.report


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
        from converter.workers.executor import ExecutorRun

        yield ExecutorRun(executor, settings).run
        return
    if is_alone(request):
        start = functools.cache(settings.start)  # once: it imports my_functions.py
        yield lambda keys: run_here(start, keys)
        return
    with Pool(settings, request.workers, launcher) as pool:
        yield pool.run


def _second_run(*args: Any) -> Run:
    """Return what reads a few files while another `encoding` of these is at work."""

    def run(keys: Sequence[str]) -> Iterator[Batch]:
        with encoding(*args) as run:
            for batch in run(keys):  # the payload outlives the workers
                yield Batch(batch.results, memoryview(bytearray(batch.payload)))

    return run


class _Conversion:
    """Takes batches to the writer and counts them: what is planned, written and failed."""

    def __init__(self, request: Request, plan: Plan, run_again: Run, caller: Callbacks) -> None:
        self._request, self._plan, self._caller = request, plan, caller
        self._run_again = run_again
        self._writer = Writer(Paths(request.path_output))
        self._failures = FailureList(request.path_output)
        undone = "is as it was" if request.update else "was not made"
        self._undone = f"{request.path_output} {undone}"
        self.report = Report(
            path_output=request.path_output,
            total=len(plan.keys) + len(plan.failures),
            left_out=plan.left_out,
            linked_folders=plan.linked_folders,
            hidden_folders=plan.hidden_folders,
        )

    def make(self, run: Run, attributes: dict[str, str]) -> None:
        """Make the file, or find that it would stay as it is."""
        with self._caller.without_signals():
            self._writer.lock()
            if self._request.restart:
                self._writer.discard()
        once = ReadOnce(run, _least_kept_nbytes(self._request))
        batches = self._start(once.run, attributes)
        once.begin()
        if self.report.is_unchanged:
            for batch in batches:
                self._count(batch)
            self.report.path_failures = self._failures.publish()
            return
        spare = Spare(FINISHING_FILES)
        try:
            self._write(batches)
            self._failures.close()
            spare.release()
            with self._caller.without_signals():
                self.report.output_nbytes = self._writer.finish(attributes)
                self._caller.finished()
                self.report.path_failures = self._failures.publish()
        except BaseException as error:
            self._say_what_is_kept()
            if isinstance(error, OSError):  # payloads, or the list of failures
                raise self._writer.explain(error) from error
            raise
        finally:
            spare.release()
        self.report.fsync_seconds = self._writer.fsync_seconds
        self.report.refused_fsync = self._writer.refused_fsync

    def close(self) -> None:
        """Leave nothing behind but what a next run can resume."""
        with self._caller.without_signals():
            self._failures.discard()
            self._writer.close()

    def _start(self, run: Run, attributes: dict[str, str]) -> Iterator[Batch]:
        """Look at what earlier runs have left; begin the file or resume it.

        Return batches in plan order; with ``report.is_unchanged`` only failures, and nothing is
        to be written. Raises ConverterError where the disk has too little space.
        """
        request, plan, writer, notice = self._request, self._plan, self._writer, self._caller.notice
        options = provenance.encoding_options(attributes)
        head = Head(request.path_output.name, "", str(request.path_images.resolve()), options)
        marks = readers.marks_images(attributes["reader"])
        kept = find_kept(writer.paths, head, plan, run, notice, marks_images=marks)
        finished = _finished(request, attributes, self._caller) if request.update else None
        if finished is not None:
            _check_folder(plan, finished)
        rest = Reuse(plan, kept.prefix.keys, finished)
        if finished is not None:
            self.report.changes = Changes(finished)
            if rest.is_all(run):
                self.report.is_unchanged = True
                self.report.done = self.report.changes.kept = rest.count
                writer.discard()
                return iter([Batch([*plan.failures, *rest.failures], memoryview(b""))])
        is_resumed = kept.prefix.samples > 0
        if is_resumed:
            expected = estimate(plan, run, kept.prefix.samples, kept.prefix.nbytes, KeyList())
        else:
            absent = rest.keys_to_read()
            expected = estimate(plan, run, rest.count, rest.payload_nbytes, absent)
            check_size(request, expected, notice)
        with self._caller.without_signals():
            writer.expected_nbytes = expected.output_nbytes
            if is_resumed:
                writer.resume(kept.prefix, kept.structures)
            else:
                writer.begin(head)
        return chain(kept.batches(writer.paths), rest.batches(run, self._run_again, notice))

    def _write(self, batches: Iterator[Batch]) -> None:
        for failure in self._plan.failures:
            self._fail(failure)
        for batch in batches:
            if self._request.on_error == "stop" and not batch.is_in_place:
                batch = until_failure(batch)  # a next run would drop what comes behind it
            with self._caller.without_signals():
                self._writer.write(batch)
            self._count(batch)
            self._caller.progress(self.report.progress)
        self._check_stored(self.report.failed, f"the {self.report.total}")

    def _count(self, batch: Batch) -> None:
        for result in batch.results:
            if isinstance(result, Failure):
                self._fail(result)
            elif isinstance(result, Encoded):
                self.report.add(result)
                if self.report.changes is not None:
                    self.report.changes.add(result)

    def _fail(self, failure: Failure) -> None:
        self.report.add_failure(failure)
        self._failures.add(failure)
        if self._request.on_error == "stop":
            raise StoppedError(
                f"{failure.key}: {failure.reason} (stopped at the first failure: --on_error=stop; "
                f"{self._undone})"
            )
        most = FILES_BEFORE_GIVING_UP + len(self._plan.failures)
        self._check_stored(most, f"the first {FILES_BEFORE_GIVING_UP}")

    def _check_stored(self, most: int, which: str) -> None:
        """Raise StoppedError where so many files failed, and none is stored."""
        request = self._request
        if self.report.done or self.report.failed != most or request.shard is not None:
            return  # an empty shard is merged with the others
        first = self.report.first_failures[0]
        hint = ""
        if not (request.custom_read_func or request.resize):  # which go with neither of these
            hint = " Not images? Write my_read and add --custom_read_func"
            if request.store == "encoded":
                hint = " To store them unread, add --skip_decode_check"
        raise StoppedError(
            f"none of {which} files could be read. {first.key}: {first.reason}. "
            f"All reasons: {self._failures.publish()}. {self._undone}.{hint}"
        )

    def _say_what_is_kept(self) -> None:
        """Tell, when a run is interrupted, what the next one can resume from."""
        writer, report = self._writer, self.report
        writer.settle()
        if not (writer.recorded and writer.is_kept):
            return
        each = writer.nbytes / max(len(writer), 1)
        needed = max(0, report.total - report.failed - writer.recorded) * each
        self._caller.notice(
            f"{writer.recorded} of {report.total} files are kept in {writer.paths.partial} "
            f"({writer.recorded_nbytes / 1e6:,.1f} MB): to resume, repeat the command; it needs "
            f"about {needed / 1e6:,.1f} MB more (--restart starts over)"
        )


def _least_kept_nbytes(request: Request) -> int:
    """Return how large a sample must be to be kept rather than read a second time."""
    if request.custom_read_func:
        return 0  # it may take long, or do more than read: it is called once for each file
    if request.skip_decode_check:
        return BASE_NBYTES  # a smaller one is read in less time than batches are cut for it
    return SMALLEST_NBYTES


def _check_folder(plan: Plan, finished: StoredSamples) -> None:
    """Raise ConverterError where a folder has none of the files of the file to be updated."""
    if len(finished) and not have_common_keys(plan, finished):
        raise ConverterError(
            f"{plan.root} has none of the {len(finished)} files that {finished.path} holds, which "
            "would all be dropped: correct --path_images, or convert that folder with --overwrite "
            "in place of --update"
        )


def _finished(request: Request, attributes: dict[str, str], caller: Callbacks) -> StoredSamples:
    """Open the file that is to be updated.

    Nothing of it is kept if it was made with other options or other versions of the packages:
    these may give other arrays.
    """
    finished = StoredSamples(request.path_output)
    finished.marks_images = readers.marks_images(attributes["reader"])
    with open_hdf5(request.path_output) as file:
        before = {name: str(file.attrs[name]) for name in attributes if name in file.attrs}
    before["options"] = complete_options(before["options"])
    difference = provenance.difference(
        provenance.encoding_options(before), provenance.encoding_options(attributes)
    )
    if difference is not None:
        caller.notice(
            f"nothing of {request.path_output} can be kept, because {difference}: everything is "
            "read again"
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
        packages=(*readers.packages(), *compression.PACKAGES),
        payload_version=request.compression.payload_version,
    )


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Make the output's folder; remove it again if what is done within fails."""
    absolute, nearest = Path(os.path.abspath(folder)), nearest_folder(folder)
    missing = takewhile(lambda path: path != nearest, (absolute, *absolute.parents))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConverterError(f"{folder} cannot be made: {error.strerror}") from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # something else is in it by now
            for path in missing:
                path.rmdir()
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
    """Convert a folder to one HDF5 file; options are the flags of the command line.

    Parameters
    ----------
    path_images, path_output
        The folder, and the file to make.
    executor
        What reads and encodes elsewhere, such as ``distributed.Client(...).get_executor()``; its
        workers must see the folder under the same path, and have this package in the same
        version. This process alone writes.
    notice, progress
        Called with each sentence the user should know, and with how far it is.
    **options
        `Options`: what is not given, or is None, has the default of the command line.

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
        raise ConverterError("an executor has its own workers: drop workers= or executor=")
    request = request_of(path_images, path_output, options)
    return run_request(request, Callbacks(notice, progress, without_interrupts), executor)
