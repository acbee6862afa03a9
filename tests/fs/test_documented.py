"""The limits listed in docs/cntrfs.md exist. If one no longer does, its row is removed from the table."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cntr.linux import file_syscalls, syscalls
from testkit import loops
from testkit.servers import BINDINGS, Server, TreeUnderTest, missing, place, served
from tests.fs.syscalls import errno_of

pytestmark = pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing")
FICLONE, FITRIM, FS_IOC_GETFSUUID = 0x40049409, 0xC0185879, 0x80111500
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878


@pytest.fixture(params=BINDINGS)
def here(request: pytest.FixtureRequest) -> Iterator[TreeUnderTest]:
    if missing(request.param):
        pytest.skip(missing(request.param))
    with place(request.param) as found:
        yield found


def test_submounts_have_one_device_number(here: TreeUnderTest, tmp_path: Path) -> None:
    (here.behind / "below").mkdir()
    syscalls.mount("below", str(here.behind / "below"), "tmpfs", 0)
    try:
        (here.behind / "below" / "file").touch()
        found = subprocess.run(
            ["find", here.directory, "-xdev", "-name", "file"], capture_output=True, check=True
        ).stdout
        assert found, "docs/cntrfs.md warns of -xdev without need"
        assert errno_of(lambda: os.rename(here.directory / "below" / "file", here.directory / "file")) == errno.EXDEV
        # As the documentation suggests: a bind mount has no submounts.
        tmp_path.joinpath("bound").mkdir()
        syscalls.mount(str(here.behind), str(tmp_path / "bound"), None, syscalls.MS_BIND)
        try:
            assert os.listdir(tmp_path / "bound" / "below") == []
        finally:
            syscalls.umount(str(tmp_path / "bound"), syscalls.MNT_DETACH)
    finally:
        syscalls.umount(str(here.behind / "below"), syscalls.MNT_DETACH)


def test_locks_leases_and_fifos_are_of_one_path(here: TreeUnderTest) -> None:
    (here.directory / "file").write_text("text")
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (here.directory, here.behind)]
    try:
        for fd in fds:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        for fd in fds:
            os.close(fd)
    os.mkfifo(here.directory / "fifo")
    reader = os.open(here.directory / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert errno_of(lambda: os.open(here.behind / "fifo", os.O_WRONLY | os.O_NONBLOCK)) == errno.ENXIO
        os.close(os.open(here.directory / "fifo", os.O_WRONLY | os.O_NONBLOCK))
    finally:
        os.close(reader)
    leased = os.open(here.directory / "file", os.O_RDONLY)
    try:
        fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        os.close(os.open(here.behind / "file", os.O_RDWR | os.O_NONBLOCK))  # EWOULDBLOCK if it were
    finally:
        os.close(leased)


def test_neither_nowait_nor_clones(here: TreeUnderTest) -> None:
    (here.directory / "file").write_text("text" * 5000)
    with open(here.directory / "file", "rb") as file, open(here.directory / "clone", "wb") as clone:
        assert errno_of(lambda: os.preadv(file.fileno(), [bytearray(10)], 0, os.RWF_NOWAIT)) == errno.EOPNOTSUPP
        assert errno_of(lambda: fcntl.ioctl(clone.fileno(), FICLONE, file.fileno())) == errno.EOPNOTSUPP
    done = subprocess.run(["cp", "--reflink=auto", here.directory / "file", here.directory / "copy"], check=False)
    assert not done.returncode


def test_ioctls_of_the_whole_filesystem(here: TreeUnderTest) -> None:
    with open(here.directory / "file", "w") as file:
        for command, size in ((FITRIM, 24), (FS_IOC_GETFSUUID, 17)):
            assert errno_of(lambda command=command, size=size: fcntl.ioctl(file, command, bytes(size))) == errno.ENOTTY  # type: ignore[misc]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="32-bit system calls are made as on x86")
def test_programs_of_32_bits_list_by_offsets_of_64(here: TreeUnderTest) -> None:
    """ext4 chooses the width of offsets by the caller, and the server calls for everybody."""
    fd = os.open(here.behind, os.O_PATH)
    magic = file_syscalls.filesystem_magic(fd)
    os.close(fd)
    if magic != 0xEF53:
        pytest.skip("ext4 is missing")
    for number in range(50):
        (here.behind / f"{number}").touch()
    assert _widest_offset(here.behind) < 1 << 32
    assert _widest_offset(here.directory) >= 1 << 32, "docs/cntrfs.md warns of these without need"


def _widest_offset(directory: Path) -> int:
    """Calls getdents64(2) as a 32-bit program does."""
    code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # push rbx; mov eax, edi; mov ebx, esi; xchg ecx, edx; int 0x80; pop rbx; ret
    code.write(bytes.fromhex("53 89f8 89f3 87ca cd80 5b c3"))
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_uint, ctypes.c_uint)(address)
    buffer = mmap.mmap(-1, 32768, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40)  # MAP_32BIT
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        length = call(220, fd, ctypes.addressof(ctypes.c_char.from_buffer(buffer)), 32768)
    finally:
        os.close(fd)
    if length == -errno.ENOSYS:
        pytest.skip("the kernel has no 32-bit system calls")
    assert length > 0
    offsets, position = [], 0
    while position < length:
        _, offset, size = struct.unpack_from("=QQH", buffer, position)
        offsets.append(offset)
        position += size
    return max(offset for offset in offsets if offset != (1 << 63) - 1)


def test_no_shared_mapping_past_the_cache() -> None:
    if missing("pyfuse3"):
        pytest.skip(missing("pyfuse3"))
    with place("pyfuse3", options=("-o", "cache=none")) as here:
        (here.directory / "file").write_bytes(b"x" * 5000)
        with open(here.directory / "file", "r+b") as file:
            assert errno_of(lambda: mmap.mmap(file.fileno(), 4096, mmap.MAP_SHARED)) == errno.ENODEV


def test_how_deep_filesystems_stack(tmp_path: Path) -> None:
    """An overlay over CntrFS over an overlay is one level too deep for the kernel if CntrFS uses passthrough."""
    for options, stacks in (((), False), (("-o", "no_passthrough"), True)):
        base = tmp_path / ("served" if options else "passed")
        for name in ("lower", "upper", "work", "source", "mount", "upper2", "work2", "top"):
            (base / name).mkdir(parents=True)
        layers = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
        syscalls.mount("overlay", str(base / "source"), "overlay", 0, layers)
        try:
            server = Server("devfuse", base / "source", base / "mount", base / "log", options=options)
            server.start()
            try:
                os.listdir(base / "mount")
                over = f"lowerdir={base}/mount,upperdir={base}/upper2,workdir={base}/work2"
                refused = errno_of(
                    lambda over=over, base=base: syscalls.mount("overlay", str(base / "top"), "overlay", 0, over)
                )
                if not refused:
                    syscalls.umount(str(base / "top"), 0)
                assert bool(refused) != stacks
            finally:
                problem = server.stop()
            assert not problem
        finally:
            syscalls.umount(str(base / "source"), syscalls.MNT_DETACH)


def test_a_frozen_filesystem_is_waited_for(tmp_path: Path) -> None:
    """fsfreeze(8): whatever asks the server waits, even a close; what the kernel reads itself does not. Nothing is lost."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is missing (Debian: e2fsprogs)")
    with open(tmp_path / "image", "wb") as image:
        image.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", tmp_path / "image"], check=True)
    (tmp_path / "disk").mkdir()
    with loops.mounted(tmp_path / "image", tmp_path / "disk") as disk:
        for name in ("source", "mount"):
            (disk / name).mkdir()
        with served("devfuse", disk, log=tmp_path / "log"):
            shell = subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert shell.stdin
            assert shell.stdout
            frozen = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
            with open(disk / "mount" / "file", "w+b", buffering=0) as file:
                file.write(b"text")
                fcntl.ioctl(frozen, FIFREEZE, 0)
                try:
                    print(f"mkdir {disk}/mount/made; echo done", file=shell.stdin, flush=True)
                    assert not select.select([shell.stdout], [], [], 0.5)[0]
                    assert os.pread(file.fileno(), 4, 0) == b"text"
                finally:
                    fcntl.ioctl(frozen, FITHAW, 0)
                    os.close(frozen)
            assert shell.communicate(timeout=20)[0] == "done\n"
            assert (disk / "source" / "made").is_dir()


def test_how_many_links_a_file_may_have(here: TreeUnderTest) -> None:
    """The C library knows it by the type of the filesystem; link(2) itself goes on."""
    assert os.pathconf(here.directory, "PC_LINK_MAX") == 127
    (here.directory / "first").touch()
    for number in range(130):
        os.link(here.directory / "first", here.directory / str(number))
    assert (here.directory / "first").stat().st_nlink == 131
