"""The id maps of a user namespace for which only an fd is known."""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import os

from cntr.linux import procfs, syscalls

IdMap = tuple[tuple[int, int, int], ...]


def of(userns_fd: int) -> tuple[IdMap, IdMap]:
    """Return the maps in the caller's ids. A child enters the namespace for a moment, and its maps are read. Raises
    OSError.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = syscalls.fork()
    if pid == 0:
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            syscalls.setns(userns_fd, syscalls.CLONE_NEWUSER)
            os.write(writing, b"\0")
            while True:
                signal.pause()
        except OSError as error:
            os.write(writing, bytes([error.errno or 1]))
        finally:
            os._exit(1)
    try:
        os.close(writing)
        number = (os.read(reading, 1) or b"\1")[0]
        if number:
            raise OSError(number, os.strerror(number), "user namespace of the container's pid namespace")
        uid_map, gid_map = (procfs.id_map(procfs.read(f"/proc/{pid}/{name}")) for name in ("uid_map", "gid_map"))
        return uid_map, gid_map
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
