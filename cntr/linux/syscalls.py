"""The attach core's system calls: constants, structs, and one small function per call.

The only module of the attach core that uses ctypes (the filesystem's calls are in ``file_syscalls``). Every function raises
OSError(errno, "call: reason", path), so an error always names the call and its object. Constants have the kernel's names
(include/uapi/linux/{mount,sched,openat2,prctl,capability,nsfs}.h).
"""

from __future__ import annotations

import _ctypes  # the C half of ctypes: the Python half would add 3 ms to every start, and only wraps what is used here
import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import itertools
import os
import sys

from cntr.linux.numbers import MACHINE, ioctl, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Options = list[tuple[str, str | None]]
    Path = str | bytes

# linux/sched.h
CLONE_VM = 0x00000100
CLONE_NEWTIME = 0x00000080
CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000
_SIGCHLD, _SIGKILL = 17, 9

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_ATIME = 0x70  # the atime setting: noatime, strictatime or relatime
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x00100000
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6

# linux/fcntl.h, linux/openat2.h
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_NO_AUTOMOUNT = 0x800
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# linux/prctl.h, linux/capability.h
PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_LOWER = 3
PR_CAP_AMBIENT_CLEAR_ALL = 4
LINUX_CAPABILITY_VERSION_3 = 0x20080522

_NR_OPEN = 1 << 20  # fs.nr_open, unless it was raised (proc(5))
_EAGAIN, _NO_CLOSE_RANGE = 11, (1, 22, 38)  # EPERM, EINVAL, ENOSYS (errno.h, whose module would be one more to import)

# linux/nsfs.h
NS_GET_USERNS = ioctl("NS_GET_USERNS")
NS_GET_PARENT = ioctl("NS_GET_PARENT")

# linux/magic.h
PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572
DEVPTS_SUPER_MAGIC = 0x1CD1
CGROUP2_SUPER_MAGIC = 0x63677270
FUSE_SUPER_MAGIC = 0x65735546

# asm-generic/ioctls.h
FIONREAD = ioctl("FIONREAD")
TIOCSCTTY = ioctl("TIOCSCTTY")
TIOCGPTPEER = ioctl("TIOCGPTPEER")

# From 424 on, system call numbers are the same on every architecture except alpha.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 428, 429, 430, 431, 432
_SYS_CLONE3, _SYS_CLOSE_RANGE, _SYS_OPENAT2, _SYS_PIDFD_GETFD, _SYS_MOUNT_SETATTR = 435, 436, 437, 438, 442
_SYS_PIVOT_ROOT = number("pivot_root")


class _int(_ctypes._SimpleCData):  # type: ignore[type-arg]  # the C types by their names
    _type_ = "i"


class _uint(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "I"


class _long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _ulong(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "L"


class _Function(_ctypes.CFuncPtr):
    """A function of the C library that returns int. Arguments: int, bytes (char *), None (NULL), or one of the types above."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _int


class _LongFunction(_ctypes.CFuncPtr):
    """A function that returns long: syscall(2)."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _long


class _LockedFunction(_ctypes.CFuncPtr):
    """A function that is called with the interpreter lock held, as os.fork is."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO | _ctypes.FUNCFLAG_PYTHONAPI
    _restype_ = _int


class _Library:
    """The functions of the process image (the C library, the interpreter) as attributes, each looked up once."""

    def __init__(self, kind: type[_ctypes.CFuncPtr]) -> None:
        self._kind, self._handle = kind, _ctypes.dlopen(None, 0)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Callable[..., int]:
        function: Callable[..., int] = self._kind(_ctypes.dlsym(self._handle, name))
        setattr(self, name, function)
        return function


_libc = _Library(_Function)
_syscall = _Library(_LongFunction).syscall


def _check(result: int, call: str, path: object = None) -> int:
    if result < 0:
        number = _ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", None if path is None else str(path))
    return result


def _packed(size: int, *numbers: int) -> bytes:
    """A struct of unsigned numbers of SIZE bytes each. Each ctypes.Structure would add 0.1 ms at import."""
    return b"".join(number.to_bytes(size, sys.byteorder) for number in numbers)


def _fd_path(fd: int, path: Path) -> str:
    """What an error shows for a (dirfd, path) pair."""
    text = os.fsdecode(path)
    return text if fd == AT_FDCWD or text.startswith("/") else f"fd {fd}/{text}".rstrip("/")


def setns(fd: int, nstype: int = 0) -> None:
    """setns(2). fd: a namespace file, or a pidfd with several CLONE_NEW* flags."""
    _check(_libc.setns(fd, nstype), f"setns(0x{nstype:x})")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(_long(flags)), f"unshare(0x{flags:x})")


def open_tree(dirfd: int, path: Path, flags: int) -> int:
    """open_tree(2); with OPEN_TREE_CLONE, a detached mount tree. Returns an fd (close-on-exec)."""
    result = _syscall(_long(_SYS_OPEN_TREE), dirfd, os.fsencode(path), flags | OPEN_TREE_CLOEXEC)
    return _check(result, "open_tree", _fd_path(dirfd, path))


def move_mount(tree_fd: int, dirfd: int, path: Path, flags: int = 0) -> None:
    """move_mount(2) of the tree behind tree_fd to (dirfd, path), without following a final symbolic link."""
    flags |= MOVE_MOUNT_F_EMPTY_PATH | (0 if path else MOVE_MOUNT_T_EMPTY_PATH)
    result = _syscall(_long(_SYS_MOVE_MOUNT), tree_fd, b"", dirfd, os.fsencode(path), flags)
    _check(result, "move_mount", _fd_path(dirfd, path))


def mount_setattr(
    dirfd: int,
    path: Path,
    *,
    recursive: bool,
    attr_set: int = 0,
    attr_clear: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """mount_setattr(2), kernel 5.12."""
    attr = _packed(8, attr_set, attr_clear, propagation, userns_fd)  # struct mount_attr
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    result = _syscall(_long(_SYS_MOUNT_SETATTR), dirfd, os.fsencode(path), flags, attr, _ulong(len(attr)))
    _check(result, "mount_setattr", _fd_path(dirfd, path))


def new_filesystem(fstype: str, options: Mapping[str, str | int | None] | Options, attrs: int = 0) -> int:
    """fsopen(2), fsconfig(2), fsmount(2): a detached mount of a new superblock; returns its fd (close-on-exec).

    options: a number is an fd (FSCONFIG_SET_FD), None a flag; a list of pairs if a key repeats (overlay's lowerdir+).
    """
    fs = _check(_syscall(_long(_SYS_FSOPEN), fstype.encode(), FSOPEN_CLOEXEC), "fsopen", fstype)
    try:
        for key, value in options if isinstance(options, list) else options.items():
            if isinstance(value, int):
                result = _syscall(_long(_SYS_FSCONFIG), fs, FSCONFIG_SET_FD, key.encode(), None, value)
            else:
                command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
                data = None if value is None else value.encode()
                result = _syscall(_long(_SYS_FSCONFIG), fs, command, key.encode(), data, 0)
            _check(result, "fsconfig", f"{fstype} {key}={value}")
        _check(_syscall(_long(_SYS_FSCONFIG), fs, FSCONFIG_CMD_CREATE, None, None, 0), "fsconfig(create)", fstype)
        return _check(_syscall(_long(_SYS_FSMOUNT), fs, FSMOUNT_CLOEXEC, attrs), "fsmount", fstype)
    finally:
        os.close(fs)


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, fstype, data)]
    _check(_libc.mount(*encoded[:3], _ulong(flags), encoded[3]), "mount", target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), "umount2", target)


def sethostname(name: str) -> None:
    """sethostname(2): at most 64 bytes."""
    encoded = os.fsencode(name)
    _check(_libc.sethostname(encoded, _ulong(len(encoded))), "sethostname")


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    result = _syscall(_long(_SYS_PIVOT_ROOT), os.fsencode(new_root), os.fsencode(put_old))
    _check(result, "pivot_root", new_root)


def openat2(dirfd: int, path: Path, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2), kernel 5.6: open PATH with the RESOLVE_* limits; returns a close-on-exec fd."""
    how = _packed(8, flags | os.O_CLOEXEC, mode, resolve)  # struct open_how
    for _ in range(100):  # EAGAIN: anything on this machine was renamed while a ``..`` was followed
        result = _syscall(_long(_SYS_OPENAT2), dirfd, os.fsencode(path), how, _ulong(len(how)))
        if result >= 0 or _ctypes.get_errno() != _EAGAIN:
            break
    return _check(result, "openat2", _fd_path(dirfd, path))


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """close_range(2) from FIRST to LAST, one by one if the call is missing (before 5.9) or refused by an older filter."""
    result = _syscall(_long(_SYS_CLOSE_RANGE), _uint(first), _uint(last), 0)
    if result < 0 and _ctypes.get_errno() in _NO_CLOSE_RANGE:
        os.closerange(first, min(last + 1, _NR_OPEN))
        return
    _check(result, "close_range")


def close_all_but(*kept: int) -> None:
    """Close every fd from 3 on except KEPT. Raises OSError."""
    first = 3
    for fd in sorted(kept):
        if fd > first:
            close_range(first, fd - 1)
        first = max(first, fd + 1)
    close_range(first)


def prctl(option: int, arg2: int = 0, arg3: int = 0) -> int:
    """prctl(2) with number arguments."""
    return _check(_libc.prctl(option, _ulong(arg2), _ulong(arg3), _ulong(0), _ulong(0)), f"prctl({option})")


def set_process_name(name: str) -> None:
    """Set the name that ps shows (at most 15 bytes)."""
    _check(_libc.prctl(PR_SET_NAME, name.encode()[:15], _ulong(0), _ulong(0), _ulong(0)), "prctl(name)")


def permitted_capabilities() -> int:
    """capget(2): the calling thread's permitted set, a 64-bit mask."""
    header = _packed(4, LINUX_CAPABILITY_VERSION_3, 0)
    data = (_uint * 6)()  # struct __user_cap_data_struct, twice: effective, permitted, inheritable
    _check(_libc.capget(header, _ctypes.byref(data)), "capget")
    return int(data[1]) | int(data[4]) << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) on the calling thread; each argument is a 64-bit capability mask."""
    header = _packed(4, LINUX_CAPABILITY_VERSION_3, 0)  # struct __user_cap_header_struct: version, pid
    masks = (effective, permitted, inheritable)  # struct __user_cap_data_struct, twice: the lower and the upper 32 bits
    data = _packed(4, *(mask & 0xFFFFFFFF for mask in masks), *(mask >> 32 for mask in masks))
    _check(_libc.capset(header, data), "capset")


def fork(cgroup_fd: int = -1) -> int:
    """fork(2). With the fd of a cgroup2 directory, clone3(2) with CLONE_INTO_CGROUP (kernel 5.7): the child starts in that cgroup.

    Python's own fork hooks run, but with clone3 not the C library's: that is for a process without threads. os.fork reads
    /proc/self/stat since Python 3.12, and imports `warnings` if that shows threads: a container may control it. Raises OSError.
    """
    python = _Library(_LockedFunction)
    call: Callable[..., int] = _LockedFunction.__call__
    if cgroup_fd >= 0:
        # struct clone_args: flags pidfd child_tid parent_tid exit_signal stack stack_size tls set_tid set_tid_size cgroup
        arguments = _packed(8, CLONE_INTO_CGROUP, 0, 0, 0, _SIGCHLD, *5 * (0,), cgroup_fd)
        words: tuple[object, ...] = (python.syscall, _long(_SYS_CLONE3), arguments, _ulong(len(arguments)))
    else:
        words = (python.fork,)
    # Nothing of Python's runs between these three: another thread could take the interpreter lock there, and would wait with it for a
    # lock that the first hook takes and the second gives back; and a child is asked to hand it to threads that it does not have.
    forked, results = itertools.tee(map(call, *((word,) for word in words)))
    after = map({0: python.PyOS_AfterFork_Child}.get, forked, (python.PyOS_AfterFork_Parent,))
    tuple(map(call, itertools.chain((python.PyOS_BeforeFork,), after)))
    pid = next(results)
    if pid < 0:
        raise OSError(number := _ctypes.get_errno(), f"{'clone3' if cgroup_fd >= 0 else 'fork'}: {os.strerror(number)}")
    return pid


class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "P"


_IDLE_SECONDS = 60  # it ends by itself if we are killed first


class Idler:
    """A child in new namespaces that shares our memory (clone(2), CLONE_VM). It waits in sleep(3) until ``end`` and runs none of our
    code.

    Its page tables are not copied: it takes a tenth of a millisecond, fork(2) takes eight.
    """

    __slots__ = ("pid", "stack")

    def __init__(self, flags: int) -> None:
        """flags: CLONE_NEW*. Raises OSError."""

        class Stack(_ctypes.Array):  # type: ignore[type-arg]
            _type_, _length_ = _long, 2048

        self.stack = Stack()
        top = (_ctypes.addressof(self.stack) + _ctypes.sizeof(self.stack)) & ~63
        sleep = _ctypes.dlsym(_ctypes.dlopen(None, 0), "sleep")  # type: ignore[arg-type]
        # It must not run our signal handlers, which would use our memory.
        before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        try:
            result = _libc.clone(
                _Pointer(sleep), _Pointer(top), _int(CLONE_VM | flags | _SIGCHLD), _Pointer(_IDLE_SECONDS)
            )
            self.pid = _check(result, "clone")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def end(self) -> None:
        """Kill the child; its stack is then free."""
        os.kill(self.pid, _SIGKILL)
        os.waitpid(self.pid, 0)


def take_terminal(fd: int) -> None:
    """ioctl_tty(2) TIOCSCTTY: make the terminal behind fd the controlling terminal. The caller must be a session leader."""
    _check(_libc.ioctl(fd, _ulong(TIOCSCTTY), 0), "ioctl(TIOCSCTTY)", f"fd {fd}")


def bytes_in_pipe(fd: int) -> int:
    """ioctl(2) FIONREAD: how many bytes wait in a pipe; works on either end."""
    count = (_uint * 1)()
    _check(_libc.ioctl(fd, _ulong(FIONREAD), _ctypes.byref(count)), "ioctl(FIONREAD)", f"fd {fd}")
    return int(count[0])


def namespace_ioctl(fd: int, request: int) -> int:
    """ioctl_ns(2) NS_GET_USERNS or NS_GET_PARENT on the namespace behind FD; returns an fd (close-on-exec)."""
    return _check(_libc.ioctl(fd, _ulong(request), 0), f"ioctl(0x{request:x})", f"fd {fd}")


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2), kernel 5.6: a copy (close-on-exec) of another process's FD."""
    return _check(_syscall(_long(_SYS_PIDFD_GETFD), pidfd, fd, 0), "pidfd_getfd", f"fd {fd}")


def filesystem_magic(fd: int) -> int:
    """statfs(2)'s f_type (linux/magic.h) of the filesystem behind fd."""
    # struct statfs is 120 bytes on 64-bit machines. f_type comes first; it has 4 bytes on s390x
    buffer = ((_uint if MACHINE == "s390x" else _long) * 64)()
    _check(_libc.fstatfs(fd, _ctypes.byref(buffer)), "fstatfs", f"fd {fd}")
    return int(buffer[0])


def signalfd(signals: tuple[int, ...]) -> int:
    """signalfd(2) over SIGNALS, which the caller has blocked; each read returns records of 128 bytes (signalfd_siginfo)."""
    # sigset_t: 1024 bits, the first 64 in use
    mask = _packed(8, sum(1 << number - 1 for number in signals), *15 * (0,))
    return _check(_libc.signalfd(-1, mask, os.O_CLOEXEC | os.O_NONBLOCK), "signalfd")


def import_without_ldconfig(module: str) -> None:
    """Import MODULE without running ldconfig(8): ctypes.util would run it to find libpthread, which is part of libc since glibc 2.34.

    Raises ImportError.
    """
    import ctypes.util
    import importlib

    asked, ctypes.util.find_library = ctypes.util.find_library, lambda name: "libc.so.6"
    try:
        importlib.import_module(module)
    finally:
        ctypes.util.find_library = asked
