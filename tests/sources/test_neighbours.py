"""What lies beside a file of functions goes first for what it imports, and for nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converter.sources.user_functions import load_hooks
from helpers.check import stored
from helpers.run import Finished, command, read_with, run, write_functions

CHECK = """
def check(package):
    assert not hasattr(package, "VALUE"), package
"""


@pytest.fixture
def numbers(folder: Path) -> Path:
    for name in ("a.num", "b.num"):
        (folder / name).write_text("1")
    return folder


@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "name", ["benchmark", "tests", "zstandard", "tqdm", "random", "dask", "my_own_module"]
)
def test_a_neighbour_goes_before_any_other_module_of_its_name(
    numbers: Path, output: Path, tmp_path: Path, name: str, workers: int
) -> None:
    write_functions(tmp_path / f"{name}.py", "VALUE = 11")
    functions = write_functions(
        tmp_path / "my_functions.py",
        f"""
        import sys, tempfile
        from {name} import VALUE

        def my_read(path_sample):
            import {name}  # when it is called, too
            assert {name}.VALUE == VALUE
            assert not hasattr(sys.modules.get({name!r}), "VALUE")  # nobody else's
            return VALUE
        """,
    )
    flags = ["--ext=num", *read_with(functions)]
    ended = run(command(numbers, output, *flags, "--compression=zstd", f"--workers={workers}"))
    assert ended.status == 0, ended.err
    assert set(np.ravel(list(stored(output).values()))) == {11}
    assert {path.name for path in tmp_path.iterdir()} == {
        "images", "out", "my_functions.py", f"{name}.py",
    }  # fmt: skip


def test_packages_and_neighbours_of_neighbours_are_found(tmp_path: Path) -> None:
    package = tmp_path / "json"
    (package / "deep").mkdir(parents=True)
    write_functions(package / "__init__.py", "from . import one\nimport zstandard")
    write_functions(package / "one.py", "from .deep.two import VALUE\nimport numpy")
    write_functions(package / "deep" / "__init__.py", "")
    write_functions(package / "deep" / "two.py", "from zstandard import VALUE")
    write_functions(tmp_path / "zstandard.py", "import my_functions as own\nVALUE = own.START + 1")
    (tmp_path / "plain_folder").mkdir()
    write_functions(tmp_path / "plain_folder" / "three.py", "from zstandard import VALUE")
    path = write_functions(
        tmp_path / "my_functions.py",
        """
        START = 5
        import json.deep.two
        import json.one as one
        from json import deep
        import plain_folder.three
        from dataclasses import dataclass
        from converter import read_image

        @dataclass
        class Point:
            x: int = 1

        def my_read(path_sample):
            values = (json.one.VALUE, one.VALUE, deep.two.VALUE, plain_folder.three.VALUE)
            return [*values, Point().x]
        """,
    )
    before = {name: sys.modules.get(name) for name in ("json", "zstandard", "plain_folder")}
    paths = list(sys.path)
    read = load_hooks(path, read=True, prune=False).read
    assert read is not None
    assert read("x") == [6, 6, 6, 6, 1]
    assert {name: sys.modules.get(name) for name in before} == before
    assert sys.path == paths
    assert not list(tmp_path.rglob("__pycache__"))


def test_functions_called_like_a_module_they_import_get_that_module(tmp_path: Path) -> None:
    path = write_functions(
        tmp_path / "json.py", "import json\ndef my_read(path): return json.loads(path)"
    )
    read = load_hooks(path, read=True, prune=False).read
    assert read is not None and read("[1]") == [1]


def test_a_module_that_is_nowhere_is_named_as_it_was_written(
    numbers: Path, output: Path, tmp_path: Path, convert: Callable[..., Finished]
) -> None:
    functions = write_functions(tmp_path / "my_functions.py", "import nowhere_at_all.x")
    ended = convert(numbers, output, *read_with(functions))
    assert ended.status == 2
    assert "No module named 'nowhere_at_all'" in ended.err
