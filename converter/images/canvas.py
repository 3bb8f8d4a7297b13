"""Compose the frames of an animation, as GIF89a and APNG 1.0 say."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike


class Disposal(Enum):
    """What happens to a frame's rectangle before the next frame is drawn."""

    KEEP = 0
    CLEAR = 1
    PREVIOUS = 2


class Frame(NamedTuple):
    """Pixels to be drawn: colours ``(H, W, C)`` and alpha ``(H, W)`` of the same dtype."""

    colours: np.ndarray
    alpha: np.ndarray
    top: int
    left: int
    disposal: Disposal
    is_blended: bool  # drawn over what is there; else it replaces that


class Background(NamedTuple):
    """What the canvas holds where nothing was drawn."""

    colour: tuple[int, ...]
    alpha: int


def compose(
    frames: Iterable[Frame], shape: tuple[int, int, int], dtype: DTypeLike, background: Background
) -> tuple[np.ndarray, np.ndarray]:
    """Return what is seen after each of N frames: colours ``(N, H, W, C)``, alpha ``(N, H, W)``.

    ``shape`` is ``(N, H, W)``; all frames have the same dtype.
    """
    colours, alpha = np.empty((*shape, len(background.colour)), dtype), np.empty(shape, dtype)
    canvas, opacity = np.empty(colours.shape[1:], dtype), np.empty(alpha.shape[1:], dtype)
    canvas[:], opacity[:] = background
    for n, frame in enumerate(frames):
        rows = slice(frame.top, frame.top + frame.alpha.shape[0])
        columns = slice(frame.left, frame.left + frame.alpha.shape[1])
        box = (rows, columns)
        before = canvas[box].copy(), opacity[box].copy()
        if frame.is_blended:
            _draw_over(canvas[box], opacity[box], frame.colours, frame.alpha)
        else:
            canvas[box], opacity[box] = frame.colours, frame.alpha
        colours[n], alpha[n] = canvas, opacity
        if frame.disposal is Disposal.CLEAR:
            canvas[box], opacity[box] = background
        elif frame.disposal is Disposal.PREVIOUS:
            canvas[box], opacity[box] = before
    return colours, alpha


def _draw_over(
    canvas: np.ndarray, opacity: np.ndarray, colours: np.ndarray, alpha: np.ndarray
) -> None:
    """Draw pixels over others; integers rounded down, as APNG's reference does."""
    most = np.iinfo(alpha.dtype).max
    opaque = alpha == most
    if opaque.all():
        canvas[:], opacity[:] = colours, most
        return
    np.copyto(canvas, colours, where=opaque[..., None])
    np.copyto(opacity, alpha, where=opaque)
    partly = ~opaque & (alpha != 0)
    if not partly.any():
        return
    above, below = alpha[partly].astype(np.int64), opacity[partly].astype(np.int64)
    weight = above * most
    weight_below = (most - above) * below
    total = weight + weight_below
    mixed = colours[partly].astype(np.int64) * weight[:, None]
    mixed += canvas[partly].astype(np.int64) * weight_below[:, None]
    canvas[partly] = mixed // total[:, None]
    opacity[partly] = total // most
