"""The machine's own apt settings, so that a box is built from the mirror this machine already uses."""

from __future__ import annotations

import subprocess

DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SECURITY = "http://deb.debian.org/debian-security"


def _lookup(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""  # not a Debian machine: the defaults hold


def mirrors(targets: str) -> tuple[str, str]:
    """The main and security mirror out of `apt-get indextargets` lines `URI ORIGIN LABEL`."""
    main, security = DEFAULT_MIRROR, DEFAULT_SECURITY
    seen_main = seen_security = False
    for line in targets.splitlines():
        uri, origin, label = [*line.split("|"), "", ""][:3]
        if origin != "Debian" or not uri.startswith(("http://", "https://", "file:", "copy:")):
            continue
        if label == "Debian" and not seen_main:
            main, seen_main = uri.rstrip("/"), True
        elif label == "Debian-Security" and not seen_security:
            security, seen_security = uri.rstrip("/"), True
    return main, security


def lines(suite: str, mirror: str | None = None) -> list[str]:
    """apt source lines for `suite`: from `mirror` if told, else from where this machine gets Debian."""
    if mirror:
        return [f"deb {mirror} {suite} main"]
    main, security = mirrors(
        _lookup(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(ORIGIN)|$(LABEL)", "Created-By: Packages"])
    )
    return [f"deb {main} {suite} main", f"deb {security} {suite}-security main"]


def proxy_options() -> list[str]:
    """The proxy settings of this machine's apt, as apt.conf lines for the build (the box itself keeps none)."""
    dump = _lookup(["apt-config", "dump"])
    return [line for line in dump.splitlines() if "::Proxy" in line and '""' not in line]
