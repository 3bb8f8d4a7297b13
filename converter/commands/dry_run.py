"""Compare all ways to store, on a sample of the files."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from converter.callbacks import Callbacks
from converter.codecs.compression import ALL, AUTO
from converter.commands.convert import encoding
from converter.commands.estimate import (
    PROPOSED_SIZE,
    SAMPLED_FILES,
    entries_nbytes,
    free_nbytes,
    spread,
)
from converter.commands.request import (
    Request,
    check_request,
    launching_for,
    load_functions,
    plan_of,
)
from converter.samples import KeyList, Plan, Run, Surveyed
from converter.sources.readers import Choice
from converter.sources.resizing import Resizing

SURVEYED_FILES = 16384
SECONDS_SURVEYING = 15.0


class Outcome(NamedTuple):
    """What one choice would come to.

    Of the files of the sample it would compress ``compressed``, and could not store ``refused``,
    which take no bytes.
    """

    choice: Choice
    output_nbytes: int
    compressed: int
    refused: int


@dataclass
class Advice:
    """What each choice would come to, judged from ``sampled`` files, ``failed`` of them unread.

    ``missing`` names choices that could not be tried, with the package to install. ``others``
    answer for the same without ``--resize``, or with it where it was not asked for; there are none
    where that would change no file.
    """

    plan: Plan
    sampled: int
    failed: int
    missing: dict[str, str]
    free_nbytes: int | None
    source_nbytes: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    others: list[Outcome] = field(default_factory=list)

    @property
    def read(self) -> int:
        """Return how many files of the sample the request's own choice would store."""
        return self.sampled - self.failed

    @property
    def smallest(self) -> Outcome:
        """Return the choice of the smallest file, of those that hold as much as the request's."""
        whole = (outcome for outcome in self.outcomes if not outcome.refused)
        return min(whole, key=lambda outcome: outcome.output_nbytes)

    @property
    def smallest_for_h5py(self) -> Outcome | None:
        """Return the choice of the smallest file whose arrays h5py reads by itself, if any."""
        whole = (outcome for outcome in self.outcomes if not outcome.refused)
        arrays = (outcome for outcome in whole if outcome.choice.store == "array")
        plain = (outcome for outcome in arrays if not outcome.choice.compression.needs_plugin)
        return min(plain, key=lambda outcome: outcome.output_nbytes, default=None)


def choices_of(request: Request) -> tuple[tuple[Choice, ...], dict[str, str]]:
    """Return what to compare, with the request's own choice, and what cannot be tried."""
    missing = {c.name: package for c in ALL if (package := c.missing_package)}
    resizing = request.resizing
    own = Choice(request.store, request.compression, resizing)
    plain = None if resizing is None else replace(resizing, quality=None)
    choices = [Choice("array", c, plain) for c in ALL if c.name not in missing]
    if request.skip_decode_check:  # of files that may decode to nothing
        choices, missing = [], {}
    if not request.custom_read_func and request.reader is None:
        choices.append(Choice("encoded", AUTO, resizing))
    if own not in choices:
        choices.append(own)
    return tuple(choices), missing


def others_of(request: Request) -> tuple[Choice, ...]:
    """Return what else to compare: images resized if the request does not, else as they are."""
    if request.custom_read_func or request.skip_decode_check:
        return ()
    resizing = Resizing(PROPOSED_SIZE) if request.resizing is None else None
    stores = ("array", "encoded") if request.reader is None else ("array",)
    return tuple(Choice(store, AUTO, resizing) for store in stores)


def advise(
    request: Request,
    caller: Callbacks,
    *,
    most_files: int = SURVEYED_FILES,
    most_seconds: float = SECONDS_SURVEYING,
) -> Advice:
    """Try each store and compression on a sample of the files, in memory. Writes nothing."""
    check_request(replace(request, overwrite=True))  # an OUT.h5 that is there stays
    choices, missing = choices_of(request)
    others = others_of(request)
    own = choices.index(Choice(request.store, request.compression, request.resizing))
    with ExitStack() as stack:
        launcher = stack.enter_context(launching_for(request, caller))
        found = load_functions(request, caller)
        run = stack.enter_context(encoding(request, found, launcher, choices=(*choices, *others)))
        plan = plan_of(request, found)
        sample = spread(plan.keys, most_files)
        tried, surveyed = _survey(run, sample, own, most_seconds)
    advice = Advice(plan, tried, tried - len(surveyed), missing, free_nbytes(request.path_output))
    for key in plan.keys:
        with suppress(OSError):  # it will be a failure
            advice.source_nbytes += os.stat(plan.path(key)).st_size
    if surveyed:
        entries = len(surveyed) / tried * entries_nbytes(plan, sample)
        outcomes = [
            _outcome(advice, surveyed, choice, number, entries)
            for number, choice in enumerate((*choices, *others))
        ]
        advice.outcomes = outcomes[: len(choices)]
        if request.resizing is not None or _are_changed(surveyed, choices, others):
            advice.others = outcomes[len(choices) :]
    return advice


def _survey(run: Run, sample: KeyList, own: int, most_seconds: float) -> tuple[int, list[Surveyed]]:
    """Read files until it takes too long; return how many were tried, and what came of them.

    ``own`` is the number of the request's choice, to which a file that has no bytes is a failure.
    """
    surveyed: list[Surveyed] = []
    tried, start = 0, time.monotonic()
    for batch in run(sample):
        tried += len(batch.results)
        for result in batch.results:
            if isinstance(result, Surveyed) and result.stored_nbytes[own]:
                surveyed.append(result)
        if tried >= SAMPLED_FILES and time.monotonic() - start > most_seconds:
            break
    return tried, surveyed


def _outcome(
    advice: Advice, surveyed: list[Surveyed], choice: Choice, number: int, entries: float
) -> Outcome:
    """Return what the choice of this number would come to."""
    sizes = np.array([one.stored_nbytes[number] for one in surveyed], float)
    nbytes, files = float(sizes.sum()), len(advice.plan.keys)
    if advice.sampled < files:
        share = len(surveyed) / advice.sampled
        sources = np.array([one.source_nbytes for one in surveyed], float)
        nbytes = _project(sizes, sources, share * files, share * advice.source_nbytes)
    compressed = sum(one.compressed[number] for one in surveyed)
    refused = len(surveyed) - int(np.count_nonzero(sizes))
    return Outcome(choice, int(nbytes + entries), compressed, refused)


def _are_changed(
    surveyed: list[Surveyed], choices: tuple[Choice, ...], others: tuple[Choice, ...]
) -> bool:
    """Tell whether any file has another size where its images are resized."""
    for number, other in enumerate(others, len(choices)):
        plain = choices.index(other._replace(resizing=None))
        if any(one.stored_nbytes[number] != one.stored_nbytes[plain] for one in surveyed):
            return True
    return False


def _project(sizes: np.ndarray, sources: np.ndarray, files: float, source_nbytes: float) -> float:
    """Project the sizes of a sample onto all files: by number, or by bytes of source.

    The one that explains the sample better, which leaves less variance.
    """
    ratio = sizes.sum() / max(sources.sum(), 1.0)
    if np.var(sizes - ratio * sources) < np.var(sizes):
        return float(ratio * source_nbytes)
    return float(sizes.mean() * files)
