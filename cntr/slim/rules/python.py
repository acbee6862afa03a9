"""Python: source and bytecode together, imports of the application's modules, package metadata."""

from __future__ import annotations

import re

from cntr.slim.rules import application, scripts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "python"
SUMMARY = (
    ".pyc with .py and the other way round, modules that the application imports anywhere in its code or names in a string, what a "
    "distribution imports of itself by name, codecs by name, distributions' metadata"
)
_CACHED = re.compile(r"(.*)/__pycache__/([^/]+)\.[a-z]+-?\d+(?:\.opt-\d)?\.pyc")
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^#\n]*)|import[ \t]+([\w., \t]+))", re.MULTILINE
)
_DISTRIBUTION = re.compile(r"(.*/(?:site|dist)-packages)/([^/]+)")
_METADATA = ("METADATA", "PKG-INFO", "entry_points.txt", "top_level.txt", "INSTALLER")
_LIBRARY = re.compile(r".*/python3(?:\.\d+)?(?:/(?:site|dist)-packages|/lib-dynload)?")
_LIBRARY_FILE = re.compile(r".*/python3(?:\.\d+)?/(?!(?:site|dist)-packages/).*")
_MOST = 4 << 20  # bytes of a module that is searched for imports
# "package.module", "package.module.Class", "package.module.%s", f"package.module.{name}"
_DOTTED = re.compile(r"""["']([A-Za-z_]\w*(?:\.\w+)*)(\.(?:%s|\{|["'])|(?=["':]))""")
_ENCODING = re.compile(
    r"""(?:\b(?:en|de)code\(|\bencoding\s*=|\b(?:lookup|getreader|getwriter|iterdecode)\(|\bopen\([^\n]{1,80},)\s*["']([\w.-]{2,20})["']"""
)
# In scripts made by pkg_resources.
_ENTRY = re.compile(r"""["']([\w.-]+)==[^"'\n]*["']\s*,\s*["'](\w+)["']\s*,\s*["']([\w.-]+)["']""")
_COMMENT = re.compile(r"#[^\n]*")
# Imports of the standard library for its own tests and debugging, or if a compiled part is missing.
_NOT_AT_WORK = frozenset(
    "doctest pdb pydoc test unittest tkinter idlelib lib2to3 turtle ensurepip cProfile profile pstats _pydecimal _pyio _pydatetime".split()
)
_BY_NAME = (
    "/sysconfig.py",
    "/xml/sax/__init__.py",
    "/xml/dom/domreg.py",
    "/encodings/idna.py",
)  # in the standard library
_TESTS = ("/tests/", "/test/", "/testing/")
_IMPORTED = "python imported"


def follows(context: Context, path: str, entry: Entry) -> Found:
    """For a kept Python file."""
    if path.endswith(".pyc"):
        found = _CACHED.fullmatch(path)
        if found:
            yield f"{found[1]}/{found[2]}.py", "the source of a module"
        return
    imported: set[str] = context.once(_IMPORTED, set)
    if "." not in path.rpartition("/")[2] and scripts.language(context, path, entry) == "python":
        yield from _imports(context, path, imported)
        yield from _entry_points(context, path, imported)
    if path.endswith(".py"):
        yield from _bytecode(context, path)
        own = application.is_application(context, path)
        if path in imported or own:
            yield from _imports(context, path, imported)
        if own or "-packages/" in path or path.endswith(_BY_NAME):
            yield from _by_name(context, path, imported, own)
    if "-packages/" in path:
        yield from _metadata(context, path)


def _bytecode(context: Context, path: str) -> Found:
    directory, _, name = path.rpartition("/")
    stem = f"{directory}/__pycache__/{name[:-3]}."
    for other in context.tree.children(f"{directory}/__pycache__"):
        if other.startswith(stem) and other.endswith(".pyc") and ".opt-" not in other[len(stem) :]:
            yield other, "the bytecode of a module"


def _imports(context: Context, path: str, imported: set[str]) -> Found:
    """What a module of the application imports, at any time; and their imports."""
    text = context.tree.read(path, _MOST).decode("utf-8", "replace")
    for package, names, modules in _IMPORT.findall(text):
        wanted = [part.split()[0] for part in modules.split(",") if part.strip()] if modules else [package]
        listed = _COMMENT.sub("", names).strip("() ").split(",")
        prefix = package if package.endswith(".") else f"{package}."
        wanted += [f"{prefix}{name.split()[0]}" for name in listed if name.split()]
        library = _LIBRARY_FILE.fullmatch(path) and not application.is_application(context, path)
        for module in wanted:
            if library and module.partition(".")[0] in _NOT_AT_WORK:
                continue
            for found in _files_of(context, path, module):
                if found.endswith(".py"):
                    imported.add(found)
                yield found, f"imported by the application as {module}"


def _entry_points(context: Context, path: str, imported: set[str]) -> Found:
    """The module of a script that looks it up in its distribution's metadata."""
    wanted = path.rpartition("/")[2]
    text = context.tree.read(path, 1 << 16).decode("utf-8", "replace")
    if "entry_point" not in text:
        return
    named = {one[0].lower().replace("-", "_") for one in _ENTRY.findall(text)}
    for (_, _), places in context.once("python distributions", lambda: _distributions(context)).items():
        for place in places:
            if place.rpartition("/")[2].partition("-")[0].lower().replace("-", "_") not in named:
                continue
            yield f"{place}/entry_points.txt", "the metadata of a distribution"
            for module in re.findall(
                rf"^{re.escape(wanted)}\s*=\s*([\w.]+)",
                context.tree.text(f"{place}/entry_points.txt", 1 << 16),
                re.MULTILINE,
            ):
                for found in _files_of(context, path, module):
                    imported.update([found] if found.endswith(".py") else [])
                    yield found, f"what {path} runs"


def _by_name(context: Context, path: str, imported: set[str], own: bool) -> Found:
    """Modules named by a string: settings, plug-ins, drivers. A distribution's strings count for the distribution
    itself.
    """
    text = context.tree.read(path, _MOST).decode("utf-8", "replace")
    top = "" if own else _top(path)
    for module, open_end in set(_DOTTED.findall(text)):
        if ("." not in module and not open_end) or (top and module.partition(".")[0] != top):
            continue
        files = _files_of(context, path, module)
        for found in files:
            imported.update([found] if found.endswith(".py") else [])
            yield found, f"named by {path} as {module}"
        last = files[-1].removesuffix("/__init__.py") if files else ""
        whole = open_end and last.endswith("/" + module.replace(".", "/"))
        if (whole or (own and _is_django(context, last))) and last in context.tree:
            for one in context.tree.below(last):
                if not any(part in one for part in _TESTS) and not one.endswith((".po", ".mo")):
                    imported.update([one] if one.endswith(".py") else [])
                    yield one, f"named by {path} as {module}"
    if top == "sysconfig":
        directory = path.rpartition("/")[0]
        for one in context.tree.children(directory):
            if one.startswith(f"{directory}/_sysconfigdata"):
                yield one, "what sysconfig tells is in it"
    # idna encodes host names as punycode.
    for encoding in set(_ENCODING.findall(text)) if own or path.endswith("/encodings/idna.py") else ():
        yield from _codec(context, encoding, imported)


def _top(path: str) -> str:
    """The first component of a module's name."""
    return (
        re.sub(r".*/python3[\d.]*/(?:(?:site|dist)-packages/)?|.*/(?:site|dist)-packages/", "", path)
        .partition("/")[0]
        .removesuffix(".py")
    )


def _is_django(context: Context, directory: str) -> bool:
    """Whether it is a Django application, whose modules are found by file name."""
    return f"{directory}/apps.py" in context.tree


def _codec(context: Context, encoding: str, imported: set[str]) -> Found:
    from encodings import aliases, normalize_encoding

    name = normalize_encoding(encoding).lower()
    for found in _files_of(context, "", f"encodings.{aliases.aliases.get(name, name)}"):
        imported.add(found)
        yield found, f"the codec of {encoding}"


def _files_of(context: Context, importer: str, module: str) -> list[str]:
    """The files that an import of MODULE would load, judged by names."""
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
                if not extension and number == 0 and here not in context.tree:
                    break  # without __init__.py it is a namespace package
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
    """The directories of the module search path: each kept standard library, and what is installed beside it."""

    def make() -> list[str]:
        tree = context.tree
        found = [text for text in context.environment().get("PYTHONPATH", "").split(":") if text]
        for path, entry in tree.entries.items():
            if entry.is_directory and _LIBRARY.fullmatch(path) and path not in found:
                found.append(path)
        return found

    return context.once("python places", make)  # type: ignore[no-any-return]


def _metadata(context: Context, path: str) -> Found:
    """The metadata of a kept file's distribution: importlib.metadata looks it up by name."""
    found = _DISTRIBUTION.match(path)
    if not found or found[2].endswith((".dist-info", ".egg-info")):
        return
    table = context.once("python distributions", lambda: _distributions(context))
    for directory in table.get((found[1], found[2].partition(".")[0].lower().replace("-", "_")), ()):
        for name in _METADATA:
            yield f"{directory}/{name}", "the metadata of a distribution"


def _distributions(context: Context) -> dict[tuple[str, str], list[str]]:
    """(directory, top-level module) → the metadata directories."""
    table: dict[tuple[str, str], list[str]] = {}
    for path, entry in context.tree.entries.items():
        if entry.is_directory and path.endswith((".dist-info", ".egg-info")):
            place, _, name = path.rpartition("/")
            tops = context.tree.text(f"{path}/top_level.txt", 1 << 16).split() or [name.partition("-")[0]]
            for top in tops:
                table.setdefault((place, top.lower().replace("-", "_")), []).append(path)
    return table
