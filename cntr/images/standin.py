"""A stand-in: a process in place of one that does not run, built from a ``Blueprint``.

It has the root, namespaces, user, capabilities, limits, environment, working directory, hostname and mounts of the
missing process, so a session finds in /proc everything it takes from a target. Three processes make it: the caller; a
*builder*, which mounts with the host's privileges, opens what is the host's, and enters the new namespaces; and the
stand-in, the first process in them. It executes a program of a few instructions from a memfd, which waits for the end
of a pipe from the caller and exits. So it ends when the caller does, for whatever reason, and with it everything in its
pid namespace. It holds only that pipe and is not dumpable: nobody without CAP_SYS_PTRACE can look into its /proc/1,
open the pipe for writing, and so keep it alive.
"""

from __future__ import annotations

import _signal as signal
import os
import select

from cntr.errors import CntrError, printable, with_sudo
from cntr.images import ImageError, one_writer
from cntr.images.cgroups import Cgroup, write
from cntr.images.ids import enter_user_namespace
from cntr.images.role import Role
from cntr.images.room import Room
from cntr.linux import apart, procfs, syscalls
from cntr.linux.host import VIEW
from cntr.linux.numbers import UNAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.images.blueprint import Blueprint

# prctl(PR_SET_DUMPABLE, 0); close(1), which reports that it is done; read(0, stack, 1) until that returns 0, or fails
# for another reason than a signal; exit(0).
PROGRAMS = {
    "x86_64": (
        62,
        # mov edi,4; xor esi,esi; mov eax,157; syscall; mov edi,1; mov eax,3; syscall;
        # 1: xor edi,edi; lea rsi,[rsp-64]; mov edx,1; xor eax,eax; syscall; cmp rax,-4; je 1b;
        # cmp rax,1; je 1b; mov eax,60; xor edi,edi; syscall
        "bf04000000 31f6 b89d000000 0f05 bf01000000 b803000000 0f05 31ff 488d7424c0 ba01000000 31c0 0f05 4883f8fc "
        "74ea 4883f801 74e4 b83c000000 31ff 0f05",
    ),
    "aarch64": (
        183,
        # mov x0,4; mov x1,0; mov x8,167; svc 0; mov x0,1; mov x8,57; svc 0;
        # 1: mov x0,0; sub x1,sp,64; mov x2,1; mov x8,63; svc 0; cmn x0,4; b.eq 1b;
        # cmp x0,1; b.eq 1b; mov x8,93; mov x0,0; svc 0
        "800080d2 010080d2 e81480d2 010000d4 200080d2 280780d2 010000d4 000080d2 e10301d1 220080d2 e80780d2 "
        "010000d4 1f1000b1 40ffff54 1f0400f1 00ffff54 a80b80d2 000080d2 010000d4",
    ),
}
KINDS = {
    "net": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "pid": syscalls.CLONE_NEWPID,
}
OWN_FILES = ("archive", "oci", "dir")  # named by a path; in a toolbox the path is the toolbox's
OWN_PROCESSES = 3  # the stand-in, and a session's launcher and reaper
SECONDS = 30.0
WATCH_SECONDS = 0.25  # between two checks whether the engine has started it


class StandIn:
    """A running stand-in: its pid and start time. ``close`` ends it and everything in its pid namespace."""

    def __init__(
        self,
        blueprint: Blueprint,
        *,
        network: str = "",
        write: bool = False,
        confined: bool = True,
        say: Callable[[str], None],
    ) -> None:
        """network: none, host, or "" for the configured one if it exists; write: use the container's own layer.

        confined: with the container's seccomp filter, which takes a while to compile. Raises CntrError, leaving nothing
        behind.
        """
        if os.geteuid() not in (0, blueprint.owner):
            raise CntrError(f"{blueprint.label()}: a stand-in for a stopped container needs root", with_sudo())
        self.blueprint, self.pid, self.start_time, self._pidfd, self._life = blueprint, 0, 0, -1, -1
        if blueprint.disk:
            disk = blueprint.disk
            say(f"note: {blueprint.label()}: the kernel reads the {disk.fstype} of {printable(disk.path)}, read-only")
        self._room = Room(blueprint, network=network, write=write, confined=confined, say=say)
        self.filter = self._room.filter if confined else None
        self._room.program = program()
        self._alive = self._lock = -1
        self._watcher = 0
        self._cgroup: Cgroup | None = None
        try:
            if write and blueprint.lower:
                self._lock = one_writer.lock(blueprint)
                self._room.locked = os.fstat(self._lock)
            self._limit(say)
            self._start(say)
            if write and self._runs():
                raise CntrError(f"{blueprint.label()}: it was started meanwhile", "stop it, then --write")
            if write or self._cgroup:
                self._watch(write=write)
        except BaseException:
            self.close()
            raise

    def _runs(self) -> bool:
        """Whether the engine has started the container meanwhile."""
        check = self.blueprint.check
        with VIEW:
            return bool(check and check())

    def _limit(self, say: Callable[[str], None]) -> None:
        """Make a cgroup with the container's limits, if root can."""
        made = self.blueprint
        pids = made.pids + OWN_PROCESSES if made.pids > 0 else 0
        limits = {key: value for key, value in (("memory", made.memory), ("pids", pids)) if value > 0}
        if limits and not os.geteuid():
            with VIEW:
                self._cgroup = Cgroup(limits)
            if self._cgroup.missing:
                say(
                    f"note: {made.label()}'s limit of {' and '.join(self._cgroup.missing)} is not enforced: no cgroup can do that here"
                )

    def _watch(self, *, write: bool) -> None:
        """Fork a process that outlives this one and removes the cgroup.

        With WRITE it also ends the session when the container is started: two mounts of one layer would damage it
        (overlayfs.rst).
        """
        reading, self._life = os.pipe()
        self._watcher = os.fork()
        if self._watcher:
            os.close(reading)
            return
        try:
            # Signals to the whole process group or unit (a terminal that closes, timeout(1),
            # systemd) must not end the one that cleans up.
            os.setsid()
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            os.close(self._life)
            os.close(self._alive)
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
            poll = select.poll()
            poll.register(reading, 0)  # POLLHUP only: the parent has ended
            while not poll.poll(WATCH_SECONDS * 1000 if write else None):
                try:
                    started = self._runs()
                except Exception:  # noqa: BLE001  an engine that does not answer has started nothing
                    continue
                if started:
                    os.write(
                        2, f"cntr: {self.blueprint.label()} was started: the session with --write ends\r\n".encode()
                    )
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                    break
            self._wait()  # this process holds the layer's lock, too
            if self._cgroup:
                self._cgroup.remove()
        finally:
            os._exit(0)

    def _wait(self) -> None:
        """Wait until the stand-in has ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll(SECONDS * 1000)

    def _start(self, say: Callable[[str], None]) -> None:
        reading, self._alive = os.pipe()
        reports, report = os.pipe()
        os.set_inheritable(reading, False)
        builder = os.fork()
        if builder == 0:
            status = 1
            try:
                os.close(reports)
                apart.let_go()
                os.umask(0o022)  # of what engines create, whatever the caller's is
                self._build(reading, report)
                status = 0
            except OSError as error:
                path = error.filename if isinstance(error.filename, str) else ""
                _report(report, f"error\0{self._room.step}\0{path}\0{error.strerror or error}")
            except BaseException as error:  # noqa: BLE001  there is no terminal to say it on
                _report(report, f"error\0{self._room.step}\0\0{type(error).__name__}: {error}")
            finally:
                os._exit(status)
        try:
            os.close(reading)
            os.close(report)
            said = _all(reports)
        finally:
            os.close(reports)
            _reap(builder)
        kinds = [line.split("\0") for line in said.split("\n") if line]
        failed = next((words for words in kinds if words[0] == "error"), None)
        started = next((words for words in kinds if words[0] == "pid"), None)
        self.blueprint.faults += [printable(words[1]) for words in kinds if words[0] == "fault"]
        for line in [] if failed else [*self.blueprint.faults, *self.blueprint.left_out]:
            say(f"note: {self.blueprint.label()}: {line}")
        if started:
            self.pid = int(started[1])
            try:
                self._pidfd = os.pidfd_open(self.pid)
                self.start_time = procfs.start_time(procfs.read(f"/proc/{self.pid}/stat"))
            except OSError:
                pass
        if failed or not self.start_time:
            words = failed or ["", "start it", "", "it ended at once"]
            where = f" {printable(words[2])}" if words[2] else ""
            raise CntrError(
                f"{self.blueprint.label()}: stand-in: {printable(words[1])}{where}: {printable(words[3])}",
                "`cntr inspect` shows its configuration",
            )

    def _build(self, reading: int, report: int) -> None:
        """The builder: mount, enter the namespaces, and fork the stand-in, whose exec closes REPORT."""
        room, made = self._room, self.blueprint
        room.tell = lambda text: _report(report, f"fault\0{text}")
        for fd in {self._alive, self._lock} - {-1}:
            os.close(fd)
        os.setsid()
        _copy_oom_score(made.oom_score_adj)
        if self._cgroup:
            room.step = "join its cgroup"
            self._cgroup.join()
        room.step = "a mount namespace of its own"
        if made.engine not in OWN_FILES:
            VIEW.enter_mounts()
        if made.owner:
            room.step = "make its user namespace"
            as_user = os.geteuid() != 0
            enter_user_namespace(made.uid_map, made.gid_map)
            if as_user:  # the ptrace check uses the user namespace that owns its program (proc(5))
                room.program = program()
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # not earlier: newuidmap(1) requires a process of its caller's
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        room.mount()
        room.open_host_files()
        shared = room.shared()
        for kind, fd in room.joined.items():
            room.step = f"join the {kind} namespace"
            syscalls.setns(fd, KINDS[kind])
        if made.uid_map and not made.owner:
            room.step = "make its user namespace"
            enter_user_namespace(made.uid_map, made.gid_map)
        room.step = "make its namespaces"
        flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWCGROUP
        syscalls.unshare(
            flags | sum(flag for kind, flag in KINDS.items() if kind not in shared and kind not in room.joined)
        )
        first = os.fork()
        if first:
            _report(report, f"pid\0{first}")
            return
        try:
            room.enter()
            role = Role(room)
            role.assume()
            os.dup2(reading, 0)
            os.dup2(report, 1)
            os.dup2(reading, 2)
            syscalls.close_all_but(report, room.program, room.proc)  # which the exec closes
            room.step = "run the stand-in"
            # Inherited over the exec: the kernel then reaps orphans in there.
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            role.execute()
        except OSError as error:
            path = error.filename if isinstance(error.filename, str) else ""
            _report(report, f"error\0{room.step}\0{path}\0{error.strerror or error}")
        except BaseException as error:  # noqa: BLE001
            _report(report, f"error\0{room.step}\0\0{type(error).__name__}: {error}")
        finally:
            os._exit(1)

    def close(self) -> None:
        """End it and wait until it is gone."""
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except OSError:
                pass  # it has ended
            self._wait()
        if self._life >= 0:
            os.close(self._life)
            os.waitpid(self._watcher, 0)
            self._life = -1
        if self._cgroup:  # even if the watcher was killed
            self._cgroup.remove()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._room.close()
        self.blueprint.close()


def _copy_oom_score(score: int) -> None:
    """Set oom_score_adj to the container's (proc_pid_oom_score_adj(5)); lowering it needs CAP_SYS_RESOURCE."""
    try:
        write("/proc/self/oom_score_adj", str(max(-1000, min(score, 1000))))
    except OSError:
        pass  # it keeps its maker's value


def _report(fd: int, text: str) -> None:
    os.write(fd, os.fsencode(text.replace("\n", " ") + "\n"))


def _all(fd: int) -> str:
    """Read until every writer has closed: after the exec of the stand-in, or the end of both."""
    chunks, poll = [], select.poll()
    poll.register(fd, select.POLLIN)
    while poll.poll(SECONDS * 1000):
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            break
        chunks.append(chunk)
    else:  # goes before what an unfinished step has written, if anything
        chunks.insert(0, f"error\0mount it\0\0no answer in {SECONDS:.0f} s from a file system of its\n".encode())
    return os.fsdecode(b"".join(chunks))


def _reap(pid: int) -> None:
    """Wait for a child that has closed its pipe. Kill it if it has not, and leave it behind if that
    does not help: it waits for a request to FUSE (fuse(4)).
    """
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    try:
        if not poll.poll(1000):
            os.kill(pid, signal.SIGKILL)
            if not poll.poll(1000):
                return
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)


def program() -> int:
    """A memfd with the stand-in's program, executable but not readable. Raises CntrError."""
    machine = UNAME
    if machine not in PROGRAMS:
        raise ImageError(f"stand-ins are not supported on {machine}", f"known are {', '.join(PROGRAMS)}")
    number, text = PROGRAMS[machine]
    code = bytes.fromhex(text)
    base, header = 0x400000, 64 + 56
    size = header + len(code)

    def packed(*fields: tuple[int, int]) -> bytes:
        return b"".join(value.to_bytes(width, "little") for width, value in fields)

    # elf(5): Elf64_Ehdr, one PT_LOAD Elf64_Phdr
    image = b"\x7fELF\x02\x01\x01" + bytes(9)
    image += packed(
        (2, 2),
        (2, number),
        (4, 1),
        (8, base + header),
        (8, 64),
        (8, 0),
        (4, 0),
        (2, 64),
        (2, 56),
        (2, 1),
        (2, 64),
        (2, 0),
        (2, 0),
    )
    image += packed((4, 1), (4, 5), (8, 0), (8, base), (8, base), (8, size), (8, size), (8, 0x1000)) + code
    fd = os.memfd_create("cntr-stand-in", os.MFD_CLOEXEC)
    os.write(fd, image)
    os.fchmod(fd, 0o111)
    # Executing requires a read-only open file description: a file open for writing is busy (ETXTBSY).
    result = os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
    os.close(fd)
    return result
