"""H5ImageFolder gives what torchvision's ImageFolder gives, H5Sampler the orders of training."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from converter import ConverterError, H5Folder, H5ImageFolder, H5Loader, H5Sampler
from converter.cli import main
from helpers.arrays import equal_samples, make_h5
from helpers.images import colours, noise, save, save_frames, save_jpegs, save_tiff
from helpers.run import ROOT

NAMES = [
    "train/cat/b.jpg", "train/cat/a.jpg", "train/cat/a/z.jpg", "train/cat/a-b/c.jpg",
    "train/cat/a/b/c.jpg", "train/cat-x/a.jpg", "train/Dog/1.jpg", "train/Dog/10.jpg",
    "train/Dog/2.jpg", "train/top.jpg", "val/cat/a.jpg", "val/cow/a.jpg",
]  # fmt: skip


def h5_of(folder: Path, *flags: str, ext: str = "jpg") -> Path:
    output = folder / "out.h5"
    flags = (f"--ext={ext}", "--workers=1", "--quiet", "--overwrite", *flags)
    assert main([f"--path_images={folder}", f"--path_output={output}", *flags]) == 0
    return output


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of JPEGs, some below the classes, with its HDF5 file."""
    folder = save_jpegs(tmp_path_factory.mktemp("images"), NAMES)
    h5_of(folder)
    return folder


def as_image_folder_reads(path: Path) -> np.ndarray:
    """Return what torchvision's loader gives for a file."""
    with open(path, "rb") as file:
        return np.asarray(PIL.Image.open(file).convert("RGB"))


def listed(folder: Path) -> list[tuple[str, int]]:
    """List samples as the documentation of ImageFolder says; compared with it in the slow half."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return [
        (str(path.relative_to(folder.parent)), number)
        for number, name in enumerate(classes)
        for below in sorted([folder / name, *(folder / name).rglob("*")], key=str)
        if below.is_dir()
        for path in sorted(below.iterdir())
        if path.is_file()
    ]


@pytest.mark.parametrize("root", ["train", "train/", "val"])
def test_samples_and_classes_are_those_of_the_folder(images, root):
    dataset = H5ImageFolder(images / "out.h5", root=root)
    expected = listed(images / root)
    assert list(dataset.samples) == list(dataset.imgs) == expected
    assert dataset.samples[-1] == expected[-1] and dataset.samples[1:3] == expected[1:3]
    assert dataset.targets == [number for _, number in expected]
    assert len(dataset) == len(dataset.samples) == len(expected)
    assert dataset.classes == sorted(path.name for path in (images / root).glob("*/"))
    assert dataset.class_to_idx == {name: n for n, name in enumerate(dataset.classes)}


def test_the_whole_file_may_be_the_root(images):
    assert H5ImageFolder(images / "out.h5").classes == ["train", "val"]


@pytest.mark.parametrize("store", ["array", "encoded"])
def test_items_are_images_and_numbers(images, tmp_path, store):
    save_jpegs(tmp_path, NAMES)
    dataset = H5ImageFolder(h5_of(tmp_path, f"--store={store}"), root="train")
    arrays = H5ImageFolder(dataset.folder, root="train", output="numpy")
    together = dataset.__getitems__(list(range(len(dataset))))
    for n, (key, number) in enumerate(dataset.samples):
        expected = as_image_folder_reads(tmp_path / key)
        for image, target in (dataset[n], together[n], dataset[n - len(dataset)]):
            assert isinstance(image, PIL.Image.Image) and image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(image), expected)
            assert target == number and type(target) is int
        array, _ = arrays[n]
        assert array.dtype == np.uint8 and array.flags.writeable
        np.testing.assert_array_equal(array, expected)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_transforms_are_called(images):
    dataset = H5ImageFolder(images / "out.h5", lambda image: image.size, lambda n: -n, root="val")
    assert [dataset[n] for n in range(2)] == dataset.__getitems__([0, 1]) == [
        ((30, 20), 0), ((30, 20), -1)
    ]  # fmt: skip


def test_several_files_out_of_order_are_sorted(images, tmp_path):
    whole = H5ImageFolder(images / "out.h5", root="train")
    parts = []
    for number, names in enumerate((NAMES[6:], NAMES[1:3], NAMES[:1] + NAMES[3:6])):
        parts.append(h5_of(save_jpegs(tmp_path / str(number), names)))
    dataset = H5ImageFolder(parts, root="train")
    assert list(dataset.samples) == list(whole.samples)
    assert dataset.targets == whole.targets


FORMS = {
    "gray.jpg": lambda path: save(path, colours()[..., 0]),
    "cmyk.jpg": lambda path: PIL.Image.fromarray(colours()).convert("CMYK").save(path),
    "gray.png": lambda path: save(path, colours()[..., 0]),
    "rgb.png": save,
    "rgba.png": lambda path: save(path, noise(1, (9, 8, 4))),
    "gray_alpha.png": lambda path: PIL.Image.fromarray(noise(1, (9, 8, 2)), "LA").save(path),
    "bit.png": lambda path: PIL.Image.fromarray(noise(1, (9, 8)) > 99).save(path),
    "palette.png": lambda path: PIL.Image.fromarray(colours()).convert("P").save(path),
    "clear.png": lambda path: (
        PIL.Image.fromarray(colours()).convert("P").save(path, transparency=3)
    ),
    "gray16.png": lambda path: cv2.imwrite(str(path), noise(1, (9, 16)).view("<u2")),
    "rgb16.png": lambda path: cv2.imwrite(str(path), noise(1, (9, 8, 6)).view("<u2")),
    "rgba16.png": lambda path: cv2.imwrite(str(path), noise(1, (9, 8, 8)).view("<u2")),
    "still.gif": save,
    "moving.gif": save_frames,
    "rgb.bmp": save,
    "gray.bmp": lambda path: save(path, colours()[..., 0]),
    "rgb.webp": save,
    "rgb.ppm": save,
    "rgb.tif": lambda path: save_tiff(path, colours()),
    "gray.tif": lambda path: save_tiff(path, colours()[..., 0]),
    "gray16.tif": lambda path: save_tiff(path, noise(1, (9, 16)).view("<u2")),
    "float.tif": lambda path: save_tiff(path, np.linspace(-9, 300, 70, dtype="f4").reshape(7, 10)),
    "int.tif": lambda path: save_tiff(path, np.arange(-9, 300, dtype="i4").reshape(3, 103)),
    "pages.tif": lambda path: save_tiff(path, noise(1, (5, 9, 8))),
}


@pytest.mark.slow
@pytest.mark.everyday(len(FORMS))
@pytest.mark.parametrize("store", ["array", "encoded"])
@pytest.mark.parametrize("name", FORMS)
def test_any_image_is_what_pillow_converts_to_rgb(tmp_path, name, store):
    path = tmp_path / "class" / name
    path.parent.mkdir()
    FORMS[name](path)
    ext = name.rpartition(".")[2]
    dataset = H5ImageFolder(h5_of(tmp_path, f"--store={store}", ext=ext), output="numpy")
    [(array, _)] = dataset
    expected = as_image_folder_reads(path)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((4, 5), np.complex64), {}, "'a/b.npy' in {} is an array of (4, 5) complex64, "),
        (np.zeros(4, np.uint8), {}, "'a/b.npy' in {} is an array of (4,) uint8, which is no image"),
        (np.zeros((0, 4, 3), np.uint16), {}, "'a/b.npy' in {} is an array of (0, 4, 3) uint16, "),
    ],
)
def test_what_is_no_image_is_refused_in_a_sentence(tmp_path, array, options, message):
    path = make_h5(tmp_path, {"a/b.npy": array})
    with pytest.raises(ConverterError) as caught:
        H5ImageFolder(path, **options)[0]
    assert str(caught.value).startswith(message.format(path))


def test_arguments_that_cannot_be_are_refused(images, tmp_path):
    with pytest.raises(ValueError, match="output is 'tensor': give 'pil' or 'numpy'"):
        H5ImageFolder(images / "out.h5", output="tensor")
    with pytest.raises(ValueError, match=r"no key of .* begins with 'test/': its folders are"):
        H5ImageFolder(images / "out.h5", root="test")
    with pytest.raises(ValueError, match="no class folders in 'val/cat' of"):
        H5ImageFolder(images / "out.h5", root="val/cat")


def test_neither_imports_torch():
    code = "import sys, converter; converter.H5ImageFolder, converter.H5Sampler"
    code += "; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_dataset_travels_to_other_processes(images):
    dataset = H5ImageFolder(images / "out.h5", root="train")
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.targets == dataset.targets
    np.testing.assert_array_equal(np.asarray(copy[2][0]), np.asarray(dataset[2][0]))


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A file of 50 small arrays."""
    return make_h5(tmp_path_factory.mktemp("sampler"), equal_samples(50))


def test_a_sampler_yields_batches_or_indices(path):
    folder = H5Folder(path)
    batches = H5Sampler(folder, batch_size=8, seed=3)
    single = H5Sampler(folder, seed=3)
    assert len(batches) == 6 and len(single) == 50
    found = list(batches)
    assert [len(batch) for batch in found] == [8] * 6
    assert all(type(index) is int for batch in found for index in batch)
    indices = list(single)
    assert [index for batch in found for index in batch] == indices[:48]
    assert sorted(indices) == list(range(50))
    assert list(single) != indices  # the next epoch
    single.set_epoch(0)
    assert list(single) == indices


@pytest.mark.parametrize("order", ["random", "blocks", "stored", lambda epoch: [epoch, 3, 3] * 9])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_sampler_goes_on_where_its_state_was_taken(path, order, batch_size):
    def sampler() -> H5Sampler:
        return H5Sampler(H5Folder(path), batch_size=batch_size, order=order, block_nbytes=500)

    whole = sampler()
    whole.set_epoch(2)
    epochs = [list(whole), list(whole)]
    for done in (0, 3, len(epochs[0])):
        before, after = sampler(), sampler()
        before.set_epoch(2)
        taken = iter(before)
        for _ in range(done):
            next(taken)
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        assert before.state_dict() == whole_state_of(sampler(), done)
        after.set_epoch(after.state_dict()["epoch"])  # as Lightning does
        assert len(after) == len(epochs[0])
        rest = epochs[0][done:] if done < len(epochs[0]) else epochs[1]
        assert list(after) == rest
        assert list(after) == (epochs[1] if rest == epochs[0][done:] else list(whole))
        assert before.state_dict(1) == whole_state_of(sampler(), 1)
        whole.set_epoch(2)
        assert [list(whole), list(whole)] == epochs


@pytest.mark.parametrize(
    "make", [lambda path: H5Sampler(H5Folder(path), batch_size=4),
             lambda path: H5Loader(path, batch_size=4, threads=0)],
)  # fmt: skip
def test_an_epoch_begins_at_its_first_batch(path, make):
    """Lightning calls iter() twice, and only then set_epoch; a DataLoader calls iter() twice."""
    expected = [np.asarray(batch).tolist() for batch in make(path)]
    loader = make(path)
    iter(loader)
    passing = iter(loader)
    loader.set_epoch(0)
    assert [np.asarray(batch).tolist() for batch in passing] == expected
    assert loader.state_dict()["epoch"] == 1
    assert [np.asarray(batch).tolist() for batch in loader] != expected


def whole_state_of(sampler: H5Sampler, done: int) -> dict:
    sampler.set_epoch(2)
    return sampler.state_dict(done)


def test_ranks_share_an_epoch(path):
    ranks = [
        H5Sampler(range(50), batch_size=4, evaluate=True, rank=n, world_size=4) for n in range(4)
    ]
    steps = zip(*ranks, strict=True)
    assert [index for step in steps for batch in step for index in batch] == list(range(50))


def test_a_state_of_another_file_is_refused(path, images):
    state = H5Sampler(range(50)).state_dict()
    for sampler in (H5Sampler(H5Folder(path)), H5Sampler(range(49)), H5Sampler(range(50), seed=1)):
        with pytest.raises(ValueError, match="this state is"):
            sampler.load_state_dict(state)


def test_samplers_that_cannot_be_are_refused(path):
    with pytest.raises(ValueError, match="order='blocks' needs an H5Folder or an H5ImageFolder"):
        H5Sampler(range(9), order="blocks")
    with pytest.raises(ValueError, match="int has no length: give H5Sampler the dataset"):
        H5Sampler(9)
    with pytest.raises(ValueError, match="a batch of 10 takes 10 samples, but there are 9"):
        H5Sampler(range(9), batch_size=10)
    with pytest.raises(ValueError, match="epoch is -1"):
        H5Sampler(range(9)).set_epoch(-1)


def test_ranks_are_looked_up_when_they_are_needed(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    sampler = H5Sampler(range(9))
    with pytest.raises(ValueError, match="WORLD_SIZE is 2"):
        len(sampler)
