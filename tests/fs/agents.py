"""Processes that make the calls of the state machine: one per actor and tree, which live for a
whole run and keep files open.

A call is the name of a method of ``Calls`` and its arguments; the answer is ("value", comparable
value) or ("errno", number).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import mmap
import multiprocessing
import multiprocessing.connection
import os
import signal
import stat
import struct
from typing import Any

from . import syscalls
from .actors import Actor, fork

_FLOCK = struct.Struct("hhqqi4x")
Answer = tuple[str, Any]
ANSWER_SECONDS = 30.0


class Calls:
    """The calls. Paths are relative to the top of the tree; slots are the caller's names for open files."""

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}

    def begin(self, top: str) -> None:
        """Start afresh in the tree at TOP."""
        for fd in self.slots.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self.slots = {}
        os.umask(0o022)
        os.chdir(top)

    def leave(self) -> None:
        self.begin("/")

    # Open files

    def open(self, slot: int, path: str, flags: int, mode: int) -> str:
        self.slots[slot] = os.open(path, flags, mode)
        return stat.filemode(os.fstat(self.slots[slot]).st_mode)

    def open_at(self, slot: int, directory: int, name: str, flags: int, mode: int) -> str:
        self.slots[slot] = os.open(name, flags, mode, dir_fd=self.slots[directory])
        return stat.filemode(os.fstat(self.slots[slot]).st_mode)

    def reopen(self, slot: int, other: int, flags: int) -> None:
        self.slots[slot] = os.open(f"/proc/self/fd/{self.slots[other]}", flags)

    def close(self, slot: int) -> None:
        os.close(self.slots.pop(slot))

    def pread(self, slot: int, size: int, offset: int) -> bytes:
        return os.pread(self.slots[slot], size, offset)

    def pwrite(self, slot: int, data: bytes, offset: int) -> int:
        return os.pwrite(self.slots[slot], data, offset)

    def write(self, slot: int, data: bytes) -> tuple[int, int]:
        done = os.write(self.slots[slot], data)
        return done, os.lseek(self.slots[slot], 0, os.SEEK_CUR)

    def lseek(self, slot: int, offset: int, whence: int) -> int:
        return os.lseek(self.slots[slot], offset, whence)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self.slots[slot], size)

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self.slots[slot], mode)

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self.slots[slot], uid, gid)

    def futimens(self, slot: int, atime: int, mtime: int) -> None:
        os.utime(self.slots[slot], ns=(atime, mtime))

    def fsync(self, slot: int) -> None:
        os.fsync(self.slots[slot])

    def fallocate(self, slot: int, mode: int, offset: int, size: int) -> None:
        syscalls.fallocate(self.slots[slot], mode, offset, size)

    def copy(self, source: int, target: int, size: int, offset_in: int, offset_out: int) -> int:
        return os.copy_file_range(self.slots[source], self.slots[target], size, offset_in, offset_out)

    def store(self, slot: int, data: bytes, offset: int) -> bytes:
        """Write through a shared mapping, within the file's size, and read it back."""
        fd = self.slots[slot]
        size = os.fstat(fd).st_size
        if size < offset + len(data):
            raise OSError(errno.ENXIO, "past the end")  # touching it would be SIGBUS on both
        with mmap.mmap(fd, size) as view:
            view[offset : offset + len(data)] = data
            view.flush()
            return view[: min(size, 100)]

    def fstat(self, slot: int) -> tuple[int, ...]:
        found = os.fstat(self.slots[slot])
        return found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_size

    def fsetxattr(self, slot: int, name: str, value: bytes) -> None:
        os.setxattr(self.slots[slot], name, value)

    def getdents(self, slot: int) -> list[bytes]:
        os.lseek(self.slots[slot], 0, os.SEEK_SET)
        found = []
        while batch := syscalls.getdents(self.slots[slot]):
            found += [entry.name for entry in batch]
        return sorted(found)

    def name_open_file(self, slot: int, path: str) -> None:
        syscalls.link_fd(self.slots[slot], path)

    # Locks: never waiting, so that both trees answer immediately

    def flock(self, slot: int, kind: int) -> None:
        fcntl.flock(self.slots[slot], kind | fcntl.LOCK_NB)

    def lock(self, slot: int, open_file: bool, kind: int, start: int, length: int) -> None:
        """A POSIX lock, or one of the open file description."""
        command = fcntl.F_OFD_SETLK if open_file else fcntl.F_SETLK
        fcntl.fcntl(self.slots[slot], command, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))

    def is_locked(self, slot: int, open_file: bool, kind: int, start: int, length: int) -> bool:
        """Whether someone else's lock is in the way. (If there are several, which one is reported
        may differ, and so may its pid.)
        """
        command = fcntl.F_OFD_GETLK if open_file else fcntl.F_GETLK
        answer = fcntl.fcntl(self.slots[slot], command, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def lock_in_thread(self, slot: int, open_file: bool, kind: int, start: int, length: int) -> None:
        """All threads of a process are one owner."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(self.lock, slot, open_file, kind, start, length).result()

    def dup(self, slot: int, other: int) -> None:
        self.slots[slot] = os.dup(self.slots[other])

    def lock_in_child(self, slot: int, open_file: bool, kind: int, start: int, length: int) -> int:
        """In a forked child, which closes everything it inherited: its errno, or 0."""
        pid = fork()
        if pid == 0:
            status = 0
            try:
                self.lock(slot, open_file, kind, start, length)
                os.close(self.slots[slot])
            except OSError as error:
                status = error.errno or 255
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    # Names

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def mkdir_at(self, slot: int, name: str, mode: int) -> None:
        os.mkdir(name, mode, dir_fd=self.slots[slot])

    def mknod(self, path: str, mode: int, device: int) -> None:
        os.mknod(path, mode, device)

    def symlink(self, text: str, path: str) -> None:
        os.symlink(text, path)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def link(self, old: str, new: str) -> None:
        os.link(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def rename(self, old: str, new: str, flags: int) -> None:
        syscalls.renameat2(old, new, flags)

    # Attributes

    def umask(self, mask: int) -> None:
        os.umask(mask)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def chown(self, path: str, uid: int, gid: int, follow: bool) -> None:
        os.chown(path, uid, gid, follow_symlinks=follow)

    def truncate(self, path: str, size: int) -> None:
        os.truncate(path, size)

    def utimens(self, path: str, atime: int, mtime: int, follow: bool) -> None:
        os.utime(path, ns=(atime, mtime), follow_symlinks=follow)

    def touch(self, path: str) -> None:
        os.utime(path)

    def access(self, path: str, mode: int) -> None:
        syscalls.faccessat(path, mode, 0)

    def stat(self, path: str) -> tuple[int, ...]:
        found = os.stat(path)
        return found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_size

    def read(self, path: str) -> bytes:
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            return file.read(100000)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(path, name, value, flags)

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(path, name)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(path, name)

    def listxattr(self, path: str) -> list[str]:
        return sorted(os.listxattr(path))


class AgentLost(Exception):
    """The agent did not answer in time or exited: the filesystem hangs, or a call killed the agent."""


class Agent:
    """A process that has become ACTOR."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self._connection, theirs = multiprocessing.Pipe()
        self.pid = fork()
        if self.pid == 0:
            try:
                self._connection.close()
                syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
                _serve(actor, theirs)
            finally:
                os._exit(0)
        theirs.close()

    def __call__(self, call: str, *arguments: object) -> Answer:
        try:
            self._connection.send((call, arguments))
            if not self._connection.poll(ANSWER_SECONDS):
                raise AgentLost(f"{self.actor.name}: {call}{arguments} has not returned after {ANSWER_SECONDS:.0f} s")
            answer: Answer = self._connection.recv()
        except (EOFError, BrokenPipeError) as error:
            raise AgentLost(f"{self.actor.name}: ended in {call}{arguments}") from error
        if answer[0] == "failed":
            raise AssertionError(f"{self.actor.name}: {call}{arguments}: {answer[1]}")
        return answer

    def end(self) -> None:
        self._connection.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _serve(actor: Actor, connection: multiprocessing.connection.Connection) -> None:
    calls = Calls()
    actor.become()
    # The change of credentials cleared it; the process must not outlive the test.
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    while True:
        try:
            call, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer: Answer = ("value", getattr(calls, call)(*arguments))
        except OSError as error:
            answer = ("errno", error.errno)
        except Exception as error:
            answer = ("failed", repr(error))
        connection.send(answer)
