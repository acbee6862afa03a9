"""``cntr forward`` beside a direct connection on the same loopback: ``nox -s bench -- forward``.

Measures bytes per second of one stream in interleaved rounds; connecting with one byte each way; thousands of
connections at once, all answered; and a container that restarts repeatedly under load, where every acknowledged byte
must have arrived.

A peer is any relay: ``--peer 'NAME=COMMAND'``, where {listen} and {connect} stand for its two ports on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import secrets
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import measure
from testkit.container import SlimContainer

SERVER = r"""
import fcntl, hashlib, resource, selectors, socket, struct, sys, threading
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sH", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
def sink(connection, digest):
    buffer, length = bytearray(1 << 20), 0
    try:
        while count := connection.recv_into(buffer):
            length += count
            if digest:
                digest.update(memoryview(buffer)[:count])
        connection.sendall(f"{length} {digest.hexdigest() if digest else '-'}".encode())
    except OSError:
        pass
    connection.close()
def accept(listener, make):
    while True:
        threading.Thread(target=sink, args=(listener.accept()[0], make()), daemon=True).start()
for port, make in ((0, lambda: None), (1, hashlib.sha256)):
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) + port), backlog=100)
    threading.Thread(target=accept, args=(listener, make), daemon=True).start()
echo, selector = socket.create_server(("127.0.0.1", int(sys.argv[1]) + 2), backlog=4096), selectors.EpollSelector()
selector.register(echo, selectors.EVENT_READ)
print("up", flush=True)
while True:
    for key, _ in selector.select():
        if key.fileobj is echo:
            selector.register(echo.accept()[0], selectors.EVENT_READ)
            continue
        try:
            data = key.fileobj.recv(1 << 16)
            if data:
                key.fileobj.sendall(data)
        except OSError:
            data = b""
        if not data:
            selector.unregister(key.fileobj)
            key.fileobj.close()
"""
FIRST_PORT = 18400  # in the container and, for direct connections, here
PORTS = ("sink", "digest", "echo")
PEER_PORT = FIRST_PORT + 100  # where the first peer listens


class Web:
    """A container with the server, which is found again by a word on its command line."""

    def __init__(self) -> None:
        """Nothing is started yet."""
        self.mark = f"bench-{secrets.token_hex(4)}"
        self.container: SlimContainer | None = None
        self.server: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the container and the server."""
        self.container = SlimContainer("bench", argv=["/app", self.mark])
        self.container.__enter__()
        self.server = serve("nsenter", "-t", str(self.container.pid), "-n")

    def stop(self) -> None:
        """Stop both."""
        if self.server:
            self.server.kill()
            self.server.communicate()
        if self.container:
            self.container.stop()
        self.server = self.container = None


def serve(*prefix: str) -> subprocess.Popen[str]:
    """Start the server; return once it listens."""
    words = [*prefix, sys.executable, "-c", SERVER, str(FIRST_PORT)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    return process


@contextmanager
def forward(target: str) -> Iterator[tuple[int, dict[str, int]]]:
    """Start a forward; yield (its pid, {name: port on this machine})."""
    words = [sys.executable, "-m", "cntr", "forward", target, "--json"]
    words += [f"0:{FIRST_PORT + number}" for number in range(len(PORTS))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            events = (json.loads(line) for line in process.stdout)
            listening = (event for event in events if event["event"] == "listening")
            yield process.pid, {name: int(next(listening)["port"]) for name in PORTS}
        finally:
            process.terminate()


@contextmanager
def relay(command: str, port: int) -> Iterator[int]:
    """Start another relay, from PORT to the direct server's sink; yield PORT once it accepts connections."""
    words = shlex.split(command.replace("{listen}", str(port)).replace("{connect}", str(FIRST_PORT)))
    if not shutil.which(words[0]):
        raise SystemExit(f"bench: no program {words[0]} in PATH")
    with subprocess.Popen(words, start_new_session=True) as process:
        try:
            until = time.monotonic() + 10
            while process.poll() is None and time.monotonic() < until:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.02)
            else:
                raise SystemExit(f"bench: {words[0]} does not listen on port {port}")
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def throughput(port: int, size: int) -> float:
    """GB/s of one stream of SIZE bytes, until the other end has acknowledged them all."""
    data, view = bytes(1 << 20), size
    with socket.create_connection(("127.0.0.1", port)) as connection:
        begun = time.perf_counter()
        while view > 0:
            view -= connection.send(data[: min(view, len(data))])
        connection.shutdown(socket.SHUT_WR)
        length = int(connection.recv(100).split()[0])
        took = time.perf_counter() - begun
    assert length == size
    return size / took / 1e9


def first_byte(port: int, count: int) -> list[float]:
    """Milliseconds from connect to a one-byte answer, COUNT times."""
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            times.append((time.perf_counter() - begun) * 1000)
    return times


def many(port: int, count: int) -> float:
    """Seconds until COUNT simultaneous connections have each had their answer."""
    begun = time.perf_counter()
    connections = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(count)]
    try:
        for number, connection in enumerate(connections):
            connection.sendall(b"%d" % number)
        for number, connection in enumerate(connections):
            assert connection.recv(9) == b"%d" % number
        return time.perf_counter() - begun
    finally:
        for connection in connections:
            connection.close()


class Load:
    """Sends messages in sequence, each until it is acknowledged. lost: acknowledged bytes that had not arrived."""

    def __init__(self, port: int) -> None:
        """port: of the forward."""
        self.port, self.over = port, threading.Event()
        self.answered = self.cut = self.refused = self.lost = self.size = 0
        self.threads = [threading.Thread(target=self.run) for _ in range(4)]

    def run(self) -> None:
        """Send messages until told to stop."""
        while not self.over.is_set():
            data = os.urandom(1 << 18)
            while not self.send(data):
                self.cut += 1
            self.answered += 1
            self.size += len(data)

    def send(self, data: bytes) -> bool:
        """Send one message; return whether it was acknowledged."""
        try:
            connection = socket.create_connection(("127.0.0.1", self.port), 90)
        except ConnectionRefusedError:
            self.refused += 1
            time.sleep(0.01)
            return False
        except ConnectionResetError:  # the container ended during the accept
            return False
        with connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(200).decode().split()
            except OSError:
                return False
        if not answer:  # the server was killed after it had read everything, before it could answer
            return False
        if answer[1] != hashlib.sha256(data).hexdigest():
            self.lost += len(data) - int(answer[0])
        return True


def restarts(web: Web, port: int, count: int) -> dict[str, float]:
    """Restart the container COUNT times under load; return the figures."""
    load = Load(port)
    for thread in load.threads:
        thread.start()
    begun = time.perf_counter()
    for _ in range(count):
        time.sleep(0.2)
        web.stop()
        web.start()
    took = time.perf_counter() - begun
    load.over.set()
    for thread in load.threads:
        thread.join()
    return {
        "restarts": count,
        "seconds": round(took, 1),
        "messages": load.answered,
        "MB": round(load.size / 1e6),
        "cut off and sent again": load.cut,
        "refused": load.refused,
        "bytes lost": load.lost,
    }


def page(report: dict[str, Any]) -> str:
    """The tables in Markdown, with the command that made them."""
    rate, first, crowd, restarted = (report[name] for name in ("throughput", "first byte", "connections", "restarts"))
    made = report["machine"]
    best = rate["best forward"] / rate["best direct"]
    lines = [
        "A client, the relay and a server in a container of its own network namespace, beside the same client and server without",
        "a relay. Both use this machine's loopback, so three processes share the processors that otherwise two use.\n",
        f"{made['date']}, kernel {made['kernel']}, {made['cores']} processors, load average {made['load']} at the start; "
        f"made by `{made['command']}`.\n",
        "| | direct | forwarded | |",
        "|---|---|---|---|",
        f"| one stream, GB/s, median of {rate['rounds']} | {rate['direct']:.2f} | {rate['forward']:.2f} | {rate['ratio']:.0%} |",
        f"| its best round | {rate['best direct']:.2f} | {rate['best forward']:.2f} | {best:.0%} |",
        *(
            f"| the same stream by {name} | | {found:.2f} | {found / rate['direct']:.0%} |"
            for name, found in rate["peers"].items()
        ),
        f"| first byte, ms, median of {first['count']} | {first['direct']:.2f} | {first['forward']:.2f} "
        f"| +{first['forward'] - first['direct']:.2f} |",
        f"| {crowd['count']} connections at once, s | {crowd['direct']:.1f} | {crowd['forward']:.1f} "
        f"| {crowd['relay MB']:.0f} MB in the relay |",
        "\n| " + " | ".join(restarted) + " |",
        "|" + "---|" * len(restarted),
        "| " + " | ".join(f"{value:g}" for value in restarted.values()) + " |",
    ]
    return "\n".join(lines)


def compare(options: argparse.Namespace, web: Web) -> dict[str, Any]:
    """Measure everything."""
    report: dict[str, Any] = {}
    with ExitStack() as stack:
        pid, ports = stack.enter_context(forward(f"command:{web.mark}"))
        direct = stack.enter_context(serve())
        try:
            places = {"direct": FIRST_PORT, "forward": ports["sink"]}
            for number, (name, command) in enumerate(options.peer):
                places[name] = stack.enter_context(relay(command, PEER_PORT + number))
            rates: dict[str, list[float]] = {name: [] for name in places}
            for number in range(options.rounds):
                for name in sorted(places, reverse=bool(number % 2)):
                    rates[name].append(throughput(places[name], int(options.gigabytes * 1e9)))
            middle = {name: statistics.median(found) for name, found in rates.items()}
            report["throughput"] = {
                **middle,
                "ratio": middle["forward"] / middle["direct"],
                **{f"best {name}": max(found) for name, found in rates.items()},
                "rounds": options.rounds,
                "peers": {name: middle[name] for name, _ in options.peer},
            }
            echo = FIRST_PORT + PORTS.index("echo")
            times = {
                name: first_byte(port, options.first) for name, port in (("direct", echo), ("forward", ports["echo"]))
            }
            report["first byte"] = {name: statistics.median(found) for name, found in times.items()}
            report["first byte"]["count"] = options.first
            report["connections"] = {
                "direct": many(echo, options.connections),
                "forward": many(ports["echo"], options.connections),
                "count": options.connections,
                "relay MB": int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024,
            }
        finally:
            direct.kill()
        report["restarts"] = restarts(web, ports["digest"], options.restarts)
    return report


def named(text: str) -> tuple[str, str]:
    """Split NAME=COMMAND. Raises ArgumentTypeError."""
    name, equals, command = text.partition("=")
    if not (name and equals and command):
        raise argparse.ArgumentTypeError("NAME=COMMAND is expected")
    return name, command


def main() -> int:
    """The command line; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m bench.forward", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of one stream")
    parser.add_argument("--first", type=int, default=1000, help="connections whose first byte is timed")
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--peer", action="append", default=[], type=named, metavar="NAME=COMMAND")
    parser.add_argument("--json", type=Path, default=Path("reports/bench-forward.json"))
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # On a busy machine three processes wait longer for a processor than two. With real-time priority none waits for
    # other programs.
    alone = f"chrt -r {os.sched_getparam(0).sched_priority} " if os.sched_getscheduler(0) == os.SCHED_RR else ""
    made_on, web = {**measure.machine(), "command": alone + " ".join(["python -m bench.forward", *sys.argv[1:]])}, Web()
    web.start()
    try:
        report = compare(options, web)
    finally:
        web.stop()
    report = {"machine": made_on, **report}
    print(page(report))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if report["restarts"]["bytes lost"] or report["restarts"]["refused"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
