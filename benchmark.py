"""Compare reading an HDF5 file with reading its loose files; two PyTorch datasets to copy.

With --train: compare what a training loop gets, random crops in batches.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from converter import H5Folder

try:
    import torch
    from torch.utils.data import DataLoader
    from torch.utils.data import Dataset as TorchDataset
except ImportError:  # the rest is measured without
    torch = None
    TorchDataset = object

HERE = Path(__file__).resolve().parent
FEWEST_COMPARED = 1000
CACHE_NBYTES = 1 << 30
SECONDS_BETWEEN_LOOKS = 0.2  # at the memory of the process that reads
PACKAGES = ("numpy", "h5py", "imageio", "pillow", "opencv-python-headless", "opencv-python",
            "torch", "torchvision", "zlib-ng")  # fmt: skip


class H5pyImages(TorchDataset):
    """An HDF5 file for a DataLoader, through h5py alone. Copy it as it stands."""

    def __init__(self, path, transform=None):
        self.path, self.transform = os.path.abspath(os.path.expanduser(path)), transform
        self.file = self.pid = None
        names = []
        with self.open() as file:  # 1. list the files once
            file.visititems(lambda name, item: names.append(name.encode()) if isinstance(
                item, h5py.Dataset) else None)  # fmt: skip
        self.names = np.array(names)  # a list would be copied into each worker, bit by bit

    def __len__(self):
        return len(self.names)

    def open(self):
        try:
            return h5py.File(self.path, "r", swmr=True)
        except OSError as error:
            if "lock file" not in str(error) or isinstance(error, BlockingIOError):
                raise
            return h5py.File(self.path, "r", swmr=True, locking=False)  # on a disk without locks

    def __getitem__(self, index):
        if type(index) is not int and np.ndim(index):  # a batch of them
            return [self[one] for one in index]
        if self.pid != os.getpid():  # 2. open the file once in each worker
            self.close()
            self.file, self.pid = self.open(), os.getpid()
        array = np.asarray(self.file[self.names[index]][()])
        return array if self.transform is None else self.transform(array)

    def __getstate__(self):
        return {**self.__dict__, "file": None, "pid": None}

    def close(self):
        file, self.file, self.pid = getattr(self, "file", None), None, None
        if file:
            file.close()

    def __del__(self, suppress=contextlib.suppress):
        with suppress(Exception):  # 3. close, also where Python is about to end
            self.close()


class H5FolderImages(TorchDataset):
    """The same arrays through H5Folder; a DataLoader's batches are read at once."""

    def __init__(self, path, transform=None, **options):
        self.folder, self.transform = H5Folder(path, **options), transform

    def __len__(self):
        return len(self.folder)

    def __getitem__(self, index):
        if type(index) is not int and np.ndim(index):  # a batch of them
            return self.__getitems__(index)
        array = self.folder[index]
        return array if self.transform is None else self.transform(array)

    def __getitems__(self, indices):
        arrays = self.folder.read_batch(indices)
        return arrays if self.transform is None else [self.transform(array) for array in arrays]

    def close(self):
        self.folder.close()


def collate(batch):
    """Return one tensor (N, ...), or where shapes differ a list of tensors.

    ``batch`` holds what a transform returns: arrays or tensors, numbers, or tuples or dicts of
    them, whose fields are collated one by one; anything else stays a list.
    """
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "biufc":
        return torch.from_numpy(batch.astype(batch.dtype.newbyteorder("="), copy=False))
    batch = list(batch)
    if all(isinstance(sample, dict) and sample.keys() == batch[0].keys() for sample in batch):
        return {key: collate([sample[key] for sample in batch]) for key in batch[0]}
    if all(isinstance(sample, (tuple, list)) for sample in batch):
        if len({len(sample) for sample in batch}) > 1:
            return batch
        fields = [collate(field) for field in zip(*batch, strict=True)]
        named = hasattr(batch[0], "_fields")
        return type(batch[0])(*fields) if named else type(batch[0])(fields)
    if not all(isinstance(s, (np.ndarray, np.generic, torch.Tensor, int, float)) for s in batch):
        return batch
    if any(isinstance(s, (np.ndarray, np.generic)) and s.dtype.kind not in "biufc" for s in batch):
        return batch
    tensors = [_tensor(sample) for sample in batch]
    if len({(tensor.dtype, tensor.device) for tensor in tensors}) > 1:
        return tensors
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors)
    # parts of one: a worker then hands over one piece of shared memory, not one for each
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _tensor(value):
    if isinstance(value, np.ndarray):  # torch takes neither other byte orders nor steps back
        value = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("="), copy=False)
    return torch.as_tensor(value, dtype=torch.float64 if type(value) is float else None)


class LooseImages(TorchDataset):
    """The loose files, decoded by one of `DECODERS`."""

    def __init__(self, paths: Sequence[str], decoder: str, functions: Path | None) -> None:
        self.paths, self.decode = np.array([os.fsencode(path) for path in paths]), decoder
        self.functions = functions
        self._read: Callable[[str], Any] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        if self._read is None:
            self._read = DECODERS[self.decode](self.functions)
        return np.asarray(self._read(os.fsdecode(self.paths[index])))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": None}

    def close(self) -> None:
        """Close nothing: each file was closed when read."""


def _imageio(_: Path | None) -> Callable[[str], Any]:
    import imageio.v3

    return imageio.v3.imread


def _opencv(_: Path | None) -> Callable[[str], Any]:
    import cv2

    cv2.setNumThreads(1)

    def read(path: str) -> Any:
        array = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if array is None:
            raise ValueError("OpenCV cannot read it")
        return array

    return read


def _pillow(_: Path | None) -> Callable[[str], Any]:
    from PIL import Image

    def read(path: str) -> Any:
        with Image.open(path) as image:
            return np.array(image)  # asarray's cannot be written to, of which torch warns

    return read


def _my_read(functions: Path | None) -> Callable[[str], Any]:
    if functions is None:
        raise ImportError("it is asked for with --custom_read_func")
    sys.path.append(str(functions.parent))  # for what it imports
    spec = importlib.util.spec_from_file_location("my_functions", functions)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda path: _flat_text(module.my_read(path))


def _flat_text(value: Any) -> Any:
    """Return text and bytes as the converter stores them."""
    if isinstance(value, str):
        value = value.encode()
    return np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value


DECODERS: dict[str, Callable[[Path | None], Callable[[str], Any]]] = {
    "imageio": _imageio, "OpenCV": _opencv, "Pillow": _pillow, "my_read": _my_read,
}  # fmt: skip


class Epoch(NamedTuple):
    """What was measured of one epoch."""

    seconds: float
    samples: int
    nbytes: int
    waited_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Return samples a second."""
        return self.samples / self.seconds


class Job(NamedTuple):
    """One reader in one manner: what a process of its own measures."""

    reader: str
    workers: int | None  # None: a plain loop, no DataLoader
    options: argparse.Namespace
    paths: Sequence[str]

    @property
    def is_loose(self) -> bool:
        """Tell whether it reads the loose files."""
        return self.reader.startswith("loose")

    @property
    def files(self) -> Sequence[str | Path]:
        """Return the files it reads from."""
        return self.paths if self.is_loose else [self.options.path_output]

    @property
    def manner(self) -> str:
        """Say how in the table's words."""
        return "loop" if self.workers is None else f"{self.workers} workers"

    @property
    def panel(self) -> str:
        """Name those it is compared with."""
        return "a loop in one process" if self.workers is None else f"DataLoader, {self.manner}"

    @property
    def label(self) -> str:
        """Name it within its panel."""
        return self.reader

    def open(self) -> Reading:
        """Open what it reads from."""
        return Reading(self)


class Reading:
    """A job at work: arrays are read and let go of."""

    def __init__(self, job: Job) -> None:
        self.job, self.dataset, self.loader = job, self._open(job), None
        if job.workers is not None:
            torch.set_num_threads(1)
            self.loader = _data_loader(job, self.dataset)

    def _open(self, job: Job) -> Any:
        path = job.options.path_output
        if job.is_loose:
            decoder = job.reader.removeprefix("loose, ")
            return LooseImages(job.paths, decoder, job.options.path_functions)
        if job.reader == "h5py":
            return _plain(path)
        # threads as in a main process, which this one stands for; workers have none
        threads = None if job.workers else _usable_cores()
        cache_nbytes = CACHE_NBYTES if "cache" in job.reader else 0
        return H5FolderImages(path, cache_nbytes=cache_nbytes, threads=threads)

    def epoch(self, seed: int) -> Epoch:
        """Read all samples in an order of that seed."""
        order = _chosen(len(self.job.paths), self.job.options.samples)
        random.Random(seed).shuffle(order)
        start = time.perf_counter()
        nbytes = self._read(order)
        return Epoch(time.perf_counter() - start, len(order), nbytes)

    def _read(self, order: list[int]) -> int:
        if self.loader is not None:
            self.loader.sampler.order = order
            return sum(_nbytes(batch) for batch in self.loader)
        if "batches" not in self.job.reader:
            return sum(self.dataset[position].nbytes for position in order)
        size = self.job.options.batch_size
        return sum(
            _nbytes(self.dataset.__getitems__(order[first : first + size]))
            for first in range(0, len(order), size)
        )

    def close(self) -> None:
        """Let go of the file: a mapped one keeps its pages."""
        self.dataset.close()


def _chosen(total: int, samples: int | None) -> list[int]:
    return random.Random(0).sample(range(total), min(samples or total, total))


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _plain(path: Path) -> H5pyImages:
    """Return what needs h5py alone, and imageio where files were stored as they are."""
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401 (zstd and blosc2)
    return H5pyImages(path, transform=_decoded_file if _is_encoded(path) else None)


def _is_encoded(path: Path) -> bool:
    with h5py.File(path) as file:
        return bool(file.attrs.get("store") == "encoded")


def _decoded_file(stored: np.ndarray) -> np.ndarray:
    import imageio.v3

    return imageio.v3.imread(stored.tobytes())


class RandomCrops:
    """Random resized crops, half of them mirrored, for a dataset's ``transform``.

    Without ``antialias`` OpenCV resizes, with it torch does, as torchvision v2 does for tensors.
    ``size`` None: arrays come back whole.
    """

    def __init__(self, size: int | None, *, antialias: bool) -> None:
        self.size, self.antialias = size, antialias

    def __call__(self, image: np.ndarray, mask: np.ndarray | None = None) -> Any:
        if self.size is None:
            return image if mask is None else (image, mask)
        image = np.repeat(image[:, :, None], 3, 2) if image.ndim == 2 else image[:, :, :3]
        box, is_mirrored = _random_box(*image.shape[:2]), random.random() < 0.5
        crop = self._resized(image[box], is_mirrored)
        return crop if mask is None else (crop, self._opencv(mask[box], is_mirrored, nearest=True))

    def _resized(self, box: np.ndarray, is_mirrored: bool) -> Any:
        if not self.antialias:
            return self._opencv(box, is_mirrored)
        tensor = torch.from_numpy(box).permute(2, 0, 1)[None]
        crop = torch.nn.functional.interpolate(
            tensor, (self.size, self.size), mode="bilinear", antialias=True
        )[0]
        return crop.flip(2) if is_mirrored else crop

    def _opencv(self, box: np.ndarray, is_mirrored: bool, *, nearest: bool = False) -> np.ndarray:
        import cv2

        method = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
        crop = cv2.resize(box, (self.size, self.size), interpolation=method)
        return cv2.flip(crop, 1) if is_mirrored else crop


def _random_box(height: int, width: int) -> tuple[slice, slice]:
    """Return a box of 8 to 100 % of the area and 3:4 to 4:3, as torchvision draws it."""
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = random.randint(0, height - tall), random.randint(0, width - wide)
            return slice(top, top + tall), slice(left, left + wide)
    return slice(0, height), slice(0, width)


class LooseCrops(TorchDataset):
    """Crops of the loose files, and of their masks if there are any, by one of `CROPPERS`."""

    def __init__(self, job: TrainJob) -> None:
        self.job, self._crop = job, None
        self.paths = np.array([os.fsencode(path) for path in job.paths])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        if self._crop is None:
            self._crop = self.job.cropper()
        path = os.fsdecode(self.paths[index])
        return self._crop(path, self.job.mask_path(index))


def _opencv_crops(size: int | None, antialias: bool) -> Callable[[str, str | None], Any]:
    import cv2

    cv2.setNumThreads(1)
    crop = RandomCrops(size, antialias=antialias)
    in_rgb = getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR)  # since OpenCV 4.11

    def read(path: str, mask: str | None) -> Any:
        image = cv2.imread(path, in_rgb)
        return crop(image, cv2.imread(mask, cv2.IMREAD_UNCHANGED) if mask else None)

    return read


def _torchvision_crops(size: int | None, antialias: bool) -> Callable[[str, str | None], Any]:
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2
    from torchvision.tv_tensors import Image, Mask

    # it points to torchcodec, which needs FFmpeg and came later
    warnings.filterwarnings("ignore", message=".*of TorchVision are deprecated")

    def crop(*images: Any) -> Any:
        return images if len(images) > 1 else images[0]

    if size is not None:
        crop = v2.Compose(
            [v2.RandomResizedCrop(size, antialias=antialias), v2.RandomHorizontalFlip()]
        )

    def read(path: str, mask: str | None) -> Any:
        image = Image(decode_image(path, ImageReadMode.RGB))
        return crop(image, Mask(decode_image(mask))) if mask else crop(image)

    return read


CROPPERS = {"OpenCV": _opencv_crops, "torchvision": _torchvision_crops}


class TrainJob(NamedTuple):
    """One way to get batches for training: what a process of its own measures."""

    reader: str
    workers: int  # of a DataLoader, or threads of an H5Loader
    options: argparse.Namespace
    keys: Sequence[str]
    antialias: bool
    steps: int  # of a model beside it, an epoch; 0: no model

    @property
    def is_loose(self) -> bool:
        """Tell whether it reads the loose files."""
        return self.reader.startswith("loose")

    @property
    def is_threaded(self) -> bool:
        """Tell whether threads read, and no DataLoader."""
        return self.reader.startswith("H5Loader")

    @property
    def paths(self) -> list[str]:
        """Return the loose files, without their masks."""
        return [_loose_path(self.options, key) for key in self.keys]

    @property
    def output(self) -> Path:
        """Return the HDF5 file it reads."""
        is_encoded = "encoded" in self.reader
        return _encoded_output(self.options) if is_encoded else self.options.path_output

    @property
    def files(self) -> Sequence[str | Path]:
        """Return the files it reads from."""
        if not self.is_loose:
            return [self.output]
        masks = [self.mask_path(index) for index in range(len(self.keys))]
        return [*self.paths, *(mask for mask in masks if mask)]

    @property
    def manner(self) -> str:
        """Say how in the table's words."""
        word = "thread" if self.is_threaded else "worker"
        return f"{self.workers} {word}{'' if self.workers == 1 else 's'}"

    @property
    def panel(self) -> str:
        """Name those it is compared with."""
        if self.steps:
            return f"beside the steps of {_model_name()} on the CPU"
        if self.options.crop is None:
            return "whole images"
        return f"crops to {self.options.crop}, {'' if self.antialias else 'not '}antialiased"

    @property
    def label(self) -> str:
        """Name it within its panel."""
        return f"{self.reader}, {self.manner}"

    def cropper(self) -> Callable[[str, str | None], Any]:
        """Return what reads and crops a loose file."""
        make = CROPPERS[self.reader.removeprefix("loose, ")]
        return make(self.options.crop, self.antialias)

    def mask_path(self, index: int) -> str | None:
        """Return the loose mask of an image."""
        if self.options.masks is None:
            return None
        return _loose_path(self.options, self.options.masks[self.keys[index]])

    def open(self) -> Training:
        """Open what it reads from."""
        return Training(self)


def _loose_path(options: argparse.Namespace, key: str) -> str:
    return os.path.join(options.path_images, *key.split("/"))


class Training:
    """A `TrainJob` at work: the loop asks for batches, and may train on them."""

    def __init__(self, job: TrainJob) -> None:
        self.job = job
        samples = job.steps * job.options.batch_size or job.options.samples
        self.order = _chosen(len(job.keys), samples)
        self.dataset = None
        self.loader = self._h5_loader() if job.is_threaded else self._data_loader()
        self.step = training_step() if job.steps else None

    def _h5_loader(self) -> Any:
        from converter import H5Loader, RandomResizedCrop

        job, size, masks = self.job, self.job.options.crop, self.job.options.masks
        self.dataset = H5Folder(job.output)
        crops: dict[str, Any] = {}
        if size is not None:
            crops = {"crop": RandomResizedCrop(size), "hflip": 0.5, "channels": 3}
        if masks is not None:
            crops["masks"] = {"mask": masks.__getitem__}
        return H5Loader(
            self.dataset,
            batch_size=job.options.batch_size,
            keys=[job.keys[position] for position in self.order],
            antialias=job.antialias,
            order="blocks" if "blocks" in job.reader else "random",
            threads=job.workers,
            as_torch=True,
            **crops,
        )

    def _data_loader(self) -> Any:
        if self.job.is_loose:
            self.dataset = LooseCrops(self.job)
        else:
            transform = RandomCrops(self.job.options.crop, antialias=self.job.antialias)
            self.dataset = H5FolderImages(self.job.output, transform)
        return _data_loader(self.job, self.dataset, drop_last=True)

    def epoch(self, seed: int) -> Epoch:
        """Ask for the batches of one epoch."""
        if not self.job.is_threaded:
            random.Random(seed).shuffle(self.order)
            self.loader.sampler.order = self.order
        samples = nbytes = 0
        waited = 0.0
        start = asked = time.perf_counter()
        for batch in self.loader:
            waited += time.perf_counter() - asked
            parts = list(batch.values()) if isinstance(batch, dict) else batch
            parts = parts if isinstance(parts, (list, tuple)) else [parts]
            samples += len(parts[0])
            nbytes += _nbytes(parts)
            if self.step is not None:
                self.step(parts[0])
            asked = time.perf_counter()
        return Epoch(time.perf_counter() - start, samples, nbytes, waited)

    def close(self) -> None:
        """Let go of the file: a mapped one keeps its pages."""
        self.loader = None
        if not self.job.is_loose:
            self.dataset.close()


def _model_name() -> str:
    return "resnet18" if _is_installed("torchvision") else "a small convnet"


def _is_installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def training_step() -> Callable[[Any], None]:
    """Return one step of training a model, a function of a batch of images."""
    nn = torch.nn
    if _model_name() == "resnet18":
        from torchvision.models import resnet18

        model = resnet18(num_classes=10)
    else:
        layers: list[Any] = []
        for before, after in ((3, 32), (32, 64), (64, 128), (128, 256)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(images: Any) -> None:
        if images.shape[1] != 3:  # (N, H, W, C)
            images = images.permute(0, 3, 1, 2)
        scores = model(images.float() / 255)
        nn.functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class Result(NamedTuple):
    """What was measured of a job: epochs, and the most memory of its own."""

    job: Job | TrainJob
    epochs: list[Epoch]
    memory_nbytes: int

    @property
    def rates(self) -> list[float]:
        """Return samples a second, an epoch each."""
        return [epoch.rate for epoch in self.epochs]


def serve(connection: Connection, job: Job | TrainJob, method: str) -> None:
    """Read one epoch for each seed that comes; send back what was measured.

    Its DataLoader starts workers by ``method``, as in a script, however this process was started.
    """
    multiprocessing.set_start_method(method, force=True)
    reading = None
    while True:
        try:
            seed = connection.recv()
        except EOFError:
            return
        if reading is None:
            reading = job.open()
        connection.send(reading.epoch(seed))
        if job.options.cold:
            reading.close()
            reading = None


def _nbytes(batch: Any) -> int:
    return int(batch.nbytes) if hasattr(batch, "nbytes") else sum(one.nbytes for one in batch)


class _Order:
    """A sampler whose order is set for each epoch."""

    def __init__(self) -> None:
        self.order: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


def _data_loader(job: Job | TrainJob, dataset: Any, *, drop_last: bool = False) -> Any:
    return DataLoader(
        dataset,
        batch_size=job.options.batch_size,
        sampler=_Order(),
        num_workers=job.workers,
        collate_fn=collate,
        drop_last=drop_last,
        persistent_workers=bool(job.workers) and not job.options.cold,
    )


class Contestant:
    """A job in its own process, which reads an epoch when told to."""

    def __init__(self, job: Job | TrainJob) -> None:
        context = _start_method()
        self._connection, theirs = context.Pipe()
        method = multiprocessing.get_start_method()
        self._process = context.Process(target=serve, args=(theirs, job, method))
        self._process.start()
        theirs.close()
        self._before: int | None = None
        self.result = Result(job, [], 0)

    def run(self, seed: int, *, counts: bool) -> None:
        """Read one epoch, looking at its memory now and then."""
        if self._before is None:
            self._before = _own_memory(self._process.pid)
        self._connection.send(seed)
        most = 0
        while not self._connection.poll(SECONDS_BETWEEN_LOOKS):
            most = max(most, _own_memory(self._process.pid) - self._before)
        epoch = self._connection.recv()
        most = max(most, _own_memory(self._process.pid) - self._before, self.result.memory_nbytes)
        self.result = self.result._replace(memory_nbytes=most)
        if counts:
            self.result.epochs.append(epoch)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def _start_method() -> Any:
    """Return how processes start that share nothing but what they import: PyTorch takes seconds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["h5py", "torch"])
    return context


def _own_memory(pid: int | None) -> int:
    """Return the bytes no file stands for, of a process and its workers; 0 if unknown."""
    total = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) << 10
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += _own_memory(int(child))
    return total


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, or 1 when loose files and HDF5 file differ."""
    options = _parse(argv)
    report = {"machine": _machine(), "versions": _versions(), "command": sys.argv[1:]}
    if options.convert:
        report["convert"] = measure_conversion(options)
    if not options.path_output.exists():
        _convert(options, options.path_output, options.store)
    if options.train and not _encoded_output(options).exists():
        _convert(options, _encoded_output(options), "encoded")
    with H5Folder(options.path_output) as folder:
        keys = list(folder)
    paths = [_loose_path(options, key) for key in keys]
    if options.train and _is_encoded(options.path_output):
        raise SystemExit(f"benchmark: {options.path_output} holds no arrays: name another file")
    for output in _outputs(options):
        difference = find_difference(options, output, keys, paths)
        if difference:
            print(f"benchmark: {difference}", file=sys.stderr)
            return 1
    report["sizes"] = {
        "files": len(paths),
        "source_nbytes": sum(os.path.getsize(path) for path in paths),
        "hdf5_nbytes": options.path_output.stat().st_size,
    }
    groups = _train_jobs(options, keys) if options.train else [list(_jobs(options, paths))]
    report["cold"], report["epochs"] = options.cold, options.epochs
    report["unit"] = "images" if options.train else "files"
    report["results"] = [row for jobs in groups for row in _rows(measure(jobs))]
    _print_head(report)
    _print_training(report) if options.train else _print(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plot(report, options.plot)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark", description=__doc__, allow_abbrev=False)
    # fmt: off
    add = parser.add_argument
    add("--path_images", type=_path, required=True, help="the folder of loose files")
    add("--path_output", type=_path, required=True, help="its HDF5 file; made if missing")
    add("--ext", default="jpg", help="as for the converter (default: jpg)")
    add("--custom_read_func", action="store_true", help="as for the converter")
    add("--path_functions", type=_path, help="as for the converter")
    add("--store", default="array", help="as for the converter, if it runs")
    add("--compression", default="auto", help="as for the converter, if it runs")
    add("--batch_size", type=int, help="default: 32, with --train 64")
    add("--num_workers", default="0,2", help="DataLoader workers, with commas (default: 0,2)")
    add("--epochs", type=int, default=3, help="that count, behind one that does not (default: 3)")
    add("--samples", type=int, help="read so many in each epoch (default: all)")
    add("--plot", type=_path, metavar="FILE.png", help="draw a chart; needs matplotlib")
    add("--json", type=_path, metavar="FILE", help="write all figures")
    add("--cold", action="store_true", help="drop cached pages before each epoch (Linux)")
    add("--convert", action="store_true", help="measure the conversion too")
    add("--train", action="store_true",
        help="compare what a training loop gets; makes OUT.encoded.h5 too, if missing")
    train = parser.add_argument_group("with --train").add_argument
    train("--crop", type=int, default=224,
          help="side of the random crops, 0: whole images (default: 224)")
    train("--threads", default="1,2", help="threads of H5Loader (default: 1,2)")
    train("--orders", default="random", help="such as random,blocks (default: random)")
    train("--steps", type=int, default=3,
          help="steps of a model in each epoch, 0: no model (default: 3)")
    train("--masks", metavar="IMAGES:MASKS",
          help="folders below --path_images of images and masks, by the same names but for the "
          "extension; makes pairs of them")
    # fmt: on
    options = parser.parse_args(argv)
    options.batch_size = options.batch_size or (64 if options.train else 32)
    for name in ("num_workers", "threads"):
        given = getattr(options, name)
        try:
            setattr(options, name, [int(number) for number in given.split(",")])
        except ValueError:
            parser.error(f"--{name}={given}: give numbers with commas, such as 0,2")
    options.orders = options.orders.split(",")
    if min(options.batch_size, options.epochs, *(n + 1 for n in options.num_workers)) < 1:
        parser.error("--batch_size and --epochs are at least 1, --num_workers at least 0")
    if options.train:
        _check_training(parser, options)
    if options.cold and not hasattr(os, "posix_fadvise"):
        parser.error("--cold needs posix_fadvise, which this system has not")
    if options.custom_read_func and options.path_functions is None:
        options.path_functions = HERE / "my_functions.py"
    return options


def _check_training(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if torch is None:
        parser.error("--train needs PyTorch: pip install torch torchvision opencv-python-headless")
    if options.custom_read_func or options.store != "array":
        parser.error("--train compares images, as arrays and encoded: leave out "
                     "--custom_read_func and --store")  # fmt: skip
    if not set(options.orders) <= {"random", "blocks"}:
        parser.error(f"--orders={','.join(options.orders)}: give random, blocks or both")
    if min(options.threads) < 0 or options.steps < 0 or options.crop < 0:
        parser.error("--threads, --steps and --crop are at least 0")
    options.crop = options.crop or None
    if options.crop is None:
        options.steps = 0  # the model wants images of one size
    if options.masks is not None and options.masks.count(":") != 1:
        parser.error(f"--masks={options.masks}: give two folders, such as images:masks")


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _encoded_output(options: argparse.Namespace) -> Path:
    return options.path_output.with_suffix(f".encoded{options.path_output.suffix}")


def _outputs(options: argparse.Namespace) -> list[Path]:
    return [options.path_output, *([_encoded_output(options)] if options.train else [])]


def _convert(options: argparse.Namespace, output: Path, store: str) -> None:
    command = [sys.executable, str(HERE / "converter"), f"--path_images={options.path_images}",
               f"--path_output={output}", f"--ext={options.ext}", "--quiet",
               f"--store={store}"]  # fmt: skip
    if store == "array":
        command.append(f"--compression={options.compression}")
    if options.custom_read_func:
        command += ["--custom_read_func", f"--path_functions={options.path_functions}"]
    status = subprocess.run(command, check=False).returncode
    if not output.exists():
        raise SystemExit(status or 1)


def find_difference(
    options: argparse.Namespace, output: Path, keys: Sequence[str], paths: Sequence[str]
) -> str | None:
    """Compare at least 1000 samples, read anew as the converter does, in all three readings."""
    from converter import read_image

    read = _my_read(options.path_functions) if options.custom_read_func else read_image
    chosen = random.Random(0).sample(range(len(keys)), min(FEWEST_COMPARED, len(keys)))
    plain = _plain(output)
    positions = {os.fsdecode(name): n for n, name in enumerate(plain.names)}
    with H5Folder(output) as folder:
        for n, position in enumerate(chosen):
            key, loose = keys[position], np.asarray(read(paths[position]))
            neighbours = chosen[n : n + 2]
            for stored in (
                folder[key], folder.read_batch(neighbours)[0], plain[positions[key]]
            ):  # fmt: skip
                if stored.dtype != loose.dtype or not np.array_equal(stored, loose):
                    return f"{key} differs between {options.path_images} and {output}"
    plain.close()
    return None


def _jobs(options: argparse.Namespace, paths: Sequence[str]) -> Iterator[Job]:
    readers = []
    for name, decoder in DECODERS.items():
        if name == "my_read" and not options.custom_read_func:
            continue
        try:
            decoder(options.path_functions)(paths[0])
        except Exception as error:
            print(f"without {name}: {str(error).splitlines()[0]}", file=sys.stderr)
        else:
            readers.append(f"loose, {name}")
    readers += ["h5py", "H5Folder", "H5Folder, batches"]
    if not options.cold:
        readers.append("H5Folder, cache")
    for reader in readers:
        yield Job(reader, None, options, paths)
    if torch is None:
        print("without PyTorch: a plain loop alone is measured", file=sys.stderr)
        return
    for workers in options.num_workers:
        for reader in readers:
            if reader != "H5Folder":  # its DataLoader reads in batches
                yield Job(reader, workers, options, paths)


def _train_jobs(options: argparse.Namespace, keys: Sequence[str]) -> list[list[TrainJob]]:
    """Return the jobs that are compared with each other, group by group."""
    options.masks = _masks_of(options, keys)
    images = list(keys if options.masks is None else options.masks)
    groups = []
    for antialias in (True, False) if options.crop else (False,):
        if options.crop and not antialias and not _is_installed("cv2"):
            print("only antialiased: no OpenCV is installed", file=sys.stderr)
            continue
        loaders = [(reader, workers) for reader in _data_loader_readers(options, images, antialias)
                   for workers in options.num_workers]  # fmt: skip
        loaders += [(reader, threads) for reader in _h5_loader_readers(options)
                    for threads in options.threads]  # fmt: skip
        groups.append([TrainJob(*loader, options, images, antialias, 0) for loader in loaders])
    if options.steps:  # of each reader one job: a model takes long
        jobs = {job.reader: job for job in reversed(groups[0]) if job.is_threaded}
        jobs |= {job.reader: job for job in groups[0] if not job.is_threaded}
        groups.append([job._replace(steps=options.steps) for job in groups[0]
                       if jobs[job.reader] is job])  # fmt: skip
    return groups


def _h5_loader_readers(options: argparse.Namespace) -> list[str]:
    return [name if order == "random" else f"{name}, {order}"
            for name in ("H5Loader", "H5Loader, encoded") for order in options.orders]  # fmt: skip


def _data_loader_readers(
    options: argparse.Namespace, images: Sequence[str], antialias: bool
) -> Iterator[str]:
    """Name what a DataLoader can read from here."""
    for name in CROPPERS:
        job = TrainJob(f"loose, {name}", 0, options, images, antialias, 0)
        try:
            LooseCrops(job)[0]
        except Exception as error:
            print(f"without {name}: {str(error).splitlines()[0]}", file=sys.stderr)
        else:
            yield job.reader
    if options.masks is None:
        yield "H5FolderImages"


def _masks_of(options: argparse.Namespace, keys: Sequence[str]) -> dict[str, str] | None:
    """Return the mask of each image."""
    if options.masks is None:
        return None
    of_images, of_masks = (f"{name.strip('/')}/" for name in options.masks.split(":"))
    masks = {os.path.splitext(key[len(of_masks) :])[0]: key
             for key in keys if key.startswith(of_masks)}  # fmt: skip
    pairs = {}
    for key in keys:
        if key.startswith(of_images):
            name = os.path.splitext(key[len(of_images) :])[0]
            if name not in masks:
                raise SystemExit(f"benchmark: {key} has no mask: put {of_masks}{name} beside it")
            pairs[key] = masks[name]
    if not pairs:
        raise SystemExit(f"benchmark: --masks={options.masks}: no image is below {of_images}")
    return pairs


def measure(jobs: Sequence[Job | TrainJob]) -> list[Result]:
    """Let the jobs read epochs in turn; the first round of each does not count."""
    with contextlib.ExitStack() as stack:
        contestants = []
        for job in jobs:
            contestant = Contestant(job)
            stack.callback(contestant.close)
            contestants.append(contestant)
        for epoch in range(jobs[0].options.epochs + 1):
            for contestant in contestants:
                job = contestant.result.job
                if job.options.cold:
                    drop_pages(job.files)
                contestant.run(epoch, counts=epoch > 0)
        return [contestant.result for contestant in contestants]


def drop_pages(paths: Sequence[str | Path]) -> None:
    """Have the system forget what it cached of files; nothing may be mapped."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def measure_conversion(options: argparse.Namespace) -> dict[str, float]:
    """Return files a second of the converter, the usual script and decoding alone."""
    output = options.path_output.with_name(options.path_output.name + ".benchmark")
    rates = {}
    start = time.perf_counter()
    try:
        _convert(options, output, options.store)
        seconds = time.perf_counter() - start
        with H5Folder(output) as folder:
            keys = list(folder)
    finally:
        output.unlink(missing_ok=True)
    rates["converter"] = len(keys) / seconds
    paths = [os.path.join(options.path_images, *key.split("/")) for key in keys]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pool.map(_decoded_nbytes, [(options.path_functions, path) for path in paths[:8]])
        start = time.perf_counter()
        pool.map(_decoded_nbytes, [(options.path_functions, path) for path in paths], 32)
        rates["decoding alone"] = len(keys) / (time.perf_counter() - start)
        start = time.perf_counter()
        try:
            with h5py.File(output, "w") as file:
                arrays = pool.imap(_decoded, [(options.path_functions, path) for path in paths])
                for key, array in zip(keys, arrays, strict=True):
                    lzf = {"compression": "lzf"} if array.size and array.ndim else {}
                    file.create_dataset(key, data=array, **lzf)
        finally:
            output.unlink(missing_ok=True)
        rates["the usual script"] = len(keys) / (time.perf_counter() - start)
    return rates


def _decoded(task: tuple[Path | None, str]) -> np.ndarray:
    functions, path = task
    decoder = _my_read if functions else _imageio
    return np.asarray(decoder(functions)(path))


def _decoded_nbytes(task: tuple[Path | None, str]) -> int:
    return _decoded(task).nbytes


def _rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    rows = []
    for result in results:
        job, rates, rate = result.job, result.rates, statistics.median(result.rates)
        loose = [statistics.median(other.rates) for other in results
                 if other.job.panel == job.panel and other.job.is_loose]  # fmt: skip
        nbytes = statistics.median(epoch.nbytes / epoch.samples for epoch in result.epochs)
        rows.append(
            {
                "reader": job.reader,
                "manner": job.manner,
                "panel": job.panel,
                "label": job.label,
                "files_per_second": rate,
                "least": min(rates),
                "most": max(rates),
                "megabytes_per_second": rate * nbytes / 1e6,
                "times_loose": rate / max(loose) if loose else None,
                "waited": statistics.median(e.waited_seconds / e.seconds for e in result.epochs),
                "own_memory_megabytes": result.memory_nbytes / 1e6,
            }
        )
    return rows


def _machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if os.name != "nt" else 0
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    return {"processor": model, "cores": os.cpu_count(), "memory_nbytes": memory,
            "system": f"{platform.system()} {platform.release()}"}  # fmt: skip


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "hdf5": h5py.version.hdf5_version}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _print_head(report: dict[str, Any]) -> None:
    machine, sizes = report["machine"], report["sizes"]
    print(f"{machine['processor']}, {machine['cores']} cores, "
          f"{machine['memory_nbytes'] / 2**30:.0f} GiB, {machine['system']}")  # fmt: skip
    print(", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    print(f"{sizes['files']} files, {sizes['source_nbytes'] / 1e6:.1f} MB loose, "
          f"{sizes['hdf5_nbytes'] / 1e6:.1f} MB as HDF5")  # fmt: skip
    for name, rate in report.get("convert", {}).items():
        print(f"converting, {name}: {rate:,.0f} files/s")
    state = "cold" if report["cold"] else "warm"
    order = "" if report["unit"] == "images" else " in random order"
    print(f"\nmedian of {report['epochs']} epochs{order}, page cache {state}")


def _print(report: dict[str, Any]) -> None:
    print()
    print("| reader | manner | files/s | from - to | MB/s | x loose | own memory, MB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for row in report["results"]:
        times = "" if row["times_loose"] is None else f"{row['times_loose']:.1f}"
        print(f"| {row['reader']} | {row['manner']} | {row['files_per_second']:,.0f} | "
              f"{row['least']:,.0f} - {row['most']:,.0f} | {row['megabytes_per_second']:,.0f} | "
              f"{times} | {row['own_memory_megabytes']:,.0f} |")  # fmt: skip


def _print_training(report: dict[str, Any]) -> None:
    panel = None
    for row in report["results"]:
        if row["panel"] != panel:
            panel = row["panel"]
            print(f"\n{panel[0].upper()}{panel[1:]}\n")
            print("| reader | manner | images/s | from - to | x loose | waited | own memory, MB |")
            print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
        times = "" if row["times_loose"] is None else f"{row['times_loose']:.2f}"
        print(f"| {row['reader']} | {row['manner']} | {row['files_per_second']:,.0f} | "
              f"{row['least']:,.0f} - {row['most']:,.0f} | {times} | {row['waited']:.0%} | "
              f"{row['own_memory_megabytes']:,.0f} |")  # fmt: skip


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the rates as bars from zero, each with its ratio to the fastest loose one beside it."""
    try:
        import matplotlib
    except ImportError:
        print("without a chart: pip install matplotlib", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_panel: dict[str, list[dict[str, Any]]] = {}
    for row in report["results"]:
        by_panel.setdefault(row["panel"], []).insert(0, row)
    heights = [len(rows) for rows in by_panel.values()]
    figure, panels = pyplot.subplots(
        len(heights), 1, figsize=(7.5, 0.3 * sum(heights) + 0.8 * len(heights)), squeeze=False,
        layout="constrained", height_ratios=heights,
    )  # fmt: skip
    for (title, rows), panel in zip(by_panel.items(), panels[:, 0], strict=True):
        colors = ["0.7" if row["reader"].startswith("loose") else "tab:blue" for row in rows]
        rates = [row["files_per_second"] for row in rows]
        bars = panel.barh([row["label"] for row in rows], rates, color=colors)
        panel.bar_label(bars, [_label(row) for row in rows], padding=3)
        panel.set(xlim=(0, 1.25 * max(rates)), title=title)
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel(f"{report['unit']}/s (x: times the fastest loose reader)")
    figure.savefig(path, dpi=110)


def _label(row: dict[str, Any]) -> str:
    times = "" if row["times_loose"] is None else f" ({row['times_loose']:.1f}x)"
    return f"{row['files_per_second']:,.0f}{times}"


if __name__ == "__main__":
    sys.exit(main())
