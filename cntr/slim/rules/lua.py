"""Lua: modules required by the application, or by a server's configuration that contains Lua."""

from __future__ import annotations

import re

from cntr.slim.rules import application, is_small

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "lua"
SUMMARY = "modules that Lua code of the application, of a configuration or of a used module requires, compiled ones too"
_REQUIRE = re.compile(r"""\brequire\s*\(?\s*(?:"([\w.-]{1,200})"|'([\w.-]{1,200})'|\[\[([\w.-]{1,200})\]\])""")
_PATH = re.compile(r"[^;\"'\s]{0,300}/\?(?:/init)?\.(?:lua|so)")
_PLACE = re.compile(
    r"/usr(?:/local)?/(?:lib|share)(?:/[a-z0-9_]+-linux-gnu)?/lua(?:jit)?(?:/5\.\d|-\d[\w.-]*)?|/usr/local/openresty/(?:site/)?lualib"
)
_IN_CONFIGURATION = (b"_by_lua", b"lua-load", b"lua_package_path")
_USED = "lua used"


def follows(context: Context, path: str, entry: Entry) -> Found:
    """For Lua code of the application, of a used module, or in a small file of /etc."""
    used: set[str] = context.once(_USED, set)
    own = path in used or application.is_application(context, path)
    if path.endswith(".lua"):
        if not own:
            return
    elif not (is_small(entry, 1 << 18) and (path.startswith("/etc/") or path.endswith(".conf"))):
        return
    data = context.tree.read(path)
    if not path.endswith(".lua") and not any(word in data for word in _IN_CONFIGURATION):
        return
    text = data.decode("utf-8", "replace")
    places = [one.rpartition("/?")[0] for one in _PATH.findall(text)]
    context.once("lua paths", list).extend(place for place in places if place.startswith("/"))
    for name in {name for names in _REQUIRE.findall(text) for name in names if name}:
        for found in _files_of(context, path, name):
            used.add(context.tree.resolve(found)[0])
            yield found, f"required by {path} as {name}"


def _files_of(context: Context, path: str, name: str) -> list[str]:
    """For each version of the language, since it is unknown which one runs."""
    inner = name.replace(".", "/")
    places = [path.rpartition("/")[0], *context.once("lua paths", list), *_places(context)]
    found = [
        f"{place}/{inner}{end}" for place in dict.fromkeys(places) for end in (".lua", "/init.lua", ".so", "/core.so")
    ]
    return [one for one in found if context.tree.resolve(one)[0]]


def _places(context: Context) -> list[str]:
    def make() -> list[str]:
        return [path for path, entry in context.tree.entries.items() if entry.is_directory and _PLACE.fullmatch(path)]

    return context.once("lua places", make)  # type: ignore[no-any-return]
