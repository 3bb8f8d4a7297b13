"""Draw random numbers for samples, the same whatever batch a sample is in."""

from __future__ import annotations

import functools

import numpy as np

#: Of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MIX_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
MASK = (1 << 64) - 1
#: The streams of `Draws`: each question asks numbers of its own, so none shifts another's.
CROP, HFLIP, VFLIP, TRANSFORM = range(4)


class Draws:
    """Random numbers for the samples of a batch.

    They depend on seed, epoch and each sample's position alone: not on the batch the sample is
    in, nor on what else was drawn. ``seed`` is any int, taken modulo 2**64.
    """

    def __init__(self, seed: int, epoch: int, positions: np.ndarray) -> None:
        steps = np.asarray(positions, np.int64).astype(np.uint64) + np.uint64(1)
        self._states = _mix(_start(seed, epoch) + steps * np.uint64(GOLDEN_GAMMA))

    def __len__(self) -> int:
        return len(self._states)

    def uniform(self, stream: int, count: int) -> np.ndarray:
        """Return ``(n, count)`` float64 in [0, 1): ``count`` numbers for each sample."""
        return (self._bits(stream, count) >> np.uint64(11)) * 2.0**-53

    def generator(self, row: int) -> np.random.Generator:
        """Return a generator for what a user's function draws for one sample."""
        (state,) = _mix(self._states[row : row + 1] ^ _stream(TRANSFORM))
        return np.random.Generator(np.random.PCG64(int(state)))

    def _bits(self, stream: int, count: int) -> np.ndarray:
        states = _mix(self._states ^ _stream(stream))
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
        return _mix(states[:, None] + steps)


def flips(draws: Draws, hflip: float = 0.0, vflip: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return two bool arrays: which rows to mirror left to right, and which upside down."""
    return _chance(draws, HFLIP, hflip), _chance(draws, VFLIP, vflip)


def _chance(draws: Draws, stream: int, probability: float) -> np.ndarray:
    if not probability:
        return np.zeros(len(draws), bool)
    is_drawn: np.ndarray = draws.uniform(stream, 1)[:, 0] < probability
    return is_drawn


def between(draw: np.ndarray, least: float, most: float) -> np.ndarray:
    """Return numbers from least to most."""
    drawn: np.ndarray = least + draw * (most - least)
    return drawn


def below(draw: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return whole numbers from 0 to count - 1."""
    whole: np.ndarray = np.minimum((draw * count).astype(np.int64), count - 1)
    return whole


@functools.lru_cache(maxsize=16)
def _start(seed: int, epoch: int) -> np.ndarray:
    start = _mix(np.array([seed & MASK], np.uint64))
    return _mix(start ^ np.uint64((epoch + 1) * GOLDEN_GAMMA & MASK))


def _stream(stream: int) -> np.uint64:
    return np.uint64((stream + 1) * MASK // 7 & MASK)


def _mix(values: np.ndarray) -> np.ndarray:
    """Return the output function of SplitMix64, a bijection of 64 bits."""
    values = (values ^ (values >> np.uint64(30))) * MIX_FACTORS[0]
    values = (values ^ (values >> np.uint64(27))) * MIX_FACTORS[1]
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
