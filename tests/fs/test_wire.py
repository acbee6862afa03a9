"""The FUSE wire protocol without a kernel: hand-made requests, and thousands of malformed ones."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import random
import resource
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cntr.cntrfs.core import Core
from cntr.cntrfs.devfuse import ioctls, wire
from cntr.cntrfs.devfuse.session import OPERATIONS, FuseSession
from cntr.cntrfs.fds import GIVE_UPS
from cntr.cntrfs.heartbeat import Heartbeat
from cntr.cntrfs.options import Options
from cntr.linux import syscalls as kernel_calls

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the server runs as root")
FUZZ_SECONDS = float(os.environ.get("CNTR_FUZZ_SECONDS", "3"))
FUZZ_SEED = int(os.environ.get("CNTR_FUZZ_SEED", "0")) or time.time_ns()


class Kernel:
    """Plays the kernel at the other end of /dev/fuse."""

    def __init__(self, root: Path) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        options = Options(invalidate=False, max_fds=8)
        core = Core(os.open(root, os.O_PATH), options)
        self.session = FuseSession(theirs.detach(), core, Heartbeat(), lambda: None)
        self.unique = 0

    def request(self, opcode: int, nodeid: int, body: bytes, extensions: bytes = b"") -> bytes:
        """The bytes of a request."""
        self.unique += 2
        body += extensions
        return (
            wire.IN_HEADER.pack(40 + len(body), opcode, self.unique, nodeid, 0, 0, os.getpid(), len(extensions) // 8)
            + body
        )

    def send(self, request: bytes) -> None:
        self.session.handle(wire.IN_HEADER.unpack_from(request), memoryview(request)[wire.IN_HEADER.size :])
        self.session.core.nodes.trim()

    def answers(self) -> list[tuple[int, int, bytes]]:
        """(error, unique, payload) of all answers so far."""
        found = []
        while True:
            try:
                data = self.ours.recv(1 << 21, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            length, error, unique = wire.OUT_HEADER.unpack_from(data)
            assert length == len(data)
            if unique == 0 and error in (wire.NOTIFY_INVAL_INODE, wire.NOTIFY_INVAL_ENTRY):
                continue  # not an answer
            assert -4096 < error <= 0
            found.append((-error, unique, data[16:]))

    def call(self, opcode: int, nodeid: int, body: bytes, extensions: bytes = b"") -> bytes:
        """Send a request and return the payload of the answer; raise OSError for an error."""
        self.send(self.request(opcode, nodeid, body, extensions))
        ((number, unique, payload),) = self.answers()
        assert unique == self.unique
        if number:
            raise OSError(number, os.strerror(number))
        return payload

    def lookup(self, name: bytes, parent: int = 1) -> int:
        return int(wire.ENTRY_OUT.unpack(self.call(wire.LOOKUP, parent, name + b"\0"))[0])


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    with standing_in(tmp_path) as made:
        yield made


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """64 MiB. No resource limit would do: it does not count space that fallocate(2) reserves beyond the end."""
    fd = kernel_calls.new_filesystem("tmpfs", {"size": "64m"})
    yield Path(f"/proc/self/fd/{fd}")
    os.close(fd)


@contextlib.contextmanager
def standing_in(tmp_path: Path) -> Iterator[Kernel]:
    umask = os.umask(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    old = signal.signal(signal.SIGUSR2, lambda *_: None)
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "below").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    made = Kernel(tmp_path)
    yield made
    made.session.close()
    made.session.core.close()
    made.ours.close()
    time.sleep(0.05)  # interrupted waits return
    signal.signal(signal.SIGUSR2, old)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    os.umask(umask)


def init_body(major: int = 7, minor: int = 45, flags: int = (1 << 64) - 1) -> bytes:
    return wire.INIT_IN.pack(major, minor, 131072, flags & 0xFFFFFFFF) + (flags >> 32).to_bytes(4, "little") + bytes(44)


def test_struct_sizes_are_the_kernels() -> None:
    sizes = {
        "IN_HEADER": 40, "OUT_HEADER": 16, "INIT_OUT": 64, "ATTR": 88, "ATTR_OUT": 104, "ENTRY_OUT": 128,
        "OPEN_OUT": 16, "WRITE_OUT": 8, "STATFS_OUT": 80, "LK_OUT": 24, "IOCTL_OUT": 16, "DIRENT": 24,
        "STATX_OUT": 288, "SETATTR_IN": 88, "READ_IN": 40, "WRITE_IN": 40, "RELEASE_IN": 24, "LK_IN": 48,
        "IOCTL_IN": 32, "FALLOCATE_IN": 32, "LSEEK_IN": 24, "COPY_FILE_RANGE_IN": 56, "STATX_IN": 24,
        "MKNOD_IN": 16, "CREATE_IN": 16, "RENAME2_IN": 16, "BACKING_MAP": 16, "INVAL_INODE_OUT": 24,
        "INVAL_ENTRY_OUT": 16, "GETATTR_IN": 16,
    }  # fmt: skip
    assert {name: getattr(wire, name).size for name in sizes} == sizes


@pytest.mark.parametrize(("major", "minor"), [(0, 0), (1, 3), (8, 1), (253, 5), (259, 70000)])
def test_device_numbers_survive(major: int, minor: int) -> None:
    assert wire.decode_dev(wire.new_encode_dev(major, minor)) == (major, minor)


def test_init_agrees_on_what_both_can(kernel: Kernel) -> None:
    payload = kernel.call(wire.INIT, 0, init_body())
    assert len(payload) == 64
    fields = wire.INIT_OUT.unpack(payload)
    assert fields[:2] == (7, wire.MINOR_VERSION)
    assert fields[3] & wire.DONT_MASK
    assert fields[10] << 32 & wire.PASSTHROUGH
    assert not fields[3] & wire.ASYNC_DIO  # pages cached during such a write would stay stale


def test_init_takes_only_what_is_offered(kernel: Kernel) -> None:
    fields = wire.INIT_OUT.unpack(kernel.call(wire.INIT, 0, init_body(minor=31, flags=wire.ASYNC_READ)))
    assert fields[1] == 31
    assert fields[3] == wire.ASYNC_READ
    assert fields[10] == 0


def test_init_of_a_later_major_is_asked_again(kernel: Kernel) -> None:
    assert wire.INIT_OUT.unpack(kernel.call(wire.INIT, 0, init_body(major=8)))[:2] == (7, wire.MINOR_VERSION)


def test_lookup_read_and_release(kernel: Kernel) -> None:
    nodeid = kernel.lookup(b"file")
    fh, _, _ = wire.OPEN_OUT.unpack(kernel.call(wire.OPEN, nodeid, wire.OPEN_IN.pack(os.O_RDONLY, 0)))
    assert kernel.call(wire.READ, nodeid, wire.READ_IN.pack(fh, 3, 100, 0, 0, 0, 0)) == b"tent"
    kernel.call(wire.RELEASE, nodeid, wire.RELEASE_IN.pack(fh, 0, 0, 0))
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        kernel.call(wire.READ, nodeid, wire.READ_IN.pack(fh, 0, 1, 0, 0, 0, 0))
    assert caught.value.errno == errno.EBADF


def test_forget_ends_a_node(kernel: Kernel) -> None:
    nodeid = kernel.lookup(b"file")
    kernel.lookup(b"file")
    kernel.send(kernel.request(wire.BATCH_FORGET, 0, wire.BATCH_FORGET_IN.pack(1, 0) + wire.FORGET_ONE.pack(nodeid, 2)))
    assert kernel.answers() == []
    with pytest.raises(OSError, match="Stale"):
        kernel.call(wire.GETATTR, nodeid, wire.GETATTR_IN.pack(0, 0, 0))


def test_a_removed_file_is_stale_before_its_forget_arrived(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel looks up "." when it has dropped the inode: the FORGET may be queued behind the LOOKUP."""
    monkeypatch.setattr("cntr.cntrfs.core.opens_by_handle", lambda pid: True)
    nodeid = kernel.lookup(b"file")
    assert kernel.lookup(b".", nodeid) == nodeid
    kernel.call(wire.UNLINK, 1, b"file\0")
    with pytest.raises(OSError, match="Stale"):
        kernel.lookup(b".", nodeid)


def names_in(payload: bytes) -> tuple[list[bytes], int]:
    """(names of a READDIR answer, offset after the last one)."""
    names, position, offset = [], 0, 0
    while position < len(payload):
        _, offset, length, _ = wire.DIRENT.unpack_from(payload, position)
        names.append(payload[position + 24 : position + 24 + length])
        position += 24 + (length + 7 & ~7)
    return names, offset


def test_readdir_goes_on_where_it_stopped(kernel: Kernel, tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"entry-{number}").touch()
    fh = wire.OPEN_OUT.unpack(kernel.call(wire.OPENDIR, 1, wire.OPEN_IN.pack(0, 0)))[0]
    names, offset = [], 0
    while True:
        payload = kernel.call(wire.READDIR, 1, wire.READ_IN.pack(fh, offset, 512, 0, 0, 0, 0))
        assert len(payload) <= 512
        if not payload:
            break
        more, offset = names_in(payload)
        names += more
    assert len(names) == len(set(names))
    assert set(names) == {b".", b".."} | {os.fsencode(name) for name in os.listdir(tmp_path)}


def test_directories_are_read_without_being_opened(kernel: Kernel, tmp_path: Path) -> None:
    """Two concurrent readers of a directory each get all of it, and one that stops holds nothing for long."""
    kernel.call(wire.INIT, 0, init_body())
    with pytest.raises(OSError, match="not implemented"):
        kernel.call(wire.OPENDIR, 1, wire.OPEN_IN.pack(0, 0))
    for number in range(100):
        (tmp_path / "dir" / f"entry-{number}").touch()
        (tmp_path / f"d{number}").mkdir()
    directory = kernel.lookup(b"dir")
    read: list[list[bytes]] = [[], []]
    offsets = [0, 0]
    for _ in range(50):
        for reader, size in ((0, 700), (1, 300)):
            payload = kernel.call(wire.READDIR, directory, wire.READ_IN.pack(0, offsets[reader], size, 0, 0, 0, 0))
            names, offsets[reader] = names_in(payload) if payload else ([], offsets[reader])
            read[reader] += names
    assert sorted(read[0]) == sorted(read[1]) == sorted([b".", b"..", *map(os.fsencode, os.listdir(tmp_path / "dir"))])
    before = len(os.listdir("/proc/self/fd"))
    for number in range(100):
        kernel.call(wire.READDIR, kernel.lookup(b"d%d" % number), wire.READ_IN.pack(0, 0, 512, 0, 0, 0, 0))
    assert len(os.listdir("/proc/self/fd")) <= before + 16
    payload = kernel.call(wire.IOCTL, directory, wire.IOCTL_IN.pack(0, 0, ioctls.FS_IOC_GETFLAGS, 0, 0, 8))
    opened = os.open(tmp_path / "dir", os.O_RDONLY)
    flags = fcntl.ioctl(opened, ioctls.FS_IOC_GETFLAGS, bytes(8))
    os.close(opened)
    assert payload[wire.IOCTL_OUT.size :] == flags
    kernel.send(kernel.request(wire.FSYNCDIR, directory, wire.FSYNC_IN.pack(0, 0, 0)))
    deadline = time.monotonic() + 10
    while not (answers := kernel.answers()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [number for number, _, _ in answers] == [0]


@pytest.mark.parametrize("has_examined", [True, False])
def test_file_flags_are_the_owners(kernel: Kernel, tmp_path: Path, has_examined: bool) -> None:
    """Before Linux 5.13 the kernel forwards the ioctl whoever the caller is."""
    kernel.call(wire.INIT, 0, init_body(flags=(1 << 64) - 1 if has_examined else (1 << 28) - 1))
    for name, owner, command in (("file", 0, "SET"), ("dir", 4444, "SET"), ("file", 0, "FSSET")):
        path = tmp_path / name
        os.chown(path, owner, -1)
        node, fd = kernel.lookup(os.fsencode(name)), os.open(path, os.O_RDONLY)
        try:
            number = ioctls.FS_IOC_SETFLAGS if command == "SET" else ioctls.FS_IOC_FSSETXATTR
            asked = ioctls.FS_IOC_GETFLAGS if command == "SET" else ioctls.FS_IOC_FSGETXATTR
            before = fcntl.ioctl(fd, asked, bytes(8 if command == "SET" else 28))
            changed = bytes([before[0] ^ (0x40 if command == "SET" else 0x80)]) + before[1:]  # nodump
            fh = 0 if path.is_dir() else wire.OPEN_OUT.unpack(kernel.call(wire.OPEN, node, wire.OPEN_IN.pack(0, 0)))[0]
            with subprocess.Popen(["sleep", "60"], user=4444, group=4444, extra_groups=[]) as caller:
                body = wire.IOCTL_IN.pack(fh, 0, number, 0, len(changed), 0) + changed
                request = bytearray(kernel.request(wire.IOCTL, node, body))
                request[24:36] = struct.pack("=III", 4444, 4444, caller.pid)
                kernel.send(bytes(request))
                caller.kill()
            ((error, _, _),) = kernel.answers()
            refused = owner == 0 and not has_examined
            assert (error in (errno.EACCES, errno.EPERM)) == refused
            assert (fcntl.ioctl(fd, asked, bytes(len(before))) == before) == refused
            if not refused:
                fcntl.ioctl(fd, number, before)
        finally:
            os.close(fd)


def test_create_applies_the_umask_and_the_group_in_the_request(kernel: Kernel, tmp_path: Path) -> None:
    group = wire.EXT_HEADER.pack(16, wire.EXT_GROUPS) + (1).to_bytes(4, "little") + (4321).to_bytes(4, "little")
    body = wire.CREATE_IN.pack(os.O_RDWR, stat.S_IFREG | 0o666, 0o027, 0) + b"new\0"
    kernel.call(wire.CREATE, 1, body + bytes(-len(body) % 8), group)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_unknown_opcodes_are_enosys(kernel: Kernel) -> None:
    for opcode in (0, 7, 19, 54, 4096, 0xFFFFFFFF):
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            kernel.call(opcode, 1, bytes(64))
        assert caught.value.errno == errno.ENOSYS


@pytest.mark.parametrize("name", [b"a/b", b"", b"..", b"/etc/passwd"])
def test_a_name_cannot_lead_out(kernel: Kernel, name: bytes) -> None:
    for opcode in (wire.UNLINK, wire.RMDIR):
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            kernel.call(opcode, 1, name + b"\0")
        assert caught.value.errno == errno.EINVAL


def test_every_short_request_is_answered(kernel: Kernel) -> None:
    for opcode, operation in OPERATIONS.items():
        for length in range(operation.least):
            kernel.send(kernel.request(opcode, 1, bytes(length)))
            ((number, unique, _),) = kernel.answers()
            assert (number, unique) == (errno.EINVAL, kernel.unique), (opcode, length)


def recorded(kernel: Kernel) -> list[bytes]:
    """One valid request of each kind, as the kernel sends them."""
    file, directory = kernel.lookup(b"file"), kernel.lookup(b"dir")
    fh = wire.OPEN_OUT.unpack(kernel.call(wire.OPEN, file, wire.OPEN_IN.pack(os.O_RDWR, 0)))[0]
    dh = wire.OPEN_OUT.unpack(kernel.call(wire.OPENDIR, directory, wire.OPEN_IN.pack(0, 0)))[0]
    bodies = [
        (wire.LOOKUP, 1, b"link\0"), (wire.FORGET, file, wire.FORGET_IN.pack(0)),
        (wire.GETATTR, file, wire.GETATTR_IN.pack(1, 0, fh)),
        (wire.SETATTR, file, wire.SETATTR_IN.pack(0x7F, 0, fh, 9, 0, 1, 2, 0, 3, 4, 0, 0o644, 0, 0, 0, 0)),
        (wire.READLINK, file, b""), (wire.SYMLINK, 1, b"s\0target\0"),
        (wire.MKNOD, 1, wire.MKNOD_IN.pack(stat.S_IFIFO | 0o600, 0, 0o22, 0) + b"fifo\0"),
        (wire.MKDIR, 1, wire.MKDIR_IN.pack(0o755, 0o22) + b"made\0"), (wire.UNLINK, 1, b"fifo\0"),
        (wire.RMDIR, 1, b"made\0"), (wire.RENAME, 1, wire.RENAME_IN.pack(directory) + b"s\0t\0"),
        (wire.RENAME2, 1, wire.RENAME2_IN.pack(directory, 2, 0) + b"link\0below\0"),
        (wire.LINK, 1, wire.LINK_IN.pack(file) + b"hard\0"), (wire.OPEN, file, wire.OPEN_IN.pack(os.O_RDWR, 0)),
        (wire.READ, file, wire.READ_IN.pack(fh, 0, 4096, 0, 0, 0, 0)),
        (wire.WRITE, file, wire.WRITE_IN.pack(fh, 0, 5, 4, 0, 0, 0) + b"hello"), (wire.STATFS, 1, b""),
        (wire.FLUSH, file, wire.FLUSH_IN.pack(fh, 0, 0, 77)), (wire.FSYNC, file, wire.FSYNC_IN.pack(fh, 1, 0)),
        (wire.SETXATTR, file, wire.SETXATTR_IN.pack(3, 0) + b"user.a\0abc"),
        (wire.GETXATTR, file, wire.GETXATTR_IN.pack(100, 0) + b"user.a\0"),
        (wire.LISTXATTR, file, wire.GETXATTR_IN.pack(0, 0)), (wire.REMOVEXATTR, file, b"user.a\0"),
        (wire.OPENDIR, directory, wire.OPEN_IN.pack(0, 0)),
        (wire.READDIR, directory, wire.READ_IN.pack(dh, 0, 4096, 0, 0, 0, 0)),
        (wire.READDIRPLUS, directory, wire.READ_IN.pack(dh, 0, 4096, 0, 0, 0, 0)),
        (wire.GETLK, file, wire.LK_IN.pack(fh, 1, 0, 9, 1, 5, 0, 0)),
        (wire.SETLK, file, wire.LK_IN.pack(fh, 1, 0, 9, 1, 5, 0, 0)),
        (wire.SETLKW, file, wire.LK_IN.pack(fh, 2, 0, 9, 0, 5, 0, 0)), (wire.INTERRUPT, 0, wire.INTERRUPT_IN.pack(4)),
        (wire.SETLK, file, wire.LK_IN.pack(fh, 1, 0, 0, 1, 5, wire.LK_FLOCK, 0)),
        (wire.CREATE, 1, wire.CREATE_IN.pack(os.O_RDWR, 0o100644, 0o22, 0) + b"created\0"),
        (wire.TMPFILE, 1, wire.CREATE_IN.pack(os.O_RDWR, 0o100644, 0o22, 0) + b"#1\0"),
        (wire.IOCTL, file, wire.IOCTL_IN.pack(fh, 0, 0x80086601, 0, 0, 8)),
        (wire.FALLOCATE, file, wire.FALLOCATE_IN.pack(fh, 0, 100, 1, 0)),
        (wire.LSEEK, file, wire.LSEEK_IN.pack(fh, 0, os.SEEK_DATA, 0)),
        (wire.COPY_FILE_RANGE, file, wire.COPY_FILE_RANGE_IN.pack(fh, 0, file, fh, 100, 5, 0)),
        (wire.COPY_FILE_RANGE_64, file, wire.COPY_FILE_RANGE_IN.pack(fh, 0, file, fh, 100, 5, 0)),
        (wire.STATX, file, wire.STATX_IN.pack(0, 0, 0, 0, 0xFFF)), (wire.ACCESS, file, bytes(8)),
        (wire.BATCH_FORGET, 0, wire.BATCH_FORGET_IN.pack(1, 0) + wire.FORGET_ONE.pack(file, 0)),
        (wire.RELEASEDIR, directory, wire.RELEASE_IN.pack(9999, 0, 0, 0)), (wire.INIT, 0, init_body()),
        (wire.RELEASE, file, wire.RELEASE_IN.pack(9999, 0, 0, 0)), (wire.SYNCFS, 1, bytes(8)),
        (wire.FSYNCDIR, directory, wire.FSYNC_IN.pack(dh, 0, 0)), (wire.DESTROY, 0, b""),
    ]  # fmt: skip
    return [kernel.request(*body) for body in bodies]


def mutated(request: bytes, chance: random.Random) -> bytes:
    """The request with a few bytes changed, truncated, extended, or with numbers pushed to their limits."""
    data = bytearray(request)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        kind = chance.randrange(6)
        at = chance.randrange(4, max(5, len(data)))
        if kind == 0:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            data[at : at + 8] = chance.choice((0, 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1)).to_bytes(8, "little")
        elif kind == 2 and len(data) > 48:
            del data[chance.randrange(40, len(data)) :]
        elif kind == 3:
            data += bytes(chance.randrange(256) for _ in range(chance.randrange(64)))
        elif kind == 4:
            data[4:8] = chance.randrange(60).to_bytes(4, "little")
        else:
            data[36:38] = chance.randrange(20).to_bytes(2, "little")
    return bytes(data)


def test_fuzz(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Malformed requests never end the session, each gets at most one answer, and none raises an
    unexpected exception in the server.
    """
    with standing_in(small_disk) as kernel:
        chance = random.Random(FUZZ_SEED)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, hard))
        caplog.set_level(logging.ERROR)
        requests = recorded(kernel)
        kernel.answers()
        deadline = time.monotonic() + FUZZ_SECONDS
        count = 0
        try:
            while time.monotonic() < deadline:
                request = mutated(chance.choice(requests), chance) if chance.random() < 0.9 else chance.choice(requests)
                kernel.send(request)
                for _, unique, _ in kernel.answers():
                    assert unique >= 0
                count += 1
                handles = kernel.session.core.files.handles
                if len(handles) > 500:
                    for fh in list(handles)[:400]:
                        kernel.session.core.files.release(fh)
                wrong = [record for record in caplog.records if "refused" not in record.getMessage()]
                assert not wrong, f"seed {FUZZ_SEED}, request {request.hex()}"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert count > 100 * FUZZ_SECONDS
        assert kernel.call(wire.STATFS, 1, b""), "it answers as before"


def test_a_temporary_file_is_never_the_directory(kernel: Kernel) -> None:
    """O_TMPFILE with O_PATH would open it; as a file without a name it would be closed when fds are scarce."""
    kernel.call(wire.TMPFILE, 1, wire.CREATE_IN.pack(os.O_RDWR | os.O_PATH, 0o100644, 0, 0) + b"#1\0")
    fds = kernel.session.core.fds
    for turn in range(GIVE_UPS):
        fds.give_up(turn)
    assert kernel.call(wire.STATFS, 1, b"")
    assert kernel.session.core.nodes.root.pinned


def test_read_only_is_the_servers_own(tmp_path: Path, kernel: Kernel) -> None:
    """Root in the client's namespace can remount the mount writable; the server still refuses."""
    kernel.session.core.options.read_only = True
    nodeid = kernel.lookup(b"file")
    refused = [
        (wire.MKDIR, 1, wire.MKDIR_IN.pack(0o755, 0) + b"new\0"),
        (wire.UNLINK, 1, b"file\0"),
        (wire.OPEN, nodeid, wire.OPEN_IN.pack(os.O_WRONLY, 0)),
        (wire.OPEN, nodeid, wire.OPEN_IN.pack(os.O_RDONLY | os.O_TRUNC, 0)),
        (wire.CREATE, 1, wire.CREATE_IN.pack(os.O_RDWR, 0o100644, 0, 0) + b"new\0"),
        (wire.SETATTR, nodeid, wire.SETATTR_IN.pack(wire.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o600, 0, 0, 0, 0)),
        (wire.SETXATTR, nodeid, wire.SETXATTR_IN.pack(1, 0) + b"user.a\0x"),
        (wire.RENAME, 1, wire.RENAME_IN.pack(1) + b"file\0other\0"),
    ]
    for request in refused:
        with pytest.raises(OSError, match="Read-only"):
            kernel.call(*request)
    assert (tmp_path / "file").read_bytes() == b"content"
    fh = wire.OPEN_OUT.unpack(kernel.call(wire.OPEN, nodeid, wire.OPEN_IN.pack(os.O_RDONLY, 0)))[0]
    assert kernel.call(wire.READ, nodeid, wire.READ_IN.pack(fh, 0, 100, 0, 0, 0, 0)) == b"content"
