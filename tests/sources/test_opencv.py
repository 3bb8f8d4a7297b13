"""``--reader=opencv`` stores what ``cv2.imread(path)`` returns, and reports what it cannot read."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pytest
import tifffile

from converter import H5Folder
from helpers.check import assert_same, everything_below, failures, stored
from helpers.images import colours, save, save_frames
from helpers.run import FUNCTIONS, ROOT, command, read_with, run, write_functions

cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is what is compared with")

OPENCV = "--reader=opencv"
ALL = "--ext=jpg,jpeg,png,gif,tif,tiff,bmp,webp,ppm,pgm,jp2,hdr"
CANNOT = "OpenCV cannot read it"
TRUNCATED = "a truncated JPEG: OpenCV would make its missing rows gray"


def depth(shape: tuple[int, ...] = (20, 30)) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 65536, shape, dtype=np.uint16)


def oriented(orientation: int) -> PIL.Image.Exif:
    found = PIL.Image.Exif()
    found[0x112] = orientation
    return found


def save_all_kinds(folder: Path) -> None:
    """Save an image of each kind; small, and each another one."""
    array, alpha = colours(1), colours(2, (20, 30, 4))
    save(folder / "colour.jpg", array, quality=90)
    save(folder / "colour_444.jpeg", array, quality=90, subsampling=0)
    save(folder / "progressive.JPG", array, progressive=True)
    save(folder / "gray.jpg", array[:, :, 0])
    PIL.Image.fromarray(alpha, "CMYK").save(folder / "cmyk.jpg")
    for orientation in range(1, 9):
        save(folder / f"exif_{orientation}.jpg", colours(orientation), exif=oriented(orientation))
    save(folder / "exif_6.png", colours(6), exif=oriented(6))
    save(folder / "gray.png", array[:, :, 1])
    save(folder / "colour.png", array)
    save(folder / "alpha.png", alpha)
    PIL.Image.fromarray(alpha[:, :, :2], "LA").save(folder / "gray_alpha.png")
    PIL.Image.fromarray(array[:, :, 0] > 99).save(folder / "one_bit.png")
    PIL.Image.fromarray(array).quantize(9).save(folder / "palette.png")
    PIL.Image.fromarray(array).quantize(9).save(folder / "palette_alpha.png", transparency=3)
    cv2.imwrite(str(folder / "gray_16.png"), depth())
    cv2.imwrite(str(folder / "colour_16.png"), depth((20, 30, 3)))
    cv2.imwrite(str(folder / "alpha_16.png"), depth((20, 30, 4)))
    save_frames(folder / "animated.png")
    save_frames(folder / "animated.gif")
    save_frames(folder / "animated.webp", lossless=True)
    save_frames(folder / "pages.tiff")
    tifffile.imwrite(folder / "pages_16.tif", depth((3, 20, 30)), photometric="minisblack")
    tifffile.imwrite(folder / "colour.tif", array, photometric="rgb")
    save(folder / "one.gif", array)
    save(folder / "colour.bmp", array)
    save(folder / "gray.bmp", array[:, :, 2])
    save(folder / "colour.webp", array)
    save(folder / "alpha.webp", alpha, lossless=True)
    save(folder / "colour.ppm", array)
    save(folder / "gray.pgm", array[:, :, 0])
    save(folder / "deep" / "down" / "grün ü.png", array[:1, :1])


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "images"
    folder.mkdir()
    save_all_kinds(folder)
    return folder


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("converted") / "OUT.h5"
    ended = run(command(source, output, ALL, OPENCV, "--workers=2"))
    assert ended.status in (0, 1), ended.err
    return output


def expected_of(source: Path) -> dict[str, np.ndarray | None]:
    return {
        path.relative_to(source).as_posix(): cv2.imread(str(path))
        for path in source.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_every_array_is_that_of_imread(source, converted):
    expected = expected_of(source)
    arrays = stored(converted)
    readable = {key for key, array in expected.items() if array is not None}
    assert set(arrays) == readable
    assert set(failures(converted)) == set(expected) - readable
    for key in readable:
        assert arrays[key].dtype == np.uint8
        assert arrays[key].shape[2:] == (3,)
        assert_same(arrays[key], expected[key])


def test_the_usual_kinds_are_all_readable(source, converted):
    """An OpenCV that gives up on one would make the comparison above an empty one."""
    keys = set(stored(converted))
    usual = {p.relative_to(source).as_posix() for p in source.rglob("*.*")}
    optional = {"animated.gif", "one.gif", "animated.png", "animated.webp"}
    assert usual - keys <= optional


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_as_for_opencv_the_contents_decide_what_a_file_is(kind, folder, output, convert):
    for extension in ("jpg", "png", "tif", "webp"):
        save(folder / f"a.{extension}", format=kind)
    convert(folder, output, ALL, OPENCV)
    expected = {key: array for key, array in expected_of(folder).items() if array is not None}
    assert set(stored(output)) == set(expected)
    for key, array in stored(output).items():
        assert_same(array, expected[key])


def test_h5folder_gives_the_arrays_of_imread(source, converted):
    folder = H5Folder(converted)
    for key in folder:
        array = cv2.imread(str(source / key))
        assert_same(folder[key], array)
        assert_same(folder.read(key, np.s_[:1, -1:]), array[:1, -1:])


def test_colours_come_in_bgr_order_and_depth_as_8_bits(source, converted):
    folder = H5Folder(converted)
    assert_same(folder["colour.png"], colours(1)[:, :, ::-1])
    assert_same(folder["gray.png"], np.repeat(colours(1)[:, :, 1:2], 3, axis=2))
    assert_same(folder["alpha.png"], colours(2, (20, 30, 4))[:, :, 2::-1])
    assert_same(folder["gray_16.png"], np.repeat((depth() >> 8).astype("u1")[:, :, None], 3, 2))


def test_the_orientation_of_exif_is_applied(source, converted):
    folder = H5Folder(converted)
    for orientation in range(1, 9):
        shape = (20, 30, 3) if orientation < 5 else (30, 20, 3)
        assert folder[f"exif_{orientation}.jpg"].shape == shape
    upright = PIL.Image.open(source / "exif_3.jpg").convert("RGB")
    turned = np.asarray(upright.transpose(PIL.Image.Transpose.ROTATE_180)).astype(int)
    assert abs(folder["exif_3.jpg"][:, :, ::-1] - turned).mean() < 5


def test_of_several_frames_or_pages_the_first_is_stored_and_they_are_counted(tmp_path, convert):
    folder, output = tmp_path / "images", tmp_path / "OUT.h5"
    folder.mkdir()
    save_frames(folder / "pages.tiff")
    save_frames(folder / "animated.png")
    save(folder / "one.png")
    ended = convert(folder, output, ALL, OPENCV)
    assert ended.status == 0
    assert "2 files with several frames or pages" in ended.out
    assert_same(stored(output)["pages.tiff"], colours(0)[:, :, ::-1])


def test_the_file_says_which_reader_made_it(folder, tmp_path, convert):
    save(folder / "a.png")
    functions = FUNCTIONS / "one.py"
    mine = read_with(functions)
    for number, (flags, reader) in enumerate(
        {
            (OPENCV,): "opencv",
            ("--reader=imageio",): "imageio",
            (): "imageio",
            mine: "my_read",
        }.items()
    ):
        output = tmp_path / f"{number}.h5"
        assert convert(folder, output, "--ext=png", *flags).status == 0
        with h5py.File(output) as file:
            assert file.attrs["reader"] == reader
            assert (json.loads(file.attrs["plugins"]) != {}) == (reader == "imageio")
            assert "opencv" in " ".join(json.loads(file.attrs["versions"]))


def test_the_reader_imageio_is_the_default(folder, tmp_path, convert):
    save(folder / "a.png")
    save(folder / "a.jpg", colours(1), exif=oriented(6))
    files = []
    for number, flags in enumerate([(), ("--reader=imageio",)]):
        output = tmp_path / f"{number}.h5"
        assert convert(folder, output, "--ext=png,jpg", *flags).status == 0
        files.append(output.read_bytes())
    assert files[0] == files[1]
    assert_same(stored(output)["a.png"], colours())


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["auto", "zstd", "blosc2"])
def test_the_same_bytes_from_any_number_of_workers(compression, source, tmp_path):
    pytest.importorskip({"zstd": "zstandard", "blosc2": "blosc2"}.get(compression, "h5py"))
    files = []
    for workers in (1, 2):
        output = tmp_path / f"{workers}.h5"
        flags = (ALL, OPENCV, f"--workers={workers}", f"--compression={compression}")
        assert run(command(source, output, *flags)).status in (0, 1)
        files.append(output.read_bytes())
    assert files[0] == files[1]


# What cannot be read


def jpeg(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(array).save(file, "JPEG", **options)
    return file.getvalue()


def with_thumbnail(data: bytes) -> bytes:
    """Return a JPEG with a small JPEG in its EXIF, as cameras make them."""
    head = b"Exif\0\0II*\0\x08\0\0\0" + bytes(6)
    block = head + jpeg(colours(9, (12, 16, 3)))
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_truncated_jpeg_is_reported_and_the_rest_is_stored(
    part, name, options, folder, output, convert
):
    whole = jpeg(colours(3, (200, 300, 3)), **options)
    (folder / name).write_bytes(whole[: int(len(whole) * part)])
    save(folder / "whole.jpg")
    ended = convert(folder, output, ALL, OPENCV)
    assert ended.status == 1
    assert failures(output) == {name: TRUNCATED}
    assert list(stored(output)) == ["whole.jpg"]


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_truncated_jpeg_with_a_whole_thumbnail_is_reported(part, folder, output, convert):
    whole = with_thumbnail(jpeg(colours(3, (200, 300, 3))))
    (folder / "whole.jpg").write_bytes(whole)
    (folder / "truncated.jpg").write_bytes(whole[: int(len(whole) * part)])
    convert(folder, output, OPENCV)
    assert_same(stored(output)["whole.jpg"], cv2.imread(str(folder / "whole.jpg")))
    assert failures(output) == {"truncated.jpg": TRUNCATED}


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_truncated_jpeg_of_another_extension_is_reported(part, folder, output, convert):
    whole = jpeg(colours(3, (200, 300, 3)))
    (folder / "truncated.png").write_bytes(whole[: int(len(whole) * part)])
    save(folder / "whole.png")
    convert(folder, output, "--ext=png", OPENCV)
    assert failures(output) == {"truncated.png": TRUNCATED}


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_other_truncated_files_are_reported(part, folder, output, convert):
    array = np.random.default_rng(0).integers(0, 256, (150, 160, 3), np.uint8)
    for name in ("a.png", "a.webp", "a.bmp", "a.gif", "a.tif", "a.ppm"):
        save(folder / name, array)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * part)])
    save(folder / "whole.png")
    assert convert(folder, output, ALL, OPENCV).status == 1
    reasons = failures(output)
    assert set(reasons) == {"a.png", "a.webp", "a.bmp", "a.gif", "a.tif", "a.ppm"}
    assert all(CANNOT in reason for reason in reasons.values())


def test_unreadable_files_are_reported_each_with_its_reason(folder, output, convert):
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    (folder / "text.jpg").write_text("no image")
    (folder / "end.jpg").write_bytes(b"\xff\xd8\xff\xd9")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "folder.png").mkdir()
    save(folder / "folder.png" / "whole.png")
    ended = convert(folder, output, ALL, OPENCV)
    assert ended.status == 1
    reasons = failures(output)
    assert reasons.pop("gone.png") == "a symbolic link to nowhere.png, which does not exist"
    assert reasons.pop("end.jpg") in (TRUNCATED, CANNOT)
    names = ("empty.jpg", "empty.png", "text.png", "text.jpg")
    assert reasons == dict.fromkeys(names, CANNOT)
    assert list(stored(output)) == ["folder.png/whole.png"]


def test_on_error_stop_ends_at_the_first_unreadable_file(folder, output, convert):
    (folder / "a.png").write_text("no image")
    save(folder / "b.png")
    ended = convert(folder, output, "--ext=png", OPENCV, "--on_error=stop")
    assert ended.status == 1
    assert f"a.png: {CANNOT} (stopped at the first failure" in ended.err
    assert not output.exists()


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims to be so large."""

    def piece(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = piece(b"IHDR", head) + piece(b"IDAT", zlib.compress(bytes(1000))) + piece(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_more_pixels_than_max_pixels_are_refused(folder, output, convert):
    for name in ("a.jpg", "a.png", "a.tif", "a.bmp", "a.webp", "a.gif", "a.ppm"):
        save(folder / f"large_{name}", colours(0, (20, 31, 3)))
        save(folder / f"just_{name}", colours(0, (20, 30, 3)))
    ended = convert(folder, output, ALL, OPENCV, "--max_pixels=600")
    assert ended.status == 1
    assert all(key.startswith("just_") for key in stored(output))
    reasons = {key: reason for key, reason in failures(output).items() if reason != CANNOT}
    assert {"large_a.jpg", "large_a.png", "large_a.tif", "large_a.bmp"} <= set(reasons)
    for key, reason in reasons.items():
        assert key.startswith("large_")
        assert reason.startswith("it has 620 pixels, more than the limit of 600: ")
        assert "--max_pixels=620" in reason


def test_max_pixels_holds_for_formats_that_only_opencv_knows(folder, output, convert):
    cv2.imwrite(str(folder / "large.hdr"), np.ones((20, 31, 3), np.float32))
    cv2.imwrite(str(folder / "just.hdr"), np.ones((20, 30, 3), np.float32))
    convert(folder, output, ALL, OPENCV, "--max_pixels=600")
    assert list(stored(output)) == ["just.hdr"]
    assert "620 pixels" in failures(output)["large.hdr"]


def test_a_decompression_bomb_is_refused_before_memory_is_taken(folder, output, convert):
    (folder / "bomb.png").write_bytes(png_of_size(20_000, 20_000))
    (folder / "beyond.png").write_bytes(png_of_size(2**31 - 1, 2**31 - 1))
    save(folder / "whole.png")
    assert convert(folder, output, "--ext=png", OPENCV).status == 1
    assert set(failures(output)) == {"bomb.png", "beyond.png"}
    assert "it has 400000000 pixels" in failures(output)["bomb.png"]


def test_what_opencv_refuses_of_itself_is_a_failure(folder, output, convert):
    """OpenCV raises above its own limit of 2**30 pixels, in one row of 2**20."""
    (folder / "wide.png").write_bytes(png_of_size(2**21, 2))
    save(folder / "whole.png")
    assert convert(folder, output, "--ext=png", OPENCV).status == 1
    assert failures(output)["wide.png"].startswith(CANNOT)


# With other flags


def test_my_read_and_the_reader_exclude_each_other(folder, output, tmp_path, convert):
    save(folder / "a.jpg")
    functions = FUNCTIONS / "one.py"
    before = everything_below(tmp_path)
    flags = read_with(functions)
    for reader in ("opencv", "imageio"):
        ended = convert(folder, output, f"--reader={reader}", *flags)
        assert ended.status == 2
        assert ended.err == (
            f"converter: with --custom_read_func my_read reads the files, so --reader={reader} "
            "would change nothing: drop one of them\n"
        )
    assert everything_below(tmp_path) == before


def test_stored_as_they_are_files_have_no_reader(folder, output, tmp_path, convert):
    save(folder / "a.jpg")
    before = everything_below(tmp_path)
    ended = convert(folder, output, OPENCV, "--store=encoded")
    assert ended.status == 2
    assert "--store=encoded" in ended.err
    assert "--reader=opencv" in ended.err
    assert everything_below(tmp_path) == before


def test_my_prune_goes_with_the_reader(folder, output, tmp_path, convert):
    save(folder / "a.png")
    save(folder / "b.png")
    functions = write_functions(
        tmp_path / "my_functions.py", "def my_prune(name, ext): return name == 'b.png'"
    )
    flags = ("--custom_prune_func", f"--path_functions={functions}")
    assert convert(folder, output, OPENCV, *flags).status == 0
    assert_same(stored(output)["b.png"], colours()[:, :, ::-1])


@pytest.mark.slow
def test_opencv_is_not_imported_unless_asked_for(folder, output):
    save(folder / "a.jpg")
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from converter.cli import main
main({command(folder, output, "--workers=1")[2:]!r})
print("cv2" in sys.modules, "zstandard" in sys.modules, "blosc2" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "False False False", done.stderr
