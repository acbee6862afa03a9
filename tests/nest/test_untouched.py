"""Attaching changes no file or mount of the target, neither during a session nor afterwards."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import pytest

from cntr.linux import procfs, syscalls
from testkit.engines.workspaces import busybox_root
from tests.conftest import nest_mounts
from tests.nest.busybox import CNTR, REPOSITORY, BusyboxContainer, ask, session
from tests.nest.test_view import ETC, snapshot

MS_UNBINDABLE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 19, 1 << 20


def mountinfo(pid: int | str) -> str:
    return procfs.read(f"/proc/{pid}/mountinfo")


def state(container: BusyboxContainer) -> tuple[object, ...]:
    """The container's mounts and tree as its own process sees them, with change times."""
    return mountinfo(container.pid), snapshot(container.root)


def host_mounts(tmp_path: pathlib.Path) -> set[str]:
    """The host's mounts that could be a nest's; other tests may mount things meanwhile."""
    return nest_mounts((str(tmp_path), "/var/lib/cntr"))


@pytest.mark.parametrize(
    "flags",
    [[], ["--read-only"], ["--user", "1000"], ["--transport", "fuse"]],
    ids=lambda flags: " ".join(flags) or "plain",
)
def test_neither_a_file_nor_a_mount(flags):
    if "fuse" in flags:
        pytest.importorskip("pyfuse3", reason="the fuse transport needs cntr-attach[pyfuse3]")
    with BusyboxContainer(files=ETC) as container:
        before = state(container)
        with session(str(container.pid), *flags) as shell:
            assert ask(shell, "ls /var/lib/cntr/etc | wc -l") == str(len(ETC))
            assert state(container) == before, "during"
        assert state(container) == before, "after"


@pytest.mark.parametrize("propagation", [MS_SHARED, MS_SLAVE, MS_UNBINDABLE], ids=["shared", "slave", "unbindable"])
def test_nothing_leaks_whatever_the_propagation_of_the_container(propagation):
    """nspawn, LXC and Incus make the container's root a shared mount, Apptainer an unbindable one."""
    with BusyboxContainer(files=ETC, propagation=propagation) as container:
        kind = {MS_SHARED: "shared:", MS_UNBINDABLE: "unbindable"}.get(propagation)
        assert kind is None or kind in mountinfo(container.pid), "the container must be of the kind under test"
        before = state(container)
        with session(str(container.pid)) as shell:
            assert ask(shell, "cat /etc/hostname") == "slim-name"
            assert ask(shell, "cat /var/lib/cntr/etc/hostname") == "slim-name"
            assert ask(shell, "cat /proc/1/comm") == "app"
            assert state(container) == before, "during"
            # No mount of the nest is a peer of one outside it.
            assert ask(shell, "grep -c -E 'shared:|master:' /proc/self/mountinfo || true") == "0"
        assert state(container) == before, "after"
        assert container.exec("--", "/bin/cat", "/etc/hostname").stdout == "slim-name\n"
        assert state(container) == before


def test_a_mount_in_the_session_stays_in_the_session(tmp_path):
    """With CAP_SYS_ADMIN a session with the whole host's tree may mount, unseen by container and host. In the tools
    view none may.
    """
    with BusyboxContainer(propagation=MS_SHARED, capabilities=(1 << 41) - 1, files={"/own-data/x": "x"}) as container:
        before, own = mountinfo(container.pid), host_mounts(tmp_path)
        assert container.attach("--", "sh", "-c", "mount -t tmpfs t /var/lib/cntr/own-data").returncode == 32
        with session(str(container.pid), "--tools", "host:all", "--force") as shell:
            ask(
                shell,
                f"mkdir -p {tmp_path}; mount -t tmpfs t /var/lib/cntr/own-data; mount -t tmpfs t {tmp_path}; echo $?",
            )
            assert ask(shell, f"grep -c -e '/own-data ' -e '{tmp_path} ' /proc/self/mountinfo") == "2"
            assert mountinfo(container.pid) == before
            assert host_mounts(tmp_path) == own
        assert mountinfo(container.pid) == before


SHARED_HOST = """
import os, subprocess, sys, tempfile
from cntr.linux import procfs, syscalls
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)  # or what others mount on this machine comes in
syscalls.mount(None, "/", None, syscalls.MS_REC | (1 << 20))
before = procfs.read("/proc/self/mountinfo").splitlines()
assert any(" shared:" in row for row in before)
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
process.stdin.write("echo up\\n"); process.stdin.flush()
assert process.stdout.readline() == "up\\n"
during = procfs.read("/proc/self/mountinfo").splitlines()
process.stdin.close()
assert process.wait() == 0
after = procfs.read("/proc/self/mountinfo").splitlines()
gone = [row.split()[4] for row in before if row not in during or row not in after]
# A mount disappears here, too, when others on this machine remove the directory that it is mounted on.
gone = [path for path in gone if not path.startswith(tempfile.gettempdir() + "/")]
print([row for row in during + after if row not in before], gone)
"""


@pytest.mark.parametrize("tools", ["host", "directory"])
def test_nothing_leaks_into_a_host_whose_root_is_shared(tools, tmp_path):
    """As systemd does; a copy of one of its mounts is at first a peer of it."""
    if tools == "directory":
        tools = str(busybox_root(str(tmp_path / "tools")))
    with BusyboxContainer(files=ETC) as container:
        done = subprocess.run(
            [sys.executable, "-c", SHARED_HOST, *CNTR, "attach", "--tools", tools, str(container.pid), "--", "sh"],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "[] []\n", "")


def test_the_nest_ends_with_the_session():
    """Its mount namespace ends, so its files can be unmounted and removed."""
    with BusyboxContainer(files=ETC) as container:
        with session(str(container.pid)) as shell:
            held = os.open(f"/proc/{_command_of(shell)}/ns/mnt", os.O_RDONLY)  # else its number would be reused
            nest = os.fstat(held).st_ino
            assert nest != os.stat("/proc/self/ns/mnt").st_ino
            assert nest != os.stat(f"/proc/{container.pid}/ns/mnt").st_ino
        deadline = time.monotonic() + 3
        while nest in _mount_namespaces() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert nest not in _mount_namespaces()
        os.close(held)


def _command_of(shell: subprocess.Popen[str]) -> int:
    """The pid, on the host, of the session's innermost process."""
    pid = shell.pid
    while children := pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


def _mount_namespaces() -> set[int]:
    found = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                found.add(os.stat(f"/proc/{name}/ns/mnt").st_ino)
            except OSError:
                continue
    return found


def test_a_container_that_is_only_a_chroot(tmp_path):
    """No namespace differs. The tree is still shown at the base directory."""
    with BusyboxContainer(namespaces=0, files=ETC) as container:
        before = host_mounts(tmp_path)
        with session(str(container.pid)) as shell:
            assert ask(shell, "cat /var/lib/cntr/etc/hostname") == "slim-name"
            assert ask(shell, "cat /etc/hostname") == "slim-name"
            assert host_mounts(tmp_path) == before
        assert host_mounts(tmp_path) == before
        assert container.exec("--", "/bin/ls", "/").stdout.split()[:2] == ["app", "bin"]


def test_thousands_of_mounts():
    def mounts(root: str) -> None:
        os.mkdir(f"{root}/many")
        syscalls.mount("tmpfs", f"{root}/many", "tmpfs", 0)
        for number in range(2000):
            os.mkdir(f"{root}/many/{number}")
            syscalls.mount(f"{root}/many/{number}", f"{root}/many/{number}", None, syscalls.MS_BIND)

    with BusyboxContainer(mounts=mounts) as container:
        before = mountinfo(container.pid)
        assert before.count("\n") > 2000
        begun = time.monotonic()
        assert container.sh("ls /var/lib/cntr/many | wc -l; grep -c /many/ /proc/self/mountinfo") == "2000\n2000\n"
        assert time.monotonic() - begun < 20
        assert mountinfo(container.pid) == before
