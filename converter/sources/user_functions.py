"""Find and import the user's my_read and my_prune, with the modules beside them."""

from __future__ import annotations

import builtins
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from converter.errors import ConverterError, describe

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # that module takes 6 ms to import, and Python asks for the methods alone
    Loader = MetaPathFinder = object

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
    sha256 = _sha256(text)
    module = _import(path, text, sha256)
    wanted = {"my_read": read, "my_prune": prune}
    found = {name: getattr(module, name, None) for name in wanted if wanted[name]}
    for name, function in found.items():
        if not callable(function):
            raise ConverterError(f"{path} has no function {name}: define it, or drop its flag")
    return Hooks(path, sha256, found.get("my_read"), found.get("my_prune"))


def hash_of(path: Path) -> str:
    """Return what OUT.h5 records of a file of functions: the SHA-256 of its bytes."""
    return _sha256(path.read_bytes())


def _sha256(data: bytes) -> str:
    import hashlib  # takes 4 ms, and most runs have no functions

    return hashlib.sha256(data).hexdigest()


def _import(path: Path, text: bytes, sha256: str) -> ModuleType:
    name = Path(FILE_NAME).stem  # whatever the file is called: json.py must not become json
    # a fork would share the files that it has open, and threads what it keeps between two calls
    imported_from = os.getpid(), threading.get_ident(), path, sha256
    replaced = sys.modules.get(name)
    if replaced is not None and getattr(replaced, "imported_from", None) == imported_from:
        return replaced  # some of what it does, a process can do only once
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__dict__["__builtins__"] = _builtins_for(path)  # its neighbours can be imported
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


def _builtins_for(path: Path) -> dict[str, Any]:
    """Return the builtins to give a file of functions, whose ``import`` looks beside it first.

    What is found there has another name in `sys.modules`, so the rest of the process neither
    sees it nor is kept from an installed module of the same name. Functions keep the builtins
    of their module: they may import when they are called.
    """
    folder = path.parent
    known = (one for one in sys.meta_path if isinstance(one, _Neighbours))
    finder = next((one for one in known if one.folder == folder), None)
    if finder is None:
        finder = _Neighbours(folder)
        sys.meta_path.insert(0, finder)  # before what would find the modules of its packages
    return _builtins(finder, path)


class _Neighbours(MetaPathFinder):
    """Finds the modules of one folder under names that begin with ``prefix``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        digest = _sha256(os.fsencode(folder))[:12]
        self.prefix = f"beside_functions_{digest}_"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(self.prefix):
            return None
        name, _, within = fullname.removeprefix(self.prefix).partition(".")
        if within:  # of a package: its own path is searched
            spec = PathFinder.find_spec(fullname, path)
        else:
            spec = _under_other_name(PathFinder.find_spec(name, [str(self.folder)]), fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec

    def has(self, name: str, own: Path) -> bool:
        """Tell whether a module of this name lies in the folder, and is not ``own``.

        One that the process has imported already, from there, is shared.
        """
        if name in sys.builtin_module_names:  # as in any script
            return False
        spec = PathFinder.find_spec(name, [str(self.folder)])
        if spec is None or spec.loader is None or spec.origin is None:
            return False
        imported = getattr(sys.modules.get(name), "__file__", None)
        return not any(
            other is not None and os.path.realpath(spec.origin) == os.path.realpath(other)
            for other in (imported, own)
        )

    def is_folder(self, name: str) -> bool:
        """Tell whether it could be a package without ``__init__.py``: these come last."""
        return (self.folder / name).is_dir()


class _Loader(Loader):
    """Loads a neighbour, whose own imports look beside it too."""

    def __init__(self, loader: Loader, finder: _Neighbours) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = _builtins(self._finder, None)
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # for resources of packages
        module.__loader__ = self._loader
        self._loader.exec_module(module)


def _under_other_name(spec: ModuleSpec | None, fullname: str) -> ModuleSpec | None:
    if spec is None or spec.origin is None:
        if spec is None or spec.submodule_search_locations is None:
            return None
        package = ModuleSpec(fullname, None, is_package=True)
        package.submodule_search_locations = list(spec.submodule_search_locations)
        return package
    return importlib.util.spec_from_file_location(
        fullname, spec.origin, submodule_search_locations=spec.submodule_search_locations
    )


def _builtins(finder: _Neighbours, path: Path | None) -> dict[str, Any]:
    usual = builtins.__import__
    own = path if path is not None else finder.folder

    def import_beside_first(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        writes_no_bytecode = sys.dont_write_bytecode
        sys.dont_write_bytecode = True  # the user's folder stays as it is
        try:
            if level == 0 and finder.has(top, own):
                return usual(finder.prefix + name, globals, locals, fromlist or (), 0)
            try:
                return usual(name, globals, locals, fromlist or (), level)
            except ModuleNotFoundError as error:
                if level or error.name != top or not finder.is_folder(top):
                    raise
            return usual(finder.prefix + name, globals, locals, fromlist or (), 0)
        finally:
            sys.dont_write_bytecode = writes_no_bytecode

    return {**builtins.__dict__, "__import__": import_beside_first}
