"""The machine's own apt settings, so that a box is built from the mirror this machine already uses."""

from __future__ import annotations

import subprocess

from .errors import LabError


def _lookup(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""  # not a Debian machine


def mirrors(targets: str) -> tuple[str, str]:
    """The main and security mirror out of `apt-get indextargets` lines `URI ORIGIN LABEL`; "" for one that is not there."""
    main = security = ""
    for line in targets.splitlines():
        uri, origin, label = [*line.split("|"), "", ""][:3]
        if origin != "Debian" or not uri.startswith(("http://", "https://", "file:", "copy:")):
            continue
        if label == "Debian":
            main = main or uri.rstrip("/")
        elif label == "Debian-Security":
            security = security or uri.rstrip("/")
    return main, security


def lines(suite: str, mirror: str | None = None) -> list[str]:
    """apt source lines for `suite`: from `mirror` if told, else from where this machine gets Debian.

    Raises:
        LabError: neither is known.
    """
    if mirror:
        return [f"deb {mirror} {suite} main"]
    main, security = mirrors(
        _lookup(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(ORIGIN)|$(LABEL)", "Created-By: Packages"])
    )
    if not main:
        raise LabError("this machine's apt knows no Debian mirror to build a box from", "name one: --mirror URL")
    return [f"deb {main} {suite} main", *([f"deb {security} {suite}-security main"] if security else [])]


def proxy_options() -> list[str]:
    """The proxy settings of this machine's apt, as apt.conf lines for the build (the box itself keeps none)."""
    dump = _lookup(["apt-config", "dump"])
    return [line for line in dump.splitlines() if "::Proxy" in line and '""' not in line]
