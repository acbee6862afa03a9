"""A1: the container's names are resolved while fds of the host are open (CVE-2024-21626, CVE-2019-5736).

A link to /proc/self/fd/N/../.. leads to the host's tree if N is a directory of the host. One run tries every number:
PATH has a directory for each.
"""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

from tests.attacks import kit
from tests.nest.busybox import CNTR, REPOSITORY, run

NUMBERS = range(40)
UP = "/.." * 14
PREFIXES = {
    "self": "/proc/self/fd/{}",
    "thread_self": "/proc/thread-self/fd/{}",
    "task": "/proc/self/task/../fd/{}",
    "dev_fd": "/dev/fd/{}",
    "dot": "//proc/./self/fd/{}/.",
}


KEEPS_A_DIRECTORY = """
import os, sys
from cntr.linux import syscalls
root = os.open("/", os.O_PATH)
pid, mnt = (os.open(f"{sys.argv[1]}/{kind}", os.O_RDONLY) for kind in ("pid", "mnt"))
syscalls.setns(pid, syscalls.CLONE_NEWPID)
child = os.fork()
if child == 0:
    syscalls.setns(mnt, syscalls.CLONE_NEWNS)
    os.execv(f"/p{root}/proof", ["proof", "control"])
os.waitpid(child, 0)
"""


def links(template: str, tail: str) -> dict[str, str]:
    return {f"/p{number}": template.format(number) + UP + tail for number in NUMBERS}


def along(paths: dict[str, str] | list[str]) -> dict[str, str]:
    return {"PATH": ":".join(paths), "HOME": "/"}


def expect_nothing(container: kit.Hostile, canary: kit.Canary, *dones: subprocess.CompletedProcess[str]) -> None:
    for done in dones:
        assert kit.PROOF not in done.stdout + done.stderr
        assert canary.secret not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert container.proofs(canary.secret) == []


def test_control_an_open_directory_is_the_way_out(accomplice, canary, place):
    """The links do lead to the host if a program in the container has a directory of the host open."""
    paths = links(PREFIXES["self"], str(canary.directory))
    with kit.hostile(place, accomplice, links=paths) as container:
        done = subprocess.run(
            [CNTR[0], "-c", KEEPS_A_DIRECTORY, f"/proc/{container.pid}/ns"],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            capture_output=True,
            text=True,
            check=False,
        )
        assert kit.PROOF in done.stdout, done


@pytest.mark.parametrize("prefix", PREFIXES)
def test_exec_of_a_program_through_an_open_descriptor(accomplice, canary, place, prefix):
    paths = links(PREFIXES[prefix], str(canary.directory))
    fd_links = {"/dev/fd": "/proc/self/fd"} if prefix == "dev_fd" else {}
    with kit.hostile(place, accomplice, links=paths, environment=along(paths)) as container:
        for link, to in fd_links.items():
            container.inside(link).symlink_to(to)
        expect_nothing(
            container, canary, container.exec("--", "proof", "run"), container.exec("--user", "1000", "--", "proof")
        )


def test_exec_of_a_program_through_a_directory_of_the_hosts_proc(accomplice, canary, place):
    """From a directory of the host's /proc, PID/root is a way out."""
    paths = {
        f"/p{n}x{i}": f"/proc/self/fd/{n}/{way}{canary.directory}"
        for n in NUMBERS
        for i, way in enumerate(("../1/root", "1/root", "root"))
    }
    with kit.hostile(place, accomplice, links=paths, environment=along(paths)) as container:
        expect_nothing(container, canary, container.exec("--", "proof", "run"))


def test_exec_of_a_script_whose_interpreter_is_behind_a_descriptor(accomplice, canary, place):
    """The kernel follows #! chains with the fds that are open at the execve(2)."""
    with kit.hostile(place, accomplice, environment=along([f"/p{n}" for n in NUMBERS])) as container:
        for number in NUMBERS:
            # A #! line holds 255 bytes.
            (container.root / f"l{number}").symlink_to(f"/proc/self/fd/{number}{UP}{canary.directory}")
            container.write(f"/p{number}/tool", f"#!/l{number}/proof shebang\n")
            container.write(f"/q{number}/tool", f"#!/p{number}/tool\n")
        expect_nothing(container, canary, container.exec("--", "tool"))
        expect_nothing(
            container, canary, container.exec("-e", "PATH=" + ":".join(f"/q{n}" for n in NUMBERS), "--", "tool")
        )


@pytest.mark.parametrize("verb", ["exec", "attach"])
def test_a_working_directory_that_is_a_descriptor(accomplice, canary, place, verb):
    """CVE-2024-21626 itself: -w (or an image's WORKDIR) leads to an open directory, and the program starts in the
    host's tree.
    """
    up = UP.lstrip("/")
    with kit.hostile(place, accomplice) as container:
        for number in range(3, 24):
            (container.root / f"w{number}").symlink_to(f"/proc/self/fd/{number}")
        for number in range(3, 24):
            where = f"/w{number}" if verb == "exec" else f"/var/lib/cntr/w{number}"
            done = run(verb, str(container.pid), "-w", where, "--", "cat", f"{up}{canary.path}", f"..{UP}{canary.path}")
            expect_nothing(container, canary, done)


def test_a_working_directory_that_is_moved_out_of_the_root(accomplice, canary, place):
    """The directory is in the container when it is opened, and outside its root a moment later; .. must not lead up."""
    with kit.hostile(place, accomplice) as container:
        (container.root / "in").mkdir()
        done = run("exec", str(container.pid), "-w", "/in", "--", "sh", "-c", f"cat {UP.lstrip('/')}{canary.path}; pwd")
        expect_nothing(container, canary, done)
        assert "/in" in done.stdout


@pytest.mark.parametrize("kind", ["container", "directory"])
@pytest.mark.parametrize("target", ["path", "shebang", "shell"])
def test_tools_of_another_container_through_a_descriptor(accomplice, canary, place, kind, target):
    """Another container's tree of tools is hostile too: the same execve(2) follows its links."""
    tools_root = place / "tools"
    paths = links(PREFIXES["self"], str(canary.directory))
    with (
        kit.hostile(place, accomplice, root=tools_root, links=paths, environment=along(paths)) as tools,
        kit.hostile(place, accomplice) as container,
    ):
        source = str(tools.pid) if kind == "container" else str(tools_root)
        for number in NUMBERS:
            (tools.root / f"l{number}").symlink_to(f"/proc/self/fd/{number}{UP}{canary.directory}")
            tools.write(f"/q{number}/tool", f"#!/l{number}/proof shebang\n")
        for where in ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin"):
            (tools.root / where).parent.mkdir(parents=True, exist_ok=True)
        if target == "path":
            words = ["-e", "PATH=" + ":".join(paths), "--", "proof", "run"]
        elif target == "shebang":
            words = ["-e", "PATH=" + ":".join(f"/q{n}" for n in NUMBERS), "--", "tool"]
        else:
            (tools.root / "bin" / "bash").symlink_to(f"/proc/self/fd/5{UP}{canary.directory}/proof")
            words = []
        done = run("attach", str(container.pid), "--tools", source, *words)
        expect_nothing(container, canary, done)
        assert tools.proofs(canary.secret) == []


def test_magic_links_as_the_program(accomplice, canary, place):
    """/proc/self/exe, cwd and root of the process that becomes the container's program lead to no program of the host."""
    ways = [
        "/proc/self/exe",
        "/proc/thread-self/exe",
        f"/proc/self/cwd{UP}{canary.directory}/proof",
        f"/proc/self/root{UP}{canary.directory}/proof",
    ]
    with kit.hostile(place, accomplice, links={f"/bin/t{i}": way for i, way in enumerate(ways)}) as container:
        for index in range(len(ways)):
            done = container.exec("--", f"/bin/t{index}", "-c", "print('HOST-' + 'PYTHON')")
            expect_nothing(container, canary, done)
            assert "HOST-PYTHON" not in done.stdout, (
                "the host's interpreter ran with arguments of the container's choice"
            )


def test_what_the_program_of_exec_holds(accomplice, canary, place):
    """Only 0, 1 and 2."""
    with kit.hostile(place, accomplice) as container:
        names = container.exec("--", "sh", "-c", "ls /proc/self/fd; readlink /proc/self/fd/*").stdout.split()
        assert [name for name in names if name.isdecimal()] == ["0", "1", "2", "3"], names  # 3 is ls's own directory
        assert not [name for name in names if name.startswith("/") and name.startswith(str(pathlib.Path(place)))]
