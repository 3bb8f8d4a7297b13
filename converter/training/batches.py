"""Fill the rows of a batch: read each sample, crop it, and hand it to the user's transform."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from converter.cropping.draws import Draws, flips
from converter.cropping.geometry import CropError, Cut, ImpossibleCropError
from converter.cropping.resizing import MOST_CHANNELS, Resizer, mirror_one, mirror_rows, windows
from converter.errors import ConverterError, LoadError, describe
from converter.format.layout import Layout
from converter.loader.encoded_file import EncodedFile
from converter.loader.h5folder import H5Folder, Source
from converter.loader.selection import stacked
from converter.loader.several_files import SeveralFiles
from converter.training.buffers import Arrays, Buffers, MismatchError

IMAGE = "image"
#: Files of these kinds that have four channels hold CMYK, or may hold it.
CMYK_EXTENSIONS = {"jpg", "jpeg", "jpe", "jfif", "mpo", "tif", "tiff"}
PARTS_A_THREAD = 4
ROWS_PROBED = 4
#: Of images that are cropped at once. Those of 3 KB took 3 us each where rows take 17, of 12 KB 17
#: and 24, of 48 KB 49 and 38: new memory, written three times, then costs more than Python.
MOST_GATHERED_NBYTES = 16 << 10
LEAST_ROWS = 4  # in a part: to hand one to a thread takes a tenth of the time of a crop


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

    @property
    def has_flips(self) -> bool:
        """Tell whether some samples are mirrored."""
        return bool(self.hflip or self.vflip)

    @property
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
        return not self.crop or (_is_image(shape) and layout.nbytes <= MOST_GATHERED_NBYTES)


class Request(NamedTuple):
    """The samples of one batch: positions in ``folders[0]``, and of their partners by name.

    Partners are two columns: the numbers of folders, and positions in them.
    """

    epoch: int
    positions: np.ndarray
    partners: dict[str, tuple[np.ndarray, np.ndarray]]

    def rows(self, first: int, stop: int) -> Request:
        """Return a part of it."""
        some = slice(first, stop)
        partners = {name: (a[some], b[some]) for name, (a, b) in self.partners.items()}
        return Request(self.epoch, self.positions[some], partners)


class RowError(Exception):
    """What went wrong at one row of a batch."""

    def __init__(self, row: int, error: BaseException) -> None:
        super().__init__(row, error)
        self.row, self.error = row, error


class _Picture:
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
        if cut is not None and (reduced := self._reduced(cut)) is not None:
            return reduced
        array = self._array
        if self._encoded is not None:
            array = self._source.read(self._position)
        if cut is None:
            return self._source.view(self._position) if array is None else array
        if array is None:
            rows = self._source.view(self._position, cut.top, cut.height)
        else:
            rows = array[cut.top : cut.top + cut.height]
        return rows[:, cut.left : cut.left + cut.width]

    def _reduced(self, cut: Cut) -> np.ndarray | None:
        """Return the box of a JPEG at least twice as large as needed, from a smaller decode.

        It takes about half the time.
        """
        factor = cut.reduction() if self._encoded else 1
        if self._encoded is None or factor <= 1:
            return None
        reduced = self._encoded.reduced(self._position, factor)
        if reduced is None:
            return None
        cut = cut.reduced(factor)
        return reduced[cut.top :, cut.left :][: cut.height, : cut.width]


class _Way(NamedTuple):
    """How a sample, and its partners, become rows of a batch."""

    row: int
    cut: Cut | None
    hflip: bool
    vflip: bool


class _Samples:
    """Samples, or their partners, of a part of a batch: what lies where."""

    def __init__(self, folder: H5Folder, positions: np.ndarray) -> None:
        self.source = folder._open().source
        self.positions = positions.tolist()
        self.numbers = self.source.placed(positions).numbers
        known = {number: self.source.layout(number) for number in np.unique(self.numbers).tolist()}
        self.layouts = [known[number] for number in self.numbers.tolist()]

    def picture(self, n: int, reducible_shape: tuple[int, ...] | None = None) -> _Picture:
        """Open one of them."""
        return _Picture(self.source, self.positions[n], self.layouts[n], reducible_shape)


class Plan:
    """What becomes of each sample of a batch, worked out and drawn for all of them at once."""

    def __init__(self, recipe: Recipe, request: Request) -> None:
        self.request = request
        self.samples = _Samples(recipe.folders[0], request.positions)
        self.partners = {
            name: _opening(recipe.folders, *column) for name, column in request.partners.items()
        }
        self.draws = Draws(recipe.seed, request.epoch, request.positions)
        hflips, vflips = flips(self.draws, recipe.hflip, recipe.vflip)
        self.hflips, self.vflips = hflips.tolist(), vflips.tolist()
        self.reducible = self._reducible_shapes(recipe)
        self.cuts = self._cuts_of_known(recipe)

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
        sides = {n: s[:2] for n, s in enumerate(shapes) if s is not None and _is_image(s)}
        if not sides:
            return cuts
        rows = list(sides)
        draws = self.draws
        if len(rows) < len(cuts):
            draws = Draws(recipe.seed, self.request.epoch, positions[rows])
        heights, widths = np.array(list(sides.values())).T
        try:
            drawn = recipe.crop.geometry(heights, widths, draws).cuts()
        except ImpossibleCropError:
            return cuts
        for n, cut in zip(rows, drawn, strict=True):
            cuts[n] = cut
        return cuts


def _opening(
    folders: tuple[H5Folder, ...], numbers: np.ndarray, positions: np.ndarray
) -> list[Callable[[], _Picture]]:
    """Return what opens each of the partners of one name."""
    column: list[Any] = [None] * len(positions)
    for number in np.unique(numbers).tolist():
        chosen = np.flatnonzero(numbers == number)
        samples = _Samples(folders[number], positions[chosen])
        for n, row in enumerate(chosen.tolist()):
            column[row] = functools.partial(samples.picture, n)
    return column


class Filler:
    """Fills rows, in any thread."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._resizer = Resizer(recipe.antialias)

    def fill(
        self, plan: Plan, first: int, stop: int, arrays: Arrays, is_over: Callable[[], bool]
    ) -> None:
        """Fill the rows from ``first`` to ``stop``, or fewer where ``is_over()``.

        Raises RowError.
        """
        for row in range(first, stop):
            if is_over():
                return
            try:
                self._fill(plan, row, arrays)
            except MismatchError as error:
                mismatch = _mismatch(self._recipe, plan.request, row, error)
                raise RowError(row, mismatch) from None
            except Exception as error:
                told = self._explained(plan.samples.positions[row], error)
                raise RowError(row, told) from None

    def _fill(self, plan: Plan, row: int, arrays: Arrays) -> None:
        recipe, samples, partners = self._recipe, plan.samples, plan.partners
        position = samples.positions[row]
        image = samples.picture(row, plan.reducible[row])
        cut = plan.cuts[row]
        if cut is None and recipe.crop is not None:
            cut = self._cut(image, plan.request.epoch, position)
        way = _Way(row, cut, plan.hflips[row], plan.vflips[row])
        if not partners and recipe.transform is None:
            self._crop(IMAGE, image, way, arrays)
            return
        pictures = {IMAGE: image, **{name: opening[row]() for name, opening in partners.items()}}
        self._check_sizes(pictures)
        if recipe.transform is not None:
            self._transform(pictures, way, plan.draws.generator(row), arrays)
            return
        for name, picture in pictures.items():
            self._crop(name, picture, way, arrays)

    def _cut(self, picture: _Picture, epoch: int, position: int) -> Cut:
        """Return the cut of one image, whose shape only decoding told."""
        crop, shape = self._recipe.crop, picture.shape
        if not _is_image(shape):
            raise ConverterError(
                f"has the shape {shape}, which is not (H, W) or (H, W, 1 to {MOST_CHANNELS}): "
                "give crop=None"
            )
        draws = Draws(self._recipe.seed, epoch, np.array([position]))
        (cut,) = crop.geometry(np.array(shape[:1]), np.array(shape[1:2]), draws).cuts()
        one: Cut = cut
        return one

    def _check_sizes(self, pictures: dict[str, _Picture]) -> None:
        recipe = self._recipe
        if recipe.crop is None and not recipe.has_flips:
            return
        image = pictures[IMAGE]
        for name, picture in pictures.items():
            if picture.shape[:2] != image.shape[:2]:
                raise ConverterError(
                    f"is {_size(image)}, but its {name} {picture.key!r} is {_size(picture)}: make "
                    "them equally large"
                )
            if name != IMAGE and recipe.crop is not None and not _is_image(picture.shape):
                raise ConverterError(
                    f"has a {name} {picture.key!r} of shape {picture.shape}, which is not (H, W) "
                    f"or (H, W, 1 to {MOST_CHANNELS}): give crop=None"
                )

    def _transform(
        self,
        pictures: dict[str, _Picture],
        way: _Way,
        rng: np.random.Generator,
        arrays: Arrays,
    ) -> None:
        """Hand crops to the user's function, and what it returns to the batch."""
        transform = self._recipe.transform
        assert transform is not None
        inputs = {name: self._crop(name, picture, way, None) for name, picture in pictures.items()}
        for name, array in _transformed(transform, rng, inputs).items():
            arrays.row(name, way.row, array.shape, array.dtype)[...] = array

    def _crop(self, name: str, picture: _Picture, way: _Way, arrays: Arrays | None) -> np.ndarray:
        """Put a sample, or a partner of it, into its row, or into new memory; return that."""
        recipe, shape, cut = self._recipe, picture.shape, way.cut
        is_mask = name != IMAGE and recipe.partners[name]
        read = picture.read(cut)
        if recipe.channels and not is_mask:
            read = _coloured(read, picture.key)
            shape = (*shape[:2], recipe.channels)
        if cut is None:
            target = np.empty(shape, picture.dtype)
            if (way.hflip or way.vflip) and read.ndim < 2:
                raise ConverterError(f"has the shape {read.shape}, which cannot be flipped")
            target[...] = read
            if way.hflip or way.vflip:
                mirror_one(target, way.hflip, way.vflip)
            if arrays is not None:
                arrays.keep(name, way.row, target)
            return target
        crop = recipe.crop
        shape = crop.size + shape[2:]
        if arrays is None:
            target = np.empty(shape, picture.dtype)
        else:
            target = arrays.row(name, way.row, shape, picture.dtype)
        self._resizer.fill(
            target,
            read,
            cut,
            hflip=way.hflip,
            vflip=way.vflip,
            nearest=is_mask or recipe.is_nearest,
            fill=crop.mask_fill if is_mask else crop.fill,
        )
        return target

    def _explained(self, position: int, error: Exception) -> BaseException:
        """Return an error that names the sample."""
        key, path = self._recipe.folders[0].key_at(position), self._recipe.folders[0].path
        text = str(error) if isinstance(error, ConverterError) else describe(error)
        if isinstance(error, LoadError):
            return error
        if isinstance(error, CropError):
            told = LoadError(f"{key!r} in {path}: {text}")
        elif isinstance(error, ConverterError):
            told = LoadError(f"{key!r} in {path} {text}")
        else:
            told = LoadError(f"{key!r} in {path} made a batch fail: {text}")
        told.__cause__ = error
        return told


def _mismatch(recipe: Recipe, request: Request, row: int, error: MismatchError) -> LoadError:
    """Return an error that names two samples that cannot be in one batch."""
    folder = recipe.folders[0]
    rows = [(row, *error.own), (error.other_row, *error.other)]
    rows.sort(key=lambda one: one[0])  # whichever thread was first
    (other_row, other_shape, other_dtype), (row, shape, dtype) = rows
    key, other = (folder.key_at(request.positions[n]) for n in (row, other_row))
    path = folder.path
    if recipe.transform is not None:
        return LoadError(
            f"transform returned {dtype} of shape {shape} for {key!r} in {path}, but "
            f"{other_dtype} of shape {other_shape} for {other!r} in the same batch: return "
            "arrays of one shape and dtype"
        )
    if dtype != other_dtype:
        return LoadError(
            f"{key!r} in {path} is {dtype}, but {other!r} in the same batch is {other_dtype}: "
            "select samples of one dtype with keys="
        )
    return LoadError(
        f"{key!r} in {path} has {_count(shape)}, but {other!r} in the same batch has "
        f"{_count(other_shape)}: give channels=3"
    )


def joined(pieces: list[Any], recipe: Recipe, request: Request) -> Any:
    """Return one array of arrays that follow each other; a list where they may be unequal.

    Raises LoadError where they must be equal.
    """
    rows = [row for piece in pieces for row in piece]
    batch = stacked(rows)
    if isinstance(batch, np.ndarray) or (recipe.crop is None and recipe.transform is None):
        return batch
    kinds = [(row.shape, row.dtype) for row in rows]
    n = next(n for n, kind in enumerate(kinds) if kind != kinds[0])
    raise _mismatch(recipe, request, n, MismatchError(0, rows[0], rows[n]))


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and 1 <= shape[2] <= MOST_CHANNELS)


def _size(picture: _Picture) -> str:
    return "x".join(map(str, picture.shape[:2]))


def _count(shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return "no channels"
    return f"{shape[2]} channels" if shape[2] > 1 else "1 channel"


def _coloured(image: np.ndarray, key: str) -> np.ndarray:
    """Return an image to be copied into three channels: gray with one, or three."""
    if image.ndim == 2:
        return image[:, :, None]
    count = image.shape[2] if image.ndim == 3 else 0
    if not 1 <= count <= MOST_CHANNELS:
        raise ConverterError(
            f"has the shape {image.shape}, of which channels=3 makes no image: leave channels out"
        )
    extension = key.rpartition(".")[2].lower()
    if count == 4 and extension in CMYK_EXTENSIONS:
        raise ConverterError(
            "has four channels, which in a file of this kind may be CMYK: leave it out, or convert "
            "it to RGB first"
        )
    return image[:, :, :1] if count < 3 else image[:, :, :3]


def _transformed(
    transform: Callable[..., Any], rng: np.random.Generator, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    result = transform(rng, **inputs)
    if not isinstance(result, Mapping) or result.keys() != inputs.keys():
        got = sorted(result) if isinstance(result, Mapping) else type(result).__name__
        raise TypeError(f"transform returned {got}: return a dict with {sorted(inputs)}")
    return {name: np.asarray(array) for name, array in result.items()}


class Filling:
    """A batch in the making, in parts that different threads may fill."""

    def __init__(
        self,
        request: Request,
        recipe: Recipe,
        *,
        buffers: Callable[[str], Buffers],
        filler: Filler,
        labels: Callable[[], Any] | None = None,
        until_read: Callable[[], None] = lambda: None,
        gather: Callable[[], np.ndarray] | None = None,
        threads: int = 0,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.request = request
        self.labels: Any = None
        self._recipe = recipe
        self._errors: list[RowError] = []
        self._is_over = is_over
        self._filler = filler
        self._arrays = Arrays(len(request.positions), buffers)
        self._take_labels = labels
        self._until_read = until_read
        self._gather_image = gather
        self._lock = threading.Lock()
        self._plan: Plan | None = None
        self._threads = threads

    def parts(self) -> list[Callable[[], None]]:
        """Return what is to be done, each by any thread; no part raises anything."""
        parts = (self._gathered() if self._recipe.is_gathered else None) or self._in_rows()
        if self._take_labels is not None:
            parts.append(self._fill_labels)
        if self._threads < 2:  # each part of its own costs some microseconds
            return [functools.partial(self._do, *parts)]
        return [functools.partial(self._do, part) for part in parts]

    def result(self) -> tuple[dict[str, np.ndarray | list[np.ndarray]], Any]:
        """Return the arrays and the labels; raise what went wrong at the first row it did."""
        if self._errors:
            raise min(self._errors, key=lambda error: error.row).error
        return self._arrays.finished(), self.labels

    def _gathered(self) -> list[Callable[[], None]] | None:
        """Return a part for each name, where all arrays of it seem to lie in their file alike."""
        request = self.request
        columns = {IMAGE: (np.zeros(1, np.int64), request.positions), **request.partners}
        parts: list[Callable[[], None]] = []
        for name, (folders, positions) in columns.items():
            if name == IMAGE and self._gather_image is not None:
                parts.append(functools.partial(self._gather, name, self._gather_image))
                continue
            if (folders != folders[0]).any():
                return None
            source = self._recipe.folders[int(folders[0])]._open().source
            numbers = source.placed(positions[:: len(positions) // ROWS_PROBED or 1]).numbers
            layout = source.layout(int(numbers[0]))
            if layout is None or not self._recipe.gathers(layout) or len(np.unique(numbers)) > 1:
                return None
            read = functools.partial(source.read_batch, positions)
            parts.append(functools.partial(self._gather, name, read))
        return parts

    def _in_rows(self) -> list[Callable[[], None]]:
        count, threads = len(self.request.positions), self._threads
        parts = 1 if threads < 2 else threads * PARTS_A_THREAD
        rows = max(min(LEAST_ROWS, math.ceil(count / max(threads, 1))), math.ceil(count / parts))
        return [
            functools.partial(self._fill, first, min(count, first + rows))
            for first in range(0, count, rows)
        ]

    def _gather(self, name: str, read: Callable[[], np.ndarray | list[np.ndarray]]) -> None:
        """Take all rows of a name at once."""
        with contextlib.suppress(OSError, CropError):
            rows = self._as_rows(read())
            if rows is not None:
                self._arrays.put(name, rows)
                return
        self._fill(0, len(self.request.positions))  # one by one: that says what is wrong with which

    def _as_rows(self, rows: np.ndarray | list[np.ndarray]) -> np.ndarray | list[np.ndarray] | None:
        """Return samples as rows of the batch; None where these must be made one by one."""
        recipe, request = self._recipe, self.request
        if recipe.crop is not None or recipe.channels is not None:
            rows = stacked(rows) if isinstance(rows, list) else rows
            if isinstance(rows, list):
                return None
        if recipe.crop is None and not recipe.has_flips:
            return rows
        draws = Draws(recipe.seed, request.epoch, request.positions)
        if recipe.crop is not None:
            assert isinstance(rows, np.ndarray)
            heights, widths = (np.full(len(rows), side) for side in rows.shape[1:3])
            geometry = recipe.crop.geometry(heights, widths, draws)
            shown = windows(rows, geometry, recipe.crop.size, recipe.crop.fill)
            if shown is None:
                return None
            rows = shown
        self._mirror(rows, *flips(draws, recipe.hflip, recipe.vflip))
        return rows

    def _mirror(
        self, rows: np.ndarray | list[np.ndarray], hflips: np.ndarray, vflips: np.ndarray
    ) -> None:
        """Mirror the rows that were drawn, where they are."""
        if isinstance(rows, np.ndarray) and rows.ndim > 2 and rows[0].nbytes < MOST_GATHERED_NBYTES:
            mirror_rows(rows, hflips, vflips)
            return
        for n in np.flatnonzero(hflips | vflips).tolist():
            if rows[n].ndim < 2:
                self._fill(n, n + 1)  # which raises that it cannot be
            mirror_one(rows[n], hflips[n], vflips[n])

    def _fill(self, first: int, stop: int) -> None:
        self._filler.fill(self._known_plan(), first, stop, self._arrays, self._is_over)

    def _known_plan(self) -> Plan:
        """Return the plan, which the first part makes."""
        with self._lock:
            if self._plan is None:
                self._plan = Plan(self._recipe, self.request)
            return self._plan

    def _fill_labels(self) -> None:
        assert self._take_labels is not None
        self.labels = self._take_labels()

    def _do(self, *parts: Callable[[], None]) -> None:
        """Do some parts; keep what goes wrong for `result`."""
        try:
            self._until_read()
            for part in parts:
                if not self._is_over():
                    part()
        except RowError as error:
            self._errors.append(error)
        except BaseException as error:  # it is raised where the batch is asked for
            self._errors.append(RowError(-1, error))
