"""``cntr --host``: a real sshd and a real ssh, this machine in a mount namespace of the test's own as the far one."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from cntr.errors import UsageError
from cntr.remote.ssh import Host
from tests.nest.box import Box
from tests.nest.tty import Terminal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
NEEDED = {"sshd": "openssh-server", "ssh": "openssh-client", "sudo": "sudo"}
WORKER = 29996  # an ordinary user there, whom sudo trusts
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
# What the far side has for itself, so that this machine keeps what it has.
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
        rows = {"root": 0, "sshd": WORKER + 1, "worker": WORKER, "bare": WORKER}
        for name, uid in rows.items():
            kept.append(f"{name}:*:{uid}:{uid}::{place}/home-{name}:/bin/sh")
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

    def wait(self, condition, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not in time\n{self.log()}"
            time.sleep(0.02)

    def log(self) -> str:
        return (self.place / "log").read_text() if (self.place / "log").exists() else ""

    def connections(self) -> int:
        return self.log().count("Accepted publickey")

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cntr", *words]

    def run(self, *words: str, host: str = "root@far", input: bytes = b"") -> subprocess.CompletedProcess:
        command = self.command("--host", host, *words)
        return subprocess.run(command, env=self.environment, input=input, capture_output=True, timeout=60, check=False)

    def popen(self, *words: str, **more) -> subprocess.Popen:
        return subprocess.Popen(self.command("--host", "worker@far", *words), env=self.environment, **more)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def far():
    with tempfile.TemporaryDirectory(
        prefix="cntr-far-"
    ) as place:  # other users come to it, as to pytest's own they do not
        found = Far(pathlib.Path(place))
        yield found
        found.stop()


@pytest.fixture(scope="module")
def box():
    with Box("far") as found:
        yield found


def runs(word: str) -> bool:
    """Whether a process of that command line is there."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if word.encode() in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize("user", ["root", "worker"])
def test_a_session_there_is_as_one_here(far, box, user):
    """Bytes, words, variables and statuses; one connection, two the first time; one file that nobody else can read."""
    host, pid = f"ssh://{user}@far:{far.port}", str(box.pid)
    before = far.connections()
    everything = bytes(range(256)) * 300
    done = far.run("attach", pid, "--", "cat", host=host, input=everything)
    assert (done.stderr, done.returncode, done.stdout == everything) == (b"", 0, True)
    assert far.connections() == before + 2
    words = ["it's", '"$HOME"', "a\\b", "new\nline", "…", "*", "!1", "", "--far", "{token}"]
    done = far.run(
        "attach",
        pid,
        "-e",
        "A=b c",
        "--",
        "sh",
        "-c",
        'printf "%s|" "$@" "$A"; echo err >&2; exit 255',
        "sh",
        *words,
        host=host,
    )
    assert done.stdout.decode() == "|".join([*words, "b c", ""])
    assert (done.stderr, done.returncode) == (b"err\n", 255)
    assert far.connections() == before + 3
    assert far.run("attach", pid, "--", "no-such-command", host=host).returncode == 127
    assert far.run("attach", pid, "--", "sh", "-c", "kill -9 $$", host=host).returncode == 137
    assert far.run("exec", pid, "--", "/bin/readlink", "/proc/self/exe", host=host).stdout == b"/bin/busybox\n"
    place = far.place / f"home-{user}/.cache/cntr/far"
    (file,) = place.iterdir()
    assert (place.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o700)
    assert file.stat().st_uid == (WORKER if user == "worker" else 0)
    file.unlink()  # a far side that has lost it
    for number in range(6):
        (place / f"{number}.pyz").touch()
        os.utime(place / f"{number}.pyz", (number, number))
    (place / "run-left").write_text("4194303")
    done = far.run("attach", pid, "--", "echo", "again", host=host)
    assert (done.stdout, done.stderr) == (b"again\n", b"")
    assert sorted(path.name for path in place.iterdir()) == sorted(["3.pyz", "4.pyz", "5.pyz", file.name])


def test_an_error_of_sshs_is_no_status_of_a_commands(far, box):
    for host, said in (("ssh://root@far:1", "Connection refused"), ("nobody-known@far", "Permission denied")):
        done = far.run("attach", str(box.pid), host=host)
        assert done.returncode == 125
        assert done.stderr.decode().startswith(f"cntr: {host}: "), done.stderr
        assert said in done.stderr.decode()
        assert done.stderr.count(b"\n") == 2
    done = far.run("ps", host="bare@far")
    assert (done.returncode, done.stderr.splitlines()[0]) == (125, b"cntr: bare@far: there is no python3")
    done = far.run("attach", "no-such-container")
    assert (done.returncode, done.stderr[:24]) == (125, b"cntr: no-such-container:")


def test_a_terminal_there_is_as_one_here(far, box):
    """Its size, a change of it, keys, and the status; and the session ends when the terminal is gone."""
    assert far.run("ps").returncode == 0  # it is there by now
    mark = f"79{os.getpid()}1"
    script = f"stty size; read a; stty size; echo got $a; sleep {mark}"
    command = far.command("--host", "worker@far", "attach", str(box.pid), "--", "sh", "-c", script)
    with Terminal(*command, env=far.environment) as terminal:
        terminal.wait_for("24 80")
        terminal.resize(30, 91)
        terminal.type("x\n")
        terminal.wait_for("30 91")
        terminal.wait_for("got x")
        far.wait(lambda: runs(mark))
        terminal.hang_up()
        far.wait(lambda: not runs(mark))
    with Terminal(*command[:-1], "read a; exit 3", env=far.environment) as terminal:
        terminal.type("x\n")
        assert terminal.process.wait(20) == 3
        assert terminal.mode() == terminal.before


def test_a_signal_reaches_the_far_command(far, box):
    """And its answer comes back."""
    script = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    process = far.popen(
        "attach", str(box.pid), "--", "sh", "-c", script, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == b"got it\n"
    assert process.returncode == 9


def test_nothing_is_left_there_when_the_near_side_is_killed(far, box):
    mark = f"78{os.getpid()}1"
    script = f"trap '' HUP TERM; echo ready; while :; do sleep {mark}; done"
    process = far.popen("attach", str(box.pid), "--", "sh", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    far.wait(lambda: runs(mark))
    process.kill()
    process.communicate()
    far.wait(lambda: not runs(mark) and not runs(script))
    far.wait(lambda: not list((far.place / "home-worker/.cache/cntr/far").glob("run-*")))


def test_ps_of_several_is_one_table(far):
    hosts = f"root@far,ssh://worker@also:{far.port},ssh://root@far:1"
    command = far.command("ps", "--json", "--host", hosts)
    done = subprocess.run(command, env=far.environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 125
    assert isinstance(json.loads(done.stdout), list)
    shown = far.run("ps", "--all", host=hosts).stdout.decode()
    assert shown.startswith("HOST")
    assert shown.splitlines()[-1].startswith("ssh://root@far:1: ")
    assert "Connection refused" in shown


NO_HOSTS = [
    "-oProxyCommand=touch /x",
    "ssh://-l@x",
    "ssh://a@-x",
    "a b",
    "x;y",
    "$(x)",
    "",
    "ssh://x:y",
    "ssh://x:0",
    "tcp://x",
]
NO_HOSTS += ["ssh://[::1", "ssh://x:99999", "@x", "x/y", "é"]


@pytest.mark.parametrize("name", NO_HOSTS)
def test_what_is_no_host_is_not_given_to_ssh(name):
    with pytest.raises(UsageError):
        Host(name)


def test_what_is_one(far):
    for text, words in (
        ("ssh://u@h:22", ["-p", "22", "-l", "u", "--", "h"]),
        ("ssh://[fe80::1%eth0]:22", ["-p", "22", "--", "fe80::1%eth0"]),
        ("h", ["--", "h"]),
        ("u@h.example", ["-l", "u", "--", "h.example"]),
    ):
        assert Host(text).command([], "")[1:-1] == words


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "csh", "tcsh", "mksh"])
def test_every_login_shell_takes_it(shell):
    if not shutil.which(shell):
        pytest.skip(f"not installed: {shell}")
    code = Host("h").command([], "print('it\\'s \"$HOME\" `x` \\\\ !1')")[-1]
    done = subprocess.run([shell, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ('it\'s "$HOME" `x` \\ !1\n', "")
