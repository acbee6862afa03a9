"""The session's terminal: its own devpts, raw mode, and a pump between it and the user's terminal."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios

from cntr.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 1 << 14
LAST_READS = 64  # chunks to read after the session's end: more than a terminal's buffers hold


class Pty:
    """A pseudoterminal in a devpts instance that no container sees (``nest.new_devpts``,
    Documentation/filesystems/devpts.rst).

    devpts_fd: the detached mount for the nest's /dev/pts, so that ``tty`` and tmux work in the session; master,
    slave: the fds; slave is -1 after ``hand_over``.
    """

    __slots__ = ("devpts_fd", "master", "slave")

    def __init__(self, devpts_fd: int) -> None:
        """Open a pair in DEVPTS_FD's instance. Raises OSError."""
        self.devpts_fd = devpts_fd
        self.master = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=devpts_fd)
        try:
            fcntl.ioctl(self.master, 0x40045431, struct.pack("i", 0))  # TIOCSPTLCK: unlock
            flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
            self.slave = fcntl.ioctl(self.master, syscalls.TIOCGPTPEER, flags)
        except BaseException:
            os.close(self.master)
            raise
        os.set_blocking(self.master, False)

    def like(self, terminal: int, uid: int) -> None:
        """Copy settings and window size of the user's TERMINAL; give the slave to UID (of the caller's user
        namespace).
        """
        termios.tcsetattr(self.slave, termios.TCSANOW, termios.tcgetattr(terminal))
        self.resize(terminal)
        try:
            os.fchown(self.slave, uid, -1)
        except OSError:
            pass  # not permitted; the session still has it open

    def resize(self, terminal: int) -> None:
        """Copy the window size; the kernel sends SIGWINCH to the session's foreground process group."""
        size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, b"\0" * 8)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def hand_over(self) -> None:
        """Close our slave after the fork; otherwise the master would never see a hang-up."""
        os.close(self.slave)
        self.slave = -1

    def close(self) -> None:
        """Close the fds that are still open."""
        os.close(self.master)
        if self.slave >= 0:
            os.close(self.slave)


class RawTerminal:
    """The user's terminal in raw mode, restored on every exit path."""

    __slots__ = ("fd", "saved")

    def __init__(self, fd: int) -> None:
        """fd: the terminal; its settings are not changed yet."""
        self.fd, self.saved = fd, termios.tcgetattr(fd)

    def raw(self) -> None:
        """Set raw mode: every key goes to the session, including Ctrl-C and Ctrl-Z (termios(3), cfmakeraw)."""
        mode = [*self.saved[:6], list(self.saved[6])]
        mode[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        mode[1] &= ~termios.OPOST
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.fd, termios.TCSADRAIN, mode)

    def restore(self) -> None:
        """Restore the settings; ignore a terminal that has gone away."""
        try:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self.saved)
        except termios.error:
            pass


class Pump:
    """Moves bytes between the user's terminal (stdin, stdout) and the pty's master, without blocking on either.

    copy: called with each chunk that the session shows: fd, bytes.
    """

    __slots__ = ("copy", "input_open", "master", "stdin", "stdout", "to_session", "to_user")

    def __init__(self, stdin: int, stdout: int, master: int) -> None:
        self.stdin, self.stdout, self.master = stdin, stdout, master
        self.to_session = self.to_user = b""
        self.input_open = True
        self.copy: Callable[[int, bytes], None] | None = None

    def interests(self) -> dict[int, int]:
        """{fd: poll events}. A full buffer stops reading from the other side."""
        wanted = {
            self.master: (select.POLLIN if len(self.to_user) < CHUNK else 0)
            | (select.POLLOUT if self.to_session else 0)
        }
        if self.input_open and len(self.to_session) < CHUNK:
            wanted[self.stdin] = select.POLLIN
        if self.to_user:
            wanted[self.stdout] = wanted.get(self.stdout, 0) | select.POLLOUT
        return wanted

    def ready(self, fd: int, events: int) -> bool:
        """Move what can be moved; False if the user's terminal is gone."""
        gone = select.POLLERR | select.POLLHUP | select.POLLNVAL
        if fd == self.master:
            if events & (select.POLLIN | gone):
                self._read_session()
            if events & select.POLLOUT and self.to_session:
                self.to_session = self.to_session[_write(self.master, self.to_session) :]
            return True
        if fd == self.stdout and events & select.POLLOUT:
            # A terminal that polls writable has room for a few hundred bytes only.
            self.to_user = self.to_user[_write(self.stdout, self.to_user[:512]) :]
        if fd == self.stdin and events & (select.POLLIN | gone) and self.input_open:
            try:
                data = os.read(self.stdin, CHUNK)
            except OSError:
                data = b""
            self.input_open = bool(data)
            self.to_session += data
            return self.input_open
        return not events & gone

    def _read_session(self) -> bool:
        try:
            data = os.read(self.master, CHUNK)
        except OSError:  # EIO: no slave is open
            return False
        self.to_user += data
        if self.copy:
            self.copy(self.stdout, data)
        return bool(data)

    def drain(self) -> None:
        """After the session's end: write its last output. A process of the container may still write to the terminal."""
        for _ in range(LAST_READS):
            if not self._read_session():
                break
        while self.to_user:
            try:
                self.to_user = self.to_user[os.write(self.stdout, self.to_user) :]
            except OSError:
                return


def _write(fd: int, data: bytes) -> int:
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
    except OSError:
        return len(data)  # the reader is gone
