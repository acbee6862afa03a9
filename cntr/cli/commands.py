"""The commands: what each does with its parsed command line."""

from __future__ import annotations

import errno
import os

from cntr.cli import options
from cntr.cli.attaching import attach, new_request, new_session, protect_interpreter, recorded, say
from cntr.errors import UsageError, complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cntr.cli.parser import Parsed


def _exec(parsed: Parsed) -> int:
    if not parsed.words or ("CNTR_TARGET" in os.environ and parsed.words == [os.environ["CNTR_TARGET"]]):
        if "CNTR_TARGET" not in os.environ:
            raise UsageError(
                "exec: TARGET is missing", "`cntr ps` lists running containers; in a session it can be left out"
            )
        from cntr.attach import exec_client

        for key in ("reason", "record", "timeout"):
            if parsed.flag(key):
                raise UsageError(
                    f"exec --{key}: not inside a session",
                    "it has the session's reason, and ends with it; run it outside",
                )
        return exec_client.run(parsed.argv or ["/bin/sh"], parsed.texts("env"), parsed.text("workdir", "/"))
    request = new_request(parsed)
    request.own_root = True
    request.seccomp = not parsed.flag("no_seccomp")
    protect_interpreter(parsed)
    return recorded(parsed, request)


def _run_entrypoint(parsed: Parsed) -> int:
    request = new_request(parsed)
    request.entrypoint = True
    protect_interpreter(parsed)
    return recorded(parsed, request)


def _cp(parsed: Parsed) -> int:
    from cntr.cp import copy
    from cntr.progress import Progress

    source, destination = parsed.words
    with new_session(parsed, " ".join(parsed.words)) as session:  # before copy has split target and path
        session.status = copy.copy(
            source,
            destination,
            archive=parsed.flag("archive"),
            follow=parsed.flag("follow_link"),
            say=say,
            session=session,
            event=Progress.events,
        )
    return session.status


def cp_end(parsed: Parsed) -> int:
    """What ``cntr --host HOST cp`` starts there."""
    from cntr.cp import far

    with new_session(parsed, " ".join(parsed.words)) as session:
        archive, follow = parsed.flag("archive"), parsed.flag("follow_link")
        session.status = far.serve(*parsed.words, archive=archive, follow=follow, say=say, session=session)
    return session.status


def _mount(parsed: Parsed) -> int:
    from cntr.cli import mounted

    with new_session(parsed, parsed.words[0]) as session:
        session.status = mounted.run(parsed, session)
    return session.status


def _slim(parsed: Parsed) -> int:
    from cntr.audit import session
    from cntr.cli import slimming

    session.check_whole("slim")
    return slimming.run(parsed, say, print)


def _forward(parsed: Parsed) -> int:
    from cntr.cli import forwarding

    if "CNTR_TARGET" in os.environ and forwarding.is_inside(parsed):
        return forwarding.run_inside(parsed)
    with new_session(parsed, parsed.words[0]) as session:
        session.status = forwarding.run(parsed, say, print, session)
    return session.status


def event(kind: str, fields: Mapping[str, object]) -> None:
    """Print a line of JSON on stderr: stdout is for the answer or the copied data."""
    import json

    complain(json.dumps({"event": kind, **fields}) + "\n")


def elsewhere(argv: list[str], run: Callable[[list[str]], int]) -> int:
    """``cntr --host``. run: runs a command line here."""
    from cntr.cli import elsewhere

    return elsewhere.run(argv, run, _ps, say=say, event=event)


def _ps(parsed: Parsed) -> int:
    from cntr.cli import reports

    stopped = parsed.flag("all")
    if parsed.flag("host"):
        from cntr.cli import remote_reports

        report = remote_reports.ps(parsed.text("host").split(","), stopped=stopped)
    else:
        report = reports.ps(stopped=stopped)
        if report.elsewhere:
            from cntr.cli import remote_reports

            report = remote_reports.docker(report, stopped=stopped)
    print(report.json() if parsed.flag("json") else report.text())
    return int(report.status)


def _report(name: str) -> Callable[[Parsed], int]:
    """Return the command that prints a report of cntr.cli.reports as a table or JSON."""

    def handler(parsed: Parsed) -> int:
        if name == "cache":
            from cntr.cli import image_reports as reports
        else:
            from cntr.cli import reports  # type: ignore[no-redef]
        options = {"stopped": True} if parsed.flag("all") else {}
        report = getattr(reports, name)(*parsed.words, **options)
        print(report.json() if parsed.flag("json") else report.text())
        return int(report.status)

    return handler


def _sessions(parsed: Parsed) -> int:
    from cntr.cli import session_reports

    with new_session(parsed, " ".join(parsed.words[1:])) as session:
        if parsed.words[:1] == ["end"]:
            session.begin()  # record who ended it
        of = session.policy.whose_sessions() if session.policy else None
        report = session_reports.sessions(*parsed.words, of=of)
        session.status = 0
    print(report.json() if parsed.flag("json") else report.text())
    return 0


def _replay(parsed: Parsed) -> int:
    from cntr.cli import session_reports

    return session_reports.shown_again(parsed)


def _completion(parsed: Parsed) -> int:
    from cntr.cli import manual

    print(manual.completion(parsed.words[0]), end="")
    return 0


def _threads_named(command: Callable[[Parsed], int]) -> Callable[[Parsed], int]:
    """COMMAND; that no thread can be started, which Python says in words only, is an OSError."""

    def run(parsed: Parsed) -> int:
        try:
            return command(parsed)
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
            raise OSError(errno.EAGAIN, f"start a thread: {os.strerror(errno.EAGAIN)}") from None

    return run


_COMMANDS = {
    "attach": attach,
    "exec": _exec,
    "run": _run_entrypoint,
    "cp": _cp,
    "forward": _forward,
    "mount": _mount,
    "slim": _slim,
    "ps": _ps,
    "inspect": _report("inspect"),
    "cache": _report("cache"),
    "doctor": _report("doctor"),
    "sessions": _sessions,
    "replay": _replay,
    "completion": _completion,
}
HANDLERS = {name: _threads_named(command) for name, command in _COMMANDS.items()}


def find(argv: list[str], run: Callable[[list[str]], int], there: Callable[[list[str]], int]) -> int | Parsed:
    """Return the parsed command line of one of HANDLERS; for the other words, what they have returned.

    run: runs a command line, and raises CntrError; there: the same for another machine's cntr, and prints it.
    """
    if not argv:
        raise UsageError("no command", "`cntr attach NAME` attaches; `cntr --help` lists all commands")
    if argv[0] in ("-h", "--help", "help"):
        from cntr.cli import manual, width

        text = (
            manual.overview()
            if len(argv) == 1 or argv[0] != "help"
            else manual.usage(options.parse([argv[1], "--help"]).command)
        )
        print(width.fitted(text, width.of_terminal()))
        return 0
    if argv[0] in ("-V", "--version"):
        from cntr import __version__

        print(f"cntr {__version__}")
        return 0
    if argv[0].partition("=")[0] == "--host":
        return elsewhere(argv, run)
    if argv[0] == "--kubectl":  # bin/kubectl-cntr
        from cntr.cli import kubectl

        return kubectl.run(argv[1:])
    if argv[0] == "--far" and argv[1:]:  # what `cntr --host` starts there
        from cntr.audit.behind_sudo import CallerOpener
        from cntr.remote import far

        return far.run(argv[1], lambda: there(argv[2:]), CallerOpener())
    if argv[0] == "--cp" and argv[1:]:  # what `cntr --host HOST cp` starts there
        return cp_end(options.parse(argv[1:]))
    parsed = options.parse(argv)
    if parsed.flag("help"):
        from cntr.cli import manual, width

        print(width.fitted(manual.usage(parsed.command), width.of_terminal()))
        return 0
    if parsed.flag("json"):
        from cntr.progress import Progress

        Progress.events = event
    return parsed
