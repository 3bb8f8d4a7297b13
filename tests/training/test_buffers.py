"""Memory of batches is written again only when nobody holds it."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from converter.training.buffers import Buffers, Memory, PinnedBuffers

SHAPE, UINT8 = (4, 5), np.dtype(np.uint8)


def filled(buffers: Buffers, value: int) -> np.ndarray:
    array = buffers.array(SHAPE, UINT8)
    array[...] = value
    return array


def test_memory_that_was_let_go_of_is_used_again() -> None:
    buffers = Buffers()
    for value in range(100):
        array = filled(buffers, value)
        del array
    assert buffers.count == 1


@pytest.mark.parametrize(
    "held_by",
    [
        lambda array: array,
        lambda array: array[1:, ::2],
        lambda array: array.view(np.int8).T[1],
        lambda array: memoryview(array),
        lambda array: np.asarray(memoryview(array)[1:]),
        lambda array: np.lib.stride_tricks.as_strided(array[2:], (2, 2), (5, 1)),
    ],
)
def test_memory_is_not_used_again_while_a_view_of_it_is_alive(held_by) -> None:
    buffers = Buffers()
    held = held_by(filled(buffers, 7))
    gc.collect()
    others = [filled(buffers, value) for value in range(20)]
    assert (np.asarray(held).view(np.uint8) == 7).all()
    assert [other[0, 0] for other in others] == list(range(20))
    before = buffers.count
    del held
    filled(buffers, 1)
    assert buffers.count == before == 21


@pytest.mark.slow
def test_memory_is_not_used_again_while_a_tensor_of_it_is_alive() -> None:
    torch = pytest.importorskip("torch")
    buffers = Buffers()
    tensor = torch.from_numpy(filled(buffers, 7)).T[1:]
    storage = tensor.untyped_storage()
    for value in range(20):
        filled(buffers, value)
    assert (tensor == 7).all()
    del tensor
    for value in range(20):
        filled(buffers, value)
    assert storage[0] == 7
    del storage
    filled(buffers, 1)
    assert buffers.count == 2


def test_memory_outlives_what_made_it() -> None:
    buffers = Buffers()
    arrays = [filled(buffers, value) for value in range(10)]
    del buffers
    gc.collect()
    assert [array[3, 4] for array in arrays] == list(range(10))


def test_larger_memory_takes_the_place_of_what_is_too_small() -> None:
    buffers = Buffers()
    for shape in ((2, 3), (50, 3), (2, 3), (50, 3)):
        array = buffers.array(shape, np.dtype("<u2"))
        assert array.shape == shape and array.dtype == "<u2"
        del array
    assert buffers.count == 2


def test_threads_never_get_memory_that_another_holds() -> None:
    buffers, wrong = Buffers(), []

    def work(own: int) -> None:
        for _ in range(2000):
            array = filled(buffers, own)
            if not (array == own).all():
                wrong.append(own)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert buffers.count <= 2 * 4  # each holds the array before while it takes the next


def test_pinned_memory_waits_for_the_gpu_after_the_next_request() -> None:
    passed: list[bool] = []

    def record():
        number = len(passed)
        passed.append(False)
        return lambda: passed[number]

    buffers = PinnedBuffers(Memory, record)
    array = buffers.array(SHAPE, UINT8)
    del array  # a copy to the GPU may be under way
    buffers.array(SHAPE, UINT8)
    assert buffers.count == 2  # no event stands behind that copy yet
    buffers.at_request()
    kept = buffers.array(SHAPE, UINT8)
    assert buffers.count == 3 and len(passed) == 1
    buffers.at_request()
    assert len(passed) == 1  # nothing was given back meanwhile
    passed[0] = True
    buffers.at_request()
    others = [buffers.array(SHAPE, UINT8) for _ in range(2)]
    assert buffers.count == 3
    del kept, others
