"""For any tree of files, and any arrays, the converted file equals the folder."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from converter import H5Folder
from converter.callbacks import Callbacks
from converter.cli import main
from converter.commands.verify import verify
from helpers.check import assert_same
from helpers.run import FUNCTIONS, read_with, write_functions

pytestmark = [
    pytest.mark.mostly_slow,
    pytest.mark.skipif(os.name == "nt", reason="names of POSIX"),
    pytest.mark.filterwarnings("ignore:The recursion limit will not be reset"),  # os.walk needs it
]

#: The same examples in each run, however long one takes.
REPEATABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
PRUNER = """
def my_prune(filename_str, ext_str):
    return True
"""


@contextlib.contextmanager
def fresh_folder() -> Iterator[Path]:
    """Make a folder for one example."""
    path = Path(tempfile.mkdtemp(prefix="converter-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def run(*flags: str) -> tuple[int, str]:
    """Run the command line; return its status and what it says on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["converter", *flags, "--quiet"])
        status = main()  # with arguments of a program its workers start from a new interpreter
    return status, err.getvalue()


def failures_of(output: Path) -> set[str]:
    path = output.with_name(output.name + ".failures.csv")
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {row[0] for row in csv.reader(file)} - {"path"}


def is_utf8(name: str) -> bool:
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in name)


# Names

LETTERS = "aB \n\t#'\"\\*?%$;&|<>(){}[]~`!@^+=,.-_:\r\x01\x7f"
MARKS = "e\u0301\u0308\u00e9o\u0302\u200d\ufeff\u202e\U0001f600ß\u0130\u212b"
BROKEN = "\udcff\udc80\udcc3"  # bytes that are no UTF-8, as Python has them in names

words = st.one_of(
    st.text(LETTERS, min_size=1, max_size=12),
    st.text(MARKS + "ab", min_size=1, max_size=8),
    st.text(BROKEN + "ab", min_size=1, max_size=4),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1),
    st.sampled_from(["a", "A", "é", "e\u0301", "ﬁ", "fi", "-rf", " ", "#", "con", "a.npy"]),
    st.integers(1, 255).map(lambda length: "n" * length),
    st.integers(1, 127).map(lambda length: "ü" * length),
)


def as_listed(name: str) -> str:
    """Spell a name as Python lists it: bytes that are UTF-8 after all become letters."""
    return os.fsdecode(os.fsencode(name))


def is_name(name: str) -> bool:
    return name not in (".", "..") and 0 < len(os.fsencode(name)) <= 255


names = words.map(as_listed).filter(is_name)
paths = st.lists(names, min_size=1, max_size=4).map(tuple)
trees = st.lists(paths, min_size=1, max_size=12)


def make_tree(folder: Path, tree: list[tuple[str, ...]]) -> dict[str, bytes]:
    """Write a file for each path the file system takes; return the contents under the keys."""
    made = {}
    for number, parts in enumerate(tree):
        path = os.path.join(folder, *parts)
        content = b"%d:" % number + os.fsencode("/".join(parts))
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as file:
                file.write(content)
        except OSError:  # such as a file where a folder is to be
            continue
        made["/".join(parts)] = content
    return made


@settings(REPEATABLE, max_examples=60)
@given(trees, st.sampled_from(["array", "encoded"]))
def test_any_tree_of_names_is_converted_one_to_one(tree, store):
    with fresh_folder() as folder:
        text = PRUNER + "def my_read(path):\n    return open(path, 'rb').read()\n"
        functions = write_functions(folder / "all_functions.py", text)
        source, output = folder / "source", folder / "out" / "OUT.h5"
        source.mkdir()
        made = make_tree(source, tree)
        flags = ["--custom_prune_func", f"--path_functions={functions}", "--hidden_folders"]
        flags += ["--custom_read_func"] if store == "array" else ["--store=encoded"]
        flags += ["--skip_decode_check"] if store == "encoded" else []
        place = [f"--path_images={source}", f"--path_output={output}"]
        status, said = run(*place, "--workers=1", *flags)
        wanted = {key: content for key, content in made.items() if is_utf8(key)}
        event(f"{len(made) - len(wanted)} names not UTF-8")
        if not wanted:
            assert status in (1, 2), said
            assert not output.exists()
            return
        assert status == (0 if len(wanted) == len(made) else 1), said
        read = H5Folder(output, verify=True)
        assert list(read) == in_plan_order(wanted)
        with h5py.File(output) as file:
            found: list[str] = []
            file.visititems(
                lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None
            )
            assert sorted(found) == sorted(wanted)
            for key, content in wanted.items():
                assert file[key][()].tobytes() == content
                one = read.read_bytes(key) if store == "encoded" else read[key].tobytes()
                assert one == content
        broken = {key.encode(errors="backslashreplace").decode() for key in set(made) - set(wanted)}
        assert failures_of(output) == broken
        assert verify(output, Callbacks(is_fresh=True)).failed == 0
        before = output.read_bytes()
        status, said = run(*place, "--update", "--workers=1", flags[1])
        assert status == (0 if len(wanted) == len(made) else 1), said
        assert output.read_bytes() == before


def in_plan_order(keys: dict[str, bytes]) -> list[str]:
    """Sort keys: a folder's own files first, by name, then its folders, by name."""

    def order(key: str) -> list[tuple[bool, str]]:
        *folders, name = key.split("/")
        return [(True, folder) for folder in folders] + [(False, name)]

    return sorted(keys, key=order)


@pytest.mark.parametrize("depth", [1, 200])
def test_folders_may_lie_200_deep_and_names_have_255_bytes(depth, tmp_path):
    functions = FUNCTIONS / "load_npy.py"
    source, output = tmp_path / "source", tmp_path / "OUT.h5"
    names = ["n" * 251 + ".npy", "ü" * 125 + "n.npy", "Ü" * 125 + "n.npy", "d/a.npy", "D/a.npy"]
    deep = Path(*["d"] * depth)
    for number, name in enumerate(names):
        (source / deep / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(source / deep / name, np.arange(number))
    flags = [*read_with(functions), "--ext=npy", "--workers=1"]
    status, said = run(f"--path_images={source}", f"--path_output={output}", *flags)
    assert status == 0, said
    read = H5Folder(output, verify=True)
    assert len(read) == len(names)
    for number, name in enumerate(names):
        assert_same(read[(deep / name).as_posix()], np.arange(number))
    assert verify(output, Callbacks(is_fresh=True)).failed == 0


@pytest.mark.everyday
def test_twins_in_case_and_in_unicode_forms_stay_apart(tmp_path):
    functions = FUNCTIONS / "load_npy.py"
    source, output = tmp_path / "source", tmp_path / "OUT.h5"
    names = ["a.npy", "A.npy", "ß.npy", "ss.npy", "ﬁ.npy", "fi.npy"]
    names += [unicodedata.normalize(form, "é.npy") for form in ("NFC", "NFD")]
    source.mkdir()
    for number, name in enumerate(names):
        np.save(source / name, np.array(number))
    if len(os.listdir(source)) < len(names):
        pytest.skip("a file system that takes some of these for the same")
    flags = [*read_with(functions), "--ext=npy", "--workers=1"]
    assert run(f"--path_images={source}", f"--path_output={output}", *flags)[0] == 0
    assert [int(H5Folder(output)[name]) for name in names] == list(range(len(names)))


# Arrays

scalars = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
    st.integers(1, 40).map(lambda size: np.dtype(f"S{size}")),
    st.integers(1, 40).map(lambda size: np.dtype(f"V{size}")),
)
field_names = st.text("abAß _", min_size=1, max_size=3)


def structured(inner: st.SearchStrategy[np.dtype]) -> st.SearchStrategy[np.dtype]:
    fields = st.lists(
        st.tuples(field_names, inner, st.sampled_from([(), (2,), (2, 1)])),
        min_size=1,
        max_size=4,
        unique_by=lambda field: field[0],
    )
    return fields.map(lambda some: np.dtype([f if f[2] else f[:2] for f in some]))


dtypes = st.one_of(scalars, structured(scalars), structured(structured(scalars)))
shapes = st.one_of(
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
    hnp.array_shapes(min_dims=6, max_dims=32, min_side=1, max_side=1),
    st.tuples(st.integers(0, 20_000)),
    st.tuples(st.integers(0, 120), st.integers(0, 120)),
)
COMPRESSIONS = ["none", "auto", "gzip:1", "gzip:9", "zstd:1", "blosc2"]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Draw a dtype and a shape; fill them with bytes that repeat, or do not."""
    dtype, shape = draw(dtypes), draw(shapes)
    count = int(np.prod(shape)) * dtype.itemsize
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    data = random.integers(0, draw(st.sampled_from([1, 2, 5, 256])), count, np.uint8)
    if draw(st.booleans()) and len(data) > 64:
        data[32:] = np.resize(data[:32], len(data) - 32)
    if dtype.kind == "b":
        data &= 1
    return np.frombuffer(data.tobytes(), dtype).reshape(shape)


def has_bool(dtype: np.dtype) -> bool:
    if dtype.fields:
        return any(has_bool(field[0]) for field in dtype.fields.values())
    return dtype.base.kind == "b" if dtype.subdtype is None else has_bool(dtype.subdtype[0])


@settings(REPEATABLE, max_examples=50)
@given(st.lists(arrays(), min_size=1, max_size=5), st.sampled_from(COMPRESSIONS))
def test_any_arrays_are_stored_as_they_are(some, compression):
    package = {"z": "zstandard", "b": "blosc2"}.get(compression[0])
    if package:
        pytest.importorskip(package)
        pytest.importorskip("hdf5plugin")
    with fresh_folder() as folder:
        functions = FUNCTIONS / "load_npy.py"
        source, output = folder / "source", folder / "OUT.h5"
        source.mkdir()
        wanted = {}
        for number, array in enumerate(some):
            if has_bool(array.dtype) and array.dtype.fields:
                array = np.zeros_like(array)  # bytes other than 0 and 1 are no bool
            np.save(source / f"{number}.npy", array)
            wanted[f"{number}.npy"] = np.load(source / f"{number}.npy")
        flags = [*read_with(functions), "--ext=npy"]
        place = [f"--path_images={source}", f"--path_output={output}", "--workers=1"]
        status, said = run(*place, *flags, f"--compression={compression}")
        assert status == 0, (said, failures_of(output))
        read = H5Folder(output, verify=True, threads=1)
        with h5py.File(output) as file:
            for key, array in wanted.items():
                assert (file[key].dtype, file[key].shape) == (array.dtype, array.shape)
                through_h5py = np.empty_like(array)  # [()] would make a scalar native
                if array.size:
                    file[key].read_direct(through_h5py)
                for got in (read[key], through_h5py):
                    assert_bits(got, array)
        assert verify(output, Callbacks(is_fresh=True)).failed == 0
        rows = list(read._open().source.keys.rows.tolist())
        read.close()
        with h5py.File(output, "r+") as file:
            file.attrs["note"] = "the tail is cut off"
        status, said = run(f"--path_output={output}", "--verify", "--rebuild_index", "--workers=1")
        assert status == 0, said
        read = H5Folder(output, verify=True, threads=1)
        assert len(read) == len(rows)
        for key, array in wanted.items():
            assert_bits(read[key], array)


def assert_bits(got: np.ndarray, wanted: np.ndarray) -> None:
    """Compare dtype, shape and every bit."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    assert got.tobytes() == wanted.tobytes()


# Updates

changes = st.lists(
    st.tuples(
        st.sampled_from(["write", "remove", "break", "touch", "move", "damage"]),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=6,
)


def place_of(number: int) -> str:
    """Return one of ten keys, some in folders, some where others have folders."""
    return ["a", "b", "c", "d/a", "d/b", "d/e/f", "g", "g2/h", "z", "y/y/y"][number] + ".npy"


def change(source: Path, output: Path, step: tuple[str, int, int], clock: int) -> None:
    """Do something to a folder; ``clock`` is the time of what is written."""
    what, number, other = step
    path, target = source / place_of(number), source / place_of(other)
    if what == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.arange(other * 50 + 1))
    elif what == "remove":
        path.unlink(missing_ok=True)
    elif what == "break" and path.exists():
        path.write_bytes(b"broken")
    elif what == "move" and path.exists() and path != target:
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        path = target
    elif what == "damage":
        content = bytearray(output.read_bytes())
        content[48 + number % 8] ^= 1  # of the first payload, which is behind 48 bytes
        output.write_bytes(content)
    if what in ("write", "break", "touch") and path.exists():
        os.utime(path, (clock, clock))


@settings(REPEATABLE, max_examples=60)
@given(st.lists(changes, min_size=1, max_size=3), st.sampled_from(["none", "auto", "gzip"]))
def test_after_any_changes_an_update_gives_what_a_fresh_conversion_gives(rounds, compression):
    with fresh_folder() as folder:
        functions = FUNCTIONS / "load_npy.py"
        source, output, fresh = folder / "source", folder / "OUT.h5", folder / "f" / "OUT.h5"
        flags = [*read_with(functions), "--ext=npy"]
        flags += [f"--compression={compression}", "--workers=1"]
        for number in range(0, 10, 2):
            change(source, output, ("write", number, number), 1000)
        np.save(source / "always.npy", np.arange(300))
        assert run(f"--path_images={source}", f"--path_output={output}", *flags)[0] == 0
        for clock, steps in enumerate(rounds):
            for step in steps:
                change(source, output, step, 2000 + clock)
            place = [f"--path_images={source}", f"--path_output={output}"]
            status, said = run(*place, "--update", "--workers=1", flags[1])
            place = [f"--path_images={source}", f"--path_output={fresh}", "--overwrite"]
            assert status == run(*place, *flags)[0], said
            assert output.read_bytes() == fresh.read_bytes()
            assert failures_of(output) == failures_of(fresh)
            event("with failures" if status else "without failures")
