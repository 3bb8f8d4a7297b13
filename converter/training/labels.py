"""Select samples by their keys, and give each its label.

Works on the bytes of all keys at once: a million keys take about a tenth of a second, in any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from converter.format.index_reader import Index
from converter.loader.h5folder import H5Folder
from converter.loader.several_files import SeveralIndexes

KEYS_AT_ONCE = 1 << 14  # what fits into a processor's cache
SLASH = ord("/")
NO_FOLDER = -1
MOST_FOLDERS_NAMED = 5


@dataclass(frozen=True)
class Selection:
    """Which samples are trained on: the positions of each index from 0 on.

    ``prefix`` is the folder they lie below, ending in "/", or "" for the whole file.
    """

    positions: range | np.ndarray
    prefix: str = ""

    def __len__(self) -> int:
        return len(self.positions)

    def at(self, indices: np.ndarray) -> np.ndarray:
        if not isinstance(self.positions, range):
            return self.positions.take(indices)
        start, step = self.positions.start, self.positions.step
        return indices if (start, step) == (0, 1) else np.asarray(indices * step + start)


def select(folder: H5Folder, keys: Any = None) -> Selection:
    """Return the samples that ``keys`` means, in the order given.

    ``keys`` is a folder within the file such as "train/", or keys or positions in any form that
    `H5Folder.read_batch` takes; None means all.

    Raises ValueError where nothing is selected, KeyError and IndexError for what the file does not
    hold.
    """
    opened = folder._open()
    if keys is None:
        positions: range | np.ndarray = range(len(folder))
        if not positions:
            raise ValueError(f"{folder.path} holds no samples: convert a folder with files")
        return Selection(positions)
    if isinstance(keys, str):
        prefix = keys.strip("/") + "/" if keys.strip("/") else ""
        positions = _positions_below(opened.source.keys, prefix)
        if not len(positions):
            raise ValueError(f"no key of {folder.path} begins with {prefix!r}{_folders(folder)}")
        return Selection(positions, prefix)
    positions = folder._positions(opened, keys)
    if not len(positions):
        raise ValueError("keys is empty: select at least one sample")
    return Selection(positions)


def identity_of(folder: H5Folder, selection: Selection) -> str:
    """Return a short text that tells a file and the samples selected of it from others."""
    positions = selection.positions
    if isinstance(positions, range):
        selected = f"{positions.start}:{positions.stop}:{positions.step}"
    else:
        selected = f"{crc32(positions.astype('<i8').tobytes()):08x}"
    return f"{crc32(repr(folder._open().source.identity).encode()):08x}/{selected}"


class Labels:
    """The label of each selected sample, worked out when first needed.

    Parameters
    ----------
    spec
        "folder": the number of the first folder below the selection's prefix, in sorted order.
        A sequence or an array: one row for each selected sample. A dict by key. A function that
        takes the keys of a batch as a list, and returns as many labels.
    folder, selection
        The samples.
    classes
        For "folder": the folders in the order of their numbers.

    Raises
    ------
    ValueError
        From any method: the labels do not fit the samples.
    """

    def __init__(
        self,
        spec: Any,
        folder: H5Folder,
        selection: Selection,
        classes: Sequence[str] | None = None,
    ) -> None:
        if isinstance(spec, str) and spec != "folder":
            raise ValueError(
                f"labels is {spec!r}: give 'folder', one label for each sample, a dict by key, or "
                "a function of a batch's keys"
            )
        self._is_folder = isinstance(spec, str)
        if classes is not None:
            if not self._is_folder:
                raise ValueError("classes goes with labels='folder': leave it out")
            classes = _checked_classes(classes)
        self._spec = spec
        self._folder = folder
        self._selection = selection
        self._classes = classes
        self._column: np.ndarray | list[Any] | None = None

    @property
    def classes(self) -> list[str]:
        """The names of the classes in the order of their numbers; empty without classes."""
        if self._is_folder and self._classes is None:
            self._all()
        return list(self._classes or ())

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def take(self, indices: np.ndarray) -> np.ndarray | list[Any]:
        """Return the labels of a batch, new.

        Whole numbers as int64, other numbers and truth values as float32, equal sequences stacked;
        all else as a list.
        """
        if callable(self._spec):
            return self._call(indices)
        column = self._all()
        if isinstance(column, np.ndarray):
            return _usual(column.take(indices, axis=0))
        return [column[index] for index in indices.tolist()]

    def _all(self) -> np.ndarray | list[Any]:
        if self._column is None:
            self._column = self._work_out()
        return self._column

    def _work_out(self) -> np.ndarray | list[Any]:
        if self._is_folder:
            return self._of_folders()
        spec = self._spec
        if isinstance(spec, Mapping):
            return _as_column(self._look_up(spec))
        if not hasattr(spec, "__len__") and not hasattr(spec, "__array__"):
            raise ValueError(
                f"labels is of type {type(spec).__name__}: give 'folder', one label for each "
                "sample, a dict by key, or a function of a batch's keys"
            )
        if len(spec) != len(self._selection):
            raise ValueError(
                f"labels has {len(spec)} rows for {len(self._selection)} selected samples: give "
                "one for each, in the order of the selection"
            )
        return _as_column(spec)

    def _look_up(self, labels: Mapping[str, Any]) -> list[Any]:
        found = []
        for key in self._keys(np.arange(len(self._selection))):
            try:
                found.append(labels[key])
            except KeyError:
                raise ValueError(
                    f"labels has no {key!r}: give a label for each key, or select with keys="
                ) from None
        return found

    def _of_folders(self) -> np.ndarray:
        prefix, source = self._selection.prefix, self._folder._open().source
        names, numbers = folders_below(source.keys, self._selection.positions, prefix)
        if (numbers == NO_FOLDER).any():
            [key] = self._keys(np.array([np.argmin(numbers)]))
            raise ValueError(
                f"{key!r} lies in no folder{f' below {prefix!r}' if prefix else ''}, so that "
                "labels='folder' gives it no class: select folders with keys="
            )
        if self._classes is None:
            self._classes = names
            return numbers
        number_of = {name: number for number, name in enumerate(self._classes)}
        unknown = [number for number, name in enumerate(names) if name not in number_of]
        if unknown:
            [key] = self._keys(np.array([np.argmax(numbers == unknown[0])]))
            raise ValueError(
                f"{key!r} lies in {names[unknown[0]]!r}, which is not among the "
                f"{len(self._classes)} names of classes: add it, or select other keys"
            )
        new_numbers = np.array([number_of[name] for name in names], np.int64)
        return np.asarray(new_numbers[numbers])

    def _call(self, indices: np.ndarray) -> np.ndarray | list[Any]:
        keys = self._keys(indices)
        labels = self._spec(keys)
        if not hasattr(labels, "__len__") or len(labels) != len(keys):
            count = f"{len(labels)} labels" if hasattr(labels, "__len__") else repr(labels)
            raise ValueError(
                f"the function of labels returned {count} for the {len(keys)} keys of a batch: "
                "return one for each, in their order"
            )
        column = _as_column(labels)
        return _usual(column.copy()) if isinstance(column, np.ndarray) else column

    def _keys(self, indices: np.ndarray) -> list[str]:
        key = self._folder._open().source.keys.key
        return [key(position) for position in self._selection.at(indices).tolist()]


def folders_below(
    keys: Index | SeveralIndexes, positions: range | np.ndarray, prefix: str
) -> tuple[list[str], np.ndarray]:
    """Return the sorted names of the first folders below a prefix, and their numbers.

    There is one number for each position, int64, and `NO_FOLDER` for a file that lies in the
    prefix itself. All positions are of keys that begin with it.
    """
    array = as_array(positions)
    if (array[1:] < array[:-1]).any():  # in stored order neighbours lie in one folder
        array, places = np.unique(array, return_inverse=True)
        names, numbers = folders_below(keys, array, prefix)
        return names, numbers[places]
    known: dict[bytes, int] = {}
    numbers = np.empty(len(array), np.int64)
    for index, chosen, some in _by_index(keys, array):
        begins, ends = _spans(index, some)
        begins = begins + len(prefix.encode())
        spans = [slice(n, n + KEYS_AT_ONCE) for n in range(0, len(some), KEYS_AT_ONCE)]
        found = [_number_folders(index.path_bytes, begins[n], ends[n], known) for n in spans]
        numbers[chosen] = np.concatenate(found)
    names = [_text(keys, name) for name in known]
    order = sorted(range(len(names)), key=names.__getitem__)
    new_numbers = np.empty(len(names) + 1, np.int64)
    new_numbers[order] = np.arange(len(names))
    new_numbers[NO_FOLDER] = NO_FOLDER
    return [names[number] for number in order], new_numbers[numbers]


def _number_folders(
    paths: np.ndarray, begins: np.ndarray, ends: np.ndarray, known: dict[bytes, int]
) -> np.ndarray:
    """Return the number in ``known`` of the first folder of each span, adding those that are new.

    Neighbours mostly lie in one folder: only the first of them is looked up.
    """
    slashes = _next_slash(paths, begins, ends)
    lengths = slashes - begins
    is_first = np.ones(len(begins), bool)
    is_first[1:] = lengths[1:] != lengths[:-1]
    for length in np.flatnonzero(np.bincount(lengths[lengths > 0])).tolist():
        same = np.flatnonzero((lengths[1:] == length) & ~is_first[1:]) + 1
        items = _items(paths, length)
        is_first[same] = items[begins[same]] != items[begins[same - 1]]
    firsts = np.flatnonzero(is_first)
    numbers = np.full(len(firsts), NO_FOLDER, np.int64)
    rows = zip(begins[firsts].tolist(), slashes[firsts].tolist(), strict=True)
    for n, (begin, slash) in enumerate(rows):
        if slash >= begin:
            numbers[n] = known.setdefault(paths[begin:slash].tobytes(), len(known))
    return np.asarray(numbers[np.cumsum(is_first) - 1])


def _next_slash(paths: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return where the first slash of each span is; one before its begin where it has none."""
    low, high = int(begins.min()), int(ends.max())
    slashes = np.append(np.flatnonzero(paths[low:high] == SLASH) + low, len(paths))
    nearest = slashes[np.searchsorted(slashes, begins)]
    return np.where(nearest < ends, nearest, begins - 1)


def folder_changes(
    keys: Index | SeveralIndexes, positions: np.ndarray, *, at_once: int = KEYS_AT_ONCE
) -> np.ndarray | None:
    """Return where the next of ascending positions lies in another folder.

    None where files of one folder do not come in the order of their names.
    """
    changes = [np.empty(0, np.int64)]
    for index, chosen, some in _by_index(keys, positions):
        begins, ends = _spans(index, some)
        for n in range(0, len(some) - 1, at_once):
            pairs = slice(n, n + at_once + 1)
            found = _folder_changes(index.path_bytes, begins[pairs], ends[pairs])
            if found is None:
                return None
            changes.append(found + chosen.start + n)
        changes.append(np.array([chosen.stop - 1]))  # the next one is in another file
    return np.concatenate(changes)[:-1]


def _folder_changes(paths: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray | None:
    low = int(begins.min())
    slashes = np.append(-1, np.flatnonzero(paths[low : int(ends.max())] == SLASH) + low)
    names = np.maximum(slashes[np.searchsorted(slashes, ends) - 1] + 1, begins)
    folder_nbytes, nbytes = names - begins, ends - names
    is_same = folder_nbytes[1:] == folder_nbytes[:-1]
    for length in np.unique(folder_nbytes[1:][is_same]).tolist():
        some = np.flatnonzero(is_same & (folder_nbytes[1:] == length))
        if length:
            items = _items(paths, length)
            is_same[some] = items[begins[some]] == items[begins[some + 1]]
    shorter = np.minimum(nbytes[1:], nbytes[:-1])
    for length in np.unique(shorter[is_same]).tolist():
        some = np.flatnonzero(is_same & (shorter == length))
        items = _items(paths, length, "S")
        one, other = items[names[some]], items[names[some + 1]]
        is_before = (one < other) | ((one == other) & (nbytes[some] < nbytes[some + 1]))
        if not is_before.all():
            return None
    return np.flatnonzero(~is_same)


def _positions_below(keys: Index | SeveralIndexes, prefix: str) -> range | np.ndarray:
    """Return the positions of all keys that begin with a prefix, in stored order."""
    name = prefix.encode(errors="surrogatepass")
    if not name:
        return range(len(keys))
    found = []
    for start, index in indexes_of(keys):
        begins, ends = _spans(index, slice(None))
        long_enough = np.flatnonzero(ends - begins >= len(name))
        if len(long_enough):
            items = _items(index.path_bytes, len(name))
            same = items[begins[long_enough]] == np.array(name, f"V{len(name)}")
            found.append(long_enough[same] + start)
    return _as_range(np.concatenate(found)) if found else range(0)


def as_array(positions: range | np.ndarray) -> np.ndarray:
    """Return positions as int64."""
    if isinstance(positions, range):  # numpy would take its numbers one by one
        return np.arange(positions.start, positions.stop, positions.step)
    return positions


def _as_range(positions: np.ndarray) -> range | np.ndarray:
    """Return positions in a row as a range."""
    if len(positions) and positions[-1] - positions[0] == len(positions) - 1:
        return range(int(positions[0]), int(positions[-1]) + 1)  # they ascend
    return positions


def _by_index(
    keys: Index | SeveralIndexes, positions: np.ndarray
) -> Iterator[tuple[Index, slice, np.ndarray]]:
    """Yield each index with the ascending positions in it: where they are, counted from it."""
    for start, index in indexes_of(keys):
        first, last = np.searchsorted(positions, (start, start + len(index))).tolist()
        if first < last:
            yield index, slice(first, last), positions[first:last] - start


def indexes_of(keys: Index | SeveralIndexes) -> Iterator[tuple[int, Index]]:
    """Yield the index of each file, with the position of its first sample."""
    if isinstance(keys, Index):
        yield 0, keys
    else:
        yield from zip(keys.starts, keys.indexes, strict=False)


def _spans(index: Index, positions: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
    """Return where the bytes of keys begin and end."""
    places = np.append(0, index.rows["path_end"].astype(np.int64))
    return places[:-1][positions], places[1:][positions]


def _items(paths: np.ndarray, length: int, kind: str = "V") -> np.ndarray:
    """Return bytes as overlapping items of one length; those of the kind "S" can be ordered."""
    return np.ndarray(len(paths) - length + 1, f"{kind}{length}", paths, 0, 1)


def _text(keys: Index | SeveralIndexes, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise keys.damage("holds a path that is not UTF-8") from None


def _folders(folder: H5Folder) -> str:
    """Return the end of a sentence that names the folders at the top of a file."""
    keys = folder._open().source.keys
    names, _ = folders_below(keys, range(len(keys)), "")
    if not names:
        return ": it holds no folders, leave keys out"
    more = ", ..." if len(names) > MOST_FOLDERS_NAMED else ""
    return f": its folders are {', '.join(map(repr, names[:MOST_FOLDERS_NAMED]))}{more}"


def _checked_classes(classes: Sequence[str]) -> list[str]:
    names = list(classes)
    if isinstance(classes, str) or not all(isinstance(name, str) for name in names):
        raise ValueError("classes takes the names of folders: give a list of texts")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"classes holds {twice[0]!r} twice: name each class once")
    return names


def _as_column(labels: Any) -> np.ndarray | list[Any]:
    """Return labels as one array where numbers or equal sequences of numbers, else as a list."""
    values = labels if hasattr(labels, "__array__") else list(labels)
    try:
        array = np.asarray(values)
    except ValueError:  # of unequal lengths
        return list(values)
    if array.dtype.kind in "OSUV" or array.ndim == 0:
        return list(labels)
    return array


def _usual(labels: np.ndarray) -> np.ndarray:
    """Return new whole numbers as int64, other numbers and truth values as float32."""
    if labels.dtype.kind in "iu":
        if labels.dtype == np.uint64 and len(labels) and labels.max() > np.iinfo(np.int64).max:
            raise ValueError(
                f"a label is {labels.max()}, which int64 cannot hold: number them anew"
            )
        return labels.astype(np.int64, copy=False)
    if labels.dtype.kind in "fb":
        return labels.astype(np.float32, copy=False)
    return labels
