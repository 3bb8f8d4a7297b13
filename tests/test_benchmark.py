"""The benchmark, the two PyTorch datasets it offers to copy, and the folders it is run on."""

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
from converter import H5Folder, convert
from helpers.arrays import equal_samples, make_h5
from helpers.check import assert_same
from helpers.run import read_with
from helpers.run import run as run_process
from make_folder import FILES_IN_FOLDER, main

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


@pytest.fixture
def run(tmp_path):
    """Run the benchmark where some packages are missing: that of PyTorch takes seconds each time.

    Every reader is measured in a process of its own.
    """

    def run(*arguments, without=("torch",)):
        missing = tmp_path / "missing"
        missing.mkdir(exist_ok=True)
        for name in without:
            (missing / f"{name}.py").write_text("raise ImportError('not installed')\n")
        return subprocess.run(
            [sys.executable, HOME / "benchmark.py", *map(str, arguments)],
            env={"PYTHONPATH": str(missing), "PATH": ""},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


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
def test_both_are_there_without_torch_and_say_nothing_at_the_interpreter_s_end(path, images):
    program = f"""
import sys
sys.modules["torch"] = None
import benchmark
assert benchmark.torch is None
dataset = benchmark.{images.__name__}({str(path)!r})
print(dataset[5].shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=HOME, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "(4, 5, 3)\n", "")


@pytest.mark.parametrize("used_before", [True, False])
@pytest.mark.parametrize("method", [None, *multiprocessing.get_all_start_methods()])
@BOTH
def test_a_data_loader_gets_all_arrays(path, samples, images, method, used_before):
    torch = pytest.importorskip("torch")
    if method not in (None, "fork") and not used_before:
        pytest.skip("the dataset travels pickled: that drops what was opened")
    # a worker of a new interpreter imports PyTorch anew, which takes seconds
    workers = {None: 0, "fork": 2}.get(method, 1)
    dataset = images(path)
    if used_before:
        dataset[0]
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=8, num_workers=workers, collate_fn=benchmark.collate,
        multiprocessing_context=method, persistent_workers=workers > 0,
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


def test_it_converts_what_is_missing_and_measures_all_readers(pictures, tmp_path, run):
    output, figures, chart = tmp_path / "out.h5", tmp_path / "figures.json", tmp_path / "chart.png"
    done = run(
        f"--path_images={pictures}", f"--path_output={output}", "--ext=png", "--epochs=1",
        f"--json={figures}", f"--plot={chart}", "--convert",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with h5py.File(output) as file:
        assert len(file["class_0"]) == 4
    assert not list(tmp_path.glob("*.benchmark*"))
    report = json.loads(figures.read_text())
    measured = {(row["reader"], row["manner"]) for row in report["results"]}
    assert measured >= {
        (reader, "loop")
        for reader in ("loose, imageio", "loose, Pillow", "h5py", "H5Folder", "H5Folder, batches")
    }
    assert report["sizes"]["files"] == 12
    assert set(report["convert"]) == {"converter", "decoding alone", "the usual script"}
    assert all(row["least"] <= row["files_per_second"] <= row["most"] for row in report["results"])
    assert "| H5Folder, cache | loop |" in done.stdout
    assert chart.exists() or "without a chart" in done.stderr
    assert "without PyTorch" in done.stderr
    assert {manner for _, manner in measured} == {"loop"}


def test_it_measures_with_a_data_loader(pictures, tmp_path, run):
    pytest.importorskip("torch")
    figures = tmp_path / "figures.json"
    done = run(
        f"--path_images={pictures}", f"--path_output={tmp_path / 'out.h5'}", "--ext=png",
        "--epochs=1", "--num_workers=1", "--batch_size=4", f"--json={figures}",
        without=("cv2", "imageio"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "resource_tracker" not in done.stderr
    report = json.loads(figures.read_text())
    measured = {(row["reader"], row["manner"]) for row in report["results"]}
    for reader in ("loose, Pillow", "h5py", "H5Folder, batches"):
        assert {(reader, "loop"), (reader, "1 workers")} <= measured
    assert ("H5Folder", "loop") in measured


def test_it_measures_without_torch_opencv_and_matplotlib(pictures, tmp_path, run):
    done = run(
        f"--path_images={pictures}", f"--path_output={tmp_path / 'out.h5'}", "--ext=png",
        "--epochs=1", f"--plot={tmp_path / 'chart.png'}",
        without=("torch", "cv2", "matplotlib"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said in ("without PyTorch", "without OpenCV: not installed", "without a chart: pip"):
        assert said in done.stderr
    assert "| H5Folder | loop |" in done.stdout
    assert "workers" not in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="needs posix_fadvise")
def test_cold_runs_read_from_the_disk_again(pictures, tmp_path, run):
    done = run(
        f"--path_images={pictures}", f"--path_output={tmp_path / 'out.h5'}", "--ext=png",
        "--epochs=1", "--cold", "--num_workers=0", "--samples=5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "page cache cold" in done.stdout
    assert "H5Folder, cache" not in done.stdout


def test_files_that_differ_are_named_and_nothing_is_measured(pictures, tmp_path, run):
    options = (f"--path_images={pictures}", f"--path_output={tmp_path / 'out.h5'}", "--ext=png",
               "--epochs=1", "--num_workers=0")  # fmt: skip
    assert run(*options, "--samples=1").returncode == 0
    Image.fromarray(np.zeros((9, 10, 3), np.uint8)).save(pictures / "class_0" / "0.png")
    done = run(*options)
    assert done.returncode == 1
    assert "benchmark: class_0/0.png differs" in done.stderr
    assert "files/s" not in done.stdout


def test_other_files_are_measured_with_the_users_own_reader(tmp_path, run):
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
     ("--num_workers=-1", "at least 0"), ("--threads=1;2", "give numbers with commas")],
)  # fmt: skip
def test_wrong_options_are_named(tmp_path, run, option, said):
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


# The script that makes large folders


def test_it_makes_that_many_equal_lists_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert main([str(folder), "--count=250"]) == 0
    files = sorted(folder.iterdir())
    assert len(files) == 250
    assert len({len(json.loads(file.read_text())) for file in files}) == 1
    assert all(90 <= file.stat().st_size <= 130 for file in files)
    assert len({file.read_bytes() for file in files}) == 250


def test_it_makes_a_hundred_in_each_nested_folder(tmp_path: Path) -> None:
    assert main([str(tmp_path / "new"), "--count=250", "--nested"]) == 0
    folders: dict[Path, int] = {}
    for file in (tmp_path / "new").rglob("*.json"):
        folders[file.parent] = folders.get(file.parent, 0) + 1
    assert sorted(folders.values()) == [50, FILES_IN_FOLDER, FILES_IN_FOLDER]


def test_it_makes_small_jpegs(tmp_path: Path) -> None:
    assert main([str(tmp_path / "new"), "--count=3", "--jpeg"]) == 0
    files = list((tmp_path / "new").iterdir())
    assert len(files) == 3
    for file in files:
        with Image.open(file) as image:
            assert (image.format, image.size) == ("JPEG", (32, 32))


def test_it_makes_photos(tmp_path: Path) -> None:
    assert main([str(tmp_path / "new"), "--count=2", "--photo"]) == 0
    for file in (tmp_path / "new").iterdir():
        assert 90_000 < file.stat().st_size < 130_000
        with Image.open(file) as image:
            assert (image.format, image.size) == ("JPEG", (500, 375))


def test_it_makes_the_same_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        main([str(tmp_path / name), "--count=5"])
    contents = [[f.read_bytes() for f in sorted((tmp_path / n).iterdir())] for n in ("a", "b")]
    assert contents[0] == contents[1]


def test_it_leaves_a_folder_with_something_in_it_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit, match="not empty"):
        main([str(tmp_path), "--count=1"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_it_is_a_script(tmp_path: Path) -> None:
    script = Path(__file__).with_name("make_folder.py")
    ended = run_process([sys.executable, str(script), str(tmp_path / "new"), "--count=2", "--jpeg"])
    assert ended.status == 0, ended.err
    assert len(list((tmp_path / "new").iterdir())) == 2


class ContestantHere(benchmark.Contestant):
    """A job in this process, as that of a new one would be: PyTorch is not imported again."""

    def __init__(self, job):
        self.reading = pickle.loads(pickle.dumps(job)).open()
        self.result = benchmark.Result(job, [], 0)

    def run(self, seed, *, counts):
        epoch = self.reading.epoch(seed)
        if counts:
            self.result.epochs.append(epoch)

    def close(self):
        self.reading.close()


def test_training_is_compared_with_loose_files(pictures, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.setattr(benchmark, "Contestant", ContestantHere)
    monkeypatch.setattr(benchmark, "_model_name", lambda: "a small convnet")
    figures, chart = tmp_path / "figures.json", tmp_path / "chart.png"
    status = benchmark.main([
        f"--path_images={pictures}", f"--path_output={tmp_path / 'out.h5'}", "--ext=png",
        "--train", "--crop=32", "--batch_size=4", "--epochs=1", "--num_workers=0", "--threads=1",
        "--steps=1", f"--json={figures}", f"--plot={chart}",
    ])  # fmt: skip
    done = capsys.readouterr()
    assert status == 0
    assert "Crops to 32, antialiased" in done.out
    assert "| H5Loader | 1 thread |" in done.out
    rows = json.loads(figures.read_text())["results"]
    panels = {row["panel"] for row in rows}
    assert "beside the steps of a small convnet on the CPU" in panels
    for panel in panels:
        readers = {row["reader"]: row for row in rows if row["panel"] == panel}
        assert {"H5FolderImages", "H5Loader", "H5Loader, encoded"} < readers.keys()
        assert any(reader.startswith("loose, ") for reader in readers)
        assert all(0 < row["waited"] <= 1 and row["times_loose"] for row in readers.values())
    assert (tmp_path / "out.encoded.h5").exists()
    assert chart.exists() or "without a chart" in done.err


@pytest.fixture
def training(pictures, tmp_path):
    """A function: the jobs of --train with options, in this process."""
    pytest.importorskip("torch")

    def make(*arguments):
        output = tmp_path / "out.h5"
        options = benchmark._parse(
            ["--train", f"--path_images={pictures}", f"--path_output={output}", "--ext=png",
             "--batch_size=4", *arguments]
        )  # fmt: skip
        if not output.exists():
            convert(pictures, output, ext="png", workers=1)
            convert(pictures, tmp_path / "out.encoded.h5", ext="png", workers=1, store="encoded")
        with H5Folder(output) as folder:
            return benchmark._train_jobs(options, list(folder))

    return make


@pytest.mark.parametrize("crop", [16, 0])
def test_all_ways_of_training_get_batches_of_one_size(training, pictures, crop):
    for path in pictures.rglob("*.png"):
        Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(path)
    groups = training(f"--crop={crop}", "--steps=0", "--orders=random,blocks")
    jobs = [job for group in groups for job in group]
    assert {"H5Loader, blocks", "H5Loader, encoded, blocks"} < {job.reader for job in jobs}
    height, width = (crop, crop) if crop else (20, 24)
    for job in jobs:
        reading = job.open()
        for seed in range(2):
            epoch = reading.epoch(seed)
            assert (epoch.samples, epoch.nbytes) == (12, 12 * height * width * 3), job.label
        reading.close()


def test_pairs_of_images_and_masks_are_compared(training, pictures):
    for folder, name in (("class_1", "images"), ("class_2", "masks")):
        (pictures / folder).rename(pictures / name)
    for number, path in enumerate(sorted((pictures / "masks").iterdir())):
        path.unlink()
        size = Image.open(sorted((pictures / "images").iterdir())[number]).size
        mask = sorted((pictures / "images").iterdir())[number].name
        Image.new("L", size).save(pictures / "masks" / mask)
    (jobs, *_) = training("--masks=images:masks", "--crop=8", "--steps=0", "--num_workers=0")
    assert any(job.is_loose for job in jobs)
    for job in jobs:
        epoch = job.open().epoch(0)
        assert (epoch.samples, epoch.nbytes) == (4, 4 * 8 * 8 * (3 + 1)), job.label


def test_an_image_without_a_mask_is_named(training):
    with pytest.raises(SystemExit, match=r"class_0/0\.png has no mask: .*class_1/0"):
        training("--masks=class_0:class_1")
    with pytest.raises(SystemExit, match="no image is below dogs/"):
        training("--masks=dogs:class_1")


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", [(40, 50, 3), (40, 50), (9, 7, 4), (1, 1, 3)])
def test_random_crops_are_of_one_size(shape, antialias):
    pytest.importorskip("torch")
    pytest.importorskip("cv2")
    crops = benchmark.RandomCrops(6, antialias=antialias)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for _ in range(20):
        crop = np.asarray(crops(image))
        assert crop.shape == ((3, 6, 6) if antialias else (6, 6, 3))
        assert image.min() <= crop.min() <= crop.max() <= image.max()


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--custom_read_func"], "leave out"), (["--store=encoded"], "leave out"),
     (["--orders=random,best"], "give random, blocks or both"), (["--threads=-1"], "at least 0"),
     (["--masks=images"], "give two folders")],
)  # fmt: skip
def test_wrong_options_of_training_are_named(tmp_path, capsys, options, said):
    with pytest.raises(SystemExit):
        benchmark._parse(["--train", f"--path_images={tmp_path}", "--path_output=o.h5", *options])
    assert said in capsys.readouterr().err


def test_training_is_not_measured_without_torch(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "torch", None)
    with pytest.raises(SystemExit):
        benchmark._parse(["--train", f"--path_images={tmp_path}", "--path_output=o.h5"])
    assert "--train needs PyTorch: pip install torch" in capsys.readouterr().err
