"""Run a command line. Only this module prints, and knows exit statuses.

A mode imports what it needs when it runs: all of it would take most of the time of ``--help``, and
half of that of a small folder.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, Any

from converter import arguments
from converter.arguments import WRONG_USAGE, Arguments
from converter.callbacks import Callbacks
from converter.commands.request import FIELDS, Request, launching_for
from converter.errors import ConverterError, StoppedError
from converter.progress import ProgressBar
from converter.streams import is_output_lost, unfailing_streams

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from converter.commands.report import Counts, Report

OPENBLAS_THREADS = "OPENBLAS_NUM_THREADS"
ALL_DONE, SOMETHING_FAILED, INTERRUPTED = 0, 1, 128


#: What a mode has done, and the lines that say so.
_Done = tuple["Counts", Iterable[str]]


class _Signalled(KeyboardInterrupt):
    """A signal that asks the process to end."""

    def __init__(self, number: int) -> None:
        self.number = number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 (all done), 1 (something failed) or 2 (wrong usage)."""
    with unfailing_streams():
        try:
            parsed = arguments.parse(argv)
        except SystemExit as error:
            if not error.code and is_output_lost():  # --help
                raise SystemExit(SOMETHING_FAILED) from None
            raise
        # with arguments a program calls, which may have run anything
        status = _run_mode(parsed, is_fresh=argv is None)
        is_all_output = parsed.mode == arguments.VERIFY or parsed.values.get("dry_run")
        return SOMETHING_FAILED if is_all_output and not status and is_output_lost() else status


def _run_mode(parsed: Arguments, *, is_fresh: bool) -> int:
    run, undone = _MODES[parsed.mode]
    signals = _Signals()
    try:
        with signals:
            sheet = _sheet_of(parsed)
            with ProgressBar(quiet=parsed.values["quiet"]) as bar:
                caller = Callbacks(
                    _notice, bar.show, signals.without_signals, signals.finish, is_fresh
                )
                counts, lines = run(parsed, caller)
            _print_failures(counts)
            for line in (*lines, *sheet()):
                print(line)
            return SOMETHING_FAILED if counts.failed else ALL_DONE
    except ConverterError as error:
        _notice(str(error))
        return SOMETHING_FAILED if isinstance(error, StoppedError) else WRONG_USAGE
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, _Signalled) else int(signal.SIGINT)
        if signals.came_too_late:
            undone = "but {path_output} is complete"
        _notice(f"interrupted, {undone.format(**parsed.values)}")
        return INTERRUPTED + number


def _collect_garbage(caller: Callbacks) -> None:
    """Have garbage looked for again, but not among what was imported, which stays."""
    if caller.is_fresh:  # else the process, and what it does with its garbage, is another's
        gc.freeze()
        gc.enable()


def _convert(parsed: Arguments, caller: Callbacks) -> _Done:
    hooks = ("custom_read_func", "custom_prune_func")
    if parsed.mode == arguments.CONVERT and not any(parsed.values[name] for name in hooks):
        _import_numpy()  # the user's own code may need these threads
    typed, address = _typed(parsed), parsed.values["dask"]
    _say_what_is_missing()
    if parsed.mode == arguments.UPDATE:
        from converter.commands.update import update_request

        request = update_request(typed, notice=caller.notice)
    else:
        request = Request(**typed)
    if parsed.values.get("dry_run"):
        return _compare(request, caller)
    with (
        nullcontext() if address is None else _dask_executor(address) as executor,
        launching_for(request, caller, executor) as launcher,
    ):
        from converter.commands.convert import run_request  # while workers start
        from converter.messages import report_lines

        _collect_garbage(caller)
        report = run_request(request, caller, executor, launcher=launcher)
    _say_refusal(report)
    return report, report_lines(report)


def _import_numpy() -> None:
    """Import numpy without threads of OpenBLAS: nothing here uses them, and they take 60 ms."""
    if OPENBLAS_THREADS in os.environ:
        return
    os.environ[OPENBLAS_THREADS] = "1"  # it is read once
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[OPENBLAS_THREADS]


def _sheet_of(parsed: Arguments) -> Callable[[], Iterable[str]]:
    """Check what a contact sheet needs; return what draws it, and says so."""
    path, masks = parsed.values.get("contact_sheet"), parsed.values.get("contact_masks")
    if path is None:
        return tuple
    from converter.contact_sheet import check_sheet, draw_contact_sheet, parse_masks

    output = parsed.values["path_output"]
    check_sheet(path, output, parsed.values.get("path_images"))
    rule = None if masks is None else parse_masks(masks)

    def draw() -> Iterator[str]:
        sheet = draw_contact_sheet(output, path, rule)
        yield f"{path}: {sheet.drawn} of {sheet.total} samples drawn"
        if sheet.wrong:
            yield f"{sheet.wrong} of them cannot be read, or have a mask of another size"

    return draw


def _only_sheet(parsed: Arguments, caller: Callbacks) -> _Done:
    from converter.commands.report import Counts

    _collect_garbage(caller)
    return Counts(), ()


def _compare(request: Request, caller: Callbacks) -> _Done:
    from converter.commands.dry_run import advise
    from converter.commands.report import Counts
    from converter.messages import advice_lines

    _collect_garbage(caller)
    return Counts(), advice_lines(request, advise(request, caller))


def _dask_executor(address: str) -> AbstractContextManager[Executor]:
    from converter.workers.dask import dask_executor

    return dask_executor(address)


def _verify(parsed: Arguments, caller: Callbacks) -> _Done:
    from converter.commands.rebuild_index import rebuild_index
    from converter.commands.update import update_request
    from converter.commands.verify import verify
    from converter.messages import verification_lines

    typed, values = _typed(parsed), parsed.values
    request = None
    if "path_images" in typed:
        request = update_request(typed, purpose="--verify with --path_images", notice=caller.notice)
    elif "path_functions" in typed:
        raise ConverterError("--path_functions needs --path_images")
    path = values["path_output"]
    _collect_garbage(caller)
    if values["rebuild_index"]:
        count = rebuild_index(path, caller)
        caller.notice(f"an index of {count} datasets was added to {path}")
    found = verify(
        path,
        caller,
        request=request,
        workers=values["workers"],
        file_timeout=values["file_timeout"],
    )
    return found, verification_lines(found)


def _merge(parsed: Arguments, caller: Callbacks) -> _Done:
    from converter.commands.merge import merge
    from converter.messages import merge_lines

    values = parsed.values
    _collect_garbage(caller)
    report = merge(values["merge"], values["path_output"], caller, overwrite=values["overwrite"])
    _say_refusal(report)
    return report, merge_lines(report)


def _extract(parsed: Arguments, caller: Callbacks) -> _Done:
    from converter.commands.extract import extract
    from converter.messages import size

    path, folder = parsed.values["path_output"], parsed.values["extract"]
    _collect_garbage(caller)
    done = extract(path, folder, caller, overwrite=parsed.values["overwrite"])
    return done, [f"{folder}: {done.done} files written, {size(done.nbytes)}, {done.failed} failed"]


#: For each mode what runs it, and what is left when it is interrupted.
_MODES: dict[str, tuple[Callable[[Arguments, Callbacks], _Done], str]] = {
    arguments.CONVERT: (_convert, "{path_output} was not made"),
    arguments.UPDATE: (_convert, "{path_output} is as it was"),
    arguments.VERIFY: (_verify, "a part of {path_output} was checked"),
    arguments.MERGE: (_merge, "{path_output} was not made"),
    arguments.EXTRACT: (_extract, "{extract} holds a part of the files"),
    arguments.SHEET: (_only_sheet, "{contact_sheet} was not drawn"),
}


def _typed(parsed: Arguments) -> dict[str, Any]:
    """Return the fields of a `Request` that were typed."""
    return {name: parsed.values[name] for name in parsed.typed if name in FIELDS}


class _Signals:
    """Turn signals that would end the process into an exception, so that it can clean up.

    An exception within h5py may become another one, or be lost: none is raised within
    `without_signals`.
    """

    def __init__(self) -> None:
        self._number = 0
        self._holds = 0
        self.came_too_late = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if self._number:  # they stay ignored: the process is about to end
            raise _Signalled(self._number) from None  # whatever else was raised since
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def finish(self) -> None:
        """Note that the output is complete: a signal is too late."""
        self.came_too_late = True

    @contextmanager
    def without_signals(self) -> Iterator[None]:
        """Raise nothing within; raise at the end what came in the meantime."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if self._number and not self._holds:
                raise _Signalled(self._number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        for name in self._before:
            signal.signal(name, signal.SIG_IGN)  # cleaning up is not to be interrupted
        self._number = number
        if not self._holds:
            raise _Signalled(number)


def _say_what_is_missing() -> None:
    from converter.codecs import filters

    has_simplejpeg = find_spec("simplejpeg") is not None  # this process does not import it
    packages = {"simplejpeg": has_simplejpeg, "zlib-ng": filters.HAS_ZLIB_NG}
    missing = [name for name, is_there in packages.items() if not is_there]
    if missing:
        names = " and ".join(missing)
        _notice(f"converting would be faster with {names}: pip install {' '.join(missing)}")


def _say_refusal(report: Report) -> None:
    if report.refused_fsync is not None:
        _notice(
            f"the disk of {report.path_output} cannot tell when it has all of it (fsync: "
            f"{report.refused_fsync.strerror}): the file may be lost if power fails within seconds"
        )


def _notice(text: str) -> None:
    print(f"converter: {text}", file=sys.stderr)


def _print_failures(counts: Counts) -> None:
    """Print the first; a list of failures, if there is one, has the rest."""
    for failure in counts.first_failures:
        print(f"{failure.key}: {failure.reason}", file=sys.stderr)
    more = counts.failed - len(counts.first_failures)
    if counts.first_failures and more:
        print(f"... and {more} more failed", file=sys.stderr)
