"""A my_read that leaves its files open is told so, and the output is not blamed."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.check import failures, stored
from helpers.run import command, run, write_functions

resource = pytest.importorskip("resource")
FILES, LIMIT = 300, 100


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_reader_that_leaks_files_is_named_and_the_rest_is_stored(
    folder: Path, output: Path, tmp_path: Path, workers: int
) -> None:
    for number in range(FILES):
        (folder / f"{number:03}.txt").write_text("x" * 20)
    functions = write_functions(
        tmp_path / "functions.py",
        """
        LEAKED = []
        def my_read(path):
            LEAKED.append(open(path))
            return LEAKED[-1].read()
        """,
    )
    flags = ["--ext=txt", "--custom_read_func", f"--path_functions={functions}"]
    ended = run(
        command(folder, output, *flags, f"--workers={workers}"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT)),
    )
    assert ended.status == 1
    reasons = failures(output)
    assert len(stored(output)) + len(reasons) == FILES
    assert len(reasons) > FILES - workers * LIMIT
    assert all("my_read leaves files open" in reason for reason in reasons.values())
    assert "could not be written" not in ended.err
