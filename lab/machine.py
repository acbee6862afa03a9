"""The interface of every machine for scenarios: succeed, fail, wait_until_succeeds, copy, and testinfra.

Scenarios use `Machine`; `transports.py` says how its commands reach the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import select
import shlex
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .drivers.base import Driver, Endpoint
from .errors import CommandFailed, LostMachine
from .ssh import SshCarrier
from .table import MachineSpec
from .transports import Background, Carrier, Result, Terminal

QUIET_LINES = 12
"""Lines of output shown for a failure; the rest is in the artefacts."""


@dataclasses.dataclass
class Step:
    """One command that ran, for the report's repro command."""

    command: str
    user: str
    returncode: int
    seconds: float


class Machine:
    """A running machine.

    spec: its row of the table; driver: who made it; carrier: how commands reach it; slowness: factor for time limits on
    an otherwise idle host (an emulated machine is several times slower).
    """

    def __init__(self, spec: MachineSpec, driver: Driver, carrier: Carrier, slowness: float = 1.0) -> None:
        self.spec = spec
        self.driver = driver
        self._slowness = slowness
        self.history: list[Step] = []
        self._carrier = carrier
        self._lost: LostMachine | None = None

    @property
    def slowness(self) -> float:
        """The current factor for time limits."""
        return self._slowness * host_load()

    # -- commands -------------------------------------------------------------------------------------------------

    def run(self, command: str, *, user: str = "root", timeout: float = 60, stdin: bytes = b"") -> Result:
        """Run a shell command; its status may be anything.

        command: for `sh -c`; user: `root` or `vagrant`; timeout: seconds on a machine of natural speed; stdin: the
        command's input.

        Raises CommandFailed if it did not end in time although the machine answers other commands, LostMachine if the
        machine does not answer.
        """
        if self._lost:
            raise self._lost
        started = time.monotonic()
        try:
            result = self._carrier.run(command, user, timeout * self.slowness, stdin)
        except TimeoutError:
            self.history.append(Step(command, user, -1, time.monotonic() - started))
            if not self.answers():
                raise self._lose(f"no answer to {command!r}, nor to `true`") from None
            raise CommandFailed(
                f"expected: `{command}` ends within {timeout * self.slowness:.0f} s on {self.spec.name}\nseen:     it was still running"
            ) from None
        except ConnectionError as error:
            raise self._lose(f"the connection broke during {command!r} ({error})") from error
        self.history.append(Step(command, user, result.returncode, time.monotonic() - started))
        return result

    def succeed(self, *commands: str, user: str = "root", timeout: float = 60, stdin: bytes = b"") -> str:
        """Run commands, each of which must end with status 0. Return the last one's standard output, without the final
        newline.
        """
        output = ""
        for command in commands:
            result = self.run(command, user=user, timeout=timeout, stdin=stdin)
            if result.returncode != 0:
                raise CommandFailed(_difference(command, self.spec.name, "status 0", result))
            output = result.stdout
        return output.rstrip("\n")

    def fail(self, command: str, *, status: int | None = None, user: str = "root", timeout: float = 60) -> str:
        """Run a command that must fail (or end with `status`). Return both its outputs, joined."""
        result = self.run(command, user=user, timeout=timeout)
        if result.returncode == 0 or (status is not None and result.returncode != status):
            wanted = "a status other than 0" if status is None else f"status {status}"
            raise CommandFailed(_difference(command, self.spec.name, wanted, result))
        return result.stdout + result.stderr

    def wait_until_succeeds(self, command: str, *, user: str = "root", timeout: float = 30) -> str:
        """Repeat a command until its status is 0; return its standard output. Raises CommandFailed after `timeout`
        seconds.
        """
        deadline = time.monotonic() + timeout * self.slowness
        pause = 0.1
        while True:
            result = self.run(command, user=user, timeout=timeout)
            if result.returncode == 0:
                return result.stdout.rstrip("\n")
            if time.monotonic() > deadline:
                wanted = f"status 0 within {timeout * self.slowness:.0f} s"
                raise CommandFailed(_difference(command, self.spec.name, wanted, result))
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def copy(self, source: Path, target: str) -> None:
        """Copy a file, or the contents of a directory, to the machine, as root."""
        self._carrier.put(source, target)

    def fetch(self, command: str, target: Path, *, timeout: float = 30) -> None:
        """Write a command's output to a local file, for artefacts. Never raises because of the command's status."""
        result = self.run(command, timeout=timeout)
        target.write_text(result.stdout + (f"\n[stderr]\n{result.stderr}" if result.stderr.strip() else ""))

    @contextlib.contextmanager
    def background(self, command: str, *, user: str = "root") -> Iterator[Background]:
        """A command that runs in parallel; its whole process group is ended with the block."""
        if self._lost:
            raise self._lost
        note = f"/tmp/lab-job-{secrets.token_hex(4)}"
        # Closing an SSH channel sends no signal, so the group is recorded and killed explicitly.
        inner = f"echo $$ >{note}; {command}"
        job = self._carrier.start(f"exec setsid --wait sh -c {shlex.quote(inner)}", user)
        try:
            yield job
        finally:
            # Zombies do not count: their parent may never reap them (a slim container's init).
            end = f"g=$(cat {note}) && rm -f {note} && pkill -TERM -g $g && for i in 1 2 3 4 5 6 7 8 9 10; do "
            end += "pgrep -r D,R,S,T,t,I -g $g >/dev/null || exit 0; sleep 0.2; done && pkill -KILL -g $g && exit 9"
            try:
                self.run(f"{{ {end}; }} 2>/dev/null", user=user, timeout=20)
            finally:
                job.close()

    @contextlib.contextmanager
    def terminal(self, command: str, *, user: str = "root", columns: int = 80, rows: int = 24) -> Iterator[Terminal]:
        """A command on a pseudo-terminal of the given size. What fails meanwhile says what the terminal showed."""
        if self._lost:
            raise self._lost
        screen = self._carrier.terminal(command, user, columns, rows, self.slowness)
        try:
            yield screen
        except CommandFailed as error:
            raise CommandFailed(f"{error}\nterminal: {screen.shown()}") from None
        finally:
            screen.close()

    @property
    def host(self) -> Any:
        """testinfra's host object for the same machine: files, processes, services, packages."""
        return self._carrier.testinfra()

    # -- state ----------------------------------------------------------------------------------------------------

    def answers(self) -> bool:
        """Whether the machine runs `true` within 20 s (times slowness)."""
        try:
            return self._carrier.run("true", "root", 20 * self.slowness, b"").returncode == 0
        except (TimeoutError, ConnectionError):
            return False

    def snapshot(self, name: str) -> None:
        """Save the machine's state. Connections are closed first, as they would be stale after a restore."""
        self._carrier.close()
        self.driver.snapshot(name)

    def restore(self, name: str) -> float:
        """Restore a saved state; return the seconds until the machine answered. Raises LostMachine."""
        started = time.monotonic()
        self._carrier.close()
        self.driver.restore(name)
        deadline = started + 30 * self.slowness
        while True:
            try:
                set_clock(self._carrier, 10 * self.slowness)
                break
            except (TimeoutError, ConnectionError) as error:
                if time.monotonic() > deadline:
                    raise self._lose("no answer after restore") from error
        self._lost = None
        return time.monotonic() - started

    def close(self) -> None:
        """Close the connections; the machine keeps running."""
        self._carrier.close()

    def _lose(self, why: str) -> LostMachine:
        running = "its process runs" if self.driver.alive() else "its process is gone"
        tail = "\n".join(self.driver.console().splitlines()[-6:])
        self._lost = LostMachine(f"machine {self.spec.name} is lost: {why}; {running}", tail)
        return self._lost


def wait_for_ssh(
    spec: MachineSpec, driver: Driver, endpoint: Endpoint, slowness: float, seconds: float = 100
) -> Machine:
    """Wait until a started machine answers, and return it. Raises LostMachine if it died, or was silent for `seconds` ×
    slowness.
    """
    carrier = SshCarrier(endpoint)
    started = time.monotonic()
    last: Exception | None = None
    while time.monotonic() - started < seconds * slowness * host_load():
        if not driver.alive():
            raise LostMachine(f"machine {spec.name} ended while booting", "\n".join(driver.console().splitlines()[-8:]))
        if not is_greeted(endpoint, 20):
            continue
        try:
            # A login before systemd-user-sessions is refused: "System is booting up".
            if set_clock(carrier, 20 * slowness * host_load()):
                return Machine(spec, driver, carrier, slowness)
        except (TimeoutError, ConnectionError) as error:
            last = error
        carrier.close()
        time.sleep(0.3)
    tail = "\n".join(driver.console().splitlines()[-8:])
    raise LostMachine(
        f"machine {spec.name} did not answer within {time.monotonic() - started:.0f} s ({last or 'no SSH server spoke'})",
        tail,
    )


def set_clock(carrier: Carrier, seconds: float) -> bool:
    """Set the machine's clock, which stood still while its state was saved; return whether that worked. Raises as
    `Carrier.run` does.
    """
    return carrier.run(f"date -s @{time.time():.0f}", "root", seconds, b"").returncode == 0


def is_greeted(endpoint: Endpoint, seconds: float) -> bool:
    """Whether an SSH server answers at the endpoint within `seconds`.

    QEMU's user-mode network accepts a connection before the machine has an address, and retries less and less often. A
    connection opened early is answered many seconds after the server is up. So further ones are opened beside it, and
    the first answer counts.
    """
    deadline = time.monotonic() + seconds
    pause = 0.3
    waiting: list[socket.socket] = []
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                waiting.append(socket.create_connection((endpoint.host, endpoint.port), timeout=1))
            time.sleep(pause)
            for link in select.select(waiting, [], [], 0)[0]:
                with contextlib.suppress(OSError):
                    if link.recv(4) == b"SSH-":
                        return True
                waiting.remove(link)  # refused: nobody listens there yet
                link.close()
            pause += 0.05
    finally:
        for link in waiting:
            link.close()
    return False


def host_load() -> float:
    """The factor by which other load on this host extends time limits: 1 on an idle machine, at most 4."""
    return min(4.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


def _difference(command: str, machine: str, wanted: str, result: Result) -> str:
    """The message of a failing scenario: expected, observed, and the command's last lines."""
    said = (result.stderr.strip() or result.stdout.strip()).splitlines()[-QUIET_LINES:]
    # The program's error comes before its warnings and hints; without one, show the last line.
    errors = [line for line in said if line.startswith("cntr: ") and not line.startswith("cntr: warning")]
    headline = (errors or said or ["(no output)"])[-1]
    lines = [f"expected: {wanted} from `{command}` on {machine}", f"seen:     status {result.returncode}: {headline}"]
    return "\n".join(lines + [f"          {line}" for line in said if line != headline])
