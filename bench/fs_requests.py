"""How many requests a workload causes, by kind: python -m bench.fs_requests

The counts are exact under any load: they come from the server's ``-o trace``. *Session*: served read-only, like a
session's tools (``as_nobody``). INIT, FORGET and INTERRUPT are not counted, as nobody waits for them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.fs_workloads import git_status, import_modules, library
from testkit.servers import BINDINGS, REPOSITORY, Server, is_mountpoint, missing

_NOT_WAITED_FOR = frozenset(("INIT", "FORGET", "BATCH_FORGET", "INTERRUPT", "DESTROY"))


@dataclass(frozen=True)
class Work:
    """prepare: on the backing tree, before it is served; first: run before counting; writes: needs a writable mount."""

    name: str
    prepare: Callable[[Path], None]
    run: Callable[[Path], object]
    first: Callable[[Path], object] | None = None
    writes: bool = False
    tool: str = ""


def _open_read_close(top: Path) -> None:
    fd = os.open(top / "file", os.O_RDONLY)
    os.read(fd, 65536)
    os.close(fd)


def _open_stat_read_close(top: Path) -> bytes:
    return (top / "file").read_bytes()


def _one(top: Path) -> None:
    (top / "file").write_bytes(b"x" * 4000)


def _make(top: Path) -> None:
    fd = os.open(top / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, b"x" * 4000)
    os.close(fd)


def _tree(top: Path, directories: int, files: int) -> None:
    for directory in range(directories):
        path = top / "tree" / f"d{directory:03d}"
        path.mkdir(parents=True)
        for number in range(files):
            (path / f"f{number:04d}").write_bytes(b"x" * 4000)
            # older than git's index: git reads files again that may be as new
            os.utime(path / f"f{number:04d}", (1e9, 1e9))


def _read_tree(top: Path) -> None:
    for directory, _, files in os.walk(top / "tree"):
        for name in files:
            with open(f"{directory}/{name}", "rb", buffering=0) as file:
                file.read()


def _find(top: Path) -> None:
    _run("find", top / "tree", "-printf", "%s %p\n")


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def _commit(top: Path) -> None:
    git = ["git", "-C", str(top / "tree"), "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "tree"], ["status"]):
        _run(*git, *words)


def _git_status(top: Path) -> None:
    _run(*git_status(top))


def _archive(top: Path) -> None:
    _run("tar", "-C", top, "-cf", top / "tree.tar", "tree")
    shutil.rmtree(top / "tree")


def _untar(top: Path) -> None:
    _run("tar", "-C", top, "-xf", top / "tree.tar")


def _remove(top: Path) -> None:
    _run("rm", "-rf", top / "tree")


def works(directories: int = 20, files: int = 50) -> tuple[Work, ...]:
    """All workloads, on a tree of DIRECTORIES with FILES of 4000 bytes each."""
    number = directories * files

    def then(work: Callable[[Path], object]) -> Callable[[Path], None]:
        def prepare(top: Path) -> None:
            _tree(top, directories, files)
            work(top)

        return prepare

    tree = then(lambda top: None)
    return (
        Work("open, read, close: warm", _one, _open_read_close, _open_read_close),
        Work("Path.read_bytes: warm", _one, _open_stat_read_close, _open_stat_read_close),
        Work("create, write, close", _one, _make, _open_read_close, writes=True),
        Work("remove", _one, lambda top: os.unlink(top / "new"), _make, writes=True),
        Work(f"read a tree of {number} files: cold", tree, _read_tree),
        Work(f"read a tree of {number} files: warm", tree, _read_tree, _read_tree),
        Work(f"find {number} files: cold", tree, _find, tool="find"),
        Work(f"find {number} files: warm", tree, _find, _find, tool="find"),
        Work(f"git status of {number} files: cold", then(_commit), _git_status, tool="git"),
        Work(f"git status of {number} files: warm", then(_commit), _git_status, _git_status, tool="git"),
        Work("import 30 modules: cold", library, import_modules),
        Work("import 30 modules: warm", library, import_modules, import_modules),
        Work(f"untar {number} files", then(_archive), _untar, writes=True, tool="tar"),
        Work(f"rm -r {number} files", then(_archive), _remove, _untar, writes=True, tool="tar"),
    )


class Log:
    """The requests in a server's trace."""

    def __init__(self, path: Path, mountpoint: Path) -> None:
        self.path, self.mountpoint = path, mountpoint
        self._read = 0

    def new(self) -> Counter[str]:
        """The requests since the last call, by opcode."""
        with open(self.path, "rb") as file:
            file.seek(self._read)
            text = file.read()
            self._read = file.tell()
        words = (line.split(b" ", 1)[0].decode() for line in text.splitlines())
        return Counter(word for word in words if word.isupper() and word not in _NOT_WAITED_FOR)

    def settled(self) -> Counter[str]:
        """``new``, after all requests so far are answered; without the request used to find that out."""
        found: Counter[str] = Counter()
        while True:
            os.statvfs(self.mountpoint)  # processed after all earlier requests, and logged before it is answered
            more = self.new()
            more["STATFS"] -= 1
            more = +more
            if not more:
                return found
            found += more


@contextlib.contextmanager
def traced(binding: str, base: Path, *words: str) -> Iterator[Log]:
    """Serve BASE/source at BASE/mount with a trace."""
    server = Server(binding, base / "source", base / "mount", base / "log", options=("-o", ",".join(("trace", *words))))
    server.start()
    try:
        log = Log(base / "log", base / "mount")
        log.settled()
        yield log
    finally:
        problem = server.stop()
    if problem:
        raise RuntimeError(problem)


def count(work: Work, binding: str, base: Path, *words: str) -> Counter[str]:
    """The requests of one run of WORK on a new tree in BASE, by opcode."""
    for name in ("source", "mount"):
        (base / name).mkdir(parents=True)
    base.chmod(0o755)
    work.prepare(base / "source")
    with traced(binding, base, *words) as log:
        if work.first:
            work.first(base / "mount")
            log.settled()
        work.run(base / "mount")
        return log.settled()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fs_requests", description=__doc__)
    parser.add_argument("--only", default="", help="work whose name contains this")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "reports" / "bench-requests.json")
    options = parser.parse_args()
    places = [(binding, "as_nobody") for binding in BINDINGS if not missing(binding)]
    places += [(binding, "") for binding, _ in places]
    if not places:
        print(f"bench.fs_requests: {missing('devfuse')}", file=sys.stderr)
        return 2
    requests: dict[str, dict[str, dict[str, int]]] = {}
    room = Path(tempfile.mkdtemp(prefix="bench-requests-"))
    room.chmod(0o755)
    try:
        for work in works():
            if options.only not in work.name:
                continue
            if work.tool and not shutil.which(work.tool):
                print(f"{work.name} left out: {work.tool} is not installed")
                continue
            for binding, words in places:
                if work.writes and words:
                    continue
                base = room / f"{len(requests)}-{binding}-{words}"
                found = count(work, binding, base, *filter(None, [words]))
                place = f"{binding}, {'session' if words else 'writable'}"
                requests.setdefault(work.name, {})[place] = dict(found.most_common())
                shown = " ".join(f"{name} {number}" for name, number in found.most_common())
                print(f"{work.name:34} {place:20} {sum(found.values()):6}  {shown}", flush=True)
                shutil.rmtree(base)
    finally:
        if not any(is_mountpoint(path) for path in room.glob("*/mount")):
            shutil.rmtree(room, ignore_errors=True)
    report = {
        "kernel": platform.release(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": f"python -m bench.fs_requests{' --only ' + options.only if options.only else ''}",
        "requests": requests,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
