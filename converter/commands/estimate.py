"""Judge from a sample of the files what a conversion of all would come to."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from converter.codecs.compression import AUTO, NONE, OF_AUTO
from converter.commands.request import Request, nearest_folder
from converter.errors import ConverterError
from converter.files import free_space
from converter.samples import Encoded, KeyList, Plan, Run
from converter.workers.once import FEWEST_KEPT, MOST_NBYTES

SAMPLED_FILES = 64
SHARE_SAMPLED = 20  # 1 in so many at most
FEWEST_SAMPLED = FEWEST_KEPT  # or all, of fewer files
MOST_SAMPLED_NBYTES = MOST_NBYTES // 4  # more are not begun: what is read is kept meanwhile
#: What HDF5's structures and the index take, without names: measured, of a sample with its row and
#: link, of a sample's header (where its payload's size is known alone), of a folder, of a file.
ENTRY_NBYTES, STRUCTURE_NBYTES, FOLDER_NBYTES, FILE_NBYTES = 90, 100, 110, 4800
SIZE_WARNING_RATIO = 2.0
PROPOSED_SIZE = 256  # pixels of the shorter side, for training at 224
LARGE_FILE_NBYTES = 64 << 10  # twice those of a JPEG of the proposed size


class Estimate(NamedTuple):
    """What a conversion would come to; None where no file of the sample could be read.

    ``ratio`` is output to source, of the sample. ``has_large_images``: ``--resize`` could make
    images of it smaller.
    """

    output_nbytes: int | None
    ratio: float = 0.0
    has_large_images: bool = False


def estimate(plan: Plan, run: Run, stored: int, stored_nbytes: int, absent: KeyList) -> Estimate:
    """Encode a few of the files that are to be read, spread evenly over ``absent``.

    ``stored`` files are stored already, their payloads have ``stored_nbytes``. A run that has
    nothing to read, or is resumed (``absent`` is empty), encodes no file for this: what is stored
    already tells the size.
    """
    nbytes = stored_nbytes + STRUCTURE_NBYTES * stored
    entries = entries_nbytes(plan, spread(plan.keys, SAMPLED_FILES))
    if not len(absent):
        return Estimate(nbytes * len(plan.keys) // max(stored, 1) + entries)
    most = max(math.ceil(len(absent) / SHARE_SAMPLED), FEWEST_SAMPLED)
    sample = spread(absent, min(SAMPLED_FILES, most))
    payloads, sources, read, is_any_read, has_large = 0, 0, 0, False, False
    while read < len(sample) and payloads < MOST_SAMPLED_NBYTES:
        some = sample[read : max(2 * read, FEWEST_SAMPLED)]
        read += len(some)
        for result in (result for batch in run(some) for result in batch.results):
            if isinstance(result, Encoded):
                is_any_read = True
                sources += result.source_nbytes
                payloads += result.record_nbytes
                has_large |= _is_large(result.layout.shape)
    if not is_any_read:
        return Estimate(None)
    nbytes += payloads * len(absent) // read + entries
    return Estimate(nbytes, payloads / sources if sources else 0.0, has_large)


def _is_large(shape: tuple[int, ...]) -> bool:
    """Tell whether an array of this shape, or an encoded file, may be larger than proposed."""
    if len(shape) == 1:
        return shape[0] > LARGE_FILE_NBYTES
    return len(shape) > 1 and sorted(shape)[-2] > PROPOSED_SIZE


def spread(keys: KeyList, most: int) -> KeyList:
    """Return keys spread evenly over all; the first of them too, however many are taken."""
    count = min(most, len(keys))
    bits = max(1, (count - 1).bit_length())
    order = sorted(range(count), key=lambda n: int(f"{n:0{bits}b}"[::-1], 2))
    return KeyList(keys[number * len(keys) // count] for number in order)


def entries_nbytes(plan: Plan, sample: KeyList) -> int:
    """Return what links, groups and index take beside the samples' own structures."""
    names = sum(len(key.encode()) + len(key.rpartition("/")[2].encode()) for key in sample)
    each = ENTRY_NBYTES + names // max(len(sample), 1)
    return each * len(plan.keys) + FOLDER_NBYTES * plan.folders + FILE_NBYTES


def free_nbytes(output: Path) -> int | None:
    """Return the free bytes of the disk of ``output``; None where it does not tell."""
    return free_space(nearest_folder(output.parent))


def check_space(output: Path, nbytes: int, *, cure: str) -> None:
    """Raise ConverterError where a file of this size does not fit on the disk."""
    free = free_nbytes(output)
    if free is not None and nbytes > free:
        raise ConverterError(
            f"{output} would take about {nbytes / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are "
            f"free: {cure}, or name another disk with --path_output"
        )


def check_size(request: Request, expected: Estimate, notice: Callable[[str], None]) -> None:
    """Raise ConverterError where the disk is too small; say so where OUT.h5 will be large."""
    if expected.output_nbytes is None:
        return
    check_space(request.path_output, expected.output_nbytes, cure=_cure(request, expected))
    if expected.ratio > SIZE_WARNING_RATIO and request.store == "array" and not request.update:
        notice(
            f"{request.path_output} will take about {expected.output_nbytes / 1e6:,.1f} MB, "
            f"{expected.ratio:.1f} times the source, because it holds decoded arrays: to make it "
            f"smaller, {_cure(request, expected)}"
        )


def _cure(request: Request, expected: Estimate) -> str:
    """Say how OUT.h5 could become smaller."""
    if request.update:
        return "free space"
    cures = []
    if request.store == "array" and not (request.custom_read_func or request.reader):
        what = "the files as they are" if request.resize is None else "files in place of arrays"
        cures.append(f"--store=encoded, which stores {what}")
    if request.compression in (AUTO, NONE):
        cures.append(f"--compression={OF_AUTO.name}")
    if expected.has_large_images and _can_resize(request):
        cures.append(f"--resize={PROPOSED_SIZE}, which makes images smaller")
    if request.custom_read_func:
        cures.append("smaller arrays from my_read")
    return f"try {', or '.join(cures)} (--dry_run compares)" if cures else "convert fewer files"


def _can_resize(request: Request) -> bool:
    return not (request.resize or request.custom_read_func or request.skip_decode_check)
