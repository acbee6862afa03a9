"""Allocation, holes, copies between files, inode flags."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from .. import syscalls
from ..actors import USER
from ._tools import NO_SUCH_OPERATION, equal, equal_mode, make, opened, raises, unsupported_if

CREATE = os.O_CREAT | os.O_RDWR
KEEP, PUNCH = syscalls.FALLOC_FL_KEEP_SIZE, syscalls.FALLOC_FL_PUNCH_HOLE


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    unsupported_if(NO_SUCH_OPERATION, f"fallocate mode {mode:#x}", syscalls.fallocate, fd, mode, offset, length)


def check_fallocate_grows(here: Path) -> None:
    with opened(here / "f", CREATE) as fd:
        _fallocate(fd, 0, 0, 1 << 20)
        found = os.fstat(fd)
        equal(found.st_size, 1 << 20)
        assert found.st_blocks >= 2048, "allocated"
        equal(os.pread(fd, 100, 500000), bytes(100))
        os.pwrite(fd, b"kept", 0)
        _fallocate(fd, 0, 0, 4096)
        equal((os.fstat(fd).st_size, os.pread(fd, 4, 0)), (1 << 20, b"kept"))


def check_fallocate_keeps_size(here: Path) -> None:
    with opened(here / "f", CREATE) as fd:
        os.write(fd, b"x")
        _fallocate(fd, KEEP, 0, 1 << 20)
        found = os.fstat(fd)
        equal(found.st_size, 1)
        assert found.st_blocks >= 2048, "allocated past the end"


def check_posix_fallocate(here: Path) -> None:
    """If the kernel lacks fallocate, glibc writes one byte to each block: the result must be the same."""
    with opened(here / "f", CREATE) as fd:
        os.write(fd, b"begin")
        os.posix_fallocate(fd, 0, 100000)
        equal(os.fstat(fd).st_size, 100000)
        equal(os.pread(fd, 6, 0), b"begin\0")


def check_punch_hole(here: Path) -> None:
    with opened(here / "f", CREATE) as fd:
        os.write(fd, b"x" * (1 << 20))
        os.fsync(fd)
        before = os.fstat(fd).st_blocks
        _fallocate(fd, KEEP | PUNCH, 65536, 65536 * 8)
        found = os.fstat(fd)
        equal(found.st_size, 1 << 20)
        assert found.st_blocks <= before - 1000, (before, found.st_blocks)
        data = os.pread(fd, 1 << 20, 0)
        equal(data, b"x" * 65536 + bytes(65536 * 8) + b"x" * ((1 << 20) - 65536 * 9))
        raises((errno.EOPNOTSUPP, errno.EINVAL), syscalls.fallocate, fd, PUNCH, 0, 4096)


def check_zero_range(here: Path) -> None:
    with opened(here / "f", CREATE) as fd:
        os.write(fd, b"x" * 100000)
        _fallocate(fd, syscalls.FALLOC_FL_ZERO_RANGE, 1000, 50000)
        equal(os.pread(fd, 100000, 0), b"x" * 1000 + bytes(50000) + b"x" * 49000)
        _fallocate(fd, syscalls.FALLOC_FL_ZERO_RANGE, 90000, 20000)
        equal(os.fstat(fd).st_size, 110000)


def check_collapse_and_insert_range(here: Path) -> None:
    block = os.stat(here).st_blksize
    data = b"".join(bytes([65 + number]) * block for number in range(8))
    with opened(here / "f", CREATE) as fd:
        os.write(fd, data)
        _fallocate(fd, syscalls.FALLOC_FL_COLLAPSE_RANGE, block, 2 * block)
        equal(os.pread(fd, 10 * block, 0), data[:block] + data[3 * block :])
        _fallocate(fd, syscalls.FALLOC_FL_INSERT_RANGE, block, block)
        equal(os.pread(fd, 10 * block, 0), data[:block] + bytes(block) + data[3 * block :])


def check_fallocate_errors(here: Path) -> None:
    make(here / "f", b"x")
    with opened(here / "f", os.O_RDWR) as fd:
        _fallocate(fd, 0, 0, 1)
        raises(errno.EINVAL, syscalls.fallocate, fd, 0, 0, 0)
        raises(errno.EINVAL, syscalls.fallocate, fd, 0, -1, 10)
        raises(errno.EFBIG, syscalls.fallocate, fd, 0, (1 << 63) - 4096, 4095)
    with opened(here / "f", os.O_RDONLY) as fd:
        raises(errno.EBADF, syscalls.fallocate, fd, 0, 0, 10)


def check_fallocate_by_another_clears_suid(here: Path) -> None:
    make(here / "f", b"x" * 8192, 0o6777)

    def change() -> None:
        with opened(here / "f", os.O_RDWR) as fd:
            _fallocate(fd, KEEP | PUNCH, 0, 4096)

    USER(change)
    equal_mode(here / "f", 0o777)


def check_seek_data_and_hole(here: Path) -> None:
    block = 1 << 20
    with opened(here / "f", CREATE) as fd:
        os.pwrite(fd, b"d" * block, block)
        os.pwrite(fd, b"e" * block, 4 * block)
        os.ftruncate(fd, 6 * block)
        os.fsync(fd)
        seek = lambda at, whence: os.lseek(fd, at, whence)  # noqa: E731
        data = unsupported_if((errno.EINVAL,), "SEEK_DATA", seek, 0, os.SEEK_DATA)
        equal(data, block, "first data")
        equal(seek(block, os.SEEK_HOLE), 2 * block, "hole after it")
        equal(seek(2 * block, os.SEEK_DATA), 4 * block, "second data")
        equal(seek(0, os.SEEK_HOLE), 0, "a hole at the start")
        equal(seek(5 * block, os.SEEK_HOLE), 5 * block, "hole at the end")
        raises(errno.ENXIO, seek, 5 * block + 1, os.SEEK_DATA)
        raises(errno.ENXIO, seek, 6 * block, os.SEEK_HOLE)
        equal(seek(4 * block + 5, os.SEEK_DATA), 4 * block + 5)
        equal(seek(0, os.SEEK_CUR), 4 * block + 5, "the offset moved")


def check_what_was_just_written_is_no_hole(here: Path) -> None:
    """Programs that copy sparse files by SEEK_DATA must find it, whether it is on the disk or not."""
    block = 1 << 20
    with opened(here / "f", CREATE) as fd, opened(here / "f") as reader:
        os.ftruncate(fd, 4 * block)
        os.pwrite(fd, b"d" * block, block)
        found = unsupported_if((errno.EINVAL,), "SEEK_DATA", os.lseek, reader, 0, os.SEEK_DATA)
        assert found <= block, found
        assert os.lseek(reader, block, os.SEEK_DATA) == block
        assert os.lseek(reader, block, os.SEEK_HOLE) >= 2 * block


def check_copy_file_range(here: Path) -> None:
    data = os.urandom(300000)
    make(here / "in", data)
    with opened(here / "in") as source, opened(here / "out", CREATE) as target:
        done = 0
        while done < len(data):
            count = os.copy_file_range(source, target, len(data) - done, done, done)
            assert count > 0
            done += count
        equal((here / "out").read_bytes(), data)
        equal(os.copy_file_range(source, target, 100, len(data)), 0, "at the end of the source")
        equal(os.copy_file_range(source, target, 1000, 5, 400000), 1000)
        equal(os.pread(target, 2000, 399999), b"\0" + data[5:1005])
        raises(errno.EBADF, os.copy_file_range, target, source, 10)
    with opened(here / "out", os.O_RDWR) as fd:
        raises(errno.EINVAL, os.copy_file_range, fd, fd, 100, 0, 50)
        equal(os.copy_file_range(fd, fd, 100, 0, 1000), 100)


def check_copy_file_range_to_and_from_elsewhere(here: Path, behind: Path) -> None:
    """Between the mount and its backing filesystem: either it works, or cp copies after EXDEV."""
    make(here / "in", b"content" * 100)
    with opened(here / "in") as source, opened(behind / "out", CREATE) as target:
        try:
            equal(os.copy_file_range(source, target, 700), 700)
        except OSError as error:
            equal(error.errno, errno.EXDEV)
            return
    equal((behind / "out").read_bytes(), b"content" * 100)


def check_reflink_is_answered(here: Path) -> None:
    """cp --reflink=auto must get an error that it understands if there are no reflinks."""
    make(here / "in", b"x" * 8192)
    with opened(here / "in") as source, opened(here / "out", CREATE) as target:
        try:
            fcntl.ioctl(target, syscalls.FICLONE, source)
        except OSError as error:
            assert error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV, errno.ENOTTY), error
        else:
            equal((here / "out").read_bytes(), b"x" * 8192)


def _flags(fd: int) -> int:
    buffer = fcntl.ioctl(fd, syscalls.FS_IOC_GETFLAGS, struct.pack("Q", 0))
    return int(struct.unpack("I", buffer[:4])[0])


def _get_flags(fd: int) -> int:
    number = unsupported_if((*NO_SUCH_OPERATION, errno.EINVAL), "FS_IOC_GETFLAGS", _flags, fd)
    assert isinstance(number, int)
    return number


def check_inode_flags(here: Path) -> None:
    make(here / "f", b"x")
    with opened(here / "f") as fd:
        before = _get_flags(fd)
        fcntl.ioctl(fd, syscalls.FS_IOC_SETFLAGS, struct.pack("Q", before | syscalls.FS_NODUMP_FL))
        equal(_get_flags(fd), before | syscalls.FS_NODUMP_FL)
        fcntl.ioctl(fd, syscalls.FS_IOC_SETFLAGS, struct.pack("Q", before))
        equal(_get_flags(fd), before)


def check_immutable_and_append_only(here: Path) -> None:
    make(here / "f", b"x")
    with opened(here / "f") as fd:
        before = _get_flags(fd)
        try:
            fcntl.ioctl(fd, syscalls.FS_IOC_SETFLAGS, struct.pack("Q", before | syscalls.FS_IMMUTABLE_FL))
            for call in (os.unlink, lambda path: os.chmod(path, 0), lambda path: os.rename(path, here / "g")):
                raises(errno.EPERM, call, here / "f")
            raises((errno.EPERM, errno.EACCES), os.open, here / "f", os.O_WRONLY)
            raises(errno.EPERM, os.link, here / "f", here / "l")
            fcntl.ioctl(fd, syscalls.FS_IOC_SETFLAGS, struct.pack("Q", before | syscalls.FS_APPEND_FL))
            raises(errno.EPERM, os.open, here / "f", os.O_WRONLY)
            raises(errno.EPERM, os.truncate, here / "f", 0)
            with opened(here / "f", os.O_WRONLY | os.O_APPEND) as appender:
                os.write(appender, b"y")
        finally:
            fcntl.ioctl(fd, syscalls.FS_IOC_SETFLAGS, struct.pack("Q", before))
    equal((here / "f").read_bytes(), b"xy")


def check_flags_need_privilege(here: Path) -> None:
    make(here / "f", b"x", 0o644)

    def set_flag() -> None:
        with opened(here / "f") as fd:
            before = _get_flags(fd)
            fcntl.ioctl(fd, syscalls.FS_IOC_SETFLAGS, struct.pack("Q", before | syscalls.FS_NODUMP_FL))

    raises((errno.EACCES, errno.EPERM), USER, set_flag)


def check_extended_flags(here: Path) -> None:
    make(here / "f")
    with opened(here / "f") as fd:
        get = lambda: fcntl.ioctl(fd, syscalls.FS_IOC_FSGETXATTR, bytes(28))  # noqa: E731
        raw = unsupported_if((*NO_SUCH_OPERATION, errno.EINVAL), "FS_IOC_FSGETXATTR", get)
        (flags,) = struct.unpack_from("I", raw)
        nodump = 0x80
        fcntl.ioctl(fd, syscalls.FS_IOC_FSSETXATTR, struct.pack("I", flags | nodump) + raw[4:])
        equal(struct.unpack_from("I", get())[0], flags | nodump)


def check_statx_attributes_show_flags(here: Path) -> None:
    make(here / "f")
    with opened(here / "f") as fd:
        before = _get_flags(fd)
        fcntl.ioctl(fd, syscalls.FS_IOC_SETFLAGS, struct.pack("Q", before | syscalls.FS_NODUMP_FL))
    found = syscalls.statx(here / "f")
    assert found.attributes & syscalls.FS_NODUMP_FL, "STATX_ATTR_NODUMP"
