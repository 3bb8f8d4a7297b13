"""Say of an unknown key what it may have been meant to be."""

from __future__ import annotations

import difflib
import heapq
import itertools
import os

from converter.errors import LoadError
from converter.format.index_reader import Index
from converter.loader.several_files import SeveralIndexes

NEAR_MATCHES = 3
KEYS_COMPARED = 2000
KEYS_COMPARED_CLOSELY = 20


def unknown_key(keys: Index | SeveralIndexes, key: str) -> KeyError | LoadError:
    """Return the error for a key that was not found: with what is near it.

    Of a million keys only those that have something in common with it are looked at.
    """
    inside = key.rstrip("/") + "/" if key else ""
    for position in itertools.islice(keys.positions_with(inside), KEYS_COMPARED):
        if keys.key(position).startswith(inside):
            return KeyError(
                f"{key!r} is a folder in {keys.path}: name a file in it, such as "
                f"{keys.key(position)!r}"
            )
    near: list[str] = []
    for fragment in _fragments(key):
        found = itertools.islice(keys.positions_with(fragment), KEYS_COMPARED)
        candidates = [keys.key(position) for position in found]
        if key in candidates:
            return keys.damage(f"cannot find {key!r}, which it holds")
        near += _nearest(key, candidates)
        if len(near) >= NEAR_MATCHES:
            break
    if not near:
        return KeyError(f"no {key!r} in {keys.path}")
    nearest = ", ".join(repr(one) for one in list(dict.fromkeys(near))[:NEAR_MATCHES])
    return KeyError(f"no {key!r} in {keys.path}: did you mean {nearest}?")


def _fragments(key: str) -> list[str]:
    """Return what keys near to this one may hold, most telling first."""
    folder, slash, name = key.rpartition("/")
    stem = key.rpartition(".")[0]
    return [key, stem or name, name, key[: len(key) - len(name) // 2], folder + slash, ""]


def _nearest(key: str, candidates: list[str]) -> list[str]:
    """Return the keys most like this one; difflib alone takes a millisecond a candidate."""

    def shared(other: str) -> int:
        return _common(key, other) + _common(key[::-1], other[::-1])

    likely = heapq.nlargest(KEYS_COMPARED_CLOSELY, candidates, key=shared)
    return difflib.get_close_matches(key, likely, NEAR_MATCHES, 0.6)


def _common(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    return len(os.path.commonprefix([one, other]))  # noqa: RUF071 (characters, not folders)
