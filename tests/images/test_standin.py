"""Stand-ins: their /proc as a session sees it, hostile images, and that nothing is left."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

from cntr.errors import CntrError, TargetNotFound
from cntr.images import blueprint, cgroups, profile, targets
from cntr.images.blueprint import Blueprint, Mount
from cntr.images.role import Role
from cntr.images.room import DEVICES, Room
from cntr.images.standin import StandIn
from cntr.linux import procfs, seccomp, syscalls
from testkit.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SCRIPT = """
import sys, time
from cntr.images import targets
_, it = targets.hold(sys.argv[1], say=print)
print(it.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def root(tmp_path):
    """The root directory of a container, with busybox and a user."""
    path = tmp_path / "root"
    for directory in ("bin", "etc", "data", "app"):
        (path / directory).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or pytest.skip("no busybox"), path / "bin/busybox")
    (path / "bin/sh").symlink_to("busybox")
    (path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/app:/bin/sh\n")
    (path / "etc/group").write_text("root:x:0:\napp:x:1001:\nextra:x:1002:app\n")
    return path


def of(root: pathlib.Path, **config: object) -> Blueprint:
    made = Blueprint("dir", str(root))
    made.lower = [str(root)]
    made.take_config(config)
    return made


@contextlib.contextmanager
def standing(made: Blueprint, **options: object):
    held = StandIn(made, say=print, **options)
    try:
        yield held
    finally:
        held.close()
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{held.pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{held.pid}")


def read(held: StandIn, name: str) -> str:
    return procfs.read(f"/proc/{held.pid}/{name}")


def run(held: StandIn, script: str) -> str:
    """Run as root without CAP_SYS_PTRACE, like a container's root."""

    def enter() -> None:
        fds = [os.open(f"/proc/{held.pid}/ns/{kind}", os.O_RDONLY) for kind in ("mnt", "uts", "net", "ipc", "pid")]
        root = os.open(f"/proc/{held.pid}/root", os.O_PATH)
        for fd in fds:
            syscalls.setns(fd)
        os.fchdir(root)
        os.chroot(".")
        syscalls.prctl(syscalls.PR_CAPBSET_DROP, 19)

    # The pid namespace belongs to the shell's child.
    command = ["/bin/busybox", "sh", "-c", '/bin/busybox sh -c "$1"; true', "sh", script]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, preexec_fn=enter
    )
    return done.stdout


def test_it_has_what_the_configuration_says(root):
    config = {"Env": ["A=1", "B=x=y"], "WorkingDir": "/app", "User": "app", "Entrypoint": ["/bin/sh"]}
    made = of(root, **config)
    made.hostname, made.no_new_privs = "crashed", True
    made.limits = {"RLIMIT_NOFILE": (100, 200)}
    with standing(made) as held:
        status = procfs.status(read(held, "status"))
        assert (status["Uid"].split()[0], status["Gid"].split()[0], status["Groups"]) == ("1000", "1001", "1002")
        assert (int(status["CapPrm"], 16), int(status["CapBnd"], 16)) == (0, blueprint.DEFAULT_CAPABILITIES)
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert status["NSpid"].split()[-1] == "1"
        environment = procfs.environ(read(held, "environ"))
        assert (environment["A"], environment["B"], environment["HOME"]) == ("1", "x=y", "/app")
        assert os.readlink(f"/proc/{held.pid}/cwd") == "/app"
        assert procfs.limits(read(held, "limits"))[7] == (100, 200)
        assert run(held, "hostname; ifconfig lo | grep -c UP").split() == ["crashed", "1"]
        for kind in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
            assert os.readlink(f"/proc/{held.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind


def test_it_holds_nothing_of_the_hosts(root):
    with standing(of(root)) as held:
        fds = [os.readlink(f"/proc/{held.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{held.pid}/fd")]
        assert all(fd.startswith("pipe:") for fd in fds)
        assert os.readlink(f"/proc/{held.pid}/exe").startswith("/memfd:")
        mounts = procfs.mountinfo(read(held, "mountinfo"))
        devices = {os.lstat("/dev/null").st_dev}
        assert {mount.fstype for mount in mounts} <= {
            *("overlay", "proc", "sysfs", "tmpfs", "devpts", "devtmpfs", "mqueue")
        }, devices
        root_mount = next(mount for mount in mounts if mount.mount_point == "/")
        assert "nodev" in root_mount.options
        # A container's root may not inspect it, although it has all of the stand-in's capabilities.
        out = run(held, "ls /proc/1/cwd/; echo x > /proc/1/fd/0")
        assert out.lower().count("denied") == 2, out


def test_changes_are_thrown_away_those_of_volumes_too(root, tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    made = of(root)
    made.mounts = [Mount("bind", str(volume), "/data/deep/volume"), Mount("tmpfs", "", "/cache")]
    before = sorted(map(str, root.rglob("*")))
    with standing(made) as held:
        out = run(
            held,
            "echo x > /new; rm /etc/group; echo x > /data/deep/volume/new; echo x > /cache/y; ls / /data/deep/volume",
        )
        assert out.count("new") == 2
    assert sorted(map(str, root.rglob("*"))) == before
    assert os.listdir(volume) == []


def test_write_goes_into_its_own_layer(root, tmp_path):
    made = of(root)
    made.state = "exited"
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    made.upper, made.work = str(upper), str(work)
    with standing(made, write=True) as held:
        run(held, "echo fixed > /app/start")
    assert (upper / "app/start").read_text() == "fixed\n"
    assert "start" not in os.listdir(root / "app")


def test_with_write_it_ends_as_soon_as_the_container_is_started(root, tmp_path):
    made = of(root)
    made.state = "exited"
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    made.upper, made.work = str(tmp_path / "upper"), str(tmp_path / "work")
    started = tmp_path / "started"
    made.check = started.exists
    with standing(made, write=True) as held:
        started.touch()
        deadline = time.monotonic() + 10
        while os.path.exists(f"/proc/{held.pid}") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not os.path.exists(f"/proc/{held.pid}")
    with pytest.raises(CntrError, match="started meanwhile"):
        StandIn(made, write=True, say=print)


WRITER = """
import sys, time
from cntr.images.blueprint import Blueprint
from cntr.images.standin import StandIn
made = Blueprint("dir", sys.argv[1])
made.lower, made.upper, made.work, made.state = sys.argv[1:2], *sys.argv[2:4], "exited"
print(StandIn(made, write=True, say=print).pid, flush=True)
time.sleep(60)
"""


def test_one_session_at_a_time_writes_to_a_layer(root, tmp_path):
    """Even if cntr was killed while its session goes on; after that the next session may write."""
    places = [str(tmp_path / name) for name in ("upper", "work")]
    for place in places:
        os.mkdir(place)

    def write() -> contextlib.AbstractContextManager[StandIn]:
        one = of(root)
        one.state, (one.upper, one.work) = "exited", places
        return standing(one, write=True)

    with write() as held:
        with pytest.raises(CntrError, match="another session writes to its layer"), write():
            pass
        assert os.path.exists(f"/proc/{held.pid}")
    with write():
        pass
    maker = subprocess.Popen([sys.executable, "-c", WRITER, str(root), *places], stdout=subprocess.PIPE, text=True)
    assert maker.stdout
    assert maker.stdout.readline().strip().isdigit()
    with pytest.raises(CntrError, match="another session"), write():
        pass
    maker.kill()
    maker.wait()
    maker.stdout.close()

    def again() -> bool:
        with write():
            return True

    wait_until(again, "the lock to be released", passing=CntrError)


def test_an_image_is_never_written_to(root):
    with pytest.raises(CntrError, match="never written"):
        targets.hold(f"dir:{root}", write=True, say=print)


def test_kill_9_of_its_maker_leaves_nothing(root):
    maker = subprocess.Popen([sys.executable, "-c", SCRIPT, f"dir:{root}"], stdout=subprocess.PIPE, text=True)
    assert maker.stdout
    pid = int(maker.stdout.readline())
    inside = subprocess.Popen(["nsenter", "-t", str(pid), "-m", "-p", "/bin/busybox", "sleep", "50"])
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    assert inside.wait(timeout=10) != 0
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize("user", ["nobody-knows", "0:nobody-knows", "4294967295", "0:4294967295", "99999999999"])
def test_an_unknown_user_is_reported(root, user):
    made = of(root, User=user)
    made.exact = True
    with pytest.raises(CntrError, match="look up its user"):
        StandIn(made, say=print)


HOSTILE = {
    "proc is a link": lambda root: (root / "proc").symlink_to("/etc"),
    "dev is a file": lambda root: (root / "dev").write_text("x"),
    "sys is a fifo": lambda root: os.mkfifo(root / "sys"),
    "passwd is a fifo": lambda root: ((root / "etc/passwd").unlink(), os.mkfifo(root / "etc/passwd")),
    "passwd leads out": lambda root: (
        (root / "etc/passwd").unlink(),
        (root / "etc/passwd").symlink_to("/proc/1/root/etc/passwd"),
    ),
    "directory leads to a fd": lambda root: ((root / "app").rmdir(), (root / "app").symlink_to("/proc/self/fd/5/..")),
    "directory leads out": lambda root: ((root / "app").rmdir(), (root / "app").symlink_to("../../../../../../tmp")),
    "codec of its own": lambda root: (root / "usr/lib/python3.11/encodings").mkdir(parents=True),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_root_is_refused_or_harmless(root, how, tmp_path):
    HOSTILE[how](root)
    made = of(root, WorkingDir="/app", User="app" if how.startswith("passwd") else "")
    try:
        with standing(made) as held:
            cwd = os.stat(f"/proc/{held.pid}/cwd")
            assert cwd.st_dev == os.stat(f"/proc/{held.pid}/root").st_dev, (
                "the working directory is inside its own root"
            )
    except CntrError as error:
        assert "stand-in" in error.message


def test_many_layers(tmp_path, root):
    """Too many for a page of mount options."""
    made = of(root)
    made.lower = []
    for number in range(120):
        layer = tmp_path / f"a-rather-long-name-of-a-layer-{number}"
        layer.mkdir()
        (layer / f"file-{number}").touch()
        made.lower.append(str(layer))
    made.lower.append(str(root))
    with standing(made) as held:
        assert len([name for name in os.listdir(f"/proc/{held.pid}/root") if name.startswith("file-")]) == 120


def test_an_id_map_makes_its_root_an_ordinary_user_of_the_host(root):
    made = of(root)
    made.uid_map = made.gid_map = [(0, 300_000, 65536)]
    for parent, directories, files in os.walk(root):
        for name in [*directories, *files]:
            os.lchown(os.path.join(parent, name), 300_000, 300_000)
    os.chown(root, 300_000, 300_000)
    with standing(made) as held:
        status = procfs.status(read(held, "status"))
        assert status["Uid"].split()[0] == "300000"
        assert read(held, "uid_map").split() == ["0", "300000", "65536"]
        assert os.readlink(f"/proc/{held.pid}/ns/user") != os.readlink("/proc/self/ns/user")
        assert "1" in os.listdir(f"/proc/{held.pid}/root/proc")


@pytest.mark.parametrize("exact", [False, True])
def test_what_it_cannot_have_is_reported_and_left_out_or_refused(root, tmp_path, exact):
    (tmp_path / "file").write_text("")
    cases = {
        "user": ("nosuch", "its /etc/passwd has no user nosuch"),
        "mounts": ([Mount("bind", str(tmp_path / "none"), "/data")], "/none: No such file or directory"),
    }
    cases["user "] = ("0:nosuch", "its /etc/group has no group nosuch")
    cases["mounts "] = ([Mount("bind", str(tmp_path / "file"), "/data")], "/data")
    cases["sysctls"] = ({"net.ipv4.no_such": "1"}, "net.ipv4.no_such=1")
    for key, (value, says) in cases.items():
        made, said = of(root), []
        made.exact = exact
        setattr(made, key.strip(), value)
        if exact:
            with pytest.raises(CntrError) as refused:
                StandIn(made, say=said.append)
            assert " fd " not in refused.value.message
            continue
        held = StandIn(made, say=said.append)
        try:
            assert len(said) == 1, said
            assert says in said[0]
            assert made.faults
            assert "app" in os.listdir(f"/proc/{held.pid}/root")
        finally:
            held.close()


def test_what_is_written_for_an_apparmor_profile(root, tmp_path):
    """The kernel's files are plain ones here, since AppArmor may be off; a scenario of the lab has the real ones."""
    place = tmp_path / "self/attr/apparmor"
    made = of(root)
    room = Room(made, network="", write=False, confined=False, say=print)
    room.proc = os.open(tmp_path, os.O_PATH)
    try:
        for profile, owner, there, text in (
            ("docker-default", 0, False, None),
            ("docker-default", 0, True, "exec docker-default"),
            ("docker-default", 1000, True, ""),
            ("unconfined", 0, True, ""),
            ("", 0, True, ""),
        ):
            made.apparmor, made.owner = profile, owner
            if there:
                place.mkdir(parents=True, exist_ok=True)
                for name in ("current", "exec"):
                    (place / name).write_text("")
            role = Role(room)
            role._take_profile()
            assert role.profile == (profile if text else "")
            assert not there or (place / "exec").read_text() == text
    finally:
        os.close(room.proc)


@pytest.mark.parametrize("restarting", [True, False])
def test_what_ran_for_a_moment_between_two_looks_is_waited_for(root, monkeypatch, restarting):
    """A crash loop: it does not run when engines are asked, but does when stopped containers are listed."""
    answers = [None, None, of(root)]
    monkeypatch.setattr(targets, "find", lambda *words, **options: answers.pop(0))
    missing = TargetNotFound("web: docker has web, but it is restarting")
    missing.restarting = restarting
    held = targets.hold("web", missing, say=print)
    assert (held is not None) == restarting
    if held:
        held[1].close()


def test_sysctls_of_its_own_namespaces_are_set_and_no_others(root):
    made = of(root)
    made.sysctls = {"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shmmni": "77", "fs.mqueue.msg_max": "8"}
    made.sysctls |= {
        "kernel.panic": "123",
        "net.ipv4/../../kernel/panic": "123",
        "net...kernel.panic": "123",
        "vm.swappiness": "3",
    }
    before = procfs.read("/proc/sys/kernel/panic"), procfs.read("/proc/sys/vm/swappiness")
    with standing(made) as held:
        files = ("net/ipv4/ip_unprivileged_port_start", "kernel/shmmni", "fs/mqueue/msg_max")
        assert run(held, "; ".join(f"cat /proc/sys/{file}" for file in files)).split() == ["7", "77", "8"]
    assert (procfs.read("/proc/sys/kernel/panic"), procfs.read("/proc/sys/vm/swappiness")) == before


def test_limits_of_a_cgroup_hold_and_nothing_is_left_of_it(root):
    """Also after kill -9 of cntr or of its process group, and after SIGTERM to the group."""
    made = of(root)
    made.memory, made.pids, made.oom_score_adj = 64 << 20, 20, 500
    said = []
    held = StandIn(made, say=said.append)
    try:
        directories = list(held._cgroup.directories)
        if not directories or held._cgroup.missing:
            pytest.skip(f"no cgroup here has {held._cgroup.missing}")
        assert read(held, "oom_score_adj").strip() == "500"
        assert all(read(held, "cgroup").count(os.path.basename(path)) for path in directories)
        for path in directories:
            assert str(held.pid) in pathlib.Path(path, "cgroup.procs").read_text().split()
        limits = [
            pathlib.Path(path, name)
            for path in directories
            for name in ("memory.max", "memory.limit_in_bytes", "pids.max")
        ]
        assert {path.read_text().strip() for path in limits if path.exists()} == {str(64 << 20), "23"}
    finally:
        held.close()
    assert not [path for path in directories if os.path.exists(path)]
    assert not said
    script = SCRIPT.replace("_, it = targets.hold(sys.argv[1], say=print)", LIMITED)
    for kill, number in ((os.kill, signal.SIGKILL), (os.killpg, signal.SIGKILL), (os.killpg, signal.SIGTERM)):
        command = [sys.executable, "-c", script, str(root)]
        maker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert maker.stdout
        maker.stdout.readline()
        own = f"cntr-stand-in-{maker.pid}-*"
        assert list(pathlib.Path("/sys/fs/cgroup").rglob(own))
        kill(maker.pid, number)
        maker.wait()
        maker.stdout.close()
        deadline = time.monotonic() + 10
        while list(pathlib.Path("/sys/fs/cgroup").rglob(own)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not list(pathlib.Path("/sys/fs/cgroup").rglob(own)), (kill, number)


@pytest.fixture
def huge_pages():
    """A controller that is available on cgroup2 here, since no version 1 hierarchy has it; enabled for children."""
    for mount in procfs.mountinfo(procfs.read("/proc/self/mountinfo")):
        own = pathlib.Path(mount.mount_point)
        if mount.fstype != "cgroup2" or "hugetlb" not in (own / "cgroup.controllers").read_text().split():
            continue
        before = (own / "cgroup.subtree_control").read_text().split()
        try:
            (own / "cgroup.subtree_control").write_text("+hugetlb")
        except OSError:
            continue
        yield own
        if "hugetlb" not in before:
            (own / "cgroup.subtree_control").write_text("-hugetlb")
        return
    pytest.skip("no cgroup2 with a controller that can be delegated to its children")


def test_on_cgroup2_a_limit_is_written_joined_and_removed(huge_pages, monkeypatch):
    """By the kernel's own files; those for memory and processes only have other names."""
    file = next(huge_pages.glob("*/hugetlb.*.max")).name
    monkeypatch.setattr(cgroups, "LIMITS", {"hugetlb": (file, "none"), "none": ("none.max", "none")})
    made = cgroups.Cgroup({"hugetlb": 4 << 20, "none": 1})
    try:
        (directory,) = made.directories
        assert (made.missing, os.path.dirname(directory)) == (["none"], str(huge_pages))
        assert pathlib.Path(directory, file).read_text() == f"{4 << 20}\n"
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            made.join()
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
        try:
            wait_until(lambda: f"0::/{os.path.basename(directory)}" in procfs.read(f"/proc/{pid}/cgroup"))
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(writing)
    finally:
        made.remove()
    assert not os.path.exists(directory)


LIMITED = """
made = targets.find("dir:" + sys.argv[1])
made.memory = 64 << 20
it = targets.start(made, say=print)
"""
UNCONFINED = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdirat", "mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
}


@pytest.mark.parametrize(
    ("wanted", "filters", "numbers"), [(None, 1, [0, 1]), ("unconfined", 0, [0, 0]), (UNCONFINED, 1, [95, 0])]
)
def test_its_system_call_filter_is_the_profiles(root, tmp_path, wanted, filters, numbers):
    made = of(root)
    made.seccomp = wanted
    with standing(made) as held:
        assert procfs.status(read(held, "status"))["Seccomp_filters"] == str(filters)
    program = profile.filter_of(wanted, blueprint.DEFAULT_CAPABILITIES)
    assert bool(program) == bool(filters)
    found = []
    for action in (lambda: os.mkdir(tmp_path / "new"), lambda: syscalls.unshare(syscalls.CLONE_NEWUTS)):
        pid = os.fork()
        if pid == 0:
            status = 0
            try:
                if program:
                    seccomp.install(program)
                action()
            except OSError as error:
                status = error.errno or 99
            finally:
                os._exit(status)
        found.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert found == numbers


def test_a_profile_that_is_none_is_refused(root):
    for wanted in ("{", "{}", '{"defaultAction": "SCMP_ACT_NOTIFY"}', "nobody-knows", ["x"]):
        made = of(root)
        made.seccomp = wanted
        with pytest.raises((CntrError, ValueError)):
            StandIn(made, say=print)


@pytest.mark.parametrize("directory", ["/etc/passwd", "/etc/passwd/below", "/loop"])
def test_an_invalid_working_directory_is_reported_and_left_out_or_refused(root, directory):
    (root / "loop").symlink_to("loop")
    made = of(root, WorkingDir=directory, User="app:")  # as runc reads it: without a group, app's own
    with standing(made) as held:
        assert os.path.samefile(f"/proc/{held.pid}/cwd", f"/proc/{held.pid}/root")
        assert procfs.status(read(held, "status"))["Groups"].split() == ["1002"]
    assert made.faults == [f"its working directory {directory}: Not a directory: left out"]
    made = of(root, WorkingDir=directory)
    made.exact = True
    with pytest.raises(CntrError, match=f"change to its working directory {directory}: Not a directory"):
        StandIn(made, say=print)


def test_its_devices_are_its_own(root):
    """Root in it may change their owner and mode without changing the host's; a node that it makes
    in /dev itself does not work as a device.
    """
    before = os.stat("/dev/full")
    try:
        with standing(of(root)) as held:
            said = run(held, "chmod 600 /dev/full; chown 1:1 /dev/full; echo x > /dev/null && head -c 3 /dev/zero | wc -c; "
                       "mknod /dev/made c 1 5; head -c 1 /dev/made && echo a device; true")  # fmt: skip
            assert "3" in said.split()
            assert "a device" not in said
            seen = {name: os.stat(f"/proc/{held.pid}/root/dev/{name}") for name in DEVICES}
            assert {name: one.st_rdev for name, one in seen.items()} == {
                name: os.stat(f"/dev/{name}").st_rdev for name in DEVICES
            }
            assert (seen["full"].st_uid, seen["full"].st_mode) == (1, stat.S_IFCHR | 0o600)
        now = os.stat("/dev/full")
        assert (now.st_mode, now.st_uid, now.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    finally:
        os.chown("/dev/full", before.st_uid, before.st_gid)
        os.chmod("/dev/full", stat.S_IMODE(before.st_mode))


UNLIMITED = """
from cntr.images.blueprint import Blueprint
from cntr.images.role import Role
from cntr.images.room import Room
from cntr.linux import process
made = Blueprint("dir", "/")
made.lower = ["/"]
made.limits = {"RLIMIT_CORE": (-1, -1), "RLIMIT_NOFILE": (50, -1), "RLIMIT_OTHER": (1, 1)}
core, files = (process.RLIMITS.index(name) for name in ("CORE", "NOFILE"))
process.limits(core, (0, 4096))
process.limits(files, (60, 600))
Role(Room(made, network="", write=False, confined=False, say=print))._limit()
print(process.limits(core), process.limits(files))
"""


def test_an_unlimited_resource_stays_within_our_own_limit():
    """Unlimited is -1 in a configuration; Python 3.15 made the resource module's RLIM_INFINITY a positive number."""
    done = subprocess.run([sys.executable, "-c", UNLIMITED], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("(4096, 4096) (50, 600)\n", "")
