"""Load, races and calls that no filesystem answers: nothing may hang, return torn data, or end the mount."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import signal
import time
from pathlib import Path

from .. import syscalls
from ._tools import child, equal, finished, in_threads, make, names, opened, raises


def check_odd_calls_get_an_errno(here: Path) -> None:
    make(here / "f", b"x")
    with opened(here / "f", os.O_RDWR) as fd, opened(here, os.O_RDONLY | os.O_DIRECTORY) as directory:
        for target in (fd, directory):
            for request in (0x5401, 0xDEADBEEF, 0x1, 0x80047601, 0xC0109428):
                with contextlib.suppress(OSError):
                    fcntl.ioctl(target, request, bytes(256))
            for whence in (5, 77):
                raises(errno.EINVAL, os.lseek, target, 0, whence)
            for mode in (0x40, 0x100, 0xFF):
                with contextlib.suppress(OSError):
                    syscalls.fallocate(target, mode, 0, 4096)
            with contextlib.suppress(OSError):
                fcntl.fcntl(target, fcntl.F_SETLEASE, fcntl.F_RDLCK)
                fcntl.fcntl(target, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        for name in ("f/x", "f/", "missing/x", "f/../f/x"):
            raises((errno.ENOTDIR, errno.ENOENT), os.stat, f"{here}/{name}")
    with contextlib.suppress(OSError):
        os.mknod(here / "odd", 0o150000)
    equal((here / "f").read_bytes(), b"x")


def check_threads_making_and_removing(here: Path) -> None:
    def work(number: int) -> None:
        base = here / f"t{number}"
        os.mkdir(base)
        for turn in range(40):
            path = base / f"{turn}"
            make(path, b"%d" % turn)
            os.rename(path, base / "moved")
            equal((base / "moved").read_bytes(), b"%d" % turn)
            os.unlink(base / "moved")
        os.rmdir(base)

    in_threads(8, work)
    equal(names(here), set())


def check_processes_fighting_for_the_same_names(here: Path) -> None:
    """Errors of a lost race are fine; any others are not."""
    lost = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.ESTALE, errno.EINVAL)

    def fight(seed: int) -> None:
        rng = random.Random(seed)
        paths = [here / name for name in "abc"]
        actions = (
            lambda path: os.mkdir(path),
            lambda path: os.rmdir(path),
            lambda path: os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600)),
            lambda path: os.unlink(path),
            lambda path: os.rename(path, rng.choice(paths)),
            lambda path: os.link(path, rng.choice(paths)),
            lambda path: os.symlink("a", path),
            lambda path: os.stat(path),
            lambda path: os.listdir(path),
        )
        for _ in range(400):
            try:
                rng.choice(actions)(rng.choice(paths))
            except OSError as error:
                if error.errno not in (*lost, errno.ELOOP, errno.EPERM):
                    raise

    children = [child(lambda seed=seed: fight(seed)) for seed in range(4)]
    for pid in children:
        finished(pid)
    for name in names(here):
        os.lstat(here / name)


def check_killed_in_the_middle(here: Path) -> None:
    """SIGKILL during reads and writes leaves no stuck process and no broken filesystem."""

    def busy() -> None:
        with opened(here / f"f{os.getpid()}", os.O_CREAT | os.O_RDWR, 0o600) as fd:
            while True:
                os.pwrite(fd, b"x" * 1048576, 0)
                os.pread(fd, 1048576, 0)
                os.stat(here)

    children = [child(busy) for _ in range(4)]
    time.sleep(0.3)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        finished(pid, -signal.SIGKILL)
    make(here / "alive", b"1")
    equal((here / "alive").read_bytes(), b"1")


def check_signals_during_calls(here: Path) -> None:
    """FUSE turns a signal into an INTERRUPT request: regular files must not return EINTR or short
    counts because of it.
    """

    def busy() -> None:
        hits = 0

        def handler(number: int, frame: object) -> None:
            nonlocal hits
            hits += 1

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        data = os.urandom(262144)
        try:
            for number in range(60):
                path = here / f"{number % 7}"
                with opened(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600) as fd:
                    equal(os.pwrite(fd, data, 0), len(data), "short write")
                    equal(os.pread(fd, len(data), 0), data)
                os.rename(path, here / "x")
                os.rename(here / "x", path)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert hits > 0

    finished(child(busy))


def check_deep_tree(here: Path) -> None:
    path = here
    for level in range(60):
        path = path / f"d{level}"
        os.mkdir(path)
    make(path / "f", b"bottom")
    found = [files for _, _, files in os.walk(here) if files]
    equal(found, [["f"]])


def check_wide_tree(here: Path) -> None:
    for number in range(40):
        os.mkdir(here / f"{number}")
        for inner in range(20):
            make(here / f"{number}" / f"{inner}", b"%d" % inner)
    seen = sum(len(files) for _, _, files in os.walk(here))
    equal(seen, 800)
    import shutil

    for number in range(40):
        shutil.rmtree(here / f"{number}")
    equal(names(here), set())


def check_walk_during_removal(here: Path) -> None:
    """Entries disappear between readdir and lookup."""
    for number in range(500):
        make(here / f"{number}")

    def remove() -> None:
        for number in range(500):
            os.unlink(here / f"{number}")

    pid = child(remove)
    for _ in range(30):
        for entry in os.scandir(here):
            with contextlib.suppress(FileNotFoundError):
                entry.stat(follow_symlinks=False)
    finished(pid)
    equal(names(here), set())


def check_programs_of_every_day(here: Path) -> None:
    """tar, cp -a and an rsync-like comparison: the resulting tree equals the original."""
    import subprocess

    source = here / "source"
    os.makedirs(source / "sub" / "empty")
    make(source / "file", os.urandom(50000), 0o640)
    make(source / "sub" / "program", b"#!/bin/sh\n", 0o4755)
    os.symlink("../file", source / "sub" / "link")
    os.link(source / "file", source / "sub" / "hard")
    os.mkfifo(source / "sub" / "fifo")
    os.chown(source / "file", 1234, 4321)
    os.setxattr(source / "file", "user.kept", b"yes")
    os.utime(source / "sub", ns=(10**18, 10**18 + 7))
    subprocess.run(["cp", "-a", source, here / "copied"], check=True)
    (here / "unpacked").mkdir()
    pack = subprocess.run(["tar", "--xattrs", "-C", source, "-cf", "-", "."], capture_output=True, check=True)
    subprocess.run(["tar", "--xattrs", "-C", here / "unpacked", "-xpf", "-"], input=pack.stdout, check=True)

    def picture(top: Path) -> dict[str, tuple[object, ...]]:
        found = {}
        for directory, _, files in os.walk(top):
            for name in (".", *files):
                path = os.path.join(directory, name)
                info = os.lstat(path)
                linked = info.st_nlink if name != "." else 0
                size = info.st_size if name != "." else 0
                mtime = info.st_mtime_ns // 10**9  # tar's default format stores whole seconds
                found[os.path.relpath(path, top)] = (info.st_mode, info.st_uid, info.st_gid, size, linked, mtime)
        return found

    equal(picture(here / "copied"), picture(source), "cp -a")
    equal(picture(here / "unpacked"), picture(source), "tar")
    equal(os.getxattr(here / "copied" / "file", "user.kept"), b"yes")
    equal((here / "unpacked" / "sub" / "hard").read_bytes(), (source / "file").read_bytes())


def check_database(here: Path) -> None:
    """SQLite: locks, fsync, rollback journal, and WAL with its shared mapping."""
    import sqlite3

    for mode in ("delete", "wal"):
        path = here / f"{mode}.db"
        with (
            contextlib.closing(sqlite3.connect(path)) as one,
            contextlib.closing(sqlite3.connect(path, timeout=5)) as two,
        ):
            equal(one.execute(f"pragma journal_mode={mode}").fetchone()[0], mode)
            one.execute("create table t (n integer)")
            one.commit()
            for number in range(50):
                (one if number % 2 else two).execute("insert into t values (?)", (number,))
                (one if number % 2 else two).commit()
            equal(two.execute("select count(*), sum(n) from t").fetchone(), (50, 1225))
            equal(one.execute("pragma integrity_check").fetchone()[0], "ok")
