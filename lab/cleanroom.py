"""A clean room: runs the README's commands in a fresh Debian root, ``nox -s cleanroom -- bookworm trixie``.

A developer's machine has packages installed by hand; this root has only Debian's minimal base, python3, git and
ca-certificates. It is entered in its own mount, pid, ipc and uts namespaces (pivot_root(2)), so everything run in it,
and every mount, ends with its first process. Network, /dev, /sys and cgroups are this machine's, so that engines can
start in it. So are the package mirrors: apt's sources and network settings, pip's configuration, and additional
certificate authorities.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from cntr.linux import syscalls

from . import sources
from .errors import LabError

CHECKOUT = Path(__file__).resolve().parents[1]
CACHE = CHECKOUT / ".lab" / "cleanroom"
SUITES = ("bookworm", "trixie")
FRESH = ("python3", "git", "ca-certificates")  # on top of minbase: what the README requires
NAMESPACES = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
AUTHORITIES = Path("/usr/local/share/ca-certificates")
ROOM_CHECKOUT = "/srv/cntr"


def readme_commands() -> list[str]:
    """The commands of the README's first code block, unchanged."""
    block = re.search(r"```(?:sh|console)\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    if block is None:
        raise SystemExit("cleanroom: README.md has no block of shell commands")
    commands = [line.partition("#")[0].strip() for line in block.group(1).splitlines()]
    return [command for command in commands if command.startswith("sudo ./bootstrap")]


# --- settings of this machine
# ------------------------------------------------------------------------------------------


def mirrors(suite: str) -> list[str]:
    """apt sources (sources.list(5)) of SUITE on this machine's mirrors: the archive, its updates, the security archive."""
    archive, security = sources.known_mirrors()
    security = security or archive + "-security"
    rows = ((archive, suite), (archive, f"{suite}-updates"), (security, f"{suite}-security"))
    return [f"deb [signed-by={KEYRING}] {uri} {name} main" for uri, name in rows]


def apt_settings() -> list[str]:
    """This machine's apt network settings: proxies, retries, date checks (apt.conf(5))."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return [line for line in dump.splitlines() if re.match(r"Acquire::(https?|Retries|Check-)[^\s]* \"[^\"]+\";", line)]


def pip_settings() -> dict[str, str]:
    """pip's effective global configuration as PIP_* variables, and the proxies' variables."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for section, key, value in re.findall(r"^(global|:env:)\.([\w.-]+)='(.*)'$", listed, re.MULTILINE):
        if section == ":env:" or f"PIP_{key.strip('.').upper().replace('-', '_')}" not in found:
            found[f"PIP_{key.strip('.').upper().replace('-', '_')}"] = value.replace("\\n", " ")
    return found | {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}


def local_directories(settings: dict[str, str]) -> Iterator[str]:
    """The directories of this machine that pip's settings name (find-links, file: indexes)."""
    for word in " ".join(settings.values()).replace("file://", " ").split():
        if word.startswith("/") and os.path.isdir(word):
            path = Path(os.path.normpath(word))
            # The pages of an index (PEP 503) refer to files beside it.
            yield str(path.parent if path.name == "simple" else path)


# --- the room ---------------------------------------------------------------------------------------------------------


def tarball(suite: str) -> Path:
    """The room's root as a tar archive, made by mmdebstrap(1) once per suite and cached."""
    lines = mirrors(suite)
    key = hashlib.sha256("\n".join((suite, *FRESH, *lines)).encode()).hexdigest()[:12]
    cached = CACHE / f"{suite}-{key}.tar"
    if cached.exists():
        return cached
    CACHE.mkdir(parents=True, exist_ok=True)
    print(f"cleanroom: making Debian {suite} with {' '.join(FRESH)} (only once: it is kept in {CACHE})", flush=True)
    options = [f"--aptopt={line}" for line in apt_settings()]
    partial = cached.with_suffix(f".{os.getpid()}.tar")
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(FRESH)}",
        *options,
        suite,
        str(partial),
    ]
    try:
        subprocess.run([*command, "-"], input="\n".join(lines), text=True, check=True)
        partial.rename(cached)
    finally:
        partial.unlink(missing_ok=True)
    return cached


def furnish(root: Path, suite: str, base: Path | None = None) -> None:
    """Unpack the root (BASE, else SUITE's), copy the settings in, and the committed files of the checkout."""
    subprocess.run(["tar", "-C", root, "-xpf", base or tarball(suite), "--numeric-owner"], check=True)
    (root / "etc/apt/apt.conf.d/90cleanroom").write_text("\n".join(apt_settings()) + "\n")
    for name in ("resolv.conf", "hosts"):
        shutil.copy(f"/etc/{name}", root / "etc" / name)
    if AUTHORITIES.is_dir() and any(AUTHORITIES.iterdir()):
        shutil.copytree(AUTHORITIES, root / AUTHORITIES.relative_to("/"), dirs_exist_ok=True)
        run_quietly(["chroot", str(root), "update-ca-certificates"])
    clone = ["git", "clone", "-q", "--no-hardlinks", str(CHECKOUT), str(root / ROOM_CHECKOUT.lstrip("/"))]
    run_quietly(clone)
    dirty = subprocess.run(["git", "-C", CHECKOUT, "status", "--porcelain"], capture_output=True, text=True, check=True)
    if dirty.stdout:
        print("cleanroom: uncommitted changes are not in the room", flush=True)


def run_quietly(command: list[str]) -> None:
    """Run COMMAND; its output is shown only if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"cleanroom: {shlex.join(command)} failed with status {done.returncode}\n{done.stdout}")


def enter(root: Path, directories: list[str]) -> None:
    """Make ROOT the root of a new mount namespace. The caller is already in one, and is pid 1 of a pid namespace."""
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount(str(root), str(root), None, syscalls.MS_BIND)
    for directory in ("/dev", "/sys", *directories):
        inside = root / directory.lstrip("/")
        inside.mkdir(parents=True, exist_ok=True)
        syscalls.mount(directory, str(inside), None, syscalls.MS_BIND | syscalls.MS_REC)
    for fstype, directory, options in (("proc", "proc", None), ("tmpfs", "run", "mode=755")):
        syscalls.mount(fstype, str(root / directory), fstype, syscalls.MS_NOSUID | syscalls.MS_NODEV, options)
    os.chdir(root)
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")
    socket.sethostname("cleanroom")


def run_inside(root: Path, command: str, environment: dict[str, str], directories: list[str]) -> int:
    """Run a shell COMMAND in the room with our output; return its exit status. Nothing it started outlives it."""
    starter = os.fork()
    if starter == 0:
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            syscalls.unshare(NAMESPACES)
            first = os.fork()
            if first:
                os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            enter(root, directories)
            os._exit(_first_process(command, environment))
        except BaseException:  # noqa: BLE001  a fork must not come back into the caller's code
            traceback.print_exc()
        finally:
            os._exit(125)
    return os.waitstatus_to_exitcode(os.waitpid(starter, 0)[1])


def _first_process(command: str, environment: dict[str, str]) -> int:
    """Pid 1 of the room: run the command and reap orphans."""
    worker = os.fork()
    if worker == 0:
        os.chdir(ROOM_CHECKOUT)
        os.execve("/bin/sh", ["/bin/sh", "-c", command], environment)
    while True:
        pid, status = os.wait()
        if pid == worker:
            return os.waitstatus_to_exitcode(status) & 0xFF


def prove(suite: str, commands: list[str]) -> list[tuple[str, int, float]]:
    """[(command, exit status, seconds)] of COMMANDS, one after another in one new room; stops at the first failure."""
    settings = pip_settings()
    directories = list(dict.fromkeys(local_directories(settings)))
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}  # fmt: skip
    results: list[tuple[str, int, float]] = []
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{suite}-", dir=CACHE) as name:
        root = Path(name)
        root.chmod(0o755)
        furnish(root, suite)
        for command in commands:
            print(f"\ncleanroom: Debian {suite}: {command}", flush=True)
            begun = time.monotonic()
            # We are root in the room, and a minimal Debian has no sudo.
            status = run_inside(root, command.removeprefix("sudo "), environment | settings, directories)
            results.append((command, status, time.monotonic() - begun))
            if status:
                break
    return results


def main() -> int:
    """The command line; 0 if every command passed in every suite."""
    parser = argparse.ArgumentParser(prog="python -m lab.cleanroom", description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", help=f"Debian suites (default: {' '.join(SUITES)})")
    parser.add_argument("--command", action="append", help="run this instead of the README's commands (repeatable)")
    options = parser.parse_args()
    commands = options.command or readme_commands()
    CACHE.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):  # the room is removed before we go
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        results = {suite: prove(suite, commands) for suite in options.suites or SUITES}
    except LabError as error:
        print(f"cleanroom: {error.message}", file=sys.stderr)
        return 1
    print()
    for suite, rows in results.items():
        for command, status, seconds in rows:
            verdict = "PASS" if status == 0 else f"FAIL (exit status {status})"
            print(f"cleanroom: {suite.ljust(8)}  {command.ljust(36)}  {verdict}  {seconds:.0f} s")
        for command in commands[len(rows) :]:
            print(f"cleanroom: {suite.ljust(8)}  {command.ljust(36)}  not run")
    return 0 if all(status == 0 for rows in results.values() for _, status, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
