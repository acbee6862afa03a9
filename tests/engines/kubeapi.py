"""A Kubernetes API server of a few requests, for a real kubectl: pods, and exec over WebSocket (v5.channel.k8s.io, RFC 6455).

Its node is this machine, where commands in pods are run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pty
import struct
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PODS = {"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "shortNames": ["po"],
        "verbs": ["create", "delete", "get", "list", "watch"]}  # fmt: skip
STDIN, STDOUT, STDERR, ERROR, CLOSE = 0, 1, 2, 3, 255


class Server(ThreadingHTTPServer):
    """pods: by name; seen: (method, path) of each request; made: the bodies of created pods."""

    daemon_threads = True

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.environment = environment
        self.pods: dict[str, dict] = {}
        self.seen: list[tuple[str, str]] = []
        self.made: list[dict] = []
        self.broken = ""  # why a new pod does not start
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def add(self, pod: dict) -> None:
        self.pods[pod["metadata"]["name"]] = pod


class Handler(BaseHTTPRequestHandler):
    """A connection of kubectl's."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Log nothing; requests are in ``seen``."""

    def answer(self, body: object, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, reason: str, message: str) -> None:
        self.answer(
            {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": reason,
                "message": message,
                "code": status,
            },
            status,
        )

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.server.seen.append(("GET", url.path))
        parts = url.path.strip("/").split("/")
        if url.path == "/api":
            self.answer({"kind": "APIVersions", "versions": ["v1"]})
        elif url.path == "/apis":
            self.answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})
        elif url.path == "/api/v1":
            self.answer({"kind": "APIResourceList", "groupVersion": "v1", "resources": [PODS]})
        elif parts[-1] == "exec":
            self.execute(parse_qs(url.query, keep_blank_values=True))
        elif len(parts) == 4:
            self.answer({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": parts[3]}})
        elif len(parts) == 6 and parts[4] == "pods" and parts[5] in self.server.pods:
            self.answer(self.server.pods[parts[5]])
        else:
            self.refuse(404, "NotFound", f'pods "{parts[-1]}" not found')

    def do_POST(self) -> None:
        self.server.seen.append(("POST", self.path))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body["metadata"].setdefault("namespace", self.path.split("/")[4])
        state = (
            {"waiting": {"reason": self.server.broken, "message": "no such image"}}
            if self.server.broken
            else {"running": {}}
        )
        body["status"] = {
            "phase": "Pending" if self.server.broken else "Running",
            "containerStatuses": [{"state": state}],
        }
        self.server.made.append(body)
        self.server.add(body)
        self.answer(body, 201)

    def do_DELETE(self) -> None:
        self.server.seen.append(("DELETE", self.path))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer(self.server.pods.pop(urlsplit(self.path).path.rpartition("/")[2]))

    # --- exec ----------------------------------------------------------------------------------------------------------------

    def execute(self, asked: dict[str, list[str]]) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Protocol", "v5.channel.k8s.io"),
                            ("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        self.lock = threading.Lock()
        terminal = asked.get("tty") == ["true"]
        if terminal:
            master, slave = pty.openpty()
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
        else:
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            asked["command"], env=self.server.environment, cwd="/", start_new_session=True, **streams
        )
        if terminal:
            os.close(slave)
            outputs = [(STDOUT, os.fdopen(master, "rb", 0))]
            into = os.fdopen(os.dup(master), "wb", 0)
        else:
            outputs, into = [(STDOUT, process.stdout), (STDERR, process.stderr)], process.stdin
        threads = [threading.Thread(target=self.pump, args=row, daemon=True) for row in outputs]
        threads.append(threading.Thread(target=self.listen, args=(into,), daemon=True))
        if asked.get("stdin") != ["true"]:
            into.close()
        for thread in threads:
            thread.start()
        status = process.wait()
        for thread in threads[: len(outputs)]:
            thread.join(10)
        said = {"metadata": {}, "status": "Success"}
        if status:
            cause = {"reason": "ExitCode", "message": str(status % 256)}
            said = {"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                    "message": "it failed", "details": {"causes": [cause]}}  # fmt: skip
        self.send(ERROR, json.dumps(said).encode())
        self.send(None, struct.pack(">H", 1000))
        threads[-1].join(10)  # kubectl closes too
        for stream in (*(stream for _, stream in outputs), into):
            try:
                stream.close()
            except OSError:  # EPIPE: kubectl did not read everything
                pass

    def send(self, channel: int | None, data: bytes) -> None:
        """Send a server's frame, unmasked. channel None: close the connection."""
        data = data if channel is None else bytes([channel]) + data
        length = bytes([len(data)]) if len(data) < 126 else b"\x7e" + struct.pack(">H", len(data))
        with self.lock:
            try:
                self.wfile.write(bytes([0x88 if channel is None else 0x82]) + length + data)
            except OSError:
                pass

    def pump(self, channel: int, stream) -> None:
        while True:
            try:
                data = stream.read1(16384) if hasattr(stream, "read1") else stream.read(16384)
            except OSError:  # EIO: the terminal's last user has closed it
                data = b""
            if not data:
                break
            self.send(channel, data)

    def listen(self, into) -> None:
        """Read the client's masked frames until it closes."""
        try:
            while True:
                first, second = self.rfile.read(2)
                length = second & 0x7F
                if length > 125:
                    length = int.from_bytes(self.rfile.read(2 if length == 126 else 8), "big")
                mask = self.rfile.read(4)
                data = self.rfile.read(length)
                data = (
                    bytes(byte ^ mask[i & 3] for i, byte in enumerate(data))
                    if len(data) < 4096
                    else _unmask(data, mask)
                )
                if first & 0xF == 8:
                    break
                if first & 0xF == 9 or not data:
                    continue
                if data[0] == STDIN:
                    into.write(data[1:])
                    into.flush()
                elif data[0] == CLOSE and data[1:2] == b"\0":
                    into.close()
        except (OSError, ValueError):
            pass


def _unmask(data: bytes, mask: bytes) -> bytes:
    key = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(len(data), "big")
