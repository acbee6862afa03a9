"""The far machine of ``cntr --host``: a real sshd on this machine, in a mount namespace of its own."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
NEEDED = {"sshd": "openssh-server", "ssh": "openssh-client", "sudo": "sudo"}
WORKER = 29996  # an ordinary user there with rights for sudo
CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {place}/host
PidFile {place}/sshd.pid
AuthorizedKeysFile {place}/user.pub
UsePAM no
StrictModes no
LogLevel VERBOSE
MaxStartups 100
SetEnv {mark}
Match User bare
  SetEnv PATH={place}/bare
"""
CLIENT = """
Host far also
  HostName 127.0.0.1
Host *
  Port {port}
  IdentityFile {place}/user
  UserKnownHostsFile {place}/known
  StrictHostKeyChecking yes
  IdentitiesOnly yes
  RemoteCommand echo not this
  LocalForward {port} localhost:1
  SendEnv LANG
"""
# The far side's own files, so that this machine's are not changed.
VIEW = """
set -e
mount -t tmpfs tmpfs /run; mkdir -m 755 /run/sshd
mount -t tmpfs tmpfs /var/cache
mount --bind {place}/passwd /etc/passwd
mount --bind {place}/sudoers /etc/sudoers
exec {sshd} -D -f {place}/sshd_config -E {place}/log
"""


class Far:
    """The far machine: ``run`` is the near side."""

    def __init__(self, place: pathlib.Path) -> None:
        self.place = place
        programs = {name: shutil.which(name, path=SBIN) for name in NEEDED}
        if missing := [NEEDED[name] for name, path in programs.items() if not path]:
            pytest.skip(f"not installed: {' '.join(missing)} (apt-get install)")
        place.chmod(0o755)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
        public = (place / "host.pub").read_text()
        (place / "known").write_text(f"[127.0.0.1]:{self.port} {public}")
        mark = f"TESTMARK={os.environ.get('TESTMARK', '')}"
        values = {"place": place, "port": self.port, "mark": mark, "sshd": programs["sshd"]}
        (place / "sshd_config").write_text(CONFIG.format(**values))
        (place / "ssh_config").write_text(CLIENT.format(**values))
        kept = [
            row
            for row in pathlib.Path("/etc/passwd").read_text().splitlines()
            if not row.startswith(("root:", "sshd:"))
        ]
        (place / "talks").write_text('#!/bin/sh\necho welcome to this machine\nexec /bin/sh "$@"\n')
        (place / "talks").chmod(0o755)
        rows = {"root": 0, "sshd": WORKER + 1, "worker": WORKER, "bare": WORKER, "talker": 0}
        for name, uid in rows.items():
            shell = place / "talks" if name == "talker" else "/bin/sh"
            kept.append(f"{name}:*:{uid}:{uid}::{place}/home-{name}:{shell}")
            (place / f"home-{name}").mkdir()
            os.chown(place / f"home-{name}", uid, uid)
        (place / "passwd").write_text("\n".join(kept) + "\n")
        (place / "sudoers").write_text("worker ALL=(ALL) NOPASSWD: ALL\n")
        (place / "sudoers").chmod(0o440)
        (place / "bare").mkdir()
        (place / "bare/sh").symlink_to("/bin/sh")
        wrapper = place / "bin/ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec {programs["ssh"]} -F {place}/ssh_config "$@"\n')
        wrapper.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{wrapper.parent}:{os.environ['PATH']}",
            "CNTR_CACHE_DIR": f"{place}/near",
            "TMPDIR": str(place),
        }
        (place / "near").mkdir(mode=0o700)
        script = VIEW.format(**values)
        self.process = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sh", "-c", script])
        self.wait(self._listens)

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def wait(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Until CONDITION holds, at most so long. Raises AssertionError with the server's log."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not in time\n{self.log()}"
            time.sleep(0.02)

    def log(self) -> str:
        """What the server has written."""
        return (self.place / "log").read_text() if (self.place / "log").exists() else ""

    def connections(self) -> int:
        """How many have been made."""
        return self.log().count("Accepted publickey")

    def command(self, *words: str) -> list[str]:
        """cntr on the near side."""
        return [sys.executable, "-m", "cntr", *words]

    def run(self, *words: str, host: str = "root@far", input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run ``cntr --host HOST WORDS`` to its end."""
        command = self.command("--host", host, *words)
        return subprocess.run(command, env=self.environment, input=input, capture_output=True, timeout=60, check=False)

    def popen(self, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        """Start ``cntr --host worker@far WORDS``."""
        return subprocess.Popen(self.command("--host", "worker@far", *words), env=self.environment, **more)

    def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.wait()


@contextmanager
def far_machine() -> Iterator[Far]:
    """One in a directory of its own, which other users can reach. Skips the test if ssh, its server or sudo is missing."""
    with tempfile.TemporaryDirectory(prefix="cntr-far-") as place:
        found = Far(pathlib.Path(place))
        try:
            yield found
        finally:
            found.stop()


def runs(word: str) -> bool:
    """Whether a process with that command line exists."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if word.encode() in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False
