"""my_functions.py: where it is found, what it may do, what is said when it is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from converter.sources.user_functions import load_hooks
from helpers.check import assert_refused, assert_same, failures, stored
from helpers.images import as_pillow_reads, save, save_jpegs
from helpers.run import ROOT, command, read_with, run, write_functions

BOTH = ("--custom_read_func", "--custom_prune_func")


@pytest.fixture
def numbers(folder) -> Path:
    for number in range(4):
        (folder / f"{number}.num").write_text(str(number))
    return folder


def test_a_missing_file_of_functions_is_named(numbers, output, convert, tmp_path):
    missing = tmp_path / "nowhere.py"
    ended = convert(numbers, output, *read_with(missing))
    assert_refused(ended, str(missing))
    assert not os.listdir(output.parent)


def test_a_folder_of_functions_is_named(numbers, output, convert, tmp_path):
    ended = convert(numbers, output, *read_with(tmp_path))
    assert_refused(ended, str(tmp_path))


@pytest.mark.parametrize(
    ("flag", "name"), [("--custom_read_func", "my_read"), ("--custom_prune_func", "my_prune")]
)
@pytest.mark.parametrize("source", ["", "my_read = 5\nmy_prune = 'text'\n", "def my_reed(p): 1"])
def test_a_file_without_the_function_is_named(
    source, flag, name, numbers, output, convert, tmp_path
):
    functions = write_functions(tmp_path / "no_functions.py", source)
    ended = convert(numbers, output, flag, f"--path_functions={functions}")
    assert_refused(ended, str(functions), f"no function {name}")
    assert not os.listdir(output.parent)


BROKEN = {
    "raising": ("raise ValueError('no luck')", "ValueError: no luck"),
    "syntax": ("def my_read(:", "SyntaxError"),
    "no_python": ('{"not": python', "SyntaxError"),
    "exiting": ("import sys; sys.exit(3)", "SystemExit"),
    "importing": ("import no_such_package", "no_such_package"),
    "null": ("x = 1\0", "functions.py"),
    "odd": ("class E(Exception):\n    def __str__(self): raise TypeError\nraise E", "E"),
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_imported_is_named_with_the_reason(
    name, workers, numbers, output, convert, tmp_path
):
    source, words = BROKEN[name]
    functions = write_functions(tmp_path / "broken_functions.py", source)
    flags = (*read_with(functions), f"--workers={workers}")
    ended = convert(numbers, output, *flags, "--ext=num")
    assert_refused(ended, str(functions), words)
    assert not os.listdir(output.parent)


def test_a_file_in_another_encoding_is_named(numbers, output, convert, tmp_path):
    functions = tmp_path / "latin_functions.py"
    functions.write_bytes(b"name = '\xe9'\ndef my_read(path): return 1\n")
    ended = convert(numbers, output, "--ext=num", *read_with(functions))
    assert_refused(ended, str(functions))


def test_the_current_folder_comes_before_the_shipped_file(numbers, output, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    write_functions(here / "my_functions.py", "def my_read(path): return 42")
    ended = run(command(numbers, output, "--ext=num", "--custom_read_func"), cwd=here)
    assert ended.status == 0
    assert str(here / "my_functions.py") in ended.err
    assert set(np.ravel(list(stored(output).values()))) == {42}


@pytest.mark.slow
def test_without_one_in_the_current_folder_the_shipped_file_is_taken(folder, output, tmp_path):
    (folder / "a.json").write_text("[1, 2]")
    ended = run(command(folder, output, "--ext=json", "--custom_read_func"), cwd=tmp_path)
    assert ended.status == 0
    assert str(ROOT / "my_functions.py") in ended.err


def test_a_named_file_comes_before_the_current_folder(numbers, output, tmp_path):
    write_functions(tmp_path / "my_functions.py", "def my_read(path): return 42")
    (tmp_path / "other").mkdir()
    named = write_functions(tmp_path / "other" / "named.py", "def my_read(path): return 43")
    flags = ("--ext=num", *read_with(named))
    ended = run(command(numbers, output, *flags), cwd=tmp_path)
    assert ended.status == 0
    assert str(named) in ended.err
    assert set(np.ravel(list(stored(output).values()))) == {43}


@pytest.mark.slow
def test_a_relative_name_is_taken_from_the_current_folder(numbers, output, tmp_path):
    write_functions(tmp_path / "named.py", "def my_read(path): return 43")
    flags = ("--ext=num", "--custom_read_func", "--path_functions=named.py", "--workers=2")
    assert run(command(numbers, output, *flags), cwd=tmp_path).status == 0
    assert set(np.ravel(list(stored(output).values()))) == {43}


@pytest.mark.slow
def test_no_file_is_looked_for_without_a_flag(folder, output, tmp_path):
    save_jpegs(folder, ["a.jpg"])
    write_functions(tmp_path / "my_functions.py", "raise ValueError")
    ended = run(command(folder, output), cwd=tmp_path)
    assert ended.status == 0
    assert "my_functions" not in ended.err


@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "name",
    [
        "json.py",
        "tifffile.py",
        "numpy.py",
        "queue.py",
        "with space-and-dash.py",
        "a.b.py",
        "no_extension",
    ],
)
def test_functions_may_be_in_a_file_of_any_name(name, workers, numbers, output, tmp_path):
    save(numbers / "page.tif", np.arange(12, dtype=np.uint16).reshape(3, 4))
    functions = write_functions(
        tmp_path / name,
        """
        import json as other
        from converter import read_image
        def my_read(path_sample):
            if path_sample.endswith(".tif"):
                return read_image(path_sample)
            import queue, numpy, tifffile
            return numpy.array(other.loads("7")), queue.Queue and 1
        """,
    )
    flags = ("--ext=num,tif", *read_with(functions))
    ended = run(command(numbers, output, f"--workers={workers}", *flags))
    assert ended.status == 0, ended.err
    assert stored(output)["page.tif"].tolist() == np.arange(12).reshape(3, 4).tolist()


def test_functions_may_import_a_module_beside_them(numbers, output, tmp_path):
    write_functions(tmp_path / "neighbour_of_functions.py", "VALUE = 11")
    functions = write_functions(
        tmp_path / "importing_functions.py",
        """
        from neighbour_of_functions import VALUE
        def my_read(path_sample):
            return VALUE
        """,
    )
    flags = ("--ext=num", *read_with(functions), "--workers=2")
    assert run(command(numbers, output, *flags)).status == 0
    assert set(np.ravel(list(stored(output).values()))) == {11}


@pytest.mark.parametrize("flags", [(), ("--dry_run",)])
def test_the_file_is_imported_once_in_a_process(flags, numbers, output, tmp_path):
    functions = write_functions(
        tmp_path / "choosing_functions.py",
        """
        import multiprocessing
        multiprocessing.set_start_method("spawn")  # fails when it is called again
        def my_read(path_sample):
            return int(open(path_sample).read())
        def my_prune(filename_str, ext_str):
            return True
        """,
    )
    chosen = (*BOTH, f"--path_functions={functions}", "--workers=1", *flags)
    ended = run(command(numbers, output, *chosen))
    assert ended.status == 0, ended.err


def test_a_file_that_has_changed_is_imported_again(tmp_path):
    path = write_functions(tmp_path / "functions.py", "def my_read(path): return 1")
    first = load_hooks(path, read=True, prune=False)
    assert load_hooks(path, read=True, prune=False) == first
    write_functions(path, "def my_read(path): return 2")
    second = load_hooks(path, read=True, prune=False)
    assert (first.read(""), second.read("")) == (1, 2)
    assert first.sha256 != second.sha256


@pytest.mark.slow
def test_my_read_gets_the_path_as_a_str_that_opens_the_file(folder, output, tmp_path):
    (folder / "sub").mkdir()
    (folder / "sub" / "a b.num").write_text("17")
    functions = write_functions(
        tmp_path / "asking_functions.py",
        """
        import os
        def my_read(path_sample):
            assert type(path_sample) is str
            assert os.path.isabs(path_sample)
            with open(path_sample) as file:
                return int(file.read())
        """,
    )
    flags = ("--ext=num", *read_with(functions))
    ended = run(command(Path("images"), output, *flags), cwd=folder.parent)
    assert ended.status == 0, ended.err
    assert_same(stored(output)["sub/a b.num"], np.int64(17))


def test_my_prune_gets_the_bare_name_and_ext_as_typed(folder, output, convert, tmp_path):
    save_jpegs(folder, ["a.jpg", "sub/B.JPG", "sub/deeper/c.png"])
    functions = write_functions(
        tmp_path / "noting_functions.py",
        f"""
        def my_prune(filename_str, ext_str):
            assert type(filename_str) is str and type(ext_str) is str
            with open({str(tmp_path / "asked")!r}, "a") as file:
                print(filename_str, ext_str, file=file)
            return filename_str == "B.JPG"
        """,
    )
    flags = ("--ext=.JPG, Png", "--custom_prune_func", f"--path_functions={functions}")
    ended = convert(folder, output, *flags)
    assert ended.status == 0, ended.err
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["a.jpg .JPG, Png", "B.JPG .JPG, Png", "c.png .JPG, Png"]
    assert list(stored(output)) == ["sub/B.JPG"]
    assert "1 .jpg" in ended.out
    assert "1 .png" in ended.out


def test_my_prune_may_return_anything_with_a_truth(folder, output, convert, tmp_path):
    save_jpegs(folder, ["a.jpg", "b.jpg", "c.jpg"])
    functions = write_functions(
        tmp_path / "odd_functions.py",
        "def my_prune(f, e): return {'a.jpg': 1, 'b.jpg': [], 'c.jpg': 'yes'}[f]",
    )
    convert(folder, output, "--custom_prune_func", f"--path_functions={functions}")
    assert set(stored(output)) == {"a.jpg", "c.jpg"}


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("raise ValueError('no luck')", "ValueError: no luck"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("return __import__('numpy').array([1, 2])", "ValueError"),
    ],
)
def test_an_exception_in_my_prune_names_the_file_and_ends_the_run(
    statement, words, folder, output, convert, tmp_path
):
    save_jpegs(folder, ["a.jpg"])
    functions = write_functions(
        tmp_path / "raising_functions.py", f"def my_prune(f, e):\n    {statement}\n"
    )
    ended = convert(folder, output, "--custom_prune_func", f"--path_functions={functions}")
    assert_refused(ended, "my_prune", "a.jpg", words)
    assert not os.listdir(output.parent)


def test_the_run_prints_which_functions_come_from_which_file(folder, output, convert, tmp_path):
    save_jpegs(folder, ["a.jpg"])
    functions = write_functions(
        tmp_path / "two_functions.py",
        """
        def my_read(path): return 1
        def my_prune(f, e): return True
        """,
    )
    ended = convert(folder, output, *BOTH, f"--path_functions={functions}")
    assert f"my_read and my_prune from {functions}" in ended.err


def test_an_array_of_read_image_is_handed_on_as_it_is(folder, output, convert, tmp_path):
    save_jpegs(folder, ["a.jpg"])
    functions = write_functions(
        tmp_path / "handing_functions.py",
        """
        from converter import read_image
        def my_read(path_sample):
            return read_image(path_sample)
        """,
    )
    convert(folder, output, *read_with(functions))
    assert_same(stored(output)["a.jpg"], as_pillow_reads(folder / "a.jpg"))


# The functions that ship


@pytest.fixture
def shipped(tmp_path) -> str:
    copy = shutil.copy(ROOT / "my_functions.py", tmp_path / "shipped_functions.py")
    return f"--path_functions={copy}"


def test_the_shipped_my_read_reads_json(folder, output, convert, shipped):
    values = {
        "number": 5,
        "float": 1.5,
        "truth": True,
        "list": [1, 2, 3],
        "nested": [[[1, 2], [3, 4.5]], [[5, 6], [7, 8]]],
        "empty": [],
        "text": "grüße",
    }
    for name, value in values.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    bad = {"null": "null", "object": '{"a": 1}', "ragged": "[[1], [2, 3]]", "broken": "[1,"}
    for name, text in bad.items():
        (folder / f"{name}.json").write_text(text)
    ended = convert(folder, output, "--ext=json", "--custom_read_func", shipped)
    assert ended.status == 1
    assert set(failures(output)) == {f"{name}.json" for name in bad}
    found = stored(output)
    for name, value in values.items():
        if name == "text":
            assert found["text.json"].tobytes().decode() == value
        else:
            assert_same(found[f"{name}.json"], np.asarray(value))


def test_the_shipped_my_prune_finds_a_substring(folder, output, convert, shipped):
    save_jpegs(folder, ["x.FoO0345", "afoob.jpg", "sub/FOO", "fo.jpg", "o.f"])
    ended = convert(folder, output, "--ext=foo", "--custom_prune_func", shipped)
    assert ended.status == 0, ended.err
    assert set(stored(output)) == {"x.FoO0345", "afoob.jpg", "sub/FOO"}
    assert "left out: 1 .jpg, 1 .f" in ended.out


def test_the_shipped_functions_work_together(folder, output, convert, shipped):
    (folder / "a.FoO0345").write_text("[1, 2]")
    ended = convert(folder, output, "--ext=foo", *BOTH, shipped)
    assert ended.status == 0, ended.err
    assert_same(stored(output)["a.FoO0345"], np.array([1, 2]))


def test_the_contract_is_in_the_docstrings_of_the_shipped_functions():
    sys.path.insert(0, str(ROOT))
    import my_functions

    assert "path_sample : str" in my_functions.my_read.__doc__
    assert "filename_str : str" in my_functions.my_prune.__doc__
    assert "ext_str : str" in my_functions.my_prune.__doc__
    assert len((ROOT / "my_functions.py").read_text().splitlines()) < 60


def test_the_file_records_a_hook_by_its_hash_alone(folder, output, convert, tmp_path):
    save_jpegs(folder, ["a.jpg"])
    source = "def my_read(path):\n    return 1\n"
    functions = write_functions(tmp_path / "secret_name_functions.py", source)
    convert(folder, output, *read_with(functions))
    with h5py.File(output) as file:
        attributes = json.dumps({name: str(value) for name, value in file.attrs.items()})
    assert hashlib.sha256(functions.read_bytes()).hexdigest() in attributes
    assert "secret_name" not in attributes
    assert b"secret_name" not in output.read_bytes()
