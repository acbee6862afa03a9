"""Real programs on a plain directory and on CntrFS with both bindings: the same result, and their
own checks pass.

A missing program is a skip that names its Debian package. Each gets its own empty directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from testkit.servers import BINDINGS, missing, place

pytestmark = [
    pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing"),
    pytest.mark.timeout(300),
]
SECONDS = 120


def needs(program: str, package: str) -> str:
    """The path of PROGRAM, or a skip."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is missing (Debian: {package})")
    return found


def run(*words: str | Path, where: Path, user: int = 0, fails: bool = False, **variables: str) -> str:
    """The program's output; as another user if one is given."""
    environment = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "HOME": str(where), "LC_ALL": "C", **variables}
    ids = {"user": user, "group": user, "extra_groups": ()} if user else {}
    done = subprocess.run(
        words, cwd=where, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS, **ids
    )  # type: ignore[call-overload]
    assert fails or not done.returncode, f"{words[0]}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return str(done.stdout)


def a_tree(top: Path) -> Path:
    """Hard links, a sparse file, modes, links, attributes and an ACL."""
    top.mkdir()
    (top / "file").write_text("text\n" * 1000)
    os.link(top / "file", top / "linked")
    (top / "symlink").symlink_to("file")
    with open(top / "sparse", "wb") as file:
        file.seek(8 << 20)
        file.write(b"end")
    (top / "private").write_bytes(b"\0" * 10000)
    (top / "private").chmod(0o4750)
    (top / "directory").mkdir(mode=0o2770)
    for number in range(50):
        (top / "directory" / f"{number}").write_text(f"{number}")
        os.utime(top / "directory" / f"{number}", ns=(number * 10**9 + 7, number * 10**9 + 11))
    os.setxattr(top / "file", "user.note", b"value")
    os.mkfifo(top / "fifo")
    if shutil.which("setfacl"):
        run("setfacl", "-m", "u:1000:r,g:1001:rw", "directory/1", where=top)
        run("setfacl", "-d", "-m", "u:1000:rx", "directory", where=top)
    return top


def git(where: Path) -> object:
    needs("git", "git")
    settings = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false")
    dates = {
        "GIT_AUTHOR_DATE": "1700000000 +0000",
        "GIT_COMMITTER_DATE": "1700000000 +0000",
        "GIT_CONFIG_NOSYSTEM": "1",
    }

    def call(*words: str, at: Path) -> str:
        return run("git", *settings, *words, where=at, **dates)

    call("init", "-q", "-b", "main", "repository", at=where)
    repository = where / "repository"
    for number in range(60):
        (repository / f"d{number % 7}").mkdir(exist_ok=True)
        (repository / f"d{number % 7}" / f"{number}").write_text(f"{number}\n" * number)
    call("add", ".", at=repository)
    call("commit", "-qm", "first", at=repository)
    (repository / "d1" / "1").write_text("changed")
    call("commit", "-qam", "second", at=repository)
    call("gc", "-q", "--prune=now", at=repository)
    call("worktree", "add", "-q", "../worktree", "HEAD~1", at=repository)
    call("clone", "-q", "repository", "cloned", at=where)
    call("fsck", "--strict", at=where / "cloned")
    states = [call("status", "--porcelain", at=where / name) for name in ("repository", "worktree", "cloned")]
    return states, call("rev-parse", "HEAD", at=where / "cloned"), sorted(os.listdir(where / "worktree"))


_WRITER = """
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for number in range(25):
    c.execute('begin immediate'); c.execute('insert into t values (?, ?)', (sys.argv[2], number)); c.execute('commit')
"""


def _sqlite(where: Path, journal: str) -> object:
    import sqlite3

    database = where / "database"
    with sqlite3.connect(database) as connection:
        mode = connection.execute(f"pragma journal_mode={journal}").fetchone()
        connection.execute("create table t (writer text, number integer)")
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, database, f"{number}"]) for number in range(4)]
    assert [writer.wait(SECONDS) for writer in writers] == [0] * 4
    rows = connection.execute("select writer, count(*), sum(number) from t group by writer order by writer").fetchall()
    checked = connection.execute("pragma integrity_check").fetchall()
    connection.close()
    return mode, rows, checked


def sqlite_wal(where: Path) -> object:
    return _sqlite(where, "wal")


def sqlite_rollback(where: Path) -> object:
    return _sqlite(where, "delete")


def postgresql(where: Path) -> object:
    """Killed without a clean shutdown, and recovered from its write-ahead log."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("postgres is missing (Debian: postgresql)")
    where.chmod(0o777)
    data, user = where / "data", 65534  # it needs a user with a name

    def call(name: str, *words: str | Path, **more: str) -> str:
        return run(programs[-1] / name, *words, where=where, user=user, **more)

    call("initdb", "-D", data, "-U", "u", "-A", "trust", "-E", "UTF8", "--no-locale")
    start = (
        "-D",
        str(data),
        "-w",
        "-t",
        "60",
        "-l",
        f"{where}/log",
        "-o",
        f"-k {where} -h '' -F -c shared_buffers=1MB",
        "start",
    )
    socket = ("-h", str(where), "-U", "u", "postgres", "-AtXq")
    # A socket in the mount is for the mount's users: psql connects by the same path.
    call("pg_ctl", *start)
    call("psql", *socket, "-c", "create table t as select n, md5(n::text) from generate_series(1, 20000) n; checkpoint")
    call("psql", *socket, "-c", "insert into t select n, 'x' from generate_series(20001, 30000) n")
    call("psql", *socket, "-c", "select pg_switch_wal()")
    postmaster = int((data / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    for pid in (postmaster, *map(int, children)):
        os.kill(pid, 9)
    for pid in (postmaster, *map(int, children)):
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            subprocess.run(["sleep", "0.05"], check=True)
    for lock in (
        data / "postmaster.pid",
        *where.glob(".s.PGSQL*"),
    ):  # if nobody reaps it, it seems to run
        lock.unlink()
    try:
        call("pg_ctl", *start)
        return call("psql", *socket, "-c", "select count(*), sum(n), md5(string_agg(md5, '' order by n)) from t")
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


def dpkg(where: Path) -> object:
    needs("dpkg-deb", "dpkg")
    package = where / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN" / "control").write_text(
        "Package: example\nVersion: 1\nArchitecture: all\nMaintainer: n <e@x>\nDescription: an example\n"
    )
    (package / "usr" / "share" / "example").mkdir(parents=True)
    for number in range(30):
        (package / "usr" / "share" / "example" / f"{number}").write_text("text" * number)
    os.link(package / "usr" / "share" / "example" / "1", package / "usr" / "share" / "example" / "again")
    run("dpkg-deb", "-Zgzip", "-b", "package", "example.deb", where=where)
    root = where / "root"
    (root / "var" / "lib" / "dpkg" / "info").mkdir(parents=True)
    (root / "var" / "lib" / "dpkg" / "updates").mkdir()
    for name in ("status", "available"):
        (root / "var" / "lib" / "dpkg" / name).touch()
    run("dpkg", f"--root={root}", "--force-script-chrootless", "-i", "example.deb", where=where)
    installed = sorted(str(path.relative_to(root)) for path in (root / "usr").rglob("*"))
    run("dpkg", f"--root={root}", "--force-script-chrootless", "-i", "example.deb", where=where)
    verified = run("dpkg", f"--root={root}", "--verify", "example", where=where)
    run("dpkg", f"--root={root}", "--force-script-chrootless", "-P", "example", where=where)
    return installed, verified, (root / "usr" / "share" / "example").exists()


def rsync(where: Path) -> object:
    needs("rsync", "rsync")
    a_tree(where / "from")
    run("rsync", "-aHAXS", "from/", "to/", where=where)
    differs = run("rsync", "-aHAXSnc", "--delete", "--itemize-changes", "from/", "to/", where=where)
    return differs, (where / "to" / "linked").stat().st_nlink, (where / "to" / "sparse").stat().st_blocks < 100


def tar(where: Path) -> object:
    needs("tar", "tar")
    a_tree(where / "from")
    archive = ("--acls", "--xattrs", "-S", "-f", "archive")
    run("tar", *archive, "-c", "from", where=where)
    (where / "to").mkdir()
    run("tar", *archive, "-x", "-p", "-C", "to", where=where)
    differs = run("tar", *archive, "-d", "-C", "to", where=where)
    acl = run("getfacl", "-Rn", "from", where=where / "to") if shutil.which("getfacl") else ""
    attribute = os.getxattr(where / "to" / "from" / "file", "user.note")
    times = [path.stat().st_mtime_ns for path in sorted((where / "to" / "from" / "directory").iterdir())]
    return differs, acl, attribute, times, (where / "to" / "from" / "sparse").stat().st_blocks < 100


_LMDB = """
import lmdb, sys
environment = lmdb.open(sys.argv[1], map_size=1 << 24)
for number in range(50):
    with environment.begin(write=True) as change:
        change.put(f'{sys.argv[2]}-{number}'.encode(), b'x' * 500)
"""


def lmdb(where: Path) -> object:
    python = next((name for name in ("/usr/bin/python3", sys.executable) if not _without(name, "lmdb")), None)
    if python is None:
        pytest.skip("the Python package lmdb is missing (Debian: python3-lmdb)")
    writers = [subprocess.Popen([python, "-c", _LMDB, where / "d", f"{number}"]) for number in range(3)]
    assert [writer.wait(SECONDS) for writer in writers] == [0] * 3
    count = "import lmdb, sys; e = lmdb.open(sys.argv[1], readonly=True); print(e.stat()['entries'])"
    return run(python, "-c", count, where / "d", where=where)


def _without(python: str, module: str) -> bool:
    return bool(subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode)


def flock(where: Path) -> object:
    needs("flock", "util-linux")
    (where / "count").write_text("0")
    script = "i=0; while [ $i -lt 15 ]; do flock lock sh -c 'n=$(cat count); echo $((n+1)) > count'; i=$((i+1)); done"
    shells = [subprocess.Popen(["sh", "-c", script], cwd=where) for _ in range(3)]
    assert [shell.wait(SECONDS) for shell in shells] == [0] * 3
    # Two open file descriptions of one file; a subshell holds the second, which waits for the
    # first.
    run(
        "sh",
        "-c",
        "( flock 9; sleep 0.2; echo a >> order ) 9>L & sleep 0.1; ( flock 9; echo b >> order ) 9>L; wait",
        where=where,
    )
    refused = run("sh", "-c", "exec 9>L; flock 9; flock -n L true || echo refused", where=where)
    return (where / "count").read_text(), (where / "order").read_text(), refused


def npm(where: Path) -> object:
    needs("npm", "npm")
    for name, words in (("library", ""), ("program", '"dependencies": {"library": "file:../library-1.0.0.tgz"},')):
        (where / name).mkdir()
        (where / name / "package.json").write_text(
            f'{{"name": "{name}", {words} "version": "1.0.0", "main": "index.js"}}'
        )
        (where / name / "index.js").write_text("module.exports = 42\n")
    quiet = ("--offline", "--no-audit", "--no-fund", "--no-update-notifier", f"--cache={where}/cache")
    run("npm", "pack", *quiet, "./library", where=where)
    run("npm", "install", *quiet, where=where / "program")
    return run("node", "-p", "require('library')", where=where / "program")


def podman_build(where: Path) -> object:
    needs("podman", "podman")
    busybox = needs("busybox", "busybox-static")
    (where / "context").mkdir()
    shutil.copy(busybox, where / "context" / "busybox")
    (where / "context" / "Containerfile").write_text(
        'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "sh", "-c", "echo made > /made; /bin/busybox chmod 640 /made"]\n'
    )
    podman = ("podman", "--root", f"{where}/store", "--runroot", f"{where}/run", "--storage-driver", "vfs")
    build = ("build", "-q", "--isolation", "chroot", "--network", "host", "-t", "example", "context")
    run(*podman, *build, where=where, TMPDIR=str(where))
    mounted = run(*podman, "image", "mount", "example", where=where, TMPDIR=str(where)).strip()
    try:
        made = Path(mounted) / "made"
        return made.read_text(), oct(made.stat().st_mode), sorted(os.listdir(mounted))
    finally:
        run(*podman, "image", "umount", "example", where=where, TMPDIR=str(where))
        run(*podman, "system", "reset", "-f", where=where, TMPDIR=str(where), fails=True)


PROGRAMS: tuple[Callable[[Path], object], ...] = (
    git, sqlite_wal, sqlite_rollback, postgresql, dpkg, rsync, tar, lmdb, flock, npm, podman_build,
)  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_same_on_cntrfs(program: Callable[[Path], object], tmp_path: Path) -> None:
    results = {}
    for name in ("plain", *BINDINGS):
        if missing(name):
            continue
        with place(name) as here:
            results[name] = program(here.directory / here.fresh())
            if here.server is not None:
                assert here.server.alive, here.server.log_end()
                text = here.server.new_suspicious_lines()
                assert not text, text
    for name in results:
        assert results[name] == results["plain"], name
