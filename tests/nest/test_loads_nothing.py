"""After the target's mount namespace was entered, nothing is loaded from it: no import, codec, name service, dlopen.

strace(1) shows what the session's processes open between their first setns(2) and the session's execve(2). Wherever the
host's cntr reads a file, the target has a poisoned copy: Python modules leave a mark when they are run; libraries,
locales and name service configuration are garbage.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.nest.busybox import CNTR, REPOSITORY, BusyboxContainer, run

CALLS = "open,openat,openat2,execve,execveat,stat,lstat,newfstatat,statx,readlink,readlinkat,access,faccessat,faccessat2,uselib"
CALLS += ",setns,chroot,pivot_root,unshare,clone,clone3,fork,vfork,chdir,fchdir"
POISON = pathlib.PurePath("/poisoned")  # where the poison leaves its mark, in the target's tree or in the tools'
EXTRA = (
    "/etc/nsswitch.conf", "/etc/ld.so.cache", "/etc/ld.so.preload", "/usr/lib/locale/locale-archive",
    "/usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache", "/usr/lib/x86_64-linux-gnu/gconv/gconv-modules",
    "/lib/x86_64-linux-gnu/libnss_files.so.2", "/usr/lib/ssl/openssl.cnf", "/etc/localtime", "/usr/share/zoneinfo/UTC",
)  # fmt: skip


class Trace:
    """The system calls of one run: [(pid, call, text)] in time order."""

    def __init__(self, path: pathlib.Path) -> None:
        self.calls = []
        for line in path.read_text(errors="replace").splitlines():
            if found := re.match(r"(\d+) +(\w+)\((.*)", line):
                self.calls.append((int(found[1]), found[2], found[3]))
            elif found := re.match(r"(\d+) +<\.\.\. (\w+) resumed>(.*)", line):
                self.calls.append((int(found[1]), f"{found[2]} resumed", found[3]))

    def opened(self) -> set[str]:
        """The absolute paths of regular files that any process opened before the first setns(2)."""
        found = set()
        for _, call, text in self.calls:
            if call == "setns":
                break
            if (
                call in ("open", "openat", "execve")
                and "ENOENT" not in text
                and (path := re.search(r'"(/[^"]+)"', text))
            ):
                found.add(path[1])
        return {path for path in found if os.path.isfile(path) and not path.startswith(("/proc", "/sys", "/dev"))}

    def in_foreign_hands(self) -> list[str]:
        """Each call of a session's process after it first entered a mount namespace, and of its children."""
        before: set[int] = set()
        entered: set[int] = set()
        found = []
        for pid, call, text in self.calls:
            if call == "setns" and "CLONE_NEWNS" in text:
                entered.add(pid)
            elif entered and pid not in before:
                entered.add(pid)  # clone(2) returns a pid of its own pid namespace, so a new pid is the session's child
            before.add(pid)
            if pid in entered:
                found.append(f"{call}({text}")
        return found


def traced(tmp_path: pathlib.Path, *arguments: str, code: int = 0) -> tuple[Trace, subprocess.CompletedProcess[str]]:
    if not shutil.which("strace"):
        pytest.skip("not installed: strace (apt-get install)")
    log = tmp_path / "trace"
    done = subprocess.run(
        [
            "strace",
            "-f",
            "-qq",
            "--decode-pids=pidns",
            "-s",
            "300",
            "-e",
            f"trace={CALLS}",
            "-o",
            str(log),
            *CNTR,
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": REPOSITORY, "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == code, done
    return Trace(log), done


def poison(root: pathlib.Path, paths: set[str]) -> int:
    """Put a poisoned file at each of PATHS below ROOT; return their number."""
    count = 0
    for path in paths:
        file = root / path.lstrip("/")
        if file.exists() or file.is_symlink():
            continue
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            continue
        if path.endswith((".py", ".pyc")):
            file.write_text(f"open({str(POISON)!r}, 'a').write(__name__)\nraise ImportError('poisoned')\n")
        else:
            file.write_bytes(b"\x7fELF poisoned, \xff\xfe not a library\n")
        file.chmod(0o755)
        count += 1
    return count


# What a session may access: fds opened before (dirfd, ""), its own names in the nest, the command itself.
PERMITTED = (
    r'open(at2?|_tree)\(\d+, "',  # below an fd that was opened before
    r'openat2\(AT_FDCWD, "[^"]*", .*RESOLVE_IN_ROOT',  # a path in the nest by O_PATH, which reads nothing
    r'openat2\(AT_FDCWD, "[^"]*", .*RESOLVE_NO_SYMLINKS',
    r'(newfstatat|statx|readlinkat)\(\d+, "',
    r'openat2\(\d+, "(\.|proc|sys|dev|etc/(passwd|group|hosts|hostname|resolv\.conf|localtime))", .*RESOLVE_IN_ROOT',
    r'(newfstatat|statx)\(\d+, "(null)?",',  # fstat(2), and the null device of the target's /dev
    r'openat\(\d+, "thread-self/children"',  # in the host's /proc, by an fd
    r'openat\(\d+, "(self|\d+)(/oom_score_adj|/attr/(exec|current))?"',
    r'(newfstatat|stat|statx)\((AT_FDCWD, )?"(/|/var|/var/lib|/var/lib/cntr|/dev/pts|/proc|/sys|/dev|/etc)",',
    r'(chdir)\("/"\)',
    r'(chroot)\("\."\)',
    r"fchdir\(\d+\)",
    r'openat\(\d+, "[^/"]+", O_WRONLY\|O_CREAT\|O_EXCL',  # a stand-in's mount points, made in its tmpfs
    r'pivot_root\("\.", "\."\)',
    r"(setns|unshare|clone|clone3|fork|vfork)\(",
    r'openat\(AT_FDCWD, "/(var|var/lib)?", O_RDONLY\|O_NONBLOCK\|O_CLOEXEC\|O_DIRECTORY\)',  # the stand-in's listing
    r'(newfstatat|lstat|statx|readlink|readlinkat)\((AT_FDCWD, )?"/(var/|var/lib/)?[^/"]+"',  # its entries
)


def unexpected(calls: list[str], command: str) -> list[str]:
    """The calls before COMMAND's exec that are not on the list."""
    found = []
    for call in calls:
        if call.startswith(("execve(", "execveat(")):
            if " = 0" in call or "resumed" in call or "unfinished" in call:
                assert f'/{command}"' in call, call
                return found
            continue  # a directory of PATH without the command
        if " resumed(" in call:
            continue
        whole = call.replace(" <unfinished ...>", ")")  # its result is on another line
        if not any(re.match(pattern, whole) for pattern in PERMITTED):
            found.append(call)
    raise AssertionError(f"{command} was never run: {calls[-5:]}")


@pytest.mark.parametrize("verb", ["attach", "exec"])
def test_nothing_is_loaded_from_a_poisoned_container(tmp_path, verb):
    root = tmp_path / "root"
    root.mkdir()
    with BusyboxContainer() as plain:
        trace, _ = traced(tmp_path, verb, str(plain.pid), "--", "cat", "/proc/self/status")
    paths = {path for path in trace.opened() if not path.startswith(str(tmp_path))} | set(EXTRA)
    modules = {path for path in paths if path.endswith((".py", ".pyc"))}
    assert len(modules) > 10, "the host's cntr consists of modules"
    assert any("libc.so" in path for path in paths)
    everything = paths | {re.sub(r"__pycache__/(\w+)\..*", r"\1.py", path) for path in modules}
    # Modules that are not loaded yet, but might be needed on an error path.
    library = pathlib.Path(os.__file__).parent
    everything |= {str(path) for path in (*library.glob("*.py"), *library.glob("encodings/*.py"))}
    assert poison(root, everything) > 100

    with BusyboxContainer(root=root) as container:
        trace, done = traced(tmp_path, verb, str(container.pid), "--", "cat", "/proc/self/status")
        assert "Name:\tcat" in done.stdout
        assert not (root / "poisoned").exists()
        assert unexpected(trace.in_foreign_hands(), "cat") == []


def test_a_failing_step_loads_nothing_either(tmp_path):
    """Code for errors must not be imported from the target's files either."""
    root = tmp_path / "root"
    root.mkdir()
    library = pathlib.Path(os.__file__).parent
    poison(
        root,
        {
            str(path)
            for path in (*library.glob("*.py"), *library.glob("encodings/*.py"), *library.glob("*/__init__.py"))
        },
    )
    with BusyboxContainer(root=root) as container:
        for arguments, code in ((["-w", "/nowhere"], 125), ([], 127)):
            for verb in ("attach", "exec"):
                done = getattr(container, verb)(*arguments, "--", "no-such-command")
                assert done.returncode == code, done
                assert done.stderr.count("\n") == 2, done.stderr
        assert not (root / "poisoned").exists()


def test_tools_of_a_poisoned_container_are_not_loaded_before_the_exec(tmp_path):
    """The other tree that a session enters: the tools', if they are another container's."""
    root = tmp_path / "root"
    root.mkdir()
    library = pathlib.Path(os.__file__).parent
    poison(root, {str(path) for path in (*library.glob("*.py"), *library.glob("encodings/*.py"))} | set(EXTRA))
    with BusyboxContainer(root=root) as tools, BusyboxContainer() as container:
        trace, done = traced(
            tmp_path, "attach", str(container.pid), "--tools", str(tools.pid), "--", "/bin/cat", "/proc/self/status"
        )
        assert "Name:\tcat" in done.stdout
        assert not (root / "poisoned").exists()
        assert unexpected(trace.in_foreign_hands(), "cat") == []


# --- every other command, and its errors ------------------------------------------------------------------------------

# What an import, a codec, a name service, a locale, a time zone or dlopen(3) would look at, by an absolute path.
LIBRARY = re.compile(
    r'"/[^"]*(\.pyc?|\.so[.\d]*|\.pth|\.zip|python3[^"/]*|encodings|gconv[^"]*|locale[^"]*|nsswitch\.conf|zoneinfo[^"]*)"'
)
BY_PATH = re.compile(
    r"(openat|newfstatat|statx|readlinkat|faccessat2?|openat2)\(AT_FDCWD, |(open|stat|lstat|access|readlink|uselib)\("
)
ODD = "odd \x1b[31m\udcff\n\U0010ffff"  # characters that messages must escape
EVERYWHERE = ("sitecustomize", "usercustomize", "encodings/idna", "encodings/unicode_escape", "encodings/punycode")


def poisoned_root(tmp_path: pathlib.Path) -> pathlib.Path:
    """A root with poisoned modules and libraries wherever this interpreter and the loader look."""
    root = tmp_path / "root"
    root.mkdir()
    library = pathlib.Path(os.__file__).parent
    paths = {str(path) for path in library.glob("*.py")} | set(EXTRA)
    paths |= {
        str(path)
        for name in ("encodings", "importlib", "ctypes", "json", "collections")
        for path in library.glob(f"{name}/*.py")
    }
    paths |= {f"{place}/{name}.py" for place in (*sys.path, REPOSITORY) if place.startswith("/") for name in EVERYWHERE}
    paths |= {str(path) for path in pathlib.Path(REPOSITORY, "cntr").rglob("*.py")}
    paths |= {str(path) for path in library.glob("lib-dynload/*.so")}
    assert poison(root, paths) > 300
    return root


def loaded(trace: Trace) -> list[str]:
    """The lookups typical of a loader by processes in a container, until their execve(2)."""
    entered: dict[int, int] = {}  # pid → index of its first call there
    for index, (pid, call, text) in enumerate(trace.calls):
        if call == "setns" and "CLONE_NEWNS" in text:
            entered.setdefault(pid, index)
        if call.split()[0] in ("clone", "clone3", "fork", "vfork") and pid in entered and "= -1" not in text:
            child = re.search(r"(\d+) in strace's PID NS", text) or re.search(r"= (\d+)$", text)
            if child:
                entered.setdefault(int(child[1]), 0)
    found, started = [], set()
    for index, (pid, call, text) in enumerate(trace.calls):
        if call.startswith(("execve", "execveat")) and text.endswith(" = 0"):
            started.add(pid)
        inside = index > entered.get(pid, len(trace.calls)) and pid not in started
        if inside and BY_PATH.match(f"{call}({text}") and LIBRARY.search(text):
            found.append(f"{pid} {call}({text}")
    return found


def fill(root: pathlib.Path) -> None:
    """Files to copy: odd names, kinds and links, attributes, and one that can't be read completely."""
    (root / "d/sub").mkdir(parents=True)
    (root / "d" / ODD).write_text("x")
    (root / "d/sub/file").write_text("x" * 1000)
    os.setxattr(root / "d/sub/file", "user.x", b"y")
    os.link(root / "d/sub/file", root / "d/zhard")
    os.mkfifo(root / "d/fifo")
    os.mkfifo(root / f"d/sub/{ODD}")
    (root / "d/link").symlink_to(ODD)
    (root / "odd-link").symlink_to("/proc/self/fd/1")
    os.mkfifo(root / ODD)
    (root / "su").write_text("x")
    (root / "su").chmod(0o6755)


COPIES = (
    (("{at}/d", "{tmp}/out"), 1),
    (("{at}/d/.", "{tmp}/out2", "-a", "-L"), 1),
    (("{at}/su", "{tmp}/su", "-a"), 0),
    (("{tmp}/d", "{at}/in", "-a"), 1),
    (("{tmp}/su", "{at}/dev/full-of-it/x"), 125),
    (("{tmp}/big", "{at}/dev/big"), 125),  # a tmpfs of 64 KiB
    (("{tmp}/su", "{at}/sys/no"), 125),  # read-only
    (("{tmp}/su", "{at}/odd-link"), 125),
    (("{at}/odd-link", "{tmp}/got"), 125),
    (("{at}/" + ODD, "{tmp}/got"), 125),
    (("{at}/no/" + ODD, "{tmp}/got"), 125),
    (("{at}/d", "/dev/stdout"), 125),
    (("{at}/su", "/dev/stdout"), 0),
)


def test_cp_loads_nothing_either_way_whatever_goes_wrong(tmp_path):
    root = poisoned_root(tmp_path)
    fill(root)
    fill(tmp_path)
    (tmp_path / "big").write_bytes(bytes(1 << 20))
    with BusyboxContainer(root=root) as container:
        for words, code in COPIES:
            filled = [word.format(at=f"{container.pid}:", tmp=tmp_path) for word in words]
            trace, done = traced(tmp_path, "cp", *filled, code=code)
            assert loaded(trace) == [], words
            assert any("openat2(" in call for call in trace.in_foreign_hands()), (words, done)
            assert "\x1b" not in done.stderr
        assert not (root / "poisoned").exists()
    assert not (tmp_path / "poisoned").exists()


@pytest.mark.parametrize("transport", ["mount", "fuse"])
def test_a_session_on_either_transport_with_foreign_tools_loads_nothing(tmp_path, transport):
    """The file server must not load anything from the tree that it serves."""
    root = poisoned_root(tmp_path)
    with BusyboxContainer(root=root) as container:
        for words, code in (
            (("--", "/bin/cat", "/proc/self/status"), 0),
            (("--", "no-such-command"), 127),
            (("-w", f"/no/{ODD}", "--", "/bin/true"), 125),
        ):
            for tools in ("host", str(container.pid)):
                options = ("--tools", tools, "--transport", transport)
                trace, _ = traced(tmp_path, "attach", str(container.pid), *options, *words, code=code)
                assert loaded(trace) == [], (tools, words)
        assert not (root / "poisoned").exists()


def test_what_only_looks_enters_nothing(tmp_path):
    """ps, inspect, doctor and mount may be given a container's files, and stay on the host's side."""
    root = poisoned_root(tmp_path)
    fill(root)
    with BusyboxContainer(root=root) as container:
        for words in (("ps",), ("inspect", str(container.pid)), ("inspect", "--json", str(container.pid)), ("doctor",)):
            trace, done = traced(tmp_path, *words)
            entered = [
                call for call in trace.in_foreign_hands() if not call.startswith(("setns", "clone", "fork", "vfork"))
            ]
            assert loaded(trace) == [], (words, entered[:5])
            assert "Traceback" not in done.stderr
        assert not (root / "poisoned").exists()


def test_a_mounted_container_is_served_and_not_loaded_from(tmp_path):
    root = poisoned_root(tmp_path)
    fill(root)
    there = tmp_path / "there"
    there.mkdir()
    with BusyboxContainer(root=root) as container:
        done = run("mount", f"/proc/{container.pid}/root", str(there))
        try:
            assert (done.returncode, done.stderr) == (0, "")
            assert (there / "d" / ODD).read_text() == "x"
            with pytest.raises(FileNotFoundError):
                (there / "no" / ODD).read_text()
        finally:
            subprocess.run(["umount", there], check=True)
        assert not (root / "poisoned").exists()
