"""Draw the sample images in ``tests/images``: a few KB of each kind of image.

Run it from anywhere; it draws into the ``images`` folder beside it, or into a folder given
as its only argument. The drawings come from arithmetic alone, so the pixels are the same on
every machine; the encoded bytes may differ with the version of Pillow or tifffile.

==================================  ======================================================
train/cat/ginger.jpg                JPEG, RGB, colour at half resolution both ways (4:2:0)
train/cat/tabby.JPG                 JPEG, RGB, colour at half resolution across (4:2:2)
train/cat/black.jpg                 JPEG, RGB, colour at full resolution (4:4:4)
train/cat/grey.jpg                  JPEG, gray
train/ball/progressive.jpg          JPEG, RGB, progressive
train/ball/print.jpg                JPEG, CMYK
train/ball/rotated.jpg              JPEG, RGB, stored on its side: EXIF orientation 6
train/ball/photo.png                PNG, 8-bit RGB
train/ball/sticker.png              PNG, 8-bit RGBA
masks/cat/ginger.png                PNG, palette: class ids 0 background, 1 cat, 2 eye
masks/cat/ginger_edge.png           PNG, 1 bit
masks/depth.png                     PNG, 16-bit gray
masks/stack.tif                     TIFF, 16-bit gray, 5 pages
jump.gif                            GIF, 6 frames
==================================  ======================================================
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

FOLDER = Path(__file__).resolve().parent / "images"
HEIGHT, WIDTH = 72, 96

BACKGROUND, CAT, EYE = 0, 1, 2
CLASS_COLOURS = {BACKGROUND: (0, 0, 0), CAT: (128, 0, 0), EYE: (0, 128, 0)}
WALL = (150, 190, 225)
FURS = {"ginger.jpg": (215, 130, 50), "tabby.JPG": (140, 120, 95), "black.jpg": (40, 38, 42)}


def draw_all(folder: Path = FOLDER) -> None:
    """Write every sample image below ``folder``."""
    for name in ("train/cat", "train/ball", "masks/cat"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    draw_cats(folder / "train" / "cat")
    draw_balls(folder / "train" / "ball")
    draw_masks(folder / "masks")
    draw_jump(folder / "jump.gif")


def draw_cats(folder: Path) -> None:
    subsamplings = ("4:2:0", "4:2:2", "4:4:4")
    for (name, fur), subsampling in zip(FURS.items(), subsamplings, strict=True):
        Image.fromarray(cat(fur)).save(folder / name, "JPEG", quality=85, subsampling=subsampling)
    Image.fromarray(cat((125, 125, 125))).convert("L").save(folder / "grey.jpg", quality=85)


def draw_balls(folder: Path) -> None:
    colours = Image.fromarray(ball())
    colours.save(folder / "progressive.jpg", quality=85, progressive=True)
    colours.convert("CMYK").save(folder / "print.jpg", quality=85)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: whoever shows it turns it a quarter clockwise
    on_its_side = Image.fromarray(np.rot90(ball()).copy())
    on_its_side.save(folder / "rotated.jpg", quality=85, exif=exif)
    colours.save(folder / "photo.png")
    alpha = np.where(disc(36, 48, 28), 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([ball(), alpha])).save(folder / "sticker.png")


def draw_masks(folder: Path) -> None:
    classes = cat_classes()
    mask = Image.fromarray(classes)
    mask.putpalette([value for ids in sorted(CLASS_COLOURS) for value in CLASS_COLOURS[ids]])
    mask.save(folder / "cat" / "ginger.png")
    inside = classes != BACKGROUND
    edge = inside & ~np.roll(inside, 1, 0) | inside & ~np.roll(inside, 1, 1)
    edge |= inside & ~np.roll(inside, -1, 0) | inside & ~np.roll(inside, -1, 1)
    Image.fromarray(edge).save(folder / "cat" / "ginger_edge.png")
    Image.fromarray(depth_mm(height_mm=900)).save(folder / "depth.png")
    stack = np.stack([depth_mm(height_mm=180 * page) for page in range(1, 6)])
    tifffile.imwrite(
        folder / "stack.tif", stack, photometric="minisblack", metadata=None, compression="zlib"
    )


def draw_jump(path: Path) -> None:
    frames = []
    for height in (0, 14, 22, 25, 22, 14):
        scene = np.full((HEIGHT, WIDTH, 3), WALL, np.uint8)
        scene[60:] = (90, 150, 80)
        scene[disc(50 - height, 48, 10)] = (220, 40, 40)
        frames.append(Image.fromarray(scene).quantize(8))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, loop=0)


def cat(fur: tuple[int, int, int]) -> np.ndarray:
    """Return the face of a cat, ``(H, W, 3)``."""
    classes = cat_classes()
    scene = np.full((HEIGHT, WIDTH, 3), WALL, np.uint8)
    scene[classes == CAT] = fur
    scene[classes == EYE] = (90, 200, 60)
    return shaded(scene)


def cat_classes() -> np.ndarray:
    """Return class ids, ``(H, W)``: a head, two ears, two eyes."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    head = disc(44, 48, 24)
    ears = [
        (np.abs(columns - centre) <= (rows - 6) // 2) & (rows >= 6) & (rows < 34)
        for centre in (33, 63)
    ]
    classes = np.where(head | ears[0] | ears[1], CAT, BACKGROUND)
    classes[disc(40, 39, 5) | disc(40, 57, 5)] = EYE
    return classes.astype(np.uint8)


def ball() -> np.ndarray:
    """Return a striped ball on a wall, ``(H, W, 3)``."""
    columns = np.arange(WIDTH)[None, :]
    scene = np.full((HEIGHT, WIDTH, 3), WALL, np.uint8)
    scene[disc(36, 48, 28)] = (220, 40, 40)
    scene[disc(36, 48, 28) & (columns // 8 % 2 == 0)] = (245, 235, 220)
    return shaded(scene)


def depth_mm(*, height_mm: int) -> np.ndarray:
    """Return distances from above in mm, ``(H, W)`` uint16: a half ball on a sloping floor."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    floor = 5000 + 10 * columns
    outside = np.clip((rows - 36) ** 2 + (columns - 48) ** 2, 0, 28**2)
    return (floor - height_mm * (28**2 - outside) // 28**2).astype(np.uint16)


def disc(row: int, column: int, radius: int) -> np.ndarray:
    """Return where a disc lies, ``(H, W)`` bool."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)


def shaded(scene: np.ndarray) -> np.ndarray:
    """Darken a scene towards the lower right, so that no two pixels need be the same."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    light = 256 - (rows + columns) // 2
    return (scene.astype(np.int64) * light[:, :, None] // 256).astype(np.uint8)


if __name__ == "__main__":
    draw_all(*(Path(argument) for argument in sys.argv[1:2]))
