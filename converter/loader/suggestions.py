"""Suggest keys like one that is unknown."""

from __future__ import annotations

import difflib
import itertools
import unicodedata
from typing import Literal

from converter.errors import LoadError
from converter.format.index_reader import Index
from converter.loader.several_files import SeveralIndexes

NEAR_MATCHES = 3
KEYS_COMPARED = 2000
FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")  # of most systems, of macOS


def unknown_key(keys: Index | SeveralIndexes, key: str) -> KeyError | LoadError:
    """Return the error for a key that was not found, with the keys most like it.

    They have the same name in a folder beside its own, or a similar name in its own folder.
    """
    inside = key.rstrip("/") + "/"
    for file in _keys_with(keys, inside, within=inside):
        return KeyError(f"{key!r} is a folder in {keys.path}: name a file in it, such as {file!r}")
    alike = _composed_otherwise(keys, key)
    if alike is not None:
        form, stored = alike
        return KeyError(
            f"no {key!r} in {keys.path}, but {stored!r}, which looks the same but has other "
            f"Unicode characters for its accents: pass {form}"
        )
    folder, slash, name = key.rpartition("/")
    above, slash_above, _ = folder.rpartition("/")
    within = folder + slash
    near = _keys_with(keys, "/" + name, within=above + slash_above) if slash else []
    near = [other for other in near if other.count("/") == key.count("/") and other.endswith(name)]
    for fragment in (within + name[: len(name) // 2], within):
        candidates = _keys_with(keys, fragment, within=within)
        if key in candidates:
            return keys.damage(f"cannot find {key!r}, which it holds")
        names = [other[len(within) :] for other in candidates]
        near += [within + other for other in difflib.get_close_matches(name, names, NEAR_MATCHES)]
        if len(near) >= NEAR_MATCHES:
            break
    if not near:
        return KeyError(f"no {key!r} in {keys.path}")
    nearest = ", ".join(repr(one) for one in list(dict.fromkeys(near))[:NEAR_MATCHES])
    return KeyError(f"no {key!r} in {keys.path}: did you mean {nearest}?")


def _composed_otherwise(keys: Index | SeveralIndexes, key: str) -> tuple[str, str] | None:
    """Return how to get a key that differs only in Unicode composition, and that key."""
    if key.isascii():
        return None
    for form in FORMS:
        if keys.find(unicodedata.normalize(form, key)) is not None:
            return f"unicodedata.normalize({form!r}, key)", unicodedata.normalize(form, key)
    wanted = unicodedata.normalize("NFC", key)
    for stored in keys.keys():  # noqa: SIM118 (an Index is no dict)
        if not stored.isascii() and unicodedata.normalize("NFC", stored) == wanted:
            return "the key as list(folder) gives it", stored
    return None


def _keys_with(keys: Index | SeveralIndexes, fragment: str, *, within: str) -> list[str]:
    """Return the first keys that hold a text and begin with another."""
    positions = itertools.islice(keys.positions_with(fragment), KEYS_COMPARED)
    return [key for key in map(keys.key, positions) if key.startswith(within)]
