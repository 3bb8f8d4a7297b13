"""H5Loader hands out batches: the right samples, cropped and labelled, in any number of threads."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from converter import H5Folder
from converter.cropping.crops import CenterCrop, RandomCrop, RandomResizedCrop, Resize
from converter.errors import ConverterError, LoadError
from converter.training.buffers import Buffers
from converter.training.loader import H5Loader
from helpers.arrays import equal_samples, make_h5, smooth
from helpers.run import ROOT, wait_until

COUNT = 20


@pytest.fixture(scope="module")
def samples() -> dict[str, np.ndarray]:
    return equal_samples(COUNT, (12, 14, 3))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, samples: dict[str, np.ndarray]) -> Path:
    return make_h5(tmp_path_factory.mktemp("equal"), samples)


@pytest.fixture(scope="module")
def keys(path: Path) -> list[str]:
    return list(H5Folder(path))


def image(seed: int, *shape: int, dtype: str = "u1") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


def assert_one_sentence(message: str) -> None:
    assert "\n" not in message and not message.endswith(".") and ". " not in message, message
    assert not message[0].isupper(), message


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "H5Loader"]


def make(folder: Path, **samples: Any) -> Path:
    """Store arrays by name; "__" in a name is a slash."""
    return make_h5(folder, {f"{name.replace('__', '/')}.npy": a for name, a in samples.items()})


# What a batch is


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_in_stored_order_are_the_samples(
    path: Path, samples: dict[str, np.ndarray], keys: list[str], threads: int
) -> None:
    loader = H5Loader(path, batch_size=5, order="stored", threads=threads)
    assert len(loader) == 4
    for _ in range(2):
        batches = list(loader)
        assert [batch.shape for batch in batches] == [(5, 12, 14, 3)] * 4
        assert np.array_equal(np.concatenate(batches), np.stack([samples[key] for key in keys]))
        assert batches[0].dtype == np.uint8


def test_random_order_gives_each_sample_once_and_another_order_each_epoch(
    path: Path, samples: dict[str, np.ndarray], keys: list[str]
) -> None:
    loader = H5Loader(path, batch_size=6, positions=True, drop_last=False, threads=2)
    epochs = []
    for _ in range(3):
        batches = list(loader)
        positions = np.concatenate([batch["position"] for batch in batches])
        assert sorted(positions.tolist()) == list(range(COUNT))
        images = np.concatenate([batch["image"] for batch in batches])
        assert np.array_equal(images, np.stack([samples[keys[n]] for n in positions]))
        epochs.append(positions.tolist())
    assert epochs[0] != epochs[1] != epochs[2]
    loader.set_epoch(1)
    assert np.concatenate([b["position"] for b in loader]).tolist() == epochs[1]
    assert np.concatenate([b["position"] for b in loader]).tolist() == epochs[2]


def test_an_order_of_ones_own_counts_the_selected_samples(path: Path, keys: list[str]) -> None:
    loader = H5Loader(
        path, batch_size=2, keys="b/", order=lambda epoch: [0, 3, 3, epoch], positions=True,
        threads=0,
    )  # fmt: skip
    selected = [position for position, key in enumerate(keys) if key.startswith("b/")]
    assert selected[0] > 0
    for epoch in range(2):
        positions = np.concatenate([batch["position"] for batch in loader])
        assert positions.tolist() == [selected[n] for n in (0, 3, 3, epoch)]


def test_labels_make_pairs_and_names_make_dicts(path: Path, keys: list[str]) -> None:
    images, labels = next(iter(H5Loader(path, batch_size=4, labels="folder", order="stored")))
    assert images.shape == (4, 12, 14, 3)
    assert labels.tolist() == [0] * 4 and labels.dtype == np.int64
    loader = H5Loader(
        path, batch_size=4, labels=lambda keys: [len(key) for key in keys], positions=True,
        masks={"same": lambda key: key}, images={"other": lambda key: keys[0]}, order="stored",
    )  # fmt: skip
    batch = next(iter(loader))
    assert list(batch) == ["image", "label", "position", "same", "other"]
    assert batch["label"].tolist() == [len(key) for key in keys[:4]]
    assert np.array_equal(batch["image"], batch["same"])
    assert (batch["other"] == batch["image"][0]).all()
    assert [loader.folder.key_at(n) for n in batch["position"]] == keys[:4]


def test_classes_are_the_folders(path: Path) -> None:
    loader = H5Loader(path, batch_size=4, labels="folder", classes=["z", "b", "a"])
    assert loader.classes == ["z", "b", "a"] and loader.class_to_idx == {"z": 0, "b": 1, "a": 2}
    labels = np.concatenate([labels for _, labels in loader])
    assert sorted(set(labels.tolist())) == [1, 2]


def test_keys_choose_the_samples(path: Path, keys: list[str]) -> None:
    loader = H5Loader(path, batch_size=3, keys="b/", order="stored", positions=True)
    positions = np.concatenate([batch["position"] for batch in loader])
    assert [keys[n] for n in positions] == [key for key in keys if key[0] == "b"][:9]


def test_several_loaders_share_an_open_folder(path: Path) -> None:
    with H5Folder(path) as folder:
        pairs = zip(H5Loader(folder, batch_size=4), H5Loader(folder, batch_size=4), strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)


def test_unequal_arrays_without_a_crop_are_a_list(tmp_path: Path) -> None:
    arrays = {"a": image(1, 4, 5, 3), "b": image(2, 6, 5, 3), "c": image(3, 2, dtype=">u2")}
    loader = H5Loader(make(tmp_path, **arrays), batch_size=3, order="stored", threads=2)
    (batch,) = loader
    assert isinstance(batch, list)
    for got, expected in zip(batch, arrays.values(), strict=True):
        assert np.array_equal(got, expected) and got.dtype == expected.dtype


def test_channels_make_images_equal(tmp_path: Path) -> None:
    gray, alpha = image(1, 4, 5), image(2, 4, 5, 2)
    colours, both = image(3, 4, 5, 3), image(4, 4, 5, 4)
    path = make(tmp_path, a=gray, b=alpha, c=colours, d=both)
    for crop in (None, CenterCrop((4, 5))):
        (batch,) = H5Loader(path, batch_size=4, order="stored", channels=3, crop=crop)
        expected = [gray[..., None].repeat(3, 2), alpha[..., :1].repeat(3, 2), colours]
        assert np.array_equal(batch, np.stack([*expected, both[..., :3]]))


@pytest.mark.parametrize("crop", [None, CenterCrop(10)], ids=["whole", "crop"])
def test_flips_mirror_images_and_masks_alike(path: Path, crop: Any) -> None:
    arguments: dict[str, Any] = {"batch_size": COUNT, "order": "stored", "crop": crop}
    (plain,) = H5Loader(path, **arguments)
    for name, axis in (("hflip", 2), ("vflip", 1)):
        (mirrored,) = H5Loader(path, **{name: 1.0}, **arguments)
        assert np.array_equal(mirrored, np.flip(plain, axis))
    (some,) = H5Loader(path, hflip=0.5, masks={"mask": lambda key: key}, **arguments)
    assert np.array_equal(some["image"], some["mask"])
    is_mirrored = [not np.array_equal(*pair) for pair in zip(some["image"], plain, strict=True)]
    assert 0 < sum(is_mirrored) < COUNT


def test_crops_out_of_compressed_and_encoded_files_are_those_of_arrays(
    tmp_path: Path, samples: dict[str, np.ndarray], convert: Any
) -> None:
    import PIL.Image

    plain = make_h5(tmp_path / "plain", samples)
    gzip = make_h5(tmp_path / "gzip", samples, compression="gzip")
    for key, array in samples.items():
        file = (tmp_path / "images" / key).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(array).save(file)
    encoded = tmp_path / "encoded.h5"
    assert convert(tmp_path / "images", encoded, "--ext=png", "--store=encoded").status == 0
    for crop in (RandomCrop(7, padding=3), None):
        arguments: dict[str, Any] = {"batch_size": 8, "crop": crop, "hflip": 0.5, "threads": 2}
        for others in zip(*(H5Loader(p, **arguments) for p in (plain, gzip, encoded)), strict=True):
            assert all(np.array_equal(others[0], other) for other in others)


def test_a_file_without_an_index_gives_the_same_batches(
    path: Path, tmp_path: Path, samples: dict[str, np.ndarray]
) -> None:
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        for key, array in samples.items():
            file[key] = array
    arguments: dict[str, Any] = {"batch_size": 8, "crop": RandomCrop(7), "labels": "folder"}
    for one, other in zip(H5Loader(path, **arguments), H5Loader(foreign, **arguments), strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def test_a_partner_may_lie_in_another_file_and_be_of_another_dtype(
    tmp_path: Path, path: Path, keys: list[str]
) -> None:
    masks = {f"m/{key}": image(n, 12, 14, dtype="<u2") for n, key in enumerate(keys)}
    other = H5Folder(make_h5(tmp_path, masks))
    loader = H5Loader(
        path, batch_size=COUNT, order="stored", crop=RandomCrop(5),
        masks={"mask": lambda key: (other, f"m/{key}")}, positions=True,
    )  # fmt: skip
    (batch,) = loader
    whole = np.stack([masks[f"m/{key}"] for key in keys])
    images = H5Folder(path).read_batch(range(COUNT))
    for n in range(COUNT):
        places = [
            (top, left)
            for top, left in itertools.product(range(8), range(10))
            if np.array_equal(images[n, top : top + 5, left : left + 5], batch["image"][n])
        ]
        [(top, left)] = places
        assert np.array_equal(whole[n, top : top + 5, left : left + 5], batch["mask"][n])
    assert batch["mask"].dtype == "<u2"


def test_a_transform_gets_rng_and_names_and_fixes_the_shape(path: Path) -> None:
    def transform(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        start = int(rng.integers(4))
        return {"image": image[start : start + 8].astype("f4") / 2, "mask": mask[start, 0]}

    results = []
    for threads, batch_size in ((0, 4), (1, 5), (3, 10)):
        loader = H5Loader(
            path, batch_size=batch_size, order="stored", transform=transform,
            masks={"mask": lambda key: key}, threads=threads,
        )  # fmt: skip
        batches = list(loader)
        results.append(np.concatenate([batch["image"] for batch in batches]))
        assert batches[0]["image"].dtype == np.float32
        assert batches[0]["mask"].shape == (batch_size, 3)
    assert results[0].shape == (COUNT, 8, 14, 3)
    assert all(np.array_equal(results[0], result) for result in results)


@pytest.mark.slow
def test_tensors_are_channels_last_and_share_the_batch_memory(path: Path) -> None:
    torch = pytest.importorskip("torch")
    loader = H5Loader(
        path, batch_size=4, order="stored", crop=Resize(6), as_torch=True, labels="folder",
        masks={"mask": lambda key: key}, positions=True,
    )  # fmt: skip
    as_numpy = H5Loader(
        path, batch_size=4, order="stored", crop=Resize(6), labels="folder",
        masks={"mask": lambda key: key}, positions=True,
    )  # fmt: skip
    for tensors, arrays in zip(loader, as_numpy, strict=True):
        images = tensors["image"]
        assert images.shape == (4, 3, 6, 6) and images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), arrays["image"])
        assert tensors["label"].dtype == tensors["position"].dtype == torch.int64
    assert loader._buffers["image"].count <= 4


@pytest.mark.slow
def test_gray_tensors_have_a_channel_and_masks_have_none(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = make(tmp_path, a=image(1, 4, 5), b=image(2, 4, 5))
    mask = {"mask": lambda key: key}
    (batch,) = H5Loader(path, batch_size=2, as_torch=True, masks=mask)
    assert batch["image"].shape == (2, 1, 4, 5) and batch["mask"].shape == (2, 4, 5)


# Memory


def test_a_list_of_all_batches_holds_what_was_read(path: Path) -> None:
    def digests(loader: H5Loader, epoch: int) -> list[bytes]:
        loader.set_epoch(epoch)
        return [batch.tobytes() for batch in loader]

    loader = H5Loader(path, batch_size=4, crop=CenterCrop(6, resize=(12, 14)), threads=2)
    kept = [list(loader) for _ in range(3)]
    assert [[batch.tobytes() for batch in epoch] for epoch in kept] == [
        digests(loader, epoch) for epoch in range(3)
    ]


@pytest.mark.parametrize("threads", [0, 2])
def test_memory_grows_only_as_batches_are_kept(path: Path, threads: int) -> None:
    loader = H5Loader(
        path, batch_size=4, crop=CenterCrop(6, resize=(12, 14)), threads=threads, prefetch=2
    )
    for _ in range(10):
        for _batch in loader:
            pass
    flat = loader._buffers["image"].count
    assert flat <= 2 + 2
    kept = list(loader)
    grown = loader._buffers["image"].count
    assert flat < grown <= flat + len(kept)
    del kept, _batch
    for _ in range(3):
        for _batch in loader:
            pass
    assert loader._buffers["image"].count == grown


# The state


@pytest.mark.parametrize("threads", [0, 2])
def test_a_state_gives_the_rest(path: Path, threads: int) -> None:
    def digest(batch: np.ndarray) -> bytes:
        return batch.tobytes()

    arguments: dict[str, Any] = {
        "batch_size": 3, "crop": RandomCrop(6), "hflip": 0.5, "threads": threads
    }  # fmt: skip
    whole = [[digest(batch) for batch in epoch] for epoch in [H5Loader(path, **arguments)] * 2]
    loader = H5Loader(path, **arguments)
    states = [loader.state_dict()]
    for _ in loader:
        states.append(loader.state_dict())
    assert (states[-1]["epoch"], states[-1]["sample"]) == (1, 0)
    for number, state in enumerate(states):
        resumed = H5Loader(path, **arguments)
        resumed.load_state_dict(state)
        resumed.sampler.set_epoch(int(state["epoch"]))  # as a training loop does
        assert resumed.state_dict() == state
        rest = [digest(batch) for batch in resumed]
        assert rest == (whole[0] + whole[1])[number : 6 if number < 6 else 12]
        assert [digest(batch) for batch in resumed][:1] == (
            whole[1][:1] if number < 6 else [digest(next(iter(_at(path, 2, arguments))))]
        )


def _at(path: Path, epoch: int, arguments: dict[str, Any]) -> H5Loader:
    loader = H5Loader(path, **arguments)
    loader.set_epoch(epoch)
    return loader


def test_an_older_iterator_does_not_move_the_state(path: Path) -> None:
    loader = H5Loader(path, batch_size=4)
    older, newer = iter(loader), iter(loader)
    next(older)
    next(newer)
    state = loader.state_dict()
    next(older)
    assert loader.state_dict() == state


def test_ranks_side_by_side_are_one_rank_with_a_larger_batch(path: Path) -> None:
    (whole,) = [list(H5Loader(path, batch_size=6))]
    ranks = [list(H5Loader(path, batch_size=3, rank=rank, world_size=2)) for rank in range(2)]
    assert [np.concatenate(pair).tobytes() for pair in zip(*ranks, strict=True)] == [
        batch.tobytes() for batch in whole
    ]


# Ends


def wait_for_no_threads() -> None:
    for _ in range(200):
        if not reader_threads():
            return
        time.sleep(0.01)
    raise AssertionError(reader_threads())


def test_no_thread_is_left_at_the_end_of_an_epoch_or_behind_a_break(path: Path) -> None:
    loader = H5Loader(path, batch_size=2, threads=3)
    for _ in loader:
        assert len(reader_threads()) == 3
    assert not reader_threads()
    for _ in loader:
        break
    assert not reader_threads()
    iterator = iter(loader)
    next(iterator)
    del loader, iterator
    assert not reader_threads()


def test_garbage_collection_amid_an_epoch_ends_its_threads(path: Path) -> None:
    cycle: list[Any] = [iter(H5Loader(path, batch_size=2, threads=3))]
    cycle.append(cycle)
    next(cycle[0])
    assert len(reader_threads()) == 3
    del cycle
    gc.collect()
    wait_for_no_threads()


def test_a_loop_left_by_an_exception_ends_its_threads(path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in H5Loader(path, batch_size=2, threads=3):
            raise ZeroDivisionError
    gc.collect()
    wait_for_no_threads()


@pytest.mark.parametrize("prefetch", [1, 3])
def test_so_many_batches_are_made_ahead_and_no_more(path: Path, prefetch: int) -> None:
    made = []

    def transform(rng: np.random.Generator, image: np.ndarray) -> dict[str, np.ndarray]:
        made.append(threading.current_thread())
        return {"image": image}

    loader = H5Loader(path, batch_size=2, threads=1, prefetch=prefetch, transform=transform)
    iterator = iter(loader)
    for handed_out in (1, 2):
        next(iterator)
        expected = 2 * (handed_out + prefetch)
        wait_until(lambda expected=expected: len(made) == expected)
        time.sleep(0.05)
        assert len(made) == expected
    assert threading.current_thread() not in made


def test_memory_is_told_of_each_request(path: Path) -> None:
    """Pinned memory notes then how far the GPU is; here there may be none."""
    requests = []

    class Told(Buffers):
        def at_request(self) -> None:
            requests.append(self)

    loader = H5Loader(path, batch_size=2, threads=0)
    iterator = iter(loader)
    next(iterator)
    loader._buffers["image"] = Told()
    next(iterator)
    next(iterator)
    assert len(requests) == 2


def test_a_slow_transform_does_not_keep_a_left_loop(path: Path) -> None:
    go_on = threading.Event()
    with H5Folder(path) as folder:
        first = folder[0]

    def transform(rng: np.random.Generator, image: np.ndarray) -> dict[str, np.ndarray]:
        if not np.array_equal(image, first):
            go_on.wait(60)
        return {"image": image}

    loader = H5Loader(path, batch_size=1, order="stored", threads=2, transform=transform)
    iterator = iter(loader)
    next(iterator)
    threading.Timer(0.2, go_on.set).start()
    start = time.monotonic()
    del iterator
    assert time.monotonic() - start < 5
    wait_for_no_threads()


SCRIPT = """
import sys
import numpy as np
from converter.training.loader import H5Loader
from converter.cropping.crops import RandomCrop
loader = H5Loader(sys.argv[1], batch_size=2, crop=RandomCrop(6), threads=2)
iterator = iter(loader)
first = next(iterator)
"""


def run_script(path: Path, more: str, *, status: int = 0) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT + more, str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == status, ended.stderr
    return ended.stdout


def test_an_interpreter_ends_amid_an_epoch(path: Path) -> None:
    assert run_script(path, "print('ends')") == "ends\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_goes_on_by_itself(path: Path) -> None:
    out = run_script(
        path,
        "import os, zlib\n"
        "def rest(): return [zlib.crc32(b) for b in iterator], [zlib.crc32(b) for b in loader]\n"
        "if (child := os.fork()) == 0:\n"
        "    print(rest(), flush=True)\n"
        "    raise SystemExit\n"
        "os.waitpid(child, 0)\n"
        "print(rest(), flush=True)\n",
    )
    child, parent = out.splitlines()
    assert child == parent and child.count(",") == 9 + 10 - 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_amid_waiting_comes_out_of_the_loop(path: Path) -> None:
    out = run_script(
        path,
        "import os, signal, threading, time\n"
        "def slow(rng, image):\n"
        "    time.sleep(0.5)\n"
        "    return {'image': image}\n"
        "threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    for _ in H5Loader(sys.argv[1], batch_size=8, transform=slow, threads=1): pass\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n",
    )
    assert out == "interrupted\n"
    assert signal.SIGINT


class Interrupt:
    """Raises KeyboardInterrupt at a line of the loader's own code, as Ctrl-C may at any."""

    def __init__(self, line: int) -> None:
        self.lines_left = line

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        if Path(frame.f_code.co_filename).name not in ("loader.py", "readers.py", "batches.py"):
            return None
        if event == "line":
            self.lines_left -= 1
            if not self.lines_left:
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("threads", [2, 0])
def test_who_catches_ctrl_c_goes_on_with_the_batch_that_was_not_handed_out(
    path: Path, threads: int
) -> None:
    options: dict[str, Any] = {"batch_size": 4, "crop": RandomCrop(8), "threads": threads}
    expected = [batch.tobytes() for batch in H5Loader(path, **options)]
    is_interrupted, line = True, 0
    while is_interrupted:
        line += 1
        loader = H5Loader(path, **options)
        iterator = iter(loader)
        batches, is_interrupted = [next(iterator)], False
        before = sys.gettrace()
        sys.settrace(Interrupt(line))
        try:
            batches.append(next(iterator))
        except KeyboardInterrupt:
            is_interrupted = True
        finally:
            sys.settrace(before)
        resumed = H5Loader(path, **options)
        resumed.load_state_dict(loader.state_dict())
        rest = list(iterator)
        assert [batch.tobytes() for batch in batches + rest] == expected, line
        assert [batch.tobytes() for batch in resumed] == [batch.tobytes() for batch in rest], line
    assert line > 20


# Failures


def refused(error: type[Exception] = ValueError, **arguments: Any) -> str:
    with pytest.raises(error) as caught:
        H5Loader(**arguments)
    message = str(caught.value)
    assert_one_sentence(message)
    return message


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 21}, "drop_last=False"),
        ({"keys": "z/"}, "no key of"),
        ({"keys": []}, "keys is empty"),
        ({"channels": 4}, "channels is 4"),
        ({"hflip": 1.5}, "hflip is 1.5"),
        ({"threads": -1}, "threads is -1"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"processes": -1}, "processes is -1"),
        ({"processes": 1, "threads": 1}, "one of the two"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'"),
        ({"crop": 224}, "crop is 224"),
        ({"order": "shuffled"}, "order is 'shuffled'"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"rank": 0}, "go together"),
        ({"labels": "folders"}, "labels is 'folders'"),
        ({"classes": ["a"]}, "labels='folder'"),
        ({"masks": {"image": str}}, "'image' twice"),
        ({"masks": {"mask": "key"}}, "is no function"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(path: Path, arguments: Any, part: str) -> None:
    assert part in refused(source=path, **{"batch_size": 4, **arguments})


@pytest.mark.slow
def test_pinned_memory_without_a_gpu_is_refused(path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "needs a GPU" in refused(source=path, batch_size=4, pin_memory=True)


def failure(path: Path, **arguments: Any) -> str:
    """Return the one sentence that the first epoch fails with, whatever reads.

    The threads end with the error, and not when garbage is collected one day.
    """
    messages = set()
    gc.disable()
    try:
        for threads in (0, 2):
            options = {"batch_size": 2, **arguments}
            loader = H5Loader(path, order="stored", threads=threads, **options)
            with pytest.raises((ConverterError, ValueError)) as caught:
                list(loader)
            assert_one_sentence(str(caught.value))
            messages.add(str(caught.value))
            del caught
            wait_for_no_threads()
    finally:
        gc.enable()
    (message,) = messages
    return message


@pytest.mark.parametrize(
    ("second", "arguments", "parts"),
    [
        (image(2, 1, 1, 3), {"crop": RandomCrop(3)}, ["'b.npy'", "1x1"]),
        (image(2, 9, 8, 1), {"crop": CenterCrop(3)}, ["'b.npy'", "1 channel,", "channels=3"]),
        (image(2, 9, 8), {"crop": CenterCrop(3)}, ["'b.npy'", "no channels", "channels=3"]),
        (image(2, 9, 8, 5), {"crop": CenterCrop(3)}, ["'b.npy'", "(9, 8, 5)", "crop=None"]),
        (image(2, 9), {"crop": CenterCrop(3)}, ["'b.npy'", "(9,)", "crop=None"]),
        (image(2, 9, 8, 3, dtype="f4"), {"crop": CenterCrop(3)}, ["'b.npy'", "float32", "uint8"]),
        (image(2, 9), {"channels": 3}, ["'b.npy'", "(9,)"]),
        (image(2, 9), {"hflip": 1.0}, ["'b.npy'", "flipped"]),
        (image(2, 9, 8, 3), {"masks": {"mask": lambda key: "c.npy"}}, ["no mask", "'c.npy'"]),
        (image(2, 9, 8, 3), {"masks": {"mask": lambda key: 3}}, ["returned 3", "'a.npy'"]),
        (
            image(2, 4, 8, 3),
            {"crop": CenterCrop(3), "masks": {"mask": lambda key: "a.npy"}},
            ["'b.npy'", "4x8", "9x8", "equally large"],
        ),
        (image(2, 9, 8, 3), {"transform": lambda rng, image: image}, ["'a.npy'", "return a dict"]),
        (
            image(2, 4, 8, 3),
            {"transform": lambda rng, image: {"image": image}},
            ["'b.npy'", "(4, 8, 3)", "(9, 8, 3)"],
        ),
        (
            image(2, 4, 8, 3),
            {"transform": lambda rng, image: {"image": image[8:].reshape(1, 8, 3)}},
            ["'b.npy'", "reshape"],
        ),
        (image(2, 9, 8, 3), {"labels": {"a.npy": 1}}, ["'b.npy'"]),
        (image(2, 9, 8, 3), {"labels": [1]}, ["1 rows"]),
        (image(2, 9, 8, 3), {"labels": lambda keys: [1]}, ["1 label"]),
        (image(2, 9, 8, 3), {"labels": "folder"}, ["'a.npy'", "no folder"]),
    ],
)
def test_what_cannot_be_a_row_is_named(
    tmp_path: Path, second: np.ndarray, arguments: dict[str, Any], parts: list[str]
) -> None:
    path = make(tmp_path, a=image(1, 9, 8, 3), b=second)
    message = failure(path, **arguments)
    assert all(part in message for part in parts), message


def test_four_channels_of_a_jpeg_are_refused_as_colours(tmp_path: Path) -> None:
    path = tmp_path / "cmyk.h5"
    with h5py.File(path, "w") as file:
        file["a.jpg"] = image(1, 6, 6, 4)
    message = failure(path, batch_size=1, channels=3, crop=CenterCrop(3))
    assert "'a.jpg'" in message and "CMYK" in message


def test_a_damaged_sample_comes_out_at_its_batch_and_the_rest_can_be_had(tmp_path: Path) -> None:
    arrays = {f"{n}.npy": smooth((40, 40, 3), "u1") + np.uint8(n) for n in range(20)}
    path = make_h5(tmp_path, arrays, compression="gzip")
    keys = list(H5Folder(path))
    with h5py.File(path) as file:
        offset = file[keys[7]].id.get_chunk_info(0).byte_offset
    with path.open("r+b") as raw:
        raw.seek(offset + 40)
        raw.write(b"\xff" * 40)
    loader = H5Loader(path, batch_size=2, order="stored", crop=CenterCrop(4), threads=2)
    iterator, got, errors = iter(loader), 0, []
    while True:
        try:
            next(iterator)
            got += 1
        except StopIteration:
            break
        except LoadError as error:
            errors.append((got, str(error)))
    assert got == 9
    [(at, message)] = errors
    assert at == 3 and keys[7] in message
    assert_one_sentence(message)


def test_world_size_without_a_group_is_an_error_at_the_first_use(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = H5Loader(path, batch_size=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for use in (len, iter):
        with pytest.raises(ValueError, match="WORLD_SIZE is 2"):
            use(loader)


def test_what_cannot_be_resized_is_named_and_a_colon_stands_before_the_reason(
    tmp_path: Path,
) -> None:
    made = make_h5(tmp_path, {"a.npy": np.ones((4, 4), bool), "b.npy": np.ones((4, 4), bool)})
    loader = H5Loader(made, batch_size=2, order="stored", crop=Resize(3), threads=0)
    with pytest.raises(
        LoadError, match=r"'a\.npy' in .*: arrays of bool cannot be inter"
    ) as caught:
        next(iter(loader))
    assert_one_sentence(str(caught.value))


def test_a_state_of_another_file_or_seed_is_refused(path: Path, tmp_path: Path) -> None:
    state = H5Loader(path, batch_size=2).state_dict()
    other = make_h5(tmp_path, equal_samples(COUNT, (5, 5)))
    for loader in (
        H5Loader(path, batch_size=2, seed=1),
        H5Loader(other, batch_size=2),
        H5Loader(path, batch_size=2, keys=list(range(COUNT))[::-1]),
    ):
        with pytest.raises(ValueError, match="state") as caught:
            loader.load_state_dict(state)
        assert_one_sentence(str(caught.value))


def test_a_state_of_blocks_of_another_size_is_refused(path: Path) -> None:
    """They have another order: the rest of theirs is not the rest of this one."""
    arguments: dict[str, Any] = {"batch_size": 2, "order": "blocks"}
    state = H5Loader(path, **arguments, block_nbytes=300).state_dict()
    loader = H5Loader(path, **arguments, block_nbytes=900)
    with pytest.raises(ValueError, match="block_nbytes") as caught:
        loader.load_state_dict(state)
    assert_one_sentence(str(caught.value))
    H5Loader(path, **arguments, block_nbytes=300).load_state_dict(state)


def test_random_resized_crops_depend_on_seed_epoch_and_sample_alone(path: Path) -> None:
    arguments: dict[str, Any] = {"crop": RandomResizedCrop(6), "antialias": False, "hflip": 0.5}

    def by_position(**more: Any) -> dict[int, bytes]:
        found = {}
        for batch in H5Loader(path, positions=True, drop_last=False, **arguments, **more):
            for position, row in zip(batch["position"], batch["image"], strict=True):
                found[int(position)] = row.tobytes()
        return found

    first = by_position(batch_size=4, threads=1)
    assert first == by_position(batch_size=7, threads=3, order="stored")
    assert first != by_position(batch_size=4, seed=1)


def test_blocks_give_each_sample_once_in_runs_of_the_file(
    path: Path, samples: dict[str, np.ndarray], keys: list[str]
) -> None:
    for threads in (0, 2):
        loader = H5Loader(
            path, batch_size=3, order="blocks", block_nbytes=12 * 14 * 3 * 4, drop_last=False,
            positions=True, threads=threads,
        )  # fmt: skip
        batches = list(loader)
        positions = np.concatenate([batch["position"] for batch in batches])
        assert sorted(positions.tolist()) == list(range(COUNT))
        images = np.concatenate([batch["image"] for batch in batches])
        assert np.array_equal(images, np.stack([samples[keys[n]] for n in positions]))
        for _ in loader:
            break
        assert not [t for t in threading.enumerate() if t.name in ("H5Loader", "ReadAhead")]


def test_a_disk_that_fails_is_an_error_that_names_the_key(
    path: Path, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, preadv = range(48, 48 + COUNT * 12 * 14 * 3), os.preadv

    def fail(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError  # nothing is cached
        if offset in samples:
            raise OSError(5, "Input/output error")
        return preadv(descriptor, buffers, offset)

    for crop in (None, CenterCrop(4), CenterCrop(4, resize=(12, 14))):
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", fail)
            message = failure(path, crop=crop)
        assert repr(keys[0]) in message and "Input/output error" in message
