"""Perl: modules that the application's code uses anywhere, their whole distributions, and their compiled parts."""

from __future__ import annotations

import re

from cntr.slim.rules import application, packages, scripts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "perl"
SUMMARY = (
    "modules that the application uses, with the rest of their distributions and the drivers of DBI; auto/…/*.so and autosplit "
    "files of kept modules"
)
_USE = re.compile(r"(?:^|[;{}\s])(?:use|require)\s+([A-Za-z_]\w*(?:::\w+)*)", re.MULTILINE)
_BASES = re.compile(r"\buse\s+(?:base|parent)\s+(?:-norequire\s*,\s*)?(?:qw\s*[({\[/]([^)}\]/]*)|[\"']([\w:]+)[\"'])")
_LAYER = re.compile(r":encoding\(|<:gzip|PerlIO")
_PLACE = re.compile(
    r"(?:/usr|/usr/local)/(?:lib|share)(?:/[a-z0-9_]+-linux-gnu)?/(?:perl5?|site_perl)(?:/(?:site|vendor)_perl)?"
    r"(?:-base|/\d[\d.]*|/\d[\d.]*/[^/]+)?"
)
_CORE = ("perl", "perl-base", "libperl", "perl-modules")
# In Perl's own distribution: modules that another one loads by a name given to it.
_BY_NAME = {
    "Encode": ("Encode", "auto/Encode"),
    "charnames": ("unicore/Name.pl", "unicore/Name.pm"),
    "_charnames": ("unicore/Name.pl", "unicore/Name.pm"),
    "DBI": ("DBD", "auto/DBD"),
    "Digest": ("Digest", "auto/Digest"),
    "PerlIO": ("PerlIO", "auto/PerlIO"),
    **dict.fromkeys(
        ("Math/BigInt", "Math/BigFloat", "Math/BigRat", "bigint", "bignum", "bigrat"), ("Math", "auto/Math")
    ),
    "JSON": ("JSON", "auto/JSON"),
    "JSON/MaybeXS": ("JSON", "auto/JSON"),
}
_MOST = 4 << 20
_USED = "perl used"


def follows(context: Context, path: str, entry: Entry) -> Found:
    """For a Perl file."""
    used: set[str] = context.once(_USED, set)
    named = path.endswith((".pm", ".pl", ".psgi", ".cgi"))
    own = application.is_application(context, path) or (not named and scripts.language(context, path, entry) == "perl")
    if not named and not own:
        return
    if path.endswith(".pm"):
        yield from _compiled(context, path)
    if path in used or own:
        text = context.tree.read(path, _MOST).decode("utf-8", "replace").partition("\n__END__")[0]
        bases = [name for listed, one in _BASES.findall(text) for name in (listed or one).split()]
        layers = ["PerlIO", "Encode"] if _LAYER.search(text) else []
        for module in dict.fromkeys([*_USE.findall(text), *bases, *layers]):
            for place in [path.rpartition("/")[0], *_places(context)]:
                found = f"{place}/{module.replace('::', '/')}.pm"
                if found in context.tree:
                    used.add(found)
                    yield found, f"used by the application as {module}"
                    for one, why in _whole(context, place, module, found, application.is_application(context, path)):
                        used.add(one)
                        yield one, why
                    break


def _whole(context: Context, place: str, module: str, path: str, own: bool) -> Found:
    """What a module may load by a computed name: back ends, plug-ins, drivers, that is, the rest of its distribution."""
    name = packages.owners(context).get(path, "")
    known = module.replace("::", "/")
    for part in _BY_NAME.get(known, ()) if own or known != "Encode" else ():  # its tables take 9 MB
        for other in _places(context):
            for one in [f"{other}/{part}", *context.tree.below(f"{other}/{part}")]:
                yield one, f"loaded by {module} by name"
    if name.startswith(_CORE) or name in context.once("perl distributions", set):
        return
    if name:
        context.once("perl distributions", set).add(name)
        for one in packages.files(context, name):
            if any(one.startswith(f"{other}/") for other in _places(context)):
                yield one, f"of the distribution of {module}"
        return
    for one in context.tree.below(f"{place}/{module.replace('::', '/')}"):
        yield one, f"of the distribution of {module}"


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
