"""Decide what becomes of each sample of a batch: its partners, its flips, its cut."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from converter.cropping.draws import Draws, flips
from converter.cropping.geometry import Cut, ImpossibleCropError
from converter.cropping.resizing import MOST_CHANNELS
from converter.format.layout import Layout
from converter.loader.encoded_file import EncodedFile
from converter.loader.h5folder import H5Folder, Source
from converter.loader.several_files import SeveralFiles
from converter.training.labels import Selection

IMAGE, LABEL, POSITION = "image", "label", "position"
#: Of images that are cropped at once. Those of 3 KB took 3 us each where rows take 17, of 12 KB 17
#: and 24, of 48 KB 49 and 38: new memory, written three times, then costs more than Python.
MOST_GATHERED_NBYTES = 16 << 10
PartnerOf = Callable[[str], Any]
Column = tuple[np.ndarray, np.ndarray]  # numbers of folders, and positions in them


@dataclass(frozen=True)
class Recipe:
    """What is done with each sample.

    ``folders[0]`` holds the samples, the others partners of them. ``partners`` tells which names
    are masks. ``exact_decode``: no JPEG is decoded to a part of its size.
    """

    folders: tuple[H5Folder, ...]
    crop: Any = None
    hflip: float = 0.0
    vflip: float = 0.0
    channels: int | None = None
    antialias: bool = True
    is_nearest: bool = False
    exact_decode: bool = False
    transform: Callable[..., Any] | None = None
    seed: int = 0
    partners: Mapping[str, bool] = field(default_factory=dict)

    @functools.cached_property
    def has_flips(self) -> bool:
        """Tell whether some samples are mirrored."""
        return bool(self.hflip or self.vflip)

    @functools.cached_property
    def is_gathered(self) -> bool:
        """Tell whether many samples are copied at once: as they are, or a window of small ones."""
        if self.partners and (self.has_flips or self.channels or self.crop):
            return False  # which might be of other sizes
        return not (self.transform or (self.crop and getattr(self.crop, "resizes", True)))

    def gathers(self, layout: Layout) -> bool:
        """Tell whether `is_gathered` is meant for arrays of a layout."""
        shape = layout.shape
        if self.channels and shape[2:] != (self.channels,):
            return False
        return not self.crop or (is_image(shape) and layout.nbytes <= MOST_GATHERED_NBYTES)


class Request(NamedTuple):
    """The samples of one batch: positions in ``folders[0]``, and their partners by name."""

    epoch: int
    positions: np.ndarray
    partners: dict[str, Column]

    def rows(self, first: int, stop: int) -> Request:
        some = slice(first, stop)
        partners = {name: (a[some], b[some]) for name, (a, b) in self.partners.items()}
        return Request(self.epoch, self.positions[some], partners)


def with_partners(
    recipe: Recipe, selection: Selection, functions: dict[str, tuple[bool, PartnerOf]]
) -> tuple[Recipe, dict[str, Column]]:
    """Return a recipe that knows the partners of all selected samples, and these by name.

    Raises ValueError where one is missing.
    """
    folders = [*recipe.folders]
    key = folders[0]._open().source.keys.key
    keys = [key(position) for position in selection.positions] if functions else []
    columns = {
        name: _column(name, keys, list(map(function, keys)), folders)
        for name, (_, function) in functions.items()
    }
    kinds = {name: is_mask for name, (is_mask, _) in functions.items()}
    return replace(recipe, folders=tuple(folders), partners=kinds), columns


def _column(name: str, keys: list[str], partners: list[Any], folders: list[H5Folder]) -> Column:
    """Return where the partners of one name are; add their folders to those known."""
    numbers = np.zeros(len(keys), np.int64)
    names = []
    for n, partner in enumerate(partners):
        if isinstance(partner, tuple) and len(partner) == 2:
            numbers[n], partner = _number(name, partner[0], folders), partner[1]
        if not isinstance(partner, str):
            raise ValueError(
                f"the function of {name!r} returned {partner!r} for {keys[n]!r}: return a key, "
                "or (H5Folder, key)"
            )
        names.append(partner)
    positions = np.empty(len(keys), np.int64)
    for number in np.unique(numbers).tolist():
        chosen = np.flatnonzero(numbers == number)
        found = folders[number]._open().source.keys.find_all([names[n] for n in chosen])
        if (found < 0).any():
            n = int(chosen[np.argmin(found)])
            raise ValueError(
                f"{keys[n]!r} has no {name}: {names[n]!r} is not in {folders[number].path}; "
                "select samples that have one with keys="
            )
        positions[chosen] = found
    return numbers, positions


def _number(name: str, folder: Any, folders: list[H5Folder]) -> int:
    for number, known in enumerate(folders):
        if known is folder:
            return number
    if not isinstance(folder, H5Folder):
        raise ValueError(
            f"the function of {name!r} returned a pair with a {type(folder).__name__}: return "
            "a key, or (H5Folder, key)"
        )
    folders.append(folder)
    return len(folders) - 1


def checked_partners(
    masks: Mapping[str, PartnerOf] | None, images: Mapping[str, PartnerOf] | None
) -> dict[str, tuple[bool, PartnerOf]]:
    """Return for each name whether it is a mask, and its function."""
    partners: dict[str, tuple[bool, PartnerOf]] = {}
    for argument, functions in (("masks", masks or {}), ("images", images or {})):
        for name, function in functions.items():
            if name in (IMAGE, LABEL, POSITION) or name in partners:
                raise ValueError(f"{argument} gives the name {name!r} twice: take another name")
            if not callable(function):
                raise ValueError(f"{argument}[{name!r}] is no function: give one of the key")
            partners[name] = argument == "masks", function
    return partners


class Picture:
    """One stored array: its shape is known, and what is asked for is read."""

    __slots__ = ("_array", "_encoded", "_position", "_source", "dtype", "shape")

    def __init__(
        self,
        source: Source,
        position: int,
        layout: Layout | None,
        reducible_shape: tuple[int, ...] | None = None,
    ) -> None:
        self._source, self._position = source, position
        self._array: np.ndarray | None = None
        self._encoded: EncodedFile | SeveralFiles | None = None  # where it can be reduced
        self.shape: tuple[int, ...]
        self.dtype: np.dtype[Any]
        if layout is not None:
            self.shape, self.dtype = layout.shape, layout.dtype
            return
        if reducible_shape is not None and isinstance(source, EncodedFile | SeveralFiles):
            self._encoded, self.shape, self.dtype = source, reducible_shape, np.dtype(np.uint8)
            return
        self._array = source.read(position)  # only decoding tells
        self.shape, self.dtype = self._array.shape, self._array.dtype

    @property
    def key(self) -> str:
        return self._source.keys.key(self._position)

    def read(self, cut: Cut | None) -> np.ndarray:
        """Return the box of a cut; None: all. A large JPEG may give its box reduced."""
        array = self._array
        if cut is None:
            return self._source.view(self._position) if array is None else array
        if self._encoded is not None and (reduced := self._reduced(self._encoded, cut)) is not None:
            return reduced
        if array is None:
            rows = self._source.view(self._position, cut.top, cut.height)
        else:
            rows = array[cut.top : cut.top + cut.height]
        return rows[:, cut.left : cut.left + cut.width]

    def _reduced(self, encoded: EncodedFile | SeveralFiles, cut: Cut) -> np.ndarray | None:
        """Return the box of a JPEG at least twice as large as needed, from a smaller decode.

        It takes about half the time.
        """
        if (factor := cut.reduction()) == 1:
            return None
        reduced = encoded.reduced(self._position, factor)
        if reduced is None:
            return None
        cut = cut.reduced(factor)
        return reduced[cut.top :, cut.left :][: cut.height, : cut.width]


class Way(NamedTuple):
    """How a sample, and its partners, become a row of a batch."""

    row: int
    cut: Cut | None
    hflip: bool
    vflip: bool


class _Samples:
    """Samples, or their partners, of a part of a batch: what lies where."""

    def __init__(self, folder: H5Folder, positions: np.ndarray) -> None:
        self.source = folder._open().source
        self.positions = positions.tolist()
        numbered = self.source.placed(positions).numbers.tolist()
        known = {number: self.source.layout(number) for number in set(numbered)}
        self.layouts = [known[number] for number in numbered]

    def picture(self, n: int, reducible_shape: tuple[int, ...] | None = None) -> Picture:
        return Picture(self.source, self.positions[n], self.layouts[n], reducible_shape)


class Plan:
    """What becomes of each sample of a batch, worked out and drawn for all of them at once."""

    def __init__(self, recipe: Recipe, request: Request) -> None:
        self.request = request
        self.samples = _Samples(recipe.folders[0], request.positions)
        self.partners = {
            name: _opening(recipe.folders, *column) for name, column in request.partners.items()
        }
        self.draws = Draws(recipe.seed, request.epoch, request.positions)
        self.reducible = self._reducible_shapes(recipe)
        cuts = self._cuts_of_known(recipe)
        flipped = [row.tolist() for row in flips(self.draws, recipe.hflip, recipe.vflip)]
        # at once: behind a crop, which empties the caches, Python takes thrice as long for it
        self.ways = list(map(Way._make, zip(itertools.count(), cuts, *flipped)))

    def _reducible_shapes(self, recipe: Recipe) -> list[tuple[int, ...] | None]:
        """Return the shapes of the JPEGs that may be decoded to a part of their size."""
        samples = self.samples
        shapes: list[tuple[int, ...] | None] = [None] * len(samples.positions)
        source = samples.source
        if recipe.crop is None or recipe.is_nearest or recipe.exact_decode:
            return shapes
        if isinstance(source, EncodedFile | SeveralFiles):
            for n, position in enumerate(samples.positions):
                if samples.layouts[n] is None:
                    shapes[n] = source.reducible_shape(position)
        return shapes

    def _cuts_of_known(self, recipe: Recipe) -> list[Cut | None]:
        """Return the cuts of images whose shapes are known without decoding them.

        None for others. Where one cannot be cropped, each is asked by itself.
        """
        layouts, positions = self.samples.layouts, self.request.positions
        cuts: list[Cut | None] = [None] * len(layouts)
        if recipe.crop is None:
            return cuts
        shapes = [
            shape if layout is None else layout.shape
            for layout, shape in zip(layouts, self.reducible, strict=True)
        ]
        sides = {shape: shape and is_image(shape) and shape[:2] for shape in set(shapes)}
        rows = [n for n, shape in enumerate(shapes) if sides[shape]]
        if not rows:
            return cuts
        draws = self.draws
        if len(rows) < len(cuts):
            draws = Draws(recipe.seed, self.request.epoch, positions[rows])
        heights, widths = np.array([sides[shapes[n]] for n in rows]).T
        try:
            drawn = recipe.crop.geometry(heights, widths, draws).cuts()
        except ImpossibleCropError:
            return cuts
        for n, cut in zip(rows, drawn, strict=True):
            cuts[n] = cut
        return cuts


def _opening(
    folders: tuple[H5Folder, ...], numbers: np.ndarray, positions: np.ndarray
) -> list[Callable[[], Picture]]:
    """Return what opens each of the partners of one name."""
    column: list[Any] = [None] * len(positions)
    for number in np.unique(numbers).tolist():
        chosen = np.flatnonzero(numbers == number)
        samples = _Samples(folders[number], positions[chosen])
        for n, row in enumerate(chosen.tolist()):
            column[row] = functools.partial(samples.picture, n)
    return column


def is_image(shape: tuple[int, ...]) -> bool:
    """Tell whether an array of a shape can be cropped as an image."""
    return len(shape) == 2 or (len(shape) == 3 and 1 <= shape[2] <= MOST_CHANNELS)
