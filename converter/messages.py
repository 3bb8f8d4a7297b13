"""Make the lines of text that say what a command did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from converter.codecs.compression import AUTO, OF_AUTO
from converter.samples import Note, Plan
from converter.sources.readers import Choice

if TYPE_CHECKING:
    from converter.commands.dry_run import Advice, Outcome
    from converter.commands.report import Report
    from converter.commands.request import Request
    from converter.commands.verify import Verification

WORTHWHILE_SHARE = 0.9  # of the size without, above which smaller images are not proposed
STORED = {"array": "arrays", "encoded": "encoded files"}
NOTES = {
    Note.RESIZED: "images resized (--resize)",
    Note.PALETTE: "palette images expanded to colours (to keep indices: docs/my-functions.md)",
    Note.INDICES: "palette TIFFs stored as indices, without their palettes",
    Note.FRAMES: "files with several frames or pages, all of them stored",
    Note.FIRST_PICTURE: "JPEGs with several pictures (MPF), of which the first is stored",
    Note.REDUCED: "TIFFs with smaller copies of the picture, which are not stored",
    Note.FIRST_FRAME: "files with several frames or pages, of which OpenCV reads the first",
    Note.DEPTH: "files of more than 8 bits, cut to 8 by OpenCV",
    Note.ALPHA: "files with alpha, left out by OpenCV",
    Note.FEW_VALUES: "images of few values, such as {key}, resized to values between them: for "
    "labels take --resize_filter=nearest",
    Note.HOLES: "depth images with holes, such as {key}, resized to values between depth and hole: "
    "take --resize_filter=nearest",
}


def report_lines(report: Report) -> Iterator[str]:
    if report.changes is not None:
        yield str(report.changes)
    if report.is_unchanged:
        yield f"{report.path_output}: nothing changed, {report.stored} files, nothing written"
        yield f"{report.seconds:.2f} s"
        yield from _path_lines(report)
        return
    ratio = report.output_nbytes / report.source_nbytes if report.source_nbytes else 0.0
    rate = (report.stored + report.failed) / report.seconds
    yield f"{report.path_output}: {report.stored} stored, {report.failed} failed"
    yield (
        f"source {size(report.source_nbytes)}, HDF5 {size(report.output_nbytes)}, ratio {ratio:.2f}"
    )
    yield (
        f"{report.seconds:.2f} s, {rate:.0f} files/s, {report.fsync_seconds:.2f} s of it waiting "
        "for the disk (fsync)"
    )
    yield from _path_lines(report)
    yield from left_out_lines(report)
    for note, text in NOTES.items():
        if report.notes[note]:
            yield f"{report.notes[note]} {text.format(key=report.first_noted[note])}"


def _path_lines(report: Report) -> Iterator[str]:
    if report.path_failures:
        yield f"failures and their reasons: {report.path_failures}"


def verification_lines(found: Verification) -> Iterator[str]:
    yield f"{found.path}: {found.done} of {found.total} files good, {found.failed} faults"
    if not found.has_index:
        yield (
            "without an index there are no checksums: only that h5py reads everything could be "
            "checked (--verify --rebuild_index adds an index)"
        )
    if found.compared:
        yield f"compared with the folder, in which {found.unreadable} files cannot be read"
    rate = found.nbytes / 1e6 / found.seconds
    yield f"{found.seconds:.2f} s, {found.done / found.seconds:.0f} files/s, {rate:.0f} MB/s"


def merge_lines(report: Report) -> Iterator[str]:
    yield f"{report.path_output}: {report.done} files joined, {size(report.output_nbytes)}"
    rate = report.output_nbytes / 1e6 / report.seconds
    yield (
        f"{report.seconds:.2f} s, {report.done / report.seconds:.0f} files/s, {rate:.0f} MB/s, "
        f"{report.fsync_seconds:.2f} s of it waiting for the disk (fsync)"
    )


def left_out_lines(found: Report | Plan) -> Iterator[str]:
    if found.left_out:
        yield f"left out: {_most_common(found.left_out, 'kinds')}"
    if found.linked_folders:
        yield f"{found.linked_folders} linked folders not entered (--follow_links)"
    if found.hidden_folders:
        count = sum(found.hidden_folders.values())
        names = _most_common(found.hidden_folders, "names")
        yield f"{count} hidden folders not entered (--hidden_folders): {names}"


def _most_common(counts: Counter[str], what: str) -> str:
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common(10))
    return listed + (f" and {len(counts) - 10} more {what}" if len(counts) > 10 else "")


def advice_lines(request: Request, advice: Advice) -> Iterator[str]:
    plan = advice.plan
    free = "unknown space" if advice.free_nbytes is None else size(advice.free_nbytes)
    yield (
        f"{len(plan.keys)} files below {request.path_images}, {size(advice.source_nbytes)}; "
        f"{free} free for {request.path_output}"
    )
    if plan.failures:
        yield f"{len(plan.failures)} names or folders cannot be read"
    yield from left_out_lines(plan)
    if not advice.outcomes:
        yield f"none of the {advice.sampled} files that were tried could be read"
        return
    own = Choice(request.store, request.compression, request.resizing)
    resized = "" if own.resizing is None else f" with {own.resizing.flags}"
    yield (
        f"{request.path_output}{resized} would be about this large, judged from {advice.sampled} "
        f"files ({advice.failed} of which could not be read):"
    )
    yield ""
    yield f"  {'store':8} {'compression':12} {'size':>16} {'ratio':>7}  to read it"
    for outcome in advice.outcomes:
        remarks = ["this command"] if outcome.choice == own else []
        if outcome is advice.smallest:
            remarks.append("smallest")
        if outcome is advice.smallest_for_h5py:
            remarks.append("smallest for h5py alone")
        yield _outcome_line(advice, outcome, *remarks)
    for name, package in advice.missing.items():
        yield f"  array    {name:12} {'not tried':>16}          pip install {package}"
    if advice.others:
        yield ""
        other = advice.others[0].choice.resizing
        how = "without --resize" if other is None else f"with {other.flags}"
        yield f"  the same {how}:"
        for outcome in advice.others:
            yield _outcome_line(advice, outcome)
    yield ""
    for outcome in advice.outcomes:
        if outcome.choice[:2] == ("array", AUTO):
            arrays = advice.read - outcome.refused
            yield (
                f"auto compresses {outcome.compressed} of the {arrays} arrays by {OF_AUTO.name}, "
                f"and stores {arrays - outcome.compressed} as they are"
            )
    yield f"smallest: {_flags(advice.smallest.choice)}"
    if advice.smallest_for_h5py is not None:
        flags = _flags(advice.smallest_for_h5py.choice)
        yield f"smallest that h5py alone reads as arrays: {flags}"
    if own.resizing is None and advice.others:
        proposal = _proposal(advice)
        if proposal is not None:
            yield proposal


def _proposal(advice: Advice) -> str | None:
    """Propose smaller images where that makes arrays smaller; say what files then come to."""
    before = {outcome.choice: outcome.output_nbytes for outcome in advice.outcomes}
    said, flags = [], ""
    for choice, nbytes, _, refused in advice.others:
        assert choice.resizing is not None
        flags, whole = choice.resizing.flags, before[choice._replace(resizing=None)]
        is_smaller = nbytes < WORTHWHILE_SHARE * whole
        is_none = refused == advice.read
        if choice.store == "array" and (is_none or not is_smaller):
            return None
        sizes = f"{size(nbytes)} instead of {size(whole)}" if is_smaller else "no smaller"
        without = f" without {refused} of {advice.read} files" if refused else ""
        if not is_none:
            said.append(f"{STORED[choice.store]} {sizes}{without}")
    return (
        f"smaller images, for training: {flags}, for masks with --resize_filter=nearest "
        f"({', '.join(said)})"
    )


def _outcome_line(advice: Advice, outcome: Outcome, *remarks: str) -> str:
    ratio = outcome.output_nbytes / advice.source_nbytes if advice.source_nbytes else 0.0
    if outcome.refused:
        remarks = (*remarks, f"without {outcome.refused} of {advice.read} files, which would fail")
    return (
        f"  {outcome.choice.store:8} {outcome.choice.compression!s:12} "
        f"{size(outcome.output_nbytes):>16} {ratio:7.2f}  "
        f"{'; '.join([_needed(outcome.choice), *remarks])}"
    )


def _needed(choice: Choice) -> str:
    packages = ["h5py"]
    if choice.compression.needs_plugin:
        packages.append("hdf5plugin")
    if choice.store == "encoded":
        packages.append("pillow to decode")
    return ", ".join(packages) if len(packages) > 1 else "h5py alone"


def _flags(choice: Choice) -> str:
    store = "" if choice.store == "array" else f"--store={choice.store} "
    resized = "" if choice.resizing is None else f"{choice.resizing.flags} "
    return f"{resized}{store}--compression={choice.compression}"


def size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.2f} MB"
