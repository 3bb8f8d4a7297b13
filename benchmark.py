"""Compare reading an HDF5 file with reading its loose files; two PyTorch datasets to copy."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import time
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
            "torch", "zlib-ng")  # fmt: skip


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

    def __del__(self):
        with contextlib.suppress(Exception):  # 3. close, also where Python is about to end
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
    def manner(self) -> str:
        """Say how in the table's words."""
        return "loop" if self.workers is None else f"{self.workers} workers"

    def open(self) -> Any:
        """Return the dataset it reads from."""
        path = self.options.path_output
        if self.is_loose:
            decoder = self.reader.removeprefix("loose, ")
            return LooseImages(self.paths, decoder, self.options.path_functions)
        if self.reader == "h5py":
            return _plain(path)
        # threads as in a main process, which this one stands for; workers have none
        threads = None if self.workers else _usable_cores()
        cache_nbytes = CACHE_NBYTES if "cache" in self.reader else 0
        return H5FolderImages(path, cache_nbytes=cache_nbytes, threads=threads)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _plain(path: Path) -> H5pyImages:
    """Return what needs h5py alone, and imageio where files were stored as they are."""
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401 (zstd and blosc2)
    with h5py.File(path) as file:
        is_encoded = file.attrs.get("store") == "encoded"
    return H5pyImages(path, transform=_decoded_file if is_encoded else None)


def _decoded_file(stored: np.ndarray) -> np.ndarray:
    import imageio.v3

    return imageio.v3.imread(stored.tobytes())


class Result(NamedTuple):
    """What was measured of a job: an epoch each, and the most memory of its own."""

    job: Job
    seconds: list[float]
    nbytes: list[int]
    memory_nbytes: int

    @property
    def rates(self) -> list[float]:
        """Return files a second, an epoch each."""
        return [_samples(self.job) / seconds for seconds in self.seconds]


def _samples(job: Job) -> int:
    return min(job.options.samples or len(job.paths), len(job.paths))


def serve(connection: Connection, job: Job) -> None:
    """Read one epoch for each seed that comes; send back seconds and bytes."""
    dataset = loader = None
    while True:
        try:
            seed = connection.recv()
        except EOFError:
            return
        if dataset is None:
            dataset = job.open()
            loader = None if job.workers is None else _data_loader(job, dataset)
        start = time.perf_counter()
        nbytes = _epoch(job, dataset, loader, seed)
        connection.send((time.perf_counter() - start, nbytes))
        if job.options.cold:  # a mapped file keeps its pages
            dataset.close()
            dataset = loader = None


def _epoch(job: Job, dataset: Any, loader: Any, seed: int) -> int:
    order = random.Random(0).sample(range(len(job.paths)), _samples(job))
    random.Random(seed).shuffle(order)
    if loader is not None:
        loader.sampler.order = order
        return sum(_nbytes(batch) for batch in loader)
    if "batches" not in job.reader:
        return sum(dataset[position].nbytes for position in order)
    size = job.options.batch_size
    return sum(
        _nbytes(dataset.__getitems__(order[first : first + size]))
        for first in range(0, len(order), size)
    )


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


def _data_loader(job: Job, dataset: Any) -> Any:
    torch.set_num_threads(1)
    return DataLoader(
        dataset,
        batch_size=job.options.batch_size,
        sampler=_Order(),
        num_workers=job.workers,
        collate_fn=collate,
        persistent_workers=bool(job.workers) and not job.options.cold,
    )


class Contestant:
    """A job in its own process, which reads an epoch when told to."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, job))
        self._process.start()
        theirs.close()
        self._before: int | None = None
        self.result = Result(job, [], [], 0)

    def run(self, seed: int, *, counts: bool) -> None:
        """Read one epoch, looking at its memory now and then."""
        if self._before is None:
            self._before = _own_memory(self._process.pid)
        self._connection.send(seed)
        most = 0
        while not self._connection.poll(SECONDS_BETWEEN_LOOKS):
            most = max(most, _own_memory(self._process.pid) - self._before)
        seconds, nbytes = self._connection.recv()
        most = max(most, _own_memory(self._process.pid) - self._before, self.result.memory_nbytes)
        self.result = self.result._replace(memory_nbytes=most)
        if counts:
            self.result.seconds.append(seconds)
            self.result.nbytes.append(nbytes)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


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
        _convert(options, options.path_output)
    with H5Folder(options.path_output) as folder:
        keys = list(folder)
    paths = [os.path.join(options.path_images, *key.split("/")) for key in keys]
    difference = find_difference(options, keys, paths)
    if difference:
        print(f"benchmark: {difference}", file=sys.stderr)
        return 1
    report["sizes"] = {
        "files": len(paths),
        "source_nbytes": sum(os.path.getsize(path) for path in paths),
        "hdf5_nbytes": options.path_output.stat().st_size,
    }
    results = measure(list(_jobs(options, paths)))
    report["cold"], report["epochs"] = options.cold, options.epochs
    report["results"] = _rows(results)
    _print(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plot(report, options.plot)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--path_images", type=_path, required=True, help="the folder of loose files")
    add("--path_output", type=_path, required=True, help="its HDF5 file; made if missing")
    add("--ext", default="jpg", help="as for the converter (default: jpg)")
    add("--custom_read_func", action="store_true", help="as for the converter")
    add("--path_functions", type=_path, help="as for the converter")
    add("--store", default="array", help="as for the converter, if it runs")
    add("--compression", default="auto", help="as for the converter, if it runs")
    add("--batch_size", type=int, default=32, help="default: 32")
    add("--num_workers", default="0,2", help="DataLoader workers, with commas (default: 0,2)")
    add("--epochs", type=int, default=3, help="that count, behind one that does not (default: 3)")
    add("--samples", type=int, help="read so many in each epoch (default: all)")
    add("--plot", type=_path, metavar="FILE.png", help="draw a chart; needs matplotlib")
    add("--json", type=_path, metavar="FILE", help="write all figures")
    add("--cold", action="store_true", help="drop cached pages before each epoch (Linux)")
    add("--convert", action="store_true", help="measure the conversion too")
    options = parser.parse_args(argv)
    try:
        options.num_workers = [int(number) for number in options.num_workers.split(",")]
    except ValueError:
        parser.error(f"--num_workers={options.num_workers}: give numbers with commas, such as 0,2")
    if min(options.batch_size, options.epochs, *(n + 1 for n in options.num_workers)) < 1:
        parser.error("--batch_size and --epochs are at least 1, --num_workers at least 0")
    if options.cold and not hasattr(os, "posix_fadvise"):
        parser.error("--cold needs posix_fadvise, which this system has not")
    if options.custom_read_func and options.path_functions is None:
        options.path_functions = HERE / "my_functions.py"
    return options


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _convert(options: argparse.Namespace, output: Path) -> None:
    command = [sys.executable, str(HERE / "converter"), f"--path_images={options.path_images}",
               f"--path_output={output}", f"--ext={options.ext}", "--quiet",
               f"--store={options.store}", f"--compression={options.compression}"]  # fmt: skip
    if options.custom_read_func:
        command += ["--custom_read_func", f"--path_functions={options.path_functions}"]
    status = subprocess.run(command, check=False).returncode
    if not output.exists():
        raise SystemExit(status or 1)


def find_difference(
    options: argparse.Namespace, keys: Sequence[str], paths: Sequence[str]
) -> str | None:
    """Compare at least 1000 samples, read anew as the converter does, in all three readings."""
    from converter import read_image

    read = _my_read(options.path_functions) if options.custom_read_func else read_image
    chosen = random.Random(0).sample(range(len(keys)), min(FEWEST_COMPARED, len(keys)))
    plain = _plain(options.path_output)
    positions = {os.fsdecode(name): n for n, name in enumerate(plain.names)}
    with H5Folder(options.path_output) as folder:
        for n, position in enumerate(chosen):
            key, loose = keys[position], np.asarray(read(paths[position]))
            neighbours = chosen[n : n + 2]
            for stored in (
                folder[key], folder.read_batch(neighbours)[0], plain[positions[key]]
            ):  # fmt: skip
                if stored.dtype != loose.dtype or not np.array_equal(stored, loose):
                    return f"{key} differs between {options.path_images} and the HDF5 file"
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


def measure(jobs: Sequence[Job]) -> list[Result]:
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
                    drop_pages(job.paths if job.is_loose else [job.options.path_output])
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
        _convert(options, output)
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
        manner, rates = result.job.manner, result.rates
        loose = [statistics.median(other.rates) for other in results
                 if other.job.manner == manner and other.job.is_loose]  # fmt: skip
        rate = statistics.median(rates)
        nbytes = statistics.median(result.nbytes) / _samples(result.job)
        rows.append(
            {
                "reader": result.job.reader,
                "manner": manner,
                "files_per_second": rate,
                "least": min(rates),
                "most": max(rates),
                "megabytes_per_second": rate * nbytes / 1e6,
                "times_loose": rate / max(loose) if loose else None,
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


def _print(report: dict[str, Any]) -> None:
    machine, sizes = report["machine"], report["sizes"]
    print(f"{machine['processor']}, {machine['cores']} cores, "
          f"{machine['memory_nbytes'] / 2**30:.0f} GiB, {machine['system']}")  # fmt: skip
    print(", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    print(f"{sizes['files']} files, {sizes['source_nbytes'] / 1e6:.1f} MB loose, "
          f"{sizes['hdf5_nbytes'] / 1e6:.1f} MB as HDF5")  # fmt: skip
    for name, rate in report.get("convert", {}).items():
        print(f"converting, {name}: {rate:,.0f} files/s")
    state = "cold" if report["cold"] else "warm"
    print(f"\nmedian of {report['epochs']} epochs in random order, page cache {state}\n")
    print("| reader | manner | files/s | from - to | MB/s | x loose | own memory, MB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for row in report["results"]:
        times = "" if row["times_loose"] is None else f"{row['times_loose']:.1f}"
        print(f"| {row['reader']} | {row['manner']} | {row['files_per_second']:,.0f} | "
              f"{row['least']:,.0f} - {row['most']:,.0f} | {row['megabytes_per_second']:,.0f} | "
              f"{times} | {row['own_memory_megabytes']:,.0f} |")  # fmt: skip


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the rates as bars from zero, a panel for each manner.

    Each bar gives its ratio to the fastest loose reader of its panel.
    """
    try:
        import matplotlib
    except ImportError:
        print("without a chart: pip install matplotlib", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_manner: dict[str, list[dict[str, Any]]] = {}
    for row in report["results"]:
        by_manner.setdefault(row["manner"], []).insert(0, row)
    heights = [len(rows) for rows in by_manner.values()]
    figure, panels = pyplot.subplots(
        len(heights), 1, figsize=(7.5, 0.3 * sum(heights) + 0.8 * len(heights)), squeeze=False,
        layout="constrained", height_ratios=heights,
    )  # fmt: skip
    for (manner, rows), panel in zip(by_manner.items(), panels[:, 0], strict=True):
        colors = ["0.7" if row["reader"].startswith("loose") else "tab:blue" for row in rows]
        rates = [row["files_per_second"] for row in rows]
        bars = panel.barh([row["reader"] for row in rows], rates, color=colors)
        panel.bar_label(bars, [_label(row) for row in rows], padding=3)
        panel.set(xlim=(0, 1.25 * max(rates)), title=_title(manner))
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("files/s (x: times the fastest loose reader)")
    figure.savefig(path, dpi=110)


def _title(manner: str) -> str:
    return "a loop in one process" if manner == "loop" else f"DataLoader, {manner}"


def _label(row: dict[str, Any]) -> str:
    times = "" if row["times_loose"] is None else f" ({row['times_loose']:.1f}x)"
    return f"{row['files_per_second']:,.0f}{times}"


if __name__ == "__main__":
    sys.exit(main())
