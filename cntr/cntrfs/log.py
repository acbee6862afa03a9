"""Messages of a server, by the logger ``cntr.cntrfs``.

``logging`` takes longer to import than the whole attach core, and a session's server rarely logs. So it is imported
with the first warning. Until then nobody can have set a lower level, and messages below a warning have no reader.
"""

from __future__ import annotations

import errno
import os
import struct
import sys

NAME = "cntr.cntrfs"


def info(text: str, *values: object) -> None:
    """Log TEXT for ``cntr mount`` and tests."""
    if "logging" in sys.modules:
        _say("INFO", text, values)


def warning(text: str, *values: object) -> None:
    """Log an unexpected but harmless condition."""
    _say("WARNING", text, values)


def error(text: str, *values: object, exc_info: BaseException | None = None) -> None:
    """Log a failure. exc_info: the exception whose traceback explains it."""
    _say("ERROR", text, values, exc_info)


def _say(level: str, text: str, values: tuple[object, ...], exc_info: BaseException | None = None) -> None:
    """Never raises: logging must not make the operation fail (a server without a free fd cannot import)."""
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
    """The errno to answer with. Anything but an OSError is a bug, logged with its traceback."""
    if isinstance(failure, OSError) and failure.errno:
        return failure.errno
    if isinstance(failure, (OverflowError, struct.error)):
        return errno.EINVAL  # a number that no system call accepts
    if isinstance(failure, MemoryError):
        return errno.ENOMEM
    error("an operation failed unexpectedly", exc_info=failure)
    return errno.EIO
