"""``cntr.pyz``, run as a user would, with a cache of the test's own."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

from cntr.cli.options import COMMANDS
from cntr.remote import onefile
from tests.nest.busybox import BUSYBOX, BusyboxContainer

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
# The interpreter called ``python3``; this process's search path must not matter.
PATH = f"{pathlib.Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("onefile") / "cntr.pyz"
    onefile.write(str(path))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("cache") / "own"
    path.mkdir(mode=0o700)
    return path


def run(pyz: pathlib.Path, cache: object, *words: str, by: tuple[str, ...] = (), **more) -> subprocess.CompletedProcess:
    settings = {"PATH": PATH, "CNTR_CACHE_DIR": str(cache), "TESTMARK": os.environ.get("TESTMARK", ""), **more}
    command = [*by, str(pyz), *words]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False, cwd="/")


def said(done: subprocess.CompletedProcess) -> str:
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_equal_sources_make_equal_files(pyz, tmp_path):
    """Also from a copy with other times and modes, with bytecode, under another umask; and from the file itself."""
    shutil.copytree(onefile.PACKAGE, tmp_path / "cntr")
    for path in (tmp_path / "cntr").rglob("*"):
        path.chmod(0o700)
        os.utime(path, (1, 1))
    (tmp_path / "cntr/notes.txt~").write_text("not ours")
    again = ["-m", "cntr.remote.onefile", str(tmp_path / "again.pyz")]
    umasked = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
    command = [*umasked, sys.executable, *again]
    subprocess.run(command, cwd=tmp_path, env={"PATH": PATH, "TZ": "Asia/Tokyo"}, check=True)
    from_itself = [sys.executable, "-Ic", "import sys; sys.path.insert(0, sys.argv[1]); from cntr.remote import onefile; "
                   "onefile.write(sys.argv[2])", str(pyz), str(tmp_path / "third.pyz")]  # fmt: skip
    subprocess.run(from_itself, check=True)
    wanted = pyz.read_bytes()
    assert (tmp_path / "again.pyz").read_bytes() == wanted
    assert (tmp_path / "third.pyz").read_bytes() == wanted
    assert os.access(pyz, os.X_OK)


def test_every_command_is_there_in_each_way_to_start_it(pyz, cache):
    for command in COMMANDS:
        assert said(run(pyz, cache, command.name, "--help")).startswith(f"Usage: cntr {command.name}")
    wanted = said(run(pyz, cache, "--version"))
    assert said(run(pyz, cache, "--version", by=(sys.executable,))) == wanted
    assert said(run(pyz, cache, "--version", by=("sh",))) == wanted
    link = cache.parent / "mount.fuse.cntrfs"
    link.symlink_to(pyz)
    done = run(link, cache, "only-one-word")
    assert (done.returncode, done.stderr[:38]) == (1, "mount.fuse.cntrfs: wanted: a source an"), done


@ROOT
def test_sessions_exec_from_within_and_the_file_server(pyz, cache, tmp_path):
    with BusyboxContainer("onefile") as container:
        pid = str(container.pid)
        assert said(run(pyz, cache, "attach", pid, "--", "sh", "-c", "test -d /var/lib/cntr/bin && hostname")).strip()
        fuse = said(run(pyz, cache, "attach", pid, "--transport", "fuse", "--", "stat", "-fc", "%T", "/"))
        assert fuse == "fuseblk\n"
        assert said(run(pyz, cache, "exec", pid, "--", "/bin/readlink", "/proc/self/exe")) == "/bin/busybox\n"
        inner = f"python3 -IS {pyz} exec -- /bin/readlink /proc/self/exe"  # the session has its own cache
        session = run(pyz, cache, "attach", pid, "--share", str(pyz.parent), "--", "sh", "-c", inner)
        assert said(session) == "/bin/busybox\n"
        assert said(run(pyz, cache, "cp", f"{pid}:/bin/busybox", f"{tmp_path}/copy")) == ""
        assert (tmp_path / "copy").read_bytes() == pathlib.Path(BUSYBOX).read_bytes()


@ROOT
@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")
def test_the_mount_helper_mounts(pyz, cache, tmp_path):
    source, point, helper = tmp_path / "source", tmp_path / "point", tmp_path / "mount.fuse.cntrfs"
    for path in (source, point):
        path.mkdir()
    (source / "file").write_text("through")
    helper.symlink_to(pyz)
    script = f"'{helper}' 'source:{source}' '{point}' -o ro && cat '{point}/file' && umount '{point}'"
    assert said(run(pathlib.Path("-c"), cache, script, by=("unshare", "-m", "sh"))) == "through"


def trees(cache: pathlib.Path) -> list[pathlib.Path]:
    return sorted((cache / "program").iterdir())


@ROOT
def test_a_cache_that_is_not_ones_own_is_not_read(pyz, tmp_path):
    """Otherwise anyone who can write there could run code as the caller."""
    evil = "import os\nos.write(1, b'EVIL')\nos._exit(0)\n"
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    assert said(run(pyz, theirs, "--version"))
    (tree,) = trees(theirs)
    (tree / "cntr/__main__.py").write_text(evil)
    assert said(run(pyz, theirs, "--version")) == "EVIL"  # as expected: this tree is run
    (tmp_path / "link").symlink_to(theirs)
    before = sorted(theirs.rglob("*"))
    for path, mode, owner in (
        (theirs, 0o700, 65534),
        (theirs, 0o770, 0),
        (theirs, 0o701, 0),
        (tmp_path / "link", 0o700, 0),
    ):
        os.chown(theirs, owner, 0)
        theirs.chmod(mode)
        assert said(run(pyz, path, "--version")).startswith("cntr "), (path, oct(mode), owner)
    os.chown(theirs, 0, 0)
    theirs.chmod(0o700)
    os.chown(tmp_path, 65534, 0)  # who could put another directory in its place
    assert said(run(pyz, theirs, "--version")).startswith("cntr ")
    os.chown(tmp_path, 0, 0)
    assert sorted(theirs.rglob("*")) == before
    (tmp_path / "file").write_text("")
    for path in ("/proc/1/nowhere", tmp_path / "file"):  # it can't be created, so run from the archive
        assert said(run(pyz, path, "--version")).startswith("cntr ")


@ROOT
def test_what_was_cut_short_is_replaced_and_old_builds_go(pyz, tmp_path):
    cache = tmp_path / "cache"
    program = cache / "program"
    program.mkdir(parents=True)
    cache.chmod(0o700)
    for number in range(6):
        (program / f"old{number}/cntr").mkdir(parents=True)
        os.utime(program / f"old{number}", (number, number))
    for name, age in (("tmp-new", 0), ("tmp-old", 7200)):
        (program / name / "cntr").mkdir(parents=True)
        os.utime(program / name, (time.time() - age,) * 2)
    several = [subprocess.Popen([pyz, "--version"], env={"PATH": PATH, "CNTR_CACHE_DIR": str(cache)}) for _ in range(3)]
    assert [one.wait() for one in several] == [0, 0, 0]
    left = {path.name for path in trees(cache)}
    assert {"old5", "old4", "old3", "tmp-new"} < left
    assert len(left) == 5, left


@ROOT
def test_a_user_has_a_cache_of_their_own(pyz):
    """Below HOME; they don't use root's, and a session's root has its own."""
    with tempfile.TemporaryDirectory(
        prefix="cntr-user-"
    ) as name:  # other users come to it, as to pytest's own they do not
        place = pathlib.Path(name)
        place.chmod(0o755)
        shutil.copy2(pyz, place / "cntr.pyz")
        home = place / "home"
        home.mkdir()
        os.chown(home, 29997, 29997)
        drop = ("setpriv", "--reuid=29997", "--regid=29997", "--clear-groups", "env", "-u", "CNTR_CACHE_DIR")
        system = "/usr/sbin:/usr/bin:/sbin:/bin"  # another user may run this interpreter
        for _ in range(2):
            done = run(place / "cntr.pyz", "", "--version", by=drop, HOME=str(home), PATH=system)
            assert said(done).startswith("cntr ")
        assert len(trees(home / ".cache/cntr")) == 1
        assert (home / ".cache/cntr").stat().st_mode & 0o777 == 0o700
        assert said(run(place / "cntr.pyz", "", "--version", by=drop, PATH=system)).startswith("cntr ")  # no HOME


def test_without_python_it_says_so(pyz, tmp_path):
    (tmp_path / "sh").symlink_to("/bin/sh")
    done = run(pyz, tmp_path, "ps", PATH=str(tmp_path))
    assert done.returncode == 125
    assert done.stderr.startswith("cntr: python3 is not on this machine\nhint: ")


def test_an_older_python_is_reported(pyz):
    """It can parse the first lines, and runs them before anything else."""
    import ast

    ast.parse(onefile.START, feature_version=(3, 4))
    ast.parse(onefile.MAIN.format(start=onefile.START), feature_version=(3, 4))
    code = "import sys; sys.version_info = (3, 8); sys.argv = ['-c', 'cntr.pyz']; exec(sys.stdin.read())"
    done = subprocess.run(
        [sys.executable, "-c", code], input=onefile.START, capture_output=True, text=True, check=False
    )
    assert done.returncode == 125
    assert done.stderr.startswith("cntr: Python 3.9 or newer is needed, this is 3.8: /")
