"""New arrays have their memory at once, whatever the system can do."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

from converter import H5Folder
from converter.loader.memory import (
    ARRAYS_SKIPPED,
    LEAST_NBYTES,
    MOST_NBYTES,
    NewArrays,
    _populate,
)
from helpers.arrays import equal_samples, make_h5
from helpers.check import assert_same

U1 = np.dtype(np.uint8)


class System:
    """Notes what it is asked to hand out."""

    def __init__(self, *, is_new: bool, can_populate: bool = True) -> None:
        self.is_new, self.can_populate = is_new, can_populate
        self.asked = 0
        self.populated: list[tuple[int, int]] = []

    def arrays(self) -> NewArrays:
        return NewArrays(self._is_new, self._populate)

    def _is_new(self, begin: int, nbytes: int) -> bool:
        self.asked += 1
        return self.is_new

    def _populate(self, begin: int, nbytes: int) -> bool:
        self.populated.append((begin, begin + nbytes))
        return self.can_populate


def test_all_whole_pages_of_new_memory_are_asked_for_and_no_others():
    system = System(is_new=True)
    array = system.arrays().empty((500, 375, 3), U1)
    ((begin, end),) = system.populated
    first = array.__array_interface__["data"][0]
    assert begin <= first < end <= first + array.nbytes
    assert first + array.nbytes - end < 1 << 16  # the largest page there is
    assert (array.shape, array.dtype) == ((500, 375, 3), U1)


def test_memory_that_is_used_again_is_not_asked_about_each_time():
    system = System(is_new=False)
    arrays = system.arrays()
    for _ in range(3 * (ARRAYS_SKIPPED + 1)):
        arrays.empty((LEAST_NBYTES,), U1)
    assert (system.asked, system.populated) == (3, [])


@pytest.mark.parametrize("nbytes", [0, LEAST_NBYTES - 1, MOST_NBYTES])
def test_small_and_large_arrays_are_left_to_the_allocator(nbytes):
    system = System(is_new=True)
    system.arrays().empty((nbytes,), U1)
    assert not system.asked


def test_a_system_that_cannot_is_not_asked_each_time():
    system = System(is_new=True, can_populate=False)
    arrays = system.arrays()
    for _ in range(ARRAYS_SKIPPED + 1):
        arrays.empty((LEAST_NBYTES,), U1)
    assert len(system.populated) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands out memory so")
def test_writing_to_arrays_that_are_kept_takes_few_page_faults():
    import resource

    memory = mmap.mmap(-1, mmap.PAGESIZE)
    if not _populate(np.frombuffer(memory, U1).ctypes.data, mmap.PAGESIZE):
        pytest.skip("before Linux 5.14")
    populated: list[int] = []

    def populate(begin: int, nbytes: int) -> bool:
        populated.append(nbytes)
        return _populate(begin, nbytes)

    arrays = NewArrays(populate=populate)
    kept = []
    while not populated:  # what the allocator has is used first
        kept.append(arrays.empty((MOST_NBYTES // 2,), U1))
        if len(kept) > 100:
            pytest.skip("a system that does not say which memory is new")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept[-1][:] = 1
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < kept[-1].nbytes // mmap.PAGESIZE // 10


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("can_populate", [True, False])
def test_arrays_are_right_whatever_the_system_says(is_new, can_populate, tmp_path):
    samples = equal_samples(20, (200, 300, 3))
    folder = H5Folder(make_h5(tmp_path, samples))
    system = System(is_new=is_new, can_populate=can_populate)
    folder._open().source._pages.new_arrays = system.arrays()
    kept = [folder[key] for key in samples]
    for array, wanted in zip(kept, samples.values(), strict=True):
        assert_same(array, wanted)
        assert array.flags.writeable
        assert array.flags.owndata
    assert system.asked
