"""Define the command line: which flags there are, in which mode, and what they default to."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from converter.codecs.compression import ALL, CODECS, OF_AUTO, WORTHWHILE_RATIO
from converter.commands.request import FIELDS, default_of
from converter.errors import ConverterError
from converter.files import local_path
from converter.sources.readers import DEFAULT_READER, HELP
from converter.sources.resizing import DEFAULT_QUALITY

WRONG_USAGE = 2
NEAR = 0.7  # of 1: by difflib path_image is 0.95 path_images, threads 0.62 reader
MOST_SECONDS = 1e8  # three years; more than a timer can hold is no use either
CONVERT, UPDATE, VERIFY, MERGE, EXTRACT = "convert", "update", "verify", "merge", "extract"
SHEET, MASKS = "contact_sheet", "contact_masks"
#: Of two flags the first would do nothing, and why.
CONTRADICTIONS = (
    ("workers", "dask", "whose workers are those of the scheduler"),
    ("dask", "dry_run", "which reads a few files on this machine"),
    ("contact_sheet", "dry_run", "which makes no file to draw"),
)
USAGE = """converter --path_images=FOLDER --path_output=OUT.h5 [--ext=EXT] [more flags]
       converter --update --path_images=FOLDER --path_output=OUT.h5
       converter --verify --path_output=OUT.h5 [--path_images=FOLDER]
       converter --merge A.h5 B.h5 ... --path_output=OUT.h5 [--overwrite]
       converter --extract=FOLDER --path_output=OUT.h5 [--overwrite]
       converter --contact_sheet=SHEET.png --path_output=OUT.h5"""


@dataclass(frozen=True)
class Arguments:
    """A command line: its mode, the value of each flag of that mode, and which were typed."""

    mode: str
    values: dict[str, Any]
    typed: frozenset[str]


def parse(argv: Sequence[str] | None = None) -> Arguments:
    """Read a command line; ends the process with status 2, or 0 for ``--help``."""
    flags = _Flags()
    _add_common(flags)
    _add_convert(flags)
    _add_other_modes(flags)
    _add_sheet(flags)
    return flags.parse(argv)


class _Flag(NamedTuple):
    """In which modes there is a flag, which of them need it, and what it is if not typed."""

    modes: tuple[str, ...]
    needed_in: tuple[str, ...]
    default: Any


class _Flags:
    """Flags in groups, each for some modes."""

    def __init__(self) -> None:
        self._parser = _Parser(
            prog="converter",
            usage=USAGE,
            description="Turn the loose files below a folder into one HDF5 file: each matching "
            "file becomes a dataset under its relative path.",
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,  # only what was typed is there
            formatter_class=_HelpFormatter,
        )
        self._flags: dict[str, _Flag] = {}

    def group(self, title: str, *modes: str) -> Callable[..., None]:
        """Return a function that adds a flag to a new group of the help.

        Its type, choices and default are those of the field of `Request` of its name, if any. A
        flag of which nothing else is said takes no value.
        """
        group = self._parser.add_argument_group(title)

        def add(
            name: str,
            *,
            help: str,
            required: bool = False,
            also: tuple[str, ...] = (),
            **options: Any,
        ) -> None:
            default = None
            if name in FIELDS:
                default, metadata = default_of(name), FIELDS[name].metadata
                if "choices" in metadata:
                    options["choices"] = metadata["choices"]
                if "parse" in metadata:
                    options["type"] = _checked(metadata["parse"])
            if not options:
                default, options["action"] = False, "store_true"
            group.add_argument("--" + name, help=help, **options)
            self._flags[name] = _Flag((*modes, *also), modes if required else (), default)

        return add

    def parse(self, argv: Sequence[str] | None) -> Arguments:
        """Refuse flags of a mode that was not asked for, and the lack of those it needs."""
        namespace, unknown = self._parser.parse_known_args(argv)
        if unknown:
            self._parser.exit(WRONG_USAGE, f"{self._parser.prog}: {self._explained(unknown)}\n")
        typed = vars(namespace)
        mode = next((mode for mode in (UPDATE, VERIFY, MERGE, EXTRACT) if mode in typed), CONVERT)
        if mode == CONVERT and SHEET in typed and "path_images" not in typed:
            mode = SHEET
        for name in typed:
            modes = self._flags[name].modes
            if mode not in modes and mode == CONVERT:
                self._parser.error(f"--{name} needs --{modes[0]}")
            if mode not in modes:
                self._parser.error(f"--{name} changes nothing with --{mode}: drop one of them")
        if MASKS in typed and SHEET not in typed:
            self._parser.error(f"--{MASKS} needs --{SHEET}")
        for one, other, why in CONTRADICTIONS:
            if one in typed and other in typed:
                self._parser.error(f"--{one} does not go with --{other}, {why}: drop one of them")
        flags = {name: flag for name, flag in self._flags.items() if mode in flag.modes}
        needed = [name for name, flag in flags.items() if mode in flag.needed_in]
        missing = [f"--{name}" for name in needed if name not in typed]
        if missing:
            self._parser.error(f"{' and '.join(missing)} must be given")
        values = {name: flag.default for name, flag in flags.items()}
        return Arguments(mode, values | typed, frozenset(typed))

    def _explained(self, unknown: Sequence[str]) -> str:
        """Return a sentence on what no flag takes, which names the nearest flag."""
        text = next((one for one in unknown if one.startswith("-")), unknown[0])
        name = text.lstrip("-").partition("=")[0].lower().replace("-", "_")
        if not (text.startswith("-") or "=" in text or name in self._flags):
            return (
                f"{text} belongs to no flag: several extensions are joined by commas "
                "(--ext=jpg,png), and a path with spaces needs quotes"
            )
        near = self._nearest(name)
        what = "see --help" if near is None else f"did you mean --{near}?"
        return f"there is no flag {text}: {what}"

    def _nearest(self, name: str) -> str | None:
        """Return the flag whose name is most like one, or holds it, or begins it."""
        from difflib import get_close_matches  # no other command line needs it

        near = get_close_matches(name, self._flags, 1, NEAR)
        near += [flag for flag in self._flags if len(name) > 2 and name in flag]
        near += [flag for flag in self._flags if name.startswith(flag)]
        return near[0] if near else None


def _add_common(flags: _Flags) -> None:
    add = flags.group("every mode", CONVERT, UPDATE, VERIFY, MERGE, EXTRACT, SHEET)
    add(
        "path_output",
        required=True,
        metavar="OUT.h5",
        help="the HDF5 file to make, update, verify or extract; its folder is made if missing",
    )
    add("quiet", help="show no progress")
    add = flags.group("convert, merge and extract", CONVERT, MERGE, EXTRACT)
    add(
        "overwrite",
        help="replace an existing OUT.h5, once the new one is complete; with --extract: replace "
        "existing files",
    )


def _add_convert(flags: _Flags) -> None:
    add = flags.group("convert, the default mode: which files", CONVERT, UPDATE)
    add(
        "path_images",
        also=(VERIFY,),
        required=True,
        metavar="FOLDER",
        help="the folder to walk; with --verify: the folder to compare OUT.h5 with",
    )
    add(
        "ext",
        help="extensions to take, separated by commas (jpg,jpeg,png); case does not matter, a "
        "leading dot may be given (default: jpg)",
    )
    add(
        "custom_prune_func",
        help="take the files for which my_prune(filename_str, ext_str) of my_functions.py returns "
        "true: filename_str is the file name without its folder, ext_str is --ext as typed",
    )
    add(
        "follow_links",
        help="enter symlinked folders, each real folder once",
    )
    add(
        "hidden_folders",
        help="enter hidden folders too: names that begin with a dot, and those that systems make, "
        "such as @eaDir, __MACOSX, lost+found and $RECYCLE.BIN",
    )
    add = flags.group("convert: how to read them", CONVERT, UPDATE)
    add(
        "reader",
        help="; ".join(f"{name}: {text}" for name, text in HELP.items())
        + f" (default: {DEFAULT_READER})",
    )
    add(
        "custom_read_func",
        help="read with my_read of my_functions.py instead",
    )
    add(
        "path_functions",
        also=(VERIFY,),
        metavar="FILE.py",
        help="take my_read and my_prune from this file (default: my_functions.py in the current "
        "folder, else the one that comes with the converter)",
    )
    add(
        "max_pixels",
        type=_positive,
        metavar="N",
        help="refuse to decode images with more pixels (default: Pillow's limit, 178956970)",
    )
    add(
        "on_error",
        help="skip: leave out a file that cannot be read, report it, go on; stop: end at the "
        "first, and make no OUT.h5 (default: skip)",
    )
    plugins = " and ".join(one.name for one in ALL if one.needs_plugin)
    add = flags.group("convert: how to store them", CONVERT, UPDATE)
    add(
        "store",
        help="array: what the file decodes to; encoded: the file as it is, which takes hardly "
        "more bytes than in the folder; H5Folder decodes it on reading (default: array)",
    )
    add(
        "compression",
        metavar="{" + ",".join(one.name for one in ALL) + "}",
        help=f"auto: {OF_AUTO.name} where an array becomes at least {WORTHWHILE_RATIO:.0f} times "
        f"smaller; {', '.join(CODECS)}: where it becomes smaller; a level may follow, as in "
        f"{OF_AUTO.name}:6 (h5py reads {plugins} after import hdf5plugin) (default: auto)",
    )
    add(
        "skip_decode_check",
        help="with --store=encoded: do not decode each file once to see that it is whole",
    )
    add = flags.group("convert: smaller images", CONVERT, UPDATE)
    add(
        "resize",
        metavar="N",
        help="make larger images smaller, so that the shorter side has N pixels; with "
        "--store=encoded they are then encoded again; images that need no change keep every value "
        "(default: no image is changed)",
    )
    add(
        "resize_mode",
        help="shorter or longer: that side gets N pixels where it has more; crop: every image "
        "becomes N x N, from the largest square in its middle; exact: every image gets the size "
        "--resize=WIDTHxHEIGHT (default: shorter)",
    )
    add(
        "resize_filter",
        help="bicubic: for photos; nearest: for masks and labels, makes no value that the image "
        "does not have; area: for measured values, the mean of the pixels (default: bicubic)",
    )
    add(
        "quality",
        metavar="1..100",
        help="with --store=encoded: quality of JPEG and WebP that are encoded again "
        f"(default: {DEFAULT_QUALITY})",
    )
    add = flags.group("convert: how to run", CONVERT, UPDATE)
    add(
        "workers",
        also=(VERIFY,),
        type=_positive,
        metavar="N",
        help="worker processes; 1: read in this process, without workers (default: the cores this "
        "process may use)",
    )
    add(
        "file_timeout",
        also=(VERIFY,),
        type=_seconds,
        metavar="SECONDS",
        help="count a file as failed if reading it takes longer (default: wait)",
    )
    add(
        "shard",
        metavar="K/N",
        help="convert only the K-th of N equal parts of the files, which are the same on every "
        "machine; --merge joins the N files",
    )
    add(
        "dask",
        metavar="tcp://HOST:PORT",
        help="read and encode in the workers of this Dask scheduler, which must see the folder "
        "under the same path; this process writes",
    )
    add(
        "restart",
        help="start over: ignore what an interrupted run left",
    )
    add = flags.group("convert: try first", CONVERT)
    add(
        "dry_run",
        help="read a sample of the files in memory, and print how large OUT.h5 would be with each "
        "store and compression; write nothing",
    )


def _add_other_modes(flags: _Flags) -> None:
    flags.group("update", UPDATE)(
        "update",
        help="bring OUT.h5 in line with the folder: read what is new or changed and what failed, "
        "drop what is gone, keep the rest; flags you do not give are those OUT.h5 was made with",
    )
    add = flags.group("verify", VERIFY)
    add(
        "verify",
        help="check OUT.h5: its structure, its index, all checksums, and that h5py and H5Folder "
        "read the same; with --path_images also that each source file still gives what is stored, "
        "and that no file is missing",
    )
    add("rebuild_index", help="with --verify: first add an index to an OUT.h5 that has none")
    flags.group("merge", MERGE)(
        "merge",
        type=_checked(local_path),
        nargs="+",
        metavar="PART.h5",
        help="join files into OUT.h5 without decoding: the shards of one folder, or files made "
        "with the same options",
    )
    flags.group("extract: back to files", EXTRACT)(
        "extract",
        type=_checked(local_path),
        metavar="FOLDER",
        help="write what OUT.h5 holds to files below FOLDER: the original files of "
        "--store=encoded, otherwise one .npy for each array",
    )


def _add_sheet(flags: _Flags) -> None:
    add = flags.group("convert, update, merge, or alone: look at it", CONVERT, UPDATE, MERGE, SHEET)
    add(
        "contact_sheet",
        type=_checked(local_path),
        metavar="SHEET.png",
        help="draw 60 samples of OUT.h5, spread evenly, with their names, shapes and dtypes; "
        "without --path_images: of a finished file",
    )
    add(
        "contact_masks",
        metavar="PHOTOS=MASKS",
        help="draw masks over their photos: the name of a mask is that of its photo with the "
        "second text in place of the first, as in images/=masks/; extensions may differ",
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f"{self.prog}: {message}: see --help\n")


class _HelpFormatter(argparse.HelpFormatter):
    """Help of one width: docs/options.md shows it as it is."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=96)


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Have argparse print the error of a function of ours."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ConverterError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return seconds
