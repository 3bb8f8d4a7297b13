"""Encode samples in a worker of an executor, which may be another machine's."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from converter import __version__
from converter.errors import ConverterError
from converter.samples import Buffer, Result
from converter.sources.encoder import Encoder, Settings
from converter.workers.tasks import work_on

ENCODERS_KEPT = 4
_of_thread = threading.local()  # some workers have several threads


class Returned(NamedTuple):
    """What comes back of a task; ``problem`` where a worker cannot do any."""

    results: list[Result]
    payload: np.ndarray
    seconds: float
    problem: str | None = None


def encode_there(version: str, settings: Settings, allowance: int, keys: Sequence[str]) -> Returned:
    """Encode samples until they take ``allowance`` bytes: in the executor's worker."""
    start = time.perf_counter()
    try:
        problem = _problem(version, settings)
        encoder = None if problem else _encoder(settings)
    except ConverterError as error:
        problem, encoder = str(error), None
    if encoder is None:
        return Returned([], np.empty(0, np.uint8), 0.0, problem)
    buffer = Buffer(2 * allowance)
    results = work_on(encoder, keys, buffer, most_nbytes=allowance)
    payload = np.frombuffer(buffer.payload(), np.uint8)
    return Returned(results, payload, time.perf_counter() - start)


def _problem(version: str, settings: Settings) -> str | None:
    if version != __version__:
        return (
            f"a worker has version {__version__} of the converter, and this is {version}: install "
            "the same on all"
        )
    if not os.path.isdir(settings.root):
        return (
            f"a worker on {os.uname().nodename if hasattr(os, 'uname') else 'another machine'} "
            f"sees no folder {settings.root}: all workers must see it under that path"
        )
    return None


def _encoder(settings: Settings) -> Encoder:
    """Return this thread's encoder: making one reads my_functions.py anew."""
    made: dict[Settings, Encoder] = _of_thread.__dict__.setdefault("made", {})
    if settings not in made:
        if len(made) >= ENCODERS_KEPT:
            made.clear()
        made[settings] = settings.start()
    return made[settings]
