"""``pytest --corpus FOLDER`` converts a real folder and checks every file of it.

An image is stored as Pillow, tifffile or OpenCV read it, or is named as a failure that these
cannot read either or that names the cure. JSON and WAV are converted with a ``my_read``. Without
the option the sample images are taken.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
import wave
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pytest
import tifffile

from conftest import corpus_lines
from converter.images.formats import BY_EXTENSION
from helpers.check import assert_same, failures
from helpers.run import ROOT, command, finish, read_with, start, write_functions

SAMPLES = Path(__file__).resolve().parent / "images"
SECONDS_AT_MOST = 3600

WAV_READER = """
import wave
import numpy as np


def my_read(path_sample):
    with wave.open(path_sample) as file:
        dtype = {1: "u1", 2: "<i2", 4: "<i4"}[file.getsampwidth()]
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype)
        return samples.reshape(-1, file.getnchannels())
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folders = metafunc.config.getoption("--corpus") or [SAMPLES]
    folders = [folder for folder in folders if folder.is_dir()]
    if "extension" in metafunc.fixturenames:
        cases = [
            (folder, extension)
            for folder in folders
            for extension in ("json", "wav")
            if any(extension_of(key) == extension for key in files_below(folder))
        ]
        names = [f"{folder.name}-{extension}" for folder, extension in cases]
        metafunc.parametrize(("corpus", "extension"), cases, ids=names)
    elif "corpus" in metafunc.fixturenames:
        metafunc.parametrize("corpus", folders, ids=[folder.name for folder in folders])


def files_below(folder: Path) -> dict[str, Path]:
    """Return all regular files under their keys, without those of macOS."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("._")
    }


def extension_of(key: str) -> str:
    stem, dot, extension = key.rpartition("/")[2].rpartition(".")
    return extension.lower() if dot and stem else ""


def with_others(path: Path) -> np.ndarray:
    """Return what tifffile or Pillow give; the first frame alone of what they compose otherwise.

    PNG, GIF, WebP and palettes as 8-bit RGBA, in which what is stored is compared with them.
    """
    extension = extension_of(path.name)
    with open(path, "rb") as file:
        head = file.read(4)
    if head in (b"II*\0", b"MM\0*"):
        array = tifffile.imread(path, maxworkers=1)
        if not array.size:
            raise ValueError("a cut TIFF, of which tifffile makes an empty array")
        return array
    if head[:1] == b"P" and extension in ("ppm", "pgm", "pbm", "pnm"):
        return cv2_array(path)
    with PIL.Image.open(path) as image:
        if image.format in ("PNG", "GIF", "WEBP", "BMP", "TGA"):
            image.load()
            is_gray = image.mode in ("1", "L", "I", "I;16")
            if image.mode.startswith("I") or (is_gray and "transparency" in image.info):
                return np.array(image, np.uint8 if image.mode == "L" else None)
            return np.array(image.convert("RGBA"))
        return np.array(image)


def cv2_array(path: Path) -> np.ndarray:
    cv2 = pytest.importorskip("cv2")
    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError("OpenCV cannot read it")
    return array if array.ndim == 2 else array[:, :, ::-1]


def assert_alike(array: np.ndarray, expected: np.ndarray) -> None:
    """Compare an array with `with_others`: all of it, or its first frame as 8-bit RGBA."""
    if array.shape == expected.shape and array.dtype == expected.dtype:
        assert_same(array, expected)
        return
    if expected.ndim == 2:  # Pillow drops the colour key, or takes another
        gray = expected * np.uint8(255) if expected.dtype == bool else expected
        assert_same(np.ascontiguousarray(array[..., 0]), gray)
        return
    frame = array[0] if array.ndim == 4 else array
    frame = frame[: expected.shape[0], : expected.shape[1]]  # later frames may need a larger canvas
    if frame.ndim == 3 and frame.shape[2] > 4:
        frame = frame[0]
    if frame.dtype == np.uint16:
        frame = (frame >> 8).astype(np.uint8)
    if frame.dtype == bool:
        frame = frame.astype(np.uint8) * np.uint8(255)
    seen = np.array(PIL.Image.fromarray(np.ascontiguousarray(frame)).convert("RGBA"))
    visible = expected[..., 3] > 0
    np.testing.assert_array_equal(seen[..., 3], expected[..., 3])
    np.testing.assert_array_equal(seen[visible], expected[visible])


def with_json(path: Path) -> np.ndarray:
    """Return what the shipped my_read returns, stored as its contract says."""
    with open(path, encoding="utf-8") as file:
        value = json.load(file)
    if isinstance(value, str):
        return np.frombuffer(value.encode(), np.uint8)
    array = np.asarray(value)
    if array.dtype.kind not in "biufc" or array.ndim > 32:
        raise ValueError("no array of numbers")
    return array


def with_wave(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        dtype = {1: "u1", 2: "<i2", 4: "<i4"}[file.getsampwidth()]
        data = file.readframes(file.getnframes())
        return np.frombuffer(data, dtype).reshape(-1, file.getnchannels())


def expected_of(path: Path, read: Callable[[Path], np.ndarray]) -> np.ndarray | Exception:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(read(path))
    except Exception as error:
        return error


def check(
    folder: Path,
    keys: dict[str, Path],
    output: Path,
    read: Callable[[Path], np.ndarray],
    flags: tuple[str, ...],
) -> Counter[str]:
    """Convert these files and compare each one; return what came of them."""
    extensions = ",".join(sorted({extension_of(key) for key in keys}))
    process = start(command(folder, output, f"--ext={extensions}", "--overwrite", *flags))
    ended = finish(process, seconds=SECONDS_AT_MOST)
    assert "Traceback" not in ended.err
    failed = failures(output)
    compare = assert_alike if read is with_others else assert_same
    assert ended.status == (1 if failed else 0), ended.err
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with_file: Any = h5py.File(output) if output.exists() else {}
    try:
        for key, path in keys.items():
            expected = expected_of(path, read)
            is_stored, is_failed = key in with_file, key in failed
            if is_stored == is_failed:
                wrong.append(f"{key}: stored {is_stored}, failed {is_failed}")
            elif isinstance(expected, Exception):
                if is_stored:
                    wrong.append(f"{key}: stored, but the reader raises {expected!r}")
                counts["failed by both"] += 1
            elif is_failed and read is with_others and has_cure(failed[key]):
                counts["refused with the cure"] += 1
            elif is_failed:
                wrong.append(f"{key}: {failed[key]}, but the reader reads it")
            else:
                try:
                    compare(with_file[key][()], expected)
                except AssertionError as error:
                    wrong.append(f"{key}: {' '.join(str(error).split())[:200]}")
                counts["stored"] += 1
        if output.exists():
            names: list[str] = []
            with_file.visititems(
                lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
            )
            assert set(names) | set(failed) == set(keys)
            assert len(names) + len(failed) == len(keys)
    finally:
        if output.exists():
            with_file.close()
    assert not wrong, "\n".join(wrong)
    return counts


def has_cure(reason: str) -> bool:
    return any(word in reason for word in ("my_read", "damaged APNG", "--max_pixels"))


def note(config: pytest.Config, corpus: Path, reader: str, counts: Counter[str]) -> None:
    """Keep a line for the end of pytest's output."""
    said = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count)
    config.stash[corpus_lines].append(f"{corpus.name}, {reader}: {said}")


@pytest.fixture(autouse=True)
def _quiet_tifffile():
    logger = logging.getLogger("tifffile")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


def test_every_image_is_stored_as_others_read_it_or_is_a_failure(corpus, tmp_path, pytestconfig):
    keys = {
        key: path for key, path in files_below(corpus).items() if extension_of(key) in BY_EXTENSION
    }
    if not keys:
        pytest.skip(f"{corpus} holds no images")
    counts = check(corpus, keys, tmp_path / "OUT.h5", with_others, ())
    note(pytestconfig, corpus, "the default reader", counts)


def test_every_file_is_stored_as_my_read_reads_it_or_fails_there_too(
    extension, corpus, tmp_path, pytestconfig
):
    keys = {k: path for k, path in files_below(corpus).items() if extension_of(k) == extension}
    if extension == "json":
        functions, read = ROOT / "my_functions.py", with_json
    else:
        functions = write_functions(tmp_path / "wav_functions.py", WAV_READER)
        read = with_wave
    flags = read_with(functions)
    counts = check(corpus, keys, tmp_path / "OUT.h5", read, flags)
    note(pytestconfig, corpus, f"my_read of .{extension}", counts)


@pytest.mark.slow
def test_any_number_of_workers_makes_the_same_bytes_of_it(corpus, tmp_path):
    extensions = {extension_of(key) for key in files_below(corpus)} & {*BY_EXTENSION}
    if not extensions:
        pytest.skip(f"{corpus} holds no images")
    made = []
    for workers in (1, 3):
        output = tmp_path / f"{workers}.h5"
        flags = (f"--ext={','.join(sorted(extensions))}", f"--workers={workers}")
        finish(start(command(corpus, output, *flags)), seconds=SECONDS_AT_MOST)
        made.append((output.read_bytes() if output.exists() else None, failures(output)))
        if output.exists():
            os.remove(output)
    assert made[0][1] == made[1][1]
    assert made[0][0] == made[1][0]
