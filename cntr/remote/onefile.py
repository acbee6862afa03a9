"""``cntr.pyz``: all of cntr in one file that runs where it is put.

A zip archive behind a few lines of sh(1); ``python3 cntr.pyz`` works too. Python compiles modules imported from an
archive every time. So the first run unpacks it into the user's cache, which keeps bytecode, and later runs find it
there by the digest of its sources. The cache is used only if it is a directory of this user alone (mode 0700);
otherwise cntr runs from the archive, slower.

The archive does not record when, where or by whom it was built: equal sources and an equal zlib give equal files.
"""

from __future__ import annotations

import os
import sys

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KEPT = 4  # unpacked builds kept: sessions of an older one may still run
ARCHIVE_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can hold

# Runs before cntr's first import, so it must parse on older Pythons. {digest} is filled in.
START = """\
import os, sys
if sys.version_info < (3, 9):
    sys.stderr.write("cntr: Python 3.9 or newer is needed, this is %d.%d: %s\\n" % (sys.version_info[:2] + (sys.executable,)))
    os._exit(125)
path = sys.argv[0] = os.path.abspath(sys.argv.pop(1))
cache = os.environ.get("CNTR_CACHE_DIR") or "/var/cache/cntr"
if os.geteuid() and not os.environ.get("CNTR_CACHE_DIR"):
    cache = (os.environ.get("XDG_CACHE_HOME") or os.environ.get("HOME", "") + "/.cache") + "/cntr"
home = cache + "/program/{digest}"
try:
    status, above = os.lstat(cache), os.path.realpath(cache)
    if status.st_mode & 0o170077 != 0o040000 or status.st_uid != os.geteuid() or not os.access(home, os.R_OK):
        raise OSError
    while above != "/":
        above = os.path.dirname(above)
        status = os.stat(above)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o1002 == 2:
            raise OSError
except OSError:
    sys.path.insert(0, path)
    from cntr.remote import onefile
    home = onefile.unpacked(path, cache, home) or path
    for name in [name for name in sys.modules if name.partition(".")[0] == "cntr"]:
        del sys.modules[name]
    del sys.path[0]
sys.path.insert(0, home)
if os.path.basename(path).startswith("mount."):
    from cntr.cntrfs.mount_helper import main
    sys.exit(main())
from cntr.__main__ import main
main()
"""
HEADER = """\
#!/bin/sh
# cntr {version} in one file (MIT license): ./cntr.pyz attach NAME. It is a program of sh(1), then a zip archive of Python's.
command -v python3 >/dev/null || {{
  echo "cntr: python3 is not on this machine" >&2
  echo "hint: install it, or run cntr from a privileged container that has it: docs/install.md" >&2
  exit 125
}}
exec python3 -IS -c '{start}' "$0" "$@"
"""
MAIN = """\
import sys
sys.argv.insert(1, sys.argv[0])
del sys.path[0]
exec({start!r})
"""


def build() -> bytes:
    """Return the content of the file. Raises OSError."""
    import io
    import zipfile

    from cntr import __version__

    found = members()
    start = START.replace("{digest}", digest(found))
    head = HEADER.format(version=__version__, start=start)
    file = io.BytesIO(head.encode())
    file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in [("__main__.py", MAIN.format(start=start).encode()), *found]:
            entry = zipfile.ZipInfo(name, ARCHIVE_TIME)
            entry.external_attr, entry.compress_type, entry.create_system = 0o100644 << 16, zipfile.ZIP_DEFLATED, 3
            archive.writestr(entry, data)
    return file.getvalue()


def digest(found: list[tuple[str, bytes]] | None = None) -> str:
    """Identify the build: a digest of the sources FOUND, by default this process's own. Raises OSError."""
    import hashlib

    return hashlib.sha256(repr(members() if found is None else found).encode()).hexdigest()[:32]


def cache_directory() -> str:
    """The directory that START names."""
    if os.environ.get("CNTR_CACHE_DIR") or not os.geteuid():
        return os.environ.get("CNTR_CACHE_DIR") or "/var/cache/cntr"
    return (os.environ.get("XDG_CACHE_HOME") or os.environ.get("HOME", "") + "/.cache") + "/cntr"


def members() -> list[tuple[str, bytes]]:
    """(name, content) of each file of the package, sorted. Raises OSError."""
    if os.path.isfile(os.path.dirname(PACKAGE)):  # run from an archive
        import zipfile

        with zipfile.ZipFile(os.path.dirname(PACKAGE)) as archive:
            return [(name, archive.read(name)) for name in archive.namelist() if name.startswith("cntr/")]
    names = [
        os.path.relpath(f"{directory}/{file}", os.path.dirname(PACKAGE))
        for directory, _, files in os.walk(PACKAGE)
        for file in files
        if file.endswith(".py") or file == "py.typed"
    ]
    found = []
    for name in sorted(names):
        with open(f"{os.path.dirname(PACKAGE)}/{name}", "rb") as opened:
            found.append((name, opened.read()))
    return found


def unpacked(path: str, cache: str, home: str) -> str:
    """Unpack the archive PATH as HOME, a directory below CACHE. "" if no directory of this user alone can be made for
    it.
    """
    import shutil
    import tempfile
    import zipfile

    place = os.path.dirname(home)
    try:
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        os.makedirs(cache, mode=0o700, exist_ok=True)
        status = os.lstat(cache)
        if status.st_mode & 0o170077 != 0o040000 or status.st_uid != os.geteuid() or not _is_kept(cache):
            return ""
        os.makedirs(place, mode=0o700, exist_ok=True)
        partial = tempfile.mkdtemp(prefix="tmp-", dir=place)
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(partial)
            os.rename(partial, home)
        except OSError:  # ENOTEMPTY: another process was faster
            if not os.path.isdir(home):
                return ""
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        _remove_old(place, home)
    except OSError:  # a read-only root, no home
        return ""
    return home


def _is_kept(path: str) -> bool:
    """Whether nobody else can put another directory in PATH's place."""
    above = os.path.realpath(path)
    while above != "/":
        above = os.path.dirname(above)
        status = os.stat(above)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o1002 == 0o2:
            return False
    return True


def _remove_old(place: str, home: str) -> None:
    """Remove all but the KEPT newest builds, and what killed processes left an hour ago or earlier. Raises OSError."""
    import shutil
    import time

    found = [(entry.stat().st_mtime, entry.path) for entry in os.scandir(place) if entry.path != home]
    builds = sorted((row for row in found if "/tmp-" not in row[1]), reverse=True)
    left = [row for row in found if "/tmp-" in row[1] and row[0] < time.time() - 3600]
    for _, path in builds[KEPT - 1 :] + left:
        away = f"{place}/tmp-{os.getpid()}-{os.path.basename(path)}"
        os.rename(path, away)
        shutil.rmtree(away, ignore_errors=True)


def write(path: str) -> None:
    """Write the file, executable, atomically. Raises OSError."""
    partial = f"{path}.{os.getpid()}"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755)
    with open(fd, "wb") as file:
        file.write(build())
    os.rename(partial, path)


if __name__ == "__main__":
    write(sys.argv[1])
