"""PHP: the autoloader's tables beside a kept file, extensions that the configuration enables, a framework's package."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "php"
SUMMARY = (
    "composer's autoloader, extensions that the configuration enables, the application that a served script belongs to"
)
_EXTENSION = re.compile(r"^\s*(?:zend_)?extension\s*=\s*\"?([\w./-]+)\"?", re.MULTILINE)
_VENDOR = re.compile(r"(.*/vendor)/")
_SHARED = re.compile(r"(/usr/share/(?:php/[^/]+|[^/]+)|/var/www/[^/]+|/srv/[^/]+|/usr/local/src/[^/]+)/")
_NOT_CODE = ("/doc/", "/docs/", "/test/", "/tests/", "/examples/")


def follows(context: Context, path: str, entry: Entry) -> Found:
    """For a PHP file, or a configuration file of PHP."""
    if path.endswith(".ini") and "/php" in path:
        for name in _EXTENSION.findall(context.tree.read(path, 1 << 16).decode("utf-8", "replace")):
            library = name if name.endswith(".so") else f"{name}.so"
            for directory in _extension_directories(context):
                yield library if library.startswith("/") else f"{directory}/{library}", "an extension that is enabled"
    if not path.endswith((".php", ".inc", ".phtml")):
        return
    found = _VENDOR.match(path)
    if found:
        yield f"{found[1]}/autoload.php", "composer's autoloader"
        for one in context.tree.children(f"{found[1]}/composer"):
            yield one, "composer's autoloader"
    home = _SHARED.match(path)
    if home and home[1] not in ("/usr/share/doc", "/usr/share/php"):
        done: set[str] = context.once("php applications", set)
        if home[1] not in done:
            done.add(home[1])
            for one in context.tree.below(home[1]):
                if one.endswith((".php", ".inc", ".phtml", ".tpl", ".twig")) and not any(
                    part in one for part in _NOT_CODE
                ):
                    yield one, f"code of the application {home[1]}"


def _extension_directories(context: Context) -> list[str]:
    def make() -> list[str]:
        expression = re.compile(r"/usr(?:/local)?/lib/php/(?:extensions/[^/]+|\d{8}[^/]*)")
        return [
            path for path, entry in context.tree.entries.items() if entry.is_directory and expression.fullmatch(path)
        ]

    return context.once("php extensions", make)  # type: ignore[no-any-return]
