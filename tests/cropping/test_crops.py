"""Which part of an image a crop takes: inside it, of the right sizes, and evenly drawn."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.cropping.crops import CenterCrop, RandomCrop, RandomResizedCrop, Resize
from converter.cropping.draws import CROP, VFLIP, Draws, flips
from converter.cropping.geometry import ImpossibleCropError
from converter.errors import ConverterError

SIDES = st.integers(1, 3000)
MANY = 20_000


def draws(count: int = MANY, seed: int = 1, epoch: int = 0) -> Draws:
    return Draws(seed, epoch, np.arange(count))


def cut_of(crop, height: int, width: int, seed: int = 0):
    (cut,) = crop.geometry(np.array([height]), np.array([width]), draws(1, seed)).cuts()
    return cut


def test_draws_depend_on_seed_epoch_and_position_alone():
    together = Draws(5, 3, np.array([7, 1_000_000, 9])).uniform(CROP, 8)
    alone = Draws(5, 3, np.array([1_000_000])).uniform(CROP, 3)
    assert np.array_equal(together[1, :3], alone[0])
    for other in (Draws(6, 3, [7]), Draws(5, 4, [7]), Draws(5, 3, [8])):
        assert not (other.uniform(CROP, 8) == together[0]).any()


def test_draws_stay_what_they_are():
    # a run that is resumed by a later version must get the same batches
    values = Draws(-1, 2, np.array([3])).uniform(VFLIP, 2)
    assert values.tolist() == Draws(2**64 - 1, 2, np.array([3])).uniform(VFLIP, 2).tolist()
    assert Draws(1, 2, [3])._states.tolist() == [EXPECTED_STATE]


EXPECTED_STATE = 0x5B8B41CE019D50A7


@pytest.mark.parametrize("vary", ["seed", "epoch", "position", "count", "stream"])
def test_draws_are_even_and_unrelated(vary):
    n = 1 << 16
    if vary == "seed":
        values = np.array([Draws(k, 0, [0]).uniform(0, 1)[0, 0] for k in range(1 << 12)])
    elif vary == "epoch":
        values = np.array([Draws(0, k, [0]).uniform(0, 1)[0, 0] for k in range(1 << 12)])
    elif vary == "position":
        values = Draws(0, 0, np.arange(n)).uniform(0, 1)[:, 0]
    elif vary == "count":
        values = Draws(0, 0, [0]).uniform(0, n)[0]
    else:
        values = np.array(
            [Draws(0, 0, np.arange(n // 4)).uniform(k, 1) for k in range(4)]
        ).T.ravel()
    n = len(values)
    counts = np.bincount((values * 64).astype(int), minlength=64)
    chi_squared = ((counts - n / 64) ** 2 / (n / 64)).sum()
    assert 63 - 5 * math.sqrt(126) < chi_squared < 63 + 5 * math.sqrt(126)
    for lag in (1, 2, 3, 4):
        correlation = np.corrcoef(values[lag:], values[:-lag])[0, 1]
        assert abs(correlation) < 5 / math.sqrt(n)


def test_generators_of_two_samples_differ_and_return():
    one, other = draws(2).generator(0), draws(2).generator(1)
    first = one.random(4)
    assert not np.array_equal(first, other.random(4))
    assert np.array_equal(first, draws(2).generator(0).random(4))


def test_flips_have_the_probability_asked_for_and_differ_from_each_other():
    left_right, upside_down = flips(draws(), 0.3, 0.3)
    for drawn in (left_right, upside_down):
        assert abs(drawn.mean() - 0.3) < 0.02
    assert abs((left_right & upside_down).mean() - 0.09) < 0.02
    assert not flips(draws(), 0, 0)[0].any()
    assert flips(draws(), 1, 1)[1].all()


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(0, 2**70), st.sampled_from([(0.08, 1.0), (0.5, 0.5), (0.9, 2.0)]))
def test_a_random_resized_crop_lies_inside_the_image(height, width, seed, scale):
    crop = RandomResizedCrop((7, 9), scale)
    geometry = crop.geometry(np.full(50, height), np.full(50, width), draws(50, seed))
    for cut in geometry.cuts():
        assert cut.height >= 1 and cut.width >= 1
        assert 0 <= cut.top <= height - cut.height
        assert 0 <= cut.left <= width - cut.width
        assert cut[4:] == (7, 9, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(375, 500), (500, 90), (60, 500)])
def test_random_resized_crops_are_distributed_as_those_of_torchvision(shape):
    transforms = pytest.importorskip("torchvision.transforms.v2")
    import torch

    torch.manual_seed(0)
    theirs = transforms.RandomResizedCrop(224)
    image = torch.empty((3, *shape), dtype=torch.uint8)
    drawn = [theirs.make_params([image]) for _ in range(3000)]
    geometry = RandomResizedCrop(224).geometry(
        *(np.full(3000, side) for side in shape), draws(3000)
    )
    for name in ("top", "left", "height", "width"):
        ours = np.sort(getattr(geometry, name))
        other = np.sort([params[name] for params in drawn])
        # Kolmogorov and Smirnov: 1.95 for a chance of 1 in 1000
        both = np.unique(np.concatenate((ours, other)))
        steps = [np.searchsorted(values, both, "right") / 3000 for values in (ours, other)]
        assert np.abs(steps[0] - steps[1]).max() < 1.95 * math.sqrt(2 / 3000), name


def test_an_image_of_an_extreme_shape_gets_the_central_crop():
    assert cut_of(RandomResizedCrop(8), 1000, 3)[:4] == (498, 0, 4, 3)
    assert cut_of(RandomResizedCrop(8), 3, 1000)[:4] == (0, 498, 3, 4)
    assert cut_of(RandomResizedCrop(8), 1, 1)[:4] == (0, 0, 1, 1)


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 60), SIDES),
    st.tuples(st.integers(1, 80), st.integers(1, 600)),
    st.tuples(st.integers(0, 50), st.integers(0, 50)),
    st.one_of(st.none(), st.sampled_from([(0.5, 2.0), (1.0, 1.0), (0.01, 30.0)])),
    st.integers(0, 1000),
)
def test_a_random_crop_shows_the_image_where_it_does_not_pad(sides, size, padding, scale, seed):
    crop = RandomCrop(size, padding, scale)
    geometry = [np.full(20, side) for side in sides]
    if scale is None and any(
        side + 2 * more < length for side, more, length in zip(sides, padding, size, strict=True)
    ):
        with pytest.raises(ImpossibleCropError, match="is smaller than the crop of"):
            crop.geometry(*geometry, draws(20, seed))
        return
    for cut in crop.geometry(*geometry, draws(20, seed)).cuts():
        for axis in range(2):
            begin, length, resized, window = cut[axis], cut[axis + 2], cut[axis + 4], cut[axis + 6]
            assert 0 <= begin <= begin + length <= sides[axis]
            if resized:  # else the window lies in the padding alone
                assert window <= 0 and resized - window <= size[axis]
            if scale is None:
                assert resized == length
                assert -padding[axis] <= begin + window
                assert begin + window + size[axis] <= sides[axis] + padding[axis]


def test_a_random_crop_is_everywhere_equally_often():
    geometry = RandomCrop(32, 4).geometry(np.full(MANY, 32), np.full(MANY, 32), draws())
    tops = geometry.top + geometry.window_top
    counts = np.bincount(tops + 4, minlength=9)
    assert len(counts) == 9 and np.abs(counts - MANY / 9).max() < 5 * math.sqrt(MANY / 9)


def test_a_scaled_crop_reads_what_it_shows():
    cut = cut_of(RandomCrop(100, scale=(2.0, 2.0)), 300, 400)
    assert cut[2:] == (50, 50, 100, 100, 0, 0)
    cut = cut_of(RandomCrop(100, scale=(0.5, 0.5)), 100, 400)
    assert (cut.height, cut.width, cut.resized_height, cut.resized_width) == (100, 200, 50, 100)
    assert -50 <= cut.window_top <= 0


def test_a_central_crop_without_resizing():
    assert cut_of(CenterCrop(4), 7, 9) == (2, 2, 4, 4, 4, 4, 0, 0)
    assert cut_of(CenterCrop(4), 1, 1) == (0, 0, 1, 1, 1, 1, -1, -1)
    assert cut_of(CenterCrop((1, 4), resize=3), 6, 12) == (0, 0, 6, 12, 3, 6, 1, 1)


def test_resize_takes_an_int_for_a_square():
    assert cut_of(Resize(5), 7, 9) == (0, 0, 7, 9, 5, 5, 0, 0)
    assert Resize((5, 6)).size == (5, 6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Resize(0), "size=0 must be a whole number from 1 on, or"),
        (lambda: Resize(-1), "size=-1 must be"),
        (lambda: Resize(True), "size=True must be"),
        (lambda: Resize(2.5), "size=2.5 must be"),
        (lambda: Resize("ab"), "size='ab' must be"),
        (lambda: Resize((1, 2, 3)), r"size=\(1, 2, 3\) must be"),
        (lambda: CenterCrop(3, resize=(4, 0)), r"resize=\(4, 0\) must be"),
        (lambda: RandomCrop(3, -1), "padding=-1 must be a whole number from 0 on"),
        (lambda: RandomCrop(3, scale=2), "scale=2 must be two numbers above 0"),
        (lambda: RandomCrop(3, scale=(2, 1)), "the smaller one first"),
        (lambda: RandomResizedCrop(3, (0, 1)), "scale=.* must be two numbers above 0"),
        (lambda: RandomResizedCrop(3, (2, 3)), "a box larger than the image"),
        (lambda: RandomResizedCrop(3, ratio=(float("nan"), 1)), "ratio=.* must be"),
        (lambda: RandomResizedCrop(3, ratio=("a", "b")), "ratio=.* must be"),
    ],
)
def test_an_impossible_argument_is_refused(make, message):
    with pytest.raises(ConverterError, match=message):
        make()


def test_an_impossible_image_is_named_by_its_row():
    with pytest.raises(ImpossibleCropError, match="1x1 is smaller than the crop of 2x2") as caught:
        RandomCrop(2).geometry(np.array([5, 1]), np.array([5, 1]), draws(2))
    assert caught.value.row == 1
    assert pickle.loads(pickle.dumps(caught.value)).row == 1
    with pytest.raises(ImpossibleCropError, match="0x4 has no pixels"):
        Resize(2).geometry(np.array([0]), np.array([4]), draws(1))
    with pytest.raises(ImpossibleCropError, match="1x9000000 resized to a shorter side of 256"):
        CenterCrop(224, resize=256).geometry(np.array([1]), np.array([9_000_000]), draws(1))


@pytest.mark.parametrize(
    "crop",
    [RandomResizedCrop(8, ratio=(1, 2)), CenterCrop(8, 9), RandomCrop(8, 1, (1, 2)), Resize(8)],
)
def test_a_crop_travels_to_another_process(crop):
    assert vars(pickle.loads(pickle.dumps(crop))) == vars(crop)
