"""Judge from a sample of the files what a conversion of all would come to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from converter.callbacks import Callbacks
from converter.codecs.compression import AUTO, NONE, OF_AUTO
from converter.commands.request import Request, nearest_folder
from converter.errors import ConverterError
from converter.files import free_space
from converter.format.groups import MOST_LINKS_IN_HEADER, SMALLEST_HEAP_NBYTES
from converter.samples import Encoded, KeyList, Plan, Run
from converter.workers.once import FEWEST_KEPT, MOST_NBYTES

SAMPLED_FILES = 64
SHARE_SAMPLED = 20  # 1 in so many at most
FEWEST_SAMPLED = FEWEST_KEPT  # or all, of fewer files
MOST_SAMPLED_NBYTES = MOST_NBYTES // 4  # more are not begun: what is read is kept meanwhile
#: A sample's row, slot and bucket, and its link where a folder has few or many, without names.
ENTRY_NBYTES = 32 + 16 + 4 + 6
LINK_NBYTES, LINK_AMONG_MANY_NBYTES = 20, 50
STRUCTURE_NBYTES = 100  # of HDF5's, a sample
FOLDER_NBYTES = 110
FILE_NBYTES = SMALLEST_HEAP_NBYTES + 700  # without any sample
SIZE_WARNING_RATIO = 2.0


@dataclass(frozen=True)
class Estimate:
    """What a conversion would come to; None where no file of the sample could be read.

    ``ratio`` is output to source, of the sample.
    """

    ratio: float | None
    output_nbytes: int | None


class Known(NamedTuple):
    """Samples that are stored already: how many, and the bytes of their payloads."""

    samples: int
    payload_nbytes: int


def estimate(request: Request, plan: Plan, run: Run, known: Known, absent: KeyList) -> Estimate:
    """Encode a few of the files that are to be read, spread evenly over ``absent``.

    A run that has nothing to read, or is resumed (``absent`` is empty), encodes no file for this:
    what is stored already tells the size.
    """
    entries = entries_nbytes(plan, spread(plan.keys, SAMPLED_FILES))
    if not len(absent):
        each = known.payload_nbytes // max(known.samples, 1) + STRUCTURE_NBYTES
        nbytes = each * len(plan.keys) + entries
        return Estimate(ratio=0.0, output_nbytes=nbytes)
    most = max(math.ceil(len(absent) / SHARE_SAMPLED), FEWEST_SAMPLED)
    sample = spread(absent, min(SAMPLED_FILES, most))
    stored, sources, payloads, read = 0, 0, 0, 0
    while read < len(sample) and payloads < MOST_SAMPLED_NBYTES:
        some = sample[read : max(2 * read, FEWEST_SAMPLED)]
        read += len(some)
        for batch in run(some):
            for result in batch.results:
                if isinstance(result, Encoded):
                    stored += 1
                    sources += result.source_nbytes
                    payloads += result.record_nbytes
    nbytes = known.payload_nbytes + STRUCTURE_NBYTES * known.samples + entries
    nbytes += payloads * len(absent) // read
    return Estimate(
        ratio=payloads / sources if sources else None,
        output_nbytes=nbytes if stored else None,
    )


def spread(keys: KeyList, most: int) -> KeyList:
    """Return keys spread evenly over all; the first of them too, however many are taken."""
    count = min(most, len(keys))
    bits = max(1, (count - 1).bit_length())
    order = sorted(range(count), key=lambda n: int(f"{n:0{bits}b}"[::-1], 2))
    sample = KeyList()
    for number in order:
        sample.append(keys[number * len(keys) // count].encode())
    return sample


def entries_nbytes(plan: Plan, sample: KeyList) -> int:
    """Return what links, groups and tail take beside the samples' own structures."""
    names = sum(len(key.encode()) + len(key.rpartition("/")[2].encode()) for key in sample)
    is_flat = len(plan.keys) > MOST_LINKS_IN_HEADER * max(plan.folders, 1)
    each = ENTRY_NBYTES + (LINK_AMONG_MANY_NBYTES if is_flat else LINK_NBYTES)
    each += names // max(len(sample), 1)
    return each * len(plan.keys) + FOLDER_NBYTES * plan.folders + FILE_NBYTES


def free_nbytes(output: Path) -> int | None:
    """Return the bytes that are free where a file is to be made; None where it is not known."""
    return free_space(nearest_folder(output.parent))


def check_space(output: Path, nbytes: int, *, cure: str) -> None:
    """Raise ConverterError where a file of this size does not fit on the disk."""
    free = free_nbytes(output)
    if free is not None and nbytes > free:
        raise ConverterError(
            f"{output} would take about {nbytes / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are "
            f"free: {cure}, or name another disk with --path_output"
        )


def check_size(request: Request, expected: Estimate, caller: Callbacks) -> None:
    if expected.output_nbytes is None or expected.ratio is None:
        return
    check_space(request.path_output, expected.output_nbytes, cure=_cure(request))
    if expected.ratio > SIZE_WARNING_RATIO and request.store == "array" and not request.update:
        caller.notice(
            f"{request.path_output} will be about {expected.ratio:.1f} times as large as the "
            f"source ({expected.output_nbytes / 1e6:,.1f} MB), for it holds decoded arrays; "
            f"to make it smaller {_cure(request)}"
        )


def _cure(request: Request) -> str:
    """Say how OUT.h5 could become smaller."""
    cures = []
    if request.update:
        return "free space"
    if request.store == "array" and not (request.custom_read_func or request.reader):
        cures.append("--store=encoded, which keeps the files as they are")
    if request.compression in (AUTO, NONE):
        cures.append(f"--compression={OF_AUTO.name}")
    if request.store == "array":
        cures.append("smaller arrays from --custom_read_func")
    return f"try {', or '.join(cures)} (--dry_run compares)" if cures else "convert a part of it"
