"""The server's memory while ``find`` walks very many files: peak resident set, fds, seconds."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from testkit.servers import Server

BYTES_PER_FILE = 640  # an inode of 256 bytes, its entry, and directories, times two
PER_DIRECTORY = 1000


@contextlib.contextmanager
def filesystem(base: Path, files: int) -> Iterator[Path]:
    """A separate ext4 with room for so many inodes, in an image below BASE, removed afterwards."""
    base.mkdir(parents=True, exist_ok=True)
    image, mountpoint = base / "image", base / "source"
    mountpoint.mkdir()
    with open(image, "wb") as file:
        file.truncate((64 << 20) + files * BYTES_PER_FILE)
    words = [
        "mkfs.ext4",
        "-q",
        "-F",
        "-I",
        "256",
        "-O",
        "^has_journal",
        "-m",
        "0",
        "-N",
        str(files + files // 100 + 1000),
    ]
    subprocess.run([*words, image], check=True)
    subprocess.run(["mount", "-o", "loop,noatime", image, mountpoint], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", mountpoint], check=True)
        shutil.rmtree(base)


def fill(directory: Path, files: int, per_directory: int) -> None:
    """Create FILES empty files, all distinct inodes."""
    for number in range(files):
        if number % per_directory == 0:
            path = directory / f"{number // per_directory:04d}"
            path.mkdir()
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
        os.mknod(f"{number:07d}", 0o100644, dir_fd=fd)
        if number % per_directory == per_directory - 1 or number == files - 1:
            os.close(fd)


def peak_of_find(server: Server, files: int) -> dict[str, float]:
    """Peak resident memory (MB) of the server's largest process over two walks of its mount, open fds afterwards, and
    seconds.
    """
    started = time.perf_counter()
    for _ in range(2):
        done = subprocess.run(
            ["find", server.mountpoint, "-type", "f", "-size", "0", "-printf", "."], check=True, stdout=subprocess.PIPE
        )
        if len(done.stdout) != files:
            raise RuntimeError(f"find saw {len(done.stdout)} of {files} files")
    seconds = (time.perf_counter() - started) / 2
    peak, fds = 0, 0
    for pid in server.processes():
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        peak = max(peak, int(status["VmHWM"].split()[0]))
        fds = max(fds, len(os.listdir(f"/proc/{pid}/fd")))
    return {"files": files, "peak_mb": round(peak / 1024, 1), "fds": fds, "seconds": round(seconds, 1)}


def measure(base: Path, bindings: list[str], files: int) -> dict[str, dict[str, float]]:
    """Measure each binding on a tree with 1000 files per directory, and the default one on a single
    directory with all files.

    On that directory pyfuse3 would take three minutes longer; it needs as much memory as on the
    tree, and a sixth more.
    """
    found: dict[str, dict[str, float]] = {}
    for shape, per_directory in (("", PER_DIRECTORY), (", one directory", files)):
        with filesystem(base, files) as source:
            fill(source, files, per_directory)
            mountpoint = base / "mount"
            mountpoint.mkdir()
            for binding in bindings if not shape else [name for name in bindings if name == "devfuse"]:
                server = Server(binding, source, mountpoint, base / "log")
                server.start()
                try:
                    found[binding + shape] = peak_of_find(server, files)
                finally:
                    server.stop()
                print(f"{binding}{shape}: {found[binding + shape]}", flush=True)
    return found
