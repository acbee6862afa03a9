"""The lab's own libvirtd, with its own configuration, state and socket, in a mount namespace where these cover the
host's.

libvirtd has /etc/libvirt, /var/lib/libvirt and /run/libvirt compiled in. In the daemon's mount namespace these are
directories of the lab, so nothing of the host's is read or written. The socket is reached by the lab's path.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from . import paths
from .errors import LabError

QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
"""
LIBVIRTD_CONF = """\
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
"""
# libvirtd looks up the user libvirt-qemu before it reads that another one is configured, and exits if it is missing.
EXTRA_USER = "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n"
EXTRA_GROUP = "libvirt-qemu:x:64055:\n"
_started: list[subprocess.Popen[bytes]] = []
"""It outlives its starter. A Popen dropped before its process has ended is a warning, which fails a scenario."""

SCRIPT = """\
set -e
for pair in etc/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt run/libvirt; do
    mkdir -p "/$pair"
    mount --bind "$1/$pair" "/$pair"
done
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
exec libvirtd --pid-file "$1/libvirtd.pid"
"""


def uri(told: str = "") -> str:
    """The libvirt to use: as requested, the user's default, the lab's own daemon (as root), or the user's session
    daemon.

    Raises LabError if the lab's own daemon does not start.
    """
    chosen = told or os.environ.get("LIBVIRT_DEFAULT_URI", "")
    if chosen:
        return chosen
    if os.geteuid() != 0:
        return "qemu:///session"
    return f"qemu:///system?socket={ensure()}"


def place() -> Path:
    """The daemon's directory. Paths in /run are short enough for a socket, and disappear at a reboot."""
    return Path("/run/cntr-lab/libvirt")


def ensure() -> Path:
    """The socket of the lab's daemon, which is started if necessary."""
    import fcntl

    root = place()
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two labs share one daemon
        socket = root / "run/libvirt/libvirt-sock"
        if not running():
            _start(root, socket)
        return socket


def running() -> int:
    """The daemon's pid, 0 if it does not run."""
    try:
        pid = int((place() / "libvirtd.pid").read_text())
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return 0
    return pid if str(place()).encode() in line else 0


def _start(root: Path, socket: Path) -> None:
    if not shutil.which("libvirtd"):
        raise LabError("vagrant needs libvirtd, which is not installed", "python -m lab doctor, or --driver qemu")
    for directory in ("etc/libvirt", "var/log/libvirt", "var/cache/libvirt", "run/libvirt"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    storage = paths.cache_dir() / "libvirt"  # disks: not in /run, which is memory
    storage.mkdir(parents=True, exist_ok=True)
    (root / "var/lib").mkdir(parents=True, exist_ok=True)
    link = root / "var/lib/libvirt"
    if not link.is_symlink():
        link.symlink_to(storage)
    (root / "etc/libvirt/qemu.conf").write_text(QEMU_CONF)
    (root / "etc/libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF)
    _with_line(root / "passwd", Path("/etc/passwd"), EXTRA_USER)
    _with_line(root / "group", Path("/etc/group"), EXTRA_GROUP)
    socket.unlink(missing_ok=True)
    with (root / "libvirtd.log").open("ab") as log:
        process = subprocess.Popen(
            # Its machines inherit the nice value of the lab that started it.
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "lab-libvirtd", str(root)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    _started.append(process)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if socket.exists() and _answers(socket):
            return
        time.sleep(0.2)
    tail = "\n".join((root / "libvirtd.log").read_text(errors="replace").splitlines()[-6:])
    raise LabError(f"the lab's libvirtd did not start:\n{tail}", "--driver qemu needs no libvirtd")


def _answers(socket: Path) -> bool:
    done = subprocess.run(
        ["virsh", "-c", f"qemu:///system?socket={socket}", "version"], capture_output=True, timeout=20, check=False
    )
    return done.returncode == 0


def _with_line(target: Path, source: Path, line: str) -> None:
    text = source.read_text()
    if not any(row.startswith(line.split(":", 1)[0] + ":") for row in text.splitlines()):
        text += line
    target.write_text(text)


def domains() -> list[str]:
    """The names of the machines of the lab's daemon, which must be running."""
    command = [
        "virsh",
        "-q",
        "-c",
        f"qemu:///system?socket={place() / 'run/libvirt/libvirt-sock'}",
        "list",
        "--all",
        "--name",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.split() if done.returncode == 0 else ["(it does not answer)"]


def stop_if_idle() -> bool:
    """End the daemon if it has no machine left, of any lab or made by hand; return whether it was ended."""
    import fcntl

    if not running():
        return False
    with (place() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A run writes its state before it asks for the daemon: see VagrantDriver.up.
        expected = any('"driver": "vagrant"' in note.read_text() for note in paths.runs_dir().glob("*/state.json"))
        return not expected and not domains() and stop()


def stop() -> bool:
    """End the lab's daemon and remove its files; return whether there was one."""
    pid = running()
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 15
        while running() and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in _started:  # a process that is ending has no command line any more, but no exit status yet
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
    _started[:] = [process for process in _started if process.poll() is None]
    shutil.rmtree(place(), ignore_errors=True)
    with contextlib.suppress(OSError):
        place().parent.rmdir()
    return bool(pid)
