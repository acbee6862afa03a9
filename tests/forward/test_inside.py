"""``cntr forward`` typed in a session, and ssh's ProxyCommand through it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cntr.errors import UsageError
from cntr.proxy import spec
from testkit.processes import running
from testkit.waiting import wait_until
from tests.audit.support import AuditedHost, only
from tests.forward.kit import Web, say, web
from tests.nest import busybox
from tests.nest.busybox import CNTR, REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces")
TRANSPORTS = ("mount", "fuse")
INSIDE = f"PYTHONPATH={REPOSITORY} {shlex.join(CNTR)} forward"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_port_of_the_sessions_container_is_on_this_machine_until_the_session_ends(tmp_path, transport):
    place = AuditedHost(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as server, web() as served, place.journal() as journal:
        ours = server.getsockname()[1]
        words = f"{INSIDE} --json 0:80 -R {ours}"
        script = f"{words} & read line; echo end"
        with subprocess.Popen(
            [
                *place.prefix(),
                *CNTR,
                "attach",
                served.target,
                "--forward",
                "--transport",
                transport,
                "--",
                "sh",
                "-c",
                script,
            ],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as session:
            found = {}
            for _ in range(2):
                event = json.loads(session.stdout.readline())
                assert event["event"] == "listening", event
                found[event.get("container", event["listen"])] = event["port"]
            ports = [port for port in found.values() if port != ours]
            assert say(socket.create_connection(("127.0.0.1", ports[0]), 20)) == b"<hello"
            code = f"import socket; print(socket.create_connection(('127.0.0.1', {ours}), 20).recv(9))"
            with served.run_in_network("-c", code) as asking:
                connection = server.accept()[0]
                connection.sendall(b"there")
                connection.close()
                assert asking.communicate(timeout=20)[0] == "b'there'\n"
            session.communicate("\n", timeout=20)
        with pytest.raises(ConnectionRefusedError):
            wait_until(lambda: socket.create_connection(("127.0.0.1", ports[0]), 20).close())
        wait_until(lambda: len(journal.entries) == 4, "its record")
    begun, inner, *ends = journal.entries
    assert only(begun, "CNTR_WIDENING") == "--forward"
    assert [only(entry, "CNTR_EVENT_ACTION") for entry in (begun, inner)] == ["attach", "forward"]
    assert only(inner, "CNTR_SESSION_PARENT") == only(begun, "CNTR_EVENT_ID")
    assert only(inner, "CNTR_CONTAINER_NAME") == only(begun, "CNTR_CONTAINER_NAME")
    assert {only(entry, "CNTR_EVENT_ACTION") for entry in ends} == {"attach", "forward"}


def test_without_the_sessions_leave_it_is_refused_and_more_than_ports_is_never_had():
    with web() as served:
        ask = ["attach", served.target, "--", "sh", "-c", f"{INSIDE} 0:80; echo $?"]
        done = busybox.run(*ask)
        assert done.stdout == "125\n", done
        assert "cntr attach --forward" in done.stderr
        for words in ("/run/x.sock:80", "0.0.0.0:0:80", "53:53", "-R 90:/run/docker.sock", "0:80 -- id", "- 80", ""):
            done = busybox.run("attach", served.target, "--forward", "--", "sh", "-c", f"{INSIDE} {words}; echo $?")
            assert done.stdout == "125\n", (words, done)
        # A request that is not our client's gets no answer.
        hostile = (
            "import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect('/run/cntr/exec.sock')\n"
            "socket.send_fds(s, [os.environ['Q'].encode().replace(b'|', b'\\0')], [0, 1, 2]); print(s.recv(9))"
        )
        for question in (
            "|forward|R9:/run/docker.sock",
            "|forward|L--json",
            "|forward|L/tmp/x:80",
            "|forward",
            "|forward|",
            "|forward|J",
            "|forward|L0:80|L0.0.0.0:0:80",
        ):
            command = ["python3", "-c", hostile]
            done = busybox.run("attach", served.target, "--forward", "-e", f"Q={question}", "--", *command)
            assert done.stdout == "b''\n", (question, done)


SSHD = """
Port 22
ListenAddress 127.0.0.1
HostKey {place}/host
PidFile none
AuthorizedKeysFile {place}/user.pub
UsePAM no
StrictModes no
"""
# sshd's own files, so that this machine's are not changed.
VIEW = """
mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && mount --bind {place}/passwd /etc/passwd &&
exec {sshd} -D -f {place}/config -E {place}/log
"""


@contextmanager
def sshd(served: Web, place: Path) -> Iterator[list[str]]:
    """A real sshd at the container's port 22; the command line of an ssh that reaches it through cntr."""
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") or ""
    missing = [
        package for path, package in ((program, "openssh-server"), (shutil.which("ssh"), "openssh-client")) if not path
    ]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)} (apt-get install)")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
    (place / "config").write_text(SSHD.format(place=place))
    (place / "passwd").write_text(f"root:*:0:0::{place}:/bin/sh\nsshd:*:29995:29995::/run/sshd:/bin/false\n")
    (place / "known").write_text(f"web {(place / 'host.pub').read_text()}")
    enter = ["nsenter", "-t", str(served.container.pid), "-n", "unshare", "-m", "--propagation", "private", "sh", "-c"]
    with subprocess.Popen([*enter, VIEW.format(place=place, sshd=program)]) as process:
        try:
            ready = "import socket; print(socket.socket().connect_ex(('127.0.0.1', 22)))"
            wait_until(lambda: served.ask(ready) == "0" or process.poll() is not None, "sshd")
            proxy = f"ProxyCommand={shlex.join([*CNTR, 'forward', served.target, '-', '22'])}"
            options = [f"UserKnownHostsFile={place}/known", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes", proxy]
            words = [word for option in options for word in ("-o", option)]
            yield ["ssh", "-F", "none", "-i", str(place / "user"), *words, "root@web"]
        finally:
            process.terminate()


def test_ssh_finds_a_containers_sshd_by_its_proxy_command(tmp_path):
    """Also with much data in both directions at once, and closed from either side."""
    data = os.urandom(1 << 20) * 3
    env = {**os.environ, "PYTHONPATH": REPOSITORY}
    with web() as served, sshd(served, tmp_path) as ssh:
        done = subprocess.run([*ssh, "cat; exit 7"], env=env, input=data, capture_output=True, timeout=60)
        assert (done.returncode, done.stdout == data) == (7, True), done.stderr
        net = os.readlink(f"/proc/{served.container.pid}/ns/net")
        done = subprocess.run([*ssh, "readlink /proc/self/ns/net"], env=env, capture_output=True, timeout=60)
        assert done.stdout.decode().strip() == net, done
        with subprocess.Popen(
            [*ssh, "echo up; cat"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout.readline() == b"up\n"
            process.send_signal(signal.SIGTERM)
            process.stdin.close()
            process.wait(20)
        wait_until(lambda: not running(*CNTR, "forward", served.target, "-", "22"), "the proxy to end")


def test_what_a_session_may_ask_for():
    assert spec.from_inside(["J", "L0:80", "L[::1]:8080:80", "R9:22", "L1024:/run/x.sock"]) == [
        "--json",
        "0:80",
        "[::1]:8080:80",
        "-R",
        "9:22",
        "1024:/run/x.sock",
    ]
    for word in ("L80", "L@a:80", "L127.0.0.2:8080:80", "R8080:10.0.0.1:80", "R1:@a", "X80", "", "L"):
        with pytest.raises(UsageError):
            spec.from_inside([word])
