"""Small HDF5 files for the tests of reading, made by the converter."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from converter.cli import main
from converter.format.index import FOOTER, MAGIC, SECTIONS, Footer

READER = """
import numpy

def my_read(path_sample):
    if path_sample.endswith(".txt"):
        return open(path_sample, encoding="utf-8").read()
    return numpy.load(path_sample)
"""


def make_h5(folder: Path, samples: dict[str, Any], *, compression: str = "none") -> Path:
    """Store arrays, and texts under keys in .txt, in ``folder``/out.h5 through the converter."""
    source = folder / "source"
    for key, value in samples.items():
        path = source / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if key.endswith(".txt"):
            path.write_text(value, encoding="utf-8")
        else:
            with path.open("wb") as file:
                np.save(file, value)
    functions = folder / "functions.py"
    functions.write_text(READER)
    output = folder / "out.h5"
    status = main(
        [f"--path_images={source}", f"--path_output={output}", "--ext=npy,txt", "--workers=1",
         "--custom_read_func", f"--path_functions={functions}", f"--compression={compression}",
         "--overwrite", "--quiet"]
    )  # fmt: skip
    assert status == 0
    return output


def equal_samples(count: int, shape: tuple[int, ...] = (4, 5, 3)) -> dict[str, np.ndarray]:
    """Return uint8 arrays of one shape in two folders, all different."""
    random = np.random.default_rng(7)
    return {
        f"{'ab'[n % 2]}/{n:04d}.npy": random.integers(0, 256, shape, np.uint8) for n in range(count)
    }


def smooth(shape: tuple[int, ...], dtype: str = "<u2") -> np.ndarray:
    """Return an array that deflates well and differs everywhere."""
    return (np.arange(np.prod(shape)) // 7).astype(dtype).reshape(shape)


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    """Compare dtype, shape and values, bit for bit."""
    assert isinstance(got, np.ndarray)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    if got.dtype.names or got.dtype.itemsize > 8:  # these have bytes that hold no value
        np.testing.assert_array_equal(got, wanted)
    else:
        assert got.tobytes() == wanted.tobytes()


def stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """Stack arrays as they are; numpy.stack makes big-endian numbers native."""
    batch = np.empty((len(arrays), *arrays[0].shape), arrays[0].dtype)
    for n, array in enumerate(arrays):
        batch[n] = array
    return batch


class TailEditor:
    """Change the fields of a file's tail; the checksum is made good unless told otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = bytearray(path.read_bytes())
        footer = Footer.unpack(self.content[-FOOTER.size :])
        assert footer is not None
        self.footer = footer

    @property
    def index_begin(self) -> int:
        """Return where the footer says that the index begins, behind the sources."""
        return self.sources_begin + self.footer.sources_nbytes

    @property
    def sources_begin(self) -> int:
        return self.footer.hdf5_nbytes + -self.footer.hdf5_nbytes % 8

    def begin(self, section: str) -> int:
        """Return where a section begins in the file."""
        at = self.index_begin
        for name, size in zip(SECTIONS, self.footer.sizes, strict=True):
            if name == section:
                return at
            at += size + -size % 8
        raise KeyError(section)

    def field(self, name: str) -> int:
        """Return a field of the footer, or the size of a section."""
        if name in SECTIONS:
            return self.footer.sizes[SECTIONS.index(name)]
        value = getattr(self.footer, name)
        assert isinstance(value, int)
        return value

    def set_field(self, name: str, value: int) -> TailEditor:
        """Change a field of the footer, or the size of a section."""
        if name in SECTIONS:
            sizes = list(self.footer.sizes)
            sizes[SECTIONS.index(name)] = value
            self.footer = self.footer._replace(sizes=tuple(sizes))
        else:
            self.footer = self.footer._replace(**{name: value})
        return self

    def put(self, section: str, offset: int, form: str, value: int) -> TailEditor:
        """Overwrite one number within a section."""
        struct.pack_into(form, self.content, self.begin(section) + offset, value)
        return self

    def replace_layouts(self, layouts: bytes) -> TailEditor:
        """Put one other layout in the place of all, moving what is behind."""
        sections = {}
        for name in SECTIONS:
            begin = self.begin(name)
            sections[name] = bytes(self.content[begin : begin + self.field(name)])
        sections["layouts"], sections["layout_ends"] = layouts, struct.pack("<Q", len(layouts))
        del self.content[self.index_begin :]
        for section in sections.values():
            self.content += section + bytes(-len(section) % 8)
        self.footer = self.footer._replace(sizes=tuple(map(len, sections.values())))
        self.content += bytes(FOOTER.size)
        return self

    def save(self, *, good_crc: bool = True) -> Path:
        """Write the file back."""
        end = len(self.content) - FOOTER.size
        self.content[end:] = self.footer.pack()
        if good_crc:
            limit = len(self.content) - len(MAGIC) - 4
            crc = zlib.crc32(self.content[min(self.index_begin, end) : limit])
            self.footer = self.footer._replace(crc32=crc)
            self.content[end:] = self.footer.pack()
        self.path.write_bytes(self.content)
        return self.path
