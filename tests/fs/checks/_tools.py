"""The vocabulary of the checks."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..actors import Unsupported

# Far from now in both directions, with odd nanoseconds: no clock produces these.
PAST_NS = 1_000_000_007_123_456_789
FUTURE_NS = 2_000_000_011_987_654_321


def raises(numbers: int | tuple[int, ...], function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """FUNCTION must fail with one of the errnos."""
    wanted = (numbers,) if isinstance(numbers, int) else numbers
    names = "/".join(errno.errorcode[number] for number in wanted)
    try:
        result = function(*args, **kwargs)
    except OSError as error:
        assert error.errno in wanted, f"{errno.errorcode.get(error.errno or 0, error.errno)} instead of {names}"
        return
    raise AssertionError(f"succeeded with {result!r} instead of {names}")


def unsupported_if(numbers: tuple[int, ...], what: str, function: Callable[..., Any], *args: Any) -> Any:
    """The result of FUNCTION; one of the errnos means that WHAT is not supported here."""
    try:
        return function(*args)
    except OSError as error:
        if error.errno in numbers:
            raise Unsupported(f"{what} ({errno.errorcode[error.errno]})") from error
        raise


NO_SUCH_OPERATION = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY)


@contextlib.contextmanager
def opened(path: Any, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def make(path: Path, data: bytes = b"", mode: int = 0o644) -> Path:
    """A regular file with exactly this mode."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600) as fd:
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
        os.fchmod(fd, mode)
    return path


def make_directory(path: Path, mode: int = 0o755) -> Path:
    os.mkdir(path)
    os.chmod(path, mode)
    return path


def permissions(path: Any) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def equal(seen: Any, wanted: Any, what: str = "") -> None:
    if isinstance(seen, bytes) and isinstance(wanted, bytes) and len(seen) + len(wanted) > 400:
        assert seen == wanted, f"{what}: {len(seen)} bytes {seen[:40]!r}…, not {len(wanted)} bytes {wanted[:40]!r}…"
    assert seen == wanted, f"{what + ': ' if what else ''}{seen!r}, not {wanted!r}"


def equal_mode(path: Any, wanted: int) -> None:
    seen = permissions(path)
    assert seen == wanted, f"mode {seen:04o}, not {wanted:04o}"


@contextlib.contextmanager
def umask(value: int) -> Iterator[None]:
    old = os.umask(value)
    try:
        yield
    finally:
        os.umask(old)


def child(function: Callable[[], Any]) -> int:
    """Fork a process that runs FUNCTION and exits 0, or 1 after an error; return its pid. See ``finished``."""
    from ..actors import fork

    pid = fork()
    if pid == 0:
        try:
            signal.alarm(60)
            function()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"child: {error!r}\n".encode())
        finally:
            os._exit(1)
    return pid


def finished(pid: int, status: int = 0) -> None:
    """Wait for the child; its exit status (or minus its signal) must be STATUS."""
    _, raw = os.waitpid(pid, 0)
    equal(os.waitstatus_to_exitcode(raw), status, "exit status of the child")


def in_threads(count: int, function: Callable[[int], None]) -> None:
    """Run FUNCTION(0…count-1) in parallel; the first error is raised here."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            function(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def names(directory: Any) -> set[str]:
    return set(os.listdir(directory))


def touch_past(path: Any) -> None:
    """Set atime and mtime to PAST_NS, so that any later change is visible."""
    os.utime(path, ns=(PAST_NS, PAST_NS), follow_symlinks=False)


def tick() -> None:
    """Wait until the kernel's coarse clock has ticked (4 ms at 250 Hz, 10 ms at 100 Hz)."""
    time.sleep(0.012)
