"""Restarts cntr from an interpreter that nobody can write to, before it runs a container's own program.

A container's program may be a script whose interpreter is ``/proc/self/exe``, or a link to it. Then the kernel runs
*our* executable, the host's Python, inside the container. A library of the container can open ``/proc/self/exe``
there, and write to the host's file once the process has called exec again (CVE-2019-5736, found in runc). Such a
write goes through the mount that the executable was run from. So it is run from a detached read-only mount of the
file: the mount is in no namespace, so nobody can remount it. Without the right to make one (a rootless owner, a
session), it is run from a sealed copy in memory.
"""

from __future__ import annotations

import os
import sys

from cntr.errors import CntrError
from cntr.linux import syscalls

EXECUTABLE = "/proc/self/exe"
ST_RDONLY = 1
MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_EXEC = 0x1, 0x2, 0x10
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
SEALS = 0xF  # F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE (fcntl(2))
LIBRARY_PATH = "LD_LIBRARY_PATH"
CODE = (
    "import sys; sys.path[:] = {path!r}; sys.executable = {executable!r}; sys.argv[0] = {program!r}; "
    "from cntr.__main__ import main; main()"
)
# ld.so(8) has already read it, and the programs that we start must not see it.
RESTORE = f"import os; os.environ.pop({LIBRARY_PATH!r}); os.environ.update({{before!r}}); "


def from_read_only_copy(argv: list[str], environment: dict[str, str] | None = None) -> None:
    """Execute ``cntr ARGV`` in this process from an executable that cannot be written; return if it already runs
    from one.

    environment: all variables to keep in its memory, None for the current ones. Raises CntrError.
    """
    if is_read_only() and environment in (None, dict(os.environ)):
        return
    try:
        fd = _read_only_mount(EXECUTABLE)
    except OSError:
        fd = _sealed_copy(EXECUTABLE)
    variables = dict(os.environ if environment is None else environment)
    start = ""
    if directory := _relative_libpython():
        before = {name: value for name, value in variables.items() if name == LIBRARY_PATH}
        variables[LIBRARY_PATH] = ":".join([directory, *before.values()])
        start = RESTORE.format(before=before)
    words = [sys.executable, "-IS", "-c", start + code(), *argv]
    try:
        try:
            os.execve(fd, words, variables)
        except FileNotFoundError:  # fexecve(3) of Linux 5.10 and glibc 2.31
            os.execve(f"/proc/self/fd/{fd}", words, variables)
    except OSError as error:
        raise CntrError(
            f"run {sys.executable} from a read-only copy: {error.strerror}",
            "the container's program could write to it otherwise (CVE-2019-5736)",
        ) from None


def code() -> str:
    """Code for ``python -IS -c`` that runs cntr. This process's path decides where modules come from, no variable
    or site file.
    """
    home = os.path.abspath(f"{__file__}/../../..")
    path = sys.path if home in sys.path else [home, *sys.path]  # a hook of site's finds an editable install
    return CODE.format(path=path, executable=sys.executable, program=os.path.abspath(sys.argv[0]))


def is_read_only() -> bool:
    """Whether nobody can open /proc/self/exe for writing: its mount is read-only, or it is sealed."""
    if os.statvfs(EXECUTABLE).f_flag & ST_RDONLY:
        return True
    from fcntl import fcntl

    fd = os.open(EXECUTABLE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl(fd, F_GET_SEALS) & SEALS == SEALS
    except OSError:  # EINVAL: a file without seals
        return False
    finally:
        os.close(fd)


def _relative_libpython() -> str:
    """The directory of the libpython that the executable finds by $ORIGIN (ld.so(8)), which a copy
    would not find; else "".
    """
    with open("/proc/self/maps", errors="surrogateescape") as maps:
        library = next((line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/libpython" in line), "")
    if not library:
        return ""  # usually it is part of the executable
    with open(EXECUTABLE, "rb") as file:
        return os.path.dirname(library) if b"$ORIGIN" in file.read() else ""


def _read_only_mount(executable: str) -> int:
    """Return a detached read-only mount of one file (open_tree(2)). Raises OSError."""
    fd = syscalls.open_tree(syscalls.AT_FDCWD, executable, syscalls.OPEN_TREE_CLONE)
    try:
        syscalls.mount_setattr(fd, "", recursive=False, attr_set=syscalls.MOUNT_ATTR_RDONLY)
    except OSError:
        os.close(fd)
        raise
    return fd


def _sealed_copy(executable: str) -> int:
    """Return a sealed copy in memory (memfd_create(2)). Raises CntrError."""
    from fcntl import fcntl

    try:
        try:
            fd = os.memfd_create("cntr", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC)
        except OSError:  # EINVAL: before Linux 6.3 every memfd was executable
            fd = os.memfd_create("cntr", MFD_CLOEXEC | MFD_ALLOW_SEALING)
        with open(executable, "rb") as source:
            while os.sendfile(fd, source.fileno(), None, 1 << 24):
                pass
        fcntl(fd, F_ADD_SEALS, SEALS)
    except OSError as error:
        raise CntrError(
            f"copy {sys.executable} to memory: {error.strerror}",
            "the container's program could write to it otherwise (CVE-2019-5736)",
        ) from None
    return fd
