"""``cntr --host HOST COMMAND…``: cntr on another machine, over the user's own ssh(1): its configuration, agent, and
ControlMaster.

The one file (``onefile``) is shipped once per digest of its sources, to a directory of the far user's alone, and run
there as root by sudo(8). That takes one connection, two the first time, and one more for each signal that no terminal
delivers. On the far side ``far`` supervises it. Code for the far side is sent as Python in hexadecimal digits, which
every login shell passes unchanged.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile

from cntr.errors import EXIT_FAILED, CntrError, UsageError, printable
from cntr.linux import syscalls
from cntr.remote import onefile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MISSING, NO_PYTHON = 213, 212  # exit statuses of the far side's first steps; no cntr command ends with them
SSH_FAILED = 255  # ssh(1), EXIT STATUS
END_SECONDS = 5.0  # how long to wait for the far side of a copy after its pipes are closed
MAX_SAID = 16 << 20  # bytes of an answer to keep: a list of ten thousand containers fits
MAX_NOISE = 1 << 16  # most bytes a login shell may print first
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
RUN = "exec sh -c \"command -v python3 >/dev/null && exec python3 -IS -c 'import sys;exec(bytes.fromhex(sys.argv[1]))' {code}; exit 212\""
# Options against the user's configuration for interactive sessions.
OPTIONS = ("-o", "LogLevel=ERROR", "-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes")
SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:%@+")

# The code below runs on the far side, in any Python.
PLACE = """\
import os, sys
home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
place = home + "/cntr/far"
umask = os.umask(0o077)
for path in (home, home + "/cntr", place):
    try:
        os.mkdir(path, 0o700)
    except OSError:
        pass
status = os.lstat(place)
if status.st_mode & 0o170077 != 0o040000 or status.st_uid != os.geteuid():
    sys.stderr.write("cntr: %s is not a directory of this user alone (mode 0700)\\n" % place)
    os._exit(125)
file = place + "/{digest}.pyz"
"""
SHIP = """\
import hashlib
data = sys.stdin.buffer.read()
if hashlib.sha256(data).hexdigest() != "{sum}":
    os._exit(1)
partial = file + "." + str(os.getpid())
with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700), "wb") as opened:
    opened.write(data)
os.rename(partial, file)
builds = sorted((os.lstat(place + "/" + name).st_mtime, name) for name in os.listdir(place) if name.endswith(".pyz"))
for time, name in builds[:-4]:
    os.unlink(place + "/" + name)
for name in os.listdir(place):
    try:
        if name.startswith("run-") and not os.path.exists("/proc/" + open(place + "/" + name).read()):
            os.unlink(place + "/" + name)  # of a session that was killed
    except OSError:
        pass
"""
START = """\
if not os.access(file, os.R_OK):
    os._exit({missing})
words = [file] if os.access(file, os.X_OK) else ["/bin/sh", file]
mark = place + "/{token}"
os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
with open(mark, "w") as opened:
    opened.write(str(os.getpid()))
os.umask(umask)
words += ["--far", mark] + {words!r}
if os.geteuid():
    words = ["sudo"] + {flags!r} + ["--"] + words
try:
    os.execvp(words[0], words)
except OSError as error:
    sys.stderr.write("cntr: %s: %s\\n" % (words[0], error.strerror))
    os.unlink(mark)
    os._exit(125)
"""
SIGNAL = """\
with open(place + "/{token}") as opened:
    pid = int(opened.read())
if os.geteuid():
    os.execvp("sudo", ["sudo", "-n", "--", "kill", "-{number}", str(pid)])
os.kill(pid, {number})
"""


class Host:
    """A machine, as given to ssh(1)."""

    def __init__(self, text: str) -> None:
        """text: ``ssh://[user@]host[:port]`` or ``[user@]host``; host may be an alias from ~/.ssh/config. Raises
        UsageError.
        """
        wrong = UsageError(
            f"--host {printable(text[:200])}: not a host", "ssh://[user@]host[:port], or a Host of ~/.ssh/config"
        )
        scheme, found, rest = text.partition("://")
        if found and scheme != "ssh":
            raise UsageError(f"--host {printable(text[:200])}: only ssh:// is supported", "ssh://[user@]host[:port]")
        rest = (rest if found else text).rstrip("/")
        self.user, at, self.name = rest.rpartition("@")
        self.port = ""
        if self.name.startswith("["):
            self.name, bracket, port = self.name[1:].partition("]")
            if not bracket or port[:1] not in ("", ":"):
                raise wrong
            self.port = port[1:]
        elif self.name.count(":") == 1:
            self.name, _, self.port = self.name.partition(":")
        parts = [self.name, *([self.user] if at else [])]
        if any(not part or part.startswith("-") or not SAFE.issuperset(part) for part in parts):
            raise wrong
        if self.port and not (self.port.isdecimal() and self.port.isascii() and 0 < int(self.port) < 65536):
            raise wrong
        self.text = text

    def command(self, options: list[str], code: str) -> list[str]:
        """The ssh command line that runs CODE on the far side."""
        where = [*(["-p", self.port] if self.port else []), *(["-l", self.user] if self.user else []), "--", self.name]
        return ["ssh", *options, *where, RUN.format(code=code.encode().hex())]


class SshCommand:
    """One command line on one host."""

    def __init__(self, host: Host, words: list[str], *, batch: bool = False) -> None:
        """batch: nobody can be asked for a password."""
        self.host, self.words, self.batch = host, words, batch
        self.digest = onefile.digest()
        self.token = f"run-{os.urandom(12).hex()}"
        self.place = PLACE.replace("{digest}", self.digest)
        self.piped: subprocess.Popen[bytes] | None = None
        self.log = tempfile.mkstemp(prefix="cntr-ssh-")  # ssh's own messages, kept out of the session

    def ssh(self, code: str, options: list[str], **more: Any) -> subprocess.Popen[bytes]:
        """Start ssh(1). Raises CntrError."""
        options = [*options, *OPTIONS, "-E", self.log[1], *(["-o", "BatchMode=yes"] if self.batch else [])]
        try:
            return subprocess.Popen(self.host.command(options, self.place + code), **more)
        except FileNotFoundError:
            raise CntrError("--host: ssh is not on this machine", "Debian has it in openssh-client") from None

    def close(self) -> None:
        """Remove the log file."""
        os.close(self.log[0])
        os.unlink(self.log[1])

    def said(self) -> str:
        """ssh's error message, in one line; "" if there is none."""
        text = os.pread(self.log[0], 1 << 16, 0).decode(errors="replace")
        return "; ".join(line.strip() for line in text.splitlines() if line.strip())

    def ship(self) -> None:
        """Copy the one file to the host. Raises CntrError."""
        import hashlib

        data = onefile.build()
        code = SHIP.replace("{sum}", hashlib.sha256(data).hexdigest())
        with self.ssh(code, ["-T"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            process.communicate(data)
        self.check(process.returncode)
        if process.returncode:
            raise CntrError(
                f"{printable(self.host.text)}: cntr could not be copied there: status {process.returncode}",
                "it goes to ~/.cache/cntr/far there: is the disk full?",
            )
        self.remember()

    def check(self, status: int) -> None:
        """Raise CntrError if STATUS is ssh's or the far side's rather than the command's."""
        if status == NO_PYTHON:
            raise CntrError(
                f"{printable(self.host.text)}: there is no python3",
                "a privileged container that has one does as well: docs/howto.md, From a toolbox",
            )
        if status == SSH_FAILED and (said := self.said()):
            raise CntrError(f"{printable(self.host.text)}: {printable(said)}", "`ssh` to it by hand shows more")

    def code(self) -> str:
        """The code that runs the command on the far side."""
        flags = ["-n"] if self.batch else []
        found = START.replace("{missing}", str(MISSING)).replace("{token}", self.token)
        return found.replace("{flags!r}", repr(flags)).replace("{words!r}", repr(self.words))

    def run(self) -> int:
        """Run the command with this process's streams; return the exit status. Raises CntrError."""
        terminal = os.isatty(0) and os.isatty(1)
        if not self.is_known():
            self.ship()
        status = self._once(terminal)
        if status == MISSING:
            self.ship()
            status = self._once(terminal)
        self.check(status)
        return status

    def _once(self, terminal: bool) -> int:
        process = self.ssh(self.code(), ["-t" if terminal else "-T"], preexec_fn=_with_us if terminal else _alone)
        told: list[subprocess.Popen[bytes]] = []

        def forward(number: int, frame: object) -> None:
            if terminal or number == signal.SIGHUP or any(one.poll() for one in told):
                process.terminate()  # the far side notices the end of the connection
                return
            code = SIGNAL.replace("{token}", self.token).replace("{number}", str(int(number)))
            null = subprocess.DEVNULL
            told.append(self.ssh(code, ["-T", "-o", "BatchMode=yes"], stdin=null, stdout=null, stderr=null))

        before = {
            number: signal.signal(number, forward)
            for number in FORWARDED
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            status = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for one in told:
                one.wait()
        return 128 - status if status < 0 else status

    def capture(self) -> tuple[int, str, str]:
        """Run the command and capture its output: (exit status, stdout, stderr). Raises CntrError."""
        for ship in (not self.is_known(), True):
            if ship:
                self.ship()
            with self.ssh(
                self.code(), ["-T"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as process:
                out, err = _all_said(process)
            if process.returncode != MISSING:
                break
        self.check(process.returncode)
        return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")

    # --- as a channel to a process there ---------------------------------------------------------------------------

    def begin(self, hello: bytes) -> tuple[int, int]:
        """Start the command with pipes and wait until it has written HELLO; return the fds to read and to write. Raises
        CntrError.
        """
        for ship in (not self.is_known(), True):
            if ship:
                self.ship()
            (far_in, write_fd), (read_fd, far_out) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
            try:
                process = self.piped = self.ssh(self.code(), ["-T"], stdin=far_in, stdout=far_out, preexec_fn=_alone)
            finally:
                os.close(far_in)
                os.close(far_out)
            if _reads(read_fd, hello):
                return read_fd, write_fd
            os.close(read_fd)
            os.close(write_fd)
            if process.wait() != MISSING:
                break
        self.check(process.returncode)
        raise CntrError("", "", process.returncode)  # the error is already printed

    def end(self) -> int:
        """Wait for its end after the pipes are closed; return its exit status. Raises CntrError if the status is not
        its own.
        """
        if self.piped is None:
            return 0
        process, self.piped = self.piped, None
        try:
            self.check(process.wait(END_SECONDS))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return process.returncode

    # --- which builds were shipped where ---------------------------------------------------------------------------

    def _memory(self) -> str:
        import hashlib

        key = hashlib.sha256(f"{os.getuid()} {self.host.text}".encode()).hexdigest()[:32]
        return f"{onefile.cache_directory()}/far/{key}"

    def is_known(self) -> bool:
        """Whether this build is remembered as shipped to the host."""
        try:
            with open(self._memory()) as file:
                return file.read() == self.digest
        except OSError:
            return False

    def remember(self) -> None:
        """Remember that this build was shipped."""
        try:
            directory = os.path.dirname(self._memory())
            os.makedirs(os.path.dirname(directory), mode=0o700, exist_ok=True)
            os.makedirs(directory, mode=0o700, exist_ok=True)
            with open(f"{self._memory()}.{os.getpid()}", "w") as file:
                file.write(self.digest)
            os.rename(f"{self._memory()}.{os.getpid()}", self._memory())
        except OSError:
            pass  # without the memory, each command asks the far side


def _reads(fd: int, hello: bytes) -> bool:
    """Whether HELLO arrives. Reads byte by byte, since what follows belongs to the caller."""
    seen = b""
    while len(seen) < MAX_NOISE and not seen.endswith(hello):
        byte = os.read(fd, 1)
        if not byte:
            return False
        seen += byte
    return seen.endswith(hello)


def _all_said(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Read stdout and stderr to their ends. Raises CntrError if the far side sends more than MAX_SAID."""
    import selectors

    assert process.stdout
    assert process.stderr
    said: dict[Any, list[bytes]] = {process.stdout: [], process.stderr: []}
    with selectors.DefaultSelector() as selector:
        for stream in said:
            selector.register(stream, selectors.EVENT_READ)
        left = MAX_SAID
        while selector.get_map():
            for key, _ in selector.select():
                chunk = os.read(key.fd, 1 << 16)
                said[key.fileobj].append(chunk)
                left -= len(chunk)
                if not chunk:
                    selector.unregister(key.fileobj)
            if left < 0:
                process.kill()
                raise CntrError(f"--host: its answer is longer than {MAX_SAID >> 20} MiB", "is it cntr that answers?")
    return b"".join(said[process.stdout]), b"".join(said[process.stderr])


def _with_us() -> None:
    """Have the kernel end ssh when this process is killed; the far side then notices."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGTERM)


def _alone() -> None:
    """Leave Ctrl-C to the far command: ssh(1) keeps signals ignored that were ignored at its start."""
    _with_us()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)


def run(host: str, words: list[str]) -> int:
    """Run ``cntr --host HOST WORDS``; return the exit status. Raises CntrError, UsageError."""
    session = SshCommand(Host(host), words)
    try:
        return session.run()
    finally:
        session.close()


def on_all(hosts: list[str], words: list[str]) -> dict[str, tuple[int, str, str]]:
    """Run WORDS on several hosts at once: {host: (exit status, stdout, stderr)}; an unreachable host has EXIT_FAILED.

    Raises UsageError.
    """
    import threading

    sessions = [SshCommand(Host(host), words, batch=True) for host in hosts]
    found: dict[str, tuple[int, str, str]] = {}

    def ask(session: SshCommand) -> None:
        try:
            found[session.host.text] = session.capture()
        except CntrError as error:
            found[session.host.text] = EXIT_FAILED, "", error.message.partition(": ")[2]
        except OSError as error:
            found[session.host.text] = EXIT_FAILED, "", str(error.strerror or error)
        finally:
            session.close()

    threads = [threading.Thread(target=ask, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {host: found[host] for host in hosts}
