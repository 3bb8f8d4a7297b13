"""Find and import the user's my_read and my_prune."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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


def load_hooks(path: Path, *, read: bool, prune: bool, origin: Path | None = None) -> Hooks:
    """Import ``path``, once in each thread of a process, and take functions from it.

    It may be a copy of ``origin``, beside which its imports are then looked up.

    Raises ConverterError when the file cannot be imported or lacks a function.
    """
    sha256 = hash_of(path)
    module = _import(path, origin or path, sha256)
    wanted = {"my_read": read, "my_prune": prune}
    found = {name: getattr(module, name, None) for name in wanted if wanted[name]}
    for name, function in found.items():
        if not callable(function):
            raise ConverterError(f"{path} has no function {name}: define it, or drop its flag")
    return Hooks(path, sha256, found.get("my_read"), found.get("my_prune"))


def load_read(text: bytes, origin: Path | None) -> Callable[[str], Any] | None:
    """Return my_read of a file of functions, from the bytes of the file.

    Its imports are looked up beside ``origin``, where that is on this machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE_NAME
        path.write_bytes(text)
        return load_hooks(path, read=True, prune=False, origin=origin).read


def hash_of(path: Path) -> str:
    """Return what OUT.h5 records of a file of functions: the SHA-256 of its bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _import(path: Path, origin: Path, sha256: str) -> Any:
    name = Path(FILE_NAME).stem  # whatever the file is called: json.py must not become json
    # a fork would share the files that it has open, and threads what it keeps between two calls
    imported_from = os.getpid(), threading.get_ident(), path, sha256
    if getattr(sys.modules.get(name), "imported_from", None) == imported_from:
        return sys.modules[name]  # some of what it does, a process can do only once
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConverterError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__builtins__"] = builtins_for(origin)  # its neighbours can be imported
    replaced = sys.modules.get(name)
    sys.modules[name] = module
    writes_no_bytecode = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # the user's folder stays as it is
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if replaced is None:
            del sys.modules[name]
        else:
            sys.modules[name] = replaced
        raise ConverterError(
            f"{path} cannot be imported ({describe(error)}): correct the file"
        ) from error
    finally:
        sys.dont_write_bytecode = writes_no_bytecode
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
