"""``cntr forward`` with other kinds of containers, and with hostile ones."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cntr.forward import sides
from cntr.forward.dialer import WantedContainer
from cntr.linux import syscalls
from cntr.proxy.loop import Loop
from testkit.container import NAMESPACES, SlimContainer
from testkit.waiting import wait_until
from tests.cli.run import cntr
from tests.forward.kit import SERVER, forward, say, web
from tests.nest.busybox import one_line_and_hint, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces")

CLIENT = """
import os, socket
host, _, port = os.environ['CNTR_FORWARD_1'].rpartition(':')
s = socket.create_connection((host, int(port)), 20); s.sendall(b'hello'); s.shutdown(1); print(s.recv(9))"""


def test_a_rootless_container_is_its_owners_to_forward_from(tmp_path):
    """Without root: only the dialer enters its user namespace; the listener stays on this machine."""
    user = pwd.getpwnam("nobody").pw_uid
    words = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "unshare", "-Urn", "sleep", "100"]
    os.chmod(tmp_path, 0o755)
    with subprocess.Popen(words) as process:
        try:
            wait_until(lambda: "sleep" in Path(f"/proc/{process.pid}/comm").read_text())
            with serving(process.pid, str(tmp_path)):
                for caller in (user, 0):
                    target = f"pid:{process.pid}"
                    done = cntr("forward", target, "0:80", "--", "/usr/bin/python3", "-c", CLIENT, user=caller)
                    assert (done.returncode, done.stdout) == (0, "b'<hello'\n"), done
                    assert ("a container of nobody" in done.stderr) == (caller == 0)
                low = cntr("forward", target, "80:80", "--", "true", user=user)
                assert "ports below 1024 are for root" in one_line_and_hint(low)
        finally:
            process.kill()


def test_with_the_hosts_network_it_is_a_plain_forward():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with SlimContainer("plain", namespaces=NAMESPACES & ~syscalls.CLONE_NEWNET) as container:
            with forward(str(container.pid), f"0:{port}") as running, running.connect() as asked:
                accepted = server.accept()[0]
                accepted.sendall(b"here")
                accepted.close()
                assert asked.recv(9) == b"here"
            done = run("forward", str(container.pid), str(port))
            assert "in use" in one_line_and_hint(done)
            assert "uses this machine's network" in done.stderr


def test_the_error_recognises_a_container_without_a_network():
    with SlimContainer("none") as container, forward(str(container.pid), "0:80") as running:
        with pytest.raises(ConnectionResetError), running.connect() as asked:
            asked.recv(1)
        assert running.wait_for("refused")["error"] == "network is unreachable"


def test_an_engine_restarts_it(docker):
    """It is found by name: another process, in another network namespace."""
    with (
        docker.container("busybox") as container,
        forward(container.name, "0:80", "0:/tmp/app.sock", environment=container.env) as running,
    ):
        for number in range(3):
            if number:
                docker.command("restart", "-t", "0", container.name)
            pid = docker.command("inspect", "--format", "{{.State.Pid}}", container.name).strip()
            with serving(int(pid), f"/proc/{pid}/root/tmp"):
                assert [say(running.connect(end)) for end in (0, 1)] == [b"<hello"] * 2
        assert {"gone", "found"} <= {str(event["event"]) for event in running.events} or running.wait_for("found")


def test_links_in_the_container_do_not_lead_out_of_it(tmp_path):
    outside = f"{tmp_path}/outside.sock"
    with socket.socket(socket.AF_UNIX) as listener, web() as served:
        listener.bind(outside)
        listener.listen()
        root = served.container.root
        for name, target in (("a", outside), ("b", f"/proc/1/root{outside}"), ("c", "../" * 9 + outside[1:])):
            (root / name).symlink_to(target)
        (root / "d").symlink_to("/run/app.sock")
        with forward(served.target, *(f"0:/{name}" for name in "abcd")) as running:
            for number in range(3):
                with pytest.raises(ConnectionResetError), running.connect(number) as asked:
                    asked.recv(1)
            assert say(running.connect(3)) == b"<hello"
            listener.settimeout(0)
            with pytest.raises(BlockingIOError):
                listener.accept()
        (root / "e").symlink_to(tmp_path)
        done = run("forward", served.target, "-R", "/e/up.sock:80")
        assert "no such file or directory" in one_line_and_hint(done)


def test_clients_that_never_read_or_flood_delay_nobody_else():
    with web() as served, forward(served.target, "0:7", "0:19", "0:80") as running:
        with running.connect(0) as unread, running.connect(1) as flood:
            unread.settimeout(0.2)
            with pytest.raises((TimeoutError, socket.timeout)):
                unread.sendall(bytes(64 << 20))
            flood.sendall(b"100000000000")  # and nobody reads it here
            for _ in range(50):
                assert say(running.connect(2)) == b"<hello"
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < 100 << 10  # KiB


def test_senders_of_datagrams_end_the_relay_neither_by_number_nor_by_an_address_without_a_route():
    few = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource", "prlimit", "--nofile=64:256"]
    flood = "import socket; many = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(400)]"
    flood += "; [one.sendto(b'x', ('127.0.0.1', port)) for one in many for port in (8126, 8127)]"
    words = ["-R", "8126:9/udp", "-R", "8127:203.0.113.9:9/udp", "0:53/udp", "0:80"]  # no route into the last network
    with web() as served, forward(served.target, *words, prefix=[*few, "unshare", "-n"]) as running:
        served.ask(flood)
        running.wait_for("refused")
        asking = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'y', ('127.0.0.1', 8126))"
        served.ask(asking)
        assert running.process.poll() is None


def test_a_side_that_does_not_answer_is_given_up(monkeypatch):
    """Such as a path on a file system of the container that never answers."""
    monkeypatch.setattr(sides, "ANSWER_SECONDS", 0.2)
    heard: list[Any] = []

    class ContainerEvents:
        def up(self, notes: list[str]) -> None:
            heard.append("up")

        def gone(self) -> None:
            heard.append("gone")

    with web() as served:
        loop = Loop()
        there = sides.ContainerSide(loop, WantedContainer(served.target, paths=True), ContainerEvents())
        try:
            there.start()
            while heard != ["up"]:
                loop.turn()
            os.kill(there.child, signal.SIGSTOP)
            there.connect_file("/run/app.sock", heard.append)
            while len(heard) < 2:
                loop.turn()
            assert isinstance(heard[1], TimeoutError)
            while heard[2:] != ["up"]:
                loop.turn()
            there.connect_file("/run/app.sock", heard.append)
            while len(heard) < 4:
                loop.turn()
            assert heard[3].getpeername()
            heard[3].close()
        finally:
            there.close()
            loop.close()


def test_of_the_relay_nothing_is_in_the_container():
    """Of its processes only the dialer is in the container's network namespace, and it holds no more files than it
    needs.
    """
    with web() as served, forward(served.target, "0:80", "-R", "8125:9") as running:
        dialer = int(Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text())
        joined = {
            kind
            for kind in os.listdir("/proc/self/ns")
            if os.stat(f"/proc/{dialer}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino
        }
        assert joined == {"net"}
        # 0, 1, 2, the socket to the relay, the container's pidfd; the listening socket has just
        # been sent
        wait_until(lambda: len(os.listdir(f"/proc/{dialer}/fd")) <= 5, "it to have no more files than it needs")
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{dialer}/status").read_text().splitlines())
        assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
        assert os.stat(f"/proc/{running.process.pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino


@contextmanager
def serving(pid: int, directory: str) -> Iterator[None]:
    """The server in PID's network namespace, its socket in DIRECTORY."""
    words = ["nsenter", "-t", str(pid), "-n", sys.executable, SERVER, directory]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline() == "up\n"
            yield
        finally:
            server.kill()
