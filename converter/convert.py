"""Convert a folder: plan, read and encode, write, count."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from converter import hooks, provenance
from converter.caller import Caller
from converter.codec import PLUGIN_FILTERS
from converter.encoder import Encoded, Settings
from converter.errors import ConverterError, StoppedError
from converter.estimate import Advice, Estimate, Run, choices_of, estimate, survey
from converter.failures import FailureList, path_of_failures
from converter.plan import Failure, Plan, make_plan
from converter.pool import Pool, run_here
from converter.report import Report
from converter.request import Request, check_request, nearest_folder
from converter.writer import Writer, path_of_partial

FIRST_FILES = 1000  # when so many all fail, the rest will too
SIZE_WARNING_RATIO = 2.0


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
    check_request(request)
    found = _load_hooks(request, caller)
    if request.compression.name in PLUGIN_FILTERS:
        caller.notice(
            f"h5py reads {request.compression.name} only after `import hdf5plugin`; H5Folder does "
            "without (pip install hdf5plugin)"
        )
    with ExitStack() as stack:
        # Workers first: a process forked from a small parent stays small.
        run = stack.enter_context(_encoding(request, found, caller))
        plan = _plan(request, found)
        report = Report(request.path_output, total=len(plan.keys) + len(plan.failures))
        report.left_out, report.linked_folders = plan.left_out, plan.linked_folders
        expected = estimate(request, plan, run)
        _check_size(request, expected, caller)
        stack.enter_context(_output_folder(request.path_output.parent))
        failures = FailureList(request.path_output)
        stack.callback(failures.discard)
        writer = Writer(request.path_output, estimate=expected.output_nbytes)
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


def advise(request: Request, caller: Caller) -> tuple[Advice, Plan]:
    """Try each store and compression on a sample of the files, in memory. Writes nothing."""
    check_request(request)
    found = _load_hooks(request, caller)
    with _encoding(request, found, caller, survey=True) as run:
        plan = _plan(request, found)
        return survey(request, plan, run), plan


def _load_hooks(request: Request, caller: Caller) -> hooks.Hooks:
    if not (request.custom_read_func or request.custom_prune_func):
        return hooks.Hooks()
    path = hooks.find_functions(request.path_functions)
    wanted = {"my_read": request.custom_read_func, "my_prune": request.custom_prune_func}
    found = hooks.load_hooks(path, read=wanted["my_read"], prune=wanted["my_prune"])
    caller.notice(f"{' and '.join(name for name in wanted if wanted[name])} from {path}")
    return found


@contextmanager
def _encoding(
    request: Request, found: hooks.Hooks, caller: Caller, *, survey: bool = False
) -> Iterator[Run]:
    settings = Settings(
        root=str(request.path_images.resolve()),
        store=request.store,
        compression=request.compression,
        reader=request.reader or "imageio",
        check_decoding=not request.skip_decode_check,
        max_pixels=request.max_pixels,
        path_functions=found.path if request.custom_read_func else None,
        choices=choices_of(request)[0] if survey else (),
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


def _check_size(request: Request, expected: Estimate, caller: Caller) -> None:
    if expected.output_nbytes is None or expected.ratio is None:
        return
    if expected.output_nbytes > expected.free_nbytes:
        raise ConverterError(
            f"{request.path_output} would take about {expected.output_nbytes / 1e6:,.0f} MB, "
            f"and {expected.free_nbytes / 1e6:,.0f} MB are free: {_cure(request)}, or name "
            "another disk with --path_output"
        )
    if expected.ratio > SIZE_WARNING_RATIO and request.store == "array":
        caller.notice(
            f"{request.path_output} will be about {expected.ratio:.1f} times as large as the "
            f"source ({expected.output_nbytes / 1e6:,.1f} MB), for it holds decoded arrays; "
            f"to make it smaller {_cure(request)}"
        )


def _cure(request: Request) -> str:
    """Say how OUT.h5 could become smaller."""
    cures = []
    if request.store == "array" and not (request.custom_read_func or request.reader):
        cures.append("--store=encoded, which keeps the files as they are")
    if request.compression.name in ("auto", "none"):
        cures.append("--compression=gzip")
    if request.store == "array":
        cures.append("smaller arrays from --custom_read_func")
    return f"try {', or '.join(cures)} (--dry_run compares)" if cures else "convert a part of it"


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
            elif isinstance(result, Encoded):
                report.add(result)
        caller.progress(report.progress)
    if not report.stored:
        raise _nothing_stored(request, f"all {report.total} files", failures, report)


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


def _attributes(request: Request, found: hooks.Hooks) -> dict[str, str]:
    return provenance.describe(
        extensions=request.extensions,
        read_sha256=found.sha256 if request.custom_read_func else None,
        prune_sha256=found.sha256 if request.custom_prune_func else None,
        reader=request.reader or "imageio",
        store=request.store,
        skip_decode_check=request.skip_decode_check,
        compression=str(request.compression),
        max_pixels=request.max_pixels,
        follow_links=request.follow_links,
    )


@contextmanager
def _output_folder(folder: Path) -> Iterator[None]:
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
