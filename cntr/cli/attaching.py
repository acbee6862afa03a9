"""``cntr attach``: from the command line to a recorded session. The other commands, which share much of it, are in
commands.py.
"""

from __future__ import annotations

from cntr.errors import UsageError, complain, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.attach.request import Request
    from cntr.audit.session import Session
    from cntr.cli.parser import Parsed


def attach(parsed: Parsed) -> int:
    """``cntr attach``. Return the command's exit status. Raises CntrError."""
    request = new_request(parsed)
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
    if not request.uses_host:  # a shell from another tree is trusted no more than the container
        protect_interpreter(parsed)
    return recorded(parsed, request)


def protect_interpreter(parsed: Parsed) -> None:
    """Continue in an interpreter that the program about to be run cannot write to."""
    from cntr.attach import readonly_interpreter

    readonly_interpreter.from_read_only_copy(parsed.line)


def _begin_again(parsed: Parsed) -> None:
    """The same, and clear from memory what a container might look for."""
    from cntr.attach import environment, readonly_interpreter

    readonly_interpreter.from_read_only_copy(
        parsed.line, environment.of_caller([*parsed.texts("env"), *SOCKET_VARIABLES])
    )


def recorded(parsed: Parsed, request: Request) -> int:
    """Run one session of attach, exec or run, if the policy allows it, and record it."""
    from cntr.attach import walk

    with new_session(parsed, request.target) as session:
        request.session = session
        session.status = walk.attach(request, say)
    return session.status


def new_session(parsed: Parsed, target: str) -> Session:
    """The session of a command line, to be recorded; a context manager. Raises UsageError."""
    from cntr.audit import WIDENING
    from cntr.audit.session import Session

    session = Session(
        parsed.command.name,
        without_secrets(parsed.line, parsed.texts("env")),
        say,
        target=target,
        reason=parsed.text("reason"),
    )
    session.recording = parsed.text("record")
    if target.startswith("pid:") and "@" in target:  # set by a session that requests this, see attach.exec_handler
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
    """A command line for the record: variables without their values, however they are given.
    settings: the values of -e.
    """
    words = list(line)
    end = words.index("--") if "--" in words else len(words)
    for setting in sorted((one for one in settings if "=" in one), key=len, reverse=True):
        for at, word in enumerate(words[:end]):
            if (word.startswith("-") and word.endswith(setting)) or word == setting:
                words[at] = f"{word[: len(word) - len(setting)]}{setting.partition('=')[0]}=…"
    return words


def new_request(parsed: Parsed) -> Request:
    """What attach, exec and run have in common."""
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


def say(line: str) -> None:
    """Print one line for the user."""
    complain(f"cntr: {line}\n")


# Variables that name sockets which attach brings in. They are paths, not secrets.
SOCKET_VARIABLES = ("DISPLAY", "XAUTHORITY", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "WAYLAND_DISPLAY")
