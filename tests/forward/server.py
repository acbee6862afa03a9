"""The server of a container in these tests, run in its network namespace: ``server.py DIRECTORY``, for its Unix sockets.

echo: 80 (127.0.0.1), 81 (::1 only), 53/udp, @app, DIRECTORY/app.sock. 9 counts and hashes what comes until the end, then tells.
19 sends as many bytes as it is asked for. 7 accepts and never reads.
"""

import fcntl
import hashlib
import os
import socket
import struct
import sys
import threading

SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def echo(connection: socket.socket) -> None:
    """Send back what is received, after a mark."""
    while data := connection.recv(1 << 16):
        connection.sendall(b"<" + data)


def count(connection: socket.socket) -> None:
    """Send the length and digest of what was received."""
    digest, length = hashlib.sha256(), 0
    while data := connection.recv(1 << 18):
        digest.update(data)
        length += len(data)
    connection.sendall(f"{length} {digest.hexdigest()}".encode())


def give(connection: socket.socket) -> None:
    """Send the bytes 0…255 repeatedly."""
    length, chunk = int(connection.recv(64)), bytes(range(256)) * 256
    while length > 0:
        length -= connection.send(chunk[:length])


def hold(connection: socket.socket) -> None:
    """Never read."""
    threading.Event().wait()


def serve(listener: socket.socket, work) -> None:
    def one(connection: socket.socket) -> None:
        with connection:
            try:
                work(connection)
            except OSError:
                pass

    def accept() -> None:
        while True:
            threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def unix(name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    if name[0] == "/" and os.path.exists(name):
        os.unlink(name)
    listener.bind(name)
    listener.listen(100)
    return listener


def main() -> None:
    threading.stack_size(1 << 17)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(datagrams, SIOCSIFFLAGS, struct.pack("16sH", b"lo", IFF_UP))
    for port, work in ((80, echo), (9, count), (19, give), (7, hold)):
        serve(socket.create_server(("127.0.0.1", port), backlog=4096), work)
    try:
        serve(socket.create_server(("::1", 81), family=socket.AF_INET6), echo)
    except OSError:
        pass  # Docker has no IPv6 in a container's network by default
    serve(unix("\0app"), echo)
    serve(unix(f"{sys.argv[1]}/app.sock"), echo)
    datagrams.bind(("127.0.0.1", 53))
    print("up", flush=True)
    while True:
        data, address = datagrams.recvfrom(1 << 16)
        datagrams.sendto(b"<" + data, address)


if __name__ == "__main__":
    main()
