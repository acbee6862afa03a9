"""The host, for a cntr that runs in a container of its own (a *toolbox*): ``docker run --privileged --pid=host``,
``kubectl debug node/N``.

Engines keep sockets and state in the host's files, and the layers of a stopped container are there. While ``VIEW`` is
entered, this process's root directory is that of pid 1, so every path means what it means on the host. Paths that a
user names are the toolbox's. cntr trusts what it reads there, so pid 1 must be the host's: with ``docker run
--pid=container:web`` it is the container's. Therefore an ancestor of this process other than pid 1 must share pid 1's
root (the engine that started the toolbox), and pid 1 must have every capability that this process has.

Modules are never imported from the host's root: they are found by an fd of the toolbox's own root, which /proc shows
under every root.
"""

from __future__ import annotations

import os
import sys

from cntr.linux import procfs, syscalls

# Imported early: later their libraries would be searched for in the host's root (ld.so(8)).
BEFORE = "_bz2 _ctypes _hashlib _json _lzma _posixsubprocess _socket _ssl _struct array binascii fcntl math select termios zlib".split()
_CAP_SYS_CHROOT, _CAP_SYS_PTRACE, _CAP_SYS_ADMIN = 18, 19, 21
_PID_NAMESPACE = 0xEFFFFFFC  # the inode of the initial one (linux/nsfs.h, PID_NS_INIT_INO)


class View:
    """A reentrant context manager; it does nothing if this process is on the host."""

    __slots__ = ("_cwd", "_depth", "_host", "_known", "_own")

    def __init__(self) -> None:
        self._depth, self._known, self._host, self._own, self._cwd = 0, False, -1, -1, -1

    def is_toolbox(self) -> bool:
        """Whether the host's root differs from this process's."""
        if not self._known:
            self._known = True
            if _is_toolbox():
                flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
                self._host, self._own = os.open("/proc/1/root", flags), os.open("/", flags)
                _load_first()
        return self._host >= 0

    def __enter__(self) -> None:
        """Enter the host's root. Raises OSError."""
        self._depth += 1
        if self._depth == 1 and self.is_toolbox():
            self._cwd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            _look_for_modules(f"/proc/self/fd/{self._own}")
            _change_root(self._host)

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth and self._cwd >= 0:
            _change_root(self._own)
            os.fchdir(self._cwd)
            os.close(self._cwd)
            self._cwd = -1
            _look_for_modules("", f"/proc/self/fd/{self._own}")

    def enter_mounts(self) -> None:
        """Enter the host's mount namespace for good, in a process that mounts file systems of the host's. Raises
        OSError.
        """
        if self.is_toolbox():
            fd = self.mount_namespace()
            syscalls.setns(fd, syscalls.CLONE_NEWNS)
            os.close(fd)

    def mount_namespace(self) -> int:
        """An fd of the host's mount namespace; -1 if it is this process's own. Raises OSError."""
        return os.open("/proc/1/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) if self.is_toolbox() else -1


VIEW = View()


def _change_root(fd: int) -> None:
    os.fchdir(fd)
    os.chroot(".")


def _is_toolbox() -> bool:
    try:
        one, own = os.stat("/proc/1/root/."), os.stat("/")
        if os.path.samestat(one, own) or not os.path.samestat(*map(os.stat, ("/proc/1/ns/user", "/proc/self/ns/user"))):
            return False
        first, ours = (procfs.status(procfs.read(f"/proc/{pid}/status")) for pid in ("1", "self"))
        if int(ours["CapPrm"], 16) & ~int(first["CapPrm"], 16) or first.get("Seccomp", "0") != "0":
            return False
        pid = os.getppid()
        while pid > 1:
            try:
                if os.path.samestat(os.stat(f"/proc/{pid}/root/."), one):
                    return bool(syscalls.permitted_capabilities() >> _CAP_SYS_CHROOT & 1)
            except PermissionError:
                pass  # it has capabilities that we lack
            pid = procfs.parent_pid(procfs.read(f"/proc/{pid}/stat"))
    except (OSError, KeyError, ValueError):
        pass
    return False


def _load_first() -> None:
    for name in BEFORE:
        try:
            __import__(name)
        except ImportError:
            pass


def _look_for_modules(prefix: str, before: str = "") -> None:
    """Replace the prefix BEFORE of every module directory by PREFIX, a directory that is another root."""
    here = "" if before else os.getcwd()
    paths = [
        module.__path__ for module in list(sys.modules.values()) if isinstance(getattr(module, "__path__", None), list)
    ]
    for path in (sys.path, *paths):
        path[:] = [prefix + (one[len(before) :] if one.startswith(before) else os.path.join(here, one)) for one in path]


def advice(*, engines: bool) -> str:
    """What to do if a name is unknown because cntr itself runs in a container; "" if that is not the reason.

    engines: whether one of this root's runs a container, or refuses to say.
    """
    held = syscalls.permitted_capabilities()
    lacking = [] if held >> _CAP_SYS_ADMIN & held >> _CAP_SYS_PTRACE & 1 else ["--privileged"]
    if os.geteuid() or VIEW.is_toolbox():
        return ""
    shared = False
    try:
        first = os.stat("/proc/self/ns/pid").st_ino == _PID_NAMESPACE
        shared = not first and not os.path.samestat(os.stat("/proc/1/ns/mnt"), os.stat("/proc/self/ns/mnt"))
    except PermissionError:  # pid 1 has capabilities that we lack, so it is not this container's
        first = True
    except OSError:
        return ""
    if not lacking and (first or (engines and not shared)):
        return ""
    flags = " ".join(lacking if first else ["--pid=host", *lacking])
    said = f"does cntr run in a container? It wants {flags} (docker run; kubectl debug node/N --profile=sysadmin)"
    return f"{said}; `cntr attach 1` is the one whose processes are seen here" if shared else said
