"""A7: nothing is imported, decoded or looked up where the container's files are: in every command, error paths included.

A container has a poisoned file wherever the host's Python and C library could look, which leaves a mark when it is
loaded. strace(1) also shows that no such file is opened after the first entry into a mount namespace.
"""

from __future__ import annotations

import encodings
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.attacks import kit
from tests.nest.busybox import CNTR, REPOSITORY

LOCALES = (
    "C",
    "C.UTF-8",
    "POSIX",
    "en_US.ISO-8859-1",
    "ja_JP.EUC-JP",
    "tr_TR.UTF-8",
    "../../../../evil",
    "/evil",
    "xx_YY.TRAP",
    "\udcff",
)
ODD_NAME = "n\udcff\udcfe\u20ac\U0001f600\x1b[31m"


def poison(container: kit.Hostile) -> None:
    """Put poison wherever Python, the C library or their data could be searched."""
    library = pathlib.Path(os.__file__).parent
    package = pathlib.Path(REPOSITORY, "cntr")
    paths = {
        str(path) for path in (*library.glob("*.py"), *library.glob("encodings/*.py"), *library.glob("*/__init__.py"))
    }
    paths |= {str(path) for path in package.rglob("*.py")}
    paths |= {
        f"{entry}/{name}"
        for entry in sys.path
        if entry
        for name in ("sitecustomize.py", "usercustomize.py", "_cntr.py", "pwd.py", "grp.py")
    }
    for path in paths:
        container.write(
            path,
            "open('/loot', 'a').write('canary import ' + __name__ + '\\n')\nraise ImportError('poisoned')\n",
            0o755,
        )
    for path in (
        *(
            "/etc/nsswitch.conf",
            "/etc/ld.so.preload",
            "/etc/ld.so.cache",
            "/usr/lib/locale/locale-archive",
            "/etc/localtime",
            "/evil",
            "/etc/host.conf",
        ),
        *(
            "/usr/lib/x86_64-linux-gnu/gconv/gconv-modules",
            "/usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
            "/usr/share/zoneinfo/UTC",
        ),
        *(
            "/lib/x86_64-linux-gnu/libnss_files.so.2",
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
            "/etc/python3.11/sitecustomize.py",
        ),
    ):
        container.write(path, b"\x7fELF poisoned\n", 0o755)


@pytest.fixture
def poisoned(accomplice, place):
    with kit.hostile(place, accomplice) as container:
        poison(container)
        (container.root / ODD_NAME).write_text("x")
        (container.root / "dir").mkdir()
        (container.root / "dir" / ODD_NAME).mkdir()
        os.mkfifo(container.root / "dir" / "fifo")
        (container.root / "dir" / "loop").symlink_to("loop")
        yield container


COMMANDS = {
    "attach": (["attach", "{pid}", "--", "cat", "/proc/self/status"], 0),
    "attach fuse": (["attach", "{pid}", "--transport", "fuse", "--", "cat", "/proc/self/status"], 0),
    "attach no command": (["attach", "{pid}", "--", ODD_NAME], 127),
    "attach no directory": (["attach", "{pid}", "-w", f"/{ODD_NAME}", "--", "true"], 125),
    "attach not executable": (["attach", "{pid}", "--", "/etc/passwd"], 126),
    "attach user": (["attach", "{pid}", "--user", "slim", "--", "true"], 0),
    "attach no user": (["attach", "{pid}", "--user", ODD_NAME, "--", "true"], 125),
    "attach variable": (["attach", "{pid}", "-e", f"X={ODD_NAME}", "--", "true"], 0),
    "attach killed": (["attach", "{pid}", "--", "sh", "-c", "kill -9 $$"], 137),
    "attach tools": (["attach", "{pid}", "--tools", "{pid}", "--", "/bin/cat", "/proc/self/status"], 0),
    "attach tools directory": (["attach", "{pid}", "--tools", "{root}", "--", "/bin/cat", "/proc/self/status"], 0),
    "exec": (["exec", "{pid}", "--", "cat", "/proc/self/status"], 0),
    "exec no command": (["exec", "{pid}", "--", ODD_NAME], 127),
    "exec no directory": (["exec", "{pid}", "-w", f"/{ODD_NAME}", "--", "true"], 125),
    "exec odd program": (["exec", "{pid}", "--", "/evil"], 126),
    "exec user": (["exec", "{pid}", "--user", "1000:1000", "--", "true"], 0),
    "inspect": (["inspect", "{pid}"], 0),
    "cp out": (["cp", "{pid}:/etc/passwd", "{out}"], 0),
    "cp out directory": (["cp", "{pid}:/dir", "{out}"], 1),
    "cp out odd": (["cp", f"{{pid}}:/{ODD_NAME}", "{out}"], 0),
    "cp out archive": (["cp", "-a", "{pid}:/etc", "{out}/etc"], 0),
    "cp out nothing": (["cp", f"{{pid}}:/no{ODD_NAME}", "{out}"], 125),
    "cp in": (["cp", "/etc/hostname", "{pid}:/new"], 0),
    "cp in nowhere": (["cp", "/etc/hostname", "{pid}:/no/such/dir/"], 125),
    "cp in over": (["cp", "/etc/hostname", "{pid}:/dir/loop/x"], 125),
    "ps": (["ps"], 0),
}


def run_in(container: kit.Hostile, words: list[str], out: pathlib.Path, prefix: list[str], locale: str = "C.UTF-8"):
    line = [word.format(pid=container.pid, root=container.root, out=out) for word in words]
    environment = {
        **os.environ,
        "PYTHONPATH": REPOSITORY,
        "LC_ALL": locale,
        "LANG": locale,
        "LANGUAGE": locale,
        "PATH": "/usr/bin:/bin",
    }
    return subprocess.run(
        [*prefix, *CNTR, *line],
        env={os.fsencode(k): os.fsencode(v) for k, v in environment.items()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


OPENED = re.compile(r'^(\d+) +(?:open|openat|execve|access)\((?:AT_FDCWD(?:<.*?>)?, )?"(/[^"]*)"(?!.*O_PATH).*')
# What a session may open there is known by name; modules, libraries and their data never are.
FOREIGN = re.compile(
    r"\.py[co]?$|\.so(\.|$)|gconv|locale|nsswitch|ld\.so|encodings|site-packages|/evil|__pycache__|zoneinfo"
)


def foreign_opens(log: pathlib.Path) -> list[str]:
    """Modules, libraries and data that a process of ours opened by an absolute path between entering a mount namespace
    and coming back to its own, as the file server does.
    """
    entered, found, parents, home = set(), [], {}, os.readlink("/proc/self/ns/mnt")
    for line in log.read_text(errors="replace").splitlines():
        pid = line.split()[0]
        if "setns(" in line and "CLONE_NEWNS" in line and " = 0" in line:
            (entered.discard if f"<{home}>" in line else entered.add)(pid)
        if (child := re.search(r"(?:clone|clone3|vfork|fork)\(.* = (\d+)$", line)) and pid in entered:
            parents[child[1]] = pid
            entered.add(child[1])
        if "execve(" in line and " = 0" in line:
            entered.discard(pid)  # from here on, it is the command
        if pid in entered and (match := OPENED.match(line)) and FOREIGN.search(match[2]):
            found.append(line)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_loads_anything_there(poisoned, canary, place, name):
    kit.need("strace")
    words, code = COMMANDS[name]
    out, log = place / "out", place / "trace"
    out.mkdir()
    trace = ["strace", "-fyqq", "-s", "200", "-e", "trace=%file,setns,clone,clone3,fork,vfork", "-o", str(log)]
    done = run_in(poisoned, words, out, trace)
    assert done.returncode == code, done
    assert b"Traceback" not in done.stderr, done.stderr
    assert poisoned.proofs(canary.secret) == []
    assert foreign_opens(log) == []


@pytest.mark.parametrize("locale", LOCALES[::3])
def test_no_locale_of_the_callers_is_looked_for_there(poisoned, canary, place, locale):
    out = place / "out"
    out.mkdir()
    for name in ("exec no command", "cp out directory", "cp out nothing"):
        words, code = COMMANDS[name]
        done = run_in(poisoned, words, out, [], locale)
        assert done.returncode == code, done
        assert b"Traceback" not in done.stderr, done.stderr
    assert poisoned.proofs(canary.secret) == []


def test_control_a_poisoned_module_springs(accomplice, canary, place):
    """A Python that imports in the container's root runs its modules (CVE-2019-14271)."""
    with kit.hostile(place, accomplice) as container:
        poison(container)
        code = (
            "import os,sys; from cntr.linux import syscalls; m=os.open(sys.argv[1], 0); syscalls.setns(m, 0x20000); "
            "import csv"
        )
        subprocess.run(
            [sys.executable, "-c", code, f"/proc/{container.pid}/ns/mnt"],
            env={**os.environ, "PYTHONPATH": REPOSITORY},
            capture_output=True,
            check=False,
        )
        assert container.proofs(canary.secret)[0] == "canary import csv"  # 3.15 imports traceback for what follows


def test_the_table_holds_what_python_has(poisoned):
    """The poison covers this Python's codecs."""
    assert (poisoned.root / encodings.__file__.lstrip("/")).read_text().startswith("open('/loot'")
