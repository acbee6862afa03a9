"""Open files outlive their names, modes and owners, and each open has its own flags."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from .. import syscalls
from ..actors import GID, OTHER, UID, USER
from ._tools import PAST_NS, child, equal, finished, make, make_directory, opened, raises


def check_unlinked_file_reads_and_writes(here: Path) -> None:
    make(here / "f", b"before")
    with opened(here / "f", os.O_RDWR) as fd:
        os.unlink(here / "f")
        equal(os.listdir(here), [], "nothing like .fuse_hidden may appear")
        equal(os.pread(fd, 10, 0), b"before")
        os.pwrite(fd, b"AFTER!", 0)
        equal(os.pread(fd, 10, 0), b"AFTER!")
        found = os.fstat(fd)
        equal((found.st_nlink, found.st_size), (0, 6))
    os.rmdir(here)
    os.mkdir(here)


def check_unlinked_file_takes_every_fd_call(here: Path) -> None:
    make(here / "f", b"x" * 100)
    with opened(here / "f", os.O_RDWR) as fd:
        os.unlink(here / "f")
        os.fchmod(fd, 0o604)
        os.fchown(fd, UID, GID)
        os.ftruncate(fd, 50)
        os.utime(fd, ns=(PAST_NS, PAST_NS + 5))
        found = os.fstat(fd)
        equal((stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_size), (0o604, UID, GID, 50))
        equal((found.st_atime_ns, found.st_mtime_ns), (PAST_NS, PAST_NS + 5))
        os.setxattr(fd, "user.k", b"v")
        equal(os.getxattr(fd, "user.k"), b"v")
        equal(os.listxattr(fd), ["user.k"])
        os.fsync(fd)
        os.fdatasync(fd)


def check_unlinked_file_opened_read_only_is_changed_through_fd(here: Path) -> None:
    """fchmod and futimens do not need a writable descriptor."""
    make(here / "f", b"x")
    with opened(here / "f", os.O_RDONLY) as fd:
        os.unlink(here / "f")
        os.fchmod(fd, 0o640)
        os.utime(fd, ns=(PAST_NS, PAST_NS))
        equal((os.fstat(fd).st_mode & 0o777, os.fstat(fd).st_mtime_ns), (0o640, PAST_NS))
        raises(errno.EINVAL, os.ftruncate, fd, 0)


def check_unlinked_file_reopened_through_proc(here: Path) -> None:
    make(here / "f", b"still here")
    with opened(here / "f", os.O_RDONLY) as fd:
        os.unlink(here / "f")
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as again:
            equal(os.read(again, 20), b"still here")
            os.pwrite(again, b"STILL", 0)
        equal(os.pread(fd, 5, 0), b"STILL")
        os.truncate(f"/proc/self/fd/{fd}", 2)
        equal(os.fstat(fd).st_size, 2)
        os.chmod(f"/proc/self/fd/{fd}", 0o611)
        equal(os.fstat(fd).st_mode & 0o777, 0o611)


def check_unlinked_directory_held_open(here: Path) -> None:
    make_directory(here / "d")
    with opened(here / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rmdir(here / "d")
        equal(os.fstat(fd).st_nlink, 0)
        raises(errno.ENOENT, syscalls.getdents, fd)
        os.fchmod(fd, 0o711)
        equal(os.fstat(fd).st_mode & 0o777, 0o711)
        raises(errno.ENOENT, os.mkdir, "x", dir_fd=fd)


def check_unlinked_by_another_process(here: Path) -> None:
    make(here / "f", b"x" * 10)
    with opened(here / "f", os.O_RDWR) as fd:
        finished(child(lambda: os.unlink(here / "f")))
        make(here / "f", b"impostor")
        equal(os.pread(fd, 20, 0), b"x" * 10)
        os.ftruncate(fd, 0)
        equal((here / "f").read_bytes(), b"impostor")


def check_unlinked_hundred_at_once(here: Path) -> None:
    descriptors = [os.open(here / f"{number}", os.O_CREAT | os.O_RDWR, 0o600) for number in range(100)]
    for number, fd in enumerate(descriptors):
        os.write(fd, str(number).encode())
        os.unlink(here / f"{number}")
    for number, fd in enumerate(descriptors):
        equal(os.pread(fd, 10, 0), str(number).encode())
        os.close(fd)


def check_flags_belong_to_each_open(here: Path) -> None:
    """A server that shares one backing descriptor among all opens fails one of these."""
    make(here / "f", b"0123456789")
    with (
        opened(here / "f", os.O_RDONLY) as reader,
        opened(here / "f", os.O_WRONLY) as writer,
        opened(here / "f", os.O_WRONLY | os.O_APPEND) as appender,
        opened(here / "f", os.O_RDWR) as both,
    ):
        raises(errno.EBADF, os.write, reader, b"x")
        raises(errno.EBADF, os.read, writer, 1)
        os.write(writer, b"AB")
        os.write(appender, b"!")
        os.pwrite(both, b"C", 2)
        equal(os.read(reader, 20), b"ABC3456789!")
        raises((errno.EBADF, errno.EINVAL), os.ftruncate, reader, 0)


def check_read_only_first_then_write(here: Path) -> None:
    make(here / "f", b"old")
    with opened(here / "f", os.O_RDONLY) as reader:
        equal(os.pread(reader, 10, 0), b"old")
        with opened(here / "f", os.O_WRONLY) as writer:
            os.pwrite(writer, b"new!", 0)
            equal(os.pread(reader, 10, 0), b"new!")
        equal(os.pread(reader, 10, 0), b"new!")


def check_append_appends(here: Path) -> None:
    make(here / "f", b"start")
    with opened(here / "f", os.O_RDWR | os.O_APPEND) as one, opened(here / "f", os.O_WRONLY | os.O_APPEND) as two:
        os.write(one, b"1")
        os.write(two, b"2")
        os.lseek(one, 0, os.SEEK_SET)
        os.write(one, b"3")
        equal(os.lseek(one, 0, os.SEEK_CUR), 8, "offset after an append")
        os.pwrite(one, b"4", 0)  # Linux appends whatever the offset (pwrite(2), BUGS)
    equal((here / "f").read_bytes(), b"start1234")


def check_append_by_many_processes_loses_nothing(here: Path) -> None:
    make(here / "log")

    def write(letter: int) -> None:
        with opened(here / "log", os.O_WRONLY | os.O_APPEND) as fd:
            for _ in range(100):
                os.write(fd, bytes([letter]) * 15 + b"\n")

    children = [child(lambda letter=65 + number: write(letter)) for number in range(4)]
    for pid in children:
        finished(pid)
    lines = (here / "log").read_bytes().splitlines()
    equal(len(lines), 400)
    assert all(len(line) == 15 and len(set(line)) == 1 for line in lines), "a torn line"


def check_append_switched_on_by_fcntl(here: Path) -> None:
    import fcntl

    make(here / "f", b"base")
    with opened(here / "f", os.O_WRONLY) as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.write(fd, b"+tail")
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"B")
    equal((here / "f").read_bytes(), b"Base+tail")


def check_truncate_on_open(here: Path) -> None:
    make(here / "f", b"old content")
    with opened(here / "f", os.O_RDONLY) as reader:
        with opened(here / "f", os.O_WRONLY | os.O_TRUNC):
            equal(os.fstat(reader).st_size, 0)
            equal(os.pread(reader, 10, 0), b"")
        equal(os.stat(here / "f").st_size, 0)
    os.chmod(here / "f", 0o444)
    (here / "f").write_bytes(b"root writes")
    raises(errno.EACCES, USER, os.open, here / "f", os.O_RDONLY | os.O_TRUNC)
    equal((here / "f").read_bytes(), b"root writes")


def check_descriptor_outlives_permission(here: Path) -> None:
    make(here / "f", b"x", 0o666)
    os.chmod(here, 0o777)

    def body() -> None:
        with opened(here / "f", os.O_RDWR) as fd:
            raises(errno.EPERM, os.fchmod, fd, 0)
            os.rename(here / "f", here / "g")
            equal(os.pread(fd, 1, 0), b"x")
            os.pwrite(fd, b"y", 0)
            os.ftruncate(fd, 5)

    USER(body)
    equal((here / "g").read_bytes(), b"y\0\0\0\0")


def check_descriptor_outlives_owner(here: Path) -> None:
    """A descriptor opened by root, used after dropping privileges: the credentials of the open count."""
    make(here / "f", b"x" * 10, 0o600)

    def body() -> bytes:
        fd = os.open(here / "f", os.O_RDWR)
        os.setgroups([])
        os.setresgid(GID, GID, GID)
        os.setresuid(UID, UID, UID)
        os.pwrite(fd, b"Y", 0)
        raises(errno.EACCES, os.open, here / "f", os.O_RDONLY)
        os.ftruncate(fd, 2)
        return os.pread(fd, 10, 0)

    from ..actors import Actor

    equal(Actor("root, then user")(body), b"Yx")


def check_path_descriptor(here: Path) -> None:
    make(here / "f", b"content", 0o600)
    with opened(here / "f", os.O_PATH) as fd:
        raises(errno.EBADF, os.read, fd, 1)
        raises(errno.EBADF, os.fchmod, fd, 0o644)
        equal(os.fstat(fd).st_size, 7)
        os.rename(here / "f", here / "g")
        with opened(f"/proc/self/fd/{fd}", os.O_RDONLY) as real:
            equal(os.read(real, 10), b"content")
        os.unlink(here / "g")
        equal(os.fstat(fd).st_nlink, 0)
    os.symlink("nowhere", here / "s")
    with opened(here / "s", os.O_PATH | os.O_NOFOLLOW) as fd:
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        equal(os.readlink("", dir_fd=fd), "nowhere")


def check_offset_is_shared_by_dup_and_fork(here: Path) -> None:
    make(here / "f")
    with opened(here / "f", os.O_RDWR) as fd:
        again = os.dup(fd)
        os.write(fd, b"one")
        os.write(again, b"two")
        finished(child(lambda: os.write(fd, b"six") and None))
        os.write(fd, b"!")
        os.close(again)
    equal((here / "f").read_bytes(), b"onetwosix!")


def check_exec_from_here(here: Path) -> None:
    import subprocess

    script = make(here / "script", b"#!/bin/sh\necho ran $1\n", 0o755)
    equal(subprocess.run([script, "well"], capture_output=True, check=True).stdout, b"ran well\n")
    with open("/bin/true", "rb") as source:
        make(here / "true", source.read(), 0o755)
    subprocess.run([here / "true"], check=True)
    os.chmod(here / "script", 0o644)
    raises(errno.EACCES, subprocess.run, [script])


def check_text_busy(here: Path) -> None:
    """A program that is open for writing cannot be run."""
    import subprocess

    with open("/bin/true", "rb") as source:
        program = make(here / "program", source.read(), 0o755)
    with opened(program, os.O_WRONLY):
        raises(errno.ETXTBSY, subprocess.run, [program])
    subprocess.run([program], check=True)


def check_running_program_keeps_its_content(here: Path) -> None:
    """However it is opened for truncation, even read-only: if the error came too late, the content would be lost."""
    import subprocess

    program = make(here / "sleep", Path("/bin/sleep").read_bytes(), 0o755)
    size = program.stat().st_size
    with subprocess.Popen([program, "60"]) as process:
        for flags in (os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC, os.O_RDWR):
            raises(errno.ETXTBSY, os.open, program, flags)
        raises(errno.ETXTBSY, os.truncate, program, 0)
        equal(program.stat().st_size, size)
        process.kill()
    os.close(os.open(program, os.O_RDONLY | os.O_TRUNC))
    equal(program.stat().st_size, 0)


def check_directory_opened_for_writing(here: Path) -> None:
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        raises(errno.EISDIR, os.open, here, flags)
    with opened(here, os.O_RDONLY) as fd:
        raises(errno.EISDIR, os.read, fd, 1)
        os.fsync(fd)


def check_three_hundred_open_files(here: Path) -> None:
    descriptors = []
    for number in range(300):
        fd = os.open(here / f"{number}", os.O_CREAT | os.O_RDWR, 0o600)
        os.write(fd, b"%d" % number)
        descriptors.append(fd)
    for number, fd in enumerate(descriptors):
        equal(os.pread(fd, 10, 0), b"%d" % number)
        os.close(fd)


def check_exclusive_open_by_two_users(here: Path) -> None:
    """Opens of one file by callers with different rights must not share them."""
    make(here / "f", b"secret", 0o640)
    os.chown(here / "f", UID, GID)
    with opened(here / "f", os.O_RDWR):
        raises(errno.EACCES, OTHER, os.open, here / "f", os.O_RDONLY)
        equal(USER(lambda: (here / "f").read_bytes()), b"secret")
        raises(errno.EACCES, OTHER, os.open, here / "f", os.O_WRONLY)


def check_noatime_needs_ownership(here: Path) -> None:
    make(here / "f", b"x", 0o666)
    with opened(here / "f", os.O_RDONLY | os.O_NOATIME) as fd:
        equal(os.read(fd, 1), b"x")
    raises(errno.EPERM, USER, os.open, here / "f", os.O_RDONLY | os.O_NOATIME)


def check_sync_flags(here: Path) -> None:
    for flag in (os.O_SYNC, os.O_DSYNC):
        with opened(here / "f", os.O_CREAT | os.O_RDWR | flag, 0o600) as fd:
            os.write(fd, b"durable")
            equal(os.pread(fd, 10, 0), b"durable")
    with opened(here / "f", os.O_RDWR) as fd:
        os.write(fd, b"x" * 8192)
        os.fsync(fd)
        os.fdatasync(fd)
        syscalls.sync_file_range(fd, 0, 8192, 7)
        syscalls.syncfs(fd)
