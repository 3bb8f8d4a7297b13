"""Talk to the user. Alone prints, alone knows exit statuses."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from converter import arguments
from converter.arguments import WRONG_USAGE, Arguments
from converter.callbacks import Callbacks
from converter.codecs import filters
from converter.commands.convert import run_request
from converter.commands.dry_run import advise
from converter.commands.extract import extract
from converter.commands.merge import merge
from converter.commands.rebuild_index import rebuild_index
from converter.commands.report import Report
from converter.commands.request import Request
from converter.commands.update import update_request
from converter.commands.verify import verify
from converter.errors import ConverterError, StoppedError
from converter.images import jpeg
from converter.messages import advice_lines, report_lines, size, verification_lines
from converter.progress import ProgressBar
from converter.samples import Failure
from converter.streams import is_output_lost, unfailing_streams
from converter.workers.dask import dask_executor

STORED_ALL, SOMETHING_FAILED, INTERRUPTED = 0, 1, 128


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
    run = {
        arguments.CONVERT: _convert,
        arguments.UPDATE: _update,
        arguments.VERIFY: _verify,
        arguments.MERGE: _merge,
        arguments.EXTRACT: _extract,
    }[parsed.mode]
    undone = f"{parsed.values['path_output']} was not made"
    if parsed.mode == arguments.UPDATE:
        undone = f"{parsed.values['path_output']} is as it was"
    if parsed.mode == arguments.VERIFY:
        undone = f"{parsed.values['path_output']} is checked in part"
    if parsed.mode == arguments.EXTRACT:
        undone = f"{parsed.values['extract']} holds a part of the files"
    signals = _Signals(is_fresh=is_fresh)
    try:
        with signals:
            return run(parsed, signals)
    except StoppedError as error:
        print(f"converter: {error}", file=sys.stderr)
        return SOMETHING_FAILED
    except ConverterError as error:
        print(f"converter: {error}", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, _Signalled) else int(signal.SIGINT)
        if signals.came_too_late:
            undone = f"but {parsed.values['path_output']} is complete"
        print(f"converter: interrupted, {undone}", file=sys.stderr)
        return INTERRUPTED + number


def _convert(parsed: Arguments, signals: _Signals) -> int:
    values = dict(parsed.values)
    quiet, dry_run, address = values.pop("quiet"), values.pop("dry_run"), values.pop("dask")
    request = Request(**values)
    _say_what_is_missing()
    if dry_run:
        advice, plan = advise(
            request,
            Callbacks(_notice, without_signals=signals.without_signals, is_fresh=signals.is_fresh),
        )
        _print(advice_lines(request, advice, plan))
        return STORED_ALL
    return _run(request, quiet, signals, address)


def _update(parsed: Arguments, signals: _Signals) -> int:
    values = dict(parsed.values)
    quiet, _, address = values.pop("quiet"), values.pop("update"), values.pop("dask")
    typed = {name: value for name, value in values.items() if name in parsed.typed}
    untyped = {name: value for name, value in values.items() if name not in parsed.typed}
    _say_what_is_missing()
    return _run(update_request(typed, untyped, notice=_notice), quiet, signals, address)


def _run(request: Request, quiet: bool, signals: _Signals, address: str | None) -> int:
    with ProgressBar(quiet=quiet) as bar:
        caller = Callbacks(
            _notice, bar.show, signals.without_signals, signals.finish, signals.is_fresh
        )
        if address is None:
            report = run_request(request, caller)
        else:
            with dask_executor(address) as executor:
                report = run_request(request, caller, executor)
    _print_failures(report.first_failures, report.failed, f"in {report.path_failures}")
    _say_refusal(report)
    _print(report_lines(report))
    return SOMETHING_FAILED if report.failed else STORED_ALL


def _verify(parsed: Arguments, signals: _Signals) -> int:
    values = parsed.values
    path = values["path_output"]
    request = None
    if values["path_images"] is not None:
        names = ("path_output", "path_images", "path_functions", "workers", "file_timeout")
        typed = {name: values[name] for name in names if name in parsed.typed}
        request = update_request(typed, {}, purpose="--verify with --path_images", notice=_notice)
    elif "path_functions" in parsed.typed:
        raise ConverterError("--path_functions needs --path_images")
    with ProgressBar(quiet=values["quiet"]) as bar:
        caller = Callbacks(
            _notice, bar.show, signals.without_signals, signals.finish, signals.is_fresh
        )
        if values["rebuild_index"]:
            count = rebuild_index(path, caller)
            _notice(f"an index of {count} datasets was added to {path}")
        found = verify(
            path,
            caller,
            request=request,
            workers=values["workers"],
            file_timeout=values["file_timeout"],
        )
    _print(verification_lines(found))
    return SOMETHING_FAILED if found.failed else STORED_ALL


def _merge(parsed: Arguments, signals: _Signals) -> int:
    values = parsed.values
    with ProgressBar(quiet=values["quiet"]) as bar:
        caller = Callbacks(
            _notice, bar.show, signals.without_signals, signals.finish, signals.is_fresh
        )
        report = merge(
            values["merge"], values["path_output"], caller, overwrite=values["overwrite"]
        )
    _say_refusal(report)
    rate = report.output_nbytes / 1e6 / report.seconds
    _print(
        (
            f"{report.path_output}: {report.stored} files joined, {size(report.output_nbytes)}",
            f"{report.seconds:.2f} s, {report.stored / report.seconds:.0f} files/s, "
            f"{rate:.0f} MB/s, {report.fsync_seconds:.2f} s of it waiting for the disk (fsync)",
        )
    )
    return STORED_ALL


def _extract(parsed: Arguments, signals: _Signals) -> int:
    values = parsed.values
    path, folder = values["path_output"], values["extract"]
    with ProgressBar(quiet=values["quiet"]) as bar:
        caller = Callbacks(
            _notice, bar.show, signals.without_signals, signals.finish, signals.is_fresh
        )
        done = extract(path, folder, overwrite=values["overwrite"], caller=caller)
    _print_failures(done.first_failures, done.failed, "that failed")
    _print([f"{folder}: {done.written} files written, {size(done.nbytes)}, {done.failed} failed"])
    return SOMETHING_FAILED if done.failed else STORED_ALL


class _Signals:
    """Turn signals that would end the process into an exception, so that it can clean up.

    An exception that strikes within h5py may surface as another one, or be lost: `held`
    keeps it away.
    """

    def __init__(self, *, is_fresh: bool) -> None:
        self.is_fresh = is_fresh
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
            raise _Signalled(self._number) from None  # whatever came of it in between
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def finish(self) -> None:
        """Note that all is done, whatever comes."""
        self.came_too_late = True

    @contextmanager
    def without_signals(self) -> Iterator[None]:
        """Raise nothing within; what came in the meantime at the end."""
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
    missing = []
    if not jpeg.HAS_SIMPLEJPEG:
        missing.append("simplejpeg")
    if not filters.HAS_ZLIB_NG:
        missing.append("zlib-ng")
    if missing:
        names = " ".join(missing)
        _notice(f"slower than it could be without {names}: pip install {names}")


def _say_refusal(report: Report) -> None:
    if report.refused_fsync is not None:
        _notice(
            f"the disk of {report.path_output} cannot tell when it has all of it (fsync: "
            f"{report.refused_fsync.strerror}): it is lost if power fails in the next seconds"
        )


def _notice(text: str) -> None:
    print(f"converter: {text}", file=sys.stderr)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _print_failures(first: Sequence[Failure], count: int, where: str) -> None:
    for failure in first:
        print(f"{failure.key}: {failure.reason}", file=sys.stderr)
    if count > len(first):
        print(f"... and {count - len(first)} more {where}", file=sys.stderr)
