"""What a user of the machine claims, run as that user: ``python claims.py KIND NAME PID``. Says "ready" when it lies, and stays."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import threading
import time

UID = os.getuid()
RUNTIME = f"/run/user/{UID}"
HOME = os.environ["HOME"]
ID = "ab" * 32


def write(path: str, text: str) -> None:
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(text)


def start_time(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def docker(name: str, pid: int, id: str = ID) -> None:
    record = {
        "Id": id, "Name": f"/{name}", "Image": "x", "State": {"Pid": pid, "Running": True, "Paused": False, "Status": "running"},
        "Config": {"Env": [], "Image": "x"}, "Names": [f"/{name}"], "GraphDriver": {}, "HostConfig": {},
    }  # fmt: skip
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{RUNTIME}/docker.sock")
    listener.listen(16)

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            request = connection.recv(65536).decode()
            body = json.dumps([record] if "/containers/json" in request else record).encode()
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            connection.close()

    threading.Thread(target=serve, daemon=True).start()


def docker_short(name: str, pid: int) -> None:
    docker(name, pid, "a")


def docker_empty(name: str, pid: int) -> None:
    docker(name, pid, "")


def crun(name: str, pid: int) -> None:
    record = {
        "pid": pid,
        "process-start-time": start_time(pid),
        "rootfs": "/",
        "bundle": "/",
        "created": "x",
        "cgroup-path": "/",
    }
    write(f"{RUNTIME}/crun/{name}/status", json.dumps(record))


def runc(name: str, pid: int) -> None:
    record = {
        "id": name,
        "init_process_pid": pid,
        "init_process_start": start_time(pid),
        "config": {"rootfs": "/", "labels": []},
        "cgroup_paths": {},
    }
    write(f"{RUNTIME}/runc/{name}/state.json", json.dumps(record))


def podman(name: str, pid: int) -> None:
    store = f"{HOME}/.local/share/containers/storage"
    row = {
        "id": ID,
        "names": [name],
        "layer": "ab" * 32,
        "image": "x",
        "metadata": json.dumps({"name": name}),
        "created": "2020-01-01T00:00:00Z",
    }
    write(f"{store}/overlay-containers/containers.json", json.dumps([row]))
    for where in (f"{RUNTIME}/containers", f"{store}/tmp", f"{RUNTIME}/libpod/tmp"):
        write(f"{where}/overlay-containers/{ID}/userdata/pidfile", str(pid))
        write(f"{where}/overlay-containers/{ID}/userdata/conmon.pid", str(os.getpid()))
    write(f"{store}/libpod/bolt_state.db", "")


def buildah(name: str, pid: int) -> None:
    podman(name, pid)
    store = f"{HOME}/.local/share/containers/storage"
    write(f"{store}/overlay-containers/{ID}/userdata/buildah.json", "{}")
    write("/var/tmp/buildah12345/pid", str(pid))


def lxc(name: str, pid: int) -> None:
    for path in ("/var/lib/lxc", "/var/lib/lxd/containers", "/var/lib/incus/containers", f"{HOME}/.local/share/lxc"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0{path}/{name}/command")
        listener.listen(16)

        def serve(listener: socket.socket = listener) -> None:
            while True:
                connection, _ = listener.accept()
                connection.recv(4096)
                connection.sendall(struct.pack("iiq", 0, 0, pid)[:16])
                connection.close()

        threading.Thread(target=serve, daemon=True).start()


def titled(title: list[str], child: list[str]) -> None:
    """A process of this user whose command line begins with TITLE, and whose child is a program that may run as another user (set-id)."""
    script = "import ctypes,subprocess,sys; ctypes.CDLL(None).prctl(1,9); subprocess.Popen(eval(sys.argv[-1]), stdin=subprocess.PIPE).wait()"
    # The kernel shows what execve(2) was given: Python takes its options from the second word on.
    words = [title[0], "-c", script, *title[1:], repr(child)]
    die = ctypes.CDLL(None).prctl
    subprocess.Popen(words, executable="/usr/bin/python3", stdin=subprocess.DEVNULL, preexec_fn=lambda: die(1, 9))


def apptainer(name: str, pid: int) -> None:
    titled([f"Apptainer instance: mallory [{name}]"], ["/usr/bin/passwd"])
    write(
        f"{HOME}/.apptainer/instances/app/{os.uname().nodename}/mallory/{name}/{name}.json",
        json.dumps({"pid": pid, "ppid": os.getpid()}),
    )


def nspawn(name: str, pid: int) -> None:
    titled(["systemd-nspawn", f"--machine={name}", "-D", "/"], ["/usr/bin/passwd"])


def shim(name: str, pid: int) -> None:
    titled(["containerd-shim-runc-v2", "-namespace", "moby", "-id", name, "-address", "/run/x"], ["/usr/bin/passwd"])
    titled(["conmon", "-n", name, "-c", ID, "-p", f"{HOME}/pid"], ["/usr/bin/passwd"])
    write(f"{HOME}/pid", str(pid))


def linked(name: str, pid: int) -> None:
    """The state directory is a link to another user's, whose files are then "its own"."""
    links = {
        f"{RUNTIME}/crun": "/run",
        f"{RUNTIME}/runc": "/run/attack-other",
        f"{HOME}/.local/share/containers": "/var/lib/containers",
    }
    os.makedirs(f"{HOME}/.local/share", exist_ok=True)
    for path, target in links.items():
        if not os.path.lexists(path):
            os.symlink(target, path)


# --- no claims, but what is read for all users ------------------------------------------------------------------------


def bombs(name: str, pid: int) -> None:
    """JSON of 300 MB, of a million brackets, of one long number; a database that is none; FIFOs and links to what has no end."""
    deep = "[" * 200_000
    write(f"{RUNTIME}/crun/deep/status", deep)
    write(f"{RUNTIME}/runc/deep/state.json", '{"a":' * 100_000)
    write(f"{RUNTIME}/crun/number/status", '{"pid": ' + "9" * 1_000_000 + "}")
    write(f"{RUNTIME}/crun/float/status", '{"pid": 1e999, "process-start-time": NaN}')
    write(f"{RUNTIME}/crun/odd/status", '{"pid": [], "process-start-time": {}}')
    for number in range(3000):
        write(f"{RUNTIME}/crun/many{number}/status", "{}")
    os.makedirs(f"{RUNTIME}/crun/fifo")
    os.mkfifo(f"{RUNTIME}/crun/fifo/status")
    for kind, target in (("zero", "/dev/zero"), ("mem", "/proc/self/pagemap"), ("tty", "/dev/tty"), ("self", "status")):
        os.makedirs(f"{RUNTIME}/crun/{kind}")
        os.symlink(target, f"{RUNTIME}/crun/{kind}/status")
    store = f"{HOME}/.local/share/containers/storage"
    write(f"{store}/overlay-containers/containers.json", "[" + '{"id":"x","names":["y"]},' * 6_000_000 + "{}]")
    write(f"{store}/overlay-layers/layers.json", '{"x":' * 1_000_000)
    write(f"{store}/db.sql", "SQLite format 3\0" + "x" * 100_000)
    write(f"{store}/libpod/bolt_state.db", "y" * 100_000)
    sparse = f"{RUNTIME}/runc/sparse/state.json"
    write(sparse, "{")
    os.truncate(sparse, 1 << 40)


def silent(name: str, pid: int) -> None:
    """Sockets that take connections and say nothing, or never stop saying something."""
    for number, path in enumerate(
        (
            f"{RUNTIME}/docker.sock",
            f"{RUNTIME}/podman/podman.sock",
            f"\0/var/lib/lxc/{name}/command",
            f"{RUNTIME}/incus.sock",
        )
    ):
        if path[0] != "\0":
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(16)

        def serve(listener: socket.socket = listener, talks: bool = not number) -> None:
            while True:
                connection, _ = listener.accept()
                if talks:
                    threading.Thread(target=drip, args=(connection,), daemon=True).start()
                else:
                    held.append(connection)

        threading.Thread(target=serve, daemon=True).start()


held: list[socket.socket] = []


def drip(connection: socket.socket) -> None:
    """An answer of which a little comes every now and then, and never the end."""
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"1\r\n[\r\n")
            time.sleep(0.2)
    except OSError:
        pass


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
    print("ready", flush=True)
    time.sleep(60)
