"""Find out what a request comes to: its functions, the settings of workers, the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from converter.callbacks import Caller
from converter.commands.request import Request
from converter.errors import ConverterError
from converter.samples import Plan
from converter.sources import user_functions
from converter.sources.encoder import Choice, Settings
from converter.sources.walk import keep_extensions, make_plan
from converter.writer.paths import Paths, paths_of_failures


def load_functions(request: Request, caller: Caller) -> user_functions.Hooks:
    """Import my_read and my_prune, where they are asked for."""
    if not (request.custom_read_func or request.custom_prune_func):
        return user_functions.Hooks()
    path = user_functions.find_functions(request.path_functions)
    wanted = {"my_read": request.custom_read_func, "my_prune": request.custom_prune_func}
    found = user_functions.load_hooks(path, read=wanted["my_read"], prune=wanted["my_prune"])
    caller.notice(f"{' and '.join(name for name in wanted if wanted[name])} from {path}")
    return found


def encoding_settings(
    request: Request, found: user_functions.Hooks, *, choices: tuple[Choice, ...] = ()
) -> Settings:
    """Return what workers need to know to read and encode."""
    return Settings(
        root=str(request.path_images.resolve()),
        store=request.store,
        compression=request.compression,
        reader=request.reader or "imageio",
        check_decoding=not request.skip_decode_check,
        max_pixels=request.max_pixels,
        path_functions=found.path if request.custom_read_func else None,
        choices=choices,
        file_timeout=request.file_timeout,
    )


def plan_of(request: Request, found: user_functions.Hooks) -> Plan:
    """List what goes in. Raises ConverterError where that is nothing."""
    keep: Callable[[str], bool]
    if found.prune is not None:
        keep = partial(user_functions.call_prune, found.prune, request.ext)
    else:
        keep = keep_extensions(request.extensions)
    output = request.path_output
    plan = make_plan(
        request.path_images.resolve(),
        keep=keep,
        follow_links=request.follow_links,
        ignore=(output, *paths_of_failures(output), *Paths(output).all()),
    )
    if not plan.keys and not plan.failures:
        raise ConverterError(_nothing_found(request, plan.left_out))
    return plan if request.shard is None else plan.part(*request.shard)


def _nothing_found(request: Request, left_out: Counter[str]) -> str:
    what = (
        "my_prune keeps none of the files"
        if request.custom_prune_func
        else f"no .{', .'.join(request.extensions)} files"
    )
    if not left_out:
        return f"{what} below {request.path_images}: it holds no files at all"
    held = ", ".join(f"{count} {name}" for name, count in left_out.most_common(5))
    best = next((name for name, _ in left_out.most_common() if name.startswith(".")), None)
    hint = f": did you mean --ext={best[1:]}?" if best and not request.custom_prune_func else ""
    return f"{what} below {request.path_images}; it holds {held}{hint}"
