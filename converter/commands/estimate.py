"""Judge from a sample of the files what a conversion of all would come to."""

from __future__ import annotations

import math
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from converter.codecs.compression import (
    AUTO,
    DEFAULT_LEVELS,
    NONE,
    PLUGIN_FILTERS,
    Compression,
    missing_package,
)
from converter.commands.request import Request, nearest_folder
from converter.format.groups import MOST_LINKS_IN_HEADER, SMALLEST_HEAP_NBYTES
from converter.format.headers import structure_nbytes
from converter.samples import Encoded, KeyList, Plan, Run, Surveyed
from converter.sources.encoder import Choice
from converter.writer.reuse import Reuse

SAMPLED_FILES = 64
SHARE_SAMPLED = 20  # 1 in so many at most: the real conversion reads these files again
FEWEST_SAMPLED = 4
SURVEYED_FILES = 16384
SECONDS_SURVEYING = 15.0
#: A sample's row, slot and bucket, and its link where a folder has few or many, without names.
ENTRY_NBYTES = 32 + 16 + 4 + 6
LINK_NBYTES, LINK_AMONG_MANY_NBYTES = 20, 50
STRUCTURE_NBYTES = 100  # of HDF5's, a sample
FOLDER_NBYTES = 110
FILE_NBYTES = SMALLEST_HEAP_NBYTES + 700  # without any sample


@dataclass(frozen=True)
class Estimate:
    """What a conversion would come to; None where no file of the sample could be read.

    ``ratio`` is output to source, of the sample.
    """

    ratio: float | None
    output_nbytes: int | None
    free_nbytes: int


class Outcome(NamedTuple):
    """What one choice would come to: how many of the sample would be compressed."""

    choice: Choice
    output_nbytes: int
    compressed: int


@dataclass(frozen=True)
class Advice:
    """What each choice would come to, judged from ``sampled`` files, ``failed`` of them unread.

    ``missing`` names choices that could not be tried, with the package to install.
    """

    files: int
    source_nbytes: int
    sampled: int
    failed: int
    outcomes: tuple[Outcome, ...]
    missing: dict[str, str]
    free_nbytes: int

    @property
    def smallest(self) -> Outcome:
        """Return the choice of the smallest file."""
        return min(self.outcomes, key=lambda outcome: outcome.output_nbytes)

    @property
    def smallest_for_h5py(self) -> Outcome | None:
        """Return the choice of the smallest file whose arrays h5py reads by itself, if any."""
        plain = [
            outcome
            for outcome in self.outcomes
            if outcome.choice.store == "array"
            and outcome.choice.compression.name not in PLUGIN_FILTERS
        ]
        return min(plain, key=lambda outcome: outcome.output_nbytes, default=None)


def estimate(request: Request, plan: Plan, run: Run, work: Reuse, *, is_going_on: bool) -> Estimate:
    """Encode a few of the files that are to be read, spread evenly over the plan.

    None where a run goes on that was broken off: what it has done says as much.
    """
    entries = _entries_nbytes(plan, _spread(plan.keys, SAMPLED_FILES))
    known = work.nbytes + STRUCTURE_NBYTES * work.count
    absent = work.absent_keys()
    if is_going_on or not len(absent):
        nbytes = known * len(plan.keys) // max(work.count, 1) + entries
        return Estimate(ratio=0.0, output_nbytes=nbytes, free_nbytes=_free_nbytes(request))
    most = max(math.ceil(len(absent) / SHARE_SAMPLED), FEWEST_SAMPLED)
    sample = _spread(absent, min(SAMPLED_FILES, most))
    stored, sources, payloads = 0, 0, 0
    for batch in run(sample):
        for result in batch.results:
            if isinstance(result, Encoded):
                stored += 1
                sources += result.source_nbytes
                payloads += sum(part.nbytes for part in result.parts)
                payloads += structure_nbytes(result.layout)
    nbytes = known + payloads * len(absent) // len(sample) + entries
    return Estimate(
        ratio=payloads / sources if sources else None,
        output_nbytes=nbytes if stored else None,
        free_nbytes=_free_nbytes(request),
    )


def choices_of(request: Request) -> tuple[tuple[Choice, ...], dict[str, str]]:
    """Return what to compare, the request's own choice among it, and what cannot be tried."""
    compressions = [AUTO, NONE, *(Compression(*item) for item in DEFAULT_LEVELS.items())]
    missing = {c.name: package for c in compressions if (package := missing_package(c))}
    own = Choice(request.store, request.compression)
    choices = [Choice("array", c) for c in compressions if c.name not in missing]
    if request.skip_decode_check:  # of files that may decode to nothing
        choices, missing = [], {}
    if not request.custom_read_func and request.reader is None:
        choices.append(Choice("encoded", AUTO))
    if own not in choices:
        choices.append(own)
    return tuple(choices), missing


def survey(request: Request, plan: Plan, run: Run) -> Advice:
    """Try all of `choices_of` on a sample; ``run`` surveys them."""
    choices, missing = choices_of(request)
    sample = _spread(plan.keys, SURVEYED_FILES)
    surveyed: list[Surveyed] = []
    tried, start = 0, time.monotonic()
    for batch in run(sample):
        tried += len(batch.results)
        surveyed += [result for result in batch.results if isinstance(result, Surveyed)]
        if tried >= SAMPLED_FILES and time.monotonic() - start > SECONDS_SURVEYING:
            break
    source_nbytes = _source_nbytes(plan)
    entries = _entries_nbytes(plan, sample)
    outcomes = []
    for number, choice in enumerate(choices):
        if surveyed:
            sizes = np.array([one.stored_nbytes[number] for one in surveyed], float)
            share = len(surveyed) / tried
            sources = np.array([one.source_nbytes for one in surveyed], float)
            total = sizes.sum()
            if tried < len(plan.keys):
                total = _total(sizes, sources, share * len(plan.keys), share * source_nbytes)
            compressed = sum(one.compressed[number] for one in surveyed)
            outcomes.append(Outcome(choice, int(total + share * entries), compressed))
    return Advice(
        files=len(plan.keys),
        source_nbytes=source_nbytes,
        sampled=tried,
        failed=tried - len(surveyed),
        outcomes=tuple(outcomes),
        missing=missing,
        free_nbytes=_free_nbytes(request),
    )


def _total(sizes: np.ndarray, sources: np.ndarray, files: float, source_nbytes: float) -> float:
    """Project the sizes of a sample onto all files: by number, or by bytes of source.

    Whichever explains the sample better, as the variance that it leaves.
    """
    if sources.sum() == 0:
        return float(sizes.mean() * files)
    ratio = sizes.sum() / sources.sum()
    if np.var(sizes - ratio * sources) < np.var(sizes):
        return float(ratio * source_nbytes)
    return float(sizes.mean() * files)


def _spread(keys: KeyList, most: int) -> KeyList:
    """Return keys spread evenly over all; the first of them too, however many are taken."""
    count = min(most, len(keys))
    bits = max(1, (count - 1).bit_length())
    order = sorted(range(count), key=lambda n: int(f"{n:0{bits}b}"[::-1], 2))
    sample = KeyList()
    for number in order:
        sample.append(keys[number * len(keys) // count].encode())
    return sample


def _entries_nbytes(plan: Plan, sample: KeyList) -> int:
    """Return what links, groups and tail take beside the samples' own structures."""
    names = sum(len(key.encode()) + len(key.rpartition("/")[2].encode()) for key in sample)
    is_flat = len(plan.keys) > MOST_LINKS_IN_HEADER * max(plan.folders, 1)
    each = ENTRY_NBYTES + (LINK_AMONG_MANY_NBYTES if is_flat else LINK_NBYTES)
    each += names // max(len(sample), 1)
    return each * len(plan.keys) + FOLDER_NBYTES * plan.folders + FILE_NBYTES


def _source_nbytes(plan: Plan) -> int:
    total = 0
    for key in plan.keys:
        with suppress(OSError):  # it will be a failure
            total += os.stat(plan.path(key)).st_size
    return total


def _free_nbytes(request: Request) -> int:
    return shutil.disk_usage(nearest_folder(request.path_output.parent)).free
