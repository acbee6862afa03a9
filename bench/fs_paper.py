"""Workloads like the paper's (section 5.2, the disk suite of Phoronix), scaled down to seconds."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pwd
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.fs_workloads import Workload, timed

_DBENCH_LOAD = "/usr/share/dbench/client.txt"


def _sizes(seed: int, count: int) -> list[int]:
    """File sizes as in a kernel source tree: mostly a few kB, a few large."""
    chance = random.Random(seed)
    return [min(int(chance.lognormvariate(8.3, 1.1)), 200_000) for _ in range(count)]


def _make_tree(top: Path, directories: int, files: int, suffix: str = ".c") -> None:
    block = random.Random(4).randbytes(200_000)
    for directory in range(directories):
        path = top / f"d{directory:02d}"
        path.mkdir(parents=True, exist_ok=True)
        for number, size in enumerate(_sizes(directory, files)):
            (path / f"f{number:03d}{suffix}").write_bytes(block[:size])


def _create(top: Path) -> float:
    shutil.rmtree(top / "made", ignore_errors=True)
    return timed(lambda: _make_tree(top / "made", 20, 40))


def _compile(top: Path) -> float:
    """Read each source, and write an object of similar size beside it."""
    for path in (top / "tree").glob("*/*.o"):
        path.unlink()

    def build() -> None:
        for path in sorted((top / "tree").glob("*/*.c")):
            path.with_suffix(".o").write_bytes(path.read_bytes()[::-1])

    return timed(build)


def _read(top: Path) -> float:
    def read() -> None:
        for path in sorted((top / "tree").glob("*/*.c")):
            path.read_bytes()

    return timed(read)


def _postmark(top: Path) -> float:
    """A mail server: files of 0.5 to 10 kB; each transaction reads or appends to one, and creates or removes one."""
    chance = random.Random(5)
    block = chance.randbytes(10_000)
    shutil.rmtree(top / "mail", ignore_errors=True)
    (top / "mail").mkdir()

    def run() -> None:
        names: list[Path] = []
        last = 0

        def create() -> None:
            nonlocal last
            last += 1
            names.append(top / "mail" / f"{last:05d}")
            names[-1].write_bytes(block[: chance.randrange(500, 10_000)])

        for _ in range(300):
            create()
        for _ in range(1000):
            path = chance.choice(names)
            if chance.random() < 0.5:
                path.read_bytes()
            else:
                with open(path, "ab") as file:
                    file.write(block[: chance.randrange(500, 4000)])
            if chance.random() < 0.5:
                create()
            else:
                names.pop(chance.randrange(len(names))).unlink()
        for path in names:
            path.unlink()

    return timed(run)


def _fio(top: Path, *words: str) -> float:
    command = ["fio", "--name=bench", f"--directory={top}", "--output-format=json", "--fallocate=none", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=top)
    return float(json.loads(done.stdout)["jobs"][0]["job_runtime"]) / 1000


def _lay_out(top: Path, *words: str) -> None:
    _fio(top, *words, "--create_only=1")


_MIXED = ("--rw=randrw", "--bs=4k", "--size=32M", "--ioengine=psync", "--randseed=1")
_AIO = ("--rw=randwrite", "--bs=64k", "--size=128M", "--ioengine=libaio", "--iodepth=16", "--direct=1", "--randseed=1")


def _dbench(top: Path) -> float:
    """Seconds for 1000 MB of a file server's calls from two clients."""
    (top / "dbench").mkdir(exist_ok=True)
    command: list[str | Path] = ["dbench", "-D", top / "dbench", "-t", "2", "-c", _DBENCH_LOAD, "2"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rates = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("Throughput")]
    return 1000 / float(rates[0])


# PostgreSQL: it refuses to run as root, and Debian does not put its programs in PATH.


def _postgres(program: str) -> str:
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{program}"))
    return found[-1] if found else shutil.which(program) or ""


def _as_postgres(*words: str | Path) -> None:
    user = pwd.getpwnam("postgres")
    subprocess.run(
        words, check=True, user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", env={"PATH": os.defpath},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@contextlib.contextmanager
def _database(data: Path) -> Iterator[str]:
    """Run a server on the cluster in DATA; yield its socket's directory."""
    with tempfile.TemporaryDirectory(prefix="pg-") as sockets:
        shutil.chown(sockets, "postgres")
        options = f"-k {sockets} -c listen_addresses= -c shared_buffers=32MB"
        control = (_postgres("pg_ctl"), "-D", data, "-w", "-s")
        _as_postgres(*control, "-o", options, "-l", f"{sockets}/log", "start")
        try:
            yield sockets
        finally:
            _as_postgres(*control, "-m", "immediate", "stop")


def _cluster(top: Path) -> None:
    data = top / "pg"
    data.mkdir(mode=0o700)
    shutil.chown(data, "postgres", "postgres")
    _as_postgres(_postgres("initdb"), "-D", data, "-A", "trust", "-N")
    with _database(data) as sockets:
        _as_postgres(_postgres("pgbench"), "-i", "-q", "-s", "2", "-h", sockets, "postgres")
        _as_postgres(_postgres("psql"), "-h", sockets, "-c", "checkpoint", "postgres")


def _pgbench(top: Path) -> float:
    with _database(top / "pg") as sockets:
        words = ("-n", "-c", "2", "-t", "150", "--random-seed=1", "-h", sockets, "postgres")
        started = time.perf_counter()
        _as_postgres(_postgres("pgbench"), *words)
        return time.perf_counter() - started


def _fio_workload(name: str, words: tuple[str, ...]) -> Workload:
    lay_out, run = lambda top: _lay_out(top, *words), lambda top: _fio(top, *words)
    return Workload(name, lay_out, run, tool="fio", package="fio")


def workloads() -> list[Workload]:
    """All workloads; package: the Debian package of the program."""
    tree = lambda top: _make_tree(top / "tree", 20, 40)  # noqa: E731
    nothing = lambda top: None  # noqa: E731
    dbench = "dbench" if Path(_DBENCH_LOAD).exists() else _DBENCH_LOAD
    return [
        Workload("compilebench-like: create", nothing, _create),
        Workload("compilebench-like: compile", tree, _compile),
        Workload("compilebench-like: read", tree, _read, cold=True, reads=True),
        Workload("PostMark-like", nothing, _postmark),
        _fio_workload("fio, 4k random mixed", _MIXED),
        _fio_workload("fio, AIO past the cache", _AIO),
        Workload("dbench, 2 clients", nothing, _dbench, tool=dbench, package="dbench"),
        Workload("pgbench", _cluster, _pgbench, tool=_postgres("pgbench") or "pgbench", package="postgresql"),
    ]
