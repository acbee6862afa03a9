"""Package databases: the records of packages of which something is kept, so that scanners see exactly what is there."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found

NAME = "packages"
SUMMARY = "dpkg's and apk's records of the packages that are still there (--package-db), copyright files (--licences)"
STATUS = "/var/lib/dpkg/status"
APK = ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")  # the latter from Alpine's merged /usr on
_MOST = 64 << 20  # bytes
_DATABASES = (
    "/var/lib/dpkg/",
    "/lib/apk/db/",
    "/usr/lib/apk/db/",
    "/var/lib/rpm/",
    "/usr/lib/sysimage/rpm/",
    "/usr/share/doc/",
)
_HEAD = re.compile(r"^(Package|Version|Architecture|Status):[ \t]*(.*)$", re.MULTILINE)


class Package:
    """An installed package; names: its files, as the database spells them."""

    __slots__ = ("architecture", "name", "record", "version")

    def __init__(self, name: str, version: str, architecture: str, record: str) -> None:
        """record: its paragraph in the database."""
        self.name, self.version, self.architecture, self.record = name, version, architecture, record


def installed(context: Context) -> dict[str, Package]:
    """The packages of the image, by name."""
    return context.once("packages", lambda: _installed(context))  # type: ignore[no-any-return]


def _installed(context: Context) -> dict[str, Package]:
    found: dict[str, Package] = {}
    text = _read(context, STATUS)
    for record in filter(str.strip, text.split("\n\n")):
        head = dict(_HEAD.findall(record))
        if head.get("Package") and "not-installed" not in head.get("Status", ""):
            name = head["Package"]
            found[name] = Package(name, head.get("Version", ""), head.get("Architecture", ""), record.strip("\n"))
    for record in filter(str.strip, "\n\n".join(_read(context, path) for path in APK).split("\n\n")):
        rows = dict(line.split(":", 1) for line in record.split("\n") if line[1:2] == ":")
        if rows.get("P"):
            found[rows["P"]] = Package(rows["P"], rows.get("V", ""), rows.get("A", ""), record.strip("\n"))
    return found


def _read(context: Context, path: str) -> str:
    return (
        context.tree.read(context.tree.resolve(path)[0], _MOST).decode("utf-8", "surrogateescape")
        if path in context.tree
        else ""
    )


def owners(context: Context) -> dict[str, str]:
    """Real path → the package that owns it."""
    return context.once("owners", lambda: _owners(context))  # type: ignore[no-any-return]


def files(context: Context, name: str) -> list[str]:
    """The files of a package, without directories."""

    def make() -> dict[str, list[str]]:
        table: dict[str, list[str]] = {}
        for path, owner in owners(context).items():
            if not context.tree.entries[path].is_directory:
                table.setdefault(owner, []).append(path)
        return table

    return context.once("files of packages", make).get(name, [])  # type: ignore[no-any-return]


def _owners(context: Context) -> dict[str, str]:
    tree, table = context.tree, dict[str, str]()
    for path in tree.children("/var/lib/dpkg/info"):
        if path.endswith(".list"):
            name = path.rpartition("/")[2].removesuffix(".list").partition(":")[0]
            for line in tree.read(path, _MOST).decode("utf-8", "surrogateescape").splitlines():
                _own(context, table, line, name)
    name = directory = ""
    for line in "\n".join(_read(context, path) for path in APK).splitlines():
        if line.startswith("P:"):
            name = line[2:]
        elif line.startswith("F:"):
            directory = f"/{line[2:]}"
        elif line.startswith("R:") and name:
            _own(context, table, f"{directory}/{line[2:]}", name)
    return table


def _own(context: Context, table: dict[str, str], path: str, name: str) -> None:
    if path in context.tree.entries:
        table.setdefault(path, name)
    else:  # merged /usr: the package lists /bin/sh, the file is in /usr/bin
        directory, _, last = path.rpartition("/")
        places = context.once("package directories", dict)
        if directory not in places:
            places[directory] = context.tree.resolve(directory or "/")[0]
        real = f"{places[directory].rstrip('/')}/{last}"
        if real in context.tree.entries:
            table.setdefault(real, name)


def kept(context: Context) -> set[str]:
    """The packages of which some file is kept that is neither a record nor documentation."""
    table = owners(context)
    return {
        table[path]
        for path in context.kept
        if path in table and not context.tree.entries[path].is_directory and not path.startswith(_DATABASES)
        and context.tree.entries[path].size
    }  # fmt: skip


def closing(context: Context) -> Found:
    """The databases, depending on --package-db; copyright files, depending on --licences."""
    tree, choice = context.tree, context.choices.package_db
    there = kept(context)
    if choice == "full":
        for place in _DATABASES[:-1]:
            for path in tree.below(place.rstrip("/")):
                yield path, "--package-db full"
    elif choice == "filtered":
        known = installed(context)
        for path in (STATUS, *APK):
            if path in tree and tree.entries[path].is_file:
                records = [package.record for name, package in known.items() if name in there]
                context.replaced[path] = ("\n\n".join(records) + "\n\n" if records else "").encode(
                    "utf-8", "surrogateescape"
                )
                yield path, "the package database, filtered to what is there"
    else:
        for path in [path for path in context.kept if path.startswith(_DATABASES[:-1])]:
            if context.kept[path].rule not in ("recorded", "--keep", "application"):
                del context.kept[path]
    if context.choices.licences:
        for name in sorted(there):
            for path in (f"/usr/share/doc/{name}/copyright", f"/usr/share/licenses/{name}"):
                real, _ = tree.resolve(path)
                if real:
                    yield real, "--licences"
                    for one in tree.below(real):
                        yield one, "--licences"
