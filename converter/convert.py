"""Convert a folder: plan, read and encode, write, count."""

from __future__ import annotations

import errno
import math
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from converter import hooks, provenance
from converter.encoder import Settings
from converter.errors import ConverterError, StoppedError
from converter.failures import FailureList, path_of_failures
from converter.plan import Failure, KeyList, Plan, make_plan
from converter.pool import Batch, Pool, run_here
from converter.report import Estimate, Report
from converter.writer import Writer, path_of_partial

FIRST_FILES = 1000  # when so many all fail, the rest will too
SAMPLED_FILES = 64
SAMPLED_FILES_DRY_RUN = 256
FEWEST_SAMPLED = 4
#: HDF5's metadata and the tail, for a name of 30 bytes.
OVERHEAD_NBYTES = 420
SIZE_WARNING_RATIO = 2.0


@dataclass(frozen=True)
class Request:
    """What to convert, and how: the command line's flags under their names."""

    path_images: Path
    path_output: Path
    ext: str = "jpg"
    custom_read_func: bool = False
    custom_prune_func: bool = False
    path_functions: Path | None = None
    workers: int = 1
    compression: str = "auto"
    on_error: str = "skip"
    max_pixels: int | None = None
    follow_links: bool = False
    overwrite: bool = False

    @property
    def extensions(self) -> tuple[str, ...]:
        """Return the extensions of ``ext``: lower case, without leading dots, sorted."""
        parts = (part.strip().lower().removeprefix(".") for part in self.ext.split(","))
        return tuple(sorted({part for part in parts if part}))


@dataclass(frozen=True)
class Caller:
    """What the caller wants to hear, and how it holds back interruptions.

    Parameters
    ----------
    notice
        Called with a sentence the user should know before the work starts.
    progress
        Called with the growing report after every few files.
    held
        Gives a context in which no signal handler raises: the output is being written there.
    """

    notice: Callable[[str], None]
    progress: Callable[[Report], None] = lambda report: None
    held: Callable[[], AbstractContextManager[None]] = nullcontext


Run = Callable[[Sequence[str]], Iterator[Batch]]


def convert(request: Request, caller: Caller) -> Report:
    """Convert the folder to one HDF5 file; see `Request` for what can be asked.

    The file appears under its name only when it is complete.

    Raises
    ------
    ConverterError
        The request cannot be met; nothing was touched.
    StoppedError
        It began and could not be finished; no output, an older one stays.
    """
    start = time.perf_counter()
    check_paths(request)
    found = _load_hooks(request, caller)
    with ExitStack() as stack:
        # Workers first: a process forked from a small parent stays small.
        run = stack.enter_context(_encoding(request, found, caller))
        plan = _plan(request, found)
        report = Report(request.path_output, total=len(plan.keys) + len(plan.failures))
        report.left_out, report.linked_folders = plan.left_out, plan.linked_folders
        estimate = _estimate(request, plan, run, SAMPLED_FILES, most_share=20)
        _check_size(request, estimate, caller)
        stack.enter_context(_output_folder(request.path_output.parent))
        failures = FailureList(request.path_output)
        stack.callback(failures.discard)
        writer = Writer(request.path_output, estimate=estimate.output_nbytes)
        stack.callback(_held(caller, writer.abandon))
        with caller.held():
            writer.open()
        try:
            _convert_all(request, plan, run, writer, failures, report, caller)
            failures.close()
        except OSError as error:  # payloads, or the list of failures, could not be written
            raise writer.explain(error) from error
        with caller.held():
            report.output_nbytes = writer.finish(_attributes(request, found))
            report.path_failures = failures.publish()
    report.seconds = time.perf_counter() - start
    return report


def estimate_size(request: Request, caller: Caller) -> tuple[Estimate, Plan]:
    """Read a sample of the files in memory and judge what all would come to. Writes nothing."""
    check_paths(request)
    found = _load_hooks(request, caller)
    with _encoding(request, found, caller) as run:
        plan = _plan(request, found)
        return _estimate(request, plan, run, SAMPLED_FILES_DRY_RUN, most_share=1), plan


def check_paths(request: Request) -> None:
    """Refuse what cannot work, before anything is touched."""
    source, output = request.path_images, request.path_output
    try:
        is_folder = stat.S_ISDIR(os.stat(source).st_mode)
    except OSError as error:
        raise ConverterError(
            f"no folder {source} ({error.strerror}): --path_images names the folder to convert"
        ) from error
    if not is_folder:
        raise ConverterError(f"{source} is a file: --path_images names the folder it is in")
    if not os.access(source, os.R_OK | os.X_OK):
        raise ConverterError(f"{source} cannot be listed: you have no permission to read it")
    try:
        os.stat(path_of_failures(path_of_partial(output)))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConverterError(f"the name {output.name} is too long: choose another") from error
    if os.path.isdir(output):
        raise ConverterError(f"{output} is a folder: --path_output names the HDF5 file to make")
    if os.path.lexists(output) and not request.overwrite:
        raise ConverterError(f"{output} exists: name another file, or replace it with --overwrite")
    folder = _nearest_folder(output.parent)
    if not os.path.isdir(folder):
        raise ConverterError(f"{folder} is a file: {output} cannot be made below it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConverterError(
            f"{output} cannot be made: you have no permission to write to {folder}"
        )
    if not request.extensions and not request.custom_prune_func:
        raise ConverterError(f"--ext={request.ext!r} names no extension: give one, such as jpg")


def _load_hooks(request: Request, caller: Caller) -> hooks.Hooks:
    if not (request.custom_read_func or request.custom_prune_func):
        if request.path_functions is not None:
            raise ConverterError(
                "--path_functions is of no use alone: add --custom_read_func or --custom_prune_func"
            )
        return hooks.Hooks()
    path = hooks.find_functions(request.path_functions)
    wanted = {"my_read": request.custom_read_func, "my_prune": request.custom_prune_func}
    found = hooks.load_hooks(path, read=wanted["my_read"], prune=wanted["my_prune"])
    caller.notice(f"{' and '.join(name for name in wanted if wanted[name])} from {path}")
    return found


@contextmanager
def _encoding(request: Request, found: hooks.Hooks, caller: Caller) -> Iterator[Run]:
    settings = Settings(
        root=str(request.path_images.resolve()),
        compression=request.compression,
        max_pixels=request.max_pixels,
        path_functions=found.path if request.custom_read_func else None,
    )
    if request.workers == 1:
        yield lambda keys: run_here(settings, keys)
        return
    with caller.held():
        pool = Pool(settings, request.workers)
    with pool:
        yield pool.run


def _held(caller: Caller, function: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        with caller.held():
            function()

    return call


def _plan(request: Request, found: hooks.Hooks) -> Plan:
    keep: Callable[[str], bool]
    if found.prune is not None:
        keep = partial(hooks.call_prune, found.prune, request.ext)
    else:
        keep = keep_extensions(request.extensions)
    output = request.path_output
    plan = make_plan(
        request.path_images.resolve(),
        keep=keep,
        follow_links=request.follow_links,
        ignore=(output, path_of_partial(output), path_of_failures(output)),
    )
    if not plan.keys and not plan.failures:
        raise ConverterError(_nothing_found(request, plan.left_out))
    return plan


def keep_extensions(extensions: tuple[str, ...]) -> Callable[[str], bool]:
    """Return the default prune: names ending in one of these, but not macOS's ``._`` files."""
    endings = tuple("." + extension for extension in extensions)

    def keep(name: str) -> bool:
        lowered = name.lower()
        return (
            lowered.endswith(endings)
            and not name.startswith("._")
            and any(lowered.endswith(end) and len(lowered) > len(end) for end in endings)
        )

    return keep


def _nothing_found(request: Request, left_out: Counter[str]) -> str:
    what = (
        "my_prune keeps none of the files"
        if request.custom_prune_func
        else f"no .{', .'.join(request.extensions)} files"
    )
    if not left_out:
        return f"{what} below {request.path_images}: it holds no files at all"
    held = ", ".join(f"{count} {name}" for name, count in left_out.most_common(5))
    best = next((name for name, _ in left_out.most_common() if name.startswith(".")), None)
    hint = f": did you mean --ext={best[1:]}?" if best and not request.custom_prune_func else ""
    return f"{what} below {request.path_images}; it holds {held}{hint}"


def _estimate(request: Request, plan: Plan, run: Run, most: int, *, most_share: int) -> Estimate:
    """Encode at most ``most`` files, and 1 of ``most_share``, spread evenly over the plan.

    The real conversion reads these again: hence not more.
    """
    count = min(most, max(math.ceil(len(plan.keys) / most_share), FEWEST_SAMPLED), len(plan.keys))
    sample = KeyList()
    for number in range(count):
        sample.append(plan.keys[number * len(plan.keys) // count].encode())
    failed, sources, payloads = 0, 0, 0
    for batch in run(sample):
        for result in batch.results:
            if isinstance(result, Failure):
                failed += 1
            else:
                sources += result.source_nbytes
                payloads += sum(part.nbytes for part in result.parts) + OVERHEAD_NBYTES
    stored = count - failed
    free = shutil.disk_usage(_nearest_folder(request.path_output.parent)).free
    return Estimate(
        files=len(plan.keys),
        sampled=count,
        failed=failed,
        ratio=payloads / sources if sources else None,
        output_nbytes=payloads * len(plan.keys) // count if stored else None,
        free_nbytes=free,
    )


def _check_size(request: Request, estimate: Estimate, caller: Caller) -> None:
    if estimate.output_nbytes is None or estimate.ratio is None:
        return
    if estimate.output_nbytes > estimate.free_nbytes:
        raise ConverterError(
            f"{request.path_output} would take about {estimate.output_nbytes / 1e6:,.0f} MB, "
            f"and {estimate.free_nbytes / 1e6:,.0f} MB are free: {_cure(request)}, or name "
            "another disk with --path_output"
        )
    if estimate.ratio > SIZE_WARNING_RATIO:
        caller.notice(
            f"{request.path_output} will be about {estimate.ratio:.1f} times as large as the "
            f"source ({estimate.output_nbytes / 1e6:,.1f} MB), for it holds decoded arrays; "
            f"to make it smaller {_cure(request)}"
        )


def _cure(request: Request) -> str:
    smaller = "store smaller arrays with --custom_read_func"
    return smaller if request.compression == "gzip" else f"try --compression=gzip, or {smaller}"


def _convert_all(
    request: Request,
    plan: Plan,
    run: Run,
    writer: Writer,
    failures: FailureList,
    report: Report,
    caller: Caller,
) -> None:
    def fail(failure: Failure) -> None:
        report.add_failure(failure)
        failures.add(failure)
        if request.on_error == "stop":
            raise StoppedError(
                f"{failure.key}: {failure.reason} (stopped at the first failure, "
                f"--on_error=stop; {request.path_output} was not made)"
            )

    for failure in plan.failures:
        fail(failure)
    for batch in run(plan.keys):
        with caller.held():
            writer.write(batch)
        for result in batch.results:
            if isinstance(result, Failure):
                fail(result)
                if not report.stored and report.failed == FIRST_FILES + len(plan.failures):
                    who = f"the first {FIRST_FILES} files all"
                    raise _nothing_stored(request, who, failures, report)
            else:
                report.add(result)
        caller.progress(report)
    if not report.stored:
        raise _nothing_stored(request, f"all {report.total} files", failures, report)


def _nothing_stored(
    request: Request, who: str, failures: FailureList, report: Report
) -> StoppedError:
    first = report.first_failures[0]
    hint = (
        ""
        if request.custom_read_func
        else "; for files that are no images, write my_read and add --custom_read_func"
    )
    return StoppedError(
        f"{who} failed, the first, {first.key}, because: {first.reason} (all reasons are in "
        f"{failures.publish()}; {request.path_output} was not made{hint})"
    )


def _attributes(request: Request, found: hooks.Hooks) -> dict[str, str]:
    return provenance.describe(
        extensions=request.extensions,
        read_sha256=found.sha256 if request.custom_read_func else None,
        prune_sha256=found.sha256 if request.custom_prune_func else None,
        compression=request.compression,
        max_pixels=request.max_pixels,
        follow_links=request.follow_links,
    )


def _nearest_folder(folder: Path) -> Path:
    """Return the folder itself, or the nearest above it that exists."""
    folder = Path(os.path.abspath(folder))
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder


@contextmanager
def _output_folder(folder: Path) -> Iterator[None]:
    """Make the output's folder; remove it again when the conversion fails."""
    made = []
    nearest = _nearest_folder(folder)
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
