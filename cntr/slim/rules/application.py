"""The application itself: what COPY and ADD brought, the working directory, ``--app``.

All its files are kept, as the exercise does not cover every use. What comes with the base image, or was installed by a
package manager, is not the application. An image of one layer does not tell them apart: then the working directory and
``--app`` decide.
"""

from __future__ import annotations

import re

from cntr.errors import CntrError, printable
from cntr.slim.runs import as_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Tree

NAME = "application"
SUMMARY = (
    "files of COPY and ADD layers, of the working directory, beside a program or in a directory that the image starts, "
    "of a used site, of --app DIR"
)
# Directories of the system: files in them are not part of the application.
SYSTEM = (
    *(
        "/",
        "/usr",
        "/etc",
        "/var",
        "/bin",
        "/sbin",
        "/lib",
        "/lib64",
        "/root",
        "/home",
        "/tmp",
        "/run",
        "/dev",
        "/proc",
    ),
    *(
        "/sys",
        "/boot",
        "/media",
        "/mnt",
        "/opt",
        "/srv",
        "/usr/bin",
        "/usr/sbin",
        "/usr/lib",
        "/usr/share",
        "/usr/local",
    ),
    *("/usr/local/bin", "/usr/local/lib", "/usr/local/sbin", "/usr/local/share", "/var/lib", "/var/log", "/var/cache"),
    *("/usr/src", "/usr/include", "/var/tmp", "/go", "/data"),
)
# Exceptions that may hold an application if the configuration names them.
NAMED = ("/srv", "/opt", "/data", "/usr/src")
# Directories of web sites.
CONTENT = re.compile(
    r"(/var/www/[^/]+|/srv/[^/]+|/usr/share/nginx/html|/usr/local/apache2/htdocs|/usr/src/[^/]+|/opt/app)/"
)
_COPY = re.compile(r"^(?:/bin/sh -c #\(nop\) )?(?:COPY|ADD) ")
_BASE = re.compile(r"^(?:/bin/sh -c #\(nop\) )?ADD \S+ in / *$|^(?:/bin/sh -c #\(nop\) )?ADD \S+ / # buildkit")
_MOST = 200_000  # most files in a layer that counts as an application


def layers(history: list[str]) -> list[int]:
    """The numbers of the layers made by COPY or ADD, without the root directory that a base image adds."""
    return [number for number, line in enumerate(history) if _COPY.match(line) and (number or not _BASE.match(line))]


def of_layers(history: list[str], names: list[list[str]], tree: Tree) -> set[str]:
    """The files of those layers that are still in the image. names: the files of each layer."""
    found: set[str] = set()
    for number in layers(history):
        if number < len(names) and len(names[number]) <= _MOST and not set(names[number]) & _SYSTEMS:
            found.update(path for path in names[number] if path in tree)
    return found


# A layer with one of these is a system's root, however it was added.
_SYSTEMS = frozenset(
    "/var/lib/dpkg/status /lib/apk/db/installed /usr/lib/apk/db/installed /var/lib/rpm/rpmdb.sqlite /var/lib/rpm/Packages "
    "/usr/lib/sysimage/rpm/rpmdb.sqlite /etc/os-release /usr/lib/os-release".split()
)


def seeds(context: Context) -> Found:
    """All of the application."""
    tree = context.tree
    for path in sorted(context.application):
        yield path, "of a layer that COPY or ADD made"
    for directory in context.choices.application:
        real, _ = tree.resolve(directory)
        if not real:
            raise CntrError(f"--app {printable(directory)}: not in the image", "name a directory of the image")
        for path in [real, *tree.below(real)]:
            context.application.add(path)
            yield path, f"--app {directory}"
    real, _ = tree.resolve(str(context.settings.get("WorkingDir") or "/"))
    yield from _whole(context, real, "in the working directory")
    for word in [*as_words(context.settings.get("Entrypoint")), *as_words(context.settings.get("Cmd"))]:
        real, _ = tree.resolve(word.rpartition("=")[2]) if "/" in word else ("", [])
        if real and not tree.entries[real].is_directory:
            yield from _whole(context, real.rpartition("/")[0], f"beside {real}, which the image starts")
        elif real:
            yield from _whole(context, real, f"in {word}, an argument of what the image starts", named=True)


def _whole(context: Context, directory: str, why: str, *, named: bool = False) -> Found:
    """All of a directory, if it is an application's; named: the configuration names exactly this directory."""
    usual = directory in SYSTEM or is_of_a_package(context, directory)
    if not directory or (usual and not (named and directory in NAMED)):
        return
    paths = context.tree.below(directory)
    if len(paths) > _MOST:
        return
    for path in paths:
        context.application.add(path)
        yield path, why


def follows(context: Context, path: str, entry: object) -> Found:
    """For a file of a web site: the whole site."""
    found = CONTENT.match(path)
    done: set[str] = context.once("sites", set)
    if found and found[1] not in done:
        done.add(found[1])
        for one in context.tree.below(found[1])[:_MOST]:
            yield one, f"content of {found[1]}, of which something is used"


def is_of_a_package(context: Context, path: str) -> bool:
    """Whether a package owns the directory: then it holds the package's data, not an application."""
    from cntr.slim.rules import packages

    return path in packages.owners(context)


def is_application(context: Context, path: str) -> bool:
    """Whether a file is the application's own."""
    return path in context.application
