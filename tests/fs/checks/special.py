"""Sockets, FIFOs, devices, notification, file handles, submounts."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from testkit.waiting import wait_until

from .. import syscalls
from ..actors import OTHER, UID, USER
from ._tools import Unsupported, child, equal, finished, make, make_directory, opened, raises, unsupported_if


def _in_directory(directory: Path, function: object) -> None:
    """Socket addresses are limited to 107 bytes: bind and connect by relative names."""

    def body() -> None:
        os.chdir(directory)
        assert callable(function)
        function()

    finished(child(body))


def _listen(name: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen()
    return server


def check_unix_socket(here: Path) -> None:
    def talk() -> None:
        server = _listen("sock")
        assert stat.S_ISSOCK(os.stat("sock").st_mode)
        client = socket.socket(socket.AF_UNIX)
        client.connect("sock")
        client.sendall(b"hello")
        equal(server.accept()[0].recv(10), b"hello")
        raises(errno.EADDRINUSE, socket.socket(socket.AF_UNIX).bind, "sock")
        server.close()
        raises(errno.ECONNREFUSED, socket.socket(socket.AF_UNIX).connect, "sock")
        os.unlink("sock")
        raises(errno.ENOENT, socket.socket(socket.AF_UNIX).connect, "sock")

    _in_directory(here, talk)


def check_unix_socket_survives_rename_and_link(here: Path) -> None:
    def talk() -> None:
        server = _listen("sock")
        os.rename("sock", "moved")
        os.link("moved", "linked")
        for name in ("moved", "linked"):
            client = socket.socket(socket.AF_UNIX)
            client.connect(name)
            client.close()
        server.close()

    _in_directory(here, talk)


def check_unix_datagram_socket(here: Path) -> None:
    def talk() -> None:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        server.bind("server")
        client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        client.bind("client")
        client.sendto(b"ping", "server")
        equal(server.recvfrom(10), (b"ping", "client"))

    _in_directory(here, talk)


def check_unix_socket_permissions(here: Path) -> None:
    make_directory(here / "d", 0o777)

    def connect() -> None:
        os.chdir(here / "d")
        socket.socket(socket.AF_UNIX).connect("sock")

    def talk() -> None:
        server = _listen("sock")
        os.chown("sock", UID, UID)
        os.chmod("sock", 0o600)
        USER(connect)
        raises(errno.EACCES, OTHER, connect)
        server.close()

    _in_directory(here / "d", talk)


def check_unix_socket_from_the_backing_tree(here: Path, behind: Path) -> None:
    """A server listens on the host's path and a client connects through the mount, as with /run/*.sock."""
    ready, tell = os.pipe()
    stop_read, stop = os.pipe()

    def serve() -> None:
        os.close(stop)
        os.chdir(behind)
        server = _listen("sock")
        os.write(tell, b"x")
        os.read(stop_read, 1)
        server.close()

    pid = child(serve)
    os.read(ready, 1)

    def connect() -> None:
        os.close(stop)
        socket.socket(socket.AF_UNIX).connect("sock")

    try:
        _in_directory(here, connect)
    finally:
        for fd in (stop, stop_read, ready, tell):
            os.close(fd)
        finished(pid)


def check_fifo_carries_data(here: Path) -> None:
    os.mkfifo(here / "p")
    raises(errno.ENXIO, os.open, here / "p", os.O_WRONLY | os.O_NONBLOCK)

    def write() -> None:
        with opened(here / "p", os.O_WRONLY) as fd:
            os.write(fd, b"through")

    pid = child(write)
    with opened(here / "p", os.O_RDONLY) as fd:
        equal(os.read(fd, 20), b"through")
        finished(pid)
        equal(os.read(fd, 20), b"")


def check_fifo_by_two_names(here: Path) -> None:
    os.mkfifo(here / "p")
    os.link(here / "p", here / "q")
    with opened(here / "p", os.O_RDWR) as one, opened(here / "q", os.O_RDONLY | os.O_NONBLOCK) as two:
        os.write(one, b"same pipe")
        equal(os.read(two, 20), b"same pipe")


def check_device_works(here: Path) -> None:
    os.mknod(here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(here / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    try:
        fd = os.open(here / "null", os.O_RDWR)
    except PermissionError as error:
        raise Unsupported("device files (the mount has nodev)") from error
    equal((os.write(fd, b"gone"), os.read(fd, 10)), (4, b""))
    os.close(fd)
    with opened(here / "zero") as fd:
        equal(os.read(fd, 4), bytes(4))


def check_setuid_program_runs_as_its_owner(here: Path) -> None:
    import shutil

    program = here / "id"
    shutil.copyfile("/usr/bin/id", program)
    os.chown(program, UID, UID)
    os.chmod(program, 0o4755)

    def identity() -> int:
        import subprocess

        return int(subprocess.run([program, "-u"], capture_output=True, check=True).stdout)

    seen = OTHER(identity)
    if seen == OTHER.uid and os.statvfs(here).f_flag & os.ST_NOSUID:
        raise Unsupported("setuid programs (the mount has nosuid)")
    equal(seen, UID)


def check_inotify_of_own_changes(here: Path) -> None:
    watch = syscalls.Inotify(
        here,
        syscalls.IN_CREATE | syscalls.IN_DELETE | syscalls.IN_MOVED_FROM | syscalls.IN_MOVED_TO | syscalls.IN_MODIFY,
    )
    try:
        make(here / "f", b"x")
        os.rename(here / "f", here / "g")
        os.unlink(here / "g")
        seen = {(mask, name) for mask, name in watch.events()}
    finally:
        watch.close()
    wanted = {
        (syscalls.IN_CREATE, b"f"),
        (syscalls.IN_MODIFY, b"f"),
        (syscalls.IN_MOVED_FROM, b"f"),
        (syscalls.IN_MOVED_TO, b"g"),
        (syscalls.IN_DELETE, b"g"),
    }
    assert wanted <= seen, f"missing events: {wanted - seen}"


def check_inotify_at_the_backing_tree(here: Path, behind: Path) -> None:
    """A watch on the host sees what is done through the mount."""
    watch = syscalls.Inotify(behind, syscalls.IN_CREATE | syscalls.IN_DELETE | syscalls.IN_MODIFY)
    try:
        make(here / "f", b"x")
        with opened(here / "f", os.O_WRONLY) as fd:
            os.write(fd, b"changed")
            os.fsync(fd)
        os.unlink(here / "f")
        seen = {(mask, name) for mask, name in watch.events()}
    finally:
        watch.close()
    assert {(syscalls.IN_CREATE, b"f"), (syscalls.IN_MODIFY, b"f"), (syscalls.IN_DELETE, b"f")} <= seen, seen


def check_inotify_of_backing_changes(here: Path, behind: Path) -> None:
    """A watch inside the mount sees what is done on the host."""
    watch = syscalls.Inotify(here, syscalls.IN_CREATE | syscalls.IN_DELETE)
    seen: set[bytes] = set()

    def look() -> bool:
        seen.update(name for _, name in watch.events())
        return b"f" in seen

    try:
        make(behind / "f", b"x")
        wait_until(look, "an event for a file made behind the mount", 3, passing=OSError)
    finally:
        watch.close()


def _handle(path: Path) -> bytes:
    handle = unsupported_if((errno.EOPNOTSUPP,), "file handles", syscalls.name_to_handle, path)
    assert isinstance(handle, bytes)
    return handle


def check_file_handle_opens_the_file(here: Path) -> None:
    """open_by_handle_at, which NFS export needs (xfstests generic/426)."""
    make(here / "f", b"content")
    make_directory(here / "d")
    handle, directory = _handle(here / "f"), _handle(here / "d")
    with opened(here, os.O_RDONLY | os.O_DIRECTORY) as mount:
        fd = syscalls.open_by_handle(mount, handle, os.O_RDWR)
        equal(os.read(fd, 10), b"content")
        os.close(fd)
        os.rename(here / "f", here / "d" / "g")
        fd = syscalls.open_by_handle(mount, handle, os.O_RDONLY)
        equal(os.read(fd, 10), b"content")
        os.close(fd)
        fd = syscalls.open_by_handle(mount, directory, os.O_RDONLY | os.O_DIRECTORY)
        equal(os.listdir(fd), ["g"])
        os.close(fd)


def check_file_handle_of_removed_file_is_stale(here: Path) -> None:
    make(here / "f", b"content")
    handle = _handle(here / "f")
    with opened(here, os.O_RDONLY | os.O_DIRECTORY) as mount:
        os.close(syscalls.open_by_handle(mount, handle, os.O_RDONLY))
        os.unlink(here / "f")
        for number in range(20):
            make(here / f"new{number}", b"impostor")  # likely to reuse the inode number
        raises(errno.ESTALE, syscalls.open_by_handle, mount, handle, os.O_RDONLY)


def check_file_handle_after_the_node_was_forgotten(here: Path) -> None:
    make(here / "f", b"content")
    handle = _handle(here / "f")
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("2")
    with opened(here, os.O_RDONLY | os.O_DIRECTORY) as mount:
        fd = syscalls.open_by_handle(mount, handle, os.O_RDONLY)
        equal(os.read(fd, 10), b"content")
        os.close(fd)


def check_handles_are_refused_to_users(here: Path) -> None:
    make(here / "f", b"secret", 0o600)
    handle = _handle(here / "f")

    def attempt() -> int:
        with opened(here, os.O_RDONLY | os.O_DIRECTORY) as mount:
            return syscalls.open_by_handle(mount, handle, os.O_RDONLY)

    raises(errno.EPERM, USER, attempt)
