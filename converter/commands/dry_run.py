"""Compare all ways to store, on a sample of the files."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from converter.callbacks import Callbacks
from converter.codecs.compression import ALL, AUTO
from converter.commands.convert import encoding, launching_for
from converter.commands.estimate import SAMPLED_FILES, entries_nbytes, free_nbytes, spread
from converter.commands.request import (
    Request,
    check_request,
    load_functions,
    plan_of,
)
from converter.samples import Plan, Run, Surveyed
from converter.sources.encoder import Choice

SURVEYED_FILES = 16384
SECONDS_SURVEYING = 15.0


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
    free_nbytes: int | None

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
            if outcome.choice.store == "array" and not outcome.choice.compression.needs_plugin
        ]
        return min(plain, key=lambda outcome: outcome.output_nbytes, default=None)


def choices_of(request: Request) -> tuple[tuple[Choice, ...], dict[str, str]]:
    """Return what to compare, the request's own choice among it, and what cannot be tried."""
    missing = {c.name: package for c in ALL if (package := c.missing_package)}
    own = Choice(request.store, request.compression)
    choices = [Choice("array", c) for c in ALL if c.name not in missing]
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
    sample = spread(plan.keys, SURVEYED_FILES)
    surveyed: list[Surveyed] = []
    tried, start = 0, time.monotonic()
    for batch in run(sample):
        tried += len(batch.results)
        surveyed += [result for result in batch.results if isinstance(result, Surveyed)]
        if tried >= SAMPLED_FILES and time.monotonic() - start > SECONDS_SURVEYING:
            break
    source_nbytes = _source_nbytes(plan)
    entries = entries_nbytes(plan, sample)
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
        free_nbytes=free_nbytes(request.path_output),
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


def _source_nbytes(plan: Plan) -> int:
    total = 0
    for key in plan.keys:
        with suppress(OSError):  # it will be a failure
            total += os.stat(plan.path(key)).st_size
    return total


def advise(request: Request, caller: Callbacks) -> tuple[Advice, Plan]:
    """Try each store and compression on a sample of the files, in memory. Writes nothing."""
    check_request(request)
    with launching_for(request, caller) as launcher:
        found = load_functions(request, caller)
        with encoding(request, found, launcher, choices=choices_of(request)[0]) as run:
            plan = plan_of(request, found)
            return survey(request, plan, run), plan
