"""The process that serves ``cntr exec`` in a session, attacked by its clients: whom it serves, and that none can block
it.
"""

from __future__ import annotations

import errno
import os
import pathlib
import select
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

from cntr.attach import exec_client, exec_handler, exec_server, exec_service
from cntr.attach.exec_server import ExecServer
from cntr.attach.target import Target
from cntr.engines.container import Container
from cntr.errors import CntrError
from cntr.linux import sockets, syscalls
from tests.nest.busybox import BusyboxContainer

QUESTION = b"/\x000\x00"


def own_namespace() -> tuple[int, int]:
    found = os.stat("/proc/self/ns/mnt")
    return found.st_dev, found.st_ino


class Served:
    """An ExecServer for a container, in a directory of ours; ``turn`` is the supervisor's loop, which must never block."""

    def __init__(self, container: BusyboxContainer, directory: pathlib.Path, nest: tuple[int, int]) -> None:
        self.target = Target(Container("pid", str(container.pid), container.pid))
        fd = os.open(directory, os.O_PATH)
        try:
            self.server = ExecServer(self.target, ["--no-cgroup"], fd)
        finally:
            os.close(fd)
        self.path, self.nest = str(directory / exec_server.NAME), nest
        self.longest = 0.0

    def turn(self, seconds: float = 0.05) -> None:
        poll = select.poll()
        for fd in self.server.interests():
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(seconds * 1000):
            begun = time.monotonic()
            assert self.server.ready(fd, self.nest)
            self.longest = max(self.longest, time.monotonic() - begun)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(20)
        connection.connect(self.path)
        self.turn()
        return connection

    def ask(self, *words: str, fds: list[int] | None = None) -> socket.socket:
        connection = self.connect()
        null = os.open(os.devnull, os.O_RDWR)
        sockets.send(connection, QUESTION + "\0".join(words).encode(), fds or [null, null, null])
        os.close(null)
        return connection


def status(connection: socket.socket) -> int:
    """-1 if the connection was closed without an answer."""
    try:
        answer = connection.recv(16)
    except ConnectionResetError:
        answer = b""
    finally:
        connection.close()
    return answer[0] if answer else -1


@pytest.fixture
def served(tmp_path):
    with BusyboxContainer() as container:
        found = Served(container, tmp_path, own_namespace())
        yield found
        begun = time.monotonic()
        found.server.close()
        assert time.monotonic() - begun < 2, "the end of a session waits for no client"
        found.target.close()
        assert found.longest < 1, "the supervisor waits for no client"


def test_a_question_is_answered(served):
    assert status(served.ask("sh", "-c", "exit 7")) == 7
    assert status(served.ask("no-such-program")) == 127


def test_nothing_runs_until_somebody_asks(served):
    served.turn(0)
    assert served.server.pid == 0
    assert status(served.ask("true")) == 0
    assert served.server.pid > 0


def test_another_mount_namespace_is_not_answered(served):
    """A client in another mount namespace is refused: a process of the container, a local user, the host's root."""
    script = (
        "import socket, sys\n"
        "from cntr.linux import sockets, syscalls\n"
        "syscalls.unshare(syscalls.CLONE_NEWNS)\n"
        "connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "connection.connect(sys.argv[1])\n"
        "print('connected', flush=True)\n"
        "try:\n"
        "    sockets.send(connection, b'/\\x000\\x00touch\\x00/hacked', [0, 1, 2])\n"
        "    print(connection.recv(1))\n"
        "except OSError as error:\n"
        "    print(b'', error)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, served.path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    while process.poll() is None:
        served.turn()
    assert process.stdout
    said = process.stdout.read()
    process.stdout.close()
    assert said.startswith("connected\nb''"), said
    assert status(served.ask("sh", "-c", "test ! -e /hacked")) == 0


def test_a_client_that_has_ended_is_not_taken_for_another(served):
    """Its pid may have been reused; SO_PEERPIDFD shows that it has ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(served.path)
        sockets.send(connection, QUESTION + b"touch\0/hacked", [0, 1, 2])
        os.write(writing, b"x")
        os._exit(0)
    os.read(reading, 1)
    os.waitpid(pid, 0)
    for fd in (reading, writing):
        os.close(fd)
    served.turn()
    assert status(served.ask("sh", "-c", "test ! -e /hacked")) == 0


@pytest.mark.parametrize(
    "question",
    [
        b"",
        b"/",
        b"/\0x\0true",
        b"/\x00-1\0true",
        b"/\x001\0A=1",
        b"/\x001\0HOME\0true",
        b"/\x00999\0a=b\0true",
        b"\xff\xfe\0" * 100,
    ],
)
def test_what_no_client_of_ours_asks_is_refused(served, question):
    """HOME without a value would pass the supervisor's variable to the container."""
    connection = served.connect()
    sockets.send(connection, question, [0, 1, 2])
    assert status(connection) == -1


@pytest.mark.parametrize("count", [0, 1, 2, 4, 200])
def test_other_than_three_streams_are_refused(served, count):
    connection = served.connect()
    null = os.open(os.devnull, os.O_RDWR)
    sockets.send(connection, QUESTION + b"true", [null] * count)
    os.close(null)
    assert status(connection) == -1
    assert status(served.ask("true")) == 0


def test_silent_clients_delay_nobody_and_are_sent_away(served, monkeypatch):
    silent = [served.connect() for _ in range(10)]
    begun = time.monotonic()
    assert status(served.ask("true")) == 0
    assert time.monotonic() - begun < exec_handler.SILENCE_SECONDS * 0.8
    assert [status(connection) for connection in silent] == [-1] * 10


def lingering() -> tuple[socket.socket, socket.socket]:
    """A TCP socket whose close(2) blocks for a minute, by SO_LINGER and unread data."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    connection = socket.create_connection(listener.getsockname())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    connection.setblocking(False)
    try:
        while True:
            connection.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    return listener, connection


@pytest.mark.parametrize("how", ["asked", "refused", "unread", "not taken"])
def test_an_fd_that_takes_long_to_be_closed_delays_nobody(served, how):
    """With SO_LINGER, whoever closes the last copy waits."""
    listener, slow = lingering()
    assert status(served.ask("true")) == 0 or how == "not taken"
    clients = []
    if how == "unread":  # both packets arrive before they are read: after refusing the first, no second is accepted
        os.kill(served.server.pid, signal.SIGSTOP)
    for _ in range(4):
        if how in ("not taken", "unread"):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            client.connect(served.path)
        else:
            client = served.connect()
        words = QUESTION + b"true" if how == "asked" else b"nonsense"
        sockets.send(client, words, [slow.fileno()] * 3)
        if how == "unread":
            sockets.send(client, words, [slow.fileno()] * 3)
        clients.append(client)
    if how == "unread":
        os.kill(served.server.pid, signal.SIGCONT)
    listener.close()  # if our own copy were the last, the others' close would not wait
    os.close(slow.detach())
    if how != "not taken":
        begun = time.monotonic()
        assert status(served.ask("true")) == 0
        assert time.monotonic() - begun < 20
    for client in clients:
        client.close()


def test_there_are_so_many_and_no_more(served, monkeypatch):
    monkeypatch.setattr(exec_service, "HANDLERS", 4)
    running = [served.ask("sleep", "987.7") for _ in range(4)]
    late = served.ask("true")
    late.settimeout(0.5)
    with pytest.raises((TimeoutError, socket.timeout)):
        late.recv(1)
    running.pop().close()  # its command is ended with it
    late.settimeout(20)
    assert status(late) == 0
    for connection in running:
        connection.close()


def test_it_ends_with_the_supervisor(tmp_path):
    """After SIGKILL of the supervisor nothing is left."""
    with BusyboxContainer() as container:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                served = Served(container, tmp_path, own_namespace())
                connection = served.ask("sleep", "987.8")
                while not running("sleep\0987.8\0"):
                    served.turn()
                os.write(writing, b"%d" % served.server.pid)
                connection.recv(1)
            finally:
                os._exit(1)
        os.close(writing)
        server = int(os.read(reading, 16))
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        deadline = time.monotonic() + 10
        while running("sleep\0987.8\0") or os.path.exists(f"/proc/{server}/exe"):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def running(command: str) -> bool:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                if pathlib.Path("/proc", name, "cmdline").read_text(errors="replace") == command:
                    return True
            except OSError:
                continue
    return False


# --- the client's side ------------------------------------------------------------------------------------------------


def test_the_client_trusts_no_directory_of_anothers(tmp_path, monkeypatch):
    monkeypatch.setattr(exec_client, "DIRECTORY", str(tmp_path / "cntr"))
    with pytest.raises(CntrError, match="nobody serves"):
        exec_client.run(["true"], [], "/")
    (tmp_path / "cntr").mkdir(mode=0o755)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "cntr" / exec_server.NAME))
    listener.listen()
    for change in (lambda path: path.chmod(0o777), lambda path: (path.chmod(0o755), os.chown(path, 1000, 0))):
        change(tmp_path / "cntr")
        with pytest.raises(CntrError, match="not the session's own"):
            exec_client.run(["true"], [], "/")
    os.chown(tmp_path / "cntr", 0, 0)
    (tmp_path / "real").mkdir()
    (tmp_path / "cntr").rename(tmp_path / "moved")
    (tmp_path / "cntr").symlink_to("moved")
    with pytest.raises(CntrError, match="not the session's own"):
        exec_client.run(["true"], [], "/")
    listener.close()


def test_the_client_gives_nothing_to_a_process_of_its_own_session(tmp_path, monkeypatch):
    """A process that listens in the supervisor's place gets neither the streams nor the command."""
    monkeypatch.setattr(exec_client, "DIRECTORY", str(tmp_path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / exec_server.NAME))
    listener.listen()
    with pytest.raises(CntrError, match="another process answers"):
        exec_client.run(["true"], [], "/")
    connection = listener.accept()[0]
    assert connection.recv(1) == b""
    connection.close()
    listener.close()


def test_a_kernel_without_pidfds_of_peers(served, monkeypatch):
    """Before Linux 6.5, the start time is read twice instead."""

    def refuse(connection: socket.socket) -> int:
        return -1

    monkeypatch.setattr(sockets, "peer_pidfd", refuse)
    assert status(served.ask("true")) == 0


def test_a_socket_option_that_the_kernel_lacks(monkeypatch):
    monkeypatch.setattr(sockets, "SO_PEERPIDFD", 9999)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        assert sockets.peer_pidfd(one) == -1
        assert sockets.Peer(one).pid == os.getpid()
    assert errno.ENOPROTOOPT
    assert syscalls
