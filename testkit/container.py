"""A slim container made by hand in milliseconds: one static binary, no shell, no /etc, no engine, no image.

Used by the demo, and by tests that work with any container.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from cntr.linux import procfs, syscalls
from testkit.elf import static_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

# chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod audit_write setfcap
DOCKER_DEFAULT = 0xA80425FB

# Read early: the container may have no /proc.
_LAST_CAPABILITY = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
_OWN_CAPABILITIES = int(procfs.status(Path("/proc/self/status").read_text())["CapPrm"], 16)

NAMESPACES = (
    syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
)


def enter_root(path: str) -> None:
    """Make PATH, a mount point, the root of the calling process's mount namespace and unmount the old root. Raises
    OSError.
    """
    os.chdir(path)
    # the old root is mounted on top of the new one, so no directory is needed (pivot_root(2))
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")


@dataclass
class SlimContainer:
    """A running container: its own mnt, pid, net, ipc and uts namespaces, a root with /app, /proc, /dev and /sys.

    A context manager: leaving it kills the container and removes its files. files: {path: text} in the root; programs:
    {path: a static binary of this machine}; argv: the command; capabilities: the mask it keeps; propagation: of its
    mounts; root: its directory on the host, a temporary one by default. Once started, pid is its init's on the host.
    """

    name: str = "demo"
    argv: list[str] = field(default_factory=lambda: ["/app"])
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/bin", "HOME": "/", "APP_MODE": "production"})
    files: dict[str, str] = field(default_factory=dict)
    programs: dict[str, str] = field(default_factory=dict)
    namespaces: int = NAMESPACES
    capabilities: int = DOCKER_DEFAULT
    uid: int = 0
    mount_proc: bool = True
    propagation: int = syscalls.MS_PRIVATE
    root: Path = field(default_factory=Path)
    pid: int = 0
    _starter: int = 0
    _own: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        """Start it. Raises OSError."""
        if self.root == Path():
            self._own = tempfile.TemporaryDirectory(prefix=f"cntr-{self.name}-")
            self.root = Path(self._own.name)
        os.chmod(self.root, 0o755)
        for directory in ("proc", "dev", "sys"):
            (self.root / directory).mkdir(exist_ok=True)
        app = self.root / "app"
        app.write_bytes(static_program())
        app.chmod(0o755)
        for path, content in (*self.files.items(), *self.programs.items()):
            file = self.root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            if path in self.programs:
                shutil.copy(content, file)
            else:
                file.write_text(content)
        read, write = os.pipe()
        self._starter = os.fork()
        if self._starter == 0:
            self._start(read, write)
        os.close(write)
        answer = b""
        while chunk := os.read(read, 4096):
            answer += chunk
        os.close(read)
        head, _, error = answer.partition(b"\n")
        self.pid = int(head or 0)
        if error or not self.pid:
            self.stop()
            raise OSError(f"container {self.name}: {error.decode()}")
        return self

    def _start(self, read: int, write: int) -> None:
        """In the starter: make the namespaces, fork the init, report its pid, wait for it."""
        try:
            os.close(read)
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            syscalls.unshare(self.namespaces)
            pid = os.fork()
            if pid:
                os.write(write, b"%d\n" % pid)
                os.close(write)
                os.waitpid(pid, 0)
                os._exit(0)
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            self._init()
        except BaseException as error:  # noqa: BLE001  the starter tells it on
            os.write(write, repr(error).encode())
        finally:
            os._exit(1)

    def _init(self) -> None:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        if self.namespaces & syscalls.CLONE_NEWUTS:
            socket.sethostname(self.name)
        if self.namespaces & syscalls.CLONE_NEWNS:
            self._pivot()
        else:
            os.chroot(self.root)
            os.chdir("/")
        self._drop()
        os.execve(self.argv[0], self.argv, self.environment)

    def _drop(self) -> None:
        """Keep only the requested capabilities, as an engine does."""
        for capability in range(_LAST_CAPABILITY + 1):
            if not self.capabilities >> capability & 1:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
        os.setgroups([])
        if self.uid:
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        else:
            kept = self.capabilities & _OWN_CAPABILITIES
            syscalls.capset(kept, kept, 0)

    def _pivot(self) -> None:
        root = str(self.root)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount(root, root, None, syscalls.MS_BIND | syscalls.MS_REC)
        if self.mount_proc:
            syscalls.mount("proc", f"{root}/proc", "proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
        syscalls.mount("tmpfs", f"{root}/dev", "tmpfs", syscalls.MS_NOSUID, "mode=755,size=64k")
        for device in ("null", "zero", "full", "random", "urandom", "tty"):
            number = os.stat(f"/dev/{device}").st_rdev
            os.mknod(f"{root}/dev/{device}", stat.S_IFCHR | 0o666, number)
            os.chmod(f"{root}/dev/{device}", 0o666)
        os.mkdir(f"{root}/dev/pts")
        syscalls.mount(
            "devpts",
            f"{root}/dev/pts",
            "devpts",
            syscalls.MS_NOSUID | syscalls.MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620",
        )
        os.symlink("pts/ptmx", f"{root}/dev/ptmx")
        if self.namespaces & syscalls.CLONE_NEWNET:
            syscalls.mount("sysfs", f"{root}/sys", "sysfs", syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV)
        enter_root(root)
        if self.propagation != syscalls.MS_PRIVATE:
            syscalls.mount(None, "/", None, syscalls.MS_REC | self.propagation)

    def stop(self) -> None:
        """Kill it, reap it, remove its files."""
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self._starter:
            os.waitpid(self._starter, 0)
        self.pid = self._starter = 0
        if self._own:
            self._own.cleanup()

    def __exit__(self, *_: object) -> None:
        self.stop()
