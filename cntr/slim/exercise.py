"""The exercise: what is done with the container while its file use is recorded, and the check that it works.

Nothing is installed in the container. A command of the host's runs in the container's network namespace, where the
container is 127.0.0.1; an HTTP probe connects from there too; ``--exec`` runs the container's own programs in it.
"""

from __future__ import annotations

import errno
import http.client
import os
import re
import shlex
import signal
import socket
import subprocess
import threading
import time

from cntr.errors import CntrError, UsageError, printable
from cntr.linux import syscalls
from cntr.slim import commands
from cntr.slim.runs import Running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

RETRY = 0.05  # seconds
QUIET = 2.0  # seconds without a new file that end a recording without another end
HEALTHY = 5.0  # seconds for a health check, including all attempts
END = 10.0  # seconds from the end of a container's process until its engine reports it, at most
AGAIN = 5.0  # longest time of --for in a verification, seconds
MOST_PAGES = 40  # links that an HTTP probe follows
ANSWER = 1 << 20  # bytes of an answer that are examined
_LINK = re.compile(rb"""(?:href|src)\s*=\s*["']([^"'#\s]{1,500})""", re.IGNORECASE)


class Http:
    """``--http [HOST:]PORT[/PATH]``."""

    def __init__(self, text: str) -> None:
        """Parse it. Raises UsageError."""
        found = re.fullmatch(r"(?:([A-Za-z0-9.\-]+|\[[0-9A-Fa-f:]+\]):)?(\d{1,5})(/\S*)?", text)
        if not found or not 0 < int(found[2]) < 65536:
            raise UsageError(
                f"--http {printable(text)}: not a port", "--http 8080, --http 8080/health, --http HOST:PORT/PATH"
            )
        self.host = (found[1] or "").strip("[]")
        self.port, self.path = int(found[2]), found[3] or "/"

    def __str__(self) -> str:
        return f"GET http://{self.host or '127.0.0.1'}:{self.port}{self.path}"


class Exercise:
    """Everything done with one container, the same in each of its runs."""

    def __init__(self) -> None:
        self.http: list[Http] = []
        self.inside: list[list[str]] = []  # --exec
        self.command: list[str] = []
        self.seconds: float | None = None  # --for
        self.crawl = True
        self.health: list[str] = []  # the image's own health check, run once; its result does not matter
        self.ports: list[int] = []  # TCP ports that the image exposes: awaited if there is nothing else to do
        self.runs = 0  # how often it was done
        self.answers: dict[str, str] = {}  # answers to the first run; later runs must get the same

    def is_given(self) -> bool:
        """Whether the user has specified any step."""
        return bool(self.http or self.inside or self.command or self.seconds is not None)

    def described(self) -> list[str]:
        """One line for each step."""
        lines = [f"{probe}{self._refusal(probe)}" for probe in self.http]
        lines += [f"in the container: {shlex.join(words)}" for words in self.inside]
        lines += [shlex.join(self.command)] if self.command else []
        lines += [f"for {self.seconds:g} s"] if self.seconds is not None else []
        return lines or ["none: started, and watched until nothing new was opened"]

    def _refusal(self, probe: Http) -> str:
        """Words for an answer that is no page: a wrong path, or a login that is required."""
        answer = self.answers.get(str(probe), "").partition(",")[0]
        return f" ({answer})" if answer >= "status 400" else ""

    def run(self, running: Running, timeout: float, idle: Callable[[], float], say: Callable[[str], None]) -> float:
        """Run all steps; return the seconds to the first answer. Raises CntrError if a step fails.

        idle: returns the seconds since a new file was seen.
        """
        begin = time.monotonic()
        deadline = begin + timeout
        first = 0.0
        for probe in self.http:
            self._in_network(running, lambda probe=probe: self._ask(running, probe, deadline), str(probe))  # type: ignore[misc]
            first = first or time.monotonic() - begin
            if not self.runs and (answer := self._refusal(probe)):
                say(f"{probe}{answer}: only what it takes to say so is recorded")
        for words in self.inside:
            self._exec(running, words, deadline)
            first = first or time.monotonic() - begin
        if self.command:
            self._in_network(running, lambda: self._command(running, deadline), shlex.join(self.command))
            first = first or time.monotonic() - begin
        if self.health:
            self._health(running)
        self.runs += 1
        if self.seconds is not None:
            # Only the recording takes the whole time; a verification runs the other steps, and checks that the program
            # keeps running.
            self._wait(running, begin + (self.seconds if self.runs == 1 else min(self.seconds, AGAIN)), say)
        elif not self.is_given():
            first = self._until_quiet(running, deadline, idle)
        return first

    # the steps

    def _in_network(self, running: Running, step: Callable[[], None], what: str = "") -> None:
        """Run STEP in a thread that is in the container's network namespace. what: needs a running container.

        Raises ProcessLookupError if it has ended; with WHAT, CntrError.
        """
        failed: list[BaseException] = []

        def run() -> None:
            try:
                _enter_network(running.pid)
                step()
            except BaseException as error:  # noqa: BLE001  raised again below, in the caller's thread
                failed.append(error)

        thread = threading.Thread(target=run, name="exercise", daemon=True)
        thread.start()
        while thread.is_alive():  # so that Ctrl-C is handled
            thread.join(0.1)
        # the engine reports the end a moment after the process is gone
        if failed and isinstance(failed[0], ProcessLookupError):
            end = time.monotonic() + END
            while running.exited() is None and time.monotonic() < end:
                time.sleep(RETRY)
            if what:
                running.demand_running(what)
        if failed:
            raise failed[0]

    def _ask(self, running: Running, probe: Http, deadline: float) -> None:
        why = "nobody listens"
        while True:
            try:
                status, kind, body = _get(probe, probe.path, deadline)
                break
            except (OSError, http.client.HTTPException) as error:
                why = str(error) or type(error).__name__
            running.demand_running(str(probe))
            if time.monotonic() > deadline:
                raise CntrError(
                    f"{probe}: no answer in time ({printable(why)}){running.said()}", "a longer --timeout may help"
                )
            time.sleep(RETRY)
        if status >= 500:
            raise CntrError(
                f"{probe}: the answer was {status}{running.said()}", "request an existing page, or see its log"
            )
        self._same(str(probe), f"status {status}, {kind}")
        if self.crawl and kind.startswith("text/html"):
            self._follow(probe, body, deadline)

    def _same(self, what: str, answer: str) -> None:
        before = self.answers.setdefault(what, answer)
        if before != answer:
            raise CntrError(f"{what}: {printable(answer)}, where the whole image answered {printable(before)}", "")

    def _follow(self, probe: Http, body: bytes, deadline: float) -> None:
        """Request what the page references on its own host: images, styles, scripts, pages."""
        asked, waiting = {probe.path}, _links(body, probe.path)
        while waiting and len(asked) < MOST_PAGES and time.monotonic() < deadline:
            path = waiting.pop(0)
            if path in asked:
                continue
            asked.add(path)
            try:
                _get(probe, path, min(deadline, time.monotonic() + 5))
            except (OSError, http.client.HTTPException):
                continue

    def _exec(self, running: Running, words: list[str], deadline: float) -> None:
        """Run a program in the container. A server needs a moment to start, so the program is retried until it
        succeeds.
        """
        while True:
            try:
                running.exec(words, max(1.0, deadline - time.monotonic()))
                return
            except commands.Failed as error:
                running.demand_running(shlex.join(words))
                if time.monotonic() > deadline:
                    said = error.said.splitlines()[-1] if error.said else error.message
                    raise CntrError(
                        f"in the container, {printable(shlex.join(words))}: {printable(said[:300])}",
                        "see what the container printed",
                    ) from None
            time.sleep(RETRY * 4)

    def _command(self, running: Running, deadline: float) -> None:
        """Run the user's command, retried until it succeeds: it cannot know when the container is ready."""
        environment = {**os.environ, "CNTR_SLIM_PID": str(running.pid), "CNTR_SLIM_NAME": running.name}
        while True:
            try:
                process = subprocess.Popen(
                    self.command, stdin=subprocess.DEVNULL, stdout=2, env=environment, start_new_session=True
                )
            except OSError as error:
                raise CntrError(
                    f"{printable(self.command[0])}: {error.strerror}", "it is a program of this machine"
                ) from None
            try:
                status = process.wait(max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                status = -1
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if status == 0:
                return
            running.demand_running(shlex.join(self.command))
            if time.monotonic() > deadline:
                how = "no end in time" if status == -1 else f"exit status {status}"
                raise CntrError(
                    f"{printable(shlex.join(self.command))}: {how}{running.said()}", "the exercise must succeed"
                )
            time.sleep(RETRY * 4)

    def _health(self, running: Running) -> None:
        """Run the image's own health check, to record what it uses. If it passed once, it must pass again."""
        end = time.monotonic() + HEALTHY
        while True:
            try:
                running.exec(self.health, HEALTHY)
                self.answers["health"] = "passes"
                return
            except commands.Failed as error:
                if time.monotonic() > end or running.exited() is not None:
                    if "health" in self.answers:
                        raise CntrError(f"the image's health check fails: {error.message}", "") from None
                    return
            time.sleep(RETRY * 4)

    def _wait(self, running: Running, end: float, say: Callable[[str], None]) -> None:
        shown = time.monotonic()
        while time.monotonic() < end:
            if running.exited() is not None:
                self._ended(running)
                return
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                say(f"recording, {end - shown:.0f} s to go")
            time.sleep(RETRY)

    def _until_quiet(self, running: Running, deadline: float, idle: Callable[[], float]) -> float:
        begin, first = time.monotonic(), 0.0
        for port in self.ports:
            probe = Http(str(port))
            while time.monotonic() < min(deadline, begin + 10) and running.exited() is None:
                try:
                    self._in_network(running, lambda probe=probe: _touch(probe))  # type: ignore[misc]
                    first = first or time.monotonic() - begin
                    break
                except OSError:
                    time.sleep(RETRY)
        quiet = time.monotonic()
        while time.monotonic() < deadline:
            if running.exited() is not None:
                self._ended(running)
                break
            if min(idle(), time.monotonic() - quiet) > QUIET:
                break
            time.sleep(RETRY)
        return first

    def _ended(self, running: Running) -> None:
        """Check that a container that has ended succeeded: its program runs for a moment only."""
        status = running.exited()
        if status:
            raise CntrError(
                f"the container ended with status {status}{running.said()}",
                "what it needs is given with -e, -v, --network, --cmd, as to its engine",
            )


def _enter_network(pid: int) -> None:
    """Join the network namespace of PID with this thread only. Raises ProcessLookupError if it has ended."""
    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise ProcessLookupError(errno.ESRCH, "the container has ended") from None
    try:
        if os.fstat(fd).st_ino != os.stat("/proc/thread-self/ns/net").st_ino:
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
    finally:
        os.close(fd)


def _get(probe: Http, path: str, deadline: float) -> tuple[int, str, bytes]:
    """(status, content type, body) of a GET, all of it by the deadline. Raises OSError, HTTPException."""
    seconds = max(0.5, min(30.0, deadline - time.monotonic()))
    error: OSError | None = None
    for host in [probe.host] if probe.host else ["127.0.0.1", "::1"]:
        connection = http.client.HTTPConnection(host, probe.port, timeout=seconds)
        try:
            connection.connect()
        except OSError as refused:
            error = error or refused
            connection.close()
            continue
        assert connection.sock
        # a timeout counts anew with each byte
        hang_up = threading.Timer(seconds, _cut, (connection.sock,))
        hang_up.start()
        try:
            connection.request("GET", path, headers={"Host": f"localhost:{probe.port}", "User-Agent": "cntr-slim"})
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type") or "", answer.read(ANSWER)
        finally:
            hang_up.cancel()
            connection.close()
    raise error or OSError("no address")


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended by itself


def _touch(probe: Http) -> None:
    """Connect, and send a request as a browser would; servers of other protocols may not answer. Raises OSError if
    nobody listens.
    """
    try:
        _get(probe, "/", time.monotonic() + 2)
    except http.client.HTTPException:
        return
    except (TimeoutError, socket.timeout):  # a class of its own before Python 3.10
        return


def _links(body: bytes, base: str) -> list[str]:
    """The paths on the same host that a page references."""
    from urllib.parse import urljoin, urlsplit

    found = []
    for raw in _LINK.findall(body)[:200]:
        try:
            link = urlsplit(urljoin(f"http://localhost{base}", raw.decode("ascii")))
        except ValueError:
            continue
        if link.scheme == "http" and link.netloc == "localhost" and link.path:
            path = link.path + (f"?{link.query}" if link.query else "")
            if all(" " < char < "\x7f" for char in path):
                found.append(path)
    return found
