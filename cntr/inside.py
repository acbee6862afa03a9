"""``cntr exec`` from inside a session: the container's own command in its own root, which is mounted right here.

In a session we have the container's capabilities, not the host's: no namespace can be joined, but all but the mount namespace are
the container's already, and its tree is at CNTR_BASE_DIR.
"""

from __future__ import annotations

import errno
import os

from cntr import kernel, procfs
from cntr.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, CntrError, printable
from cntr.nest import BASE_DIR


def run(argv: list[str], settings: list[str], directory: str) -> int:
    """Change root and become the command; returns only by raising CntrError."""
    base = os.environ.get("CNTR_BASE_DIR", BASE_DIR)
    environment = _environment()
    for setting in settings:
        key, _, value = setting.partition("=")
        environment[key] = value
    uid, gid = os.getuid(), os.getgid()
    try:
        os.chroot(base)
    except PermissionError:
        # Without CAP_SYS_CHROOT (--cap-drop ALL) a user namespace of one id gives it, for this one call (user_namespaces(7)).
        try:
            kernel.unshare(kernel.CLONE_NEWUSER)
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as stream:
                    stream.write(text)
            os.chroot(base)
        except OSError as error:
            raise CntrError(
                f"enter {printable(base)}: {error.strerror}", "run `cntr exec TARGET` on the host instead"
            ) from None
    except OSError as error:
        raise CntrError(f"enter {printable(base)}: {error.strerror}", "is this shell a cntr session?") from None
    try:
        os.chdir(directory)
    except OSError as error:
        raise CntrError(
            f"-w {printable(directory)}: {error.strerror}", "it is a directory of the container's own tree"
        ) from None
    _exec(argv, environment)
    return 0


def _environment() -> dict[str, str]:
    """The container's own, from its process; readable by the session's CAP_SYS_PTRACE."""
    try:
        found = procfs.environ(procfs.read(f"/proc/{int(os.environ.get('CNTR_TARGET_PID', '1'))}/environ"))
    except (OSError, ValueError):
        found = dict(os.environ)
    found.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if "TERM" in os.environ:
        found["TERM"] = os.environ["TERM"]
    return found


def _exec(argv: list[str], environment: dict[str, str]) -> None:
    paths = [argv[0]] if "/" in argv[0] else [f"{d or '.'}/{argv[0]}" for d in environment["PATH"].split(":")]
    denied: OSError | None = None
    for path in paths:
        try:
            os.execve(path, argv, environment)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                denied = denied or error
    what = f"run {printable(argv[0])} in the container"
    if denied:
        raise CntrError(f"{what}: {denied.strerror}", "is it a program of this machine's kind?", EXIT_NOT_EXECUTABLE)
    raise CntrError(
        f"{what}: no such program",
        "the container has no shell? leave exec out: your own tools are right here",
        EXIT_NOT_FOUND,
    )
