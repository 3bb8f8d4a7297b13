"""The default reader gives imageio's arrays, with and without the faster packages."""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import imageio.v3 as iio
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest

from converter import read_image
from converter.images import jpeg
from converter.images.formats import check_noted, decode_noted
from converter.images.jpeg import decoders_agree
from converter.samples import Note
from helpers.check import assert_same, case, failures, stored
from helpers.images import as_pillow_reads, colours, save, save_frames, save_jpegs, save_tiff
from helpers.run import ROOT, Finished, command, run, write_functions

simplejpeg = pytest.importorskip("simplejpeg", reason="the faster decoder is what is compared")


def noisy(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, shape)
    return (noise // 4 + colours(seed, shape) // 2).astype(np.uint8)


def with_pillow(array: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    image = PIL.Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, "JPEG", **options)
    return file.getvalue()


def exif(orientation: int) -> PIL.Image.Exif:
    found = PIL.Image.Exif()
    found[0x112] = orientation
    return found


def two_frames() -> bytes:
    file = io.BytesIO()
    frames = [PIL.Image.fromarray(noisy((40, 50, 3), seed)) for seed in range(2)]
    frames[0].save(file, "MPO", save_all=True, append_images=frames[1:])
    return file.getvalue()


def jpeg_kinds() -> dict[str, bytes]:
    """Return a JPEG of every kind that Pillow or libjpeg-turbo can write."""
    array = noisy((67, 93, 3))
    kinds = {
        f"{name}_quality_{quality}": with_pillow(array, quality=quality, subsampling=number)
        for number, name in enumerate(("444", "422", "420"))
        for quality in (1, 30, 75, 95, 100)
    }
    for subsampling in ("444", "422", "420", "440", "411", "441"):
        try:
            data = simplejpeg.encode_jpeg(array, 80, "RGB", subsampling)
        except (ValueError, KeyError):
            continue
        kinds[f"turbo_{subsampling}"] = data
    for name, options in {
        "progressive": {"progressive": True},
        "progressive_444": {"progressive": True, "subsampling": 0},
        "optimized": {"optimize": True},
        "restart_markers": {"restart_marker_blocks": 2},
        "restart_markers_by_row": {"restart_marker_rows": 1},
        "rgb_kept": {"keep_rgb": True},
        "comment": {"comment": b"a comment"},
        "icc_profile": {
            "icc_profile": PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("LAB")).tobytes()
        },
        "quality_tables": {"qtables": "web_low"},
        "dpi": {"dpi": (72, 300)},
    }.items():
        kinds[name] = with_pillow(array, **options)
    for orientation in range(1, 9):
        kinds[f"exif_{orientation}"] = with_pillow(array, exif=exif(orientation))
    kinds["gray"] = with_pillow(noisy((67, 93)))
    kinds["gray_progressive"] = with_pillow(noisy((67, 93)), progressive=True)
    kinds["one_bit"] = with_pillow(noisy((67, 93)), "1")
    kinds["cmyk"] = with_pillow(array, "CMYK")
    kinds["cmyk_progressive"] = with_pillow(array, "CMYK", progressive=True)
    kinds["ycbcr"] = with_pillow(array, "YCbCr")
    kinds["two_frames"] = two_frames()
    for height, width in ((1, 1), (1, 17), (17, 1), (7, 9), (8, 8), (16, 16), (15, 33), (300, 2)):
        kinds[f"size_{height}x{width}"] = with_pillow(noisy((height, width, 3)))
        kinds[f"size_{height}x{width}_gray"] = with_pillow(noisy((height, width)))
    whole = kinds["420_quality_75"]
    scan = whole.index(b"\xff\xda")
    kinds["trailing_garbage"] = whole + b"garbage" * 100
    kinds["trailing_zeros"] = whole + bytes(5000)
    kinds["two_images"] = whole + kinds["gray"]
    kinds["leading_fill_bytes"] = whole[:2] + b"\xff\xff" + whole[2:]
    kinds["without_end"] = whole[:-2]
    for part in (0.3, 0.6, 0.9, 0.99):
        kinds[f"truncated_{part}"] = whole[: int(len(whole) * part)]
        progressive = kinds["progressive"]
        kinds[f"truncated_progressive_{part}"] = progressive[: int(len(progressive) * part)]
    kinds["truncated_in_the_header"] = whole[: scan // 2]
    kinds["truncated_before_the_scan"] = whole[: scan + 4]
    generator = np.random.default_rng(5)
    for number in range(60):  # some of these imageio accepts, with some pixels
        damaged = bytearray(
            kinds[("420_quality_75", "progressive", "gray", "turbo_444")[number % 4]]
        )
        start = 2 if number % 3 == 0 else damaged.index(b"\xff\xda") + 10
        for place in generator.integers(start, len(damaged) - 2, 1 + number % 4):
            damaged[place] = generator.integers(0, 256)
        kinds[f"damaged_{number}"] = bytes(damaged)
    arithmetic = whole.replace(b"\xff\xc0", b"\xff\xc9", 1)
    kinds["arithmetic_by_its_marker"] = arithmetic
    kinds["lossless_by_its_marker"] = whole.replace(b"\xff\xc0", b"\xff\xc3", 1)
    kinds["12_bits"] = with_precision(whole, 12)
    kinds["empty"] = b""
    kinds["no_image"] = b"not an image"
    kinds["a_png"] = png_bytes(noisy((5, 6, 3)))
    return kinds


def with_precision(data: bytes, bits: int) -> bytes:
    place = data.index(b"\xff\xc0") + 4
    return data[:place] + bytes([bits]) + data[place + 1 :]


def png_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


JPEG_KINDS = jpeg_kinds()


def read_or_error(function: Any, path: Path) -> np.ndarray | Exception:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(path)
        except Exception as error:
            return error


def test_every_kind_of_jpeg_has_imageios_pixels_or_fails_there_too(tmp_path):
    for kind, content in JPEG_KINDS.items():
        with case(kind):
            path = tmp_path / "x.jpg"
            path.write_bytes(content)
            expected = read_or_error(as_pillow_reads, path)
            found = read_or_error(read_image, path)
            if isinstance(expected, Exception):
                assert isinstance(found, Exception)
            else:
                assert_same(found, expected)


@pytest.fixture(scope="module")
def all_jpegs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("jpegs")
    for kind, data in JPEG_KINDS.items():
        (folder / f"{kind}.jpg").write_bytes(data)
    return folder


def assert_as_imageio_reads(folder: Path, output: Path) -> None:
    found, failed = stored(output), failures(output)
    assert set(found) | set(failed) == {path.name for path in folder.iterdir()}
    for name in sorted(set(found) | set(failed)):
        expected = read_or_error(as_pillow_reads, folder / name)
        if isinstance(expected, Exception):
            assert name in failed
        else:
            assert_same(found[name], expected)


@pytest.mark.slow
def test_every_kind_of_jpeg_is_stored_with_imageios_pixels(all_jpegs, output):
    ended = run(command(all_jpegs, output, "--workers=2"))
    assert ended.status == 1
    assert_as_imageio_reads(all_jpegs, output)


WITHOUT = """
import sys
for name in {names!r}:
    sys.modules[name] = None
sys.path.insert(0, {root!r})
from converter.cli import main

if __name__ == "__main__":
    sys.exit(main())
"""


def run_without(names: list[str], folder: Path, output: Path, *flags: str) -> Finished:
    """Convert in a process that cannot import these packages."""
    text = WITHOUT.format(names=names, root=str(ROOT))
    driver = write_functions(output.parent.parent / "driver.py", text)
    return run([sys.executable, str(driver), *command(folder, output, *flags)[2:]])


@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", [1, 2])
def test_without_the_faster_packages_the_arrays_are_the_same_and_it_says_so_once(
    workers, all_jpegs, output
):
    ended = run_without(["simplejpeg", "zlib_ng"], all_jpegs, output, f"--workers={workers}")
    assert ended.status == 1, ended.err
    assert ended.err.count("pip install simplejpeg zlib-ng") == 1
    assert ended.err.count("would be faster with simplejpeg and zlib-ng") == 1
    assert_as_imageio_reads(all_jpegs, output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "package"), [("simplejpeg", "simplejpeg"), ("zlib_ng", "zlib-ng")]
)
def test_the_one_faster_package_that_is_missing_is_named(module, package, folder, output):
    save_jpegs(folder, ["a.jpg"])
    save(folder / "mask.jpg", np.zeros((200, 200), np.uint8))
    ended = run_without([module], folder, output, "--workers=2")
    assert ended.status == 0
    assert f"pip install {package}\n" in ended.err
    assert_as_imageio_reads(folder, output)
    with h5py.File(output) as file:
        assert file["mask.jpg"].compression == "gzip"


@pytest.mark.slow
def test_with_the_faster_packages_nothing_is_said_of_them(folder, output):
    save_jpegs(folder, ["a.jpg"])
    ended = run(command(folder, output))
    assert "pip install" not in ended.err


def test_the_two_jpeg_decoders_are_compared_on_this_machine(monkeypatch):
    decoders_agree.cache_clear()
    assert decoders_agree()
    decoders_agree.cache_clear()
    real = simplejpeg.decode_jpeg

    def other_upsampling(*args: Any, **options: Any) -> np.ndarray:
        array = real(*args, **options)
        array[3, 3] ^= 1
        return array

    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", other_upsampling)
    try:
        assert not decoders_agree()
    finally:
        decoders_agree.cache_clear()


def test_a_decoder_that_differs_is_not_used(monkeypatch, tmp_path):
    path = save(tmp_path / "a.jpg", noisy((50, 60, 3)))
    expected = as_pillow_reads(path)
    monkeypatch.setattr(
        jpeg.simplejpeg, "decode_jpeg", lambda *args, **options: np.zeros((50, 60, 3), np.uint8)
    )
    decoders_agree.cache_clear()
    try:
        assert_same(read_image(path), expected)
    finally:
        decoders_agree.cache_clear()


def test_exif_orientation_is_not_applied(tmp_path):
    path = tmp_path / "rotated.jpg"
    path.write_bytes(JPEG_KINDS["exif_6"])
    assert read_image(path).shape == (67, 93, 3)


def test_colours_are_in_rgb_order(tmp_path):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    for name in ("red.jpg", "red.png", "red.bmp", "red.tif"):
        array = read_image(save(tmp_path / name, red))
        assert array[8, 8, 0] > 200
        assert array[8, 8, 2] < 50


# PNG


def write_png(path: Path, array: np.ndarray, colour_type: int, *, interlaced: bool = False) -> Path:
    """Write a 16-bit PNG, which Pillow cannot in colour, as its specification says."""
    height, width = array.shape[:2]

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, int(interlaced))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


DEEP_PNGS = {"rgb": (2, 3), "rgba": (6, 4), "gray_alpha": (4, 2)}


def deep(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (21, 34, channels), dtype=np.uint16)


@pytest.mark.parametrize("kind", DEEP_PNGS)
def test_a_16_bit_colour_png_keeps_its_full_depth(kind, folder, output, convert):
    colour_type, channels = DEEP_PNGS[kind]
    write_png(folder / "deep.png", deep(channels), colour_type)
    write_png(folder / "deep.PNG.png", deep(channels)[:1, :1], colour_type)
    ended = convert(folder, output, "--ext=png")
    assert ended.status == 0, ended.err
    assert_same(stored(output)["deep.png"], deep(channels))
    assert_same(stored(output)["deep.PNG.png"], deep(channels)[:1, :1])


@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_16_bit_colour_png_keeps_its_full_depth_without_opencv(workers, folder, output):
    for kind, (colour_type, channels) in DEEP_PNGS.items():
        write_png(folder / f"{kind}.png", deep(channels), colour_type)
    save(folder / "gray16.png", np.arange(600, dtype=np.uint16).reshape(20, 30) * 99)
    ended = run_without(["cv2"], folder, output, "--ext=png", f"--workers={workers}")
    assert ended.status == 0, ended.err
    for kind, (_, channels) in DEEP_PNGS.items():
        assert_same(stored(output)[f"{kind}.png"], deep(channels))
    assert_same(stored(output)["gray16.png"], np.arange(600, dtype=np.uint16).reshape(20, 30) * 99)


@pytest.mark.parametrize("kind", DEEP_PNGS)
def test_a_damaged_16_bit_colour_png_is_a_failure(kind, folder, output, convert):
    colour_type, channels = DEEP_PNGS[kind]
    path = write_png(folder / "cut.png", deep(channels), colour_type)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    (folder / "head.png").write_bytes(data[:26])
    broken = bytearray(data)
    broken[len(data) // 2] ^= 0xFF
    (folder / "broken.png").write_bytes(broken)
    save(folder / "good.png")
    assert convert(folder, output, "--ext=png").status == 1
    assert set(failures(output)) == {"cut.png", "head.png", "broken.png"}
    assert list(stored(output)) == ["good.png"]


def palette_image(transparent: bool = False) -> PIL.Image.Image:
    image = PIL.Image.fromarray(noisy((20, 30))).convert("P")
    image.putpalette([n % 256 for n in range(7, 775)])
    if transparent:
        image.info["transparency"] = 3
    return image


IMAGES = {
    "gray.png": lambda p: save(p, noisy((20, 30))),
    "gray_alpha.png": lambda p: save(p, noisy((20, 30, 2))),
    "rgba.png": lambda p: save(p, noisy((20, 30, 4))),
    "gray16.png": lambda p: save(p, np.arange(600, dtype=np.uint16).reshape(20, 30) * 109),
    "one_bit.png": lambda p: PIL.Image.fromarray(noisy((20, 30)) > 99).save(p),
    "palette.png": lambda p: palette_image().save(p),
    "moving.png": lambda p: save_frames(p),
    "palette.gif": lambda p: palette_image().save(p),
    "moving.gif": lambda p: save_frames(p),
    "plain.webp": lambda p: save(p, noisy((20, 30, 3)), lossless=True),
    "plain.bmp": lambda p: save(p, noisy((20, 30, 3))),
    "palette.bmp": lambda p: palette_image().save(p),
    "plain.tga": lambda p: save(p, noisy((20, 30, 3))),
    "plain.ppm": lambda p: save(p, noisy((20, 30, 3))),
    "plain.tif": lambda p: save(p, noisy((20, 30, 3))),
    "gray16.tif": lambda p: save(p, np.arange(600, dtype=np.uint16).reshape(20, 30)),
    "floats.tif": lambda p: save(p, np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)),
    "pages.tif": lambda p: save_frames(p),
    "pages.tiff": lambda p: save_frames(p),
    "rgb16.tif": lambda p: save_tiff(p, deep(3)),
    "big_endian.tif": lambda p: save_tiff(p, deep(3), byteorder=">"),
    "pages16.tif": lambda p: save_tiff(p, np.stack([deep(1)[..., 0]] * 3)),
    "volume.tif": lambda p: save_tiff(p, np.zeros((2, 3, 20, 30), np.int16), imagej=False),
}


@pytest.fixture(scope="module")
def all_images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, write in IMAGES.items():
        write(folder / name)
    return folder


def test_every_kind_of_image_is_read_as_imageio_reads_it(all_images):
    for name in IMAGES:
        with case(name):
            plugin = "tifffile" if ".tif" in name else "pillow"
            expected = iio.imread(all_images / name, plugin=plugin)
            assert_same(read_image(all_images / name), expected)


def test_every_kind_of_image_is_stored_as_imageio_reads_it(all_images, output):
    extensions = {name.partition(".")[2] for name in IMAGES}
    ended = run(command(all_images, output, f"--ext={','.join(sorted(extensions))}"))
    assert ended.status == 0, ended.err
    found = stored(output)
    assert set(found) == set(IMAGES)
    for name, array in found.items():
        plugin = "tifffile" if ".tif" in name else "pillow"
        assert_same(array, iio.imread(all_images / name, plugin=plugin))


def test_palettes_are_expanded_and_frames_and_pages_are_all_there(all_images):
    assert read_image(all_images / "palette.png").shape == (20, 30, 3)
    assert read_image(all_images / "moving.gif").shape == (3, 20, 30, 3)
    assert read_image(all_images / "moving.png").shape[0] == 3
    assert read_image(all_images / "pages.tif").shape == (3, 20, 30, 3)
    assert read_image(all_images / "rgb16.tif").dtype == np.uint16
    assert read_image(all_images / "pages16.tif").shape == (3, 21, 34)


def test_an_extension_in_upper_case_is_read_the_same(tmp_path):
    for name in ("x.JPG", "x.PNG", "x.TIF", "x.Jpeg"):
        path = save(tmp_path / name)
        plugin = "tifffile" if name == "x.TIF" else "pillow"
        assert_same(read_image(path), iio.imread(path, plugin=plugin))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_too_many_pixels_are_refused_with_their_number_and_the_flag(workers, folder, output):
    for name in ("large.jpg", "large.png", "large.tif", "large.gif", "large.webp"):
        save(folder / name, colours(0, (40, 50, 3)))
    write_png(folder / "deep.png", np.zeros((40, 50, 3), np.uint16), 2)
    save(folder / "cmyk.jpg")
    PIL.Image.fromarray(colours(0, (40, 50, 3))).convert("CMYK").save(folder / "cmyk.jpg")
    PIL.Image.fromarray(colours(0, (40, 50, 3))).save(folder / "progressive.jpg", progressive=True)
    for name in ("small.jpg", "small.png", "small.tif"):
        save(folder / name, colours(0, (40, 49, 3)))
    flags = ("--ext=jpg,png,tif,gif,webp", f"--workers={workers}")
    ended = run(command(folder, output, "--max_pixels=1960", *flags))
    assert ended.status == 1
    assert set(stored(output)) == {"small.jpg", "small.png", "small.tif"}
    for name, reason in failures(output).items():
        assert "2000 pixels" in reason, name
        assert "--max_pixels" in reason, name
    ended = run(command(folder, output, "--max_pixels=2000", "--overwrite", *flags))
    assert ended.status == 0, ended.err


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_small_limit_on_pixels_refuses_no_smaller_jpeg(workers, folder, output):
    """In a process of its own: each tries the decoders, on images of its own, once."""
    save(folder / "small.jpg", colours(0, (20, 30, 3)))
    save(folder / "large.jpg", colours(0, (20, 31, 3)))
    ended = run(command(folder, output, "--max_pixels=600", f"--workers={workers}"))
    assert ended.status == 1
    assert set(stored(output)) == {"small.jpg"}
    assert "620 pixels" in failures(output)["large.jpg"]


def test_a_small_limit_of_pillow_itself_refuses_no_smaller_jpeg(folder):
    path = save(folder / "small.jpg", colours(0, (20, 30, 3)))
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import PIL.Image
PIL.Image.MAX_IMAGE_PIXELS = 300
from converter import read_image
print(read_image({str(path)!r}).shape)
"""
    assert run([sys.executable, "-c", program]).out == "(20, 30, 3)\n"


@pytest.mark.slow
def test_too_many_pixels_in_a_later_page_are_refused(folder, output):
    """Each page of a TIFF names its own size."""
    first, second = (PIL.Image.fromarray(noisy(shape)) for shape in ((10, 10), (100, 100)))
    first.save(folder / "pages.tif", save_all=True, append_images=[second])
    first.save(folder / "good.tif")
    run(command(folder, output, "--ext=tif", "--max_pixels=1000"))
    for array in stored(output).values():
        assert array.size <= 1000


@pytest.mark.slow
def test_by_default_pillows_limit_holds(folder, output):
    huge = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 0, 0, 0, 0)
    head = b"IHDR" + huge
    (folder / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + head
        + struct.pack(">I", zlib.crc32(head))
        + struct.pack(">I", 0)
        + b"IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    save(folder / "good.png")
    ended = run(command(folder, output, "--ext=png"))
    assert ended.status == 1
    reason = failures(output)["bomb.png"]
    assert "200000000 pixels" in reason
    assert "--max_pixels" in reason
    assert "178956970" in reason


@pytest.mark.slow
def test_between_pillows_warning_and_its_limit_no_warning_is_shown(folder, output):
    save(folder / "a.png", colours(0, (40, 50, 3)))
    ended = run(command(folder, output, "--ext=png", "--max_pixels=2500"))
    assert ended.status == 0
    assert "Warning" not in ended.err


@pytest.mark.slow
def test_damaged_tiffs_say_nothing_but_their_failures(folder, output):
    path = save(folder / "a.tif", noisy((50, 60, 3)))
    (folder / "cut.tif").write_bytes(path.read_bytes()[:500])
    (folder / "none.tif").write_bytes(b"II*\0")
    (folder / "text.tif").write_bytes(b"text")
    for workers in (1, 2):
        ended = run(command(folder, output, "--ext=tif", f"--workers={workers}", "--overwrite"))
        assert ended.status == 1
        assert "Traceback" not in ended.err
        assert len(ended.err.strip().splitlines()) == len(failures(output))
        assert set(stored(output)) | set(failures(output)) == set(os.listdir(folder))


@pytest.mark.slow
def test_an_extension_that_is_of_no_known_format_is_refused(folder, output):
    (folder / "a.xyz").write_bytes(b"x")
    ended = run(command(folder, output, "--ext=xyz"))
    assert ended.status == 2
    assert "--ext=xyz" in ended.err
    assert "--custom_read_func" in ended.err
    assert not output.exists()


JPEGS = {
    "baseline": {"quality": 90, "subsampling": 0},
    "progressive": {"quality": 75, "subsampling": 2, "progressive": True},
    "restarts": {"quality": 75, "subsampling": 1, "restart_marker_blocks": 4},
    "gray": {"quality": 75},
}


def jpeg_of(name: str) -> bytes:
    file = io.BytesIO()
    shape = (97, 131) if name == "gray" else (97, 131, 3)
    PIL.Image.fromarray(colours(1, shape)).save(file, "JPEG", **JPEGS[name])
    return file.getvalue()


def damaged(data: bytes, random: Random) -> bytes:
    """Flip bits anywhere, change the headers, cut, remove or add bytes."""
    at, changed = random.randrange(2, len(data)), bytearray(data)
    match random.randrange(5):
        case 0:
            changed[at] ^= 1 << random.randrange(8)
        case 1:
            changed[random.randrange(2, 700)] = random.randrange(256)
        case 2:
            del changed[at:]
        case 3:
            del changed[at : at + random.randrange(1, 99)]
        case 4:
            changed[at:at] = random.randbytes(random.randrange(1, 99))
    return bytes(changed)


def outcome(function: Callable[[], Note]) -> Note | str:
    try:
        return function()
    except Exception as error:
        return repr(error)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_is_checked_as_strictly_as_it_is_decoded(name: str) -> None:
    random, data, refused = Random(name), jpeg_of(name), 0
    for _ in range(300):
        changed = damaged(data, random)
        whole = outcome(lambda changed=changed: decode_noted(changed, "jpg").note)
        assert outcome(lambda changed=changed: check_noted(changed, "jpg")) == whole
        refused += isinstance(whole, str)
    assert 30 < refused < 270


def test_a_jpeg_is_checked_without_its_pixels(monkeypatch) -> None:
    assert jpeg.decoders_agree()
    monkeypatch.setattr(jpeg, "_decode_with_simplejpeg", pytest.fail)
    monkeypatch.setattr(jpeg, "_decode_with_pillow", pytest.fail)
    assert check_noted(jpeg_of("progressive"), "jpg") == Note.NONE
