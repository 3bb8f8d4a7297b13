"""H5Folder: the same arrays as h5py, in any process, and clear errors."""

from __future__ import annotations

import collections.abc
import functools
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

import converter.files
import converter.loader.h5py_file
import converter.loader.page_cache
from converter import H5Folder
from converter.callbacks import Callbacks
from converter.commands.rebuild_index import rebuild_index
from converter.errors import LoadError
from helpers.arrays import equal_samples, make_h5, smooth, stacked
from helpers.check import assert_same
from helpers.damage import cut_tail_off
from helpers.seams import pretend_cached

START_METHODS = [m for m in ("fork", "spawn", "forkserver") if m in
                 multiprocessing.get_all_start_methods()]  # fmt: skip


@pytest.fixture
def samples():
    return equal_samples(40)


@pytest.fixture
def path(tmp_path, samples):
    return make_h5(tmp_path, samples)


@pytest.fixture
def odd_samples():
    compound = np.zeros(6, np.dtype([("x", "<i4"), ("y", ">f8", (2,)), ("z", "|b1")]))
    compound["x"], compound["z"] = range(6), [1, 0] * 3
    return {
        "0d.npy": np.array(2.5),
        "1.npy": np.arange(7, dtype=">i2"),
        "big_endian.npy": np.arange(12.0, dtype=">f8").reshape(3, 4),
        "bool.npy": np.array([[True, False, True]]),
        "bytes_items.npy": np.array([b"ab", b"c"], "S3"),
        "complex.npy": np.arange(4) * (1 + 2j),
        "compound.npy": compound,
        "empty.npy": np.empty((0, 3), np.float32),
        "float16.npy": np.array([1, np.nan, -0.0], np.float16),
        "ü/ünïcode \N{SNOWMAN}.npy": np.arange(3, dtype=np.int64),
        "void.npy": np.array([b"\1\2\3\4", b"\5\6\7\0"], "V4"),
    }


@pytest.fixture
def several_chunks(tmp_path):
    return make_h5(
        tmp_path,
        {"large.npy": smooth((40, 500, 300), "<u4"), "odd.npy": smooth((7, 1234567), "u1")},
        compression="gzip",
    )


# What a user gets


def test_it_is_a_read_only_mapping_of_the_relative_paths_in_stored_order(path, samples):
    folder = H5Folder(path)
    assert isinstance(folder, collections.abc.Mapping)
    assert not isinstance(folder, collections.abc.MutableMapping)
    assert list(folder) == list(folder.keys()) == sorted(samples)
    assert len(folder) == 40
    assert "a/0000.npy" in folder
    assert "a" not in folder and "a/0000.npy/" not in folder and 3 not in folder
    assert folder.get("no such key") is None
    assert folder.get("b/0001.npy") is not None
    assert folder == folder and hash(folder)
    assert all(folder.key_at(n) == key for n, key in enumerate(folder))


@pytest.mark.parametrize("tail", [True, False])
def test_arrays_by_key_and_by_position_are_those_stored(path, samples, tail):
    folder = H5Folder(path if tail else cut_tail_off(path))
    for position, (key, array) in enumerate(sorted(samples.items())):
        assert_same(folder[key], array)
        assert_same(folder[position], array)
        assert_same(folder[np.int32(position)], array)
        assert_same(folder[position - 40], array)
    assert {key: array.tobytes() for key, array in folder.items()} == {
        key: array.tobytes() for key, array in samples.items()
    }


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("verify", [True, False])
def test_any_dtype_and_shape_reads_as_h5py_reads_it(
    tmp_path, odd_samples, tail, compression, verify
):
    path = make_h5(tmp_path, odd_samples, compression=compression)
    folder = H5Folder(path if tail else cut_tail_off(path), verify=verify)
    with h5py.File(path) as hdf5:
        assert sorted(folder) == sorted(odd_samples)
        for key, array in odd_samples.items():
            for _ in range(2):  # the second reading takes the short way
                assert isinstance(folder[key], np.ndarray)  # without dimensions too
                assert_same(folder[key], np.asarray(hdf5[key][()], hdf5[key].dtype))
            np.testing.assert_array_equal(folder[key], array)
            assert_same(folder.read_batch([key, key]), stacked([folder[key]] * 2))


@pytest.mark.parametrize("tail", [True, False])
def test_text_is_its_bytes(tmp_path, tail):
    path = make_h5(tmp_path, {"a.txt": "grüße\0", "empty.txt": ""})
    folder = H5Folder(path if tail else cut_tail_off(path))
    assert_same(folder["a.txt"], np.frombuffer("grüße\0".encode(), np.uint8))
    assert_same(folder["empty.txt"], np.empty(0, np.uint8))


@pytest.mark.everyday(1)
@pytest.mark.parametrize("tail", [True, False])
def test_arrays_of_several_chunks_are_put_together(several_chunks, tail):
    folder = H5Folder(several_chunks if tail else cut_tail_off(several_chunks))
    assert h5py.File(several_chunks)["large.npy"].chunks[0] < 40
    assert_same(folder["large.npy"], smooth((40, 500, 300), "<u4"))
    assert_same(folder["odd.npy"], smooth((7, 1234567), "u1"))


SELECTIONS = [
    np.s_[3:9], np.s_[...], np.s_[:], np.s_[5], np.s_[-1], np.s_[30:2:-4], np.s_[3, 100:200],
    np.s_[3, 7, 20:30], np.s_[..., 5], np.s_[2:4, ..., ::-7], np.s_[39, 499, 299], np.s_[4:4],
    np.s_[100:], np.s_[::3, 1:3, 2], np.s_[:, 5:1:-1], np.s_[1, ..., 2:3], (),
]  # fmt: skip


@pytest.mark.everyday(1)
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_part_is_what_numpy_would_take_of_the_whole(tmp_path, tail, compression, verify):
    array = smooth((40, 500, 300), "<u4")
    path = make_h5(tmp_path, {"a.npy": array, "b.npy": np.array(1)}, compression=compression)
    folder = H5Folder(path if tail else cut_tail_off(path), verify=verify)
    for selection in SELECTIONS:
        part = folder.read("a.npy", selection)
        assert_same(part, np.array(array[selection]))
        part[...] = 0  # its own memory
    assert_same(folder.read("b.npy", ()), np.array(1))
    assert_same(folder.read("b.npy"), np.array(1))


def test_a_part_touches_only_the_chunks_it_needs(several_chunks, monkeypatch):
    folder = H5Folder(several_chunks)
    assert len(folder) == 2
    reads = pretend_cached(monkeypatch, False)
    folder.read("large.npy", np.s_[0:1])
    assert len(reads) == 1
    folder.read("large.npy", np.s_[0:40])
    assert len(reads) > 4


@pytest.mark.parametrize(
    ("selection", "error"),
    [(40, IndexError), ((0, 0, 0, 0), IndexError), ((..., ...), IndexError), ([1, 2], TypeError),
     (None, TypeError), ("x", TypeError), (True, IndexError)],
)  # fmt: skip
def test_a_selection_that_is_none_is_refused(several_chunks, selection, error):
    with pytest.raises(error):
        H5Folder(several_chunks).read("large.npy", selection)


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("shape", [(4, 5, 3), (100, 100, 3), (), (0, 2)])
@pytest.mark.parametrize("verify", [True, False])
def test_a_batch_of_equal_arrays_is_one_array_in_the_order_asked_for(tmp_path, tail, shape, verify):
    samples = equal_samples(20, shape)
    path = make_h5(tmp_path, samples)
    folder = H5Folder(path if tail else cut_tail_off(path), verify=verify)
    keys = sorted(samples)
    order = [7, 3, 3, 19, -1, 0]
    wanted = np.stack([samples[keys[n]] for n in order])
    for asked in (order, np.array(order), np.array(order, np.int8), [keys[n] for n in order],
                  [7, np.int64(3), keys[3], 19, keys[19], 0], tuple(order)):  # fmt: skip
        batch = folder.read_batch(asked)
        assert_same(batch, wanted)
        batch[...] = 0
    assert_same(folder.read_batch(range(20)), np.stack([samples[key] for key in keys]))
    assert folder.read_batch([]) == []


@pytest.mark.parametrize("tail", [True, False])
def test_a_batch_of_unequal_arrays_is_a_list(tmp_path, tail):
    samples = {
        "a.npy": np.zeros((2, 3)), "b.npy": np.ones((2, 3), "f4"), "c.npy": np.ones((3, 2), "f4"),
        "d.npy": np.full((3, 2), 7, "f4"),
    }  # fmt: skip
    path = make_h5(tmp_path, samples)
    folder = H5Folder(path if tail else cut_tail_off(path))
    batch = folder.read_batch(list(samples))
    assert isinstance(batch, list)
    for array, wanted in zip(batch, samples.values(), strict=True):
        assert_same(array, wanted)
    assert_same(folder.read_batch([2, 3]), np.stack([samples["c.npy"], samples["d.npy"]]))


def test_a_batch_of_compressed_arrays_is_one_array(tmp_path):
    samples = {f"{n}.npy": smooth((50, 60)) + n for n in range(5)}
    folder = H5Folder(make_h5(tmp_path, samples, compression="gzip"))
    assert_same(folder.read_batch(range(5)), np.stack(list(samples.values())))


def test_keys_of_many_lengths_are_found_in_one_batch(tmp_path):
    samples = {f"{'x' * (n % 11)}{n}.npy": np.array([n]) for n in range(300)}
    folder = H5Folder(make_h5(tmp_path, samples))
    keys = sorted(samples, key=lambda key: samples[key][0])
    assert folder.read_batch(keys)[:, 0].tolist() == list(range(300))


def test_one_sample_alone_is_found(tmp_path):
    folder = H5Folder(make_h5(tmp_path, {"only.npy": np.arange(3)}))
    assert folder["only.npy"].tolist() == [0, 1, 2]
    assert folder.read_batch(["only.npy"]).tolist() == [[0, 1, 2]]
    assert "other.npy" not in folder


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("cache_nbytes", [0, 10**6])
def test_arrays_are_the_callers_own(tmp_path, compression, cache_nbytes):
    array = smooth((30, 40))
    path = make_h5(tmp_path, {"a.npy": array}, compression=compression)
    folder = H5Folder(path, cache_nbytes=cache_nbytes)
    for _ in range(3):
        for got in (folder["a.npy"], folder.read_batch([0])[0], folder.read(0, np.s_[:])):
            assert_same(got, array)
            assert got.flags.writeable
            got[...] = 9


def test_without_h5py_s_file_nothing_goes_through_hdf5(path, monkeypatch):
    monkeypatch.setattr(h5py, "File", None)
    assert H5Folder(path).read_batch(range(40)).shape == (40, 4, 5, 3)


@pytest.mark.slow
def test_other_filters_are_undone_by_hdf5(tmp_path):
    array = smooth((40, 500, 300), "<u4")
    path = tmp_path / "out.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a.npy", data=array, chunks=(7, 500, 300), compression="lzf")
    assert rebuild_index(path, Callbacks()) == 1
    folder = H5Folder(path, verify=True)
    assert_same(folder["a.npy"], array)
    assert_same(folder.read("a.npy", np.s_[3:5, ::-1]), array[3:5, ::-1].copy())
    assert_same(folder.read_batch([0, 0]), np.stack([array, array]))


def test_files_of_other_tools_read_the_same(tmp_path):
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file["b/x"] = np.arange(6).reshape(2, 3)
        file["a"] = 2.5
        file["text"] = ["one", "two"]
        file.create_dataset("b/lzf", data=smooth((100, 100)), compression="lzf", chunks=(30, 40))
        file["b/again"] = file["b/x"]
        file["soft"] = h5py.SoftLink("/b/x")
        file["none"] = h5py.Empty("f4")
        file.create_group("c/empty")
    folder = H5Folder(path)
    with h5py.File(path) as file:
        listed: list[str] = []
        file.visit_links(lambda name: listed.append(name))
        assert list(folder) == [
            name for name in listed if name != "soft" and isinstance(file[name], h5py.Dataset)
        ]
        assert_same(folder["b/lzf"], file["b/lzf"][:])
        assert_same(folder.read("b/lzf", np.s_[5:50, 9]), file["b/lzf"][5:50, 9])
    assert folder["text"].tolist() == [b"one", b"two"]
    assert folder["a"] == 2.5
    assert_same(folder["b/again"], folder["b/x"])
    with pytest.raises(LoadError, match=r"'none' .* holds no array"):
        folder["none"]
    with pytest.raises(KeyError, match=r"did you mean 'text'"):
        folder["texts"]


def test_a_foreign_file_that_is_open_elsewhere_in_the_process_can_be_read(tmp_path):
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)
    for options in ({}, {"swmr": True}, {"locking": False}):
        with h5py.File(path, "r", **options):
            assert H5Folder(path)["x"].tolist() == [0, 1, 2]


# Processes and threads


def read_all(folder, keys, results):
    try:
        results.put([folder[key].tobytes() for key in keys])
    except BaseException as error:
        results.put(repr(error))


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("used_before", [True, False])
@pytest.mark.parametrize("method", START_METHODS)
def test_processes_read_at_once_whatever_starts_them(path, samples, method, used_before, tail):
    folder = H5Folder(path if tail else cut_tail_off(path), cache_nbytes=1000)
    keys = sorted(samples)
    if used_before:
        folder[keys[0]]
    context = multiprocessing.get_context(method)
    results = context.Queue()
    workers = [
        context.Process(target=read_all, args=(folder, keys, results), daemon=True)
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    wanted = [samples[key].tobytes() for key in keys]
    if used_before:
        assert [folder[key].tobytes() for key in keys] == wanted
    for _ in workers:
        assert results.get(timeout=120) == wanted
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0


@pytest.mark.everyday(1)
@pytest.mark.parametrize("tail", [True, False])
def test_threads_read_at_once_from_an_unopened_folder(path, samples, tail):
    folder = H5Folder(path if tail else cut_tail_off(path), cache_nbytes=2000)
    keys = sorted(samples) * 20
    start = threading.Barrier(8)

    def read(_):
        start.wait()
        return [folder[key].tobytes() for key in keys]

    with ThreadPoolExecutor(8) as threads:
        for got in threads.map(read, range(8)):
            assert got == [samples[key].tobytes() for key in keys]


def test_it_pickles_to_little_more_than_its_path(path):
    folder = H5Folder(path, cache_nbytes=10**6)
    folder.read_batch(range(40))
    folder[3]
    pickled = pickle.dumps(folder)
    assert len(pickled) < 300 + len(str(path))
    assert_same(pickle.loads(pickled)[3], folder[3])


def test_a_copy_unpickled_behind_a_replaced_file_says_so(tmp_path, path, samples):
    folder = H5Folder(path)
    folder[0]
    pickled = pickle.dumps(folder)
    other = make_h5(tmp_path / "other", equal_samples(7))
    os.replace(other, path)
    with pytest.raises(LoadError, match=r"was replaced"):
        pickle.loads(pickled)[0]


@pytest.mark.parametrize("tail", [True, False])
def test_a_file_replaced_by_rename_is_read_on(tmp_path, path, samples, tail):
    folder = H5Folder(path if tail else cut_tail_off(path))
    keys = sorted(samples)
    folder[0]
    other = make_h5(tmp_path / "other", equal_samples(7, (2, 2)))
    os.replace(other, path)
    assert_same(folder[keys[20]], samples[keys[20]])
    assert_same(folder.read_batch(keys), np.stack([samples[key] for key in keys]))
    assert len(H5Folder(path)) == 7


@pytest.mark.skipif("fork" not in START_METHODS, reason="needs fork")
@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("tail", [True, False])
def test_a_forked_process_reads_on_what_was_replaced(tmp_path, path, samples, tail):
    folder = H5Folder(path if tail else cut_tail_off(path))
    folder[0]
    os.replace(make_h5(tmp_path / "other", equal_samples(7, (2, 2))), path)
    results = multiprocessing.get_context("fork").Queue()
    worker = multiprocessing.get_context("fork").Process(
        target=read_all, args=(folder, sorted(samples), results)
    )
    worker.start()
    assert results.get(timeout=60) == [samples[key].tobytes() for key in sorted(samples)]
    worker.join(60)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and flock")
def test_the_file_cannot_lose_its_index_while_it_is_read(path, samples):
    folder = H5Folder(path)
    folder[0]
    with pytest.raises(OSError, match=r"lock"):
        h5py.File(path, "r+")
    assert_same(folder[0], samples[sorted(samples)[0]])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_memory_of_its_own_does_not_grow_with_epochs(tmp_path, compression):
    samples = {f"{n:03d}.npy": smooth((200, 300)) + n for n in range(60)}
    path = make_h5(tmp_path, samples, compression=compression)
    program = f"""
import os
from converter import H5Folder

def own():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1])

folder = H5Folder({str(path)!r})
def epoch():
    for n in range(60):
        folder[n]
    folder.read_batch(range(0, 60, 2))
    list(folder)
for n in range(3):
    epoch()
before = own()
for n in range(40):
    epoch()
print(own() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        cwd=Path(converter.__file__).parent.parent, timeout=120,
    )  # fmt: skip
    assert int(done.stdout) < 4000  # KiB; 40 epochs read 100 times as much


def test_many_folders_leave_no_open_files_behind(path):
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with H5Folder(path) as folder:
            folder.read_batch(range(10))
        H5Folder(path)[0]
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_closed_folder_says_so(path):
    with H5Folder(path) as folder:
        folder[0]
    with pytest.raises(LoadError, match=r"is closed"):
        folder[0]
    folder.close()
    H5Folder(path).close()


def test_a_relative_path_stays_valid_when_the_folder_changes(path, tmp_path, monkeypatch):
    monkeypatch.chdir(path.parent)
    folder = H5Folder(path.name)
    monkeypatch.chdir("/")
    assert len(folder) == 40


def test_a_file_that_cannot_be_written_is_read(path, samples):
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        assert_same(H5Folder(path)[0], samples[sorted(samples)[0]])
    finally:
        path.parent.chmod(0o755)


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize(
    "error", [BlockingIOError, PermissionError, functools.partial(OSError, 38, "no locks")]
)
def test_where_locks_fail_it_reads_without(path, samples, tail, error, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    path = path if tail else cut_tail_off(path)

    def refuse(*_):
        raise error()  # one kept would keep the file open beyond the end of Python

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert_same(H5Folder(path)[0], samples[sorted(samples)[0]])


@pytest.mark.parametrize("tail", [True, False])
def test_a_lock_held_by_another_does_not_keep_it_from_reading(path, samples, tail):
    fcntl = pytest.importorskip("fcntl")
    path = path if tail else cut_tail_off(path)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert_same(H5Folder(path)[0], samples[sorted(samples)[0]])


@pytest.mark.parametrize("cached", [0, 1, BlockingIOError, OSError, None])
@pytest.mark.parametrize("shape", [(4, 5, 3), (100, 100, 3)])
def test_whatever_is_cached_the_arrays_are_the_same(tmp_path, shape, cached, monkeypatch):
    """The probe says no, yes, would block, cannot tell; and a system without it."""
    samples = equal_samples(40, shape)
    path = make_h5(tmp_path, samples)
    preadv = os.preadv

    def probed(fd, buffers, offset, flags=0):
        if flags and isinstance(cached, int):
            return cached
        if flags:
            raise cached
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", probed)
    if cached is None:
        monkeypatch.setattr(converter.loader.page_cache, "NOWAIT", None)
    folder = H5Folder(path)
    for _ in range(2):
        for key, array in samples.items():
            assert_same(folder[key], array)
        assert_same(folder.read_batch(range(40)), stacked([samples[k] for k in sorted(samples)]))
        assert_same(folder.read(7, np.s_[1:3]), folder[7][1:3])


def test_systems_without_preadv_read_the_same(path, samples, monkeypatch):
    monkeypatch.delattr(os, "preadv", raising=False)
    monkeypatch.setattr(converter.loader.page_cache, "NOWAIT", None)
    monkeypatch.setattr(converter.loader.page_cache, "LARGEST_UNPROBED_NBYTES", 0)
    folder = H5Folder(path)
    for key, array in samples.items():
        assert_same(folder[key], array)
        assert_same(folder[key], array)


def test_one_read_may_return_less_than_asked_for(path, samples, monkeypatch):
    preadv = os.preadv

    def seven_bytes(fd, buffers, offset, flags=0):
        if flags:
            raise BlockingIOError  # nothing is cached
        return preadv(fd, [memoryview(buffers[0])[:7]], offset)

    monkeypatch.setattr(os, "preadv", seven_bytes)
    folder = H5Folder(path, verify=True)
    for key, array in samples.items():
        assert_same(folder[key], array)


def test_reading_needs_only_numpy_and_h5py(path, tmp_path):
    """Copied as its docstring says, with all other packages missing."""
    import converter.loader.h5folder

    home = Path(converter.__file__).parent
    package = tmp_path / "copy" / "converter"
    package.mkdir(parents=True)
    documented = " ".join(converter.loader.h5folder.__doc__.split()).partition("``converter``: ")[2]
    names = documented.partition(" and an ``__init__.py``")[0].split(", ")
    for name in names:
        if name.endswith("/"):
            shutil.copytree(home / name, package / name)
        else:
            shutil.copy(home / name, package)
    (package / "__init__.py").touch()
    program = f"""
import sys
sys.modules.update(dict.fromkeys(["imageio", "PIL", "tqdm", "tifffile", "zlib_ng", "cv2"]))
from converter.loader.h5folder import H5Folder
print(H5Folder({str(path)!r}).read_batch(range(40)).shape)
H5Folder({str(path)!r}, verify=True)[3]
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        cwd=package.parent, timeout=60,
    )  # fmt: skip
    assert done.stdout == "(40, 4, 5, 3)\n", done.stderr


def test_a_thread_that_still_has_the_file_open_does_not_crash_python_s_end(path):
    """HDF5 closes what is open when Python is gone, and h5py calls Python for it."""
    program = f"""
import threading
from converter import H5Folder
is_read = threading.Event()

def read():
    folder = H5Folder({str(cut_tail_off(path))!r})
    print(folder[0].shape, flush=True)
    is_read.set()
    threading.Event().wait()

threading.Thread(target=read, daemon=True).start()
is_read.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        cwd=Path(converter.__file__).parent.parent, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "(4, 5, 3)\n"), done.stderr


# The cache


def positions_in(reads, path):
    """Return which samples were read by a system call: not from memory."""
    folder = H5Folder(path)
    offsets = [folder.location(position).offset for position in range(len(folder))]
    return [offsets.index(offset) for offset, _ in reads if offset in offsets]


def test_the_cache_keeps_the_arrays_read_last(path, monkeypatch):
    reads = pretend_cached(monkeypatch, False)
    folder = H5Folder(path, cache_nbytes=3 * 60)
    for position in (0, 1, 2, 0, 1, 2, 3, 1, 2, 0):
        folder[position]
    assert positions_in(reads, path) == [0, 1, 2, 3, 0]
    folder.read_batch([0, 2, 1])
    assert positions_in(reads, path) == [0, 1, 2, 3, 0]


def test_no_cache_is_the_default_and_larger_arrays_are_not_kept(path, monkeypatch):
    reads = pretend_cached(monkeypatch, False)
    for folder in (H5Folder(path), H5Folder(path, cache_nbytes=59)):
        folder[0], folder[0]
    assert positions_in(reads, path) == [0] * 4


def test_a_negative_cache_is_refused(path):
    with pytest.raises(ValueError, match=r"cache_nbytes is -1"):
        H5Folder(path, cache_nbytes=-1)


# Errors


def test_an_unknown_key_names_what_is_near_it(path):
    folder = H5Folder(path)
    with pytest.raises(KeyError, match=r"no 'a/0003.npy' in .*did you mean 'b/0003.npy'"):
        folder["a/0003.npy"]
    with pytest.raises(KeyError, match=r"did you mean 'b/0003.npy', 'b/000"):
        folder["b/0003.np"]
    with pytest.raises(KeyError, match=r"did you mean 'a/0002.npy'"):
        folder.read_batch(["a/0000.npy", "A/0002.npy"])
    with pytest.raises(KeyError, match=r"no 'nothing like it'"):
        folder["nothing like it"]
    for key in ("", "\udcff", "a/0000.npy\0", "/", "x" * 100_000):
        with pytest.raises(KeyError):
            folder[key]
        assert key not in folder
        with pytest.raises(KeyError):
            folder.read_batch([key, key, "a/0000.npy"])


def test_a_key_that_is_a_folder_names_a_file_in_it(path):
    for folder in (H5Folder(path), H5Folder(cut_tail_off(path))):
        for key in ("b", "b/"):
            with pytest.raises(KeyError, match=r"is a folder in .* such as 'b/0001.npy'"):
                folder[key]


def test_positions_outside_the_file_are_index_errors(path):
    folder = H5Folder(path)
    for position in (40, -41, 2**63, np.uint64(2**63)):
        with pytest.raises(IndexError):
            folder[position]
        with pytest.raises(IndexError):
            folder.read_batch([0, position])
    with pytest.raises(IndexError, match=r"position 40 is not in"):
        folder.read_batch(np.array([3, 40]))


@pytest.mark.parametrize("key", [1.5, None, {}, {1}])
def test_what_is_neither_key_nor_position_is_a_type_error(path, key):
    with pytest.raises(TypeError):
        H5Folder(path)[key]
    with pytest.raises(TypeError):
        H5Folder(path).read_batch([key])


def test_a_batch_of_one_string_is_a_type_error(path):
    with pytest.raises(TypeError, match=r"put one into a list"):
        H5Folder(path).read_batch("a/0000.npy")
    with pytest.raises(TypeError, match=r"integers in one row"):
        H5Folder(path).read_batch(np.array([1.5]))
    with pytest.raises(TypeError, match=r"integers in one row"):
        H5Folder(path).read_batch(np.array([[1, 2]]))


def damage(path: Path, key: str) -> None:
    """Change one byte of a stored payload."""
    with h5py.File(path) as file:
        dataset = file[key]
        if dataset.chunks:
            info = dataset.id.get_chunk_info(0)
            offset = info.byte_offset + info.size // 2
        else:
            offset = dataset.id.get_offset() + 10
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x55]))


@pytest.mark.parametrize("shape", [(4, 5, 3), (100, 100, 3)])
def test_verify_names_the_sample_that_is_damaged(tmp_path, shape):
    path = make_h5(tmp_path, equal_samples(10, shape))
    damage(path, "b/0003.npy")
    folder = H5Folder(path, verify=True)
    message = r"'b/0003\.npy' in .*out\.h5 is damaged \(its checksum differs\)"
    for read in (
        lambda: folder["b/0003.npy"],
        lambda: folder.read("b/0003.npy", np.s_[0]),
        lambda: folder.read_batch(range(10)),
    ):
        with pytest.raises(LoadError, match=message):
            read()
    folder["b/0005.npy"]


def test_verify_finds_damage_in_the_chunk_that_is_read(tmp_path):
    path = make_h5(tmp_path, {"a.npy": smooth((40, 500, 300), "<u4")}, compression="gzip")
    damage(path, "a.npy")
    folder = H5Folder(path, verify=True)
    with pytest.raises(LoadError, match=r"'a.npy' in .* is damaged"):
        folder[0]
    with pytest.raises(LoadError, match=r"'a.npy' in .* is damaged"):
        folder.read(0, np.s_[0])
    folder.read(0, np.s_[-1])  # another chunk


def test_damage_that_inflate_sees_is_an_error_without_verify_too(tmp_path):
    path = make_h5(tmp_path, {"a.npy": smooth((300, 400))}, compression="gzip")
    damage(path, "a.npy")
    with pytest.raises(LoadError, match=r"'a.npy' in .* (inflate)"):
        H5Folder(path)["a.npy"]


# Bad files


def test_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.h5"):
        len(H5Folder(tmp_path / "none.h5"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"x", "is not an HDF5 file"),
        (bytes(10_000), "is not an HDF5 file"),
        (b"\x89HDF\r\n\x1a\n", "cannot be opened|is not an HDF5 file|is truncated"),
    ],
)
def test_what_is_not_hdf5_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "bad.h5"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=rf"bad\.h5 ({message})"):
        len(H5Folder(path))


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(OSError, match=r"directory"):
        len(H5Folder(tmp_path))


def test_a_truncated_file_is_one_clear_error_or_reads_right(path, samples):
    whole = path.read_bytes()
    hdf5_nbytes = H5Folder(path)._open().source.keys.hdf5_nbytes
    for nbytes in (1, 100, 1000, hdf5_nbytes // 2, hdf5_nbytes - 1):
        path.write_bytes(whole[:nbytes])
        with pytest.raises(LoadError, match=r"is truncated|is not an HDF5|cannot be opened"):
            len(H5Folder(path))
    for nbytes in (hdf5_nbytes, hdf5_nbytes + 1, len(whole) - 1):
        path.write_bytes(whole[:nbytes])
        assert_same(H5Folder(path)["a/0000.npy"], samples["a/0000.npy"])


def linked_elsewhere(path: Path, kind: str) -> None:
    with h5py.File(path.with_name("secret.h5"), "w") as file:
        file["x"] = np.arange(3)
        file["group/x"] = np.arange(3)
    path.with_name("secret.bin").write_bytes(bytes(24))
    with h5py.File(path, "w") as file:
        file["mine"] = np.arange(4)
        if kind == "link":
            file["elsewhere"] = h5py.ExternalLink("secret.h5", "/x")
        elif kind == "folder":
            file["group"] = h5py.ExternalLink("secret.h5", "/group")
        elif kind == "storage":
            external = [(str(path.with_name("secret.bin")), 0, 24)]
            file.create_dataset("elsewhere", (3,), "i8", external=external)
        else:
            layout = h5py.VirtualLayout((3,), "i8")
            layout[:] = h5py.VirtualSource("secret.h5", "x", (3,))
            file.create_virtual_dataset("elsewhere", layout)


@pytest.mark.parametrize("kind", ["link", "folder", "storage", "virtual"])
def test_what_lies_in_other_files_is_refused(tmp_path, kind):
    path = tmp_path / "linked.h5"
    linked_elsewhere(path, kind)
    for read in (H5Folder.__getitem__, lambda folder, key: folder.read(key, np.s_[1:])):
        with pytest.raises(LoadError, match=r"'(elsewhere|group)' in .* read it with h5py"):
            read(H5Folder(path), "elsewhere")
    if kind in ("storage", "virtual"):
        assert H5Folder(path)["mine"].tolist() == [0, 1, 2, 3]


def test_links_swapped_in_after_listing_are_not_followed(tmp_path):
    datasets = converter.loader.h5py_file.Datasets
    path = tmp_path / "linked.h5"
    linked_elsewhere(path, "folder")
    opened = datasets(converter.files.Handle(str(path)))
    with pytest.raises(LoadError, match=r"'group' in .* is a link to elsewhere"):
        opened.read("group/x")


def test_an_array_that_claims_more_than_is_stored_is_refused(tmp_path):
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("huge", (1 << 40, 1 << 10), "f8", chunks=(1, 1 << 10))
    with pytest.raises(LoadError, match=r"'huge' in .* claims .* bytes, of which 0 are stored"):
        H5Folder(path)["huge"]


def test_a_large_array_that_is_not_cached_is_not_read_through_the_mapping(tmp_path, monkeypatch):
    """Asking whether a byte is cached brings it in: a second question would be answered yes."""
    samples = {f"{n}.npy": np.full(100_000, n, np.uint8) for n in range(3)}
    path = make_h5(tmp_path, samples)
    asked = set()

    def is_cached(offset):
        was_asked = offset in asked
        asked.add(offset)
        return was_asked

    reads = pretend_cached(monkeypatch, is_cached)
    with H5Folder(path) as folder:
        len(folder)  # the tail is read by now
        reads.clear()
        for position, array in enumerate(samples.values()):
            np.testing.assert_array_equal(folder[position], array)
    assert [nbytes for _, nbytes in reads] == [100_000] * 3


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="takes no advice")
@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("shape", [(20, 30, 3), (300, 500, 3)])
def test_a_batch_that_is_not_cached_is_fetched_at_once(tmp_path, monkeypatch, shape, compression):
    samples = {f"{n}.npy": smooth((*shape, n // 40 + 1)) for n in range(41)}
    path = make_h5(tmp_path, samples, compression=compression)
    advised, advise = [], os.posix_fadvise

    def record(fd, offset, nbytes, advice):
        if advice == os.POSIX_FADV_WILLNEED:
            advised.append((offset, nbytes))
        advise(fd, offset, nbytes, advice)

    monkeypatch.setattr(os, "posix_fadvise", record)
    folder = H5Folder(path)
    for is_cached in (False, True):
        pretend_cached(monkeypatch, is_cached)
        for keys in (list(samples)[:40], list(samples)[5:]):  # of one shape, of two
            advised.clear()
            for key, array in zip(keys, folder.read_batch(keys), strict=True):
                assert_same(array, samples[key])
            spans = [] if is_cached else spans_of(path, keys)
            assert sum(nbytes for _, nbytes in advised) == sum(nbytes for _, nbytes in spans)
            assert {offset for offset, _ in advised} >= {offset for offset, _ in spans}
            most = converter.loader.page_cache.ADVISED_NBYTES
            assert all(nbytes <= most for _, nbytes in advised)


def spans_of(path: Path, keys: list[str]) -> list[tuple[int, int]]:
    """Return where h5py finds the stored bytes of datasets."""
    spans = []
    with h5py.File(path) as file:
        for key in keys:
            dataset = file[key].id
            if file[key].chunks is None:
                spans.append((dataset.get_offset(), dataset.get_storage_size()))
                continue
            chunks = [dataset.get_chunk_info(n) for n in range(dataset.get_num_chunks())]
            spans += [(chunk.byte_offset, chunk.size) for chunk in chunks]
    return spans
