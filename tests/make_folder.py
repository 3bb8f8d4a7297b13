"""Make a folder of many small files, to try a conversion at scale.

    python tests/make_folder.py FOLDER --count=1000000 --nested

Each file is a JSON list of numbers of about 100 bytes, which my_read of my_functions.py reads
as shipped (--ext=json --custom_read_func); with ``--jpeg`` it is a JPEG of 32 x 32 pixels, with
``--photo`` one of 500 x 375 and about 110 KB, which takes as long to decode as a photo.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
from collections.abc import Iterator

FILES_IN_FOLDER = 100
FILES_IN_SUPERFOLDER = 100 * FILES_IN_FOLDER
NUMBERS = 20
JPEGS = 200  # different ones: encoding each anew would take longer than writing it
SIDE = 32
PHOTOS = 50  # different ones
PHOTO_SHAPE = (375, 500, 3)


def make_folder(
    folder: str, count: int, *, nested: bool = False, jpeg: bool = False, photo: bool = False
) -> None:
    """Write ``count`` files below a new or empty folder."""
    os.makedirs(folder, exist_ok=True)
    if os.listdir(folder):
        raise SystemExit(f"make_folder.py: {folder} is not empty: name a new one")
    contents = _photos() if photo else _jpegs() if jpeg else _lists()
    extension = ".jpg" if jpeg or photo else ".json"
    inner = folder
    for number in range(count):
        if nested and number % FILES_IN_FOLDER == 0:
            inner = os.path.join(
                folder,
                f"{number // FILES_IN_SUPERFOLDER:04d}",
                f"{number // FILES_IN_FOLDER % 100:02d}",
            )
            os.makedirs(inner)
        file = os.open(f"{inner}/{number:08d}{extension}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(file, next(contents))
        os.close(file)


def _lists() -> Iterator[bytes]:
    numbers = random.Random(0)
    while True:  # four digits each, so that all files are of one length
        row = ", ".join(str(numbers.randrange(1000, 10000)) for _ in range(NUMBERS))
        yield f"[{row}]".encode()


def _jpegs() -> Iterator[bytes]:
    import numpy as np
    import PIL.Image

    noise = np.random.default_rng(0)
    made = []
    for _ in range(JPEGS):
        content = io.BytesIO()
        pixels = noise.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(content, "JPEG", quality=50)
        made.append(content.getvalue())
    while True:
        yield from made


def _photos() -> Iterator[bytes]:
    """Yield waves of a few colours under the noise of a camera."""
    import numpy as np
    import PIL.Image

    random = np.random.default_rng(0)
    height, width, channels = PHOTO_SHAPE
    y, x, _ = np.mgrid[:height, :width, :1] / width
    made = []
    for _ in range(PHOTOS):
        pixels = random.normal(128, 20, PHOTO_SHAPE)
        for scale in (3, 10, 40):
            fx, fy, phase = random.normal(0, scale, (3, channels))
            pixels += 40 * scale**-0.3 * np.sin(fx * x + fy * y + phase)
        content = io.BytesIO()
        image = PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(content, "JPEG", quality=92)
        made.append(content.getvalue())
    while True:
        yield from made


def main(argv: list[str] | None = None) -> int:
    """Make what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", metavar="FOLDER", help="a new or empty folder")
    parser.add_argument("--count", type=int, default=1_000_000, help="(default: 1000000)")
    parser.add_argument("--nested", action="store_true", help="100 files a folder, else flat")
    parser.add_argument("--jpeg", action="store_true", help="JPEG of 32 x 32, else JSON lists")
    parser.add_argument("--photo", action="store_true", help="JPEG of 500 x 375")
    parsed = parser.parse_args(argv)
    kinds = {"jpeg": parsed.jpeg, "photo": parsed.photo}
    make_folder(parsed.folder, parsed.count, nested=parsed.nested, **kinds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
