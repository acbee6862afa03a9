"""Mounting CntrFS: ``cntr mount`` and ``mount.fuse.cntrfs``.

There are two processes. The *manager* mounts, starts the *server*, and keeps no fd of the connection, so the kernel ends the connection
when the server dies. The manager never touches the mounted tree. It waits for the server, unmounts on SIGTERM and SIGINT, and ends a
connection whose server hangs (``watchdog``).
"""

from __future__ import annotations

import _signal as signal
import errno
import os
import select
import time

from cntr.cntrfs import log
from cntr.cntrfs.heartbeat import Heartbeat
from cntr.cntrfs.mount_words import ATIME_WORDS, mount_flags
from cntr.cntrfs.mountpoint import Mountpoint
from cntr.cntrfs.options import Options, connection_options
from cntr.cntrfs.watchdog import Watchdog, mountpoints_of
from cntr.errors import CntrError, complain, with_sudo
from cntr.linux import syscalls
from cntr.linux.process import replace_stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

FSTYPE = "fuse.cntrfs"
BINDINGS = ("devfuse", "pyfuse3")
_READY_TIMEOUT = 30.0  # seconds from mount to the kernel's INIT


class MountSession:
    """Callbacks for whoever makes a mount. end_signal: an additional signal that unmounts; opened: a path to the open SOURCE."""

    end_signal, opened = 0, ""

    def begun(self) -> None:
        """The mount is served, by a process other than the caller."""

    def must_end(self, signalled: int) -> bool:
        """Called each second, and with the number of a signal that arrived (else 0): return whether to unmount now."""
        return bool(signalled)

    def ended(self, status: int) -> None:
        """The mount has ended; in the background. status: exit status."""


def choose_binding(binding: str | None) -> str:
    """The binding asked for, or the best that works here. Raises CntrError if pyfuse3 is missing."""
    if binding is None:
        return "devfuse"
    if binding == "pyfuse3":
        try:
            syscalls.import_without_ldconfig("pyfuse3")  # needed by trio, which pyfuse3 imports
        except ImportError as error:
            raise CntrError(
                f"the pyfuse3 binding is not available: {error}",
                "install it with: pip install 'cntr-attach[pyfuse3]' (it compiles against libfuse3-dev, pkg-config, gcc)",
            ) from None
    return binding


def open_device() -> int:
    """Open a new connection: an fd of /dev/fuse, close-on-exec. Raises CntrError."""
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        absent = error.errno in (errno.ENOENT, errno.ENODEV)
        hint = "load the module: modprobe fuse" if absent else with_sudo("mounting takes root")
        raise CntrError(f"cannot open /dev/fuse: {error.strerror}", hint) from None


def open_source(source: str, words: list[str], *, read_only: bool = False, copied: bool = False) -> int:
    """Open the root of the tree to serve. copied: a private copy of the mounts there, unaffected by later mounts.

    The backing filesystem maintains access times according to its own mount's flags. If the options ask for other flags, a private copy
    with those flags is served; later mounts below SOURCE are then not visible.
    """
    wanted = [word for word in words if word in ATIME_WORDS]
    if not wanted:
        return _copy_of_mounts(source) if copied else os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    kinds = [word for word in wanted if "diratime" not in word]
    if read_only:
        kinds = ["noatime"]  # mount(8) "ro": access times never change, even with "strictatime"
    attr_set = ATIME_WORDS[kinds[-1]] if kinds else 0
    attr_clear = syscalls.MOUNT_ATTR_ATIME if kinds else 0
    if wanted[-1] == "nodiratime" or ("nodiratime" in wanted and "diratime" not in wanted):
        attr_set |= syscalls.MOUNT_ATTR_NODIRATIME
    try:
        return _copy_of_mounts(source, attr_set=attr_set, attr_clear=attr_clear)
    except OSError as error:
        raise CntrError(
            f"cannot give SOURCE other access time flags: {os.strerror(error.errno or 0)}",
            f"leave out: {','.join(wanted)} (it takes Linux 5.12)",
        ) from None


def _copy_of_mounts(source: str, *, attr_set: int = 0, attr_clear: int = 0) -> int:
    """A detached copy of the mounts at SOURCE and below, with other attributes, which receives no propagation."""
    fd = syscalls.open_tree(syscalls.AT_FDCWD, source, syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)
    try:
        syscalls.mount_setattr(
            fd, "", recursive=True, attr_set=attr_set, attr_clear=attr_clear, propagation=syscalls.MS_PRIVATE
        )
    except OSError:
        os.close(fd)
        raise
    return fd


def restrictions(root_fd: int) -> int:
    """MS_NOSUID, MS_NODEV and MS_NOEXEC of the mount that root_fd is on, which CntrFS keeps."""
    return os.fstatvfs(root_fd).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)  # the bits are the same


def mount(fuse_fd: int, source: str, mountpoint: str, flags: int) -> None:
    """Mount a connection by mount(2). SOURCE: what mountinfo shows. Raises OSError."""
    options = connection_options(fuse_fd)
    data = ",".join(key if value is None else f"{key}={value}" for key, value in options.items())
    syscalls.mount(source, mountpoint, FSTYPE, flags, data)


def load(binding: str) -> Callable[[int, int, Options, int, Heartbeat, Callable[[], None]], None]:
    """Import a binding before it has to serve; return its ``serve``."""
    if binding == "pyfuse3":
        from cntr.cntrfs import pyfuse3_binding

        return pyfuse3_binding.serve
    from cntr.cntrfs.devfuse import session

    return session.serve


def serve(
    fuse_fd: int,
    root_fd: int,
    options: Options,
    stop_fd: int,
    heartbeat: Heartbeat | None = None,
    on_ready: Callable[[], None] = lambda: None,
    binding: str | None = None,
) -> None:
    """Serve a mounted connection, see the package's docstring. Returns when it is unmounted or told to stop.

    The mounter must be in the server's own pid namespace: pids in requests are numbers of the mounter's.
    """
    heartbeat = heartbeat or Heartbeat()
    serve_it = load(choose_binding(binding))
    import resource  # the binding has imported it anyway; other processes of an attach need neither

    from cntr.cntrfs.backing import Caller, proc_shows_our_pids

    Caller.pids_are_in_proc = proc_shows_our_pids()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # the kernel applies the clients' own limits
    for number in (signal.SIGXFSZ, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    serve_it(fuse_fd, root_fd, options, stop_fd, heartbeat, on_ready)


def run(
    source: str,
    mountpoint: str,
    options: Options,
    *,
    binding: str | None,
    foreground: bool,
    life: MountSession | None = None,
) -> int:
    """``cntr mount``: mount SOURCE at MOUNTPOINT and serve it; return the exit status. Raises CntrError.

    foreground: return when it is unmounted; else a background process serves, and calls LIFE at the end.
    """
    life = life or MountSession()
    options.settle()
    binding = choose_binding(binding)
    # Not the real path of SOURCE: a link in proc(5), /proc/PID/root, leads to another tree than its text says.
    source, place = os.path.abspath(source), Mountpoint(mountpoint)
    if not os.path.isdir(source):
        raise CntrError(f"not a directory: {source}", "SOURCE and MOUNTPOINT are existing directories")
    if foreground or options.trace:  # a trace needs a terminal
        return _Manager(source, place, options, binding, life).run(None)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    if pid := os.fork():
        os.close(writer)
        # one write, or end of file if the daemon died; not read to the end, because the server
        message = os.read(reader, 4096)
        os.close(reader)  # has a copy of the write end
        if message == b"ready":
            return 0
        os.waitpid(pid, 0)
        said, _, hint = message.decode(errors="replace").partition("\0")
        raise CntrError(said or "the server ended before it was ready", hint or "--foreground shows more")
    _in_background(_Manager(source, place, options, binding, life), reader, writer)


def _in_background(manager: _Manager, reader: int, writer: int) -> NoReturn:
    """Run the daemon; reports over the pipe and never returns."""
    status = 1
    try:
        os.close(reader)
        os.setsid()
        os.chdir("/")

        def ready() -> None:
            replace_stdio()
            os.write(writer, b"ready")
            os.close(writer)

        status = manager.run(ready)
        manager.life.ended(status)
    except CntrError as error:
        os.write(writer, f"{error.message}\0{error.hint}".encode(errors="backslashreplace"))
    except BaseException as error:  # noqa: BLE001  a process of its own, with nobody to raise to
        log.error("the manager failed", exc_info=error)
    finally:
        os._exit(status)


class _Manager:
    """The parent process of one mount."""

    def __init__(self, source: str, place: Mountpoint, options: Options, binding: str, life: MountSession) -> None:
        self.life = life
        self.source = source
        self.place, self.mountpoint = place, place.path
        self.options = options
        self.binding = binding
        self.heartbeat = Heartbeat()
        self.signalled = 0
        self.pid = 0

    def run(self, on_ready: Callable[[], None] | None) -> int:
        """Mount, start the server, wait for its end; return the exit status."""
        ready_reader, ready_writer = os.pipe2(os.O_CLOEXEC)
        wake_reader, wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, self.life.end_signal):
            if number:
                signal.signal(number, self._note_signal)
        read_only = self.options.begins_read_only()
        tree = self.life.opened or self.source
        root_fd = open_source(tree, self.options.mount_flags, read_only=read_only)
        copy_fd = self._spare_copy(tree, read_only)
        fuse_fd = open_device()
        self._mount(fuse_fd, restrictions(root_fd))
        try:
            self.options.root_kept = True
            self.watchdog = Watchdog(self.mountpoint, self.heartbeat, self.options.hang_timeout, self.place.device)
            root_fd = self._without_ourselves(root_fd, copy_fd)
            self.options.own_device = self.watchdog.device if root_fd != copy_fd else 0
            self.pid = os.fork()
            if self.pid == 0:
                os.close(ready_reader)
                self._serve(fuse_fd, root_fd, ready_writer, background=on_ready is not None)
            os.close(fuse_fd)
            os.close(root_fd)
            os.close(ready_writer)
            if not select.select([ready_reader], [], [], _READY_TIMEOUT)[0] or not os.read(ready_reader, 1):
                raise CntrError(f"CntrFS on {self.mountpoint}: the server did not start", "see its messages above")
            os.close(ready_reader)
            self.life.begun()
            if on_ready:
                on_ready()
            return self._wait(wake_reader)
        except BaseException:
            self._end_server()
            self._unmount(syscalls.MNT_DETACH)
            raise

    def _note_signal(self, number: int, frame: object) -> None:
        if number != signal.SIGCHLD:
            self.signalled = number

    def _spare_copy(self, tree: str, read_only: bool) -> int:
        """A copy of the tree before we mount, in case our mount appears in it; -1 if none can be made."""
        try:
            return open_source(tree, self.options.mount_flags, read_only=read_only, copied=True)
        except (OSError, CntrError):
            return -1

    def _without_ourselves(self, root_fd: int, copy_fd: int) -> int:
        """The tree to serve: the copy, if our mount has appeared inside SOURCE, by its path or by propagation.

        Otherwise the server would send requests to itself and wait for ever.
        """
        device = self.place.device
        below = self.source.rstrip("/") + "/"
        if not any((path + "/").startswith(below) for path in mountpoints_of(device)):
            if copy_fd >= 0:
                os.close(copy_fd)  # the copy would keep its mounts busy
            return root_fd
        if copy_fd < 0:
            raise CntrError(
                f"{self.mountpoint} lies in {self.source}, and its mounts can't be copied", "mount it elsewhere"
            )
        os.close(root_fd)
        return copy_fd

    def _mount(self, fuse_fd: int, kept: int) -> None:
        """kept: the source's restrictions. Set-id programs and devices take effect only if asked for."""
        flags = mount_flags(["nosuid", "nodev", *self.options.mount_flags]) | kept
        flags |= syscalls.MS_RDONLY if self.options.read_only else 0
        try:
            self.place.mount(lambda path: mount(fuse_fd, self.options.fsname or self.source, path, flags), FSTYPE)
        except OSError as error:
            hint = with_sudo("mounting takes root (CAP_SYS_ADMIN)") if error.errno == errno.EPERM else ""
            raise CntrError(
                f"cannot mount CntrFS on {self.mountpoint}: {os.strerror(error.errno or 0)}", hint
            ) from None

    def _serve(self, fuse_fd: int, root_fd: int, ready_writer: int, *, background: bool) -> NoReturn:
        """Run the server process; never returns."""
        status = 1
        try:
            for number in (signal.SIGHUP, signal.SIGCHLD, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
            stop_reader, stop_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, lambda *_: os.write(stop_writer, b"x"))
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGTERM)
            syscalls.set_process_name("cntrfs")

            def ready() -> None:
                if background:
                    replace_stdio()
                os.write(ready_writer, b"x")
                os.close(ready_writer)

            serve(fuse_fd, root_fd, self.options, stop_reader, self.heartbeat, ready, self.binding)
            if os.getppid() != self.watchdog.manager_pid:
                self._unmount(syscalls.MNT_DETACH)  # the manager was killed: do not leave a dead mount
            status = 0
        except CntrError as error:
            complain(f"cntr: {error.message}\n")
        except BaseException as error:  # noqa: BLE001  a process of its own, with nobody to raise to
            log.error("the server failed", exc_info=error)
        finally:
            os._exit(status)

    def _wait(self, wake_reader: int) -> int:
        """Wait until the server ends or a signal arrives; check for hangs every second."""
        while True:
            if select.select([wake_reader], [], [], 1.0)[0]:
                os.read(wake_reader, 4096)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.pid = 0
                if status == 0:
                    self._unmount(syscalls.MNT_DETACH)
                    return 0
                how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status >> 8}"
                self._unmount(syscalls.MNT_DETACH)
                complain(f"cntr: the server of {self.mountpoint} ended with {how}; unmounted\n")
                return 1
            if self.life.must_end(self.signalled):
                self._unmount(0) or self._unmount(syscalls.MNT_DETACH)
                self._end_server()
                return 0 if self.signalled not in (0, self.life.end_signal) else 128 + signal.SIGHUP
            if self.watchdog.hangs(self.pid):
                complain(f"cntr: the server of {self.mountpoint} hangs; connection ended, unmounted\n")
                self.watchdog.abort()
                self._end_server(grace=0)
                self._unmount(syscalls.MNT_DETACH)
                return 1

    def _end_server(self, grace: float = 3.0) -> None:
        """Ask the server to end, abort the connection if it does not, and finally kill it."""
        if not self.pid:
            return
        os.kill(self.pid, signal.SIGTERM if grace else signal.SIGKILL)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                self.pid = 0
                return
            time.sleep(0.01)
        self.watchdog.abort()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.pid = 0

    def _unmount(self, flags: int) -> bool:
        """Unmount if the mount is still ours; return whether it is gone."""
        return not self.watchdog.is_mounted() or self.place.unmount(flags)
