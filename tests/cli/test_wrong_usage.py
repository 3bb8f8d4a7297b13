"""What cannot work is refused with one sentence and status 2, and nothing is touched."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import converter
from converter.errors import ConverterError
from helpers.check import assert_refused, case, everything_below
from helpers.images import save_jpegs
from helpers.run import FUNCTIONS, Finished, command, run, without_root_rights, write_functions


@pytest.fixture
def images(folder) -> Path:
    return save_jpegs(folder, ["a.jpg", "sub/b.jpg"])


@pytest.fixture(autouse=True)
def _untouched(tmp_path, request):
    """Check after each test that the folder is as it was when the run began."""
    yield
    before = getattr(request.node, "before", None)
    if before is not None:
        assert everything_below(tmp_path) == before


@pytest.fixture
def refuse(convert, tmp_path, request):
    """Run, after noting what there is."""

    def refuse(folder: Path | str, output: Path | str, *flags: str) -> Finished:
        request.node.before = everything_below(tmp_path)
        return convert(folder, output, *flags)

    return refuse


def test_no_match_says_which_extensions_there_are(folder, output, refuse):
    for name in ("a.JPEG", "b.JPEG", "sub/c.JPEG", "d.md", "e.md", "f.txt", "Makefile"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    ended = refuse(folder, output)
    assert_refused(
        ended,
        "no .jpg files",
        str(folder),
        "3 .JPEG",
        "2 .md",
        "1 .txt",
        "1 without extension",
        "did you mean --ext=JPEG?",
    )


def test_no_match_in_an_empty_folder_says_so(folder, output, refuse):
    assert_refused(refuse(folder, output), "no .jpg files", "holds no files at all")


def test_no_match_of_my_prune_says_so(images, output, refuse, tmp_path):
    functions = write_functions(tmp_path / "no_functions.py", "def my_prune(f, e): return False")
    ended = refuse(images, output, "--custom_prune_func", f"--path_functions={functions}")
    assert ended.status == 2
    assert "my_prune keeps none of the files" in ended.err
    assert "2 .jpg" in ended.err


def test_a_missing_folder_is_named(tmp_path, output, refuse):
    assert_refused(refuse(tmp_path / "nowhere", output), str(tmp_path / "nowhere"))


def test_a_file_instead_of_a_folder_is_named(images, output, refuse):
    assert_refused(refuse(images / "a.jpg", output), str(images / "a.jpg"), "is a file")


def test_an_output_that_is_a_folder_is_named(images, output, refuse):
    assert_refused(refuse(images, output.parent), str(output.parent), "is a folder")
    assert_refused(refuse(images, output.parent, "--overwrite"), "is a folder")


def test_an_output_that_would_be_a_folder_is_refused(images, tmp_path, refuse):
    refused = refuse(images, f"{tmp_path / 'new'}/")
    assert_refused(refused, "is the name of a folder", f"{tmp_path / 'new'}/OUT.h5")


def test_the_root_of_the_file_system_is_refused(images):
    with pytest.raises(ConverterError, match="is the name of a folder"):
        converter.convert(images, Path(images.anchor))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_device_or_a_pipe_is_never_replaced(images, output, refuse):
    """As root that would be the end of /dev/null, for all programs."""
    os.mkfifo(output)
    refused = refuse(images, output, "--overwrite")
    assert_refused(refused, str(output), "is a device or a pipe")
    assert output.is_fifo()


def test_an_existing_output_is_refused_before_any_work(images, output, refuse):
    output.write_bytes(b"an older one")
    assert_refused(refuse(images, output), str(output), "exists", "--overwrite")


def test_an_output_that_is_a_broken_link_is_refused(images, output, refuse):
    output.symlink_to("nowhere")
    assert_refused(refuse(images, output), "exists", "--overwrite")


def test_an_output_below_a_file_is_refused(images, tmp_path, refuse):
    (tmp_path / "file").write_bytes(b"")
    ended = refuse(images, tmp_path / "file" / "deep" / "OUT.h5")
    assert_refused(ended, str(tmp_path / "file"), "is a file")
    (tmp_path / "link").symlink_to("nowhere")
    ended = refuse(images, tmp_path / "link" / "OUT.h5")
    assert_refused(ended, str(tmp_path / "link"), "is a link to nothing")


@pytest.mark.everyday(1)
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
@pytest.mark.parametrize("below", ["OUT.h5", "new/folders/OUT.h5"])
def test_a_folder_without_write_permission_is_refused(below, images, output):
    output.parent.chmod(0o555)
    try:
        ended = run(command(images, output.parent / below), preexec_fn=without_root_rights)
    finally:
        output.parent.chmod(0o755)
    assert_refused(ended, str(output.parent), "no permission")
    assert not os.listdir(output.parent)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
def test_a_folder_without_read_permission_is_refused(images, output):
    images.chmod(0)
    try:
        ended = run(command(images, output), preexec_fn=without_root_rights)
    finally:
        images.chmod(0o755)
    assert_refused(ended, str(images), "no permission")
    assert not os.listdir(output.parent)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
def test_a_folder_below_one_without_permission_is_refused(images, output):
    images.chmod(0)
    try:
        ended = run(command(images / "sub", output), preexec_fn=without_root_rights)
    finally:
        images.chmod(0o755)
    assert_refused(ended, str(images / "sub"))


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
def test_an_output_below_a_folder_without_permission_is_refused(images, output):
    (output.parent / "sub").mkdir()
    output.parent.chmod(0)
    try:
        ended = run(
            command(images, output.parent / "sub" / "OUT.h5"), preexec_fn=without_root_rights
        )
    finally:
        output.parent.chmod(0o755)
    assert_refused(ended, str(output.parent))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
def test_a_partial_file_of_someone_else_is_refused(images, output):
    partial = output.with_name("OUT.h5.partial")
    partial.write_bytes(b"someone's")
    partial.chmod(0o444)
    ended = run(command(images, output), preexec_fn=without_root_rights)
    assert ended.status in (1, 2)
    assert "Traceback" not in ended.err
    assert str(output) in ended.err
    assert os.listdir(output.parent) == ["OUT.h5.partial"]


def test_a_folder_in_the_place_of_the_partial_file_is_refused(images, output, refuse):
    output.with_name("OUT.h5.partial").mkdir()
    ended = refuse(images, output)
    assert ended.status in (1, 2)
    assert "Traceback" not in ended.err
    assert "OUT.h5" in ended.err


@pytest.mark.parametrize("length", [242, 250, 300])
def test_an_output_with_too_long_a_name_is_refused(length, images, output, refuse):
    ended = refuse(images, output.with_name("x" * (length - 3) + ".h5"))
    assert ended.status in (1, 2)
    assert "Traceback" not in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_a_folder_with_too_long_a_name_is_refused(images, output, refuse):
    assert_refused(refuse(images / ("x" * 300), output), "xxx")


def test_an_empty_folder_name_is_refused(output, refuse, images, monkeypatch):
    monkeypatch.chdir(images)
    assert_refused(refuse("", output), "--path_images")


def test_an_empty_output_name_is_refused(images, refuse):
    assert refuse(images, "").status == 2


@pytest.mark.parametrize("extension", ["", ",", ".", " , "])
def test_an_extension_without_letters_is_refused(extension, images, output, refuse):
    assert_refused(refuse(images, output, f"--ext={extension}"), "--ext", "jpg")


BAD_FLAGS = {
    "--workers=0": "must be a whole number above 0, not '0'",
    "--workers=-1": "must be a whole number above 0, not '-1'",
    "--workers=two": "must be a whole number above 0, not 'two'",
    "--workers=1.5": "must be a whole number above 0, not '1.5'",
    "--workers=": "must be a whole number above 0",
    "--workers=²": "must be a whole number above 0",
    "--max_pixels=0": "must be a whole number above 0, not '0'",
    "--max_pixels=1e6": "must be a whole number above 0, not '1e6'",
    "--compression=GZIP": "'GZIP' is none of auto, none, gzip, zstd, blosc2",
    "--compression=lz4:3": "'lz4:3' is none of auto, none, gzip, zstd, blosc2",
    "--compression=": "'' is none of auto, none, gzip, zstd, blosc2",
    "--compression=:3": "':3' is none of auto, none, gzip, zstd, blosc2",
    "--compression=auto:3": "'auto:3' is none of auto, none, gzip, zstd, blosc2",
    "--compression=none:": "'none:' is none of auto, none, gzip, zstd, blosc2",
    "--compression=gzip:0": "gzip has levels 1 to 9, not '0'",
    "--compression=gzip:10": "gzip has levels 1 to 9, not '10'",
    "--compression=gzip:-1": "gzip has levels 1 to 9, not '-1'",
    "--compression=gzip:²": "gzip has levels 1 to 9, not '²'",
    "--compression=gzip:1:2": "gzip has levels 1 to 9, not '1:2'",
    "--compression=zstd:": "zstd has levels 1 to 22, not ''",
    "--compression=zstd:0": "zstd has levels 1 to 22, not '0'",
    "--compression=zstd:23": "zstd has levels 1 to 22, not '23'",
    "--compression=zstd:3.5": "zstd has levels 1 to 22, not '3.5'",
    "--compression=zstd: 3": "zstd has levels 1 to 22, not ' 3'",
    "--compression=blosc2:x": "blosc2 has levels 1 to 9, not 'x'",
    "--compression=blosc2:10": "blosc2 has levels 1 to 9, not '10'",
    "--reader=pillow": "'pillow'",
    "--reader=": "invalid choice: ''",
    "--store=arrays": "'arrays'",
    "--on_error=ignore": "'ignore'",
    "--extension=png": "no flag --extension=png: did you mean --ext?",
    "--exts=png": "no flag --exts=png: did you mean --ext?",
    "--path_image=x": "no flag --path_image=x: did you mean --path_images?",
    "-path_images=x": "did you mean --path_images?",
    "path_images=x": "did you mean --path_images?",
    "--path-images=x": "did you mean --path_images?",
    "--num_workers=2": "did you mean --workers?",
    "--output=x": "did you mean --path_output?",
    "--out=x": "did you mean --path_output?",
    "--threads=2": "no flag --threads=2: see --help",
    "--quiett": "did you mean --quiet?",
    "--overwrit": "did you mean --overwrite?",
    "--dry": "did you mean --dry_run?",
    "--overwrite=yes": "--overwrite",
    "leftover": "leftover belongs to no flag",
    "extra": "extra belongs to no flag",
}


def test_unknown_flags_values_and_abbreviations_are_refused(images, output, refuse):
    for flag, said in BAD_FLAGS.items():
        with case(flag):
            ended = refuse(images, output, flag)
            assert_refused(ended, said)


def test_values_that_are_refused_are_listed_with_those_allowed(images, output, refuse):
    assert_refused(
        refuse(images, output, "--compression=lzf"),
        "--compression",
        "auto, none, gzip, zstd, blosc2 (a level may follow the last 3, as in gzip:6)",
    )
    assert_refused(refuse(images, output, "--on_error=go"), "skip", "stop")
    assert_refused(refuse(images, output, "--reader=cv2"), "imageio", "opencv")
    assert_refused(refuse(images, output, "--store=files"), "array", "encoded")


@pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])
@pytest.mark.parametrize(
    ("flag", "module", "package"),
    [
        ("--compression=zstd", "zstandard", "zstandard"),
        ("--compression=zstd:22", "zstandard", "zstandard"),
        ("--compression=blosc2:9", "blosc2", "blosc2"),
        ("--reader=opencv", "cv2", "opencv-python-headless"),
    ],
)
def test_a_package_that_is_missing_is_named_with_how_to_install_it(
    flag, module, package, workers, images, output, refuse, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    for more in ([], ["--dry_run"], ["--store=encoded"] if "reader" not in flag else []):
        ended = refuse(images, output, flag, workers, *more)
        assert_refused(ended, flag.partition(":")[0])
        assert ended.err.endswith(f": pip install {package}\n")


@pytest.mark.parametrize("flag", ["auto", "none", "gzip:9"])
def test_other_compressions_need_no_package_more(flag, images, output, convert, monkeypatch):
    for module in ("zstandard", "blosc2", "cv2", "hdf5plugin"):
        monkeypatch.setitem(sys.modules, module, None)
    ended = convert(images, output, f"--compression={flag}")
    assert ended.status == 0
    assert ended.err == ""


@pytest.mark.everyday(1)
@pytest.mark.parametrize("missing", ["--path_images", "--path_output"])
def test_a_missing_path_is_refused(missing, images, output):
    ended = run([a for a in command(images, output) if not a.startswith(missing)])
    assert_refused(ended, missing)


def test_statuses_and_sentences_are_the_same_in_a_process_of_its_own(tmp_path, output):
    ended = run(command(tmp_path / "nowhere", output))
    assert_refused(ended, str(tmp_path / "nowhere"))
    assert not os.listdir(output.parent)


def test_path_functions_alone_is_refused(images, output, refuse, tmp_path):
    functions = FUNCTIONS / "one.py"
    assert_refused(
        refuse(images, output, f"--path_functions={functions}"),
        "--path_functions",
        "--custom_read_func",
        "--custom_prune_func",
    )


def test_an_estimate_of_an_existing_output_touches_nothing(images, output, refuse):
    output.write_bytes(b"an older one")
    refuse(images, output, "--dry_run")
    refuse(images, output, "--dry_run", "--overwrite")


def test_an_output_in_a_folder_that_must_be_made_is_not_left_behind_when_all_fails(
    folder, tmp_path, convert
):
    (folder / "a.jpg").write_bytes(b"")
    ended = convert(folder, tmp_path / "new" / "deep" / "OUT.h5", "--on_error=stop")
    assert ended.status == 1
    assert not (tmp_path / "new").exists()


def test_the_list_of_failures_stays_when_nothing_could_be_stored(folder, tmp_path, convert):
    (folder / "a.jpg").write_bytes(b"")
    output = tmp_path / "new" / "deep" / "OUT.h5"
    ended = convert(folder, output)
    assert ended.status == 1
    assert os.listdir(output.parent) == ["OUT.h5.failures.csv"]
    assert "none of the 1 files could be read" in ended.err
