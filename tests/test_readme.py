"""README.md and docs/ say what is true: their commands, options, examples, links and numbers."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import h5py
import imageio.v3 as iio
import numpy as np
import pytest

import converter as converter_package
from converter import arguments
from converter.cli import main

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "tests" / "images"
SAMPLES = sorted(path for path in IMAGES.rglob("*") if path.is_file())
MOST_LINES = 260  # of README.md: a newcomer reads it at one sitting

#: The pages by their path below the checkout.
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md")
}
README = PAGES["README.md"]

CODE_BLOCK = re.compile(r"^```([^`\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Packages whose threads would stay in the process of the tests, which forks.
LEAVE_THREADS = re.compile(r"^(?:import|from) (?:datasets|grain|jax|lightning)\b", re.MULTILINE)
#: What pip says when there is no way to the package index.
NO_NETWORK = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError")


class Block(NamedTuple):
    """A code block: its page, the words behind its fence, and what stands in it."""

    page: str
    words: tuple[str, ...]
    code: str

    def __str__(self) -> str:
        line = PAGES[self.page][: PAGES[self.page].index(self.code)].count("\n")
        return f"{self.page}:{line + 1}"


BLOCKS = [
    Block(page, tuple(words.split()), code)
    for page, text in PAGES.items()
    for words, code in CODE_BLOCK.findall(text)
]
PYTHON_BLOCKS = [block for block in BLOCKS if block.words[:1] == ("python",)]


def block_after(marker: str, page: str = "README.md") -> str:
    """Return the code block behind ``<!-- marker -->``."""
    _, found, rest = PAGES[page].partition(f"<!-- {marker} -->\n")
    assert found, f"{page} has no <!-- {marker} -->"
    block = CODE_BLOCK.match(rest)
    assert block, f"no code block behind <!-- {marker} -->"
    return block[2].strip("\n")


def blocks_defining(name: str) -> list[str]:
    return [block.code for block in PYTHON_BLOCKS if f"def {name}(" in block.code]


def block_with(text: str) -> str:
    [code] = [code for code in blocks_defining("my_read") if text in code]
    return code


class Command(NamedTuple):
    """A line of a bash block that starts a Python script: its page, the script, its flags."""

    page: str
    script: str
    flags: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.script} {' '.join(self.flags)}"


def commands() -> Iterator[Command]:
    for block in BLOCKS:
        if block.words != ("bash",):
            continue
        for line in re.split(r"\n| && ", block.code.replace("\\\n", "")):
            words = shlex.split(line, comments=True)
            for number, word in enumerate(words[:-1]):
                is_python = re.fullmatch(r"(.*/)?python3?", word)
                if is_python and not words[number + 1].startswith("-"):
                    yield Command(block.page, words[number + 1], tuple(words[number + 2 :]))


COMMANDS = list(commands())
CONVERTER_COMMANDS = [command for command in COMMANDS if command.script == "converter"]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def converter(*flags: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "converter", *flags], folder)


def copy_of_the_tree(folder: Path) -> Path:
    """Copy the files that belong to the tree, and no others."""
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
def checkout(tmp_path: Path) -> Path:
    """A copy of the tree."""
    return copy_of_the_tree(tmp_path / "checkout")


@pytest.fixture(scope="module")
def converted_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree where the commands of the pages have made their files."""
    checkout = copy_of_the_tree(tmp_path_factory.mktemp("readme") / "checkout")
    (checkout / "rgb.py").write_text(block_after("rgb reader", "docs/training.md"))
    for marker, page in (
        ("convert command", "README.md"),
        ("encoded command", "docs/storage.md"),
        ("resize command", "docs/storage.md"),
        ("training command", "docs/training.md"),
    ):
        command = shlex.split(block_after(marker, page))
        flags = [word for word in command[command.index("converter") :] if word.startswith("--")]
        result = converter(*flags, folder=checkout)
        assert result.returncode == 0, result.stderr
    for number in (1, 2):
        result = converter(
            "--path_images=tests/images",
            f"--path_output=part-{number}.h5",
            f"--shard={number}/2",
            "--workers=1",
            folder=checkout,
        )
        assert result.returncode == 0, result.stderr
    return checkout


@pytest.fixture
def in_converted_checkout(converted_checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That copy as the current folder."""
    monkeypatch.chdir(converted_checkout)
    return converted_checkout


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
    [conda] = [block.code for block in BLOCKS if block.code.startswith("conda ")]
    wanted = shlex.split(block_after("convert command"))[-4:]
    assert shlex.split(conda)[-4:] == wanted


#: What `.ci/run` runs, as each command line ends.
CHECKS = (
    "pytest -n auto",
    "pytest -n auto -m slow",
    "ruff check .",
    "ruff format --check .",
    "mypy",
    "lint-imports",
)
STUBS = ("bin/python3", "bin/npm", ".venv/bin/python", ".venv/bin/pip", ".venv/bin/lint-imports")


@pytest.mark.skipif(os.name == "nt", reason="a bash script")
def test_ci_runs_the_test_command_of_the_readme(tmp_path: Path) -> None:
    for folder in (".ci", ".venv/bin", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy2(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    shutil.copy2(ROOT / "README.md", tmp_path / "README.md")
    for stub in STUBS:  # says what it is asked for
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
    assert all(check in rest for check in CHECKS[1:])


@pytest.mark.skipif(os.name == "nt", reason="a bash script")
@pytest.mark.parametrize("failing", CHECKS)
def test_ci_fails_when_a_step_fails(failing: str, tmp_path: Path) -> None:
    for folder in (".ci", ".venv/bin", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy2(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    shutil.copy2(ROOT / "README.md", tmp_path / "README.md")
    for stub in STUBS:
        script = f'#!/bin/sh\ncase "$0${{*:+ }}$*" in *"{failing}") exit 3;; esac\n'
        (tmp_path / stub).write_text(script)
        (tmp_path / stub).chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, env={**os.environ, "PATH": path})
    assert result.returncode != 0


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


def test_the_options_are_those_of_help() -> None:
    result = converter("--help")
    assert result.returncode == 0
    assert block_after("help", "docs/options.md") == result.stdout.strip("\n")


def test_every_flag_is_in_the_options() -> None:
    of_scripts = (ROOT / "benchmark.py").read_text(encoding="utf-8")
    for page, text in PAGES.items():
        for flag in re.findall(r"--[a-z]+_[a-z_]+", text):
            is_known = flag in block_after("help", "docs/options.md") or f'"{flag}"' in of_scripts
            assert is_known, f"{page}: {flag}"


def test_every_extra_is_on_a_page() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    _, _, table = text.partition("[project.optional-dependencies]\n")
    extras = re.findall(r"^(\w+) = \[", table.partition("\n[")[0], re.MULTILINE)
    assert {"opencv", "dask", "test"} <= set(extras)
    for extra in extras:
        assert any(f"-e '.[{extra}]'" in page for page in without_changelog()), extra


def test_every_public_name_is_on_a_page() -> None:
    for name in converter_package.__all__:
        said = re.compile(rf"\b{name}\b")
        assert any(said.search(page) for page in without_changelog()), name


def without_changelog() -> list[str]:
    return [text for page, text in PAGES.items() if page != "CHANGELOG.md"]


def test_the_table_of_flags_names_flags_of_a_conversion() -> None:
    _, _, table = README.partition("| flag | what it does |\n")
    flags = re.findall(r"^\| `--(\w+)", table.partition("\n\n")[0], re.MULTILINE)
    assert len(flags) == 10
    values = arguments.parse(["--path_images=a", "--path_output=b"]).values
    assert set(flags) <= values.keys()


@pytest.mark.parametrize("command", CONVERTER_COMMANDS, ids=str)
def test_a_command_line_is_one_the_converter_takes(command: Command) -> None:
    arguments.parse([flag.replace("$SLURM_ARRAY_TASK_ID", "1") for flag in command.flags])


def test_the_scripts_that_commands_start_have_their_flags() -> None:
    others = [command for command in COMMANDS if command.script != "converter"]
    assert others
    for script, flags in ((command.script, command.flags) for command in others):
        text = (ROOT / script).read_text(encoding="utf-8")
        for flag in flags:
            if flag.startswith("--"):
                assert f'"{flag.partition("=")[0]}"' in text, f"{script} {flag}"


def test_the_commands_of_the_pages_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(IMAGES, tmp_path / "FOLDER")
    shutil.copy2(ROOT / "my_functions.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER" / "a.json").write_text("[[1, 2], [3, 4]]")
    ran = 0
    for command in CONVERTER_COMMANDS:
        text = str(command)
        if "OUT.h5" not in text or "--dask" in text:
            continue
        flags = [flag.replace("--extract=FOLDER", "--extract=files") for flag in command.flags]
        if "--extract" not in text:
            flags.append("--workers=1")
        if "--rebuild_index" in text:
            h5py.File("OUT.h5", "r+").close()  # which removes the index
        if "--custom_read_func" in text:  # OUT.h5 is there by now
            flags.append("--overwrite")
        assert main(flags) == 0, text
        ran += 1
    assert ran >= 7
    assert h5py.File("OUT.h5")["a.json"][:].tolist() == [[1, 2], [3, 4]]
    assert np.load("files/a.json.npy").tolist() == [[1, 2], [3, 4]]


def test_the_shards_are_joined_to_what_one_conversion_makes(tmp_path: Path) -> None:
    shutil.copytree(IMAGES, tmp_path / "Gaze360")
    page = [command for command in CONVERTER_COMMANDS if "machines" in command.page]
    [shard] = [command for command in page if "--shard" in str(command)]
    [merge] = [command for command in page if "--merge" in str(command)]
    first, last = map(int, re.findall(r"--array=(\d+)-(\d+)", PAGES[shard.page])[0])
    for number in range(first, last + 1):
        flags = [flag.replace("$SLURM_ARRAY_TASK_ID", str(number)) for flag in shard.flags]
        assert main([*(flag.replace("/data", str(tmp_path)) for flag in flags), "--workers=1"]) == 0
    flags = [flag.replace("/data", str(tmp_path)) for flag in merge.flags]
    pattern = flags.index(str(tmp_path / "part-*.h5"))
    flags[pattern : pattern + 1] = map(str, sorted(tmp_path.glob("part-*.h5")))
    assert main(flags) == 0
    whole = [f"--path_images={IMAGES}", f"--path_output={tmp_path / 'whole.h5'}", "--workers=1"]
    assert main(whole) == 0
    assert (tmp_path / "Gaze360.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=str)
def test_a_python_block_runs_and_prints_what_its_comments_say(
    block: Block, in_converted_checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = compile(block.code, block.page, "exec")
    if "notest" in block.words:
        return
    said = re.findall(r"print\(.*\)  # (.*)$", block.code, re.MULTILINE)
    if LEAVE_THREADS.search(block.code):
        out = run_elsewhere(block.code)
    else:
        try:
            exec(code, {"__name__": "__main__"})
        except ModuleNotFoundError as error:
            skip_without(error.name or "")
        out = capfd.readouterr().out
    if said:
        assert out.splitlines() == said


def run_elsewhere(code: str) -> str:
    """Run a block in a process of its own, and return what it printed."""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    missing = re.search(r"ModuleNotFoundError: No module named '(.*)'", ended.stderr)
    if missing:
        skip_without(missing[1])
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def skip_without(module: str) -> None:
    """Skip a test for which a package is missing; one of our own modules is a failure."""
    assert module.partition(".")[0] != "converter", module
    pytest.skip(f"{module} is not installed")


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


def test_the_prune_example_leaves_thumbnails_out() -> None:
    [code] = blocks_defining("my_prune")
    scope: dict[str, object] = {}
    exec(code, scope)
    my_prune = scope["my_prune"]
    assert callable(my_prune)
    names = ["image_0001.JPG", "thumb_0001.jpg", "image_0001.png"]
    assert [my_prune(name, "jpg") for name in names] == [True, False, False]


def test_the_npy_example_stores_what_numpy_saved(tmp_path: Path) -> None:
    functions, output = tmp_path / "functions.py", tmp_path / "out.h5"
    functions.write_text(block_with("np.load"))
    array = np.arange(6, dtype=">i2").reshape(2, 3)
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "a.npy", array)
    flags = [f"--path_images={tmp_path / 'folder'}", f"--path_output={output}", "--ext=npy"]
    assert main([*flags, "--custom_read_func", f"--path_functions={functions}"]) == 0
    stored = h5py.File(output)["a.npy"][:]
    assert stored.dtype == array.dtype
    np.testing.assert_array_equal(stored, array)


def test_the_loader_can_be_copied_as_the_page_says(
    converted_checkout: Path, tmp_path: Path
) -> None:
    _, _, section = PAGES["docs/reading.md"].partition("## Copy the loader")
    plain, _, rest = section.partition("\n- ")[2].partition("\n- to decode")
    (tmp_path / "converter").mkdir()
    for name, items in (("images.h5", plain), ("encoded.h5", rest)):
        for item in re.findall(r"`([\w.]+)`", items):
            source = converted_checkout / "converter" / item
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, tmp_path / "converter" / item)
        read = f"print(H5Folder({str(converted_checkout / name)!r})['masks/depth.png'].shape)"
        code = f"from converter import H5Folder; {read}"
        result = run([sys.executable, "-c", code], tmp_path)
        assert result.stdout == "(72, 96)\n", result.stderr


def test_statements_about_other_readers_hold() -> None:
    rotated = IMAGES / "train" / "ball" / "rotated.jpg"
    assert iio.imread(rotated).shape == (96, 72, 3)
    assert iio.imread(rotated, rotate=True).shape == (72, 96, 3)
    cv2 = pytest.importorskip("cv2")
    assert cv2.imread(str(rotated)).shape == (72, 96, 3)
    assert cv2.imread(str(IMAGES / "train" / "cat" / "grey.jpg")).shape == (72, 96, 3)
    assert cv2.imread(str(IMAGES / "masks" / "depth.png")).dtype == np.uint8


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "`x`", CODE_BLOCK.sub("", text))


def anchors_of(text: str) -> set[str]:
    """Return the anchors GitHub gives to headings."""
    counts: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", CODE_BLOCK.sub("", text), re.MULTILINE):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        anchors.add(f"{anchor}-{counts[anchor]}" if counts[anchor] else anchor)
        counts[anchor] += 1
    return anchors


def links_of(page: str) -> Iterator[tuple[str, str]]:
    """Yield the local links of a page: a path below the checkout, and an anchor or nothing."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(PAGES[page])):
        if not re.match(r"\w+:", target):
            path, _, anchor = target.partition("#")
            joined = os.path.normpath(PurePosixPath(page).parent / path) if path else page
            yield Path(joined).as_posix(), anchor


@pytest.mark.parametrize("page", PAGES)
def test_local_links_lead_somewhere(page: str) -> None:
    for path, anchor in links_of(page):
        assert (ROOT / path).exists(), path
        assert not anchor or anchor in anchors_of(PAGES[path]), f"{path}#{anchor}"


def test_links_from_readme_lead_to_every_page() -> None:
    reached, left = {"README.md"}, ["README.md"]
    while left:
        new = {path for path, _ in links_of(left.pop()) if path in PAGES} - reached
        reached |= new
        left += new
    assert reached == PAGES.keys()


def test_no_sentence_stands_on_two_pages() -> None:
    pages: dict[str, set[str]] = {}
    for page, text in PAGES.items():
        prose = re.sub(r"^(\||\[README\]).*$", "", CODE_BLOCK.sub("", text), flags=re.MULTILINE)
        for sentence in re.split(r"(?<=[.:!?])\s+|\n\n+|\n- ", prose):
            if len(sentence.split()) > 7:
                pages.setdefault(" ".join(sentence.split()), set()).add(page)
    assert not {sentence: where for sentence, where in pages.items() if len(where) > 1}


def test_the_numbers_of_readme_are_those_of_the_benchmarks() -> None:
    _, _, table = README.partition("| | loose files, OpenCV |")
    table = table.partition("\n\n")[0]
    numbers = re.findall(r"\| ([\d,]+) (?=\|)", table)
    assert len(numbers) == 12
    rows = re.findall(r"^\|.*$", PAGES["docs/benchmarks.md"], re.MULTILINE)
    known = {cell.strip() for row in rows for cell in row.split("|")}
    assert set(numbers) <= known


def test_the_tree_is_that_of_the_package() -> None:
    said: dict[str, str] = {}
    above: list[str] = []
    for line in block_after("tree", "docs/development.md").splitlines()[1:]:
        branch, name, sense = re.fullmatch(r"([│├└─ ]*)(\S*) *(.*)", line).groups()
        if name:
            above[len(branch) // 4 - 1 :] = [name.rstrip("/")]
            said["/".join(above)] = sense
    package = ROOT / "converter"
    files = [
        path for path in package.rglob("*.py") if path.parent == package or path.stem != "__init__"
    ]
    folders = [path.parent for path in package.rglob("__init__.py") if path.parent != package]
    assert said.keys() == {path.relative_to(package).as_posix() for path in (*files, *folders)}
    assert all(len(sense.split()) > 1 for sense in said.values())


def test_the_sample_images_are_small_and_those_the_script_draws(tmp_path: Path) -> None:
    drawn = run([sys.executable, "tests/make_images.py", str(tmp_path)], ROOT)
    assert drawn.returncode == 0, drawn.stderr
    assert sum(path.stat().st_size for path in SAMPLES) < 150_000
    names = [path.relative_to(IMAGES) for path in SAMPLES]
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()) == names
    for name in names:
        if name.suffix.lower() != ".jpg":  # the same pixels whatever the version of the encoder
            np.testing.assert_array_equal(iio.imread(tmp_path / name), iio.imread(IMAGES / name))
