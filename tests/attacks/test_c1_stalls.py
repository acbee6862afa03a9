"""What a container does to keep cntr, or who runs it, waiting: memory that is locked, files whose server is silent, signals without end."""

from __future__ import annotations

import ctypes
import mmap
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from cntr.attach import private, relays, remains
from cntr.attach.pty import Pump
from cntr.linux import syscalls
from testkit import freezing, processes
from testkit.waiting import wait_until
from tests.attacks import kit, stalling
from tests.nest.busybox import CNTR, REPOSITORY, run

ADMIN = 0xA80425FB | 1 << 21  # Docker's default and CAP_SYS_ADMIN
SHORT = (
    "import sys, cntr.linux.patience as p; p.SECONDS = 0.5; from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"
)


@pytest.fixture
def fuse() -> None:
    if not os.access("/dev/fuse", os.W_OK):
        pytest.skip("no /dev/fuse here")


def child_of(container: kit.Hostile) -> str:
    """The first child of its init."""
    children = pathlib.Path(f"/proc/{container.pid}/task/{container.pid}/children")
    return children.read_text().split()[0]


def lock_own_memory() -> None:
    """One thread waits in a page fault of the kernel's, with the lock held for reading; one wants it for writing; nobody gets it then."""
    if stalling.born():
        return
    os.makedirs("/silent", exist_ok=True)
    libc = ctypes.CDLL(None)
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, *[ctypes.c_long] * 5]
    stalling.mount("/silent", frozenset((stalling.READ,)))
    file, memory = os.open("/silent/x", os.O_RDONLY), os.open("/proc/self/mem", os.O_RDONLY)
    address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_PRIVATE, file, 0)
    threading.Thread(target=os.pread, args=(memory, 16, address)).start()
    threads = pathlib.Path("/proc/self/task")
    while not any("request_wait_answer" in (one / "wchan").read_text() for one in threads.iterdir()):
        time.sleep(0.01)
    libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    os._exit(0)


def test_a_process_that_locks_its_memory(accomplice, canary, place, fuse):
    """Its command line and its variables can't be read, by anybody: it keeps no look at other processes from its end."""
    with kit.hostile(place, accomplice, capabilities=ADMIN, as_root=lock_own_memory) as container:
        child = child_of(container)

        def is_locked() -> bool:
            tasks = pathlib.Path(f"/proc/{child}/task").iterdir()
            return {"request_wait_answer", "vm_mmap_pgoff"} <= {(task / "wchan").read_text() for task in tasks}

        wait_until(is_locked, "the memory is locked")
        for words in (
            ["ps"],
            ["attach", "no-such-container", "--", "true"],
            ["attach", "command:/no such", "--", "true"],
        ):
            done = run(*words, timeout=20)
            assert done.returncode == (0 if words == ["ps"] else 125), done
        done = run("attach", child, "--", "echo", "here", code=SHORT, timeout=20)
        assert (done.returncode, done.stdout) == (0, "here\n"), done
        assert "keeps its memory locked" in done.stderr
        assert run("inspect", child, code=SHORT, timeout=20).returncode == 0


@pytest.mark.parametrize("where", ["/silent", "/sys", "/"])
def test_a_server_that_reads_and_never_answers(accomplice, canary, place, transport, fuse, where):
    """No signal ends who waits for it: that is never cntr itself, nor its monitor."""

    def silent() -> None:
        if where == "/silent":
            for name in ("passwd", "hosts"):
                os.path.lexists(f"/etc/{name}") and os.unlink(f"/etc/{name}")
                os.symlink(f"/silent/{name}", f"/etc/{name}")
        stalling.mount("/f" if where == "/" else where, frozenset((stalling.LOOKUP, stalling.STATFS)))
        if where == "/" and stalling.born() == 0:
            os.chroot("/f")
            signal.pause()

    with kit.hostile(place, accomplice, capabilities=ADMIN, as_root=silent) as container:
        target = str(container.pid)
        if where == "/":
            children = pathlib.Path(f"/proc/{container.pid}/task/{container.pid}/children")
            wait_until(lambda: len(children.read_text().split()) == 2, "the process")
            target = children.read_text().split()[1]
            wait_until(lambda: os.readlink(f"/proc/{target}/root").endswith("/f"), "its root is the silent one")
        done = run("attach", target, "--transport", transport, "--", "echo", "here", code=SHORT, timeout=20)
        if where == "/":
            assert done.returncode == 125
            assert "its root file system does not answer" in done.stderr
        else:
            assert (done.returncode, done.stdout) == (0, "here\n"), done
        assert run("inspect", target, code=SHORT, timeout=20).returncode == 0


CONNECT = "import os, socket; host, _, port = os.environ['CNTR_FORWARD_1'].rpartition(':'); socket.create_connection((host, int(port))).recv(1)"


@pytest.mark.parametrize(
    "words",
    [
        ["cp", "{}:/silent/x", "/dev/stdout"],
        ["cp", "/etc/passwd", "{}:/silent/x"],
        ["forward", "{}", "0:/silent/x", "--", sys.executable, "-c", CONNECT],
    ],
    ids=["out", "in", "forward"],
)
def test_a_process_left_waiting_holds_no_stream_of_the_callers(accomplice, canary, place, fuse, words):
    """A process in a silent request outlives cntr: `$(cntr cp …)` and `cntr cp … | tee` end with cntr all the same."""

    def silent() -> None:
        stalling.mount("/silent", frozenset((stalling.LOOKUP,)))

    proc_fd = os.open("/proc", os.O_RDONLY)
    with kit.hostile(place, accomplice, capabilities=ADMIN, as_root=silent) as container:
        process = subprocess.Popen(
            [*CNTR, *(word.replace("{}", str(container.pid)) for word in words)],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

        def waits() -> bool:
            below = remains.descendants(proc_fd, process.pid)
            return any("request_wait" in pathlib.Path(f"/proc/{pid}/wchan").read_text() for pid in below)

        try:
            wait_until(waits, "it waits", passing=OSError)
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=25)[0]
            assert process.returncode in (125, 143), said
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            os.close(proc_fd)


def test_a_stack_of_mounts(accomplice, canary, place, transport):
    """For a path below N stacked mounts the kernel takes N steps, for a table of them N²: cntr reads no longer than it says."""

    def stack() -> None:
        os.mkdir("/stack")
        for _ in range(1500):
            syscalls.mount("/stack", "/stack", None, syscalls.MS_BIND)

    code = "import sys, cntr.attach.target as m; m.MOUNTS_SECONDS = 1e-6; from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"
    with kit.hostile(place, accomplice, as_root=stack) as container:
        script = "ls -d /proc/self/fd /sys/class /var/lib/cntr/accomplice"
        done = kit.attach(container, transport, command=["sh", "-c", script], code=code)
        assert (done.returncode, len(done.stdout.split())) == (0, 3), done
        assert "its table of mounts can't be read" in done.stderr
        assert container.exec("--", "/bin/true", code=code).returncode == 0


PRE_CONTENT, ADD_MOUNT, OPEN_OF_ANY = 8, 0x11, 0x10000 | 0x40000000  # linux/fanotify.h


def asks_first() -> None:
    """Once its init runs, whoever opens a file or directory of its root waits for an answer that never comes (fanotify(7))."""
    if stalling.born() == 0:
        while not os.readlink("/proc/1/exe").endswith("/app"):
            time.sleep(0.005)
        libc = ctypes.CDLL(None)
        libc.fanotify_mark(
            libc.fanotify_init(PRE_CONTENT, os.O_RDONLY), ADD_MOUNT, ctypes.c_uint64(OPEN_OF_ANY), -100, b"/"
        )
        signal.pause()


def test_every_open_waits_for_leave(accomplice, canary, place, transport):
    """As with a silent server, its files are left out; and the thread that still waits takes no signal from the session."""
    group = ctypes.CDLL(None).fanotify_init(PRE_CONTENT, os.O_RDONLY)
    if group < 0:
        pytest.skip("no fanotify permission events here")
    os.close(group)
    with kit.hostile(place, accomplice, capabilities=ADMIN, as_root=asks_first) as container:
        fds = pathlib.Path(f"/proc/{child_of(container)}/fdinfo")
        wait_until(
            lambda: any("fanotify mnt_id" in fd.read_text() for fd in fds.iterdir()), "it is asked", passing=OSError
        )
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                SHORT,
                "attach",
                str(container.pid),
                "--transport",
                transport,
                "--",
                "sleep",
                "60.0431",
            ],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until(lambda: processes.running("sleep", "60.0431"), "it runs")
            process.send_signal(signal.SIGTERM)
            error = process.communicate(timeout=25)[1]
            assert process.returncode == 143, error
            assert "do not answer" in error
        finally:
            process.kill()
            process.wait()
        assert run("inspect", str(container.pid), code=SHORT, timeout=20).returncode == 0


def test_a_part_of_proc_over_it(accomplice, canary, place, transport):
    """A session has a whole /proc, whatever is mounted at the container's: tools look into /proc/self."""

    def part() -> None:
        syscalls.mount("/proc/1", "/proc", None, syscalls.MS_BIND)

    with kit.hostile(place, accomplice, capabilities=ADMIN, as_root=part) as container:
        assert kit.attach(container, transport, command=["ls", "-d", "/proc/self/fd"]).stdout == "/proc/self/fd\n"


def everywhere(number: int, times: float = 0) -> None:
    """Send a signal to whatever is there, for ever."""
    if stalling.born() == 0:
        signal.signal(number, signal.SIG_IGN) if number not in (signal.SIGKILL, signal.SIGSTOP) else None
        while True:
            try:
                os.kill(-1, number)
            except ProcessLookupError:
                pass
            time.sleep(times)


@pytest.mark.parametrize("words", [["attach", "--transport", "mount"], ["attach", "--transport", "fuse"], ["exec"]])
def test_everything_that_begins_is_killed(accomplice, canary, place, words):
    """One line says so, and nobody waits for processes that have ended and that the container's init does not collect."""
    code = "import sys, cntr.attach.monitor as m; m.PATIENCE_SECONDS = 60; from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"
    with kit.hostile(place, accomplice, as_root=lambda: everywhere(signal.SIGKILL)) as container:
        done = run(words[0], str(container.pid), *words[1:], "--", "/bin/sleep", "60", code=code, timeout=25)
        assert done.returncode == 137, done
        assert done.stderr.count("\n") == 1, done
        assert "container" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM, signal.SIGIO, signal.SIGUSR1])
def test_signals_from_birth_on(accomplice, canary, place, transport, number):
    """They end the command as they would any of its kind, not the processes of cntr that it comes from, and are no bug."""
    with kit.hostile(place, accomplice, as_root=lambda: everywhere(number, 0.0005)) as container:
        done = kit.attach(container, transport, command=["/bin/sleep", "60"])
        assert (done.returncode, done.stderr) == (128 + number, ""), done


@pytest.mark.parametrize("command", ["attach", "exec"])
def test_what_is_stopped_for_ever_ends_on_request(accomplice, canary, place, command):
    proc_fd = os.open("/proc", os.O_RDONLY)
    with kit.hostile(place, accomplice, as_root=lambda: everywhere(signal.SIGSTOP, 0.0002)) as container:
        process = subprocess.Popen(
            [*CNTR, command, str(container.pid), "--", "/bin/sleep", "60"],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until(lambda: remains.descendants(proc_fd, process.pid)[1:], "the reaper")
            process.send_signal(signal.SIGTERM)
            assert "could not be reached" in process.communicate(timeout=25)[1]
            assert process.returncode == 137
        finally:
            process.kill()
            process.wait()
            os.close(proc_fd)


@pytest.fixture
def freezer():
    """A cgroup that can be frozen, as one that is its container's own: (its processes, how it is frozen, thawed)."""
    with freezing.freezer("cntr-stalls") as made:
        yield made.directory, lambda: made.file.write_text(made.freeze)


@pytest.mark.parametrize("words", [["attach", "--transport", "mount"], ["attach", "--transport", "fuse"], ["exec"]])
@pytest.mark.parametrize("early", [True, False])
def test_a_cgroup_that_is_frozen_under_a_session(accomplice, canary, place, freezer, words, early):
    """Who may write to its cgroup freezes what comes into it, also while that is not yet the session's: cntr ends when it is asked to."""
    directory, freeze = freezer
    with kit.hostile(place, accomplice, cgroups=[str(directory)]) as container:
        process = subprocess.Popen(
            [*CNTR, words[0], str(container.pid), *words[1:], "--", "/bin/sleep", "60.0427"],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            if early:
                wait_until(lambda: (directory / "cgroup.procs").read_text().count("\n") > 1, "some output")
            else:
                wait_until(lambda: processes.running("/bin/sleep", "60.0427"), "it runs")
            freeze()
            time.sleep(0.1)  # what is being frozen goes on for a moment
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=25)
            assert process.returncode in (137, 143)
            os.set_blocking(process.stderr.fileno(), False)  # with version 1 what is frozen keeps it open
            assert (process.stderr.read() or "").count("\n") <= 1
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def test_a_launcher_that_is_killed(accomplice, canary, place, transport):
    """By the kernel for want of memory, or with its cgroup (cgroup.kill): one line, and what it has begun ends."""
    code = (
        "import sys, os, cntr.attach.launcher as m; "
        "m.Launcher._frame = lambda self, kind, number: os.kill(os.getpid(), 9) if kind == m.STARTED else None; "
        "from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    with kit.hostile(place, accomplice) as container:
        done = kit.attach(container, transport, command=["/bin/sleep", "60"], code=code)
        assert (done.returncode, done.stderr.count("\n")) == (137, 1), done
        assert "killed the session" in done.stderr
        children = pathlib.Path(f"/proc/{container.pid}/task/{container.pid}/children")
        wait_until(lambda: not children.read_text(), "nothing is left in it")


def test_writing_on_after_the_end():
    """A process of the container can open what a program of it has as its output (`/proc/PID/fd/1`), and write without end."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    sink, endless = os.open(os.devnull, os.O_WRONLY), os.open("/dev/zero", os.O_RDONLY)
    output, read = relays.Output(sink, ours, terminal=False, file=False), 0

    def goes_on(_: int, data: bytes) -> None:
        nonlocal read
        read += len(data)
        assert read < 1 << 22
        os.write(theirs, data)

    try:
        os.write(theirs, b"the last words")
        output.copy = goes_on
        while output.more():
            output.ready(sink)
        assert read == len(b"the last words")
        pump, reads = Pump(0, sink, endless), iter(range(1000))
        pump.copy = lambda _fd, _data: None if next(reads, -1) >= 0 else pytest.fail("it never stops reading")
        pump.drain()
    finally:
        output.close()
        for fd in (theirs, sink, endless):
            os.close(fd)


def test_directories_without_number_in_a_sessions_tmp(tmp_path, monkeypatch):
    """Who acts as the session leaves millions: what is left is looked for among the first of them only, and signals wait no longer."""
    for number in range(300):
        (tmp_path / f"tmp/{number}/below").mkdir(parents=True)
    opened = []
    openat2 = private.syscalls.openat2
    monkeypatch.setattr(private, "LOOKED", 100)
    monkeypatch.setattr(private.syscalls, "openat2", lambda *words: opened.append(words[1]) or openat2(*words))
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert private.Private.left_files(types.SimpleNamespace(tree_fd=fd, shares=[])) == []
    finally:
        os.close(fd)
    assert len(opened) <= 101
