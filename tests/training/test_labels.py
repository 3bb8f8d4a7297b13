"""Samples are selected by their keys, and get the labels a user means."""

from __future__ import annotations

import io
import pickle
from itertools import pairwise

import h5py
import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from converter import H5Folder
from converter.format.index import IndexBuilder
from converter.format.index_reader import Index
from converter.training.labels import (
    KEYS_AT_ONCE,
    Labels,
    Selection,
    folder_changes,
    folders_below,
    select,
)
from helpers.arrays import make_h5

KEYS = [
    "top.npy", "test/cat/a.npy", "train/cat/a.npy", "train/cat/b/c.npy", "train/dog/a.npy",
    "train/doge/a.npy", "training/elk/a.npy",
]  # fmt: skip
REPEATABLE = settings(derandomize=True, database=None, deadline=None, max_examples=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> H5Folder:
    """A file with a sample of each key."""
    samples = {key: np.array([n]) for n, key in enumerate(KEYS)}
    return H5Folder(make_h5(tmp_path_factory.mktemp("labels"), samples))


def index_of(keys: list[str]) -> Index:
    builder, content = IndexBuilder(), io.BytesIO()
    for key in keys:
        builder.add(key.encode(), b"{}", [])
    builder.write(content, 0)
    return Index(content.getvalue(), 0, "OUT.h5")


def keys_of(folder: H5Folder, selection: Selection) -> list[str]:
    return [folder.key_at(position) for position in selection.at(np.arange(len(selection)))]


@pytest.mark.parametrize("prefix", ["train", "train/", "/train/"])
def test_a_folder_selects_what_lies_below_it(folder, prefix):
    selection = select(folder, prefix)
    assert keys_of(folder, selection) == [key for key in folder if key.startswith("train/")]
    assert selection.prefix == "train/"


@pytest.mark.parametrize("keys", [None, "", "/"])
def test_all_samples_are_selected_without_keys(folder, keys):
    assert keys_of(folder, select(folder, keys)) == list(folder)


def test_keys_and_positions_are_selected_in_their_order(folder):
    wanted = ["train/doge/a.npy", "top.npy", "train/doge/a.npy"]
    assert keys_of(folder, select(folder, wanted)) == wanted
    assert keys_of(folder, select(folder, np.array([3, -1]))) == [*np.array([*folder])[[3, -1]]]
    assert keys_of(folder, select(folder, slice(1, 6, 2))) == [*folder][1:6:2]


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ("trian/", ValueError,
         "no key of {} begins with 'trian/': its folders are 'test', 'train', 'training'"),
        ("top.npy", ValueError, "no key of {} begins with 'top.npy/': its folders are"),
        ([], ValueError, "keys is empty: select at least one sample"),
        (["train/cow.npy"], KeyError, "\"no 'train/cow.npy' in {}"),
        ([99], IndexError, "position 99 is not in {}, which holds 7 samples"),
    ],
)  # fmt: skip
def test_what_selects_nothing_is_refused_in_a_sentence(folder, keys, error, message):
    with pytest.raises(error) as caught:
        select(folder, keys)
    assert str(caught.value).startswith(message.format(folder.path))


def test_a_file_without_folders_says_so(tmp_path):
    with pytest.raises(ValueError, match="it holds no folders, leave keys out"):
        select(H5Folder(make_h5(tmp_path, {"a.npy": np.zeros(1)})), "train/")


def test_a_folder_is_a_class_in_sorted_order(folder):
    selection = select(folder, "train/")
    labels = Labels("folder", folder, selection)
    assert labels.classes == ["cat", "dog", "doge"]
    assert labels.class_to_idx == {"cat": 0, "dog": 1, "doge": 2}
    expected = [labels.class_to_idx[key.split("/")[1]] for key in keys_of(folder, selection)]
    assert labels.take(np.arange(len(expected))).tolist() == expected
    taken = labels.take(np.array([3, 0, 3]))
    assert taken.dtype == np.int64 and taken.tolist() == [expected[n] for n in (3, 0, 3)]


def test_classes_fix_the_numbers(folder):
    names = ["elk", "doge", "dog", "cat"]
    keys = keys_of(folder, select(folder, "train"))
    labels = Labels("folder", folder, select(folder, "train"), names)
    assert labels.classes == names
    found = [names[number] for number in labels.take(np.arange(len(keys)))]
    assert found == [key.split("/")[1] for key in keys]


@pytest.mark.parametrize("keys", [None, "train/", ["train/dog/a.npy", "train/cat/a.npy"]])
def test_several_files_and_files_without_index_give_the_same_classes(tmp_path, keys):
    samples = {key: np.array([n]) for n, key in enumerate(KEYS[1:])}
    whole = H5Folder(make_h5(tmp_path / "whole", samples))
    parts = [
        make_h5(tmp_path / str(n), {key: samples[key] for key in some})
        for n, some in enumerate((KEYS[3:5], KEYS[5:], KEYS[1:3]))
    ]
    bare = tmp_path / "bare.h5"
    with h5py.File(bare, "w") as file:
        for key, array in samples.items():
            file[key] = array

    def classes_of(folder: H5Folder) -> dict[str, str]:
        selection = select(folder, keys)
        labels = Labels("folder", folder, selection)
        numbers = labels.take(np.arange(len(selection)))
        return {
            key: labels.classes[number]
            for key, number in zip(keys_of(folder, selection), numbers, strict=True)
        }

    expected = classes_of(whole)
    assert len(set(expected.values())) >= 1 and len(expected) >= 2
    for paths in (parts, [bare], parts[::-1]):
        assert classes_of(H5Folder(paths)) == expected


names = st.text(st.sampled_from("ab/é"), min_size=1, max_size=6)


@REPEATABLE
@given(st.lists(names, min_size=1, max_size=40, unique=True), st.sampled_from(["", "a/", "é/"]))
def test_folders_are_found_whatever_the_keys_and_their_order(keys, prefix):
    chosen = [n for n, key in enumerate(keys) if key.startswith(prefix)]
    chosen = chosen[::-1] + chosen[:2]
    found, numbers = folders_below(index_of(keys), np.array(chosen, np.int64), prefix)
    rest = [keys[n][len(prefix) :].partition("/") for n in chosen]
    assert found == sorted({first for first, slash, _ in rest if slash})
    assert numbers.tolist() == [found.index(first) if slash else -1 for first, slash, _ in rest]


@REPEATABLE
@given(st.lists(names, min_size=1, max_size=12, unique=True), st.booleans(), st.integers(1, 9))
def test_changes_of_folder_are_found_unless_names_are_out_of_order(keys, is_sorted, block):
    parts = [("".join(key.rpartition("/")[:2]), key.rpartition("/")[2]) for key in keys]
    parts = sorted(parts) if is_sorted else parts
    expected = [n for n in range(len(keys) - 1) if parts[n][0] != parts[n + 1][0]]
    if any(a[0] == b[0] and a[1] > b[1] for a, b in pairwise(parts)):
        expected = None
    index = index_of(list(map("".join, parts)))
    found = folder_changes(index, np.arange(len(keys)), at_once=block)
    assert (found if found is None else found.tolist()) == expected


def test_many_keys_are_numbered_block_by_block():
    folders = [f"n{n:08d}" for n in range(1000)]
    index = index_of([f"train/{folders[n // 40]}/{n:07d}.jpg" for n in range(40_000)])
    assert len(index) > 2 * KEYS_AT_ONCE
    found, numbers = folders_below(index, range(len(index)), "train/")
    assert found == folders
    assert numbers.tolist() == [n // 40 for n in range(40_000)]


FORMS = {
    "list of int": ([3, 1, 2], np.array([3, 1, 2], np.int64)),
    "uint8": (np.array([3, 1, 255], np.uint8), np.array([3, 1, 255], np.int64)),
    "big-endian": (np.array([3, 1, 2], ">i4"), np.array([3, 1, 2], np.int64)),
    "float": ([0.5, 1, 2], np.array([0.5, 1, 2], np.float32)),
    "float64": (np.array([0.5, 1, 2]), np.array([0.5, 1, 2], np.float32)),
    "bool": ([True, False, True], np.array([1, 0, 1], np.float32)),
    "boxes": ([[1, 2], [3, 4], [5, 6]], np.array([[1, 2], [3, 4], [5, 6]], np.int64)),
    "arrays": ([np.ones(2), np.zeros(2), np.ones(2)], np.array([[1, 1], [0, 0], [1, 1]], "f4")),
    "unequal": ([[1], [2, 3], []], [[1], [2, 3], []]),
    "unequal arrays": ([np.ones(2), np.ones(3), np.ones(2)], [np.ones(2), np.ones(3), np.ones(2)]),
    "texts": (["a", "bc", ""], ["a", "bc", ""]),
    "array of texts": (np.array(["a", "bc", ""]), ["a", "bc", ""]),
    "dicts": ([{"a": 1}, {}, {"b": 2}], [{"a": 1}, {}, {"b": 2}]),
    "nothing": ([None, None, None], [None, None, None]),
    "mixed": ([1, "a", None], [1, "a", None]),
}


@pytest.mark.everyday(len(FORMS))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["rows", "dict", "function"])
def test_labels_come_as_arrays_where_they_can(folder, form, how):
    given, expected = FORMS[form]
    selection = select(folder, [0, 2, 4])
    keys = keys_of(folder, selection)
    by_key = dict(zip(keys, given, strict=True))
    spec = {
        "rows": given,
        "dict": by_key,
        "function": lambda batch: [by_key[key] for key in batch],
    }[how]
    labels = Labels(spec, folder, selection)
    taken = labels.take(np.array([0, 1, 2]))
    assert type(taken) is type(expected)
    if isinstance(expected, np.ndarray):
        assert taken.dtype == expected.dtype
        np.testing.assert_array_equal(taken, expected)
    else:
        assert len(taken) == 3
        for one, other in zip(taken, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    assert labels.classes == [] and labels.class_to_idx == {}


def test_labels_are_new_in_each_batch(folder):
    given = np.array([1, 2, 3], np.int64)
    for spec in (given, lambda keys: given):
        labels = Labels(spec, folder, select(folder, [0, 2, 4]))
        labels.take(np.arange(3))[:] = 0
        assert given.tolist() == [1, 2, 3]


def test_a_function_is_called_with_the_keys_of_a_batch(folder):
    seen = []

    def parity(keys: list[str]) -> list[int]:
        seen.append(keys)
        return [len(key) for key in keys]

    labels = Labels(parity, folder, select(folder, "train/"))
    assert seen == []
    assert labels.take(np.array([2, 0])).tolist() == list(map(len, seen[0]))
    assert seen == [[keys_of(folder, select(folder, "train/"))[n] for n in (2, 0)]]


@pytest.mark.slow
def test_tensors_are_rows(folder):
    torch = pytest.importorskip("torch")
    labels = Labels(torch.tensor([5, 6]), folder, select(folder, [0, 1]))
    assert labels.take(np.arange(2)).tolist() == [5, 6]


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("folders", {}, "labels is 'folders': give 'folder', one label for each sample, a dict"),
        (7, {}, "labels is of type int: give 'folder', one label for each sample"),
        ([1, 2], {}, "labels has 2 rows for 4 selected samples: give one for each"),
        ({"train/cat/a.npy": 1}, {}, "labels has no 'train/"),
        (lambda keys: [1], {}, "the function of labels returned 1 labels for the 4 keys of a"),
        (lambda keys: 1, {}, "the function of labels returned 1 for the 4 keys of a batch"),
        (np.full(4, 2**63, np.uint64), {}, "a label is 9223372036854775808, which int64 cannot"),
        ("folder", {"classes": ["cat", "dog"]},
         "'train/doge/a.npy' lies in 'doge', which is not among the 2 names of classes"),
        ("folder", {"classes": ["cat", "dog", "cat"]}, "classes holds 'cat' twice"),
        ("folder", {"classes": "cat"}, "classes takes the names of folders: give a list of texts"),
        ([1, 2, 3, 4], {"classes": ["a"]}, "classes goes with labels='folder': leave it out"),
    ],
)  # fmt: skip
@pytest.mark.everyday
def test_labels_that_do_not_fit_are_refused_in_a_sentence(folder, spec, options, message):
    with pytest.raises(ValueError) as caught:
        Labels(spec, folder, select(folder, "train/"), **options).take(np.arange(4))
    assert str(caught.value).startswith(message)


def test_a_file_in_no_folder_has_no_class(folder):
    labels = Labels("folder", folder, select(folder))
    with pytest.raises(ValueError, match=r"'top\.npy' lies in no folder, so that"):
        labels.classes  # noqa: B018
    labels = Labels("folder", folder, select(folder, "train/dog"))
    with pytest.raises(ValueError, match=r"'train/dog/a\.npy' lies in no folder below 'train"):
        labels.take(np.arange(2))


def test_labels_travel_to_other_processes(folder):
    labels = pickle.loads(pickle.dumps(Labels("folder", folder, select(folder, "train/"))))
    assert labels.classes == ["cat", "dog", "doge"]
