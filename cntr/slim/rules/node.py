"""Node.js: the nearest package.json of a kept script, and the packages the application requires, with their
dependencies.
"""

from __future__ import annotations

import json
import re

from cntr.slim.rules import application, is_small

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "node"
SUMMARY = "nearest package.json, packages that the application requires anywhere in its code, and their dependencies"
SCRIPTS = (".js", ".mjs", ".cjs")
_REQUIRE = re.compile(
    r"""(?:require|import)\s*\(\s*["']([^"'\n]{1,200})["']|from\s+["']([^"'\n]{1,200})["']|import\s+["']([^"'\n]{1,200})["']"""
)
_LEFT_OUT = re.compile(
    r"/(?:test|tests|__tests__|example|examples|docs?|benchmark|coverage)/|\.(?:md|markdown|ts|map|flow)$",
    re.IGNORECASE,
)
_MOST = 4 << 20


def follows(context: Context, path: str, entry: Entry) -> Found:
    """For a kept script."""
    if not path.endswith((*SCRIPTS, ".json", ".node")) or not entry.is_file:
        return
    directory = path.rpartition("/")[0]
    while directory:
        if f"{directory}/package.json" in context.tree:
            yield f"{directory}/package.json", "the package that a script belongs to"
            break
        directory = directory.rpartition("/")[0]
    if path.endswith(SCRIPTS) and application.is_application(context, path) and "/node_modules/" not in path:
        text = context.tree.read(path, _MOST).decode("utf-8", "replace")
        for names in _REQUIRE.findall(text):
            name = next(filter(None, names), "")
            if name and name[0] not in "./" and not name.startswith("node:"):
                yield from _package(context, path.rpartition("/")[0], _top(name), set())


def _top(name: str) -> str:
    parts = name.split("/")
    return "/".join(parts[:2]) if name.startswith("@") else parts[0]


def _package(context: Context, directory: str, name: str, seen: set[str]) -> Found:
    """The files of the package that NAME means below DIRECTORY, and of its dependencies."""
    home = _find(context, directory, name)
    if not home or home in seen or len(seen) > 2000:
        return
    seen.add(home)
    entry = context.tree.get(home)
    if entry is None or not entry.is_directory:
        yield home, f"the package {name}, which the application requires"
        return
    for path in context.tree.below(home):
        one = context.tree.entries[path]
        inner = path[len(home) :]
        if "/node_modules/" not in inner and not _LEFT_OUT.search(inner) and not one.is_directory:
            yield path, f"the package {name}, which the application requires"
    for dependency in _dependencies(context, f"{home}/package.json"):
        yield from _package(context, home, dependency, seen)


def _find(context: Context, directory: str, name: str) -> str:
    tree, here = context.tree, directory
    places = []
    while True:
        places.append(f"{here}/node_modules")
        if not here:
            break
        here = here.rpartition("/")[0]
    places += [part for part in context.environment().get("NODE_PATH", "").split(":") if part]
    places += ["/usr/share/nodejs", "/usr/lib/nodejs", "/usr/lib/node_modules", "/usr/local/lib/node_modules"]
    for place in places:
        for path in (f"{place}/{name}", f"{place}/{name}.js"):
            real, _ = tree.resolve(path)
            if real:
                return real
    return ""


def _dependencies(context: Context, path: str) -> list[str]:
    entry = context.tree.get(path)
    if entry is None or not is_small(entry):
        return []
    try:
        found = json.loads(context.tree.read(path))
        rows = found.get("dependencies") if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        return []
    return [str(name) for name in rows][:1000] if isinstance(rows, dict) else []
