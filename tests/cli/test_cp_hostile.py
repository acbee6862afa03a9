"""``cntr cp`` with hostile containers, and interrupted copies."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import traceback

import pytest

from cntr.cp import stream
from cntr.cp.interrupts import Interrupted
from cntr.cp.receive import Receiver
from cntr.cp.stream import Incoming, Meta, Outgoing, ProtocolError, Tell
from cntr.errors import CntrError
from cntr.linux import syscalls
from testkit.container import SlimContainer
from testkit.waiting import wait_until
from tests.cli.trees import CNTR, cp, done, leftovers, names
from tests.nest.busybox import REPOSITORY
from tests.nest.tty import Terminal


@pytest.fixture
def container():
    with SlimContainer("cphostile") as running:
        yield running


# --- what comes over the pipe -----------------------------------------------------------------------------------------


class Said(Tell):
    """Keeps messages."""

    def __init__(self) -> None:
        self.problems: list[tuple[bytes, str]] = []
        self.notes: list[tuple[str, bytes]] = []

    def problem(self, path: bytes, text: str) -> None:
        self.problems.append((path, text))

    def note(self, text: str, path: bytes) -> None:
        self.notes.append((text, path))


def meta(mode: int, *, linked: bool = False) -> Meta:
    return Meta(mode, 0, 0, 10**18, 10**18, 0, linked)


DIRECTORY = meta(stat.S_IFDIR | 0o755)
FILE = meta(stat.S_IFREG | 0o644, linked=True)
LINK = meta(stat.S_IFLNK | 0o777)
START = (stream.START, b"\1" + stream.pack_item(DIRECTORY, b""))


def receive(where: pathlib.Path, *frames: tuple[bytes, bytes], raw: bytes = b"") -> Said:
    """Let a Receiver read FRAMES, which a compromised container's side could send."""
    data_read, data_write = os.pipe()
    answers_read, answers_write = os.pipe()
    out = Outgoing(data_write)
    for frame in frames:
        out.send(*frame)
    out.flush()
    os.write(data_write, raw)
    os.close(data_write)
    incoming, said = Incoming(data_read), Said()
    try:
        Receiver(incoming, Outgoing(answers_write), said, os.open, archive=False).run(os.fsencode(where))
    finally:
        incoming.stream.close()
        os.close(answers_read)
        os.close(answers_write)
    return said


def whole(data: bytes) -> list[tuple[bytes, bytes]]:
    size = stream.OFFSET.pack(len(data))
    return [(stream.BLOCK, stream.OFFSET.pack(0) + data), (stream.TRUNCATE, size), (stream.END, b"\1")]


@pytest.fixture
def fenced(tmp_path):
    """A destination, and files beside it that must not change."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/victim").write_text("safe")
    (tmp_path / "to").mkdir()
    yield tmp_path / "to"
    assert (tmp_path / "outside/victim").read_text() == "safe"
    assert names(tmp_path / "outside") == {b"victim"}
    assert {path.name for path in tmp_path.iterdir()} == {"outside", "to"}
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"../outside/evil", b"/tmp/evil", b"a/b", b"a\0b"])
@pytest.mark.parametrize("kind", [DIRECTORY, FILE, LINK], ids=["directory", "file", "link"])
def test_a_name_is_one_component(fenced, name, kind):
    with pytest.raises(ProtocolError):
        receive(fenced, START, (stream.ITEM, stream.pack_item(kind, name, b"x")))
    with pytest.raises(ProtocolError):
        receive(fenced, (stream.START, b"\0" + stream.pack_item(kind, name, b"x")))
    with pytest.raises(ProtocolError):
        receive(fenced, START, (stream.LINK, stream.pack_item(FILE, name, b"x")))
    assert names(fenced) == set()


def test_a_hard_links_other_name_is_one_that_was_received(fenced):
    """Not a path of the sender's choice, and not through a symbolic link that has replaced a directory."""
    said = receive(
        fenced,
        START,
        (stream.ITEM, stream.pack_item(FILE, b"real")),
        *whole(b"data"),
        *(
            (stream.LINK, stream.pack_item(FILE, b"evil%d" % index, other))
            for index, other in enumerate(
                (b"../outside/victim", b"/etc/passwd", b"real/../../outside/victim", b"", b".")
            )
        ),
        (stream.LINK, stream.pack_item(FILE, b"good", b"real")),
        (stream.UP, b""),
        (stream.DONE, b""),
    )
    assert len(said.problems) == 5
    assert names(fenced) == {b"real", b"good"}
    assert (fenced / "good").samefile(fenced / "real")


def test_a_hard_link_follows_no_link_that_appeared_meanwhile(fenced):
    data_read, data_write = os.pipe()
    answers_read, answers_write = os.pipe()
    incoming, said, out = Incoming(data_read), Said(), Outgoing(data_write)
    receiver = Receiver(incoming, Outgoing(answers_write), said, os.open, archive=False)
    thread = threading.Thread(target=receiver.run, args=(os.fsencode(fenced),))
    thread.start()
    for frame in (
        START,
        (stream.ITEM, stream.pack_item(DIRECTORY, b"d")),
        (stream.ITEM, stream.pack_item(FILE, b"victim")),
    ):
        out.send(*frame)
    for frame in (*whole(b"data"), (stream.UP, b"")):
        out.send(*frame)
    out.flush()
    while not (fenced / "d/victim").exists():
        time.sleep(0.01)
    (fenced / "d").rename(fenced / "moved")
    (fenced / "d").symlink_to("../outside")
    for frame in ((stream.LINK, stream.pack_item(FILE, b"evil", b"d/victim")), (stream.UP, b""), (stream.DONE, b"")):
        out.send(*frame)
    out.flush()
    thread.join(20)
    for fd in (data_write, answers_read, answers_write):
        os.close(fd)
    incoming.stream.close()
    assert len(said.problems) == 1
    assert not (fenced / "evil").exists()


@pytest.mark.parametrize(
    "frames",
    [
        [(b"?", b"")],
        [START, START],
        [START, (stream.UP, b""), (stream.UP, b"")],
        [START, (stream.UP, b""), (stream.ITEM, stream.pack_item(FILE, b"x"))],
        [START, (stream.ITEM, stream.pack_item(meta(stat.S_IFBLK | 0o666), b"disk"))],
        [START, (stream.ITEM, stream.pack_item(meta(stat.S_IFSOCK | 0o666), b"socket"))],
        [(stream.START, b"\0" + stream.pack_item(meta(stat.S_IFCHR | 0o666), b"device"))],
    ],
)
def test_what_is_never_said_ends_the_copy(fenced, frames):
    with pytest.raises(ProtocolError):
        receive(fenced, *frames)
    assert names(fenced) <= {b"x"}


def test_a_frame_has_a_limit(fenced):
    with pytest.raises(ProtocolError):
        receive(fenced, START, raw=struct.pack("<cI", stream.BLOCK, 0xFFFFFFFF))


def test_data_that_fits_nowhere(fenced):
    """Offsets and sizes that no file can have."""
    said = receive(
        fenced,
        START,
        (stream.ITEM, stream.pack_item(FILE, b"a")),
        (stream.BLOCK, stream.OFFSET.pack((1 << 64) - 1) + b"x"),
        (stream.END, b"\1"),
        (stream.ITEM, stream.pack_item(FILE, b"b")),
        (stream.TRUNCATE, stream.OFFSET.pack((1 << 63) - 1)),
        (stream.END, b"\1"),
        (stream.ITEM, stream.pack_item(FILE, b"c")),
        *whole(b"ok"),
        (stream.UP, b""),
        (stream.DONE, b""),
    )
    assert {path for path, _ in said.problems} == {os.fsencode(fenced) + b"/a", os.fsencode(fenced) + b"/b"}
    assert names(fenced) == {b"c"}


def test_the_sender_gone_leaves_no_half_file(fenced):
    with pytest.raises(EOFError):
        receive(fenced, START, (stream.ITEM, stream.pack_item(FILE, b"half")), *whole(b"x" * 10000)[:1])
    assert names(fenced) == set()


def test_messages_from_the_container_are_made_printable(container, tmp_path):
    evil = b"\x1b]0;owned\x07\nhint: \xff"
    os.mkfifo(os.path.join(os.fsencode(container.root), evil))
    result = cp(f"{container.pid}:/", tmp_path / "out")
    assert result.returncode == 1
    assert rb"\x1b]0;owned\x07\nhint: \xff: a FIFO: not copied" in result.stderr
    assert b"\x1b" not in result.stderr


# --- links and devices ------------------------------------------------------------------------------------------------


def test_links_in_the_destination_are_not_gone_through(container, fenced):
    """The destination is a volume to which the container can write, so it may place links in the copy's way."""
    (container.root / "d/sub").mkdir(parents=True)
    (container.root / "d/sub/victim").write_text("evil")
    (container.root / "d/victim").write_text("evil")
    (fenced / "d").mkdir()
    (fenced / "d/sub").symlink_to("../../outside")
    (fenced / "d/victim").symlink_to("../../outside/victim")
    result = cp(f"{container.pid}:/d", fenced)
    assert result.returncode == 1
    assert b"/d/sub: Not a directory\n" in result.stderr
    assert (fenced / "d/victim").read_text() == "evil"


def test_links_in_the_container_stay_in_the_container(container, fenced):
    """Also absolute ones and ``..``, on both sides of a copy."""
    outside = fenced.parent / "outside"
    (container.root / "to-host").symlink_to(outside)
    (container.root / "up").symlink_to("../../../../../../../.." + str(outside))
    (fenced / "file").write_text("x")
    for link in ("to-host", "up"):
        result = cp(fenced / "file", f"{container.pid}:/{link}/")
        assert result.returncode == 125
        assert cp(f"{container.pid}:/{link}/victim", fenced / "got").returncode == 125
    done(cp(f"{container.pid}:/../../app", fenced / "app"))


def test_magic_links_are_not_followed(fenced):
    """In the host's pid namespace the container's /proc leads to the host's root, which the container's root may not
    enter.
    """
    with SlimContainer("magic", namespaces=syscalls.CLONE_NEWNS) as container:
        outside = fenced.parent / "outside"
        (container.root / "data").symlink_to(f"/proc/{os.getpid()}/root{outside}")
        (container.root / "me").symlink_to(f"/proc/self/root{outside}")
        (fenced / "file").write_text("x")
        for link in ("data", "me"):
            assert cp(fenced / "file", f"{container.pid}:/{link}/").returncode == 125
            assert cp(f"{container.pid}:/{link}/victim", fenced / "got", "-L").returncode == 125
        assert not (fenced / "got").exists()


def test_the_containers_side_holds_no_more_than_a_copy_takes(container):
    """Checked on the process itself during a copy."""
    with copying("/proc/self/pagemap", f"{container.pid}:/zeros") as process:
        try:
            wait_until(lambda: leftovers(container.root))
            child = int(pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
            status = pathlib.Path(f"/proc/{child}/status").read_text()
            assert re.search(r"CapEff:\t0*8000001f\n", status), status
            assert re.search(r"CapPrm:\t0*8000001f\n", status), status
            root = os.stat(f"/proc/{child}/root/")
            assert os.path.samestat(root, os.stat(container.root))
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)


def test_files_that_change_their_kind_under_the_copy(container, tmp_path):
    """A thread swaps a file for a FIFO, a link, a directory, a device, and back; no copy hangs or follows a link."""
    top = container.root / "d"
    top.mkdir()
    for index in range(50):
        (top / f"{index:02}").write_text("x" * 1000)
    stop = threading.Event()
    secret = tmp_path / "secret"
    secret.write_text("of the host")

    def swap() -> None:
        spare, turn = container.root / "spare", 0
        while not stop.is_set():
            name = top / f"{turn % 50:02}"
            (lambda: os.mkfifo(spare), lambda: spare.symlink_to(secret), lambda: spare.write_text("y"))[turn % 3]()
            os.rename(spare, name)
            turn += 1

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for turn in range(5):
            result = cp(f"{container.pid}:/d", tmp_path / f"out{turn}")
            assert result.returncode in (0, 1), result.stderr
            for path in (tmp_path / f"out{turn}").iterdir():
                assert path.is_symlink() or path.read_text() in ("x" * 1000, "y"), path
    finally:
        stop.set()
        thread.join()
    assert not leftovers(tmp_path)


def test_directories_swapped_for_links_while_copied_into(container, fenced):
    """The destination's directories become links to elsewhere during the copy."""
    source = container.root / "d"
    for index in range(40):
        (source / f"{index:02}").mkdir(parents=True)
        (source / f"{index:02}/victim").write_text("evil")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for index in range(40):
                name = fenced / f"d/{index:02}"
                try:
                    os.rename(name, fenced / "gone")
                    name.symlink_to("../../outside")
                    shutil.rmtree(fenced / "gone", ignore_errors=True)
                except OSError:
                    continue

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(5):
            result = cp(f"{container.pid}:/d", fenced)
            assert result.returncode in (0, 1), result.stderr
    finally:
        stop.set()
        thread.join()
        shutil.rmtree(fenced / "gone", ignore_errors=True)


@pytest.mark.skipif(not shutil.which("strace"), reason="not installed: strace (apt-get install)")
@pytest.mark.parametrize("outward", [False, True], ids=["in", "out"])
def test_nothing_is_loaded_once_inside(container, tmp_path, outward):
    """After chroot(2) the child opens only what it copies, by directory fds: no module, codec or name service."""
    (tmp_path / "d/sub").mkdir(parents=True)
    (tmp_path / "d/sub/file\udcff").write_text("x")
    os.mkfifo(tmp_path / "d/fifo")
    shutil.copytree(tmp_path / "d/sub", container.root / "d/sub")
    os.mkfifo(container.root / "d/fifo")
    words = [f"{container.pid}:/d", f"{tmp_path}/out"] if outward else [f"{tmp_path}/d", f"{container.pid}:/in"]
    log = tmp_path / "log"
    calls = "trace=open,openat,openat2,execve,chroot,stat,newfstatat,statx,readlink,access"
    traced = subprocess.run(["strace", "-f", "-o", log, "-e", calls, *CNTR, "cp", *words], capture_output=True)
    assert traced.returncode == 1, traced.stderr
    lines = log.read_text(errors="surrogateescape").splitlines()
    chroot = next(line for line in lines if 'chroot(".")' in line)
    child = chroot.split()[0]
    after = [line for line in lines[lines.index(chroot) + 1 :] if line.startswith(f"{child} ")]
    assert any("openat2(" in line for line in after)
    for line in after:
        path = re.search(r'"([^"]*)"', line)
        if path and re.search(r"AT_FDCWD|stat\(\"|readlink\(|access\(|execve\(", line):
            assert path[1] in ("/", "."), line


# --- interrupted copies ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def copying(*words: str):
    """A practically endless copy that is ended with the block and never fills the disk."""
    limited = ["prlimit", f"--fsize={8 << 30}", "--", *CNTR, "cp", *words]
    process = subprocess.Popen(limited, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=20)


def endless(container, tmp_path, outward):
    """(Directory, words) of a copy to it that takes practically forever: /proc/PID/pagemap is a regular file."""
    if outward:
        return tmp_path, (f"{container.pid}:/proc/1/pagemap", f"{tmp_path}/zeros")
    return container.root, ("/proc/self/pagemap", f"{container.pid}:/zeros")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("outward", [False, True], ids=["in", "out"])
def test_interrupted(tmp_path, number, outward):
    with SlimContainer("cpint", capabilities=0) as container:
        there, words = endless(container, tmp_path, outward)
        with copying(*words) as process:
            wait_until(lambda: leftovers(there) or process.poll() is not None)
            process.send_signal(number)
            said = process.communicate(timeout=20)[1]
            assert process.returncode == 128 + number, said
            assert said.startswith(b"cntr: interrupted: no half-copied file stays")
            assert not leftovers(there)
            assert not (there / "zeros").exists()


def _interrupt_each_line(fenced: pathlib.Path) -> None:
    frames = (
        START,
        (stream.ITEM, stream.pack_item(FILE, b"file")),
        *whole(b"data"),
        (stream.ITEM, stream.pack_item(LINK, b"link", b"file")),
        (stream.LINK, stream.pack_item(FILE, b"other", b"file")),
        (stream.UP, b""),
        (stream.DONE, b""),
    )
    modules = tuple(f"/cntr/cp/{name}.py" for name in ("receive", "files", "metadata"))
    left = 0

    def trace(frame, event, arg):
        nonlocal left
        if not frame.f_code.co_filename.endswith(modules):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Interrupted(signal.SIGINT)
        return trace

    for before in range(1, 1000):
        left = before
        sys.settrace(trace)
        try:
            receive(fenced, *frames)
            break
        except Interrupted:
            assert not leftovers(fenced), before
        finally:
            sys.settrace(None)
        for fd in os.listdir("/proc/self/fd"):  # what the end of the process would close
            if os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(fenced)):
                os.close(int(fd))
        for name in names(fenced):
            (fenced / os.fsdecode(name)).unlink()
    assert 50 < before < 999


def test_an_interrupt_at_any_line_leaves_no_half_copied_file(fenced):
    """A signal is raised between two lines of the receiving end, one after the other, until a copy is finished. In a
    process of its own: an exception raised between the lines of a handler stays in Python's state of this thread.
    """
    pid = os.fork()
    if pid == 0:
        try:
            _interrupt_each_line(fenced)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert names(fenced) == {b"file", b"link", b"other"}


def test_the_old_file_stays_until_the_new_one_is_whole(container):
    (container.root / "zeros").write_text("old")
    with copying("/proc/self/pagemap", f"{container.pid}:/zeros") as process:
        wait_until(lambda: leftovers(container.root))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert (container.root / "zeros").read_text() == "old"
        assert not leftovers(container.root)


def test_cntr_killed_while_copying_in_leaves_nothing(container):
    """By SIGKILL: the container's side notices the end and removes the partial file."""
    with copying("/proc/self/pagemap", f"{container.pid}:/zeros") as process:
        wait_until(lambda: leftovers(container.root))
        process.kill()
        process.communicate(timeout=20)
        wait_until(lambda: not leftovers(container.root))


@pytest.mark.parametrize("outward", [False, True], ids=["in", "out"])
def test_the_containers_side_killed(tmp_path, outward):
    with SlimContainer("cpkill", capabilities=0) as container:
        there, words = endless(container, tmp_path, outward)
        with copying(*words) as process:
            wait_until(lambda: leftovers(there))
            child = int(pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
            os.kill(child, signal.SIGKILL)
            said = process.communicate(timeout=20)[1]
            assert process.returncode == 125
            assert b"ended unexpectedly" in said
            if outward:
                assert not leftovers(tmp_path)


def test_the_container_ends_and_the_copy_does_not(container, tmp_path):
    """Its files exist as long as a process is in its mount namespace, and the copy is."""
    with copying("/proc/self/pagemap", f"{container.pid}:/zeros") as process:
        wait_until(lambda: leftovers(container.root))
        os.kill(container.pid, signal.SIGKILL)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
        assert not leftovers(container.root)


def mounted(container: SlimContainer, source: str, target: str) -> None:
    """Bind SOURCE to TARGET in the container."""
    child = os.fork()
    if child == 0:
        try:
            with open(f"/proc/{container.pid}/ns/mnt") as namespace:
                syscalls.setns(namespace.fileno(), syscalls.CLONE_NEWNS)
            syscalls.mount(source, target, None, syscalls.MS_BIND)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_kernels_settings_are_the_containers_wherever_they_are_mounted(container, tmp_path):
    """Files of /proc/sys and of /proc/sysvipc are those of the namespaces of whoever opens them. A copy into one that the
    container has bound to the destination must not set the host's, nor one out of it show the host's.
    """
    (container.root / "setting").touch()
    mounted(container, "/proc/sys/kernel/hostname", "/setting")
    queue = subprocess.check_output(["nsenter", "-t", str(container.pid), "-i", "ipcmk", "-Q"], text=True).split()[-1]
    own = {
        "preexec_fn": lambda: syscalls.unshare(syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC)
    }  # this machine's name stays
    for path in ("/setting", "/proc/sys/kernel/hostname"):
        done(cp(f"pid:{container.pid}:{path}", tmp_path / "name", **own))
        assert (tmp_path / "name").read_text() == "cphostile\n", path
    done(cp(f"pid:{container.pid}:/proc/sysvipc/msg", tmp_path / "queues", **own))
    assert queue in [line.split()[1] for line in (tmp_path / "queues").read_text().splitlines()[1:]]
    cp(f"pid:{container.pid}:/proc/sys/net/ipv4/conf", tmp_path / "interfaces", **own)
    assert {path.name for path in (tmp_path / "interfaces").iterdir()} == {"all", "default", "lo"}
    (tmp_path / "new").write_text("changed\n")
    done(cp(tmp_path / "new", f"pid:{container.pid}:/setting", **own))
    done(cp(f"pid:{container.pid}:/setting", tmp_path / "name", **own))
    assert (tmp_path / "name").read_text() == "changed\n"


def test_many_complaints_do_not_block_either_side(container, tmp_path):
    """More than a pipe holds, in both directions."""
    (tmp_path / "d").mkdir()
    (container.root / "d").mkdir()
    for index in range(1500):
        name = f"{index:04}{'n' * 120}"
        (tmp_path / "d" / name).write_text("x" * 300)
        (container.root / "d" / name).mkdir()
    result = cp(tmp_path / "d", f"{container.pid}:/")
    assert result.returncode == 1
    assert result.stderr.count(b": Is a directory\n") == 1500
    for name in os.listdir(container.root / "d"):
        (container.root / "d" / name).rmdir()
        os.mkfifo(container.root / "d" / name)
    result = cp(f"{container.pid}:/d", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr.count(b": a FIFO: not copied\n") == 1500


def test_a_listing_without_end_takes_bounded_memory(container, tmp_path):
    """As a FUSE server in the container can produce it."""
    (container.root / "d").mkdir()
    for index in range(20_000):
        (container.root / "d" / f"{index:05}{'n' * 240}").touch()
    code = "import sys; import cntr.cp.copy as m; m.MEMORY = 4 << 20; from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "cp", f"{container.pid}:/d", str(tmp_path / "out")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": REPOSITORY}, capture_output=True, text=True)
    assert done.returncode == 125, done
    assert "without end: more than 4 MiB of memory\nhint: " in done.stderr
    assert done.stderr.count("\n") == 2, done.stderr


def test_progress_is_for_terminals(container):
    with Terminal(*CNTR, "cp", "/proc/self/pagemap", f"{container.pid}:/zeros") as terminal:
        terminal.wait_for(r"\d+\.\d [KMG]iB, \d+\.\d [KMG]iB/s")
        terminal.type("\x03")
        terminal.wait_for("cntr: interrupted")
        assert terminal.process.wait(20) == 130
    assert not leftovers(container.root)


def test_the_receivers_own_error_is_one_the_user_can_act_on(tmp_path):
    with pytest.raises(CntrError, match="No such file or directory"):
        receive(tmp_path / "no/such", (stream.START, b"\0" + stream.pack_item(FILE, b"x")))
