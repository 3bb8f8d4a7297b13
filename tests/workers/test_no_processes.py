"""Where no worker processes can be started, the error says what to do; or it works."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import converter
from helpers.check import stored
from helpers.images import save_jpegs
from helpers.run import ROOT


def call(folder: str, output: str, workers: int, results: Any) -> None:
    try:
        results.put(converter.convert(folder, output, workers=workers).stored)
    except converter.ConverterError as error:
        results.put(str(error))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_daemonic_process_converts_or_is_told_how(
    folder: Path, output: Path, method: str
) -> None:
    context = multiprocessing.get_context(method)
    results = context.Queue()
    save_jpegs(folder, ["a.jpg", "b.jpg"])
    for workers in (2, 1):
        arguments = (str(folder), str(output), workers, results)
        process = context.Process(target=call, args=arguments, daemon=True)
        process.start()
        found = results.get(timeout=60)
        process.join()
        if found == 2:
            break
        assert workers == 2 and "daemonic" in found and "workers=1" in found
        assert not list(output.parent.iterdir())
    assert len(stored(output)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_long_temporary_folder_works_or_is_named(
    folder: Path, output: Path, tmp_path: Path, method: str
) -> None:
    save_jpegs(folder, ["a.jpg", "b.jpg"])
    long = tmp_path / ("t" * 120)
    long.mkdir()
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import multiprocessing, converter\n"
        "if __name__ == '__main__':\n"
        f"    multiprocessing.set_start_method({method!r})\n"
        f"    try: converter.convert({str(folder)!r}, {str(output)!r}, workers=2)\n"
        "    except converter.ConverterError as error: sys.exit(str(error))\n"
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    ended = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "TMPDIR": str(long)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if ended.returncode:
        assert "Traceback" not in ended.stderr
        assert "set TMPDIR to a shorter one" in ended.stderr
        assert not list(output.parent.iterdir())
    else:
        assert len(stored(output)) == 2
