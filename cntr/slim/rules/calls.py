"""What code starts or loads by a call whose arguments are in the code: programs, the shell, character set conversions."""

from __future__ import annotations

import re

from cntr.slim.rules import application, basics, elf, is_small, scripts
from cntr.slim.runs import as_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "calls"
SUMMARY = (
    "programs that the application's code starts; the shell for system(3) and popen(3), time zones for localtime(3), character sets "
    "for iconv(3) where a program calls them"
)
_SOURCE = (".py", ".js", ".mjs", ".cjs", ".ts", ".rb", ".php", ".pl", ".pm", ".lua", ".tcl", ".cgi", ".psgi")
_QUOTED_COMMANDS = (".rb", ".php", ".pl", ".pm", ".cgi", ".psgi")  # languages in which `…` runs a command
_STARTS = re.compile(
    r"\b(run|call|check_call|check_output|Popen|create_subprocess_exec|execFile|execFileSync|spawn|spawnSync|spawnlp|spawnvp|"
    r"execlp|execvp|which|system|popen[23]?|exec|execSync|shell_exec|passthru|proc_open|create_subprocess_shell|getoutput|"
    r"getstatusoutput|capture[23e]?)\s*\(?\s*\[?\s*(?:\"([^\"\n]{1,300})\"|'([^'\n]{1,300})'|`([^`\n]{1,300})`)"
)
_BY_SHELL = re.compile(
    r"\b(?:system|popen[23]?|execSync|shell_exec|passthru|proc_open|create_subprocess_shell|getoutput|getstatusoutput)\b|"
    r"\bshell\s*[=:]\s*[Tt]rue"
)
_SHELL_CHARACTERS = frozenset(" |&;<>$*")
# Character sets for iconv(3) and the like, beyond those of basics.
_ICONV = re.compile(r"\biconv\w*\s*\(|\bIconv\b|\bText::Iconv\b")
_CHARSET = re.compile(
    r"""["'](?:EUC-?\w+|S(?:hift)?_?JIS|ISO-2022-\w+|BIG5[\w-]*|GB[K\d]\w*|HZ|JOHAB|UHC|CP9\d\d|IBM\d+|EBCDIC[\w-]*|T(?:IS|CVN)[\w-]*)(?://\w+)*["']""",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"`([^`\n]{1,300})`")
_FOREIGN = re.compile(r"/(?:node_modules|vendor|gems|(?:site|dist)-packages)/")
# Conversions of single-byte character sets, which are small.
_BYTE_SETS = re.compile(r"(?:ISO8859-\d+|CP125\d|KOI8-\w+|UTF-7)\.so")
# Of a package's programs, those that are given the names.
_CONVERTS = re.compile(r"php[\w.-]*|libphp[\d.]*\.so|iconv|git|lynx")
_GCONV = re.compile(r".*/gconv")


def follows(context: Context, path: str, entry: Entry) -> Found:
    """For the application's source, and for programs."""
    if not entry.is_file or not entry.size:
        return
    own = application.is_application(context, path)
    if own and path.endswith(_SOURCE) and is_small(entry) and not is_foreign(context, path):
        yield from _started(context, path)
    elif own or _CONVERTS.fullmatch(path.rpartition("/")[2]):
        yield from _called(context, path, own)


def is_foreign(context: Context, path: str) -> bool:
    """Whether it belongs to a third-party library; one that the configuration names is the application."""
    found = _FOREIGN.search(path)
    words = context.settings.get("Entrypoint"), context.settings.get("Cmd")
    named = re.split(r"[\s.:/]", " ".join(word for text in words for word in as_words(text)))
    return found is not None and path[found.end() :].partition("/")[0] not in named


def _started(context: Context, path: str) -> Found:
    text = context.tree.read(path).decode("utf-8", "replace")
    if _BY_SHELL.search(text):
        yield "/bin/sh", f"{path} has commands run by the shell"
    if _ICONV.search(text) and _CHARSET.search(text):
        for directory in context.once("gconv", lambda: _directories(context)):
            for one in context.tree.children(directory):
                yield one, f"for iconv() of {path}"
    commands = [next(filter(None, words)) for _, *words in _STARTS.findall(text)]
    quoted = _QUOTED.findall(text) if path.endswith(_QUOTED_COMMANDS) else []
    if quoted or any(set(command) & _SHELL_CHARACTERS for command in commands):
        yield "/bin/sh", f"{path} has commands run by the shell"
    if path.endswith((".php", ".phtml", ".inc")) and re.search(r"\bmail\s*\(", text):
        for name in ("/bin/sh", "/usr/sbin/sendmail"):
            yield name, f"{path} sends mail"
    for command in commands + quoted:
        for name in scripts.named(command):
            yield context.program(name), f"{path} starts it as {name}"


def _called(context: Context, path: str, own: bool) -> Found:
    """own: it is the application's; a package's program may call much that is never needed."""
    found = elf.parse(context.tree, path)
    if found is None:
        return
    if own and {"system", "popen"} & found.names:
        yield "/bin/sh", "for system(3) and popen(3)"
    if own and found.interpreter and {"tzset", "localtime", "localtime_r"} & found.names:
        yield from basics.zones(context, path)
    if (
        "iconv_open" in found.names
        and "musl" not in found.interpreter
        and (own or _CONVERTS.fullmatch(path.rpartition("/")[2]))
    ):
        for directory in context.once("gconv", lambda: _directories(context)):
            for one in context.tree.children(directory):
                if own or _BYTE_SETS.fullmatch(one.rpartition("/")[2]):
                    yield one, f"for iconv(3) of {path}"


def _directories(context: Context) -> list[str]:
    return [path for path, entry in context.tree.entries.items() if entry.is_directory and _GCONV.fullmatch(path)]
