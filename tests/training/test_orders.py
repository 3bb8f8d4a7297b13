"""Every sample once an epoch, on any number of ranks, from any place on."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from converter.training.orders import (
    Order,
    Place,
    Runs,
    find_ranks,
    make_state,
    place_of,
)
from helpers.run import ROOT

REPEATABLE = settings(derandomize=True, database=None, deadline=None, max_examples=60)
counts = st.integers(1, 200)
batch_sizes = st.integers(1, 20)
world_sizes = st.integers(1, 8)
kinds = st.sampled_from(["random", "blocks", "stored"])
epochs = st.integers(0, 3)


def runs_of(count: int, nearly: int = 7) -> Runs:
    """Return runs of indices that lie backwards in the file."""
    return Runs(np.arange(0, count, nearly), np.arange(count)[::-1])


def orders(count: int, world_size: int, **options) -> list[Order]:
    """Return the order of each rank."""
    options.setdefault("runs", runs_of(count))
    options.setdefault("window", 3)
    return [Order(count, rank=n, world_size=world_size, **options) for n in range(world_size)]


def batches_of_all(ranks: list[Order], epoch: int, start: int = 0) -> list[list[list[int]]]:
    """Return for each step the batches of all ranks; checks that all ranks have equally many."""
    each = [[batch.tolist() for batch in order.batches(epoch, start)] for order in ranks]
    assert {len(batches) for batches in each} == {ranks[0].length(epoch, start)}
    return [list(step) for step in zip(*each, strict=True)]


def flat(steps: list[list[list[int]]]) -> list[int]:
    return [index for step in steps for batch in step for index in batch]


@REPEATABLE
@given(counts, batch_sizes, kinds, epochs)
def test_each_sample_comes_once_an_epoch(count, batch_size, kind, epoch):
    ranks = orders(count, 1, batch_size=batch_size, kind=kind, drop_last=False)
    steps = batches_of_all(ranks, epoch)
    assert sorted(flat(steps)) == list(range(count))
    assert all(len(batch) == batch_size for [batch] in steps[:-1])


@REPEATABLE
@given(counts, batch_sizes, world_sizes, kinds, epochs)
def test_in_training_all_ranks_have_equally_many_whole_batches(
    count, batch_size, world_size, kind, epoch
):
    together = batch_size * world_size
    assume(count >= together)
    steps = batches_of_all(orders(count, world_size, batch_size=batch_size, kind=kind), epoch)
    assert len(steps) == count // together
    assert all(len(batch) == batch_size for step in steps for batch in step)
    found = flat(steps)
    assert len(set(found)) == len(found)


@REPEATABLE
@given(counts, batch_sizes, world_sizes, kinds)
def test_without_dropping_each_sample_comes_and_fewer_than_the_ranks_again(
    count, batch_size, world_size, kind
):
    assume(count >= world_size)
    ranks = orders(count, world_size, batch_size=batch_size, kind=kind, drop_last=False)
    steps = batches_of_all(ranks, 0)
    found = flat(steps)
    assert sorted(set(found)) == list(range(count))
    assert len(found) - count == -count % world_size if world_size > 1 else len(found) == count
    assert found[count:] == found[: len(found) - count]
    for step in steps:
        assert len({len(batch) for batch in step}) == 1
        assert 1 <= len(step[0]) <= batch_size


@REPEATABLE
@given(counts, batch_sizes, world_sizes)
def test_evaluation_sees_each_sample_once_in_stored_order_in_equally_many_batches(
    count, batch_size, world_size
):
    assume(count >= world_size)
    rest = count % (batch_size * world_size)
    is_impossible = 0 < rest < world_size and (batch_size == 1 or count < batch_size * world_size)
    assume(not is_impossible)
    steps = batches_of_all(orders(count, world_size, batch_size=batch_size, evaluate=True), 0)
    assert flat(steps) == list(range(count))
    for number, step in enumerate(steps):
        sizes = [len(batch) for batch in step]
        assert all(1 <= size <= batch_size for size in sizes)
        assert max(sizes) - min(sizes) <= 1
        assert number >= len(steps) - 2 or min(sizes) == batch_size


@REPEATABLE
@given(counts, batch_sizes, world_sizes, kinds, st.booleans())
def test_batches_of_ranks_side_by_side_are_those_of_one_rank(
    count, batch_size, world_size, kind, drop_last
):
    assume(count >= batch_size * world_size)
    options = {"kind": kind, "drop_last": drop_last, "seed": 5}
    steps = batches_of_all(orders(count, world_size, batch_size=batch_size, **options), 1)
    together = orders(count, 1, batch_size=batch_size * world_size, **options)
    alone = batches_of_all(together, 1)
    for step, [batch] in zip(steps, alone, strict=True):
        assert flat([step])[: len(batch)] == batch


@REPEATABLE
@given(
    counts, batch_sizes, world_sizes, batch_sizes, world_sizes, kinds, epochs, st.data(),
    st.sampled_from(["drop", "keep", "evaluate"]),
)  # fmt: skip
def test_the_state_at_any_point_gives_the_rest_on_any_number_of_ranks(
    count, batch_size, world_size, new_batch_size, new_world_size, kind, epoch, data, end
):
    options = {"drop": {}, "keep": {"drop_last": False}, "evaluate": {"evaluate": True}}[end]
    kind = None if end == "evaluate" else kind
    try:
        before = orders(count, world_size, batch_size=batch_size, kind=kind, **options)
        steps = batches_of_all(before, epoch)
        after = orders(count, new_world_size, batch_size=new_batch_size, kind=kind, **options)
        done = data.draw(st.integers(0, len(steps) - 1))
        place = before[0].place_after(Place(epoch, 0), done)
        rest = batches_of_all(after, *place)
    except ValueError:
        assume(False)
    states = [json.dumps(make_state(order, place, "x")) for order in before]
    assert len(set(states)) == 1 and len(states[0]) < 1000
    assert place_of(json.loads(states[0]), after[0], "x") == place
    left = [index for step in steps[done:] for batch in step for index in batch]
    if end == "drop":
        shorter = min(len(left), len(flat(rest)))
        assert flat(rest)[:shorter] == left[:shorter]
        assert len(flat(rest)) > count - place.sample - new_batch_size * new_world_size
    else:
        real = count - place.sample
        assert flat(rest)[:real] == left[:real]
    if (batch_size, world_size) == (new_batch_size, new_world_size):
        assert rest == steps[done:]


@REPEATABLE
@given(counts, batch_sizes, world_sizes, st.booleans())
def test_behind_the_last_batch_the_next_epoch_begins(count, batch_size, world_size, drop_last):
    assume(count >= batch_size * world_size)
    order = Order(count, batch_size=batch_size, world_size=world_size, drop_last=drop_last)
    assert order.place_after(Place(4, 0), order.length(4)) == Place(5, 0)
    assert order.place_after(Place(4, 0), 0) == Place(4, 0)


def test_epochs_and_seeds_differ_and_repeat():
    def first(seed: int, epoch: int, kind: str) -> list[int]:
        order = Order(100, batch_size=100, kind=kind, seed=seed, runs=runs_of(100))
        return next(order.batches(epoch)).tolist()

    for kind in ("random", "blocks"):
        found = [first(seed, epoch, kind) for seed in (0, 1, 2**70) for epoch in (0, 1, 2)]
        assert len(set(map(tuple, found))) == len(found)
        assert found == [first(seed, epoch, kind) for seed in (0, 1, 2**70) for epoch in (0, 1, 2)]


def test_the_order_of_a_seed_never_changes():
    """Of whatever version numpy is, or training would not resume where it was."""
    order = Order(10, batch_size=10, seed=3)
    assert next(order.batches(2)).tolist() == [7, 4, 1, 8, 6, 0, 2, 9, 3, 5]


def test_batches_belong_to_the_caller():
    order = Order(10, batch_size=10)
    first = next(order.batches(0))
    kept = first.copy()
    first[:] = 0
    assert next(order.batches(0)).tolist() == kept.tolist()


def test_samples_of_a_run_stay_within_a_window_of_runs():
    runs = Runs(np.arange(0, 1000, 10), np.arange(1000))
    order = Order(1000, batch_size=1000, kind="blocks", runs=runs, window=5)
    place = np.empty(1000, np.int64)
    place[next(order.batches(0))] = np.arange(1000)
    for first in range(0, 1000, 10):
        some = np.sort(place[first : first + 10])
        assert some[-1] - some[0] < 50
        assert (np.diff(some) > 1).any()


@REPEATABLE
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.integers(0, 59))
def test_runs_open_before_their_samples_come(count, nearly, window, start):
    assume(start < count)
    runs = runs_of(count, nearly)
    order = Order(count, batch_size=1, kind="blocks", runs=runs, window=window, drop_last=False)
    openings = list(order.openings(0, start))
    assert [one.due for one in openings] == sorted(one.due for one in openings)
    assert len({one.run for one in openings}) == len(openings)
    run_of = {index: one.run for one in openings for index in runs.members(one.run).tolist()}
    taken = [run_of[int(index)] for [index] in order.batches(0, start)]
    for one in openings:
        assert one.due <= one.needed
        if one.run in taken:  # else all its samples came before the start, in the same window
            assert one.needed <= start + taken.index(one.run)
        begun = {other.run for other in openings if other.due <= one.due}
        assert len(begun & set(taken[one.due - start :])) <= 2 * window


def test_other_orders_open_no_runs():
    assert not list(Order(10, batch_size=1, runs=runs_of(10)).openings(0))


def test_a_function_of_the_epoch_orders_with_repeats_and_other_lengths():
    def order_of(epoch: int) -> list[int]:
        return [4, 4, 0, epoch] * (epoch + 1)

    order = Order(5, batch_size=2, kind=order_of)
    assert [order.length(epoch) for epoch in range(3)] == [2, 4, 6]
    assert [batch.tolist() for batch in order.batches(1)] == [[4, 4], [0, 1]] * 2
    assert all(batch.dtype == np.int64 for batch in order.batches(1))
    state = make_state(order, order.place_after(Place(2, 0), 5), "x")
    assert [batch.tolist() for batch in order.batches(*place_of(state, order, "x"))] == [[0, 2]]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([0, 5], "order(3) returned 5, but 5 samples are selected: return 0 to 4"),
        ([-1], "order(3) returned -1, but 5 samples are selected: return 0 to 4"),
        ([0.5], "order(3) returned 1 dimensions of float64: return whole numbers in one row"),
        ([[1]], "order(3) returned 2 dimensions of int64: return whole numbers in one row"),
        ([], "order(3) returned no samples: return at least one"),
    ],
)
def test_what_a_function_returns_is_checked(returned, message):
    order = Order(5, batch_size=1, kind=lambda _: returned)
    with pytest.raises(ValueError) as caught:
        order.length(3)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (3, {"world_size": 4, "drop_last": False},
         "3 samples are fewer than the 4 ranks: take fewer ranks"),
        (3, {"world_size": 4, "evaluate": True},
         "3 samples are fewer than the 4 ranks: take fewer ranks"),
        (9, {"batch_size": 10},
         "a batch of 10 takes 10 samples, but there are 9: take a smaller batch_size, or "
         "drop_last=False"),
        (9, {"batch_size": 3, "world_size": 4},
         "batches of 3 on 4 ranks take 12 samples, but there are 9: take a smaller batch_size, or "
         "drop_last=False"),
        (9, {"rank": 4, "world_size": 4}, "rank is 4 of 4: give 0 to 3"),
        (9, {"rank": -1}, "rank is -1: give 0 or more"),
        (9, {"world_size": 0}, "world_size is 0: give 1 or more"),
        (9, {"batch_size": 0}, "batch_size is 0: give 1 or more"),
        (9, {"batch_size": 2.5}, "batch_size is 2.5: give a whole number"),
        (9, {"seed": -1}, "seed is -1: give 0 or more"),
        (9, {"kind": "shuffled"},
         "order is 'shuffled': give 'random', 'blocks', 'stored', or a function of the epoch"),
        (9, {"kind": "random", "evaluate": True},
         "evaluate=True reads in stored order: leave order out"),
        (9, {"drop_last": True, "evaluate": True},
         "evaluate=True drops no samples: leave drop_last out"),
        (0, {}, "the number of samples is 0: give 1 or more"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(count, options, message):
    with pytest.raises(ValueError) as caught:
        Order(count, **{"batch_size": 1, **options})
    assert str(caught.value) == message


def test_evaluation_that_cannot_be_equal_is_refused():
    order = Order(5, batch_size=1, world_size=4, evaluate=True)
    with pytest.raises(
        ValueError, match="5 samples cannot be evaluated on 4 ranks in batches of 1"
    ):
        order.length(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 11}, "this state is with 11 selected samples, and this loader with 10"),
        ({"seed": 1}, "this state is with seed=1, and this loader with seed=0"),
        ({"order": "stored"}, "this state is with order='stored', and this loader with"),
        ({"file": "b"}, "this state is of another file or selection"),
        ({"version": 2}, "this is no state of such a loader"),
        ({"more": 2}, "this is no state of such a loader"),
        ({"sample": -2}, "sample is -2"),
        ({"sample": 11}, "sample is 11"),
        ({"epoch": "1"}, "epoch is '1'"),
    ],
)
def test_a_state_of_something_else_is_refused_in_a_sentence(change, message):
    order = Order(10, batch_size=1)
    state = make_state(order, Place(1, 4), "a")
    assert place_of(state, order, "a") == (1, 4)
    with pytest.raises(ValueError) as caught:
        place_of({**state, **change}, order, "a")
    assert str(caught.value).startswith(message)


def test_what_is_no_state_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="this is no state of such a loader"):
        place_of(None, Order(10, batch_size=1), "a")


def test_ranks_are_those_given_else_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert find_ranks(None, None) == (0, 1)
    assert find_ranks(2, 3) == (2, 3)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert find_ranks(None, None) == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert find_ranks(2, 3) == (2, 3)
    with pytest.raises(ValueError, match=r"WORLD_SIZE is 8, but torch\.distributed is not init"):
        find_ranks(None, None)
    for half in ((1, None), (None, 2)):
        with pytest.raises(ValueError, match="rank and world_size go together"):
            find_ranks(*half)


@pytest.mark.slow
def test_ranks_are_those_of_torch_distributed(tmp_path):
    pytest.importorskip("torch")
    code = f"""
import sys
import torch.distributed as d
from converter.training.orders import find_ranks
meet = "file://{tmp_path}/meet"
d.init_process_group("gloo", init_method=meet, rank=int(sys.argv[1]), world_size=2)
print(*find_ranks(None, None))
d.barrier()
d.destroy_process_group()
"""
    environment = {**os.environ, "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)], cwd=ROOT, env=environment,
            stdout=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0].split() for process in started]
    assert said == [["0", "2"], ["1", "2"]]
