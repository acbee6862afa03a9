"""B4: the service behind `cntr exec` in a session. Neither the container nor a user of the host may speak to it, pose as it, or stall it."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import socket
import threading
import time

import pytest

from cntr.linux import procfs
from tests.attacks import kit
from tests.nest.busybox import CNTR, REPOSITORY, ask, one_line_and_hint, run, session
from tests.nest.test_exec_inside import INSIDE

ASKS = f"timeout 8 env {INSIDE} -- /bin/sh -c 'echo answered' </dev/null || echo nothing"
NAMES = re.compile(r"@?(cntr-[0-9a-f]{8,})")


def sockets_of(pid: int | str) -> list[str]:
    """The named unix sockets in a network namespace."""
    return [
        line.split()[7]
        for line in pathlib.Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]
        if len(line.split()) > 7
    ]


def in_net_of(pid: int, act):
    """Run ACT in a thread in PID's network namespace; return its result."""
    from cntr.linux import syscalls

    result: list[object] = []

    def run() -> None:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
        os.close(fd)
        result.append(act())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    return result[0] if result else None


def test_the_container_sees_no_socket_of_a_session(accomplice, canary, place, transport):
    with kit.hostile(place, accomplice) as container:
        before = set(sockets_of(container.pid))
        with session(str(container.pid), "--transport", transport) as shell:
            ask(shell, "echo there")
            assert set(sockets_of(container.pid)) - before == set()


def test_the_host_shows_no_socket_to_other_users(accomplice, canary, place, transport):
    """With the host's network namespace every local user sees the names of abstract sockets."""
    from cntr.linux import syscalls
    from testkit.container import NAMESPACES

    with kit.hostile(place, accomplice, namespaces=NAMESPACES & ~syscalls.CLONE_NEWNET) as container:
        before = set(sockets_of("self"))
        with session(str(container.pid), "--transport", transport) as shell:
            ask(shell, "echo there")
            assert [name for name in set(sockets_of("self")) - before if NAMES.match(name)] == []


@pytest.mark.parametrize("shared", [False, True])
def test_a_flood_delays_nobody(accomplice, canary, place, shared):
    """Connections of the container's processes that send nothing, to any name."""
    from cntr.linux import syscalls
    from testkit.container import NAMESPACES

    namespaces = NAMESPACES & ~syscalls.CLONE_NEWNET if shared else NAMESPACES
    with kit.hostile(place, accomplice, namespaces=namespaces) as container, session(str(container.pid)) as shell:
        names = [name for name in sockets_of(container.pid) if NAMES.match(name)]

        def flood() -> list[socket.socket]:
            held = []
            for name in names:
                for _ in range(64):
                    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                    connection.setblocking(False)
                    try:
                        connection.connect("\0" + name.lstrip("@"))
                    except OSError:
                        connection.close()
                        continue
                    held.append(connection)
            return held

        held = in_net_of(container.pid, flood) or []
        started = time.monotonic()
        assert ask(shell, ASKS) == "answered"
        assert time.monotonic() - started < 7
        for connection in held:
            connection.close()


def test_a_slow_client_delays_nobody(accomplice, canary, place):
    """A `cntr exec` in the session is stopped in the middle of its request, or before it reads answers."""
    with kit.hostile(place, accomplice) as container, session(str(container.pid)) as shell:
        ask(
            shell,
            f"({INSIDE} -- /bin/sh -c 'while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxx; done' | sleep 30) >/dev/null 2>&1 & echo started",
        )
        ask(
            shell,
            f"{INSIDE} -- /bin/sleep 20 </dev/null >/dev/null 2>&1 & P=$!; sleep 0.5; kill -STOP $P; echo stopped",
        )
        assert ask(shell, ASKS) == "answered"
        ask(shell, "kill -CONT $P; kill $P; echo over")


def test_a_spoofed_service_gets_nothing(accomplice, canary, place):
    """The server is checked too: a variable may lead to a socket of the container."""
    import subprocess

    with kit.hostile(place, accomplice) as container:
        got: list[bytes] = []

        def listen() -> None:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            listener.bind("\0cntr-0123456789abcdef")
            listener.listen(8)
            listener.settimeout(3)
            try:
                connection, _ = listener.accept()
                connection.settimeout(1)
                data, ancillary, *_ = connection.recvmsg(1 << 16, 4096)
                got.append(data + repr(ancillary).encode())
                connection.send(b"\0")
                connection.close()
            except OSError:
                pass
            listener.close()

        thread = threading.Thread(target=in_net_of, args=(container.pid, listen))
        thread.start()
        time.sleep(0.3)
        line = f"timeout 8 env CNTR_SERVICE=cntr-0123456789abcdef PYTHONPATH={REPOSITORY} {shlex.join(CNTR)} exec -- /bin/echo {canary.secret}"
        done = kit.attach(container, "mount", command=["/bin/bash", "-c", line])
        thread.join(10)
        assert got == [], done
        assert isinstance(done, subprocess.CompletedProcess)


def test_no_fd_of_the_supervisor_reaches_the_program(accomplice, canary, place):
    with kit.hostile(place, accomplice) as container, session(str(container.pid)) as shell:
        shown = ask(shell, f"{INSIDE} -- sh -c 'echo $(ls /proc/self/fd)' </dev/null")
        assert shown.split() == ["0", "1", "2", "3"]


def test_what_the_program_asks_for_runs_as_the_container(accomplice, canary, place):
    """Arguments that look like options and variables for the host's Python are mere data."""
    with kit.hostile(place, accomplice) as container:
        for words in (
            "-e PYTHONSTARTUP=/x -e LD_PRELOAD=/x -- sh -c 'cat " + canary.path + "'",
            f"-w {canary.directory} -- ls",
            "-e --privileged=1 -- cat " + canary.path,
        ):
            done = kit.attach(container, "mount", command=["/bin/bash", "-c", f"{INSIDE} {words}"])
            assert canary.secret not in done.stdout + done.stderr
            assert "canary.public" not in done.stdout.replace(canary.path, "")


def test_what_the_kernel_requires_of_a_writer_is_not_required_of_root(accomplice, canary, place):
    """Files of /proc that look at who writes, after the open: the session's fd is not moved by the host's root.

    The value written is the one that is there.
    """
    path = "/proc/sys/kernel/kptr_restrict"  # proc_dointvec_minmax_sysadmin: CAP_SYS_ADMIN at the time of the write
    script = f"v=$(cat {path}); (echo $v >{path}) 2>/dev/null && echo written; "
    script += f'{INSIDE} -- /bin/sh -c "echo $v" >{path} </dev/null && echo written by root; '
    script += f"{INSIDE} -- /bin/cat </proc/1/stat; cat /proc/1/stat | {INSIDE} -- /bin/cat"
    with kit.hostile(place, accomplice) as container:
        shown = kit.in_session(container, "mount", script)
    assert "written" not in shown
    assert shown.count("supervisor refused") == 2
    assert "(app)" in shown, "the session gets a pipe"


def test_a_pid_that_is_another_process_by_now_is_not_entered(accomplice, canary, place):
    with kit.hostile(place, accomplice) as container:
        begun = procfs.start_time(pathlib.Path(f"/proc/{container.pid}/stat").read_text())
        assert run("exec", f"pid:{container.pid}@{begun}", "--", "true").returncode == 0
        done = run("exec", f"pid:{container.pid}@{begun - 1}", "--", "true")
        assert "belongs to another process now" in one_line_and_hint(done)


def test_a_daemon_is_not_written_to_as_root(accomplice, canary, place):
    """A socket of a daemon's as the standard output of `cntr exec`: who writes is told to the daemon, and would be the host's root."""
    with kit.remapped(place, accomplice) as container:
        path = container.root / "log"
        daemon = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        daemon.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        daemon.bind(str(path))
        path.chmod(0o666)
        daemon.settimeout(0.5)
        code = "import os, socket, subprocess; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect('/var/lib/cntr/log'); "
        code += "s.send(b'mine'); e = socket.socketpair(); "
        code += f"w = {[*CNTR, 'exec', '--', '/bin/busybox', 'echo', 'roots']!r}; e[1].settimeout(9); "
        code += "print(subprocess.run(w, stdout=s, stdin=subprocess.DEVNULL).returncode, subprocess.run(w, stdout=e[0], stdin=subprocess.DEVNULL).returncode, e[1].recv(99))"
        done = kit.attach(container, "mount", "-e", f"PYTHONPATH={REPOSITORY}", command=["python3", "-c", code])
        assert done.stdout == "125 0 b'roots\\n'\n", done
        said = []
        try:
            while True:
                data, ancillary, *_ = daemon.recvmsg(99, 99)
                said.append((data, int.from_bytes(ancillary[0][2][4:8], "little")))
        except (TimeoutError, socket.timeout):
            pass
        daemon.close()
    assert said == [(b"mine", kit.FIRST_ID)]
