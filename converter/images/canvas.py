"""Compose the frames of an animation, as GIF89a and APNG 1.0 say."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

import numpy as np


class Disposal(Enum):
    """What becomes of a frame's rectangle before the next frame is drawn."""

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
    is_blended: bool  # drawn over what is there, or in its place


class Background(NamedTuple):
    """What the canvas holds where nothing was drawn."""

    colour: tuple[int, ...]
    alpha: int


def compose(
    frames: Iterable[Frame], count: int, height: int, width: int, background: Background
) -> tuple[np.ndarray, np.ndarray]:
    """Return what is seen after each frame: colours ``(N, H, W, C)``, alpha ``(N, H, W)``."""
    colours = alpha = canvas = opacity = None
    for n, frame in enumerate(frames):
        if canvas is None or opacity is None or colours is None or alpha is None:
            channels, dtype = frame.colours.shape[2], frame.colours.dtype
            colours = np.empty((count, height, width, channels), dtype)
            alpha = np.empty((count, height, width), dtype)
            canvas = np.empty((height, width, channels), dtype)
            opacity = np.empty((height, width), dtype)
            canvas[:], opacity[:] = background
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
    if colours is None or alpha is None:
        raise ValueError("an animation without frames")
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
