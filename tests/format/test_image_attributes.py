"""Images have the attributes of the HDF5 Image and Palette Specification 1.2: viewers show them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5t

from converter import H5Folder
from converter import convert as convert_folder
from converter.callbacks import Callbacks, Progress
from converter.commands.convert import run_request
from converter.commands.rebuild_index import rebuild_index
from converter.commands.request import request_of
from converter.format import headers
from helpers.check import stored
from helpers.images import noise, save, save_frames, save_tiff
from helpers.run import Finished, program, read_with, run, write_functions

COLOUR = {
    "CLASS": "IMAGE",
    "IMAGE_VERSION": "1.2",
    "IMAGE_SUBCLASS": "IMAGE_TRUECOLOR",
    "INTERLACE_MODE": "INTERLACE_PIXEL",
    "DISPLAY_ORIGIN": "UL",
}
GRAY = {
    "CLASS": "IMAGE",
    "IMAGE_VERSION": "1.2",
    "IMAGE_SUBCLASS": "IMAGE_GRAYSCALE",
    "IMAGE_WHITE_IS_ZERO": 0,
    "DISPLAY_ORIGIN": "UL",
}
#: Run by node with h5wasm's module and the file.
IN_NODE = """
const { default: h5wasm } = await import(process.argv[2]);
await h5wasm.ready;
const file = new h5wasm.File(process.argv[3], "r");
const found = {};
for (const name of process.argv.slice(4)) {
    const dataset = file.get(name);
    const attributes = {};
    for (const [key, attribute] of Object.entries(dataset.attrs))
        attributes[key] = attribute.value;
    const sum = dataset.value.reduce((one, other) => one + other, 0);
    found[name] = { shape: dataset.shape, sum, attributes };
}
console.log(JSON.stringify(found));
"""

Convert = Callable[..., Finished]


def attributes_by_the_specification(dataset: h5py.Dataset) -> dict[str, Any]:
    """Return the attributes, whose types must be those that the specification gives."""
    found: dict[str, Any] = {}
    for name in dataset.attrs:
        attribute = dataset.attrs.get_id(name)
        kind = attribute.get_type()
        assert attribute.shape == (), name
        if isinstance(kind, h5t.TypeStringID):
            data = np.empty((), f"S{kind.get_size()}")
            attribute.read(data)
            assert not kind.is_variable_str()
            assert (kind.get_strpad(), kind.get_cset()) == (h5t.STR_NULLTERM, h5t.CSET_ASCII)
            found[name] = data.tobytes()[: kind.get_size()].decode().removesuffix("\0")
            assert len(found[name]) == kind.get_size() - 1, name  # ended by its only zero
        else:
            assert kind.equal(h5t.NATIVE_UINT8), name
            found[name] = int(dataset.attrs[name])
    return found


def images_in(output: Path) -> dict[str, dict[str, Any]]:
    """Return the attributes of all datasets that have any."""
    found = {}
    with h5py.File(output) as file:
        for key in stored(output):
            if len(file[key].attrs):
                found[key] = attributes_by_the_specification(file[key])
    return found


@pytest.fixture
def photos(folder: Path) -> Path:
    """Return a folder with images that are marked and some that are not."""
    for number in range(6):
        save(folder / f"colour {number}.png", noise(number, (100, 120 + number, 3)))
        save(folder / f"gray {number}.png", noise(number, (170, 180)))
        save(folder / "small" / f"{number}.png", noise(number, (32, 32, 3)))
    return folder


def make(folder: Path, output: Path, **options: Any) -> Path:
    convert_folder(folder, output, ext="png", workers=1, **options)
    return output


@pytest.fixture
def without_marks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return what makes a file as versions did that marked no images."""

    def make_unmarked(folder: Path, output: Path, **options: Any) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(headers, "SHARE_OF_IMAGE", 1 << 60)
            make(folder, output, **options)
        assert images_in(output) == {}
        return output

    return make_unmarked


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_large_images_of_the_default_reader_have_what_the_specification_requires(
    photos: Path, output: Path, compression: str
) -> None:
    make(photos, output, compression=compression)
    marked = images_in(output)
    assert marked == {
        key: COLOUR if "colour" in key else GRAY for key in stored(output) if "small" not in key
    }
    assert len(marked) == 12
    with h5py.File(output) as file:
        assert file.attrs["format"].endswith(".2")


def test_the_attributes_take_less_than_one_percent_of_a_payload(
    folder: Path, output: Path, without_marks: Callable[..., Path]
) -> None:
    for side in range(88, 98):
        save(folder / f"colour {side}.png", noise(side, (side, side, 3)))
        save(folder / f"gray {side}.png", noise(side, (side, side * 3)))
    marked = images_in(make(folder, output, compression="none"))
    before = without_marks(folder, output.with_name("before.h5"), compression="none")
    assert sorted(marked) == [
        *(f"colour {side}.png" for side in range(93, 98)),
        *(f"gray {side}.png" for side in range(92, 98)),
    ]
    payloads = sum(array.nbytes for key, array in stored(output).items() if key in marked)
    assert output.stat().st_size - before.stat().st_size < 0.01 * payloads


def test_what_a_filter_has_made_small_is_not_marked(folder: Path, output: Path) -> None:
    save(folder / "mask.png", np.repeat(np.arange(4, dtype=np.uint8), 20_000).reshape(200, 400))
    assert images_in(make(folder, output)) == {}
    make(folder, output, compression="none", overwrite=True)
    assert images_in(output) == {"mask.png": GRAY}


def test_other_arrays_are_not_marked(folder: Path, output: Path, convert: Convert) -> None:
    save(folder / "rgba.png", noise(1, (100, 100, 4)))
    save(folder / "deep.png", noise(2, (200, 200), "u2"))
    save(folder / "bitmap.png", noise(3, (600, 600)) > 127)
    save_frames(folder / "frames.gif", count=30)
    save_tiff(folder / "floats.tif", noise(4, (200, 200), "f4"))
    assert convert(folder, output, "--ext=png,gif,tif").status == 0
    assert images_in(output) == {}


def test_what_my_read_returns_is_not_marked(
    photos: Path, output: Path, convert: Convert, tmp_path: Path
) -> None:
    functions = write_functions(
        tmp_path / "functions.py",
        "from converter import read_image\ndef my_read(path): return read_image(path)",
    )
    assert convert(photos, output, "--ext=png", *read_with(functions)).status == 0
    assert images_in(output) == {}


@pytest.mark.parametrize("flag", ["--reader=opencv", "--store=encoded"])
def test_bgr_and_whole_files_are_not_marked(
    photos: Path, output: Path, convert: Convert, flag: str
) -> None:
    if "opencv" in flag:
        pytest.importorskip("cv2")
    assert convert(photos, output, "--ext=png", flag).status == 0
    assert images_in(output) == {}


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_updating_a_file_without_marks_gives_the_bytes_of_a_conversion(
    photos: Path, output: Path, without_marks: Callable[..., Path], compression: str
) -> None:
    kept, moved = photos / "gray 0.png", photos.parent / "aside.png"
    shutil.move(kept, moved)
    without_marks(photos, output, compression=compression)
    shutil.move(moved, kept)
    request = request_of(photos, output, {"ext": "png", "compression": compression, "workers": 1})
    updated = run_request(replace(request, update=True), Callbacks())
    assert updated.changes is not None and updated.changes.kept == 17
    whole = make(photos, output.with_name("whole.h5"), compression=compression)
    assert output.read_bytes() == whole.read_bytes()


def test_merging_files_without_marks_gives_the_bytes_of_a_conversion(
    photos: Path, output: Path, without_marks: Callable[..., Path], convert: Convert
) -> None:
    parts = [
        without_marks(photos, output.with_name("1.h5"), shard="1/2"),
        make(photos, output.with_name("2.h5"), shard="2/2"),
    ]
    ended = run(program("--merge", *map(str, parts), f"--path_output={output}"))
    assert ended.status == 0, ended.err
    assert output.read_bytes() == make(photos, output.with_name("whole.h5")).read_bytes()


def test_resuming_gives_the_bytes_of_an_uninterrupted_run(folder: Path, output: Path) -> None:
    for number in range(150):
        save(folder / f"{number:03}.png", noise(number, (100, 100, 3)), compress_level=0)
    request = request_of(folder, output, {"ext": "png", "workers": 1})

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_request(request, Callbacks(progress=interrupt))
    assert not output.exists()
    said: list[str] = []
    run_request(request, Callbacks(notice=said.append))
    assert any("files are kept from the interrupted run" in line for line in said), said
    assert len(images_in(output)) == 150
    assert output.read_bytes() == make(folder, output.with_name("whole.h5")).read_bytes()


def test_an_index_added_anew_is_of_the_same_arrays(photos: Path, output: Path) -> None:
    make(photos, output)
    with h5py.File(output, "r+"):
        pass  # cuts the index off
    assert rebuild_index(output, Callbacks()) == 18
    folder = H5Folder(output)
    for key, array in stored(output).items():
        np.testing.assert_array_equal(folder[key], array)


def h5wasm() -> Path:
    """Return the module of h5wasm for node; skip the test where one of them is missing."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed: h5wasm was not tried")
    for folder in os.environ.get("NODE_PATH", "").split(os.pathsep):
        module = Path(folder) / "h5wasm" / "dist" / "node" / "hdf5_hl.js"
        if module.is_file():
            return module.resolve()
    pytest.skip("h5wasm is not in a folder of NODE_PATH: npm install h5wasm")


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_h5wasm_reads_images_and_their_attributes(
    photos: Path, output: Path, tmp_path: Path, compression: str
) -> None:
    module = h5wasm()
    make(photos, output, compression=compression)
    arrays = stored(output)
    script = tmp_path / "read.mjs"
    script.write_text(IN_NODE)
    ended = subprocess.run(
        ["node", script, module.as_uri(), output, *arrays],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    marked = images_in(output)
    for key, array in arrays.items():
        assert found[key] == {
            "shape": list(array.shape),
            "sum": int(array.sum()),
            "attributes": marked.get(key, {}),
        }
