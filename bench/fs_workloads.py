"""The workloads of bench.fs: each prepares a tree once, and is then run on it in every round."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Workload:
    """prepare is not timed; cold: the filesystem is remounted before each run, with empty caches.

    tool: the program needed, from the Debian package; run: returns seconds; reads: it changes nothing.
    """

    name: str
    prepare: Callable[[Path], None]
    run: Callable[[Path], float]
    cold: bool = False
    tool: str = ""
    package: str = ""
    reads: bool = False


def timed(function: Callable[[], object]) -> float:
    """The seconds that FUNCTION takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _command(*words: str | Path, cwd: Path | None = None) -> float:
    return timed(
        lambda: subprocess.run(words, check=True, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    )


def _file(path: Path, size: int) -> None:
    block = random.Random(1).randbytes(MIB)
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(block)


def _read_sequentially(path: Path) -> float:
    buffer = bytearray(128 << 10)

    def read() -> None:
        fd = os.open(path, os.O_RDONLY)
        while os.readv(fd, [buffer]):
            pass
        os.close(fd)

    return timed(read)


def _write(path: Path, block: int, count: int, rng: random.Random | None = None) -> float:
    data = b"w" * block

    def write() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        for number in range(count):
            os.pwrite(fd, data, (rng.randrange(count) if rng else number) * block)
        os.close(fd)

    return timed(write)


def _write_anew(path: Path, block: int, count: int) -> float:
    path.unlink(missing_ok=True)
    return _write(path, block, count)


def _read_randomly(path: Path) -> float:
    rng, blocks = random.Random(2), path.stat().st_size // 4096
    fd = os.open(path, os.O_RDONLY)
    while os.read(fd, MIB):
        pass
    seconds = timed(lambda: [os.pread(fd, 4096, rng.randrange(blocks) * 4096) for _ in range(20000)])
    os.close(fd)
    return seconds


def _read_mapped(path: Path) -> float:
    def read() -> None:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            for at in range(0, len(view), MIB):
                view[at : at + MIB]

    return timed(read)


def _tree(top: Path, directories: int, files: int, size: int = 100) -> None:
    if (top / "tree").exists():
        return
    data = b"x" * size
    for directory in range(directories):
        path = top / "tree" / f"d{directory:03d}"
        path.mkdir(parents=True)
        for number in range(files):
            (path / f"f{number:04d}").write_bytes(data)


def _stat_all(top: Path) -> float:
    paths = [f"{top}/tree/d{directory:03d}/f{number:04d}" for directory in range(10) for number in range(100)]
    return timed(lambda: [os.stat(path) for path in paths])


def _archive(top: Path) -> None:
    """A tar of 157 entries, kept beside the tree, outside the measured directory."""
    _tree(top, 6, 25, 4000)
    subprocess.run(["tar", "-C", top, "-cf", top / "tree.tar", "tree"], check=True)


def _untar(top: Path) -> float:
    target = top / "out"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    return _command("tar", "-C", target, "-xf", top / "tree.tar")


def _remove(top: Path) -> float:
    _untar(top)
    return _command("rm", "-rf", top / "out")


def _repository(top: Path) -> None:
    _tree(top, 40, 50)
    for path in (top / "tree").glob("*/*"):
        os.utime(path, (1e9, 1e9))  # older than git's index: it reads again what may be as new
    git = ["git", "-C", str(top / "tree"), "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "tree"]):
        subprocess.run([*git, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def git_status(top: Path) -> list[str]:
    """The command. It ignores owner and inode number: a read-only mount may show others, and git would read every file."""
    words = ["git", "-c", "safe.directory=*", "-c", "core.checkStat=minimal", "-C", str(top / "tree")]
    return [*words, "status", "--porcelain"]


def _git_status(top: Path) -> float:
    subprocess.run(git_status(top), check=True, stdout=subprocess.DEVNULL)
    return _command(*git_status(top))


def _read_tree(top: Path) -> float:
    def read() -> None:
        for directory, _, files in os.walk(top / "tree"):
            for name in files:
                with open(f"{directory}/{name}", "rb", buffering=0) as file:
                    file.read()

    return timed(read)


def _warm(run: Callable[[Path], float]) -> Callable[[Path], float]:
    def twice(top: Path) -> float:
        run(top)
        return run(top)

    return twice


def _source(top: Path) -> None:
    lines = [f'int f{number}(int x) {{ printf("%d", x); return x * {number}; }}' for number in range(300)]
    (top / "one.c").write_text("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n" + "\n".join(lines))


def _gcc(top: Path) -> float:
    return _command("gcc", "-c", top / "one.c", "-o", top.parent / "one.o")


MODULES = (
    "abc argparse ast base64 bisect calendar codecs collections contextlib copy csv dataclasses datetime decimal difflib email "
    "enum fnmatch functools hashlib heapq html http inspect io ipaddress itertools json logging uuid"
).split()
_NOT_IMPORTED = shutil.ignore_patterns("test*", "site-packages", "dist-packages", "idlelib", "tkinter", "config-*")


def library(top: Path) -> None:
    """A compiled copy of Python's own modules."""
    if not (top / "lib").exists():
        shutil.copytree(os.path.dirname(os.__file__), top / "lib", symlinks=True, ignore=_NOT_IMPORTED)
        import_modules(top)


def import_modules(top: Path) -> float:
    """Start a Python that imports 30 modules of ``library``."""
    paths = [str(top / "lib"), str(top / "lib" / "lib-dynload")]
    return _command(sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:] = {paths}; import {', '.join(MODULES)}")


def _sqlite(top: Path) -> float:
    import contextlib
    import sqlite3

    path = top / "bench.db"
    path.unlink(missing_ok=True)

    def insert() -> None:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("create table t (n integer, text text)")
            for number in range(30):
                database.execute("insert into t values (?, ?)", (number, "x" * 100))
                database.commit()
            database.execute("select sum(n) from t").fetchone()

    return timed(insert)


def _find(top: Path) -> float:
    return _command("find", top / "tree", "-printf", "%s %p\n")


def workloads(scale: float) -> list[Workload]:
    """All workloads; scale multiplies file sizes (1: the sizes in docs/performance.md)."""
    size = max(8, int(256 * scale)) * MIB
    writes = max(500, int(20000 * scale))
    big = lambda top: _file(top / "big", size)  # noqa: E731
    nothing = lambda top: None  # noqa: E731
    return [
        Workload("seq read 256M, FUSE cold", big, lambda top: _read_sequentially(top / "big"), cold=True, reads=True),
        Workload("seq write 128k", nothing, lambda top: _write_anew(top / "w", 128 << 10, writes // 10)),
        Workload("seq write 4k", nothing, lambda top: _write_anew(top / "w", 4096, writes)),
        Workload("rand read 4k cached", lambda top: _file(top / "big", 32 * MIB), lambda top: _read_randomly(top / "big"), reads=True),
        Workload(
            "rand write 4k", lambda top: _file(top / "big", 32 * MIB),
            lambda top: _write(top / "big", 4096, 8192, random.Random(3)),
        ),
        Workload("mmap read", big, lambda top: _read_mapped(top / "big"), reads=True),
        Workload("find 5k files, FUSE cold", lambda top: _tree(top, 50, 100), _find, cold=True, tool="find", reads=True),
        Workload("find 20k files, warm", lambda top: _tree(top, 200, 100), _warm(_find), tool="find", reads=True),
        Workload("stat 1000, FUSE cold", lambda top: _tree(top, 10, 100), _stat_all, cold=True, reads=True),
        Workload("stat 1000, warm", lambda top: _tree(top, 10, 100), _warm(_stat_all), reads=True),
        Workload("untar (157 entries)", _archive, _untar, tool="tar"),
        Workload("rm -rf", _archive, _remove, tool="tar"),
        Workload("git status, warm", _repository, _git_status, tool="git", reads=True),
        Workload("read a tree, FUSE cold", lambda top: _tree(top, 40, 50, 4000), _read_tree, cold=True, reads=True),
        Workload("read a tree, warm", lambda top: _tree(top, 40, 50, 4000), _warm(_read_tree), reads=True),
        Workload("gcc, one file", _source, _gcc, tool="gcc", reads=True),
        Workload("python: import 30 modules", library, _warm(import_modules), reads=True),
        Workload("SQLite, 30 commits", nothing, _sqlite),
    ]  # fmt: skip
