"""The host's side of a session: pumps the terminal, forwards signals, watches the container, and reports how the
session ended.
"""

from __future__ import annotations

import _signal as signal  # the module behind signal, without its import of enum (5 ms)
import errno
import os
import select
import time

from cntr.attach import remains, steps
from cntr.attach.channel import DONE, EXITED, FAILED, KILLED, LEFT, NEST, NOTE, Channel, Reader
from cntr.attach.signals import END, STOPPING, SignalFile
from cntr.attach.target import Target
from cntr.errors import EXIT_FAILED, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, CntrError, StepFailed, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.attach.exec_server import ExecServer
    from cntr.attach.fileserver import FileServer
    from cntr.attach.pty import Pty, Pump, RawTerminal
    from cntr.attach.stdio import Stdio
    from cntr.audit.session import Session
    from cntr.audit.times import Term

ENDING = (signal.SIGTERM, signal.SIGHUP)
HARMLESS = (signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP, signal.SIGUSR1, signal.SIGUSR2)
GRACE_SECONDS = 2.0  # between asking a session to end (SIGHUP) and killing it
MOST_NOTES = 100
LAST_SECONDS = 12.0  # for the monitor to end the session's processes: longer than its own deadlines (monitor.py)


class Outcome:
    """How the session ended: the parts of the wait status, and the failure if it did not start."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.failed: list[str] | None = None
        self.notes: list[str] = []
        self.left: list[str] = []  # files left in the session's own directories
        self.nest: tuple[int, int] | None = None
        self.ended = ""  # the reason, if neither the command nor the container ended
        self.reaper_gone = self.done = self.target_gone = self.server_gone = False

    def take(self, frame: list[str], *, of_monitor: bool) -> None:
        """Process one report. Only the first failure counts; other processes than the monitor report nothing else."""
        kind, *words = frame
        try:
            if kind == FAILED:
                name, number, path = words
                self.failed = self.failed or [name, str(int(number)), path]
            elif kind == NOTE:
                self.notes = (self.notes + words)[:MOST_NOTES]
            elif not of_monitor:
                return
            elif kind == LEFT:
                self.left += map(printable, words)
            elif kind == DONE:
                self.done = True
            elif kind == NEST:
                self.nest = int(words[0]), int(words[1])
            elif kind == EXITED:
                self.status = int(words[0])
            elif kind == KILLED:
                self.status = 128 + int(words[0])
                self.reaper_gone = len(words) > 1
        except ValueError:
            return  # written by a tracer of the session


class Supervisor:
    """Runs one session from the fork to its exit status."""

    def __init__(
        self,
        target: Target,
        monitor: int,
        channel: Channel,
        watch: SignalFile,
        pty: Pty | None,
        stdio: Stdio,
        server: FileServer | None,
        exec_server: ExecServer | None,
        proc_fd: int,
        say: Callable[[str], None],
    ) -> None:
        """monitor: the process just forked; pty: None without a terminal; stdio: the other streams; server: the
        fuse transport's.

        exec_server: answers `cntr exec` from inside the session; proc_fd: the host's /proc; say: prints one line.
        """
        self.server, self.server_ended, self.exec_server = server, False, exec_server
        self.say, self.proc_fd = say, proc_fd
        self.target, self.monitor, self.channel, self.watch, self.pty = target, monitor, channel, watch, pty
        self.monitor_fd = os.pidfd_open(monitor)
        self.readers = {fd: Reader(fd) for fd in (channel.reports_read, channel.words_read)}
        self.outcome = Outcome()
        self.terminal: RawTerminal | None = None
        self.pump: Pump | None = None
        if pty:
            from cntr.attach.pty import Pump, RawTerminal

            self.terminal, self.pump = RawTerminal(0), Pump(0, 1, pty.master)
        self.stdio = stdio
        stdio.watch(proc_fd, lambda: remains.descendants(proc_fd, monitor))
        self.deadline = 0.0  # when the session is killed; monotonic seconds
        self.orders_open = True
        self.session: Session | None = None
        self.term: Term | None = None

    def audited(self, session: Session) -> None:
        """Enforce the session's time limit, write its output to its recording, and list it."""
        self.session = session
        if session.limit is not None:
            from cntr.audit import times

            self.term = times.Term(session.limit)
            times.print_no_more_after(session.limit)
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # while we are stopped, the command would run on
        if session.recorder:
            self.stdio.copy(session.recorder.output)
            if self.pump:
                self.pump.copy = session.recorder.output
        session.announce()

    def run(self) -> int:
        """Wait for the end; return the exit status of the CLI contract. Raises CntrError."""
        if self.terminal:
            self.terminal.raw()
        try:
            while not self._turn():
                pass
            if self.pump:
                self.pump.drain()
            self.stdio.drain(self.watch)
        finally:
            self._end_session()
            if self.exec_server:
                self.exec_server.close()
            if self.terminal:
                self.terminal.restore()
            if self.session and self.session.limit is not None:
                for number in STOPPING:
                    signal.signal(number, signal.SIG_IGN)  # a pending one
            os.close(self.monitor_fd)
        return self._verdict()

    def _turn(self) -> bool:
        """Wait for one round of events; False while the monitor lives, True once it has ended."""
        poll = select.poll()
        # Reports before signals: one that comes after the session has begun is the command's.
        fds = dict.fromkeys((self.monitor_fd, *self.readers, self.watch.fd), select.POLLIN)
        if not self.outcome.target_gone:
            fds[self.target.pidfd] = select.POLLIN
        if self.server and not self.server_ended:
            fds[self.server.pidfd] = select.POLLIN
        if self.pump:
            for fd, events in self.pump.interests().items():
                fds[fd] = events
        fds.update(self.stdio.interests())
        if self.exec_server:
            fds.update(dict.fromkeys(self.exec_server.interests(), select.POLLIN))
        for fd, events in fds.items():
            poll.register(fd, events)
        ready = poll.poll(self._patience())
        if self.deadline and time.monotonic() >= self.deadline:
            if not self.orders_open:
                return True
            self._close_orders()
            self.deadline += LAST_SECONDS if self.outcome.nest else 0.0
        if self.term and self.term.is_over(self._warn):
            self._end(f"its time is over: {self.term}")
        if self.server and not ready and not self.server_ended and self.server.hangs(self.monitor):
            self._lose_server("does not answer")
        ended = False
        for fd, events in ready:
            if fd == self.monitor_fd:
                ended = True
            elif fd == self.watch.fd:
                self._signals()
            elif fd in self.readers:
                self._hear()
                # The monitor closes the pipe after it has ended the session. Then it waits only for the kernel to
                # dismantle the nested mount namespace: tens of milliseconds of RCU grace periods, for which the
                # caller need not wait.
                if not events & select.POLLIN:
                    del self.readers[fd]
                ended |= self._is_done()
            elif fd == self.target.pidfd:
                # The kernel ends a pid namespace with its init. A session attached to another process than init is
                # ended here.
                self.outcome.target_gone = True
                self._close_orders()
            elif self.server and fd == self.server.pidfd:
                self._server_ended()
            elif (
                self.exec_server and self.exec_server.ready(fd, self.outcome.nest or remains.NOTHING)
            ) or self.stdio.ready(fd, events):
                continue
            elif self.pump and not self.pump.ready(fd, events):
                self._hang_up()
        return ended

    def _is_done(self) -> bool:
        """Whether the monitor has ended the session and is exiting. With a file server, its unmounting is awaited."""
        return self.outcome.done and self.channel.reports_read not in self.readers and not self.server

    def _hear(self) -> None:
        for fd, reader in self.readers.items():
            for frame in reader.frames():
                self.outcome.take(frame, of_monitor=fd == self.channel.reports_read)

    def _patience(self) -> float | None:
        """Milliseconds to poll: until the deadline, or the next check of the file server."""
        limits = [1000.0] if self.server else []
        if (pause := self.stdio.patience()) is not None:
            limits.append(pause * 1000)
        if self.deadline:
            limits.append(max(0.0, self.deadline - time.monotonic()) * 1000)
        if self.term:
            limits.append(self.term.patience() * 1000)
        return min(limits, default=None)

    def _server_ended(self) -> None:
        """Normal once the session's mounts are gone; otherwise the server has died."""
        self.server_ended = True
        if self.server and not self.server.finished():
            self._lose_server("died")

    def _lose_server(self, how: str) -> None:
        """Without its file server the session has no tools, and every access fails: end it without waiting."""
        assert self.server
        if self.outcome.server_gone:
            return  # already reported; a server that we ended dies as well
        self.outcome.server_gone = True
        self.say(f"{self.target.label}: the file server {how}: the session ended with it")
        self.server.end_connection()
        self._close_orders()

    def _signals(self) -> None:
        for number, _ in self.watch.read():
            if number == signal.SIGCHLD:
                self._keep_going()
            elif number == END:
                self._end("`cntr sessions end`")
            elif number == signal.SIGWINCH:
                if self.pty:
                    self.pty.resize(0)
                if self.session and self.session.recorder:
                    self.session.recorder.resize()
            elif number == signal.SIGCONT:
                # back in the foreground: another program may have changed the terminal
                if self.terminal and self.pty:
                    self.terminal.raw()
                    self.pty.resize(0)
                else:
                    self._order(number)
            elif (self.pty and number in ENDING) or (self.outcome.nest is None and number not in HARMLESS):
                self._hang_up()  # before the session has begun there is no command to send it to
            else:  # the session has another terminal, so it does not see signals that ours generates: pass them on
                self._order(number)
                if number in ENDING:
                    self._order(signal.SIGCONT)  # a stopped command would not act on it

    def _keep_going(self) -> None:
        """Continue a stopped monitor: the container's init cannot end while the reaper is not collected
        (pid_namespaces(7)).
        """
        try:
            if os.waitid(os.P_PID, self.monitor, os.WSTOPPED | os.WNOHANG):
                signal.pidfd_send_signal(self.monitor_fd, signal.SIGCONT)
        except (ChildProcessError, ProcessLookupError):
            pass  # it has ended

    def _order(self, number: int) -> None:
        if self.orders_open:
            self.channel.order(number)

    def _hang_up(self) -> None:
        """The user's terminal is gone, or cntr was asked to end: send the session SIGHUP, kill it after
        GRACE_SECONDS.
        """
        if not self.deadline:
            self._order(signal.SIGHUP)
            self._order(signal.SIGCONT)
            self.deadline = time.monotonic() + GRACE_SECONDS
        if self.pump:
            self.pump.input_open = False

    def _end(self, why: str) -> None:
        """End the session as a hang-up does, with or without a terminal. why: for the user."""
        self.term = None
        self.outcome.ended = self.outcome.ended or why
        self._hang_up()

    def _warn(self, line: str) -> None:
        # A terminal in raw mode needs the carriage return.
        self.say(f"{self.target.label}: {line}" + ("\r" if self.terminal else ""))

    def _close_orders(self) -> None:
        """Close the orders pipe, which makes the monitor end everything."""
        if self.orders_open:
            os.close(self.channel.orders_write)
            self.orders_open = False

    def _end_session(self) -> None:
        """Reap the monitor. Kill it, and with it the command, if it does not end within the grace period."""
        self._close_orders()
        if self._is_done():
            self._hear()
            os.waitpid(self.monitor, os.WNOHANG)
            self._look_after_target(0)
            return
        poll = select.poll()
        poll.register(self.monitor_fd, select.POLLIN)
        if not poll.poll(GRACE_SECONDS * 1000):
            signal.pidfd_send_signal(self.monitor_fd, signal.SIGKILL)
            if not poll.poll(GRACE_SECONDS * 1000):
                raise CntrError(
                    f"{self.target.label}: a file system of its does not answer, and process {self.monitor} waits for it",
                    "that process can't be killed; it ends with the container at the latest",
                )
        _, status = os.waitpid(self.monitor, 0)
        self._hear()
        # the monitor could not end what the session left, so the supervisor does
        if status != 0 and self.outcome.nest:
            deadline = time.monotonic() + GRACE_SECONDS
            while remains.end(self.proc_fd, self.outcome.nest) and time.monotonic() < deadline:
                time.sleep(0.01)
        if os.WIFSIGNALED(status) and self.outcome.status is None:
            self.outcome.status = 128 + os.WTERMSIG(status)
        self._look_after_target(status)

    def _look_after_target(self, status: int) -> None:
        """Check whether the container has ended, if the reaper or the monitor was killed. status: the monitor's.

        When an init dies, its namespace is killed first, and the death shows only after all of it is reaped.
        """
        if self.outcome.reaper_gone or os.WIFSIGNALED(status):
            self.outcome.target_gone = not self.target.alive(GRACE_SECONDS / 4)

    def _verdict(self) -> int:
        outcome = self.outcome
        if outcome.failed:
            name, number, path = outcome.failed
            raise failure(self.target.label, name, int(number), path)
        if outcome.left:
            self.say(f"lost with the session: {', '.join(outcome.left)}; `--share DIR:rw` keeps files in DIR")
        self.stdio.check()
        if outcome.server_gone:
            return EXIT_FAILED
        if outcome.ended:
            self.say(f"{self.target.label}: the session was ended: {outcome.ended}")
            if self.session:
                self.session.why = outcome.ended
            return 128 + int(signal.SIGHUP) if outcome.status is None else outcome.status
        if outcome.status is None or outcome.target_gone:
            gone = outcome.target_gone or not self.target.alive()
            why = (
                "stopped: the session ended with it"
                if gone
                else "runs; the session was ended: its command could not be reached"
            )
            self.say(f"{self.target.label} {why}")
            return 128 + int(signal.SIGKILL)
        if outcome.reaper_gone:
            self.say(f"{self.target.label}: a process of the container, or of this machine, has killed the session")
        return outcome.status


def failure(label: str, name: str, number: int, path: str) -> CntrError:
    """Build the error of a failed step from its name and errno."""
    step = steps.BY_NAME.get(name, steps.START)
    if number == 0:
        return CntrError(f"{label}: {step.name}: {printable(path)}", "this is a bug in cntr: please report it")
    error = StepFailed(f"{label}: {step.name}", number, printable(path), step.advice(number))
    if step in (steps.RUN, steps.RUN_OWN):
        error.exit_code = EXIT_NOT_FOUND if number == errno.ENOENT else EXIT_NOT_EXECUTABLE
    return error
