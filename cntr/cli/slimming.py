"""``cntr slim``: turning its arguments into a request, and printing the result."""

from __future__ import annotations

import os
import re
import shlex
import sys

from cntr.cli.parser import Parsed
from cntr.errors import CntrError, UsageError, printable, with_sudo
from cntr.slim import splitting
from cntr.slim.exercise import Http
from cntr.slim.job import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def run(parsed: Parsed, say: Callable[[str], None], show: Callable[[str], None]) -> int:
    """Run the whole command; return the exit status."""
    if parsed.words[0] == "diff":
        return _diff(parsed, show)
    if len(parsed.words) > 1:
        raise UsageError(f"slim: unexpected word: {printable(parsed.words[1])}", "the exercise comes after --")
    if os.geteuid() != 0:
        _in_user_namespace(parsed)
    report = splitting.slim(request_of(parsed), say)
    show(report.json() if parsed.flag("json") else report.text())
    return 0


def request_of(parsed: Parsed) -> Request:
    """Build the request. Raises UsageError."""
    request = Request(parsed.words[0])
    request.load, request.watch = parsed.flag("load"), parsed.flag("watch")
    request.accesses, request.fat, request.report = parsed.text("accesses"), parsed.text("fat"), parsed.text("report")
    request.output = parsed.text("output") or ("" if request.load or request.watch else "slim.tar")
    request.tag = _tag(parsed.text("tag"))
    request.recorder, request.verify = parsed.text("recorder", "auto"), parsed.text("verify", "all")
    request.compress, request.explain = parsed.text("compress", "gzip"), parsed.texts("explain")
    request.layers = int(parsed.text("layers", "1"))
    exercise = request.exercise
    exercise.http = [Http(text) for text in parsed.texts("http")]
    exercise.inside = [_words("--exec", text) for text in parsed.texts("exec")]
    exercise.command = parsed.argv
    exercise.seconds = seconds("--for", parsed.text("for")) if parsed.flag("for") else None
    options = request.options
    options.network = parsed.text("network", "none")
    # As with the engines: a name without a value takes the caller's variable, if it is set.
    named = [
        row if "=" in row else f"{row}={os.environ[row]}"
        for row in parsed.texts("env")
        if "=" in row or row in os.environ
    ]
    options.environment, options.volumes = named, parsed.texts("volume")
    options.command = _words("--cmd", parsed.text("cmd")) if parsed.flag("cmd") else []
    options.entrypoint = _words("--entrypoint", parsed.text("entrypoint")) if parsed.flag("entrypoint") else []
    options.timeout = seconds("--timeout", parsed.text("timeout", "60s"))
    choices = request.choices
    choices.keep, choices.drop, choices.application = parsed.texts("keep"), parsed.texts("drop"), parsed.texts("app")
    choices.keep_shell, choices.licences = parsed.flag("keep_shell"), parsed.flag("licences")
    choices.package_db = parsed.text("package_db", "filtered")
    return request


def seconds(option: str, text: str) -> float:
    """Parse 30s, 5m, 2h or a bare number of seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found:
        raise UsageError(f"{option} {printable(text)}: not a time", "30s, 5m, 2h")
    return float(found[1]) * _UNITS[found[2]]


def _words(option: str, text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{option} {printable(text)}: {error}", "quote it as a shell would") from None
    if not words:
        raise UsageError(f"{option}: no word in it", "name a program")
    return words


def _tag(text: str) -> str:
    name = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
    if text and not re.fullmatch(
        rf"(?:[A-Za-z0-9.-]+(?::\d+)?/)?{name}(?:/{name})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?", text
    ):
        raise UsageError(
            f"--tag {printable(text)}: not an image's name", "for example web:slim or registry.example/web:1-slim"
        )
    return text if not text or ":" in text.rpartition("/")[2] else f"{text}:latest"


def _in_user_namespace(parsed: Parsed) -> None:
    """Without root: restart in Podman's user namespace, where the user's images can be read. Does not return in that
    case.
    """
    if os.environ.get("_CONTAINERS_USERNS_CONFIGURED"):
        return
    import shutil

    if not shutil.which("podman"):
        raise CntrError("slim takes root, or rootless Podman", with_sudo())
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    os.execvp("podman", ["podman", "unshare", sys.executable, "-m", "cntr", *parsed.line])


def _diff(parsed: Parsed, show: Callable[[str], None]) -> int:
    """Run ``cntr slim diff TARGET OTHER [OVER]``; return the exit status."""
    import json

    from cntr.slim import compare
    from cntr.slim.leftovers import Guard

    if len(parsed.words) < 2 or parsed.argv:
        raise UsageError("slim diff: two images to compare", "cntr slim diff nginx:1 archive:slim.tar")
    first, *second = parsed.words[1:]
    if not second:
        raise UsageError("slim diff: what is it to be compared with?", "cntr slim diff nginx:1 archive:slim.tar")
    with Guard() as guard:
        one, close_one = compare.opened([first], guard)
        two, close_two = compare.opened(second, guard)
        found = compare.trees(one, two)
        close_one()
        close_two()
    if parsed.flag("json"):
        rows = [{"sign": d.sign, "path": d.path, "what": d.what, "bytes": d.size} for d in found]
        show(json.dumps(rows, indent=1))
    else:
        gone = [one for one in found if one.sign == "-"]
        for difference in found:
            show(str(difference))
        show(f"{len(found)} differ; only in {printable(first)}: {len(gone)}, {sum(d.size for d in gone) / 1e6:.1f} MB")
    return 1 if found else 0
