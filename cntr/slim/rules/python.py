"""Python: source and bytecode together, what an application's modules import, a package's metadata."""

from __future__ import annotations

import re

from cntr.slim.rules import application

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "python"
SUMMARY = ".pyc with .py and the other way round, modules that the application imports anywhere in its code, distributions' metadata"
_CACHED = re.compile(r"(.*)/__pycache__/([^/]+)\.[a-z]+-?\d+(?:\.opt-\d)?\.pyc")
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+([^#\n]*)|import[ \t]+([\w., \t]+))", re.MULTILINE
)
_DISTRIBUTION = re.compile(r"(.*/(?:site|dist)-packages)/([^/]+)")
_METADATA = ("METADATA", "PKG-INFO", "entry_points.txt", "top_level.txt", "INSTALLER")
_LIBRARY = re.compile(r".*/python3(?:\.\d+)?(?:/(?:site|dist)-packages|/lib-dynload)?")
_MOST = 4 << 20  # bytes of a module that is read for imports
_IMPORTED = "python imported"


def follows(context: Context, path: str, entry: Entry) -> Found:
    """Of a Python file that is kept."""
    if path.endswith(".pyc"):
        found = _CACHED.fullmatch(path)
        if found:
            yield f"{found[1]}/{found[2]}.py", "the source of a module"
        return
    if path.endswith(".py"):
        yield from _bytecode(context, path)
        imported: set[str] = context.once(_IMPORTED, set)
        if path in imported or application.is_application(context, path):
            yield from _imports(context, path, imported)
    if "-packages/" in path:
        yield from _metadata(context, path)


def _bytecode(context: Context, path: str) -> Found:
    directory, _, name = path.rpartition("/")
    stem = f"{directory}/__pycache__/{name[:-3]}."
    for other in context.tree.children(f"{directory}/__pycache__"):
        if other.startswith(stem) and other.endswith(".pyc") and ".opt-" not in other[len(stem) :]:
            yield other, "the bytecode of a module"


def _imports(context: Context, path: str, imported: set[str]) -> Found:
    """What a module of the application imports, now or later; and what those import."""
    text = context.tree.read(path, _MOST).decode("utf-8", "replace")
    for package, names, modules in _IMPORT.findall(text):
        wanted = [part.split()[0] for part in modules.split(",") if part.strip()] if modules else [package]
        wanted += (
            [f"{package.rstrip('.')}.{n.split()[0]}" for n in names.strip("() ").split(",") if n.split()]
            if names
            else []
        )
        for module in wanted:
            for found in _files_of(context, path, module):
                if found.endswith(".py"):
                    imported.add(found)
                yield found, f"imported by the application as {module}"


def _files_of(context: Context, importer: str, module: str) -> list[str]:
    """The files that the import of MODULE would load, as far as names tell."""
    if module.startswith("."):
        base = importer
        for _ in range(len(module) - len(module.lstrip("."))):
            base = base.rpartition("/")[0]
        places, name = [base], module.lstrip(".")
    else:
        places, name = [importer.rpartition("/")[0], *_places(context)], module
    parts = [part for part in name.split(".") if part]
    for place in places:
        found, here = [], place
        for number, part in enumerate(parts):
            here = f"{here}/{part}"
            if f"{here}/__init__.py" in context.tree:
                found.append(f"{here}/__init__.py")
            elif f"{here}.py" in context.tree:
                found.append(f"{here}.py")
                break
            else:
                extension = _extension(context, here)
                found += [extension] if extension else []
                if not extension and number == 0:
                    break
        if found:
            return found
    return []


def _extension(context: Context, stem: str) -> str:
    directory, _, name = stem.rpartition("/")
    for path in context.tree.children(directory):
        rest = path[len(directory) + 1 :]
        if rest.startswith(f"{name}.") and rest.endswith(".so"):
            return path
    return ""


def _places(context: Context) -> list[str]:
    """The directories of the module search path: each standard library that is kept from, and what is installed beside it."""

    def make() -> list[str]:
        tree = context.tree
        found = [text for text in context.environment().get("PYTHONPATH", "").split(":") if text]
        for path, entry in tree.entries.items():
            if entry.is_directory and _LIBRARY.fullmatch(path) and path not in found:
                found.append(path)
        return found

    return context.once("python places", make)  # type: ignore[no-any-return]


def _metadata(context: Context, path: str) -> Found:
    """The metadata of the distribution that a kept file belongs to: importlib.metadata asks for it by name."""
    found = _DISTRIBUTION.match(path)
    if not found or found[2].endswith((".dist-info", ".egg-info")):
        return
    table = context.once("python distributions", lambda: _distributions(context))
    for directory in table.get((found[1], found[2].partition(".")[0].lower().replace("-", "_")), ()):
        for name in _METADATA:
            yield f"{directory}/{name}", "the metadata of a distribution"


def _distributions(context: Context) -> dict[tuple[str, str], list[str]]:
    """(directory, top-level module) → the directories of metadata."""
    table: dict[tuple[str, str], list[str]] = {}
    for path, entry in context.tree.entries.items():
        if entry.is_directory and path.endswith((".dist-info", ".egg-info")):
            place, _, name = path.rpartition("/")
            tops = context.tree.text(f"{path}/top_level.txt", 1 << 16).split() or [name.partition("-")[0]]
            for top in tops:
                table.setdefault((place, top.lower().replace("-", "_")), []).append(path)
    return table
