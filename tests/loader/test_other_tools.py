"""After other programs have written to a file H5Folder gives what h5py gives, or an error."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from converter import H5Folder
from converter.errors import LoadError
from helpers.check import case
from helpers.damage import payload_of
from helpers.images import colours, save, save_jpegs
from helpers.run import run, write_functions

NAMES = ["a.jpg", "b.jpg", "sub/c.jpg", "sub/deep/d.jpg", "z/e.jpg"]


def datasets_of(path: Path) -> dict[str, np.ndarray]:
    """Return what h5py lists and reads."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:

        def take(name: str, _: object) -> None:  # each name, also a second one of a dataset
            if isinstance(file[name], h5py.Dataset):
                found[name] = np.asarray(file[name][()])

        file.visititems_links(take)
    return found


def assert_h5folder_gives_what_h5py_gives(path: Path, **options: bool) -> None:
    wanted = datasets_of(path)
    folder = H5Folder(path, **options)
    assert sorted(folder) == sorted(wanted)
    for key, array in wanted.items():
        assert folder[key].dtype == array.dtype
        np.testing.assert_array_equal(folder[key], array, err_msg=key)
        np.testing.assert_array_equal(folder.read(key), array, err_msg=key)
    for key, array in zip(list(folder), folder.read_batch(list(folder)), strict=True):
        np.testing.assert_array_equal(array, wanted[key], err_msg=key)


@pytest.fixture(params=["--compression=none", "--compression=gzip"])
def made(request, folder, output, convert) -> Path:
    save_jpegs(folder, NAMES)
    assert convert(folder, output, request.param).status == 0
    return output


def add(file: h5py.File) -> None:
    file["new/array"] = np.arange(100)
    file.create_dataset("zipped", data=np.zeros((100, 100)), chunks=(10, 100), compression="gzip")


def move(file: h5py.File) -> None:
    file.move("a.jpg", "sub/moved.jpg")
    file.move("z", "y")


def delete(file: h5py.File) -> None:
    del file["b.jpg"]
    del file["sub/deep"]


def delete_and_add_in_its_place(file: h5py.File) -> None:
    array = file["b.jpg"][()]
    del file["b.jpg"]
    file["b.jpg"] = 255 - array
    file["c.jpg"] = array // 2


def swap(file: h5py.File) -> None:
    file.move("a.jpg", "t")
    file.move("b.jpg", "a.jpg")
    file.move("t", "b.jpg")


def write_into(file: h5py.File) -> None:
    file["a.jpg"][...] = 7
    file["sub/c.jpg"][3:5, :, 1] = 9


def replace_type(file: h5py.File) -> None:
    array = file["a.jpg"][()]
    del file["a.jpg"]
    file["a.jpg"] = array.astype("f4")


def annotate(file: h5py.File) -> None:
    file.attrs["note"] = "x" * 10_000
    file["a.jpg"].attrs["label"] = 5


def link(file: h5py.File) -> None:
    file["again.jpg"] = file["a.jpg"]


def do_nothing(file: h5py.File) -> None:
    pass


CHANGES = [
    add,
    move,
    delete,
    delete_and_add_in_its_place,
    swap,
    write_into,
    replace_type,
    annotate,
    link,
    do_nothing,
]


@pytest.mark.slow
@pytest.mark.parametrize("libver", [None, "latest", ("v110", "latest")], ids=str)
def test_what_h5py_changed_is_read_as_it_is_now(libver, made):
    content = made.read_bytes()
    for change in CHANGES:
        with case(change):
            made.write_bytes(content)
            with h5py.File(made, "r+", libver=libver) as file:
                change(file)
            assert_h5folder_gives_what_h5py_gives(made)
            assert_h5folder_gives_what_h5py_gives(made, verify=True)


def test_an_h5folder_from_before_does_not_mix_old_and_new(made):
    """It is unpickled in a worker, say, when the file is another already."""
    content = made.read_bytes()
    for change in CHANGES:
        with case(change):
            made.write_bytes(content)
            good = datasets_of(made)
            folder = H5Folder(made)
            assert len(folder) == 5
            sent = pickle.dumps(folder)
            del folder
            with h5py.File(made, "r+") as file:
                change(file)
            folder = pickle.loads(sent)
            with contextlib.suppress(
                LoadError
            ):  # "was replaced since this H5Folder was first used"
                for key in folder:
                    np.testing.assert_array_equal(folder[key], good[key], err_msg=key)


@pytest.mark.slow
@pytest.mark.everyday(1)
def test_several_tools_one_after_the_other(made, verify_rebuilt):
    for round_, change in enumerate([write_into, add, delete_and_add_in_its_place, swap, annotate]):
        with h5py.File(made, "r+") as file:
            change(file)
        assert_h5folder_gives_what_h5py_gives(made)
        if round_ % 2:
            verify_rebuilt(made)
            assert_h5folder_gives_what_h5py_gives(made, verify=True)


@pytest.fixture
def verify_rebuilt(capfd) -> Callable[[Path], None]:
    """Add an index to a file, and check it."""
    from converter.cli import main

    def verify_rebuilt(path: Path) -> None:
        flags = ["--verify", "--rebuild_index", f"--path_output={path}", "--workers=1"]
        assert main(flags) == 0, capfd.readouterr().err

    return verify_rebuilt


@pytest.mark.parametrize("index", ["its own", "a rebuilt one"])
def test_a_file_whose_payload_was_changed_behind_hdf5s_back_is_told_by_verify(
    index, made, verify_rebuilt
):
    """An editor of bytes, or a disk; without verify there is nothing to tell."""
    if index == "a rebuilt one":
        with h5py.File(made, "r+") as file:
            annotate(file)
        verify_rebuilt(made)
    part = payload_of(made, "a.jpg")
    content = bytearray(made.read_bytes())
    content[part.begin : part.end] = bytes(part.end - part.begin)
    made.write_bytes(content)
    with pytest.raises(LoadError, match=r"'a.jpg' in .* (is damaged|does not inflate)"):
        H5Folder(made, verify=True)["a.jpg"]


@pytest.mark.everyday(1)
@pytest.mark.parametrize("when", ["flushed", "at once"])
def test_a_writer_that_was_killed_leaves_nothing_wrong(when, made):
    """What it has written goes over the old payload, perhaps with the index still in place."""
    script = """
    import os, signal, sys
    import h5py
    with h5py.File(sys.argv[1], "r+") as file:
        array = file["b.jpg"][()]
        del file["b.jpg"]
        file["other.jpg"] = 255 - array
        file["more.jpg"] = array // 2
        if sys.argv[2] == "flushed":
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    good = datasets_of(made)
    good["other.jpg"], good["more.jpg"] = 255 - good["b.jpg"], good["b.jpg"] // 2
    path = write_functions(made.with_name("writer.py"), script)
    ended = run([sys.executable, str(path), str(made), when])
    assert ended.status == -signal.SIGKILL, ended.err
    with contextlib.suppress(LoadError):
        folder = H5Folder(made, verify=True)
        for key in folder:
            with contextlib.suppress(LoadError):
                np.testing.assert_array_equal(folder[key], good[key], err_msg=key)


@pytest.mark.parametrize("user_block", [0, 512])
def test_what_a_killed_program_left_open_is_refused_with_the_cure(user_block, made):
    content = bytearray(made.read_bytes())
    content[11] |= 0x01 | 0x04  # the flags of a superblock of version 3: open, for writing
    made.write_bytes(bytes(user_block) + content)
    with pytest.raises(LoadError, match=r"h5clear -s FILE`.*, or convert again"):
        len(H5Folder(made))


@pytest.mark.parametrize("nbytes", [512, 1024, 4096])
def test_a_file_behind_a_user_block_is_read_through_h5py(nbytes, made, verify):
    """As h5jam puts one in front; the index then points elsewhere."""
    good = datasets_of(made)
    made.write_bytes(b"# a note".ljust(nbytes, b"\0") + made.read_bytes())
    with h5py.File(made) as file:
        assert file.userblock_size == nbytes
    assert_h5folder_gives_what_h5py_gives(made)
    for key, array in H5Folder(made).items():
        np.testing.assert_array_equal(array, good.pop(key))
    assert not good
    ended = verify(made)
    assert ended.status == 0, ended.err


REPACKS = {
    "as it is": [],
    "gzip": ["-f", "GZIP=5"],
    "shuffle and gzip": ["-f", "SHUF", "-f", "GZIP=1"],
    "chunks": ["-l", "CHUNK=8x8x3"],
    "contiguous": ["-l", "CONTI"],
    "compact": ["-l", "COMPA"],
    "checksums": ["-f", "FLET"],
    "latest": ["-L"],
}


@pytest.mark.skipif(shutil.which("h5repack") is None, reason="no h5repack here")
@pytest.mark.parametrize("flags", REPACKS.values(), ids=REPACKS)
def test_what_h5repack_made_is_read_as_h5py_reads_it(flags, made, verify_rebuilt):
    before = datasets_of(made)
    repacked = made.with_name("repacked.h5")
    ended = subprocess.run(
        ["h5repack", *flags, str(made), str(repacked)], capture_output=True, text=True
    )
    if ended.returncode:
        pytest.skip(f"h5repack: {ended.stderr}")
    assert_h5folder_gives_what_h5py_gives(repacked)
    after = datasets_of(repacked)
    assert sorted(after) == sorted(before)
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array)
    if flags != REPACKS["compact"]:
        verify_rebuilt(repacked)
        assert_h5folder_gives_what_h5py_gives(repacked, verify=True)


@pytest.mark.skipif(shutil.which("h5repack") is None, reason="no h5repack here")
def test_an_encoded_file_repacked_still_decodes(folder, output, convert, verify_rebuilt):
    save_jpegs(folder, NAMES)
    save(folder / "gray.jpg", colours(3, (20, 30)))
    convert(folder, output, "--store=encoded")
    before = {key: H5Folder(output)[key] for key in H5Folder(output)}
    originals = {key: H5Folder(output).read_bytes(key) for key in before}
    for flags in ([], ["-f", "GZIP=5", "-l", "CHUNK=100"]):
        repacked = output.with_name("repacked.h5")
        repacked.unlink(missing_ok=True)
        command = ["h5repack", *flags, str(output), str(repacked)]
        assert subprocess.run(command, capture_output=True).returncode == 0
        for rebuilt in (False, True):
            if rebuilt:
                verify_rebuilt(repacked)
            read = H5Folder(repacked, verify=True)
            assert read.is_encoded
            assert sorted(read) == sorted(before)
            for key, array in before.items():
                np.testing.assert_array_equal(read[key], array, strict=True)
                assert read.read_bytes(key) == originals[key]


@pytest.mark.skipif(os.name == "nt", reason="no locks between programs")
def test_while_it_is_read_h5py_does_not_write_to_it(made):
    folder = H5Folder(made)
    assert len(folder) == 5
    if os.environ.get("HDF5_USE_FILE_LOCKING", "TRUE").upper() not in ("TRUE", "BEST_EFFORT", "1"):
        pytest.skip("locking is switched off here")
    script = "import h5py, sys; h5py.File(sys.argv[1], 'r+')"
    ended = run([sys.executable, "-c", script, str(made)])
    assert ended.status == 1
    assert "lock" in ended.err
    assert_h5folder_gives_what_h5py_gives(made)
