"""The loop, its streams, and the relays for a session's sockets, without a container: turns,
buffers, ends, exhaustion.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import threading

import pytest

from cntr.attach import user_sockets
from cntr.attach.caller import Caller
from cntr.proxy import stream
from cntr.proxy.loop import Loop
from tests.forward.kit import rest


@pytest.fixture
def loop():
    made = Loop()
    yield made
    made.close()


class Joined:
    """A client and a server, joined by a connection of the loop; over: whether that connection has ended."""

    def __init__(self, loop, kind=socket.AF_UNIX, buffers=None):
        self.over, buffers = False, buffers or stream.Buffers()
        self.client, near = pair(kind)
        far, self.server = pair(kind)
        flows = stream.Flow(near, far, buffers), stream.Flow(far, near, buffers)
        self.connection = stream.Connection(loop, near, far, flows, self.ended)

    def ended(self, connection):
        self.over = True

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if not self.over:
            self.connection.close()
        self.client.close()
        self.server.close()


def pair(kind):
    if kind == socket.AF_UNIX:
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def settle(loop):
    """Take turns until nothing is ready."""
    for _ in range(1000):
        if not loop.is_ready():
            return
        loop.turn()
    raise AssertionError("the loop never became idle")


def flood(loop, end):
    """Send until nothing more is accepted; return the number of bytes."""
    count = 0
    while select.select([], [end], [], 0)[1]:
        end.setblocking(False)
        count += end.send(bytes(1 << 20))
        settle(loop)
    end.setblocking(True)
    return count


def receive(loop, end, count):
    """Read COUNT bytes."""
    while count:
        data = end.recv(count)
        assert data
        count -= len(data)
        settle(loop)


def test_where_no_buffer_is_left_a_small_one_does(loop, monkeypatch):
    monkeypatch.setattr(stream, "MOST_BUFFERS", 1)
    buffers, data, said = stream.Buffers(), os.urandom(3 << 20), []
    joined = [Joined(loop, buffers=buffers) for _ in range(2)]

    def send(end):
        end.sendall(data)
        end.close()

    def hear(end):
        said.append(rest(end))
        end.close()

    threads = [threading.Thread(target=send, args=(one.client,)) for one in joined]
    threads += [threading.Thread(target=hear, args=(one.server,)) for one in joined]
    for thread in threads:
        thread.start()
    while not all(one.over for one in joined):
        loop.turn()
    for thread in threads:
        thread.join()
    assert said == [data] * 2
    assert len(buffers.idle) == buffers.made == 1


def test_bulk_gives_way_to_small_transfers(loop):
    """A turn handles everything small, and one bulk transfer; these take turns."""
    called, pairs = [], {name: socket.socketpair() for name in ("bulk", "more", "little")}
    for name, (ours, theirs) in pairs.items():
        theirs.send(b"x")
        loop.add(ours.fileno(), lambda events, name=name: called.append(name))
        loop.give_way(ours.fileno(), name != "little")
    for _ in range(3):
        loop.turn()
    assert called == ["little", "bulk", "little", "more", "little", "bulk"]
    loop.remove(pairs["more"][0].fileno())
    loop.turn()
    loop.remove(pairs["bulk"][0].fileno())
    loop.turn()
    assert called[6:] == ["little", "bulk", "little"]

    for pair in pairs.values():
        for end in pair:
            loop.remove(end.fileno())
            end.close()

    with Joined(loop) as joined:
        joined.client.setblocking(False)
        count = joined.client.send(bytes(1 << 20))
        settle(loop)
        assert loop.giving_way == {end.fileno() for end in joined.connection.ends}
        receive(loop, joined.server, count)
        joined.client.send(b"x")
        settle(loop)
        assert not loop.giving_way


@pytest.mark.parametrize("answered", [False, True])
def test_a_reset_connection_takes_no_turns_while_its_data_is_unread(loop, answered):
    """Even if it is a write that notices the reset, what was sent before does not get a regular end of stream."""
    with Joined(loop, socket.AF_INET) as joined:
        count = flood(loop, joined.client)
        while answered and not joined.connection.flows[1].data:
            joined.server.send(bytes(1 << 14))
            settle(loop)
        stream.close(joined.client, reset=True)
        settle(loop)
        assert not joined.over
        with pytest.raises(ConnectionResetError):
            receive(loop, joined.server, count + 1)
        assert joined.over


def test_a_reset_after_all_was_sent_leaves_a_regular_end(loop):
    with Joined(loop, socket.AF_INET) as joined:
        joined.client.sendall(b"all")
        joined.client.shutdown(socket.SHUT_WR)
        settle(loop)
        stream.close(joined.client, reset=True)
        settle(loop)
        assert joined.over
        assert rest(joined.server) == b"all"


class Relayed:
    """A server's socket, and the session's socket that leads to it."""

    def __init__(self, loop, tmp_path, backlog):
        self.real, listener = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.real.bind(f"{tmp_path}/real")
        self.real.listen(backlog)
        self.path = f"{tmp_path}/session"
        listener.bind(self.path)
        listener.listen()
        listener.setblocking(False)
        source = user_sockets.Source("--socket", f"{tmp_path}/real", "session")
        source.listener = listener
        self.server, self.made = user_sockets.Server(loop, source, Caller()), [self.real, listener]

    def connect(self):
        made = socket.socket(socket.AF_UNIX)
        made.connect(self.path)
        self.made.append(made)
        return made

    def close(self):
        for connection in list(self.server.connections):
            connection.close()
        for one in self.made:
            one.close()


@pytest.fixture
def relayed(loop, tmp_path):
    made = Relayed(loop, tmp_path, 0)
    yield made
    made.close()


def test_a_session_that_has_used_up_all_files_is_served_again_when_there_are_some(loop, relayed):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = [relayed.connect() for _ in range(2)]
    free = os.dup(0)
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))  # for accepting, not for connecting
        loop.turn()
        assert clients[0].recv(1) == b""
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        loop.turn()
        assert not loop.is_ready()  # it does not retry in a busy loop
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    while not relayed.server.connections:
        loop.turn()
    assert say_through(loop, relayed, clients[1]) == b"x"


def test_a_server_that_was_busy_is_reached_again_later(loop, relayed, monkeypatch):
    monkeypatch.setattr(user_sockets, "MOST", 1)
    monkeypatch.setattr(user_sockets, "TRIES", 1)
    filling = socket.socket(socket.AF_UNIX)
    filling.connect(relayed.real.getsockname())
    relayed.made.append(filling)
    refused, client = relayed.connect(), relayed.connect()
    loop.turn()
    while relayed.server.waiting:
        loop.turn()
    assert refused.recv(1) == b""
    relayed.real.accept()[0].close()
    while not relayed.server.connections:
        loop.turn()
    assert say_through(loop, relayed, client) == b"x"


def say_through(loop, relayed, client):
    """What the server receives from the client."""
    client.send(b"x")
    accepted = relayed.real.accept()[0]
    with accepted:
        settle(loop)
        return accepted.recv(9)
