"""The command line: the one place that prints errors and picks exit codes."""

from __future__ import annotations

import errno
import os
import sys

from cntr.cli import attaching, parser
from cntr.cli.options_attach import ATTACH, COMMON
from cntr.errors import EXIT_FAILED, CntrError, TargetNotFound, complain, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cntr.cli.parser import Parsed


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
        what, where = ("", f" {error.filename}") if error.filename else (_NAMELESS.get(error.errno or 0, ""), "")
        hint = _LIMITS.get(error.errno or 0, f"is {what[:-2]} still there?" if what else "`cntr --debug …` shows where")
        _complain(f"{what}{printable(str(error.strerror or error))}{printable(where)}", hint)
        return EXIT_FAILED


# Every call of ours names its object; print and getcwd do not.
_NAMELESS = {errno.ENOSPC: "standard output: ", errno.EIO: "standard output: ", errno.ENOENT: "the working directory: "}
_LIMITS = {
    errno.EAGAIN: "a limit on processes is reached (ulimit -u; pids.max of cntr's cgroup), or an output does not block",
    errno.EMFILE: "a limit on open files is reached: ulimit -n",
    errno.ENFILE: "the system's limit on open files is reached: fs.file-max",
    errno.EFBIG: "a limit on the size of files is reached: ulimit -f",
    errno.ENOSPC: "free some space, or inodes: `df -h; df -i`",
    errno.EDQUOT: "a quota is used up: `quota`",
}


def _complain(message: str, hint: str) -> None:
    if message:  # else it has been reported
        complain(f"cntr: {message}\n" + (f"hint: {hint}\n" if hint else ""))


def _run(argv: list[str]) -> int:
    if argv[:1] == ["attach"]:
        parsed = parser.parse(argv, (ATTACH,), COMMON)  # loads neither the table nor the code of the other commands
        if not parsed.flag("help"):
            return _here_or_elsewhere(attaching.attach, parsed)
    from cntr.cli import commands

    found = commands.find(argv, _run, run)
    return found if isinstance(found, int) else _here_or_elsewhere(commands.HANDLERS[found.command.name], found)


def _here_or_elsewhere(command: Callable[[Parsed], int], parsed: Parsed) -> int:
    """Run a command; on another machine, if Docker's environment variables say that the container is there."""
    try:
        return command(parsed)
    except TargetNotFound as error:
        if not error.elsewhere:
            raise
        host = error.elsewhere
    from cntr.cli import commands

    attaching.say(
        f"note: {printable(parsed.words[0])} is looked up on {printable(host)}, according to DOCKER_HOST or docker's context"
    )
    return commands.elsewhere(["--host", host, *parsed.line], _run)
