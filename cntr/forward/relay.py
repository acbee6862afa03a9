"""``cntr forward``: listens, finds the container again after a restart, and runs a command while the ports are up."""

from __future__ import annotations

import _signal as signal
import _socket as socket
import errno
import os
import resource
import select
import time

from cntr.attach.signals import END, FORWARDED, SignalFile
from cntr.audit import times
from cntr.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, CntrError, printable
from cntr.forward import listening
from cntr.forward.datagrams import MOST, Datagrams
from cntr.forward.dial import STARTING_SECONDS, Listener, Quota, why
from cntr.forward.dialer import WantedContainer
from cntr.forward.sides import ContainerSide, HostSide
from cntr.proxy import stream
from cntr.proxy.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cntr.audit.session import Session
    from cntr.forward.sides import Answer
    from cntr.proxy.spec import Forward

    Tell = Callable[[str, Mapping[str, object], str], object]

WANTED_FILES = 1 << 18  # fds, if root can raise the limit: two for each connection
OWN_FILES = 128  # for everything else
SETTLE_SECONDS = 2.0  # for data that a command sent before it ended
SI_KERNEL = 0x80  # asm-generic/siginfo.h: sent by the terminal, to the command too
AGAIN_SECONDS = 1.0


def run(target: str, forwards: list[Forward], argv: list[str], tell: Tell, session: Session | None = None) -> int:
    """Forward until a signal arrives or ARGV, if given, ends; return the exit status. Raises CntrError, OSError.

    session: asked before the container is entered, and told of the end.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    _raise_limit(limits)
    watch = SignalFile()
    relay = Relay(
        WantedContainer(
            target, paths=any((one.listen if one.reverse else one.connect).is_file for one in forwards), session=session
        ),
        forwards,
        argv,
        tell,
        watch,
        limits,
    )
    try:
        relay.there.start()
        return relay.loop.run()
    finally:
        relay.close()
        watch.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _raise_limit(limits: tuple[int, int]) -> None:
    soft, hard = limits
    for wanted in ((max(WANTED_FILES, soft), max(WANTED_FILES, hard)), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, wanted)
        except (OSError, ValueError):
            continue  # no CAP_SYS_RESOURCE, or fs.nr_open is lower
        return


class Relay:
    """All forwards of one container."""

    def __init__(
        self,
        wanted: WantedContainer,
        forwards: list[Forward],
        argv: list[str],
        tell: Tell,
        watch: SignalFile,
        limits: tuple[int, int],
    ) -> None:
        self.forwards, self.argv, self.tell, self.watch, self.limits = forwards, argv, tell, watch, limits
        self.loop, self.buffers, self.here = Loop(), stream.Buffers(), HostSide()
        self.there = ContainerSide(self.loop, wanted, self)
        self.listeners: dict[Forward, Listener | Datagrams] = {}
        self.begun: set[Forward] = set()  # those that have listened once
        self.command = 0
        self.times, self.away = 0, False
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OWN_FILES
        datagrams = sum(one.udp for one in forwards)
        self.senders = max(8, min(MOST, files // 2 // max(1, datagrams)))
        self.quota = Quota(max(8, (files - self.senders * datagrams) // 2))
        self.loop.add(watch.fd, self._signals)
        if wanted.session and wanted.session.limit is not None:
            self._keep_to(wanted.session.limit)

    # --- the container ---

    def up(self, notes: list[str]) -> None:
        """The container was found, for the first time or again."""
        back, self.away = self.away, False
        self.times += 1
        for note in notes if back or self.times == 1 else []:
            self.tell("note", {"text": note}, note)
        if back:
            self.tell("found", {"container": self.there.label, "pid": self.there.pid}, f"{self.there.label} is back")
            self.there.is_young = True
            self.loop.after(STARTING_SECONDS, self._grown(self.times))
        for forward in self.forwards:
            if forward not in self.listeners:
                self._open(forward)
        for listener in list(self.listeners.values()):
            listener.back()

    def _grown(self, times: int) -> Callable[[], None]:
        def grown() -> None:
            if times == self.times:
                self.there.is_young = False

        return grown

    def gone(self) -> None:
        """The container has ended. Its listening sockets are gone; those on this machine stay."""
        if self.there.wanted.engine == "pid":
            raise CntrError(f"{self.there.label} has ended", "name a container by its name to have it found again")
        self.away = True
        self.tell(
            "gone",
            {"container": self.there.label},
            f"{self.there.label} has stopped: its ports are kept until it is back",
        )
        for forward, listener in list(self.listeners.items()):
            if forward.reverse:
                self.listeners.pop(forward).close()
            elif isinstance(listener, Datagrams):
                listener.back()

    # --- listening ---

    def _open(self, forward: Forward) -> None:
        """Start listening; in the container the dialer makes the socket."""
        side: HostSide | ContainerSide = self.there if forward.reverse else self.here
        endpoint = forward.listen

        def made(answer: Answer) -> None:
            try:
                if isinstance(answer, OSError):
                    raise answer
                assert isinstance(answer, socket.socket)
                if endpoint.path[:1] == "@":
                    answer.bind(endpoint.addresses()[0][1])
                    answer.listen(listening.BACKLOG)
                elif not endpoint.path:
                    address = endpoint.addresses()[0][1]
                    assert isinstance(address, tuple)
                    endpoint.port = listening.bind_port(answer, address)
            except OSError as error:
                if isinstance(answer, socket.socket):
                    answer.close()
                self._not_open(forward, error.errno or errno.EIO)
            else:
                self._listens(forward, answer)

        if endpoint.is_file:
            side.bind_file(endpoint.path, made)
        else:
            kind = socket.SOCK_DGRAM if forward.udp else socket.SOCK_STREAM
            side.socket(endpoint.addresses()[0][0], kind, made)

    def _not_open(self, forward: Forward, number: int) -> None:
        """Handle a failure to listen: fatal the first time, later retried."""
        if forward in self.begun:
            if self.there.is_up:
                self.loop.after(AGAIN_SECONDS, lambda: self._open_again(forward))
            return
        if number == errno.ENOTCONN:  # the container has just ended: retry when it is back
            return
        raise CntrError(*_not_listening(forward, self.there, number))

    def _open_again(self, forward: Forward) -> None:
        if forward not in self.listeners and self.there.is_up:
            self._open(forward)

    def _listens(self, forward: Forward, made: socket.socket) -> None:
        far_side: HostSide | ContainerSide = self.here if forward.reverse else self.there
        listener: Listener | Datagrams
        if forward.udp:
            listener = Datagrams(self.loop, made, forward, far_side, self.senders)
        else:
            listener = Listener(self.loop, self.buffers, made, forward, far_side, self.quota)
        listener.tell_refused = self._refused
        self.listeners[forward] = listener
        if forward in self.begun:
            return
        self.begun.add(forward)
        if len(self.begun) == len(self.forwards):
            for one in self.forwards:
                self._announce(one)
            if self.argv:
                self._start_command()

    def _announce(self, forward: Forward) -> None:
        listen, connect = forward.texts(self.there.wanted.target)
        fields = {"listen": listen, "connect": connect, "port": forward.listen.port, "reverse": forward.reverse}
        self.tell("listening", fields, f"{printable(listen)} → {printable(connect)}")

    def _refused(self, listener: Listener | Datagrams, number: int) -> None:
        forward = listener.forward
        listen, connect = forward.texts(self.there.wanted.target)

        def say(table: list[str]) -> None:
            more = "" if forward.connect.path else _who_listens(table, forward)
            fields = {"listen": listen, "connect": connect, "error": why(number)}
            self.tell("refused", fields, f"{printable(listen)} → {printable(connect)}: {why(number)}{more}")

        if forward.reverse or number != errno.ECONNREFUSED:
            say([])
        else:
            self.there.listeners(say)

    # --- the command and the signals ---

    def _start_command(self) -> None:
        variables = dict(os.environ)
        for number, forward in enumerate(self.forwards, 1):
            variables[f"CNTR_FORWARD_{number}"] = forward.listen.text()
        failed_read, failed_write = os.pipe2(os.O_CLOEXEC)
        self.command = os.fork()
        if self.command == 0:
            try:
                self.here.rights.become(variables)
                resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
                signal.pthread_sigmask(signal.SIG_SETMASK, self.watch.before)
                os.execvpe(self.argv[0], self.argv, variables)
            except OSError as error:
                os.write(failed_write, b"%d" % (error.errno or errno.EIO))
            finally:
                os._exit(EXIT_NOT_EXECUTABLE)
        os.close(failed_write)
        said = os.read(failed_read, 16)
        os.close(failed_read)
        if said:
            os.waitpid(self.command, 0)
            self.command = 0
            number, name = int(said), printable(self.argv[0])
            status = EXIT_NOT_FOUND if number == errno.ENOENT else EXIT_NOT_EXECUTABLE
            raise CntrError(f"{name}: {why(number)}", "it is a command of this machine", status)

    def _signals(self, events: int) -> None:
        for number, code in self.watch.read():
            if number == signal.SIGCHLD:
                self._reap()
            elif number == END:
                self._end("`cntr sessions end`")
            elif number not in FORWARDED or number == signal.SIGWINCH:
                continue
            elif not self.command:
                if number not in (signal.SIGUSR1, signal.SIGUSR2):
                    self.loop.status = 128 + number
            elif code != SI_KERNEL:
                os.kill(self.command, number)

    def _keep_to(self, limit: float) -> None:
        """End after LIMIT seconds, with a warning a minute before."""
        if limit > times.WARNING_SECONDS:
            text = f"the session ends in a minute: its time is {times.shown(limit)}"
            self.loop.after(
                limit - times.WARNING_SECONDS, lambda: self.tell("ending", {}, f"{self.there.label}: {text}")
            )
        self.loop.after(limit, lambda: self._end(f"its time is over: {times.shown(limit)}"))

    def _end(self, why: str) -> None:
        """End for a reason other than the command or a signal."""
        self.tell("ended", {"why": why}, f"{self.there.label}: the session was ended: {why}")
        if self.there.wanted.session:
            self.there.wanted.session.why = why
        self.loop.status = 128 + signal.SIGHUP

    def _reap(self) -> None:
        if not self.command:
            return
        pid, status = os.waitpid(self.command, os.WNOHANG)
        if pid:
            self.command = 0
            ended = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            self._settle()
            self.loop.status = ended

    def _settle(self) -> None:
        """Wait for data that the command sent before it ended."""
        deadline = time.monotonic() + SETTLE_SECONDS
        self.loop.after(SETTLE_SECONDS, lambda: None)
        self.loop.remove(self.watch.fd)
        while time.monotonic() < deadline and (
            self.loop.is_ready() or any(one.is_busy() for one in self.listeners.values())
        ):
            self.loop.turn()

    def close(self) -> None:
        """Close everything; connections are cut off."""
        for listener in self.listeners.values():
            listener.close()
        self.there.close()
        self.here.close()
        self.loop.close()
        if self.command:
            pidfd = os.pidfd_open(self.command)
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(pidfd, number)
                if select.select([pidfd], [], [], SETTLE_SECONDS)[0]:
                    break
            os.close(pidfd)
            os.waitpid(self.command, 0)


def _not_listening(forward: Forward, there: ContainerSide, number: int) -> tuple[str, str]:
    """The error message and the hint for a failure to listen."""
    listen = printable(forward.texts(there.label)[0])
    where = there.label if forward.reverse else "this machine"
    if number == errno.EADDRINUSE:
        who = "" if forward.reverse or forward.listen.path else listening.holder(forward.listen.port, udp=forward.udp)
        by = f" by {who}" if who else ""
        hint = "another port: OTHER:PORT; 0:PORT takes a free one"
        if forward.listen.path:
            return f"{listen}: there is something of that name already", "remove it, or take another name"
        if there.host_network and not forward.reverse:
            hint = f"{there.label} uses this machine's network: its ports are this machine's already"
        return f"{listen}: the port is in use on {where}{by}", hint
    if number == errno.EACCES and not forward.listen.path:
        return (
            f"{listen}: ports below 1024 are for root (net.ipv4.ip_unprivileged_port_start)",
            "take a higher one, HIGHER:PORT, or sudo",
        )
    if number == errno.EADDRNOTAVAIL:
        return f"{listen}: {where} has no such address", "127.0.0.1 is the default; 0.0.0.0 and [::] are all addresses"
    if number == errno.ENOENT and forward.listen.path:
        return f"{listen}: {why(number)}", "the directory must be there: mkdir"
    return f"{listen}: {why(number)}", "`cntr --debug forward …` shows where"


def _who_listens(table: list[str], forward: Forward) -> str:
    """What the container does listen on, for the error message."""
    rows = [line.split() for line in table if line.startswith("udp" if forward.udp else "tcp")]
    same = [row[1] for row in rows if row[2] == str(forward.connect.port)]
    if same:
        return f" (that port is listened at on {same[0]})"
    ports = sorted({int(row[2]) for row in rows})
    if not ports:
        return " (nothing listens there)"
    return f" (listened at there: {', '.join(map(str, ports[:8]))}{', …' if len(ports) > 8 else ''})"
