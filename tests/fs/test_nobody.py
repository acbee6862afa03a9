"""``as_nobody``: whoever asks, only what every user may read is there, on any backing and with both bindings."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cntr.cntrfs.backing import SERVER
from cntr.cntrfs.nobody import NobodyCore
from cntr.cntrfs.node import generation_of
from cntr.cntrfs.options import Options
from cntr.linux import file_syscalls, syscalls
from testkit.servers import BINDINGS, missing, open_to_others, served
from tests.fs.syscalls import errno_of

from .actors import Actor, fork

pytestmark = pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing")

OWNER = 1000
MS_REMOUNT = 32
ROOT = Actor("root")
USER = Actor("owner", OWNER, OWNER, (42,))
SECRET, PUBLIC = b"secret", b"public"


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def _overlay(base: Path) -> None:
    for name in ("lower", "upper", "work"):
        (base / "layers" / name).mkdir(parents=True)
    layers = base / "layers"
    options = f"lowerdir={layers / 'lower'},upperdir={layers / 'upper'},workdir={layers / 'work'}"
    _mount("-t", "overlay", "overlay", "-o", options, base / "source")


BACKINGS: dict[str, Callable[[Path], None]] = {
    "ext4": lambda base: None,
    "tmpfs": lambda base: _mount("-t", "tmpfs", "tmpfs", base / "source"),
    "overlay": _overlay,
    "ramfs": lambda base: _mount("-t", "ramfs", "ramfs", base / "source"),
}


def _file(path: Path, mode: int, content: bytes, uid: int = 0, gid: int = 0) -> None:
    path.write_bytes(content)
    os.chown(path, uid, gid)
    path.chmod(mode)


def _fill(top: Path) -> None:
    """A tree like a host's; nobody may reach ``closed``, everything else is open to all."""
    top.chmod(0o755)
    _file(top / "shadow", 0o640, SECRET, gid=42)
    _file(top / "key", 0o600, SECRET, OWNER, OWNER)
    _file(top / "group", 0o060, SECRET, gid=OWNER)
    _file(top / "public", 0o644, PUBLIC)
    _file(top / "unreadable", 0o700, SECRET)
    (top / "link").symlink_to("public")
    (top / "home").mkdir()
    _file(top / "home" / "note", 0o644, SECRET, OWNER, OWNER)
    os.chown(top / "home", OWNER, OWNER)
    (top / "home").chmod(0o700)
    (top / "listed").mkdir()
    (top / "listed" / "name").write_bytes(SECRET)
    (top / "listed").chmod(0o744)
    (top / "searched").mkdir()
    _file(top / "searched" / "known", 0o644, PUBLIC)
    (top / "searched").chmod(0o711)
    shutil.copyfile(shutil.which("id") or "/usr/bin/id", top / "id")
    os.chown(top / "id", 0, 0)
    (top / "id").chmod(0o6755)


@pytest.fixture(params=BACKINGS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    for name in ("source", "mount"):
        (tmp_path / name).mkdir()
    open_to_others(tmp_path)
    try:
        BACKINGS[request.param](tmp_path)
        _fill(tmp_path / "source")
        yield tmp_path
    finally:
        _unmount(tmp_path / "source")


def _unmount(path: Path) -> None:
    """The server's processes hold it until the last of them has exited."""
    deadline = time.monotonic() + 20
    while os.path.ismount(path) and time.monotonic() < deadline:
        if subprocess.run(["umount", path], capture_output=True, check=False).returncode:
            time.sleep(0.02)


def _served(base: Path, binding: str, *words: str) -> contextlib.AbstractContextManager[Path]:
    return served(binding, base, ("-o", ",".join(("as_nobody", *words))))


def _look(top: Path) -> dict[str, object]:
    """What an actor gets to see; runs in the actor's process."""
    found: dict[str, object] = {}
    for name in ("shadow", "key", "group", "unreadable", "home/note", "listed/name"):
        found[name] = errno_of(lambda name=name: (top / name).read_bytes())
    for name in ("home", "searched"):
        found[f"list {name}"] = errno_of(lambda name=name: os.listdir(top / name))
    found["stat below home"] = errno_of(lambda: os.stat(top / "home" / "note"))
    found["listed"] = os.listdir(top / "listed")
    found["public"] = [(top / name).read_bytes() for name in ("public", "link", "searched/known")]
    found["owners"] = sorted({(os.lstat(top / name).st_uid, os.lstat(top / name).st_gid) for name in os.listdir(top)})
    found["id mode"] = stat.S_IMODE(os.stat(top / "id").st_mode)
    found["shadow mode"] = stat.S_IMODE(os.stat(top / "shadow").st_mode)
    found["access"] = [os.access(top / name, os.R_OK) for name in ("shadow", "key", "public")]
    return found


DENIED = errno.EACCES
EXPECTED = {
    "shadow": DENIED, "key": DENIED, "group": DENIED, "unreadable": DENIED, "home/note": DENIED, "listed/name": DENIED,
    "list home": DENIED, "list searched": DENIED, "stat below home": DENIED, "listed": ["name"],
    "public": [PUBLIC] * 3, "owners": [(65534, 65534)], "id mode": 0o755, "shadow mode": 0o640,
    "access": [False, False, True],
}  # fmt: skip


@pytest.mark.parametrize("words", [(), ("no_passthrough",), ("cache=none",)], ids=["", "served", "uncached"])
@pytest.mark.parametrize("binding", BINDINGS)
def test_only_the_bits_for_others_count(base: Path, binding: str, words: tuple[str, ...]) -> None:
    if binding == "pyfuse3" and "no_passthrough" in words:
        pytest.skip("pyfuse3 has no passthrough anyway")
    with _served(base, binding, *words) as top:
        for actor in (USER, ROOT, USER):
            seen = actor(_look, top)
            if binding == "pyfuse3":  # its listings come from what was looked at
                assert seen.pop("listed") == []
                seen["listed"] = ["name"]
            assert seen == EXPECTED, actor.name


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_lock_keeps_only_the_mounts_own_users_waiting(tmp_path: Path, binding: str) -> None:
    """A file that is only readable can be locked: a lock of nobody's must not block those who write."""
    for name in ("source", "mount"):
        (tmp_path / name).mkdir()
    _fill(tmp_path / "source")
    with _served(tmp_path, binding) as top, (top / "public").open("rb") as held, (top / "public").open("rb") as other:
        for lock in (fcntl.flock, lambda fd, how: fcntl.fcntl(fd, F_OFD_SETLK, _lock_of(how))):
            lock(held, fcntl.LOCK_EX | fcntl.LOCK_NB if lock is fcntl.flock else fcntl.LOCK_SH)
            with (tmp_path / "source/public").open("r+b") as owners:
                lock(owners, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert errno_of(lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)) == errno.EWOULDBLOCK


F_OFD_SETLK = 37


def _lock_of(how: int) -> bytes:
    """struct flock for the whole file: a read lock for LOCK_SH, else a write lock."""
    return struct.pack("hhqqi4x", fcntl.F_RDLCK if how == fcntl.LOCK_SH else fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def _xattrs(top: Path) -> tuple[list[str], list[int]]:
    asked = ("user.note", "trusted.note", "security.capability")
    return os.listxattr(top / "public"), [
        *(errno_of(lambda name=name: os.getxattr(top / "public", name)) for name in asked),
        errno_of(lambda: os.getxattr(top / "shadow", "user.note")),
    ]


CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw+ep


@pytest.mark.parametrize("binding", BINDINGS)
def test_extended_attributes(binding: str, base: Path) -> None:
    for name in ("public", "shadow"):
        for key, value in (("user.note", b"1"), ("trusted.note", b"2"), ("security.capability", CAPABILITY)):
            try:
                os.setxattr(base / "source" / name, key, value)
            except OSError as error:
                pytest.skip(f"no {key} there: {error.strerror}")
    gone = errno.ENODATA
    with _served(base, binding) as top:
        for actor in (ROOT, USER):
            names, errors = actor(_xattrs, top)
            assert [name for name in names if not name.startswith("security.")] == ["user.note"]
            assert "security.capability" not in names
            assert errors == [0, gone, gone, DENIED]


@pytest.mark.parametrize("binding", BINDINGS)
def test_named_users_of_an_acl_do_not_count(binding: str, base: Path) -> None:
    source = base / "source" / "key"
    if shutil.which("setfacl") is None:
        pytest.skip("setfacl is missing (Debian: acl)")
    done = subprocess.run(["setfacl", "-m", f"u:{OWNER}:r", source], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no ACLs there: {done.stderr.strip()}")
    with _served(base, binding) as top:
        assert USER(errno_of, (top / "key").read_bytes) == DENIED


@pytest.mark.parametrize("binding", BINDINGS)
def test_set_id_programs_are_dead(binding: str, base: Path) -> None:
    with _served(base, binding, "suid") as top:

        def effective() -> bytes:
            return subprocess.run([top / "id", "-u"], capture_output=True, check=True).stdout

        assert USER(effective) == b"%d\n" % OWNER


def _changes(top: Path) -> list[tuple[str, Callable[[], object]]]:
    public = top / "public"
    return [
        ("write", lambda: os.open(public, os.O_WRONLY)),
        ("truncate", lambda: os.truncate(public, 0)),
        ("open O_TRUNC", lambda: os.open(public, os.O_RDONLY | os.O_TRUNC)),
        ("create", lambda: os.open(top / "new", os.O_CREAT | os.O_WRONLY)),
        ("mkdir", lambda: os.mkdir(top / "new")),
        ("mknod", lambda: os.mkfifo(top / "new")),
        ("symlink", lambda: os.symlink("x", top / "new")),
        ("link", lambda: os.link(public, top / "new")),
        ("rename", lambda: os.rename(public, top / "new")),
        ("unlink", lambda: os.unlink(public)),
        ("rmdir", lambda: os.rmdir(top / "listed")),
        ("chmod", lambda: os.chmod(public, 0o666)),
        ("chown", lambda: os.chown(public, OWNER, OWNER)),
        ("utime", lambda: os.utime(public)),
        ("setxattr", lambda: os.setxattr(public, "user.x", b"x")),
        ("removexattr", lambda: os.removexattr(public, "user.x")),
    ]


def _tried(top: Path) -> dict[str, int]:
    return {name: errno_of(call) for name, call in _changes(top)}


@pytest.mark.parametrize("binding", BINDINGS)
def test_nothing_can_be_changed(binding: str, base: Path) -> None:
    with _served(base, binding) as top:
        for actor in (ROOT, USER):
            assert set(actor(_tried, top).values()) == {errno.EROFS}
        # Writable, by the client's root: the server still refuses.
        syscalls.mount(None, str(top), None, MS_REMOUNT)
        refused = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EOVERFLOW}
        assert set(ROOT(_tried, top).values()) <= refused
    assert (base / "source" / "public").read_bytes() == PUBLIC
    assert not (base / "source" / "new").exists()


@pytest.mark.parametrize("binding", BINDINGS)
def test_what_was_seen_before_a_directory_was_closed(binding: str, base: Path) -> None:
    """Entries in the kernel's cache are useless once a directory above them is closed, to root, too."""
    (base / "source" / "open").mkdir(mode=0o755)
    _file(base / "source" / "open" / "file", 0o644, PUBLIC)
    with _served(base, binding) as top:
        assert (top / "open" / "file").read_bytes() == PUBLIC
        (base / "source" / "open").chmod(0o700)
        deadline = time.monotonic() + 10
        while errno_of((top / "open" / "file").read_bytes) != DENIED:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert errno_of(lambda: os.stat(top / "open" / "file")) == DENIED


@pytest.mark.parametrize("binding", BINDINGS)
def test_few_fds(binding: str, base: Path) -> None:
    """Fds that were closed are opened again, even below directories that only capabilities may read."""
    for number in range(40):
        _file(base / "source" / "searched" / f"{number}", 0o644, PUBLIC)
    with _served(base, binding, "max_fds=4") as top:
        fds = [os.open(top / "searched" / f"{number}", os.O_RDONLY) for number in range(40)]
        try:
            assert {os.pread(fd, 10, 0) for fd in fds} == {PUBLIC}
            assert {os.fstat(fd).st_uid for fd in fds} == {65534}
        finally:
            for fd in fds:
                os.close(fd)


@pytest.mark.parametrize("binding", BINDINGS)
def test_no_way_in_by_handle(binding: str, base: Path) -> None:
    """name_to_handle_at(2) and open_by_handle_at(2) would bypass the directories."""
    note = file_syscalls.statx(file_syscalls.AT_FDCWD, bytes(base / "source" / "home" / "note"))
    generation = generation_of(note.btime * 1_000_000_000 + note.btime_ns)
    with _served(base, binding) as top:
        fd = os.open(top, os.O_RDONLY)
        try:
            handle = file_syscalls.name_to_handle(fd, b"public")
            ours = os.stat(top / "public").st_ino.to_bytes(8, "little")
            assert ours[4:] + ours[:4] in handle.data  # two 32-bit numbers, the upper one first
            forged = note.ino.to_bytes(8, "little")
            data = forged[4:] + forged[:4] + generation.to_bytes(4, "little")
            forged_handle = file_syscalls.Handle(handle.kind, data)
            assert errno_of(lambda: file_syscalls.open_by_handle(fd, forged_handle, os.O_RDONLY)) == errno.ESTALE
        finally:
            os.close(fd)


@pytest.mark.parametrize("is_other", [True, False])
def test_the_server_refuses_by_itself(is_other: bool, tmp_path: Path) -> None:
    """Without the kernel's check, and in a user namespace that maps its owner only, where no other id is available."""
    open_to_others(tmp_path)
    _fill(tmp_path)
    (tmp_path / "shadow").chmod(0o640)
    pid = fork()
    if pid == 0:
        status = 1
        try:
            if not is_other:
                syscalls.unshare(syscalls.CLONE_NEWUSER)
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text("0 0 1")
                Path("/proc/self/gid_map").write_text("0 0 1")
            core = NobodyCore(os.open(tmp_path, os.O_PATH), Options())
            assert core.credentials.is_other == is_other
            shadow, home = core.lookup(1, b"shadow")[0], core.lookup(1, b"home")[0]
            public = core.lookup(1, b"public")[0]
            assert core.files.read(core.open(public.nodeid, os.O_RDONLY, SERVER), 0, 10) == PUBLIC
            denied = [
                errno_of(lambda: core.open(shadow.nodeid, os.O_RDONLY, SERVER)),
                errno_of(lambda: core.opendir(home.nodeid)),
                errno_of(lambda: core.lookup(home.nodeid, b"note")),
                errno_of(lambda: core.lookup_entry(home.nodeid, b"note")),
            ]
            status = 0 if denied == [DENIED] * 4 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
