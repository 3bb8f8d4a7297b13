"""The datasets of benchmark.py, their transforms and its collate fit together."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

import benchmark
from helpers.arrays import make_h5

torch = pytest.importorskip("torch")
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler  # noqa: E402

BOTH = pytest.mark.parametrize("images", [benchmark.H5pyImages, benchmark.H5FolderImages])
Pair = namedtuple("Pair", "image label")
TRANSFORMS = {
    "no": None,
    "array": lambda array: array[:4, ::-1],
    "big-endian": lambda array: array.astype(">i4"),
    "tensor": lambda array: torch.from_numpy(array).permute(2, 0, 1) / 255,
    "image and label": lambda array: (array, 7),
    "tensor and text": lambda array: (torch.from_numpy(array), "cat"),
    "dict": lambda array: {"image": array, "label": 7, "boxes": np.zeros((array[0, 0, 0] % 3, 4))},
    "named": lambda array: Pair(array, 7),
    "two views": lambda array: [array, torch.from_numpy(array)],
    "number": lambda array: float(array.mean()),
    "numpy number": lambda array: array.max(),
    "picture": Image.fromarray,
    "nothing": lambda array: None,
    "other": lambda array: {"label": array.min(), "more": (array, [1, 2])},
}


@BOTH
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("is_equal", [True, False])
def test_collate_takes_what_any_transform_gives(tmp_path, images, name, is_equal):
    shapes = [(5, 6, 3)] * 4 if is_equal else [(5, 6, 3), (7, 6, 3), (5, 6, 3), (5, 8, 3)]
    random = np.random.default_rng(2)
    samples = {f"{n}.npy": random.integers(0, 256, s, np.uint8) for n, s in enumerate(shapes)}
    transform = TRANSFORMS[name]
    dataset = images(make_h5(tmp_path, samples), transform=transform)
    [batch] = DataLoader(dataset, batch_size=4, collate_fn=benchmark.collate)
    expected = [one if transform is None else transform(one) for one in samples.values()]
    compare(batch, expected)
    [batch] = DataLoader(
        dataset,
        batch_size=None,
        sampler=BatchSampler(SequentialSampler(dataset), 4, drop_last=False),
        collate_fn=benchmark.collate,
    )
    compare(batch, expected)


def compare(batch, expected):
    """Compare a batch with the samples it was made of, field by field."""
    first = expected[0]
    if isinstance(first, dict):
        for key in first:
            compare(batch[key], [sample[key] for sample in expected])
    elif isinstance(first, (tuple, list)):
        assert type(batch) is type(first)
        for n, field in enumerate(batch):
            compare(field, [sample[n] for sample in expected])
    elif isinstance(first, (str, Image.Image, type(None))):
        assert batch == expected
    else:
        if len({np.shape(sample) for sample in expected}) == 1:
            assert isinstance(batch, torch.Tensor)
        for one, other in zip(batch, expected, strict=True):
            assert isinstance(one, torch.Tensor)
            assert np.array_equal(one.numpy(), np.asarray(other))
