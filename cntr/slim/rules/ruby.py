"""Ruby: a used gem as a whole, with its specification."""

from __future__ import annotations

import re

from cntr.slim.rules import application

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cntr.slim.rules import Context, Found
    from cntr.slim.tree import Entry

NAME = "ruby"
SUMMARY = (
    "what the application, or a gem or library that it uses, requires anywhere in its code; lib, data and specification of each "
    "gem that is used; a bundle's files"
)
_REQUIRE = re.compile(
    r"""(?:^|[;{(\s])(require|require_relative|load|autoload\s+:\w+\s*,)\s*\(?\s*["']([\w./-]{1,200})["']""",
    re.MULTILINE,
)
_PLACE = re.compile(
    r"(?:/usr|/usr/local)/lib(?:/[a-z0-9_]+-linux-gnu)?/ruby/(?:(?:vendor|site)_ruby/?)?(?:\d[\d.]*)?(?:/[a-z0-9_]+-linux(?:-gnu)?)?|.*/gems/[^/]+/lib"
)
# Where distributions install it.
_PACKAGED = re.compile(r"((?:/usr|/usr/local)/lib/ruby/vendor_ruby/(?!rubygems|bundler)[\w-]+)(?:\.rb|/)")
_MOST = 4 << 20
# A file of the standard library; its directory is loaded by constants, or by its compiled half.
_STANDARD = re.compile(
    r"/(?:usr|usr/local)/lib/(?:[a-z0-9_]+-linux-gnu/)?ruby/\d[\d.]*/(?:[a-z0-9_]+-linux(?:-gnu)?/)?([\w-]+)\.(?:rb|so)"
)
_TOOLS = ("rubygems", "bundler", "rdoc", "irb", "reline", "racc", "enc")
_ENCODED = re.compile(
    r"""(?:\b(?:encode|force_encoding|encoding|Converter\.new)\s*[(:]?\s*["']|Encoding::|["'][rwab+]{1,3}:(?:bom\|)?)([A-Za-z][\w-]{2,20})""",
    re.IGNORECASE,
)
_BUILT_IN = re.compile(
    r"(?i:utf[-_]?8|utf[-_]8[-_]mac|us[-_]ascii|ascii[-_]8bit|ascii|binary)|[A-Z][a-z]+[A-Z]\w*|[a-z]+_[a-z_]+"
)
_GEM = re.compile(r"(.*)/gems/([^/]+)/(?:lib|app|ext|bin|exe|config|data)/")


def follows(context: Context, path: str, entry: Entry) -> Found:
    """For a file in a gem: autoload loads the rest when it is first named."""
    required: set[str] = context.once("ruby required", set)
    found, packaged = _GEM.match(path), _PACKAGED.match(path)
    if path.endswith((".rb", ".ru", ".rake")) and (
        found or packaged or path in required or application.is_application(context, path)
    ):
        yield from _required(context, path, required)
    if packaged and packaged[1] not in context.once("ruby packages", set):
        context.once("ruby packages", set).add(packaged[1])
        for one in context.tree.below(packaged[1]):
            yield one, f"the library {packaged[1]}, which is used"
    if found:
        root, name = found[1], found[2]
        done: set[str] = context.once("ruby gems", set)
        if f"{root}/{name}" not in done:
            done.add(f"{root}/{name}")
            yield f"{root}/specifications/{name}.gemspec", "the specification of a gem"
            yield f"{root}/specifications/default/{name}.gemspec", "the specification of a gem"
            for part in ("lib", "app", "config", "data", "locales"):
                for one in context.tree.below(f"{root}/gems/{name}/{part}"):
                    yield one, f"the gem {name}, which is used"
    if path.endswith(("/Gemfile", "/gems.rb", "/config.ru")):
        directory = path.rpartition("/")[0]
        for name in ("Gemfile.lock", "gems.locked", ".bundle/config", "Gemfile"):
            yield f"{directory}/{name}", "the bundle that a program belongs to"


def _required(context: Context, path: str, required: set[str]) -> Found:
    text = context.tree.read(path, _MOST).decode("utf-8", "replace")
    here, own = path.rpartition("/")[0], application.is_application(context, path)
    for how, name in _REQUIRE.findall(text):
        places = [here] if how == "require_relative" or own else []
        places += [] if how == "require_relative" else _places(context)
        for one in (f"{place}/{name}{end}" for place in places for end in ("", ".rb", ".so")):
            real, _ = context.tree.resolve(one)
            if real and context.tree.entries[real].is_file:
                required.add(real)
                yield one, f"required by {path} as {name}"
                yield from _of_library(context, real, required)
                break
    if own and "unicode_normalize" in text:
        yield from _directories(context, "unicode_normalize", required)
    if own and any(not _is_built_in(name) for name in _ENCODED.findall(text)):
        yield from _directories(context, "enc", required)


def _is_built_in(name: str) -> bool:
    """Whether an encoding needs no file; Encoding's errors and methods count as such."""
    return _BUILT_IN.fullmatch(name) is not None


def _of_library(context: Context, path: str, required: set[str]) -> Found:
    """The directory of a required file of the standard library: digest/sha2.so, psych/syntax_error.rb."""
    found = _STANDARD.fullmatch(path)
    if found and found[1] not in _TOOLS:
        yield from _directories(context, found[1], required)


def _directories(context: Context, name: str, required: set[str]) -> Found:
    done: set[str] = context.once("ruby directories", set)
    if name not in done:
        done.add(name)
        for place in _places(context):
            for one in context.tree.below(f"{place}/{name}"):
                required.add(one)
                yield one, f"the library {name}, which is used"


def _places(context: Context) -> list[str]:
    def make() -> list[str]:
        return [path for path, entry in context.tree.entries.items() if entry.is_directory and _PLACE.fullmatch(path)]

    return context.once("ruby places", make)  # type: ignore[no-any-return]
