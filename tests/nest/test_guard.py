"""Every process of a session keeps CAP_SYS_PTRACE, whatever a tool does to drop it, and the tools still work."""

from __future__ import annotations

import os
import pathlib
import shutil
import struct
import subprocess
import sys

import pytest

from cntr.attach import guard
from cntr.linux import process, procfs, syscalls
from testkit.container import DOCKER_DEFAULT
from tests.nest.filters import run

PTRACE = 1 << 19
BOUNDING = DOCKER_DEFAULT | PTRACE
ALLOWED, DONE, EPERM, ENOSYS, KILLED = 0x7FFF0000, 0x50000, 0x50001, 0x50026, 0x80000000
NEWUSER, NEWPID, VM_FORK = 0x10000000, 0x20000000, 0x1200011

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: there must be capabilities to drop")


def guarded(uid: int, *, without: str = ""):
    """Prepare the calling process like a session's with UID, omitting WITHOUT, one of the three parts."""

    def become() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount_setattr(syscalls.AT_FDCWD, "/", recursive=True, attr_set=syscalls.MOUNT_ATTR_NOSUID)
        for capability in range(64):
            if not BOUNDING >> capability & 1 and capability <= guard_last():
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        if without != "securebits":
            process.set_securebits(guard.SECUREBITS)
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
        os.setresuid(uid, uid, uid)
        held = PTRACE if uid else BOUNDING
        syscalls.capset(held, held, PTRACE)
        if without != "ambient":
            syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, 19)
        if without != "filter":
            guard.install()

    return become


def guard_last() -> int:
    return int(procfs.read("/proc/sys/kernel/cap_last_cap"))


def permitted_after(uid: int, command: list[str], *, without: str = "") -> int:
    """The permitted set printed by the process of COMMAND that shows its status."""
    done = subprocess.run(
        command, preexec_fn=guarded(uid, without=without), capture_output=True, text=True, check=False
    )
    assert "CapPrm" in done.stdout, done
    return int(procfs.status(done.stdout[done.stdout.index("Name:") :])["CapPrm"], 16)


SHOW = ["cat", "/proc/self/status"]
PYTHON = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
{}
print(open("/proc/self/status").read())
"""
CAPSET = "assert libc.capset(struct.pack('II', 0x20080522, 0), bytes(24)) == 0"
WAYS = {
    "capset": PYTHON.format(CAPSET),
    "ambient_clear": PYTHON.format(f"assert libc.prctl(47, 4, 0, 0, 0) == 0; {CAPSET}"),
    "ambient_lower": PYTHON.format(f"assert libc.prctl(47, 3, 19, 0, 0) == 0; {CAPSET}"),
    "secure_bits": PYTHON.format(f"libc.prctl(28, 0); libc.prctl(28, 0x2f); {CAPSET}"),
    "bounding": PYTHON.format(f"libc.prctl(24, 19); libc.prctl(47, 4, 0, 0, 0); {CAPSET}"),
    "uid": PYTHON.format("os.setresgid(7, 7, 7); os.setresuid(7, 7, 7); " + CAPSET),
    "uid_and_exec": "import os; os.setresgid(7, 7, 7); os.setresuid(7, 7, 7); os.execvp('cat', ['cat', '/proc/self/status'])",
    "euid_and_exec": "import os; os.setresuid(7, 7, 0); os.execvp('cat', ['cat', '/proc/self/status'])",
    "fork": PYTHON.format(f"os.fork() and os._exit(os.wait()[1]); os.setresuid(7, 7, 7); {CAPSET}"),
}
PROGRAMS = {
    "su": ["su", "nobody", "-s", "/bin/sh", "-c", "cat /proc/self/status"],
    "setpriv": "setpriv --reuid 1000 --regid 1000 --clear-groups --inh-caps=-all --bounding-set=-all".split() + SHOW,
    "setpriv_ambient": "setpriv --ambient-caps=-all --inh-caps=-all --reuid 1000 --regid 1000 --clear-groups".split()
    + SHOW,
    "capsh": ["capsh", "--drop=all", "--user=nobody", "--", "-c", "cat /proc/self/status"],
    "capsh_inherited": ["capsh", "--noamb", "--inh=", "--caps=", "--", "-c", "cat /proc/self/status"],
}


@needs_root
@pytest.mark.parametrize(
    # uid 1000 has no CAP_SETUID to change it
    ("uid", "way"),
    [(uid, way) for way in WAYS for uid in (0, 1000) if not (uid and ("uid" in way or way == "fork"))],
)
def test_a_process_cannot_give_it_up(uid, way):
    if uid and "uid" in way:
        pytest.skip("not possible: a process of uid 1000 without CAP_SETUID cannot change it")
    assert (
        permitted_after(uid, ["python3", "-c", WAYS[way].replace("os.setresuid(7", "os.getuid() or os.setresuid(7")])
        & PTRACE
    )


@needs_root
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_cannot_give_it_up_for_what_it_runs(program):
    if not shutil.which(PROGRAMS[program][0]):
        pytest.skip(f"not installed: {PROGRAMS[program][0]} (apt-get install)")
    assert permitted_after(0, PROGRAMS[program]) & PTRACE


@needs_root
@pytest.mark.parametrize(
    ("without", "uid", "command"),
    [
        ("securebits", 0, PROGRAMS["su"]),
        ("ambient", 0, PROGRAMS["su"]),
        ("filter", 0, ["python3", "-c", WAYS["capset"]]),
        ("filter", 1000, ["python3", "-c", WAYS["ambient_clear"]]),
    ],
)
def test_each_part_is_needed(without, uid, command):
    assert not permitted_after(uid, command, without=without) & PTRACE
    assert permitted_after(uid, command) & PTRACE


@needs_root
@pytest.mark.parametrize("kind", ["set-uid", "set-gid", "file capabilities"])
def test_a_program_with_rights_of_its_own_neither_gains_nor_loses(kind, tmp_path):
    """no_new_privs is not enough: file capabilities still empty the ambient set, except on a nosuid mount."""
    for parent in tmp_path.parents:
        if parent.stat().st_mode & 0o1000:
            break  # /tmp: it stays as it is
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    program = tmp_path / "show"
    shutil.copy(shutil.which("cat") or "/bin/cat", program)
    if kind == "file capabilities":
        if not shutil.which("setcap"):
            pytest.skip("not installed: setcap (apt-get install libcap2-bin)")
        subprocess.run(["setcap", "cap_net_raw=ep", str(program)], check=True)
    else:
        os.chown(program, 1, 42)
        program.chmod(0o4755 if kind == "set-uid" else 0o2755)
    assert permitted_after(1000, [str(program), "/proc/self/status"]) == PTRACE


REFUSED = (
    "libc.unshare(0x10000000)",
    "libc.unshare(0x10020000)",
    "libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)",
    "libc.setns(os.open('/proc/self/ns/user', 0), 0)",
    "libc.setns(os.open('/proc/self/ns/user', 0), 0x10000000)",
    "libc.setns(os.pidfd_open(os.getppid()), 0x30000000)",
    "libc.ioctl(0, 0x5412, b'x')",
    "libc.ioctl(0, ctypes.c_ulong(0x7700005412), b'x')",
    "libc.ioctl(0, 0x541c, b'x')",
)


@needs_root
@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="system call numbers of x86_64; other architectures are checked below"
)
def test_user_namespaces_and_typing_are_refused(uid):
    program = PYTHON.format("\n".join(f"assert {call} == -1 and ctypes.get_errno() == 1, {call!r}" for call in REFUSED))
    done = subprocess.run(
        [sys.executable, "-c", program], preexec_fn=guarded(uid), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done


INT_0X80 = """
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("53 89f8 89f3 89d1 cd80 5b c3"))  # eax, ebx, ecx from the three arguments; int 0x80
old = ctypes.CFUNCTYPE(ctypes.c_int, *3 * [ctypes.c_int])(ctypes.addressof(ctypes.c_char.from_buffer(page)))
assert old(20, 0, 0) == os.getpid(), "the check can fail: getpid by the old way"
assert old(310, 0x10000000, 0) == -1, old(310, 0x10000000, 0)  # unshare: EPERM
assert old(185, 0, 0) == 0  # capset with a bad address: EFAULT if the kernel saw it
assert old(172, 47, 4) == 0
assert old(435, 0, 0) == -38
"""


@needs_root
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 exists on x86_64 only")
def test_the_32_bit_calls_are_held_to_the_same():
    done = subprocess.run(
        [sys.executable, "-c", PYTHON.format(INT_0X80)],
        preexec_fn=guarded(0),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == -11:
        pytest.skip("this kernel has no 32-bit calls (ia32_emulation=0, or CONFIG_IA32_EMULATION is not set)")
    assert done.returncode == 0, done
    assert int(procfs.status(done.stdout[done.stdout.index("Name:") :])["CapPrm"], 16) & PTRACE


ABIS = {  # machine: (audit arch, capset clone setns prctl ioctl unshare keyctl, an unrelated call, index of clone's flags)
    ("x86_64", 0xC000003E): (126, 56, 308, 157, 16, 272, 250, 0, 0),
    ("x86_64", 0x40000003): (185, 120, 346, 172, 54, 310, 288, 3, 0),
    ("aarch64", 0xC00000B7): (91, 220, 268, 167, 29, 97, 219, 63, 0),
    ("aarch64", 0x40000028): (185, 120, 375, 172, 54, 337, 311, 3, 0),
    ("riscv64", 0xC00000F3): (91, 220, 268, 167, 29, 97, 219, 63, 0),
    ("loongarch64", 0xC0000102): (91, 220, 268, 167, 29, 97, 219, 63, 0),
    ("ppc64le", 0xC0000015): (184, 120, 350, 171, 54, 282, 271, 3, 0),
    ("s390x", 0x80000016): (185, 120, 339, 172, 54, 303, 280, 3, 1),
}


@pytest.mark.parametrize(("machine", "arch"), ABIS)
def test_every_abi_is_decided_alike(machine, arch, monkeypatch):
    monkeypatch.setattr(sys, "byteorder", "big" if machine == "s390x" else "little")
    program, order = guard.program(machine), ">" if machine == "s390x" else "<"
    capset, clone, setns, prctl, ioctl, unshare, keyctl, other, flags = ABIS[machine, arch]

    def decided(number: int, *arguments: int) -> int:
        padded = [*arguments, *(6 - len(arguments)) * (0,)]
        return run(program, struct.pack(f"{order}IIQ6Q", number, arch, 0, *padded), order)

    def fork(bits: int) -> int:
        return decided(clone, *(flags * (0,)), bits)

    assert decided(other) == ALLOWED
    assert decided(capset) == DONE
    assert decided(435) == ENOSYS
    assert {decided(keyctl), decided(keyctl - 1), decided(keyctl - 2)} == {EPERM}
    assert (fork(17), fork(VM_FORK), fork(NEWPID), fork(NEWUSER | 17), fork(NEWUSER | NEWPID)) == (
        *3 * [ALLOWED],
        EPERM,
        EPERM,
    )
    assert (decided(unshare, 0x20000), decided(unshare, NEWUSER), decided(unshare, NEWUSER | 0x20000)) == (
        ALLOWED,
        EPERM,
        EPERM,
    )
    assert (decided(setns, 3, 0x40000000), decided(setns, 3, 0), decided(setns, 3, NEWUSER | NEWPID)) == (
        ALLOWED,
        EPERM,
        EPERM,
    )
    assert (decided(ioctl, 0, 0x5413), decided(ioctl, 0, 0x5412), decided(ioctl, 0, 0x541C)) == (ALLOWED, EPERM, EPERM)
    assert decided(ioctl, 0, 0x5_0000_5412) == EPERM, "the kernel looks at the lower half only"
    assert (decided(prctl, 15), decided(prctl, 47, 2, 19), decided(prctl, 47, 1, 19)) == (ALLOWED, ALLOWED, ALLOWED)
    assert (decided(prctl, 47, 4), decided(prctl, 47, 3, 19), decided(prctl, 47, 3, 13)) == (DONE, DONE, ALLOWED)


@pytest.mark.parametrize(("machine", "arch"), ABIS)
def test_what_gets_around_the_view_is_refused_in_it_alone(machine, arch, monkeypatch):
    monkeypatch.setattr(sys, "byteorder", "big" if machine == "s390x" else "little")
    order, ioctl = ">" if machine == "s390x" else "<", ABIS[machine, arch][4]
    old = {  # open_by_handle_at mount umount2 pivot_root
        "x86_64": (304, 165, 166, 155),
        "ppc64le": (346, 21, 52, 203),
        "s390x": (336, 21, 52, 217),
    }.get(machine, (265, 40, 39, 41))
    old = {0x40000003: (342, 21, 52, 217), 0x40000028: (371, 21, 52, 218)}.get(arch, old)
    for view, answer in ((True, EPERM), (False, ALLOWED)):
        program = guard.program(machine, view=view)
        for number in (*old, 428, 429, 430, 431, 432, 433, 442, 467):
            assert run(program, struct.pack(f"{order}IIQ6Q", number, arch, 0, *6 * (0,)), order) == answer, number
        for request in (0xC0045877, 0xC0045878, 0x8004587D):
            assert run(program, struct.pack(f"{order}IIQ6Q", ioctl, arch, 0, 3, request, *4 * (0,)), order) == answer


def test_where_there_is_nothing_to_keep_capabilities_can_be_dropped():
    def decided(number: int, *arguments: int) -> int:
        padded = [*arguments, *(6 - len(arguments)) * (0,)]
        return run(guard.program("x86_64", keep=False), struct.pack("<IIQ6Q", number, 0xC000003E, 0, *padded), "<")

    assert (decided(126), decided(157, 47, 4)) == (ALLOWED, ALLOWED)
    assert (decided(272, NEWUSER), decided(16, 0, 0x5412), decided(250)) == (EPERM, EPERM, EPERM)


def test_foreign_abis_fail_closed():
    def decided(machine: str, arch: int, number: int) -> int:
        return run(guard.program(machine), struct.pack("<IIQ6Q", number, arch, 0, *6 * (0,)), "<")

    assert decided("x86_64", 0xC00000B7, 0) == KILLED
    assert decided("aarch64", 0xC000003E, 63) == KILLED
    assert decided("x86_64", 0xC000003E, 0x40000000 | 126) == ENOSYS  # x32
    with pytest.raises(OSError, match="no filter of a session's system calls for vax"):
        guard.program("vax")


TOOLS = {
    "ping": ["ping", "-c1", "127.0.0.1"],
    "strace": ["strace", "-f", "-o", "/dev/null", "sh", "-c", "true | true"],
    "gdb": ["gdb", "-batch", "-nx", "-ex", "run", "--args", "true"],
    "python3": [
        "python3",
        "-c",
        "import threading, subprocess as s; threading.Thread(target=print).start(); s.check_call('true')",
    ],
    "su": ["su", "nobody", "-s", "/bin/sh", "-c", "id"],
    "setpriv": ["setpriv", "--reuid", "7", "--regid", "7", "--clear-groups", "id"],
    "man": ["man", "-P", "cat", "ls"],
    "git": ["git", "--version"],
}


@needs_root
@pytest.mark.parametrize("tool", TOOLS)
def test_the_tools_work(tool):
    if not shutil.which(TOOLS[tool][0]):
        pytest.skip(f"not installed: {TOOLS[tool][0]} (apt-get install)")
    if tool == "man" and subprocess.run(TOOLS[tool], capture_output=True, check=False).returncode:
        pytest.skip("not installed: man pages")
    environment = {**os.environ, "HOME": "/nonexistent"}
    done = subprocess.run(
        TOOLS[tool],
        preexec_fn=guarded(0),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done


@needs_root
def test_tcpdump_captures_as_another_user(tmp_path):
    if not shutil.which("tcpdump"):
        pytest.skip("not installed: tcpdump (apt-get install)")
    process = subprocess.Popen(
        ["tcpdump", "-Z", "nobody", "-i", "lo", "-c1", "-n", "-w", "-"],
        preexec_fn=guarded(0),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr
        assert b"listening on lo" in process.stderr.readline()
        status = procfs.status(pathlib.Path(f"/proc/{process.pid}/status").read_text())
        assert int(status["CapPrm"], 16) & PTRACE
        import socket

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("127.0.0.1", 9))
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()
