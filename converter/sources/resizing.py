"""Say which size an image is resized to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from converter.errors import ConverterError

if TYPE_CHECKING:
    from converter.images.picture import Size

MODES = ("shorter", "longer", "crop", "exact")
FILTERS = ("bicubic", "nearest", "area")
RESIZING = ("resize", "resize_mode", "resize_filter", "quality")  # the flags, without their dashes
DEFAULT_QUALITY = 90
LARGEST_SIDE = 65_535  # pixels; of JPEG too
GAP = 2  # a smaller decode is at least so much too large
_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?", re.ASCII)


@dataclass(frozen=True)
class Resizing:
    """What every image is resized to; travels to the workers.

    Attributes
    ----------
    size : int or (int, int)
        Pixels of a side, or ``(WIDTH, HEIGHT)`` with the mode "exact".
    mode : str
        "shorter": the shorter side becomes ``size`` where it is longer, and the aspect is kept.
        "longer": the longer side does. Neither makes an image larger. "crop": the shorter side
        becomes ``size``, in a smaller image too, and of the longer one the middle is kept, so that
        all arrays are equal and stack. "exact": the array gets this width and height.
    filter : str
        "bicubic", "nearest" (for labels: no values between two) or "area" (the mean).
    quality : int, optional
        Of JPEG and lossy WebP that are encoded again; None is `DEFAULT_QUALITY`.
    """

    size: int | tuple[int, int]
    mode: str = "shorter"
    filter: str = "bicubic"
    quality: int | None = None

    @property
    def options(self) -> dict[str, str | int | None]:
        """Return the values of the flags in `RESIZING`, as a file records them."""
        size = self.size if isinstance(self.size, int) else "x".join(map(str, self.size))
        return dict(zip(RESIZING, (size, self.mode, self.filter, self.quality), strict=True))

    @property
    def flags(self) -> str:
        """Return the flags as they are typed, without those that have their defaults."""
        usual = Resizing(0).options  # no size is usual
        changed = (one for one in self.options.items() if one not in usual.items())
        return " ".join(f"--{name}={value}" for name, value in changed)

    def least(self, size: Size) -> Size | None:
        """Return the least width and height that an image of this size is to be decoded to.

        None: all of it.
        """
        target = target_of(self, size)
        if target is None or self.filter == "nearest":
            return None
        return GAP * target.size[0], GAP * target.size[1]


class Target(NamedTuple):
    """Width and height to come out, and the part of the image that fills them.

    ``box`` is left, top, right and bottom, in pixels.
    """

    size: Size
    box: tuple[float, float, float, float]


def target_of(resizing: Resizing, size: Size) -> Target | None:
    """Return what an image of this width and height becomes; None where it stays as it is.

    The side that follows from the other is rounded, half up, and has at least one pixel. The
    middle of an odd rest lies half a pixel to the left or to the top.
    """
    width, height = size
    whole = Target(size, (0, 0, width, height))
    if isinstance(resizing.size, tuple):
        target = whole._replace(size=resizing.size)
    elif resizing.mode == "crop":
        side = min(size)
        left, top = (width - side) // 2, (height - side) // 2
        target = Target((resizing.size, resizing.size), (left, top, left + side, top + side))
    else:
        side = min(size) if resizing.mode == "shorter" else max(size)
        if side <= resizing.size:
            return None
        sides = (max(1, (2 * n * resizing.size + side) // (2 * side)) for n in size)
        target = whole._replace(size=(next(sides), next(sides)))
    return None if target == whole else target


def parse_size(text: str | int) -> int | tuple[int, int]:
    """Return the size that ``--resize`` names: N, or (WIDTH, HEIGHT).

    Raises ConverterError for anything else, and for a side outside 1..`LARGEST_SIDE`.
    """
    match = _SIZE.fullmatch(str(text)) if not isinstance(text, bool) else None
    sides = tuple(int(side) for side in match.groups() if side is not None) if match else ()
    if not sides or not all(1 <= side <= LARGEST_SIDE for side in sides):
        raise ConverterError(
            f"--resize={text} is no size: give a number of pixels from 1 to {LARGEST_SIDE}, such "
            "as --resize=256, or with --resize_mode=exact WIDTHxHEIGHT, such as --resize=320x240"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def parse_quality(value: str | int) -> int:
    """Return a quality from 1 to 100. Raises ConverterError."""
    if re.fullmatch(r"0*([1-9][0-9]?|100)", str(value)) and not isinstance(value, bool):
        return int(value)
    raise ConverterError(f"--quality must be a whole number from 1 to 100, not {value}")


def check_resizing(resizing: Resizing, *, store: str) -> None:
    """Raise ConverterError where the parts of a resizing do not fit together, or to the store."""
    is_exact, is_pair = resizing.mode == "exact", isinstance(resizing.size, tuple)
    if is_exact and not is_pair:
        raise ConverterError(
            f"--resize_mode=exact needs both sides, and --resize={resizing.size} names one: give "
            f"--resize=WIDTHxHEIGHT, such as --resize={resizing.size}x{resizing.size}"
        )
    if isinstance(resizing.size, tuple) and not is_exact:
        width, height = resizing.size
        raise ConverterError(
            f"--resize={width}x{height} names both sides, and --resize_mode={resizing.mode} needs "
            "one: give --resize=N, or add --resize_mode=exact"
        )
    quality = resizing.quality
    if quality is not None and store != "encoded":
        raise ConverterError(
            f"--quality={quality} is for images that are encoded again: add --store=encoded, or "
            "drop it"
        )
