"""``cntr --host HOST COMMAND…``: the command line is checked here and run there."""

from __future__ import annotations

from cntr.audit import session
from cntr.cli.options import parse
from cntr.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.cli.parser import Parsed
    from cntr.progress import Tell as Event


def run(
    argv: list[str],
    here: Callable[[list[str]], int],
    ps: Callable[[Parsed], int],
    *,
    say: Callable[[str], None],
    event: Event,
) -> int:
    """Run ARGV from ``--host`` on; return the exit status. here: runs what concerns this machine
    after all; ps: lists several. Raises CntrError.
    """
    session.check_whole("--host")
    _, equals, host = argv[0].partition("=")
    words = argv[1:] if equals else argv[2:]
    host = host if equals else "".join(argv[1:2])
    if not host or not words:
        raise UsageError("--host: HOST or the command is missing", "cntr --host ssh://admin@far attach web")
    parsed = parse(words)
    if parsed.flag("help"):
        return here(words)
    if parsed.command.name == "cp":
        return copy(host, parsed, say=say, event=event if parsed.flag("json") else None)
    if parsed.command.name == "ps" and "," in host:
        parsed.values["host"] = host
        return ps(parsed)
    from cntr.remote import ssh

    return ssh.run(host, words)


def copy(host: str, parsed: Parsed, *, say: Callable[[str], None], event: Event | None) -> int:
    """Run ``cp`` between this machine and a container of HOST; return the exit status. Raises CntrError, UsageError."""
    from cntr.cp import far
    from cntr.cp.words import Sides
    from cntr.remote import ssh

    sides = Sides(*parsed.words)
    archive, follow = parsed.flag("archive"), parsed.flag("follow_link")
    words = ["--cp", "cp", *(["--archive"] if archive else []), *(["--follow-link"] if follow else [])]
    for name in ("reason", "timeout"):
        words += [f"--{name}", parsed.text(name)] if parsed.flag(name) else []
    source, destination = parsed.words
    words += ["--", *([source, far.HERE] if sides.outward else [far.HERE, destination])]
    connection = ssh.SshCommand(ssh.Host(host), words)
    try:
        return far.copy(sides, connection, archive=archive, follow=follow, say=say, event=event)
    finally:
        connection.close()
