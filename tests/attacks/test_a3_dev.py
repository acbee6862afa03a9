"""A3: the container can change its /dev before and during a session; the session's devices are its own.

Root in a container may replace any entry (CAP_MKNOD is in Docker's default set, renaming needs nothing). What a shell or a tool takes for the null
device, the terminal or the random source must be that.
"""

from __future__ import annotations

import os
import pathlib
import re
import socket
import stat

import pytest

from cntr.linux import bpf, procfs
from testkit.waiting import wait_until
from tests.attacks import kit
from tests.nest.busybox import ask, run, session
from tests.nest.tty import CNTR, Terminal

EVIL = f"#!/bin/bash\necho {kit.PROOF} $0 >>/var/lib/cntr/loot\n"
DEVICES = {"null": "1:3", "zero": "1:5", "full": "1:7", "random": "1:8", "urandom": "1:9", "tty": "5:0"}


def replace(container: kit.Hostile, name: str, what: str) -> pathlib.Path:
    """Replace /dev/NAME of the running container."""
    path = container.inside(f"/dev/{name}")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        path.unlink()
    if what == "file":
        path.write_bytes(b"A" * 4096)
        path.chmod(0o666)
    elif what == "link":
        path.symlink_to("/trap")
    elif what == "link_to_the_nest":
        path.symlink_to("/var/lib/cntr/trap")
    elif what == "zero":
        os.mknod(path, 0o20666, os.makedev(1, 5))
    elif what == "fifo":
        os.mkfifo(path, 0o666)
    elif what == "directory":
        path.mkdir()
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as unix:
            here = os.open(path.parent, os.O_PATH)
            unix.bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)
    return path


KINDS = ["file", "link", "link_to_the_nest", "fifo", "directory", "zero", "socket"]


@pytest.mark.parametrize(
    ("transport", "what"),
    kit.each(["link_to_the_nest but null", "file but null", *KINDS, "fifo but null"]),
    indirect=["transport"],
)
def test_every_device_is_the_real_one(accomplice, canary, place, transport, what):
    """Whatever the container put at its place; a tool that writes to /dev/null or reads /dev/urandom gets that."""
    what, _, spared = what.partition(" but ")
    with kit.hostile(place, accomplice, files={"/trap": "trap"}) as container:
        (container.root / "trap").chmod(0o666)
        for name in DEVICES:
            if name != spared:
                replace(container, name, what)
        script = "".join(f"stat -L -c '{name} %F %Hr:%Lr' /dev/{name}; " for name in DEVICES)
        shown = kit.in_session(
            container, transport, f"{script} echo hidden >/dev/null; head -c 64 /dev/urandom | od -An -tx1", timeout=20
        )
        for name, number in DEVICES.items():
            assert f"{name} character special file {number}" in shown, shown
        assert "41 41 41 41" not in shown, "the container chose the random bytes"
        assert "hidden" not in (container.root / "trap").read_text()
        assert "trap" in (container.root / "trap").read_text()


@pytest.mark.parametrize("what", ["file", "link_to_the_nest"])
def test_a_device_replaced_while_the_session_runs(accomplice, canary, place, transport, what):
    with (
        kit.hostile(place, accomplice, files={"/trap": ""}) as container,
        session(str(container.pid), "--transport", transport) as shell,
    ):
        (container.root / "trap").chmod(0o666)
        for name in DEVICES:
            replace(container, name, what)
        assert ask(shell, "stat -L -c '%F %Hr:%Lr' /dev/null") == "character special file 1:3"
        ask(shell, "echo secret-word >/dev/null; echo done")
        ask(shell, "echo secret-word 2>/dev/null >/dev/full; echo done")
        assert "secret-word" not in (container.root / "trap").read_text()
        assert "secret-word" not in container.inside("/dev/null").read_text() if what == "file" else True


def test_process_substitution_runs_nothing_of_the_containers(accomplice, canary, place, transport):
    """bash's <(…) opens /dev/fd/N, which would be a file if /dev/fd is a directory."""
    with kit.hostile(place, accomplice) as container:
        container.inside("/dev/fd").mkdir()
        for number in (3, 4, 62, 63):
            file = container.inside(f"/dev/fd/{number}")
            file.write_text(EVIL)
            file.chmod(0o755)
        script = "source <(echo 'echo mine'); . <(echo echo mine2); bash <(echo echo mine3); cat <(echo plain)"
        shown = kit.in_session(container, transport, script)
        assert container.proofs(canary.secret) == []
        assert shown == "mine\nmine2\nmine3\nplain\n"


@pytest.mark.parametrize("entry", ["stdin", "stdout", "stderr", "fd"])
def test_the_standard_streams_by_name(accomplice, canary, place, transport, entry):
    """/dev/stdin is read as a script by many a tool (bash /dev/stdin, git apply -F /dev/stdin)."""
    with kit.hostile(place, accomplice) as container:
        if entry == "fd":
            container.inside("/dev/fd").mkdir()
            (container.inside("/dev/fd") / "0").write_text(EVIL)
        else:
            replace(container, entry, "none")
            container.inside(f"/dev/{entry}").write_text(EVIL)
        shown = kit.in_session(
            container, transport, "bash /dev/fd/0; echo out >/dev/stdout; echo err >/dev/stderr", input="echo mine\n"
        )
        bash = kit.in_session(container, transport, "bash /dev/stdin", input="echo mine\n")
        assert container.proofs(canary.secret) == []
        assert sorted(shown.split()) == ["err", "mine", "out"]
        assert bash == "mine\n"


def test_a_passphrase_goes_to_the_sessions_terminal(accomplice, canary, place, transport):
    """/dev/tty of the container's as a file: what a tool asks for there must not land in it."""
    with kit.hostile(place, accomplice) as container:
        tty = replace(container, "tty", "file")
        kit.in_session(
            container,
            transport,
            "echo passphrase-word >/dev/tty; ssh-keygen -q -t ed25519 -N passphrase-word -f /dev/tty; echo y | openssl passwd -salt x passphrase-word >/dev/tty",
        )
        assert b"passphrase-word" not in tty.read_bytes()


@pytest.mark.parametrize("how", ["python", "script", "tmux"])
def test_terminals_opened_in_a_session_are_not_the_containers(accomplice, canary, place, transport, how):
    """/dev/ptmx leads to a devpts: of the container's, its root reads every key typed into script, screen, tmux."""
    kit.need("script", "tmux")
    programs = {
        "python": "import os,pty; m,s=os.openpty(); print(os.ttyname(s)); print(os.fstat(s).st_dev)",
        "script": "script -qec 'stat -L -c %d /proc/self/fd/0' /dev/null </dev/null",
        "tmux": "tmux -L x -f /dev/null new-session -d 'stat -L -c %d /proc/self/fd/0 >/tmp/answer; sleep 0.1'; "
        "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.1; [ -s /tmp/answer ] && break; done; cat /tmp/answer; rm -f /tmp/answer",
    }
    with kit.hostile(place, accomplice) as container:
        theirs = os.stat(f"/proc/{container.pid}/root/dev/pts").st_dev
        script = f'python3 -c "{programs[how]}"' if how == "python" else programs[how]
        shown = kit.in_session(container, transport, script, "-e", "TERM=dumb").split()
        assert shown, "a terminal was opened"
        assert str(theirs) not in shown, "the container's devpts"


def test_the_sessions_own_terminal_is_not_to_be_had(accomplice, canary, place, transport):
    """Neither is the terminal of an interactive session in the container's /dev/pts, nor can its root open it by number there."""
    with (
        kit.hostile(place, accomplice) as container,
        Terminal(*CNTR, "attach", str(container.pid), "--transport", transport, "--", "sh") as terminal,
    ):
        terminal.type("echo rea''dy\n")
        terminal.wait_for("ready")
        assert [name for name in os.listdir(container.inside("/dev/pts")) if name.isdecimal()] == []
        terminal.type("exit\n")
        terminal.process.wait(20)


def test_shared_memory_is_private(accomplice, canary, place, transport):
    """What tools keep in /dev/shm (semaphores, databases' buffers) is neither read nor planted by the container."""
    with kit.hostile(place, accomplice) as container:
        container.inside("/dev/shm").mkdir(exist_ok=True)
        (container.inside("/dev/shm") / "planted").write_text(EVIL)
        shown = kit.in_session(
            container, transport, "ls -A /dev/shm; echo word >/dev/shm/secret-name; cat /dev/shm/secret-name"
        )
        assert "planted" not in shown
        assert not (container.inside("/dev/shm") / "secret-name").exists()
        assert not pathlib.Path("/dev/shm/secret-name").exists()


def test_the_log_socket_is_not_the_containers(accomplice, canary, place, transport):
    """logger(1) and syslog(3) of a tool write to /dev/log: sudo's and ssh's words are none of the container's."""
    with kit.hostile(place, accomplice) as container, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        here = os.open(container.inside("/dev"), os.O_PATH)
        log.bind(f"/proc/self/fd/{here}/log")
        os.close(here)
        log.setblocking(False)
        kit.in_session(
            container,
            transport,
            "python3 -c \"import syslog; syslog.syslog('secret-word')\"; logger secret-word 2>/dev/null; true",
        )
        with pytest.raises(BlockingIOError):
            log.recv(4096)


FUSE = os.makedev(10, 229)  # any device that containers do not have, and root may open
USUAL = (
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
)
OPEN = """
for at in /dev /tmp $1/tmp; do mknod $at/made c 10 229; done 2>/dev/null
for node in /dev/made /tmp/made $1/tmp/made $1/theirs /proc/1/root/theirs; do ( : <>$node ) 2>/dev/null && echo opened $node; done
( : </dev/null ) && ( : </dev/zero ) && ( : >/dev/full ) && echo done
"""


@pytest.fixture
def restricted():
    """Cgroups as an engine makes them: {controllers: directory}, with its devices only, and one that can be frozen."""
    found = {}
    for name, file in (("devices", "devices.deny"), ("freezer", "freezer.state"), ("unified", "cgroup.freeze")):
        for directory in (f"/sys/fs/cgroup/{name}", "/sys/fs/cgroup"):
            place = pathlib.Path(directory, f"cntr-attack-{os.getpid()}-{name}")
            if directory == "/sys/fs/cgroup" and not os.path.exists(f"{directory}/cgroup.controllers"):
                continue
            try:
                place.mkdir()
            except OSError:
                continue
            if not (place / file).exists():
                place.rmdir()
                continue
            found[name] = place
            break
    try:
        if "devices" in found:
            (found["devices"] / "devices.deny").write_text("a")
            for rule in USUAL:
                (found["devices"] / "devices.allow").write_text(rule)
        elif "unified" in found:
            restrict(found["unified"])
        else:
            pytest.skip("cannot create a cgroup with a device filter here")
        yield found
    finally:
        for place in found.values():
            wait_until(lambda place=place: not (place / "cgroup.procs").read_text(), "its cgroup is empty")
            place.rmdir()


def restrict(directory: pathlib.Path) -> None:
    fd, program = os.open(directory, os.O_RDONLY), bpf.load(bpf.usual_devices())
    bpf.attach(program, fd)
    os.close(fd)
    os.close(program)


ONLY_VERSION_2 = """
umount /sys/fs/cgroup/devices 2>/dev/null; exec "$@"
"""


@pytest.mark.parametrize("way", ["joined", "paused", "--no-cgroup", "unreachable"])
def test_devices_that_its_cgroup_keeps_it_from(accomplice, canary, place, transport, restricted, way):
    """Its own program (exec), and one that may trace a session, open no node, its own or new, that the container can't open itself."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse, a device that a container must not have")
    os.close(os.open("/dev/fuse", os.O_RDWR))
    frozen = next(
        (
            path / file
            for path in restricted.values()
            for file in ("freezer.state", "cgroup.freeze")
            if (path / file).exists()
        ),
        None,
    )
    if way == "paused" and frozen is None:
        pytest.skip("no freezer cgroup here")
    prefix = (
        ["unshare", "-m", "--propagation", "private", "sh", "-c", ONLY_VERSION_2, "sh"] if way == "unreachable" else []
    )
    flags = ["--no-cgroup"] if way == "--no-cgroup" else []
    traced = 0xA80425FB | 1 << 19

    def node() -> None:
        os.mknod("/theirs", stat.S_IFCHR | 0o666, FUSE)
        os.chmod("/theirs", 0o666)
        os.mkdir("/tmp")

    before = set(cgroup_directories())
    with kit.hostile(
        place, accomplice, capabilities=traced, as_root=node, cgroups=[str(path) for path in restricted.values()]
    ) as container:
        os.close(os.open(container.root / "theirs", os.O_RDWR))
        if way == "paused" and frozen:
            frozen.write_text("FROZEN" if frozen.name == "freezer.state" else "1")
        try:
            for words, root in (
                (["attach", str(container.pid), "--transport", transport, "--force"], "/var/lib/cntr"),
                (["exec", str(container.pid), "--no-seccomp"], ""),
            ):
                done = run(*words, *flags, "--", "/bin/sh", "-c", OPEN, "sh", root, prefix=prefix)
                assert (done.returncode, done.stdout) == (0, "done\n"), done
        finally:
            if way == "paused" and frozen:
                frozen.write_text("THAWED" if frozen.name == "freezer.state" else "0")
    wait_until(lambda: set(cgroup_directories()) <= before, "no cgroup of a session is left")  # others' come and go


FAILS = """
import sys, cntr.attach.readonly_interpreter as again, cntr.attach.walk as walk, cntr.attach.own_cgroup as own
from cntr.errors import CntrError
made = own.OwnCgroup.__init__
def tell(self, label):
    made(self, label)
    print(self.name, file=sys.stderr)
def fail(*_, **__):
    raise CntrError("this step fails", "")
own.OwnCgroup.__init__, walk.STEP, again.is_read_only = tell, fail, lambda: True
from cntr.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "step", ["tracers.filters_of", "Identity", "nest.new_devpts", "Stdio", "Channel", "SignalFile", "_fork"]
)
def test_its_cgroup_goes_whatever_step_fails_after_it(accomplice, canary, place, restricted, step):
    prefix = ["unshare", "-m", "--propagation", "private", "sh", "-c", ONLY_VERSION_2, "sh"]
    with kit.hostile(place, accomplice, cgroups=[str(path) for path in restricted.values()]) as container:
        words = ["exec", str(container.pid), "--no-seccomp", "--no-cgroup", "--", "/bin/true"]
        done = run(*words, code=FAILS.replace("STEP", step), prefix=prefix)
    name, *rest = done.stderr.splitlines()
    assert (done.returncode, rest[:1]) == (125, ["cntr: this step fails"]), done
    assert re.fullmatch(r"cntr-\d+-\d+", name)
    assert name not in cgroup_directories()


def cgroup_directories() -> list[str]:
    """Those that sessions have made, below our own cgroup."""
    own = procfs.cgroups(procfs.read("/proc/self/cgroup")).get("", "/")
    mounts = procfs.mountinfo(procfs.read("/proc/self/mountinfo"))
    return [
        name
        for mount in mounts
        if mount.fstype == "cgroup2"
        for name in os.listdir(f"{mount.mount_point}{own}")
        if re.fullmatch(r"cntr-\d+-\d+", name)
    ]
