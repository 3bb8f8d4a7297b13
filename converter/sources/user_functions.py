"""Find and import the user's my_read and my_prune."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from converter.errors import ConverterError, describe
from converter.sources.neighbours import builtins_for

FILE_NAME = "my_functions.py"
#: Beside the package in a checkout, where users edit it; a wheel has its copy within the package.
BESIDE_PACKAGE = Path(__file__).resolve().parents[2] / FILE_NAME
WITHIN_PACKAGE = Path(__file__).resolve().with_name(FILE_NAME)


@dataclass(frozen=True)
class Hooks:
    """The user's functions and the file they came from; None where not asked for."""

    path: Path | None = None
    sha256: str | None = None
    read: Callable[[str], Any] | None = None
    prune: Callable[[str, str], Any] | None = None


def find_functions(path_functions: Path | None) -> Path:
    """Return the file of functions: as named, else of the current folder, else as shipped."""
    if path_functions is not None:
        if not path_functions.is_file():
            raise ConverterError(
                f"no file {path_functions}: --path_functions names a Python file with my_read "
                "or my_prune"
            )
        return path_functions.resolve()
    for path in (Path.cwd() / FILE_NAME, BESIDE_PACKAGE):
        if path.is_file() and path.parent.name not in ("site-packages", "dist-packages"):
            return path.resolve()
    return WITHIN_PACKAGE


def load_hooks(path: Path, *, read: bool, prune: bool, text: bytes | None = None) -> Hooks:
    """Import ``path``, once in each thread of a process, and take functions from it.

    ``text`` is what it holds, for a machine that may not have it. Its imports are looked up
    beside it.

    Raises ConverterError when the file cannot be imported or lacks a function.
    """
    text = path.read_bytes() if text is None else text
    sha256 = hashlib.sha256(text).hexdigest()
    module = _import(path, text, sha256)
    wanted = {"my_read": read, "my_prune": prune}
    found = {name: getattr(module, name, None) for name in wanted if wanted[name]}
    for name, function in found.items():
        if not callable(function):
            raise ConverterError(f"{path} has no function {name}: define it, or drop its flag")
    return Hooks(path, sha256, found.get("my_read"), found.get("my_prune"))


def hash_of(path: Path) -> str:
    """Return what OUT.h5 records of a file of functions: the SHA-256 of its bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _import(path: Path, text: bytes, sha256: str) -> ModuleType:
    name = Path(FILE_NAME).stem  # whatever the file is called: json.py must not become json
    # a fork would share the files that it has open, and threads what it keeps between two calls
    imported_from = os.getpid(), threading.get_ident(), path, sha256
    replaced = sys.modules.get(name)
    if replaced is not None and getattr(replaced, "imported_from", None) == imported_from:
        return replaced  # some of what it does, a process can do only once
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__dict__["__builtins__"] = builtins_for(path)  # its neighbours can be imported
    sys.modules[name] = module
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if replaced is not None:
            sys.modules[name] = replaced
        raise ConverterError(
            f"{path} cannot be imported ({describe(error)}): correct the file"
        ) from error
    module.__dict__["imported_from"] = imported_from
    return module


def call_prune(prune: Callable[[str, str], Any], extension: str, filename: str) -> bool:
    """Ask my_prune; ConverterError names the file on which it fails."""
    try:
        return bool(prune(filename, extension))
    except (Exception, SystemExit) as error:
        raise ConverterError(
            f"my_prune failed on {filename!r} ({describe(error)}): correct the function"
        ) from error
