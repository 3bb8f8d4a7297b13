"""In torch's DataLoader, beside torchvision."""

from __future__ import annotations

import numpy as np
import pytest

from converter import H5Folder, H5ImageFolder, H5Sampler
from helpers.images import colours, save
from training.test_torch_data import NAMES, h5_of, images  # noqa: F401

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
from torch.utils.data import DataLoader, Subset, random_split  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

pytestmark = pytest.mark.slow

TRANSFORMS = {
    "v1": transforms.Compose(
        [
            transforms.RandomResizedCrop(16),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.2] * 3),
        ]
    ),
    "v2": v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(16, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    ),
}


@pytest.mark.parametrize("root", ["train", "val"])
def test_a_dataset_is_torchvisions_on_the_same_folder(images, root):  # noqa: F811
    ours, theirs = H5ImageFolder(images / "out.h5", root=root), ImageFolder(images / root)
    assert ours.classes == theirs.classes
    assert ours.class_to_idx == theirs.class_to_idx
    assert ours.targets == theirs.targets
    expected = [(str(images / key), number) for key, number in ours.samples]
    assert expected == theirs.samples == theirs.imgs
    for (image, target), (other, number) in zip(ours, theirs, strict=True):
        assert target == number and image.mode == other.mode
        np.testing.assert_array_equal(np.asarray(image), np.asarray(other))


@pytest.mark.parametrize(
    ("how", "workers"), [("v1", 0), ("v2", 0), ("v1", "fork"), ("v2", "spawn")]
)
def test_one_line_changes_in_a_script(images, how, workers):  # noqa: F811
    def batches(dataset, context):
        torch.manual_seed(5)
        options = {"num_workers": 1, "multiprocessing_context": context} if context else {}
        return list(DataLoader(dataset, batch_size=3, shuffle=True, **options))

    ours = batches(H5ImageFolder(images / "out.h5", TRANSFORMS[how], root="train"), workers)
    theirs = batches(ImageFolder(images / "train", TRANSFORMS[how]), workers and "fork")
    for (image, target), (other, number) in zip(ours, theirs, strict=True):
        assert torch.equal(image, other)
        assert torch.equal(target, number)


def test_a_dataset_can_be_split(images):  # noqa: F811
    dataset = H5ImageFolder(images / "out.h5", transforms.ToTensor(), root="train")
    first, second = random_split(dataset, [4, len(dataset) - 4])
    found = [target for part in (first, second) for _, target in part]
    assert sorted(found) == sorted(dataset.targets)
    [(_, targets)] = DataLoader(Subset(dataset, [0, 8]), batch_size=2)
    assert targets.tolist() == [dataset.targets[0], dataset.targets[8]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("order", ["random", "blocks"])
def test_a_sampler_of_batches_or_of_indices_orders_a_dataloader(tmp_path, workers, order):
    for number in range(30):
        save(tmp_path / "ab"[number % 2] / f"{number}.png", colours(number))
    dataset = H5ImageFolder(h5_of(tmp_path, ext="png"), transforms.ToTensor())
    for batch_size in (4, None):
        sampler = H5Sampler(dataset, batch_size=batch_size, order=order, block_nbytes=5000)
        how = {"batch_sampler": sampler} if batch_size else {"sampler": sampler, "batch_size": 4}
        loader = DataLoader(dataset, num_workers=workers, drop_last=False, **how)
        for epoch in range(2):
            found = [target for _, targets in loader for target in targets.tolist()]
            sampler.set_epoch(epoch)
            flat = np.array(list(sampler)).ravel()
            assert found == [dataset.targets[index] for index in flat]


def test_an_h5folder_is_read_by_whole_batches(tmp_path):
    for number in range(10):
        save(tmp_path / "a" / f"{number}.png", colours(number))
    folder = H5Folder(h5_of(tmp_path, ext="png"))
    loader = DataLoader(folder, sampler=H5Sampler(folder, batch_size=4, order="stored"),
                        batch_size=None)  # fmt: skip
    found = list(loader)
    assert [tuple(batch.shape) for batch in found] == [(4, 20, 30, 3)] * 2
    np.testing.assert_array_equal(torch.cat(found).numpy(), folder[:8])
