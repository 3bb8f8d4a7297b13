"""Make arrays, and small HDF5 files of them through the converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from converter.cli import main
from helpers.run import read_with


def make_h5(folder: Path, samples: dict[str, Any], *, compression: str = "none") -> Path:
    """Store arrays, and texts under keys in .txt, in ``folder``/out.h5 through the converter."""
    source = folder / "source"
    for key, value in samples.items():
        path = source / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if key.endswith(".txt"):
            path.write_text(value, encoding="utf-8")
        else:
            with path.open("wb") as file:
                np.save(file, value)
    output = folder / "out.h5"
    status = main(
        [f"--path_images={source}", f"--path_output={output}", "--ext=npy,txt", "--workers=1",
         *read_with("load_npy.py"), f"--compression={compression}", "--overwrite", "--quiet"]
    )  # fmt: skip
    assert status == 0
    return output


def equal_samples(count: int, shape: tuple[int, ...] = (4, 5, 3)) -> dict[str, np.ndarray]:
    """Return uint8 arrays of one shape in two folders, all different."""
    random = np.random.default_rng(7)
    return {
        f"{'ab'[n % 2]}/{n:04d}.npy": random.integers(0, 256, shape, np.uint8) for n in range(count)
    }


def smooth(shape: tuple[int, ...], dtype: str = "<u2") -> np.ndarray:
    """Return an array that deflates well and differs everywhere."""
    return (np.arange(np.prod(shape)) // 7).astype(dtype).reshape(shape)


def stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """Stack arrays as they are; numpy.stack makes big-endian numbers native."""
    batch = np.empty((len(arrays), *arrays[0].shape), arrays[0].dtype)
    for n, array in enumerate(arrays):
        batch[n] = array
    return batch
