"""Decide which samples come when, on which rank: a pure function of seed, epoch and ranks.

The order of an epoch is one row of indices, the same on all ranks. Its next ``world_size *
batch_size`` indices are a step: rank r takes the r-th part of it, so that the batches of all ranks
side by side are those of one rank with a batch as large as theirs together.
"""

from __future__ import annotations

import functools
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

KINDS = ("random", "blocks", "stored")
STATE_VERSION = 1
#: How many runs of the file are open at a time in the order "blocks".
WINDOW_RUNS = 32

OrderFunction = Callable[[int], Any]


class Place(NamedTuple):
    """An epoch, and how many of its samples all ranks together have had."""

    epoch: int
    sample: int


class Runs(NamedTuple):
    """Which indices lie side by side in the file.

    Run n has ``indices[firsts[n]:firsts[n + 1]]``, the last one those to the end.
    """

    firsts: np.ndarray
    indices: np.ndarray

    def members(self, run: int) -> np.ndarray:
        """Return the indices of a run, as they lie in the file."""
        end = self.firsts[run + 1] if run + 1 < len(self.firsts) else None
        return self.indices[self.firsts[run] : end]


class Opening(NamedTuple):
    """A run of the file to read whole, for the order "blocks".

    Its reading should begin when the epoch is at the sample ``due``, and end before the sample
    ``needed``: from there on its samples come.
    """

    due: int
    needed: int
    run: int


class Order:
    """The order of the samples, in any epoch.

    Parameters
    ----------
    count
        How many samples are selected.
    batch_size
        Samples in a batch of one rank.
    kind
        "random", "blocks" (runs of the file in random order, a window of them at a time, samples
        random within the window), "stored" (as they are selected), or a function of the epoch
        that returns indices, with repeats or without, the same on all ranks.
        None: "random", and "stored" with ``evaluate``.
    seed
        A number from 0 on.
    drop_last
        Leave out the samples at the end of an epoch that fill no batch on all ranks. False:
        divide them among the ranks; so that each has equally many, at most ``world_size - 1``
        from the beginning of the epoch's order come again. None: True in training.
    evaluate
        Every sample once over all ranks, in stored order, and equally many batches on each rank.
    rank, world_size
        This process among those that train together.
    runs
        For "blocks": the runs of the file.
    window
        For "blocks": how many runs are open at a time.

    Raises
    ------
    ValueError
        The arguments contradict each other, or an epoch has too few samples for them.
    """

    def __init__(
        self,
        count: int,
        *,
        batch_size: int,
        kind: str | OrderFunction | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
        evaluate: bool = False,
        rank: int = 0,
        world_size: int = 1,
        runs: Runs | None = None,
        window: int = WINDOW_RUNS,
    ) -> None:
        if evaluate and kind not in (None, "stored"):
            raise ValueError("evaluate=True reads in stored order: leave order out")
        if evaluate and drop_last:
            raise ValueError("evaluate=True drops no samples: leave drop_last out")
        kind = kind or ("stored" if evaluate else "random")
        if not callable(kind) and kind not in KINDS:
            known = ", ".join(map(repr, KINDS))
            raise ValueError(f"order is {kind!r}: give {known}, or a function of the epoch")
        self.count = at_least("the number of samples", count, 1)
        self.kind = kind
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.seed = at_least("seed", seed, 0)
        self.drop_last = not evaluate if drop_last is None else bool(drop_last)
        self.evaluate = evaluate
        self.rank, self.world_size = check_ranks(rank, world_size)
        self._runs = runs
        self._window = at_least("window", window, 1)
        self._drawn: tuple[int, np.ndarray] | None = None
        if not callable(kind):
            self._check_enough(self.count)

    def size(self, epoch: int) -> int:
        """Return how many samples an epoch has, over all ranks and with those dropped."""
        return len(self._indices(epoch)) if callable(self.kind) else self.count

    def length(self, epoch: int, start: int = 0) -> int:
        """Return how many batches each rank has from the sample ``start`` of an epoch on."""
        size = self.size(epoch)
        self._check_enough(size)
        whole, last = self._divide(size - start)
        return whole + len(last)

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """Yield the indices of this rank's batches, int64, from the sample ``start`` on."""
        self._check_enough(self.size(epoch))
        for part in self._parts(self.size(epoch), start):
            yield self._take(epoch, *part)

    def samples_after(self, epoch: int, batches: int, start: int = 0) -> int:
        """Return how many samples of an epoch all ranks have had after so many batches."""
        left = self.size(epoch) - start
        whole, last = self._divide(left)
        taken = min(batches, whole) * self._step_size + sum(last[: max(0, batches - whole)])
        return start + min(left, taken)

    def place_after(self, place: Place, batches: int) -> Place:
        """Return where training goes on after so many batches: in the next epoch after the last."""
        if batches >= self.length(*place):
            return Place(place.epoch + 1, 0)
        return Place(place.epoch, self.samples_after(place.epoch, batches, place.sample))

    def openings(self, epoch: int, start: int = 0) -> Iterator[Opening]:
        """Yield the runs to read in the order "blocks" from the sample ``start`` on; else none.

        Those of a window are due one by one while the samples of the window before it come; those
        of the first, at once.
        """
        if self._runs is None or self.kind != "blocks":
            return
        begin, due = 0, start
        for window in self._draw_windows(self._random(epoch), self._runs):
            end = begin + sum(len(self._runs.members(run)) for run in window)
            if end > start:
                needed = max(begin, start)
                for number, run in enumerate(window):
                    yield Opening(due + (needed - due) * number // len(window), needed, run)
                due = needed
            begin = end

    @property
    def _step_size(self) -> int:
        return self.world_size * self.batch_size

    def _divide(self, left: int) -> tuple[int, list[int]]:
        """Return how many whole steps samples give, and the sizes of shorter ones behind them."""
        whole, rest = divmod(left, self._step_size)
        if self.drop_last or not rest:
            return whole, []
        if not self.evaluate:
            return whole, [rest + -rest % self.world_size]
        if rest >= self.world_size:
            return whole, [rest]
        if not whole or self.batch_size == 1:
            raise ValueError(
                f"{left} samples cannot be evaluated on {self.world_size} ranks in batches of "
                f"{self.batch_size}, because some ranks would have a batch more than others: take "
                "a larger batch_size or fewer ranks"
            )
        # too few for one sample on each rank: the step before gives some of its own
        return whole - 1, [self._step_size + rest - self.world_size, self.world_size]

    def _parts(self, size: int, start: int) -> Iterator[tuple[int, int]]:
        """Yield where each batch of this rank begins and ends in an epoch's order.

        An end behind the order goes on at its beginning.
        """
        whole, last = self._divide(size - start)
        begin = start
        for number in range(whole + len(last)):
            step = self._step_size if number < whole else last[number - whole]
            share, more = divmod(step, self.world_size)
            first = begin + self.rank * share + min(self.rank, more)
            yield first, first + share + (self.rank < more)
            begin += step

    def _take(self, epoch: int, begin: int, end: int) -> np.ndarray:
        """Return the indices of a part of an epoch's order."""
        if self.kind == "stored":
            return np.arange(begin, end, dtype=np.int64) % self.count
        indices = self._indices(epoch)
        if end <= len(indices):
            return indices[begin:end].copy()
        return indices[np.arange(begin, end) % len(indices)]

    def _indices(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch; that of the last one asked for is kept."""
        drawn = self._drawn
        if drawn is None or drawn[0] != epoch:
            self._drawn = drawn = epoch, self._draw(epoch)
        return drawn[1]

    def _draw(self, epoch: int) -> np.ndarray:
        if callable(self.kind):
            return _checked_indices(self.kind(epoch), epoch, self.count)
        random = self._random(epoch)
        if self._runs is None or self.kind == "random":
            return random.permutation(self.count)
        members = self._runs.members
        windows = self._draw_windows(random, self._runs)
        return np.concatenate(
            [random.permutation(np.concatenate([*map(members, window)])) for window in windows]
        )

    def _draw_windows(self, random: np.random.Generator, runs: Runs) -> list[list[int]]:
        """Return which runs are open together, one window after the other."""
        shuffled = random.permutation(len(runs.firsts))
        count = -(-len(shuffled) // self._window)
        return [window.tolist() for window in np.array_split(shuffled, count)]

    def _random(self, epoch: int) -> np.random.Generator:
        # a named generator: the default one of numpy may become another
        return np.random.Generator(np.random.PCG64([self.seed, epoch]))

    def runs_checksum(self) -> int:
        """Return a CRC-32 that tells the order of other runs from this one; 0 without runs."""
        return 0 if self._runs is None else crc32(self._runs.firsts.astype("<i8").tobytes())

    def _check_enough(self, size: int) -> None:
        if size < self.world_size:
            raise ValueError(
                f"{size} samples are fewer than the {self.world_size} ranks: take fewer ranks"
            )
        if self.drop_last and size < self._step_size:
            what = f"a batch of {self.batch_size} takes"
            if self.world_size > 1:
                what = f"batches of {self.batch_size} on {self.world_size} ranks take"
            raise ValueError(
                f"{what} {self._step_size} samples, but there are {size}: take a smaller "
                "batch_size, or drop_last=False"
            )


def check_ranks(rank: int, world_size: int) -> tuple[int, int]:
    """Return rank and world size as int; raise ValueError for what cannot be."""
    world_size = at_least("world_size", world_size, 1)
    rank = at_least("rank", rank, 0)
    if rank >= world_size:
        raise ValueError(f"rank is {rank} of {world_size}: give 0 to {world_size - 1}")
    return rank, world_size


def find_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and world size: those given, else those of torch.distributed, else 0 of 1.

    Raises ValueError where one of them is given, and where this process is one of several but has
    not joined them yet.
    """
    if rank is not None and world_size is not None:
        return check_ranks(rank, world_size)
    if rank is not None or world_size is not None:
        raise ValueError("rank and world_size go together: give both or neither")
    distributed: Any = sys.modules.get("torch.distributed")  # not imported: then not initialised
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return check_ranks(distributed.get_rank(), distributed.get_world_size())
    text = os.environ.get("WORLD_SIZE", "1")
    if text.isdigit() and int(text) > 1:
        raise ValueError(
            f"WORLD_SIZE is {text}, but torch.distributed is not initialised: call "
            "init_process_group first, or give rank and world_size"
        )
    return 0, 1


class Epochs:
    """The epochs of an order, one after the other, for whoever iterates over them.

    Parameters
    ----------
    count, options
        Of `Order`, but for the ranks: these are looked up when the order is first needed.
    identity
        Returns a text that tells the file and the selection from others.
    rank, world_size
        As `find_ranks` takes them.

    Raises
    ------
    ValueError
        The arguments contradict each other, or a state or an epoch does not fit them.
    """

    def __init__(
        self,
        count: int,
        *,
        identity: Callable[[], str],
        rank: int | None,
        world_size: int | None,
        **options: Any,
    ) -> None:
        self._make_order = functools.partial(Order, count, **options)
        self._make_order()  # to check what does not depend on the ranks
        if rank is not None or world_size is not None:
            find_ranks(rank, world_size)
        self._ranks = rank, world_size
        self._make_identity = identity
        self.next = Place(0, 0)  # where the next epoch begins
        self._done: tuple[Place, int] = self.next, 0

    @property
    def place(self) -> Place:
        """Where training is. It is worked out when it is asked for, not for each batch."""
        place, batches = self._done
        if batches:
            place = self.order.place_after(place, batches)
            self.handed_out(place, 0)
        return place

    def handed_out(self, start: Place, batches: int) -> None:
        """Note that training is so many batches behind ``start``, a place of one epoch."""
        self._done = start, batches

    @functools.cached_property
    def order(self) -> Order:
        """The order on this rank."""
        rank, world_size = find_ranks(*self._ranks)
        return self._make_order(rank=rank, world_size=world_size)

    def begin(self) -> Place:
        """Return where the next epoch begins, and count on to the one behind it."""
        start = self.next
        if start.sample and not self.order.length(*start):
            start = Place(start.epoch + 1, 0)  # less is left than these ranks need
        self.next = Place(start.epoch + 1, 0)
        self.handed_out(start, 0)
        return start

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is next; the one that a state left goes on where it was."""
        if at_least("epoch", epoch, 0) != self.next.epoch:
            self.next = Place(epoch, 0)
            self.handed_out(self.next, 0)

    def state(self, place: Place) -> dict[str, int | str]:
        """Return plain numbers and texts that say where training is, the same on all ranks."""
        return make_state(self.order, place, self._identity)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, perhaps on another number of ranks."""
        self.next = place_of(state, self.order, self._identity)
        self.handed_out(self.next, 0)

    @functools.cached_property
    def _identity(self) -> str:
        return self._make_identity()


class HasEpochs:
    """What loops and Lightning ask of whatever iterates over `Epochs`."""

    _epochs: Epochs

    @property
    def sampler(self) -> HasEpochs:
        """What has `set_epoch`: Lightning asks a loader, and a batch_sampler, for its sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next ``iter()`` is.

        After `load_state_dict` the epoch of the state goes on where the state was.
        """
        self._epochs.set_epoch(epoch)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, perhaps on another number of ranks.

        Raises ValueError for the state of another file, selection, order or seed.
        """
        self._epochs.load_state(state)


def make_state(order: Order, place: Place, identity: str) -> dict[str, int | str]:
    """Return plain numbers and texts that say where training is, the same on all ranks.

    ``identity`` tells the file and the selection from others.
    """
    kind = order.kind if isinstance(order.kind, str) else "function"
    return {
        "version": STATE_VERSION,
        "epoch": place.epoch,
        "sample": place.sample,
        "samples": order.count,
        "seed": order.seed,
        "order": kind,
        "runs": order.runs_checksum(),
        "file": identity,
    }


def place_of(state: Mapping[str, Any], order: Order, identity: str) -> Place:
    """Return the place that a state says; batch size and number of ranks may be others.

    Raises ValueError for a state of another file, selection, order or seed.
    """
    expected = make_state(order, Place(0, 0), identity)
    is_state = isinstance(state, Mapping) and state.keys() == expected.keys()
    if not is_state or state["version"] != STATE_VERSION:
        raise ValueError("this is no state of such a loader: give what state_dict() returned")
    for name, what in (
        ("samples", "with {} selected samples"),
        ("seed", "with seed={}"),
        ("order", "with order={!r}"),
    ):
        if state[name] != expected[name]:
            theirs, ours = what.format(state[name]), what.format(expected[name])
            raise ValueError(
                f"this state is {theirs}, and this loader {ours}: give it the state of a loader "
                "with the same arguments"
            )
    if state["runs"] != expected["runs"]:
        raise ValueError(
            "this state is of blocks of another size: give the block_nbytes of the loader it is of"
        )
    if state["file"] != identity:
        raise ValueError(
            "this state is of another file or selection: give it the state of a loader with the "
            "same file and keys"
        )
    place = Place(at_least("epoch", state["epoch"], 0), at_least("sample", state["sample"], 0))
    if place.sample > order.size(place.epoch):
        raise ValueError(
            f"sample is {place.sample} in this state, but epoch {place.epoch} has "
            f"{order.size(place.epoch)}: give what state_dict() returned"
        )
    return place


def _checked_indices(returned: Any, epoch: int, count: int) -> np.ndarray:
    """Return what a function of the epoch returned as int64."""
    indices = np.asarray(returned)
    if indices.size == 0:
        raise ValueError(f"order({epoch}) returned no samples: return at least one")
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise ValueError(
            f"order({epoch}) returned {indices.ndim} dimensions of {indices.dtype}: return whole "
            "numbers in one row"
        )
    wrong = indices[(indices < 0) | (indices >= count)]
    if len(wrong):
        raise ValueError(
            f"order({epoch}) returned {wrong[0]}, but {count} samples are selected: return 0 to "
            f"{count - 1}"
        )
    return indices.astype(np.int64)


def at_least(name: str, value: Any, least: int) -> int:
    """Return a whole number as int; raise ValueError for what is none, or less."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}: give a whole number") from None
    if number < least:
        raise ValueError(f"{name} is {number}: give {least} or more")
    return number
