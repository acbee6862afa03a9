"""The errors a user can meet: what failed, on what, why, and what to do.

``cli.main`` is the one place that prints them: ``cntr: MESSAGE`` and, below it, ``hint: HINT``.
"""

from __future__ import annotations

import sys

EXIT_FAILED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_USAGE = 125


def complain(text: str) -> None:
    """Print TEXT on stderr. Where that is closed, full or gone, nobody can be told: it changes no exit status."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError):  # Python's stderr is None if the caller closed it
        pass


class CntrError(Exception):
    """A failure that the user can act on.

    message: one line: what failed, on what and why; "" if already printed; hint: one line: what to do; exit_code: see
    docs/cntr.1.md.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str = "", exit_code: int | None = None) -> None:
        """exit_code: overrides the class's own."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(CntrError):
    """The command line itself is wrong."""

    exit_code = EXIT_USAGE


class TargetNotFound(CntrError):
    """No engine knows the name, or the process is gone.

    late: engines that did not answer in time; elsewhere: the machine on which one of them has its containers, in the
    form of ``--host``; restarting: an engine has such a container, which is being restarted.
    """

    late: tuple[str, ...] = ()
    restarting = False
    elsewhere = ""


class AmbiguousTarget(CntrError):
    """The name matches more than one running container."""


class Refused(CntrError):
    """The policy forbids it, or no record could be written where one is required."""


class StepFailed(CntrError):
    """One step of the walk failed: carries the step's name and the errno."""

    def __init__(self, step: str, error_number: int, path: str, hint: str = "") -> None:
        """step: e.g. ``mount /proc``; error_number: errno; path: its object."""
        import os

        where = f" {path}" if path else ""
        super().__init__(f"{step}{where}: {os.strerror(error_number)}", hint)
        self.step = step
        self.errno = error_number
        self.path = path


# Part of sudo's secure_path everywhere (sudoers(5)); a program in another directory is called by its full path.
_SUDO_FINDS = ("/usr/bin", "/usr/sbin", "/bin", "/sbin")


def with_sudo(reason: str = "") -> str:
    """A hint that ends with this process's command line under sudo, ready to be pasted; for root only REASON."""
    import os
    import shlex
    import sys

    if os.geteuid() == 0:
        return reason
    program = os.path.abspath(sys.argv[0])
    directory, name = os.path.split(program)
    words = [name if directory in _SUDO_FINDS else program]
    if name == "__main__.py":  # python -m cntr
        words = [sys.executable, "-m", os.path.basename(directory)]
        if os.getcwd() != os.path.dirname(directory):
            words[:0] = ["env", f"PYTHONPATH={os.path.dirname(directory)}"]
    elif not os.access(program, os.X_OK):  # python cntr.pyz
        words.insert(0, sys.executable)
    here = any(os.access(f"{place}/sudo", os.X_OK) for place in os.environ.get("PATH", os.defpath).split(":"))
    line = ("sudo " if here else "") + printable(shlex.join(words + sys.argv[1:]))
    return f"{reason}{': ' if reason else ''}{'try' if here else 'as root'} `{line}`"


def printable(text: str) -> str:
    """TEXT made safe for a terminal: control characters, escape sequences and lone surrogates are escaped.

    Names, images and paths come from containers, which may be hostile. Python's codec for this would be imported on
    first use, perhaps from inside a container, so the escaping is done here.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is no UTF-8 (os.fsdecode), as a shell takes it: $'\xff'
        number -= 0xDC00
    if character in "\t\n\r":
        return {"\t": "\\t", "\n": "\\n", "\r": "\\r"}[character]
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
