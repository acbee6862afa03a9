"""Messages of a server, by the logger ``cntr.cntrfs``.

``logging`` takes longer to import than the whole attach core, and a session's server rarely has a word to say: it comes with the first
warning. Until it is imported nobody can have asked for less than that, and what is below a warning has no reader.
"""

from __future__ import annotations

import errno
import os
import struct
import sys

NAME = "cntr.cntrfs"


def info(text: str, *values: object) -> None:
    """For whoever listens: ``cntr mount``, tests."""
    if "logging" in sys.modules:
        _say("INFO", text, values)


def warning(text: str, *values: object) -> None:
    """Something that should not be, and harms nobody."""
    _say("WARNING", text, values)


def error(text: str, *values: object, exc_info: BaseException | None = None) -> None:
    """Something failed; exc_info: the exception whose traceback explains it."""
    _say("ERROR", text, values, exc_info)


def _say(level: str, text: str, values: tuple[object, ...], exc_info: BaseException | None = None) -> None:
    """Never raises: words must not fail what they are about (a server without a free fd can import nothing)."""
    try:
        import logging

        logging.getLogger(NAME).log(getattr(logging, level), text, *values, exc_info=exc_info)
    except (ImportError, OSError):
        cause = f" ({type(exc_info).__name__}: {exc_info})" if exc_info else ""
        try:
            os.write(2, f"cntrfs: {level}: {text % values if values else text}{cause}\n".encode(errors="replace"))
        except OSError:
            pass  # nobody listens


def errno_of(failure: BaseException) -> int:
    """The errno to answer with; what is not an OSError is a mistake of ours, logged with its traceback."""
    if isinstance(failure, OSError) and failure.errno:
        return failure.errno
    if isinstance(failure, (OverflowError, struct.error)):
        return errno.EINVAL  # a number that no system call takes
    if isinstance(failure, MemoryError):
        return errno.ENOMEM
    error("an operation failed unexpectedly", exc_info=failure)
    return errno.EIO
