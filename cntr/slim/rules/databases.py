"""Database servers: what SQL statements load and a start does not: languages, dictionaries, character sets."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "databases"
SUMMARY = "PostgreSQL's conversions, dictionaries, zones, extensions and clients; MySQL's and MariaDB's character sets and messages"
_POSTGRES = re.compile(r"(.*)/bin/postgres")
# The just-in-time compiler needs a library of 100 MB: it is kept only if the recording shows its use.
_MODULE = re.compile(
    r"/(?:plpgsql|dict_\w+|utf8_and_\w+|\w+_and_\w+|cyrillic_and_mic|latin\w*_mic|libpqwalreceiver|pgoutput)\.so$"
)
# Languages that bring another interpreter: they are kept only if the recording shows their use.
_EXTENSION = re.compile(r"(?!.*pl(?:perl|python|tcl|v8))(?P<name>[\w-]+?)(?:--[\w.-]+)?\.(?:control|sql)")
_LARGEST = 1 << 20  # bytes of an extension's library, or of a client program
_CLIENTS = "psql pg_isready pg_dump pg_dumpall pg_restore pg_basebackup pg_ctl createdb createuser dropdb vacuumdb reindexdb".split()
_SHARED = ("tsearch_data", "timezonesets", "timezone")
_MYSQL = ("mysqld", "mariadbd")
_MESSAGES = ("/usr/share/mysql", "/usr/share/mariadb", "/usr/share/mysql-8.0", "/usr/local/share/mysql")


def follows(context: Context, path: str, entry: Entry) -> Found:
    """For a server's program."""
    found = _POSTGRES.fullmatch(path)
    if found:
        yield from _postgres(context, found[1])
    if path.rpartition("/")[2] in _MYSQL:
        for place in _MESSAGES:
            for one in [*context.tree.below(f"{place}/charsets"), f"{place}/errmsg.sys", f"{place}/english/errmsg.sys"]:
                yield one, "character sets and messages of the database"


def _postgres(context: Context, home: str) -> Found:
    """home: the directory above bin: /usr/lib/postgresql/15 in Debian, /usr/local in the official image."""
    tree = context.tree
    for place in (f"{home}/lib", f"{home}/lib/postgresql"):
        for one in tree.children(place):
            if _MODULE.search(one):
                yield one, "loaded by an SQL statement"
    version = home.rpartition("/")[2]
    for place in (f"/usr/share/postgresql/{version}", f"{home}/share/postgresql", f"{home}/share"):
        for name in _SHARED:
            for one in tree.below(f"{place}/{name}"):
                yield one, "read by an SQL statement"
        yield from _extensions(context, place, home)
    for name in _CLIENTS:
        entry = tree.get(f"{home}/bin/{name}")
        if entry is not None and entry.size <= _LARGEST:
            yield f"{home}/bin/{name}", "a client of the database, for health checks and copies of it"


def _extensions(context: Context, place: str, home: str) -> Found:
    """The files that CREATE EXTENSION reads and loads."""
    names = set()
    for one in context.tree.children(f"{place}/extension"):
        found = _EXTENSION.fullmatch(one.rpartition("/")[2])
        if found:
            names.add(found["name"])
            yield one, "for CREATE EXTENSION"
    for directory in (f"{home}/lib", f"{home}/lib/postgresql"):
        for name in sorted(names):
            entry = context.tree.get(f"{directory}/{name}.so")
            if entry is not None and entry.size <= _LARGEST:
                yield f"{directory}/{name}.so", "for CREATE EXTENSION"
