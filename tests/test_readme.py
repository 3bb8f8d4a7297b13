"""README.md says what is true: its commands, options, examples and links."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import imageio.v3 as iio
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
IMAGES = ROOT / "tests" / "images"
SAMPLES = sorted(path for path in IMAGES.rglob("*") if path.is_file())

CODE_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON_BLOCKS = [code for language, code in CODE_BLOCK.findall(README) if language == "python"]
#: What pip says when there is no way to the package index.
NO_NETWORK = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError")


def block_after(marker: str) -> str:
    """Return the code block behind ``<!-- marker -->``."""
    _, found, rest = README.partition(f"<!-- {marker} -->\n")
    assert found, f"README.md has no <!-- {marker} -->"
    block = CODE_BLOCK.match(rest)
    assert block, f"no code block behind <!-- {marker} -->"
    return block[2].strip("\n")


def blocks_defining(name: str) -> list[str]:
    return [code for code in PYTHON_BLOCKS if f"def {name}(" in code]


def block_with(text: str) -> str:
    [code] = [code for code in blocks_defining("my_read") if text in code]
    return code


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def converter(*flags: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "converter", *flags], folder)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the tree with the files that belong to it, and no others."""
    folder = tmp_path / "checkout"
    listing = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT)
    if listing.returncode:  # not from git: what is there, but for what is made
        made = shutil.ignore_patterns(".venv", "build", "__pycache__", ".*_cache", "*.egg-info")
        shutil.copytree(ROOT, folder, ignore=made)
        return folder
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture
def in_converted_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout where the README's commands have made their files, as the current folder."""
    for marker in ("convert command", "encoded command"):
        command = shlex.split(block_after(marker))
        flags = [word for word in command[command.index("converter") :] if word.startswith("--")]
        result = converter(*flags, folder=checkout)
        assert result.returncode == 0, result.stderr
    monkeypatch.chdir(checkout)
    return checkout


def assert_holds_the_samples(path: Path) -> None:
    names: list[str] = []
    with h5py.File(path) as h5:
        h5.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
        assert sorted(names) == sorted(path.relative_to(IMAGES).as_posix() for path in SAMPLES)
        for name in names:
            stored, expected = h5[name][()], iio.imread(IMAGES / name)
            assert stored.dtype == expected.dtype
            np.testing.assert_array_equal(stored, expected)


@pytest.mark.slow
def test_the_convert_command_sets_up_and_converts_in_a_fresh_checkout(checkout: Path) -> None:
    result = run(["bash", "-c", block_after("convert command")], checkout)
    if any(sign in result.stderr for sign in NO_NETWORK):
        pytest.skip("no network to install packages from")
    assert result.returncode == 0, result.stderr
    assert f"images.h5: {len(SAMPLES)} stored, 0 failed" in result.stdout
    assert_holds_the_samples(checkout / "images.h5")


def test_the_convert_command_stores_every_sample_image(in_converted_checkout: Path) -> None:
    assert_holds_the_samples(in_converted_checkout / "images.h5")
    assert f"the {len(SAMPLES)} sample images" in README


def test_the_conda_command_converts_with_the_same_flags() -> None:
    [conda] = [code for _, code in CODE_BLOCK.findall(README) if code.startswith("conda ")]
    wanted = shlex.split(block_after("convert command"))[-4:]
    assert shlex.split(conda)[-4:] == wanted


@pytest.mark.skipif(os.name == "nt", reason="a bash script")
def test_ci_runs_the_test_command_of_the_readme(tmp_path: Path) -> None:
    for folder in (".ci", ".venv/bin", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy2(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    shutil.copy2(ROOT / "README.md", tmp_path / "README.md")
    for stub in ("bin/python3", ".venv/bin/python", ".venv/bin/pip"):  # says what it is asked for
        (tmp_path / stub).write_text(f'#!/bin/sh\necho "{stub}" "$@" >> "{tmp_path}/calls"\n')
        (tmp_path / stub).chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", ".ci/run"], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    command = block_after("test command")
    steps = [" ".join(shlex.split(step)) for step in command.split(" && ")]
    assert len(steps) == 3
    steps[0] = f"bin/{steps[0]}"
    first = max(number for number, call in enumerate(calls) if call == steps[0])
    assert calls[first : first + 3] == steps
    rest = " ".join(calls[first + 3 :])
    assert "ruff check" in rest and "ruff format --check" in rest and "mypy" in rest


@pytest.mark.skipif(os.name == "nt", reason="a bash script")
@pytest.mark.parametrize("failing", ["pytest", "ruff check", "ruff format", "mypy"])
def test_ci_fails_when_a_step_fails(failing: str, tmp_path: Path) -> None:
    for folder in (".ci", ".venv/bin", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy2(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    shutil.copy2(ROOT / "README.md", tmp_path / "README.md")
    for stub in ("bin/python3", ".venv/bin/python", ".venv/bin/pip"):
        script = f'#!/bin/sh\ncase "$*" in "-m {failing}"*) exit 3;; esac\n'
        (tmp_path / stub).write_text(script)
        (tmp_path / stub).chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, env={**os.environ, "PATH": path})
    assert result.returncode != 0


def test_the_options_are_those_of_help() -> None:
    result = converter("--help")
    assert result.returncode == 0
    assert block_after("help") == result.stdout.strip("\n")


def test_every_flag_is_in_the_options() -> None:
    for flag in re.findall(r"--[a-z]+_[a-z_]+", README):
        assert flag in block_after("help")


@pytest.mark.parametrize("code", PYTHON_BLOCKS)
def test_a_python_block_runs(code: str, in_converted_checkout: Path) -> None:
    try:
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "converter":
            raise
        pytest.skip(f"{error.name} is not installed")


def test_the_listing_prints_what_its_comments_say(
    in_converted_checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [code] = [code for code in PYTHON_BLOCKS if "h5.visit(" in code]
    exec(code, {})
    said = re.findall(r"print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == said


def test_the_shapes_before_and_after_are_those_stored(in_converted_checkout: Path) -> None:
    listed = re.findall(r"(\S+\.\w+) +(\([\d, ]+\)) +(\w+)$", README, re.MULTILINE)
    assert listed
    with h5py.File("images.h5") as h5:
        for name, shape, dtype in listed:
            assert (str(h5[name].shape), str(h5[name].dtype)) == (shape, dtype)


def read_through(code: str, tmp_path: Path, ext: str = "jpg,png") -> dict[str, np.ndarray]:
    """Convert the sample images with ``code`` as my_functions.py; return what was stored."""
    functions, output = tmp_path / "functions.py", tmp_path / "out.h5"
    functions.write_text(code)
    result = converter(
        f"--path_images={IMAGES}",
        f"--path_output={output}",
        f"--ext={ext}",
        "--custom_read_func",
        f"--path_functions={functions}",
    )
    assert result.returncode == 0, result.stderr
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(output) as h5:
        h5.visititems(
            lambda name, item: arrays.update({name: item[()]}) if hasattr(item, "shape") else None
        )
    return arrays


def test_the_palette_example_keeps_class_ids_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    arrays = read_through(block_with('mode="P"'), tmp_path)
    mask = arrays.pop("masks/cat/ginger.png")
    assert mask.shape == (72, 96)
    assert np.unique(mask).tolist() == [0, 1, 2]
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, iio.imread(IMAGES / name))


def test_the_resizing_example_makes_the_shorter_side_256(tmp_path: Path) -> None:
    arrays = read_through(block_with("256"), tmp_path, ext="jpg")
    for name, array in arrays.items():
        wanted = (341, 256) if name.endswith("rotated.jpg") else (256, 341)
        assert array.shape[:2] == wanted


def test_the_prune_example_leaves_thumbnails_out() -> None:
    [code] = blocks_defining("my_prune")
    scope: dict[str, object] = {}
    exec(code, scope)
    my_prune = scope["my_prune"]
    assert callable(my_prune)
    names = ["image_0001.JPG", "thumb_0001.jpg", "image_0001.png"]
    assert [my_prune(name, "jpg") for name in names] == [True, False, False]


def test_json_is_read_as_shipped(checkout: Path) -> None:
    (checkout / "numbers").mkdir()
    (checkout / "numbers" / "a.json").write_text("[[1, 2], [3, 4]]")
    [command] = re.findall(r"^python (converter .*--ext=json.*)$", README, re.MULTILINE)
    command = command.replace("FOLDER", "numbers")
    result = run([sys.executable, *shlex.split(command)], checkout)
    assert result.returncode == 0, result.stderr
    with h5py.File(checkout / "OUT.h5") as h5:
        assert h5["a.json"][:].tolist() == [[1, 2], [3, 4]]


def test_statements_about_other_readers_hold() -> None:
    rotated = IMAGES / "train" / "ball" / "rotated.jpg"
    assert iio.imread(rotated).shape == (96, 72, 3)
    assert iio.imread(rotated, rotate=True).shape == (72, 96, 3)
    cv2 = pytest.importorskip("cv2")
    assert cv2.imread(str(rotated)).shape == (72, 96, 3)
    assert cv2.imread(str(IMAGES / "train" / "cat" / "grey.jpg")).shape == (72, 96, 3)
    assert cv2.imread(str(IMAGES / "masks" / "depth.png")).dtype == np.uint8


def test_local_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}
    targets = re.findall(r"\]\(([^)\s]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    assert targets
    for target in targets:
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        if path:
            assert (ROOT / path).exists(), target
        else:
            assert anchor in anchors, target


def test_every_module_is_listed() -> None:
    package = ROOT / "converter"
    paths = (path.relative_to(package) for path in package.rglob("[!_]*.py"))
    modules = {path.with_suffix("").as_posix() for path in paths}
    assert set(re.findall(r"^\| `([\w/]+)` \|", README, re.MULTILINE)) == modules


def test_the_sample_images_are_small_and_those_the_script_draws(tmp_path: Path) -> None:
    drawn = run([sys.executable, "tests/make_images.py", str(tmp_path)], ROOT)
    assert drawn.returncode == 0, drawn.stderr
    assert sum(path.stat().st_size for path in SAMPLES) < 150_000
    names = [path.relative_to(IMAGES) for path in SAMPLES]
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()) == names
    for name in names:
        if name.suffix.lower() != ".jpg":  # the same pixels whatever the version of the encoder
            np.testing.assert_array_equal(iio.imread(tmp_path / name), iio.imread(IMAGES / name))
