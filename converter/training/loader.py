"""`H5Loader`: batches of an HDF5 file, in the order of training, made ahead by threads."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from converter.cropping.crops import CropMethod
from converter.cropping.resizing import MOST_CHANNELS
from converter.loader.h5folder import H5Folder
from converter.loader.indexed_file import EqualArrays, IndexedFile
from converter.threads import usable_cores
from converter.training.batches import Filling
from converter.training.buffers import Buffers, PinnedBuffers
from converter.training.labels import Labels, as_array, identity_of, select
from converter.training.orders import Epochs, HasEpochs, Order, Place, at_least
from converter.training.plans import (
    IMAGE,
    LABEL,
    POSITION,
    Column,
    PartnerOf,
    Recipe,
    Request,
    checked_partners,
    with_partners,
)
from converter.training.readers import InProcesses, InThreads, RemoteFilling
from converter.training.rows import Filler
from converter.training.runs import BLOCK_NBYTES, FileRuns, ReadAhead

MOST_THREADS = 8
#: For gathering. The allocator of C keeps smaller memory for the next batch by itself: there new
#: memory took 0.6 to 0.95 of the time, above it 1.1 times it.
LEAST_REUSED_NBYTES = 32 << 20
NOT_BEGUN, INTERRUPTED = -1, -2  # in place of a process
Path = str | os.PathLike[str]


class H5Loader(HasEpochs):
    """Batches of samples, read and cropped ahead by threads of this process.

    A batch is an array ``(N, H, W[, C])``; with ``labels`` it is ``(images, labels)``; with
    ``masks``, ``images`` or ``positions`` it is a dict with "image", "label" where there are
    labels, "position", and the names given. Each pass is the next epoch.

    Parameters
    ----------
    source
        The HDF5 file, several, or an open H5Folder, which loaders may share.
    batch_size
        Samples in a batch of one rank.
    keys
        Which samples: a folder such as "train/", or keys or positions. None: all.
    crop
        `RandomResizedCrop`, `CenterCrop`, `RandomCrop` or `Resize`. None: whole arrays of any
        shape; those of one batch come as a list where they are unequal.
    hflip, vflip
        Probabilities of mirroring a sample left to right, and upside down.
    interpolation, antialias
        "bilinear" or "nearest". With ``antialias`` torch resizes, without it OpenCV.
    exact_decode
        Of JPEG files stored as they are. False: where a crop is at least twice as large as needed,
        the file is decoded to a part of its size, which is faster and changes pixels by 2 to 3 of
        255 in the mean. True: all of it is decoded, for exactly the pixels of the array.
    channels
        3: gray images get three channels, alpha is left out. None: as they are.
    labels, classes
        "folder": the number of the first folder below ``keys``; ``classes`` fixes the numbers. An
        array with a row for each selected sample, a dict by key, or a function of a batch's keys.
    masks, images
        Partners of each sample by name: functions of its key that return the key of the partner,
        or ``(H5Folder, key)``. They get the same crop and flip; masks are not interpolated.
    transform
        ``transform(rng, image=..., **partners)`` returns a dict with the same names. ``rng``
        follows from seed, epoch and sample.
    positions
        True: batches are dicts with "position", for `H5Folder.key_at`.
    order
        "random", "blocks", "stored", or a function of the epoch that returns indices of the
        selected samples: 0 is the first that ``keys`` selects, not the first of the file.
    block_nbytes
        For "blocks": the bytes of each run of the file.
    evaluate
        True: each sample once, in stored order.
    drop_last
        Leave out the samples that fill no batch. None: True, but False with ``evaluate``.
    seed
        Of orders, crops and flips.
    rank, world_size
        This process among those that train together. None: those of torch.distributed.
    threads
        How many read. None: the cores of this process over LOCAL_WORLD_SIZE, less one, from 1 to
        8. 0: each batch is made when it is asked for, in the caller's thread.
    processes
        How many processes read instead of threads: for a loop whose own Python code takes long, and
        would keep threads from reading. They start once, and are new interpreters: a script
        must start its loop below ``if __name__ == "__main__"``.
    prefetch
        How many batches are made ahead.
    as_torch
        True: tensors; images are ``(N, C, H, W)`` in channels_last, without a copy.
    pin_memory
        True: batches lie in pinned memory.

    Raises
    ------
    ValueError
        Arguments that contradict each other, or do not fit the file.
    LoadError
        From the loop: a sample is damaged, or cannot become a row of its batch.
    """

    def __init__(
        self,
        source: H5Folder | Path | Sequence[Path],
        *,
        batch_size: int,
        keys: Any = None,
        crop: CropMethod | None = None,
        hflip: float = 0.0,
        vflip: float = 0.0,
        interpolation: str = "bilinear",
        antialias: bool = True,
        exact_decode: bool = False,
        channels: int | None = None,
        labels: Any = None,
        classes: Sequence[str] | None = None,
        masks: Mapping[str, PartnerOf] | None = None,
        images: Mapping[str, PartnerOf] | None = None,
        transform: Callable[..., Any] | None = None,
        positions: bool = False,
        order: str | Callable[[int], Any] | None = None,
        block_nbytes: int = BLOCK_NBYTES,
        evaluate: bool = False,
        drop_last: bool | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        threads: int | None = None,
        processes: int = 0,
        prefetch: int = 2,
        as_torch: bool = False,
        pin_memory: bool = False,
    ) -> None:
        self.folder = source if isinstance(source, H5Folder) else H5Folder(source)
        self.batch_size = batch_size
        is_crop = crop is None or hasattr(crop, "geometry")
        is_known = interpolation in ("bilinear", "nearest")
        _check("crop", crop, is_crop, "a crop, such as RandomResizedCrop(224)")
        _check("hflip", hflip, 0 <= hflip <= 1, "a probability from 0 to 1")
        _check("vflip", vflip, 0 <= vflip <= 1, "a probability from 0 to 1")
        _check("interpolation", interpolation, is_known, "'bilinear' or 'nearest'")
        _check("channels", channels, channels in (None, 3), "3, or leave it out")
        _check("classes", classes, classes is None or labels is not None, "labels='folder', too")
        _check_readers(processes, threads, pin_memory)
        _check_torch(as_torch, pin_memory)
        self._processes = at_least("processes", processes, 0)
        self._threads = 0 if processes else _count_threads(threads)
        self._prefetch = at_least("prefetch", prefetch, 1)
        self._as_torch, self._is_pinned = as_torch, pin_memory
        self._has_positions = positions
        self._partners_of = checked_partners(masks, images)
        self._selection = select(self.folder, keys)
        self._labels: Labels | None = None
        if labels is not None:
            self._labels = Labels(labels, self.folder, self._selection, classes)
        self._recipe = Recipe(
            (self.folder,),
            crop=crop,
            hflip=hflip,
            vflip=vflip,
            channels=channels,
            antialias=antialias,
            is_nearest=interpolation == "nearest",
            exact_decode=exact_decode,
            transform=transform,
            seed=seed,
        )
        self._runs: FileRuns | None = None
        if order == "blocks":
            self._runs = FileRuns(self.folder, self._selection, block_nbytes)
        self._epochs = Epochs(
            len(self._selection),
            identity=functools.partial(identity_of, self.folder, self._selection),
            rank=rank,
            world_size=world_size,
            batch_size=batch_size,
            kind=order,
            seed=seed,
            drop_last=drop_last,
            evaluate=evaluate,
            runs=self._runs.runs if self._runs else None,
        )
        self._equal: tuple[IndexedFile, EqualArrays | None] | None = None
        self._buffers: dict[str, Buffers] = {}
        self._in_processes: InProcesses | None = None
        self._pid = os.getpid()
        self._current: weakref.ref[_Epoch] | None = None

    def __len__(self) -> int:
        """Return how many batches this rank has in an epoch."""
        return self._epochs.order.length(self._epochs.place.epoch)

    def __iter__(self) -> Iterator[Any]:
        return _Epoch(self, self._epochs.order)

    def __repr__(self) -> str:
        return f"H5Loader({self.folder.path!r}, batch_size={self.batch_size})"

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_buffers": {},
            "_current": None,
            "_equal": None,
            "_in_processes": None,
        }

    @property
    def classes(self) -> list[str]:
        """The names of the classes in the order of their numbers, with ``labels="folder"``."""
        return self._labels.classes if self._labels else []

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The number of each class."""
        return self._labels.class_to_idx if self._labels else {}

    def state_dict(self) -> dict[str, int | str]:
        """Return where training is: behind the batch handed out last. The same on all ranks."""
        return self._epochs.state(self._epochs.place)

    @functools.cached_property
    def _with_partners(self) -> tuple[Recipe, dict[str, Column]]:
        """The recipe, and the partners of all samples, which are looked up at the first batch."""
        return with_partners(self._recipe, self._selection, self._partners_of)

    def _equal_arrays(self) -> EqualArrays | None:
        """Return what gathers samples that are copied as they are; None where they are unlike."""
        source = self.folder._open().source
        if not self._recipe.is_gathered or not isinstance(source, IndexedFile):
            return None
        if self._equal is None or self._equal[0] is not source:
            self._equal = source, source.equal_arrays(as_array(self._selection.positions))
        equal = self._equal[1]
        return equal if equal is not None and self._recipe.gathers(equal.layout) else None

    def _readers(self, recipe: Recipe) -> InThreads | InProcesses:
        """Return what fills batches: the processes there are, or new threads."""
        if self._pid != os.getpid():
            self._buffers, self._in_processes, self._pid = {}, None, os.getpid()
        if not self._processes:
            return InThreads(self._threads)
        if self._in_processes is None or self._in_processes.is_broken:
            self._in_processes = InProcesses(self._processes, recipe)
        return self._in_processes

    def _started(self, epoch: _Epoch) -> Place:
        """Return where a new iterator begins.

        It does so at its first batch: Lightning calls iter() twice, and only then `set_epoch`.
        """
        start = self._epochs.begin()
        self._current = weakref.ref(epoch)
        return start

    def _handed_out(self, epoch: _Epoch, start: Place, batches: int) -> None:
        """Note how far the newest iterator is; older ones may still be in use."""
        if self._current is not None and self._current() is epoch:
            self._epochs.handed_out(start, batches)

    def _batch(self, request: Request, arrays: dict[str, Any], labels: Any) -> Any:
        """Return a batch as users get it."""
        if self._as_torch:
            masks = {name for name, (is_mask, _) in self._partners_of.items() if is_mask}
            arrays = {name: _as_torch(array, name in masks) for name, array in arrays.items()}
            labels = _as_tensor(labels)
        if not (self._partners_of or self._has_positions):
            return arrays[IMAGE] if self._labels is None else (arrays[IMAGE], labels)
        batch = {IMAGE: arrays[IMAGE]}
        if self._labels is not None:
            batch[LABEL] = labels
        if self._has_positions:
            batch[POSITION] = _as_tensor(request.positions) if self._as_torch else request.positions
        return {**batch, **{name: arrays[name] for name in self._partners_of}}


class _Epoch(Iterator[Any]):
    """The batches of an epoch from a place on.

    A forked process goes on by itself, and so does who catches Ctrl-C: with new readers.
    """

    def __init__(self, loader: H5Loader, order: Order) -> None:
        self._loader, self._order = loader, order
        self._handed_out = 0
        self._is_finished = False
        self._pid = NOT_BEGUN
        #: Batches in the making, and what waits for each.
        self._ahead: deque[tuple[Filling | RemoteFilling, Callable[[], None]]] = deque()
        self._end: Callable[[], object] = lambda: None

    def __next__(self) -> Any:
        handed_out = self._handed_out
        try:
            return self._next()
        except Exception:
            raise
        except BaseException:
            self._interrupt(handed_out)
            raise

    def _next(self) -> Any:
        if self._is_finished:
            raise StopIteration
        if self._pid != os.getpid() or self._readers.is_broken:
            self._begin()
        loader = self._loader
        for buffers in list(loader._buffers.values()):
            buffers.at_request()
        try:
            self._plan()
            if not self._ahead:
                self._finish()
                raise StopIteration
            filling, wait = self._ahead[0]
            wait()
        except Exception:
            self._finish()
            raise
        self._ahead.popleft()
        self._handed_out += 1
        self._plan()  # so that the readers have work while the caller has this batch
        batch = loader._batch(filling.request, *filling.result())
        loader._handed_out(self, self._start, self._handed_out)
        return batch

    def _begin(self) -> None:
        """Start the readers at the batch that is handed out next."""
        loader, order = self._loader, self._order
        if self._pid == NOT_BEGUN:
            self._start = loader._started(self)
        self._pid = os.getpid()
        self._ahead.clear()
        place = (
            order.place_after(self._start, self._handed_out) if self._handed_out else self._start
        )
        self._indices = order.batches(*place) if place.epoch == self._start.epoch else iter(())
        self._number = self._handed_out  # of batches begun
        self._recipe, self._columns = loader._with_partners
        self._equal = None if loader._processes else loader._equal_arrays()
        self._is_over = threading.Event()
        self._readers = loader._readers(self._recipe)
        # no method of the loader: threads must not keep it
        self._buffers = functools.partial(_buffers_of, loader._buffers, loader._is_pinned)
        self._read_ahead = ReadAhead(order, loader._runs, *place) if loader._runs else None
        self._end = weakref.finalize(self, _end, self._is_over, self._readers, self._read_ahead)
        self._filler = Filler(self._recipe)

    def _plan(self) -> None:
        """Have as many batches in the making as are to be ahead."""
        loader = self._loader
        most = loader._prefetch if loader._threads or loader._processes else 1
        while len(self._ahead) < most:
            indices = next(self._indices, None)
            if indices is None:
                return
            self._ahead.append(self._started(indices))

    def _started(self, indices: np.ndarray) -> tuple[Filling | RemoteFilling, Callable[[], None]]:
        """Let the readers begin a batch; return it, and what waits for it."""
        loader, readers = self._loader, self._readers
        partners = {name: (a[indices], b[indices]) for name, (a, b) in self._columns.items()}
        request = Request(self._start.epoch, loader._selection.at(indices), partners)
        labels = functools.partial(loader._labels.take, indices) if loader._labels else None
        self._number += 1
        until_read = self._until_read()
        if isinstance(readers, InProcesses):
            until_read()
            remote = RemoteFilling(request, self._recipe, labels)
            return remote, readers.start(remote)
        filling = Filling(
            request,
            self._recipe,
            buffers=self._buffers,
            filler=self._filler,
            labels=labels,
            until_read=until_read,
            gather=functools.partial(_gather, self._equal, self._buffers, indices)
            if self._equal
            else None,
            threads=loader._threads,
            is_over=self._is_over.is_set,
        )
        return filling, readers.start(filling)

    def _until_read(self) -> Callable[[], None]:
        """Return what waits until the runs of the newest batch are in memory."""
        if self._read_ahead is None:
            return lambda: None
        epoch, start = self._start
        last = self._order.samples_after(epoch, self._number, start) - 1
        return functools.partial(self._read_ahead.wait, self._read_ahead.advance(last))

    def _interrupt(self, handed_out: int) -> None:
        """Forget what was begun: a batch may be half asked for, or its answer be lost.

        The next call begins anew with the batch that this one did not hand out.
        """
        if self._pid == NOT_BEGUN:
            return
        self._handed_out, self._pid = handed_out, INTERRUPTED
        self._loader._handed_out(self, self._start, handed_out)
        if self._loader._in_processes is not None:
            self._loader._in_processes.close()
        self._end()

    def _finish(self) -> None:
        self._is_finished = True
        self._ahead.clear()
        self._end()


def _buffers_of(buffers: dict[str, Buffers], is_pinned: bool, name: str) -> Buffers:
    """Return the memory for arrays of a name."""
    found = buffers.get(name)
    if found is None:
        found = buffers.setdefault(name, PinnedBuffers() if is_pinned else Buffers())
    return found


def _gather(
    equal: EqualArrays, buffers: Callable[[str], Buffers], indices: np.ndarray
) -> np.ndarray:
    """Return samples that are copied as they are, in memory of `buffers` where that is faster."""
    layout, count, memory = equal.layout, len(indices), buffers(IMAGE)
    if count * layout.nbytes < LEAST_REUSED_NBYTES and not memory.is_pinned:
        return equal.take(indices)
    return equal.take(indices, memory.array((count, *layout.shape), layout.dtype))


def _end(
    is_over: threading.Event,
    readers: InThreads | InProcesses,
    read_ahead: ReadAhead | None,
) -> None:
    """End what was started for one epoch; processes are used again."""
    is_over.set()
    if read_ahead is not None:
        read_ahead.close()
    if not isinstance(readers, InProcesses):
        readers.close()


def _check(name: str, value: object, is_right: bool, cure: str) -> None:
    if not is_right:
        raise ValueError(f"{name} is {value!r}: give {cure}")


def _check_readers(processes: int, threads: int | None, pin_memory: bool) -> None:
    if processes and threads is not None:
        raise ValueError("processes read instead of threads: give one of the two")
    if processes and pin_memory:
        raise ValueError("pin_memory=True needs threads: leave processes out")


def _count_threads(threads: int | None) -> int:
    if threads is None:
        beside = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        return max(1, min(MOST_THREADS, usable_cores() // max(1, beside) - 1))
    return at_least("threads", threads, 0)


def _check_torch(as_torch: bool, pin_memory: bool) -> None:
    """Raise ValueError where torch is asked for what it cannot do here."""
    if not (as_torch or pin_memory):
        return
    argument = "as_torch" if as_torch else "pin_memory"
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"{argument}=True needs torch: pip install torch") from error
    if pin_memory and not torch.cuda.is_available():
        raise ValueError("pin_memory=True needs a GPU that torch can use: leave it out")


def _as_torch(array: Any, is_mask: bool) -> Any:
    """Return images as ``(N, C, H, W)`` and masks as ``(N, H, W)``, without a copy."""
    if isinstance(array, list):
        return [_as_torch(one[None], is_mask)[0] for one in array]
    tensor = _as_tensor(array)
    if tensor.ndim == 4 and 1 <= tensor.shape[3] <= MOST_CHANNELS:
        if is_mask and tensor.shape[3] == 1:
            return tensor[..., 0]
        return tensor.permute(0, 3, 1, 2)
    return tensor.unsqueeze(1) if tensor.ndim == 3 and not is_mask else tensor


def _as_tensor(values: Any) -> Any:
    """Return an array of numpy as a tensor; all else as it is."""
    if not isinstance(values, np.ndarray):
        return values
    import torch

    try:
        return torch.from_numpy(values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"torch has no tensors of {values.dtype} (byte order {values.dtype.byteorder!r}): "
            "leave as_torch out"
        ) from error
