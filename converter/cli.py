"""Read the command line and talk to the user. Alone prints, alone knows exit statuses."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from converter import filters, readers
from converter.convert import Caller, Request, convert, estimate_size
from converter.cores import usable_cores
from converter.errors import ConverterError, StoppedError
from converter.plan import Plan
from converter.report import Estimate, Report

STORED_ALL, SOMETHING_FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 128
SECONDS_BETWEEN_LINES = 30.0


class _Signalled(KeyboardInterrupt):
    """A signal that asks the process to end."""

    def __init__(self, number: int) -> None:
        self.number = number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 (all stored), 1 (something failed) or 2 (wrong usage)."""
    _print_any_name()
    arguments = _parser().parse_args(argv)
    request = _request(arguments)
    try:
        with _Signals() as signals:
            _say_what_is_missing()
            if arguments.dry_run:
                estimate, plan = estimate_size(request, Caller(_notice, held=signals.held))
                _print(_estimate_lines(request, estimate, plan))
                return STORED_ALL
            with _Progress(quiet=arguments.quiet) as progress:
                report = convert(request, Caller(_notice, progress.show, signals.held))
    except StoppedError as error:
        print(f"converter: {error}", file=sys.stderr)
        return SOMETHING_FAILED
    except ConverterError as error:
        print(f"converter: {error}", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, _Signalled) else int(signal.SIGINT)
        print(f"converter: interrupted, {request.path_output} was not made", file=sys.stderr)
        return INTERRUPTED + number
    _print_failures(report)
    _print(_report_lines(report))
    return SOMETHING_FAILED if report.failed else STORED_ALL


def _print_any_name() -> None:
    """Escape what a terminal's encoding, or a name, does not allow to be printed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="converter",
        description="Turn the loose files below a folder into one HDF5 file: each matching file "
        "becomes a dataset under its relative path.",
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    add = parser.add_argument
    add("--path_images", type=_path, required=True, metavar="FOLDER", help="the folder to walk")
    add(
        "--path_output",
        type=_path,
        required=True,
        metavar="OUT.h5",
        help="the HDF5 file to make; its folder is made if missing",
    )
    add(
        "--ext",
        default="jpg",
        help="extension to keep, several with commas (jpg,jpeg,png); case does not matter, a "
        "leading dot may be given (default: jpg)",
    )
    add(
        "--custom_read_func",
        action="store_true",
        help="read with my_read of my_functions.py instead of the default reader",
    )
    add(
        "--custom_prune_func",
        action="store_true",
        help="keep a file where my_prune(filename_str, ext_str) of my_functions.py is true: "
        "filename_str is the bare file name, ext_str is --ext as typed",
    )
    add(
        "--path_functions",
        type=_path,
        metavar="FILE.py",
        help="take my_read and my_prune from this file (default: my_functions.py in the current "
        "folder, else the one beside converter/)",
    )
    add(
        "--workers",
        type=_positive,
        default=usable_cores(),
        metavar="N",
        help="worker processes; 1 reads in this process, without a pool (default: the cores this "
        "process may use)",
    )
    add(
        "--compression",
        choices=("auto", "none", "gzip"),
        default="auto",
        help="auto: gzip for each array that becomes at least 3 times smaller, none for the "
        "others; none; gzip: for each that becomes smaller (default: auto)",
    )
    add(
        "--on_error",
        choices=("skip", "stop"),
        default="skip",
        help="skip: leave out a file that cannot be read, report it, go on; stop: end at the "
        "first, no output (default: skip)",
    )
    add(
        "--max_pixels",
        type=_positive,
        metavar="N",
        help="refuse to decode images with more pixels (default: Pillow's limit, 178956970)",
    )
    add(
        "--follow_links",
        action="store_true",
        help="enter symlinked folders, each real folder once",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace an existing OUT.h5, once the new one is complete",
    )
    add(
        "--dry_run",
        action="store_true",
        help="read a sample of the files in memory and print how many files and bytes there are, "
        "the expected size of OUT.h5 and the free space; write nothing",
    )
    add("--quiet", action="store_true", help="no progress bar")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f"{self.prog}: {message}: see --help\n")


class _HelpFormatter(argparse.HelpFormatter):
    """Help of one width: README shows it as it is."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=96)


def _path(text: str) -> Path:
    if not text:  # such as a shell variable that is not set
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(text)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _request(arguments: argparse.Namespace) -> Request:
    flags = vars(arguments).copy()
    del flags["dry_run"], flags["quiet"]
    return Request(**flags)


class _Signals:
    """Turn signals that would end the process into an exception, so that it can clean up.

    An exception that strikes within h5py may surface as another one, or be lost: `held`
    keeps it away.
    """

    def __init__(self) -> None:
        self._number = 0
        self._holds = 0
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

    @contextmanager
    def held(self) -> Iterator[None]:
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
    if not readers.HAS_SIMPLEJPEG:
        missing.append("simplejpeg")
    if not filters.HAS_ZLIB_NG:
        missing.append("zlib-ng")
    if missing:
        names = " ".join(missing)
        _notice(f"slower than it could be without {names}: pip install {names}")


def _notice(text: str) -> None:
    print(f"converter: {text}", file=sys.stderr)


class _Progress:
    """A bar on a terminal, a plain line every 30 seconds elsewhere."""

    def __init__(self, *, quiet: bool, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._bar: Any = None
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, report: Report) -> None:
        if self._quiet:
            return
        if self._stream.isatty():
            self._show_bar(report)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(_progress_line(report, self._last_line - self._start), file=self._stream)

    def _show_bar(self, report: Report) -> None:
        if self._bar is None:
            from tqdm import tqdm  # 50 ms that only a terminal needs

            self._bar = tqdm(
                total=report.total,
                unit=" files",
                file=self._stream,
                dynamic_ncols=True,
                initial=0,
                leave=False,
            )
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = f"{report.payload_nbytes / 1e6 / seconds:.0f} MB/s"
        self._bar.set_postfix_str(f"{rate}, {report.failed} failed", refresh=False)
        self._bar.update(report.stored + report.failed - self._bar.n)


def _progress_line(report: Report, seconds: float) -> str:
    done = report.stored + report.failed
    rate = done / seconds
    left = (report.total - done) / rate if rate else 0.0
    return (
        f"converter: {done} of {report.total} files, {rate:.0f} files/s, "
        f"{report.payload_nbytes / 1e6 / seconds:.0f} MB/s, {left:.0f} s left, "
        f"{report.failed} failed"
    )


def _print(lines: Iterable[str]) -> None:
    """Print results; nobody may be reading them any more, as behind ``| head``."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_failures(report: Report) -> None:
    for failure in report.first_failures:
        print(f"{failure.key}: {failure.reason}", file=sys.stderr)
    if report.failed > len(report.first_failures):
        more = report.failed - len(report.first_failures)
        print(f"... and {more} more in {report.path_failures}", file=sys.stderr)


def _report_lines(report: Report) -> Iterator[str]:
    ratio = report.output_nbytes / report.source_nbytes if report.source_nbytes else 0.0
    rate = (report.stored + report.failed) / report.seconds
    yield f"{report.path_output}: {report.stored} stored, {report.failed} failed"
    yield (
        f"source {_size(report.source_nbytes)}, HDF5 {_size(report.output_nbytes)}, "
        f"ratio {ratio:.2f}"
    )
    yield f"{report.seconds:.2f} s, {rate:.0f} files/s"
    if report.path_failures:
        yield f"failures and their reasons: {report.path_failures}"
    yield from _left_out_lines(report)
    if report.palettes:
        yield f"{report.palettes} palette images expanded to colours (README: mode='P')"
    if report.multi_frames:
        yield f"{report.multi_frames} files with several frames or pages"


def _left_out_lines(found: Report | Plan) -> Iterator[str]:
    if found.left_out:
        kinds = ", ".join(f"{count} {name}" for name, count in found.left_out.most_common(10))
        others = len(found.left_out) - 10
        yield f"left out: {kinds}" + (f" and {others} more kinds" if others > 0 else "")
    if found.linked_folders:
        yield f"{found.linked_folders} linked folders not entered (--follow_links)"


def _estimate_lines(request: Request, estimate: Estimate, plan: Plan) -> Iterator[str]:
    yield f"{estimate.files} files below {request.path_images}"
    if estimate.ratio is None or estimate.output_nbytes is None:
        yield f"none of the {estimate.sampled} files of a sample could be read"
    else:
        yield f"source about {_size(int(estimate.output_nbytes / estimate.ratio))}"
        yield (
            f"{request.path_output} about {_size(estimate.output_nbytes)}, ratio "
            f"{estimate.ratio:.2f} (judged from {estimate.sampled} files, "
            f"{estimate.failed} of which failed)"
        )
    yield f"free {_size(estimate.free_nbytes)}"
    if plan.failures:
        yield f"{len(plan.failures)} names or folders cannot be read"
    yield from _left_out_lines(plan)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.2f} MB"
