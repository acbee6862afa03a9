"""The command line: the one place that prints errors and picks exit codes."""

from __future__ import annotations

import errno
import os
import sys

from cntr.cli.options import parse
from cntr.cli.parser import Parsed
from cntr.errors import EXIT_FAILED, CntrError, TargetNotFound, UsageError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cntr.attach.request import Request
    from cntr.audit.session import Session


def run(argv: list[str]) -> int:
    """Run one command line (without the program's name); return the exit status of the CLI contract."""
    debug = "--debug" in argv[: argv.index("--") if "--" in argv else None]
    while argv and argv[0] == "--debug":
        argv = argv[1:]
    try:
        status = _run(argv)
        if sys.stdout:  # None if the caller closed it. Here, where a closed pipe can still be ignored
            sys.stdout.flush()
        return status
    except CntrError as error:
        if debug:
            raise
        _complain(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`cntr ps | head -1`): not an error, and no message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + 13
    except OSError as error:
        if debug:
            raise
        number = error.errno or 0
        what, where = ("", f" {error.filename}") if error.filename else (_NAMELESS.get(number, ""), "")
        hint = _LIMITS.get(number, f"is {what[:-2]} still there?" if what else "`cntr --debug …` shows where")
        _complain(f"{what}{printable(str(error.strerror or error))}{printable(where)}", hint)
        return EXIT_FAILED


# Every call of ours names its object; print and getcwd do not.
_NAMELESS = {errno.ENOSPC: "standard output: ", errno.EIO: "standard output: ", errno.ENOENT: "the working directory: "}
_LIMITS = {
    errno.EMFILE: "a limit on open files is reached: ulimit -n",
    errno.ENFILE: "the system's limit on open files is reached: fs.file-max",
    errno.EFBIG: "a limit on the size of files is reached: ulimit -f",
    errno.ENOSPC: "free some space, or inodes: `df -h; df -i`",
    errno.EDQUOT: "a quota is used up: `quota`",
}


def _complain(message: str, hint: str) -> None:
    if sys.stderr is None or not message:  # closed by the caller: print would use stdout; or already reported
        return
    print(f"cntr: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def _run(argv: list[str]) -> int:
    if not argv:
        raise UsageError("no command", "`cntr attach NAME` attaches; `cntr --help` lists all commands")
    if argv[0] in ("-h", "--help", "help"):
        from cntr.cli import manual

        print(
            manual.overview()
            if len(argv) == 1 or argv[0] != "help"
            else manual.usage(parse([argv[1], "--help"]).command)
        )
        return 0
    if argv[0] in ("-V", "--version"):
        from cntr import __version__

        print(f"cntr {__version__}")
        return 0
    if argv[0].partition("=")[0] == "--host":
        return _elsewhere(argv)
    if argv[0] == "--kubectl":  # bin/kubectl-cntr
        from cntr.cli import kubectl

        return kubectl.run(argv[1:])
    if argv[0] == "--far" and argv[1:]:  # what `cntr --host` starts there
        from cntr.audit.cast import CallerOpener
        from cntr.remote import far

        return far.run(argv[1], lambda: run(argv[2:]), CallerOpener())
    if argv[0] == "--cp" and argv[1:]:  # what `cntr --host HOST cp` starts there
        return _cp_end(parse(argv[1:]))
    parsed = parse(argv)
    if parsed.flag("help"):
        from cntr.cli import manual

        print(manual.usage(parsed.command))
        return 0
    if parsed.flag("json"):
        from cntr.progress import Progress

        Progress.events = _event
    try:
        return HANDLERS[parsed.command.name](parsed)
    except TargetNotFound as error:
        if not error.elsewhere:
            raise
        host = error.elsewhere
    _say(
        f"note: {printable(parsed.words[0])} is looked up on {printable(host)}, according to DOCKER_HOST or docker's context"
    )
    return _elsewhere(["--host", host, *argv])


def _elsewhere(argv: list[str]) -> int:
    from cntr.cli import elsewhere

    return elsewhere.run(argv, _run, _ps, say=_say, event=_event)


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


def _attach(parsed: Parsed) -> int:
    request = _request(parsed)
    request.tools = parsed.text("tools", "host")
    request.transport = parsed.text("transport", "auto")
    request.binding = parsed.text("binding", "auto")
    request.read_only = parsed.flag("read_only")
    request.shares = parsed.texts("share")
    request.x11, request.agent = parsed.flag("x11"), parsed.flag("agent")
    request.bus, request.wayland = parsed.flag("dbus"), parsed.flag("wayland")
    request.sockets, request.forward = parsed.texts("socket"), parsed.flag("forward")
    request.seccomp = parsed.flag("seccomp")
    request.force = parsed.flag("force")
    if not request.uses_host:  # a foreign tree's shell is no more trusted than the container's
        _protect_interpreter(parsed)
    return _recorded(parsed, request)


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
    request = _request(parsed)
    request.own_root = True
    request.seccomp = not parsed.flag("no_seccomp")
    _protect_interpreter(parsed)
    return _recorded(parsed, request)


def _run_entrypoint(parsed: Parsed) -> int:
    request = _request(parsed)
    request.entrypoint = True
    _protect_interpreter(parsed)
    return _recorded(parsed, request)


def _protect_interpreter(parsed: Parsed) -> None:
    """Continue in an interpreter that the program about to be run cannot write to."""
    from cntr.attach import readonly_interpreter

    readonly_interpreter.from_read_only_copy(parsed.line)


def _begin_again(parsed: Parsed) -> None:
    """The same, and remove from memory what a container might look for."""
    from cntr.attach import environment, readonly_interpreter

    readonly_interpreter.from_read_only_copy(
        parsed.line, environment.of_caller([*parsed.texts("env"), *SOCKET_VARIABLES])
    )


def _recorded(parsed: Parsed, request: Request) -> int:
    """Run one session of attach, exec or run, if the policy allows it, and record it."""
    from cntr.attach import walk

    with _session(parsed, request.target) as session:
        request.session = session
        session.status = walk.attach(request, _say)
    return session.status


def _session(parsed: Parsed, target: str) -> Session:
    from cntr.audit import WIDENING
    from cntr.audit.session import Session

    session = Session(
        parsed.command.name,
        without_secrets(parsed.line, parsed.texts("env")),
        _say,
        target=target,
        reason=parsed.text("reason"),
    )
    session.recording = parsed.text("record")
    if target.startswith("pid:") and "@" in target:  # as a session requests it, see attach.exec_handler
        from cntr.audit import live

        session.outer = live.begun_in()
    if parsed.flag("timeout"):
        from cntr.audit import times

        session.limit = times.seconds(parsed.text("timeout"))
        if session.limit is None:
            raise UsageError(f"--timeout {printable(parsed.text('timeout'))}: not a time", "30s, 30m, 8h")
    for option in parsed.command.options:
        if f"--{option.key}".replace("_", "-") in WIDENING:
            name = option.names[-1]
            values = parsed.texts(option.key) if option.repeat else [parsed.text(option.key)]
            given = option.key in parsed.values and (name, values) != ("--tools", ["host"])
            session.widening += [f"{name} {value}" if option.value else name for value in values] if given else []
    return session


def without_secrets(line: list[str], settings: list[str]) -> list[str]:
    """A command line for the record: of variables only the names, however written. settings: the values of -e."""
    words = list(line)
    end = words.index("--") if "--" in words else len(words)
    for setting in sorted((one for one in settings if "=" in one), key=len, reverse=True):
        for at, word in enumerate(words[:end]):
            if (word.startswith("-") and word.endswith(setting)) or word == setting:
                words[at] = f"{word[: len(word) - len(setting)]}{setting.partition('=')[0]}=…"
    return words


def _cp(parsed: Parsed) -> int:
    from cntr.cp import copy
    from cntr.progress import Progress

    source, destination = parsed.words
    with _session(parsed, " ".join(parsed.words)) as session:  # before copy has split target and path
        session.status = copy.copy(
            source,
            destination,
            archive=parsed.flag("archive"),
            follow=parsed.flag("follow_link"),
            say=_say,
            session=session,
            event=Progress.events,
        )
    return session.status


def _cp_end(parsed: Parsed) -> int:
    from cntr.cp import far

    with _session(parsed, " ".join(parsed.words)) as session:
        archive, follow = parsed.flag("archive"), parsed.flag("follow_link")
        session.status = far.serve(*parsed.words, archive=archive, follow=follow, say=_say, session=session)
    return session.status


def _mount(parsed: Parsed) -> int:
    from cntr.cli import mounted

    with _session(parsed, parsed.words[0]) as session:
        session.status = mounted.run(parsed, session)
    return session.status


def _slim(parsed: Parsed) -> int:
    from cntr.audit import session
    from cntr.cli import slimming

    session.check_whole("slim")
    return slimming.run(parsed, _say, print)


def _forward(parsed: Parsed) -> int:
    from cntr.cli import forwarding

    if "CNTR_TARGET" in os.environ and forwarding.is_inside(parsed):
        return forwarding.run_inside(parsed)
    with _session(parsed, parsed.words[0]) as session:
        session.status = forwarding.run(parsed, _say, print, session)
    return session.status


def _request(parsed: Parsed) -> Request:
    from cntr.attach.request import Request

    request = Request(parsed.words[0], parsed.argv)
    request.user = parsed.text("user") if parsed.flag("user") else None
    request.environment = parsed.texts("env")
    request.directory = parsed.text("workdir") or None
    request.privileged = parsed.flag("privileged")
    request.verbose = parsed.flag("verbose")
    request.network, request.write = parsed.text("network"), parsed.flag("write")
    request.protect = lambda: _begin_again(parsed)
    request.join_cgroup = not parsed.flag("no_cgroup")
    return request


def _event(kind: str, fields: Mapping[str, object]) -> None:
    """Print a line of JSON on stderr: stdout is for the answer or the copied data."""
    import json

    if sys.stderr is not None:
        print(json.dumps({"event": kind, **fields}), file=sys.stderr, flush=True)


def _say(line: str) -> None:
    if sys.stderr is not None:
        print(f"cntr: {line}", file=sys.stderr)


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

    with _session(parsed, " ".join(parsed.words[1:])) as session:
        if parsed.words[:1] == ["end"]:
            session.begin()  # record who ended it
        report = session_reports.sessions(*parsed.words)
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


# Variables that name sockets which attach brings in. They are paths, not secrets.
SOCKET_VARIABLES = ("DISPLAY", "XAUTHORITY", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "WAYLAND_DISPLAY")
HANDLERS = {
    "attach": _attach,
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
