"""The same kinds on real engines: Docker and Podman, rootful, remapped and rootless, with the seccomp filters, masks and cgroups they give.

One test an engine and kind; what hand-made containers show in all its variety is not repeated.
"""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

from cntr.linux import procfs
from testkit.engines import rigs_cli
from testkit.engines.rig import Box
from testkit.engines.rigs import open_rig
from testkit.waiting import wait_until
from tests.attacks import kit
from tests.nest.box import CNTR, REPOSITORY

ENGINES = ("docker", "docker_remapped", "docker_rootless", "podman", "podman_rootless")
UP = "/.." * 14


def cntr(box: Box, *words: str, input: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CNTR, *words],
        env={**box.env, "PYTHONPATH": REPOSITORY, **env},
        input=input,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def inside(box: Box, script: str) -> None:
    """What its image could have brought: made by the container itself, whose user namespace may be none that the host's root is in."""
    box.rig.command("exec", box.name, "/bin/busybox", "sh", "-c", script)


@pytest.fixture(scope="module", params=ENGINES)
def box(request, accomplice):
    """A container for all tests of an engine."""
    rig = open_rig(request, request.param)
    with rig.box("busybox") as running:
        done = cntr(running, "cp", accomplice, f"{running.target}:/accomplice")
        assert done.returncode == 0, done
        inside(running, "chmod 755 /accomplice; touch /loot; chmod 666 /loot")
        yield running


def loot(box: Box) -> list[str]:
    return sorted(set(pathlib.Path(f"/proc/{box.pid}/root/loot").read_text(errors="replace").splitlines()))


def proofs(box: Box, canary: kit.Canary) -> list[str]:
    return [line for line in loot(box) if canary.secret in line or line.startswith(("canary", "written"))]


def set_to_hunt(box: Box, deeds: str, canary: kit.Canary, *roles: str) -> None:
    box.rig.command("exec", "-d", box.name, "/accomplice", "hunt", deeds, canary.path, canary.secret, *roles)
    wait_until(lambda: "ready" in loot(box), "the accomplice is ready")


def end_hunt(box: Box) -> None:
    """Kill the accomplices: they take turns with everybody's sessions."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.path.samestat(os.stat(f"/proc/{name}/ns/pid"), os.stat(f"/proc/{box.pid}/ns/pid")) and b"hunt" in (
                pathlib.Path(f"/proc/{name}/cmdline").read_bytes()
            ):
                os.kill(int(name), 9)
        except OSError:
            continue


def test_hunters(box, canary, transport):
    """Look, trace, note ids: on the session, its monitor, what `cntr exec` starts, and a tool that gave its capabilities up."""
    inside(box, "echo >/loot")
    set_to_hunt(box, "ltim", canary, "same", "1000", "1000+")
    for words in (
        ["attach", box.target, "--transport", transport, "-e", f"TOKEN={canary.secret}", "--", "sh", "-c", "sleep 0.1"],
        ["attach", box.target, "--transport", transport, "--user", "1000", "--", "sh", "-c", "sleep 0.1"],
        [
            "attach",
            box.target,
            "--transport",
            transport,
            "--",
            "setpriv",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "sleep",
            "0.2",
        ],
        ["exec", box.target, "-e", f"TOKEN={canary.secret}", "--", "sleep", "0.1"],
    ):
        done = cntr(box, *words)
        assert done.returncode == 0, done
    end_hunt(box)
    found = [line for line in proofs(box, canary) if "text environ" not in line or "exec" not in line]
    # A program of the container's own has the variables that it was given.
    assert [line for line in found if not line.startswith("text environ")] == []
    assert [line for line in loot(box) if line.startswith("ids") and "ffffffffff" in line.replace("000001", "")] == []


def test_the_hosts_files(box, canary, transport):
    script = f"cat {canary.path} {canary.file('group')} {canary.file('user')} /proc/self/root{canary.path} /proc/1/root{canary.path}; echo x >>{canary.file('public')}; touch {canary.file('open')}/new"
    done = cntr(box, "attach", box.target, "--transport", transport, "--", "/bin/bash", "-c", script)
    assert done.returncode != 125, done
    assert canary.secret not in done.stdout
    done = cntr(box, "attach", box.target, "--transport", transport, "--user", "1000", "--", "/bin/bash", "-c", script)
    assert canary.secret not in done.stdout
    canary.untouched()


def test_descriptors(box, canary):
    """PATH leads through every number of /proc/self/fd to the host's directory with root's program in it."""
    links = (f"ln -sfn /proc/self/fd/{number}{UP}{canary.directory} /p{number}" for number in range(40))
    inside(box, "; ".join([*links, *(f"ln -sfn /proc/self/fd/{number} /w{number}" for number in range(3, 16, 3))]))
    path = ":".join(f"/p{number}" for number in range(40))
    done = cntr(box, "exec", box.target, "-e", f"PATH={path}", "--", "proof", "run")
    assert done.returncode == 127, done
    assert kit.PROOF not in done.stdout
    for number in range(3, 16, 3):
        done = cntr(box, "exec", box.target, "-w", f"/w{number}", "--", "cat", f"..{UP}{canary.path}")
        assert canary.secret not in done.stdout


def test_exec_is_as_confined_as_the_engines_own(box, canary):
    """Seccomp, capabilities, no_new_privs, label, masked paths: line by line what the engine's exec says."""
    script = (
        "grep -E '^(Cap|NoNewPrivs|Seccomp|Uid|Gid)' /proc/self/status; cat /proc/self/attr/current 2>/dev/null; ls /proc/self/fd; "
        "for call in 272 308 165 155 250 248 321 298 323 434 425; do /accomplice call $call; done; head -c1 /proc/kcore | wc -c; echo 1 >/proc/sys/vm/swappiness; "
        "touch /sys/x; pwd; ulimit -c"
    )
    theirs = subprocess.run(
        [*box.rig.cli, "exec", box.name, "sh", "-c", f"{script} 2>&1"],
        env=box.rig.den.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    ours = cntr(box, "exec", box.target, "--", "sh", "-c", f"{script} 2>&1").stdout
    assert "Seccomp:\t2" in theirs, "the engine has a filter"
    for mine, its in zip(ours.splitlines(), theirs.splitlines(), strict=True):
        if mine.startswith("Cap"):
            assert int(mine.split()[1], 16) & ~int(its.split()[1], 16) == 0, (mine, its)
        elif mine.startswith("Seccomp_filters"):
            assert int(mine.split()[1]) >= int(its.split()[1])
        elif mine != its:
            assert mine.isdecimal() or its == "unlimited", f"{mine!r} instead of {its!r}: {ours}"


def test_variables_of_an_image(box, canary, transport, accomplice):
    """Those of a process that the engine started with them."""
    done = cntr(box, "attach", box.target, "--transport", transport, "--", "/usr/bin/env")
    assert done.returncode == 0, done
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert not names & {"HOSTNAME", "container", "CNTR_RIG"}, names


def test_the_engines_own_socket(box, canary, transport):
    """docker.sock beside a session with uid 0: whoever may connect is root of the host."""
    socket = getattr(box.rig, "socket", "")
    if not socket:
        return  # no daemon, no socket
    code = f"import socket; s=socket.socket(socket.AF_UNIX); s.connect('{socket}'); s.send(b'GET /version HTTP/1.0\\r\\n\\r\\n'); print('talked', s.recv(99))"
    done = cntr(box, "attach", box.target, "--transport", transport, "--read-only", "--", "python3", "-c", code)
    assert "talked" not in done.stdout


def test_copies(box, canary, tmp_path):
    """A link that the container made leads nowhere but into it; --archive makes no root's set-id file out of a user namespace."""
    inside(box, f"ln -sfn {canary.path} /link; cp /bin/busybox /setid; chmod 6755 /setid")
    done = cntr(box, "cp", "-L", f"{box.target}:/link", str(tmp_path / "got"))
    assert done.returncode != 0
    assert not (tmp_path / "got").exists()
    owner = os.stat(f"/proc/{box.pid}")
    cntr(box, "cp", "-a", f"{box.target}:/setid", str(tmp_path / "copy"))
    if (tmp_path / "copy").exists() and owner.st_uid:
        status = (tmp_path / "copy").stat()
        assert not (status.st_uid == 0 and status.st_mode & 0o4000)
        assert not (status.st_gid == 0 and status.st_mode & 0o2000)


def test_the_owner_of_a_rootless_container(request, accomplice, canary):
    """Its owner attaches without root; the container gets nothing of the owner's that others may not read."""
    rig = open_rig(request, "podman_rootless")
    with rig.box("busybox") as box:
        home = pathlib.Path(rig.den.env["HOME"])
        (home / "canary").write_text(canary.secret)
        os.chown(home / "canary", rig.uid, rig.uid)
        (home / "canary").chmod(0o600)
        done = cntr(box, "attach", box.target, "--", "/bin/bash", "-c", f"cat {home}/canary; echo x >>{home}/canary")
        assert done.returncode != 125, done
        assert canary.secret not in done.stdout
        assert (home / "canary").read_text() == canary.secret


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_a_container_that_may_trace(request, accomplice, canary, transport, monkeypatch, engine):
    """Under the engine's own filter, which lets it trace, strace works in the session; it has no call that the container has not."""
    rig = open_rig(request, engine)
    monkeypatch.setitem(rigs_cli.CLI, "busybox", ["--cap-add", "SYS_PTRACE"])
    script = "timeout -s INT 1 strace -o /tmp/trace -p 1; wc -c </tmp/trace; grep Seccomp_filters /proc/self/status; "
    script += "python3 -c 'import ctypes; print(ctypes.CDLL(None).syscall(323, 0))'"  # userfaultfd
    with rig.box("busybox") as box:
        held = int(procfs.status(procfs.read(f"/proc/{box.pid}/status"))["Seccomp_filters"])
        done = cntr(box, "attach", box.target, "--transport", transport, "--", "/bin/bash", "-c", script)
        size, filters, call = done.stdout.splitlines()
        assert held > 0
        assert (int(size) > 0, filters.split()[1], call) == (True, str(held + 1), "-1"), done
        assert cntr(box, "attach", box.target, "--tools", "host:all", "--", "true").returncode == 125
