"""Make images, and read them as Pillow does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import PIL.Image


def colours(seed: int = 0, shape: tuple[int, ...] = (20, 30, 3)) -> np.ndarray:
    """Return smooth random colours, such as a photo has."""
    noise = np.random.default_rng(seed).integers(0, 256, shape)
    return (np.cumsum(noise, axis=1) // 7 % 256).astype(np.uint8)


def noise(seed: int, shape: tuple[int, ...] = (90, 120, 3), dtype: str = "u1") -> np.ndarray:
    """Return random bytes, which nothing makes smaller, as numbers of any type."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8).astype(dtype)


def save(path: Path, array: np.ndarray | None = None, **options: Any) -> Path:
    """Save an image with Pillow, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(colours() if array is None else array).save(path, **options)
    return path


def save_jpegs(folder: Path, names: list[str]) -> Path:
    """Save a small JPEG, each another one, under each name below a folder."""
    for number, name in enumerate(names):
        save(folder / name, colours(number), format="JPEG")
    return folder


def save_frames(path: Path, *, count: int = 3, **options: Any) -> None:
    """Save an image of several frames with Pillow."""
    frames = [PIL.Image.fromarray(colours(seed)) for seed in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


def save_tiff(path: Path, array: np.ndarray, **options: Any) -> None:
    """Save an array of any dtype as TIFF."""
    import tifffile

    photometric = "rgb" if array.shape[-1] == 3 else "minisblack"
    tifffile.imwrite(path, array, photometric=photometric, **options)


def as_pillow_reads(path: Path) -> np.ndarray:
    return iio.imread(path, plugin="pillow")
