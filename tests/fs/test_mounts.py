"""mount(8) and other mounts: on top of CntrFS, in its source, its mount helper, read-only, access times."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cntr.cntrfs import mount_helper, mounting
from cntr.cntrfs.heartbeat import Heartbeat
from cntr.cntrfs.mount_words import mount_flags
from cntr.cntrfs.options import Options, parse
from cntr.cntrfs.watchdog import Watchdog, find_device
from cntr.errors import UsageError
from cntr.linux import syscalls
from testkit.servers import REPOSITORY, Server, TreeUnderTest, is_mountpoint, missing, place
from testkit.waiting import wait_until

pytestmark = pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing")


@pytest.fixture(params=["devfuse", "pyfuse3"])
def here(request: pytest.FixtureRequest) -> Iterator[TreeUnderTest]:
    if missing(request.param):
        pytest.skip(missing(request.param))
    with place(request.param) as found:
        yield found


def test_a_mount_over_it_survives_mounts_elsewhere(here: TreeUnderTest, tmp_path: Path) -> None:
    """A mount on a file or directory of CntrFS stays, although the mount table changes and the entry expires."""
    over, elsewhere = here.directory / "over", tmp_path / "elsewhere"
    over.mkdir()
    elsewhere.mkdir()
    syscalls.mount("over", str(over), "tmpfs", 0)
    try:
        (over / "inside").touch()
        syscalls.mount("elsewhere", str(elsewhere), "tmpfs", 0)
        syscalls.umount(str(elsewhere), 0)
        os.utime(here.behind / "over")
        (here.behind / "other").touch()
        wait_until(lambda: (here.directory / "other").exists(), "a file made behind", 5)
        assert is_mountpoint(over)
        assert (over / "inside").exists()
    finally:
        syscalls.umount(str(over), syscalls.MNT_DETACH)


def test_a_mount_behind_it_is_crossed(here: TreeUnderTest) -> None:
    below = here.behind / "below"
    below.mkdir()
    assert list((here.directory / "below").iterdir()) == []
    syscalls.mount("below", str(below), "tmpfs", 0)
    try:
        (below / "new").write_text("on the submount")
        wait_until(lambda: (here.directory / "below" / "new").exists(), "the submount's file", 5)
        assert (here.directory / "below" / "new").read_text() == "on the submount"
        with pytest.raises(OSError, match="cross-device"):
            os.rename(here.directory / "below" / "new", here.directory / "new")
    finally:
        syscalls.umount(str(below), syscalls.MNT_DETACH)


def test_two_that_show_each_other() -> None:
    """Each is a submount in the other's source. Recursion ends at the server's own mount, and no
    server waits for itself.
    """
    with place("devfuse") as first, place("devfuse") as second:
        (first.behind / "second").mkdir()
        (second.behind / "first").mkdir()
        (first.behind / "file").write_text("of the first")
        shown = (
            (first.directory, second.behind / "first"),
            (second.directory, first.behind / "second"),
        )
        for directory, point in shown:
            syscalls.mount(str(directory), str(point), None, syscalls.MS_BIND)
        try:
            assert (second.directory / "first" / "file").read_text() == "of the first"
            deep = first.directory / "/".join(["second/first"] * 20)  # more than the workers of one disk
            assert _error_of(deep) == errno.ELOOP
            found = subprocess.run(["find", first.directory], capture_output=True, text=True, timeout=60, check=False)
            assert "levels of symbolic links" in found.stderr
            assert (first.directory / "file").read_text() == "of the first"
        finally:
            for _, point in shown:
                syscalls.umount(str(point), syscalls.MNT_DETACH)
        for one in (first, second):
            assert one.server is not None
            assert one.server.alive
            assert not one.server.new_suspicious_lines()


@pytest.mark.parametrize("words", [(), ("-o", "cache=strict")], ids=["auto", "strict"])
@pytest.mark.parametrize("binding", ["devfuse", "pyfuse3"])
def test_our_own_mount_bound_into_its_source(binding: str, words: tuple[str, ...]) -> None:
    """The server cannot look at it without asking itself. Everything else is served, and the
    directory is back after unmounting.
    """
    if missing(binding):
        pytest.skip(missing(binding))
    with place(binding, options=("-o", "hang_timeout=5", *words)) as here:
        sub, seen = here.behind / "d" / "sub", here.directory / "d" / "sub"
        sub.mkdir(parents=True)
        (here.behind / "other").mkdir()
        (here.behind / "file").write_text("x")
        known = here.directory if words else seen  # what the kernel knew before; the server still serves
        assert len(os.listdir(known)) == (3 if words else 0)
        for _ in range(2):
            syscalls.mount(str(here.directory), str(sub), None, syscalls.MS_BIND | syscalls.MS_REC)
            try:
                begun = time.monotonic()
                with pytest.raises(OSError, match="levels of symbolic links"):
                    seen.rmdir()
                with pytest.raises(OSError, match="levels of symbolic links"):
                    (here.directory / "other").rename(seen)
                assert _error_of(seen) in (errno.ELOOP, 0), "what the kernel knew before is the directory underneath"
                assert os.listdir(seen.parent) == ["sub"]
                assert (sub / "file").read_text() == (here.directory / "file").read_text() == "x"
                assert time.monotonic() - begun < 5, "the server waited for itself"
            finally:
                syscalls.umount(str(sub), syscalls.MNT_DETACH)
            assert _error_of(seen) == 0, "the directory underneath"
        assert here.server
        assert here.server.alive, here.server.log_end()


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EACCES], ids=["server gone", "another user's"])
def test_a_mount_that_cannot_be_looked_at_hides_no_other_name(here: TreeUnderTest, number: int) -> None:
    """Its own name is listed, too, and looking at it gives the error. Without root, sshfs and the
    like are for their user alone.
    """
    dead = here.behind / "d" / "dead"
    dead.mkdir(parents=True)
    (here.behind / "d" / "file").write_text("x")
    fd = os.open("/dev/fuse", os.O_RDWR)
    user = 0 if number == errno.ENOTCONN else 20001
    syscalls.mount("dead", str(dead), "fuse", 0, f"fd={fd},rootmode=40000,user_id={user},group_id={user}")
    if not user:
        os.close(fd)
    try:
        for _ in range(2):
            # pyfuse3 cannot list a name without its attributes, so it leaves it out.
            known = ["file"] if user and here.name == "pyfuse3" else ["dead", "file"]
            assert sorted(os.listdir(here.directory / "d")) == known
            assert (here.directory / "d" / "file").read_text() == "x"
            assert _error_of(here.directory / "d" / "dead") == number
            (here.directory / "d" / "new").touch()
            (here.directory / "d" / "new").unlink()
    finally:
        syscalls.umount(str(dead), syscalls.MNT_DETACH)
        if user:
            os.close(fd)
    wait_until(lambda: os.listdir(here.directory / "d" / "dead") == [], "the directory underneath", 5)


def _error_of(path: Path) -> int:
    try:
        path.stat()
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_listing_is_not_kept_where_nobody_watches(tmp_path: Path) -> None:
    """The kernel keeps a listing until the directory's mtime changes, which in /proc never happens."""
    server = Server("devfuse", Path("/proc"), tmp_path, tmp_path.parent / f"{tmp_path.name}.log")
    server.start()
    try:
        for _ in range(3):
            with subprocess.Popen(["sleep", "60"]) as process:
                seen = os.listdir(tmp_path)
                process.kill()
            assert str(process.pid) in seen
            assert str(process.pid) not in os.listdir(tmp_path)
    finally:
        assert not server.stop()


def test_a_mount_that_came_and_went_unseen() -> None:
    """Mounted, looked at and unmounted between two reads of the mount table: the watch sees two equal tables."""
    with place("devfuse") as here:
        below = here.behind / "below"
        below.mkdir()
        time.sleep(0.5)  # its event has been handled: the name is not expired again
        assert here.server is not None
        watches = [pid for pid in here.server.processes() if Path(f"/proc/{pid}/comm").read_text() == "cntrfs-watch\n"]
        for pid in watches:
            os.kill(pid, signal.SIGSTOP)
        try:
            syscalls.mount("below", str(below), "tmpfs", 0)
            (below / "new").touch()
            wait_until(lambda: (here.directory / "below" / "new").exists(), "the submount's file", 5)
            syscalls.umount(str(below), syscalls.MNT_DETACH)
        finally:
            for pid in watches:
                os.kill(pid, signal.SIGCONT)
        wait_until(lambda: not (here.directory / "below" / "new").exists(), "the end of the submount", 5)
        assert list((here.directory / "below").iterdir()) == []


@pytest.mark.parametrize("binding", ["devfuse", "pyfuse3"])
def test_the_mount_helper(binding: str, tmp_path: Path) -> None:
    """mount -t fuse.cntrfs source:/a /b: shown as given, returns once the mount answers, can be
    remounted and unmounted.
    """
    if missing(binding):
        pytest.skip(missing(binding))
    source, mountpoint = tmp_path / "source", tmp_path / "mount point"
    source.mkdir()
    mountpoint.mkdir()
    (source / "file").write_text("x")
    helper = [sys.executable, "-m", "cntr.cntrfs.mount_helper", f"source:{source}", str(mountpoint)]
    options = ["-o", f"rw,allow_other,default_permissions,dev,suid,binding={binding}"]
    subprocess.run([*helper, *options], cwd=REPOSITORY, check=True, timeout=30, stdin=subprocess.DEVNULL)
    try:
        assert (mountpoint / "file").read_text() == "x"
        assert f"source:{source} " in Path("/proc/mounts").read_text()
        subprocess.run([*helper, "-o", "remount,ro"], cwd=REPOSITORY, check=True, timeout=30)
        with pytest.raises(OSError, match="Read-only"):
            (mountpoint / "file").write_text("y")
        subprocess.run([*helper, "-o", "remount,rw"], cwd=REPOSITORY, check=True, timeout=30)
        (mountpoint / "file").write_text("y")
    finally:
        syscalls.umount(str(mountpoint), 0)
    assert (source / "file").read_text() == "y"


BY_MOUNT = """
mount -t overlay overlay -o lowerdir=/usr/sbin,upperdir=$1/upper,workdir=$1/work /usr/sbin
printf '#!/bin/sh\\ncd %s && exec %s -m cntr.cntrfs.mount_helper "$@"\\n' "$2" "$3" > /usr/sbin/mount.fuse.cntrfs
chmod 755 /usr/sbin/mount.fuse.cntrfs
flags() { grep " $1/mount " /proc/self/mountinfo | cut -d" " -f6; }
for words in defaults suid,dev allow_suid,allow_dev,nosuid,nodev users,allow_dev,exec allow_suid,allow_dev,noexec; do
  mount -t fuse.cntrfs -o $words $1/source $1/mount
  (: < $1/mount/null) 2>/dev/null && echo $words read
  flags $1; mount -o remount,ro $1/mount; flags $1
  umount $1/mount
done
"""


def test_by_mount(tmp_path: Path) -> None:
    """mount(8) passes some options to a helper and keeps others (suid, dev). A remount changes neither."""
    for name in ("upper", "work", "source", "mount"):
        (tmp_path / name).mkdir()
    os.mknod(tmp_path / "source" / "null", 0o020666, os.makedev(1, 3))
    words = [
        "unshare",
        "-m",
        "--propagation",
        "private",
        "sh",
        "-ec",
        BY_MOUNT,
        "sh",
        tmp_path,
        REPOSITORY,
        sys.executable,
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    safe = ["rw,nosuid,nodev,relatime", "ro,nosuid,nodev,relatime"]
    allowed = ["allow_suid,allow_dev,noexec read", "rw,noexec,relatime", "ro,noexec,relatime"]
    assert done.stdout.split("\n")[:-1] == [*safe * 4, *allowed], done


def test_access_times_follow_the_mounts_own_flags(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for words, moves in ((["noatime"], False), (["strictatime"], True)):
        root = mounting.open_source(str(tmp_path), words)
        try:
            os.utime(file, ns=(10**9, 10**9))
            fd = os.open("file", os.O_RDONLY, dir_fd=root)
            os.read(fd, 1)
            os.close(fd)
            assert (file.stat().st_atime_ns != 10**9) == moves, words
        finally:
            os.close(root)


@pytest.mark.parametrize("binding", ["devfuse", "pyfuse3"])
@pytest.mark.parametrize(
    ("flag", "moves"), [("ro", False), ("ro,strictatime", False), ("nodiratime", False), ("relatime", True)]
)
def test_a_listing_and_the_access_time(binding: str, flag: str, moves: bool, tmp_path: Path) -> None:
    """The server reads the directory, which would update its access time in the backing filesystem
    whatever the mount's options.
    """
    if missing(binding):
        pytest.skip(missing(binding))
    (tmp_path / "source").mkdir()
    (tmp_path / "mount").mkdir()
    listed = tmp_path / "source" / "listed"
    listed.mkdir()
    (tmp_path / "source" / "file").write_text("x")
    for path in (listed, tmp_path / "source" / "file"):
        os.utime(path, (1, 2))
    server = Server(binding, tmp_path / "source", tmp_path / "mount", tmp_path / "log", options=("-o", flag))
    server.start()
    try:
        assert os.listdir(tmp_path / "mount" / "listed") == []
        assert (tmp_path / "mount" / "file").read_text() == "x"
        assert (listed.stat().st_atime != 1) == moves
        assert flag != "ro,strictatime" or (tmp_path / "source" / "file").stat().st_atime == 1
    finally:
        assert not server.stop()


@pytest.mark.parametrize("binding", ["devfuse", "pyfuse3"])
@pytest.mark.parametrize("words", ["strictatime", "strictatime,no_passthrough"])
def test_each_opening_of_a_file_moves_its_access_time(binding: str, words: str, tmp_path: Path) -> None:
    """strictatime: if the kernel kept data from one open to the next, reads would not update the access time."""
    if missing(binding):
        pytest.skip(missing(binding))
    (tmp_path / "source").mkdir()
    (tmp_path / "mount").mkdir()
    file = tmp_path / "source" / "file"
    file.write_text("x")
    server = Server(binding, tmp_path / "source", tmp_path / "mount", tmp_path / "log", options=("-o", words))
    server.start()
    try:
        seen = []
        for _ in range(3):
            time.sleep(0.02)  # the clock for timestamps ticks every few milliseconds
            assert (tmp_path / "mount" / "file").read_text() == "x"
            seen.append(file.stat().st_atime_ns)
        assert len(set(seen)) == 3, seen
    finally:
        assert not server.stop()


def test_a_mount_that_took_over_the_device_number_is_another(tmp_path: Path) -> None:
    """The kernel reuses a device number at once: unmounting by the number alone would hit the next mount."""
    if missing("devfuse"):
        pytest.skip(missing("devfuse"))

    def mounted() -> int:
        fd = mounting.open_device()
        mounting.mount(fd, "cntr-test", str(tmp_path), 0)
        return fd

    fd = mounted()
    try:
        ours = Watchdog(str(tmp_path), Heartbeat(), 0)
        if ours.control < 0:
            pytest.skip("fusectl is missing: without it there is only the device number")
        for _ in range(50):
            assert ours.is_mounted()
            os.close(fd)
            syscalls.umount(str(tmp_path), 0)
            assert not ours.is_mounted()
            fd = mounted()
            if find_device(str(tmp_path)) == ours.device:
                break
            os.close(ours.control)
            ours = Watchdog(str(tmp_path), Heartbeat(), 0)
        else:
            pytest.skip("no device number was reused in 50 mounts")
        assert not ours.is_mounted()
        os.close(ours.control)
    finally:
        os.close(fd)
        syscalls.umount(str(tmp_path), syscalls.MNT_DETACH)


def test_what_begins_read_only() -> None:
    """mount(8) treats `ro` as a flag of the mount, which a remount can change. Access times follow it as well."""
    assert parse("ro").begins_read_only()
    assert not Options().begins_read_only()
    assert Options(mount_flags=["rw", "strictatime", "ro"]).leaves_directory_atime()
    assert not Options(mount_flags=["ro", "rw"]).begins_read_only()


def test_options() -> None:
    options = parse("keep_cache,entry_timeout=2.5,noatime,dev,x-systemd.automount,cache=strict", Options()).settle()
    assert options.entry_timeout == 0.0
    assert options.mount_flags == ["noatime", "dev"]
    with pytest.raises(UsageError, match="unknown mount option"):
        parse("no_such_thing")
    with pytest.raises(UsageError, match="number of seconds"):
        parse("attr_timeout=soon")


def test_flag_words() -> None:
    assert mount_flags(["nosuid", "nodev", "suid"]) == syscalls.MS_NODEV
    assert mount_flags(["ro", "rw"]) == 0


def test_a_wrong_call_of_the_helper(capsys: pytest.CaptureFixture[str]) -> None:
    assert mount_helper.main(["only-one"]) == 1
    assert mount_helper.main(["/nonexistent", "/nonexistent"]) == 32
    assert "not a directory" in capsys.readouterr().err


@pytest.mark.skipif(bool(missing("pyfuse3")), reason=missing("pyfuse3") or "")
def test_the_reference_binding_begins_without_a_process() -> None:
    """trio has ldconfig(8) look for libpthread if nothing else finds it, which would delay an attach."""
    script = """
import os, sys
sys.addaudithook(lambda event, words: event == "subprocess.Popen" and print(words[:2]))
from cntr.cntrfs import mounting
from cntr.cntrfs.options import Options
null = os.open("/dev/null", os.O_RDWR)
try:
    mounting.serve(null, null, Options(), null, binding="pyfuse3")
except Exception:
    print("trio" in sys.modules, sys.modules["ctypes.util"].find_library.__module__)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True ctypes.util\n", done.stderr
