"""A session's environment is an allow-list; the container's variables are shown but not applied (docs/security.md).

Hundreds of variables make a tool run, load or write what they name, and no list of them is complete. So terminal
and language come from the caller, and paths and names from cntr. The container's own variables are written to a
file to read; ``-e NAME`` brings in one of them.
"""

from __future__ import annotations

import os
import stat

from cntr.errors import CntrError, printable
from cntr.linux import syscalls

# The caller's variables that the host's tools get. The second row applies to foreign tools too.
FROM_CALLER = ("COLORTERM", "EDITOR", "LANG", "LANGUAGE", "LESS", "NO_COLOR", "PAGER", "TZ", "VISUAL")
TERMINAL = ("COLORTERM", "NO_COLOR", "TERM")
NO_SHELLS = ("nologin", "false", "true", "sync", "shutdown", "halt")
SHELLS = ("/bin/bash", "/bin/sh", "/usr/bin/bash", "/usr/bin/sh", "/bin/busybox")
LONGEST = 1 << 17  # bytes of one variable: MAX_ARG_STRLEN, execve(2)


# Variables that cntr itself reads, and the engines' commands that it runs; see ``of_caller``.
OWN = frozenset(
    "PATH HOME SHELL USER LOGNAME XDG_RUNTIME_DIR XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME DOCKER_HOST DOCKER_CONTEXT DOCKER_CONFIG "
    "DOCKER_CERT_PATH DOCKER_TLS_VERIFY CONTAINER_HOST CONTAINERS_CONF CONTAINERS_STORAGE_CONF CONTAINERD_ADDRESS "
    "CONTAINERD_NAMESPACE CONTAINER_RUNTIME_ENDPOINT TERMINFO TERMINFO_DIRS LXD_DIR INCUS_DIR APPTAINER_CONFIGDIR "
    "SUDO_USER SUDO_UID SSH_CONNECTION".split()  # for the session's record
)


def of_caller(settings: list[str]) -> dict[str, str]:
    """The caller's variables, reduced to those cntr needs: no tokens, no passwords. settings: the values of ``-e``."""
    kept = OWN | set(FROM_CALLER) | set(TERMINAL) | {setting for setting in settings if "=" not in setting}
    return {key: value for key, value in os.environ.items() if key in kept or key.startswith(("CNTR_", "LC_"))}


def safe(text: str) -> str:
    """Return TEXT reduced to what a prompt may show."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._:/@-") else "?" for c in text)[:40]


def of_session(
    name: str,
    in_container: str,
    base: str,
    *,
    path: str,
    home: str,
    shell: str,
    user: str,
    uid: int,
    host_tools: bool,
    shares: list[str],
) -> dict[str, str]:
    """The environment of an attach.

    name: the target as the user named it; in_container: its pid there; base: where its tree is; shares: real paths
    of what is shared.
    """
    result = {key: os.environ[key] for key in TERMINAL if key in os.environ}
    if host_tools:
        result |= {key: value for key, value in os.environ.items() if key in FROM_CALLER or key.startswith("LC_")}
    label = safe(name)
    result |= {
        # "." would mean the current directory, which may be in the container's tree
        "PATH": ":".join(one for one in path.split(":") if one.startswith("/")),
        "HOME": home,
        "SHELL": shell,
        "USER": user,
        "LOGNAME": user,
        "XDG_RUNTIME_DIR": f"/run/user/{uid}",
        "CNTR_TARGET": name,
        "CNTR_TARGET_PID": in_container,
        "CNTR_BASE_DIR": base,
        "PS1": f"[cntr {label}] # ",
        "debian_chroot": f"cntr {label}",
        # A user who changes into the container's tree must not run anything of it by that. Git trusts a repository
        # whose owner is the user, and in a session both are root. So git ignores every repository except shares and
        # those its own configuration names.
        "PYTHONSAFEPATH": "1",
        "GIT_TEST_ASSUME_DIFFERENT_OWNER": "1",
    }
    safe_directories = [place for share in shares for place in (share, f"{share}/*")]
    for at, place in enumerate(safe_directories):
        result |= {f"GIT_CONFIG_KEY_{at}": "safe.directory", f"GIT_CONFIG_VALUE_{at}": place}
    if safe_directories:
        result["GIT_CONFIG_COUNT"] = str(len(safe_directories))
    return result


def of_container(environment: dict[str, str], default_path: str, home: str, *, terminal: bool = True) -> dict[str, str]:
    """The environment of the container's own command: the container's variables, which apply in its own root only.

    terminal: whether the caller's counts; it does not for an entrypoint that has none.
    """
    result = {key: value for key, value in environment.items() if len(key) + len(value) + 2 < LONGEST}
    result.setdefault("PATH", default_path)
    if home:
        result["HOME"] = home
    result.setdefault("HOME", "/")
    if terminal and "TERM" in os.environ:
        result["TERM"] = os.environ["TERM"]
    return result


def add(result: dict[str, str], settings: list[str], container: dict[str, str]) -> None:
    """Apply ``-e``. NAME=VALUE sets a variable; NAME copies the caller's, else the container's. Raises CntrError."""
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or "\0" in setting:
            raise CntrError(
                f"-e {printable(setting)!r}: not NAME=VALUE",
                "for example -e DEBUG=1; -e NAME alone takes the caller's, or the container's",
            )
        if equals:
            result[key] = value
        elif key in os.environ:
            result[key] = os.environ[key]
        elif key in container:
            result[key] = container[key]


def listing(environment: dict[str, str]) -> bytes:
    """The container's variables as text, one per line, safe to print on a terminal."""
    return "".join(f"{printable(key)}={printable(value)}\n" for key, value in sorted(environment.items())).encode(
        "utf-8", "replace"
    )


def shell_of(root_fd: int, hidden: tuple[str, ...]) -> str:
    """Return the caller's $SHELL if it is a shell the session can run, else bash or sh, whichever the tools have.

    hidden: directories of the tools' tree that the session does not see; empty if it sees all.
    """
    for shell in (os.environ.get("SHELL", ""), *SHELLS):
        if shell.startswith("/") and shell.rpartition("/")[2] not in NO_SHELLS and _runs(root_fd, shell, hidden):
            return shell
    return "/bin/sh"


def _runs(root_fd: int, path: str, hidden: tuple[str, ...]) -> bool:
    """Whether PATH is a program below root_fd that everybody can reach. The view shows nothing else."""
    resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
    try:
        fd = syscalls.openat2(root_fd, path.lstrip("/"), os.O_PATH, resolve)
        try:
            mode = os.fstat(fd).st_mode
            found = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        if not stat.S_ISREG(mode) or not mode & 0o111:
            return False
        top = os.readlink(f"/proc/self/fd/{root_fd}").rstrip("/")
        names = found[len(top) + 1 :].split("/") if hidden and found.startswith(f"{top}/") else []
        above = ["/".join(names[:count]) for count in range(1, len(names))]
        return all(name not in hidden and os.stat(name, dir_fd=root_fd).st_mode & 1 for name in above)
    except OSError:
        return False
