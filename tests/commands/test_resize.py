"""``--resize`` makes images smaller, says so in the file, and every mode knows of it."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pytest
import tifffile

from converter import ConverterError, H5Folder, H5Loader, Resize
from converter import convert as convert_folder
from converter.cli import main
from helpers.check import (
    assert_refused,
    assert_same,
    everything_below,
    failures,
    files_of,
    filters_of,
    stored,
)
from helpers.images import colours, save
from helpers.run import Finished, command, finish, processes_left, read_with, run, start, wait_until
from helpers.seams import pretend_free

SIZE = 40  # pixels, to which tests resize
RESIZE = f"--resize={SIZE}"
EXT = "--ext=jpg,png,webp"
ENCODED = "--store=encoded"
STORES = pytest.mark.parametrize("store", ["--store=array", ENCODED])
LONG_AGO_NS = 1_500_000_000_123_456_789
#: Height and width of each file; those of "small" are not to be changed.
SHAPES = {
    "a.png": (90, 120),
    "b.jpg": (61, 47),
    "gray/c.jpg": (201, 303),
    "small/d.jpg": (40, 55),
    "small/e.png": (20, 30),
    "z.webp": (100, 41),
}
#: The same after ``RESIZE``.
SHORTER = dict(
    zip(SHAPES, [(40, 53), (52, 40), (40, 60), (40, 55), (20, 30), (98, 40)], strict=True)
)


def pillow_resized(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Resize to a height and width as docs/storage.md says that Pillow does the same."""
    size = shape[1], shape[0]
    with PIL.Image.open(path) as image:
        width, height = image.size
        drafted = image.draft(None, (2 * size[0], 2 * size[1]))
        scale = width / drafted[1][2] if drafted else 1
        box = (0, 0, width / scale, height / scale)
        return np.asarray(image.resize(size, PIL.Image.Resampling.BICUBIC, box, reducing_gap=2.0))


def photo(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return a smooth image with the noise of a sensor: it has many values."""
    noise = np.random.default_rng(seed).integers(-6, 7, shape)
    return (colours(seed, shape) // 2 + 60 + noise).clip(0, 255).astype(np.uint8)


def settle(folder: Path) -> None:
    """Give all files one time long ago: what is written from now on has another."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


@pytest.fixture
def album(folder) -> Path:
    for seed, (name, shape) in enumerate(SHAPES.items()):
        array = photo(seed, shape if name.startswith("gray") else (*shape, 3))
        options = {} if name.endswith("png") else {"quality": 97}
        save(folder / name, array, **options)
    settle(folder)
    return folder


@pytest.fixture
def join(capfd) -> Callable[..., Finished]:
    """Run --merge within this process."""

    def join(output: Path, *parts: Path) -> Finished:
        capfd.readouterr()
        status = main(["--merge", *map(str, parts), f"--path_output={output}"])
        return Finished(status, *capfd.readouterr())

    return join


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    with H5Folder(path) as folder:
        return {key: folder[key].shape[:2] for key in folder}


def options_of(path: Path) -> dict[str, object]:
    with h5py.File(path) as file:
        return json.loads(file.attrs["options"])


# What is stored


@pytest.mark.everyday(4)
@STORES
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((RESIZE,), SHORTER.values()),
        (
            (RESIZE, "--resize_mode=longer"),
            [(30, 40), (40, 31), (27, 40), (29, 40), (20, 30), (40, 16)],
        ),
        ((RESIZE, "--resize_mode=crop"), [(40, 40)] * 6),
        (("--resize=31x17", "--resize_mode=exact"), [(17, 31)] * 6),
    ],
)
def test_each_mode_gives_its_sizes(store, flags, expected, album, output, convert):
    ended = convert(album, output, EXT, store, *flags)
    assert ended.status == 0, ended.err
    found = shapes_of(output)
    order = ["a.png", "b.jpg", "z.webp", "gray/c.jpg", "small/d.jpg", "small/e.png"]
    assert list(found) == order
    assert found == dict(zip(SHAPES, expected, strict=True))


def test_arrays_are_those_of_the_lines_of_pillow(album, output, convert):
    assert convert(album, output, EXT, RESIZE).status == 0
    for key, array in stored(output).items():
        if key.startswith("small/"):
            assert_same(array, np.asarray(PIL.Image.open(album / key)))
        else:
            assert_same(array, pillow_resized(album / key, SHORTER[key]))


def test_encoded_files_are_resized_and_the_others_stay_as_they_are(album, output, convert):
    assert convert(album, output, EXT, RESIZE, ENCODED, "--quality=85").status == 0
    with H5Folder(output) as folder:
        for key in folder:
            data = folder.read_bytes(key)
            if key.startswith("small/"):
                assert data == (album / key).read_bytes()
                continue
            pixels = pillow_resized(album / key, SHORTER[key])
            with PIL.Image.open(io.BytesIO(data)) as image, PIL.Image.open(album / key) as source:
                assert image.format == source.format
            if key.endswith("png"):
                assert_same(folder[key], pixels)
            else:
                buffer = io.BytesIO()
                PIL.Image.fromarray(pixels).save(buffer, image.format, quality=85)
                again = np.asarray(PIL.Image.open(buffer))
                assert np.abs(folder[key].astype(int) - again).mean() < 1.0


def test_a_better_quality_takes_more_bytes(album, output, tmp_path, convert):
    sizes = []
    for quality in ("--quality=30", "--quality=90", "--quality=100"):
        path = tmp_path / f"{quality}.h5"
        assert convert(album, path, RESIZE, ENCODED, quality).status == 0
        with H5Folder(path) as folder:
            sizes.append(len(folder.read_bytes("b.jpg")))
    assert sizes == sorted(set(sizes))
    convert(album, output, RESIZE, ENCODED)
    assert output.read_bytes() == (tmp_path / "--quality=90.h5").read_bytes()


def test_compression_and_filter_go_with_it(album, output, convert):
    mask = np.kron(np.random.default_rng(0).integers(0, 3, (9, 12)), np.ones((20, 20))) * 7
    save(album / "mask.png", mask.astype(np.uint8))
    flags = (EXT, RESIZE, "--resize_filter=nearest", "--compression=gzip")
    assert convert(album, output, *flags).status == 0
    with h5py.File(output) as file:
        assert filters_of(file["mask.png"])
        assert file["mask.png"].shape == (40, 53)
        assert set(np.unique(file["mask.png"][()])) <= {0, 7, 14}


def test_opencv_is_resized_too(album, output, tmp_path, convert):
    pytest.importorskip("cv2")
    assert convert(album, output, "--ext=png", RESIZE, "--reader=opencv").status == 0
    assert convert(album, tmp_path / "rgb.h5", "--ext=png", RESIZE).status == 0
    rgb = stored(tmp_path / "rgb.h5")
    assert rgb["a.png"].shape == (*SHORTER["a.png"], 3)
    for key, array in stored(output).items():
        assert_same(array[:, :, ::-1], rgb[key])


@STORES
def test_workers_make_the_same_bytes(store, album, output, tmp_path, convert):
    flags = (EXT, RESIZE, store)
    assert convert(album, output, *flags, "--workers=1").status == 0
    assert convert(album, tmp_path / "three.h5", *flags, "--workers=3").status == 0
    assert output.read_bytes() == (tmp_path / "three.h5").read_bytes()


@STORES
def test_an_executor_makes_the_same_bytes(store, album, output, tmp_path):
    options = {"ext": "jpg,png,webp", "store": store[8:], "resize": SIZE, "resize_mode": "crop"}
    with ThreadPoolExecutor(2) as executor:
        convert_folder(album, output, executor=executor, **options)
    convert_folder(album, tmp_path / "here.h5", workers=1, **options)
    assert output.read_bytes() == (tmp_path / "here.h5").read_bytes()
    assert set(shapes_of(output).values()) == {(SIZE, SIZE)}


def test_readers_and_the_contact_sheet_take_the_file(album, output, tmp_path, convert):
    pytest.importorskip("cv2")
    sheet = tmp_path / "sheet.png"
    flags = ("--ext=jpg,png", RESIZE, "--resize_mode=crop", ENCODED, f"--contact_sheet={sheet}")
    ended = convert(album, output, *flags)
    assert ended.status == 0, ended.err
    assert f"{sheet}: 5 of 5 samples drawn" in ended.out
    with H5Folder(output) as folder:
        assert folder.read_batch(["a.png", "b.jpg"]).shape == (2, SIZE, SIZE, 3)
        loader = H5Loader(
            folder, batch_size=5, crop=Resize(32), antialias=False, channels=3, evaluate=True
        )
        (images,) = loader
        assert images.shape == (5, 32, 32, 3)


# What is refused


@pytest.mark.everyday(8)
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--resize=0", ("--resize=0 is no size", "1 to 65535")),
        ("--resize=-3", ("--resize=-3 is no size",)),
        ("--resize=256x", ("--resize=256x is no size",)),
        ("--resize=65536", ("--resize=65536 is no size",)),
        ("--resize=12.5", ("--resize=12.5 is no size",)),
        ("--resize=", ("--resize= is no size",)),
        ("--resize=32x24", ("names both sides", "--resize_mode=exact")),
        ("--resize=32 --resize_mode=exact", ("--resize=WIDTHxHEIGHT",)),
        ("--resize=32 --resize_mode=shortest", ("'shortest'", "'shorter'")),
        ("--resize=32 --resize_filter=linear", ("'linear'", "'nearest'")),
        ("--resize_mode=crop", ("--resize_mode=crop", "without --resize")),
        ("--resize_filter=area", ("--resize_filter=area", "without --resize")),
        ("--store=encoded --quality=80", ("--quality=80", "without --resize")),
        ("--resize=32 --quality=80", ("--quality=80", "--store=encoded")),
        ("--resize=32 --store=encoded --quality=0", ("1 to 100", "not 0")),
        ("--resize=32 --store=encoded --quality=101", ("1 to 100", "not 101")),
        ("--resize=32 --store=encoded --quality=9.5", ("1 to 100", "not 9.5")),
        ("--resize=32 --store=encoded --quality=9 --ext=png,tif", ("--quality=9", "neither")),
        ("--resize=32 --custom_read_func", ("--resize=32", "resize in my_read")),
        ("--resize=32 --store=encoded --skip_decode_check", ("--resize=32", "drop one of them")),
        ("--resize=32 --store=encoded --reader=opencv", ("--reader=opencv", "--store=array")),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_cannot_work_is_refused_in_one_sentence(flags, words, album, output, convert):
    before = everything_below(album.parent)
    assert_refused(convert(album, output, *flags.split()), *words)
    assert everything_below(album.parent) == before


@pytest.mark.everyday(2)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resize": 0}, "--resize=0 is no size"),
        ({"resize": True}, "--resize=True is no size"),
        ({"resize": 32, "resize_mode": "middle"}, "--resize_mode must be .* not 'middle'"),
        ({"resize": 32, "store": "encoded", "quality": 0}, "from 1 to 100, not 0"),
        ({"resize": 32, "store": "encoded", "quality": True}, "from 1 to 100, not True"),
        ({"quality": 50}, "--quality=50 changes nothing without --resize"),
    ],
    ids=str,
)
def test_convert_refuses_the_same(options, words, album, output):
    with pytest.raises(ConverterError, match=words):
        convert_folder(album, output, workers=1, **options)
    assert not output.exists()


# What the file says


def test_a_file_says_how_its_images_were_resized(album, output):
    convert_folder(album, output, resize=SIZE, workers=1)
    recorded = options_of(output)
    assert {"resize": 40, "resize_mode": "shorter", "resize_filter": "bicubic"}.items() <= (
        recorded.items()
    )
    assert "quality" not in recorded
    convert_folder(
        album, output, resize="32x24", resize_mode="exact", resize_filter="area", store="encoded",
        overwrite=True, workers=1,
    )  # fmt: skip
    recorded = options_of(output)
    assert [recorded[name] for name in ("resize", "resize_mode", "resize_filter", "quality")] == [
        "32x24", "exact", "area", 90,
    ]  # fmt: skip


def test_a_file_says_nothing_of_it_where_images_stay_as_they_are(album, output):
    convert_folder(album, output, workers=1)
    assert not {"resize", "resize_mode", "resize_filter", "quality"} & options_of(output).keys()


def test_the_version_of_pillow_is_recorded_with_any_reader(album, output, convert):
    pytest.importorskip("cv2")
    assert convert(album, output, RESIZE, "--reader=opencv").status == 0
    with h5py.File(output) as file:
        assert json.loads(file.attrs["versions"])["pillow"] == PIL.__version__


@pytest.mark.parametrize("store", ["array", "encoded"])
def test_the_end_says_how_many_images_were_resized(store, folder, output, convert):
    for name, side in (("large", 90), ("larger", 100), ("small", 20)):
        save(folder / f"{name}.png", colours(shape=(side, side, 3)))
    ended = convert(folder, output, "--ext=png", "--resize=48", f"--store={store}")
    assert "2 images resized (--resize)" in ended.out.splitlines()
    ended = convert(folder, output, "--ext=png", f"--store={store}", "--overwrite")
    assert "resized" not in ended.out


def test_depths_with_holes_are_counted_with_an_example(album, output, convert):
    for name in ("a", "b"):
        depth = np.add.outer(np.linspace(600, 3000, 200), np.linspace(0, 900, 200))
        depth[np.random.default_rng(0).random((200, 200)) < 0.05] = 0
        tifffile.imwrite(album / f"small/{name}.tif", depth.astype(np.uint16))
    ended = convert(album, output, f"{EXT},tif", RESIZE)
    (line,) = [line for line in ended.out.splitlines() if "--resize_filter=nearest" in line]
    assert line.startswith("2 depth images with holes, such as small/a.tif")


def test_a_folder_of_labels_is_told_of_nearest(folder, output, convert):
    generator = np.random.default_rng(0)
    for number in range(3):
        labels = np.kron(generator.integers(0, 5, (10, 12)), np.ones((12, 12)))
        save(folder / f"{number}.png", labels.astype(np.uint8))
    ended = convert(folder, output, "--ext=png", RESIZE)
    (line,) = [line for line in ended.out.splitlines() if "--resize_filter=nearest" in line]
    assert line.startswith("3 images of few values, such as 0.png")
    flags = ("--ext=png", RESIZE, "--resize_filter=nearest", "--overwrite")
    assert "nearest" not in convert(folder, output, *flags).out
    assert all(set(np.unique(array)) <= set(range(5)) for array in stored(output).values())


# Update, resume, shards, merge


@STORES
def test_an_update_resizes_as_the_file_was(store, album, output, tmp_path, convert, update):
    flags = (EXT, RESIZE, "--resize_mode=longer", store)
    assert convert(album, output, *flags).status == 0
    save(album / "b.jpg", photo(9, (80, 70, 3)))
    save(album / "new.png", photo(10, (60, 70, 3)))
    ended = update(album, output)
    assert ended.status == 0, ended.err
    assert "1 added, 1 changed, 0 removed, 5 kept" in ended.out
    assert convert(album, tmp_path / "fresh.h5", *flags).status == 0
    assert output.read_bytes() == (tmp_path / "fresh.h5").read_bytes()


def test_an_update_takes_what_the_file_says_when_it_is_typed(album, output, convert, update):
    convert(album, output, EXT, RESIZE, ENCODED)
    typed = (RESIZE, "--resize_mode=shorter", "--resize_filter=bicubic", "--quality=90")
    ended = update(album, output, *typed)
    assert ended.status == 0, ended.err
    assert "nothing changed" in ended.out


@pytest.mark.everyday(3)
@pytest.mark.parametrize(
    ("made", "typed", "said"),
    [
        ((RESIZE,), ("--resize=41",), "made with --resize=40, not --resize=41"),
        ((RESIZE,), ("--resize_mode=crop",), "with --resize_mode=shorter, not --resize_mode=crop"),
        ((RESIZE,), ("--resize_filter=area",), "with --resize_filter=bicubic, not"),
        ((RESIZE, ENCODED), ("--quality=80",), "made with --quality=90, not --quality=80"),
        ((RESIZE,), ("--quality=80",), "made with no --quality, not --quality=80"),
        ((), (RESIZE,), "made with no --resize, not --resize=40"),
        (
            ("--resize=9x8", "--resize_mode=exact"),
            ("--resize=9x7",),
            "made with --resize=9x8, not --resize=9x7",
        ),
    ],
)
def test_an_update_with_another_size_is_refused(made, typed, said, album, output, convert, update):
    assert convert(album, output, *made).status == 0
    before = output.read_bytes()
    assert_refused(update(album, output, *typed), said, "--overwrite")
    assert output.read_bytes() == before


def test_an_older_file_is_updated_without_resizing(album, output, tmp_path, convert, update):
    """It does not say that it is not resized."""
    assert convert(album, output, EXT).status == 0
    save(album / "new.png", photo(10, (60, 70, 3)))
    assert update(album, output).status == 0
    assert convert(album, tmp_path / "fresh.h5", EXT).status == 0
    assert output.read_bytes() == (tmp_path / "fresh.h5").read_bytes()


@STORES
def test_shards_are_joined_to_the_whole(store, album, output, tmp_path, convert, join):
    flags = (EXT, RESIZE, store)
    parts = [tmp_path / f"{number}.h5" for number in (1, 2, 3)]
    for number, part in enumerate(parts, 1):
        assert convert(album, part, *flags, f"--shard={number}/3").status == 0
    assert convert(album, output, *flags).status == 0
    ended = join(tmp_path / "joined.h5", *parts)
    assert ended.status == 0, ended.err
    assert (tmp_path / "joined.h5").read_bytes() == output.read_bytes()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--resize=41",), "resize is 41 and 40"),
        ((RESIZE, "--resize_filter=area"), 'resize_filter is "area" and "bicubic"'),
        ((), "resize is not given and 40"),
    ],
)
def test_files_of_two_sizes_are_not_joined(flags, said, folder, tmp_path, convert, join):
    for name in ("one", "two"):
        save(folder / name / f"{name}.jpg", photo(0, (60, 70, 3)))
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    assert convert(folder / "one", one, RESIZE).status == 0
    assert convert(folder / "two", two, *flags).status == 0
    assert_refused(join(tmp_path / "joined.h5", one, two), "different options", said)
    assert not (tmp_path / "joined.h5").exists()


# Verify and extract


@STORES
def test_verify_resizes_and_compares(store, album, output, convert, verify):
    assert convert(album, output, EXT, RESIZE, store).status == 0
    ended = verify(output, f"--path_images={album}")
    assert ended.status == 0, ended.err
    assert "6 of 6 files good, 0 faults" in ended.out
    save(album / "a.png", photo(99, (90, 120, 3)))
    ended = verify(output, f"--path_images={album}")
    assert ended.status == 1
    assert ended.err == "converter: a.png: its source file gives another array\n"


@STORES
def test_verify_finds_a_file_that_says_another_size(store, album, output, convert, verify):
    """As if it had been made by a program that resized otherwise."""
    assert convert(album, output, EXT, RESIZE, store).status == 0
    data = output.read_bytes()
    assert data.count(b'"resize": 40') == 1
    output.write_bytes(data.replace(b'"resize": 40', b'"resize": 41'))
    ended = verify(output, f"--path_images={album}")
    assert ended.status == 1
    changed = {line.split(": ")[1] for line in ended.err.splitlines() if "another array" in line}
    assert changed == {key for key in SHAPES if not key.startswith("small/")}


def test_extract_writes_encoded_files_and_says_that_they_are_not_the_originals(
    album, output, tmp_path, convert, extract
):
    assert convert(album, output, EXT, RESIZE, ENCODED).status == 0
    back = tmp_path / "back"
    ended = extract(output, back)
    assert ended.status == 0
    (line,) = ended.err.splitlines()
    assert line.startswith(f"converter: {output} was made with --resize=40: ")
    assert "not the originals" in line
    files = files_of(back)
    with H5Folder(output) as folder:
        assert files == {key: folder.read_bytes(key) for key in folder}
    assert files["small/d.jpg"] == (album / "small/d.jpg").read_bytes()
    with PIL.Image.open(back / "a.png") as image:
        assert image.size == (53, 40)


def test_extract_of_arrays_and_of_files_as_they_were_says_nothing(
    album, output, tmp_path, convert, extract
):
    assert convert(album, output, EXT, RESIZE).status == 0
    ended = extract(output, tmp_path / "arrays")
    assert (ended.status, ended.err) == (0, "")
    assert np.load(tmp_path / "arrays" / "a.png.npy").shape == (40, 53, 3)
    assert convert(album, output, EXT, ENCODED, "--overwrite").status == 0
    ended = extract(output, tmp_path / "files")
    assert (ended.status, ended.err) == (0, "")


# What is said before


def rows_of(ended: Finished, heading: str) -> dict[tuple[str, str], float]:
    """Return the megabytes in the rows of ``--dry_run`` below a line, under store and compression.

    The table of what is asked for is below its names of columns.
    """
    lines = ended.out.splitlines()
    (first,) = [n for n, line in enumerate(lines) if line.strip().startswith(heading)]
    found = {}
    for line in lines[first + 1 :]:
        words = line.split()
        if not words or words[2] == "not":
            break
        found[words[0], words[1]] = float(words[2].replace(",", ""))
    return found


def is_close(megabytes: float, output: Path) -> bool:
    real = output.stat().st_size / 1e6
    return abs(megabytes - real) <= 0.15 * real + 0.005


def save_large(folder: Path, *, quality: int = 97) -> None:
    for number in range(2):
        save(folder / f"{number}.jpg", photo(number, (400, 420 + number, 3)), quality=quality)


def test_a_dry_run_proposes_smaller_images(folder, output, convert):
    save_large(folder)
    ended = convert(folder, output, "--dry_run")
    assert ended.status == 0, ended.err
    plain = rows_of(ended, "store ")
    small = rows_of(ended, "the same with --resize=256:")
    assert list(small) == [("array", "auto"), ("encoded", "auto")]
    for (store, compression), megabytes in small.items():
        flags = (f"--store={store}", f"--compression={compression}", "--resize=256")
        assert convert(folder, output, *flags, "--overwrite").status == 0
        assert is_close(megabytes, output)
    arrays, files = small.values()
    assert ended.out.splitlines()[-1] == (
        "smaller images, for training: --resize=256, for masks with --resize_filter=nearest "
        f"(arrays {arrays:.2f} MB instead of {plain['array', 'auto']:.2f} MB, "
        f"encoded files {files:.2f} MB instead of {plain['encoded', 'auto']:.2f} MB)"
    )
    assert "smallest: --store=encoded" in ended.out  # as before: without loss


@pytest.mark.slow
def test_a_dry_run_says_where_encoded_files_become_no_smaller(folder, output, convert):
    save_large(folder, quality=20)
    ended = convert(folder, output, "--dry_run")
    assert ended.out.splitlines()[-1].endswith(", encoded files no smaller)")


def save_animations(folder: Path, count: int) -> None:
    for number in range(count):
        frames = [PIL.Image.fromarray(photo(number + n, (300, 320, 3))) for n in range(2)]
        frames[0].save(folder / f"{number}.gif", save_all=True, append_images=frames[1:])


def test_a_dry_run_does_not_advise_what_would_fail(folder, output, convert):
    """Animations are not encoded again, and their bytes are not saved."""
    save_animations(folder, 2)
    save(folder / "a.jpg", photo(9, (300, 320, 3)))
    failing = "without 2 of 3 files, which would fail"
    ended = convert(folder, output, "--dry_run", "--ext=gif,jpg", "--resize=100")
    (row,) = [line for line in ended.out.splitlines() if failing in line]
    assert row.split()[0] == "encoded"
    (smallest,) = [line for line in ended.out.splitlines() if line.startswith("smallest: ")]
    assert smallest.startswith("smallest: --resize=100 --compression=")
    ended = convert(folder, output, "--dry_run", "--ext=gif,jpg")
    (row,) = [line for line in ended.out.splitlines() if failing in line]
    assert row.split()[0] == "encoded"
    assert ended.out.splitlines()[-1].endswith(" MB without 2 of 3 files)")


@pytest.mark.slow
def test_a_dry_run_proposes_no_store_that_takes_none_of_the_files(folder, output, convert):
    save_animations(folder, 1)
    last = convert(folder, output, "--dry_run", "--ext=gif").out.splitlines()[-1]
    assert "(arrays " in last and "encoded" not in last
    tifffile.imwrite(folder / "a.tif", np.random.default_rng(0).random((300, 300)))  # float64
    ended = convert(folder, output, "--dry_run", "--ext=tif")
    assert ended.out.count("without 1 of 1 files, which would fail") == 2
    assert "for training" not in ended.out


@pytest.mark.parametrize("flags", [(), ("--store=encoded",)])
def test_a_dry_run_of_small_images_proposes_nothing(flags, album, output, convert):
    ended = convert(album, output, EXT, "--dry_run", *flags)
    assert ended.status == 0
    assert "resize" not in ended.out


@STORES
def test_a_dry_run_with_resize_compares_with_the_images_as_they_are(store, folder, output, convert):
    save_large(folder)
    flags = (store, "--resize=100", "--resize_mode=crop")
    ended = convert(folder, output, "--dry_run", *flags)
    assert ended.status == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[1].startswith(f"{output} with --resize=100 --resize_mode=crop would be about")
    small, plain = rows_of(ended, "store "), rows_of(ended, "the same without --resize:")
    own = (store[8:], "auto")
    assert [line.split()[:2] for line in lines if "this command" in line] == [list(own)]
    for rows, more in ((small, flags), (plain, (store,))):
        assert convert(folder, output, *more, "--overwrite").status == 0
        assert is_close(rows[own], output)
    assert "smallest: --resize=100 --resize_mode=crop --store=encoded" in ended.out
    assert "for training" not in ended.out


@pytest.mark.slow
def test_a_dry_run_with_quality_uses_it(folder, output, convert):
    save_large(folder)
    flags = ("--store=encoded", "--resize=256", "--quality=30")
    ended = convert(folder, output, "--dry_run", *flags)
    assert convert(folder, output, *flags).status == 0
    assert is_close(rows_of(ended, "store ")["encoded", "auto"], output)
    assert "smallest: --resize=256 --quality=30 --store=encoded" in ended.out


@pytest.mark.slow
def test_a_dry_run_of_my_read_proposes_nothing(folder, output, convert):
    save_large(folder)
    functions = folder.parent / "functions.py"
    functions.write_text(
        "import numpy as np\nfrom PIL import Image\n"
        "def my_read(path): return np.asarray(Image.open(path))\n"
    )
    ended = convert(folder, output, "--dry_run", *read_with(functions))
    assert ended.status == 0, ended.err
    assert "resize" not in ended.out


@pytest.mark.slow
def test_a_dry_run_of_opencv_has_arrays_alone(folder, output, convert):
    pytest.importorskip("cv2")
    save_large(folder)
    ended = convert(folder, output, "--dry_run", "--reader=opencv")
    small = rows_of(ended, "the same with --resize=256:")
    assert list(small) == [("array", "auto")]
    assert convert(folder, output, "--resize=256", "--reader=opencv").status == 0
    assert is_close(small["array", "auto"], output)


def test_the_warning_of_a_large_output_names_resize_where_it_helps(folder, output, convert):
    save_large(folder, quality=20)
    flags = ("--overwrite",)
    assert "--resize=256" in convert(folder, output).err
    ended = convert(folder, output, "--resize=300", *flags)
    assert "times the source" in ended.err
    assert "--resize=256" not in ended.err
    shutil.rmtree(folder)
    save(folder / "small.jpg", photo(0, (256, 2000, 3)), quality=20)
    ended = convert(folder, output, *flags)
    assert "times the source" in ended.err
    assert "--resize=256" not in ended.err


@pytest.mark.parametrize(
    ("flags", "is_named"),
    [((), True), ((ENCODED,), True), ((ENCODED, "--skip_decode_check"), False), ((RESIZE,), False)],
)
def test_the_lack_of_space_names_resize_where_it_helps(
    flags, is_named, folder, output, convert, monkeypatch
):
    save_large(folder)
    pretend_free(monkeypatch, 1000)
    ended = convert(folder, output, *flags)
    assert_refused(ended, "only 0 MB are free", "--dry_run compares")
    assert ("--resize=256, which makes images smaller" in ended.err) == is_named


@STORES
def test_no_flag_that_resizing_refuses_is_advised_where_it_reads_no_file(
    store, folder, output, convert
):
    (folder / "a.jpg").write_bytes(b"no image")
    ended = convert(folder, output, store, RESIZE)
    assert ended.status == 1
    assert "none of the 1 files could be read" in ended.err
    assert ended.err.splitlines()[-1].endswith("OUT.h5 was not made.")


# Interrupted


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@STORES
def test_a_killed_run_is_resumed_to_the_same_bytes(store, folder, output, tmp_path, convert):
    for number in range(300):
        save(folder / f"{number:03}.jpg", photo(number % 7, (300, 400 + number % 5, 3)), quality=95)
    flags = ("--resize=200", store)
    process = start(command(folder, output, *flags, "--workers=2"))
    journal = output.with_name("OUT.h5.partial.journal")
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 1)  # a batch
    os.killpg(process.pid, 9)
    finish(process)
    assert not output.exists()
    assert not processes_left(process.pid)
    before = files_of(output.parent)
    other = convert(folder, output, "--resize=199", store, "--dry_run")
    assert other.status == 0
    assert files_of(output.parent) == before
    ended = run(command(folder, output, *flags))
    assert ended.status == 0, ended.err
    assert "are kept from the interrupted run" in ended.err
    assert convert(folder, tmp_path / "whole.h5", *flags).status == 0
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize(
    ("again", "said"),
    [
        (("--resize=41",), "resize was 40 and is 41"),
        ((RESIZE, "--resize_mode=crop"), 'resize_mode was "shorter" and is "crop"'),
        ((), "it was made with --resize=40, and this is without --resize"),
    ],
)
def test_an_interrupted_run_of_another_size_starts_over_and_says_so(
    again, said, album, output, tmp_path, convert
):
    (album / "zz.png").write_bytes(b"no image")
    ended = convert(album, output, EXT, RESIZE, "--on_error=stop", "--compression=none")
    assert ended.status == 1
    assert "files are kept in" in ended.err
    (album / "zz.png").unlink()
    ended = convert(album, output, EXT, "--compression=none", *again)
    assert ended.status == 0, ended.err
    assert f"cannot be resumed, because {said}: the run starts over" in ended.err
    assert convert(album, tmp_path / "whole.h5", EXT, "--compression=none", *again).status == 0
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_file_that_cannot_be_resized_is_a_failure_and_the_rest_is_stored(album, output, convert):
    (album / "y.jpg").write_bytes((album / "gray/c.jpg").read_bytes()[:3000])
    ended = convert(album, output, EXT, RESIZE)
    assert ended.status == 1
    assert list(failures(output)) == ["y.jpg"]
    assert len(stored(output)) == len(SHAPES)
