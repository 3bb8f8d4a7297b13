"""Batches depend on seed, epoch and order alone: not on threads, processes, ranks or stops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter import H5Folder
from converter.cropping.crops import CenterCrop, RandomCrop, RandomResizedCrop
from converter.errors import LoadError
from converter.training.batches import Filling
from converter.training.loader import H5Loader
from helpers.arrays import make_h5

COUNT = 23
CROPS = (
    None,
    CenterCrop(5),
    RandomCrop(6, padding=2),
    RandomCrop((4, 7), padding=3, scale=(0.5, 2.0)),
    RandomResizedCrop((5, 6)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[H5Folder]:
    random = np.random.default_rng(3)
    samples = {
        f"{'ab'[n % 2]}/{n:02}.npy": random.integers(0, 256, (8 + n % 5, 9 + n % 3, 3), np.uint8)
        for n in range(COUNT)
    }
    path: Path = make_h5(tmp_path_factory.mktemp("varied"), samples)
    with H5Folder(path) as folder:
        yield folder


def noisy(rng: np.random.Generator, image: np.ndarray, **masks: np.ndarray) -> dict[str, Any]:
    image = image.astype(np.int16)
    image[:4, :4] += rng.integers(0, 9, (4, 4, 1), np.int16)
    return {"image": image[:4, :4], **{name: mask[:4, :4] for name, mask in masks.items()}}


def same_key(key: str) -> str:
    return key


def digests(batches: Any) -> list[Any]:
    return [digest(batch) for batch in batches]


def digest(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: digest(one) for name, one in part.items()}
    if isinstance(part, (list, tuple)):
        return [digest(one) for one in part]
    return part.shape, str(part.dtype), part.tobytes()


ways = st.fixed_dictionaries(
    {
        "crop": st.sampled_from(CROPS),
        "hflip": st.sampled_from([0.0, 0.5]),
        "vflip": st.sampled_from([0.0, 0.5]),
        "labels": st.sampled_from([None, "folder"]),
        "masks": st.sampled_from([None, {"mask": same_key}]),
        "transform": st.sampled_from([None, noisy]),
        "order": st.sampled_from(["random", "stored", "blocks"]),
        "drop_last": st.booleans(),
        "seed": st.integers(0, 3),
    }
)
relaxed = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@relaxed
@given(
    way=ways,
    batch_size=st.integers(1, COUNT),
    threads=st.integers(1, 4),
    prefetch=st.integers(1, 4),
)
def test_any_number_of_threads_gives_the_same_batches(
    folder: H5Folder, way: dict[str, Any], batch_size: int, threads: int, prefetch: int
) -> None:
    arguments = {"antialias": False, "block_nbytes": 2000, "batch_size": batch_size, **way}
    alone = H5Loader(folder, threads=0, **arguments)
    several = H5Loader(folder, threads=threads, prefetch=prefetch, **arguments)
    for _ in range(2):
        assert digests(several) == digests(alone)
        assert several.state_dict() == alone.state_dict()


@relaxed
@given(way=ways, batch_size=st.integers(1, 5), world_size=st.integers(1, 4), data=st.data())
def test_ranks_and_stops_give_the_samples_of_one_rank(
    folder: H5Folder, way: dict[str, Any], batch_size: int, world_size: int, data: st.DataObject
) -> None:
    """Stopped after some batches on some ranks, training goes on with the rest on others."""
    arguments = {
        "antialias": False, "block_nbytes": 2000, "positions": True, "threads": 2, **way,
        "crop": way["crop"] or CROPS[1], "drop_last": True,
    }  # fmt: skip

    def loaders(ranks: int, size: int) -> list[H5Loader]:
        return [
            H5Loader(folder, batch_size=size, rank=rank, world_size=ranks, **arguments)
            for rank in range(ranks)
        ]

    def rows(batches: Any) -> list[Any]:
        return [
            digest({name: part[n] for name, part in batch.items()})
            for batch in batches
            for n in range(len(batch["position"]))
        ]

    whole = rows(H5Loader(folder, batch_size=1, **arguments))
    stopped = data.draw(st.integers(0, COUNT // (world_size * batch_size)))
    first = loaders(world_size, batch_size)
    steps = []
    iterators = [iter(loader) for loader in first]
    for _ in range(stopped):
        steps += [next(iterator) for iterator in iterators]
    states = [loader.state_dict() for loader in first]
    assert all(state == states[0] for state in states)
    others = loaders(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)))
    for loader in others:
        loader.load_state_dict(states[0])
    expected = stopped * world_size * batch_size
    step_size = len(others) * others[0].batch_size
    left = COUNT - states[0]["sample"] if states[0]["epoch"] == 0 else 0
    if left >= step_size:  # else the next epoch begins
        for step in zip(*others, strict=True):
            steps += step
        expected += left // step_size * step_size
    assert rows(steps) == whole[:expected]


@pytest.mark.slow
@settings(relaxed, max_examples=12)
@given(way=ways, batch_size=st.integers(1, COUNT), processes=st.integers(1, 3))
def test_any_number_of_processes_gives_the_same_batches(
    folder: H5Folder, way: dict[str, Any], batch_size: int, processes: int
) -> None:
    arguments = {"antialias": False, "block_nbytes": 2000, "batch_size": batch_size, **way}
    alone = H5Loader(folder, threads=0, **arguments)
    several = H5Loader(folder, processes=processes, **arguments)
    for _ in range(2):
        assert digests(several) == digests(alone)


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of small images: 12 equal ones of each of several dtypes and channels."""
    random = np.random.default_rng(5)
    shapes = {"u1": (9, 11, 3), ">u2": (9, 11), "?": (9, 11, 1), "f4": (9, 11, 4), "c8": (9, 11, 2)}
    samples = {
        f"{number}/{n:02}.npy": (random.random(shape) * 250).astype(dtype)
        for number, (dtype, shape) in enumerate(shapes.items())
        for n in range(12)
    }
    return make_h5(tmp_path_factory.mktemp("icons"), samples)


@pytest.mark.parametrize(
    "crop",
    [
        RandomCrop((9, 11), padding=4),
        RandomCrop((5, 7)),
        RandomCrop(3, padding=(0, 5), fill=1),
        CenterCrop(4),
        CenterCrop((12, 5)),
        CenterCrop(60),
        RandomCrop(3, padding=20),
        None,
    ],
)
@pytest.mark.parametrize("flip", [{}, {"hflip": 0.5}, {"hflip": 0.3, "vflip": 0.6}])
def test_small_equal_images_cropped_at_once_are_those_cropped_one_by_one(
    icons: Path, crop: Any, flip: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def epochs(**options: Any) -> list[Any]:
        kinds = ({"keys": f"{n}/", "threads": n % 2} for n in range(5))
        options = {"batch_size": 4, "crop": crop, "seed": 2, **flip, **options}
        loaders = [H5Loader(icons, **options, **o) for o in (*kinds, {"channels": 3, "keys": "0/"})]
        return [digests(loader) for loader in loaders for _ in range(2)]

    gathered: list[int] = []
    as_rows = Filling._as_rows
    monkeypatch.setattr(Filling, "_as_rows", lambda *a: gathered.append(1) or as_rows(*a))
    at_once = epochs()
    assert sum(gathered) == 2 * 6 * 3
    # a function of the user's takes samples one by one
    assert epochs(transform=lambda rng, **images: images) == at_once
    assert sum(gathered) == 2 * 6 * 3


def test_small_equal_images_of_several_files_or_without_index_are_the_same(
    icons: Path, tmp_path: Path
) -> None:
    with H5Folder(icons) as folder:
        samples = {key: folder[key] for key in folder if key.startswith("0/")}
    keys = sorted(samples)
    some = make_h5(tmp_path / "some", {key: samples[key] for key in keys[:5]})
    rest = make_h5(tmp_path / "rest", {key: samples[key] for key in keys[5:]})
    bare = tmp_path / "bare.h5"
    with h5py.File(bare, "w") as file:
        for key in keys:
            file[key] = samples[key]
    options = {"batch_size": 4, "keys": "0/", "crop": RandomCrop(8, padding=2), "hflip": 0.5}
    expected = digests(H5Loader(icons, **options))
    assert digests(H5Loader([some, rest], **options)) == expected
    assert digests(H5Loader(bare, **options)) == expected


def test_a_fill_that_small_images_cannot_hold_names_one_of_them(icons: Path) -> None:
    loader = H5Loader(icons, batch_size=4, keys="0/", crop=RandomCrop(12, padding=4, fill=256))
    with pytest.raises(LoadError, match=r"'0/\d\d.npy' in .*: arrays of uint8 cannot hold 256"):
        next(iter(loader))
