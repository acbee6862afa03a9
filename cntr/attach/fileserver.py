"""The server process of the fuse transport: serves the tools' tree to the session through CntrFS (the paper,
section 4).

It is forked before any namespace is entered and stays on the host's side. FUSE is imported nowhere else. A FUSE
connection ends with the last copy of its fd: when the server dies, no client hangs. If the server hangs, the
supervisor aborts the connection.
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import os
import select

from cntr.attach import steps, view
from cntr.errors import complain
from cntr.linux import procfs, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.attach.tools import Tools
    from cntr.attach.view import View
    from cntr.cntrfs.watchdog import Watchdog

HANG_SECONDS = 30.0  # how long a request may stay unread or unanswered
GRACE_SECONDS = 3.0


class FileServer:
    """One server process and its connection.

    device_fd: /dev/fuse, which the session mounts; pidfd: readable when the server has ended.
    """

    __slots__ = (
        "binding",
        "device_fd",
        "heartbeat",
        "mount_options",
        "mounted_read",
        "mounted_write",
        "own_mnt_fd",
        "pid",
        "pidfd",
        "shown",
        "stop_read",
        "stop_write",
        "tools",
        "view_fd",
        "watchdog",
    )

    def __init__(self, tools: Tools, binding: str, shown: View | None, own_mnt_fd: int) -> None:
        """Start serving the tools' tree by BINDING (auto, devfuse, pyfuse3). Raises CntrError, OSError.

        shown: the tools view, served with nobody's rights; None to serve the whole tree. own_mnt_fd: the caller's
        mount namespace.
        """
        from cntr.cntrfs import mounting
        from cntr.cntrfs.heartbeat import Heartbeat
        from cntr.cntrfs.options import connection_options

        self.binding = mounting.choose_binding(None if binding == "auto" else binding)
        self.tools, self.shown, self.own_mnt_fd, self.heartbeat = tools, shown, own_mnt_fd, Heartbeat()
        self.watchdog: Watchdog | None = None
        self.device_fd = mounting.open_device()
        #: Mount options that the session passes to fsconfig(2).
        self.mount_options = {"source": "cntr", "subtype": "cntrfs", **connection_options(self.device_fd)}
        self.stop_read, self.stop_write = os.pipe2(os.O_CLOEXEC)
        self.mounted_read, self.mounted_write = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            self._serve()
        os.close(self.stop_read)
        os.close(self.mounted_read)
        self.pidfd = os.pidfd_open(self.pid)

    def _serve(self) -> None:
        """Run the server process; never returns."""
        status = 1
        try:
            os.setsid()  # the terminal's signals go to the session
            syscalls.set_process_name("cntrfs")
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            os.close(self.stop_write)
            os.close(self.mounted_write)
            os.chdir("/")
            from cntr.cntrfs import mounting
            from cntr.cntrfs.options import Options

            mounting.load(self.binding)  # while the session is being assembled
            root_fd = self._open_view() if self.shown else os.dup(self.tools.root_fd)
            # Reading /dev/fuse before the mount fails with EPERM, so the session reports the mount. End of file:
            # the session failed, stop.
            if os.read(self.mounted_read, 1):
                # The container's /proc and its tree are mounted on entries of this filesystem. A mount disappears
                # when the kernel is told to drop its entry. Since 6.2 the kernel can be told to revalidate instead;
                # on older kernels entries expire after a second.
                options = Options(
                    keep_mounts=True, as_nobody=self.shown is not None, read_only=self.shown is not None
                ).settle()
                mounting.serve(self.device_fd, root_fd, options, self.stop_read, self.heartbeat, binding=self.binding)
            status = 0
        except BaseException as error:  # noqa: BLE001  the one process that may print: its stderr is the user's
            complain(f"cntr: the file server failed: {type(error).__name__}: {error}\n")
        finally:
            os._exit(status)

    def _open_view(self) -> int:
        """Return the root of the tools view, made in a mount namespace of its own that this fd keeps alive. Raises
        OSError.

        The process returns to its own namespace: later imports must not resolve in the view, which may belong to a
        container.
        """
        assert self.shown
        progress, root_fd = steps.Progress(), os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            view.enter_tools(self.tools, self.own_mnt_fd, progress)
            self.shown.assemble(progress)
        except OSError as error:
            raise OSError(error.errno, f"{progress.now.name}: {error.strerror}", error.filename) from None
        view_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.view_fd = os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.shown.proc_fd)
        syscalls.setns(self.own_mnt_fd, syscalls.CLONE_NEWNS)
        os.fchdir(root_fd)
        os.chroot(".")
        os.close(root_fd)
        return view_root

    def mount_attributes(self) -> int:
        """Attributes of the session's mount: a view is read-only, and has no set-id bits or devices."""
        return view.SAFE if self.shown else 0

    def mounted(self) -> None:
        """Called in the session: let the server begin."""
        os.write(self.mounted_write, b"m")
        self.handed_over()

    def handed_over(self) -> None:
        """Close our copy of the connection, so that it ends with the server."""
        if self.device_fd >= 0:
            os.close(self.device_fd)
            os.close(self.mounted_write)
        self.device_fd = -1

    def hangs(self, session_pid: int) -> bool:
        """Whether a request has waited for HANG_SECONDS. session_pid: a process whose root is the mount, in the
        host's numbering.
        """
        if self.watchdog is None:
            device = root_device(session_pid)
            if device is None:
                return False
            from cntr.cntrfs.watchdog import Watchdog

            self.watchdog = Watchdog("", self.heartbeat, HANG_SECONDS, device)
        return self.watchdog.hangs(self.pid)

    def finished(self) -> bool:
        """Whether the server ended by itself because the mount is gone."""
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return ended is not None and (ended.si_code, ended.si_status) == (os.CLD_EXITED, 0)

    def end_connection(self) -> None:
        """Kill the server, which closes the last fd of the connection: every blocked call returns with an error."""
        if self.watchdog:
            self.watchdog.abort()
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def stop(self) -> None:
        """Ask the server to end, then kill it. Never waits for the served tree."""
        self.handed_over()  # a server that waits for the mount sees end of file
        os.close(self.stop_write)
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(GRACE_SECONDS * 1000):
            self.end_connection()
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)


def root_device(pid: int) -> int | None:
    """Device number of the FUSE mount at the root of process PID, from its mountinfo; None before it is mounted."""
    try:
        text = procfs.read(f"/proc/{pid}/mountinfo")
    except OSError:
        return None
    mounts = procfs.mountinfo(text)
    return next((m.device for m in mounts if m.mount_point == "/" and m.fstype == "fuse.cntrfs"), None)
