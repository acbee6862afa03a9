"""Fixtures for scenarios: `cntr` (the CLI in a machine, by one transport), `engine`, `traces`."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from typing import ClassVar

import pytest

from lab import provisioning
from lab.errors import CommandFailed

pytest_plugins = ["lab.plugin"]

BASE = "/var/lib/cntr"


class Engine:
    """The machine's engine, through its provision script."""

    def __init__(self, ready):
        self.machine = ready.machine
        self.name = ready.machine.spec.engine
        self._pids = ready.pids

    def pid(self, container):
        """The container's first process, as the engine knows it: never asked of cntr, and asked once per start of the
        container.
        """
        if container not in self._pids:
            self._pids[container] = int(provisioning.engine_script(self.machine, "pid", container))
        return self._pids[container]

    def __getattr__(self, verb):
        self._pids.clear()  # afterwards the engine is asked again for the processes
        return lambda container: provisioning.engine_script(self.machine, verb, container, timeout=90)

    @contextlib.contextmanager
    def changed(self, container):
        """A block after which the container is restarted."""
        try:
            yield
        finally:
            self.reset(container)


class Cntr:
    """cntr in the machine, as its users call it."""

    def __init__(self, machine, transport):
        self.machine = machine
        self.transport = transport
        options = {"mount": "--transport mount", "devfuse": "--transport fuse --binding devfuse"}
        options["pyfuse3"] = "--transport fuse --binding pyfuse3"
        self.options = options.get(transport, "")

    def line(self, target, *command, options=""):
        """The command line of an attach, for a shell."""
        words = " ".join(shlex.quote(word) for word in command)
        parts = ("cntr attach", shlex.quote(target), self.options, options, f"-- {words}" if words else "")
        return " ".join(part for part in parts if part)

    def attach(self, target, script, options="", user="root", timeout=30):
        """The output of a shell script in a session; the session must end with status 0."""
        line = self.line(target, "sh", "-c", script, options=options)
        try:
            return self.machine.succeed(line, user=user, timeout=timeout)
        except CommandFailed as error:
            named = self._late(str(error))
            if not named:
                raise
        return self.machine.succeed(self.line(named, "sh", "-c", script, options=options), user=user, timeout=timeout)

    def status(self, target, script, options=""):
        """Return the session's exit status."""
        result = self.machine.run(self.line(target, "sh", "-c", script, options=options))
        if named := self._late(result.stderr):
            result = self.machine.run(self.line(named, "sh", "-c", script, options=options))
        return result.returncode

    def _late(self, said):
        """The name to use if cntr says that an engine did not answer in time; "" on a machine of natural speed, where
        that is a failure.
        """
        found = re.search(r"a slow engine is waited for when it is named: ([^\s;]+)", said)
        return found[1] if found and self.machine.slowness > 1 else ""

    def json(self, words):
        return json.loads(self.machine.succeed(f"cntr {words} --json"))


class Traces:
    """What a session could leave behind, read before and after."""

    # Commands whose output must be the same before and after. @PID@ is the container's first process. (A process
    # without a command line is a zombie of an init that does not reap.)
    QUESTIONS: ClassVar = {
        "the container's mounts": "cat /proc/@PID@/mountinfo",
        "files in the container's root": "find /proc/@PID@/root/ -xdev -not -path '*/proc/*' -printf '%P %y %m %U:%G %s\\n' | sort",
        "the container's open files": "ls -l /proc/@PID@/fd | awk 'NR > 1 { print $9, $11 }' | sort",
        "the host's mounts": "cut -d' ' -f5- /proc/self/mountinfo | sort",
        "processes in the container's pid namespace": "ns=$(readlink /proc/@PID@/ns/pid); "
        'if [ "$ns" != "$(readlink /proc/1/ns/pid)" ]; then find /proc/[0-9]*/ns/pid -maxdepth 0 -printf "%l %p\\n" 2>/dev/null '
        '| while read -r theirs link; do [ "$theirs" != "$ns" ] || tr "\\0" " " <${link%/ns/pid}/cmdline | grep .; done; fi; true',
        "cntr processes": "pgrep -af '^[^ ]*(python[0-9.]*|cntr) .*cntr attach' || true",
        "the container's cgroups": "cut -d: -f3- /proc/@PID@/cgroup | sort -u | while read -r path; do "
        '[ "$path" = / ] || find /sys/fs/cgroup -path "*$path" -exec find {} -type d \\; ; done | sort -u',
        "FUSE connections": "ls /sys/fs/fuse/connections 2>/dev/null || true",
    }

    def __init__(self, machine, engine):
        self.machine, self.engine = machine, engine

    def read(self, container):
        pid = str(self.engine.pid(container))
        script = "\n".join(
            f"echo {shlex.quote('@@ ' + q)}; {c.replace('@PID@', pid)}" for q, c in self.QUESTIONS.items()
        )
        answers = {}
        for block in self.machine.succeed(script).split("@@ ")[1:]:
            question, _, text = block.partition("\n")
            answers[question] = text.splitlines()
        return answers

    @contextlib.contextmanager
    def none_left(self, container):
        """A block that must leave nothing behind."""
        before = self.read(container)
        yield
        after = self.read(container)
        for question, lines in before.items():
            if question == "FUSE connections" and self.machine.driver.name == "here":
                continue  # this host has other users of FUSE
            gone = [line for line in lines if line not in after[question]]
            new = [line for line in after[question] if line not in lines]
            if gone or new:
                raise CommandFailed(f"expected: {question} as before\nseen:     new: {new[:4]}, gone: {gone[:4]}")


@pytest.fixture
def machine(ready):
    return ready.machine


@pytest.fixture
def engine(ready):
    return Engine(ready)


@pytest.fixture
def transport(request):
    return request.param


@pytest.fixture
def cntr(machine, transport):
    lent = transport == "pyfuse3" and machine.driver.name == "here"
    if lent and machine.run("/opt/cntr/bin/python -c 'import pyfuse3'").returncode != 0:
        pytest.skip("pyfuse3 is not installed for this host's python3 (apt-get install python3-pyfuse3); boxes have it")
    return Cntr(machine, transport)


@pytest.fixture
def cli(machine):
    """cntr for scenarios without a session, which run once per machine."""
    return Cntr(machine, "-")


@pytest.fixture
def traces(machine, engine):
    return Traces(machine, engine)


@pytest.fixture
def crashing(engine, machine):
    """The container `crash`, whose program has ended and which its engine does not restart."""
    engine.crash("crash")
    machine.wait_until_succeeds("cntr ps --all --json | grep -q crash")
    try:
        engine.stop("crash")  # end the restart loop, if there is one
        yield "crash"
    finally:
        engine.remove("crash")
