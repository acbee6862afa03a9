"""What texts name and a start does not use: files that the application's own code names by path,
programs in a used configuration, cron jobs, programs that a supervisor starts later.
"""

from __future__ import annotations

import re

from cntr.slim.rules import application, calls, packages, scripts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "named"
SUMMARY = (
    "files and small directories that the application's texts name by path, programs that a used file of /etc names, jobs of cron, "
    "programs of supervisors"
)
_PATH = re.compile(r"(?<![\w$}/.%*-])/[A-Za-z0-9_.+@-]+(?:/[A-Za-z0-9_.+@-]+)+")
_MOST = 1 << 18  # bytes of a text
_PROGRAM = 16 << 20  # bytes of a program of the application
_FILES, _BYTES = 500, 2 << 20  # files in a directory that is kept as a whole
_NOT_FILES = re.compile(r"/(?:proc|sys|dev|tmp|run|var/run|usr/share/doc)/")
# Files in /etc that list programs for others: login shells, defaults of tools that a server does
# not run.
_LISTS = re.compile(
    r"/etc/(?:passwd|group|shadow|shells|profile|bash|login\.defs|adduser|deluser|ld\.so|mailcap|debconf|services|init\.d/|apt/|dpkg/"
    r"|alternatives/|default/useradd|mime\.types|ca-certificates)"
)
_CRONTAB = re.compile(r"/etc/crontab|/etc/cron\.d/[^/]+|/etc/crontabs/[^/]+|/var/spool/cron/(?:crontabs/)?[^/]+")
_SYSTEM_CRONTAB = re.compile(r"/etc/crontab|/etc/cron\.d/")
_JOB = re.compile(r"^[ \t]*(?:@\w+|(?:[\w*,/-]+[ \t]+){4}[\w*,/-]+)[ \t]+(.+)$", re.MULTILINE)
_PARTS = re.compile(r"run-parts[^\n;&|]*?(/[\w./-]+)")
_CRON_SHELL = re.compile(r"^\s*SHELL\s*=\s*(\S+)", re.MULTILINE)
# Jobs that maintain the system's packages, which a slim image does not have.
_NOT_JOBS = ("apt", "dpkg", "e2fsprogs", "man-db")
_SUPERVISED = re.compile(r"^[ \t]*command[ \t]*=[ \t]*(.+)$", re.MULTILINE)
_PROCFILE = re.compile(r"^[A-Za-z][\w-]*:[ \t]*(.+)$", re.MULTILINE)


def follows(context: Context, path: str, entry: Entry) -> Found:
    """Rules for a text of the application, and for a used file in /etc."""
    own = application.is_application(context, path) and not calls.is_foreign(context, path)
    used = bool(context.accesses.kinds.get(path, set()) - {"name"})
    if not entry.is_file or not 0 < entry.size <= (_PROGRAM if own else _MOST) or not (own or used):
        return
    data = context.tree.read(path, 256)
    is_program = data[:4] == b"\x7fELF"
    if not own and (is_program or data[:2] == b"#!" or not path.startswith(("/etc/", "/var/spool/"))):
        return
    if not is_program and (b"\0" in data or entry.size > _MOST):
        return
    text = context.tree.read(path, _PROGRAM).decode("latin-1")
    if own or not _LISTS.match(path):
        yield from _paths(
            context, text if own else _without_comments(text), path, own=own, whole=own and not is_program
        )
    if is_program:
        return
    if _CRONTAB.fullmatch(path) or (own and "cron" in path.rpartition("/")[2]):
        yield from _jobs(context, text, path)
    if "[program:" in text:
        yield from scripts.of_text(context, "\n".join(_SUPERVISED.findall(text)), path, f"a program of {path}")
    if path.endswith("/Procfile"):
        yield from scripts.of_text(context, "\n".join(_PROCFILE.findall(text)), path, f"a program of {path}")


def _without_comments(text: str) -> str:
    return re.sub(r"^[ \t]*[#;].*$", "", text, flags=re.MULTILINE)


def _paths(context: Context, text: str, path: str, *, own: bool, whole: bool) -> Found:
    """own: any file; otherwise programs only. whole: small directories, too."""
    for name in dict.fromkeys(_PATH.findall(text)):
        name = name.rstrip(".")
        real, _ = context.tree.resolve(name) if not _NOT_FILES.match(f"{name}/") else ("", [])
        entry = context.tree.entries[real] if real else None
        if entry is None:
            continue
        if entry.is_file and (own or entry.is_executable):
            yield name, f"named by {path}"
        elif entry.is_directory and whole and real not in application.SYSTEM and real.count("/") > 2:
            yield from _directory(context, real, path)


def _directory(context: Context, directory: str, path: str) -> Found:
    below = context.tree.below(directory)
    if len(below) <= _FILES and sum(context.tree.entries[one].size for one in below) <= _BYTES:
        for one in below:
            yield one, f"in {directory}, which {path} names"


def _jobs(context: Context, text: str, path: str) -> Found:
    """The commands of a crontab, which a shell runs, and the scripts that run-parts finds."""
    lines = _JOB.findall(text)
    if _SYSTEM_CRONTAB.match(path):  # the user comes first
        lines = [re.split(r"[ \t]+", line, maxsplit=1)[-1] for line in lines]
    why = f"a job of {path}"
    for shell in ["/bin/sh", *_CRON_SHELL.findall(text)]:
        yield shell, why
    yield from scripts.of_text(context, "\n".join(lines), path, why)
    owners = packages.owners(context)
    for directory in _PARTS.findall("\n".join(lines)):
        for one in context.tree.children(directory.rstrip("/")):
            entry = context.tree.entries[one]
            if entry.is_file and entry.is_executable and owners.get(one) not in _NOT_JOBS:
                yield one, why
                yield from scripts.of_script(context, one, why)
