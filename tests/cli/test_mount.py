"""``cntr mount``: CntrFS from the command line; the file system itself is tested in tests/fs."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import pytest

from cntr.cli import reports
from cntr.cntrfs import mountpoint, probe
from cntr.errors import CntrError
from cntr.linux import procfs, syscalls
from testkit.waiting import wait_until
from tests.cli.trees import CNTR

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")


def mounted(point: pathlib.Path) -> procfs.Mount | None:
    found = [m for m in procfs.mountinfo(procfs.read("/proc/self/mountinfo")) if m.mount_point == str(point)]
    return found[-1] if found else None


def servers(point: pathlib.Path) -> list[int]:
    """The processes with POINT in their command line."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.fsencode(str(point)) in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
        except OSError:
            continue
    return found


@pytest.fixture
def own_mounts():
    """A mount namespace for the test, since containers made meanwhile would copy its mounts and keep them alive."""
    before, directory = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), os.getcwd()
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    yield
    syscalls.setns(before, syscalls.CLONE_NEWNS)
    os.chdir(directory)
    os.close(before)


@pytest.fixture
def places(own_mounts, tmp_path):
    """(source, mountpoint); at the end it must be unmounted and have no server."""
    source, point = tmp_path / "source", tmp_path / "point"
    source.mkdir()
    point.mkdir()
    (source / "file").write_text("through\n")
    yield source, point
    if mounted(point):
        subprocess.run(["umount", "-l", point], check=True)
    wait_until(lambda: not servers(point))


def mount(*words: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*CNTR, "mount", *map(str, words)], capture_output=True, timeout=60, **options)


def skip_without(binding: str) -> None:
    if binding == "pyfuse3":
        pytest.importorskip("pyfuse3", reason="not installed: pyfuse3 (pip install 'cntr-attach[pyfuse3]')")


@pytest.mark.parametrize("binding", ["auto", "devfuse", "pyfuse3"])
def test_it_returns_when_the_mount_answers_and_serves_until_it_is_unmounted(places, binding):
    skip_without(binding)
    source, point = places
    result = mount(source, point, "--binding", binding)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert (point / "file").read_text() == "through\n"
    found = mounted(point)
    assert found
    assert (found.fstype, found.source) == ("fuse.cntrfs", str(source))
    (point / "new").write_text("back\n")
    assert (source / "new").read_text() == "back\n"
    subprocess.run(["umount", point], check=True)
    assert mounted(point) is None
    wait_until(lambda: not servers(point))


@pytest.mark.parametrize("words", [["--read-only"], ["-o", "ro"], ["-o", "noatime,ro"], ["-o", "noatime", "-o", "ro"]])
def test_read_only(places, words):
    source, point = places
    assert mount(source, point, *words).returncode == 0
    with pytest.raises(OSError, match="Read-only") as caught:
        (point / "new").write_text("x")
    assert caught.value.errno == errno.EROFS
    found = mounted(point)
    assert found
    assert "ro" in found.options
    if any("noatime" in word for word in words):
        assert "noatime" in found.options
    assert (point / "file").read_text() == "through\n"


@pytest.mark.parametrize("policy", ["auto", "strict", "none"])
def test_a_change_behind_the_mount_is_seen(places, policy):
    """At once without a cache, else as soon as the kernel was told."""
    source, point = places
    assert mount(source, point, "--cache", policy).returncode == 0
    assert (point / "file").read_text() == "through\n"
    (source / "file").write_text("something longer\n")
    (source / "other").write_text("x")
    if policy == "auto":
        wait_until(lambda: (point / "file").read_text() == "something longer\n")
        wait_until(lambda: (point / "other").exists())
    assert (point / "file").read_text() == "something longer\n"
    assert (point / "other").read_text() == "x"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_a_signal_unmounts(places, number):
    source, point = places
    process = subprocess.Popen([*CNTR, "mount", source, point, "--foreground"], stderr=subprocess.PIPE)
    wait_until(lambda: mounted(point) or process.poll() is not None)
    assert (point / "file").read_text() == "through\n"
    assert process.poll() is None
    process.send_signal(number)
    assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 0
    assert mounted(point) is None


def test_a_pipe_to_the_command_ends_with_the_command(places):
    """As in $(cntr mount …) or over ssh: the server must not hold the caller's output open."""
    source, point = places
    for stream in ("stdout", "stderr"):
        process = subprocess.Popen([*CNTR, "mount", source, point], **{stream: subprocess.PIPE})
        with getattr(process, stream) as pipe:
            assert pipe.read() == b""
        assert process.wait(20) == 0
        assert (point / "file").read_text() == "through\n"
        subprocess.run(["umount", point], check=True)


def test_in_the_foreground_an_unmount_ends_it(places):
    source, point = places
    process = subprocess.Popen([*CNTR, "mount", source, point, "-f"], stderr=subprocess.PIPE)
    wait_until(lambda: mounted(point) or process.poll() is not None)
    assert (point / "file").read_text() == "through\n"
    subprocess.run(["umount", point], check=True)
    assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 0


def test_the_server_killed_leaves_no_mount(places):
    source, point = places
    assert mount(source, point).returncode == 0
    # Start all before waiting for any.
    ours = {pid: pathlib.Path(f"/proc/{pid}/comm").read_text() for pid in servers(point)}
    for pid in (pid for pid, name in ours.items() if name == "cntrfs\n"):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: mounted(point) is None)


REFUSED = [
    (["{source}/none", "{point}"], "source/none"),
    (["{source}", "{point}/none"], "point/none"),
    (["{source}/file", "{point}"], "source/file"),
    (["{source}"], "MOUNTPOINT is missing"),
    (["{source}", "{point}", "more"], "unexpected word: more"),
    (["{source}", "{point}", "-o", "nonsense"], "unknown mount option: nonsense"),
    (["{source}", "{point}", "-o", "attr_timeout=x"], "attr_timeout wants a number"),
    (["{source}", "{point}", "-o", "entry_timeout=nan"], "entry_timeout wants a number"),
    (["{source}", "{point}", "-o", "hang_timeout=1e400"], "hang_timeout wants a number"),
    (["{source}", "{point}", "--cache", "all"], "--cache all: not one of auto, strict, none"),
    (["{source}", "{point}", "--binding", "fuse2"], "--binding fuse2: not one of auto, devfuse, pyfuse3"),
]


@pytest.mark.parametrize(("words", "why"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_cannot_be_mounted_is_reported(places, words, why):
    source, point = places
    result = mount(*(word.format(source=source, point=point) for word in words))
    assert result.returncode == 125
    message, hint = result.stderr.decode().splitlines()
    assert why in message
    assert message.startswith("cntr: ")
    assert hint.startswith("hint: ")
    assert mounted(point) is None


def test_without_pyfuse3_the_error_says_how_to_get_it(places):
    """Also on a machine without it, where Python finds no such module."""
    source, point = places
    program = "import sys; sys.modules['pyfuse3'] = None; from cntr.__main__ import main; main()"
    words = ["mount", str(source), str(point), "--binding", "pyfuse3"]
    result = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, timeout=60)
    assert result.returncode == 125
    message, hint = result.stderr.decode().splitlines()
    assert "pyfuse3 binding is not available" in message
    assert "pip install 'cntr-attach[pyfuse3]'" in hint
    assert mounted(point) is None


@pytest.mark.usefixtures("other_users")
def test_mounting_takes_root_and_says_so(own_mounts):
    with tempfile.TemporaryDirectory() as open_to_all:
        os.chmod(open_to_all, 0o755)
        result = mount(open_to_all, open_to_all, user=65534, group=65534, extra_groups=[])
        assert result.returncode == 125
        message, hint = result.stderr.decode().splitlines()
        assert "Permission denied" in message or "Operation not permitted" in message
        assert "root" in hint


# --- doctor -----------------------------------------------------------------------------------------------------------


def rows() -> dict[object, tuple[object, object]]:
    return {feature: (state, fix) for feature, state, fix in reports.doctor().rows}


def test_doctor_knows_what_a_mount_takes():
    found = rows()
    assert found["/dev/fuse (--transport fuse, cntr mount)"] == ("yes", "")
    assert {"FUSE passthrough", "pyfuse3 (--binding pyfuse3)"} <= set(found)


def test_doctor_says_how_to_get_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyfuse3", None)
    monkeypatch.setattr(probe.file_syscalls, "ioctl_number", _refuse)
    found = rows()
    state, fix = found["pyfuse3 (--binding pyfuse3)"]
    assert state == "no"
    assert "pip install 'cntr-attach[pyfuse3]'" in str(fix)
    state, fix = found["FUSE passthrough"]
    assert state == "no"
    assert str(fix).startswith("Operation not permitted: ")


def _refuse(*_: object) -> int:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_the_probe_of_passthrough_leaves_nothing(own_mounts):
    """No mount, connection or fd; and the result agrees with a real mount."""
    before = (procfs.read("/proc/self/mountinfo"), len(os.listdir("/proc/self/fd")))
    for _ in range(5):
        try:
            probe.passthrough()
        except OSError as error:
            assert error.errno in (errno.EPERM, errno.ENOTTY, errno.EOPNOTSUPP), error
    assert (procfs.read("/proc/self/mountinfo"), len(os.listdir("/proc/self/fd"))) == before


def test_a_mountpoint_is_what_was_opened_whatever_its_path_means_later(tmp_path):
    """In a directory of a user's, who exchanges it for a link to /etc, or renames a directory above it while it is mounted."""
    above, victim = tmp_path / "above", tmp_path / "victim"
    (above / "mnt").mkdir(parents=True)
    victim.mkdir()
    (victim / "file").touch()
    place = mountpoint.Mountpoint(str(above / "mnt"))
    (above / "mnt").rename(above / "real")
    (above / "mnt").symlink_to(victim)
    place.mount(lambda path: syscalls.mount("test", path, "tmpfs", 0), "tmpfs")
    try:
        assert os.listdir(victim) == ["file"]
        assert os.path.ismount(above / "real")
        above.rename(tmp_path / "renamed")
        above.mkdir()
        (above / "real").symlink_to(victim)
        syscalls.mount("other", str(victim), "tmpfs", 0)
        assert place.unmount(0)
        assert os.path.ismount(victim)
        assert not os.path.ismount(tmp_path / "renamed/real")
    finally:
        subprocess.run(["umount", "-q", victim, tmp_path / "renamed/real", above / "real"], check=False)
    os.close(place.fd)
    os.chown(above / "real", 65534, 65534, follow_symlinks=False)
    with pytest.raises(CntrError, match=r"by a link of uid 65534's"):
        mountpoint.Mountpoint(str(above / "real"))
    os.chown(victim, 65534, 65534)  # who leads to a directory of their own
    os.close(mountpoint.Mountpoint(str(above / "real")).fd)
