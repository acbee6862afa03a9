"""``cntr forward``: parsing its arguments and printing its events."""

from __future__ import annotations

import os
import sys

from cntr.cli.parser import Parsed
from cntr.errors import UsageError, complain, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cntr.audit.session import Session
    from cntr.forward.relay import Tell


def run(parsed: Parsed, say: Callable[[str], None], out: Callable[[str], None], session: Session) -> int:
    """Run the command; return its exit status. Raises CntrError, UsageError.

    say: prints a line to the user; out: to standard output.
    """
    from cntr.forward import relay
    from cntr.proxy import spec

    if not parsed.words:
        raise UsageError("forward: TARGET is missing", "`cntr ps` lists running containers")
    target, *words = parsed.words
    if words[:1] == ["-"]:
        if len(words) != 2 or parsed.argv or parsed.texts("reverse"):
            raise UsageError("forward TARGET - PORT: one end and nothing else", "`cntr forward web - 5432`")
        from cntr.forward import standard

        endpoint = spec.one_endpoint(words[1])
        return standard.run(target, endpoint, session)
    forwards = [spec.parse(word) for word in words]
    forwards += [spec.parse(word, reverse=True) for word in parsed.texts("reverse")]
    if not forwards:
        raise UsageError("forward: no port", "`cntr forward web 8080:80`; -R for one of this machine in the container")
    listen = [(one.reverse, one.udp, one.listen.address, one.listen.port, one.listen.path) for one in forwards]
    for one, place in zip(forwards, listen):
        if listen.count(place) > 1 and (one.listen.port or one.listen.path):
            raise UsageError(f"forward: {printable(one.texts(target)[0])} is given twice", "0:PORT takes a free port")
    return relay.run(target, forwards, parsed.argv, _teller(parsed, say, out), session)


def is_inside(parsed: Parsed) -> bool:
    """Whether this runs in a session and TARGET is the session's own container."""
    first = parsed.words[0] if parsed.words else ""
    return not first or first == os.environ["CNTR_TARGET"] or first[0] in "0123456789[/@-"


def run_inside(parsed: Parsed) -> int:
    """Have the forward done outside the session. Raises CntrError, UsageError."""
    from cntr.attach import exec_client
    from cntr.proxy import spec

    given = parsed.words[1:] if parsed.words[:1] == [os.environ["CNTR_TARGET"]] else parsed.words
    if parsed.argv or parsed.flag("timeout") or parsed.flag("reason") or "-" in given:
        raise UsageError(
            "forward: inside a session only ports and --json are accepted",
            "it ends with the session, whose reason it has; programs in the session reach the container's ports as they are",
        )
    words = ["J"] if parsed.flag("json") else []
    words += [f"L{word}" for word in given] + [f"R{word}" for word in parsed.texts("reverse")]
    spec.from_inside(words)
    return exec_client.forward(words)


def _teller(parsed: Parsed, say: Callable[[str], None], out: Callable[[str], None]) -> Tell:
    """Return what prints events: words on stderr; JSON on stdout, or on stderr if a command uses stdout."""
    if not parsed.flag("json"):
        return lambda kind, fields, text: say(text)
    import json

    def tell(kind: str, fields: Mapping[str, object], text: str) -> None:
        line = json.dumps({"event": kind, **fields})
        if parsed.argv:
            complain(f"{line}\n")
        else:
            out(line)
            sys.stdout.flush()

    return tell
