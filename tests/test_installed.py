"""Versions are those that importlib.metadata and h5py would name."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import h5py
import pytest

from converter import installed
from converter.installed import package_versions
from helpers.run import ROOT


def describe(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "METADATA").write_text(text)


def test_versions_are_those_of_importlib() -> None:
    names = sorted({one.metadata["Name"] for one in metadata.distributions()})
    assert len(names) > 10
    assert package_versions(names) == {name: metadata.version(name) for name in names}


def test_a_package_that_is_missing_has_no_version() -> None:
    assert package_versions(["no-such-package", "numpy"]).keys() == {"numpy"}


@pytest.mark.parametrize("asked", ["some-thing", "Some_Thing", "some.thing"])
def test_a_name_may_be_written_in_other_ways(asked, tmp_path, monkeypatch) -> None:
    text = "Name: Some.thing\nVersion: 1.2.post1\n\nVersion: 3"
    describe(tmp_path, "Some_thing-1.2.dist-info", text)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package_versions([asked]) == {asked: metadata.version(asked)} == {asked: "1.2.post1"}


def test_the_first_folder_counts(tmp_path, monkeypatch) -> None:
    for number, folder in enumerate(("behind", "in_front"), 1):
        describe(
            tmp_path / folder, f"thing-{number}.dist-info", f"Name: thing\nVersion: {number}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    assert package_versions(["thing"]) == {"thing": "2"}


@pytest.mark.parametrize("how", ["egg-info", "no METADATA", "another finder"])
def test_what_is_described_in_another_way_is_found_too(how, tmp_path, monkeypatch) -> None:
    (tmp_path / "thing.egg-info").mkdir()
    (tmp_path / "thing.egg-info" / "PKG-INFO").write_text("Name: thing\nVersion: 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    if how == "no METADATA":
        (tmp_path / "thing.egg-info").rename(tmp_path / "thing-4.dist-info")
    if how == "another finder":
        sys.path.remove(str(tmp_path))
        monkeypatch.setattr(sys, "meta_path", [Elsewhere(tmp_path), *sys.meta_path])
    assert package_versions(["thing"]) == {"thing": "4"}


class Elsewhere(metadata.DistributionFinder):
    """Finds packages in a folder that is not in sys.path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, name, path=None, target=None) -> None:
        return None

    def find_distributions(self, context):
        context = metadata.DistributionFinder.Context(name=context.name, path=[str(self._folder)])
        return metadata.MetadataPathFinder.find_distributions(context)


@pytest.mark.parametrize("is_wheel", [True, False])
def test_the_version_of_hdf5_is_that_of_h5py(is_wheel: bool) -> None:
    code = (
        "import sys\nfrom converter import installed\n"
        f"if not {is_wheel}:\n    installed._hdf5_of_wheel = lambda: None\n"
        "print(installed.hdf5_version())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == [h5py.version.hdf5_version]


def test_of_two_libraries_none_is_asked(tmp_path, monkeypatch) -> None:
    (tmp_path / "h5py").mkdir()
    (tmp_path / "h5py" / "__init__.py").touch()
    (tmp_path / "h5py.libs").mkdir()
    (tmp_path / "h5py.libs" / "libhdf5-1.so.1").touch()
    monkeypatch.setattr(installed, "find_spec", lambda _: Found(tmp_path / "h5py" / "__init__.py"))
    assert installed._hdf5_of_wheel() is None  # it is no library
    (tmp_path / "h5py.libs" / "libhdf5-2.so.1").touch()
    assert installed._hdf5_of_wheel() is None


class Found:
    """A spec of a module."""

    def __init__(self, origin: Path) -> None:
        self.origin = str(origin)
