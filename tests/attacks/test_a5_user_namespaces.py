"""A5: a user namespace made in the container: its owner has every capability over a session in it.

And the containers that have one from the start: root there is an ordinary user of the host, and a session must not be more.
"""

from __future__ import annotations

import os
import pathlib
import signal

import pytest

from cntr.linux import procfs, syscalls
from testkit.container import DOCKER_DEFAULT
from testkit.waiting import wait_until
from tests.attacks import kit
from tests.nest.busybox import one_line_and_hint, run


def visits(container: kit.Hostile, transport: str, *flags: str, rounds: int = 3) -> list[str]:
    """Run sessions that last long enough to be inspected; return their stderr."""
    said = []
    for _ in range(rounds):
        done = kit.attach(container, transport, *flags, command=["sh", "-c", "sleep 0.15"])
        assert "Traceback" not in done.stderr
        said.append(f"{done.returncode} {done.stderr}")
    return said


@pytest.mark.parametrize("uid", [0, 1000])
def test_the_owner_of_an_inner_namespace_hunts(accomplice, canary, place, transport, uid):
    """pid 1 enters a namespace that it has made and drops CAP_SYS_PTRACE; a sibling outside owns that namespace."""
    with kit.hostile(place, accomplice, "inner", canary.path, uid=uid) as container:
        kit.await_ready(container)
        if any("no user namespace" in line for line in container.loot):
            pytest.skip("user namespaces are disabled here (user.max_user_namespaces)")
        visits(container, transport)
        assert container.proofs(canary.secret) == []


def test_exec_into_an_inner_namespace(accomplice, canary, place):
    """The accomplice has every capability over it, and only finds its own container."""
    with kit.hostile(place, accomplice, "inner", canary.path) as container:
        kit.await_ready(container)
        done = run("exec", str(container.pid), "--", "sh", "-c", "sleep 0.2")
        assert "Traceback" not in done.stderr
        assert container.proofs(canary.secret) == []


def test_a_session_of_a_container_with_one_is_no_root_of_the_host(accomplice, canary, place, transport):
    with kit.remapped(place, accomplice) as container:
        shown = kit.in_session(
            container, transport, f"cat /proc/self/uid_map; cat {canary.path}; echo x >>{canary.file('public')}; id -u"
        )
        assert "100000" in shown
        assert canary.secret not in shown


def test_hunters_of_a_container_with_one(accomplice, canary, place, transport):
    """Its root has every capability in its namespace, CAP_SYS_PTRACE too, over all processes in it."""
    with kit.remapped(place, accomplice, "hunt", "lti", canary.path, canary.secret, "same", "1000") as container:
        kit.await_ready(container)
        visits(container, transport)
        assert container.proofs(canary.secret) == []


def test_cap_sys_admin_inside(accomplice, canary, place, transport):
    """With CAP_SYS_ADMIN a session, or who takes it over, can unmount covers: nothing of the host may be below them."""
    with kit.remapped(place, accomplice, capabilities=(1 << 41) - 1) as container:
        script = (
            "for m in $(cut -d' ' -f5 /proc/self/mountinfo | sort -r); do umount -l $m 2>/dev/null; done; "
            "mount -o remount,rw,bind / 2>/dev/null; "
            f"cat {canary.path} /../{canary.path} 2>/dev/null; echo x 2>/dev/null >>{canary.file('public')}; echo over"
        )
        done = kit.attach(container, transport, command=["/bin/bash", "-c", script])
        assert canary.secret not in done.stdout + done.stderr


@pytest.mark.parametrize("capabilities", ["sys_admin", "all", "dac_read_search"])
def test_capabilities_in_the_hosts_user_namespace(accomplice, canary, place, transport, capabilities):
    """A container that holds them is powerful by itself; cntr's session must not add the host's files to it by remount, unmount, handles."""
    mask = {"sys_admin": 1 << 21, "all": (1 << 41) - 1 & ~(1 << 19), "dac_read_search": 1 << 2 | 1 << 1}[capabilities]
    with kit.hostile(place, accomplice, capabilities=mask | 0xA80425FB) as container:
        script = (
            f"cat {canary.path} 2>&1; mount -o remount,rw,bind / 2>&1; echo x 2>&1 >>{canary.file('public')}; touch {canary.directory}/new 2>&1; "
            "umount -l /proc /dev /tmp /root /run /home 2>&1; ls /root /run 2>&1 | head; "
            f"unshare -m sh -c 'mount -o remount,rw,bind /; umount -l /tmp; cat {canary.path}; echo x >>{canary.file('public')}' 2>&1; "
            f"nsenter -t 1 -m cat {canary.path} 2>&1; chroot /proc/1/root cat {canary.path} 2>&1"
        )
        done = kit.attach(container, transport, command=["/bin/bash", "-c", script])
        assert canary.secret not in done.stdout + done.stderr, done
        canary.untouched()


def test_the_session_is_in_the_containers_user_namespace_only(accomplice, canary, place):
    with kit.remapped(place, accomplice) as container:
        fields = procfs.status(kit.in_session(container, "mount", "cat /proc/self/status"))
        assert fields["Uid"].split()[0] == "0"
        own = int(procfs.status(procfs.read("/proc/self/status"))["CapPrm"], 16)
        assert own
        assert os.stat(f"/proc/{container.pid}").st_uid == 100000


GOES_INSIDE = """
import os, signal, sys, time
import cntr.linux.namespaces as n
old = n.open_differing
def opened(*fds):
    found, path = old(*fds), f"/proc/{os.environ['VICTIM']}/ns/user"
    before = os.readlink(path)
    os.kill(int(os.environ["VICTIM"]), signal.SIGUSR1)
    while os.readlink(path) == before:
        time.sleep(0.001)
    return found
n.open_differing = opened
import cntr.attach.readonly_interpreter as r
r.from_read_only_copy = lambda *all: None
from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("verb", ["attach", "exec"])
def test_a_process_that_goes_into_one_while_it_is_looked_at(accomplice, canary, place, verb):
    """In its own it has all capabilities, which the session must not get in the one opened before."""

    def worker() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        if os.fork() == 0:
            os.closerange(0, 1024)
            for capability in range(41):
                if not DOCKER_DEFAULT >> capability & 1:
                    syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
            syscalls.capset(DOCKER_DEFAULT, DOCKER_DEFAULT, 0)
            signal.sigwait({signal.SIGUSR1})
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            while True:
                signal.pause()

    with kit.hostile(place, accomplice, as_root=worker) as container:
        children = pathlib.Path(f"/proc/{container.pid}/task/{container.pid}/children")
        (child,) = wait_until(lambda: children.read_text().split(), "the worker")
        wait_until(
            lambda: f"CapBnd:\t{DOCKER_DEFAULT:016x}" in pathlib.Path(f"/proc/{child}/status").read_text(),
            "it has dropped the rest",
        )
        done = run(verb, child, "--", "/bin/cat", "/proc/self/status", code=GOES_INSIDE, env={"VICTIM": child})
        assert "changed its user namespace" in one_line_and_hint(done)
