"""Make photos: JPEG files whose decoding costs what that of real ones costs.

    python tests/helpers/photos.py FOLDER --count=1000
    python tests/helpers/photos.py FOLDER --count=1000 --shapes=many --masks

The photos lie in ten folders, class_0 to class_9. They are 500 x 375 and take about 110 KB, as
those of ImageNet; with ``--shapes=many`` there are about 400 shapes among 1,000. With ``--masks``
they lie below images, and below masks is a PNG of class ids for each. The same command makes the
same files. Real photos hold as much detail at each scale, and surfaces that hide each other: so
do these.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

CLASSES = 10
HEIGHT, WIDTH = 375, 500
USUAL_SHAPES = ((375, 500), (333, 500), (500, 375), (500, 500), (334, 500))
CANVAS = 900  # pixels; photos are cut out of canvases, at most so large
SURFACES = 4  # in a photo
QUALITIES = (90, 95)  # of JPEG, from and to


class Photo(NamedTuple):
    """A photo and what is where in it."""

    pixels: np.ndarray
    """``(H, W, 3)`` uint8."""
    classes: np.ndarray
    """``(H, W)`` uint8: 0 to ``SURFACES`` - 1."""
    quality: int
    """Which quality of JPEG to save it with."""


def make_photos(
    folder: str | os.PathLike[str], count: int, *, many_shapes: bool = False, masks: bool = False
) -> None:
    """Write ``count`` photos below a new or empty folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"photos.py: {folder} is not empty: name a new one")
    for name in [f"class_{number}" for number in range(CLASSES)]:
        (folder / "images" / name if masks else folder / name).mkdir(parents=True)
        if masks:
            (folder / "masks" / name).mkdir(parents=True)
    for number, photo in enumerate(photos(count, many_shapes=many_shapes)):
        name = f"class_{number % CLASSES}/{number:06d}"
        path = folder / "images" / name if masks else folder / name
        image = PIL.Image.fromarray(photo.pixels)
        image.save(path.with_suffix(".jpg"), quality=photo.quality)
        if masks:
            PIL.Image.fromarray(photo.classes).save(folder / "masks" / f"{name}.png")


def photos(count: int, *, many_shapes: bool = False) -> Iterator[Photo]:
    """Draw photos; each depends on its number alone."""
    canvases = _canvases()
    for number in range(count):
        random = np.random.default_rng([1, number])
        shape = _shape(random) if many_shapes else (HEIGHT, WIDTH)
        yield _photo(canvases, shape, random)


def _shape(random: np.random.Generator) -> tuple[int, int]:
    """Draw a height and width as often as they are met among photos of the web."""
    kind = random.random()
    if kind < 0.5:
        return USUAL_SHAPES[min(random.geometric(0.5) - 1, len(USUAL_SHAPES) - 1)]
    if kind < 0.8:  # the long side was cut to 500 pixels
        short = int(random.integers(250, 500))
        return (short, WIDTH) if random.random() < 0.7 else (WIDTH, short)
    height, width = random.integers(120, 800, 2)
    return int(height), int(width)


class _Canvases(NamedTuple):
    """What photos are cut out of, all of ``CANVAS`` x ``CANVAS``."""

    details: list[np.ndarray]
    """Surfaces, ``(CANVAS, CANVAS, 3)`` float32 around 0."""
    outlines: list[np.ndarray]
    """Smooth heights, ``(CANVAS, CANVAS)`` float32: where they pass a level is an outline."""


@functools.lru_cache(maxsize=1)
def _canvases() -> _Canvases:
    random = np.random.default_rng(0)
    details = []
    for _ in range(3):
        light, *tints = (_noise(random, 1.0) for _ in range(3))
        red, blue = (light + 0.3 * tint for tint in tints)
        details.append(np.stack([red, light, blue], axis=2))
    return _Canvases(details, [_noise(random, 1.9) for _ in range(3)])


def _noise(random: np.random.Generator, slope: float) -> np.ndarray:
    """Return noise whose amplitude falls as frequency to the power of ``-slope``.

    Photos have a slope of about 1 (Field, 1987). The noise has mean 0 and deviation 1.
    """
    rows = np.fft.fftfreq(CANVAS)[:, None]
    columns = np.fft.rfftfreq(CANVAS)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.standard_normal((CANVAS, CANVAS))) / frequency**slope
    noise = np.fft.irfft2(spectrum, s=(CANVAS, CANVAS))
    return (noise / noise.std()).astype(np.float32)


def _photo(canvases: _Canvases, shape: tuple[int, int], random: np.random.Generator) -> Photo:
    pixels = _surface(canvases, shape, random)
    classes = np.zeros(shape, np.uint8)
    for number in range(1, SURFACES):
        outline = _cut(canvases.outlines, shape, random)
        sharpness = random.uniform(10, 60)
        covered = (outline - np.quantile(outline[::8, ::8], random.uniform(0.5, 0.8))) * sharpness
        np.clip(covered, 0, 1, out=covered)  # edges are a few pixels wide
        pixels += covered[:, :, None] * (_surface(canvases, shape, random) - pixels)
        classes[covered > 0.5] = number
    np.clip(pixels, 0, 255, out=pixels)
    return Photo(pixels.astype(np.uint8), classes, int(random.integers(*QUALITIES)))


def _surface(
    canvases: _Canvases, shape: tuple[int, int], random: np.random.Generator
) -> np.ndarray:
    """Return one colour with details: ``(H, W, 3)`` float32 around 0 to 255."""
    colour = random.uniform(60, 200, 3).astype(np.float32)
    contrast = np.float32(random.uniform(15, 60))
    return _cut(canvases.details, shape, random) * contrast + colour


def _cut(
    canvases: list[np.ndarray], shape: tuple[int, int], random: np.random.Generator
) -> np.ndarray:
    """Return a random part of a random canvas, mirrored at random: a view."""
    canvas = canvases[random.integers(len(canvases))]
    top, left = (int(random.integers(CANVAS - length + 1)) for length in shape)
    part = canvas[top : top + shape[0], left : left + shape[1]]
    return part[:: random.choice([-1, 1]), :: random.choice([-1, 1])]


def main(argv: list[str] | None = None) -> int:
    """Make what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", metavar="FOLDER", help="a new or empty folder")
    parser.add_argument("--count", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--shapes", choices=("one", "many"), default="one", help="(default: one)")
    parser.add_argument("--masks", action="store_true", help="add masks of class ids")
    parsed = parser.parse_args(argv)
    many_shapes = parsed.shapes == "many"
    make_photos(parsed.folder, parsed.count, many_shapes=many_shapes, masks=parsed.masks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
