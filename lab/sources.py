"""This machine's apt settings, so that a box is built from the same mirror."""

from __future__ import annotations

import subprocess

from .errors import LabError


def _lookup(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""  # not a Debian machine


def mirrors(targets: str) -> tuple[str, str]:
    """The main and security mirror from `apt-get indextargets` lines `URI ORIGIN LABEL RELEASE`; "" if missing.

    Without lists apt knows no origin or label (it prints their names); then the mirror's path and the release decide.
    """
    main = security = ""
    for line in targets.splitlines():
        uri, origin, label, release = [*line.split("|"), "", "", ""][:4]
        uri = uri.rstrip("/")
        if not uri.startswith(("http://", "https://", "file:", "copy:")):
            continue
        if origin.startswith("$"):
            origin = "Debian" if uri.endswith(("/debian", "/debian-security")) else ""
            label = "Debian-Security" if release.endswith("-security") else "Debian"
        if origin == "Debian" and label == "Debian":
            main = main or uri
        elif origin == "Debian" and label == "Debian-Security":
            security = security or uri
    return main, security


def known_mirrors() -> tuple[str, str]:
    """The mirrors in this machine's apt: from its lists, or before a first `apt-get update` from its sources.

    Raises LabError if none of them is Debian's.
    """
    line = "$(REPO_URI)|$(ORIGIN)|$(LABEL)|$(RELEASE)"
    command = ["apt-get", "indextargets", "--format", line, "Created-By: Packages"]
    main, security = mirrors(_lookup(command))
    if not main:
        main, security = mirrors(_lookup([*command, "--no-release-info"]))
    if not main:
        raise LabError("this machine's apt knows no Debian mirror", "name one: --mirror URL")
    return main, security


def lines(suite: str, mirror: str | None = None) -> list[str]:
    """apt source lines for `suite`: from `mirror` if given, else from this machine's mirrors. Raises LabError."""
    if mirror:
        return [f"deb {mirror} {suite} main"]
    main, security = known_mirrors()
    return [f"deb {main} {suite} main", *([f"deb {security} {suite}-security main"] if security else [])]


def proxy_options() -> list[str]:
    """This machine's apt proxy settings, as apt.conf lines for the build (the box keeps none)."""
    dump = _lookup(["apt-config", "dump"])
    return [line for line in dump.splitlines() if "::Proxy" in line and '""' not in line]
