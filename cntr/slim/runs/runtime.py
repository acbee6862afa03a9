"""Runs a root directory by an OCI runtime, without an engine: the slim image on CntrFS, and recordings without root.

A holder process has a mount namespace of its own, with CntrFS on the image's root, an overlay on that for what the run
writes (in memory), and a bundle for the runtime. It then executes the runtime; all its mounts end with it and the
container.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time

from cntr.cntrfs import mounting
from cntr.errors import CntrError, printable
from cntr.images import profile
from cntr.linux import procfs, syscalls
from cntr.slim import commands, served
from cntr.slim.leftovers import CGROUPS, KILL, Guard
from cntr.slim.output import BoundedOutput
from cntr.slim.runs import Running, RunOptions, as_words
from cntr.slim.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Docker's and Podman's default (moby's profiles/seccomp and oci/caps/defaults.go have the same).
CAPABILITIES = [
    f"CAP_{name}"
    for name in "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP "
    "NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE".split()
]
MASKED = (
    "/proc/acpi /proc/asound /proc/kcore /proc/keys /proc/latency_stats "
    "/proc/timer_list /proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware"
).split()
READ_ONLY = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger".split()
_LOGGED = re.compile(r'^time="[^"]*" level=\w+ msg="((?:[^"\\]|\\.)*)"$', re.MULTILINE)
_MEMORY = "mode=755,size=80%"


def runtime() -> list[str]:
    """The OCI runtime's command. Raises CntrError if there is none."""
    for name in ("runc", "crun") if _is_the_machines_root() else ("crun", "runc"):
        if shutil.which(name):
            return [name, *(["--cgroup-manager=disabled"] if name == "crun" else [])]
    raise CntrError("no OCI runtime here: neither runc nor crun", "apt-get install runc")


def _is_the_machines_root() -> bool:
    return os.geteuid() == 0 and _is_first_namespace()


def _is_first_namespace() -> bool:
    return os.stat("/proc/self/ns/user").st_ino == 0xEFFFFFFD  # PROC_USER_INIT_INO, linux/proc_ns.h


class RuntimeRunning(Running):
    """A container run by an OCI runtime in the holder's mount namespace."""

    def __init__(self, settings: dict[str, Any], tree: Tree, options: RunOptions, guard: Guard) -> None:
        """settings: the run-time settings of the image's configuration; tree: the image's."""
        self.settings, self.tree, self.options, self.guard = settings, tree, options, guard
        self.name = f"cntr-slim-{os.getpid()}-{secrets.token_hex(3)}"
        self.stop_signal = options.stop_signal
        self.directory = guard.directory()
        self.pid_file = (
            f"{self.directory}/pid"  # outside the holder's mounts, so that it stays readable after the holder's end
        )
        self.place = f"{self.directory}/own"
        os.mkdir(self.place, 0o755)
        self.command = runtime()
        self.has_cgroup = self.command[0] != "crun"  # which restricts devices; without it, no node can be made
        self.holder = self.server = 0
        self.notes = os.memfd_create("notes", os.MFD_CLOEXEC)
        self.output = BoundedOutput()
        self._status: int | None = None

    def start(self, shown: set[str] | None, hidden: frozenset[str] = frozenset(), *, grow: bool = False) -> None:
        """Start it with the image's files in SHOWN (None: all). grow, hidden: see ``served``. Raises CntrError."""
        specification = self._specification()
        fuse_fd = mounting.open_device()
        ready, told = os.pipe2(os.O_CLOEXEC)
        mounted, mounting_done = os.pipe2(os.O_CLOEXEC)
        self.holder = os.fork()
        if self.holder == 0:
            os.close(ready)
            self._hold(fuse_fd, told, mounting_done, specification)
        os.close(told)
        os.close(mounting_done)
        self.output.handed_over()
        self.guard.add(f"{self.name} cgroups", [CGROUPS, self.name])
        self._remember("holder", self.holder)
        root_fd = os.open(f"/proc/self/fd/{self.tree.root_fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.server = served.start(fuse_fd, mounted, root_fd, shown, hidden, self.notes, grow)
        for fd in (fuse_fd, mounted, root_fd):
            os.close(fd)
        self._remember("server", self.server)
        try:
            with open(ready, "rb") as stream:
                trouble = stream.read().decode("utf-8", "replace")
            if trouble:
                raise CntrError(f"the slim root can't be mounted: {printable(trouble)}", "it takes root and /dev/fuse")
            self._wait_for_start()
        except BaseException:
            self.stop()
            raise

    def _remember(self, what: str, pid: int) -> None:
        try:
            start = procfs.start_time(procfs.read(f"/proc/{pid}/stat"))
        except OSError:
            return  # it has ended
        self.guard.add(f"{self.name} {what}", [KILL, str(pid), str(start)])

    def _wait_for_start(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                with open(self.pid_file, encoding="ascii") as stream:
                    self.pid = int(stream.read() or "0")
            except (OSError, ValueError):
                self.pid = 0
            if self.pid and self._has_begun():
                self._remember("init", self.pid)
                return
            if self.exited() is not None:
                if self.pid:
                    return  # a program that runs for a moment only
                raise CntrError(f"{self.command[0]} can't run the slim root{self.said()}", "see its message")
            time.sleep(0.005)
        raise CntrError(f"{self.command[0]}: the container did not start in 30 s", "the machine may be overloaded")

    def _has_begun(self) -> bool:
        """Whether the first process is the image's and no longer the runtime's."""
        try:
            name = os.readlink(f"/proc/{self.pid}/exe")
        except OSError:
            return True  # it has ended
        if not name.startswith(("/memfd:runc", "/memfd:crun")) and not name.endswith(("/runc", "/crun")):
            return True
        words = procfs.read(f"/proc/{self.pid}/cmdline").split("\0")  # the image's may have that name, too
        return words[1:2] != ["init"] and self.name not in words

    # the holder

    def _hold(self, fuse_fd: int, told: int, mounting_done: int, specification: dict[str, Any]) -> None:
        """In the child: mount, then execute the runtime."""
        try:
            os.setsid()  # not with its parent: what the runtime has started would live on; the guard ends both
            self._mount(fuse_fd, mounting_done)
            self._bundle(specification)
            words = [*self.command, "--root", f"{self.place}/state", "run", "--bundle", self.place]
            words += ["--pid-file", self.pid_file, self.name]
            null = os.open(os.devnull, os.O_RDONLY)
            for fd, mine in ((null, 0), (self.output.fd, 1), (self.output.fd, 2)):
                os.dup2(fd, mine)
            os.set_inheritable(told, False)
            os.execvp(words[0], words)
        except OSError as error:
            os.write(told, str(error).encode())
        finally:
            os._exit(125)

    def _mount(self, fuse_fd: int, mounting_done: int) -> None:
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("cntr", self.place, "tmpfs", syscalls.MS_NODEV, _MEMORY)
        for name in ("lower", "upper", "work", "rootfs", "state", "etc"):
            os.mkdir(f"{self.place}/{name}", 0o755)
        root = self.tree.entries["/"]
        os.chmod(f"{self.place}/upper", root.mode & 0o7777)
        os.chown(f"{self.place}/upper", root.uid, root.gid)
        mounting.mount(fuse_fd, "cntr", f"{self.place}/lower", flags)
        os.close(fuse_fd)
        os.write(mounting_done, b"m")
        options = f"lowerdir={self.place}/lower,upperdir={self.place}/upper,workdir={self.place}/work"
        if not _is_first_namespace():
            options += ",userxattr"
        syscalls.mount("overlay", f"{self.place}/rootfs", "overlay", 0, options)

    def _bundle(self, specification: dict[str, Any]) -> None:
        for name, text in (
            ("hostname", "slim\n"),
            ("hosts", "127.0.0.1\tlocalhost slim\n::1\tlocalhost\n"),
            ("resolv.conf", ""),
        ):
            with open(f"{self.place}/etc/{name}", "w", encoding="ascii") as stream:
                stream.write(text)
        with open(f"{self.place}/config.json", "w", encoding="utf-8", errors="surrogateescape") as stream:
            json.dump(specification, stream)

    def _specification(self) -> dict[str, Any]:
        """The OCI runtime configuration that an engine would make from the image's, with its defaults. Raises
        CntrError.
        """
        uid, gid, groups, home = user_of(self.tree, str(self.settings.get("User") or ""))
        entrypoint = self.options.entrypoint or as_words(self.settings.get("Entrypoint"))
        words = self.options.command or ([] if self.options.entrypoint else as_words(self.settings.get("Cmd")))
        if not entrypoint and not words:
            raise CntrError("the image has neither Entrypoint nor Cmd", "--cmd 'PROGRAM ARGUMENT…' says what to run")
        environment = [str(row) for row in self.settings.get("Env") or []] + self.options.environment
        names = {row.partition("=")[0] for row in environment}
        if "PATH" not in names:
            environment.append("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        environment += ["HOSTNAME=slim"] + ([] if "HOME" in names else [f"HOME={home}"])
        bounding = [name for name in CAPABILITIES if self.has_cgroup or name != "CAP_MKNOD"]
        capabilities = bounding if uid == 0 else []
        namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
        namespaces += [] if self.options.network == "host" else [{"type": "network"}]
        linux: dict[str, Any] = {"namespaces": namespaces, "maskedPaths": MASKED, "readonlyPaths": READ_ONLY}
        linux["seccomp"] = profile.for_runtimes(CAPABILITIES)
        if self.has_cgroup and _is_the_machines_root():
            linux["cgroupsPath"] = f"/{self.name}"
            linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": uid, "gid": gid, "additionalGids": groups},
                "args": [*entrypoint, *words],
                "env": environment,
                "cwd": str(self.settings.get("WorkingDir") or "/"),
                "capabilities": {
                    "bounding": bounding,
                    **dict.fromkeys(("effective", "permitted"), capabilities),
                },
            },
            "root": {"path": "rootfs"},
            "hostname": "slim",
            "mounts": self._mounts(),
            "linux": linux,
        }

    def _mounts(self) -> list[dict[str, Any]]:
        usual = ["nosuid", "noexec", "nodev"]
        rows = [
            ("/proc", "proc", "proc", usual),
            ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
            ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            ("/dev/shm", "tmpfs", "shm", [*usual, "mode=1777", "size=65536k"]),
            ("/dev/mqueue", "mqueue", "mqueue", usual),
        ]
        if self.options.network != "host":
            rows.append(("/sys", "sysfs", "sysfs", [*usual, "ro"]))
        for name in ("hostname", "hosts", "resolv.conf"):
            if "/etc" in self.tree:
                rows.append((f"/etc/{name}", "bind", f"{self.place}/etc/{name}", ["bind", "rw"]))
        for volume in self.options.volumes:
            source, _, rest = volume.partition(":")
            target, _, mode = rest.partition(":")
            if source.startswith("/") and target:
                rows.append((target, "bind", source, ["rbind", "ro" if "ro" in mode.split(",") else "rw"]))
        return [
            {"destination": to, "type": kind, "source": source, "options": words} for to, kind, source, words in rows
        ]

    # methods of Running

    def exited(self) -> int | None:
        """The runtime's exit status, which is the container's."""
        if self._status is None and self.holder:
            pid, status = os.waitpid(self.holder, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def log(self) -> str:
        """The end of its output; the runtime's own messages without time and level."""
        text = self.output.end(complete=self.exited() is not None)
        return _LOGGED.sub(lambda found: found[1].replace('\\"', '"'), text)

    def exec(self, words: list[str], seconds: float) -> str:
        """Run a program in it through the runtime's exec, from the holder's mount namespace."""
        space = os.open(f"/proc/{self.holder}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        argv = [*self.command, "--root", f"{self.place}/state", "exec", self.name, *words]
        try:
            done = commands.end_of(argv, seconds, lambda: syscalls.setns(space, syscalls.CLONE_NEWNS))
        except (OSError, subprocess.SubprocessError) as error:
            raise commands.Failed(f"exec in the slim container: {printable(str(error))}") from None
        finally:
            os.close(space)
        said = done.stdout.decode("utf-8", "replace").strip()
        if done.returncode:
            last = said.splitlines()[-1] if said else f"exit status {done.returncode}"
            raise commands.Failed(f"exec in the slim container: {printable(last)}", "", done.returncode, said)
        return said

    def stop(self) -> None:
        """Stop it, with SIGKILL if necessary; the mounts end with the holder."""
        if self.pid and self.exited() is None:
            patience = self.patience(self.stop_signal)
            self._signal(self.stop_signal if patience else "SIGKILL")
            self._wait(patience)
            self._signal("SIGKILL")
        self._wait(5.0)
        self.guard.undo(f"{self.name} init")  # also where something has killed the runtime
        self.guard.undo(f"{self.name} holder")
        if self._status is None:
            os.waitpid(self.holder, 0)
            self._status = -9
        self.guard.undo(f"{self.name} server")
        if self.server:
            os.waitpid(self.server, 0)
            self.server = 0
        self.guard.undo(f"{self.name} cgroups")
        self.guard.undo(self.directory)

    def _signal(self, name: str) -> None:
        number = int(name) if name.isdecimal() else signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
        if self.exited() is None:
            try:
                os.kill(self.pid, number)  # the runtime has not reaped it, so the pid cannot be reused
            except ProcessLookupError:
                pass

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.exited() is None and time.monotonic() < end:
            time.sleep(0.01)

    def used(self) -> list[tuple[str, str]]:
        """(kind, path) of what was used or missed."""
        return served.noted(self.notes)

    def close(self) -> None:
        """Close the files of notes and output."""
        os.close(self.notes)
        self.output.close()


def user_of(tree: Tree, user: str) -> tuple[int, int, list[int], str]:
    """(uid, gid, supplementary groups, home) for the configuration's User: NAME or NUMBER, [:GROUP]. Raises CntrError
    for an unknown name.
    """
    name, _, group = user.partition(":")
    name = name or "0"
    for path in ("/etc/passwd", "/etc/group"):
        real, _ = tree.resolve(path)
        if real and not tree.entries[real].is_file:  # the runtime would block on opening a FIFO
            raise CntrError(f"the image's {path} is no regular file", "the image is damaged or malicious")
    passwd, groups = tree.text("/etc/passwd"), tree.text("/etc/group")
    row = procfs.passwd_entry(passwd, name)
    if row is None and not name.isdecimal():
        raise CntrError(
            f"the image's user {printable(name)} is not in its /etc/passwd", "the image does not run as it is"
        )
    uid = row[1] if row else int(name)
    gid = row[2] if row else 0
    if group:
        found = int(group) if group.isdecimal() else procfs.group_id(groups, group)
        if found is None:
            raise CntrError(
                f"the image's group {printable(group)} is not in its /etc/group", "it does not run as it is"
            )
        gid = found
    extra = procfs.groups_of(groups, row[0]) if row and not group else []
    return uid, gid, extra, row[3] if row else "/"
