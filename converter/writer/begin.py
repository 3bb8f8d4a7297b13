"""Decide what of a conversion is done already, and begin its output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from converter.callbacks import Callbacks
from converter.commands.estimate import check_size, estimate
from converter.commands.request import Request
from converter.files import open_hdf5
from converter.samples import Batch, Failure, Plan, Run
from converter.writer import provenance
from converter.writer.journal import Head
from converter.writer.resume import find_unfinished
from converter.writer.reuse import Changes, Reuse
from converter.writer.stored import StoredSamples, open_finished
from converter.writer.writer import Writer


@dataclass
class Begun:
    """What there is to write: samples in plan order; of an update also what changes."""

    batches: Iterator[Batch]
    changes: Changes | None = None
    is_unchanged: bool = False
    failures: list[Failure] = field(default_factory=list)


def begin(
    request: Request,
    plan: Plan,
    run: Run,
    writer: Writer,
    attributes: dict[str, str],
    caller: Callbacks,
) -> Begun:
    """Look at what earlier runs have left, and begin the file or go on with it.

    ``writer`` holds the lock. Raises ConverterError where the disk has too little space.
    """
    head = Head(
        output=request.path_output.name,
        mark="",
        root=str(request.path_images.resolve()),
        manner=provenance.encoding_options(attributes),
    )
    if request.restart:
        writer.discard()
    left = find_unfinished(writer.paths, head, caller.notice)
    finished = _finished(request, attributes, caller) if request.update else None
    begun = Begun(iter(()), Changes(finished) if finished is not None else None)
    own, aside = left.own, left.aside
    work = _checked(plan, (own, aside, finished), caller)
    if finished is not None and own is None and work.is_all_of(finished, run):
        assert begun.changes is not None
        begun.changes.kept = len(finished)
        begun.is_unchanged, begun.failures = True, work.failures
        writer.discard()
        return begun
    is_in_place = own is not None and work.count_in(own) > 0 and work.is_in_place(own, run)
    is_to_move = False
    if own is not None and not is_in_place:
        is_to_move = _gives_more(plan, own, aside)
        files = (own, finished) if is_to_move else (aside, finished)
        work = _checked(plan, files, caller)
    kept = sum(work.count_in(file) for file in (own, aside) if file is not None)
    if kept:
        caller.notice(f"{kept} of {len(plan.keys)} files are kept from the run that was broken off")
    expected = estimate(request, plan, run, work, is_going_on=kept > 0)
    if not kept:
        check_size(request, expected, caller)
    with caller.without_signals():
        writer.expected_nbytes = expected.output_nbytes
        if own is not None and is_in_place:
            writer.go_on(head, len(own))
        else:
            if is_to_move:
                writer.move_aside()
            writer.begin(head)
    begun.batches = work.batches(run)
    return begun


def _checked(plan: Plan, files: tuple[StoredSamples | None, ...], caller: Callbacks) -> Reuse:
    """Find samples in files, the first that has one giving it; compare their checksums."""
    work = Reuse(plan, [file for file in files if file is not None])
    damaged = work.check()
    if damaged:
        caller.notice(f"{damaged} of the samples kept are damaged, and are read again")
    return work


def _gives_more(plan: Plan, own: StoredSamples, aside: StoredSamples | None) -> bool:
    """Tell whether the file has more to give than one that was moved aside before."""
    return aside is None or Reuse(plan, [own]).count > Reuse(plan, [aside]).count


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
        finished.distrust()
    return finished
