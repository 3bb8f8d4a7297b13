"""Images are resized as plain Pillow does, without mixing what must not be mixed."""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile

from converter.codecs.compression import AUTO, NONE
from converter.errors import ConverterError
from converter.images import jpeg
from converter.samples import Buffer, Encoded, Failure, Note, Surveyed
from converter.sources import resampling
from converter.sources.encoder import Encoder
from converter.sources.images import read_image
from converter.sources.readers import Choice, Settings
from converter.sources.resizing import Resizing, check_resizing, parse_size, target_of
from helpers import written_images
from helpers.photos import photos

NEAREST = PIL.Image.Resampling.NEAREST
RESIZINGS = (
    Resizing(60),
    Resizing(37, "longer"),
    Resizing(50, "crop"),
    Resizing(140, "crop"),
    Resizing((70, 31), "exact"),
    Resizing(60, filter="area"),
    Resizing(60, filter="nearest"),
)


@functools.cache
def made(number: int) -> PIL.Image.Image:
    """One of the photos that are made, of 375 x 500 pixels."""
    return PIL.Image.fromarray(list(photos(number + 1))[number].pixels)


def photo(height: int = 150, width: int = 203, number: int = 0) -> PIL.Image.Image:
    """A photo of this size, with details at each scale."""
    return made(number).resize((width, height), PIL.Image.Resampling.BICUBIC)


def with_alpha(image: PIL.Image.Image) -> PIL.Image.Image:
    """The photo with transparency in soft and hard steps."""
    height, width = image.height, image.width
    ramp = np.arange(height * width).reshape(height, width) * 3 % 511
    image.putalpha(PIL.Image.fromarray(np.clip(ramp - 100, 0, 255).astype(np.uint8)))
    return image


def array_of(folder: Path, name: str, resizing: Resizing | None, **options: Any) -> np.ndarray:
    """What is stored of a file; a failure fails the test."""
    read = Encoder(Settings(str(folder), resizing=resizing, **options)).read(name, Buffer())
    assert not isinstance(read, Failure), read
    return read.copy()


def failure_of(folder: Path, name: str, resizing: Resizing, **options: Any) -> str:
    """Why nothing is stored of a file."""
    encoded = Encoder(Settings(str(folder), resizing=resizing, **options)).encode(name, Buffer())
    assert isinstance(encoded, Failure), encoded
    return encoded.reason


def note_of(folder: Path, name: str, resizing: Resizing) -> Note:
    """What is noted beside that it was resized."""
    encoded = Encoder(Settings(str(folder), resizing=resizing)).encode(name, Buffer())
    assert isinstance(encoded, Encoded), encoded
    return encoded.note & ~Note.RESIZED


def as_documented(path: Path, resizing: Resizing) -> np.ndarray:
    """What the lines in the docstring give, run as they are."""
    with PIL.Image.open(path) as image:
        target = target_of(resizing, image.size)
        if target is None:
            return np.asarray(image)
        if resizing.filter == "nearest":
            return np.asarray(image.resize(target.size, NEAREST, target.box))
    lines = re.search(r"::\n\n((?:    .*\n)+)", resampling.__doc__ or "")
    assert lines is not None
    text = textwrap.dedent(lines[1])
    if resizing.filter == "area":
        text = text.replace("BICUBIC", "BOX")
    names: dict[str, Any] = {"PIL": PIL, "path": path, "size": target.size, "box": target.box}
    exec(text, names)
    return np.asarray(names["resized"])


JPEGS: dict[str, Callable[[Path], None]] = {
    "rgb 4:2:0": lambda path: photo().save(path, quality=90),
    "rgb 4:2:2": lambda path: photo().save(path, quality=70, subsampling=1),
    "rgb 4:4:4": lambda path: photo().save(path, quality=95, subsampling=0),
    "progressive": lambda path: photo(601, 803).save(path, quality=85, progressive=True),
    "gray": lambda path: photo(333, 491).convert("L").save(path),
    "cmyk": lambda path: photo(333, 491).convert("CMYK").save(path),
    "twice": lambda path: photo(240, 321).save(path),
    "four times": lambda path: photo(481, 640).save(path),
    "eight times": lambda path: photo(967, 1301).save(path),
    "small": lambda path: photo(45, 33).save(path),
    "long": lambda path: photo(30, 1801).save(path),
}
OTHERS: dict[str, Callable[[Path], None]] = {
    "rgb.png": lambda path: photo().save(path),
    "gray.png": lambda path: photo().convert("L").save(path),
    "rgba.png": lambda path: with_alpha(photo()).save(path),
    "graya.png": lambda path: with_alpha(photo().convert("L").convert("LA")).save(path),
    "bilevel.png": lambda path: photo().convert("1").save(path),
    "rgb.bmp": lambda path: photo().save(path),
    "gray.bmp": lambda path: photo().convert("L").save(path),
    "rgba.tga": lambda path: with_alpha(photo()).save(path),
    "rgb.ppm": lambda path: photo().save(path),
    "rgb.webp": lambda path: photo().save(path, quality=80),
    "rgba.webp": lambda path: with_alpha(photo()).save(path, lossless=True, exact=True),
    "rgb.tif": lambda path: photo().save(path),
    "rgba.tif": lambda path: with_alpha(photo()).save(path),
    "cmyk.tif": lambda path: photo().convert("CMYK").save(path),
    "large.png": lambda path: photo(701, 644).save(path),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_every_kind_of_jpeg_has_the_pixels_of_the_lines_that_are_documented(kind, tmp_path):
    path = tmp_path / "a.jpg"
    JPEGS[kind](path)
    for resizing in RESIZINGS:
        array = array_of(tmp_path, "a.jpg", resizing)
        np.testing.assert_array_equal(array, as_documented(path, resizing), err_msg=f"{resizing}")


@pytest.mark.parametrize("name", OTHERS)
def test_every_format_has_the_pixels_of_the_lines_that_are_documented(name, tmp_path):
    OTHERS[name](tmp_path / name)
    for resizing in RESIZINGS:
        array = array_of(tmp_path, name, resizing)
        expected = as_documented(tmp_path / name, resizing)
        np.testing.assert_array_equal(array, expected, err_msg=f"{resizing}")


def test_a_jpeg_is_decoded_to_a_part_of_its_size_by_either_decoder(tmp_path, monkeypatch):
    JPEGS["eight times"](tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    assert jpeg.reducing_agrees()
    for resizing, shape in ((Resizing(60), (121, 163, 3)), (Resizing(200), (484, 651, 3))):
        by_simplejpeg = jpeg.decode_fast(data, least=resizing.least)
        assert by_simplejpeg is not None
        monkeypatch.setattr(jpeg, "decode_fast", lambda *args, **options: None)
        by_pillow = jpeg.decode(data, resizing.least)
        monkeypatch.undo()
        assert by_simplejpeg.array.shape == by_pillow.array.shape == shape
        assert by_simplejpeg.pixels == by_pillow.pixels
        np.testing.assert_array_equal(by_simplejpeg.array, by_pillow.array)


def test_a_scaled_decode_that_differs_from_pillows_is_not_used(tmp_path, monkeypatch):
    JPEGS["eight times"](tmp_path / "a.jpg")
    real = jpeg.simplejpeg.decode_jpeg

    def other_scaling(*args: Any, **options: Any) -> np.ndarray:
        array = real(*args, **options)
        array[3, 3] ^= np.uint8("min_height" in options)
        return array

    jpeg.reducing_agrees.cache_clear()
    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", other_scaling)
    try:
        array = array_of(tmp_path, "a.jpg", Resizing(60))
        assert not jpeg.reducing_agrees()
    finally:
        jpeg.reducing_agrees.cache_clear()
    np.testing.assert_array_equal(array, as_documented(tmp_path / "a.jpg", Resizing(60)))


def test_a_truncated_jpeg_is_a_failure_at_every_scale(tmp_path):
    JPEGS["eight times"](tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) * 2 // 3])
    for store in ("array", "encoded"):
        for size in (60, 300, 900, 5000):
            assert "truncated" in failure_of(tmp_path, "a.jpg", Resizing(size), store=store)


# Which size


@pytest.mark.parametrize(
    ("resizing", "size", "target", "box"),
    [
        (Resizing(256), (500, 375), (341, 256), None),
        (Resizing(256), (375, 500), (256, 341), None),
        (Resizing(256), (500, 256), None, None),
        (Resizing(256), (255, 9000), None, None),
        (Resizing(2), (5, 4), (3, 2), None),  # 2.5, half up
        (Resizing(256, "longer"), (500, 375), (256, 192), None),
        (Resizing(256, "longer"), (256, 100), None, None),
        (Resizing(100, "longer"), (1, 5000), (1, 100), None),
        (Resizing(100, "longer"), (5000, 20), (100, 1), None),  # 0.4, at least one
        (Resizing(100, "crop"), (500, 375), (100, 100), (62, 0, 437, 375)),
        (Resizing(375, "crop"), (500, 375), (375, 375), (62, 0, 437, 375)),
        (Resizing(375, "crop"), (375, 375), None, None),
        (Resizing(100, "crop"), (20, 30), (100, 100), (0, 5, 20, 25)),
        (Resizing((64, 32), "exact"), (500, 375), (64, 32), None),
        (Resizing((64, 32), "exact"), (6, 3), (64, 32), None),
        (Resizing((64, 32), "exact"), (64, 32), None, None),
    ],
)  # fmt: skip
@pytest.mark.everyday
def test_the_size_is_that_of_the_mode_and_nothing_grows_unless_all_get_one_size(
    resizing, size, target, box
):
    found = target_of(resizing, size)
    if target is None:
        assert found is None
    else:
        assert found is not None
        assert found == (target, box or (0, 0, *size))


@pytest.mark.everyday
@pytest.mark.parametrize(
    ("text", "size"),
    [("256", 256), (256, 256), ("1", 1), ("320x240", (320, 240)), ("65535x1", (65535, 1))],
)
def test_a_size_is_one_number_or_two(text, size):
    assert parse_size(text) == size


@pytest.mark.everyday
@pytest.mark.parametrize(
    "text",
    ["0", "-3", "256x", "x256", "65536", "9999999", "1x0", "3x4x5", "2.5", "", " 7", "big", True],
)
def test_what_is_no_size_is_refused_in_a_sentence(text):
    with pytest.raises(ConverterError, match=r"^--resize=.* is no size: give .* 1 to 65535.*240$"):
        parse_size(text)


@pytest.mark.everyday
@pytest.mark.parametrize(
    ("resizing", "store", "message"),
    [
        (Resizing(256, "exact"), "array", "exact needs both sides, and --resize=256 names one"),
        (Resizing((3, 4)), "array", "--resize=3x4 names both sides, and --resize_mode=shorter"),
        (Resizing(256, quality=90), "array", "--quality=90 is for images that are encoded again"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_a_sentence(resizing, store, message):
    with pytest.raises(ConverterError, match=message):
        check_resizing(resizing, store=store)


def test_what_fits_together_is_not_refused():
    for resizing in RESIZINGS:
        check_resizing(resizing, store="array")
    check_resizing(Resizing(256, quality=1), store="encoded")


# What is mixed, and what is not


@pytest.mark.everyday
@pytest.mark.parametrize(
    "dtype", ["u1", ">u2", "i8", "f8", "c16", "f2", [("a", "u1"), ("b", "f4")]]
)
def test_nearest_takes_the_pixels_that_pillow_takes_of_any_dtype(dtype):
    random = np.random.default_rng(0)
    for _ in range(40):
        height, width = (int(side) for side in random.integers(1, 90, 2))
        size = tuple(int(side) for side in random.integers(1, 120, 2))
        left, top = (int(random.integers(side)) for side in (width, height))
        box = (left, top, width, height)
        numbers = np.arange(height * width, dtype=np.int32).reshape(height, width)
        expected = np.asarray(PIL.Image.fromarray(numbers).resize(size, NEAREST, box))
        array = numbers.astype("u1").astype(dtype)
        part = resampling.Target(size, box)
        found = resampling._nearest(array, part, 0)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, expected.astype("u1").astype(dtype))


def test_palettes_and_bilevel_images_keep_their_colours_whatever_the_filter(tmp_path):
    image = photo().quantize(20)
    colours = {tuple(colour) for colour in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    for name in ("a.png", "a.gif", "a.bmp", "a.tga"):
        image.save(tmp_path / name)
        array = array_of(tmp_path, name, Resizing(60))
        expected = image.convert("RGB").resize((81, 60), NEAREST)
        np.testing.assert_array_equal(array.reshape(60, 81, 3), np.asarray(expected))
        assert {tuple(colour) for colour in array.reshape(-1, 3)} <= colours
    bits = photo().convert("1")
    bits.save(tmp_path / "b.png")
    tifffile.imwrite(tmp_path / "b.tif", np.asarray(bits))
    for name in ("b.png", "b.tif"):
        array = array_of(tmp_path, name, Resizing(60))
        assert array.dtype == bool
        np.testing.assert_array_equal(array, np.asarray(bits.resize((81, 60), NEAREST)))


def test_the_indices_of_a_tiff_and_signed_lab_are_not_mixed(tmp_path):
    random = np.random.default_rng(0)
    indices = random.integers(0, 256, (40, 50), dtype=np.uint8)
    map_of_colours = random.integers(0, 65536, (3, 256), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", indices, photometric="palette", colormap=map_of_colours)
    lab = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "b.tif", lab, photometric="cielab")
    for name, pixels in (("a.tif", indices), ("b.tif", lab)):
        array = array_of(tmp_path, name, Resizing(20))
        expected = PIL.Image.fromarray(pixels).resize((25, 20), NEAREST)
        np.testing.assert_array_equal(array, np.asarray(expected))


def test_the_indices_of_one_page_beside_gray_ones_are_not_mixed(tmp_path):
    random = np.random.default_rng(0)
    gray, indices = random.integers(0, 256, (2, 40, 50), dtype=np.uint8)
    map_of_colours = random.integers(0, 65536, (3, 256), dtype=np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(gray, metadata=None, contiguous=False, photometric="minisblack")
        file.write(indices, metadata=None, photometric="palette", colormap=map_of_colours)
    array = array_of(tmp_path, "a.tif", Resizing(20))
    expected = PIL.Image.fromarray(indices).resize((25, 20), NEAREST)
    np.testing.assert_array_equal(array[1], np.asarray(expected))


def bicubic(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize by the formula, in float64: Keys' kernel (a = -0.5), as wide as a new pixel."""
    for axis, count in ((0, size[1]), (1, size[0])):
        length = array.shape[axis]
        scale = length / count
        centres = (np.arange(count)[:, None] + 0.5) * scale - 0.5
        x = np.abs(np.arange(length)[None, :] - centres) / max(scale, 1.0)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0))
        weights /= weights.sum(axis=1, keepdims=True)
        array = np.moveaxis(np.tensordot(weights, array, (1, axis)), 0, axis)
    return array


@pytest.mark.everyday
@pytest.mark.parametrize("dtype", ["u2", ">u2", "i2", "i1", "f2", "f4"])
def test_other_depths_are_resized_in_full_depth_and_keep_their_dtype(dtype, tmp_path):
    kind = np.dtype(dtype)
    gray = np.asarray(photo(60, 81), np.float64)
    most = 1000.0 if kind.kind == "f" else float(np.iinfo(kind).max)
    pixels = (gray * (most / 255)).astype(kind)
    options: dict[str, Any] = {"byteorder": kind.byteorder if kind.byteorder == ">" else None}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **options)
    array = array_of(tmp_path, "a.tif", Resizing(40))
    assert array.dtype == read_image(tmp_path / "a.tif").dtype and array.shape == (40, 54, 3)
    expected = bicubic(pixels.astype(np.float64), (54, 40))
    if kind.kind != "f":
        expected = np.rint(expected.clip(np.iinfo(kind).min, most))
    tolerance = 1 if kind.kind != "f" else most * float(np.finfo(kind).eps)
    assert np.abs(array.astype(np.float64) - expected).max() <= tolerance


def test_values_stay_below_the_largest_that_the_file_allows(tmp_path):
    pytest.importorskip("imagecodecs")  # unpacks 4 bits
    steps = np.zeros((40, 40), np.uint16)
    steps[:, 20:] = 1023
    header = b"P5\n40 40\n1023\n"
    (tmp_path / "a.pgm").write_bytes(header + steps.astype(">u2").tobytes())
    nibbles = (steps // 64).astype(np.uint8)
    (tmp_path / "b.pgm").write_bytes(b"P5\n40 40\n15\n" + nibbles.tobytes())
    packed = nibbles[:, ::2] << 4 | nibbles[:, 1::2]
    tifffile.imwrite(tmp_path / "a.tif", packed, photometric="minisblack")
    whole = (tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:  # the same bytes, of 4 bits
        tiff.pages.first.tags["BitsPerSample"].overwrite(4)
        tiff.pages.first.tags["ImageWidth"].overwrite(40)
    assert len((tmp_path / "a.tif").read_bytes()) == len(whole)
    assert np.array_equal(read_image(tmp_path / "a.tif"), nibbles)
    for name, most in (("a.pgm", 1023), ("a.tif", 15), ("b.pgm", 15)):
        array = array_of(tmp_path, name, Resizing((33, 33), "exact"))
        assert array.max() <= most
        assert array[0, -1] >= most * 4092 // 4095 and array[0, 0] == 0


def transparent_edges(dtype: str) -> np.ndarray:
    """Blue where it is seen, bright red where it is transparent."""
    most = np.iinfo(dtype).max
    array = np.zeros((40, 60, 4), dtype)
    array[:, :31] = 0, 0, most, most
    array[:, 31:] = most, 0, 0, 0
    return array


@pytest.mark.parametrize("planar", [False, True])
def test_colours_of_transparent_pixels_do_not_show(planar, tmp_path):
    deep, flat = transparent_edges("u2"), transparent_edges("u1")
    stored = np.moveaxis(deep, -1, 0) if planar else deep
    config = "separate" if planar else "contig"
    options: dict[str, Any] = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "a.tif", stored, planarconfig=config, **options)
    (tmp_path / "a.png").write_bytes(written_images.png(deep, 6, 16))
    PIL.Image.fromarray(flat).save(tmp_path / "b.png")
    arrays = [array_of(tmp_path, name, Resizing(27)) for name in ("a.tif", "a.png", "b.png")]
    if planar:
        assert arrays[0].shape == (4, 27, 41)
        arrays[0] = np.moveaxis(arrays[0], 0, -1)
    np.testing.assert_array_equal(arrays[0], arrays[1])
    for array in arrays:
        most, alpha = int(np.iinfo(array.dtype).max), array[..., 3]
        assert 0 < ((alpha > most // 20) & (alpha < most)).sum() < 27 * 4
        seen = array[alpha > most // 20]
        assert seen[:, 2].min() >= most * 0.98 and seen[:, 0].max() <= most * 0.02
    difference = arrays[1][..., 3] / 257 - arrays[2][..., 3]
    assert np.abs(difference).max() <= 1


def test_a_fourth_channel_that_is_no_alpha_is_a_channel_like_others(tmp_path):
    pixels = transparent_edges("u1")
    for name, photometric, extra in (
        ("a.tif", "separated", None),
        ("b.tif", "rgb", ["unspecified"]),
        ("c.tif", "rgb", ["assocalpha"]),
    ):
        tifffile.imwrite(tmp_path / name, pixels, photometric=photometric, extrasamples=extra)
    pam = b"P7\nWIDTH 60\nHEIGHT 40\nDEPTH 4\nMAXVAL 255\nTUPLTYPE CMYK\nENDHDR\n"
    (tmp_path / "d.pam").write_bytes(pam + pixels.tobytes())
    expected = np.stack(
        [
            np.asarray(PIL.Image.fromarray(pixels[..., n].copy()).resize((41, 27), reducing_gap=2))
            for n in range(4)
        ],
        axis=2,
    )
    for name in ("a.tif", "b.tif", "c.tif", "d.pam"):
        np.testing.assert_array_equal(array_of(tmp_path, name, Resizing(27)), expected)


def test_an_image_that_is_transparent_everywhere_keeps_its_colours(tmp_path):
    """Some cameras and tools write data with an alpha of 0."""
    pixels = np.asarray(with_alpha(photo())).copy()
    pixels[..., 3] = 0
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(written_images.png(pixels.astype(np.uint16) * 257, 6, 16))
    expected = np.asarray(photo().resize((81, 60), reducing_gap=2))
    array, deep = (array_of(tmp_path, name, Resizing(60)) for name in ("a.png", "b.png"))
    np.testing.assert_array_equal(array[..., :3], expected)
    assert np.abs(deep[..., :3] / 257 - expected).max() <= 2  # rounded twice
    assert not array[..., 3].any() and not deep[..., 3].any()


def test_alpha_of_another_maxval_is_alpha(tmp_path):
    pixels = np.zeros((40, 60, 2), np.uint8)
    pixels[:, :31], pixels[:, 31:] = (1, 1), (0, 0)
    head = b"P7\nWIDTH 60\nHEIGHT 40\nDEPTH 2\nMAXVAL 1\nTUPLTYPE BLACKANDWHITE_ALPHA\nENDHDR\n"
    (tmp_path / "a.pam").write_bytes(head + pixels.tobytes())
    array = array_of(tmp_path, "a.pam", Resizing(27))
    assert set(array[..., 1].ravel().tolist()) == {0, 1}
    assert (array[..., 0] >= array[..., 1]).all()  # not darker at its edge


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.full((40, 50), 0.5), "its float64 values cannot be mixed without loss: add "),
        (np.full((40, 50), 7, np.int32), "its int32 values cannot be mixed without loss: add "),
        (np.full((40, 50), 7, np.uint64), "its uint64 values cannot be mixed without loss: add "),
        (
            np.full((40, 50), 7j, np.complex64),
            "its complex64 values cannot be mixed without loss: add ",
        ),
        (np.full((40, 50), np.nan, np.float32), "it holds NaN or infinity, which mixing would "),
        (np.full((40, 50), -np.inf, np.float16), "it holds NaN or infinity, which mixing would "),
    ],
)
@pytest.mark.everyday
@pytest.mark.filterwarnings("error")
def test_what_would_lose_digits_or_spread_nan_is_refused_and_goes_by_nearest(array, why, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", array)
    for store in ("array", "encoded"):
        reason = failure_of(tmp_path, "a.tif", Resizing(20), store=store)
        assert reason.startswith(why) and "--resize_filter=nearest" in reason
    nearest = array_of(tmp_path, "a.tif", Resizing(20, filter="nearest"))
    np.testing.assert_array_equal(nearest, array[:20, :25])


@pytest.mark.slow
def test_values_that_look_like_labels_or_holes_are_noted_and_photos_are_not(tmp_path):
    random = np.random.default_rng(0)
    seeds = random.integers(0, 200, (120, 2))
    distances = np.indices((200, 200)).reshape(2, -1, 1) - seeds.T[:, None, :]
    labels = (distances**2).sum(axis=0).argmin(axis=1).reshape(200, 200)  # 120 cells
    for name, values in (("few", labels % 8), ("many", labels)):
        PIL.Image.fromarray(values.astype(np.uint8)).save(tmp_path / f"{name}.png")
        tifffile.imwrite(tmp_path / f"{name}.tif", values.astype(np.uint16))
    gray_labels = np.repeat((labels % 8).astype(np.uint8)[..., None], 3, axis=2)
    PIL.Image.fromarray(gray_labels).save(tmp_path / "gray.png")
    for name in ("few.png", "few.tif", "many.png", "many.tif", "gray.png"):
        assert note_of(tmp_path, name, Resizing(64)) == Note.FEW_VALUES, name
        assert note_of(tmp_path, name, Resizing(64, filter="nearest")) == Note.NONE
        assert note_of(tmp_path, name, Resizing(256)) == Note.NONE
        assert note_of(tmp_path, name, Resizing(200, "crop")) == Note.NONE
    depth = np.add.outer(np.linspace(600, 3000, 200), np.linspace(0, 900, 200))
    depth[random.random((200, 200)) < 0.05] = 0
    for dtype in (np.uint16, np.float32):
        tifffile.imwrite(tmp_path / "depth.tif", depth.astype(dtype))
        assert note_of(tmp_path, "depth.tif", Resizing(64)) == Note.HOLES
    ramp = np.add.outer(np.arange(200), np.arange(200)).astype(np.uint16) // 2 * 13
    tifffile.imwrite(tmp_path / "ramp.tif", ramp)
    assert note_of(tmp_path, "ramp.tif", Resizing(64)) == Note.NONE
    dim = np.asarray(photo(200, 267).convert("L"), np.uint16) // 8 - 6  # black in part
    tifffile.imwrite(tmp_path / "dim.tif", dim.astype(np.int16).clip(0, None))
    assert note_of(tmp_path, "dim.tif", Resizing(64)) == Note.NONE
    for number in range(4):
        image = photo(200, 267, number).convert("L")
        image.save(tmp_path / "photo.png")
        image.point(lambda value: value // 8).save(tmp_path / "dark.png")  # 32 values at most
        for name in ("photo.png", "dark.png"):
            assert note_of(tmp_path, name, Resizing(64)) == Note.NONE


# Frames, pages and channels


def each(array: np.ndarray, axis: int, size: tuple[int, int]) -> np.ndarray:
    """Each picture along an axis, resized alone by Pillow."""
    pictures = np.moveaxis(array, axis, 0)
    resized = [PIL.Image.fromarray(np.ascontiguousarray(one)) for one in pictures]
    stack = np.stack([np.asarray(one.resize(size, reducing_gap=2)) for one in resized])
    return np.moveaxis(stack, 0, axis)


def test_all_pages_and_planes_of_a_tiff_are_resized(tmp_path):
    random = np.random.default_rng(0)
    pages = random.integers(0, 256, (5, 40, 50), dtype=np.uint8)
    colours = random.integers(0, 256, (5, 40, 50, 3), dtype=np.uint8)
    planes = random.integers(0, 256, (3, 40, 50), dtype=np.uint8)
    stack = random.integers(0, 256, (2, 3, 40, 50), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="minisblack")
    tifffile.imwrite(tmp_path / "colours.tif", colours, photometric="rgb")
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True, metadata={"axes": "TZYX"})
    with tifffile.TiffWriter(tmp_path / "series.tif") as file:  # each a series of its own
        for page in pages:
            file.write(page, metadata=None, contiguous=False)
            file.write(page, metadata={"Name": "again"}, contiguous=False)
    again = np.repeat(pages, 2, axis=0)
    for name, array in (
        ("pages.tif", pages), ("colours.tif", colours), ("planes.tif", planes),
        ("stack.tif", stack), ("series.tif", again),
    ):  # fmt: skip
        flat = array.reshape(-1, *array.shape[-2:]) if name == "stack.tif" else array
        expected = (
            each(flat, 0, (25, 20)).reshape(*array.shape[: flat.ndim - 3], -1, 20, 25)
            if (name == "stack.tif")
            else each(flat, 0, (25, 20))
        )
        resized = array_of(tmp_path, name, Resizing(20))
        np.testing.assert_array_equal(resized.reshape(expected.shape), expected, err_msg=name)
        assert resized.ndim == array.ndim and len(resized) == len(array)


def test_a_tiff_whose_axes_are_not_known_is_refused(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 50), np.uint8))
    monkeypatch.setattr(tifffile.TiffPageSeries, "axes", property(lambda series: "QI"))
    reason = failure_of(tmp_path, "a.tif", Resizing(20))
    assert "which axes of its array (40, 50) are height, width" in reason
    assert "my_read" in reason
    assert array_of(tmp_path, "a.tif", None).shape == (40, 50)


def test_all_frames_of_animations_are_resized(tmp_path):
    frames = [photo(40, 50, number) for number in range(3)]
    rest: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    frames[0].save(tmp_path / "a.webp", lossless=True, **rest)
    frames[0].save(tmp_path / "a.png", **rest)
    frames[0].save(tmp_path / "a.gif", **rest)
    data = b"".join(b"P6\n50 40\n255\n" + frame.tobytes() for frame in frames)
    (tmp_path / "a.ppm").write_bytes(data)
    for name in ("a.webp", "a.png", "a.ppm"):
        array = array_of(tmp_path, name, Resizing(20))
        whole = read_image(tmp_path / name)
        assert array.shape == (3, 20, 25, 3) and whole.shape == (3, 40, 50, 3)
        np.testing.assert_array_equal(array, each(whole, 0, (25, 20)), err_msg=name)
    whole = read_image(tmp_path / "a.gif")
    expected = [PIL.Image.fromarray(frame).resize((25, 20), NEAREST) for frame in whole]
    resized = array_of(tmp_path, "a.gif", Resizing(20))
    np.testing.assert_array_equal(resized, np.stack([np.asarray(one) for one in expected]))


def test_opencvs_array_is_resized_turned_and_in_its_order(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    photo().save(tmp_path / "a.jpg", exif=exif)
    photo().quantize(9).save(tmp_path / "b.png")
    array = array_of(tmp_path, "a.jpg", Resizing(60), reader="opencv")
    whole = cv2.imread(str(tmp_path / "a.jpg"))
    assert whole.shape == (203, 150, 3)
    expected = PIL.Image.fromarray(whole).resize((60, 81), reducing_gap=2)
    np.testing.assert_array_equal(array, np.asarray(expected))
    array = array_of(tmp_path, "b.png", Resizing(60), reader="opencv")
    expected = PIL.Image.fromarray(cv2.imread(str(tmp_path / "b.png"))).resize((81, 60), NEAREST)
    np.testing.assert_array_equal(array, np.asarray(expected))


def test_the_longest_and_the_smallest_images_come_out_or_are_refused(tmp_path):
    photo(1, 5000).save(tmp_path / "a.jpg")
    photo(1, 5000).save(tmp_path / "a.png")
    for name in ("a.jpg", "a.png"):
        assert array_of(tmp_path, name, Resizing(256)).shape == (1, 5000, 3)
        assert array_of(tmp_path, name, Resizing(100, "longer")).shape == (1, 100, 3)
        assert array_of(tmp_path, name, Resizing(7, "crop")).shape == (7, 7, 3)
        assert array_of(tmp_path, name, Resizing((3, 2), "exact")).shape == (2, 3, 3)
        large = Resizing(20000, "crop")
        assert "more than the limit" in failure_of(tmp_path, name, large)


def test_the_limit_on_pixels_is_that_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", PIL.Image.MAX_IMAGE_PIXELS)
    photo(400, 500).save(tmp_path / "a.jpg")
    assert array_of(tmp_path, "a.jpg", Resizing(20), max_pixels=200_000).shape == (20, 25, 3)
    for store in ("array", "encoded"):
        reason = failure_of(tmp_path, "a.jpg", Resizing(20), max_pixels=199_999, store=store)
        assert reason.startswith("it has 200000 pixels")


def test_photos_look_as_by_lanczos_from_all_their_pixels(tmp_path):
    differences = []
    for number, photo_of in enumerate(photos(4)):
        for factor in (1, 3):
            image = PIL.Image.fromarray(photo_of.pixels)
            image = image.resize((image.width * factor, image.height * factor))
            image.save(tmp_path / "a.jpg", quality=90)
            with PIL.Image.open(tmp_path / "a.jpg") as whole:
                size = (whole.width * 200 // whole.height, 200)
                best = np.asarray(whole.resize((267, 200), PIL.Image.Resampling.LANCZOS), float)
            assert size[0] in (266, 267), number
            array = array_of(tmp_path, "a.jpg", Resizing(200))
            differences.append(np.abs(array - best).mean())
    assert max(differences) < 1.5


def test_payloads_lie_in_a_shared_buffer_side_by_side(tmp_path):
    """Also where only a part is cut out, or where nothing changes."""
    photo(150, 203).save(tmp_path / "a.jpg", quality=90)
    photo(600, 800).save(tmp_path / "b.jpg", quality=90)
    for resizing in (Resizing(150, "crop"), Resizing(150), Resizing(40), Resizing(900)):
        for store in ("array", "encoded"):
            buffer = Buffer()
            encoder = Encoder(
                Settings(str(tmp_path), store=store, compression=NONE, resizing=resizing)
            )
            results = [encoder.encode(name, buffer) for name in ("a.jpg", "b.jpg", "a.jpg")]
            offset = 0
            for result in results:
                assert isinstance(result, Encoded)
                expected = array_of(tmp_path, result.key, resizing, store=store)
                begin, offset = offset, offset + result.record_nbytes
                payload = bytes(buffer.payload()[begin : begin + result.parts[0].nbytes])
                assert payload == expected.tobytes()
                assert result.layout.shape == expected.shape


def test_a_survey_tells_how_large_each_choice_is(tmp_path):
    photo(150, 203).save(tmp_path / "a.jpg", quality=90)
    frames = [photo(150, 203, number) for number in range(2)]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    choices = tuple(
        Choice(store, compression, resizing)
        for resizing in (None, Resizing(60), Resizing(400))
        for store, compression in (("array", AUTO), ("array", NONE), ("encoded", AUTO))
    )
    surveyed = Encoder(Settings(str(tmp_path), choices=choices)).encode("a.jpg", Buffer())
    assert isinstance(surveyed, Surveyed)
    for choice, nbytes in zip(choices, surveyed.stored_nbytes, strict=True):
        store, compression, resizing = choice
        settings = Settings(str(tmp_path), store, compression, resizing=resizing)
        encoded = settings.start().encode("a.jpg", Buffer())
        assert isinstance(encoded, Encoded) and encoded.record_nbytes == nbytes
