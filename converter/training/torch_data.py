"""What torch's DataLoader takes: the dataset `H5ImageFolder`, and the sampler `H5Sampler`.

Neither imports torch.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from converter.errors import LoadError
from converter.loader.h5folder import H5Folder
from converter.training.labels import (
    NO_FOLDER,
    Selection,
    as_array,
    folder_changes,
    folders_below,
    identity_of,
    select,
)
from converter.training.orders import Epochs, HasEpochs, OrderFunction
from converter.training.runs import BLOCK_NBYTES, FileRuns, ReadAhead

OUTPUTS = ("pil", "numpy")
MOST_CHANNELS = 4
HIGH_BYTE = 8  # of 16 bits, which is what Pillow keeps of colours
JPEG_EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "mpo")
Path = str | os.PathLike[str]


class H5ImageFolder:
    """A dataset as torchvision's ImageFolder: ``dataset[n]`` is ``(image, target)``.

    A folder below ``root`` is a class, and its images, of any depth, are the samples: in the same
    order and with the same numbers as ImageFolder has on the folder that was converted, if all its
    files were.

    Parameters
    ----------
    path
        The HDF5 file, several, or an open H5Folder.
    transform, target_transform
        Functions of the image, and of the number of its class.
    root
        The folder within the file that holds the classes, such as "train". "": the whole file.
    output
        "pil": RGB images of Pillow. "numpy": the same as arrays ``(H, W, 3)`` of uint8.

    Raises
    ------
    ValueError
        There is no class below ``root``.
    LoadError
        From reading: a sample is damaged, or is no image.
    """

    def __init__(
        self,
        path: H5Folder | Path | Sequence[Path],
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        *,
        root: str = "",
        output: str = "pil",
    ) -> None:
        if output not in OUTPUTS:
            raise ValueError(f"output is {output!r}: give 'pil' or 'numpy'")
        self.folder = path if isinstance(path, H5Folder) else H5Folder(path)
        self.root = root
        self.transform = transform
        self.target_transform = target_transform
        self.output = output
        below = select(self.folder, root)
        source = self.folder._open().source
        self.classes, numbers = folders_below(source.keys, below.positions, below.prefix)
        if not self.classes:
            raise ValueError(
                f"no class folders in {root or 'the whole'!r} of {self.folder.path}: root names "
                "the folder that holds them"
            )
        self.class_to_idx = {name: number for number, name in enumerate(self.classes)}
        is_in_class = numbers != NO_FOLDER
        self._numbers = numbers[is_in_class]
        self._positions = as_array(below.positions)[is_in_class]
        self._sort(len(below.prefix))
        self.selection = Selection(self._positions, below.prefix)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return an image and the number of its class, both transformed."""
        position = int(self._positions[index])
        return self._item(self._read(position), int(self._numbers[index]), position)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Return several, read together: a DataLoader asks for its batches so."""
        chosen = np.asarray(indices, np.int64)
        positions = self._positions[chosen]
        arrays: Any
        if self.folder.is_encoded:
            arrays = [self._read(position) for position in positions.tolist()]
        else:
            arrays = self.folder.read_batch(positions)
        rows = zip(arrays, self._numbers[chosen].tolist(), positions.tolist(), strict=True)
        return [self._item(*row) for row in rows]

    def __repr__(self) -> str:
        below = f", root={self.root!r}" if self.root else ""
        return f"H5ImageFolder({self.folder.path!r}{below}: {len(self)} samples)"

    @property
    def samples(self) -> Sequence[tuple[str, int]]:
        """The key and the class of each sample, looked up when asked for."""
        return _Samples(self)

    @property
    def imgs(self) -> Sequence[tuple[str, int]]:
        """The same as ``samples``."""
        return self.samples

    @functools.cached_property
    def targets(self) -> list[int]:
        """The class of each sample."""
        targets: list[int] = self._numbers.tolist()
        return targets

    def _read(self, position: int) -> Any:
        """Return an array, or an image of Pillow where the original file is there."""
        if self.folder.is_encoded:
            image = _decoded_by_pillow(self.folder.read_bytes(position))
            if image is not None:
                return image
        return self.folder[position]

    def _item(self, image: Any, target: Any, position: int) -> tuple[Any, Any]:
        if isinstance(image, np.ndarray):
            key = self.folder.key_at(position)
            try:
                image = to_rgb(image, key.rpartition(".")[2].lower())
            except (TypeError, ValueError) as error:
                raise LoadError(
                    f"{key!r} in {self.folder.path} is an array of {image.shape} {image.dtype}, "
                    "which is no image: read it with H5Folder"
                ) from error
        if self.output == "numpy":
            image = image if isinstance(image, np.ndarray) else np.array(image)
        elif isinstance(image, np.ndarray):
            image = _pillow().fromarray(image)
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target

    def _sort(self, skipped: int) -> None:
        """Sort the samples as ImageFolder lists them: by class, folder within it, and name.

        ``skipped`` characters of each key are the root.
        """
        keys = self.folder._open().source.keys

        def place(n: int) -> tuple[str, str, str]:
            return _place(keys.key(int(self._positions[n]))[skipped:])

        changes = folder_changes(keys, self._positions)
        if changes is not None and all(place(n) < place(n + 1) for n in changes.tolist()):
            return
        order = sorted(range(len(self)), key=place)
        self._positions, self._numbers = self._positions[order], self._numbers[order]


class _Samples(Sequence[tuple[str, int]]):
    """Pairs of key and class that are made when they are asked for."""

    def __init__(self, dataset: H5ImageFolder) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        dataset = self._dataset
        position = int(dataset._positions[index])
        return dataset.folder.key_at(position), int(dataset._numbers[index])


def to_rgb(array: np.ndarray, extension: str = "") -> np.ndarray | Any:
    """Return a stored image as ``convert("RGB")`` of Pillow gives it for the original file.

    That is ``(H, W, 3)`` uint8, or an image of Pillow. Of several frames or pages the first is
    taken. ``extension`` is that of the original: four channels of a JPEG are CMYK.

    Raises TypeError or ValueError for what is no image.
    """
    if not array.size:
        raise ValueError("it has no pixels")
    if array.ndim > 2 and not 1 <= array.shape[-1] <= MOST_CHANNELS:
        array = array[0] if array.ndim == 3 else array
    if array.ndim == 4:
        array = array[0]
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[:, :, 0]
    if array.ndim == 3 and array.dtype == np.uint16:
        array = (array >> HIGH_BYTE).astype(np.uint8)
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 3:
        return array
    if array.ndim not in (2, 3):
        raise ValueError("it has no rows and columns")
    image = _pillow().fromarray(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))
    if image.mode == "RGBA" and extension in JPEG_EXTENSIONS:
        image = _pillow().fromarray(array, "CMYK")
    return image.convert("RGB")


def _decoded_by_pillow(data: bytes) -> Any:
    """Return what ImageFolder makes of a file; None where Pillow does not know its format."""
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except pillow.UnidentifiedImageError:
        return None


def _pillow() -> Any:
    """Return Pillow's module of images; the loader does without it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise LoadError(f"H5ImageFolder needs Pillow ({error}): pip install pillow") from error
    return Image


def _place(key: str) -> tuple[str, str, str]:
    """Return what sorts keys below the root as ImageFolder lists them."""
    folder, _, name = key.rpartition("/")
    return folder.partition("/")[0], folder, name


class H5Sampler(HasEpochs):
    """The orders of `H5Loader` for a DataLoader of torch.

    With ``batch_size`` it yields lists of indices, for ``batch_sampler=``; without, single ones,
    for ``sampler=``. Each pass is the next epoch.

    Parameters
    ----------
    dataset
        What has a length. For "blocks" an H5Folder or an H5ImageFolder.
    batch_size
        Samples in a batch of one rank.
    order
        "random", "blocks", "stored", or a function of the epoch that returns indices.
        None: "random", and "stored" with ``evaluate``.
    seed
        Of the order.
    drop_last
        Leave out the samples that fill no batch on all ranks. None: True in training.
    evaluate
        Every sample once over all ranks, in stored order, and equally many batches on each.
    rank, world_size
        This process among those that train together. None: those of torch.distributed.
    block_nbytes
        For "blocks": about how many bytes of the file are read in one go.

    Raises
    ------
    ValueError
        Arguments that contradict each other, or do not fit the dataset.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int | None = None,
        order: str | OrderFunction | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
        evaluate: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        block_nbytes: int = BLOCK_NBYTES,
    ) -> None:
        self.batch_size = batch_size
        self._folder, self._selection = _parts_of(dataset)
        self._runs: FileRuns | None = None
        if order == "blocks":
            if self._folder is None:
                raise ValueError("order='blocks' needs an H5Folder or an H5ImageFolder to sample")
            self._runs = FileRuns(self._folder, self._selection, block_nbytes)
        identity: Callable[[], str] = str  # other datasets have none
        if self._folder is not None:
            identity = functools.partial(identity_of, self._folder, self._selection)
        self._epochs = Epochs(
            len(self._selection),
            identity=identity,
            rank=rank,
            world_size=world_size,
            batch_size=1 if batch_size is None else batch_size,
            kind=order,
            seed=seed,
            drop_last=drop_last,
            evaluate=evaluate,
            runs=self._runs.runs if self._runs else None,
        )
        self._handed_out = self._epochs.place, 0

    def __len__(self) -> int:
        """Return how many batches, or single indices, this rank has in an epoch."""
        return self._epochs.order.length(self._epochs.next.epoch)

    def __iter__(self) -> Iterator[Any]:
        # an epoch begins at its first item: a DataLoader calls iter() twice where it has workers
        order, place = self._epochs.order, self._epochs.begin()
        ahead = ReadAhead(order, self._runs, *place) if self._runs else None
        try:
            for number, indices in enumerate(order.batches(*place), 1):
                if ahead is not None:
                    last = order.samples_after(place.epoch, number, place.sample) - 1
                    ahead.wait(ahead.advance(last))
                if self._epochs.place is place:  # else an older iterator, which may be in use
                    self._handed_out = place, number
                yield int(indices[0]) if self.batch_size is None else indices.tolist()
        finally:
            if ahead is not None:
                ahead.close()

    def state_dict(self, batches: int | None = None) -> dict[str, int | str]:
        """Return where training is: plain numbers and texts, the same on all ranks.

        ``batches`` is how many of this ``iter()`` were trained on (single indices, without
        ``batch_size``); None: all that were handed out, which workers may still be reading.
        """
        place, done = self._epochs.place, batches
        if done is None:
            done = self._handed_out[1] if self._handed_out[0] is place else 0
        if done:
            place = self._epochs.order.place_after(place, done)
        return self._epochs.state(place)


def _parts_of(dataset: Any) -> tuple[H5Folder | None, Selection]:
    """Return the file of a dataset and the samples it selects; no file for other datasets."""
    if isinstance(dataset, H5ImageFolder):
        return dataset.folder, dataset.selection
    folder = dataset if isinstance(dataset, H5Folder) else None
    try:
        return folder, Selection(range(len(dataset)))
    except TypeError:
        raise ValueError(
            f"{type(dataset).__name__} has no length: give H5Sampler the dataset it samples"
        ) from None
