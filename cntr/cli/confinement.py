"""``cntr inspect``: which parts of a process's confinement a session and ``exec`` take over."""

from __future__ import annotations

from cntr.attach import seccomp
from cntr.attach.identity import LIKELIEST_VICTIM
from cntr.attach.target import Target
from cntr.errors import CntrError
from cntr.linux import procfs

Row = tuple[str, object, str, str]


def rows(target: Target) -> list[Row]:
    """(property, value, inherited, why). Raises OSError."""
    persona, score = (procfs.read(name, target.proc_fd).strip() for name in ("personality", "oom_score_adj"))
    label = "" if target.lsm else "no security module labels processes here"
    victim = f"a session has {LIKELIEST_VICTIM}: out of memory it ends first; lowering takes CAP_SYS_RESOURCE"
    privs = "a session has it: no set-id program opens a door"
    return [
        ("no_new_privs", target.no_new_privs, "yes" if target.no_new_privs else "exec only", privs),
        _seccomp(target),
        ("secure bits", None, "no", "nothing tells those of another process (PR_GET_SECUREBITS)"),
        ("personality", persona, "exec only", "the tools are this machine's"),
        (
            "umask",
            procfs.status(procfs.read("status", target.proc_fd)).get("Umask"),
            "exec only",
            "the tools keep the caller's",
        ),
        ("session keyring", None, "no", "a new one: neither the container's nor the caller's"),
        ("security label", target.lsm or None, "yes", label),
        ("oom_score_adj", score, "exec only", victim),
    ]


def _seccomp(target: Target) -> Row:
    """The row for seccomp: the filters, read as ``exec`` reads them."""
    try:
        filters = seccomp.filters_of(target.pid, target.label)
    except CntrError as error:
        return "seccomp", {1: "strict"}.get(target.seccomp, "filter"), "no", error.message
    if not filters:
        return "seccomp", "none", "yes", ""
    count, size = len(filters), sum(len(filter.program) for filter in filters) // 8
    value = f"{count} filter{'s' * (count > 1)}, {size} instructions"
    return "seccomp", value, "exec only", "attach takes them with --seccomp: debuggers need what they forbid"
