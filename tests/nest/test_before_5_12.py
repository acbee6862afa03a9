"""Sessions on kernels without mount_setattr(2): the same guarantees, tested by the same checks."""

from __future__ import annotations

import errno
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import pytest

from cntr.attach import view
from cntr.linux import bpf
from testkit import autofs
from tests.nest import busybox as busybox
from tests.nest import test_view
from tests.nest.busybox import CNTR, REPOSITORY, BusyboxContainer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
FILTERED = [sys.executable, "-m", "tests.nest.filtered", "5.10"]


@pytest.fixture(autouse=True)
def no_mount_setattr(monkeypatch):
    monkeypatch.setattr(busybox, "CNTR", [*FILTERED, *CNTR])


def test_the_call_is_not_there():
    """Control: without the call a mount cannot be changed that way."""
    code = "from cntr.linux import syscalls as s; s.mount_setattr(s.AT_FDCWD, '/', recursive=True, attr_set=1)"
    done = subprocess.run(
        [*FILTERED, sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert "Function not implemented" in done.stderr


@pytest.fixture
def tools(tmp_path):
    """A small tree of its own: every file is examined, and this machine has many."""
    return str(test_view.tools_tree(tmp_path / "tools"))


def test_a_session_its_files_and_its_words(tools):
    with BusyboxContainer(files={"/etc/hosts": "127.0.0.1 slim\n"}) as container:
        script = "hostname; touch /bin/x /etc/hosts; cat /var/lib/cntr/bin/busybox | wc -c; echo x > /tmp/x; cat /proc/self/mountinfo"
        done = container.attach("-v", "--tools", tools, "--", "/bin/sh", "-c", script)
        assert done.stdout.startswith(f"demo\n{os.path.getsize(busybox.BUSYBOX)}\n"), done
        assert done.stderr.count("Read-only file system") == 2, done
        assert "): masked" in done.stderr
        assert "no mount_setattr (Linux 5.12): nothing is idmapped" in done.stderr
        rows = [row.split() for row in done.stdout.splitlines()[2:]]
        flags = {row[4]: set(row[5].split(",")) for row in rows}
        assert all("nosuid" in found for found in flags.values()), flags
        assert {"ro", "nosuid", "nodev"} <= flags["/bin"]
        assert {"ro", "nosuid"} <= flags["/etc/hosts"]
        assert not [row for row in rows if any(word.startswith("shared:") for word in row[6:])]
        assert container.exec("--", "/bin/readlink", "/proc/self/exe").stdout == "/bin/busybox\n"


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_what_only_some_may_read_is_not_seen(tools, transport):
    """For root with all capabilities and for the owner: an empty file covers it, which root can open, since it is
    root's.
    """
    tree = pathlib.Path(tools)
    (tree / "closed").mkdir()
    for name, uid, mode in (
        ("open", 0, 0o644),
        ("roots", 0, 0o600),
        ("owners", 1000, 0o600),
        ("groups", 0, 0o640),
        ("closed/inner", 0, 0o644),
    ):
        (tree / name).write_text(f"secret of {name}\n")
        os.chown(tree / name, uid, 1000)
        (tree / name).chmod(mode)
    (tree / "closed").chmod(0o700)
    for uid in (0, 1000):
        with BusyboxContainer(uid=uid, gid=uid, capabilities=0 if uid else (1 << 41) - 1) as container:
            script = "cat /open /roots /owners /groups /closed/inner; ls -A /closed"
            done = container.attach("--tools", tools, "--transport", transport, "--", "/bin/sh", "-c", script)
            assert done.stdout == "secret of open\n", (done.stdout, done.stderr)


def test_a_thousand_covers_take_no_process_each(tmp_path):
    """Each is read-only, like the mount that it is cloned from."""
    for number in range(1000):
        (tmp_path / str(number)).touch()
    code = f"""
import errno
import os
from cntr.attach import view
from cntr.linux import bpf
from cntr.linux import attributes, syscalls as s
s.unshare(s.CLONE_NEWNS)
s.mount(None, "/", None, s.MS_REC | s.MS_PRIVATE)
attributes.os.fork = None
os.chdir("/")
paths = [f"{tmp_path}/{{number}}" for number in range(1000)]
view.View(-1, os.open("/proc", os.O_PATH), None, as_owner=False)._cover([(path, False) for path in paths])
flags = {{os.statvfs(path).f_flag & 15 for path in paths}}
assert flags == {{os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV}}, flags
"""
    done = subprocess.run(
        [*FILTERED, sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_the_tools_are_not_written_to_with_every_capability(tools, transport):
    before = test_view.snapshot(pathlib.Path(tools))
    with BusyboxContainer(capabilities=(1 << 41) - 1) as container:
        script = (
            "mount -o remount,bind,rw /; touch /bin/x /x; echo x > /etc/hostname; chmod 777 /bin; mknod /tmp/d b 7 0"
        )
        container.attach("--tools", tools, "--transport", transport, "--", "/bin/sh", "-c", script)
    assert test_view.snapshot(pathlib.Path(tools)) == before


def test_a_share(tools, tmp_path):
    """Ids are not mapped; read-only still works."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "letter").write_text("dear\n")
    with BusyboxContainer() as container:
        script = f"cat {shared}/letter; touch {shared}/x"
        done = container.attach("-v", "--tools", tools, "--share", str(shared), "--", "/bin/sh", "-c", script)
        assert done.stdout == "dear\n"
        assert "Read-only" in done.stderr
        assert "can't be idmapped" in done.stderr
        container.attach("--tools", tools, "--share", f"{shared}:rw", "--", "/bin/sh", "-c", f"touch {shared}/x")
        assert (shared / "x").exists()


def test_a_directory_that_goes_while_it_is_looked_at(tools, monkeypatch):
    """This may happen on any file system that can't be idmapped."""
    part = view.Part("/", "tmpfs", os.open(tools, os.O_PATH))
    (pathlib.Path(tools) / "goes").mkdir()
    scandir = os.scandir

    def scan(fd):
        found = scandir(fd)
        if (pathlib.Path(tools) / "goes").exists():
            (pathlib.Path(tools) / "goes").rmdir()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(view.os, "scandir", scan)
        part.look()
    os.close(part.tree_fd)


@pytest.mark.parametrize(("mode", "how"), [(0o644, "masked"), (0o640, "left out")])
def test_a_file_that_is_mounted_on_a_file(tmp_path, mode, how):
    """As engines mount /etc/hosts in a toolbox: it is shown or left out, and not searched like a directory."""
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(mode)
    part = view.Part("/etc/hosts", "ext4", os.open(tmp_path / "file", os.O_PATH))
    part.how = "masked"
    part.look()
    os.close(part.tree_fd)
    assert (part.how, part.masks) == (how, [])


def test_an_automount_of_another_namespace(tools, tmp_path):
    """Such as systemd's at /proc/sys/fs/binfmt_misc with `pid:1`: it mounts nothing for us, and must not stop the
    session.
    """
    with autofs.filled(tmp_path / "tree") as tree:
        command = ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo up; exec sleep 300"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout
                assert process.stdout.readline() == b"up\n"
                words = ["attach", "--tools", tools, f"pid:{process.pid}", "--", "/bin/sh", "-c", "echo inside"]
                done = subprocess.run(
                    [*FILTERED, *CNTR, *words], capture_output=True, text=True, cwd=REPOSITORY, check=False
                )
                assert (done.returncode, done.stdout) == (0, "inside\n"), done
            finally:
                process.kill()
        assert os.listdir(tree / "direct") == ["inside"], "its daemon must be alive"


def test_a_stand_in_for_what_does_not_run(tools):
    """Its /sys, the covers of /proc and its root work the same way."""
    done = busybox.run(
        "exec", f"dir:{tools}", "--", "/bin/sh", "-c", "cat /proc/self/mountinfo; touch /sys/x /proc/sys/x"
    )
    assert done.returncode in (0, 1), done
    flags = {row.split()[4]: row.split()[5].split(",") for row in done.stdout.splitlines()}
    assert "ro" in flags["/sys"], done
    assert "ro" in flags["/proc/sys"]


@pytest.mark.skipif(not shutil.which("strace"), reason="not installed: strace (apt-get install)")
def test_a_stand_in_does_not_try_every_number_of_an_fd(tools, tmp_path):
    """There may be a million, which takes half a minute in an emulated machine."""
    command = ["strace", "-f", "-o", tmp_path / "calls", "-e", "trace=close,fcntl,ioctl", *FILTERED, *CNTR]
    done = subprocess.run(
        [*command, "exec", f"dir:{tools}", "--", "/bin/busybox", "echo", "inside"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "inside\n"), done
    assert len((tmp_path / "calls").read_text().splitlines()) < 10_000


def test_one_layer_of_an_image_to_split(tmp_path):
    (tmp_path / "file").write_text("x")
    code = f"import os; from cntr.slim import overlay; os.open('file', os.O_RDWR, dir_fd=overlay.merged([{str(tmp_path)!r}]))"
    done = subprocess.run(
        [*FILTERED, sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert "OSError: [Errno 30] Read-only file system: 'file'" in done.stderr


def test_access_time_flags_are_refused_by_their_name(tmp_path):
    for name in ("source", "mount"):
        (tmp_path / name).mkdir()
    words = ["mount", "-o", "noatime", str(tmp_path / "source"), str(tmp_path / "mount")]
    done = subprocess.run([*FILTERED, *CNTR, *words], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 125
    assert "cannot give SOURCE other access time flags: Function not implemented" in done.stderr
    assert "leave out: noatime (it takes Linux 5.12)" in done.stderr


@pytest.mark.parametrize("may_raise", [True, False])
def test_a_device_program_counts_as_locked_memory_before_5_11(monkeypatch: pytest.MonkeyPatch, may_raise: bool) -> None:
    """A container, such as a toolbox, has 64 KiB for everything that its user has loaded."""
    limits = [(1 << 16, 1 << 16)]

    def setrlimit(_which: int, new: tuple[int, int]) -> None:
        if not may_raise:
            raise ValueError("not allowed to raise maximum limit")
        limits.append(new)

    def loaded(_command: int, _attributes: bytes) -> int:
        if limits[-1][0] != resource.RLIM_INFINITY:
            raise PermissionError(errno.EPERM, "bpf")
        return 77

    monkeypatch.setattr(bpf, "_bpf", loaded)
    monkeypatch.setattr(bpf.resource, "getrlimit", lambda _which: limits[-1])
    monkeypatch.setattr(bpf.resource, "setrlimit", setrlimit)
    if may_raise:
        assert bpf.load(bpf.usual_devices()) == 77
        assert limits[-1] == limits[0]
    else:
        with pytest.raises(PermissionError):
            bpf.load(bpf.usual_devices())
