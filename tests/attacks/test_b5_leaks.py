"""B5: what the container's /proc shows of a session: mounts, command lines, environments. B6: values that would stop
every attach.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import socket
import time

import pytest

from cntr.linux import syscalls
from tests.attacks import kit
from tests.nest.busybox import run

FILES = ("passwd", "group", "hosts", "hostname", "resolv.conf", "localtime")
F_SETLEASE = 1024


def texts(container: kit.Hostile, kinds: tuple[str, ...]) -> list[str]:
    return [line for line in container.loot if line.startswith("text") and line.split()[1] in kinds]


@pytest.mark.parametrize("uid", [0, 1000])
def test_values_given_on_the_command_line(accomplice, canary, place, transport, uid):
    """-e TOKEN=…, --reason, a path: cntr's arguments are in no command line or environment that the container can read."""
    with kit.hostile(place, accomplice, "hunt", "m", canary.path, canary.secret, "same", uid=uid) as container:
        kit.await_ready(container)
        for _ in range(3):
            done = kit.attach(container, transport, "-e", f"TOKEN={canary.secret}", command=["sh", "-c", "sleep 0.1"])
            assert done.returncode == 0, done
            run("exec", str(container.pid), "-e", f"TOKEN={canary.secret}", "--", "sh", "-c", "sleep 0.1")
        leaks = texts(container, ("cmdline", "comm", "stat", "cgroup"))
        assert leaks == []


def test_variables_of_the_caller(accomplice, canary, place, transport):
    """The caller's environment is in no process that the container sees."""
    with kit.hostile(place, accomplice, "hunt", "m", canary.path, canary.secret, "same", "1000") as container:
        kit.await_ready(container)
        for _ in range(3):
            kit.attach(
                container,
                transport,
                command=["sh", "-c", "sleep 0.1; env"],
                env={"AWS_SECRET_ACCESS_KEY": canary.secret, "HISTFILE": canary.secret},
            )
            run("exec", str(container.pid), "--", "sh", "-c", "sleep 0.1", env={"AWS_SECRET_ACCESS_KEY": canary.secret})
        assert texts(container, ("environ", "cmdline")) == []
        assert canary.secret not in kit.in_session(
            container, transport, "env", env={"AWS_SECRET_ACCESS_KEY": canary.secret}
        )


def test_the_host_name_and_the_callers_directory(accomplice, canary, place, transport):
    (place / canary.secret).mkdir()
    with kit.hostile(place, accomplice, "hunt", "m", canary.path, canary.secret, "same") as container:
        kit.await_ready(container)
        kit.attach(container, transport, command=["sh", "-c", "sleep 0.2"], cwd=str(place / canary.secret))
        assert texts(container, ("cmdline", "environ", "maps", "stat")) == []


# --- B6: values that stop every attach --------------------------------------------------------------------------------


def odd(container: kit.Hostile, path: pathlib.Path, kind: str) -> list[int]:
    """Something else at PATH; fds to be closed at the end."""
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path, 0o644)
    elif kind == "directory":
        path.mkdir()
        (path / "x").touch()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "long link":
        path.symlink_to("x/../" * 800 + "y")
    elif kind == "proc link":
        path.symlink_to("/proc/self/fd/0")
    elif kind == "kmsg link":
        path.symlink_to("/proc/kmsg")
    elif kind == "pagemap link":
        path.symlink_to("/proc/1/pagemap")
    elif kind == "mem link":
        path.symlink_to("/proc/self/mem")
    elif kind == "shadow link":
        path.symlink_to("../../../../../../etc/shadow")
    elif kind == "device":
        os.mknod(path, 0o20644, os.makedev(1, 5))
    elif kind == "tty device":
        os.mknod(path, 0o20644, os.makedev(5, 1))
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as unix:
            here = os.open(path.parent, os.O_PATH)
            unix.bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 1 << 40)
    elif kind == "unreadable":
        path.write_text("root:x:0:0::/:/bin/sh\n")
        path.chmod(0)
    elif kind in ("lease", "lock", "immutable name"):
        path.write_text("root:x:0:0::/:/bin/sh\n")
        fd = os.open(path, os.O_RDWR)
        if kind == "lease":
            fcntl.fcntl(fd, F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(fd, fcntl.F_SETSIG, 64)
        else:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return [fd]
    return []


KINDS = ("fifo directory loop,long link,proc link,kmsg link,pagemap link,mem link,shadow link,device,tty device,socket,sparse,unreadable,lease,lock").replace(
    "fifo directory loop", "fifo,directory,loop"
).split(",")  # fmt: skip


@pytest.mark.parametrize(("transport", "kind"), kit.each(KINDS), indirect=["transport"])
def test_odd_files_in_etc_stop_nothing(accomplice, canary, place, transport, kind):
    """All six at once: it takes little time, and nothing of the host gets in through them."""
    import signal

    before = signal.signal(64, signal.SIG_IGN)  # the lease-breaker's signal
    held: list[int] = []
    try:
        with kit.hostile(place, accomplice) as container:
            for name in FILES:
                held += odd(container, container.root / "etc" / name, kind)
            started = time.monotonic()
            shown = kit.in_session(
                container,
                transport,
                "id -u; cat /etc/passwd /etc/group /etc/hosts /etc/hostname | head -c 100000; echo over",
                timeout=15,
            )
            assert time.monotonic() - started < 12
            assert shown.startswith("0\n")
            assert shown.endswith("over\n")
            assert "root:$" not in shown
            assert "root:*:" not in shown
            for verb in ("exec", "inspect"):
                assert (
                    run(verb, str(container.pid), *(("--", "true") if verb == "exec" else ()), timeout=15).returncode
                    == 0
                )
            assert run("attach", str(container.pid), "--user", "root", "--", "true", timeout=15).returncode in (0, 125)
    finally:
        for fd in held:
            os.close(fd)
        signal.signal(64, before)


@pytest.mark.parametrize(
    ("transport", "source"),
    kit.each(["/proc/kmsg", "/proc/self/pagemap", "/dev/random", "/sys/kernel/notes"], 1),
    indirect=["transport"],
)
def test_files_of_other_filesystems_over_passwd(accomplice, canary, place, transport, source):
    """A bind mount of a file of procfs, sysfs: regular by its mode, but reading it waits, acts, or has no end."""

    def over(root: str) -> None:
        for name in ("passwd", "group", "hosts"):
            syscalls.mount(source, f"{root}/etc/{name}", None, syscalls.MS_BIND)

    files = {f"/etc/{name}": "" for name in ("passwd", "group", "hosts")}
    with kit.hostile(place, accomplice, files=files, mounts=over) as container:
        started = time.monotonic()
        shown = kit.in_session(container, transport, "id -u", timeout=15)
        assert shown.endswith("0\n")
        assert time.monotonic() - started < 12


def silent_fuse(where: str) -> None:
    """A FUSE mount whose server never answers; it lasts as long as the container that inherits it."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    os.set_inheritable(fd, True)
    words = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    syscalls.mount("fuse.x", where, "fuse.x", 0, words)


def test_files_that_never_answer(accomplice, canary, place, transport):
    """Behind a link. Files of the container that don't answer are left out."""

    def mounts(root: str) -> None:
        os.makedirs(f"{root}/data/passwd")
        silent_fuse(f"{root}/data/passwd")
        pathlib.Path(root, "etc/passwd").unlink(missing_ok=True)
        pathlib.Path(root, "etc/passwd").symlink_to("/data/passwd/x")
        pathlib.Path(root, "etc/hosts").symlink_to("../data/passwd/../passwd/y")

    if not os.access("/dev/fuse", os.W_OK):
        pytest.skip("no /dev/fuse here")
    code = "import sys, cntr.linux.patience as p; p.SECONDS = 0.5; from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"
    with kit.hostile(place, accomplice, mounts=mounts) as container:
        for words in (
            ["attach", str(container.pid), "--transport", transport, "--"],
            ["exec", str(container.pid), "--"],
        ):
            done = run(*words, "/bin/sh", "-c", "echo here", code=code, timeout=20)
            assert (done.returncode, done.stdout) == (0, "here\n"), done
            assert "do not answer" in done.stderr
        assert "does not answer" in run("inspect", str(container.pid), code=code, timeout=20).stdout


@pytest.mark.parametrize("what", ["var", "var/lib", "var/lib/cntr", "proc", "sys", "etc", "usr"])
def test_directories_that_are_something_else(accomplice, canary, place, transport, what):
    """The container's tree is attached by fd, whatever its /var/lib/cntr, /etc or /usr are."""
    with kit.hostile(place, accomplice, files={}) as container:
        path = container.root / what
        if path.exists() and what in ("proc", "sys"):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.rename(path.with_name("moved"))
        path.symlink_to("/proc/self/root")
        assert (
            kit.in_session(container, transport, "echo here; test -e /var/lib/cntr/app && echo app", timeout=15)
            == "here\napp\n"
        )


def test_names_of_the_container_in_messages(accomplice, canary, place):
    with kit.hostile(place, accomplice, name="x") as container:
        container.write("/\x1b[31mevil", "x")
        for words in (["exec", "--", "/\x1b[31mevil"], ["exec", "-w", "/\x1b[31mevil", "--", "true"]):
            done = run(words[0], str(container.pid), *words[1:])
            assert "\x1b" not in done.stderr
