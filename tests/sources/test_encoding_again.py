"""A resized image that is stored encoded is a file of its own format again."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile

from converter.codecs.compression import AUTO
from converter.images.formats import decode_image
from converter.samples import Buffer, Encoded, Failure, Surveyed
from converter.sources.encoder import Encoder
from converter.sources.images import read_image
from converter.sources.readers import Choice, Settings
from converter.sources.resizing import Resizing
from helpers import written_images
from helpers.photos import photos

ORIENTATION, ARTIST = 0x0112, 0x013B
PROFILE = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
SMALLER = Resizing(40)


@functools.cache
def made(number: int) -> PIL.Image.Image:
    """One of the photos that are made, smaller."""
    image = PIL.Image.fromarray(list(photos(number + 1))[number].pixels)
    return image.resize((160, 120), PIL.Image.Resampling.BICUBIC)


def photo(number: int = 0) -> PIL.Image.Image:
    """A photo of 120 x 160 pixels."""
    return made(number).copy()


def with_alpha(image: PIL.Image.Image) -> PIL.Image.Image:
    """The photo, transparent below a slanted line."""
    alpha = np.add.outer(np.arange(120), np.arange(160)).clip(0, 255).astype(np.uint8)
    image.putalpha(PIL.Image.fromarray(alpha))
    return image


def stored(folder: Path, name: str, resizing: Resizing | None, store: str) -> np.ndarray | Failure:
    """Return the payload of a file as it would be stored."""
    settings = Settings(str(folder), store=store, resizing=resizing)
    read = settings.start().read(name, Buffer())
    return read if isinstance(read, Failure) else read.copy()


def again(folder: Path, name: str, resizing: Resizing = SMALLER) -> bytes:
    """Return the file that a file becomes; a failure fails the test."""
    found = stored(folder, name, resizing, "encoded")
    assert not isinstance(found, Failure), found
    return found.tobytes()


def write(path: Path, array: np.ndarray, head: bytes) -> None:
    path.write_bytes(head + array.astype(array.dtype.newbyteorder(">")).tobytes())


def deep(channels: int) -> np.ndarray:
    """The photo in 16 bits."""
    pixels = np.asarray(with_alpha(photo()), np.uint16)
    return np.ascontiguousarray((pixels * 257 + 3)[..., 4 - channels :])


def gif_of(folder: Path, **options: Any) -> None:
    photo().quantize(31).save(folder / "a.gif", **options)


GRAY = np.asarray(photo().convert("L"))
GRAY_16 = GRAY.astype(np.uint16)
PAGES = np.stack([GRAY, GRAY[::-1]])
LOSSLESS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "png gray": ("PNG", lambda path: photo().convert("L").save(path)),
    "png bilevel": ("PNG", lambda path: photo().convert("1").save(path)),
    "png rgb": ("PNG", lambda path: photo().save(path)),
    "png rgba": ("PNG", lambda path: with_alpha(photo()).save(path)),
    "png gray alpha": ("PNG", lambda path: with_alpha(photo().convert("LA")).save(path)),
    "png palette": ("PNG", lambda path: photo().quantize(200).save(path)),
    "png palette of 4": ("PNG", lambda path: photo().quantize(4).save(path, transparency=2)),
    "png 16 bits gray": ("PNG", lambda path: PIL.Image.fromarray(GRAY_16 * 257).save(path)),
    "png 16 bits rgb": ("PNG", lambda path: path.write_bytes(written_images.png(deep(3), 2, 16))),
    "png 16 bits rgba": ("PNG", lambda path: path.write_bytes(written_images.png(deep(4), 6, 16))),
    "png 16 bits la": ("PNG", lambda path: path.write_bytes(written_images.png(deep(2), 4, 16))),
    "gif": ("GIF", lambda path: photo().quantize(31).save(path)),
    "gif transparent": ("GIF", lambda path: photo().quantize(31).save(path, transparency=4)),
    "gif gray": ("GIF", lambda path: photo().convert("L").save(path, optimize=False)),
    "bmp rgb": ("BMP", lambda path: photo().save(path)),
    "bmp gray": ("BMP", lambda path: photo().convert("L").save(path)),
    "bmp palette": ("BMP", lambda path: photo().quantize(50).save(path)),
    "bmp bilevel": ("BMP", lambda path: photo().convert("1").save(path)),
    "tga rgb": ("TGA", lambda path: photo().save(path, compression="tga_rle")),
    "tga rgba": ("TGA", lambda path: with_alpha(photo()).save(path)),
    "tga palette": ("TGA", lambda path: photo().quantize(50).save(path)),
    "webp rgb": ("WEBP", lambda path: photo().save(path, lossless=True)),
    "webp rgba": ("WEBP", lambda path: with_alpha(photo()).save(path, lossless=True)),
    "pgm": ("PPM", lambda path: photo().convert("L").save(path)),
    "ppm": ("PPM", lambda path: photo().save(path)),
    "pbm": ("PPM", lambda path: photo().convert("1").save(path)),
    "pgm maxval 1023": ("PPM", lambda path: write(path, GRAY_16 * 4, b"P5 160 120 1023\n")),
    "pfm": ("PPM", lambda path: write(path, GRAY.astype("f4"), b"Pf\n160 120\n1.0\n")),
    "tiff rgb": ("TIFF", lambda path: photo().save(path)),
    "tiff cmyk": ("TIFF", lambda path: photo().convert("CMYK").save(path)),
    "tiff bilevel": ("TIFF", lambda path: photo().convert("1").save(path)),
    "tiff palette": ("TIFF", lambda path: photo().quantize(50).save(path)),
    "tiff rgba": (
        "TIFF",
        lambda path: tifffile.imwrite(path, deep(4), photometric="rgb", extrasamples=[2]),
    ),
    "tiff planes": (
        "TIFF",
        lambda path: tifffile.imwrite(
            path, np.moveaxis(deep(3), 2, 0), photometric="rgb", planarconfig="separate"
        ),
    ),
    "tiff pages": ("TIFF", lambda path: tifffile.imwrite(path, PAGES)),
    "tiff deflated": (
        "TIFF",
        lambda path: tifffile.imwrite(path, GRAY, compression="zlib", photometric="miniswhite"),
    ),
    "tiff big-endian": ("TIFF", lambda path: tifffile.imwrite(path, deep(3), byteorder=">")),
    "tiff 12 bits": ("TIFF", lambda path: tifffile.imwrite(path, GRAY_16 * 16, bitspersample=12)),
    "tiff float": ("TIFF", lambda path: tifffile.imwrite(path, GRAY.astype("f4") / 7)),
}  # fmt: skip
EXTENSIONS = {"tiff": "tif", "pgm": "pgm"}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_lossless_format_holds_the_resized_array_again(kind, tmp_path):
    name = f"a.{EXTENSIONS.get(kind.split()[0], kind.split()[0])}"
    try:
        LOSSLESS[kind][1](tmp_path / name)
    except NotImplementedError as error:  # bits are packed since imagecodecs 2023.7
        pytest.skip(str(error))
    for resizing in (SMALLER, Resizing(40, "crop"), Resizing(64, filter="nearest")):
        array = stored(tmp_path, name, resizing, "array")
        assert not isinstance(array, Failure), array
        data = again(tmp_path, name, resizing)
        decoded = decode_image(data, name.rpartition(".")[2])
        assert decoded.dtype == array.dtype
        np.testing.assert_array_equal(decoded, array)
    if kind == "pfm":  # Pillow reads it since 10.3
        assert data.startswith(b"Pf\n")
        return
    with PIL.Image.open(io.BytesIO(data)) as image, PIL.Image.open(tmp_path / name) as before:
        assert image.format == LOSSLESS[kind][0]
        assert image.mode == before.mode


def test_a_pam_keeps_its_kind_and_its_maxval(tmp_path):
    pixels = np.asarray(with_alpha(photo()))
    head = b"P7\nWIDTH 160\nHEIGHT 120\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n"
    (tmp_path / "a.pam").write_bytes(head + pixels.tobytes())
    data = again(tmp_path, "a.pam")
    assert data.startswith(
        b"P7\nWIDTH 53\nHEIGHT 40\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n"
    )
    assert np.array_equal(decode_image(data, "pam"), stored(tmp_path, "a.pam", SMALLER, "array"))
    pixels = pixels[..., 0] > 99
    head = b"P7\nWIDTH 160\nHEIGHT 120\nDEPTH 1\nMAXVAL 1\nTUPLTYPE BLACKANDWHITE\nENDHDR\n"
    (tmp_path / "a.pam").write_bytes(head + pixels.tobytes())
    array = stored(tmp_path, "a.pam", SMALLER, "array")
    assert np.array_equal(decode_image(again(tmp_path, "a.pam"), "pam"), array)
    parts = [b"P5\n160 120\n255\n" + one.tobytes() for one in (GRAY, GRAY[::-1])]
    (tmp_path / "a.pnm").write_bytes(b"".join(parts))
    decoded = decode_image(again(tmp_path, "a.pnm"), "pnm")
    assert decoded.shape == (2, 40, 53)
    assert np.array_equal(decoded, stored(tmp_path, "a.pnm", SMALLER, "array"))


def test_nan_is_kept_where_nearest_takes_it(tmp_path):
    pixels = GRAY.astype(">f4")
    pixels[20:70, 30:90], pixels[0] = np.nan, -0.0
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    write(tmp_path / "a.pfm", pixels, b"Pf\n160 120\n1.0\n")
    nearest = Resizing(40, filter="nearest")
    for name in ("a.tif", "a.pfm"):
        array = stored(tmp_path, name, nearest, "array")
        assert isinstance(array, np.ndarray) and np.isnan(array).any()
        decoded = decode_image(again(tmp_path, name, nearest), name[2:])
        assert decoded.tobytes() == array.tobytes()


def test_a_tiff_keeps_what_its_numbers_are(tmp_path):
    pixels = np.asarray(photo().convert("CMYK"))
    options: dict[str, Any] = {"photometric": "separated", "compression": "zlib"}
    turned = [(ORIENTATION, 3, 1, 6, True), (34675, 7, len(PROFILE), PROFILE, True)]
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=turned, **options)
    with tifffile.TiffFile(io.BytesIO(again(tmp_path, "a.tif"))) as tiff:
        page: Any = tiff.pages.first
        assert page.photometric == tifffile.PHOTOMETRIC.SEPARATED
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert page.tags["InterColorProfile"].value == PROFILE
        assert page.tags["Orientation"].value == 6
    pytest.importorskip("imagecodecs")
    photo().save(tmp_path / "b.tif", compression="jpeg", quality=95)
    with tifffile.TiffFile(io.BytesIO(again(tmp_path, "b.tif"))) as tiff:
        assert tiff.pages.first.photometric == tifffile.PHOTOMETRIC.RGB


COLOURS = np.random.default_rng(0).integers(0, 65536, (2, 3, 256), dtype=np.uint16)
TURNED = [(ORIENTATION, 3, 1, 6, True)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"photometric": "minisblack"}, {"photometric": "miniswhite"}),
        ({"photometric": "minisblack"}, {"photometric": "minisblack", "extratags": TURNED}),
        *(
            ({"photometric": "palette", "colormap": COLOURS[0]}, second)
            for second in (
                {"photometric": "palette", "colormap": COLOURS[1]},
                {"photometric": "minisblack"},
            )
        ),
    ],
    ids=["white", "turned", "another palette", "no palette"],
)
def test_a_tiff_whose_pages_mean_different_things_is_a_failure(first, second, tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for options in (first, second):
            file.write(GRAY, metadata=None, contiguous=False, **options)
    failure = stored(tmp_path, "a.tif", SMALLER, "encoded")
    assert isinstance(failure, Failure)
    assert "(its pages differ in colours, alpha, profile or orientation)" in failure.reason
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        for compression in (None, "zlib"):
            file.write(GRAY, metadata=None, contiguous=False, compression=compression, **first)
    with tifffile.TiffFile(io.BytesIO(again(tmp_path, "b.tif"))) as tiff:
        assert len(tiff.pages) == 2


@pytest.mark.parametrize("quality", [None, 60])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_what_pillow_saves_at_that_quality(mode, quality, tmp_path):
    photo().convert(mode).save(tmp_path / "a.jpg", quality=97, subsampling=0)
    resizing = Resizing(40, quality=quality)
    array = stored(tmp_path, "a.jpg", resizing, "array")
    assert not isinstance(array, Failure)
    expected = io.BytesIO()
    size = array.shape[1], array.shape[0]
    pillows = PIL.Image.frombytes(mode, size, array.tobytes())
    pillows.save(expected, "JPEG", quality=quality or 90)
    data = again(tmp_path, "a.jpg", resizing)
    assert len(data) <= 1.02 * len(expected.getvalue())
    with PIL.Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", mode, size)
        np.testing.assert_array_equal(image, PIL.Image.open(expected))
    decoded = decode_image(data, "jpg").astype(float)
    assert np.abs(decoded - array).mean() < 15


def test_a_lossy_webp_is_lossy_again_at_that_quality(tmp_path):
    with_alpha(photo()).save(tmp_path / "a.webp", quality=95)
    array = stored(tmp_path, "a.webp", SMALLER, "array")
    assert not isinstance(array, Failure)
    sizes = []
    for quality in (30, 90):
        data = again(tmp_path, "a.webp", Resizing(40, quality=quality))
        sizes.append(len(data))
        assert b"VP8 " in data and b"VP8L" not in data
        decoded = decode_image(data, "webp")
        assert decoded.shape == array.shape == (40, 53, 4)
        seen = array[..., 3] > 200
        assert np.abs(decoded[seen].astype(float) - array[seen]).mean() < 12
    assert sizes[0] < 0.7 * sizes[1]


def test_a_webp_is_lossless_again_also_within_an_animation_of_one_frame(tmp_path):
    still = io.BytesIO()
    photo().save(still, "WEBP", lossless=True)
    chunk = still.getvalue()[12:]
    frame = bytes(6) + (159).to_bytes(3, "little") + (119).to_bytes(3, "little") + bytes(4)
    size = frame[6:12]
    body = b"".join(
        kind + len(content).to_bytes(4, "little") + content
        for kind, content in (
            (b"VP8X", b"\x02\0\0\0" + size), (b"ANIM", bytes(6)), (b"ANMF", frame + chunk),
        )
    )  # fmt: skip
    data = b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body
    (tmp_path / "a.webp").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "a.webp"), np.asarray(photo()))
    assert b"VP8L" in again(tmp_path, "a.webp")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "b.webp"])
def test_the_profile_and_the_orientation_are_kept_and_the_rest_is_not(name, tmp_path):
    exif = PIL.Image.Exif()
    exif[ORIENTATION], exif[ARTIST] = 6, "somebody"
    options: dict[str, Any] = {"lossless": True} if name == "b.webp" else {}
    photo().save(tmp_path / name, exif=exif, icc_profile=PROFILE, **options)
    with PIL.Image.open(io.BytesIO(again(tmp_path, name))) as image:
        assert image.info["icc_profile"] == PROFILE
        assert dict(image.getexif()) == {ORIENTATION: 6}


def test_a_16_bit_colour_png_keeps_its_profile_and_orientation(tmp_path):
    eight = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = 8
    photo().save(eight, "PNG", exif=exif, icc_profile=PROFILE)
    found = dict(pngs_chunks(eight.getvalue()))
    plain = written_images.png(deep(3), 2, 16)
    (tmp_path / "a.png").write_bytes(plain[:33] + found[b"iCCP"] + found[b"eXIf"] + plain[33:])
    with PIL.Image.open(io.BytesIO(again(tmp_path, "a.png"))) as image:
        assert image.info["icc_profile"] == PROFILE
        assert dict(image.getexif()) == {ORIENTATION: 8}


def pngs_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, offset = [], 8
    while offset < len(data):
        end = offset + 12 + int.from_bytes(data[offset : offset + 4], "big")
        chunks.append((data[offset + 4 : offset + 8], data[offset:end]))
        offset = end
    return chunks


def test_a_jpeg_with_damaged_exif_has_none_afterwards(tmp_path):
    photo().save(tmp_path / "a.jpg", exif=b"Exif\0\0no TIFF at all", icc_profile=PROFILE)
    with PIL.Image.open(io.BytesIO(again(tmp_path, "a.jpg"))) as image:
        assert dict(image.getexif()) == {} and image.info["icc_profile"] == PROFILE


def test_a_palette_is_kept_with_its_transparency(tmp_path):
    image = photo().quantize(30)
    image.save(tmp_path / "a.png", transparency=bytes(range(0, 240, 8)))
    with PIL.Image.open(io.BytesIO(again(tmp_path, "a.png"))) as smaller:
        assert smaller.mode == "P"
        assert smaller.getpalette() == PIL.Image.open(tmp_path / "a.png").getpalette()
        assert smaller.info["transparency"] == bytes(range(0, 240, 8))
        expected = image.resize((53, 40), PIL.Image.Resampling.NEAREST)
        np.testing.assert_array_equal(smaller, expected)


def test_files_that_need_no_change_keep_their_bytes_and_are_still_decoded(tmp_path):
    photo().save(tmp_path / "a.jpg", comment=b"kept")
    photo().save(tmp_path / "a.png")
    for name in ("a.jpg", "a.png"):
        data = (tmp_path / name).read_bytes()
        for resizing in (Resizing(120), Resizing(160, "longer"), Resizing((160, 120), "exact")):
            assert again(tmp_path, name, resizing) == data
        for size in (90, 120):
            (tmp_path / name).write_bytes(data[:-400])
            failure = stored(tmp_path, name, Resizing(size), "encoded")
            assert isinstance(failure, Failure) and "truncated" in failure.reason


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_an_animation_is_a_failure_that_names_the_cure(name, tmp_path):
    frames = [photo(number) for number in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    failure = stored(tmp_path, name, SMALLER, "encoded")
    assert isinstance(failure, Failure)
    what = {"a.gif": "GIF", "a.png": "PNG", "a.webp": "WebP"}[name]
    assert failure.reason == (
        f"resized, it cannot be encoded as {what} again (it is an animation of 3 frames): "
        "--store=array stores its array"
    )
    assert again(tmp_path, name, Resizing(120)) == (tmp_path / name).read_bytes()


def test_what_a_format_cannot_hold_is_a_failure_and_never_other_values(tmp_path, monkeypatch):
    photo().save(tmp_path / "a.png")
    real = PIL.Image.Image.resize

    def other(image: PIL.Image.Image, *args: Any, **options: Any) -> PIL.Image.Image:
        return real(image, *args, **options).point(lambda value: value ^ 1)

    photo().quantize(30).save(tmp_path / "b.png")
    monkeypatch.setattr(PIL.Image.Image, "resize", other)  # of b.png's indices, not of its array
    failure = stored(tmp_path, "b.png", SMALLER, "encoded")
    assert isinstance(failure, Failure) and "it would hold other values" in failure.reason
    monkeypatch.undo()
    monkeypatch.setattr("converter.images.png.saved", lambda *args, **options: b"")
    failure = stored(tmp_path, "a.png", SMALLER, "encoded")
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("resized, it cannot be encoded as PNG again (")


def test_h5folder_decodes_what_was_encoded_again(tmp_path):
    """By the extension of its key and its first bytes, as any file that is stored encoded."""
    for name, save in (("a.jpg", photo().save), ("a.PNG", photo().save)):
        save(tmp_path / name)
        settings = Settings(str(tmp_path), "encoded", AUTO, resizing=SMALLER)
        buffer = Buffer()
        encoded = settings.start().encode(name, buffer)
        assert isinstance(encoded, Encoded)
        assert encoded.layout.content == "encoded" and encoded.layout.dtype == np.uint8
        payload = bytes(buffer.payload()[: encoded.parts[0].nbytes])
        (tmp_path / f"again_{name}").write_bytes(payload)
        assert read_image(tmp_path / f"again_{name}").shape == (40, 53, 3)


def test_a_survey_counts_what_cannot_be_encoded_again_as_nothing(tmp_path):
    frames = [photo(number) for number in range(2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    array, encoded = Choice("array", AUTO, SMALLER), Choice("encoded", AUTO, SMALLER)
    surveyed = Encoder(Settings(str(tmp_path), choices=(array, encoded))).encode("a.gif", Buffer())
    assert isinstance(surveyed, Surveyed)
    assert surveyed.stored_nbytes[0] > 2 * 40 * 53 * 3 / 2 and surveyed.stored_nbytes[1] == 0
    refused = Encoder(Settings(str(tmp_path), choices=(encoded,))).encode("a.gif", Buffer())
    assert isinstance(refused, Failure) and "--store=array" in refused.reason
