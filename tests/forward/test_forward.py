"""``cntr forward`` on containers made by hand: every kind of socket, both ways, restarts, ends and errors."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading

import pytest

from testkit.container import SlimContainer
from tests.forward.kit import ENVIRONMENT, forward, rest, say, web
from tests.nest.busybox import CNTR, one_line_and_hint, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces")


def unix(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(name)
    return connection


def test_every_kind_of_socket_leads_into_the_container(tmp_path):
    here = f"{tmp_path}/here.sock"
    abstract = f"@cntr-{os.getpid()}"
    words = [
        "0:80",
        "[::1]:0:81",
        "0:53/udp",
        "0:@app",
        "0:/run/app.sock",
        f"./{os.path.relpath(here)}:80",
        f"{abstract}:80",
    ]
    with web() as served, forward(served.target, *words) as running:
        for number in (0, 3, 4):
            assert say(running.connect(number)) == b"<hello", words[number]
        assert say(socket.create_connection(("::1", running.ports[1]), 20)) == b"<hello"
        assert say(unix(here)) == b"<hello"
        assert stat.S_IMODE(os.stat(here).st_mode) == 0o600
        assert say(unix("\0" + abstract[1:])) == b"<hello"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(20)
            asking.connect(("127.0.0.1", running.ports[2]))
            asking.send(b"name")
            assert asking.recv(100) == b"<name"
    assert not os.path.exists(here)


def test_the_containers_processes_reach_exactly_the_port(tmp_path):
    listening = (
        "print(*sorted(l.split()[1] for l in open('/proc/net/tcp').read().splitlines()[1:] if l.split()[3] == '0A'))"
    )
    there = f"{tmp_path}/there.sock"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as other, web() as served:
        other.bind(there)
        other.listen()
        port = server.getsockname()[1]
        before = served.ask(listening)
        words = ["-R", f"8125:{port}", "-R", f"@up:{port}", "-R", f"/run/up.sock:{there}", "-R", f"8126:{port}/udp"]
        with forward(served.target, *words):
            assert served.ask(listening).split() == sorted([*before.split(), f"0100007F:{8125:04X}"])
            root = served.container.root
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
                datagrams.bind(("127.0.0.1", port))
                datagrams.settimeout(20)
                code = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(('127.0.0.1', 8126))"
                code += "; s.send(b'up'); print(s.recv(9))"
                with served.run_in_network("-c", code) as process:
                    data, sender = datagrams.recvfrom(9)
                    datagrams.sendto(b"<" + data, sender)
                    assert process.communicate(timeout=20)[0] == "b'<up'\n"
            for family, address in (
                ("AF_INET", ("127.0.0.1", 8125)),
                ("AF_UNIX", "\0up"),
                ("AF_UNIX", f"{root}/run/up.sock"),
            ):
                code = f"import socket; s = socket.socket(socket.{family}); s.connect({address!r}); s.send(b'up'); print(s.recv(9))"
                with served.run_in_network("-c", code) as process:
                    accepted = (other if "run/" in str(address) else server).accept()[0]
                    assert accepted.recv(9) == b"up"
                    accepted.close()
                    assert process.communicate(timeout=20)[0] == "b''\n"
        assert served.ask(listening) == before
        assert sorted(os.listdir(root / "run")) == ["app.sock"]


def test_much_of_both_ways_is_whole_and_a_half_closed_connection_goes_on():
    data = os.urandom(1 << 20) * 48
    with web() as served, forward(served.target, "0:9", "0:80", "0:19") as running:
        length, digest = say(running.connect(0), data).split()
        assert (int(length), digest.decode()) == (len(data), hashlib.sha256(data).hexdigest())
        with running.connect(2) as giving:
            giving.sendall(b"%d" % (40 << 20))
            assert hashlib.sha256(rest(giving)).digest() == hashlib.sha256(bytes(range(256)) * (40 << 12)).digest()
        with running.connect(1) as echoing:
            sender = threading.Thread(target=lambda: (echoing.sendall(data), echoing.shutdown(socket.SHUT_WR)))
            sender.start()
            assert rest(echoing).replace(b"<", b"") == data.replace(b"<", b"")
            sender.join()


def test_what_is_cut_off_is_seen_to_be_cut_off():
    """If the container is killed in the middle of an answer, that must not look like the answer's end."""
    with web() as served, forward(served.target, "0:7", "0:19", "0:80") as running, running.connect(0) as unread:
        unread.sendall(b"x" * 100000)  # never read, so the server's kernel sends a reset
        with running.connect(1) as asked:
            asked.sendall(b"1000000000")
            assert asked.recv(1000)
        assert say(running.connect(2)) == b"<hello"
        served.server.kill()
        with pytest.raises(ConnectionResetError):
            unread.recv(1)


def test_thousands_of_connections_cost_two_files_each():
    count = 1500
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    low = ["prlimit", f"--nofile=64:{hard}"]
    with web() as served, forward(served.target, "0:80", prefix=low) as running:
        connections = [running.connect() for _ in range(count)]
        try:
            for number, connection in enumerate(connections):
                connection.sendall(b"%d" % number)
            assert [connection.recv(9) for connection in connections] == [b"<%d" % number for number in range(count)]
            files = len(os.listdir(f"/proc/{running.process.pid}/fd"))
            assert 2 * count < files < 2 * count + 200
        finally:
            for connection in connections:
                connection.close()


def test_a_container_that_restarts_is_found_again_and_nobody_is_refused_meanwhile():
    here = socket.create_server(("127.0.0.1", 0))
    reverse = f"8125:{here.getsockname()[1]}"
    with here, web() as served, forward(served.target, "0:9", "-R", reverse) as running:
        for _ in range(3):
            served.stop()
            running.wait_for("gone")
            waiting = running.connect()
            waiting.sendall(b"said while it is away")
            waiting.shutdown(socket.SHUT_WR)
            served.start(serve=False)
            running.wait_for("found")
            late = running.connect()  # the container runs, its server does not yet
            served.serve()
            assert rest(waiting).split()[0] == b"21"
            waiting.close()
            assert say(late, b"late").split()[0] == b"4"
            code = "import socket; socket.create_connection(('127.0.0.1', 8125), 5); print('listens')"
            assert served.ask(code) == "listens"


def test_a_command_runs_with_the_ports_up_and_its_status_is_cntrs():
    code = (
        "import os, socket; host, _, port = os.environ['CNTR_FORWARD_1'].rpartition(':');"
        "s = socket.create_connection((host, int(port))); s.send(b'x' * 100000); raise SystemExit(7)"
    )
    with web() as served:
        done = run("forward", served.target, "0:9", "--", sys.executable, "-c", code)
        assert done.returncode == 7, done
        assert done.stderr.startswith("cntr: 127.0.0.1:")
        done = run("forward", served.target, "0:9", "--", "no-such-command")
        assert (done.returncode, "hint: " in done.stderr) == (127, True)
        done = run("forward", served.target, "0:9", "--", "sh", "-c", "kill -KILL $$")
        assert done.returncode == 128 + 9
        process = subprocess.Popen(
            [*CNTR, "forward", served.target, "0:9", "--", "sh", "-c", "trap 'exit 3' TERM; echo up; sleep 100 & wait"],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 3
        process.stdout.close()


def test_stdin_and_stdout_are_joined_to_a_port():
    with web() as served:
        for end in ("80", "[::1]:81", "@app", "/run/app.sock"):
            done = run("forward", served.target, "-", end, input="hello")
            assert (done.returncode, done.stdout, done.stderr) == (0, "<hello", ""), end
        done = run("forward", served.target, "-", "9", input="x" * 3000000)
        assert done.stdout.split()[0] == "3000000"
        assert "connection refused" in one_line_and_hint(run("forward", served.target, "-", "85"))


def test_what_a_command_has_sent_arrives_after_both_have_ended():
    """A server that is busy meanwhile finds it, and a regular end of stream, in its queue."""
    serving = "import socket, sys; s = socket.create_server(('127.0.0.1', 90)); print('up', flush=True)"
    serving += "; c = s.accept()[0]; sys.stdin.read(); print(sum(map(len, iter(lambda: c.recv(1 << 16), b''))))"
    sending = "import os, socket; host, _, port = os.environ['CNTR_FORWARD_1'].rpartition(':')"
    sending += "; s = socket.create_connection((host, int(port))); s.sendall(bytes(3 << 20))"
    with web() as served:
        words = ["nsenter", "-t", str(served.container.pid), "-n", sys.executable, "-c", serving]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout.readline() == "up\n"
            assert run("forward", served.target, "0:90", "--", sys.executable, "-c", sending).returncode == 0
            assert int(server.communicate(timeout=20)[0]) == 3 << 20


def test_missing_listeners_are_reported_once():
    with web() as served, forward(served.target, "0:85") as running:
        for _ in range(3):
            with pytest.raises(ConnectionResetError), running.connect() as refused:
                refused.recv(1)
        assert [event["event"] for event in running.events] == ["listening"]
        running.wait_for("refused")


def test_where_nothing_at_all_listens_the_container_is_not_taken_for_gone():
    """Nor is its lack of IPv6 the reason."""
    up = "import fcntl, socket, struct; s = socket.socket(); s.setblocking(True)"
    up += "; fcntl.ioctl(s, 0x8914, struct.pack('16sh14x', b'lo', 1))"  # SIOCSIFFLAGS, IFF_UP
    up += "; import pathlib; p = pathlib.Path('/proc/sys/net/ipv6/conf/lo/disable_ipv6'); p.exists() and p.write_text('1')"
    with SlimContainer("idle") as container:
        subprocess.run(["nsenter", "-t", str(container.pid), "-n", sys.executable, "-c", up], check=True)
        with forward(str(container.pid), "0:80") as running:
            for _ in range(3):
                with pytest.raises(ConnectionResetError), running.connect() as refused:
                    refused.recv(1)
            assert running.wait_for("refused")["error"] == "connection refused"
            assert {event["event"] for event in running.events} <= {"listening", "refused"}
        assert "connection refused" in one_line_and_hint(run("forward", str(container.pid), "-", "85"))


def test_errors_say_what_to_do():
    with web() as served, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = one_line_and_hint(run("forward", served.target, f"{port}:80"))
        assert f"127.0.0.1:{port}: the port is in use on this machine by " in said
        assert f"(pid {os.getpid()})" in said
        assert "in use on command:" in one_line_and_hint(run("forward", served.target, "-R", "80:9"))
        assert "no such address" in one_line_and_hint(run("forward", served.target, "198.51.100.1:0:80"))
        for word in ("x:1", "80:81:82", "1.2.3.4", "/a", "99999", "0:0", "@", "[::1]", "80:name:80", "", "80/sctp"):
            one_line_and_hint(run("forward", served.target, word))
        one_line_and_hint(run("forward", served.target))
        for words in (("80:./x",), ("-R", "./x:80"), ("-", "./x")):
            assert (
                "begins with a slash" in (said := one_line_and_hint(run("forward", served.target, *words)))
                or "one end" in said
            )
        for words in (("18099:80", "18099:81"), ("-R", "99:1", "-R", "99:2"), ("@a:80", "@a:81")):
            assert "is given twice" in one_line_and_hint(run("forward", served.target, *words))
        assert "hint: the directory must be there" in run("forward", served.target, "/no/dir/x:80").stderr
        one_line_and_hint(run("forward", served.target, "-", "1", "2"))
    for image in ("image:web:1", "dir:/srv", "archive:x.tar"):
        assert "hint: an image does not run" in run("forward", image, "80").stderr
    assert "no process has that" in one_line_and_hint(run("forward", served.target, "80"))


def test_a_pid_is_not_found_again():
    with web() as served:
        process = subprocess.Popen(
            [*CNTR, "forward", f"pid:{served.container.pid}", "0:80"],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert "→" in process.stderr.readline()
        served.stop()
        assert process.wait(10) == 125
        assert "has ended" in process.stderr.read()
        process.stderr.close()


def test_its_time_is_kept():
    with web() as served:
        done = run("forward", served.target, "0:80", "--timeout", "1s", "--", "sleep", "100")
        assert done.returncode == 128 + 1
        assert "the session was ended: its time is over: 1s" in done.stderr
        process = subprocess.Popen(
            [*CNTR, "forward", served.target, "--timeout", "1s", "-", "80"],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.wait(20) == 128 + 1
        assert "its time is over" in process.communicate()[1]
