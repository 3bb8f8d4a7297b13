"""Make each sample a row of its batch: read it, crop it, hand it to the user's transform."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from converter.cropping.draws import Draws
from converter.cropping.geometry import CropError, Cut
from converter.cropping.resizing import MOST_CHANNELS, Resizer, mirror_one
from converter.errors import ConverterError, LoadError, describe
from converter.training.buffers import Arrays, MismatchError
from converter.training.plans import IMAGE, Picture, Plan, Recipe, Request, Way, is_image

#: Files of these kinds that have four channels hold CMYK, or may hold it.
CMYK_EXTENSIONS = {"jpg", "jpeg", "jpe", "jfif", "mpo", "tif", "tiff"}


class RowError(Exception):
    """What went wrong at one row of a batch."""

    def __init__(self, row: int, error: BaseException) -> None:
        super().__init__(row, error)
        self.row, self.error = row, error


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
                raise RowError(row, mismatch(self._recipe, plan.request, row, error)) from None
            except Exception as error:
                position = plan.samples.positions[row]
                raise RowError(row, self._explained(position, error)) from None

    def _fill(self, plan: Plan, row: int, arrays: Arrays) -> None:
        recipe, partners, way = self._recipe, plan.partners, plan.ways[row]
        image = plan.samples.picture(row, plan.reducible[row])
        if way.cut is None and recipe.crop is not None:
            cut = self._cut(image, plan.request.epoch, plan.samples.positions[row])
            way = way._replace(cut=cut)
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

    def _cut(self, picture: Picture, epoch: int, position: int) -> Cut:
        """Return the cut of one image, whose shape only decoding told."""
        crop, shape = self._recipe.crop, picture.shape
        if not is_image(shape):
            raise ConverterError(
                f"has the shape {shape}, which is not (H, W) or (H, W, 1 to {MOST_CHANNELS}): "
                "give crop=None"
            )
        draws = Draws(self._recipe.seed, epoch, np.array([position]))
        (cut,) = crop.geometry(np.array(shape[:1]), np.array(shape[1:2]), draws).cuts()
        one: Cut = cut
        return one

    def _check_sizes(self, pictures: dict[str, Picture]) -> None:
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
            if name != IMAGE and recipe.crop is not None and not is_image(picture.shape):
                raise ConverterError(
                    f"has a {name} {picture.key!r} of shape {picture.shape}, which is not (H, W) "
                    f"or (H, W, 1 to {MOST_CHANNELS}): give crop=None"
                )

    def _transform(
        self,
        pictures: dict[str, Picture],
        way: Way,
        rng: np.random.Generator,
        arrays: Arrays,
    ) -> None:
        """Hand crops to the user's function, and what it returns to the batch."""
        transform = self._recipe.transform
        assert transform is not None
        inputs = {name: self._crop(name, picture, way, None) for name, picture in pictures.items()}
        for name, array in _transformed(transform, rng, inputs).items():
            arrays.row(name, way.row, array.shape, array.dtype)[...] = array

    def _crop(self, name: str, picture: Picture, way: Way, arrays: Arrays | None) -> np.ndarray:
        """Put a sample, or a partner of it, into its row, or into new memory; return that."""
        recipe, shape = self._recipe, picture.shape
        _, cut, hflip, vflip = way
        is_mask = name != IMAGE and recipe.partners[name]
        read = picture.read(cut)
        if recipe.channels and not is_mask:
            if read.ndim != 3 or read.shape[2] != recipe.channels:
                read = _coloured(read, picture.key)
            shape = (*shape[:2], recipe.channels)
        if cut is None:
            target = np.empty(shape, picture.dtype)
            if (hflip or vflip) and read.ndim < 2:
                raise ConverterError(f"has the shape {read.shape}, which cannot be flipped")
            target[...] = read
            if hflip or vflip:
                mirror_one(target, hflip, vflip)
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
            hflip=hflip,
            vflip=vflip,
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


def mismatch(recipe: Recipe, request: Request, row: int, error: MismatchError) -> LoadError:
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


def _size(picture: Picture) -> str:
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
