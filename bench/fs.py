"""Filesystem workloads side by side: native, bind mount, bindfs, CntrFS with each binding: python -m bench.fs

Rounds are interleaved, and the order of places rotates. Reported are the best and median of the rounds, and the ratio
of the medians to native. Needs root; works in a mount namespace of its own and leaves nothing behind.

The trees are on a new ext4 without a journal, which skips recently removed inodes: creating files after another run's
removals costs more.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import fs_memory, fs_paper
from bench.crossing import Share
from bench.fs_workloads import Workload, workloads
from bench.plot import chart
from cntr.linux import syscalls
from testkit import rooms
from testkit.servers import BINDINGS, REPOSITORY, Server, is_mountpoint, missing

IO_URING = "devfuse:io_uring"
_FEW = 50  # too few requests for a meaningful share
_SETTLING = 0.1  # seconds after a mount before measuring, so that the server's start is not measured
#: How a peer is started if --peer gives only its path; {source} and {mountpoint} are filled in.
PEERS = {
    "bindfs": ("-f", "-o", "allow_other", "{source}", "{mountpoint}"),
    "passthrough_hp": ("--foreground", "{source}", "{mountpoint}"),
    "passthrough_ll": ("-f", "-o", "allow_other,cache=always,source={source}", "{mountpoint}"),
}


class BenchedTree:
    """A directory tree accessed in one way."""

    def __init__(self, name: str, base: Path, argv: list[str] | None = None, options: tuple[str, ...] = ()) -> None:
        """name: with mount options for the CntrFS server after colons; argv: of another server."""
        self.name, self.base = name, base / name.replace(":", "-")  # fio ends a path at a colon
        name, *words = name.split(":")
        self.kind, self.is_peer = name, argv is not None
        self.read_only = "as_nobody" in words or "ro" in words
        options += ("-o", ",".join(words)) if words else ()
        self.source, self.mountpoint = self.base / "source", self.base / "mount"
        for directory in (self.source, self.mountpoint):
            directory.mkdir(parents=True)
        self.server: Server | None = None
        self.directory = self.source if name == "native" else self.mountpoint
        if argv or name in BINDINGS:
            filled = [word.replace("{source}", str(self.source)) for word in argv] if argv else None
            self.server = Server(name, self.source, self.mountpoint, self.base / "log", filled, options)

    def mount(self) -> None:
        """Mount it, with empty caches."""
        if self.server is not None:
            self.server.start()
            os.statvfs(self.mountpoint)  # it serves then: on a busy machine it is mounted well before
        elif self.kind == "bind":
            subprocess.run(["mount", "--bind", self.source, self.mountpoint], check=True)

    def unmount(self) -> None:
        """Unmount it; peers that ignore SIGTERM are unmounted first."""
        if self.is_peer and is_mountpoint(self.mountpoint):
            subprocess.run(["umount", self.mountpoint], check=True)
        if self.server is not None:
            self.server.stop()
        elif self.kind == "bind":
            subprocess.run(["umount", self.mountpoint], check=True)


def private_mounts() -> None:
    """Enter a mount namespace of our own, so that no mount is left."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, ctypes.c_ulong(1 << 18 | 16384), None):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS) failed: needs root")


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keep the processors awake: in a virtual machine a wake-up from idle costs several times what a request does.

    Processes spin at SCHED_IDLE (sched(7)), which takes time from nobody; the same for every place.
    """
    spinners = []
    for _ in range(os.cpu_count() or 1):
        pid = os.fork()
        if pid == 0:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            while True:
                pass
        spinners.append(pid)
    try:
        yield
    finally:
        for pid in spinners:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def time_workload(
    workload: Workload, places: list[BenchedTree], rounds: int, shares: dict[str, Share] | None = None
) -> dict[str, list[float]]:
    """Seconds of each round by place; a peer that fails (passthrough_hp keeps an fd per file) is dropped.

    shares: by place, if crossings are counted.
    """
    places = [place for place in places if workload.reads or not place.read_only]
    seconds: dict[str, list[float]] = {place.name: [] for place in places}
    for place in places:
        workload.prepare(place.source)
        place.mount()
    os.sync()
    try:
        for turn in range(rounds):
            shift = turn % len(places)
            for place in places[shift:] + places[:shift]:
                if workload.cold and turn:
                    place.unmount()
                    place.mount()
                if workload.cold:
                    time.sleep(_SETTLING)
                if place.name not in seconds:
                    continue
                try:
                    with watched(place, shares):
                        seconds[place.name].append(workload.run(place.directory))
                except (OSError, subprocess.CalledProcessError):
                    if not place.is_peer:
                        raise
                    del seconds[place.name]
    finally:
        for place in places:
            place.unmount()
            for entry in place.source.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return seconds


def watched(place: BenchedTree, shares: dict[str, Share] | None) -> contextlib.AbstractContextManager[None]:
    """A context that counts the crossings of a place's server, if requested."""
    if shares is None or place.server is None or place.is_peer:
        return contextlib.nullcontext()
    return shares.setdefault(place.name, Share()).watched(place.server.processes()[1])


def cpu_nanoseconds(server: Server) -> int:
    """CPU time of all threads of the server's processes (schedstat, which is exact; stat counts ticks)."""
    total = 0
    for pid in server.processes():
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                total += int((thread / "schedstat").read_text().split()[0])
    return total


def per_call(name: str, base: Path, calls: int) -> dict[str, tuple[float, float]]:
    """(server CPU time, client's waiting time) in µs per call, with timeouts of 0 so that every call reaches the
    server.
    """
    place = BenchedTree(name, base, None, ("-o", "entry_timeout=0,attr_timeout=0"))
    (place.source / "file").write_bytes(b"x")
    place.mount()
    path = str(place.directory / "file")
    fd = os.open(path, os.O_RDONLY)

    def open_close() -> None:
        os.close(os.open(path, os.O_RDONLY))

    found = {}
    try:
        for kind, call in (
            ("GETATTR", lambda: os.fstat(fd)),
            ("LOOKUP+GETATTR", lambda: os.stat(path)),
            ("LOOKUP+OPEN+RELEASE", open_close),
        ):
            assert place.server is not None
            cpu, waited = [], []
            for _ in range(5):
                before, began = cpu_nanoseconds(place.server), time.perf_counter()
                for _ in range(calls):
                    call()
                waited.append((time.perf_counter() - began) / calls * 1e6)
                cpu.append((cpu_nanoseconds(place.server) - before) / calls / 1000)
            found[kind] = round(min(cpu), 1), round(min(waited), 1)
    finally:
        os.close(fd)
        place.unmount()
    return found


FILE_KINDS = ("open, read, close", "create, write, close", "remove")


def per_file(place: BenchedTree, files: int = 1000, rounds: int = 5) -> dict[str, tuple[float, float]]:
    """(server CPU, what the client waited) in µs for one file of 4000 bytes, by kind of work; the least of ROUNDS.

    What is done is warm, and in one directory: the names to be opened are known.
    """
    for number in range(files):
        (place.source / f"{number:04}").write_bytes(b"x" * 4000)
    place.mount()
    top, data = str(place.directory), b"y" * 4000
    found: dict[str, tuple[float, float]] = {}

    def read() -> None:
        for number in range(files):
            fd = os.open(f"{top}/{number:04}", os.O_RDONLY)
            os.read(fd, 8192)
            os.close(fd)

    def create() -> None:
        for number in range(files):
            fd = os.open(f"{top}/new{number:04}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, data)
            os.close(fd)

    def remove() -> None:
        for number in range(files):
            os.unlink(f"{top}/new{number:04}")

    def used() -> int:
        return cpu_nanoseconds(place.server) if place.server is not None else 0

    try:
        read()
        for _ in range(rounds):
            for kind, work in zip(FILE_KINDS, (read,) if place.read_only else (read, create, remove), strict=False):
                before, began = used(), time.perf_counter()
                work()
                waited = (time.perf_counter() - began) / files * 1e6
                time.sleep(_SETTLING)  # what nobody waits for, RELEASE and FORGET, is counted, too
                cpu = (used() - before) / files / 1000
                least = found.get(kind, (cpu, waited))
                found[kind] = round(min(cpu, least[0]), 1), round(min(waited, least[1]), 1)
    finally:
        place.unmount()
    return found


def table(results: dict[str, dict[str, list[float]]], names: list[str]) -> str:
    """The ratios of the medians (and of the best times) to native."""
    lines = [f"{'workload':26}{'native':>10}" + "".join(f"  {name:>14}" for name in names if name != "native")]
    for workload, seconds in results.items():
        native = seconds["native"]
        cells = []
        for name in names:
            if name == "native":
                continue
            if name not in seconds:
                cells.append("–".rjust(max(14, len(name))))
                continue
            median = statistics.median(seconds[name]) / statistics.median(native)
            best = min(seconds[name]) / min(native)
            cells.append(f"{median:8.2f} ({best:5.2f})".rjust(max(14, len(name))))
        lines.append(
            f"{workload:26}{statistics.median(native) * 1000:7.1f} ms" + "".join(f"  {cell}" for cell in cells)
        )
    return "\n".join(lines)


def picture(results: dict[str, dict[str, list[float]]]) -> str:
    """The ratios of the medians as SVG."""
    ratios = {
        workload: {
            name: statistics.median(times) / statistics.median(seconds["native"])
            for name, times in seconds.items()
            if name != "native"
        }
        for workload, seconds in results.items()
    }
    places = list(dict.fromkeys(name for row in ratios.values() for name in row))
    return chart(ratios, places, "Time as a multiple of the native directory's, lower is better")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes of files")
    parser.add_argument(
        "--places",
        default=f"native,bind,bindfs,{','.join(BINDINGS)},{IO_URING}",
        help="mount options after colons measure them: native,pyfuse3,pyfuse3:no_readdirplus (default: %(default)s)",
    )
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND",
        help="one more place: another server that stays in the foreground; {source} and {mountpoint} are filled in, and for "
        f"{', '.join(PEERS)} the path is enough",
    )  # fmt: skip
    parser.add_argument("--only", default="", help="workloads whose name contains one of these texts (a,b); -: none")
    parser.add_argument("--cpu-calls", type=int, default=5000, help="calls per server CPU figure; 0: none")
    parser.add_argument(
        "--million",
        type=int,
        nargs="?",
        const=1_000_000,
        default=0,
        metavar="FILES",
        help="also measure the server's memory while find walks this many files (a million takes long)",
    )
    parser.add_argument(
        "--awake", action=argparse.BooleanOptionalAction, default=True, help="keep the processors out of idle states"
    )
    parser.add_argument("--dir", type=Path, help="where the trees are made (default: a new ext4 of their own)")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "reports" / "bench-fs.json")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("bench.fs: needs root", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the trees are removed
    private_mounts()
    names = [name for name in options.places.split(",") if _usable(name)]
    peers = {"bindfs": ["bindfs", *PEERS["bindfs"]]}
    for name, _, command in (peer.partition("=") for peer in options.peer):
        words = shlex.split(command)
        peers[name] = [*words, *(PEERS.get(name, ()) if len(words) == 1 else ())]
        names.append(name)
    bindings = [name for name in names if name in (*BINDINGS, IO_URING)]
    report: dict[str, object] = {
        "kernel": platform.release(), "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "rounds": options.rounds,
        "command": shlex.join(["python", "-m", "bench.fs", *sys.argv[1:]]), "load": list(os.getloadavg()),
        "processors": len(os.sched_getaffinity(0)),
    }  # fmt: skip
    results: dict[str, dict[str, list[float]]] = {}
    absent: dict[str, str] = {}
    crossed: dict[str, dict[str, float]] = {}
    report |= {"seconds": results, "absent": absent, "crossed": crossed}

    def save() -> None:
        """Called after each part, so that an interrupted run keeps its results."""
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
        if results:
            options.json.with_suffix(".svg").write_text(picture(results))

    room = Path(tempfile.mkdtemp(prefix="bench-fs-", dir=options.dir))
    room.chmod(0o755)  # databases do not run as root
    running = contextlib.ExitStack()
    base = room
    try:
        if options.dir is None:
            base = rooms.ext4(room, "disk", "24G")
            running.callback(lambda: subprocess.run(["umount", "-l", base], check=True))
        if options.awake:
            running.enter_context(awake())
        places = [BenchedTree(name, base, peers.get(name)) for name in names]
        for workload in (*workloads(options.scale), *fs_paper.workloads()):
            if options.only == "-" or not any(part in workload.name for part in options.only.split(",")):
                continue
            if workload.tool and not shutil.which(workload.tool):
                absent[workload.name] = workload.package or workload.tool
                print(f"{workload.name} left out: {workload.tool} is not installed (Debian: {absent[workload.name]})")
                continue
            shares: dict[str, Share] = {}
            results[workload.name] = time_workload(
                workload, places, options.rounds, shares if len(os.sched_getaffinity(0)) > 1 else None
            )
            crossed[workload.name] = {
                name: round(share.crossed, 2) for name, share in shares.items() if share.turns >= _FEW
            }
            print(
                table({workload.name: results[workload.name]}, names).splitlines()[1],
                crossed[workload.name] or "",
                flush=True,
            )
            save()
        if options.cpu_calls:
            report["us_per_call"] = {name: per_call(name, base / "cpu", options.cpu_calls) for name in bindings}
            report["us_per_file"] = {
                name: per_file(BenchedTree(name, base / "file", peers.get(name))) for name in names if name != "bind"
            }
            save()
        if options.million:
            report["memory"] = fs_memory.measure(
                base / "memory", [name for name in bindings if name != IO_URING], options.million
            )
            save()
    finally:
        running.close()
        shutil.rmtree(room, ignore_errors=True)
    if results:
        print("\n" + table(results, names))
    for key in ("us_per_call", "us_per_file", "memory"):
        if key in report:
            print(f"{key}: {json.dumps(report[key])}")
    return 0


def _usable(name: str) -> bool:
    name, *words = name.split(":")
    why = missing(f"{name}-io_uring" if "io_uring" in words else name) if name in BINDINGS else ""
    if name == "bindfs" and shutil.which("bindfs") is None:
        why = "bindfs is not installed"
    if why:
        print(f"{name} left out: {why}")
    return not why


if __name__ == "__main__":
    sys.exit(main())
