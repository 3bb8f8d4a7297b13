"""JPEG stored as it is: decoded to a part of its size where a crop needs no more."""

import numpy as np
import pytest
from PIL import Image

from converter import H5Folder
from converter.cli import main
from converter.cropping.crops import RandomResizedCrop, Resize
from converter.cropping.draws import Draws
from converter.cropping.geometry import Cut
from converter.cropping.resizing import Resizer
from converter.training.loader import H5Loader

pytest.importorskip("simplejpeg")
SIDES = (301, 407)


@pytest.fixture
def folder(tmp_path):
    rows, columns = np.mgrid[: SIDES[0], : SIDES[1]]
    smooth = np.stack((rows / 2, columns / 2, (rows + columns) / 4), axis=2).astype(np.uint8)
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(smooth).save(images / "colours.jpg", quality=95)
    Image.fromarray(smooth[..., 0]).save(images / "gray.jpg", quality=95)
    Image.fromarray(smooth).convert("CMYK").save(images / "inks.jpg")
    Image.fromarray(smooth[:20]).save(images / "small.jpg")
    (images / "cut.jpg").write_bytes((images / "colours.jpg").read_bytes()[:-600])
    out = str(tmp_path / "OUT.h5")
    arguments = ["--ext=jpg", "--store=encoded", "--skip_decode_check"]
    main([f"--path_images={images}", f"--path_output={out}", *arguments])
    with H5Folder(out) as opened:
        yield opened


def position(folder, key: str) -> int:
    return list(folder).index(key)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("key", ["colours.jpg", "gray.jpg"])
def test_a_reduced_image_shows_the_same_as_the_whole_one(folder, key, factor):
    source, n = folder._open().source, position(folder, key)
    whole = folder[key]
    assert source.reducible_shape(n) == whole.shape
    small = source.reduced(n, factor)
    assert small.dtype == np.uint8
    assert small.shape == (-(-SIDES[0] // factor), -(-SIDES[1] // factor), *whole.shape[2:])
    middle = whole[factor // 2 :: factor, factor // 2 :: factor].astype(int)
    assert np.abs(small[: len(middle), : middle.shape[1]].astype(int) - middle).mean() < 2


@pytest.mark.parametrize("key", ["inks.jpg", "small.jpg"])
def test_what_cannot_be_reduced_has_no_shape_before_it_is_decoded(folder, key):
    source = folder._open().source
    assert source.reducible_shape(position(folder, key)) is None


def test_a_damaged_image_is_left_to_the_decoder_of_whole_ones(folder):
    source = folder._open().source
    assert source.reduced(position(folder, "cut.jpg"), 2) is None


def test_a_cut_says_how_far_an_image_may_be_reduced():
    sides = {99: 1, 199: 1, 200: 2, 399: 2, 400: 4, 800: 8, 5000: 8}
    for side, factor in sides.items():
        assert Cut(0, 0, side, side + 1, 100, 100, 0, 0).reduction() == factor
    assert Cut(0, 0, 0, 0, 0, 0, -5, -5).reduction() == 1
    assert Cut(10, 20, 400, 800, 50, 100, 0, 0).reduced(8) == (1, 2, 50, 100, 50, 100, 0, 0)


def test_a_reduced_cut_lies_inside_the_reduced_image():
    for size in (3, 20, 90):
        geometry = RandomResizedCrop(size).geometry(
            np.arange(64, 1064), np.arange(1063, 63, -1), Draws(0, 0, np.arange(1000))
        )
        for n, cut in enumerate(geometry.cuts()):
            factor = cut.reduction()
            small = cut.reduced(factor)
            assert small.height >= 1 and small.top + small.height <= -(-(64 + n) // factor)
            assert small.width >= 1 and small.left + small.width <= -(-(1063 - n) // factor)


def test_a_crop_of_a_reduced_image_is_close_to_that_of_the_whole_one(folder):
    pytest.importorskip("torch")
    source, n = folder._open().source, position(folder, "colours.jpg")
    for crop in (Resize(60), RandomResizedCrop(50, (0.5, 1))):
        (cut,) = crop.geometry(*np.array([[s] for s in SIDES]), Draws(0, 0, np.array([0]))).cuts()
        factor = cut.reduction()
        assert factor > 1
        rows = []
        for image, part in (
            (folder["colours.jpg"], cut),
            (source.reduced(n, factor), cut.reduced(factor)),
        ):
            rows.append(np.empty((*crop.size, 3), np.uint8))
            box = image[part.top : part.top + part.height, part.left : part.left + part.width]
            Resizer().fill(rows[-1], box, part)
        assert np.abs(rows[0].astype(int) - rows[1]).mean() < 2


def test_a_loader_reduces_what_it_interpolates_and_no_mask(folder):
    pytest.importorskip("torch")
    loader = H5Loader(
        folder,
        batch_size=1,
        keys=["colours.jpg"],
        crop=Resize(60),
        masks={"mask": lambda key: "gray.jpg"},
        threads=0,
        evaluate=True,
    )
    (batch,) = loader
    source = folder._open().source
    reduced = source.reduced(position(folder, "colours.jpg"), 4)
    image, mask = np.empty((60, 60, 3), np.uint8), np.empty((60, 60), np.uint8)
    cut = Cut(0, 0, *SIDES, 60, 60, 0, 0).reduced(4)
    Resizer().fill(image, reduced[: cut.height, : cut.width], cut)
    whole = folder["gray.jpg"]
    Resizer().fill(mask, whole, Cut(0, 0, *whole.shape, 60, 60, 0, 0), nearest=True)
    assert np.array_equal(batch["image"][0], image)
    assert np.array_equal(batch["mask"][0], mask)


@pytest.mark.parametrize("keys", [["colours.jpg"], ["gray.jpg", "colours.jpg"]])
def test_with_exact_decode_the_pixels_are_those_of_the_array(folder, keys):
    pytest.importorskip("torch")
    crop = RandomResizedCrop(50, (0.5, 1))
    options = {"batch_size": 1, "keys": keys, "crop": crop, "order": "stored", "threads": 0}
    exact = list(H5Loader(folder, exact_decode=True, **options))
    for key, (row,) in zip(keys, exact, strict=True):
        draws = Draws(0, 0, np.array([position(folder, key)]))
        (cut,) = crop.geometry(*np.array([[side] for side in SIDES]), draws).cuts()
        assert cut.reduction() > 1
        expected = np.empty_like(row)
        box = folder[key][cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
        Resizer().fill(expected, box, cut)
        assert np.array_equal(row, expected)
    assert not np.array_equal(exact[0], next(iter(H5Loader(folder, **options))))
