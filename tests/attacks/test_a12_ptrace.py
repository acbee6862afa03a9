"""A container that holds CAP_SYS_PTRACE can't be kept out of a session: what it finds there is worth nothing, or cntr refuses."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from cntr.attach.supervisor import Outcome, failure
from cntr.linux import procfs, syscalls
from testkit import processes
from testkit.waiting import wait_until
from tests.attacks import kit, test_b1_exec
from tests.nest.busybox import CNTR, REPOSITORY, one_line_and_hint, run

PTRACE, ALL = 0xA80425FB | 1 << 19, (1 << 41) - 1
CODE = "import sys; from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture
def python(place: pathlib.Path) -> str:
    """A copy of the host's Python that only this test runs: a file that is being run can't be written."""
    copy = str(place / "python")
    shutil.copy(os.path.realpath(sys.executable), copy)
    return copy


def visit(python: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", CODE, *words],
        env={**os.environ, "PYTHONPATH": REPOSITORY, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("capabilities", [PTRACE, ALL])
def test_the_executable_is_held_and_written_to(accomplice, canary, place, transport, python, capabilities):
    """CVE-2019-5736 through a process of ours in the container's pid namespace: its /proc/PID/exe is the host's Python."""
    before = pathlib.Path(python).read_bytes()
    with kit.hostile(
        place, accomplice, "hunt", "x", canary.path, canary.secret, "same", "same", capabilities=capabilities
    ) as container:
        kit.await_ready(container)
        for words in (["attach", str(container.pid), "--transport", transport], ["exec", str(container.pid)]):
            for _ in range(3):
                visit(python, *words, "--", "sh", "-c", "sleep 0.1; true")
        kit.attach(container, transport, command=["true"])  # time for the accomplice to try again
        assert [line for line in container.loot if line.startswith("written")] == []
        assert pathlib.Path(python).read_bytes() == before


@pytest.mark.parametrize("capabilities", [PTRACE, ALL])
def test_what_is_found_is_worth_nothing(accomplice, canary, place, transport, capabilities):
    """Every door is open to it; behind them is the tools view. (With all capabilities the disks are its own: it looks at doors only.)"""
    with kit.hostile(
        place, accomplice, "hunt", "lt", canary.path, canary.secret, "same", capabilities=capabilities
    ) as container:
        kit.await_ready(container)
        for _ in range(3):
            kit.attach(container, transport, command=["sh", "-c", "sleep 0.15"], timeout=30)
        assert container.proofs(canary.secret) == []


# What CAP_SYS_PTRACE lets a container do to a session's process is to have it make any system call: so do these.
BY_HANDLE = """
import ctypes, os, struct, sys
fd = os.open("/", os.O_RDONLY)
inode = int(sys.argv[1])
for kind, handle in ((1, struct.pack("II", inode, 0)), (0x81, struct.pack("QI", inode, 0))):
    opened = ctypes.CDLL(None).open_by_handle_at(fd, struct.pack("Ii", len(handle), kind) + handle, 0)
    if opened >= 0:
        print(os.read(opened, 200))
"""
AROUND = """
import ctypes, os, sys
libc, path = ctypes.CDLL(None, use_errno=True), sys.argv[1]
attributes = (ctypes.c_uint64 * 4)(0, 0x100001, 0, 0)  # clear MOUNT_ATTR_IDMAP, MOUNT_ATTR_RDONLY
trees = [libc.syscall(467, -100, b"/", 1 | flag, ctypes.byref(attributes), 32) for flag in (0, 0x8000)]  # open_tree_attr
trees += [libc.syscall(428, -100, b"/", 1), libc.syscall(428, -100, path.encode(), 1)]  # open_tree, without what is mounted below
for tree in trees:
    if tree >= 0:
        try: print(open(f"/proc/self/fd/{tree}" + path).read())
        except OSError: pass
for place in (path, os.path.dirname(path)):
    libc.umount2(place.encode(), 2)
os.makedirs("/tmp/x", exist_ok=True)
libc.mount(b"/", b"/tmp/x", None, 4096, None)
libc.mount(None, b"/tmp/x", None, 4096 | 32, None)
for at in ("", "/tmp/x"):
    try: print(open(at + path).read())
    except OSError: pass
print([libc.syscall(16, os.open("/usr", os.O_RDONLY), ctypes.c_ulong(call), 0) for call in (0xC0045878,)])  # FITHAW
"""
PROC = """
import os
for name in ("sys/kernel/core_pattern", "sys/kernel/randomize_va_space", "irq/default_smp_affinity", "sysrq-trigger"):
    try: os.close(os.open(f"/proc/{name}", os.O_WRONLY)); print("written", name)
    except OSError: pass
for name in ("keys", "timer_list", "kcore"):
    try: print("read", name, len(open(f"/proc/{name}", "rb").read(64))) if open(f"/proc/{name}", "rb").read(1) else 0
    except OSError: pass
"""


def test_files_by_their_number(accomplice, canary, place, transport):
    """With CAP_DAC_READ_SEARCH a file of a directory that is closed, or covered, has a handle, which needs no path (open_by_handle_at(2))."""
    closed = canary.directory / "canary.open" / "closed"
    closed.mkdir(mode=0o700)
    readable = closed / "readable"
    readable.write_text(canary.secret)
    readable.chmod(0o644)
    try:
        command = ["python3", "-c", BY_HANDLE, str(readable.stat().st_ino)]
        assert canary.secret in subprocess.run(command, capture_output=True, text=True, check=True).stdout
        with kit.hostile(place, accomplice, capabilities=PTRACE | 1 << 2) as container:
            assert canary.secret not in (shown := kit.attach(container, transport, command=command)).stdout, shown
            assert shown.returncode == 0, shown
    finally:
        shutil.rmtree(closed)


def test_mounts_that_are_taken_off(accomplice, canary, place, transport):
    """With CAP_SYS_ADMIN covers can be unmounted, id maps be left out of a copy, a file system of the host be stopped."""
    with kit.hostile(place, accomplice, capabilities=ALL) as container:
        shown = kit.attach(container, transport, command=["python3", "-c", AROUND, canary.path], timeout=60)
        assert shown.stdout.strip() == "[-1]", shown
        control = ["--tools", "host:all", "--force"]
        assert canary.secret in kit.attach(container, transport, *control, command=["cat", canary.path]).stdout


def test_a_proc_that_it_makes_cntr_mount_anew(accomplice, canary, place, transport):
    """Where it has none, or has covered its own from a user namespace of its making: the new one obeys its uid 0 no more than an engine's."""

    def hide() -> None:
        if os.fork():
            return
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        for name, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
            pathlib.Path("/proc/self", name).write_text(text)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("none", "/proc", "tmpfs", 0)
        os.execv("/bin/sleep", ["sleep", "600"])

    assert (
        "written sys/kernel/core_pattern"
        in subprocess.run(["python3", "-c", PROC], capture_output=True, text=True, check=True).stdout
    )
    for number, more in enumerate(({"as_root": hide}, {"mount_proc": False})):
        root = place / str(number)
        root.mkdir()
        with kit.hostile(root, accomplice, **{"capabilities": PTRACE, **more}) as container:
            child = pathlib.Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
            for target in child or [str(container.pid)]:
                wait_until(lambda of=target: not os.path.exists(f"/proc/{of}/root/proc/1"), "its /proc to be covered")
                shown = run("attach", target, "--transport", transport, "--", "python3", "-c", PROC)
                assert (shown.returncode, shown.stdout) == (0, ""), shown


@pytest.mark.parametrize("command", ["attach", "exec"])
def test_the_callers_variables_are_not_in_a_sessions_memory(accomplice, canary, place, transport, command):
    """Of whatever is seen there, the reaper too, which was forked from cntr: neither by /proc/PID/environ nor in its heap."""
    token = f"TOKEN-{canary.secret[:16]}"
    with kit.hostile(place, accomplice, "hunt", "mM", canary.path, token, "same", capabilities=PTRACE) as container:
        kit.await_ready(container)
        words = (
            ["attach", str(container.pid), "--transport", transport]
            if command == "attach"
            else ["exec", str(container.pid)]
        )
        for _ in range(2):
            done = run(*words, "--", "/bin/sh", "-c", "sleep 0.3", env={"AWS_SECRET_ACCESS_KEY": token}, timeout=30)
            assert done.returncode == 0, done
        assert [line for line in container.loot if line.startswith(("text", "memory holds"))] == []


@pytest.mark.parametrize("flags", [["--tools", "host:all"], ["--privileged"]])
def test_what_is_worth_something_takes_force(accomplice, canary, place, transport, flags):
    with kit.hostile(place, accomplice, capabilities=PTRACE) as container:
        done = kit.attach(container, transport, *flags)
        assert "CAP_SYS_PTRACE" in one_line_and_hint(done)
        assert "--force" in done.stderr
        assert kit.attach(container, transport, *flags, "--force").returncode == 0


def test_it_has_its_own_filter_in_the_session(accomplice, canary, place, transport):
    """Through a session without one it could make every system call."""
    rules = ((test_b1_exec.SYS_GETCPU, 77),)
    script = 'python3 -c "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.syscall(309, 0, 0, 0), ctypes.get_errno())"'
    with test_b1_exec.filtered(place, accomplice, rules, capabilities=PTRACE) as container:
        shown = kit.in_session(container, transport, script)
        assert shown.splitlines()[0] == "-1 77"
        assert "seccomp filters apply to the tools too" in shown
        assert kit.in_session(container, transport, script, "--force").splitlines()[0] == "0 0"


def test_it_gets_no_pipe_of_the_callers(accomplice, canary, place, transport):
    """Whoever reads one end of a pipe opens the other, and reads or types what another program of the caller's waits for."""
    script = "readlink /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2"
    reading, writing = os.pipe()
    for capabilities, own in ((PTRACE, True), (PTRACE & ~(1 << 19), False)):
        root = place / str(own)
        root.mkdir()
        with kit.hostile(root, accomplice, capabilities=capabilities) as container:
            done = kit.attach(container, transport, command=["/bin/sh", "-c", script], input=None, stdin=reading)
        assert (os.readlink(f"/proc/self/fd/{reading}") not in done.stdout) == own, done
    os.close(reading)
    os.close(writing)


def test_a_worker_that_has_less_than_its_init(accomplice, canary, place, transport):
    """The process attached to has given CAP_SYS_PTRACE up for good; the one it was forked from has it."""

    def worker() -> None:
        if os.fork() == 0:
            for capability in range(41):
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
            syscalls.capset(0, 0, 0)
            os.execv("/bin/sleep", ["sleep", "600"])

    with kit.hostile(place, accomplice, capabilities=PTRACE, as_root=worker) as container:
        (child,) = pathlib.Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
        done = run("attach", child, "--transport", transport, "--privileged", "--", "true")
        assert "CAP_SYS_PTRACE" in one_line_and_hint(done)


def test_a_traced_process_cannot_report_as_the_monitor():
    """A process of a session's that is traced has a pipe to the supervisor, who ends what is in the nest, and prints what it is told."""
    outcome = Outcome()
    outcome.take(["nest", "4", "4026531841"], of_monitor=True)
    for frame in (
        *([kind] for kind in ("nest", "exited", "killed", "", "note", "failed", "left", "done")),
        *([kind, "0", "x"] for kind in ("nest", "exited", "killed", "failed", "left")),
        *(["note", "x"] for _ in range(1000)),
    ):
        outcome.take(frame, of_monitor=False)
    assert (outcome.nest, outcome.status, outcome.failed, outcome.left, outcome.done) == (
        (4, 4026531841),
        None,
        None,
        [],
        False,
    )
    assert len(outcome.notes) < 1000
    outcome.take(["left", "/tmp/\x1b]0;x\x07"], of_monitor=True)
    assert all(word.isprintable() for word in outcome.left)
    assert str(failure("x", "\x1b]0;x\x07", 0, "")).isprintable()


@pytest.mark.parametrize("words", [["attach", "--transport", "mount"], ["attach", "--transport", "fuse"], ["exec"]])
def test_the_pipes_of_a_traced_process_are_written_to_without_end(accomplice, canary, place, words):
    """Half a record, reports that are none, and more than anybody can hold: cntr goes on, or ends, with one line; it hears signals."""
    with kit.hostile(place, accomplice, "hunt", "f", "-", "-", "same", capabilities=PTRACE) as container:
        kit.await_ready(container)
        with tempfile.TemporaryFile("w+") as errors:  # the command's stderr is not to be one of the pipes
            process = subprocess.Popen(
                [*CNTR, words[0], str(container.pid), *words[1:], "--", "/bin/sleep", "60"],
                env={**os.environ, "PYTHONPATH": REPOSITORY},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )
            try:
                wait_until(lambda: any(line.startswith("pipe") for line in container.loot), "it to have the pipes")
                time.sleep(0.6)  # it writes without end from 0.3 s on
                if process.poll() is None:
                    status = procfs.status(procfs.read(f"/proc/{process.pid}/status"))
                    assert int(status["VmRSS"].split()[0]) < 200_000
                    process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=25) in (137, 143, -signal.SIGTERM)  # the last where it was about to end
            finally:
                process.kill()
                process.wait()
            errors.seek(0)
            said = [line for line in errors.read().split("\n") if line.startswith("cntr: ") and "warning" not in line]
            assert len(said) <= 1, said
            assert all(" killed the session" in line or "could not be reached" in line for line in said), said


def test_a_forged_end_of_the_session_keeps_nothing_of_it(accomplice, canary, place, transport):
    """Its tools end with it, whatever its reaper's record says."""
    code = (
        "import sys, cntr.attach.launcher as m; old = m.reap; "
        "m.reap = lambda pid: (lambda found: (found[0], found[0] is not None or found[1]))(old(pid)); "
        "from cntr.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    with kit.hostile(place, accomplice, capabilities=PTRACE) as container:
        script = "trap '' HUP TERM; setsid sleep 600.0419 </dev/null >/dev/null 2>&1 & sleep 0.2; exit 3"
        done = run("attach", str(container.pid), "--transport", transport, "--", "/bin/bash", "-c", script, code=code)
        assert done.returncode == 3, done
        assert not processes.running("sleep", "600.0419")


@pytest.mark.parametrize(("bit", "name"), [(21, "CAP_SYS_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF"), (12, "")])
def test_what_reads_every_process_through_the_kernel_is_documented(accomplice, canary, place, transport, bit, name):
    """No process is kept out of bpf(2) and perf_event_open(2): in one line, before anything is typed. CAP_NET_ADMIN is none of them."""
    with kit.hostile(place, accomplice, capabilities=0xA80425FB | 1 << bit) as container:
        done = kit.attach(container, transport)
        assert done.returncode == 0
        assert ("through the kernel" in done.stderr, bool(name) and name in done.stderr) == (bool(name), bool(name)), (
            done
        )
        assert done.stderr.count("\n") == bool(name), done


def interpreter_for_all() -> None:
    """Linux 6.7: what its own root says is run in place of every dynamic program, whoever starts that in its user namespace."""
    os.mkdir("/binfmt")
    try:
        syscalls.mount("binfmt_misc", "/binfmt", "binfmt_misc", 0)
    except PermissionError:
        return
    dynamic = rb":cntr:M:16:\x03\x00::/accomplice:F"
    pathlib.Path("/binfmt/register").write_bytes(dynamic)


def test_interpreters_of_its_user_namespace(accomplice, canary, place, transport):
    """CAP_SYS_ADMIN there is as much as CAP_SYS_PTRACE: the container's program is the session's."""
    with kit.remapped(place, accomplice, capabilities=0xA80425FB | 1 << 21, as_root=interpreter_for_all) as container:
        os.chown(container.root, kit.FIRST_ID, kit.FIRST_ID)
        done = kit.attach(container, transport, command=["/usr/bin/id", "-u"])
        if done.stdout == "0\n":
            pytest.skip("this kernel has no binfmt_misc in user namespaces (Linux 6.7)")
        assert "CAP_SYS_ADMIN" in done.stderr
        assert "can see and do what this session can" in done.stderr
        refused = kit.attach(container, transport, "--tools", "host:all")
        assert (refused.returncode, "--force" in refused.stderr) == (125, True), refused
        reading, writing = os.pipe()
        script = ["/bin/sh", "-c", "readlink /proc/self/fd/0"]
        done = kit.attach(container, transport, command=script, input=None, stdin=reading)
        assert os.readlink(f"/proc/self/fd/{reading}") not in done.stdout
        os.close(reading)
        os.close(writing)
