"""Every kernel constant in this project, compared with the kernel's headers, also those of other architectures.

This machine's compiler can read foreign headers, as only static assertions are compiled.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest

from cntr.linux import (
    credentials,
    fanotify,
    file_syscalls,
    io_uring,
    namespaces,
    numbers,
    process,
    seccomp,
    sockets,
    syscalls,
)

# architecture: (column of numbers.TABLE, directory of Debian's headers, macros that its compiler would define)
ARCHITECTURES = {
    "amd64": ("x86_64", "x86_64-linux-gnu", ("__x86_64__",)),
    "arm64": ("generic", "aarch64-linux-gnu", ("__aarch64__",)),
    "armhf": ("arm", "arm-linux-gnueabihf", ("__arm__", "__ARM_EABI__")),
    "ppc64el": ("ppc64", "powerpc64le-linux-gnu", ("__powerpc64__", "__powerpc__")),
    "riscv64": ("generic", "riscv64-linux-gnu", ("__riscv", "__riscv_xlen=64")),
    "s390x": ("s390x", "s390x-linux-gnu", ("__s390x__", "__s390__")),
}
HEADERS = (
    "asm/unistd.h asm/ioctls.h linux/sched.h linux/mount.h linux/fcntl.h linux/openat2.h linux/prctl.h linux/capability.h "
    "linux/nsfs.h linux/magic.h linux/stat.h linux/fs.h linux/ptrace.h linux/seccomp.h linux/securebits.h linux/keyctl.h "
    "linux/falloc.h linux/fanotify.h linux/io_uring.h linux/close_range.h linux/audit.h linux/elf.h asm/socket.h linux/types.h"
).split()
CALLS = {
    "_SYS_OPEN_TREE": "open_tree",
    "_SYS_MOVE_MOUNT": "move_mount",
    "_SYS_FSOPEN": "fsopen",
    "_SYS_FSCONFIG": "fsconfig",
    "_SYS_FSMOUNT": "fsmount",
    "_SYS_CLONE3": "clone3",
    "_SYS_CLOSE_RANGE": "close_range",
    "_SYS_OPENAT2": "openat2",
    "_SYS_PIDFD_GETFD": "pidfd_getfd",
    "_SYS_MOUNT_SETATTR": "mount_setattr",
}
NATIVE = pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd.h")


def includes(architecture: str) -> list[str]:
    """The compiler's options for the headers of an architecture; skips if they are not installed."""
    _, triplet, defined = ARCHITECTURES[architecture]
    directory = pathlib.Path("/usr", triplet, "include")
    words = ["-undef", "-nostdinc", *(f"-D{name}" for name in defined), "-D__linux__", "-D__SIZEOF_INT__=4"]
    if (directory / "asm/unistd.h").exists():
        return [*words, "-isystem", str(directory)]
    if architecture == "amd64" and NATIVE.exists():
        return [*words, "-isystem", str(NATIVE.parents[1]), "-isystem", "/usr/include"]
    package = "linux-libc-dev" if architecture == "amd64" else f"linux-libc-dev-{architecture}-cross"
    pytest.skip(f"not installed: {package} (apt-get install)")


def compile_all(architecture: str, tmp_path: pathlib.Path, lines: list[str]) -> str:
    """The compiler's output for assertions."""
    compiler = shutil.which("gcc") or pytest.skip("not installed: gcc (apt-get install)")
    words = includes(architecture)
    root = pathlib.Path(words[-1]) if words[-1] != "/usr/include" else pathlib.Path("/usr/include")
    headers = [name for name in HEADERS if (root / name).exists() or name.startswith("asm/")]
    program = tmp_path / "numbers.c"
    program.write_text("\n".join([*(f"#include <{name}>" for name in headers), *lines, ""]))
    done = subprocess.run(
        [compiler, "-fsyntax-only", "-fmax-errors=0", "-w", *words, str(program)],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        check=False,
    )
    return "\n".join(line for line in done.stderr.splitlines() if "error" in line)


def constants() -> dict[str, int]:
    """{name: value} of the public numbers in cntr/linux."""
    found: dict[str, int] = {}
    for module in (syscalls, file_syscalls, credentials, fanotify, io_uring, seccomp, sockets, process, namespaces):
        for name, value in vars(module).items():
            if name.isupper() and not name.startswith("_") and isinstance(value, int) and not isinstance(value, bool):
                found[name] = value
    return found


# Combinations, aliases and numbers that are in no header; and what the headers up to 6.1 lack.
OWN = frozenset(
    "STATX_WANTED MAX_HANDLE_SZ BPF_LD_W_ABS BPF_JEQ_K BPF_JGE_K BPF_JSET_K BPF_RET_K INSTRUCTION WALL NT_PRSTATUS "
    "OPEN_TREE_CLOEXEC MOUNT_ATTR_ATIME LINUX_CAPABILITY_VERSION_3 FAN_REPORT_DFID_NAME_TARGET UTIME_NOW UTIME_OMIT NO_FILES_ID "
    "OPENED".split()
)


NEWER = frozenset(["MNT_DETACH", "SO_PEERPIDFD"])  # the first is in no header for programs (umount2(2))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_system_call_numbers(tmp_path, architecture):
    column = numbers.MACHINES.index(ARCHITECTURES[architecture][0])
    lines = []
    for call, row in numbers.TABLE.items():
        name = f"{call}32" if call == "setgroups" and architecture == "armhf" else call
        lines.append(f'_Static_assert(__NR_{name} == {row[column]}, "{call}");')
    lines += [f'_Static_assert(__NR_{name} == {getattr(syscalls, own)}, "{own}");' for own, name in CALLS.items()]
    assert compile_all(architecture, tmp_path, lines) == ""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_constants(tmp_path, architecture):
    known = {name: value for name, value in constants().items() if name not in OWN}
    known |= {name: numbers.ioctl(name, ARCHITECTURES[architecture][0]) for name in numbers.IOCTLS}
    assert len(known) > 80
    said = compile_all(
        architecture, tmp_path, [f'_Static_assert(({name}) == ({value}), "{name}");' for name, value in known.items()]
    )
    undeclared = {name for name in known if f"'{name}' undeclared" in said}
    assert undeclared <= NEWER, "no header declares them"
    assert said.count("error:") == 2 * len(undeclared), said


def test_a_wrong_number_is_seen(tmp_path):
    assert "static assertion failed" in compile_all(
        "amd64", tmp_path, ['_Static_assert(__NR_pivot_root == 156, "pivot_root");']
    )


@pytest.mark.parametrize(
    ("name", "wide", "column"),
    [
        ("x86_64", True, "x86_64"),
        ("x86_64", False, "i386"),
        ("i686", False, "i386"),
        ("aarch64", True, "generic"),
        ("aarch64", False, "arm"),
        ("armv7l", False, "arm"),
        ("ppc64le", True, "ppc64"),
        ("s390x", True, "s390x"),
        ("riscv64", True, "generic"),
        ("loongarch64", True, "generic"),
    ],
)
def test_the_column_of_a_machine(name, wide, column):
    assert numbers.machine(name, wide=wide) == column
