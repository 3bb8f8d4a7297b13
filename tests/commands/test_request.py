"""A default, a choice and what a file records of an option stand in one place: `Request`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import typing

import h5py
import pytest

from converter import ConverterError, convert
from converter.arguments import parse
from converter.cli import main
from converter.commands import request
from converter.commands.request import Options, Request, recorded_options
from converter.writer import provenance
from helpers.images import save_jpegs
from helpers.run import ROOT
from helpers.seams import pretend_installed

LONG_AGO_NS = 1_500_000_000_123_456_789


@pytest.fixture
def images(folder):
    return save_jpegs(folder, ["a.jpg"])


def test_convert_takes_the_fields_of_a_request():
    fields = [one.name for one in dataclasses.fields(Request)]
    assert list(Options.__annotations__) == [
        name for name in fields if name not in ("path_images", "path_output", "update")
    ]


def test_the_command_line_has_the_defaults_of_a_request(images, output):
    values = parse([f"--path_images={images}", f"--path_output={output}"]).values
    for name in ("quiet", "dry_run", "dask", "contact_sheet", "contact_masks"):
        del values[name]
    assert Request(**values) == Request(images, output)


@pytest.mark.parametrize("name", ["compresion", "update", "quiet", "path_image"])
def test_an_option_that_convert_does_not_have_is_named(name, images, output):
    with pytest.raises(TypeError, match=rf"convert\(\) has no option '{name}'"):
        convert(images, output, **{name: True})
    assert not output.exists()


@pytest.mark.parametrize("name", ["reader", "store", "on_error"])
def test_a_value_that_is_no_choice_is_named(name, images, output):
    with pytest.raises(ConverterError, match=rf"--{name} must be \w+ or \w+, not 'other'"):
        convert(images, output, workers=1, **{name: "other"})
    assert not output.exists()


def test_none_stands_for_the_default(images, output):
    names = [
        name
        for name, kind in typing.get_type_hints(Options).items()
        if type(None) in typing.get_args(kind)
    ]
    assert len(names) > 4
    report = convert(images, output, **{**dict.fromkeys(names), "workers": 1})
    assert report.stored == 1


def test_a_file_records_what_request_says(images, output):
    convert(images, output, ext="JPG,.png", compression="gzip:3", max_pixels=10**6, workers=1)
    with h5py.File(output) as file:
        assert file.attrs["options"] == (
            '{"compression": "gzip:3", "ext": ["jpg", "png"], "follow_links": false, '
            '"hidden_folders": false, "max_pixels": 1000000, "my_prune_sha256": null, '
            '"my_read_sha256": null, "skip_decode_check": false}'
        )
        assert {*file.attrs} == {*provenance.ATTRIBUTES}
        recorded = json.loads(file.attrs["options"])
    assert {name for name in recorded if not name.startswith("my_")} == {
        *recorded_options(Request(images, output))
    }


def test_a_file_made_before_there_was_an_option_is_taken_to_have_what_all_did(
    images, output, monkeypatch, capfd
):
    convert(images, output, workers=1)
    option, content = b', "skip_decode_check": false', output.read_bytes()
    assert content.count(option) == 1
    output.write_bytes(content.replace(option, b" " * len(option)))
    of_now = request.FIELDS["skip_decode_check"]
    new = dataclasses.field(metadata={**of_now.metadata, "unrecorded": False})
    monkeypatch.setitem(request.FIELDS, "skip_decode_check", new)
    flags = ["--update", f"--path_images={images}", f"--path_output={output}", "--workers=1"]
    assert main(flags) == 0
    assert "nothing of" not in capfd.readouterr().err


#: Deflate differs between machines, and so does what packages there are: these are of files
#: without compression, and without versions.
SHA256 = {
    "--compression=none": "227934dc407ae6f53acb3c79ad473036ce01d642dc5e6ba64c6e585df2a91f9a",
    "--store=encoded": "4eeb097856ae872795f14cb66c186b59a2fe664420f932dadcaf9621b739f2fb",
}


@pytest.mark.parametrize("flag", SHA256)
def test_the_bytes_of_a_file_are_those_of_all_versions(flag, tmp_path, output, monkeypatch):
    folder = shutil.copytree(ROOT / "tests" / "images", tmp_path / "copy")
    for path in folder.rglob("*"):
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    pretend_installed(monkeypatch, {})
    name, value = re.fullmatch("--(.*)=(.*)", flag).groups()
    convert(folder, output, ext="jpg,png,gif,tif", workers=1, **{name: value})
    assert hashlib.sha256(output.read_bytes()).hexdigest() == SHA256[flag]
