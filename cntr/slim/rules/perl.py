"""Perl: modules that the application uses anywhere in its code, the compiled half of a module, Unicode's tables."""

from __future__ import annotations

import re

from cntr.slim.rules import application

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "perl"
SUMMARY = "modules that the application uses, auto/…/*.so and autosplit files of kept modules"
_USE = re.compile(r"(?:^|[;{}\s])(?:use|require)\s+([A-Za-z]\w*(?:::\w+)*)", re.MULTILINE)
_PLACE = re.compile(
    r"(?:/usr|/usr/local)/(?:lib|share)(?:/[a-z0-9_]+-linux-gnu)?/(?:perl5?|site_perl)(?:-base|/\d[\d.]*|/\d[\d.]*/[^/]+)?"
)
_MOST = 4 << 20
_USED = "perl used"


def follows(context: Context, path: str, entry: Entry) -> Found:
    """Of a Perl file."""
    if not path.endswith((".pm", ".pl", ".psgi", ".cgi")):
        return
    if path.endswith(".pm"):
        yield from _compiled(context, path)
    used: set[str] = context.once(_USED, set)
    if path in used or application.is_application(context, path):
        text = context.tree.read(path, _MOST).decode("utf-8", "replace").partition("\n__END__")[0]
        for module in _USE.findall(text):
            for place in [path.rpartition("/")[0], *_places(context)]:
                found = f"{place}/{module.replace('::', '/')}.pm"
                if found in context.tree:
                    used.add(found)
                    yield found, f"used by the application as {module}"
                    break


def _compiled(context: Context, path: str) -> Found:
    for place in _places(context):
        if path.startswith(f"{place}/"):
            directory = f"{place}/auto/{path[len(place) + 1 : -3]}"
            for one in context.tree.children(directory):
                if one.endswith((".so", ".al", ".ix")):
                    yield one, "the compiled half of a module"


def _places(context: Context) -> list[str]:
    def make() -> list[str]:
        found = [text for text in context.environment().get("PERL5LIB", "").split(":") if text]
        found += [path for path, entry in context.tree.entries.items() if entry.is_directory and _PLACE.fullmatch(path)]
        return found

    return context.once("perl places", make)  # type: ignore[no-any-return]
