"""Name what can go wrong. Each message is one sentence: what, which, why, what to do."""

from __future__ import annotations


class ConverterError(Exception):
    """A request that cannot be met as it stands; nothing was touched."""


class StoppedError(ConverterError):
    """A conversion that began and could not be finished; OUT.h5 was not made."""


class WorkersError(StoppedError):
    """Worker processes that cannot be started."""


class WriteError(StoppedError):
    """Bytes that could not be written, mostly because the disk is full."""


class LoadError(ConverterError):
    """An HDF5 file, or a sample in it, that cannot be read: not HDF5, damaged or refused."""


class UnreadableError(Exception):
    """A source file that this package refuses, with what to do about it."""


class UnstorableError(Exception):
    """A value that HDF5 cannot hold bit for bit, with what to return instead."""


def describe(error: BaseException) -> str:
    """Return the class and the message of an exception that is not of this package."""
    name = type(error).__name__
    try:
        text = (isinstance(error, OSError) and error.strerror) or str(error)
    except Exception:  # a class may have a faulty __str__
        return name
    return f"{name}: {text}" if text else name
