"""One flipped bit, anywhere in a finished file: it is reported, or it carries no data."""

from __future__ import annotations

import collections
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.damage import parts_of
from helpers.images import colours, save
from helpers.run import ROOT, read_with, run

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="what ends a process is to end no test"
)
FLIPS = 100
AT_ONCE = 25  # in one process: a fork of one with all of HDF5 costs more than a look
SECONDS_BEFORE_HANG = 30

#: Reads [path of a copy, [place, bit], ...] and prints what came of each flip.
DRIVER = """
import contextlib
import json
import os
import resource
import signal
import sys

import h5py
import numpy as np

with contextlib.suppress(ImportError):
    import hdf5plugin  # for h5py

from converter import H5Folder
from converter.sources import images  # here, and not once in each child
from converter.callbacks import Callbacks
from converter.errors import ConverterError
from converter.commands.verify import verify

RESULTS = ["reported", "no data", "wrong array", "unseen"]


def all_of_h5py(path):
    found = {}
    with h5py.File(path, "r") as file:
        attributes = dict(file.attrs)

        def take(name, item):
            if isinstance(item, h5py.Dataset):
                found[name] = item[()].tobytes(), str(item.dtype), item.shape, dict(item.attrs)

        file.visititems(take)
    return found, attributes


def all_of_folder(path):
    found, folder = {}, H5Folder(path, verify=True, threads=1)
    for key in folder:
        try:
            array = folder[key]
            found[key] = array.tobytes(), str(array.dtype), array.shape
        except ConverterError:
            found[key] = None
    return found


def come_of(path, good_h5py, good_folder):
    said = []
    try:
        found = verify(path, Callbacks(said.append, is_fresh=True))
        is_reported = found.failed > 0 or not found.has_index
    except ConverterError as error:
        said.append(str(error))
        is_reported = True
    try:
        arrays = all_of_folder(path)
    except ConverterError:
        arrays, is_reported = {}, True
    for key, array in arrays.items():
        if array is not None and array != good_folder.get(key):
            return "wrong array"
    if is_reported:
        return "reported"
    if arrays == good_folder and all_of_h5py(path) == good_h5py:
        return "no data"
    return "unseen"


def main(path, flips):
    with open(path, "rb") as file:
        content = file.read()
    pid = os.fork()  # HDF5 is not to be open in this process
    if not pid:
        ended_well = False
        good = all_of_h5py(path), all_of_folder(path)
        while flips:
            flips = flips[in_a_child(path, content, good, flips) :]
        os._exit(0)
    os.waitpid(pid, 0)


def in_a_child(path, content, good, flips):
    # Flip up to AT_ONCE bits, one after the other; return how many, up to one that ends it.
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        try:
            for number, (at, bit) in enumerate(flips[:AT_ONCE]):
                signal.alarm(SECONDS)
                copy = path + f".{number}"  # HDF5 takes equal names for one file
                flipped = bytearray(content)
                flipped[at] ^= 1 << bit
                with open(copy, "wb") as file:
                    file.write(flipped)
                os.write(sending, bytes([RESULTS.index(come_of(copy, *good))]))
                os.unlink(copy)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(sending)
    _, status = os.waitpid(child, 0)
    results = [RESULTS[number] for number in os.read(receiving, AT_ONCE)]
    os.close(receiving)
    code = os.waitstatus_to_exitcode(status)
    if code:
        results.append(f"ended by {code}")
    for (at, bit), result in zip(flips, results):
        print(json.dumps([at, bit, result]), flush=True)
    return len(results)


main(*json.load(sys.stdin))
""".replace("SECONDS", str(SECONDS_BEFORE_HANG)).replace("AT_ONCE", str(AT_ONCE))


def make_images(folder: Path) -> None:
    for number, name in enumerate(["a.jpg", "b.jpg", "sub/c.jpg", "sub/deep/d.jpg", "z/e.jpg"]):
        save(folder / name, colours(number, (8, 9, 3)))


def make_arrays(folder: Path) -> None:
    (folder / "sub").mkdir()
    for number in range(3):
        array = (np.arange(3000) // 7 + number).astype("<u2").reshape(30, 100)
        np.save(folder / f"sub/{number}.npy", array)
    np.save(folder / "scalar.npy", np.float64(2.5))
    (folder / "text.txt").write_text("a text")


def make_arrays_of_chunks(folder: Path) -> None:
    """As above, and one of several chunks: each look at it takes twice as long."""
    make_arrays(folder)
    np.save(folder / "large.npy", (np.arange(1_100_000) // 70_000).astype("<u4"))


KINDS = {
    "plain": (make_images, ("--compression=none",)),
    "encoded": (make_images, ("--store=encoded",)),
    "gzip": (make_arrays_of_chunks, ("--compression=gzip",)),
    "zstd": (make_arrays, ("--compression=zstd",)),
    "blosc2": (make_arrays, ("--compression=blosc2",)),
}


@pytest.fixture(params=KINDS)
def made(request, folder, output, tmp_path, convert) -> Path:
    """A small finished file, most of which is no payload."""
    make, flags = KINDS[request.param]
    if request.param in ("zstd", "blosc2"):
        pytest.importorskip({"zstd": "zstandard", "blosc2": "blosc2"}[request.param])
        pytest.importorskip("hdf5plugin")
    if make is not make_images:
        flags = (*flags, *read_with("load_npy.py"), "--ext=npy,txt")
    make(folder)
    assert convert(folder, output, *flags).status == 0
    return output


def come_of(path: Path, flips: list[tuple[int, int]]) -> dict[str, list[tuple[int, int]]]:
    """Flip each bit in a copy of the file; return the flips by what came of them."""
    script = path.with_name("driver.py")
    script.write_text(DRIVER, encoding="utf-8")
    order = path.with_name("order.json")
    order.write_text(json.dumps([str(path), flips]))
    with order.open() as file:
        ended = run(
            [sys.executable, str(script)],
            stdin=file,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert len(lines) == len(flips), ended.err
    found = collections.defaultdict(list)
    for at, bit, result in lines:
        found[result].append((at, bit))
    return found


def assert_reported_or_without_data(path: Path, flips: list[tuple[int, int]]) -> dict[str, list]:
    found = come_of(path, flips)
    wrong = {name: flips for name, flips in found.items() if name not in ("reported", "no data")}
    parts = parts_of(path)
    where = {
        flip: [name for name, part in parts.items() if part.begin <= flip[0] < part.end]
        for flips in wrong.values()
        for flip in flips
    }
    assert not wrong, (wrong, where)
    return found


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_reported_or_carries_no_data(made):
    random = np.random.default_rng(5)
    places = random.choice(made.stat().st_size, FLIPS, replace=False)
    flips = [(int(at), int(random.integers(8))) for at in places]
    found = assert_reported_or_without_data(made, flips)
    assert len(found["reported"]) > FLIPS // 2


@pytest.mark.slow
def test_a_flipped_bit_of_structures_groups_or_tail_is_reported_or_carries_no_data(made):
    """As above, but not of the payloads, which are most of a large file."""
    from helpers.damage import tail_of

    tail, size = tail_of(made), made.stat().st_size
    is_payload = np.zeros(size, bool)
    for position in range(len(tail)):
        for place in tail.extents(position):
            is_payload[place.offset : place.offset + place.nbytes] = True
    random = np.random.default_rng(6)
    places = random.choice(np.flatnonzero(~is_payload), FLIPS, replace=False)
    flips = [(int(at), int(random.integers(8))) for at in places]
    found = assert_reported_or_without_data(made, flips)
    assert len(found["reported"]) > FLIPS // 2
