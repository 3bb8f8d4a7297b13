"""A run does not depend on who listens: its status and its file are its own."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from converter import H5Folder
from helpers.images import save_jpegs
from helpers.run import ROOT, Finished, command, program, write_functions

LOST = [">&-", ">/dev/full", "| true", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1", "2>&1 | true"]
KEPT = ["2>&-", "2>/dev/full", "<&-", "2> >(true)"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="redirects of bash")


def shell(arguments: list[str], redirect: str) -> int:
    """Run a command line in bash, with its output led elsewhere; return its status."""
    line = f"{shlex.join(arguments)} {redirect}"
    if redirect.endswith("| true"):  # nobody reads by the time something is written
        line = f"{{ sleep 0.3; {shlex.join(arguments)} {redirect.partition('|')[0]}; }} | true"
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, timeout=60
    )
    return ended.returncode


@pytest.fixture
def photos(folder: Path) -> Path:
    return save_jpegs(folder, ["a.jpg", "b/c.jpg"])


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("redirect", "workers"), [(line, 1 + n % 2) for n, line in enumerate(LOST + KEPT)]
)
def test_a_conversion_ends_as_if_all_were_read(
    photos: Path, output: Path, redirect: str, workers: int
) -> None:
    flag = f"--workers={workers}"
    assert shell(command(photos, output, flag), redirect) == 0
    (photos / "b/bad.jpg").write_text("no image")
    assert shell(command(photos, output, flag, "--update"), redirect) == 1  # one failed
    joined = output.with_name("joined.h5")
    assert shell(program("--merge", str(output), f"--path_output={joined}"), redirect) == 0
    back = output.with_name("back")
    assert shell(program(f"--extract={back}", f"--path_output={joined}"), redirect) == 0
    assert len(list(back.rglob("*.npy"))) == 2
    with H5Folder(joined, verify=True) as samples:
        assert [samples[key].ndim for key in samples] == [3, 3]
    assert shell(command(photos, output, flag), redirect) == 2  # it exists


@pytest.mark.slow
@pytest.mark.parametrize("redirect", LOST + KEPT)
def test_what_gives_nothing_but_its_output_fails_where_that_is_lost(
    photos: Path, output: Path, redirect: str, convert: Callable[..., Finished]
) -> None:
    assert convert(photos, output).status == 0
    status = 1 if redirect in LOST else 0
    assert shell(program("--verify", f"--path_output={output}"), redirect) == status
    assert shell(command(photos, output.with_name("x.h5"), "--dry_run"), redirect) == status
    assert shell(program("--help"), redirect) == status


@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("redirect", [">&- 2>&-", ">/dev/full 2>&1", "2>&1 | true"])
def test_a_reader_may_print(
    photos: Path, output: Path, tmp_path: Path, redirect: str, workers: int
) -> None:
    functions = write_functions(
        tmp_path / "functions.py",
        """
        import os, sys
        def my_read(path):
            print("reading", path, "." * 20000, flush=True)
            print("reading", path, file=sys.stderr)
            try:
                os.write(2, b"from a library")
            except OSError:  # a full disk: what a library does of it is its own
                pass
            return open(path, "rb").read()
        """,
    )
    flags = ["--custom_read_func", f"--path_functions={functions}", f"--workers={workers}"]
    assert shell(command(photos, output, *flags), redirect) == 0
    with H5Folder(output, verify=True) as samples:
        assert samples["a.jpg"].tobytes() == (photos / "a.jpg").read_bytes()


def test_a_call_from_a_process_without_streams_writes_a_sound_file(
    photos: Path, output: Path
) -> None:
    script = (
        "import os, sys; [os.close(n) for n in (0, 1, 2)]; import converter; "
        f"sys.exit(converter.convert({str(photos)!r}, {str(output)!r}).failed)"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    assert ended.returncode == 0
    with H5Folder(output, verify=True) as samples:
        assert len(samples) == 2


def test_a_reader_may_print_in_a_worker_that_is_a_new_interpreter(
    photos: Path, output: Path, tmp_path: Path
) -> None:
    functions = write_functions(
        tmp_path / "functions.py",
        """
        def my_read(path):
            print("reading", path, flush=True)
            return open(path, "rb").read()
        """,
    )
    script = write_functions(
        tmp_path / "script.py",
        f"""
        import multiprocessing, sys
        sys.path.insert(0, {str(ROOT)!r})
        if __name__ == "__main__":
            import converter
            multiprocessing.set_start_method("spawn")
            report = converter.convert(
                {str(photos)!r}, {str(output)!r}, workers=2, custom_read_func=True,
                path_functions={str(functions)!r},
            )
            sys.exit(report.failed)
        """,
    )
    assert shell([sys.executable, str(script)], ">/dev/full") == 0
    assert len(H5Folder(output)) == 2
