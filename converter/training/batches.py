"""Fill a batch, in parts that different threads may take; all rows at once where that is faster."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from converter.cropping.draws import Draws, flips
from converter.cropping.geometry import CropError
from converter.cropping.resizing import mirror_one, mirror_rows, windows
from converter.loader.selection import stacked
from converter.training.buffers import Arrays, Buffers, MismatchError
from converter.training.plans import IMAGE, MOST_GATHERED_NBYTES, Plan, Recipe, Request
from converter.training.rows import Filler, RowError, mismatch

PARTS_A_THREAD = 4
ROWS_PROBED = 4
LEAST_ROWS = 4  # in a part: to hand one to a thread takes a tenth of the time of a crop


class Filling:
    """A batch in the making, in parts that different threads may fill."""

    def __init__(
        self,
        request: Request,
        recipe: Recipe,
        *,
        buffers: Callable[[str], Buffers],
        filler: Filler,
        labels: Callable[[], Any] | None = None,
        until_read: Callable[[], None] = lambda: None,
        gather: Callable[[], np.ndarray] | None = None,
        threads: int = 0,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.request = request
        self.labels: Any = None
        self._recipe = recipe
        self._errors: dict[int, BaseException] = {}  # by row
        self._is_over = is_over
        self._filler = filler
        self._arrays = Arrays(len(request.positions), buffers)
        self._take_labels = labels
        self._until_read = until_read
        self._gather_image = gather
        self._lock = threading.Lock()
        self._plan: Plan | None = None
        self._threads = threads

    def parts(self) -> list[Callable[[], None]]:
        """Return what is to be done, each by any thread; no part raises anything."""
        parts = (self._gathered() if self._recipe.is_gathered else None) or self._in_rows()
        if self._take_labels is not None:
            parts.append(self._fill_labels)
        if self._threads < 2:  # each part of its own costs some microseconds
            return [functools.partial(self._do, *parts)]
        return [functools.partial(self._do, part) for part in parts]

    def result(self) -> tuple[dict[str, np.ndarray | list[np.ndarray]], Any]:
        """Return the arrays and the labels; raise what went wrong at the first row it did."""
        if self._errors:
            first = self._errors[min(self._errors)]
            # its traceback holds this frame: what it held in turn would live on until garbage is
            # collected, and with it the threads that read
            self._errors = {}
            try:
                raise first
            finally:
                del first
        return self._arrays.finished(), self.labels

    def _gathered(self) -> list[Callable[[], None]] | None:
        """Return a part for each name, where all arrays of it seem to lie in their file alike."""
        columns = self.request.partners
        parts: list[Callable[[], None]] = []
        if self._gather_image is not None:
            parts.append(functools.partial(self._gather, IMAGE, self._gather_image))
        else:
            columns = {IMAGE: (np.zeros(1, np.int64), self.request.positions), **columns}
        for name, (folders, positions) in columns.items():
            if (folders != folders[0]).any():
                return None
            source = self._recipe.folders[int(folders[0])]._open().source
            numbers = source.placed(positions[:: len(positions) // ROWS_PROBED or 1]).numbers
            layout = source.layout(int(numbers[0]))
            if layout is None or not self._recipe.gathers(layout) or len(np.unique(numbers)) > 1:
                return None
            read = functools.partial(source.read_batch, positions)
            parts.append(functools.partial(self._gather, name, read))
        return parts

    def _in_rows(self) -> list[Callable[[], None]]:
        count, threads = len(self.request.positions), self._threads
        parts = 1 if threads < 2 else threads * PARTS_A_THREAD
        rows = max(min(LEAST_ROWS, math.ceil(count / max(threads, 1))), math.ceil(count / parts))
        return [
            functools.partial(self._fill, first, min(count, first + rows))
            for first in range(0, count, rows)
        ]

    def _gather(self, name: str, read: Callable[[], np.ndarray | list[np.ndarray]]) -> None:
        """Take all rows of a name at once."""
        with contextlib.suppress(OSError, CropError):
            rows = self._as_rows(read())
            if rows is not None:
                self._arrays.put(name, rows)
                return
        self._fill(0, len(self.request.positions))  # one by one: that says what is wrong with which

    def _as_rows(self, rows: np.ndarray | list[np.ndarray]) -> np.ndarray | list[np.ndarray] | None:
        """Return samples as rows of the batch; None where these must be made one by one."""
        recipe, request = self._recipe, self.request
        if recipe.crop is not None or recipe.channels is not None:
            rows = stacked(rows) if isinstance(rows, list) else rows
            if isinstance(rows, list):
                return None
        if recipe.crop is None and not recipe.has_flips:
            return rows
        draws = Draws(recipe.seed, request.epoch, request.positions)
        if recipe.crop is not None:
            assert isinstance(rows, np.ndarray)
            heights, widths = (np.full(len(rows), side) for side in rows.shape[1:3])
            geometry = recipe.crop.geometry(heights, widths, draws)
            shown = windows(rows, geometry, recipe.crop.size, recipe.crop.fill)
            if shown is None:
                return None
            rows = shown
        self._mirror(rows, *flips(draws, recipe.hflip, recipe.vflip))
        return rows

    def _mirror(
        self, rows: np.ndarray | list[np.ndarray], hflips: np.ndarray, vflips: np.ndarray
    ) -> None:
        """Mirror the rows that were drawn, where they are."""
        if isinstance(rows, np.ndarray) and rows.ndim > 2 and rows[0].nbytes < MOST_GATHERED_NBYTES:
            mirror_rows(rows, hflips, vflips)
            return
        for n in np.flatnonzero(hflips | vflips).tolist():
            if rows[n].ndim < 2:
                self._fill(n, n + 1)  # which raises that it cannot be
            mirror_one(rows[n], hflips[n], vflips[n])

    def _fill(self, first: int, stop: int) -> None:
        self._filler.fill(self._known_plan(), first, stop, self._arrays, self._is_over)

    def _known_plan(self) -> Plan:
        """Return the plan, which the first part makes."""
        with self._lock:
            if self._plan is None:
                self._plan = Plan(self._recipe, self.request)
            return self._plan

    def _fill_labels(self) -> None:
        assert self._take_labels is not None
        self.labels = self._take_labels()

    def _do(self, *parts: Callable[[], None]) -> None:
        """Do some parts; keep what goes wrong for `result`."""
        try:
            self._until_read()
            for part in parts:
                if not self._is_over():
                    part()
        except RowError as error:
            self._errors[error.row] = error.error
        except BaseException as error:  # it is raised where the batch is asked for
            self._errors[-1] = error


def joined(pieces: list[Any], recipe: Recipe, request: Request) -> Any:
    """Return one array of arrays that follow each other; a list where they may be unequal.

    Raises LoadError where they must be equal.
    """
    rows = [row for piece in pieces for row in piece]
    batch = stacked(rows)
    if isinstance(batch, np.ndarray) or (recipe.crop is None and recipe.transform is None):
        return batch
    kinds = [(row.shape, row.dtype) for row in rows]
    n = next(n for n, kind in enumerate(kinds) if kind != kinds[0])
    raise mismatch(recipe, request, n, MismatchError(0, rows[0], rows[n]))
