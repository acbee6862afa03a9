"""After entering the target's mount namespace nothing is loaded from it: no import, codec, name service, dlopen.

strace(1) tells what the session's processes open between their first setns(2) and the session's execve(2). The target holds, at the
very paths that the host's cntr reads from, a poisoned copy of each: Python modules that leave a mark when they are run, and
libraries, locales and name service configuration that are garbage.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from tests.nest.box import CNTR, REPOSITORY, Box

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
        """The absolute paths of regular files that were opened, by anybody, before the first setns(2)."""
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
        """Each call of a session's process from its first entry into a mount namespace on, its children's too."""
        before: set[int] = set()
        entered: set[int] = set()
        found = []
        for pid, call, text in self.calls:
            if call == "setns" and "CLONE_NEWNS" in text:
                entered.add(pid)
            elif entered and pid not in before:
                entered.add(
                    pid
                )  # clone(2) tells the number of its own pid namespace: a newcomer is the session's child
            before.add(pid)
            if pid in entered:
                found.append(f"{call}({text}")
        return found


def traced(tmp_path: pathlib.Path, *arguments: str) -> tuple[Trace, subprocess.CompletedProcess[str]]:
    if not shutil.which("strace"):
        pytest.skip("not installed: strace (apt-get install)")
    log = tmp_path / "trace"
    done = subprocess.run(
        ["strace", "-f", "-qq", "-s", "300", "-e", f"trace={CALLS}", "-o", str(log), *CNTR, *arguments],
        env={**os.environ, "PYTHONPATH": REPOSITORY, "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done
    return Trace(log), done


def poison(root: pathlib.Path, paths: set[str]) -> int:
    """Put a poisoned file at each of PATHS below ROOT; how many."""
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


# What a session may look at on its way: through fds opened before (dirfd, ""), its own names in the nest, the command itself.
PERMITTED = (
    r'open(at2?|_tree)\(\d+, "',  # below a fd that was opened before
    r'openat2\(AT_FDCWD, "[^"]*", .*RESOLVE_IN_ROOT',  # a place in the nest: O_PATH, nothing is read there
    r'openat2\(AT_FDCWD, "[^"]*", .*RESOLVE_NO_SYMLINKS',
    r'(newfstatat|statx|readlinkat)\(\d+, "',
    r'openat2\(\d+, "(\.|proc|sys|dev|etc/(passwd|group|hosts|hostname|resolv\.conf|localtime))", .*RESOLVE_IN_ROOT',
    r'(newfstatat|statx)\(\d+, "(null)?",',  # fstat(2), and the null device of the target's /dev
    r'openat\(\d+, "thread-self/children"',  # of the host's /proc, by its fd
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
            continue  # a place along PATH where the command is not
        if " resumed(" in call:
            continue
        if not any(re.match(pattern, call) for pattern in PERMITTED):
            found.append(call)
    raise AssertionError(f"{command} was never run: {calls[-5:]}")


@pytest.mark.parametrize("verb", ["attach", "exec"])
def test_nothing_is_loaded_from_a_poisoned_container(tmp_path, verb):
    root = tmp_path / "root"
    root.mkdir()
    with Box() as plain:
        trace, _ = traced(tmp_path, verb, str(plain.pid), "--", "cat", "/proc/self/status")
    paths = {path for path in trace.opened() if not path.startswith(str(tmp_path))} | set(EXTRA)
    modules = {path for path in paths if path.endswith((".py", ".pyc"))}
    assert len(modules) > 10, "the host's cntr is made of modules"
    assert any("libc.so" in path for path in paths)
    everything = paths | {re.sub(r"__pycache__/(\w+)\..*", r"\1.py", path) for path in modules}
    # Modules that were not needed so far, but might be on some way out.
    library = pathlib.Path(os.__file__).parent
    everything |= {str(path) for path in (*library.glob("*.py"), *library.glob("encodings/*.py"))}
    assert poison(root, everything) > 100

    with Box(root=root) as box:
        trace, done = traced(tmp_path, verb, str(box.pid), "--", "cat", "/proc/self/status")
        assert "Name:\tcat" in done.stdout
        assert not (root / "poisoned").exists()
        assert unexpected(trace.in_foreign_hands(), "cat") == []


def test_a_failing_step_loads_nothing_either(tmp_path):
    """The way out of an error is code too, and must not be imported where the target's files are."""
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
    with Box(root=root) as box:
        for arguments, code in ((["-w", "/nowhere"], 125), ([], 127)):
            for verb in ("attach", "exec"):
                done = getattr(box, verb)(*arguments, "--", "no-such-command")
                assert done.returncode == code, done
                assert done.stderr.count("\n") == 2, done.stderr
        assert not (root / "poisoned").exists()


def test_tools_of_a_poisoned_container_are_not_loaded_before_the_exec(tmp_path):
    """The other tree that a session enters: the tools' own, when they are another container's."""
    root = tmp_path / "root"
    root.mkdir()
    library = pathlib.Path(os.__file__).parent
    poison(root, {str(path) for path in (*library.glob("*.py"), *library.glob("encodings/*.py"))} | set(EXTRA))
    with Box(root=root) as tools, Box() as box:
        trace, done = traced(
            tmp_path, "attach", str(box.pid), "--tools", str(tools.pid), "--", "/bin/cat", "/proc/self/status"
        )
        assert "Name:\tcat" in done.stdout
        assert not (root / "poisoned").exists()
        assert unexpected(trace.in_foreign_hands(), "cat") == []
