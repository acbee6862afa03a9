"""Trees to copy, and what must be equal afterwards."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess
import sys

CNTR = (sys.executable, "-m", "cntr")

ODD_NAMES = (
    *(b"plain", b"with space", b"new\nline", b"tab\t", b"-rf", b"--", b"\xff\xfe not utf-8", "grün".encode(), b"..."),
    *(b"..x", b":", b"a:", b"\x1b[31mred", b"'\"$`\\", b"*", b"%s{}", b"n" * 255, b"\xf0\x9f\x90\x8d", b" ", b"\x01"),
)


def cp(source: object, destination: object, *words: str, **options) -> subprocess.CompletedProcess:
    """Run ``cntr cp``; paths may be bytes."""
    given = [os.fsencode(part) if isinstance(part, str) else bytes(part) for part in (source, destination)]
    return subprocess.run([*CNTR, "cp", *words, *given], capture_output=True, timeout=100, **options)


def done(result: subprocess.CompletedProcess) -> None:
    """Assert that everything was copied, without a message except for the note on whose container it is."""
    said = [line for line in result.stderr.splitlines() if not line.endswith(b", not of root")]
    assert (result.returncode, said, result.stdout) == (0, [], b""), result


def make_tree(top: pathlib.Path) -> None:
    """Make everything that a copy keeps: odd names, modes, times in ns, links of both kinds, holes, attributes, empty
    directories.
    """
    top.mkdir()
    for index, name in enumerate(ODD_NAMES):
        file = os.path.join(os.fsencode(top), name)
        with open(file, "wb") as stream:
            stream.write(name * index)
        os.chmod(file, (0o644, 0o600, 0o755, 0o400, 0o777, 0o000)[index % 6])
        os.utime(file, ns=(index * 10**15, 10**17 + index * 123456789))
    for name, seconds in (("future", 10_413_792_000), ("past", -(10**9))):  # in the years 2300 and 1938
        (top / name).touch()
        os.utime(top / name, ns=(seconds * 10**9, seconds * 10**9 + 123_456_789))
    (top / "empty").mkdir(mode=0o711)
    inner = top / "inner" / "deeper"
    inner.mkdir(parents=True)
    os.chmod(top / "inner", 0o750)
    (inner / "data").write_bytes(bytes(range(256)) * 5000)
    os.link(inner / "data", top / "hard")
    os.link(inner / "data", top / "inner" / "harder")
    os.symlink("inner/deeper/data", top / "soft")
    os.symlink("/etc/passwd", top / "absolute")
    os.symlink("no/such", top / "dangling")
    os.symlink(b"\xff\n", os.path.join(os.fsencode(top), b"odd target"))
    with open(top / "holes", "wb") as stream:
        stream.seek(1 << 20)
        stream.write(b"middle")
        stream.truncate(5 << 20)
    os.setxattr(inner / "data", "user.kept", b"\0value\xff")
    os.setxattr(inner, "user.kept", b"of a directory")
    (top / "inner").chmod(0o1770)
    os.utime(inner, ns=(1, 2_000_000_007))
    os.utime(top, ns=(1, 3_000_000_009))


def look(top: str | pathlib.Path, *, owner: bool = False) -> dict[bytes, tuple]:
    """{path below TOP: everything that a copy keeps}, without directories' link counts and atimes."""
    root, found, inodes = os.fsencode(top), {}, {}
    for directory, directories, files in os.walk(root):
        for name in [b"", *directories, *files] if directory == root else [*directories, *files]:
            path = os.path.join(directory, name) if name else root
            info = os.lstat(path)
            facts: list[object] = [stat.filemode(info.st_mode), info.st_mtime_ns]
            if owner:
                facts += [info.st_uid, info.st_gid]
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as stream:
                    facts += [stream.read(), info.st_nlink]
            if stat.S_ISLNK(info.st_mode):
                facts.append(os.readlink(path))
            else:
                facts.append({key: os.getxattr(path, key) for key in os.listxattr(path) if key.startswith("user.")})
            below = os.path.relpath(path, root)
            if info.st_nlink > 1 and stat.S_ISREG(info.st_mode):
                facts.append(inodes.setdefault(info.st_ino, len(inodes)))
            found[below] = tuple(facts)
    return dict(sorted(found.items()))


def names(top: pathlib.Path) -> set[bytes]:
    """All paths below TOP."""
    root = os.fsencode(top)
    return {
        os.path.relpath(os.path.join(d, name), root) for d, inner, files in os.walk(root) for name in [*inner, *files]
    }


def leftovers(*tops: object) -> list[str]:
    """Temporary names that were not removed."""
    return [str(path) for top in tops for path in pathlib.Path(str(top)).rglob(".cntr-cp-*")]
