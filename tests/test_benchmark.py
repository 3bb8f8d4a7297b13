"""The benchmark, and the two PyTorch datasets it offers to copy."""

from __future__ import annotations

import gc
import json
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import benchmark
from helpers.arrays import equal_samples, make_h5
from helpers.check import assert_same
from helpers.run import read_with

pytestmark = pytest.mark.slow

HOME = Path(benchmark.__file__).parent
BOTH = pytest.mark.parametrize("images", [benchmark.H5pyImages, benchmark.H5FolderImages])


@pytest.fixture
def samples():
    return equal_samples(30)


@pytest.fixture
def path(tmp_path, samples):
    return make_h5(tmp_path, samples)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    random = np.random.default_rng(1)
    for n in range(12):
        (folder / f"class_{n % 3}").mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (9, 10 + n % 2, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"class_{n % 3}" / f"{n}.png")
    return folder


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, HOME / "benchmark.py", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, **options,
    )  # fmt: skip


@BOTH
def test_both_deliver_the_arrays_of_nested_files(path, samples, images):
    dataset = images(path)
    assert len(dataset) == 30
    got = [dataset[n] for n in range(30)]
    for array, key in zip(got, sorted(samples), strict=True):
        assert_same(array, samples[key])
    dataset.close()


def test_one_list_names_the_same_samples_in_both(path):
    names = [name.decode() for name in benchmark.H5pyImages(path).names]
    assert names == list(benchmark.H5FolderImages(path).folder)


@BOTH
def test_both_apply_a_transform(path, samples, images):
    dataset = images(path, transform=lambda array: array.astype(float).mean())
    first = samples[sorted(samples)[0]].astype(float).mean()
    assert dataset[0] == first
    if images is benchmark.H5FolderImages:
        assert dataset.__getitems__([0, 0]) == [first, first]


@BOTH
def test_both_pickle_without_their_handles(path, samples, images):
    dataset = images(path)
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert_same(copy[3], dataset[3])


def test_the_plain_one_survives_a_failed_init(tmp_path, capfd):
    (tmp_path / "bad.h5").write_bytes(b"x")
    with pytest.raises(OSError, match="signature"):
        benchmark.H5pyImages(tmp_path / "bad.h5")
    benchmark.H5pyImages.__new__(benchmark.H5pyImages)  # not even begun
    gc.collect()
    assert "ignored" not in capfd.readouterr().err


def test_the_plain_one_closes_its_file_at_the_end(path):
    dataset = benchmark.H5pyImages(path)
    dataset[0]
    file = dataset.file
    del dataset
    gc.collect()
    assert not file


@BOTH
def test_nothing_is_said_at_the_interpreter_s_end(path, images):
    program = f"import benchmark; d = benchmark.{images.__name__}({str(path)!r}); d[0]"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=HOME, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@BOTH
def test_both_are_there_without_torch(path, images):
    program = f"""
import sys
sys.modules["torch"] = None
import benchmark
assert benchmark.torch is None
print(benchmark.{images.__name__}({str(path)!r})[5].shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=HOME, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "(4, 5, 3)\n", done.stderr


@pytest.mark.parametrize("used_before", [True, False])
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@BOTH
def test_a_data_loader_gets_all_arrays(path, samples, images, workers, method, used_before):
    torch = pytest.importorskip("torch")
    if not workers and method != "fork":
        pytest.skip("no process is started")
    dataset = images(path)
    if used_before:
        dataset[0]
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=8, num_workers=workers, collate_fn=benchmark.collate,
        multiprocessing_context=method if workers else None, persistent_workers=workers > 1,
    )  # fmt: skip
    wanted = np.stack([samples[key] for key in sorted(samples)])
    for _ in range(2):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [8, 8, 8, 6]
        assert_same(torch.cat(batches).numpy(), wanted)
    assert_same(dataset[7], wanted[7])


def test_a_data_loader_s_batches_are_read_at_once(path, monkeypatch):
    torch = pytest.importorskip("torch")
    dataset = benchmark.H5FolderImages(path)
    monkeypatch.setattr(benchmark.H5FolderImages, "__getitem__", None)
    for collate in (benchmark.collate, None):
        loader = torch.utils.data.DataLoader(dataset, batch_size=10, collate_fn=collate)
        assert [batch.shape for batch in loader] == [(10, 4, 5, 3)] * 3


@BOTH
def test_images_of_unequal_size_become_a_list_of_tensors(tmp_path, images):
    torch = pytest.importorskip("torch")
    samples = {"a.npy": np.zeros((2, 3), ">f4"), "b.npy": np.ones((4, 3), ">f4")}
    loader = torch.utils.data.DataLoader(
        images(make_h5(tmp_path, samples)), batch_size=2, collate_fn=benchmark.collate
    )
    (batch,) = loader
    assert [tuple(tensor.shape) for tensor in batch] == [(2, 3), (4, 3)]
    assert batch[1].sum() == 12


def test_it_converts_what_is_missing_and_measures_all_readers(pictures, tmp_path):
    output, figures, chart = tmp_path / "out.h5", tmp_path / "figures.json", tmp_path / "chart.png"
    workers = "0,1" if benchmark.torch is not None else "0"
    done = run(
        f"--path_images={pictures}", f"--path_output={output}", "--ext=png", "--epochs=1",
        f"--num_workers={workers}", "--batch_size=4", f"--json={figures}", f"--plot={chart}",
        "--convert",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with h5py.File(output) as file:
        assert len(file["class_0"]) == 4
    assert not list(tmp_path.glob("*.benchmark*"))
    report = json.loads(figures.read_text())
    measured = {(row["reader"], row["manner"]) for row in report["results"]}
    for reader in ("loose, imageio", "loose, Pillow", "h5py", "H5Folder, batches"):
        assert (reader, "loop") in measured
        assert ((reader, "1 workers") in measured) == (benchmark.torch is not None)
    assert ("H5Folder", "loop") in measured
    assert report["sizes"]["files"] == 12
    assert set(report["convert"]) == {"converter", "decoding alone", "the usual script"}
    assert all(row["least"] <= row["files_per_second"] <= row["most"] for row in report["results"])
    assert "| H5Folder, cache | loop |" in done.stdout
    assert chart.exists() or "without a chart" in done.stderr


def test_it_measures_without_torch_opencv_and_matplotlib(pictures, tmp_path):
    for name in ("torch", "cv2", "matplotlib"):
        (tmp_path / "missing").mkdir(exist_ok=True)
        (tmp_path / "missing" / f"{name}.py").write_text("raise ImportError('not installed')\n")
    done = run(
        f"--path_images={pictures}", f"--path_output={tmp_path / 'out.h5'}", "--ext=png",
        "--epochs=1", f"--plot={tmp_path / 'chart.png'}",
        env={"PYTHONPATH": str(tmp_path / "missing"), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said in ("without PyTorch", "without OpenCV: not installed", "without a chart: pip"):
        assert said in done.stderr
    assert "| H5Folder | loop |" in done.stdout
    assert "workers" not in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="needs posix_fadvise")
def test_cold_runs_read_from_the_disk_again(pictures, tmp_path):
    done = run(
        f"--path_images={pictures}", f"--path_output={tmp_path / 'out.h5'}", "--ext=png",
        "--epochs=1", "--cold", "--num_workers=0", "--samples=5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "page cache cold" in done.stdout
    assert "H5Folder, cache" not in done.stdout


def test_files_that_differ_are_named_and_nothing_is_measured(pictures, tmp_path):
    options = (f"--path_images={pictures}", f"--path_output={tmp_path / 'out.h5'}", "--ext=png",
               "--epochs=1", "--num_workers=0")  # fmt: skip
    assert run(*options, "--samples=1").returncode == 0
    Image.fromarray(np.zeros((9, 10, 3), np.uint8)).save(pictures / "class_0" / "0.png")
    done = run(*options)
    assert done.returncode == 1
    assert "benchmark: class_0/0.png differs" in done.stderr
    assert "files/s" not in done.stdout


def test_other_files_are_measured_with_the_users_own_reader(tmp_path):
    functions = tmp_path / "functions.py"
    functions.write_text("def my_read(path_sample):\n    return open(path_sample).read()\n")
    (tmp_path / "texts").mkdir()
    for n in range(5):
        (tmp_path / "texts" / f"{n}.txt").write_text("words " * n)
    done = run(
        f"--path_images={tmp_path / 'texts'}", f"--path_output={tmp_path / 'out.h5'}",
        "--ext=txt", *read_with(functions), "--epochs=1",
        "--num_workers=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "without imageio: " in done.stderr
    assert "| loose, my_read | loop |" in done.stdout


@pytest.mark.parametrize(
    ("option", "said"),
    [("--num_workers=x", "give numbers with commas"), ("--epochs=0", "at least 1"),
     ("--num_workers=-1", "at least 0")],
)  # fmt: skip
def test_wrong_options_are_named(tmp_path, option, said):
    done = run(f"--path_images={tmp_path}", f"--path_output={tmp_path / 'o.h5'}", option)
    assert done.returncode == 2
    assert said in done.stderr


def test_h5py_reads_from_a_disk_without_locks(path, samples, monkeypatch):
    refused = h5py.File

    def without_locks(*arguments, locking=None, **options):
        if locking is not False:
            raise OSError(37, "Unable to synchronously open file (unable to lock file, errno = 37)")
        return refused(*arguments, locking=locking, **options)

    monkeypatch.setattr(h5py, "File", without_locks)
    dataset = benchmark.H5pyImages(path)
    assert_same(dataset[0], samples[min(samples)])
    dataset.close()


def test_a_file_that_another_program_writes_is_not_read(path, monkeypatch):
    def in_use(*arguments, **options):
        raise BlockingIOError(11, "Unable to synchronously open file (unable to lock file)")

    monkeypatch.setattr(h5py, "File", in_use)
    with pytest.raises(BlockingIOError):
        benchmark.H5pyImages(path)
