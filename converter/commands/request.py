"""Say what can be asked for; refuse what cannot work before anything is touched."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from converter.callbacks import Callbacks
from converter.codecs.compression import AUTO, Compression, check_installed, parse_compression
from converter.errors import ConverterError
from converter.files import local_path
from converter.samples import Plan
from converter.sources import user_functions
from converter.sources.readers import DEFAULT_READER, READERS, Choice, Settings
from converter.sources.resizing import (
    DEFAULT_QUALITY,
    FILTERS,
    MODES,
    RESIZING,
    Resizing,
    check_resizing,
    parse_quality,
    parse_size,
)
from converter.sources.walk import keep_extensions, make_plan
from converter.threads import usable_cores
from converter.writer.paths import Paths, paths_of_failures

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    from converter.workers.launcher import Launcher

STORES = ("array", "encoded")
ON_ERROR = ("skip", "stop")
MY_READ = "my_read"  # recorded as the reader where the user's function reads


def parse_shard(text: str) -> tuple[int, int]:
    """Return number and count of ``K/N``. Raises ConverterError."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if found and 1 <= int(found[1]) <= int(found[2]):
        return int(found[1]), int(found[2])
    raise ConverterError(f"--shard must be K/N with 1 <= K <= N, such as 2/4, not {text}")


def parse_output(given: str | os.PathLike[str]) -> Path:
    """Return the path of the file to make. Raises ConverterError for the name of a folder."""
    text = os.fsdecode(given)
    if text.endswith(("/", os.sep)):
        raise ConverterError(
            f"{text} is the name of a folder: --path_output names the HDF5 file, such as "
            f"{text}OUT.h5"
        )
    return local_path(text)


def _joined(value: str | Iterable[str]) -> str:
    return value if isinstance(value, str) else ",".join(value)


#: A file that is made without them is that of a version that could not resize.
_OF_RESIZING = {"recorded": True, "unrecorded": None}


@dataclass(frozen=True)
class Request:
    """What to convert, and how: the command line's flags under their names.

    Metadata of a field: whether the root attribute ``options`` records it ("recorded"), the
    value that a file has which does not record it ("unrecorded"), what it may be ("choices"), and
    what makes its value from that given to `convert` ("parse").
    """

    path_images: Path = field(metadata={"parse": local_path})
    path_output: Path = field(metadata={"parse": parse_output})
    ext: str = field(default="jpg", metadata={"recorded": True, "parse": _joined})
    custom_read_func: bool = False  # these two are recorded by the hash of their file
    custom_prune_func: bool = False
    path_functions: Path | None = field(default=None, metadata={"parse": local_path})
    reader: str | None = field(default=None, metadata={"choices": READERS})
    store: str = field(default="array", metadata={"choices": STORES})
    skip_decode_check: bool = field(default=False, metadata={"recorded": True})
    compression: Compression = field(
        default=AUTO, metadata={"recorded": True, "parse": parse_compression}
    )
    resize: int | tuple[int, int] | None = field(
        default=None, metadata={**_OF_RESIZING, "parse": parse_size}
    )
    resize_mode: str | None = field(default=None, metadata={**_OF_RESIZING, "choices": MODES})
    resize_filter: str | None = field(default=None, metadata={**_OF_RESIZING, "choices": FILTERS})
    quality: int | None = field(default=None, metadata={**_OF_RESIZING, "parse": parse_quality})
    workers: int = field(default_factory=usable_cores)
    on_error: str = field(default="skip", metadata={"choices": ON_ERROR})
    max_pixels: int | None = field(default=None, metadata={"recorded": True})
    follow_links: bool = field(default=False, metadata={"recorded": True})
    # before there was such a record, hidden folders were entered as all others
    hidden_folders: bool = field(default=False, metadata={"recorded": True, "unrecorded": True})
    overwrite: bool = False
    restart: bool = False
    shard: tuple[int, int] | None = field(default=None, metadata={"parse": parse_shard})
    update: bool = False
    file_timeout: float | None = None  # seconds

    @property
    def extensions(self) -> tuple[str, ...]:
        """Return the extensions of ``ext``: lower case, without leading dots, sorted."""
        return extensions_of(self.ext)

    @property
    def reader_name(self) -> str:
        """Return the reader, where my_read is not asked for."""
        return self.reader or DEFAULT_READER

    @property
    def resizing(self) -> Resizing | None:
        """Return what images are resized to, with the defaults of what was not given."""
        if self.resize is None:
            return None
        return Resizing(
            self.resize,
            self.resize_mode or Resizing.mode,
            self.resize_filter or Resizing.filter,
            self.quality,
        )


class Options(TypedDict, total=False):
    """What `convert` takes beside the two paths: see `Request`, and the flags of these names."""

    ext: str
    custom_read_func: bool
    custom_prune_func: bool
    path_functions: str | os.PathLike[str] | None
    reader: str | None
    store: str
    skip_decode_check: bool
    compression: str
    resize: int | str | None
    resize_mode: str | None
    resize_filter: str | None
    quality: int | None
    workers: int | None
    on_error: str
    max_pixels: int | None
    follow_links: bool
    hidden_folders: bool
    overwrite: bool
    restart: bool
    shard: str | None
    file_timeout: float | None


FIELDS = {one.name: one for one in fields(Request)}
#: Options that the root attribute "options" holds under their names.
RECORDED = tuple(name for name, one in FIELDS.items() if one.metadata.get("recorded"))


def request_of(
    path_images: str | os.PathLike[str], path_output: str | os.PathLike[str], options: Options
) -> Request:
    """Return the request with `Options` as `convert` is given them; None stands for a default.

    Raises TypeError for a name that is no option.
    """
    for name in options:
        if name not in Options.__annotations__:
            known = ", ".join(Options.__annotations__)
            raise TypeError(f"convert() has no option {name!r}: it has {known}")
    given = {"path_images": path_images, "path_output": path_output, **options}
    return Request(**{n: parsed_value(n, v) for n, v in given.items() if v is not None})


def parsed_value(name: str, value: Any) -> Any:
    """Return the value of a field from what was given to `convert`, or recorded."""
    parse = FIELDS[name].metadata.get("parse")
    return value if parse is None else parse(value)


def recorded_value(name: str, options: Mapping[str, Any]) -> Any:
    """Return the value of a field from the root attribute ``options``. Raises KeyError."""
    metadata = FIELDS[name].metadata
    if name not in options and "unrecorded" in metadata:
        return metadata["unrecorded"]
    return parsed_value(name, options[name])


def complete_options(text: str) -> str:
    """Return the root attribute ``options`` with what older files do not say, for all did the same.

    Raises ValueError where it is not of this program.
    """
    unrecorded = {name: FIELDS[name].metadata.get("unrecorded") for name in RECORDED}
    known = {name: value for name, value in unrecorded.items() if value is not None}
    return json.dumps(known | dict(json.loads(text)), sort_keys=True)


def default_of(name: str) -> Any:
    """Return the default of a field; None for one without."""
    one = FIELDS[name]
    if one.default_factory is not MISSING:
        return one.default_factory()
    return None if one.default is MISSING else one.default


def recorded_options(request: Request) -> dict[str, Any]:
    """Return the options that the file records, as JSON holds them."""
    options: dict[str, Any] = {
        name: getattr(request, name) for name in RECORDED if name not in RESIZING
    }
    options["compression"] = str(request.compression)
    if not request.custom_prune_func:  # which gets it as it is typed
        options["ext"] = request.extensions
    if request.resizing is not None:
        options |= request.resizing.options
        if request.store == "encoded":
            options["quality"] = request.quality or DEFAULT_QUALITY
        else:
            del options["quality"]
    return options


def extensions_of(text: str) -> tuple[str, ...]:
    """Return the extensions of ``--ext``: lower case, without leading dots, sorted."""
    parts = (part.strip().lower().removeprefix(".") for part in text.split(","))
    return tuple(sorted({part for part in parts if part}))


def check_request(request: Request) -> None:
    """Raise ConverterError for what cannot work."""
    _check_paths(request)
    _check_options(request)


def check_folder(source: Path) -> None:
    """Raise ConverterError where there is no folder to walk."""
    try:
        is_folder = stat.S_ISDIR(os.stat(source).st_mode)
    except OSError as error:
        raise ConverterError(
            f"no folder {source} ({error.strerror}): --path_images names the folder to convert"
        ) from error
    if not is_folder:
        raise ConverterError(f"{source} is a file: --path_images names the folder it is in")
    if not os.access(source, os.R_OK | os.X_OK):
        raise ConverterError(f"{source} cannot be listed: you have no permission to read it")


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise ConverterError where a folder, or a file to keep, has the output's name."""
    if os.path.isdir(output):
        raise ConverterError(f"{output} is a folder: --path_output names the HDF5 file to make")
    if os.path.exists(output) and not os.path.isfile(output):  # to replace /dev/null ruins a system
        raise ConverterError(f"{output} is a device or a pipe: --path_output names a file to make")
    if os.path.lexists(output) and not overwrite:
        raise ConverterError(f"{output} exists: name another file, or add --overwrite")


def _check_paths(request: Request) -> None:
    output = request.path_output
    check_folder(request.path_images)
    try:
        os.stat(paths_of_failures(output)[1])  # the longest of the names
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConverterError(f"the name {output.name} is too long: choose another") from error
    check_output(output, overwrite=request.overwrite or request.update)
    if request.update and not os.path.isfile(output):
        raise ConverterError(
            f"no file {output}: --update brings an existing file in line with the folder: "
            "drop --update to make it"
        )
    folder = nearest_folder(output.parent)
    if not os.path.isdir(folder):
        what = "a file" if os.path.exists(folder) else "a link to nothing"
        raise ConverterError(f"{folder} is {what}: {output} cannot be made below it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConverterError(
            f"{output} cannot be made: you have no permission to write to {folder}"
        )
    if not request.extensions and not request.custom_prune_func:
        raise ConverterError(f"--ext={request.ext!r} has no extension: give one, such as jpg")


def _check_options(request: Request) -> None:
    """Refuse values that are none, and flags that would change nothing beside others."""
    for name, one in FIELDS.items():
        choices, value = one.metadata.get("choices"), getattr(request, name)
        if choices and value is not None and value not in choices:
            raise ConverterError(f"--{name} must be {' or '.join(choices)}, not {value!r}")
    if request.store == "encoded":
        if request.custom_read_func:
            raise ConverterError(
                "--store=encoded stores the files as they are, so what my_read returns would be "
                "stored nowhere: drop --custom_read_func, or choose --store=array"
            )
        if request.reader is not None:
            raise ConverterError(
                "--store=encoded stores the files as they are, and H5Folder decodes them with the "
                f"default reader, so --reader={request.reader} would change nothing: drop it, or "
                "take --store=array"
            )
        if request.skip_decode_check and request.max_pixels is not None:
            raise ConverterError(
                "with --skip_decode_check nothing is decoded, so --max_pixels would change "
                "nothing: drop one of them"
            )
    elif request.skip_decode_check:
        raise ConverterError(
            "--skip_decode_check needs --store=encoded, because arrays must be decoded: drop it, "
            "or add --store=encoded"
        )
    if request.custom_read_func and request.reader is not None:
        raise ConverterError(
            f"with --custom_read_func my_read reads the files, so --reader={request.reader} would "
            "change nothing: drop one of them"
        )
    _check_resizing(request)
    if request.path_functions is not None and not (
        request.custom_read_func or request.custom_prune_func
    ):
        raise ConverterError("--path_functions needs --custom_read_func or --custom_prune_func")
    if not request.custom_read_func:
        reader = READERS[request.reader_name]
        reader.check_installed()
        if not (request.custom_prune_func or request.skip_decode_check):  # else of any extension
            reader.refuse_unread(request.extensions, store=request.store)
    check_installed(request.compression)


def _check_resizing(request: Request) -> None:
    resizing = request.resizing
    if resizing is None:
        for name in RESIZING:
            value = getattr(request, name)
            if value is not None:
                raise ConverterError(
                    f"--{name}={value} changes nothing without --resize: add --resize=N, or drop it"
                )
        return
    size = resizing.options["resize"]
    if request.custom_read_func:
        raise ConverterError(
            f"with --custom_read_func my_read makes the arrays, and --resize={size} would change "
            "none: resize in my_read, or drop one of them"
        )
    if request.skip_decode_check:
        raise ConverterError(
            f"--resize={size} decodes the files, and --skip_decode_check stores them without "
            "decoding: drop one of them"
        )
    check_resizing(resizing, store=request.store)
    if request.quality is not None and not (request.custom_prune_func or _has_lossy(request)):
        raise ConverterError(
            f"--quality={request.quality} is for JPEG and WebP, and --ext={request.ext} names "
            "neither: drop it"
        )


def _has_lossy(request: Request) -> bool:
    """Tell whether there may be files that are encoded again with a quality."""
    from converter.images import formats  # takes too long for --help

    lossy = {*formats.JPEG.extensions, *formats.WEBP.extensions}
    return not lossy.isdisjoint(request.extensions)


def nearest_folder(folder: Path) -> Path:
    """Return the folder itself, or the nearest above it that exists."""
    folder = Path(os.path.abspath(folder))
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))


def load_functions(request: Request, caller: Callbacks) -> user_functions.Hooks:
    """Import my_read and my_prune, where they are asked for."""
    if not (request.custom_read_func or request.custom_prune_func):
        return user_functions.Hooks()
    path = user_functions.find_functions(request.path_functions)
    found = user_functions.load_hooks(
        path, read=request.custom_read_func, prune=request.custom_prune_func
    )
    names = [name for name, one in (("my_read", found.read), ("my_prune", found.prune)) if one]
    caller.notice(f"{' and '.join(names)} from {path}")
    return found


def is_alone(request: Request) -> bool:
    """Tell whether this process reads, without workers."""
    return request.workers == 1 and request.file_timeout is None


def launching_for(
    request: Request, caller: Callbacks, executor: Executor | None = None
) -> AbstractContextManager[Launcher | None]:
    """Return what starts the workers of a request, if it has any.

    It imports what they need, while this process imports what only this process needs.
    """
    import numpy  # noqa: F401 (not for --help; workers are forked with it)

    from converter.workers.launcher import launching

    is_needed = executor is None and not is_alone(request)
    prepare = partial(_import_for_workers, request.extensions)
    return launching(is_needed=is_needed, fork=caller.is_fresh, prepare=prepare)


def _import_for_workers(extensions: tuple[str, ...]) -> None:
    """Import what a worker needs to read files of these extensions."""
    from converter.sources import encoder  # noqa: F401
    from converter.sources.images import prepare
    from converter.workers import pool_worker  # noqa: F401

    prepare(extensions)


def encoding_settings(
    request: Request, found: user_functions.Hooks, *, choices: tuple[Choice, ...] = ()
) -> Settings:
    """Return what workers need to know to read and encode."""
    return Settings(
        root=str(request.path_images.resolve()),
        store=request.store,
        compression=request.compression,
        reader=request.reader_name,
        check_decoding=not request.skip_decode_check,
        max_pixels=request.max_pixels,
        path_functions=found.path if request.custom_read_func else None,
        choices=choices,
        file_timeout=request.file_timeout,
        resizing=request.resizing,
    )


def plan_of(request: Request, found: user_functions.Hooks) -> Plan:
    """List what goes in. Raises ConverterError where that is nothing."""
    keep = keep_extensions(request.extensions)
    if found.prune is not None:
        keep = partial(user_functions.call_prune, found.prune, request.ext)
    output = request.path_output
    plan = make_plan(
        request.path_images.resolve(),
        keep=keep,
        follow_links=request.follow_links,
        hidden_folders=request.hidden_folders,
        ignore=(output, *paths_of_failures(output), *Paths(output).all()),
    )
    if not plan.keys and not plan.failures:
        raise ConverterError(_nothing_found(request, plan))
    return plan if request.shard is None else plan.part(*request.shard)


def _nothing_found(request: Request, plan: Plan) -> str:
    what = f"no .{', .'.join(request.extensions)} files"
    if request.custom_prune_func:
        what = "my_prune keeps none of the files"
    if plan.hidden_folders:
        names = ", ".join(name for name, _ in plan.hidden_folders.most_common(5))
        what += f" outside of hidden folders ({names}; --hidden_folders enters them)"
    found = plan.left_out.most_common()
    if not found:
        return f"{what} below {request.path_images}: it holds no files at all"
    held = ", ".join(f"{count} {name}" for name, count in found[:5])
    best = next((name for name, _ in found if name.startswith(".")), None)
    hint = f": did you mean --ext={best[1:]}?" if best and not request.custom_prune_func else ""
    return f"{what} below {request.path_images}; it holds {held}{hint}"
