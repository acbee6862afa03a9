"""The same attacks on real engines: Docker and Podman, rootful, remapped and rootless, with their seccomp filters,
masks and cgroups.

One test per engine and kind, without the variations tested on hand-made containers.
"""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

from cntr.linux import procfs
from testkit.engines import rigs_cli
from testkit.engines.rig import EngineContainer
from testkit.engines.rigs import open_rig
from testkit.waiting import wait_until
from tests.attacks import kit
from tests.nest.busybox import CNTR, REPOSITORY

ENGINES = ("docker", "docker_remapped", "docker_rootless", "podman", "podman_rootless")
UP = "/.." * 14


def cntr(container: EngineContainer, *words: str, input: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CNTR, *words],
        env={**container.env, "PYTHONPATH": REPOSITORY, **env},
        input=input,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def inside(container: EngineContainer, script: str) -> None:
    """What its image could have brought: made by the container itself, whose user namespace may be none that the host's root is in."""
    container.rig.command("exec", container.name, "/bin/busybox", "sh", "-c", script)


@pytest.fixture(scope="module", params=ENGINES)
def container(request, accomplice):
    """A container shared by all tests of an engine."""
    rig = open_rig(request, request.param)
    with rig.container("busybox") as running:
        done = cntr(running, "cp", accomplice, f"{running.target}:/accomplice")
        assert done.returncode == 0, done
        inside(running, "chmod 755 /accomplice; touch /loot; chmod 666 /loot")
        yield running


def loot(container: EngineContainer) -> list[str]:
    return sorted(set(pathlib.Path(f"/proc/{container.pid}/root/loot").read_text(errors="replace").splitlines()))


def proofs(container: EngineContainer, canary: kit.Canary) -> list[str]:
    """What the accomplices found. The secret is among their own words, too: one that is just forked reads it from its twin."""
    return [
        line
        for line in loot(container)
        if (canary.secret in line and "/accomplice hunt" not in line) or line.startswith(("canary", "written"))
    ]


def set_to_hunt(container: EngineContainer, deeds: str, canary: kit.Canary, *roles: str) -> None:
    container.rig.command(
        "exec", "-d", container.name, "/accomplice", "hunt", deeds, canary.path, canary.secret, *roles
    )
    wait_until(lambda: "ready" in loot(container), "the accomplice is ready")


def end_hunt(container: EngineContainer) -> None:
    """Kill the accomplices, which would attack other tests' sessions too."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.path.samestat(
                os.stat(f"/proc/{name}/ns/pid"), os.stat(f"/proc/{container.pid}/ns/pid")
            ) and b"hunt" in (pathlib.Path(f"/proc/{name}/cmdline").read_bytes()):
                os.kill(int(name), 9)
        except OSError:
            continue


def test_hunters(container, canary, transport):
    """Look, trace, note ids: on the session, its monitor, what `cntr exec` starts, and a tool that gave its capabilities up."""
    inside(container, "echo >/loot")
    set_to_hunt(container, "ltim", canary, "same", "1000", "1000+")
    for words in (
        [
            "attach",
            container.target,
            "--transport",
            transport,
            "-e",
            f"TOKEN={canary.secret}",
            "--",
            "sh",
            "-c",
            "sleep 0.1",
        ],
        ["attach", container.target, "--transport", transport, "--user", "1000", "--", "sh", "-c", "sleep 0.1"],
        [
            "attach",
            container.target,
            "--transport",
            transport,
            "--",
            "setpriv",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "sleep",
            "0.2",
        ],
        ["exec", container.target, "-e", f"TOKEN={canary.secret}", "--", "sleep", "0.1"],
    ):
        done = cntr(container, *words)
        assert done.returncode == 0, done
    end_hunt(container)
    found = [line for line in proofs(container, canary) if "text environ" not in line or "exec" not in line]
    # A program of the container's own has the variables that it was given.
    assert [line for line in found if not line.startswith("text environ")] == []
    assert [
        line for line in loot(container) if line.startswith("ids") and "ffffffffff" in line.replace("000001", "")
    ] == []


def test_the_hosts_files(container, canary, transport):
    script = f"cat {canary.path} {canary.file('group')} {canary.file('user')} /proc/self/root{canary.path} /proc/1/root{canary.path}; echo x >>{canary.file('public')}; touch {canary.file('open')}/new"
    done = cntr(container, "attach", container.target, "--transport", transport, "--", "/bin/bash", "-c", script)
    assert done.returncode != 125, done
    assert canary.secret not in done.stdout
    done = cntr(
        container,
        "attach",
        container.target,
        "--transport",
        transport,
        "--user",
        "1000",
        "--",
        "/bin/bash",
        "-c",
        script,
    )
    assert canary.secret not in done.stdout
    canary.untouched()


def test_descriptors(container, canary):
    """PATH leads through every number of /proc/self/fd to the host's directory with root's program in it."""
    links = (f"ln -sfn /proc/self/fd/{number}{UP}{canary.directory} /p{number}" for number in range(40))
    inside(
        container, "; ".join([*links, *(f"ln -sfn /proc/self/fd/{number} /w{number}" for number in range(3, 16, 3))])
    )
    path = ":".join(f"/p{number}" for number in range(40))
    done = cntr(container, "exec", container.target, "-e", f"PATH={path}", "--", "proof", "run")
    assert done.returncode == 127, done
    assert kit.PROOF not in done.stdout
    for number in range(3, 16, 3):
        done = cntr(container, "exec", container.target, "-w", f"/w{number}", "--", "cat", f"..{UP}{canary.path}")
        assert canary.secret not in done.stdout


def test_exec_is_as_confined_as_the_engines_own(container, canary):
    """Seccomp, capabilities, no_new_privs, label, masked paths: line by line what the engine's exec says."""
    script = (
        "grep -E '^(Cap|NoNewPrivs|Seccomp|Uid|Gid)' /proc/self/status; cat /proc/self/attr/current 2>/dev/null; ls /proc/self/fd; "
        "for call in 272 308 165 155 250 248 321 298 323 434 425; do /accomplice call $call; done; head -c1 /proc/kcore | wc -c; echo 1 >/proc/sys/vm/swappiness; "
        "touch /sys/x; pwd; ulimit -c"
    )
    theirs = subprocess.run(
        [*container.rig.cli, "exec", container.name, "sh", "-c", f"{script} 2>&1"],
        env=container.rig.workspace.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    ours = cntr(container, "exec", container.target, "--", "sh", "-c", f"{script} 2>&1").stdout
    assert "Seccomp:\t2" in theirs, "the engine sets a filter"
    for mine, its in zip(ours.splitlines(), theirs.splitlines()):
        if mine.startswith("Cap"):
            assert int(mine.split()[1], 16) & ~int(its.split()[1], 16) == 0, (mine, its)
        elif mine.startswith("Seccomp_filters"):
            assert int(mine.split()[1]) >= int(its.split()[1])
        elif mine != its:
            assert mine.isdecimal() or its == "unlimited", f"{mine!r} instead of {its!r}: {ours}"


def test_variables_of_an_image(container, canary, transport, accomplice):
    """Those of a process that the engine started with them."""
    done = cntr(container, "attach", container.target, "--transport", transport, "--", "/usr/bin/env")
    assert done.returncode == 0, done
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert not names & {"HOSTNAME", "container", "CNTR_RIG"}, names


def test_the_engines_own_socket(container, canary, transport):
    """docker.sock beside a session with uid 0: whoever may connect is root of the host."""
    socket = getattr(container.rig, "socket", "")
    if not socket:
        return  # no daemon, no socket
    code = f"import socket; s=socket.socket(socket.AF_UNIX); s.connect('{socket}'); s.send(b'GET /version HTTP/1.0\\r\\n\\r\\n'); print('talked', s.recv(99))"
    done = cntr(
        container, "attach", container.target, "--transport", transport, "--read-only", "--", "python3", "-c", code
    )
    assert "talked" not in done.stdout


def test_copies(container, canary, tmp_path):
    """A container's link leads only into the container; --archive makes no set-id file of root's from a user namespace."""
    inside(container, f"ln -sfn {canary.path} /link; cp /bin/busybox /setid; chmod 6755 /setid")
    done = cntr(container, "cp", "-L", f"{container.target}:/link", str(tmp_path / "got"))
    assert done.returncode != 0
    assert not (tmp_path / "got").exists()
    owner = os.stat(f"/proc/{container.pid}")
    cntr(container, "cp", "-a", f"{container.target}:/setid", str(tmp_path / "copy"))
    if (tmp_path / "copy").exists() and owner.st_uid:
        status = (tmp_path / "copy").stat()
        assert not (status.st_uid == 0 and status.st_mode & 0o4000)
        assert not (status.st_gid == 0 and status.st_mode & 0o2000)


def test_the_owner_of_a_rootless_container(request, accomplice, canary):
    """Its owner attaches without root; the container gets nothing of the owner's that others may not read."""
    rig = open_rig(request, "podman_rootless")
    with rig.container("busybox") as container:
        home = pathlib.Path(rig.workspace.env["HOME"])
        (home / "canary").write_text(canary.secret)
        os.chown(home / "canary", rig.uid, rig.uid)
        (home / "canary").chmod(0o600)
        done = cntr(
            container, "attach", container.target, "--", "/bin/bash", "-c", f"cat {home}/canary; echo x >>{home}/canary"
        )
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
    with rig.container("busybox") as container:
        held = int(procfs.status(procfs.read(f"/proc/{container.pid}/status"))["Seccomp_filters"])
        done = cntr(container, "attach", container.target, "--transport", transport, "--", "/bin/bash", "-c", script)
        size, filters, call = done.stdout.splitlines()
        assert held > 0
        assert (int(size) > 0, filters.split()[1], call) == (True, str(held + 1), "-1"), done
        assert cntr(container, "attach", container.target, "--tools", "host:all", "--", "true").returncode == 125
