"""``--store=encoded``: the very files in the HDF5 file, and the same arrays out of it."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import pickle
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import imageio.v3 as iio
import numpy as np
import PIL.Image
import pytest

from converter import H5Folder
from converter.cli import main
from converter.errors import LoadError
from converter.format.index import ROW
from helpers.check import (
    assert_refused,
    assert_same,
    case,
    everything_below,
    failures,
    files_of,
    names_kept,
    stored,
)
from helpers.damage import TailEditor, cut_tail_off
from helpers.images import as_pillow_reads, colours, noise, save, save_frames, save_jpegs, save_tiff
from helpers.run import ROOT, command, run, write_functions

START_METHODS = [m for m in ("fork", "spawn", "forkserver") if m in
                 multiprocessing.get_all_start_methods()]  # fmt: skip
HAS_OPENCV = importlib.util.find_spec("cv2") is not None
ENCODED, UNCHECKED = "--store=encoded", "--skip_decode_check"
#: A package each compression needs to make payloads.
PACKAGES = {"zstd": "zstandard", "zstd:1": "zstandard", "blosc2": "blosc2"}
GRAY, RGB, RGBA = (20, 30), (20, 30, 3), (20, 30, 4)


def depth(shape: tuple[int, ...] = GRAY) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 65536, shape, np.uint16)


def palette() -> PIL.Image.Image:
    return PIL.Image.fromarray(colours(2, RGB)).quantize(9)


def save_deep_png(path: Path, channels: int) -> None:
    import cv2

    assert cv2.imwrite(str(path), depth((20, 30, channels)))


def rotated() -> PIL.Image.Exif:
    found = PIL.Image.Exif()
    found[0x112] = 6
    return found


KINDS: dict[str, Callable[[Path], object]] = {
    "jpeg/gray.jpg": lambda p: save(p, colours(0, GRAY)),
    "jpeg/420.jpg": lambda p: save(p, subsampling="4:2:0"),
    "jpeg/422.JPEG": lambda p: save(p, subsampling="4:2:2", format="JPEG"),
    "jpeg/444.jpg": lambda p: save(p, subsampling="4:4:4", quality=95),
    "jpeg/progressive.jpg": lambda p: save(p, progressive=True),
    "jpeg/cmyk.jpg": lambda p: PIL.Image.fromarray(colours()).convert("CMYK").save(p),
    "jpeg/rotated.jpg": lambda p: save(p, exif=rotated()),
    "jpeg/two pictures.jpg": lambda p: save_frames(p, format="MPO"),
    "jpeg/a png.jpg": lambda p: save(p, format="PNG"),
    "gray.png": lambda p: save(p, colours(0, GRAY)),
    "gray_alpha.png": lambda p: save(p, colours(0, (20, 30, 2))),
    "rgb.PNG": lambda p: save(p, format="PNG"),
    "rgba.png": lambda p: save(p, colours(0, RGBA)),
    "palette.png": lambda p: palette().save(p),
    "transparent.png": lambda p: palette().save(p, transparency=3),
    "one_bit.png": lambda p: PIL.Image.fromarray(colours(0, GRAY) > 99).save(p),
    "gray16.png": lambda p: save(p, depth()),
    "moving.png": save_frames,
    "plain.gif": lambda p: palette().save(p),
    "moving.gif": save_frames,
    "plain.bmp": lambda p: save(p),
    "palette.bmp": lambda p: palette().save(p),
    "plain.webp": lambda p: save(p, lossless=True),
    "moving.webp": lambda p: save_frames(p, lossless=True),
    "plain.ppm": lambda p: save(p),
    "tiff/plain.tif": lambda p: save(p),
    "tiff/gray16.tif": lambda p: save(p, depth()),
    "tiff/floats.tiff": lambda p: save(p, np.linspace(0, 1, 600, dtype="f4").reshape(GRAY)),
    "tiff/rgb16.tif": lambda p: save_tiff(p, depth(RGB), compression="zlib"),
    "tiff/big_endian.tif": lambda p: save_tiff(p, depth(RGB), byteorder=">"),
    "tiff/pages.tif": save_frames,
    "tiff/pages16.tif": lambda p: save_tiff(p, depth((3, 20, 30))),
}
if HAS_OPENCV:
    KINDS["deep/rgb16.png"] = lambda p: save_deep_png(p, 3)
    KINDS["deep/rgba16.png"] = lambda p: save_deep_png(p, 4)


class Stores(NamedTuple):
    """A folder, and the HDF5 files made of it."""

    folder: Path
    array: Path
    encoded: Path
    without_tail: Path


def make_stores(folder: Path, extensions: str) -> Stores:
    """Convert a folder to both stores, and one of them as HDF5 leaves it: without the tail."""
    stores = Stores(folder, *(folder.parent / f"{name}.h5" for name in Stores._fields[1:]))
    flags = [f"--path_images={folder}", f"--ext={extensions}", "--workers=1", "--quiet"]
    for name in ("array", "encoded"):
        output = getattr(stores, name)
        assert main([*flags, f"--path_output={output}", f"--store={name}"]) == 0
    shutil.copy(stores.encoded, stores.without_tail)
    cut_tail_off(stores.without_tail)
    return stores


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> Stores:
    """Every kind of image."""
    folder = tmp_path_factory.mktemp("kinds") / "images"
    for name, write in KINDS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name)
    return make_stores(folder, "jpg,jpeg,png,gif,bmp,webp,ppm,tif,tiff")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Stores:
    """12 JPEGs of one shape, large enough to be decoded by several threads, and 3 other PNGs."""
    folder = tmp_path_factory.mktemp("photos") / "images"
    for number in range(12):
        save(folder / "a" / f"{number:02}.jpg", noise(number), quality=90)
    for number in range(3):
        save(folder / "b" / f"{number:02}.png", noise(number, (50, 60)))
    return make_stores(folder, "jpg,png")


@pytest.fixture(params=["tail", "no_tail"])
def with_or_without_tail(request) -> Callable[[Stores], Path]:
    return lambda stores: stores.encoded if request.param == "tail" else stores.without_tail


def write_files(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    """Write files under their keys."""
    for key, data in files.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    return files


def text(seed: int, lines: int = 800) -> bytes:
    """Return lines that compress well."""
    numbers = np.random.default_rng(seed).integers(0, 1000, lines)
    return "".join(f'{{"label": {number}, "boxes": []}}\n' for number in numbers).encode()


# What is in the file


def test_each_dataset_is_the_file_byte_for_byte(kinds):
    found = stored(kinds.encoded)
    files = files_of(kinds.folder)
    assert set(found) == set(files) == set(KINDS)
    for key, data in files.items():
        assert_same(found[key], np.frombuffer(data, np.uint8))


def test_what_does_not_compress_lies_in_one_piece_by_default(photos):
    with h5py.File(photos.encoded) as h5:
        for number in range(12):
            dataset = h5[f"a/{number:02}.jpg"]
            assert (dataset.dtype, dataset.ndim, dataset.chunks) == (np.uint8, 1, None)
            assert dataset.id.get_offset() is not None


@pytest.mark.parametrize("key", ["jpeg/420.jpg", "rgba.png", "moving.gif", "plain.webp"])
def test_any_reader_of_images_decodes_what_h5py_gives(key, kinds):
    with h5py.File(kinds.encoded) as h5:
        array = iio.imread(h5[key][:].tobytes())
    assert_same(array, as_pillow_reads(kinds.folder / key))


def test_the_root_says_how_the_files_were_stored(folder, output, convert):
    save_jpegs(folder, ["a.jpg"])
    assert convert(folder, output, ENCODED, "--max_pixels=1000").status == 0
    with h5py.File(output) as h5:
        options = json.loads(h5.attrs["options"])
        assert (h5.attrs["store"], h5.attrs["reader"]) == ("encoded", "imageio")
        assert (options["skip_decode_check"], options["max_pixels"]) == (False, 1000)
    assert convert(folder, output, ENCODED, UNCHECKED, "--overwrite").status == 0
    with h5py.File(output) as h5:
        assert json.loads(h5.attrs["options"])["skip_decode_check"] is True
    assert convert(folder, output, "--overwrite").status == 0
    with h5py.File(output) as h5:
        assert h5.attrs["store"] == "array"


@pytest.mark.parametrize("unchecked", [[], [UNCHECKED]])
def test_any_number_of_workers_writes_the_same_bytes(unchecked, kinds, output, convert):
    extensions = "--ext=jpg,jpeg,png,gif,bmp,webp,ppm,tif,tiff"
    written = set()
    for workers in (1, 3):
        flags = (extensions, ENCODED, f"--workers={workers}", "--overwrite", *unchecked)
        assert convert(kinds.folder, output, *flags).status == 0
        written.add(output.read_bytes())
    assert len(written) == 1
    if not unchecked:
        assert written == {kinds.encoded.read_bytes()}


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    "name", ["flat/{n:04}.txt", "{m}/{n:04}.txt", "class {m}/train/images/{n:04} of many.txt"]
)
def test_many_tiny_files_take_at_most_500_bytes_more_each(name, folder, output, convert):
    files = {name.format(n=n, m=n // 8): b"x" * (n % 300) for n in range(600)}
    write_files(folder, files)
    assert convert(folder, output, ENCODED, UNCHECKED, "--ext=txt").status == 0
    assert output.stat().st_size <= 1.02 * sum(map(len, files.values())) + 500 * len(files)
    assert {key: bytes(array) for key, array in stored(output).items()} == files


def test_photos_take_hardly_more_than_in_the_folder(photos):
    nbytes = sum(map(len, files_of(photos.folder).values()))
    assert photos.encoded.stat().st_size <= 1.02 * nbytes + 500 * 15
    assert photos.array.stat().st_size > 2 * nbytes


def test_the_report_counts_palettes_and_frames(folder, output, convert):
    palette().save(folder / "a.png")
    save_frames(folder / "b.png")
    ended = convert(folder, output, ENCODED, "--ext=png")
    assert "1 palette images" in ended.out
    assert "1 files with several frames or pages" in ended.out
    assert f"{output}: 2 stored, 0 failed" in ended.out


def test_my_prune_chooses_the_files_to_keep_as_they_are(folder, output, tmp_path, convert):
    write_files(folder, {"a.txt": b"a", "b.txt": b"b", "README": b"read me"})
    functions = write_functions(
        tmp_path / "keep_functions.py", "def my_prune(name, ext): return name != 'b.txt'"
    )
    flags = (ENCODED, UNCHECKED, "--custom_prune_func", f"--path_functions={functions}")
    assert convert(folder, output, *flags).status == 0
    h5 = H5Folder(output)
    assert {key: h5.read_bytes(key) for key in h5} == {"a.txt": b"a", "README": b"read me"}


# Reading


def test_every_kind_of_image_decodes_to_what_the_array_store_holds(kinds, with_or_without_tail):
    for key in KINDS:
        with case(key):
            expected = H5Folder(kinds.array)[key]
            folder = H5Folder(with_or_without_tail(kinds))
            position = list(folder).index(key)
            assert folder.is_encoded
            assert_same(folder[key], expected)
            assert_same(folder[position], expected)
            assert_same(folder[position - len(folder)], expected)
            for selection in (
                np.s_[3:9],
                np.s_[-1],
                np.s_[..., ::-2],
                np.s_[0, ...],
                np.s_[2:2],
                ...,
            ):
                part = folder.read(key, selection)
                assert_same(part, np.array(expected[selection]))
                part[...] = 0  # its own memory
            assert_same(folder.read_batch([key, position]), np.stack([expected] * 2))
            assert folder.read_bytes(key) == folder.read_bytes(position)
            assert folder.read_bytes(key) == (kinds.folder / key).read_bytes()


def test_files_without_a_known_extension_decode_to_what_the_array_store_holds(
    tmp_path, output, convert
):
    folder = tmp_path / "images.of" / "2024.05"  # dots that are no extension's
    save(folder / "a picture", format="PNG")
    save(folder / "b.picture", format="JPEG")
    functions = write_functions(tmp_path / "all_functions.py", "def my_prune(n, e): return True")
    flags = ("--custom_prune_func", f"--path_functions={functions}", "--overwrite")
    assert convert(folder, output, *flags).status == 0
    expected = stored(output)
    ended = convert(folder, output, ENCODED, *flags)
    assert ended.status == 0, ended.err
    h5 = H5Folder(output)
    assert set(h5) == set(expected) == {"a picture", "b.picture"}
    for key, array in expected.items():
        assert_same(h5[key], array)


@pytest.mark.parametrize("cache_nbytes", [0, 50_000, 10**7])
@pytest.mark.parametrize("threads", [1, 3, None])
def test_a_batch_has_the_arrays_in_the_order_asked_for(
    threads, cache_nbytes, photos, with_or_without_tail
):
    expected = H5Folder(photos.array)
    folder = H5Folder(with_or_without_tail(photos), threads=threads, cache_nbytes=cache_nbytes)
    places = [7, 0, 11, 7, 3]
    keys = [folder.key_at(place) for place in places]
    for _ in range(2):  # the second may come from the cache
        for asked in (places, keys, np.array(places), [keys[0], *places[1:]]):
            assert_same(folder.read_batch(asked), np.stack([expected[key] for key in keys]))
        mixed = folder.read_batch([14, 2, 13])
        assert isinstance(mixed, list)
        for array, key in zip(mixed, ["b/02.png", "a/02.jpg", "b/01.png"], strict=True):
            assert_same(array, expected[key])
    assert folder.read_batch([]) == []


def test_arrays_are_the_callers_own(photos):
    folder = H5Folder(photos.encoded, cache_nbytes=10**7)
    expected = folder["a/00.jpg"].copy()
    folder["a/00.jpg"][...] = 0
    folder.read_batch([0, 1])[...] = 0
    assert_same(folder["a/00.jpg"], expected)


def decode_calls(monkeypatch, before: Callable[[], object]) -> set[int]:
    """Return a set that fills with the threads that decode JPEGs."""
    simplejpeg = pytest.importorskip("simplejpeg")
    threads: set[int] = set()
    decode = simplejpeg.decode_jpeg

    def noted(*args: Any, **options: Any) -> np.ndarray:
        threads.add(threading.get_ident())
        before()
        return decode(*args, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", noted)
    return threads


def test_as_many_threads_decode_a_batch_as_were_asked_for(photos, monkeypatch):
    meeting = threading.Barrier(3, timeout=60)  # nobody goes on before three are there
    is_measured = False

    def before() -> None:
        end = time.thread_time() + 1e-3  # as files take that are worth a thread
        while time.thread_time() < end:
            pass
        if is_measured:
            meeting.wait()

    threads = decode_calls(monkeypatch, before)
    folder = H5Folder(photos.encoded, threads=3)
    folder.read_batch(range(2))
    is_measured = True
    folder.read_batch(range(12))
    assert len(threads) == 3


def test_one_thread_is_the_callers(photos, monkeypatch):
    threads = decode_calls(monkeypatch, lambda: None)
    H5Folder(photos.encoded, threads=1).read_batch(range(12))
    assert threads == {threading.get_ident()}


def in_child(folder: H5Folder, results: Any) -> None:
    """Read everything in every way; put what came of it, or the error."""
    try:
        arrays = [folder[key] for key in folder]
        batch = folder.read_batch(range(len(folder)))
        assert all(map(np.array_equal, batch, arrays))
        results.put([array.tobytes() for array in batch])
    except BaseException as error:
        results.put(repr(error))


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("threads", [3, None])
@pytest.mark.parametrize("method", START_METHODS)
def test_processes_read_whatever_starts_them_after_threads_were_used(
    method, threads, photos, with_or_without_tail
):
    folder = H5Folder(with_or_without_tail(photos), threads=threads)
    expected = [array.tobytes() for array in folder.read_batch(range(15))]
    context = multiprocessing.get_context(method)
    results = context.Queue()
    children = [context.Process(target=in_child, args=(folder, results)) for _ in range(2)]
    for child in children:
        child.start()
    assert [array.tobytes() for array in folder.read_batch(range(15))] == expected
    for _ in children:
        assert results.get(timeout=60) == expected
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def threads_in_child(folder: H5Folder, threads: set[int], results: Any) -> None:
    threads.clear()
    folder.read_batch(range(12))
    results.put(len(threads))


@pytest.mark.skipif("fork" not in START_METHODS, reason="needs fork")
def test_a_worker_process_decodes_in_one_thread_unless_told(photos, monkeypatch):
    threads = decode_calls(monkeypatch, lambda: None)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(
        target=threads_in_child, args=(H5Folder(photos.encoded), threads, results)
    )
    child.start()
    assert results.get(timeout=60) == 1
    child.join(60)


def test_an_open_folder_pickles_with_its_threads(photos):
    folder = H5Folder(photos.encoded, threads=2)
    expected = folder.read_batch(range(12))
    copy = pickle.loads(pickle.dumps(folder))
    assert copy.is_encoded
    assert_same(copy.read_batch(range(12)), expected)
    folder.close()
    assert_same(copy.read_batch(range(12)), expected)
    with pytest.raises(LoadError, match=r"is closed"):
        folder.read_batch(range(12))


def test_threads_of_the_caller_may_read_batches_at_once(photos):
    folder = H5Folder(photos.encoded, threads=2)
    expected = H5Folder(photos.array).read_batch(range(12))
    got: list[Any] = []
    callers = [
        threading.Thread(target=lambda: got.append(folder.read_batch(range(12)))) for _ in range(6)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(got) == 6
    for batch in got:
        assert_same(batch, expected)


@pytest.mark.slow
def test_several_threads_leave_the_filters_of_warnings_as_they_were(tmp_path):
    folder = tmp_path / "images"
    for number in range(24):
        save(folder / f"{number}.png", noise(number))
    stores = make_stores(folder, "png")
    before = list(warnings.filters)
    h5 = H5Folder(stores.encoded, threads=8)
    for _ in range(30):
        h5.read_batch(range(24))
    assert list(warnings.filters) == before


def test_the_number_of_threads_is_at_least_one(photos):
    for threads in (0, -1):
        with pytest.raises(ValueError, match=f"threads is {threads}"):
            H5Folder(photos.encoded, threads=threads)


def test_threads_change_nothing_for_arrays(photos):
    folder = H5Folder(photos.array, threads=3)
    assert not folder.is_encoded
    assert_same(folder.read_batch(range(12)), H5Folder(photos.encoded).read_batch(range(12)))


@pytest.mark.parametrize("is_ours", [True, False])
def test_an_array_store_has_no_original_files_and_says_so(is_ours, photos, tmp_path):
    path = tmp_path / "array.h5"
    shutil.copy(photos.array, path)
    if not is_ours:
        cut_tail_off(path)
    with pytest.raises(LoadError, match=r"is an array.*--store=encoded"):
        H5Folder(path).read_bytes("a/00.jpg")


def test_an_unknown_key_is_a_key_error_with_what_is_near(photos):
    for read in (H5Folder.__getitem__, H5Folder.read_bytes, H5Folder.read):
        with pytest.raises(KeyError, match=r"a/00\.jpg"):
            read(H5Folder(photos.encoded), "a/00.jpeg")
    with pytest.raises(IndexError):
        H5Folder(photos.encoded).read_bytes(15)


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (["imageio", "imageio.v3", "PIL", "tifffile", "simplejpeg", "cv2"], "pip install pillow"),
        (["converter.images"], "need converter.images"),
        (["converter.samples"], "need converter.samples"),
    ],
    ids=["packages", "folder", "module"],
)
def test_the_files_can_be_had_without_what_decodes_them(missing, words, photos):
    program = f"""
import sys, types
package = types.ModuleType("converter")  # a copied loader has no __init__ that imports more
package.__path__ = [{str(ROOT / "converter")!r}]
sys.modules["converter"] = package
sys.modules.update(dict.fromkeys({missing}))
from converter.errors import LoadError
from converter.loader.h5folder import H5Folder
folder = H5Folder({str(photos.encoded)!r})
print(len(folder.read_bytes(0)), folder.is_encoded)
try:
    folder[0]
except LoadError as error:
    print(error)
"""
    done = run([sys.executable, "-c", program])
    first, _, second = done.out.partition("\n")
    assert first == f"{(photos.folder / 'a/00.jpg').stat().st_size} True", done.err
    assert words in second


# Files that are no images, or not whole


@pytest.fixture
def broken(folder) -> dict[str, bytes]:
    """A good image of each of a few formats, and what is left of it after an accident."""
    files = {}
    for name in ("a.jpg", "b.png", "c.gif", "d.tif", "e.webp", "f.bmp"):
        save(folder / name, noise(1), **({"compression": "tiff_deflate"} if "tif" in name else {}))
        data = files[name] = (folder / name).read_bytes()
        files[f"cut/{name}"] = data[: len(data) // 2]
        files[f"empty/{name}"] = b""
        files[f"garbage/{name}"] = b"garbage " * 99
    return write_files(folder, files)


BROKEN_EXTENSIONS = "--ext=jpg,png,gif,tif,webp,bmp"


def test_what_the_array_store_refuses_the_encoded_store_refuses(broken, folder, output, convert):
    assert convert(folder, output, BROKEN_EXTENSIONS).status == 1
    expected = failures(output)
    assert {key for key in broken if key.startswith(("cut/", "empty/", "garbage/"))} == {*expected}
    ended = convert(folder, output, BROKEN_EXTENSIONS, ENCODED, "--overwrite")
    assert ended.status == 1
    assert set(failures(output)) == set(expected)
    assert {key: bytes(array) for key, array in stored(output).items()} == {
        key: data for key, data in broken.items() if "/" not in key
    }
    assert failures(output)["garbage/a.jpg"].startswith("not an image that the default reader")
    assert failures(output)["empty/b.png"] == "an empty file"


def test_without_the_check_broken_files_are_stored_as_they_are(
    broken, folder, output, convert, tmp_path
):
    ended = convert(folder, output, BROKEN_EXTENSIONS, ENCODED, UNCHECKED)
    assert ended.status == 0, ended.err
    assert failures(output) == {}
    bare = tmp_path / "bare.h5"
    shutil.copy(output, bare)
    cut_tail_off(bare)
    for path in (output, bare):
        h5 = H5Folder(path, threads=3)
        assert {key: h5.read_bytes(key) for key in h5} == broken
        for key in broken:
            if "/" in key:
                for read, asked in (
                    (h5.__getitem__, key),
                    (h5.read, key),
                    (h5.read_batch, [key, "a.jpg"]),
                ):
                    with pytest.raises(LoadError, match=f"'{key}' in .*{path.name}"):
                        read(asked)
        assert_same(h5["b.png"], noise(1))


def test_a_file_that_cannot_be_decoded_says_how_to_have_it(folder, output, convert):
    write_files(folder, {"label.json": text(1, 3), "a.jpg": b"no image"})
    assert convert(folder, output, "--ext=json,jpg", ENCODED, UNCHECKED).status == 0
    h5 = H5Folder(output)
    assert h5.read_bytes("label.json") == text(1, 3)
    with pytest.raises(LoadError, match=r"'label\.json' in .* read_bytes"):
        h5["label.json"]


def save_ome(folder: Path, names: list[str], page_names: list[str]) -> None:
    """Write OME-TIFFs that all say in which file each page is."""
    pages = "".join(
        f'<TiffData IFD="0" FirstZ="{n}" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:{names.index(name)}</UUID></TiffData>'
        for n, name in enumerate(page_names)
    )
    for n, name in enumerate(names):
        description = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{n}"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            f'DimensionOrder="XYZCT" Type="uint8" SizeX="30" SizeY="20" SizeZ="{len(page_names)}" '
            f'SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{pages}'
            "</Pixels></Image></OME>"
        )
        save_tiff(folder / name, colours(n, GRAY), description=description, metadata=None)


def test_an_image_whose_pages_are_in_several_files_is_never_decoded_from_one(
    folder, output, convert
):
    names = ["a.ome.tif", "b.ome.tif"]
    save_ome(folder, names, names)
    save_ome(folder, ["whole.ome.tif"], ["whole.ome.tif"])
    assert convert(folder, output, "--ext=tif").status == 0
    both = np.stack([colours(0, GRAY), colours(1, GRAY)])
    assert_same(stored(output)["a.ome.tif"], both)
    ended = convert(folder, output, "--ext=tif", ENCODED, "--overwrite")
    assert ended.status == 1
    assert set(failures(output)) == set(names)
    assert all("--store=array" in reason for reason in failures(output).values())
    assert_same(H5Folder(output)["whole.ome.tif"], colours(0, GRAY))
    assert convert(folder, output, "--ext=tif", ENCODED, UNCHECKED, "--overwrite").status == 0
    with pytest.raises(LoadError, match=r"'a\.ome\.tif'"):
        H5Folder(output)["a.ome.tif"]


@pytest.mark.parametrize(("name", "status"), [("a.json", 2), ("a.jpg", 1)])
def test_where_all_files_fail_the_cure_is_named(name, status, folder, output, convert):
    write_files(folder, {name: b"{}", "sub/" + name: b"{}"})
    ended = convert(folder, output, f"--ext={name[2:]}", ENCODED)
    assert ended.status == status
    assert status == 2 or "none of the 2 files could be read" in ended.err
    assert "--skip_decode_check" in ended.err
    assert "my_read" not in ended.err  # it cannot go with --store=encoded
    assert not output.exists()
    ended = convert(folder, output, f"--ext={name[2:]}")
    assert "--custom_read_func" in ended.err
    assert "--skip_decode_check" not in ended.err


def test_the_reasons_are_the_same_in_each_run(folder, output, convert):
    write_files(folder, {"a.bmp": b"{}", "b.tif": b"II*\0", "c.png": b"", "d.gif": b"GIF89a"})
    save(folder / "good.png")
    reasons = []
    for _ in range(2):
        convert(folder, output, "--ext=bmp,tif,png,gif", ENCODED, "--overwrite")
        reasons.append(failures(output))
    assert len(reasons[0]) == 4
    assert reasons[0] == reasons[1]
    assert not [reason for reason in reasons[0].values() if "object at 0x" in reason]


def test_on_error_stop_ends_at_the_first_broken_file(folder, output, convert):
    save_jpegs(folder, ["a.jpg", "c.jpg"])
    write_files(folder, {"b.jpg": b"no image"})
    ended = convert(folder, output, ENCODED, "--on_error=stop")
    assert ended.status == 1
    assert "b.jpg: not an image that the default reader knows" in ended.err
    assert "(stopped" in ended.err
    assert set(os.listdir(output.parent)) == names_kept(ended, output)


@pytest.mark.parametrize("change", ["grows", "shrinks"])
@pytest.mark.parametrize("flags", [[ENCODED], [ENCODED, UNCHECKED]])
def test_a_file_that_changes_while_it_is_read_is_a_failure(
    change, flags, folder, output, convert, monkeypatch
):
    save_jpegs(folder, ["a.jpg", "b.jpg", "c.jpg"])
    fstat, changed = os.fstat, os.stat(folder / "b.jpg")

    def fstat_before_a_change(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        if os.path.samestat(status, changed):  # each time: the estimate reads it too
            os.truncate(folder / "b.jpg", status.st_size + (9 if change == "grows" else -9))
        return status

    monkeypatch.setattr(os, "fstat", fstat_before_a_change)
    ended = convert(folder, output, *flags)
    monkeypatch.undo()
    assert ended.status == 1
    assert failures(output) == {"b.jpg": "it changed while it was read"}
    assert sorted(stored(output)) == ["a.jpg", "c.jpg"]


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="needs Linux's /proc")
def test_a_file_that_says_it_is_empty_and_is_not_is_never_stored_as_empty(folder, output, convert):
    write_files(folder, {"a.txt": b"a"})
    (folder / "b.txt").symlink_to("/proc/version")
    ended = convert(folder, output, ENCODED, UNCHECKED, "--ext=txt")
    assert ended.status == 1
    assert list(failures(output)) == ["b.txt"]
    assert sorted(stored(output)) == ["a.txt"]


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_verify_names_the_file_in_which_a_byte_flipped(compression, folder, output, convert):
    good = {f"{name}.bmp": noise(0, GRAY) // 99 for name in "abc"}
    for name, array in good.items():
        save(folder / name, array)
    whole = files_of(folder)
    flags = (ENCODED, "--ext=bmp", f"--compression={compression}")
    assert convert(folder, output, *flags).status == 0
    with h5py.File(output) as h5:
        dataset = h5["b.bmp"]
        assert (dataset.chunks is None) == (compression == "none")
        offset = dataset.id.get_offset() or dataset.id.get_chunk_info(0).byte_offset
        nbytes = dataset.id.get_storage_size()
    content = bytearray(output.read_bytes())
    content[offset + nbytes - 5] ^= 1
    output.write_bytes(content)
    h5 = H5Folder(output, verify=True, threads=3)
    for read in (h5.__getitem__, h5.read_bytes, h5.read, lambda key: h5.read_batch(["a.bmp", key])):
        with pytest.raises(LoadError, match=r"'b\.bmp' in .* damaged \(its checksum differs\)"):
            read("b.bmp")
        read("c.bmp")
    assert {key: h5.read_bytes(key) for key in ("a.bmp", "c.bmp")} == {
        key: whole[key] for key in ("a.bmp", "c.bmp")
    }
    trusting = H5Folder(output)
    if compression == "none":
        assert len(trusting.read_bytes("b.bmp")) == len(whole["b.bmp"])
    else:  # gzip has a checksum of its own
        with pytest.raises(LoadError, match=r"'b\.bmp' in .* has a chunk that .*inflate"):
            trusting.read_bytes("b.bmp")


# Too many pixels


LARGE = {
    "a.jpg": lambda p: save(p, noise(0, (30, 40, 3))),
    "cmyk.jpg": lambda p: PIL.Image.fromarray(noise(0, (30, 40, 3))).convert("CMYK").save(p),
    "a.png": lambda p: save(p, noise(0, (30, 40))),
    "UPPER.PNG": lambda p: save(p, noise(0, (30, 40)), format="PNG"),
    "a.tif": lambda p: save(p, noise(0, (30, 40))),
    "UPPER.TIF": lambda p: save(p, noise(0, (30, 40)), format="TIFF"),
    "a.gif": lambda p: save(p, noise(0, (30, 40))),
}
if HAS_OPENCV:
    LARGE["deep.png"] = lambda p: save_deep_png(p, 3)


def test_an_image_of_too_many_pixels_is_a_failure(folder, output, convert):
    for name, write in LARGE.items():
        write(folder / name)
    save(folder / "small.png", noise(0, (5, 5)))
    flags = (ENCODED, "--ext=jpg,png,tif,gif", "--max_pixels=599")
    ended = convert(folder, output, *flags)
    assert ended.status == 1
    found = failures(output)
    assert set(found) == set(LARGE)
    for name, reason in found.items():
        assert f"--max_pixels={600 if name == 'deep.png' else 1200}" in reason
    assert list(stored(output)) == ["small.png"]
    ended = convert(folder, output, ENCODED, "--ext=png,jpg,tif,gif", "--max_pixels=1200",
                    "--overwrite")  # fmt: skip
    assert ended.status == 0, ended.err


@pytest.mark.parametrize("name", LARGE)
def test_reading_an_image_of_too_many_pixels_says_how_to_allow_it(
    name, folder, output, convert, monkeypatch
):
    LARGE[name](folder / name)
    save(folder / "small.png", noise(0, (5, 5)))
    assert convert(folder, output, ENCODED, "--ext=jpg,png,tif,gif").status == 0
    h5 = H5Folder(output)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    pixels = 600 if name == "deep.png" else 1200
    with pytest.raises(LoadError, match=rf"'{name}' in .*{pixels} pixels.*") as caught:
        h5[name]
    cure = f"PIL.Image.MAX_IMAGE_PIXELS = {pixels // 2}"
    assert cure in str(caught.value)
    assert h5.read_bytes(name) == (folder / name).read_bytes()
    assert h5["small.png"].shape == (5, 5)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", pixels // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        assert h5[name].size >= pixels


# With a compression


def bytes_through_h5py(path: Path) -> dict[str, bytes]:
    return {key: array.tobytes() for key, array in stored(path).items()}


@pytest.mark.parametrize("compression", ["none", "auto", "gzip:6", "zstd", "zstd:1", "blosc2"])
def test_each_compression_gives_the_files_back(compression, folder, output, convert, tmp_path):
    if compression in PACKAGES:
        pytest.importorskip(PACKAGES[compression])
    files = {
        "large.txt": text(0) * 300,  # of several chunks
        "small.txt": text(1, 60),
        "empty.txt": b"",
        "one.txt": b"x",
        "noise.txt": noise(0).tobytes(),
    }
    write_files(folder, files)
    save(folder / "image.bmp", colours() // 99)
    files["image.bmp"] = (folder / "image.bmp").read_bytes()
    flags = (ENCODED, UNCHECKED, "--ext=txt,bmp", f"--compression={compression}")
    ended = convert(folder, output, *flags)
    assert ended.status == 0, ended.err
    for verify in (True, False):
        h5 = H5Folder(output, verify=verify)
        assert {key: h5.read_bytes(key) for key in h5} == files
        assert_same(h5["image.bmp"], colours() // 99)
    with h5py.File(output) as h5:
        chunked = {key for key in files if h5[key].chunks}
        assert json.loads(h5.attrs["options"])["compression"].startswith(compression)
    assert chunked == {
        "none": set(),
        "auto": {"large.txt", "small.txt"} & chunked,
    }.get(compression, {"large.txt", "small.txt", "image.bmp"})
    if compression != "none":
        assert "large.txt" in chunked
        assert output.stat().st_size < len(files["large.txt"]) // 2
    if compression in PACKAGES:
        pytest.importorskip("hdf5plugin")
    assert bytes_through_h5py(output) == files
    bare = tmp_path / "bare.h5"
    shutil.copy(output, bare)
    cut_tail_off(bare)
    h5 = H5Folder(bare)
    assert h5.is_encoded
    assert {key: h5.read_bytes(key) for key in h5} == files


# What is said before


def test_the_warning_of_a_large_output_names_the_encoded_store(photos, output, convert):
    ended = convert(photos.folder, output, "--ext=jpg,png")
    assert ended.status == 0
    (line,) = [line for line in ended.err.splitlines() if "times the source" in line]
    assert "because it holds decoded arrays" in line
    assert "--store=encoded" in line
    ended = convert(photos.folder, output, "--ext=jpg,png", ENCODED, "--overwrite")
    assert "times the source" not in ended.err


def test_tiny_files_are_not_said_to_be_decoded_arrays(folder, output, convert):
    write_files(folder, {f"{n}.txt": b"x" * 20 for n in range(5)})
    ended = convert(folder, output, ENCODED, UNCHECKED, "--ext=txt")
    assert ended.status == 0
    assert "decoded" not in ended.err
    assert "--store=encoded" not in ended.err


REFUSED = {
    "--store=encoded --custom_read_func": "--custom_read_func",
    "--store=encoded --reader=imageio": "--reader=imageio",
    "--store=encoded --reader=opencv": "--reader=opencv",
    "--store=encoded --skip_decode_check --max_pixels=9": "--max_pixels",
    "--skip_decode_check": "--store=encoded",
    "--store=array --skip_decode_check": "--store=encoded",
    "--custom_read_func --reader=imageio": "--reader=imageio",
    "--custom_read_func --reader=opencv": "--reader=opencv",
    "--store=files": "'files'",
    "--store=": "''",
    "--store=ENCODED": "'ENCODED'",
    "--skip_decode_check=yes --store=encoded": "--skip_decode_check",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_flags_that_contradict_each_other_are_refused(flags, folder, output, convert, tmp_path):
    save_jpegs(folder, ["a.jpg"])
    write_functions(tmp_path / "my_functions.py", "def my_read(path): return 1")
    output.write_bytes(b"an older one")
    functions = f"--path_functions={tmp_path / 'my_functions.py'}"
    more = [functions] if "custom" in flags else []
    before = everything_below(tmp_path)
    ended = convert(folder, output, "--overwrite", *flags.split(), *more)
    assert_refused(ended, REFUSED[flags])
    assert everything_below(tmp_path) == before


# Files whose index lies


PLAIN = {"dtype": "|u1", "shape": [None], "chunks": None, "filters": [], "content": "encoded"}
NBYTES = 700  # of each file
GZIPPED = {"shape": [NBYTES], "chunks": [NBYTES], "filters": [[1, [6]]]}
HUGE = 2**62

HOSTILE_LAYOUTS: dict[str, dict[str, Any]] = {
    "items of 2 bytes": {"dtype": "<u2"},
    "items with a sign": {"dtype": "|i1"},
    "items of text": {"dtype": "|S1"},
    "items that are pointers": {"dtype": "|O"},
    "items with fields": {"dtype": [["a", "|u1"]]},
    "items of no bytes": {"dtype": "|V0"},
    "no dimension": {"shape": []},
    "two dimensions": {"shape": [None, None]},
    "two dimensions, one known": {"shape": [None, 3]},
    "a length of no number": {"shape": ["700"]},
    "no shape": {"shape": None},
    "a negative length": {"shape": [-1]},
    "a known length in one piece": {"shape": [NBYTES]},
    "a huge length in one piece": {"shape": [HUGE]},
    "chunks of an unknown length": {"chunks": [NBYTES]},
    "no chunks of an unknown length": {"chunks": []},
    "filters without chunks": {"filters": [[1, [6]]]},
    "filters that are none": {"filters": None},
    "chunks of two dimensions": {**GZIPPED, "chunks": [NBYTES, 1]},
    "chunks of nothing": {**GZIPPED, "chunks": [0]},
    "chunks larger than all": {**GZIPPED, "chunks": [NBYTES + 1]},
    "more chunks than there are": {**GZIPPED, "chunks": [1]},
    "chunks of 2 dimensions and so the shape": {**GZIPPED, "shape": [70, 10], "chunks": [70, 10]},
    "filtered items of 2 bytes": {**GZIPPED, "dtype": "<u2"},
    "what was not compressed": GZIPPED,
    "more than deflate can make": {**GZIPPED, "shape": [HUGE], "chunks": [HUGE]},
    "a huge length in a filter nobody knows": {
        "shape": [HUGE], "chunks": [HUGE], "filters": [[99, []]],
    },
    "a large length in a filter nobody knows": {
        "shape": [2**40], "chunks": [2**40], "filters": [[99, []]],
    },
    "fewer bytes than are there": {"shape": [9], "chunks": [9]},
    "more bytes than are there": {"shape": [NBYTES + 1], "chunks": [NBYTES + 1]},
    "another content": {"content": "Encoded"},
    "a content of no text": {"content": ["encoded"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    """An encoded store of 4 files of one size."""
    folder = tmp_path_factory.mktemp("honest")
    write_files(folder, {f"{name}.txt": name.encode() * NBYTES for name in "abcd"})
    output = folder / "honest.h5"
    flags = [ENCODED, UNCHECKED, "--ext=txt", "--compression=none", "--workers=1", "--quiet"]
    assert main([f"--path_images={folder}", f"--path_output={output}", *flags]) == 0
    return output


def ways_to_read(path: Path) -> Iterator[Callable[[int], Any]]:
    for options in ({}, {"verify": True}, {"threads": 3}, {"cache_nbytes": 10**6}):
        folder = H5Folder(path, **options)
        yield folder.read_bytes
        yield folder.__getitem__
        yield folder.read
        yield lambda position, folder=folder: folder.read_batch([position, position])


def test_a_layout_that_lies_is_refused(honest, tmp_path):
    for lie, claim in HOSTILE_LAYOUTS.items():
        with case(lie):
            path = tmp_path / "lying.h5"
            shutil.copy(honest, path)
            layout = json.dumps({**PLAIN, **claim}).encode()
            TailEditor(path).replace_layouts(layout).save()
            for read in ways_to_read(path):
                with pytest.raises(LoadError, match=rf"{path}"):
                    read(1)


def test_the_layout_that_was_written_is_the_one_above(honest, tmp_path):
    path = tmp_path / "equal.h5"
    shutil.copy(honest, path)
    TailEditor(path).replace_layouts(json.dumps(PLAIN).encode()).save()
    assert H5Folder(path, verify=True).read_bytes(1) == b"b" * NBYTES


@pytest.mark.parametrize("nbytes", [2**63, 2**64 - 1, 2**40, 2**31, 10**5])
@pytest.mark.parametrize("position", [0, 1])
def test_a_row_of_more_bytes_than_the_file_has_is_refused(position, nbytes, honest, tmp_path):
    path = tmp_path / "lying.h5"
    shutil.copy(honest, path)
    TailEditor(path).put("rows", position * ROW.itemsize + 8, "<Q", nbytes).save()
    for read in ways_to_read(path):
        with pytest.raises(LoadError, match=r"gives '[ab]\.txt' impossible extents"):
            read(position)
    assert H5Folder(path).read_bytes(2) == b"c" * NBYTES


@pytest.mark.parametrize("offset", [2**64 - 1, 2**63, 10**6])
def test_a_row_that_begins_outside_the_file_is_refused(offset, honest, tmp_path):
    path = tmp_path / "lying.h5"
    shutil.copy(honest, path)
    TailEditor(path).put("rows", ROW.itemsize, "<Q", offset).save()
    for read in ways_to_read(path):
        with pytest.raises(LoadError, match=r"gives 'b\.txt' impossible extents"):
            read(1)


def test_a_row_of_an_unknown_layout_is_refused(honest, tmp_path):
    path = tmp_path / "lying.h5"
    shutil.copy(honest, path)
    TailEditor(path).put("rows", ROW.itemsize + 28, "<I", 7).save()
    for read in ways_to_read(path):
        with pytest.raises(LoadError, match=r"has no layout 7"):
            read(1)


def test_every_shorter_file_reads_right_or_says_so(honest, tmp_path):
    content = honest.read_bytes()
    for nbytes in range(0, len(content), 97):
        path = tmp_path / f"{nbytes}.h5"
        path.write_bytes(content[:nbytes])
        try:
            assert H5Folder(path).read_bytes("b.txt") == b"b" * NBYTES
        except LoadError as error:
            assert str(path) in str(error)


# Files of others that say they are ours


@pytest.mark.parametrize(
    "value", [1, 2.5, ["encoded", "encoded"], h5py.Empty("S7"), "array", "Encoded", b"\xff\xfe"]
)
def test_a_store_attribute_of_another_kind_means_arrays(value, tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as h5:
        h5["a"] = np.arange(3)
        h5.attrs["store"] = value
    folder = H5Folder(tmp_path / "foreign.h5")
    assert_same(folder["a"], np.arange(3))


def test_a_store_attribute_that_numpy_has_no_type_for_is_no_crash(tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as h5:
        h5["a"] = np.arange(3)
        scalar = h5py.h5s.create(h5py.h5s.SCALAR)
        h5py.h5a.create(h5.id, b"store", h5py.h5t.UNIX_D32LE, scalar)
    try:
        assert_same(H5Folder(tmp_path / "foreign.h5")["a"], np.arange(3))
    except LoadError as error:
        assert "foreign.h5" in str(error)


ARRAYS = {
    "numbers": np.arange(5.0),
    "two_dimensions": np.zeros((4, 5), np.uint8),
    "one_number": np.uint8(3),
    "signed": np.zeros(4, np.int8),
    "nothing": h5py.Empty("u1"),
    "text": "a text",
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_among_encoded_files_are_given_as_they_are(name, tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as h5:
        h5.attrs["store"] = "encoded"
        h5["a.jpg"] = np.frombuffer(b"no image", np.uint8)
        h5[name] = ARRAYS[name]
    folder = H5Folder(tmp_path / "foreign.h5", threads=3)
    assert folder.is_encoded
    assert folder.read_bytes("a.jpg") == b"no image"
    with pytest.raises(LoadError, match=f"'{name}' in"):
        folder.read_bytes(name)
    with pytest.raises(LoadError):
        folder.read_batch([name, "a.jpg"])
    if name != "nothing":
        for read in (folder.__getitem__, folder.read):
            np.testing.assert_array_equal(read(name), h5py.File(folder.path)[name][()])


def test_a_file_of_another_tool_with_the_same_attribute_is_decoded(photos, tmp_path):
    path = tmp_path / "other.h5"
    data = (photos.folder / "a/00.jpg").read_bytes()
    with h5py.File(path, "w") as h5:
        h5.attrs["store"] = "encoded"
        h5.create_dataset("a/00.jpg", data=np.frombuffer(data, np.uint8), compression="gzip")
    folder = H5Folder(path)
    assert folder.read_bytes(0) == data
    assert_same(folder["a/00.jpg"], H5Folder(photos.array)["a/00.jpg"])


# A run in processes of its own


@pytest.mark.slow
def test_worker_processes_store_and_report_the_same(broken, folder, output, tmp_path, convert):
    ended = run(command(folder, output, ENCODED, BROKEN_EXTENSIONS, "--workers=2"))
    assert ended.status == 1
    assert "Traceback" not in ended.err
    alone = tmp_path / "alone.h5"
    convert(folder, alone, ENCODED, BROKEN_EXTENSIONS)
    assert output.read_bytes() == alone.read_bytes()
    assert failures(output) == failures(alone)
