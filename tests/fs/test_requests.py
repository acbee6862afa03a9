"""The number of requests that a task costs does not depend on load: the counts of bench.fs_requests must not grow."""

from __future__ import annotations

import inspect
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.fs_requests import Work, count, works
from cntr.cntrfs import probe
from testkit.servers import missing, open_to_others

pytestmark = pytest.mark.skipif(bool(missing("devfuse")), reason=missing("devfuse") or "nothing is missing")
DIRECTORIES, FILES = 4, 25
ALL = DIRECTORIES * FILES
LISTED = 2 * (DIRECTORIES + 1)  # a listing, and its end
# Whether a file to be buffered is a terminal. Since Python 3.14 read_bytes does without a buffer.
ISATTY = {} if "buffering=0" in inspect.getsource(Path.read_bytes) else {"IOCTL": 1}
TOP = {"LOOKUP": 1, "GETATTR": 1, "OPENDIR": 1}
SESSION: Mapping[str, Mapping[str, int]] = {
    "open, read, close: warm": {"OPEN": 1, "RELEASE": 1},
    "Path.read_bytes: warm": {"OPEN": 1, "RELEASE": 1, **ISATTY},
    f"read a tree of {ALL} files: cold": {**TOP, "READDIR": LISTED, "OPEN": ALL, "RELEASE": ALL},
    f"read a tree of {ALL} files: warm": {"OPEN": ALL, "RELEASE": ALL},
    f"find {ALL} files: cold": {**TOP, "READDIR": LISTED},
    f"find {ALL} files: warm": {},
}
# A read updates the access time, so attributes are requested again.
WRITABLE: Mapping[str, Mapping[str, int]] = {
    "open, read, close: warm": {"OPEN": 1, "FLUSH": 1, "RELEASE": 1},
    "create, write, close": {"LOOKUP": 1, "CREATE": 1, "GETXATTR": 1, "FLUSH": 1, "RELEASE": 1},
    "remove": {"GETATTR": 1, "UNLINK": 1},
    f"read a tree of {ALL} files: cold": {**TOP, "READDIR": LISTED, "OPEN": ALL, "FLUSH": ALL, "RELEASE": ALL},
    f"read a tree of {ALL} files: warm": {"GETATTR": ALL + DIRECTORIES + 1, "OPEN": ALL, "FLUSH": ALL, "RELEASE": ALL},
    f"find {ALL} files: warm": {"GETATTR": DIRECTORIES + 1},
    # tar sets times, owner and mode of each file; before a write or chown, the kernel asks for the
    # capabilities.
    f"untar {ALL} files": {
        "LOOKUP": ALL + DIRECTORIES + 3, "CREATE": ALL, "GETXATTR": 2 * ALL, "SETATTR": 3 * (ALL + DIRECTORIES + 1),
        "FLUSH": ALL + 1, "RELEASE": ALL + 1, "GETATTR": ALL + 3, "MKDIR": DIRECTORIES + 1, "OPEN": 1, "OPENDIR": 1,
    },
    f"rm -r {ALL} files": {
        "GETATTR": ALL + DIRECTORIES + 1, "UNLINK": ALL, "READDIR": 2 * LISTED, "RMDIR": DIRECTORIES + 1, "LOOKUP": 1,
        "OPENDIR": 1,
    },
}  # fmt: skip
WORKS = {work.name: work for work in works(DIRECTORIES, FILES)}


@pytest.fixture(scope="module", autouse=True)
def passthrough() -> None:
    try:
        probe.passthrough()
    except OSError as error:
        pytest.skip(f"the kernel has no passthrough: {error.strerror}")


def _counted(work: Work, base: Path, *words: str) -> Counter[str]:
    if work.tool and not shutil.which(work.tool):
        pytest.skip(f"{work.tool} is missing")
    open_to_others(base)
    found = count(work, "devfuse", base / "place", *words)
    found["READDIR"] += found.pop("READDIRPLUS", 0)  # the kernel chooses which
    del found["STATFS"]  # find(1) and rm(1) may ask or not
    return found


@pytest.mark.parametrize("name", SESSION)
def test_session(name: str, tmp_path: Path) -> None:
    assert +_counted(WORKS[name], tmp_path, "as_nobody") == Counter(SESSION[name])


@pytest.mark.parametrize("name", WRITABLE)
def test_writable_mount(name: str, tmp_path: Path) -> None:
    found, most = _counted(WORKS[name], tmp_path), Counter(WRITABLE[name])
    if WORKS[name].tool:
        assert not found - most, "depending on its version the tool may ask for less, not for more"
    else:
        assert +found == most
