"""A9: a container in the host's pid namespace (docker run --pid host): its session sees the host's processes and must
not get at them.
"""

from __future__ import annotations

import os
import pathlib
import select
import subprocess
import sys

import pytest

from cntr.linux import procfs, syscalls
from testkit.container import NAMESPACES
from tests.attacks import kit
from tests.attacks.test_a8_monitor import launch
from tests.nest.busybox import REPOSITORY

SHARED = NAMESPACES & ~syscalls.CLONE_NEWPID
WAYS = {
    "environ": "tr '\\0' '\\n' </proc/{pid}/environ",
    "root": "cat /proc/{pid}/root{canary}",
    "cwd": "cat /proc/{pid}/cwd/../../../../../../..{canary}",
    "fd": "cat /proc/{pid}/fd/* </dev/null",
    "own root": "for p in /proc/[0-9]*; do cat $p/root{canary}; done",
    "memory": "python3 -c \"m=open('/proc/{pid}/maps').read(); print(m)\"",
    "gdb": "gdb -q -batch -p {pid} -ex 'call (int)system(\"cat {canary}\")' -ex 'info proc'",
    "strace": "timeout 1 strace -s 200 -v -p {pid}",
    "nsenter": "nsenter -t {pid} -m cat {canary}",
    "chroot": "chroot /proc/{pid}/root cat {canary}",
    "process_vm_readv": 'python3 -c "import ctypes; l=ctypes.CDLL(None); b=(ctypes.c_char*8)(); print(l.ptrace(16,{pid},0,0))" | grep -x 0 && echo {secret}',
    "pidfd_getfd": 'python3 -c "import os,ctypes; f=os.pidfd_open({pid}); n=ctypes.CDLL(None).syscall(438,f,9,0); print(os.read(n,99))"',
    "kcmp": "ls -l /proc/{pid}/exe /proc/{pid}/map_files",
}


@pytest.fixture
def victim(canary):
    """A process of the host's root with a secret in its environment and another in fd 9."""
    code = "import os,sys,time; os.dup2(os.open(sys.argv[1], 0), 9); print('ready', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, canary.path],
        env={**os.environ, "CANARY": canary.secret},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_session_beside_the_hosts_processes(accomplice, canary, place, victim, way):
    with kit.hostile(place, accomplice, namespaces=SHARED) as container:
        line = WAYS[way].format(pid=victim.pid, canary=canary.path, secret=canary.secret)
        done = kit.attach(container, "mount", command=["/bin/bash", "-c", f"({line}) </dev/null"], timeout=30)
        assert canary.secret not in done.stdout + done.stderr, done


def test_by_the_fuse_transport_too(accomplice, canary, place, victim):
    with kit.hostile(place, accomplice, namespaces=SHARED) as container:
        lines = "; ".join(
            WAYS[way].format(pid=victim.pid, canary=canary.path, secret="found")
            for way in ("environ", "root", "cwd", "own root")
        )
        done = kit.attach(container, "fuse", command=["/bin/bash", "-c", f"({lines}) </dev/null"], timeout=30)
        assert canary.secret not in done.stdout + done.stderr, done


def test_control_the_environment_is_there_to_be_read(canary, victim):
    with open(f"/proc/{victim.pid}/environ") as file:
        assert canary.secret in file.read()


def test_no_capability_is_added(accomplice, canary, place, transport):
    with kit.hostile(place, accomplice, namespaces=SHARED) as container:
        fields = procfs.status(kit.in_session(container, transport, "cat /proc/self/status"))
        assert not int(fields["CapEff"], 16) & 1 << 19, "CAP_SYS_PTRACE over the host's processes"


@pytest.mark.parametrize("user", ["0", "1000"])
def test_hunters_in_the_hosts_pid_namespace(accomplice, canary, place, transport, user):
    """The container's root inspects the session, which has no more capabilities, and finds nothing of value."""
    with kit.hostile(
        place, accomplice, "hunt", "lt", canary.path, canary.secret, "same", "1000+", namespaces=SHARED
    ) as container:
        kit.await_ready(container)
        own = set()
        for _ in range(3):
            process = launch(container, transport, "sh", "-c", "sleep 0.2", flags=("--user", user))
            own.add(str(process.pid))
            process.communicate(timeout=20)
        # Other tests' processes are visible too; ours are descendants of our cntr.
        ours = [line for line in container.proofs(canary.secret) if own & set(line.replace("<", " ").split())]
        assert ours == []
        if container.proofs(canary.secret):
            pathlib.Path(canary.file("public")).write_text(f"{canary.secret} public\n")


IDLER = """
import os
from cntr.linux import syscalls
syscalls._IDLE_SECONDS = 2
print(syscalls.Idler(syscalls.CLONE_NEWUSER).pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_process_behind_an_id_map_ends_by_itself():
    """It waits in its own user namespace, and cntr may be killed during the tenth of a millisecond that it is needed."""
    done = subprocess.run(
        [sys.executable, "-c", IDLER], env={**os.environ, "PYTHONPATH": REPOSITORY}, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == -9
    try:
        pidfd = os.pidfd_open(int(done.stdout))
    except ProcessLookupError:
        return  # this machine is slow
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(30_000), "it must end"
    os.close(pidfd)
