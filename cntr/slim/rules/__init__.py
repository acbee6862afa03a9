"""What an application needs although a recording does not show it: a table of rules, one file per kind.

A rule's module has NAME and SUMMARY, and some of:

    seeds(context)                 (path, why) of what it keeps from the start
    follows(context, path, entry)  (path, why) of what PATH, a kept file, needs
    closing(context)               (path, why), called when nothing else is to be added; its results are not followed

Paths may lead through symbolic links, which are kept too. Missing paths are ignored: rules guess.
"""

from __future__ import annotations

import fnmatch
import re
import sys

from cntr.errors import CntrError, printable
from cntr.slim.accesses import Accesses
from cntr.slim.tree import Entry, Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType
    from typing import Any

    Found = Iterator[tuple[str, str]]

RECORDED, VERIFIED = "recorded", "verified"
NAMES = (
    "configuration",
    "application",
    "companions",
    "basics",
    "elf",
    "scripts",
    "calls",
    "named",
    "plugins",
    "python",
    "node",
    "jvm",
    "ruby",
    "php",
    "perl",
    "lua",
    "databases",
    "links",
    "packages",
)


class Reason:
    """Why a path is kept: the rule, its explanation, and the path that led to it ("" for none)."""

    __slots__ = ("by", "rule", "why")

    def __init__(self, rule: str, why: str, by: str = "") -> None:
        self.rule, self.why, self.by = rule, why, by


class Choices:
    """What the user chose: --keep, --drop, --app, --package-db, …"""

    def __init__(self) -> None:
        self.keep: list[str] = []
        self.drop: list[str] = []
        self.application: list[str] = []
        self.keep_shell = False
        self.package_db = "filtered"
        self.licences = False


class Context:
    """The splitting of one image: what is known about it, and what is kept so far."""

    def __init__(self, tree: Tree, settings: dict[str, Any], accesses: Accesses, choices: Choices) -> None:
        """settings: the run-time part of the image's configuration."""
        self.tree, self.settings, self.accesses, self.choices = tree, settings, accesses, choices
        self.application: set[str] = set()  # files in the application's layers
        self.kept: dict[str, Reason] = {}
        self.dropped: dict[str, str] = {}
        self.replaced: dict[str, bytes] = {}
        self.missed: set[str] = set()  # paths whose lookup failed in a run of the slim image
        self._waiting: list[str] = []
        self._cache: dict[str, Any] = {}

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """The result of MAKE, computed once per image."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def keep(self, path: str, reason: Reason) -> bool:
        """Keep the file that PATH leads to and the links on the way; return whether anything was new."""
        real, links = self.tree.resolve(path)
        new = False
        for link in links:
            if link not in self.kept:
                self.kept[link] = Reason(reason.rule, reason.why, reason.by)
                new = True
        if not real or real in self.kept:
            return new
        for name in self.tree.siblings(real):
            if name not in self.kept:
                self.kept[name] = reason if name == real else Reason("links", f"another name of {real}", real)
        self._waiting.append(real)
        return True

    def take(self) -> str | None:
        """A kept path that was not followed yet."""
        return self._waiting.pop() if self._waiting else None

    def search_path(self) -> list[str]:
        """The directories of PATH in the container."""
        text = self.environment().get("PATH") or "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [part for part in text.split(":") if part.startswith("/")]

    def environment(self) -> dict[str, str]:
        """The container's variables, from its configuration."""
        rows = self.settings.get("Env") or []
        return dict(str(row).partition("=")[::2] for row in rows)

    def program(self, name: str) -> str:
        """The path of a program, "" if there is none."""
        if "/" in name:
            place = name if name.startswith("/") else f"{self.settings.get('WorkingDir') or '/'}/{name}"
            return place if self.tree.resolve(place)[0] else ""
        for directory in self.search_path():
            real, _ = self.tree.resolve(f"{directory}/{name}")
            entry = self.tree.get(real) if real else None
            if entry is not None and entry.is_executable:
                return f"{directory}/{name}"
        return ""


def modules() -> list[ModuleType]:
    """The rules, in the table's order."""
    for name in NAMES:
        __import__(f"{__name__}.{name}")
    return [sys.modules[f"{__name__}.{name}"] for name in NAMES]


def complete(context: Context) -> None:
    """Keep what was recorded and what follows from it. May be called again with more recorded."""
    rules = modules()
    for path, kinds in sorted(context.accesses.kinds.items()):
        if kinds != {"name"}:  # a path that was only looked up is kept once its absence matters
            context.keep(path, Reason(RECORDED, f"the run used it: {', '.join(sorted(kinds))}"))
    for path in context.missed:
        if path in context.tree and path not in context.kept:
            context.kept[path] = Reason(VERIFIED, "the slim image was asked for it in vain")
    for path in matching(context.tree, context.choices.keep, "--keep"):
        context.keep(path, Reason("--keep", "the user said so"))
    for rule in rules:
        if hasattr(rule, "seeds"):
            _add(context, rule.NAME, rule.seeds(context), "")
    followers = [rule for rule in rules if hasattr(rule, "follows")]
    while (one := context.take()) is not None:
        entry = context.tree.entries[one]
        for rule in followers:
            _add(context, rule.NAME, rule.follows(context, one, entry), one)
    for rule in rules:
        if hasattr(rule, "closing"):
            for path, why in list(rule.closing(context)):
                context.kept.setdefault(path, Reason(rule.NAME, why))
    for gone in matching(context.tree, context.choices.drop, "--drop"):
        if not context.tree.entries[gone].is_directory and context.kept.pop(gone, None) is not None:
            context.dropped[gone] = "--drop"


def _add(context: Context, rule: str, found: Iterable[tuple[str, str]], by: str) -> None:
    for path, why in found:
        if path:
            context.keep(path, Reason(rule, why, by))


def matching(tree: Tree, patterns: list[str], option: str) -> list[str]:
    """The paths that match: ``*`` and ``?`` do not match a slash, ``**`` does; a directory stands for everything in it.

    Raises CntrError for a pattern that matches nothing, as it is probably mistyped.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if not pattern.startswith("/"):
            raise CntrError(f"{option} {printable(pattern)}: not a path of the image", "it begins with /")
        expression = re.compile(translate(pattern.rstrip("/") or "/"))
        hits = [path for path in tree.entries if expression.fullmatch(path)]
        real = tree.resolve(pattern)[0] if not hits else ""
        hits += [real] if real else []
        if not hits:
            raise CntrError(f"{option} {printable(pattern)}: nothing in the image matches", "see `cntr slim --help`")
        for path in hits:
            found[path] = None
            if tree.entries[path].is_directory:
                found.update(dict.fromkeys(tree.below(path)))
    return list(found)


def translate(pattern: str) -> str:
    """A pattern as a regular expression."""
    parts = []
    for piece in re.split(r"(\*\*|\*|\?|\[[^\]]*\])", pattern):
        if piece == "**":
            parts.append(".*")
        elif piece == "*":
            parts.append("[^/]*")
        elif piece == "?":
            parts.append("[^/]")
        elif piece.startswith("["):
            parts.append(fnmatch.translate(piece).removeprefix("(?s:").removesuffix(r")\Z"))
        else:
            parts.append(re.escape(piece))
    return "".join(parts)


def is_small(entry: Entry, limit: int = 1 << 20) -> bool:
    """A regular file of at most LIMIT bytes."""
    return entry.is_file and entry.size <= limit
