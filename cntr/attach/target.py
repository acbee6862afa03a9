"""The process to attach to: read from /proc once, and held by fds that can never refer to another process."""

from __future__ import annotations

import os
import select
import stat

from cntr.engines import Container
from cntr.errors import CntrError, TargetNotFound, with_sudo
from cntr.linux import namespaces, patience, procfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

# linux/capability.h, by number
CAPABILITIES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct "
    "sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control "
    "setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
).split()
CAP_SYS_PTRACE, CAP_SYS_ADMIN = 1 << 19, 1 << 21
MOUNTS_SECONDS = 2.0
UNREAL = (syscalls.PROC_SUPER_MAGIC, syscalls.SYSFS_MAGIC, syscalls.DEVPTS_SUPER_MAGIC, syscalls.FUSE_SUPER_MAGIC)


def capability_names(mask: int) -> list[str]:
    """CAP_* names of a mask, lowest first; bits that are newer than this table are ``cap_N``."""
    return [CAPABILITIES[bit] if bit < len(CAPABILITIES) else f"cap_{bit}" for bit in range(64) if mask >> bit & 1]


class Target:
    """A running process, and everything a session takes from it.

    Ids are those of the caller's user namespace; ``inside`` translates them to the target's. as_owner: the caller is not root but the
    owner of a rootless container, and this process has entered the container's user namespace.
    """

    def __init__(self, container: Container, *, impatient: bool = False) -> None:
        """Open and read it. Raises TargetNotFound if it is gone, CntrError if the caller may not look at it.

        impatient: access its files in a thread, with a timeout; afterwards this process, having had a thread, cannot enter namespaces.
        """
        # A root directory without a process (a mounted working container): everything except the root is the caller's own.
        self.container, self.pid = container, os.getpid() if container.state == "rootfs" else container.pid
        self.label, self.impatient = container.label(), impatient
        self.as_owner = False
        self.pidfd = self.proc_fd = self.root_fd = -1
        self.namespaces, self.environment = {}, {}  # type: dict[str, int], dict[str, str]
        self.notes: list[str] = []  # one line each, for the user
        if os.geteuid() == 0 and not syscalls.permitted_capabilities() & CAP_SYS_ADMIN:
            raise CntrError(
                f"{self.label}: this process is root without CAP_SYS_ADMIN and cannot enter a container's namespaces",
                "run cntr on the host itself, or in a container started with --privileged --pid=host",
            )
        try:
            self._open()
        except PermissionError as error:
            self.close()
            raise CntrError(f"{self.label}: pid {self.pid}: {error.strerror}", _who_may(self.pid)) from None
        except (FileNotFoundError, ProcessLookupError):
            self.close()
            raise TargetNotFound(f"{self.label}: pid {self.pid} is gone", "is the container still running?") from None
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        # The pidfd comes first: what /proc says afterwards is about this process as long as the pidfd shows it alive.
        self.pidfd = os.pidfd_open(self.pid)
        self.start_time = procfs.start_time(procfs.read(f"/proc/{self.pid}/stat"))
        self.proc_fd = os.open(procfs.living(self.pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if self.container.start_time and self.start_time != self.container.start_time:
            raise TargetNotFound(
                f"{self.label}: pid {self.pid} belongs to another process now", "the container has stopped"
            )
        own = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.namespaces = namespaces.open_differing(self.proc_fd, own)
        finally:
            os.close(own)
        if os.geteuid() != 0:
            from cntr.attach import owners

            owners.enter(self.namespaces)
            self.as_owner = True
        self._read_status(procfs.status(procfs.read("status", self.proc_fd)))
        root = self.container.rootfs if self.container.state == "rootfs" else "root"
        self.root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.proc_fd)
        self._read_mounts()
        if self._is_deleted() and os.readlink("root", dir_fd=self.proc_fd).endswith(" (deleted)"):
            raise CntrError(
                f"{self.label}: its root directory is gone: it has been deleted",
                f"the process still runs: /proc/{self.pid}/fd and /proc/{self.pid}/maps show what it holds",
            )
        self.uid_map = procfs.id_map(procfs.read("uid_map", self.proc_fd))
        self.gid_map = procfs.id_map(procfs.read("gid_map", self.proc_fd))
        if self.impatient:  # it may block for ever; cp and forward have no threads, and do not need it
            self._read_environment()
        self.lsm = self._read_lsm()
        self._check_unchanged()
        if not self.alive():
            raise ProcessLookupError

    def _check_unchanged(self) -> None:
        """Check that it is still in the user namespace that was opened, to which its capabilities refer. Raises CntrError.

        A process has all capabilities in a user namespace of its own making, and it may have made one while it was being read.
        """
        for kind in ("user", "mnt", "pid"):
            fd = self.namespaces.get(kind, -1)
            if fd < 0 and self.as_owner:
                continue  # already entered
            expected = os.fstat(fd) if fd >= 0 else os.stat(f"/proc/self/ns/{kind}")
            if namespaces.identity(self.proc_fd, kind) != (expected.st_dev, expected.st_ino):
                raise CntrError(
                    f"{self.label}: pid {self.pid} changed its {kind} namespace while cntr looked at it", "run it again"
                )

    def _read_environment(self) -> None:
        """Read the environment the process was started with. If it has written its title over it, use what the engine knows."""
        try:  # it is the process's memory, which a file on FUSE that is mapped there may lock for ever
            text = patience.bounded(lambda: procfs.read("environ", self.proc_fd))
        except TimeoutError:
            self.notes.append("the process keeps its memory locked: its variables can't be read")
            return
        self.environment = procfs.environ(text)
        if not procfs.environ_is_overwritten(text):
            return
        from cntr.engines import settings

        known = settings.of(self.container)
        if known:
            self.environment = known[0]
        self.notes.append(
            "the process has overwritten its environment: "
            + ("its variables are those of the engine's configuration" if known else "what is left of it is shown")
        )

    def _read_status(self, status: dict[str, str]) -> None:
        if "zombie" in status["State"]:
            raise ProcessLookupError
        self.uids = tuple(int(word) for word in status["Uid"].split())
        self.gids = tuple(int(word) for word in status["Gid"].split())
        self.groups = tuple(int(word) for word in status["Groups"].split())
        self.inheritable, self.permitted, self.effective, self.bounding, self.ambient = (
            int(status[field], 16) for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        )
        self.umask = int(status.get("Umask", "22"), 8)  # none before Linux 4.7
        self.no_new_privs = status.get("NoNewPrivs") == "1"
        self.seccomp = int(status.get("Seccomp", "0"))

    def _read_mounts(self) -> None:
        """partial_proc: its /proc shows processes only; slow_places: mount points of file systems of other processes, which may never
        answer.
        """
        self.silent = self.partial_proc = False
        self.slow_places: tuple[str, ...] = ()
        try:
            text = procfs.read("mountinfo", self.proc_fd, seconds=MOUNTS_SECONDS)
        except TimeoutError:  # a path below N stacked mounts costs the kernel N steps
            self.notes.append(f"its table of mounts can't be read within {MOUNTS_SECONDS:g} s: it has very many")
            self.slow, self.partial_proc, self.slow_places = self.impatient, True, ("/proc", "/sys")
            return
        # Or one of its processes is asked for permission at each open(2) and never answers
        # (fanotify(7), FAN_OPEN_PERM).
        asked = (self.permitted | self.bounding) & CAP_SYS_ADMIN
        self.slow = self.impatient and (bool(asked) or patience.may_never_answer(text))
        if "subset=pid" in text:
            self.partial_proc = any(
                mount.mount_point == "/proc" and "subset=pid" in mount.super for mount in procfs.mountinfo(text)
            )
        if self.impatient and " - fuse" in text:
            self.slow_places = tuple(
                mount.mount_point for mount in procfs.mountinfo(text) if mount.fstype.startswith("fuse")
            )

    def _bounded(self, work: Callable[[], T]) -> T:
        """Run WORK on files of the target. Raises OSError, and TimeoutError if they do not answer; every later call then fails at once."""
        if not self.slow:
            return work()
        if self.silent:
            raise TimeoutError
        try:
            if self.slow_places:  # in a child: a process that waits for FUSE may never end
                from cntr.linux import apart

                apart.bounded(work)
            return patience.bounded(work)
        except TimeoutError:
            self.silent = True
            raise

    def _is_deleted(self) -> bool:
        try:
            return self._bounded(lambda: os.fstat(self.root_fd).st_nlink) == 0
        except TimeoutError:
            return False

    def _read_lsm(self) -> str:
        """The LSM label. EINVAL and ENOENT mean that no LSM labels processes here."""
        try:
            return procfs.read("attr/current", self.proc_fd).strip("\0\n")
        except OSError as error:
            if isinstance(error, PermissionError):
                raise
            return ""

    def alive(self, seconds: float = 0) -> bool:
        """Whether the process still runs after at most SECONDS: a pidfd becomes readable when it ends."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(seconds * 1000)

    def inside(self, outside: int, rows: tuple[tuple[int, int, int], ...]) -> int | None:
        """The target's id for the caller's id OUTSIDE; rows: uid_map or gid_map."""
        if "user" not in self.namespaces:
            return outside
        for first, mapped, count in rows:
            if mapped <= outside < mapped + count:
                return first + outside - mapped
        return None

    def outside(self, inside: int, rows: tuple[tuple[int, int, int], ...]) -> int:
        """The caller's id for the target's id INSIDE; -1 if it is not mapped."""
        mapped = procfs.map_id(inside, rows) if "user" in self.namespaces else inside
        return -1 if mapped is None else mapped

    def working_directory(self) -> str:
        """Where the engine starts programs, else where the process is, as a path in the container's root; "/" if neither is known."""
        from cntr.engines import settings

        known = settings.of(self.container)
        if known and known[1].startswith("/"):
            try:
                os.close(self.open_in_root(known[1], os.O_PATH | os.O_DIRECTORY))
                return known[1]
            except OSError:
                pass  # removed since
        try:
            path = os.readlink("cwd", dir_fd=self.proc_fd)
            root = os.readlink("root", dir_fd=self.proc_fd).rstrip("/")
        except OSError:
            return "/"
        return path[len(root) :] or "/" if f"{path}/".startswith(f"{root}/") else "/"

    def open_in_root(self, path: str, flags: int) -> int:
        """Open PATH as the target would, without leaving its root (openat2(2), RESOLVE_IN_ROOT). Raises OSError."""
        return self._bounded(lambda: self._open_in_root(path, flags))

    def _open_in_root(self, path: str, flags: int) -> int:
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
        return syscalls.openat2(self.root_fd, path.lstrip("/") or ".", flags, resolve)

    def read_file(self, path: str, limit: int = 1 << 20) -> str:
        """The first LIMIT bytes of a regular file of the target as text, "" if it cannot be read."""
        return os.fsdecode(self.read_bytes(path, limit))

    def read_bytes(self, path: str, limit: int = 1 << 20) -> bytes:
        """The first LIMIT bytes of a regular file of the target, b"" if it cannot be read, or not without blocking."""
        try:
            return self._bounded(lambda: self._read_bytes(path, limit))
        except TimeoutError:
            return b""

    def _read_bytes(self, path: str, limit: int) -> bytes:
        try:
            handle = self._open_in_root(path, os.O_PATH)
        except OSError:
            return b""
        try:
            # Checked before opening: opening a FIFO blocks, opening a device has effects, and a file of a kernel filesystem describes its
            # reader, not the container.
            if not stat.S_ISREG(os.fstat(handle).st_mode) or syscalls.filesystem_magic(handle) in UNREAL:
                return b""
            # O_NONBLOCK: otherwise open(2) would wait for the holder of a lease (fcntl(2), F_SETLEASE).
            fd = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                return os.pread(fd, limit, 0)
            finally:
                os.close(fd)
        except OSError:
            return b""
        finally:
            os.close(handle)

    def odd_file(self, path: str) -> str:
        """Why a file of the target cannot be mounted over the tools' own, "" if it can."""
        try:
            handle = self.open_in_root(path, os.O_PATH)
        except OSError as error:
            return "it does not answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        try:
            return "" if stat.S_ISREG(os.fstat(handle).st_mode) else "not a regular file"
        finally:
            os.close(handle)

    def close(self) -> None:
        """Close every fd."""
        for fd in (self.pidfd, self.proc_fd, self.root_fd, *self.namespaces.values()):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.proc_fd = self.root_fd = -1
        self.namespaces = {}


def _who_may(pid: int) -> str:
    if os.geteuid() != 0:
        return with_sudo("only root, or the owner of a rootless container, may attach")
    return "a security module or a missing CAP_SYS_PTRACE forbids it: `cntr doctor` says what this process may do"
