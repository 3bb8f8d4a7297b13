"""The package is built as docs/development.md says, and installs what it should."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.run import ROOT

PACKAGE = ROOT / "converter"
FOLDERS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
MOST_FILES_IN_FOLDER = 10


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists():
        pytest.skip("import-linter is not installed")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [str(program), "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its settings."""
    shutil.copytree(PACKAGE, tmp_path / "converter")
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy2(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "imports"),
    [
        ("codecs/zstd.py", "converter.format.layout"),
        ("sources/walk.py", "converter.writer.writer"),
        ("loader/h5folder.py", "converter.sources.encoder"),
        ("commands/verify.py", "converter.messages"),
        ("errors.py", "converter.files"),
        ("training/batches.py", "converter.images.formats"),
        ("cropping/crops.py", "converter.loader.h5folder"),
    ],
)
def test_an_arrow_turned_round_breaks_a_contract(copy: Path, module: str, imports: str) -> None:
    assert lint_imports(copy).returncode == 0
    path = copy / "converter" / module
    path.write_text(f"{path.read_text()}\nimport {imports}\n")
    broken = lint_imports(copy)
    assert broken.returncode == 1
    assert "BROKEN" in broken.stdout


def test_folders_are_small_and_their_init_is_a_docstring() -> None:
    assert len(FOLDERS) >= 7
    for folder in FOLDERS:
        body = ast.parse((folder / "__init__.py").read_text()).body
        assert len(body) == 1 and ast.get_docstring(ast.Module(body, []))
        assert len(list(folder.glob("[!_]*.py"))) <= MOST_FILES_IN_FOLDER, folder


def test_no_module_at_the_root_has_the_name_of_a_standard_one() -> None:
    """``python converter`` puts the package's folder on sys.path until it has started."""
    names = {path.stem for path in PACKAGE.glob("[!_]*.py")}
    assert not names & sys.stdlib_module_names


def test_the_functions_within_the_package_are_those_beside_it() -> None:
    within = PACKAGE / "sources" / "my_functions.py"
    assert within.read_bytes() == (ROOT / "my_functions.py").read_bytes()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the tree: building writes beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt", "my_functions.py"):
        shutil.copy2(ROOT / name, folder)
    shutil.copytree(PACKAGE, folder / "converter")
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(folder)],
        capture_output=True,
        text=True,
    )
    if built.returncode and "No matching distribution" in built.stderr:
        pytest.skip("no network to fetch setuptools from")
    assert built.returncode == 0, built.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_all_modules_and_no_top_level_functions(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    assert modules <= names
    assert "converter/py.typed" in names
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"converter"}


@pytest.mark.slow
def test_an_installed_wheel_gives_both_commands_and_its_own_functions(
    wheel: Path, tmp_path: Path
) -> None:
    """Into a folder beside what this Python has: its commands, its modules, its functions."""
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site),
         str(wheel)],
        check=True,
    )  # fmt: skip
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.json").write_text("[1, 2]")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for number, name in enumerate(("converter", "data2h5")):
        flags = ["--path_images=lists", f"--path_output={number}.h5", "--ext=json"]
        ended = subprocess.run(
            [sys.executable, str(site / "bin" / name), *flags, "--custom_read_func"],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert str(site / "converter" / "sources" / "my_functions.py") in ended.stderr


def test_help_imports_no_package() -> None:
    """numpy, h5py and Pillow take most of the time of a short command."""
    code = (
        "import sys\nfrom converter.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n"
        "    print(*{'numpy', 'h5py', 'PIL'} & sys.modules.keys(), file=sys.stderr)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--path_images" in ended.stdout
    assert ended.stderr.split() == []


#: What takes longest to import of that which a conversion of photos can do without.
SLOW = {"h5py", "PIL", "email", "importlib.metadata", "numpy.ma", "tifffile"}


def test_a_conversion_of_photos_imports_little(tmp_path: Path) -> None:
    """The process that writes decodes nothing, and HDF5's structures are written without h5py."""
    code = (
        "import sys\nfrom converter.cli import main\nstatus = main(sys.argv[1:])\n"
        f"print(status, *sorted({SLOW} & sys.modules.keys()))\n"
    )
    flags = [f"--path_images={ROOT / 'tests' / 'images'}", f"--path_output={tmp_path / 'OUT.h5'}"]
    ended = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "0"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_a_plain_conversion_starts_no_threads_of_numpy(tmp_path: Path) -> None:
    """They spin for a while. The user's own code gets them: what it does may need them."""
    (tmp_path / "mine.py").write_text("def my_prune(name, ext):\n    return name.endswith(ext)\n")
    code = (
        "import os, sys\nfrom converter.cli import main\nstatus = main(sys.argv[1:])\n"
        "print(status, len(os.listdir('/proc/self/task')), 'OPENBLAS_NUM_THREADS' in os.environ)\n"
    )
    environment = {name: v for name, v in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    said = {}
    for name, flags in (
        ("plain", []),
        ("pruned", ["--custom_prune_func", f"--path_functions={tmp_path / 'mine.py'}"]),
        ("numpy alone", None),
    ):
        argv = [f"--path_images={ROOT / 'tests' / 'images'}", f"--path_output={tmp_path / name}.h5"]
        run = [*argv, "--workers=1", "--quiet", *(flags or [])]
        text = code if flags is not None else code.replace("main(sys.argv[1:])", "0; import numpy")
        ended = subprocess.run(
            [sys.executable, "-c", text, *run],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        said[name] = ended.stdout.splitlines()[-1]
    assert said["plain"] == "0 1 False"
    assert said["pruned"] == said["numpy alone"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--path_images={images}", "--path_output={new}"],
        ["--path_images={images}", "--path_output={new}", "--dry_run"],
        ["--update", "--path_images={images}", "--path_output={made}"],
        ["--verify", "--path_output={made}"],
        ["--merge", "{made}", "--path_output={new}"],
        ["--extract={folder}", "--path_output={made}"],
        ["--contact_sheet={sheet}", "--path_output={made}"],
    ],
    ids=["convert", "dry run", "update", "verify", "merge", "extract", "contact sheet"],
)
def test_garbage_is_collected_again_once_a_mode_has_begun(flags: list[str], tmp_path: Path) -> None:
    """It is not looked for while modules are imported: see `__main__`."""
    images, made = ROOT / "tests" / "images", tmp_path / "made.h5"
    names = {"new": tmp_path / "new.h5", "folder": tmp_path / "out", "sheet": tmp_path / "a.png"}
    code = (
        "import gc, sys\ngc.disable()\nfrom converter.cli import main\n"
        "status = main()\nprint(status, gc.isenabled())\n"
    )

    def run(given: list[str]) -> str:
        typed = [flag.format(images=images, made=made, **names) for flag in given]
        command = [sys.executable, "-c", code, *typed]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return ended.stdout.splitlines()[-1]

    run(["--path_images={images}", "--path_output={made}"])
    assert run(flags) == "0 True"
